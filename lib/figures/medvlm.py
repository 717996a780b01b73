"""Med-VLM's figures of training and of slices, and what they read: medvlm_curves.csv, medvlm_gallery.npz, medvlm_parameters.csv."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lib.organs import BY_KEY, KEYS
from lib.paths import replacing
from lib.profiles import ASKED, BY_CASES, MEDVLM_RUNS, MEDVLM_SEEDS, is_finished, run_folder, settings_of
from lib.published import MEDVLM_TABLE3

from .extracts import NotRun, joined, joined_or_stored, read_extract, scans, stored, write_extract
from .gallery import cut, opened, slice_dice
from .pages import STYLE, colour_of, new_page, slice_overlay

TITLES = {"med-vlm large": "Med-VLM Large", "med-vlm small": "Med-VLM Small", "unet": "2D U-Net"}
CURVES, GALLERY, PARAMETERS = "medvlm_curves.csv", "medvlm_gallery.npz", "medvlm_parameters.csv"
COLUMNS = ["run", "step", "epoch", "loss", "bce", "dice_loss", "lr", "validation_dice", "validation_loss", "training_dice"]
SHOWN = [(run, (organ,)) for run in ("med-vlm large", "med-vlm small") for organ in ASKED] + [("unet", ASKED)]  # figures 4 to 8
TRAINING: dict[str, Any] = {"linestyle": "--", "markerfacecolor": "white"}  # beside the held-out scans' line


def extract_medvlm_curves(profile: str) -> None:
    """medvlm_curves.csv: the logs of all finished runs of Med-VLM; of those that are not finished here, the rows that it has already."""
    seeds = (0, *MEDVLM_SEEDS)
    names = [f"{run}, seed {seed}" if seed else run for run in MEDVLM_RUNS for seed in seeds]
    path = stored(profile, CURVES, needed=False)
    old = pd.read_csv(path, dtype=str) if path.is_file() else pd.DataFrame(columns=COLUMNS)  # as text: no digit changes
    new = joined(profile, "log.csv", [run for run in names if is_finished(run_folder(run, profile), settings_of(run, profile))])
    new = new.reindex(columns=COLUMNS).astype(dict.fromkeys(COLUMNS[1:], float))
    parts = [(new if run in set(new["run"]) else old).query("run == @run") for run in names]
    tables = [part.reindex(columns=COLUMNS).astype(object) for part in parts if len(part)]
    write_extract(pd.concat(tables) if tables else pd.DataFrame(columns=COLUMNS), profile, CURVES)


def extract_medvlm_parameters(profile: str) -> None:
    """medvlm_parameters.csv: trainable and frozen parameters of the three models, at the paper's size and at the profile's."""
    import torch  # here, because figures alone should take seconds

    from lib.med_vlm import build_unet, parameter_counts, without_weights
    from lib.runs import build_model

    rows = []
    for scope in dict.fromkeys(("full", profile)):
        for run in TITLES:
            settings = settings_of(run, scope)
            with torch.device("meta" if settings.full_size else "cpu"):
                full = build_unet if run == "unet" else without_weights
                rows.append((run, scope, *parameter_counts((full if settings.full_size else build_model)(settings))))
    write_extract(pd.DataFrame(rows, columns=["run", "scope", "trainable", "frozen"]), profile, PARAMETERS)


def _entry(grey: np.ndarray, truth: np.ndarray, found: np.ndarray, organs: tuple[str, ...]) -> dict[str, Any]:
    """The slice of a scan with the organs' largest true area, the Dice there and in the whole scan (mean over the organs).

    grey: (X, Y, Z) uint8; truth, found: (X, Y, Z) uint16, bit p for ORGANS[p]. Empty where the scan does not show all the organs.
    """
    pairs = {key: {"truth": truth >> KEYS.index(key) & 1 > 0, "found": found >> KEYS.index(key) & 1 > 0} for key in organs}
    if not all(pair["truth"].any() for pair in pairs.values()):
        return {}
    z = int(sum(pair["truth"].sum((0, 1)) for pair in pairs.values()).argmax())
    whole = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in (pair.values() for pair in pairs.values())]
    there = {key: any(mask[:, :, z].any() for mask in pair.values()) for key, pair in pairs.items()}
    dice = {key: round(float(slice_dice(pair).loc[z, "found"]), 4) if there[key] else None for key, pair in pairs.items()}
    masks = {f"{kind} {key}": pair[kind] for kind in ("truth", "found") for key, pair in pairs.items()}
    return {"z": z, "dice": dice, "mean": float(np.mean(whole))} | cut(grey, masks, [z])


def extract_medvlm_gallery(profile: str) -> None:
    """medvlm_gallery.npz: for each of SHOWN a slice of the held-out scan with the (lower) median Dice of that run and these organs."""
    dataset = settings_of("unet", profile).test_on[0]
    found: dict[tuple[str, tuple[str, ...]], list[dict[str, Any]]] = {shown: [] for shown in SHOWN}
    runs = [run for run in TITLES if (run_folder(run, profile) / "predictions" / dataset).is_dir()]
    for _, store, claims in scans(profile, [dataset] if runs else [], runs, "unet"):
        grey, about = opened(profile, store, claims)
        about = {"case": about["case"], "aspect": about["aspect"], "dataset": dataset}
        for run, organs in SHOWN:
            if run in claims and (entry := _entry(grey, claims["truth"], claims[run], organs)):
                found[run, organs].append(about | {"epochs": settings_of(run, profile).epochs} | entry)
    middle = {
        _key(*shown): sorted(entries, key=lambda entry: entry["mean"])[(len(entries) - 1) // 2] | {"cases": len(entries)}
        for shown, entries in found.items()
        if entries
    }
    arrays = {f"{key}.{part}": entry.pop(part) for key, entry in middle.items() for part in ("picture", "masks")}
    with replacing(stored(profile, GALLERY, needed=False)) as part, open(part, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(middle)), **arrays)


def _key(run: str, organs: tuple[str, ...]) -> str:
    """Name of an entry of medvlm_gallery.npz."""
    return f"{run}, {' and '.join(organs)}"


def _published(axis: Axes, run: str) -> None:
    """The paper's best values as thin lines, named at their right end."""
    for value, what, colour in zip(MEDVLM_TABLE3[run], ("training", "validation"), ("#666666", colour_of(run)), strict=True):
        axis.axhline(value, color=colour, linewidth=0.8, linestyle=(0, (5, 3)))
        text = f"published,\n{what} {value:.2f}"
        axis.annotate(text, (1.01, value), xycoords=("axes fraction", "data"), fontsize=7, va="center", color=colour, linespacing=0.95)


