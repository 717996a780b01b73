"""Means, intervals and tests from score rows alone.

Tables are (cases, seeds x organs), NaN where a score is undefined. Every mean is one over columns of sum over
cases / sum over cases (of scores and their number, or of weighted scores and weights), so that resampling is
one matrix product.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from lib.organs import KEYS

DRAWS = 2000
NAN = float("nan")


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


def select(
    scores: pd.DataFrame, run: str, dataset: str, variant: str = "", condition: str = "",
    column: str = "dice", seeds: Collection[int] | None = None, organs: Collection[str] = KEYS,
) -> pd.DataFrame:  # fmt: skip
    """(cases, seeds x organs) of a column of the scores: all seeds that there are, or some."""
    same = {"run": run, "dataset": dataset, "variant": variant, "condition": condition}
    rows = scores[np.logical_and.reduce([scores[name] == value for name, value in same.items()])]
    rows = rows[rows["organ"].isin(organs) & (rows["seed"].isin(seeds) if seeds is not None else True)]
    table = rows.pivot(index="case", columns=["seed", "organ"], values=column).astype(float)
    return table[sorted(table.columns, key=lambda c: (c[0], KEYS.index(c[1])))]


def _sums(table: np.ndarray, voxels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What to sum over cases above and below the line: (cases, columns), or with voxels (cases, 1)."""
    if voxels is None:
        there = np.isfinite(table)
        return np.where(there, table, 0.0), there.astype(float)
    return np.nansum(table * voxels, -1, keepdims=True), np.nansum(voxels, -1, keepdims=True)


def _mean_of_ratios(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean over the last axis of above / below, where below is not 0; NaN where it is 0 throughout."""
    there = below > 0
    ratios, count = np.divide(above, below, out=np.zeros_like(above), where=there), there.sum(-1)
    return np.divide(ratios.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def resampled(cases: int, seed: int = 0) -> np.ndarray:
    """(draws, cases): how often each case is drawn, with replacement.

    Equal numbers of cases get equal draws, which pairs them.
    """
    picks = np.random.default_rng(seed).integers(0, cases, (DRAWS, cases)) + cases * np.arange(DRAWS)[:, None]
    return np.bincount(picks.ravel(), minlength=DRAWS * cases).reshape(DRAWS, cases).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of (draws,) values; NaN where no draw says anything."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (NAN, NAN)
    return float(low), float(high)


def _estimate(above: np.ndarray, below: np.ndarray) -> Estimate:
    """Mean over columns of sum over cases / sum over cases, of (cases, columns) each.

    N counts the cases that have a score.
    """
    value, n = float(_mean_of_ratios(above.sum(0), below.sum(0))), int((below > 0).any(1).sum())
    if len(above) < 2:
        return Estimate(value, n=n)
    counts = resampled(len(above))
    return Estimate(value, *interval(_mean_of_ratios(counts @ above, counts @ below)), n)


def mean(table: pd.DataFrame, voxels: pd.DataFrame | None = None) -> Estimate:
    """Mean over columns of the mean over cases; with voxels, one mean over all cells, weighted by them."""
    return _estimate(*_sums(table.to_numpy(), None if voxels is None else voxels.loc[table.index].to_numpy()))


def difference(first: pd.DataFrame, second: pd.DataFrame, voxels: pd.DataFrame | None = None) -> Estimate:
    """Second mean minus first on their common cases and columns, by paired bootstrap: both on the same
    drawn cases."""
    cases = first.index.intersection(second.index)
    columns = first.columns.intersection(second.columns, sort=False)
    weight = None if voxels is None else voxels.loc[cases, columns].to_numpy()
    one, two = (_sums(table.loc[cases, columns].to_numpy(), weight) for table in (first, second))
    value = float(
        _mean_of_ratios(two[0].sum(0), two[1].sum(0)) - _mean_of_ratios(one[0].sum(0), one[1].sum(0))
    )
    if len(cases) < 2 or np.isnan(value):
        return Estimate(value, n=len(cases), signed=True)
    counts = resampled(len(cases))
    moved = _mean_of_ratios(counts @ two[0], counts @ two[1]) - _mean_of_ratios(
        counts @ one[0], counts @ one[1]
    )
    return Estimate(value, *interval(moved), len(cases), signed=True)


def average_drop(tables: list[pd.DataFrame], minus: list[pd.DataFrame] | None = None) -> Estimate:
    """Share of the first data set's mean that is lost on the others, averaged over these.

    tables: a method's on each data set. minus: those of another method, whose drop on the same cases is taken
    off. Cases are drawn within each data set, the same for both methods. n counts the cases of the other data
    sets.
    """
    common = [one.index.intersection(two.index) for one, two in zip(tables, minus or tables, strict=True)]
    sides = [
        [t.loc[c].to_numpy() for t, c in zip(s, common, strict=True)]
        for s in (tables, *([minus] if minus else []))
    ]

    def drop(arrays: list[np.ndarray], counts: list[np.ndarray]) -> np.ndarray:
        pairs = zip(counts, map(_sums, arrays), strict=True)
        home, *away = (_mean_of_ratios(count @ above, count @ below) for count, (above, below) in pairs)
        return np.mean(
            [1 - np.divide(site, home, out=np.full_like(home, NAN), where=home > 0) for site in away], axis=0
        )

    def total(counts: list[np.ndarray]) -> np.ndarray:
        return drop(sides[0], counts) - (drop(sides[1], counts) if minus else 0)

    value, n = float(total([np.ones((1, len(ids))) for ids in common])[0]), sum(map(len, common[1:]))
    if min(map(len, common)) < 2:
        return Estimate(value, n=n, signed=bool(minus))
    draws = [resampled(len(ids), seed=place) for place, ids in enumerate(common)]
    return Estimate(value, *interval(total(draws)), n, signed=bool(minus))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p of several tests (tests,): it keeps the chance of any false alarm.

    NaN stays NaN.
    """
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    adjusted[order] = np.minimum(
        1, np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(order), 0, -1))
    )
    return adjusted


