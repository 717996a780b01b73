"""The pages of the site: executed notebooks, the repository's own Markdown, and pages of tables, figures and claims."""

import re
import textwrap
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
from bs4 import BeautifulSoup, Tag
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors import ExtractOutputPreprocessor

from lib.figures import FIGURES

from .contents import KINDS, PARTS, Contents, Picture, Table, at_a_glance, part_of, project, sentence, title_of, verdicts

WIDGET = "application/vnd.jupyter.widget-view+json"
FIGURE_OF = {draw.__name__: name for name, draw in FIGURES.items() if hasattr(draw, "__name__")}
ALTERNATIVE = 400  # characters of prose that stand for a picture without a caption


class Page(NamedTuple):
    """A page: its file, its name in the navigation, what stands on it, and where its links start in the repository, if they do."""

    url: str
    name: str
    body: BeautifulSoup
    folder: Path | None = None


def soup(html: str) -> BeautifulSoup:
    """HTML as a tree."""
    return BeautifulSoup(html, "html.parser")


def markdown_page(path: Path, url: str, name: str) -> Page:
    """A Markdown file of the repository as a page."""
    return Page(url, name, soup(markdown2html(path.read_text())), path.parent)


# Notebooks


def _described(notebook: nbformat.NotebookNode, captions: dict[str, str]) -> None:
    """Gives every picture words for who cannot see it: the caption of the figure that its cell draws, else the prose before it."""
    prose = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            words = " ".join(soup(markdown2html(cell.source)).get_text(" ").replace("¶", " ").split())
            prose = textwrap.shorten(words, ALTERNATIVE, placeholder=" …")
            continue
        drawn = [captions[FIGURE_OF[name]] for name in re.findall(r"figures\.(\w+)\(", cell.source) if FIGURE_OF.get(name) in captions]
        for output in cell.get("outputs", []):
            for kind in {"image/png", "image/jpeg"} & {*output.get("data", {})}:
                output.metadata.setdefault(kind, {}).setdefault("alt", drawn[0] if drawn else f"Figure: {prose}")


def _without_widgets(notebook: nbformat.NotebookNode) -> None:
    """A control does nothing without a kernel: its static picture stays where it has one; progress bars go."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("data", {}).pop(WIDGET, None):
                output.data.pop("text/plain", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]


def notebook_page(path: Path, captions: dict[str, str], target: Path) -> Page:
    """A notebook as a page; its pictures are written to target/media. captions: {figure: its caption}."""
    notebook = nbformat.read(path, as_version=4)
    _without_widgets(notebook)
    _described(notebook, captions)
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_preprocessor(ExtractOutputPreprocessor(extract_output_types={"image/png", "image/jpeg"}), enabled=True)
    html, resources = exporter.from_notebook_node(notebook, {"unique_key": path.stem, "output_files_dir": "media"})
    for name, content in resources["outputs"].items():
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
    body = soup(html)
    heading = body.find("h1")
    name = heading.get_text().removesuffix("¶") if isinstance(heading, Tag) else path.stem
    return Page(f"{path.stem}.html", name.partition(":")[0], body, path.parent)


def _question(page: Page) -> str:
    """What a notebook asks at its opening, as HTML."""
    bold = page.body.find("strong", string=re.compile("^Question"))
    asked = bold.parent.get_text().partition("Question. ")[2] if isinstance(bold, Tag) and bold.parent else ""
    return f'<li><a href="{page.url}">{escape(page.name)}</a>: {escape(asked)}</li>'


# Tables, figures, claims


def _grid(cells: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):
        return cells.to_html(index=False, border=0)


def _table(table: Table, title: str) -> str:
    links = " · ".join(f'<a href="tables/{table.name}.{kind}">{kind}</a>' for kind in ("csv", "tex"))
    return f'<h2 id="{table.name}">{title}</h2><p class="caption">{escape(table.caption)} {links}</p>{_grid(table.cells)}'


def _figure(picture: Picture) -> str:
    shown = f'<img src="figures/{picture.name}.png" alt="{escape(picture.caption)}" loading="lazy">'
    return f'<figure>{shown}<figcaption><a href="figures/{picture.name}.pdf">pdf</a></figcaption></figure>'


def landing_page(contents: Contents, notebooks: list[Page]) -> Page:
    """What was reproduced, at a glance, and the way to everything else."""
    headline = "".join(
        f'<h3>{part_of(table.name)}, {title_of(table.name)}</h3><p class="caption">{escape(table.caption)}</p>{_grid(table.cells)}'
        for table in at_a_glance(contents)
    )
    body = f"""<h1>{escape(project()["description"])}</h1>
<h2>What was reproduced, at a glance</h2>
<p>{escape(sentence(contents.claims))} <a href="claims.html">Every claim</a>, <a href="tables.html">every table</a>,
<a href="figures.html">every figure</a>, or <a href="report.pdf">all of it as a PDF</a>.</p>
{_grid(verdicts(contents.claims))}{headline}{"".join(map(_figure, contents.pictures[:1]))}
<h2>Notebooks</h2><ul>{"".join(map(_question, notebooks))}</ul>"""
    return Page("index.html", "At a glance", soup(body))


def own_pages(contents: Contents) -> Iterator[Page]:
    """Tables, figures and claims, a page of each."""
    tables, figures = ["<h1>Tables</h1>"], ["<h1>Figures</h1>"]
    for part in PARTS:
        tables += [_table(table, f"{part}: {title_of(table.name)}") for table in contents.tables if part_of(table.name) == part]
        own = [picture for picture in contents.pictures if part_of(picture.name) == part]
        figures += [f'<h2 id="{picture.name}">{part}: {title_of(picture.name)}</h2>{_figure(picture)}' for picture in own]
        if names := ", ".join(contents.absent[part]):
            tables.append(f"<p>{part}: not run in the {contents.profile} profile: {names}.</p>")
    yield Page("tables.html", "Tables", soup("".join(tables)))
    yield Page("figures.html", "Figures", soup("".join(figures)))
    ledger = "".join(
        f"<h2>{kind.capitalize()}</h2>{_grid(contents.claims[contents.claims['kind'] == kind].drop(columns=['id', 'kind']))}"
        for kind in KINDS
    )
    yield Page("claims.html", "Claims", soup(f"<h1>Claims of the T-Gated paper</h1><p>{escape(contents.rule)}</p>{ledger}"))