@mpl.rc_context(STYLE)
def medvlm_curves(profile: str, run: str) -> Figure:
    """Figures 1 to 3: loss and Dice of a run on training and validation scans against the epoch, and the paper's best Dice.

    Raises:
        NotRun: there is no epoch of the run.
    """
    table = joined_or_stored(profile, "log.csv", [run], CURVES)
    ends, settings = table.dropna(subset=["validation_dice"]), settings_of(run, profile)
    if ends.empty:
        raise NotRun(f"{run!r} has not trained for an epoch in the {profile} profile.")
    epoch = table["step"] * (ends["epoch"].iat[-1] / ends["step"].iat[-1])
    parts = "cross-entropy" if run == "unet" else "binary cross-entropy"
    caption = (
        f"{TITLES[run]}: loss ({parts} plus Dice loss) and mean Dice of {' and '.join(settings.organs)} over {ends['epoch'].iat[-1]:.0f} "
    )
    caption += "epochs. Training loss: mean over the steps since the point before, augmented slices; validation loss: slices as they are. "
    caption += f"Dice: whole scans as they are, {_held_out(profile)} and at most as many training scans. Published: the paper's Table 3, "
    caption += "its best values."
    figure = new_page(profile, caption, 3.0)
    left, right = figure.subplots(1, 2)
    train: dict[str, Any] = {"color": "#666666", "marker": ".", "markersize": 4, "linewidth": 1.2}
    valid = train | {"color": colour_of(run), "marker": "o", "markersize": 4}
    left.plot(epoch, table["loss"], label="training", **train)
    left.plot(ends["epoch"], ends["validation_loss"], label="validation", **valid)
    right.plot(ends["epoch"], ends["training_dice"], **train)
    right.plot(ends["epoch"], ends["validation_dice"], **valid)
    _published(right, run)
    left.set(ylabel="loss", ylim=(0, 1.08 * max(table["loss"].max(), ends["validation_loss"].max())))
    right.set(ylabel="mean Dice", ylim=(0, 1))
    for axis in (left, right):
        axis.set(xlabel="epoch", xlim=(0, 1.02 * epoch.max()))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2, borderpad=0)
    return figure


def _held_out(profile: str) -> str:
    """How many scans are validated on, in words; the sample profile's are slabs, which its note says."""
    settings = settings_of("unet", profile)
    return "the validation scans" if settings.train_on == "samples" else f"the held-out scans (n = {settings.cases[1]})"


