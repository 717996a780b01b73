"""What there is to look at: a scan in canonical axes, and a label map of it for each panel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.datasets import Case, Store
from lib.organs import BY_KEY, labelled
from lib.profiles import Settings
from lib.scans import Segmentation, label_numbers
from lib.volumes import to_slices

TRUTH = "truth"
CT_WINDOWS_HU = {  # as radiologists set them by level and width, here from black to white
    "as the model sees it": Settings.ct_window_hu,
    "soft tissue": (-160.0, 240.0),
    "liver": (-45.0, 105.0),
    "bone": (-500.0, 1300.0),
    "lung": (-1350.0, 150.0),
}
MR_PERCENTILES = {"as the model sees it": Settings.mr_percentiles, "all values": (0.0, 100.0), "more contrast": (10.0, 95.0)}
OTHER_COLOURS = ("#88ccee", "#ddcc77", "#aa4499", "#44aa99")  # of a prompt that is no organ


@dataclass(frozen=True, eq=False)
class Scene:
    """A scan and what is said of it.

    voxels: (X, Y, Z) as stored, HU in a CT. names: {label: organ or other text}. labels: {panel: (X, Y, Z) uint8}, the truth's under
    TRUTH. known: the labels that the truth speaks of; others cannot be called false. gates: {panel: (Z, side, side) from 0 to 1}.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, float, float]
    modality: str
    names: dict[int, str]
    labels: dict[str, np.ndarray]
    known: tuple[int, ...] = ()
    gates: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.voxels.shape[2]

    @property
    def colours(self) -> dict[int, str]:
        """{label: colour}: the organ's own, or the next of OTHER_COLOURS."""
        others = [label for label, name in self.names.items() if name not in BY_KEY]
        free = {label: OTHER_COLOURS[place % len(OTHER_COLOURS)] for place, label in enumerate(others)}
        return {label: free.get(label) or BY_KEY[name].colour for label, name in self.names.items()}


def scene_of(
    voxels: np.ndarray,
    segmentations: Mapping[str, Segmentation],
    truth: np.ndarray | None = None,
    label_map: str = "FLARE22",
    gates: Mapping[str, np.ndarray] | None = None,
) -> Scene:
    """The scene of a scan (X, Y, Z), of segmentations of it by the same prompts, and of a truth (X, Y, Z) of our label ids if there is one.

    label_map: the truth's, which says what organs it labels. gates: see Scene.

    Raises:
        ValueError: there is no segmentation, or two of them answer different prompts.
    """
    asked = {segmentation.prompts for segmentation in segmentations.values()}
    if len(asked) != 1:
        raise ValueError(f"{len(asked)} lists of prompts: show segmentations by the same prompts together.")
    first = next(iter(segmentations.values()))
    names = dict(zip(label_numbers(first.prompts), first.prompts, strict=True))
    labels = {panel: segmentation.grid.to_canonical(segmentation.labels) for panel, segmentation in segmentations.items()}
    known: tuple[int, ...] = ()
    if truth is not None:
        labels, known = {TRUTH: truth} | labels, tuple(label for label, name in names.items() if name in labelled(label_map))
    return Scene(voxels, first.grid.spacing_mm, first.modality, names, labels, known, dict(gates or {}))


def store_of(segmentation: Segmentation, settings: Settings) -> Store:
    """The segmented scan as the slices of a model with these settings, in memory."""
    case = Case("scan", Path(), modality=segmentation.modality)
    slices = to_slices(segmentation.grey, settings.size)
    return Store(case.id, Path(), slices, None, segmentation.grid, case.modality, None, case.label_map, case)


def windows_of(scene: Scene) -> dict[str, tuple[float, float]]:
    """The grey windows to choose from, (low, high): fixed HU for CT, percentiles of at most a million of the voxels for MR."""
    if scene.modality == "CT":
        return dict(CT_WINDOWS_HU)
    some = scene.voxels.ravel(order="K")[:: -(-scene.voxels.size // 1_000_000)]
    found = np.percentile(some, [edge for pair in MR_PERCENTILES.values() for edge in pair]).reshape(-1, 2).tolist()
    return {name: (low, high) for name, (low, high) in zip(MR_PERCENTILES, found, strict=True)}


def fullest_slice(scene: Scene) -> int:
    """The middle one of the slices that show most labels, in the truth where there is one, else in the first segmentation."""
    labels = next(iter(scene.labels.values()))
    count = np.array([len(np.unique(labels[:, :, z])) for z in range(scene.depth)])
    most = np.flatnonzero(count == count.max())
    return int(most[len(most) // 2])
