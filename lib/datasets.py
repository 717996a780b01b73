"""Which scans a profile uses, in which split, and their prepared stores: one memory-mapped uint8 array each for image and labels."""

import io
import json
import math
import multiprocessing
import os
import random
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from filelock import FileLock
from tqdm.auto import tqdm

from lib.organs import ORGANS
from lib.paths import InputError, cache_root, data_root, file_hash, replacing, samples_folder, value_hash, write_json
from lib.phantoms import SITES, write_cohort
from lib.profiles import Settings
from lib.volumes import Grid, label_ids, read_labels, read_scan, readable, to_slices, to_uint8

STORE_VERSION = 1  # raise it whenever the same scan and settings would give other arrays


@dataclass(frozen=True)
class Case:
    """One scan on disk and, where it is known, its truth. `modality` is "CT" or "MR", `label_map` a key of LABEL_MAPS."""

    id: str
    image: Path
    labels: Path | None = None
    label_map: str = "FLARE22"
    modality: str = "CT"


@dataclass(frozen=True, eq=False)
class Store:
    """One prepared case. Arrays stay on disk and are read slice by slice; Z is the scan's own number of slices, S the model size."""

    id: str
    folder: Path
    image: np.ndarray  # (Z, S, S) uint8, rows first
    labels: np.ndarray | None  # (Z, S, S) uint8, our label ids; None: no truth
    grid: Grid
    modality: str
    presence: np.ndarray | None  # (Z, 14) pixels of each label id 0..13 in every slice
    label_map: str
    source: Case


def _key(case: Case, settings: Settings) -> dict[str, Any]:
    """Everything that a store depends on, as JSON holds it."""
    key = {"version": STORE_VERSION, "id": case.id, "modality": case.modality, "label_map": case.label_map}
    key |= {"size": settings.size, "ct_window_hu": list(settings.ct_window_hu), "mr_percentiles": list(settings.mr_percentiles)}
    for name, path in (("image", case.image), ("labels", case.labels)):
        if path is not None:
            with readable(Path(path)):
                key[f"{name}_sha256"] = file_hash(path)
    return key | {"label_ids": value_hash(list(label_ids(case.label_map).items())), "labelled": case.labels is not None}


def _open(case: Case, settings: Settings, home: Path, key: dict[str, Any]) -> Store | None:
    """The store in `home` if it is complete and made with `key`; None where it must be made (again)."""
    try:
        record = json.loads((home / "case.json").read_text())
        grid = Grid(tuple(record["shape"]), np.array(record["affine"]))
        image = np.load(home / "image.npy", mmap_mode="r")
        labels = np.load(home / "labels.npy", mmap_mode="r") if case.labels else None
        shape = (grid.canonical_shape[2], settings.size, settings.size)
        if not key.items() <= record.items() or any(array.shape != shape for array in (image, labels) if array is not None):
            return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # missing, cut short or damaged
        return None
    presence = None if labels is None else np.array(record["presence"])
    return Store(case.id, home, image, labels, grid, case.modality, presence, case.label_map, case)


def _build(job: tuple[Case, Settings, Path, dict[str, Any]]) -> None:
    """Makes the store in `home`. An older case.json goes first, the new one comes last: it marks the arrays as complete."""
    case, settings, home, key = job
    voxels, grid = read_scan(case.image)
    arrays = {"image": to_slices(to_uint8(voxels, case.modality, settings), settings.size)}
    if case.labels:
        arrays["labels"] = to_slices(read_labels(case.labels, case.label_map, grid), settings.size, labels=True)
    presence = [np.bincount(picture.ravel(), minlength=len(ORGANS) + 1).tolist() for picture in arrays.get("labels", ())]
    for name, array in arrays.items():
        with replacing(home / f"{name}.npy") as part:
            for old in ("case.json", "labels.npy") if name == "image" else ():
                (home / old).unlink(missing_ok=True)
            np.save(buffer := io.BytesIO(), array)  # straight to a file, np.save overlooks a disk that fills in its last 4 kB
            part.write_bytes(buffer.getbuffer())
    geometry = {"shape": grid.shape, "affine": grid.affine.tolist(), "spacing_mm": grid.spacing_mm}
    write_json(home / "case.json", {**key, **geometry, "presence": presence})


