"""`make data-check`: is every data set below DATA_ROOT complete and sound? One table, one verdict."""

import sys
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.orientations import aff2axcodes
from scipy import ndimage
from tqdm import tqdm

from lib.config import DATA, RUNS, settings_of
from lib.data import LAYOUTS, Case, home_of, organs_of, remembered, split, survey
from lib.files import InputError, data_root, file_hash
from lib.organs import KEYS, ORGANS, label_ids, labelled
from lib.volumes import Grid, is_in_hu, read_labels, read_scan, shows_air

CHECK_VERSION = 7  # raise it whenever the same files would be judged otherwise
PLAUSIBLE_MM = {"voxels": ((0.3, 5), (0.3, 5), (0.4, 12)), "fields": ((120, 900), (120, 900), (30, 2500))}
LESS_MIXED = 0.95  # spread of grey values within organs, moved against as they lie: right ones have over 1.08
MR_HAS_NOT_BELOW = -500  # where a CT in HU has its air
# Plausible volumes in ml, from a shrunken organ to a diseased one: they catch wrong ids, units and spacings
# and judge no patient. The lower end does not hold for an organ that the first or last slice cuts.
VOLUMES_ML = {
    "liver": (300, 6000), "right kidney": (15, 1000), "spleen": (15, 4000), "pancreas": (5, 350),
    "aorta": (10, 800), "inferior vena cava": (5, 400), "right adrenal gland": (0.3, 60),
    "left adrenal gland": (0.3, 60), "gallbladder": (0.5, 500), "esophagus": (0.5, 200),
    "stomach": (15, 4000), "duodenum": (3, 500), "left kidney": (15, 1000),
}
SIDES = (  # canonical axis, (the organ further to the right, front or feet, the other), what is wrong
    (0, (("right kidney", "left kidney"), ("right adrenal gland", "left adrenal gland"), ("liver", "spleen")),
     "left and right are swapped"),
    (1, (("pancreas", "aorta"), ("stomach", "aorta"), ("liver", "aorta")), "front and back are swapped"),
    (2, (("right kidney", "liver"), ("left kidney", "spleen"), ("right kidney", "esophagus"),
         ("left kidney", "esophagus")), "head and feet are swapped"),
)
Fault = tuple[str, str, str]  # data set, id of the case, and what is wrong, a sentence without its end
STOPS = "a run would stop: "  # begins a fault that one cannot go on with; others are worth a look


def content_of(voxels: np.ndarray) -> str:
    """Hash of canonical voxels: the same in another compression, number type or orientation."""
    return joblib.hash(np.ascontiguousarray(voxels, np.float32), "sha1")


def _scan_faults(grid: Grid, voxels: np.ndarray, modality: str) -> Iterator[str]:
    """Implausible spacing or extent, and grey values as of the other modality."""
    spacing = grid.spacing_mm
    for what, values in (("voxels", spacing), ("fields", np.multiply(spacing, grid.canonical_shape))):
        if any(not low <= mm <= high for mm, (low, high) in zip(values, PLAUSIBLE_MM[what], strict=True)):
            sizes = " x ".join(f"{value:.4g}" for value in values)
            yield f"its {what} of {sizes} mm are implausible: its spacing may be wrong"
            break
    if modality == "CT" and not is_in_hu(voxels):
        yield "it lacks the fat of a CT in HU: it is of another scale, or a misnamed MRI"
    if modality == "MR" and shows_air(voxels, MR_HAS_NOT_BELOW):
        yield "it shows air in HU, as a CT does, and its number is an MRI's"


def _volume_faults(labels: np.ndarray, organs_ml: dict[str, float]) -> Iterator[str]:
    cut = {KEYS[label - 1] for label in np.unique(labels[:, :, [0, -1]]) if label}
    ranges = [(key, ml, *VOLUMES_ML[key]) for key, ml in organs_ml.items()]
    wrong = [f"{key} {ml:.3g} ml, not {low:g} to {high:g}" for key, ml, low, high in ranges
             if ml > high or (ml < low and key not in cut)]
    if wrong:
        yield f"organs out of their anatomical range: {'; '.join(wrong)}"
    if not organs_ml:
        yield "its labels show none of the 13 organs"


def _side_faults(labels: np.ndarray) -> Iterator[str]:
    """Organs on the wrong side of each other. Front and feet need all pairs: single organs may hang."""
    centres = {}  # in canonical voxels
    for key, label, box in zip(KEYS, range(1, 14), ndimage.find_objects(labels, 13), strict=True):
        if box:
            middle = ndimage.center_of_mass(labels[box] == label)
            centres[key] = np.add([edge.start for edge in box], middle)
    for axis, pairs, what in SIDES:
        there = [pair for pair in pairs if centres.keys() >= {*pair}]
        swapped = [pair for pair in there if centres[pair[0]][axis] > centres[pair[1]][axis]]
        if swapped and (axis == 0 or len(swapped) == len(there) > 1):
            yield f"{what}: {', '.join(' / '.join(pair) for pair in swapped)}"


