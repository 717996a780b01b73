"""Where the adapter's gate opens: on slices of one scan, and on average by organ, with spoiled slices apart."""

import json
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lib.organs import BY_KEY, KEYS
from lib.paths import replacing
from lib.profiles import is_finished, run_folder, settings_of

from .extracts import NotRun, read_extract, spread, stored, write_extract
from .pages import COLOURS, LARGEST, STYLE, new_page, slice_overlay

NAMES = ("background", *KEYS)  # by label id
COLUMNS = ["case", "slice", "degraded", "organ", "gate", "patches"]
SHOWN = 3  # slices of a kind


def organ_gates(maps: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Gate by organ: columns slice, organ (or "background"), gate, patches.

    maps: (Z, side, side), the gate of each patch; labels: (Z, S, S) label ids. A patch counts for an organ by the share of its pixels
    that the organ has, so small organs count, too: `patches` is the organ's area in patches, `gate` the mean weighted by it.
    """
    depth, side = maps.shape[:2]
    edge, rows = labels.shape[1] // side, []
    for label, name in enumerate(NAMES):
        share = (labels == label).reshape(depth, side, edge, side, edge).mean((2, 4))
        patches, total = share.sum((1, 2)), (share * maps).sum((1, 2))
        rows += [(z, name, total[z] / patches[z], patches[z]) for z in np.flatnonzero(patches)]
    return pd.DataFrame(rows, columns=["slice", "organ", "gate", "patches"])


def _chosen(shown: np.ndarray, degraded: set[int]) -> list[int]:
    """Slices to show of those that show organs: half of them clean and half spoiled where any are spoiled."""
    spoiled = np.isin(shown, list(degraded))
    if not spoiled.any():
        return spread(shown, 2 * SHOWN).tolist()
    return [*spread(shown[~spoiled], SHOWN).tolist(), *spread(shown[spoiled], SHOWN).tolist()]


def extract_gates(profile: str) -> None:
    """gates.csv, the adapter's gate by slice and organ over the first test set, and gate_maps.npz, slices of the scan in the middle.

    In the middle is the (lower) median by the mean gate. Needs the adapter's weights; without them the extracts are empty.
    """
    settings = settings_of("adapter", profile)
    tables, kept = [pd.DataFrame(columns=COLUMNS)], dict[str, tuple[Any, np.ndarray, set[int]]]()
    if is_finished(run_folder("adapter", profile), settings):
        from lib.datasets import degraded_slices, stores_of  # here, because these load torch
        from lib.inference import slice_gates
        from lib.runs import trained

        model = trained("adapter", profile)
        for store in stores_of(settings, settings.test_on[0]):
            assert store.labels is not None
            maps, degraded = slice_gates(model, store, settings), degraded_slices(store.source)
            table = organ_gates(maps, store.labels).assign(case=store.id)
            tables.append(table.assign(degraded=table["slice"].isin(degraded).astype(int))[COLUMNS])
            kept[store.id] = store, maps, degraded
    write_extract(pd.concat(tables[1:] or tables), profile, "gates.csv", float_format="%.4g")
    middle = sorted(kept, key=lambda case: kept[case][1].mean())[(len(kept) - 1) // 2] if kept else ""
    arrays: dict[str, Any] = _shown(*kept[middle]) if kept else {"about": np.array("{}")}
    with replacing(stored(profile, "gate_maps.npz", needed=False)) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)


def _shown(store: Any, maps: np.ndarray, degraded: set[int]) -> dict[str, np.ndarray]:
    """What gate_maps.npz holds of a scan: pictures and labels (n, rows, columns), each k-th pixel of large ones, gates (n, side, side)."""
    chosen, step = _chosen(np.flatnonzero(store.presence[:, 1:].any(1)), degraded), -(-store.image.shape[1] // LARGEST)
    columns, rows, _ = store.grid.canonical_shape
    aspect = rows * store.grid.spacing_mm[1] / (columns * store.grid.spacing_mm[0])  # the model's slices are square
    about = {"case": store.id, "z": chosen, "degraded": [z in degraded for z in chosen], "aspect": aspect}
    parts = {name: np.asarray(array[chosen])[:, ::step, ::step] for name, array in (("picture", store.image), ("labels", store.labels))}
    return {"about": np.array(json.dumps(about)), "gate": maps[chosen].astype(np.float16)} | parts


def _by_organ(axis: Axes, gates: pd.DataFrame) -> None:
    """Bars: mean gate of each organ over its patches, one for clean and one for spoiled slices; points are the scans."""
    styles: dict[int, dict[str, Any]] = {0: {"color": COLOURS["adapter"]}}
    styles[1] = {"facecolor": "white", "edgecolor": COLOURS["adapter"], "hatch": "/////"}
    names, kinds = [name for name in (*KEYS, "background") if name in set(gates["organ"])], sorted(gates["degraded"].unique())
    gates, cases = gates.assign(total=gates["gate"] * gates["patches"]), sorted(gates["case"].unique())
    apart = dict(zip(cases, np.linspace(-0.12, 0.12, len(cases) + 2)[1:-1], strict=True))
    for kind in kinds:
        offset = 0.4 * (kinds.index(kind) - (len(kinds) - 1) / 2)
        part = gates[gates["degraded"] == kind]
        mean, each = (part.groupby(by)[["total", "patches"]].sum() for by in (["organ"], ["organ", "case"]))
        axis.bar(np.arange(len(names)) + offset, (mean["total"] / mean["patches"]).reindex(names), 0.36, **styles[kind])
        points = (each["total"] / each["patches"]).reset_index(name="gate")
        places = points["organ"].map(names.index) + offset + points["case"].map(apart)
        axis.plot(places, points["gate"], ".", color="black", markersize=2.5, alpha=0.6)
    labels = [BY_KEY[name].short if name in BY_KEY else "Background" for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=30, ha="right", rotation_mode="anchor")
    axis.set(ylabel="mean gate", xlim=(-0.6, len(names) - 0.4))
    if len(kinds) > 1:
        handles = [Patch(**styles[kind], label=label) for kind, label in ((0, "clean slices"), (1, "degraded slices"))]
        axis.legend(handles=handles, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98), borderpad=0)


def _maps(profile: str) -> dict[str, Any]:
    """What gate_maps.npz holds. NotRun: nothing."""
    with np.load(stored(profile, "gate_maps.npz")) as file:
        entry = json.loads(str(file["about"]))
        if not entry:
            raise NotRun(f"{stored(profile, 'gate_maps.npz')} is empty: the adapter has not been run in the {profile} profile.")
        return entry | {name: file[name] for name in ("picture", "labels", "gate")}


@mpl.rc_context(STYLE)
def gate_maps(profile: str) -> Figure:
    """Slices of one scan with their organs and, beside each, the mean gate of every patch; below, the mean gate by organ."""
    entry, gates = _maps(profile), read_extract(profile, "gates.csv", "the adapter")
    pairs, aspect, spoiled = len(entry["z"]), entry["aspect"], any(entry["degraded"])
    caption = "The adapter's gate (mean over channels, 0: the slice alone, 1: its neighbours' view). Above: "
    caption += (
        f"{entry['case']}, the test scan with the (lower) median gate; slices with their organs outlined, and the gate of each patch. "
    )
    caption += "Below: mean over the patches of each organ, a patch counting by the organ's share of it; points: single scans "
    caption += f"(n = {gates['case'].nunique()})."
    caption += " Degraded slices were spoiled on purpose." if spoiled else ""
    rows = -(-pairs // SHOWN)
    figure = new_page(profile, caption, 3.1 + 1.2 * rows * min(aspect, 1.3))
    grid = figure.add_gridspec(2, 1, height_ratios=(1.25 * rows * min(aspect, 1.3), 1.7))
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    axes = grid[0].subgridspec(rows, 2 * SHOWN, wspace=0.02).subplots(squeeze=False, subplot_kw=bare)
    limits = {"vmin": float(entry["gate"].min()), "vmax": float(entry["gate"].max())}
    for place, (left, right) in enumerate(axes.reshape(-1, 2)[:pairs]):
        picture, height = entry["picture"][place], entry["picture"].shape[1]
        slice_overlay(left, picture, entry["labels"][place], aspect=aspect)
        right.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect=aspect)
        extent = (-0.5, picture.shape[1] - 0.5, height - 0.5, -0.5)
        image = right.imshow(entry["gate"][place].astype(float), cmap="viridis", alpha=0.65, extent=extent, aspect=aspect, **limits)
        left.set_title(f"z = {entry['z'][place]}", pad=2)
        right.set_title(("degraded" if entry["degraded"][place] else "clean") if spoiled else "gate", pad=2)
    figure.colorbar(image, ax=axes.ravel().tolist(), label="gate", shrink=0.9, pad=0.01)
    _by_organ(figure.add_subplot(grid[1]), gates)
    return figure
