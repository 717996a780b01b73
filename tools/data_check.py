"""`make data-check`: is every data set below DATA_ROOT complete and sound? One table, one verdict."""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from nibabel.orientations import aff2axcodes
from scipy import ndimage
from tqdm import tqdm

from lib.config import settings_of
from lib.data import LAYOUTS, Case, home_of, split, survey
from lib.files import InputError, cache_root, data_root, file_hash, value_hash, write_json
from lib.organs import KEYS, ORGANS, label_ids
from lib.volumes import Grid, read_labels, read_scan, readable

CHECK_VERSION = 2  # raise it whenever the same files would be judged otherwise
SPACING_MM = ((0.3, 5.0), (0.3, 5.0), (0.4, 12.0))  # plausible along x, y, z
EXTENT_MM = ((120, 900), (120, 900), (30, 2500))
PLANE = 0.05  # how far apart x and y may be in a CT, which is reconstructed on square pixels
TILT_DEGREES = 35.0  # of a gantry or an oblique MRI; beyond, an axis is nearer to none
CT_HAS_BELOW = -200  # HU: air or fat
MR_HAS_NOT_BELOW = -500
# Plausible volumes in ml, from a shrunken organ to a diseased one: each range's middle is textbook anatomy of
# adults. They catch wrong ids, units and spacings, and judge no patient. The lower end does not hold for an
# organ that the scan's first or last slice cuts.
VOLUMES_ML = {
    "liver": (300, 6000), "right kidney": (15, 1000), "spleen": (15, 4000), "pancreas": (5, 350),
    "aorta": (10, 800), "inferior vena cava": (5, 400), "right adrenal gland": (0.3, 60),
    "left adrenal gland": (0.3, 60), "gallbladder": (0.5, 500), "esophagus": (0.5, 200),
    "stomach": (15, 4000), "duodenum": (3, 500), "left kidney": (15, 1000),
}  # fmt: skip
SIDES = (  # canonical axis, (the organ further to the right, front or feet, the other), what is wrong
    (0, (("right kidney", "left kidney"), ("right adrenal gland", "left adrenal gland"), ("liver", "spleen")),
     "left and right are swapped"),
    (1, (("pancreas", "aorta"), ("stomach", "aorta"), ("liver", "aorta")), "front and back are swapped"),
    (2, (("right kidney", "liver"), ("left kidney", "spleen"), ("right kidney", "esophagus"),
         ("left kidney", "esophagus")), "head and feet are swapped"),
)  # fmt: skip


class Fault(NamedTuple):
    """What is wrong with one case, as a sentence without its end."""

    dataset: str
    case: str
    what: str


# One case: its grid, its grey values, and the anatomy that its labels show


def content_of(voxels: np.ndarray) -> str:
    """SHA-256 of canonical voxels: the same in another compression, number type or orientation."""
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
            sizes = " x ".join(f"{value:.4g}" for value in values)
            yield f"its {what} of {sizes} mm are implausible: its spacing may be wrong"
            return
    if modality == "CT" and abs(spacing[0] / spacing[1] - 1) > PLANE:
        pixels = f"its pixels of {spacing[0]:.3g} x {spacing[1]:.3g} mm are not square, as a CT's are"
        yield f"{pixels}: its axes may be exchanged"
    axes = np.abs(grid.affine[:3, :3]) / np.linalg.norm(grid.affine[:3, :3], axis=0)
    if (tilt := np.degrees(np.arccos(min(1.0, axes.max(0).min())))) > TILT_DEGREES:
        yield f"its axes are turned by {tilt:.0f} degrees: which is the patient's left is unclear"


def _grey_faults(voxels: np.ndarray, modality: str) -> Iterator[str]:
    """A CT that is not in HU, or an MRI that is: the number of the case may stand for the other modality."""
    lowest = float(voxels.min())
    if modality == "CT" and lowest > CT_HAS_BELOW:
        why = "where a CT in HU has air: it is not in HU, or an MRI under a CT's number"
        yield f"its lowest value is {lowest:g}, {why}"
    if modality == "MR" and lowest < MR_HAS_NOT_BELOW:
        yield f"its lowest value is {lowest:g}, as a CT in HU has it, and its number is an MRI's"