def _fit_faults(voxels: np.ndarray, labels: np.ndarray, grid: Grid, modality: str) -> Iterator[str]:
    """A picture that is mirrored or displaced against its labels: moved back, its organs are less mixed. Of
    21 scans and phantoms that fit, none had a lower spread of grey values in organs when it was moved."""
    low, high = np.percentile(voxels, (1, 99)) if modality == "MR" else (-200, 300)
    grey, labels = voxels[::2, ::2].clip(low, high).astype(np.float32), labels[::2, ::2]
    inside, ids = labels > 0, labels[labels > 0]

    def spread(picture: np.ndarray) -> float:
        values = picture[inside].astype(float)
        count, total, squares = (np.bincount(ids, weight) for weight in (None, values, values**2))
        return float(np.sqrt((squares - total**2 / np.maximum(count, 1)).sum() / len(values)))

    moved = {"mirrored left to right": grey[::-1], "mirrored front to back": grey[:, ::-1]}
    for axis, name in enumerate(("left", "back", "head")):
        for mm in (-30, -15, 15, 30):
            steps = round(mm / abs(grid.axes_mm[axis, axis]) / (2 if axis < 2 else 1))
            moved[f"moved by {mm} mm to the {name}"] = np.roll(grey, steps, axis)
    fits = {how: spread(picture) for how, picture in moved.items()} if len(ids) > 10_000 else {}
    if fits and fits[best := min(fits, key=fits.__getitem__)] < LESS_MIXED * spread(grey):
        yield f"its organs would fit the picture better if it were {best}: do the two belong together?"


def examine(case: Case) -> dict[str, Any]:
    """What a case holds and, as `faults`, what is wrong with it: a value that JSON holds."""
    seen: dict[str, Any] = {"faults": (faults := list[str]())}
    assert case.labels is not None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            voxels, grid = read_scan(case.image)
            seen |= {"content": content_of(voxels), "slices": voxels.shape[2], "spacing_mm": grid.spacing_mm}
            seen["axes"] = "".join(aff2axcodes(grid.affine))
            if case.modality == "CT" and is_in_hu(voxels) and not shows_air(voxels):
                seen["clipped_hu"] = [float(end) for end in np.percentile(voxels, (0.1, 99.9))]
            faults += [f"{case.image}: {what}" for what in _scan_faults(grid, voxels, case.modality)]
            labels = read_labels(case.labels, case.label_map, grid)
            ml = np.bincount(labels.ravel(), minlength=14) * grid.voxel_ml
            seen["organs_ml"] = {organ.key: float(ml[organ.label]) for organ in ORGANS if ml[organ.label]}
            organs_of(case, [*seen["organs_ml"]])  # which a run asks for, too
            if not any("implausible" in fault for fault in faults):
                faults += [f"{case.labels}: {what}" for what in _volume_faults(labels, seen["organs_ml"])]
            sides = [f"{case.labels}: {what}" for what in _side_faults(labels)]
            fits = _fit_faults(voxels, labels, grid, case.modality) if not faults + sides else ()
            faults += sides + [f"{case.labels}: {what}" for what in fits]
        except InputError as error:
            faults.append(STOPS + str(error).removesuffix("."))
    said = dict[str, str]()  # of the scan or, where it says nothing like it, of its labels
    for text in (str(one.message) for one in warned if one.category is UserWarning):
        kind = text.replace(str(case.image), "").replace(str(case.labels), "")
        said.setdefault(kind, text.removesuffix("."))
    faults += said.values()
    return seen


def _seen(case: Case) -> dict[str, Any]:
    """What `examine` sees in a case's files; kept in the cache under their hashes."""
    try:
        hashes = [(str(path), file_hash(path)) for path in (case.image, case.labels) if path]
    except OSError:
        return examine(case)  # which says what is wrong with the file
    key = [CHECK_VERSION, case.modality, list(label_ids(case.label_map).items()), hashes]
    return remembered(key, lambda: examine(case))


def _twins(found: dict[str, list[Case]], seen: dict[Path, dict[str, Any]]) -> Iterator[Fault]:
    """One scan under two names, by the hash of its voxels, and where these stand in two parts of a split."""
    splits = list[dict[Path, str]]()  # of each paper that finds cases enough: {image: its part}
    for settings in (settings_of(run, "full") for run in ("baseline", "unet")):
        own = found.get(settings.train_on, [])
        if len(own) >= sum(settings.cases):
            others = {*settings.test_on} - {settings.train_on}
            parts = {case.image: "test" for name in others for case in found.get(name, [])}
            drawn = split(own, settings.cases).items()
            splits.append(parts | {case.image: part for part, cases in drawn for case in cases})
    first = dict[str, Case]()
    for dataset, case in ((dataset, case) for dataset, cases in found.items() for case in cases):
        content = seen[case.image].get("content")
        if content and (twin := first.setdefault(content, case)) is not case:
            pairs = [(parts.get(twin.image), parts.get(case.image)) for parts in splits]
            apart = ", ".join(f"{one} and {other}" for one, other in pairs if one and other and one != other)
            what = f"stands in two splits ({apart}), for it" if apart else "is a duplicate: it"
            what = f"{case.image} {what} holds the same voxels as {twin.image}"
            yield dataset, case.id, f"{STOPS if apart else ''}{what}"


