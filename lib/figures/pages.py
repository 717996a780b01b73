"""What all figures share: style, colours, a page with its caption and profile, a slice with its masks, files.
Pictures have rows first, the patient's right on the left and the front up; z counts the slices from the feet."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lib.organs import ORGANS
from lib.paths import figures_root, replacing
from lib.profiles import data_note

# whatever the user's matplotlibrc says; 8 points on a figure as wide as a page's text: readable at 100 %
STYLE: dict[Any, Any] = {name: value for name, value in mpl.rcParamsDefault.items() if not name.startswith("backend")}
STYLE |= {"font.size": 8, "axes.titlesize": 8, "legend.frameon": False, "hatch.linewidth": 0.7, "pdf.fonttype": 42}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
COLOURS = {
    "truth": "#56b4e9",
    "baseline": "#cc79a7",
    "adapter": "#009e73",
    "centre only": "#0072b2",
    "dynunet": "#e69f00",  # so far Okabe and Ito's, from here on Paul Tol's
    "med-vlm large": "#332288",
    "med-vlm small": "#44aa99",
    "unet": "#882255",
    "unetr": "#999933",
    "clipseg on BTCV": "#cc6677",
}
FALSE, WIDTH, LARGEST, SLICES = "#d55e00", 7.2, 192, 8  # colour of false slices, inches, pixels of a stored picture's edge, slices shown


def colour_of(run: str) -> str:
    """Colour of a run: seeds and ablations ("adapter, seed 1", "adapter, no gate") have their method's."""
    return COLOURS[run.partition(",")[0]]


def slice_overlay(axis: Axes, picture: np.ndarray, labels: np.ndarray, colours: dict[int, str] | None = None, aspect: float = 1.0) -> None:
    """Draws a slice (rows, columns), 0 to 255, with label ids of the same shape filled and outlined.

    colours: {label id: colour}, by default the organs' own; aspect: height over width of a pixel.
    """
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="nearest", origin="upper")
    for label, colour in (colours or {organ.label: organ.colour for organ in ORGANS}).items():
        if (mask := labels == label).any() and min(mask.shape) > 1:  # a contour needs two rows and columns
            axis.contourf(mask, [0.5, 1.5], colors=[colour], alpha=0.4)
            axis.contour(mask, [0.5], colors=[colour], linewidths=0.9)
    axis.set(xticks=[], yticks=[], frame_on=False)


def new_page(profile: str, caption: str, height: float) -> Figure:
    """An empty figure with its caption and its profile at the bottom; the caption is its label, too, for who cannot see it."""
    text = f"{textwrap.fill(caption, 130)}\n{data_note(profile)}"
    foot = (0.14 * len(text.splitlines()) + 0.1) / height
    layout = ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot), w_pad=0.03, h_pad=0.03)
    figure = plt.figure(figsize=(WIDTH, height), layout=layout, label=caption)
    plt.close(figure)  # so that a notebook shows it once
    figure.text(0.01, 0.04 / height, text, fontsize=7, va="bottom", linespacing=1.3)
    return figure


@mpl.rc_context(STYLE)
def save(figure: Figure, name: str, profile: str) -> list[Path]:
    """Writes figures/<profile>/<name>.png (150 dpi) and .pdf, each whole or not at all, and with the same bytes every time.

    Both hold the figure's caption for who cannot see it: its label, else its title.
    """
    caption = f"{str(figure.get_label() or figure.get_suptitle()).removesuffix('.')} ({data_note(profile)})."
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    paths = [figures_root(profile) / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path, metadata in zip(paths, ({"Software": None, "Description": caption}, undated | {"Subject": caption}), strict=True):
        with replacing(path) as part:
            figure.savefig(part, dpi=150, metadata=metadata)
    return paths