def _volume_faults(labels: np.ndarray, organs_ml: dict[str, float]) -> Iterator[str]:
    cut = {KEYS[label - 1] for label in np.unique(labels[:, :, [0, -1]]) if label}
    wrong = []
    for key, ml in organs_ml.items():
        low, high = VOLUMES_ML[key]
        if ml > high or (ml < low and key not in cut):
            wrong.append(f"{key} {ml:.3g} ml, not {low:g} to {high:g}")
    if wrong:
        yield f"organs out of their anatomical range: {'; '.join(wrong)}"
    if not organs_ml:
        yield "its labels show none of the 13 organs"


def _side_faults(labels: np.ndarray) -> Iterator[str]:
    """Organs on the wrong side of each other. Front and feet need all pairs: single organs may hang."""
    boxes = ndimage.find_objects(labels, len(ORGANS))
    centres = {  # in canonical voxels, of the organs that are there
        organ.key: np.add([edge.start for edge in box], ndimage.center_of_mass(labels[box] == organ.label))
        for organ, box in zip(ORGANS, boxes, strict=True) if box
    }  # fmt: skip
    for axis, pairs, what in SIDES:
        there = [pair for pair in pairs if centres.keys() >= {*pair}]
        wrong = [pair for pair in there if centres[pair[0]][axis] > centres[pair[1]][axis]]
        if wrong and (axis == 0 or len(wrong) == len(there) > 1):
            yield f"{what}: {', '.join(' / '.join(pair) for pair in wrong)}"


def _looked_at(case: Case, seen: dict[str, Any]) -> Iterator[str]:
    """Faults of a case; what its files hold goes into `seen`. InputError: a file cannot be read."""
    assert case.labels is not None
    voxels, grid = read_scan(case.image)
    seen |= {"content": content_of(voxels), "slices": grid.canonical_shape[2], "spacing_mm": grid.spacing_mm}
    seen["axes"] = "".join(aff2axcodes(grid.affine))
    lengths = [*_grid_faults(grid, case.modality)]
    yield from (f"{case.image}: {what}" for what in (*lengths, *_grey_faults(voxels, case.modality)))
    labels = read_labels(case.labels, case.label_map, grid)
    counts = np.bincount(labels.ravel(), minlength=len(KEYS) + 1) * float(np.prod(grid.spacing_mm)) / 1000
    seen["organs_ml"] = {organ.key: float(counts[organ.label]) for organ in ORGANS if counts[organ.label]}
    volumes = [] if lengths else _volume_faults(labels, seen["organs_ml"])
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
    guessed = [str(one.message) for one in warned if "left and right" in str(one.message)]  # by both
    seen["faults"] += [message.removesuffix(".") for message in guessed[:1]]
    return seen


# All cases


def _seen(case: Case) -> dict[str, Any]:
    """What `examine` sees in a case's files; kept in the cache under their hashes."""
    key: list[Any] = [CHECK_VERSION, case.modality, list(label_ids(case.label_map).items())]
    try:
        for path in filter(None, (case.image, case.labels)):
            with readable(path):
                key += [str(path), file_hash(path)]
    except InputError as error:
        return {"faults": [str(error).removesuffix(".")]}
    record = cache_root() / "checked" / f"{value_hash(key)}.json"
    with suppress(OSError, ValueError):
        return json.loads(record.read_text())
    write_json(record, seen := examine(case))
    return seen


def _parts(found: dict[str, list[Case]]) -> Iterator[dict[Path, str]]:
    """{image: its part of the split} for each of the two papers that finds cases enough."""
    for run in ("baseline", "unet"):
        settings = settings_of(run, "full")
        own = found.get(settings.train_on, [])
        if len(own) >= sum(settings.cases):
            others = {*settings.test_on} - {settings.train_on}
            tested = {case.image: "test" for name in others for case in found.get(name, [])}
            drawn = split(own, settings.cases).items()
            yield tested | {case.image: part for part, cases in drawn for case in cases}


