"""`make site`: the executed notebooks, tables, figures and claims as static HTML in build/site, which asks no other host for anything."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jinja2
from bs4 import NavigableString, Tag
from markupsafe import Markup
from pygments.formatters import HtmlFormatter

from lib.paths import ROOT, InputError, figures_root, results_root
from lib.written import writing_into

from .contents import Contents, project, read_contents, warning
from .pages import Page, landing_page, markdown_page, notebook_page, own_pages

ASSETS = Path(__file__).with_name("assets")
DOCUMENTS = {
    "README.md": ("readme.html", "Read me"),
    "data/README.md": ("data.html", "Data sets"),
    "CONTRIBUTING.md": ("contributing.html", "Contributing"),
    "CHANGELOG.md": ("changelog.html", "Changes"),
}
HEADINGS = ("h1", "h2", "h3")
NUMBER = re.compile(r"([+-]?\d|–)[^A-Za-z]*(, n = \d+)?$")


def notebooks_of(profile: str) -> list[Path]:
    """The executed notebooks of a profile.

    Raises:
        InputError: there are none.
    """
    folder = ROOT / "notebooks" if profile == "demo" else results_root(profile) / "notebooks"
    if not (paths := sorted(folder.glob("*.ipynb"))):
        raise InputError(f"{folder} holds no executed notebooks: run `make paper PROFILE={profile}`.")
    return paths


def _on_the_site(path: Path, profile: str, target: Path) -> str | None:
    """Where a file of the repository is on the site, copied if it has no page of its own; None where there is no such file."""
    inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    if path.suffix == ".ipynb" and path in notebooks_of(profile):
        return f"{path.stem}.html"
    if inside in DOCUMENTS:
        return DOCUMENTS[inside][0]
    if path == results_root(profile) / "claims.md":
        return "claims.html"
    if path.parent == results_root(profile) / "tables" and path.suffix == ".md":
        return f"tables.html#{path.stem}"
    if path.parent == figures_root(profile):
        return f"figures/{path.name}"
    if not inside or not path.is_file():
        return None
    (target / "files" / inside).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target / "files" / inside)
    return f"files/{inside}"


def _link(tag: Tag, attribute: str, page: Page, profile: str, target: Path) -> None:
    """Turns a link of the repository into one of the site; what is not there becomes plain words, and so does another host's picture."""
    parts = urlsplit(str(tag[attribute]))
    if parts.scheme or parts.netloc:
        if tag.name == "img" and parts.scheme != "data":
            tag.replace_with(str(tag.get("alt") or "picture"))
        return
    if page.folder is None or not parts.path or (target / "media" / Path(parts.path).name).is_file():
        return
    url = _on_the_site((page.folder / unquote(parts.path)).resolve(), profile, target)
    if url is None:
        tag.unwrap()
    else:
        tag[attribute] = f"{url}#{parts.fragment}" if parts.fragment and "#" not in url else url


def finish(page: Page, profile: str, target: Path) -> None:
    """Links, anchors and tables of a page as the site wants them."""
    body = page.body
    for tag in body.find_all("style") + body.select("a.anchor-link"):
        tag.decompose()
    for tag in body.find_all("a", href=True):
        _link(tag, "href", page, profile, target)
    for tag in body.find_all("img", src=True):
        _link(tag, "src", page, profile, target)
    for heading in body.find_all(HEADINGS):
        if "%" in str(heading.get("id", "%")):
            heading["id"] = re.sub(r"[^a-z0-9]+", "-", heading.get_text().lower()).strip("-")
    for table in body.find_all("table"):
        del table["border"]
        table.wrap(body.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
        for cell in table.find_all("td"):
            if NUMBER.match(cell.get_text()):
                cell["class"] = "number"


def sections(page: Page) -> Iterator[dict[str, str]]:
    """What the search looks through: the words under each heading, without code and printed output."""
    found: list[dict[str, Any]] = []
    for node in page.body.descendants:
        if isinstance(node, Tag) and node.name in HEADINGS:
            found.append({"url": f"{page.url}#{node['id']}", "page": page.name, "title": node.get_text(), "text": []})
        elif isinstance(node, NavigableString) and found and not node.find_parent(["pre", *HEADINGS]):
            found[-1]["text"].append(str(node))
    for section in found:
        yield section | {"text": " ".join(" ".join(section["text"]).split())}


def _copies(contents: Contents, target: Path) -> None:
    """Tables and figures as files, the report, and what the pages load."""
    results, figures = results_root(contents.profile), figures_root(contents.profile)
    shutil.copytree(results / "tables", target / "tables")
    shutil.copytree(figures, target / "figures", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(results / "report.pdf", target)
    shutil.copy(ASSETS / "search.js", target)
    light, dark = (HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "github-dark"))
    (target / "style.css").write_text(f"{(ASSETS / 'style.css').read_text()}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n")


def build(profile: str, target: Path) -> Path:
    """Writes the site of a profile into `target`, in the place of an older one; returns its landing page.

    Raises:
        InputError: there are no scores, tables, notebooks or report of the profile, or `target` cannot be written, or holds a file of
            somebody else where the site has one.
    """
    contents, paths = read_contents(profile), notebooks_of(profile)
    if not (results_root(profile) / "report.pdf").is_file():
        raise InputError(f"{results_root(profile) / 'report.pdf'} does not exist: run `make report PROFILE={profile}`.")
    with writing_into(target, overwrite=True) as part:
        _copies(contents, part)
        captions = {picture.name: picture.caption for picture in contents.pictures}
        notebooks = [notebook_page(path, captions, part) for path in paths]
        documents = [markdown_page(ROOT / path, *names) for path, names in DOCUMENTS.items() if (ROOT / path).is_file()]
        _write([landing_page(contents, notebooks), *notebooks, *own_pages(contents), *documents], contents, part)
    return target / "index.html"


def _write(pages: list[Page], contents: Contents, target: Path) -> None:
    """Every page in its frame, and the search's index."""
    about = project()
    frame = jinja2.Environment(loader=jinja2.FileSystemLoader(ASSETS), autoescape=True).get_template("page.html.j2")
    shared = {
        "brand": "T-Gated Adapter and Med-VLM, reproduced",
        "description": about["description"],
        "note": contents.note[:1].upper() + contents.note[1:],
        "warning": warning(contents.profile),
        "pages": [(page.url, page.name) for page in pages],
    }
    index = []
    for page in pages:
        finish(page, contents.profile, target)
        html = frame.render(shared, here=page.url, title=page.name, body=Markup(str(page.body)))
        (target / page.url).write_text(html)
        index += list(sections(page))
    (target / "index.js").write_text(f"const SECTIONS = {json.dumps(index, ensure_ascii=False)};\n")


def main() -> None:
    """Command line of the Makefile."""
    parser = argparse.ArgumentParser(description="Make a static site of a profile's notebooks, tables and figures.")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--target", type=Path, default=ROOT / "build" / "site")
    arguments = parser.parse_args()
    try:
        print(f"site: {build(arguments.profile, arguments.target)}")
    except InputError as error:
        sys.exit(f"site: {error}")


if __name__ == "__main__":
    main()
