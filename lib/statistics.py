"""Means, intervals and tests of scores: tables of (cases, seeds x organs), NaN where a score is undefined.

Intervals are Student's, 95 %, by the jackknife: their variance is what leaving out one case, or one training
where several seeds are given, does to the value; degrees of freedom are Satterthwaite's. Simulated coverage:

    of 5, 10 and 20 cases, in %                  Student's       percentile or BCa bootstrap
    normal, or the mean of 13 organs             95, 94, 94      84, 90, 92
    one organ's skewed Dice                      93, 93, 95      81, 89, 93
    an organ missed in a tenth of the scans      83, 82, 90      69, 77, 89
    a paired difference of such an organ         53, 65, 88      42, 65, 87
    10 cases of 2 to 5 trainings that differ     92 to 99        over cases alone: 42 to 95
"""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student
from scipy.stats import wilcoxon

from lib.organs import KEYS

NAN = float("nan")
COVERAGE = "coverage in simulations of ten cases: 92 to 99 %, 65 to 82 % of an organ that is often missed"


class Estimate(NamedTuple):
    """A value with its 95 % interval, and the numbers of cases and of trainings behind it."""

    value: float
    low: float = NAN
    high: float = NAN
    n: int = 0
    signed: bool = False  # a difference, which shows its sign
    trainings: int = 0  # 1: the interval is over the cases of one training; 0: it is of another kind
    p: float = NAN  # of Student's two-sided test that the value is 0

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "–"
        interval = "" if np.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:{'+' if self.signed else ''}.3f}{interval}"


def note(estimates: Iterable[Estimate]) -> str:
    """One sentence on the intervals of a table, for its caption; "" where there are none."""
    counts = sorted({e.trainings for e in estimates if e.trainings and not np.isnan(e.low)})
    if not counts:
        return ""
    several = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    over = "the cases of one training" if counts == [1] else f"cases and {several} trainings"
    return f"95 % intervals (Student's) over {over}; {COVERAGE}."


def select(scores: pd.DataFrame, run: str, dataset: str, variant: str = "", condition: str = "",
           column: str = "dice", seeds: Collection[int] | None = None,
           organs: Collection[str] = KEYS) -> pd.DataFrame:
    """(cases, seeds x organs) of a column of the scores: all seeds that there are, or some."""
    asked = scores[["run", "dataset", "variant", "condition"]] == [run, dataset, variant, condition]
    rows = scores[asked.all(axis=1) & scores["organ"].isin(organs)]
    rows = rows if seeds is None else rows[rows["seed"].isin(seeds)]
    table = rows.pivot(index="case", columns=["seed", "organ"], values=column).astype(float)
    return table[sorted(table.columns, key=lambda c: (c[0], KEYS.index(c[1])))]


def _seeds(table: pd.DataFrame) -> pd.Index:
    """The training of each column: its seed; all are of one where no level of the columns is called so."""
    named = "seed" in table.columns.names
    return table.columns.get_level_values("seed") if named else pd.Index([0] * table.shape[1])


def _mean(table: pd.DataFrame, voxels: pd.DataFrame | None = None, apart: bool = False) -> float:
    """See `mean`; a column without any score is left out."""
    values = table.to_numpy(float)
    weights = np.isfinite(values) if voxels is None else voxels.loc[table.index, table.columns].to_numpy()
    above, below = np.nansum(values * weights, 0), np.nansum(weights, 0)
    if voxels is not None and not apart:
        above, below = above.sum(keepdims=True), below.sum(keepdims=True)
    return float((above[below > 0] / below[below > 0]).mean()) if (below > 0).any() else NAN


def _estimate(statistic: Callable[..., float], *sets: list[pd.DataFrame], signed: bool = False) -> Estimate:
    """The statistic of data sets, each a list of tables with the same cases, and its interval, which needs
    two cases of each set. n counts the cases of all sets but the first, or of the only one."""
    sets = tuple([table[np.any([one.notna().any(axis=1) for one in tables], axis=0)] for table in tables]
                 for tables in sets)  # without the cases that no table has a score of
    value, n = statistic(*sets), sum(len(tables[0]) for tables in sets[1:] or sets)
    seeds = sorted(set.intersection(*({*_seeds(table)} for tables in sets for table in tables)))
    found = Estimate(value, n=n, signed=signed, trainings=max(1, len(seeds)))
    if np.isnan(value) or min(len(tables[0]) for tables in sets) < 2:
        return found
    left_out = [
        [statistic(*sets[:place], [table.drop(index=case) for table in tables], *sets[place + 1 :])
         for case in tables[0].index]
        for place, tables in enumerate(sets)]
    if len(seeds) > 1:
        left_out.append([
            statistic(*([table.loc[:, _seeds(table) != seed] for table in tables] for tables in sets))
            for seed in seeds])
    free = np.array([len(values) - 1 for values in left_out])
    variances = free * [np.var(values) for values in left_out]
    if not (error := np.sqrt(variances.sum())):
        return found._replace(low=value, high=value, p=float(value == 0))
    degrees = variances.sum() ** 2 / (variances**2 / free).sum()
    reach, p = student.ppf(0.975, degrees) * error, 2 * student.sf(abs(value) / error, degrees)
    return found._replace(low=float(value - reach), high=float(value + reach), p=float(p))


def mean(table: pd.DataFrame, voxels: pd.DataFrame | None = None, apart: bool = False) -> Estimate:
    """Mean over columns of the mean over cases; with voxels, weighted over all cells, or apart by column."""
    return _estimate(lambda tables: _mean(tables[0], voxels, apart), [table])


def difference(first: pd.DataFrame, second: pd.DataFrame, voxels: pd.DataFrame | None = None) -> Estimate:
    """Second mean minus first on their common cases and columns: both without the same case or training."""
    pair = [*first.align(second, join="inner")]
    return _estimate(lambda two: _mean(two[1], voxels) - _mean(two[0], voxels), pair, signed=True)


def average_drop(tables: list[pd.DataFrame], minus: list[pd.DataFrame] | None = None,
                 same_organs: bool = True) -> Estimate:
    """Share of the first data set's mean that is lost on the others, averaged over these (n: their cases).

    minus: tables of another method, whose drop is taken off, on the cases and trainings of both. same_organs:
    the first mean is over the organs that the other set has scores of (BTCV 12 of 13), not all as published.
    """
    def lost(side: int, *sets: list[pd.DataFrame]) -> float:
        home, *away = (tables[side] for tables in sets)
        drops = []
        for site in away:
            shared = home.columns.isin(site.columns[site.notna().any()])
            start = _mean(home.loc[:, shared] if same_organs else home)
            drops.append(1 - _mean(site) / start if start > 0 else NAN)
        return float(np.mean(drops))

    if not minus:
        return _estimate(lambda *sets: lost(0, *sets), *([table] for table in tables))
    pairs = ([*one.align(two, join="inner")] for one, two in zip(tables, minus, strict=True))
    return _estimate(lambda *sets: lost(0, *sets) - lost(1, *sets), *pairs, signed=True)


def holm(p: pd.Series) -> pd.Series:
    """p values by Holm's step-down: the smallest of m times m, the next times m - 1, ..., none below the one
    before; NaN is not counted."""
    ordered = p.astype(float).sort_values()  # NaN last
    steps = ordered.count() - np.arange(len(ordered))
    return (ordered * steps).cummax().clip(upper=1).reindex(p.index)


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
    return table.assign(**{"p Holm": holm(table["p"])})
