"""Frames of raw numbers as text: on a page, and as CSV, Markdown and LaTeX.

A table is a frame of raw numbers whose first column names its rows. Where it has a column X, columns `X low`, `X high` and `X n`
hold X's 95 % interval and its number of cases; `formatted` folds them into X.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lib.paths import replacing, results_root
from lib.profiles import data_note


def cells(name: str, values: Iterable[float]) -> dict[str, float]:
    """Columns of a row: a value, the ends of its interval and, where there is a fourth, the number of cases."""
    return dict(zip((name, f"{name} low", f"{name} high", f"{name} n"), values, strict=False))


def _six_digits(value: float) -> str:
    """0.571194, 10.0, 1e-05: a whole number keeps its point, so that who reads the file knows it from a count."""
    return repr(float(f"{value:.6g}"))


def _cell(row: pd.Series, name: str) -> str:
    value, n = row[name], row.get(f"{name} n")
    if isinstance(value, str | int | np.integer):
        return str(value)
    if pd.isna(value):
        return "– (not run yet)" if n == 0 else "–"
    sign = "+" if "difference" in f"{row.iloc[0]} {name}".lower() or "change" in name else ""
    text = f"{value:{sign}{'.1f' if '%' in name else '.3f'}}"
    if f"{name} low" in row:
        low, high = row[f"{name} low"], row[f"{name} high"]
        text += " [n/a]" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return text if n is None else f"{text}, n = {n}"


def formatted(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text: "value [low, high], n = cases", a dash for what there is not, n/a for an interval of one case.

    Values have 3 decimals, or 1 in a column with % in its name, of the six digits that the CSV file holds: both round alike.
    """
    frame = frame.map(lambda value: float(_six_digits(value)) if isinstance(value, float) else value)
    shown = [name for name in frame if re.sub(" (low|high|n)$", "", name) == name or re.sub(" (low|high|n)$", "", name) not in frame]
    return pd.DataFrame([{name: _cell(row, name) for name in shown} for _, row in frame.iterrows()], columns=shown)


def show(frame: pd.DataFrame) -> pd.DataFrame:
    """The formatted table with its row names as index: what a notebook displays, the same on every run."""
    return formatted(frame).set_index(frame.columns[0])


def _markdown(table: pd.DataFrame, caption: str) -> str:
    lines = [list(table), ["---", *["---:"] * (table.shape[1] - 1)], *table.to_numpy().tolist()]
    return f"{caption}\n\n" + "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def write_table(frame: pd.DataFrame, name: str, caption: str, profile: str) -> list[Path]:
    """Writes results/<profile>/tables/<name>.csv (raw numbers; the caption in the last column), .md and .tex, each whole or not at all."""
    table, caption = formatted(frame), f"{caption} ({data_note(profile)}.)"
    escaped = re.sub(r"([%&_#$])", r"\\\1", caption)
    texts = {
        "csv": frame.assign(caption=[caption] + [""] * (len(frame) - 1)).to_csv(index=False, float_format=_six_digits),
        "md": _markdown(table, caption),
        "tex": table.to_latex(
            index=False, escape=True, caption=escaped, label=f"tab:{name}", column_format="l" + "r" * (table.shape[1] - 1)
        ),
    }
    paths = [results_root(profile) / "tables" / f"{name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return paths
