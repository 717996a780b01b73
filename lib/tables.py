"""Scores in, tables out: `write` shows a frame with its caption and keeps it as CSV, Markdown and LaTeX."""

import html
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lib.config import data_note
from lib.files import ROOT, InputError, read_csv, replacing, results_root
from lib.statistics import Estimate, note

METHODS = {  # what tables and figures call the runs
    "baseline": "CLIPSeg baseline", "adapter": "CLIPSeg + temporal adapter",
    "centre only": "Control: centre slice only", "dynunet": "DynUNet", "med-vlm large": "Med-VLM Large",
    "med-vlm small": "Med-VLM Small", "unet": "2-D U-Net", "unetr": "UNETR",
}


def read_table(profile: str, name: str) -> pd.DataFrame:
    """A CSV file of results/<profile>, such as scores.csv or logs.csv. InputError: it is not there."""
    path = results_root(profile) / name
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to train and score.")
    return read_csv(path)


def published(name: str) -> pd.DataFrame:
    """A table of the papers as printed, misprints included: published/<name>.csv by its first column."""
    return pd.read_csv(ROOT / "published" / f"{name}.csv", index_col=0)


def raw(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers alone: a column X of Estimates becomes X, X low, X high and X n."""
    columns: dict[Any, Any] = {}
    for name in table:
        cells = table[name].tolist()
        if any(isinstance(cell, Estimate) for cell in cells):
            whole = [cell if isinstance(cell, Estimate) else Estimate(float("nan")) for cell in cells]
            for place, part in enumerate(("", " low", " high", " n")):
                columns[f"{name}{part}"] = [estimate[place] for estimate in whole]
        else:
            columns[name] = cells
    return pd.DataFrame(columns, index=table.index)


@dataclass(frozen=True)
class Shown:
    """A table as a notebook shows it: its cells as text, and the caption with the profile's note below."""

    text: pd.DataFrame
    caption: str

    def __repr__(self) -> str:
        return f"{self.text.to_string()}\n{self.caption}"

    def _repr_html_(self) -> str:
        """The name of the rows stands beside those of the columns; "published X" and "published Y" share a
        heading; a table that would not fit on a page has its intervals below their values."""
        table = self.text.rename_axis(columns=self.text.index.name).rename_axis(None)
        texts = [[str(table.columns.name), *map(str, table.index)]]
        texts += [[*str(name).split(), *map(str, column)] for name, column in table.items()]
        letters = [min(max(map(len, column)), 30 if place else 45) + 2 for place, column in enumerate(texts)]
        heads = [re.fullmatch("(published|measured|[^:]+:) (.+)", str(name)) for name in table]
        shared = Counter(head[1] for head in heads if head)
        if shared and max(shared.values()) > 1:
            pairs = [(head[1].rstrip(":"), head[2]) if head and shared[head[1]] > 1 else ("", str(name))
                     for head, name in zip(heads, table, strict=True)]
            table.columns = pd.MultiIndex.from_tuples(pairs, names=[None, table.columns.name])
        shown = table.to_html()
        if sum(letters) > 104:
            shown = re.sub(r"<td>(\S+) \[(\S+), (\S+)\]<", r"<td>\1<br><small>[\2,&nbsp;\3]</small><", shown)
        if sum(letters) > 150:
            shown = re.sub(r"(<th[^>]*>)([^<]+)", r"\1<small>\2</small>", shown)
        return f"{shown}\n<p><small>{html.escape(self.caption)}</small></p>"


def written(name: str, profile: str) -> Shown:
    """A table that `write` has written, as it was shown. InputError: it is not there."""
    path = results_root(profile) / "tables" / f"{name}.md"
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to make it.")
    *lines, _, caption = path.read_text(encoding="utf-8").splitlines()
    names, _, *rows = ([cell.replace(r"\|", "|") for cell in line[2:-2].split(" | ")] for line in lines)
    return Shown(pd.DataFrame(rows, columns=names).set_index(names[0]), caption)


def write(table: pd.DataFrame, name: str, caption: str, profile: str) -> Shown:
    """Writes results/<profile>/tables/<name>.csv (raw numbers), .md and .tex, and returns what to show. The
    index names the rows; cells are text, numbers (three decimals), counts, or Estimates (with a `note`)."""
    def cell(x: Any) -> str:
        return "–" if pd.isna(x) else f"{x:.3f}" if isinstance(x, float | np.floating) else str(x)

    if isinstance(table.columns, pd.MultiIndex):
        table = table.set_axis([" ".join(map(str, column)).strip() for column in table], axis=1)
    intervals = note(x for x in table.to_numpy().ravel() if isinstance(x, Estimate))
    caption, text = " ".join(filter(None, (caption, intervals, f"({data_note(profile)}.)"))), table.map(cell)
    named = not isinstance(text.index, pd.RangeIndex)
    flat = text.reset_index(names=text.index.name or "") if named else text
    sides = ["---" if any(isinstance(x, str) for x in column) else "---:" for _, column in table.items()]
    sides = ["---", *(sides if named else sides[1:])]  # words begin on the left, numbers end on the right
    lines = [[*map(str, flat)], sides, *flat.astype(str).values.tolist()]
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines]
    escaped = caption.translate({ord(sign): f"\\{sign}" for sign in "%&_#$"})
    kinds = {  # all are made before one is written; in a CSV file a whole number is told from a count
        "csv": raw(table).to_csv(float_format=lambda value: repr(float(f"{value:.6g}")), index=named),
        "md": f"{''.join(rows)}\n{caption}\n",
        "tex": flat.to_latex(index=False, escape=True, caption=escaped, label=f"tab:{name}"),
    }
    for kind, content in kinds.items():
        with replacing(results_root(profile) / "tables" / f"{name}.{kind}") as part:
            part.write_text(content, encoding="utf-8")
    return Shown(text, caption)
