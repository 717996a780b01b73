"""Means, intervals and tests from the rows of lib.metrics alone.

Tables are (cases, organs), NaN where a score is undefined. Every mean here is a mean over columns of sum over cases / sum over cases
(of scores and their number, or of weighted scores and weights), so that resampling the cases is one matrix product.
"""

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from lib.organs import KEYS

DRAWS = 2000
LEVEL = 0.95


def dice_table(scores: pd.DataFrame, run: str, dataset: str, condition: str = "", column: str = "dice") -> pd.DataFrame:
    """(cases, 13) of a column of the scores; NaN where it is undefined or the data set does not label the organ."""
    rows = scores[(scores["run"] == run) & (scores["dataset"] == dataset) & (scores["condition"] == condition)]
    return rows.pivot(index="case", columns="organ", values=column).reindex(columns=list(KEYS)).astype(float)


def mean_dice(scores: pd.DataFrame) -> float:
    """Mean over organs of the mean over cases: the headline (NaN rows are left out)."""
    return float(scores.groupby("organ")["dice"].mean().mean())


def _sums(dice: np.ndarray, voxels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What to sum over cases above and below the line: (..., cases, organs), or with voxels (..., cases, 1)."""
    if voxels is None:
        there = np.isfinite(dice)
        return np.where(there, dice, 0.0), there.astype(float)
    return np.nansum(dice * voxels, -1, keepdims=True), np.nansum(voxels, -1, keepdims=True)


def _mean_of_ratios(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean over the last axis of above / below, where below is not 0; NaN where it is 0 throughout."""
    there = below > 0
    ratios, count = np.divide(above, below, out=np.zeros_like(above), where=there), there.sum(-1)
    return np.divide(ratios.sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)


def mean_over_organs(dice: np.ndarray, voxels: np.ndarray | None = None) -> np.ndarray:
    """(..., cases, organs) -> (...): mean over organs of the mean over cases; with voxels, one mean over all, weighted by them."""
    above, below = _sums(dice, voxels)
    return _mean_of_ratios(above.sum(-2), below.sum(-2))


def _draws(cases: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """(draws, cases): how often each case is drawn, with replacement. Tables of the same cases get the same draws, which pairs them."""
    picks = np.random.default_rng(seed).integers(0, cases, (draws, cases)) + cases * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * cases).reshape(draws, cases).astype(float)


def _interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of (draws,) values; NaN where no draw says anything."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _with_interval(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float, int]:
    """A mean from its sums' terms (cases, columns), its interval, which needs two cases, and the number of cases that count in it."""
    value, cases = float(_mean_of_ratios(above.sum(0), below.sum(0))), int((below > 0).any(1).sum())
    if len(above) < 2:
        return value, float("nan"), float("nan"), cases
    counts = _draws(len(above))
    return value, *_interval(_mean_of_ratios(counts @ above, counts @ below)), cases


def bootstrap_interval(table: pd.DataFrame, draws: int = DRAWS, seed: int = 0, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval of the headline mean, cases drawn with replacement. `table`: (cases, organs) of Dice, NaN where undefined."""
    if len(table) < 2:
        return float("nan"), float("nan")
    above, below = _sums(table.to_numpy())
    counts = _draws(len(table), draws, seed)
    return _interval(_mean_of_ratios(counts @ above, counts @ below), level)


def difference(first: pd.DataFrame, second: pd.DataFrame, voxels: pd.DataFrame | None = None) -> tuple[float, float, float]:
    """Second mean minus first on their common cases, and its 95 % interval by paired bootstrap: both means on the same drawn cases.

    Frames are (cases, organs) of Dice; `voxels` weighs them, as in `mean_over_organs`. NaN where no case is common; the interval
    needs two.
    """
    cases = first.index.intersection(second.index)
    weight = None if voxels is None else voxels.loc[cases].to_numpy()
    one, two = (_sums(frame.loc[cases].to_numpy(), weight) for frame in (first, second))
    value = float(_mean_of_ratios(two[0].sum(0), two[1].sum(0)) - _mean_of_ratios(one[0].sum(0), one[1].sum(0)))
    if len(cases) < 2 or np.isnan(value):
        return value, np.nan, np.nan
    counts = _draws(len(cases))
    low, high = _interval(_mean_of_ratios(counts @ two[0], counts @ two[1]) - _mean_of_ratios(counts @ one[0], counts @ one[1]))
    return value, low, high


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p of several tests (tests,): what keeps the chance of any false alarm. NaN is no test and stays NaN."""
    adjusted = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]  # NaN sorts last
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(order), 0, -1)))
    return adjusted


