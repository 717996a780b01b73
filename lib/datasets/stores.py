"""Prepared scans: one memory-mapped uint8 array each for image and labels."""

import io
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.datasets.parallel import cores, in_processes, place
from lib.organs import ORGANS, label_ids
from lib.paths import InputError, clear_parts, file_hash, locked, replacing, value_hash, write_json
from lib.profiles import Settings
from lib.volumes import Grid, foreground, read_labels, read_scan, readable, resize, to_slices, to_uint8

Job = tuple["Case", Settings, Path, dict[str, Any]]  # a case, its settings, the store's folder, and what the store depends on
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
    """One prepared case. Arrays stay on disk and are read slice by slice; Z is the scan's own number of slices, S the model size.

    Prepared with `slice_mm` or `crop`, the slices fill the `box` of the scan, and Z is what fits there.
    """

    id: str
    folder: Path
    image: np.ndarray  # (Z, S, S) uint8, rows first
    labels: np.ndarray | None  # (Z, S, S) uint8, our label ids; None: no truth
    grid: Grid
    modality: str
    presence: np.ndarray | None  # (Z, 14) pixels of each label id 0..13 in every slice
    label_map: str
    source: Case
    box: tuple[slice, ...] | None = None  # of canonical voxels; None: the whole scan, slice by slice
    donor: np.ndarray | None = None  # (Z', S, S) of another patient, whose slices are rows Z, Z + 1, ... of a window (a control)

    @property
    def spacing_mm(self) -> float:
        """Distance of neighbouring slices."""
        return self.grid.spacing_mm[2]

    @property
    def content(self) -> str:
        """SHA-256 of the prepared slices: finds one scan under two names, compressed or turned otherwise."""
        return file_hash(self.folder / "image.npy")

    def slices(self, rows: np.ndarray) -> np.ndarray:
        """(K,) rows of windows -> (K, S, S) uint8."""
        own = len(self.image)
        out = np.asarray(self.image[np.minimum(rows, own - 1)])
        if self.donor is not None and (theirs := rows >= own).any():
            out[theirs] = self.donor[rows[theirs] - own]
        return out


def _key(case: Case, settings: Settings) -> dict[str, Any]:
    """Everything that a store depends on, as JSON holds it."""
    key = {"version": STORE_VERSION, "id": case.id, "modality": case.modality, "label_map": case.label_map}
    key |= {"size": settings.size, "ct_window_hu": list(settings.ct_window_hu), "mr_percentiles": list(settings.mr_percentiles)}
    key |= {name: value for name, value in (("slice_mm", settings.slice_mm), ("crop", settings.crop)) if value}
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
        shape = (record.get("slices", grid.canonical_shape[2]), settings.size, settings.size)
        resampled = (record.get("slice_mm", 0), record.get("crop", False))  # which a key without them does not name
        if not key.items() <= record.items() or resampled != (settings.slice_mm, settings.crop):
            return None
        if any(array.shape != shape for array in (image, labels) if array is not None):
            return None
    except (OSError, EOFError, ValueError, KeyError, TypeError):  # missing, cut short or damaged
        return None
    presence = None if labels is None else np.array(record["presence"])
    box = tuple(slice(*edges) for edges in record["box"]) if "box" in record else None
    return Store(case.id, home, image, labels, grid, case.modality, presence, case.label_map, case, box)


def _pictures(volume: np.ndarray, box: tuple[slice, ...], spacing_mm: float, settings: Settings, labels: bool) -> np.ndarray:
    """(Z, S, S) slices of a canonical volume's box, resampled to `slice_mm` along z where the settings say so."""
    pictures = to_slices(volume[box], settings.size, labels)
    if not settings.slice_mm:
        return pictures
    count = max(1, round(len(pictures) * spacing_mm / settings.slice_mm))
    along = resize(pictures.transpose(1, 2, 0), settings.size, count, labels)  # (S, S, Z)
    return np.ascontiguousarray(along.transpose(2, 0, 1))


def _build(job: Job) -> None:
    """Makes the store, unless another process has while this one waited for it."""
    with locked(lock := job[2] / "preparing.lock"):
        try:
            if _open(*job) is None:
                _write(*job)
        finally:
            with suppress(OSError):  # the folder may not be writable
                lock.unlink()  # who waits for it, or comes now with a lock of its own, finds the store


def _write(case: Case, settings: Settings, home: Path, key: dict[str, Any]) -> None:
    """Makes the store in `home`. An older case.json goes first, the new one comes last: it marks the arrays as complete."""
    clear_parts(home)
    voxels, grid = read_scan(case.image)
    grey = to_uint8(voxels, case.modality, settings)
    box = foreground(grey) if settings.crop else tuple(slice(0, edge) for edge in grid.canonical_shape)
    arrays = {"image": _pictures(grey, box, grid.spacing_mm[2], settings, labels=False)}
    if case.labels:
        truth = read_labels(case.labels, case.label_map, grid)
        arrays["labels"] = _pictures(truth, box, grid.spacing_mm[2], settings, labels=True)
    presence = [np.bincount(picture.ravel(), minlength=len(ORGANS) + 1).tolist() for picture in arrays.get("labels", ())]
    for name, array in arrays.items():
        with replacing(home / f"{name}.npy") as part:
            for old in ("case.json", "labels.npy") if name == "image" else ():
                (home / old).unlink(missing_ok=True)
            np.save(buffer := io.BytesIO(), array)  # straight to a file, np.save overlooks a disk that fills in its last 4 kB
            part.write_bytes(buffer.getbuffer())
    geometry: dict[str, Any] = {"shape": grid.shape, "affine": grid.affine.tolist(), "spacing_mm": grid.spacing_mm}
    if settings.crop or settings.slice_mm:
        geometry |= {"box": [[edges.start, edges.stop] for edges in box], "slices": len(arrays["image"])}
    write_json(home / "case.json", {**key, **geometry, "presence": presence})


def prepare(case: Case, settings: Settings, folder: Path) -> Store:
    """The case's store in `folder`/<id>, made unless it is there for these settings and source files; errors of `prepare_all`."""
    return prepare_all([case], settings, folder, jobs=1, progress=False)[0]


def prepare_all(cases: Sequence[Case], settings: Settings, folder: Path, jobs: int | None = None, progress: bool = True) -> list[Store]:
    """The stores of all cases, in order; the missing ones are made in `jobs` processes (default: by the cores and the work).

    Processes of `accelerate launch`, and others that want the same, share the work: each begins elsewhere and leaves out what is made.
    A script that calls this with several jobs needs `if __name__ == "__main__"`; a notebook does not. InputError: bad input
    (see `read_scan`, `read_labels`) or settings, the folder cannot be written, or two cases share an id.
    """
    if len({case.id for case in cases}) < len(cases):
        raise InputError(f"Two of the cases {', '.join(case.id for case in cases)} share an id: give every scan its own.")
    every = [(case, settings, Path(folder) / case.id, _key(case, settings)) for case in cases]
    todo = [job for job in every if _open(*job) is None]
    number, count = place()
    first = len(todo) * number // count
    # a process takes seconds to start, in which 100 MB of scans are prepared
    jobs = jobs or math.ceil(min(cores(), sum(os.path.getsize(job[0].image) for job in todo) / count / 1e8))
    in_processes(_build, [*todo[first:], *todo[:first]], "preparing scans", jobs, progress and number == 0)
    stores = [store for job in every if (store := _open(*job)) is not None]
    if len(stores) < len(every):
        raise InputError(f"{folder} is being changed by another run with other settings: wait for it, or set another CACHE_ROOT.")
    return stores
