"""One row for each run, data set, condition, case and organ: counts, from which every mean can be taken."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import KDTree

from lib.files import merge_csv, results_root
from lib.organs import BY_KEY, labelled
from lib.volumes import foreground

KEY = ["run", "seed", "profile", "dataset", "variant", "condition", "case", "organ"]
NEAR_MM = 1e-4  # by which an affine's rounding may put a surface outside a tolerance
# FLARE22's script scores these inside the truth's z-range alone, and looks at no surface below this Dice
FLARE_IN_RANGE, FLARE_LEAST_DICE = ("aorta", "inferior vena cava", "esophagus"), 0.2


def dice(overlap: float, truth: float, predicted: float) -> float:
    """2|A n B| / (|A| + |B|) of voxel counts; NaN where both are 0: absent, and nothing predicted."""
    return 2 * overlap / (truth + predicted) if truth + predicted else float("nan")


def mean_dice(scores: pd.DataFrame) -> float:
    """Mean over organs of the mean over cases: the headline (NaN rows are left out)."""
    return float(scores.groupby("organ")["dice"].mean().mean())


def keep_scores(scores: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Puts rows into the profile's scores.csv, where those of a run's other tests stay; returns them as they
    stand there, KEY and config first."""
    rows = scores.set_index([*KEY, "config"]).reset_index()
    test = ["run", "seed", "dataset", "variant", "condition"]
    merge_csv(results_root(profile) / "scores.csv", rows, test, KEY)
    return rows


def off_component_share(mask: np.ndarray) -> float:
    """Share of a mask's voxels outside its largest 26-connected component; NaN for an empty mask."""
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        return float("nan")
    return 1 - float(np.bincount(components.ravel())[1:].max() / mask.sum())


def _surface(mask: np.ndarray, axes_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) points in mm where a mask's surface runs between voxels, and the area in mm2 at each."""
    from monai.metrics.utils import ENCODING_KERNEL, _get_neighbour_code_to_normals_table

    mask = np.pad(mask, 1)  # a margin of one voxel closes the surface at the scan's border
    code = np.zeros(np.subtract(mask.shape, 1), np.uint8)  # of each 2 x 2 x 2 voxels, a bit for each
    for corner, bit in np.ndenumerate(np.array(ENCODING_KERNEL[3], np.uint8)):
        code |= bit * mask[tuple(slice(at, at + edge) for at, edge in zip(corner, code.shape, strict=True))]
    normals = _get_neighbour_code_to_normals_table().numpy()  # (256, 4, 3): of each code's triangles
    normals = normals @ (np.linalg.det(axes_mm) * np.linalg.inv(axes_mm))  # MONAI's own way knows no shear
    at = np.argwhere((code > 0) & (code < 255))
    return at @ axes_mm.T, np.linalg.norm(normals, axis=-1).sum(-1)[code[tuple(at.T)]]


def surface_dice(mask: np.ndarray, truth: np.ndarray, axes_mm: np.ndarray, tolerance_mm: float) -> float:
    """Normalised surface Dice (NSD) of bool masks (X, Y, Z): the share of both surfaces' areas within the
    tolerance of the other, as in DeepMind's surface-distance. NaN where both are empty, 0 where one is.
    axes_mm: (3, 3), as `Grid.axes_mm`: a column for one step along each axis."""
    if not (mask.any() and truth.any()):
        return 0.0 if mask.any() or truth.any() else float("nan")
    (points, area), (others, their_area) = (_surface(array, axes_mm) for array in (mask, truth))
    most, within = tolerance_mm + NEAR_MM, 0.0
    for one, weight, other in ((points, area, others), (others, their_area, points)):
        within += weight[KDTree(other).query(one, distance_upper_bound=most)[0] < most].sum()
    return float(within / (area.sum() + their_area.sum()))


def hausdorff95_mm(mask: np.ndarray, truth: np.ndarray, axes_mm: np.ndarray) -> float:
    """95th percentile of the distances from one mask's border voxels to the other's, in mm: the greater of
    the two directions. NaN where one of the masks (X, Y, Z) is empty, or both are."""
    if not (mask.any() and truth.any()):
        return float("nan")
    one, other = (np.argwhere(m & ~ndimage.binary_erosion(m)) @ axes_mm.T for m in (mask, truth))
    return float(max(np.percentile(KDTree(a).query(b)[0], 95) for a, b in ((one, other), (other, one))))


def counts_of(mask: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Voxels that `dice` takes, of two masks of one shape."""
    return {"overlap": int((mask & truth).sum()), "truth": int(truth.sum()), "predicted": int(mask.sum())}


def score_organ(mask: np.ndarray, truth: np.ndarray, axes_mm: np.ndarray, key: str) -> dict[str, Any]:
    """Figures of one organ in one scan: bool masks (X, Y, Z) in canonical axes, in which z counts the slices.

    false_slices: where the organ is predicted and absent; found_slices: predicted and present;
    slices_absent: where it is absent, so that precision and recall by slice can be had. nsd: at
    FLARE22's tolerance. Both masks empty: dice, nsd and hd95_mm are NaN; one: dice and nsd 0, hd95_mm NaN.
    flare_dice, flare_nsd: as FLARE22's script has them. Both masks empty: 1 and 1; one: 0 and 0. Organs of
    FLARE_IN_RANGE are then scored from the truth's first slice to its last but one: none of one, where the
    script fails, and 1 and 1 are given here.
    """
    slices, both, tolerance = truth.shape[2], mask | truth, BY_KEY[key].tolerance_mm
    box = foreground(both) if both.any() else (slice(0),) * 3  # a scan is mostly neither
    mask, truth = mask[box], truth[box]
    counts, shown, marked = counts_of(mask, truth), truth.any((0, 1)), mask.any((0, 1))
    nsd = surface_dice(mask, truth, axes_mm, tolerance)
    found = {
        "dice": dice(**counts), **{f"{name}_voxels": count for name, count in counts.items()},
        "false_slices": int((marked & ~shown).sum()), "found_slices": int((marked & shown).sum()),
        "slices_absent": slices - int(shown.sum()), "slices": slices,
        "off_component": off_component_share(mask), "nsd": nsd,
        "hd95_mm": hausdorff95_mm(mask, truth, axes_mm), "flare_dice": 1.0, "flare_nsd": 1.0,
        "voxel_ml": abs(float(np.linalg.det(axes_mm))) / 1000,
    }
    if marked.any() != shown.any():  # the script asks this of the whole masks, before it cuts them
        return found | {"flare_dice": 0.0, "flare_nsd": 0.0}
    if key in FLARE_IN_RANGE and shown.any():
        first, last = np.flatnonzero(shown)[[0, -1]]
        mask, truth = mask[:, :, first:last], truth[:, :, first:last]
        nsd = surface_dice(mask, truth, axes_mm, tolerance)
    if mask.any() or truth.any():
        score = dice(**counts_of(mask, truth))
        found |= {"flare_dice": score, "flare_nsd": nsd if score >= FLARE_LEAST_DICE else 0.0}
    return found


def score_case(masks: Iterable[tuple[str, np.ndarray]], truth: np.ndarray, label_map: str,
               axes_mm: np.ndarray) -> Iterator[dict[str, Any]]:
    """Rows of one scan: (organ key, bool mask) pairs against a label map, all canonical (X, Y, Z). Organs
    that the data set does not label are left out."""
    known = labelled(label_map)
    for key, mask in masks:
        if key in known:
            yield {"organ": key, **score_organ(mask, truth == BY_KEY[key].label, axes_mm, key)}
