"""A scan of your own: organs or free text in, a label map on the scan's own grid and volumes in ml out. Not a medical device."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.checkpoints import load_checkpoint, note_of
from lib.clipseg import TextPromptedSegmenter
from lib.datasets import Case, Store
from lib.dicom import DicomSeries, read_dicom
from lib.dicom_seg import write_segments
from lib.inference import slice_probabilities
from lib.organs import BY_KEY, PROMPTS
from lib.paths import InputError
from lib.profiles import Settings
from lib.volumes import Grid, read_scan, resize, to_slices, to_uint8, write_nifti
from lib.written import check_free, writing_into

LABELS, VOLUMES, SEGMENTS, OVERVIEW = "labels.nii.gz", "volumes.csv", "labels.dcm", "overview.png"
AIR_HU = -200  # no MRI goes below, every CT of a body with some air or gas does


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model says of one scan.

    labels: (A, B, C) uint8 on the scan's own `grid`: our id for an organ, 14 and on for other text, 0 where no prompt is over 0.5.
    grey: canonical (X, Y, Z) uint8, the scan as the model sees it.
    volumes: a row for each prompt: label, voxels and ml of its label; claimed_ml, with what a surer prompt has taken from it;
        cut, whether it reaches the scan's first or last axial slice, so that a part of it may lie outside.
    probabilities: (P, A, B, C) uint8, 255 for 1, on disk and read as needed; None if they were not asked for.
    """

    prompts: tuple[str, ...]
    grid: Grid
    labels: np.ndarray
    grey: np.ndarray
    volumes: pd.DataFrame
    modality: str
    note: str
    probabilities: np.ndarray | None = None
    files: tuple[Path, ...] = ()


def asked(prompts: Sequence[str] | str) -> tuple[str, ...]:
    """The prompts, organs by their keys, each once; a string is split at its commas.

    Raises:
        InputError: there is none, one is empty, or there are more than a label map of 8 bits holds.
    """
    parts = [" ".join(part.split()) for part in (prompts.split(",") if isinstance(prompts, str) else prompts)]
    names = tuple(dict.fromkeys(part.lower() if part.lower() in BY_KEY else part for part in parts))
    if not names or "" in names:
        raise InputError(f'{prompts!r} holds an empty prompt: name organs or any other text, such as "liver,left kidney,a bright vessel".')
    if len(names) > 242:
        raise InputError(f"{len(names)} prompts are more than the 242 that one label map holds: ask in several calls.")
    return names


def label_numbers(prompts: Sequence[str]) -> tuple[int, ...]:
    """The label of each prompt: an organ's own id, and 14, 15, ... for other text."""
    free = iter(range(14, 256))
    return tuple(BY_KEY[prompt].label if prompt in BY_KEY else next(free) for prompt in prompts)


def _is_nifti(scan: Path) -> bool:
    return scan.name.endswith((".nii", ".nii.gz"))


def read_any(scan: Path, series: str = "") -> tuple[np.ndarray, Grid, DicomSeries | None]:
    """Canonical voxels (X, Y, Z) and grid of a NIfTI file, or of a DICOM folder or file, of which the series comes with them.

    Raises:
        InputError: see `read_scan` and `read_dicom`.
    """
    if _is_nifti(scan):
        return *read_scan(scan), None
    voxels, found = read_dicom(scan, series)
    return voxels, found.grid, found


def _modality(scan: Path | str, voxels: np.ndarray, found: DicomSeries | None) -> str:
    """CT or MR, as DICOM says, or by the HU of air in a NIfTI file."""
    if found is None:
        return "CT" if voxels.min() < AIR_HU else "MR"
    if found.modality not in ("CT", "MR"):
        raise InputError(f"{scan} is a series of modality {found.modality!r}: give a CT or MRI, or say MODALITY=CT or MR if it is one.")
    return found.modality


def _store(voxels: np.ndarray, grid: Grid, modality: str, settings: Settings) -> tuple[Store, np.ndarray]:
    """The scan as the model's slices, in memory, and its grey values (X, Y, Z)."""
    grey = to_uint8(voxels, modality, settings)
    case = Case("scan", Path(), modality=modality)
    return Store(case.id, Path(), to_slices(grey, settings.size), None, grid, modality, None, case.label_map, case), grey


