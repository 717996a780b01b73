"""What figures share: one look, slices with organs, arrays kept beside the scores, saving with a caption."""

import json
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from lib.config import data_note
from lib.files import InputError, figures_root, replacing, results_root
from lib.organs import ORGANS

COLOURS = {  # of each method, in every figure
    "ground truth": "#222222", "baseline": "#0072b2", "adapter": "#009e73", "centre only": "#56b4e9",
    "dynunet": "#e69f00", "med-vlm large": "#cc79a7", "med-vlm small": "#882255", "unet": "#999933",
    "unetr": "#d55e00",
}
FALSE = "#d55e00"  # marked where the organ is absent
LARGEST = 96  # pixels of an edge that a kept picture has at most


def theme() -> None:
    """seaborn's look with this project's sizes, for all plots of a notebook."""
    mpl.rcdefaults()  # and nothing of what a user has set
    sns.set_theme(style="ticks", rc={
        "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
        "legend.title_fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False,
        "axes.spines.right": False, "figure.constrained_layout.use": True, "savefig.dpi": 150,
        "pdf.fonttype": 42, "svg.hashsalt": "figures",
    })


def slice_overlay(axis: Axes, picture: np.ndarray, labels: np.ndarray, colours: dict[int, str] | None = None,
                  aspect: float = 1.0, sides: bool = True) -> None:
    """Draws a slice (rows, columns), 0 to 255, with label ids of the same shape filled and outlined: the
    patient's right on the left, the front up. aspect: height over width of a pixel. sides: marks R and L."""
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="nearest")
    for label, colour in (colours or {organ.label: organ.colour for organ in ORGANS}).items():
        if (mask := labels == label).any() and min(mask.shape) > 1:  # a contour needs two rows and columns
            axis.contourf(mask, [0.5, 1.5], colors=[colour], alpha=0.4)
            axis.contour(mask, [0.5], colors=[colour], linewidths=0.9)
    look: Any = {"size": 6, "color": "white", "va": "center", "transform": axis.transAxes}
    look["path_effects"] = [withStroke(linewidth=1, foreground="black")]  # for a white scan
    for place, side, end in ((0.02, "R", "left"), (0.98, "L", "right")) if sides else ():
        axis.text(place, 0.5, side, ha=end, **look)
    axis.set(xticks=[], yticks=[], frame_on=False)


def spread(places: Any, count: int) -> np.ndarray:
    """`count` of the given places, evenly spread and away from the ends; all where there are no more."""
    places = np.asarray(places)
    count = min(count, len(places))
    return places[((np.arange(count) + 0.5) * len(places) / count).astype(int)] if count else places


def cut(grey: np.ndarray, masks: np.ndarray, slices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """n slices of a canonical volume (X, Y, Z) and masks (runs, X, Y, Z) -> (n, rows, columns) and (runs, n,
    rows, columns): a square around all masks, at least half a slice wide; of a large one each k-th pixel."""
    pictures, marks = grey[:, :, slices].T, np.array([mask[:, :, slices].T for mask in masks])
    marked, shape = np.argwhere(marks.any((0, 1))), np.array(pictures.shape[1:])
    low, high = (marked.min(0), marked.max(0) + 1) if len(marked) else (0 * shape, shape)
    edge = np.minimum(max(int((high - low).max() * 1.3), shape.max() // 2), shape)
    start, step = np.clip((low + high - edge) // 2, 0, shape - edge), -(-edge.max() // LARGEST)
    rows, columns = (slice(*ends, step) for ends in zip(start, start + edge, strict=True))
    return pictures[:, rows, columns], marks[:, :, rows, columns]


def keep(name: str, profile: str, about: dict[str, Any], **arrays: np.ndarray) -> None:
    """Keeps small arrays, and what they are about, for a run without training: figure_data/<name>.npz."""
    with replacing(results_root(profile) / "figure_data" / f"{name}.npz") as part, open(part, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]


def kept(name: str, profile: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `keep` has kept: about, and the arrays. InputError: it is not there."""
    path = results_root(profile) / "figure_data" / f"{name}.npz"
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to make it.")
    with np.load(path) as file:
        return json.loads(str(file["about"])), {key: file[key] for key in file.files if key != "about"}


def save(figure: Figure, name: str, caption: str, profile: str) -> None:
    """Shows the figure with its caption below, and writes figures/<profile>/<name>.png and .pdf, the same
    bytes every time."""
    caption = f"{caption} ({data_note(profile)}.)"
    undated = {"CreationDate": None, "Creator": None, "Producer": None, "Subject": caption}
    for kind, about in {"png": {"Software": None, "Description": caption}, "pdf": undated}.items():
        with replacing(figures_root(profile) / f"{name}.{kind}") as part:
            figure.savefig(part, metadata=about, bbox_inches="tight")
    display(figure)
    plt.close(figure)  # so that a notebook shows it once
    display(Markdown(caption))