def prepare(case: Case, settings: Settings, folder: Path) -> Store:
    """The case's store in `folder`/<id>, made unless it is there for these settings and source files; errors of `prepare_all`."""
    return prepare_all([case], settings, folder, jobs=1, progress=False)[0]


def prepare_all(cases: Sequence[Case], settings: Settings, folder: Path, jobs: int | None = None, progress: bool = True) -> list[Store]:
    """The stores of all cases, in order; the missing ones are made in `jobs` processes (default: by the cores and the work).

    A script that calls this with several jobs needs `if __name__ == "__main__"`; a notebook does not. InputError: bad input
    (see `read_scan`, `read_labels`) or settings, the folder cannot be written, or two cases share an id.
    """
    if len({case.id for case in cases}) < len(cases):
        raise InputError(f"Two of the cases {', '.join(case.id for case in cases)} share an id: give every scan its own.")
    every = [(case, settings, Path(folder) / case.id, _key(case, settings)) for case in cases]
    todo = [job for job in every if _open(*job) is None]
    # a process takes seconds to start, in which 100 MB of scans are prepared
    jobs = jobs or min(os.cpu_count() or 1, len(todo), math.ceil(sum(os.path.getsize(job[0].image) for job in todo) / 1e8))
    bar: dict[str, Any] = {"total": len(todo), "desc": "preparing scans", "leave": False} | ({} if progress and todo else {"disable": True})
    if todo and jobs > 1:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            list(tqdm(pool.map(_build, todo), **bar))
    else:
        list(tqdm(map(_build, todo), **bar))
    stores = [store for job in every if (store := _open(*job)) is not None]
    if len(stores) < len(every):
        raise InputError(f"{folder} is being changed by another run with other settings: wait for it, or set another CACHE_ROOT.")
    return stores


# Data set: (folder of the images, file name with the case's id, name of its labels' file, folder of the labels)
LAYOUTS = {"FLARE22": ("images", re.compile(r"(FLARE22_Tr_\d+)_0000\.nii(\.gz)?"), "labels")}


def find_cases(dataset: str, root: Path) -> list[Case]:
    """All labelled cases of a data set below `root`, in its own layout, sorted by id.

    Raises:
        InputError: the data set has no layout here, there is no image in the folder, or an image has no labels.
    """
    if dataset not in LAYOUTS:
        raise InputError(f"{dataset} is no data set of this profile: choose one of {', '.join(LAYOUTS)}.")
    images, pattern, labels = LAYOUTS[dataset]
    found = {}
    for path in sorted((root / images).glob("*.nii*")):
        if match := pattern.fullmatch(path.name):
            truth = [root / labels / f"{match[1]}{suffix}" for suffix in (".nii.gz", ".nii")]
            if not any(file.exists() for file in truth):
                raise InputError(f"{path} has no labels ({truth[0]} does not exist): complete the data set, or take the image out of it.")
            found[match[1]] = Case(match[1], path, next(file for file in truth if file.exists()), dataset)
    if not found:
        example = f"{images}/FLARE22_Tr_0001_0000.nii.gz and {labels}/FLARE22_Tr_0001.nii.gz"
        raise InputError(f"{root} holds no case of {dataset}: put {example} and so on there, or name another folder by DATA_ROOT.")
    return list(found.values())


def phantom_cases(dataset: str, count: int, settings: Settings) -> list[Case]:
    """Cases of a procedural cohort, written first if they are not in the cache."""
    site = SITES[dataset]
    coarser = settings.phantom_voxels
    site = replace(
        site,
        shape=tuple(np.rint(np.divide(site.shape, coarser)).astype(int).tolist()),
        spacing_mm=tuple(np.multiply(site.spacing_mm, coarser).tolist()),
        degraded=settings.degraded if site.degraded else 0.0,
    )
    folder = cache_root() / "phantoms" / f"{dataset.replace(' ', '_')}-{value_hash([asdict(site), count])}"
    cases = find_cases("FLARE22", write_cohort(site, count, folder))
    prefix = dataset.replace(" ", "_")
    return [replace(c, id=f"{prefix}_{c.id[-4:]}", label_map=site.label_map, modality=site.modality) for c in cases]