def paired_tests(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first, organ by organ, on the cases where both have a score: Wilcoxon's two-sided
    signed-rank test.

    Columns: n, difference (an Estimate), p, and p Holm over all organs. Equal scores everywhere give p = 1;
    no case in common gives NaN. Under 6 cases p cannot fall to 0.05. ValueError where an organ has several
    seeds: they are no further cases.
    """
    rows, columns = {}, first.columns.intersection(second.columns, sort=False)
    if len({column[-1] for column in columns}) < len(columns):
        raise ValueError("Paired tests take one seed: select(..., seeds=[0]).")
    for column in columns:
        deltas = (
            (second[column] - first[column]).dropna().round(9)
        )  # rounded: 0.3 - 0.2 and 0.2 - 0.1 are a tie
        moved = deltas[deltas != 0]  # Wilcoxon leaves zeros out
        p = float(wilcoxon(moved).pvalue) if len(moved) else 1.0 if len(deltas) else NAN
        rows[column[-1]] = {
            "n": len(deltas), "difference": mean(deltas.to_frame())._replace(signed=True), "p": p,
        }
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=["n", "difference", "p"])
    return table.assign(**{"p Holm": holm(table["p"].to_numpy(float))})


def conventions(scores: pd.DataFrame, **which: Any) -> dict[str, Estimate]:
    """The same masks of a run and data set (see `select`) under each convention of the mean."""
    names = (
        "overlap_voxels", "truth_voxels", "predicted_voxels", "flare_dice", "flare_nsd", "nsd", "hd95_mm",
    )
    dice = select(scores, **which)
    overlap, truth, predicted, flare_dice, flare_nsd, nsd, hd95 = (
        select(scores, column=c, **which) for c in names
    )
    pooled = (np.nan_to_num(2 * overlap), np.nan_to_num(truth + predicted))
    return {
        "absent and predicted counts 0, absent and empty is left out (ours)": mean(dice),
        "absent is left out, predicted or not": mean(dice.where(truth > 0)),
        "absent and empty counts 1": mean(dice.where(truth + predicted > 0, 1.0)),
        "mean over all voxels (weighted by true voxels)": mean(dice, truth),
        "mean over cases of the mean over organs": mean(dice.mean(axis=1).to_frame()),
        "one Dice of all cases' voxels together, then mean over organs": _estimate(*pooled),
        "FLARE22's official Dice": mean(flare_dice), "FLARE22's official NSD": mean(flare_nsd),
        "NSD (ours)": mean(nsd), "HD95 in mm (ours; lower is better)": mean(hd95),
    }
