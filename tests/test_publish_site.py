"""publish.site: pages that ask no other host, lead nowhere that is not there, and say in words what they show in pictures."""

import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lib.paths import ROOT, InputError
from publish import site
from publish.pages import WIDGET, Page, notebook_page, soup

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def demo(folder: Path) -> None:
    """The committed results of the demo, with something that stands for its report."""
    shutil.copytree(ROOT / "results/demo", folder / "results/demo", ignore=shutil.ignore_patterns("runs", "figure_data"))
    (folder / "results/demo/report.pdf").write_bytes(b"%PDF-1.7")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The site of the demo as committed."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        demo(folder)
        patch.setenv("RESULTS_ROOT", str(folder / "results"))
        yield site.build("demo", folder / "built").parent


@cache
def pages(folder: Path) -> dict[str, BeautifulSoup]:
    """{page's file: what stands on it}."""
    return {path.name: soup(path.read_text()) for path in sorted(folder.glob("*.html"))}


def test_no_page_loads_anything_from_another_host(built: Path) -> None:
    for name, page in pages(built).items():
        loaded = [tag.get("src") or tag.get("href") for tag in page.find_all(["script", "img", "link", "iframe", "source", "video"])]
        assert not [url for url in loaded if url and urlsplit(url).scheme not in ("", "data")], name
        assert not page.find_all("style"), name
    for path in [*built.glob("*.css"), built / "search.js"]:
        assert "http" not in path.read_text() and "@import" not in path.read_text() and "fetch" not in path.read_text()


def test_every_link_leads_somewhere(built: Path) -> None:
    ids = {name: {tag["id"] for tag in page.find_all(id=True)} for name, page in pages(built).items()}
    for name, page in pages(built).items():
        links = [tag.get("href") or tag.get("src") for tag in page.find_all(["a", "img", "script", "link"])]
        for link in map(urlsplit, filter(None, links)):
            if link.scheme:
                continue
            there = unquote(link.path) or name
            assert (built / there).is_file(), f"{name} -> {there}"
            if link.fragment and there in ids:
                assert link.fragment in ids[there], f"{name} -> {there}#{link.fragment}"


def test_every_picture_has_words(built: Path) -> None:
    pictures = [(name, tag) for name, page in pages(built).items() for tag in page.find_all("img")]
    assert len(pictures) > 30
    assert not [name for name, tag in pictures if len(tag.get("alt", "").split()) < 3]


def test_every_page_is_made_for_a_phone_and_says_what_it_shows(built: Path) -> None:
    shown = pages(built)
    assert {"index.html", "tables.html", "figures.html", "claims.html", "readme.html", "01_data_preparation.html"} <= shown.keys()
    for name, page in shown.items():
        assert page.find("meta", attrs={"name": "viewport"}), name
        assert "phantoms, not patients: not clinical" in page.find(class_="note").get_text(), name
        assert all("scroll" in table.parent.get("class", ()) for table in page.find_all("table")), name
        assert page.find("h1") and page.find(attrs={"aria-current": "page"})["href"] == name


def test_the_landing_page_counts_the_verdicts_and_lists_the_notebooks(built: Path) -> None:
    page = pages(built)["index.html"]
    words = " ".join(page.get_text(" ").split())
    claims = pd.read_csv(ROOT / "results/demo/claims.csv")
    reproduced = ((claims["kind"] == "direction") & (claims["verdict"] == "reproduced")).sum()
    assert f"{reproduced} are reproduced" in words and "0.704" in words
    questions = [item.get_text() for item in page.find("main").find_all("li")]
    assert len(questions) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    assert all(question.strip().endswith("?") for question in questions), questions


def test_the_search_knows_every_page_and_no_code(built: Path) -> None:
    text = (built / "index.js").read_text()
    index = json.loads(text.removeprefix("const SECTIONS = ").rstrip(";\n"))
    assert {section["url"].partition("#")[0] for section in index} == set(pages(built))
    assert any("Holm" in section["text"] for section in index)
    assert not any("import os" in section["text"] for section in index)


# One notebook


def page_of(tmp_path: Path, *cells: nbformat.NotebookNode, captions: dict[str, str] | None = None) -> Page:
    path = tmp_path / "01_test.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A title\n\nThe prose before it."), *cells]), path)
    return notebook_page(path, captions or {}, tmp_path)


