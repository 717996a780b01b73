"""The papers' figures, drawn from small extracts in results/<profile>/figure_data, which `extract` takes from the stored predictions.
Pictures have rows first, the patient's right on the left and the front up; z counts the slices from the feet."""

import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lib.organs import KEYS, ORGANS, labelled
from lib.paths import InputError, figures_root, replacing, results_root
from lib.profiles import HEADLINE, run_folder, settings_of
from lib.report import data_note

# 8 points on a figure as wide as a page's text: readable at 100 %
STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "legend.frameon": False, "hatch.linewidth": 0.7, "pdf.fonttype": 42}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
COLOURS = {"truth": "#56b4e9", "baseline": "#cc79a7", "adapter": "#009e73", "centre only": "#0072b2"}  # Okabe and Ito's, as is
FALSE, WIDTH, LARGEST, SLICES = "#d55e00", 7.2, 192, 8  # colour of false slices, inches, pixels of a stored picture's edge, slices shown


def _data(profile: str, name: str, needed: bool = True) -> Path:
    if needed and not (path := results_root(profile) / "figure_data" / name).is_file():
        raise InputError(f"{path} does not exist: run `make paper PROFILE={profile}` to train, predict and store what the figures show.")
    return results_root(profile) / "figure_data" / name


def _scans(profile: str) -> Iterator[tuple[str, Any, dict[str, np.ndarray]]]:
    """(data set, store, {"truth" or run: canonical (X, Y, Z) uint16, bit p for ORGANS[p]}) of every test scan and the runs there are."""
    from lib.datasets import stores_of  # here, because these load torch, and figures alone should take seconds
    from lib.volumes import read_labels

    settings = settings_of("baseline", profile)
    bits = np.array([0, *(1 << place for place in range(len(ORGANS)))], np.uint16)
    for dataset in settings.test_on:
        for store in stores_of(settings, dataset):
            assert store.source.labels is not None
            files = {run: run_folder(run, profile) / "predictions" / dataset / f"{store.id}.npz" for run in HEADLINE}
            claims = {run: store.grid.to_canonical(np.load(path)["claims"]) for run, path in files.items() if path.is_file()}
            yield dataset, store, {"truth": bits[read_labels(store.source.labels, store.label_map, store.grid)]} | claims


def extract_presence(profile: str) -> None:
    """presence.csv: pixels of each organ that the data set labels, for the truth and every run, data set, case and slice z."""
    tables = []
    for dataset, store, claims in _scans(profile):
        for run, volume in claims.items():
            pixels = {key: (volume >> KEYS.index(key) & 1).sum((0, 1)) for key in labelled(store.label_map)}
            table = pd.DataFrame({"run": run, "dataset": dataset, "case": store.id, "z": range(volume.shape[2])} | pixels)
            tables.append(table.reindex(columns=["run", "dataset", "case", "z", *KEYS]))
    with replacing(_data(profile, "presence.csv", needed=False)) as part:
        pd.concat(tables).to_csv(part, index=False, float_format="%g")


