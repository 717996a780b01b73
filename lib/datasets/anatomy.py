"""Is one case what a labelled abdominal scan should be? Its grid, its grey values, and the anatomy that its labels show."""

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from scipy import ndimage

from lib.datasets.stores import Case
from lib.organs import BY_KEY, KEYS, TO_THE_FEET, TO_THE_FRONT, TO_THE_RIGHT, VOLUMES_ML
from lib.paths import InputError
from lib.volumes import Grid, read_labels, read_scan

SPACING_MM = ((0.3, 5.0), (0.3, 5.0), (0.4, 12.0))  # plausible along x, y, z
EXTENT_MM = ((120, 900), (120, 900), (30, 2500))
PLANE = 0.05  # how far apart x and y may be in a CT, which is reconstructed on square pixels
TILT_DEGREES = 35.0  # of a gantry or an oblique MRI; beyond, an axis is nearer to none
CT_HAS_BELOW = -200  # HU: air or fat
MR_HAS_NOT_BELOW = -500


def content_of(voxels: np.ndarray) -> str:
    """SHA-256 of canonical voxels: the same for one scan in another file type, compression, number type or orientation."""
    digest = hashlib.sha256(repr(voxels.shape).encode())
    for z in range(voxels.shape[2]):  # slice by slice: no float copy of the volume
        digest.update(np.ascontiguousarray(voxels[:, :, z], np.float32).data)
    return digest.hexdigest()


def _grid_faults(grid: Grid, modality: str) -> Iterator[str]:
    """Implausible spacing, extent or tilt."""
    spacing = grid.spacing_mm
    extent = np.multiply(spacing, grid.canonical_shape)
    for what, values, ranges in (("voxels", spacing, SPACING_MM), ("fields", extent, EXTENT_MM)):
        if not all(low <= value <= high for value, (low, high) in zip(values, ranges, strict=True)):
            yield f"its {what} of {' x '.join(f'{value:.4g}' for value in values)} mm are implausible: its spacing may be wrong"
            return
    if modality == "CT" and abs(spacing[0] / spacing[1] - 1) > PLANE:
        yield f"its pixels of {spacing[0]:.3g} x {spacing[1]:.3g} mm are not square, as a CT's are: its axes may be exchanged"
    axes = np.abs(grid.affine[:3, :3]) / np.linalg.norm(grid.affine[:3, :3], axis=0)
    if (tilt := np.degrees(np.arccos(min(1.0, axes.max(0).min())))) > TILT_DEGREES:
        yield f"its axes are turned by {tilt:.0f} degrees: which is the patient's left is unclear"


def _grey_faults(voxels: np.ndarray, modality: str) -> Iterator[str]:
    """A CT that is not in HU, or an MRI that is: the number of the case may stand for the other modality."""
    lowest = float(voxels.min())
    if modality == "CT" and lowest > CT_HAS_BELOW:
        yield f"its lowest value is {lowest:g}, where a CT in HU has air: it is not in HU, or it is an MRI under a CT's number"
    if modality == "MR" and lowest < MR_HAS_NOT_BELOW:
        yield f"its lowest value is {lowest:g}, as a CT in HU has it, and its number is an MRI's"


def _centres(labels: np.ndarray) -> dict[str, np.ndarray]:
    """{organ that is there: its centre in canonical voxels}."""
    boxes = ndimage.find_objects(labels, len(KEYS))
    found = {}
    for key, box in zip(KEYS, boxes, strict=True):
        if box is not None:
            inside = ndimage.center_of_mass(labels[box] == BY_KEY[key].label)
            found[key] = np.array([edge.start for edge in box]) + inside
    return found


def _volume_faults(labels: np.ndarray, organs_ml: dict[str, float]) -> Iterator[str]:
    cut = {int(label) for z in (0, -1) for label in np.unique(labels[:, :, z])}
    wrong = []
    for key, ml in organs_ml.items():
        low, high = VOLUMES_ML[key]
        if ml > high or (ml < low and BY_KEY[key].label not in cut):
            wrong.append(f"{key} {ml:.3g} ml, not {low:g} to {high:g}")
    if wrong:
        yield f"organs out of their anatomical range: {'; '.join(wrong)}"
    if not organs_ml:
        yield "its labels show none of the 13 organs"


def _side_faults(labels: np.ndarray) -> Iterator[str]:
    """Organs on the wrong side of each other. Front and feet need all pairs: single organs may hang, sides never change."""
    centres = _centres(labels)
    for axis, pairs, what in (
        (0, TO_THE_RIGHT, "left and right are swapped"),
        (1, TO_THE_FRONT, "front and back are swapped"),
        (2, TO_THE_FEET, "head and feet are swapped"),
    ):
        there = [pair for pair in pairs if centres.keys() >= {*pair}]
        wrong = [pair for pair in there if centres[pair[0]][axis] > centres[pair[1]][axis]]
        if wrong and (axis == 0 or len(wrong) == len(there) > 1):
            yield f"{what}: {', '.join(' / '.join(pair) for pair in wrong)}"


def _looked_at(case: Case, seen: dict[str, Any]) -> Iterator[str]:
    """Faults of a case as sentences without their end; what its files hold goes into `seen`. InputError: a file cannot be read."""
    assert case.labels is not None
    voxels, grid = read_scan(case.image)
    seen |= {"content": content_of(voxels), "slices": grid.canonical_shape[2], "spacing_mm": grid.spacing_mm}
    seen["axes"] = "".join(aff2axcodes(grid.affine))
    lengths_are_wrong = bool(faults := list(_grid_faults(grid, case.modality)))
    yield from (f"{case.image}: {what}" for what in (*faults, *_grey_faults(voxels, case.modality)))
    labels = read_labels(case.labels, case.label_map, grid)
    counts = np.bincount(labels.ravel(), minlength=len(KEYS) + 1) * float(np.prod(grid.spacing_mm)) / 1000
    seen["organs_ml"] = {key: float(counts[BY_KEY[key].label]) for key in KEYS if counts[BY_KEY[key].label]}
    volumes = [] if lengths_are_wrong else _volume_faults(labels, seen["organs_ml"])
    yield from (f"{case.labels}: {what}" for what in (*volumes, *_side_faults(labels)))


def examine(case: Case) -> dict[str, Any]:
    """What a case holds and, as `faults`, what is wrong with it: a value that JSON holds."""
    seen: dict[str, Any] = {"faults": []}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            for fault in _looked_at(case, seen):
                seen["faults"].append(fault)
        except InputError as error:
            seen["faults"].append(str(error).removesuffix("."))
    guessed = [str(warning.message) for warning in warned if "left and right" in str(warning.message)]  # of the image, of its labels
    seen["faults"] += [message.removesuffix(".") for message in guessed[:1]]
    return seen
