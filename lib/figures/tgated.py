"""T-Gated's figures of slices and of training."""

from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.organs import BY_KEY, ORGANS
from lib.profiles import HEADLINE

from .extracts import NotRun, joined_or_stored
from .gallery import gallery, median_case
from .pages import COLOURS, FALSE, STYLE, colour_of, new_page, slice_overlay


def _panel(axis: Axes, entry: dict[str, Any], run: str, place: int, colour: str) -> None:
    """One stored slice with a run's mask ("": none)."""
    picture = entry["picture"][place]
    labels = entry["masks"][entry["runs"].index(run), place] if run else np.zeros(picture.shape, bool)
    slice_overlay(axis, picture, labels, {1: colour}, entry["aspect"])


def _strips(axis: Axes, pixels: pd.DataFrame) -> None:
    """One strip for the truth and each run: in which slices the organ is marked, false detections hatched and counted."""
    present, bottom = pixels["truth"].to_numpy() > 0, len(pixels.columns) - 0.4
    style: dict[str, Any] = {"facecolor": FALSE, "edgecolor": "white", "hatch": "////", "linewidth": 0}
    for row, run in enumerate(pixels):
        marked = pixels[run].to_numpy() > 0
        wrong = [(z - 0.5, 1) for z in np.flatnonzero(marked & ~present)]
        axis.broken_barh([(z - 0.5, 1) for z in np.flatnonzero(marked & present)], (row - 0.36, 0.72), color=COLOURS[run])
        axis.broken_barh(wrong, (row - 0.36, 0.72), **style, label=None if row else "marked where it is absent")
        axis.annotate(f"{marked.sum()} slices, {len(wrong)} false", (1.015, row), xycoords=("axes fraction", "data"), va="center")
    axis.vlines(np.flatnonzero(np.diff(present)) + 0.5, -0.6, bottom, color=COLOURS["truth"], linewidth=0.6, linestyle=":")
    axis.set(xlim=(-0.5, len(present) - 0.5), ylim=(bottom, -0.6), xlabel="slice z, from the feet")
    axis.set_yticks(range(len(pixels.columns)), list(pixels))
    axis.legend(loc="lower right", bbox_to_anchor=(1, 0.98), borderpad=0)


@mpl.rc_context(STYLE)
def tgated_fig1(profile: str, organ: str = "pancreas") -> Figure:
    """Figure 1: in which slices of one case the organ is marked by the truth and by each run, and some of these slices."""
    (case, pixels), entry = median_case(profile, organ), gallery(profile).get("case", {"organ": ""})
    runs = entry["runs"] if entry["organ"] == organ else []
    caption = f"The {organ} in {case}, the test case with the (lower) median number of false slices of the baseline. Bold: it is present."
    figure = new_page(profile, caption, 2 + 0.95 * len(runs))
    grid = figure.add_gridspec(2, 1, height_ratios=(1.3, 0.95 * len(runs) + 0.01))
    _strips(figure.add_subplot(grid[0]), pixels)
    axes = grid[1].subgridspec(len(runs), len(entry["z"])).subplots(squeeze=False) if runs else np.empty((0, 0))
    for (row, column), axis in np.ndenumerate(axes):
        z, run = entry["z"][column], runs[row]
        present, marked = (pixels.loc[z, name] > 0 for name in ("truth", run))
        _panel(axis, entry, run, column, FALSE if marked and not present else COLOURS[run])
        axis.set_title("" if row else f"z = {z}", pad=2, fontweight="bold" if present else "normal")
        axis.set_ylabel("" if column else run)
    return figure


@mpl.rc_context(STYLE)
def tgated_fig3(profile: str) -> Figure:
    """Figure 3: the best slice of each organ: the picture, the truth, the baseline and the adapter with their Dice in that slice."""
    caption = (
        "The adapter at its best: of all test slices with at least half of an organ's largest area, that of its highest Dice (numbers)."
    )
    entries, shown = gallery(profile), ("", "truth", "baseline", "adapter")
    if not entries.keys() & BY_KEY.keys():
        raise NotRun(f"Figure 3 shows the adapter's best slices, and the adapter has not been run in the {profile} profile.")
    figure = new_page(profile, caption, 7.6)
    axes = figure.subplots(7, 9, width_ratios=(1, 1, 1, 1, 0.15, 1, 1, 1, 1), subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for place, organ in enumerate(organ for organ in ORGANS if organ.key in entries):
        entry = entries[organ.key]
        for axis, run in zip(axes[place % 7, 5 * (place // 7) :], shown, strict=False):
            if not run or run in entry["runs"]:
                _panel(axis, entry, run, 0, organ.colour)
                axis.set_title({"": organ.short, "truth": "truth"}.get(run) or f"{run} {entry['dice'][run]:.2f}", pad=2)
    return figure


@mpl.rc_context(STYLE)
def tgated_fig4(profile: str) -> Figure:
    """Figure 4: an organ in slices of one MRI scan: the picture, the truth and each method that has run, with its Dice in the slice."""
    entry = gallery(profile).get("mri")
    if entry is None:
        raise NotRun(f"No scan of the test set for figure 4 shows the organ in the {profile} profile.")
    what = "MRI" if entry["modality"] == "MR" else "CT, for there is no MRI set"
    caption = (
        f"The {entry['organ']} in {entry['case']} of {entry['dataset']} ({what}), the (lower) median by the adapter's Dice; scans that "
    )
    caption += f"show the organ: {entry['cases']}. All methods were trained on CT alone. Numbers: Dice in the slice."
    rows = ["", *(run for run in ("truth", "baseline", "adapter", "dynunet") if run in entry["runs"])]
    height, width = entry["picture"].shape[1:]
    panel = 7.0 / len(entry["z"]) * min(entry["aspect"] * height / width, 1.3)
    figure = new_page(profile, caption, 0.6 + (min(panel, 1.5) + 0.16) * len(rows))
    for (row, column), axis in np.ndenumerate(figure.subplots(len(rows), len(entry["z"]), squeeze=False)):
        run = rows[row]
        _panel(axis, entry, run, column, COLOURS[run or "truth"])
        title = f"{entry['dice'][run][column]:.2f}" if row > 1 else "" if row else f"z = {entry['z'][column]}"
        axis.set_title(title, pad=2)
        axis.set_ylabel("" if column else run or "picture")
    return figure


@mpl.rc_context(STYLE)
def training_curves(profile: str, runs: Iterable[str] = HEADLINE) -> Figure:
    """Loss, mean gate and validation Dice of some runs against the step. Seeds and ablations of a run share its colour.

    Beside other runs DynUNet stands in the panel of the Dice alone, because its loss is another one.
    """
    curves = joined_or_stored(profile, "log.csv", runs, "curves.csv")
    caption = "Training: loss and gate are means since the point before; Dice is the mean over whole validation scans."
    unet = curves["run"].str.startswith("dynunet")
    if unet.any() and not unet.all():
        caption += " DynUNet's loss is another one and not shown."
        curves.loc[unet, "loss"] = np.nan
    figure = new_page(profile, caption, 2.4)
    columns = [name for name in ("loss", "gate", "validation_dice") if name in curves and curves[name].notna().any()]
    for axis, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        for run, points in curves.dropna(subset=[column]).groupby("run", sort=False):
            axis.plot(points["step"], points[column], marker=".", label=run, color=colour_of(str(run)))
        axis.set(xlabel="step", ylabel=column.replace("_", " "), ylim=(0, 1.08 * curves[column].max()))
    axis.legend()
    return figure