def median_case(profile: str, organ: str) -> tuple[str, pd.DataFrame]:
    """Id and (Z, runs) pixels of `organ` of one case: the (lower) median by the baseline's false slices in the first data set."""
    presence = pd.read_csv(_data(profile, "presence.csv"), dtype={"case": str})
    first = presence[presence["dataset"] == presence["dataset"].iat[0]]
    pixels = first.pivot(index=["case", "z"], columns="run", values=organ)
    pixels = pixels[[name for name in COLOURS if name in pixels]]
    judge = pixels.columns[:2][-1]  # the baseline, where it has run
    false = ((pixels[judge] > 0) & (pixels["truth"] == 0)).groupby("case").sum().sort_values(kind="stable")
    case = false.index[(len(false) - 1) // 2]
    return str(case), pixels.loc[case]


def _cut(grey: np.ndarray, masks: dict[str, np.ndarray], slices: list[int]) -> dict[str, np.ndarray]:
    """picture (n, rows, columns) uint8 and masks (runs, n, rows, columns) bool of some slices; of large ones each k-th pixel."""
    step = -(-max(grey.shape[:2]) // LARGEST)
    part = np.s_[::step, ::step, slices]
    return {"picture": grey[part].T, "masks": np.array([mask[part].T for mask in masks.values()])}


def extract_gallery(profile: str, organ: str = "pancreas") -> None:
    """gallery.npz, out of the first data set: the best slice of each organ, and slices of figure 1's case; needs presence.csv.

    Best is the adapter's highest slice Dice among the slices that show at least half of the organ's largest area in their scan.
    """
    from lib.volumes import read_scan, to_uint8

    settings, (case, pixels) = settings_of("baseline", profile), median_case(profile, organ)
    seen, best, entries = pixels.index[(pixels > 0).any(axis=1)], dict[str, float](), dict[str, dict[str, Any]]()
    for _, store, claims in (scan for scan in _scans(profile) if scan[0] == settings.test_on[0]):
        grey = to_uint8(read_scan(store.source.image)[0], store.modality, settings)
        about = {"case": store.id, "runs": list(claims), "aspect": store.grid.spacing_mm[1] / store.grid.spacing_mm[0]}
        for place, key in enumerate(KEYS):
            masks = {run: volume & 1 << place > 0 for run, volume in claims.items()}
            area, truth = masks["truth"].sum((0, 1)), masks["truth"]
            sums = {run: (2 * (mask & truth).sum((0, 1)), np.maximum(mask.sum((0, 1)) + area, 1)) for run, mask in masks.items()}
            dice = pd.DataFrame({run: both / total for run, (both, total) in sums.items()})
            score = dice.reindex(columns=["adapter"])["adapter"].where((area > 0) & (2 * area >= area.max()), -1.0)
            if score.max() > best.get(key, -1.0):
                best[key], z = score.max(), int(score.argmax())
                entries[key] = about | {"z": [z], "dice": dice.loc[z].round(4).to_dict()} | _cut(grey, masks, [z])
            if (store.id, key) == (case, organ) and len(seen):
                chosen = np.unique(np.linspace(seen.min(), seen.max(), SLICES).round().astype(int)).tolist()
                entries["case"] = about | {"z": chosen, "organ": organ} | _cut(grey, masks, chosen)
    arrays = {f"{key}.{part}": entry.pop(part) for key, entry in entries.items() for part in ("picture", "masks")}
    with replacing(_data(profile, "gallery.npz", needed=False)) as part, open(part, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(entries)), **arrays)


def _gallery(profile: str) -> dict[str, dict[str, Any]]:
    """The entries of gallery.npz by organ, and "case" for figure 1."""
    with np.load(_data(profile, "gallery.npz")) as file:
        entries = json.loads(str(file["about"]))
        return {key: entry | {part: file[f"{key}.{part}"] for part in ("picture", "masks")} for key, entry in entries.items()}


def _logs(profile: str, runs: Iterable[str]) -> pd.DataFrame:
    """The logs of the runs that were trained here; an empty frame if none was."""
    logs = (pd.read_csv(path).assign(run=run) for run in runs if (path := run_folder(run, profile) / "log.csv").is_file())
    return pd.concat([pd.DataFrame(), *logs])


def extract(profile: str, runs: Iterable[str] = HEADLINE) -> list[Path]:
    """Stores and returns all that the figures read; curves.csv holds the logs of `runs`."""
    with replacing(_data(profile, "curves.csv", needed=False)) as part:
        _logs(profile, runs).to_csv(part, index=False)  # all digits: the figure is the same, drawn from the logs or from here
    extract_presence(profile)
    extract_gallery(profile)
    return [_data(profile, name) for name in ("curves.csv", "presence.csv", "gallery.npz")]


def slice_overlay(axis: Axes, picture: np.ndarray, labels: np.ndarray, colours: dict[int, str] | None = None, aspect: float = 1.0) -> None:
    """Draws a slice (rows, columns), 0 to 255, with label ids of the same shape filled and outlined.

    colours: {label id: colour}, by default the organs' own; aspect: height over width of a pixel.
    """
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="nearest")
    for label, colour in (colours or {organ.label: organ.colour for organ in ORGANS}).items():
        if (mask := labels == label).any():
            axis.contourf(mask, [0.5, 1.5], colors=[colour], alpha=0.4)
            axis.contour(mask, [0.5], colors=[colour], linewidths=0.9)
    axis.set(xticks=[], yticks=[], frame_on=False)


