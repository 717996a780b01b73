"""tools/site: pages that load nothing from another host, with equations, tables and a local search."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from nbformat import v4, write

from lib.files import ROOT

pytest.importorskip("sphinx", reason="Sphinx is not installed: it builds the site")
TABLE = "results/demo/tables/tgated_table2.md"
PAGES = {
    "README.md": f"# The landing page\n\n[Table 2]({TABLE}), [baseline](notebooks/02_baseline.ipynb)\n",
    "CONTRIBUTING.md": "# Contributing\n",
    "data/README.md": "# Data\n",
    "weights/README.md": "# Weights\n",
    TABLE: "| run | Dice |\n| --- | ---: |\n| baseline | 0.566 [0.543, 0.585] |\n\nMean Dice.\n",
    "build/site/kept.txt": "not ours",
}
BASELINE = r"""# The baseline
[![Open in Colab](https://colab.example.org/badge.svg)](https://colab.example.org/02)

$$\mathcal L = \tfrac12\Big[1 - x\Big]$$

with $x \in \mathbb{R}$"""
OUTPUT = v4.new_output("display_data", {"text/html": "<table><tr><td>zebrafish</td></tr></table>"})
NOTEBOOKS = {
    "02_baseline": [v4.new_markdown_cell(BASELINE), v4.new_code_cell("1 / 0  # never run", outputs=[OUTPUT])],
    "03_adapter": [v4.new_markdown_cell(f"# The adapter\n\nAll is in [Table 2](../{TABLE}).")],
}
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """What `make site` runs, on the repository in `folder`."""
    places = {"RESULTS_ROOT": str(folder / "results"), "FIGURES_ROOT": str(folder / "figures")}
    (command,) = re.findall(r"^site:.*\n\t@\$\(PY\) (-m sphinx .*)", (ROOT / "Makefile").read_text(), re.M)
    options = {"cwd": folder, "env": os.environ | places | {"PYTHONPATH": str(ROOT)}}
    return subprocess.run([sys.executable, *command.split()], **options, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small notebooks and a table as a site."""
    home = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "tools/site", home / "tools/site")
    for name, text in PAGES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    (home / "notebooks").mkdir()
    for name, cells in NOTEBOOKS.items():
        notebook = v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
        write(notebook, home / "notebooks" / f"{name}.ipynb")
    assert build(home).stderr == ""
    return home / "build" / "site"


def test_every_page_is_there_and_what_is_not_ours_stays(site: Path) -> None:
    for name in ("index", "data/README", "CONTRIBUTING", "notebooks/02_baseline", "tools/site/figures"):
        assert (site / f"{name}.html").is_file(), name
    assert "landing" in (site / "index.html").read_text() and (site / "kept.txt").is_file()


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag in BeautifulSoup(page.read_text(), "html.parser").find_all(list(LOADS)):
            assert not re.match(r"(\w+:)?//", str(tag.get(LOADS[tag.name], ""))), tag
    for file in (*site.rglob("*.css"), *site.rglob("*.js")):
        assert not re.search(r"@import|url\(['\"]?(https?:)?//|from ['\"]https?:", file.read_text()), file


def test_links_to_a_table_lead_to_its_place(site: Path) -> None:
    for name in ("index", "notebooks/03_adapter"):
        assert 'tools/site/tables.html#tgated-table2-md"' in (site / f"{name}.html").read_text()
    assert "<p>0.566 [0.543, 0.585]</p>" in (site / "tools/site/tables.html").read_text()


def test_a_notebook_is_shown_as_committed_with_its_equations_and_is_found(site: Path) -> None:
    page = BeautifulSoup((site / "notebooks/02_baseline.html").read_text(), "html.parser")
    assert "zebrafish" in page.text and "Open in Colab" in page.text
    assert [math.text for math in page.find_all("math")] == ["ℒ=12[1−x]", "x∈ℝ"]
    index = json.loads((site / "searchindex.js").read_text().removeprefix("Search.setIndex(").rstrip(")"))
    assert index["docnames"][index["terms"]["zebrafish"]] == "notebooks/02_baseline"


def test_no_table_is_one_sentence(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tools/site", tmp_path / "tools/site")
    said = f"{tmp_path}/results/demo/tables holds no table: run `make figures PROFILE=demo` first.\n"
    done = build(tmp_path)
    assert (done.returncode, done.stderr) == (1, said) and not list(tmp_path.rglob("*.html"))
