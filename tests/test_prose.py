"""No sentence goes stale: a number in README or in a notebook's closing section is a cell of a table."""

import re
from functools import cache
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = [ROOT / "results" / profile for profile in ("demo", "btcv")]  # those that are committed
NUMBER = r"[-+]?\d+\.\d+"
INTERVAL = re.compile(rf"({NUMBER})[^\[\]|;]{{0,25}}\[({NUMBER}), ({NUMBER})\]")
CLOSING = "**What we found"


NEAR = 0.00051  # of a value that was rounded twice


@cache
def cells() -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) values with their intervals, of all tables and as the notebooks print them; and all numbers of
    tables, of published ones, and the means of scores.csv by run and scans, by training or organ, too."""
    intervals, numbers = list[list[float]](), list[float]()
    for path in sorted(path for home in RESULTS for path in home.glob("tables/*.csv")):
        table = pd.read_csv(path)
        numbers += table.select_dtypes("number").to_numpy().ravel().tolist()
        for name in (name for name in table if f"{name} low" in table):
            intervals += table[[name, f"{name} low", f"{name} high"]].dropna().to_numpy().tolist()
        told = INTERVAL.finditer(path.read_text())  # the claims', which are text
        intervals += [[float(x) for x in one.groups()] for one in told]
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        outputs = [out for cell in nbformat.read(path, 4).cells for out in cell.get("outputs", ())]
        kinds = ("text/plain", "text/markdown")  # captions are Markdown
        shown = ((out.get("text", ""), *map(out.get("data", {}).get, kinds)) for out in outputs)
        printed = "\n".join(part for parts in shown for part in parts if part)
        intervals += [[float(x) for x in one.groups()] for one in INTERVAL.finditer(printed)]
    for path in sorted((ROOT / "published").glob("*.csv")):
        numbers += pd.read_csv(path).select_dtypes("number").to_numpy().ravel().tolist()
    every = [path for home in RESULTS if (path := home / "scores.csv").exists()]
    scores = pd.concat([pd.read_csv(path, low_memory=False) for path in every])
    by = ["run", "dataset", "variant", "condition"]
    organs = scores.fillna({"variant": "", "condition": ""}).groupby([*by, "seed", "organ"])["dice"].mean()
    for more in ([], ["seed"], ["organ"]):
        numbers += organs.groupby([*by, *more]).mean().tolist()
    return np.array(intervals), np.array(numbers)[np.isfinite(numbers)]


def is_cell(value: float, low: float, high: float) -> bool:
    """Whether it was measured: as it stands, with its sign turned, or in percent."""
    ways = np.array([[value, low, high], [-value, -high, -low]])
    return any((np.abs(cells()[0] - way) < NEAR).all(1).any() for way in (*ways, *ways / 100))


def texts() -> dict[str, str]:
    """What is claimed, by where it stands."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, came_out = readme.split("## Run it")[0], readme.split("## What came out")[1].split("\n## ")[0]
    found = {"README.md": first + came_out}
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        sources = (cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown")
        if closing := "\n".join(source for source in sources if CLOSING in source):
            found[path.name] = closing
    return found


@pytest.mark.parametrize("name", texts())
def test_every_interval_in_prose_is_a_cell_of_a_table(name: str) -> None:
    found = [one.groups() for one in INTERVAL.finditer(texts()[name])]
    assert not [one for one in found if not is_cell(*map(float, one))]


@pytest.mark.parametrize("name", texts())
def test_every_other_number_of_three_decimals_was_measured_or_published(name: str) -> None:
    rest = INTERVAL.sub("", texts()[name])
    numbers = {abs(float(x)) for x in re.findall(r"(?<![\d.])[-+]?\d\.\d{3}(?!\d)", rest)}
    stale = [x for x in sorted(numbers) if np.abs(np.abs(cells()[1]) - x).min() > NEAR]
    assert not stale