def _on_disk(shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes in a temporary file that vanishes with it, for what memory may not hold."""
    home, needed = tempfile.gettempdir(), math.prod(shape)
    if shutil.disk_usage(home).free < needed:  # else the process would be killed when the disk is full
        raise InputError(f"{home} has no room for {needed / 1e9:.1f} GB of probabilities: free some, or name another folder by TMPDIR.")
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _segment(
    model: TextPromptedSegmenter, store: Store, prompts: tuple[str, ...], settings: Settings, keep: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Canonical labels (X, Y, Z), voxels that each prompt claims (P,), and on request probabilities (P, X, Y, Z), 255 for 1.

    Goes through the scan by chunks of slices, and keeps one prompt's voxels of a chunk at a time.
    """
    columns, rows, depth = store.grid.canonical_shape
    labels, claimed, kept = np.zeros((depth, rows, columns), np.uint8), np.zeros(len(prompts), np.int64), None
    if keep:
        kept = _on_disk((len(prompts), depth, rows, columns))
    start = 0
    for chunk in slice_probabilities(model, store, list(prompts), settings):  # (P, C, S, S)
        part = slice(start, start := start + chunk.shape[1])
        surest = np.full((chunk.shape[1], rows, columns), 0.5, np.float32)
        for place, (label, slices) in enumerate(zip(label_numbers(prompts), chunk, strict=True)):
            found = resize(slices, rows, columns, nearest=False)
            claimed[place] += np.count_nonzero(found > 0.5)
            labels[part][found > surest] = label
            np.maximum(surest, found, out=surest)
            if kept is not None:
                kept[place, part] = np.rint(found * 255)
    return labels.T, claimed, None if kept is None else kept.transpose(0, 3, 2, 1)


def volumes_of(labels: np.ndarray, claimed: np.ndarray, prompts: Sequence[str], grid: Grid) -> pd.DataFrame:
    """Table of volumes (columns: see Segmentation) from canonical labels (X, Y, Z) and the (P,) voxels that each prompt claims."""
    voxel_ml = abs(np.linalg.det(grid.affine[:3, :3])) / 1000
    numbers = np.array(label_numbers(prompts))
    counts = np.array([np.bincount(labels[:, :, z].ravel(), minlength=256) for z in range(labels.shape[2])])[:, numbers]  # (Z, P)
    voxels, ends = counts.sum(0), counts[[0, -1]].sum(0)
    table = {"prompt": prompts, "label": numbers, "voxels": voxels, "ml": voxels * voxel_ml, "claimed_ml": claimed * voxel_ml}
    return pd.DataFrame(table | {"cut": ends > 0})


def segment_scan(
    scan: Path | str,
    prompts: Sequence[str] | str = PROMPTS,
    checkpoint: Path | str = "adapter",
    out: Path | str | None = None,
    *,
    profile: str | None = None,
    modality: str = "",
    series: str = "",
    probabilities: bool = False,
    overwrite: bool = False,
) -> Segmentation:
    """Segments a scan by text: a NIfTI file, or a folder of DICOM files.

    prompts: organs or any other text, as a sequence or a string with commas. checkpoint: see `load_checkpoint`. modality: "CT" or
    "MR"; else as DICOM says, or by the intensities of a NIfTI. series: which of several DICOM series (number, description or UID).
    out: a folder for labels.nii.gz, volumes.csv, with `probabilities` one file for each prompt, and labels.dcm of a DICOM scan;
    without it nothing is written. All are written or none. With `overwrite` they take the place of the results that were written
    there before, as written.json lists them; no other file is ever replaced or removed, least of all the scan.

    Raises:
        InputError: the scan, the prompts, the checkpoint or the folder are not as they must be.
    """
    names, folder = asked(prompts), None if out is None else Path(out)
    files = [LABELS, VOLUMES, *([] if _is_nifti(Path(scan)) else [SEGMENTS]), *(_probability_files(names) if probabilities else [])]
    if folder is not None:
        check_free(folder, [*files, OVERVIEW], overwrite, [Path(scan)])
    model, settings = load_checkpoint(checkpoint, profile)
    voxels, grid, found = read_any(Path(scan), series)
    modality = modality.upper() or _modality(scan, voxels, found)
    store, grey = _store(voxels, grid, modality, settings)
    del voxels
    labels, claimed, kept = _segment(model, store, names, settings, probabilities)
    note = note_of(settings)
    table = volumes_of(labels, claimed, names, grid).assign(modality=modality, model=str(checkpoint), profile=settings.profile, note=note)
    native = None if kept is None else np.moveaxis(grid.to_native(np.moveaxis(kept, 0, -1)), -1, 0)
    written = () if folder is None else tuple(folder / name for name in files)
    result = Segmentation(names, grid, grid.to_native(labels), grey, table, modality, note, native, written)
    if folder is not None:
        with writing_into(folder, overwrite) as part:
            _write(result, found, part)
    return result


def _probability_files(prompts: Sequence[str]) -> list[str]:
    """A name for each prompt, of its label and what a file name can hold of its text."""
    texts = ("".join(letter if letter.isalnum() else "_" for letter in prompt)[:60] for prompt in prompts)
    return [f"probability_{label:02d}_{text}.nii.gz" for label, text in zip(label_numbers(prompts), texts, strict=True)]


def _write(result: Segmentation, found: DicomSeries | None, folder: Path) -> None:
    """The files of a segmentation, into an empty folder."""
    write_nifti(result.labels, result.grid, folder / LABELS)
    if result.probabilities is not None:
        for name, probability in zip(_probability_files(result.prompts), result.probabilities, strict=True):
            write_nifti(probability, result.grid, folder / name, slope=1 / 255)
    result.volumes.to_csv(folder / VOLUMES, index=False, float_format="%.6g")
    if found is not None:
        names = list(zip(result.volumes["label"], result.prompts, strict=True))
        write_segments(result.labels, names, found, folder / SEGMENTS, result.volumes["model"].iat[0], result.note)
