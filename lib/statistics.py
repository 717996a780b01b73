"""Means, intervals and tests of scores: tables of (cases, seeds x organs), NaN where a score is undefined."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from lib.organs import KEYS

DRAWS, NAN = 2000, float("nan")


class Estimate(NamedTuple):
    """A value with its 95 % interval by bootstrap over cases, and the number of cases behind it."""

    value: float
    low: float = NAN
    high: float = NAN
    n: int = 0
    signed: bool = False  # a difference, which shows its sign

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "–"
        interval = "" if np.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:{'+' if self.signed else ''}.3f}{interval}"


def select(scores: pd.DataFrame, run: str, dataset: str, variant: str = "", condition: str = "",
           column: str = "dice", seeds: Collection[int] | None = None,
           organs: Collection[str] = KEYS) -> pd.DataFrame:
    """(cases, seeds x organs) of a column of the scores: all seeds that there are, or some."""
    asked = scores[["run", "dataset", "variant", "condition"]] == [run, dataset, variant, condition]
    rows = scores[asked.all(axis=1) & scores["organ"].isin(organs)]
    rows = rows if seeds is None else rows[rows["seed"].isin(seeds)]
    table = rows.pivot(index="case", columns=["seed", "organ"], values=column).astype(float)
    return table[sorted(table.columns, key=lambda c: (c[0], KEYS.index(c[1])))]


def resampled(cases: int, seed: int = 0) -> np.ndarray:
    """(1 + draws, cases): how often each case is drawn, with replacement; the first row has each case once.
    Equal numbers of cases give the same draws, so that two tables of the same cases are drawn together."""
    picks = np.random.default_rng(seed).integers(0, cases, (DRAWS, cases)) + cases * np.arange(DRAWS)[:, None]
    drawn = np.bincount(picks.ravel(), minlength=DRAWS * cases).reshape(DRAWS, cases)
    return np.vstack([np.ones(cases), drawn])


def _means(counts: np.ndarray, table: pd.DataFrame, voxels: pd.DataFrame | None = None,
           apart: bool = False) -> np.ndarray:
    """(1 + draws, cases) -> (1 + draws,) means (see `mean`), as matrix products."""
    weights = table.notna() if voxels is None else voxels.loc[table.index, table.columns].fillna(0)
    above, below = (table * weights).fillna(0).to_numpy(float), weights.to_numpy(float)  # (cases, columns)
    if voxels is not None and not apart:
        above, below = above.sum(-1, keepdims=True), below.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # 0 / 0: no drawn case has the column, which is left out
        return pd.DataFrame((counts @ above) / (counts @ below)).mean(axis=1).to_numpy()


def _estimate(means: np.ndarray, cases: int, n: int, signed: bool = False) -> Estimate:
    """From (1 + draws,) values, the plain one first. An interval needs two cases of each data set."""
    if cases < 2 or np.isnan(means[0]):
        return Estimate(float(means[0]), n=n, signed=signed)
    low, high = np.nanquantile(means[1:], [0.025, 0.975])  # a draw may say nothing
    return Estimate(float(means[0]), float(low), float(high), n, signed)


def mean(table: pd.DataFrame, voxels: pd.DataFrame | None = None, apart: bool = False) -> Estimate:
    """Mean over columns of the mean over cases; with voxels, weighted over all cells, or apart by column."""
    means = _means(resampled(len(table)), table, voxels, apart)
    return _estimate(means, len(table), len(table.dropna(how="all")))


def difference(first: pd.DataFrame, second: pd.DataFrame, voxels: pd.DataFrame | None = None) -> Estimate:
    """Second mean minus first on their common cases and columns: both on the same drawn cases."""
    one, two = first.align(second, join="inner")
    counts = resampled(len(one))
    return _estimate(_means(counts, two, voxels) - _means(counts, one, voxels), len(one), len(one), True)


def average_drop(tables: list[pd.DataFrame], minus: list[pd.DataFrame] | None = None) -> Estimate:
    """Share of the first data set's mean that is lost on the others, averaged over these (n: their cases).
    minus: tables of another method, whose drop is taken off, on the same drawn cases of each data set."""
    cases = [one.index.intersection(two.index) for one, two in zip(tables, minus or tables, strict=True)]
    drops = []
    for side in (tables, minus) if minus else (tables,):
        home, *away = (_means(resampled(len(ids), seed), table.loc[ids])  # each data set is drawn by itself
                       for seed, (table, ids) in enumerate(zip(side, cases, strict=True)))
        drops.append(1 - np.mean([site / np.where(home > 0, home, NAN) for site in away], axis=0))
    lost = drops[0] - drops[1] if minus else drops[0]
    return _estimate(lost, min(map(len, cases)), sum(map(len, cases[1:])), signed=bool(minus))


def paired_tests(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first, organ by organ, on common cases: n, difference, Wilcoxon's signed-rank p, p Holm.
    Equal scores give p = 1, no common case NaN; under 6 cases p is over 0.05. ValueError: several seeds."""
    rows, (first, second) = {}, first.align(second, join="inner")
    if first.columns.get_level_values(-1).has_duplicates:
        raise ValueError("Paired tests take one seed: select(..., seeds=[0]).")
    for column in first:
        deltas = (second[column] - first[column]).dropna().round(9)  # 0.3 - 0.2 and 0.2 - 0.1 are a tie
        moved = deltas[deltas != 0]  # Wilcoxon leaves zeros out
        p = float(wilcoxon(moved).pvalue) if len(moved) else 1.0 if len(deltas) else NAN
        rows[column[-1]] = len(deltas), mean(deltas.to_frame())._replace(signed=True), p
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n", "difference", "p"])
    # Holm's step-down: the smallest of m p times m, the next times m - 1, ..., none below the one before
    p = table["p"].astype(float).sort_values()  # NaN last
    steps = p.count() - np.arange(len(p))
    return table.assign(**{"p Holm": (p * steps).cummax().clip(upper=1)})
