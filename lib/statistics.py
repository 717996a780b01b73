"""Means, intervals and tests of scores: tables of (cases, seeds x organs), NaN where a score is undefined."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

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


def _means(counts: np.ndarray | None, table: pd.DataFrame, voxels: pd.DataFrame | None = None,
           apart: bool = False) -> np.ndarray:
    """(draws, cases) -> (draws,) means (see `mean`) as matrix products; None: each case is drawn once."""
    weights = table.notna() if voxels is None else voxels.loc[table.index, table.columns].fillna(0)
    above, below = (table * weights).fillna(0).to_numpy(float), weights.to_numpy(float)  # (cases, columns)
    if voxels is not None and not apart:
        above, below = above.sum(-1, keepdims=True), below.sum(-1, keepdims=True)
    above, below = (x.sum(0)[None] if counts is None else counts @ x for x in (above, below))
    ratios, count = np.divide(above, below, out=np.zeros_like(above), where=below > 0), (below > 0).sum(-1)
    return np.divide(ratios.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def resampled(cases: int, seed: int = 0) -> np.ndarray:
    """(draws, cases): how often each case is drawn, with replacement; for equal numbers of cases the same."""
    picks = np.random.default_rng(seed).integers(0, cases, (DRAWS, cases)) + cases * np.arange(DRAWS)[:, None]
    return np.bincount(picks.ravel(), minlength=DRAWS * cases).reshape(DRAWS, cases).astype(float)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of (draws,) values; NaN where no draw says anything."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (NAN, NAN)
    return float(low), float(high)


def _estimate(figure: Callable[..., np.ndarray], cases: list[int], n: int, signed: bool = False) -> Estimate:
    """figure: (draws, cases) of each data set, drawn separately -> (draws,). An interval needs two cases."""
    value = float(figure(*[None] * len(cases))[0])
    if min(cases) < 2 or np.isnan(value):
        return Estimate(value, n=n, signed=signed)
    return Estimate(value, *interval(figure(*map(resampled, cases, range(len(cases))))), n, signed)


def mean(table: pd.DataFrame, voxels: pd.DataFrame | None = None, apart: bool = False) -> Estimate:
    """Mean over columns of the mean over cases; with voxels, weighted over all cells, or apart by column."""
    return _estimate(lambda c: _means(c, table, voxels, apart), [len(table)], len(table.dropna(how="all")))


def difference(first: pd.DataFrame, second: pd.DataFrame, voxels: pd.DataFrame | None = None) -> Estimate:
    """Second mean minus first on their common cases and columns: both on the same drawn cases."""
    one, two = first.align(second, join="inner")
    return _estimate(lambda c: _means(c, two, voxels) - _means(c, one, voxels), [len(one)], len(one), True)


def average_drop(tables: list[pd.DataFrame], minus: list[pd.DataFrame] | None = None) -> Estimate:
    """Share of the first data set's mean that is lost on the others, averaged over these (n: their cases).
    minus: tables of another method, whose drop is taken off, on the same drawn cases of each data set."""
    common = [one.index.intersection(two.index) for one, two in zip(tables, minus or tables, strict=True)]

    def lost(*counts: np.ndarray | None) -> np.ndarray:
        drops = []
        for side in [tables, minus] if minus else [tables]:
            home, *away = map(_means, counts, (t.loc[ids] for t, ids in zip(side, common, strict=True)))
            ratios = [np.divide(site, home, out=np.full_like(home, NAN), where=home > 0) for site in away]
            drops.append(np.mean([1 - ratio for ratio in ratios], axis=0))
        return drops[0] - drops[1] if minus else drops[0]

    return _estimate(lost, list(map(len, common)), sum(map(len, common[1:])), signed=bool(minus))


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p (tests,), which bounds the chance of any false alarm; NaN stays NaN."""
    adjusted, order = np.full(len(p), np.nan), np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


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
    return table.assign(**{"p Holm": holm(table["p"].to_numpy(float))})


def conventions(scores: pd.DataFrame, **which: Any) -> dict[str, Estimate]:
    """The same masks of a run and data set (see `select`) under each convention of the mean."""
    def of(column: str) -> pd.DataFrame:
        return select(scores, column=column, **which)

    dice, truth, both = of("dice"), of("truth_voxels"), of("truth_voxels") + of("predicted_voxels")
    return {
        "absent and predicted counts 0, absent and empty is left out (ours)": mean(dice),
        "absent is left out, predicted or not": mean(dice.where(truth > 0)),
        "absent and empty counts 1": mean(dice.where(both > 0, 1.0)),
        "mean over all voxels (weighted by true voxels)": mean(dice, truth),
        "mean over cases of the mean over organs": mean(dice.mean(axis=1).to_frame()),
        "one Dice of all cases' voxels together, then mean over organs":
            mean(2 * of("overlap_voxels") / both, both, True),
        "FLARE22's official Dice": mean(of("flare_dice")), "FLARE22's official NSD": mean(of("flare_nsd")),
        "NSD (ours)": mean(of("nsd")), "HD95 in mm (ours; lower is better)": mean(of("hd95_mm")),
    }