def _twins(found: dict[str, list[Case]], seen: dict[Path, dict[str, Any]]) -> Iterator[Fault]:
    """One scan under two names, by the hash of its voxels, and where these stand in two parts of a split."""
    first, splits = dict[str, Case](), [*_parts(found)]
    for dataset, case in ((dataset, case) for dataset, cases in found.items() for case in cases):
        content = seen[case.image].get("content")
        if not content or (twin := first.setdefault(content, case)) is case:
            continue
        pairs = [(parts.get(twin.image), parts.get(case.image)) for parts in splits]
        apart = ", ".join(f"{one} and {other}" for one, other in pairs if one and other and one != other)
        what = f"stands in two splits ({apart}), for it" if apart else "is a duplicate: it"
        yield Fault(dataset, case.id, f"{case.image} {what} holds the same voxels as {twin.image}")


def _span(values: Iterable[float]) -> str:
    low, high = min(values := [*values]), max(values)
    return f"{low:.3g}-{high:.3g}" if low < high else f"{low:.3g}"


def _row(dataset: str, cases: list[Case], seen: list[dict[str, Any]], faults: int) -> dict[str, str]:
    """A data set's line of the table."""
    row = {"data set": dataset, "folder": str(home_of(dataset))}
    row["cases"] = f"{len(cases)} of {LAYOUTS[dataset].cases}"
    if read := [one for one in seen if "content" in one]:
        axes = pd.Series([one["axes"] for one in read]).value_counts()
        row["slices"] = _span(one["slices"] for one in read)
        row["pixel mm"] = _span(one["spacing_mm"][0] for one in read)
        row["slice mm"] = _span(one["spacing_mm"][2] for one in read)
        row["axes"] = ", ".join(f"{count} {name}" for name, count in axes.items())
        row["organs"] = str(len({key for one in read for key in one.get("organs_ml", ())}))
    return row | {"faults": str(faults)}


def check(jobs: int = 0) -> tuple[pd.DataFrame, list[Fault]]:
    """A row for each data set below DATA_ROOT, and every fault of every case. A missing data set is no fault.

    jobs: processes, by default one for each core. InputError: DATA_ROOT is no folder, or holds no data set.
    """
    root = data_root()
    if not root.is_dir():
        what = "no folder" if root.exists() else "not there"
        raise InputError(f"DATA_ROOT names {root}, which is {what}: name the folder of the data sets.")
    surveyed = {dataset: survey(dataset, home_of(dataset)) for dataset in LAYOUTS}
    if not any(cases or errors for cases, errors in surveyed.values()):
        wanted = ", ".join(dict.fromkeys(layout.folder for layout in LAYOUTS.values()))
        advice = "see data/README.md for their layouts, or name another DATA_ROOT."
        raise InputError(f"{root} holds none of the data sets ({wanted}): {advice}")
    found = {dataset: cases for dataset, (cases, _) in surveyed.items()}
    every = [case for cases in found.values() for case in cases]
    work = Parallel(jobs or -1, return_as="generator")(delayed(_seen)(case) for case in every)
    bar = tqdm(work, "checking scans", len(every), leave=False)
    seen = {case.image: one for case, one in zip(every, bar, strict=True)}
    faults, rows = [], []
    for dataset, (cases, errors) in surveyed.items():
        faults += [Fault(dataset, "", str(error).removesuffix(".")) for error in errors]
        faults += [Fault(dataset, case.id, what) for case in cases for what in seen[case.image]["faults"]]
    faults += _twins(found, seen)
    for dataset, (cases, errors) in surveyed.items():
        if cases or errors:
            own = [fault for fault in faults if fault.dataset == dataset]
            rows.append(_row(dataset, cases, [seen[case.image] for case in cases], len(own)))
        else:
            rows.append({"data set": dataset, "folder": f"not there: {home_of(dataset)}"})
    return pd.DataFrame(rows).fillna(""), faults


def main() -> None:
    """Prints the table, every fault and the verdict; the exit status is 0 where there is no fault."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--jobs", type=int, default=0, help="processes (default: one for each core)")
    try:
        table, faults = check(parser.parse_args().jobs)
    except InputError as error:
        sys.exit(f"data-check: {error}")
    print(table.to_string(index=False))
    for fault in faults:
        print(f"{fault.dataset}: {fault.what}.")
    count, within = len(faults), len({(fault.dataset, fault.case or fault.what) for fault in faults})
    found = f"{count} fault{'s'[: count > 1]} in {within} case{'s'[: within > 1]}"
    print(f"data-check: {found if faults else 'no fault found'}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