def paired_tests(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first, organ by organ, on the cases where both have a score, with Wilcoxon's two-sided signed-rank test.

    Frames are (cases, organs) of Dice. Columns: organ (its key), n, difference (mean, with its 95 % bootstrap interval), p, and p Holm
    over the organs that have a p. Equal scores everywhere give p = 1; no case in common gives NaN. Under 6 cases p cannot fall to 0.05.
    """
    rows = []
    for organ in first.columns.intersection(second.columns, sort=False):
        deltas = (second[organ] - first[organ]).dropna().round(9)  # rounded: 0.3 - 0.2 and 0.2 - 0.1 are a tie
        moved = deltas[deltas != 0]  # Wilcoxon leaves zeros out
        p = float(wilcoxon(moved).pvalue) if len(moved) else 1.0 if len(deltas) else float("nan")
        rows.append((organ, len(deltas), deltas.mean(), *bootstrap_interval(deltas.to_frame()), p))
    table = pd.DataFrame(rows, columns=["organ", "n", "difference", "difference low", "difference high", "p"])
    return table.assign(**{"p Holm": holm(table["p"].to_numpy(float))})


def _convention_sums(scores: pd.DataFrame, run: str, dataset: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{convention: terms of its sums over cases, each (cases, organs) or (cases, 1)}."""
    dice, overlap, truth, predicted, flare_dice, flare_nsd, nsd, hd95 = (
        dice_table(scores, run, dataset, column=name).to_numpy()
        for name in ("dice", "overlap_voxels", "truth_voxels", "predicted_voxels", "flare_dice", "flare_nsd", "nsd", "hd95_mm")
    )
    return {
        "absent and predicted counts 0, absent and empty is left out (ours)": _sums(dice),
        "absent is left out, predicted or not": _sums(np.where(truth > 0, dice, np.nan)),
        "absent and empty counts 1": _sums(np.where(truth + predicted == 0, 1, dice)),
        "mean over all voxels (weighted by true voxels)": _sums(dice, truth),
        "mean over cases of the mean over organs": _sums(_mean_of_ratios(*_sums(dice))[:, None]),
        "one Dice of all cases' voxels together, then mean over organs": (np.nan_to_num(2 * overlap), np.nan_to_num(truth + predicted)),
        "FLARE22's official Dice": _sums(flare_dice),
        "FLARE22's official NSD": _sums(flare_nsd),
        "NSD (ours)": _sums(nsd),
        "HD95 in mm (ours; lower is better)": _sums(hd95),
    }


def conventions(scores: pd.DataFrame, runs: list[str], dataset: str) -> pd.DataFrame:
    """The same masks under each convention of the mean: how much of a published number is the way of counting.

    Columns: convention, and for every run its mean `<run>`, `<run> low` and `<run> high` (95 % bootstrap over cases) and `<run> n`
    (cases that have a score under the convention). Scores without a condition only; where none says otherwise, the mean is the one
    over organs of the mean over cases. NaN and n = 0 for a run without scores.
    """
    rows: dict[str, dict[str, float | str]] = {}
    for run in runs:
        for name, terms in _convention_sums(scores, run, dataset).items():
            columns = (f"{run}{end}" for end in ("", " low", " high", " n"))
            rows.setdefault(name, {"convention": name}).update(zip(columns, _with_interval(*terms), strict=True))
    return pd.DataFrame(list(rows.values()))


def mean_with_interval(table: pd.DataFrame, voxels: pd.DataFrame | None = None) -> tuple[float, float, float, int]:
    """Mean over columns of the mean over cases, its 95 % interval by bootstrap over cases, and the number of cases that have a score.

    `table`: (cases, columns), NaN where undefined; `voxels` weighs its cells, as in `mean_over_organs`.
    """
    return _with_interval(*_sums(table.to_numpy(), None if voxels is None else voxels.loc[table.index].to_numpy()))


def _drops(tables: list[np.ndarray], counts: list[np.ndarray]) -> np.ndarray:
    """(draws,) drops from the first table's mean to the others', each table's cases counted as in its (draws, cases) of `counts`."""
    sums = ((count @ above, count @ below) for count, (above, below) in zip(counts, map(_sums, tables), strict=True))
    home, *away = (_mean_of_ratios(*pair) for pair in sums)
    return np.mean([1 - np.divide(site, home, out=np.full_like(home, np.nan), where=home > 0) for site in away], axis=0)


def average_drop(frames: list[pd.DataFrame], minus: list[pd.DataFrame] | None = None) -> tuple[float, float, float, int]:
    """Share of the first data set's mean that is lost on the others, averaged over these, and its 95 % bootstrap interval.

    frames: a method's (cases, organs) of Dice on each data set. minus: those of another method, whose drop on the same cases is taken
    off. Cases are drawn within each data set, the same for both methods. The last value counts the cases of the other data sets. NaN
    where a data set has no case; the interval needs two in each.
    """
    pairs = list(zip(frames, minus or frames, strict=True))
    common = [one.index.intersection(two.index) for one, two in pairs]
    first, second = ([frame.loc[cases].to_numpy() for frame, cases in zip(side, common, strict=True)] for side in zip(*pairs, strict=True))

    def drop(counts: list[np.ndarray]) -> np.ndarray:
        return _drops(first, counts) - (_drops(second, counts) if minus else 0)

    value, cases = float(drop([np.ones((1, len(ids))) for ids in common])[0]), sum(map(len, common[1:]))
    if min(map(len, common)) < 2:
        return value, np.nan, np.nan, cases
    return value, *_interval(drop([_draws(len(ids), seed=place) for place, ids in enumerate(common)])), cases