def degraded_slices(case: Case) -> set[int]:
    """Slices of a phantom, counted from the feet, that were spoiled on purpose; empty for a real scan."""
    cohort = case.image.parents[1] / "cohort.json"
    return set(json.loads(cohort.read_text())["degraded_slices"][str(int(case.id[-4:]))]) if cohort.exists() else set()


def sample_cases() -> dict[str, list[Case]]:
    """The real sample scans: the CT in eight slabs that all show organs (four to train, one to validate, three to test), and the MRI."""
    source, folder = samples_folder(), cache_root() / "samples"
    scans = {kind: nib.Nifti1Image.from_filename(source / f"ct_{kind}.nii.gz") for kind in ("image", "labels")}
    truth = read_labels(source / "ct_labels.nii.gz", "TotalSegmentator", read_scan(source / "ct_image.nii.gz")[1])
    shown = np.flatnonzero(truth.any((0, 1)))  # the stored axis runs to the head, as the canonical one does
    edges = [0, *np.linspace(shown[0], shown[-1] + 1, 9).astype(int)[1:-1], truth.shape[2]]
    slabs = []
    for kind, scan in scans.items():
        for number, (start, stop) in enumerate(pairwise(edges)):
            path = folder / f"ct_{kind}_slab{number}_{start}_{stop}.nii.gz"
            if not path.exists():
                with replacing(path) as part:
                    nib.save(scan.slicer[:, :, start:stop], part)
    for number, (start, stop) in enumerate(pairwise(edges)):
        image, labels = (folder / f"ct_{kind}_slab{number}_{start}_{stop}.nii.gz" for kind in scans)
        slabs.append(Case(f"ct_slab{number}", image, labels, "TotalSegmentator"))
    mri = Case("mr", source / "mr_image.nii.gz", source / "mr_labels.nii.gz", "TotalSegmentatorMR", "MR")
    return {"training": slabs[::2], "validation": [slabs[5]], "sample CT": [slabs[1], slabs[3], slabs[7]], "sample MRI": [mri]}


def split(cases: list[Case], counts: tuple[int, int, int]) -> dict[str, list[Case]]:
    """Training, validation and test cases, drawn as the released code of T-Gated draws them (the paper gives no lists).

    Raises:
        InputError: there are fewer cases than the split asks for.
    """
    if len(cases) < sum(counts):
        raise InputError(f"{cases[0].image.parent} holds {len(cases)} cases where {sum(counts)} are split {counts}: complete the data set.")
    shuffled = sorted(cases, key=lambda case: case.image.name)
    random.Random(42).shuffle(shuffled)
    edges = np.cumsum([0, *counts])
    names = ("training", "validation", "test")
    return {name: shuffled[start:stop] for name, (start, stop) in zip(names, pairwise(edges), strict=True)}


def cases_of(settings: Settings, part: str) -> list[Case]:
    """The cases of a part of the profile: "training", "validation", or the name of a data set to test on."""
    if settings.train_on == "samples":
        return sample_cases()[part]
    dataset = settings.train_on if part in ("training", "validation") else part
    if settings.phantoms:
        cases = phantom_cases(dataset, sum(settings.cases) if dataset == settings.train_on else settings.cases[2], settings)
    else:
        cases = find_cases(dataset, data_root() / dataset)
    if dataset != settings.train_on:
        return cases
    return split(cases, settings.cases)["test" if part == dataset else part]


def stores_of(settings: Settings, part: str) -> list[Store]:
    """Prepared stores of `cases_of`, in the cache, in a folder of the settings that they were made with."""
    made_with = value_hash([settings.size, settings.ct_window_hu, settings.mr_percentiles])
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "preparing.lock"):  # two runs that start at once would make the same files
        return prepare_all(cases_of(settings, part), settings, root / "stores" / f"{settings.size}px-{made_with}")
