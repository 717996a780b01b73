"""The overview of a scan of one's own: axial slices with what was found in them, and how much of it there is."""

import textwrap
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lib.organs import ORGANS

from .extracts import spread
from .pages import SLICES, STYLE, WIDTH, slice_overlay

if TYPE_CHECKING:  # it loads torch, and figures alone should take seconds
    from lib.scans import Segmentation

OTHERS = ("#00e5ff", "#ff3df2", "#b6ff00", "#2b6bff", "#ffffff")  # brighter than any organ's


def prompt_colours(segmentation: "Segmentation") -> dict[int, str]:
    """{label: colour} of the prompts: an organ's own, and others for free text."""
    own = {organ.label: organ.colour for organ in ORGANS}
    return {label: own.get(label, OTHERS[label % len(OTHERS)]) for label in segmentation.volumes["label"].tolist()}


@mpl.rc_context(STYLE)
def scan_overview(segmentation: "Segmentation", slices: int = SLICES) -> Figure:
    """Some axial slices that show what was found (or of the whole scan, if nothing was), the patient's right on the left, front up."""
    labels, spacing = segmentation.grid.to_canonical(segmentation.labels), segmentation.grid.spacing_mm
    shown = np.flatnonzero(labels.any((0, 1)))
    chosen, colours = spread(shown if len(shown) else np.arange(labels.shape[2]), slices), prompt_colours(segmentation)
    columns = min(len(chosen), 4)
    title = f"{segmentation.modality}, {segmentation.note}\naxial slices, counted from the feet; the patient's right is on the left"
    figure, axes = plt.subplots(
        -(-len(chosen) // columns), columns, figsize=(WIDTH, 5 if len(chosen) > 4 else 3), squeeze=False, layout="constrained", label=title
    )
    plt.close(figure)  # so that a notebook shows it once
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, z in zip(axes.flat, chosen, strict=False):
        slice_overlay(axis, segmentation.grey[:, :, z].T, labels[:, :, z].T, colours, spacing[1] / spacing[0])
        axis.set_title(f"slice {z + 1} of {labels.shape[2]}")
    figure.suptitle(title, fontsize=8)
    named = [f"{textwrap.shorten(row.prompt, 40)}: {row.ml:.1f} ml" for row in segmentation.volumes.itertuples()]
    patches = [Patch(color=colour, label=name) for colour, name in zip(colours.values(), named, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7)
    return figure
