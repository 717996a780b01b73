"""One row for each run, data set, case and organ: counts first, so that every mean and convention can be taken from the rows."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from lib.organs import BY_KEY, labelled

KEY = ["run", "config", "dataset", "case", "organ"]


def dice(overlap: float, truth: float, predicted: float) -> float:
    """2|A n B| / (|A| + |B|) of voxel counts. NaN where the organ is absent and nothing is predicted; 0 where something is."""
    return 2 * overlap / (truth + predicted) if truth + predicted else float("nan")


def off_component_share(mask: np.ndarray) -> float:
    """Share of a mask's voxels outside its largest 26-connected component; NaN for an empty mask."""
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        return float("nan")
    return 1 - float(np.bincount(components.ravel())[1:].max() / mask.sum())


def score_organ(mask: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Figures of one organ in one scan: bool masks (X, Y, Z) in canonical axes, in which z counts the axial slices.

    false_slices counts the slices in which the organ is predicted and absent; slices_absent those in which it is absent.
    """
    truth_slices, mask_slices = truth.any((0, 1)), mask.any((0, 1))
    counts = {"overlap": int((mask & truth).sum()), "truth": int(truth.sum()), "predicted": int(mask.sum())}
    return {
        "dice": dice(**counts),
        **{f"{name}_voxels": count for name, count in counts.items()},
        "false_slices": int((mask_slices & ~truth_slices).sum()),
        "slices_absent": int((~truth_slices).sum()),
        "slices": truth.shape[2],
        "off_component": off_component_share(mask),
    }


def score_case(masks: Iterable[tuple[str, np.ndarray]], truth: np.ndarray, label_map: str) -> Iterator[dict[str, Any]]:
    """Rows of one scan: (organ key, bool mask) pairs against a label map, all canonical (X, Y, Z); only organs that the data set labels."""
    known = labelled(label_map)
    for key, mask in masks:
        if key in known:
            yield {"organ": key, **score_organ(mask, truth == BY_KEY[key].label)}


def mean_dice(scores: pd.DataFrame) -> float:
    """Mean over organs of the mean over cases: the headline (NaN rows are left out)."""
    return float(scores.groupby("organ")["dice"].mean().mean())


def bootstrap_interval(table: pd.DataFrame, draws: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the headline mean, cases drawn with replacement. `table`: (cases, organs) of Dice, NaN where undefined."""
    if len(table) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    values = table.to_numpy()
    picks = rng.integers(0, len(values), (draws, len(values)))
    with np.errstate(invalid="ignore"):
        sums, counts = np.nansum(values[picks], 1), np.isfinite(values[picks]).sum(1)  # (draws, organs)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    means = means[counts.any(1)]  # a draw without any score says nothing
    if not len(means):
        return float("nan"), float("nan")
    low, high = np.quantile(np.nanmean(means, 1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