@mpl.rc_context(STYLE)
def medvlm_slice(profile: str, run: str, organs: tuple[str, ...] = ASKED) -> Figure:
    """Figures 4 to 8: a slice of a held-out scan, its truth, and what a run marks in it, with the Dice in the slice.

    Raises:
        NotRun: the run has not been tested, or no scan shows the organs.
    """
    with np.load(stored(profile, GALLERY)) as file:
        entry = json.loads(str(file["about"])).get(_key(run, organs))
        if entry is None:
            raise NotRun(f"{run!r} has no slice of {' and '.join(organs)} to show in the {profile} profile.")
        picture, masks = (file[f"{_key(run, organs)}.{part}"] for part in ("picture", "masks"))
    both, size = ("both", "areas, added up, are") if len(organs) > 1 else ("it", "area is")
    caption = (
        f"{' and '.join(organs).capitalize()} by {TITLES[run]} after its last epoch ({entry['epochs']}) in {entry['case']}: of the scans "
    )
    caption += f"of {entry['dataset']} that show {both} (n = {entry['cases']}), the one with this model's (lower) median Dice "
    caption += f"({entry['mean']:.2f}, whole scan). The slice (z = {entry['z']}) is that where the true {size} largest. Numbers: Dice "
    caption += "in the slice."
    figure = new_page(profile, caption, 0.85 + 2.3 * min(entry["aspect"] * picture.shape[1] / picture.shape[2], 1.3))
    for axis, marked in zip(figure.subplots(1, 3), ((), masks[: len(organs), 0], masks[len(organs) :, 0]), strict=True):
        labels = np.zeros(picture.shape[1:], np.uint8)
        for key, mask in zip(organs, marked, strict=False):
            labels[mask] = BY_KEY[key].label
        slice_overlay(axis, picture[0], labels, aspect=entry["aspect"])
    numbers = [f"{key} {value:.2f}" if value is not None else f"no {key}" for key, value in entry["dice"].items()]
    for axis, title in zip(figure.axes, ("picture", "truth", f"{TITLES[run]}: {', '.join(numbers)}"), strict=True):
        axis.set_title(title, pad=3)
    handles = [Patch(color=BY_KEY[key].colour, alpha=0.6, label=BY_KEY[key].short) for key in organs]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(organs))
    return figure


def _last_epochs(profile: str) -> pd.DataFrame:
    """The last epoch of each run and seed of BY_CASES, with its method and `cases`, the number of training scans."""
    table = read_extract(profile, CURVES, "Med-VLM").dropna(subset=["validation_dice"]).drop_duplicates("run", keep="last")
    methods = {run: method for method, runs in BY_CASES.items() for run in (method, *runs.values())}
    table = table.assign(name=table["run"].str.partition(", seed ")[0])
    table = table[table["name"].isin(methods)]
    several = [settings_of(name, profile) for name in table["name"]]
    cases = [settings.training_cases or settings.cases[0] for settings in several]
    return table.assign(method=table["name"].map(methods), cases=cases)


@mpl.rc_context(STYLE)
def medvlm_overfitting(profile: str) -> Figure:
    """Training and held-out Dice at the last epoch against the number of training scans.

    Raises:
        NotRun: the extract holds no two numbers of scans.
    """
    table = _last_epochs(profile)
    if table["cases"].nunique() < 2:
        raise NotRun(f"No run with fewer training scans has been trained in the {profile} profile.")
    caption = "Mean Dice of spleen and liver after the last epoch against the number of training scans. Points: single seeds; lines: means "
    caption += f"over them. Held out: the same {settings_of('unet', profile).cases[1]} scans throughout. Training: at most as many of the "
    caption += "training scans, as they are."
    caption += "" if settings_of("unet", profile).epoch_steps else " Fewer scans make shorter epochs, and so fewer steps."
    figure = new_page(profile, caption, 3.2)
    axis = figure.add_subplot()
    for method, points in table.groupby("method", sort=False):
        for column, kind, style in (("training_dice", "training", TRAINING), ("validation_dice", "held out", {"linestyle": "-"})):
            means, look = points.groupby("cases")[column].mean(), {"color": colour_of(str(method))} | style
            axis.plot(points["cases"], points[column], "o", **(look | {"linestyle": "none", "markersize": 4}))
            axis.plot(means.index, means, linewidth=1.2, color=look["color"], linestyle=look["linestyle"])
            axis.plot([], [], marker="o", markersize=4, linewidth=1.2, label=f"{TITLES[str(method)]}, {kind}", **look)
    axis.set_xscale("log")
    axis.minorticks_off()
    sizes = sorted(table["cases"].unique())
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set(xlabel="training scans", ylabel="mean Dice", ylim=(0, 1))
    figure.legend(loc="outside right center")
    return figure


MEDVLM_FIGURES: dict[str, Callable[[str], Figure]] = {
    **{f"medvlm_fig{place}": partial(medvlm_curves, run=run) for place, run in enumerate(TITLES, 1)},
    **{f"medvlm_fig{place}": partial(medvlm_slice, run=run, organs=organs) for place, (run, organs) in enumerate(SHOWN, 4)},
    "medvlm_overfitting": medvlm_overfitting,
}