def picture(**data: object) -> nbformat.NotebookNode:
    return new_output("display_data", data={"image/png": PIXEL, "text/plain": "<Figure>", **data})


def test_a_picture_is_described_by_its_figure_s_caption_or_the_prose_before(tmp_path: Path) -> None:
    plain, named = new_code_cell("plt.show()", outputs=[picture()]), new_code_cell("figures.tgated_fig1(PROFILE)", outputs=[picture()])
    page = page_of(tmp_path, plain, named, captions={"tgated_fig1": "Strips of slices."})
    images = page.body.find_all("img")
    assert [image["alt"] for image in images] == ["Figure: A title The prose before it.", "Strips of slices."]
    assert all((tmp_path / image["src"]).is_file() for image in images)


def test_a_widget_leaves_its_static_picture_and_a_progress_bar_nothing(tmp_path: Path) -> None:
    view = {WIDGET: {"model_id": "1"}}
    bar = new_output("display_data", data={"text/plain": "  0%| | 0/10", **view})
    page = page_of(tmp_path, new_code_cell("show()", outputs=[picture(**view), bar]))
    assert len(page.body.find_all("img")) == 1
    assert "0/10" not in page.body.get_text() and not page.body.find("script")


def test_links_lead_to_pages_or_copies_and_else_become_words(tmp_path: Path) -> None:
    html = (
        '<a href="02_baseline.ipynb#The-model">two</a><a href="../README.md">read</a><a href="../LICENSE">licence</a>'
        '<a href="../gone.md">gone</a><a href="https://example.org/x">far</a><img src="https://example.org/x.svg" alt="Open in Colab">'
        "<h2>Größe &amp; more</h2><table><td>0.5 [0.4, 0.6], n = 3</td><td>06 MRI</td><td>5 words</td></table>"
    )
    page = Page("x.html", "x", soup(html), ROOT / "notebooks")
    site.finish(page, "demo", tmp_path)
    links = {tag.get_text(): tag["href"] for tag in page.body.find_all("a")}
    assert links == {
        "two": "02_baseline.html#The-model",
        "read": "readme.html",
        "licence": "files/LICENSE",
        "far": "https://example.org/x",
    }
    assert (tmp_path / "files/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "gone" in page.body.get_text() and "Open in Colab" in page.body.get_text() and not page.body.find("img")
    assert [cell.get("class") for cell in page.body.find_all("td")] == ["number", None, None]
    assert page.body.find("h2")["id"] == "gr-e-more"


@pytest.mark.parametrize(("lost", "said"), [("report.pdf", "make report"), ("scores.csv", "make paper"), ("claims.csv", "make figures")])
def test_what_is_missing_is_one_sentence_and_the_older_site_stays(
    lost: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo(tmp_path)
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    (tmp_path / "results/demo" / lost).unlink()
    (tmp_path / "built").mkdir()
    (tmp_path / "built/index.html").write_text("older")
    with pytest.raises(InputError) as caught:
        site.build("demo", tmp_path / "built")
    assert f"run `{said} PROFILE=demo`" in str(caught.value)
    assert (tmp_path / "built/index.html").read_text() == "older" and sorted(p.name for p in tmp_path.iterdir()) == ["built", "results"]


def test_an_older_site_is_replaced_and_what_others_put_beside_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo(tmp_path)
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setattr(site, "notebooks_of", lambda profile: [])
    monkeypatch.setattr(site, "landing_page", lambda contents, notebooks: Page("index.html", "x", soup("<h1 id='x'>x</h1>")))
    target = tmp_path / "built"
    theirs = {"CNAME": "site.example.org", ".git/config": "mine", "tables/mine.csv": "mine"}
    for name, text in theirs.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(text)
    (old := tmp_path / "results/demo/tables/old.md").write_text("old")
    for _ in range(2):
        site.build("demo", target)
        assert {name: (target / name).read_text() for name in theirs} == theirs
        assert (target / "index.html").is_file() and (target / "tables/old.md").is_file() == old.is_file()
        old.unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    (target / "style.css").write_text("mine")
    with pytest.raises(InputError, match=r"style\.css exists and is left as it is"):
        site.build("demo", target)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before | {target / "style.css": b"mine"}
