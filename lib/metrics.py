"""One row for each run, data set, condition, case and organ: counts first, so that every mean and
convention can be taken from the rows."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from lib.organs import BY_KEY, labelled
from lib.volumes import plain_tensors

KEY = ["run", "seed", "profile", "dataset", "variant", "condition", "case", "organ"]
Spacing = tuple[float, float, float]
# FLARE22's script scores these inside the truth's z-range alone, and looks at no surface below this Dice
FLARE_IN_RANGE = ("aorta", "inferior vena cava", "esophagus")
FLARE_LEAST_DICE = 0.2


def dice(overlap: float, truth: float, predicted: float) -> float:
    """2|A n B| / (|A| + |B|) of voxel counts.

    NaN where the organ is absent and nothing is predicted; 0 where something is.
    """
    return 2 * overlap / (truth + predicted) if truth + predicted else float("nan")


def mean_dice(scores: pd.DataFrame) -> float:
    """Mean over organs of the mean over cases: the headline (NaN rows are left out)."""
    return float(scores.groupby("organ")["dice"].mean().mean())


def off_component_share(mask: np.ndarray) -> float:
    """Share of a mask's voxels outside its largest 26-connected component; NaN for an empty mask."""
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        return float("nan")
    return 1 - float(np.bincount(components.ravel())[1:].max() / mask.sum())


def _cropped(mask: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks within the smallest box that holds them; of shape (0, 0, 0) where both are empty."""
    both, box = mask | truth, [slice(None)] * 3
    for axis in np.argsort(
        np.negative(np.abs(both.strides))
    ):  # the slowest first, so that most of the volume is read in its own order
        there = np.flatnonzero(both.any(tuple({0, 1, 2} - {axis})))
        box[axis] = slice(there[0], there[-1] + 1) if len(there) else slice(0)
        both = both[(slice(None),) * axis + (box[axis],)]
    return mask[tuple(box)], truth[tuple(box)]


def _by_monai(
    metric: Callable[..., torch.Tensor], mask: np.ndarray, truth: np.ndarray, spacing_mm: Spacing,
    **options: Any,
) -> float:
    """One of MONAI's surface metrics for two masks (X, Y, Z), neither empty; a margin of one voxel closes
    them at the scan's border.

    The spacing is rounded to 1e-5 mm: rounding in a file's affine must not decide whether a slice's thickness
    is within a tolerance.
    """
    pair = [
        torch.from_numpy(np.pad(array, 1))[None, None] for array in (mask, truth)
    ]  # (B, C, X, Y, Z) with B = C = 1
    spacing = tuple(round(float(mm), 5) for mm in spacing_mm)
    with warnings.catch_warnings(), plain_tensors():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # MONAI passes itself an argument that it has deprecated
        return float(metric(*pair, include_background=True, spacing=spacing, **options))


def surface_dice(mask: np.ndarray, truth: np.ndarray, spacing_mm: Spacing, tolerance_mm: float) -> float:
    """Normalised surface Dice (NSD) of bool masks (X, Y, Z): the share of both surfaces' areas within the
    tolerance of the other one.

    NaN where both masks are empty, 0 where one is. Surfaces run between the voxels, as in DeepMind's
    surface-distance.
    """
    if not (mask.any() and truth.any()):
        return 0.0 if mask.any() or truth.any() else float("nan")
    from monai.metrics import compute_surface_dice

    return _by_monai(
        compute_surface_dice, mask, truth, spacing_mm, class_thresholds=[tolerance_mm], use_subvoxels=True
    )


def hausdorff95_mm(mask: np.ndarray, truth: np.ndarray, spacing_mm: Spacing) -> float:
    """95th percentile of the distances from one mask's border voxels to the other's, in mm: the greater of
    the two directions.

    NaN where one of the masks (X, Y, Z) is empty, or both are: there is no distance to nothing.
    """
    if not (mask.any() and truth.any()):
        return float("nan")
    from monai.metrics import compute_hausdorff_distance

    return _by_monai(compute_hausdorff_distance, mask, truth, spacing_mm, percentile=95)


def _counts(mask: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    return {"overlap": int((mask & truth).sum()), "truth": int(truth.sum()), "predicted": int(mask.sum())}


def _flare(
    mask: np.ndarray, truth: np.ndarray, spacing_mm: Spacing, key: str, nsd: float
) -> dict[str, float]:
    """Dice and NSD as FLARE22's script has them; `nsd` is that of the whole masks, for organs that are scored
    as a whole.

    Both masks empty: 1 and 1; one of them: 0 and 0. Organs of FLARE_IN_RANGE are scored between the truth's
    first slice and its last, without the last. A truth of a single slice leaves no slice at all, so both
    masks are empty there: 1 and 1, whatever is predicted.
    """
    if key in FLARE_IN_RANGE and truth.any():
        slices = np.flatnonzero(truth.any((0, 1)))
        mask, truth = (array[:, :, slices[0] : slices[-1]] for array in (mask, truth))
        nsd = surface_dice(mask, truth, spacing_mm, BY_KEY[key].tolerance_mm)
    if not (mask.any() or truth.any()):
        return {"flare_dice": 1.0, "flare_nsd": 1.0}
    score = dice(**_counts(mask, truth))
    return {"flare_dice": score, "flare_nsd": nsd if score >= FLARE_LEAST_DICE else 0.0}


def score_organ(mask: np.ndarray, truth: np.ndarray, spacing_mm: Spacing, key: str) -> dict[str, Any]:
    """Figures of one organ in one scan: bool masks (X, Y, Z) in canonical axes, in which z counts the axial
    slices.

    false_slices counts the slices in which the organ is predicted and absent; slices_absent those in which it
    is absent. nsd is taken at FLARE22's tolerance for the organ `key`. Both masks empty: dice, nsd and
    hd95_mm are NaN. One of them: dice and nsd are 0 and hd95_mm is NaN. flare_dice and flare_nsd have
    conventions of their own (see `_flare`).
    """
    slices = truth.shape[2]
    mask, truth = _cropped(mask, truth)  # a scan is mostly neither: what follows takes a fraction of the time
    counts, truth_slices = _counts(mask, truth), truth.any((0, 1))
    nsd = surface_dice(mask, truth, spacing_mm, BY_KEY[key].tolerance_mm)
    return {
        "dice": dice(**counts), **{f"{name}_voxels": count for name, count in counts.items()},
        "false_slices": int((mask.any((0, 1)) & ~truth_slices).sum()),
        "slices_absent": slices - int(truth_slices.sum()), "slices": slices,
        "off_component": off_component_share(mask), "nsd": nsd,
        "hd95_mm": hausdorff95_mm(mask, truth, spacing_mm), **_flare(mask, truth, spacing_mm, key, nsd),
        "voxel_ml": float(np.prod(spacing_mm)) / 1000,
    }


def score_case(
    masks: Iterable[tuple[str, np.ndarray]], truth: np.ndarray, label_map: str, spacing_mm: Spacing
) -> Iterator[dict[str, Any]]:
    """Rows of one scan: (organ key, bool mask) pairs against a label map, all canonical (X, Y, Z).

    Only organs that the data set labels.
    """
    known = labelled(label_map)
    for key, mask in masks:
        if key in known:
            yield {"organ": key, **score_organ(mask, truth == BY_KEY[key].label, spacing_mm, key)}