def _trainings(there: dict[str, int]) -> Iterator[str]:
    """Which runs on real scans find cases enough among those that are there: {data set: their number}."""
    runs = dict[tuple[str, str, int, int], list[str]]()
    for profile, run in product(DATA, RUNS):
        settings = settings_of(run, profile)
        if settings.train_on in LAYOUTS and profile != "proof":  # whose two steps give no number
            key = profile, settings.train_on, settings.folds, settings.folds or sum(settings.cases)
            runs.setdefault(key, []).append(run)
    for (profile, dataset, folds, needed), names in runs.items():
        can = "can" if there[dataset] >= needed else "cannot"
        found = f"{there[dataset]} of the {needed} cases of {dataset} are there"
        found = f"{there[dataset]} cases of {dataset} are there, for {folds} folds" if folds else found
        yield f"PROFILE={profile} {can} train {', '.join(names)}: {found}."


def check(jobs: int = -1) -> tuple[pd.DataFrame, list[str], list[Fault]]:
    """A row for each data set below DATA_ROOT; what is missing, what can be run; every fault of every case.

    A missing data set is no fault. jobs: processes; -1: one a core. InputError: there is no data set at all.
    """
    surveyed = {dataset: survey(dataset, home_of(dataset)) for dataset in LAYOUTS}
    if not any(cases or errors for cases, errors in surveyed.values()):
        wanted = ", ".join(dict.fromkeys(layout.folder for layout in LAYOUTS.values()))
        advice = "see data/README.md for their layouts, or name another DATA_ROOT."
        raise InputError(f"{data_root()} holds none of the data sets ({wanted}): {advice}")
    found = {dataset: cases for dataset, (cases, _) in surveyed.items()}
    every = [case for cases in found.values() for case in cases]
    work = Parallel(jobs, return_as="generator")(delayed(_seen)(case) for case in every)
    bar = tqdm(work, "checking scans", len(every), leave=False)
    seen = {case.image: one for case, one in zip(every, bar, strict=True)}
    faults, notes, rows = [*_twins(found, seen)], [], []
    for dataset, (cases, errors) in surveyed.items():
        faults += [(dataset, str(error), STOPS + str(error).removesuffix(".")) for error in errors]
        faults += [(dataset, case.id, what) for case in cases for what in seen[case.image]["faults"]]
        rows.append(row := {"data set": dataset, "folder": str(home_of(dataset))})
        if not (cases or errors):
            row["folder"] = f"not there: {row['folder']}"
            continue
        row["cases"] = f"{len(cases)} of {(whole := LAYOUTS[dataset].cases)}"
        drawn = (home_of(dataset) / ".drawn.json").is_file()  # by `make data`, from all of them
        if len(cases) < whole and not drawn:
            told = f"a test drawn from it holds other scans than one from all {whole}"
            notes.append(f"{dataset}: incomplete: {told}.")
        if read := [seen[case.image] for case in cases if "content" in seen[case.image]]:
            sizes = np.array([(one["slices"], one["spacing_mm"][0], one["spacing_mm"][2]) for one in read]).T
            for name, values in zip(("slices", "pixel mm", "slice mm"), sizes, strict=True):
                row[name] = "-".join(f"{value:.3g}" for value in sorted({values.min(), values.max()}))
            axes = pd.Series([one["axes"] for one in read]).value_counts()
            row["axes"] = ", ".join(f"{count} {name}" for name, count in axes.items())
            shown = {key for one in read for key in one.get("organs_ml", ())}
            row["organs"] = str(len(shown))
            if lacking := ", ".join(key for key in labelled(LAYOUTS[dataset].folder) if key not in shown):
                notes.append(f"{dataset}: no label file shows {lacking}: neither asked for nor scored.")
            if ends := [one["clipped_hu"] for one in read if "clipped_hu" in one]:
                told = f"{len(ends)} clipped CTs ({np.min(ends):g} to {np.max(ends):g} HU)"
                notes.append(f"{dataset}: {told}: harmless where the model's window ends there, too.")
        row["faults"] = str(sum(fault[0] == dataset for fault in faults))
    notes += _trainings({dataset: len(cases) for dataset, cases in found.items()})
    return pd.DataFrame(rows).fillna(""), notes, faults


def main() -> None:
    """Prints the table, what it lacks, every fault and the verdict; the exit status is 0 without a fault."""
    try:
        table, notes, faults = check()
    except InputError as error:
        sys.exit(f"data-check: {error}")
    notes.append("Any trained run can be scored on the cases that are there: make score RUN= IMAGES= LABELS=")
    notes += [f"{dataset}: {what}." for dataset, _, what in faults]
    print(table.to_string(index=False), *notes, sep="\n")
    count, within = len(faults), len({fault[:2] for fault in faults})
    stop = sum(what.startswith(STOPS) for *_, what in faults)
    found = f"{count} fault{'s'[: count > 1]} in {within} case{'s'[: within > 1]}"
    found += f", {stop} of which would stop a run"
    print(f"data-check: {found if faults else 'no fault found'}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