def _page(profile: str, caption: str, height: float) -> Figure:
    """An empty figure with its caption and its profile at the bottom; the caption is its label, too, for who cannot see it."""
    text = f"{textwrap.fill(caption, 130)}\n{data_note(profile)}"
    foot = (0.14 * len(text.splitlines()) + 0.1) / height
    layout = ConstrainedLayoutEngine(rect=(0, foot, 1, 1 - foot), w_pad=0.03, h_pad=0.03)
    figure = plt.figure(figsize=(WIDTH, height), layout=layout, label=caption)
    plt.close(figure)  # so that a notebook shows it once
    figure.text(0.01, 0.04 / height, text, fontsize=7, va="bottom", linespacing=1.3)
    return figure


def _panel(axis: Axes, entry: dict[str, Any], run: str, place: int, colour: str) -> None:
    """One stored slice with a run's mask ("": none), cut to a square around all masks of the entry, at least half of the picture wide."""
    masks = entry["masks"]
    marked, shape = np.argwhere(masks.any((0, 1))), np.array(masks.shape[2:])
    low, high = (marked.min(0), marked.max(0) + 1) if len(marked) else (0 * shape, shape)
    edge = np.minimum(max(int((high - low).max() * 1.3), shape.max() // 2), shape)
    rows, columns = map(slice, start := np.clip((low + high - edge) // 2, 0, shape - edge), start + edge)
    labels = masks[entry["runs"].index(run), place] if run else np.zeros(shape, bool)
    slice_overlay(axis, entry["picture"][place, rows, columns], labels[rows, columns], {1: colour}, entry["aspect"])


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
    (case, pixels), entry = median_case(profile, organ), _gallery(profile).get("case", {"organ": ""})
    runs = entry["runs"] if entry["organ"] == organ else []
    caption = f"The {organ} in {case}, the test case with the (lower) median number of false slices of the baseline. Bold: it is present."
    figure = _page(profile, caption, 2 + 0.95 * len(runs))
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
    gallery, shown = _gallery(profile), ("", "truth", "baseline", "adapter")
    figure = _page(profile, caption, 7.6)
    axes = figure.subplots(7, 9, width_ratios=(1, 1, 1, 1, 0.15, 1, 1, 1, 1), subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
    for place, organ in enumerate(organ for organ in ORGANS if organ.key in gallery):
        entry = gallery[organ.key]
        for axis, run in zip(axes[place % 7, 5 * (place // 7) :], shown, strict=False):
            if not run or run in entry["runs"]:
                _panel(axis, entry, run, 0, organ.colour)
                axis.set_title({"": organ.short, "truth": "truth"}.get(run) or f"{run} {entry['dice'][run]:.2f}", pad=2)
    return figure


@mpl.rc_context(STYLE)
def training_curves(profile: str, runs: Iterable[str] = HEADLINE) -> Figure:
    """Loss, mean gate and validation Dice of some runs against the step. Seeds of a run share its colour."""
    curves = _logs(profile, runs)
    if (stored := _data(profile, "curves.csv", needed=curves.empty)).is_file():  # what was trained here goes first
        curves = pd.concat([curves, pd.read_csv(stored)]).drop_duplicates(["run", "step"])
    figure = _page(profile, "Training: loss and gate are means since the point before; Dice is the mean over whole validation scans.", 2.4)
    columns = [name for name in ("loss", "gate", "validation_dice") if curves.loc[curves["run"].isin(runs), name].notna().any()]
    for axis, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        for run in runs:
            points = curves[curves["run"] == run].dropna(subset=[column])
            axis.plot(points["step"], points[column], marker=".", label=run, color=COLOURS[run.split(", seed")[0]])
        axis.set(xlabel="step", ylabel=column.replace("_", " "), ylim=(0, 1.08 * curves.loc[curves["run"].isin(runs), column].max()))
    axis.legend()
    return figure


@mpl.rc_context(STYLE)
def save(figure: Figure, name: str, profile: str) -> list[Path]:
    """Writes figures/<profile>/<name>.png (150 dpi) and .pdf, each whole or not at all, and with the same bytes every time."""
    paths = [figures_root(profile) / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path, undated in zip(paths, ({"Software": None}, {"CreationDate": None, "Creator": None, "Producer": None}), strict=True):
        with replacing(path) as part:
            figure.savefig(part, dpi=150, metadata=undated)
    return paths


def all_figures(profile: str) -> list[Path]:
    """Draws and saves every figure of a profile from its extracts. InputError: there are none yet."""
    return [path for draw in (tgated_fig1, tgated_fig3, training_curves) for path in save(draw(profile), draw.__name__, profile)]
