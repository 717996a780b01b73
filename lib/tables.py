"""Scores in, tables out: a table is a pandas frame, and `write` shows it with its caption and keeps it as
CSV, Markdown and LaTeX."""

import html
import re
from typing import Any

import numpy as np
import pandas as pd

from lib.config import data_note
from lib.files import NAMES, ROOT, InputError, replacing, results_root
from lib.statistics import Estimate

METHODS = {  # what tables and figures call the runs
    "baseline": "CLIPSeg baseline",
    "adapter": "CLIPSeg + temporal adapter",
    "centre only": "Control: centre slice only",
    "dynunet": "DynUNet",
    "med-vlm large": "Med-VLM Large",
    "med-vlm small": "Med-VLM Small",
    "unet": "2-D U-Net",
    "unetr": "UNETR",
}


def read_scores(profile: str) -> pd.DataFrame:
    """The profile's score rows: run, seed, profile, dataset, variant, condition, case, organ, and what was
    measured.

    Raises:
        InputError: there are no scores.
    """
    return read_table(profile, "scores.csv")


def read_table(profile: str, name: str) -> pd.DataFrame:
    """A CSV file of results/<profile>, such as logs.csv or audit.csv. InputError: it is not there."""
    path = results_root(profile) / name
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: run `make paper PROFILE={profile}` to train the runs and score them."
        )
    return pd.read_csv(path, dtype=NAMES).fillna(dict.fromkeys(("variant", "condition"), ""))


def published(name: str) -> pd.DataFrame:
    """One of the papers' tables as printed, misprints included: published/<name>.csv with its first column
    as index."""
    return pd.read_csv(ROOT / "published" / f"{name}.csv", index_col=0)


def _six_digits(value: float) -> str:
    """0.571194, 10.0, 1e-05: a whole number keeps its point, so that who reads the file knows it from a
    count."""
    return repr(float(f"{value:.6g}"))


def _cell(value: Any) -> str:
    if isinstance(value, Estimate | str | bool | int | np.integer):
        return str(value)
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def raw(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers alone: a column X of Estimates becomes X, X low, X high and X n."""
    columns: dict[Any, Any] = {}
    for name in table:
        cells = table[name].tolist()
        if not any(isinstance(cell, Estimate) for cell in cells):
            columns[name] = cells
            continue
        whole = [cell if isinstance(cell, Estimate) else Estimate(float("nan")) for cell in cells]
        for part in ("value", "low", "high", "n"):
            label = " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
            columns[label + ("" if part == "value" else f" {part}")] = [getattr(cell, part) for cell in whole]
    return pd.DataFrame(columns, index=table.index)


class Shown:
    """A table as a notebook shows it: its cells as text, and the caption with the profile's note below."""

    def __init__(self, text: pd.DataFrame, caption: str) -> None:
        self.text, self.caption = text, caption

    def __repr__(self) -> str:
        return f"{self.text.to_string()}\n{self.caption}"

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):  # or pandas cuts a prompt after 50 letters
            return f"{self.text.to_html()}\n<p><small>{html.escape(self.caption)}</small></p>"


def write(table: pd.DataFrame, name: str, caption: str, profile: str) -> Shown:
    """Writes results/<profile>/tables/<name>.csv (raw numbers), .md and .tex, each whole or not at all;
    returns what to show.

    The index names the rows. Cells are text, numbers (three decimals), counts, or Estimates ("value [low,
    high]").
    """
    caption = f"{caption} ({data_note(profile)}.)"
    text = table.map(_cell)
    if isinstance(text.columns, pd.MultiIndex):
        text.columns = [" ".join(map(str, column)).strip() for column in text.columns]
    flat = (
        text.reset_index(names=text.index.name or "") if not isinstance(text.index, pd.RangeIndex) else text
    )
    rule = ["---", *["---:"] * (flat.shape[1] - 1)]
    lines = [[str(c) for c in flat.columns], rule, *flat.to_numpy().tolist()]
    rows = "".join(
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |\n" for line in lines
    )
    escaped = re.sub(r"([%&_#$])", r"\\\1", caption)
    kinds = {
        "csv": raw(table).to_csv(float_format=_six_digits, index=not isinstance(table.index, pd.RangeIndex)),
        "md": f"{rows}\n{caption}\n",
        "tex": flat.to_latex(index=False, escape=True, caption=escaped, label=f"tab:{name}"),
    }
    for kind, content in kinds.items():
        with replacing(results_root(profile) / "tables" / f"{name}.{kind}") as part:
            part.write_text(content, encoding="utf-8")
    return Shown(text, caption)
