"""A scan of your own: organs or free text in, a label map on the scan's own grid and volumes in ml out.

Not a medical device. Options are variables in the environment, as make hands them on, or words like these:
python -m tools.segment SCAN=ct.nii.gz OUT=found PROMPTS="liver,a bright vessel" CHECKPOINT=adapter
PROFILE=demo MODALITY=CT SERIES=2 PROBABILITIES=1 OVERWRITE=1
"""

import json
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lib.clipseg import TextPromptedSegmenter, build, load_weights
from lib.config import ClipSegSettings, run_folder, settings_of
from lib.data import Case, Store
from lib.figures import slice_overlay, spread
from lib.files import InputError
from lib.inference import slice_probabilities
from lib.organs import BY_KEY, PROMPTS
from lib.training import processes
from lib.volumes import Grid, read_scan, resize, to_slices, to_uint8, write_nifti
from tools.dicom import DicomSeries, read_dicom, write_segments
from tools.written import check_free, writing_into

AIR_HU, AIR_SHARE = -200, 0.001  # a NIfTI with more voxels than this share below -200 is taken for a CT
OTHERS = ("#ff3df2", "#b6ff00", "#2b6bff", "#ffaa00")  # colours of free text: no organ's
AS_RELEASED: dict[str, Any] = {  # the adapter of the released code, whose checkpoint is a .pt
    "neighbours": "manifest", "decoder_inputs": "last", "gate_first": True, "frozen_embeddings": True,
    "penalty_on": "bias", "clip_norm": 0.5, "negatives": "empty", "negatives_per_positive": 0.04,
    "balance": "released", "validation": "augmented slices", "mirror": "front-back",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model says of one scan.

    labels: (A, B, C) uint8 on the scan's own `grid`: an organ's id, 14 and on for other text, 0 for neither.
    grey: canonical (X, Y, Z) uint8, the scan as the model sees it.
    volumes: a row for each prompt: label, its voxels and ml; claimed_ml, with what a surer prompt took;
        cut, whether it reaches the first or last axial slice, so that a part of it may lie outside.
    probabilities: (P, A, B, C) uint8, 255 for 1, on disk; None if they were not asked for.
    """

    prompts: tuple[str, ...]
    grid: Grid
    labels: np.ndarray
    grey: np.ndarray
    volumes: pd.DataFrame
    modality: str
    note: str
    probabilities: np.ndarray | None = None

    @property
    def names(self) -> dict[int, str]:
        """{label: prompt}."""
        return dict(zip(label_numbers(self.prompts), self.prompts, strict=True))


def load_checkpoint(checkpoint: Path | str, profile: str) -> tuple[TextPromptedSegmenter, ClipSegSettings]:
    """A finished run by its name or folder, safetensors with a config.json beside them, or a released .pt.

    Raises:
        InputError: there is no such checkpoint, its run is not finished, its files do not fit, or it takes no
            text.
    """
    path = Path(checkpoint).expanduser()
    advice = "train it (`make paper`), or name weights that have their config.json beside them by CHECKPOINT."
    if not path.exists() and (len(path.parts) > 1 or path.suffix in (".pt", ".pth", ".safetensors")):
        raise InputError(f"{path} does not exist: {advice}")
    if path.suffix in (".pt", ".pth"):
        settings, weights = settings_of("adapter", "full", **AS_RELEASED | {"weights": str(path)}), path
    else:
        folder = run_folder(str(checkpoint), profile)
        folder = path.parent if path.is_file() else path if path.is_dir() else folder
        weights = path if path.is_file() else folder / "best.safetensors"
        settings = _settings_in(folder / "config.json", weights, advice, ended=weights != path)
    model = build(settings)
    load_weights(model, weights)
    return model.to(processes().device), settings


def _settings_in(config: Path, weights: Path, advice: str, ended: bool) -> ClipSegSettings:
    """Settings out of a config.json, of a run that has to have `ended`."""
    if not (config.is_file() and weights.is_file()):
        raise InputError(f"{config.parent} holds no trained model: {advice}")
    try:
        record = json.loads(config.read_text(encoding="utf-8"))
        stored = record["settings"]
        values: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
        takes_text = "adapter" in values and not values.get("align")
        settings = ClipSegSettings(**values) if takes_text else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"is not the configuration of a run of this version ({error})"
        advice = "take the one that was saved with the weights, or train anew."
        raise InputError(f"{config} {fault}: {advice}") from error
    if settings is None:
        raise InputError(f"{config.parent} is a model that takes no prompts: name a baseline or an adapter.")
    if ended and "finished" not in record:
        raise InputError(f"{config.parent} is a run whose training has not ended: {advice}")
    return settings


def note_of(settings: ClipSegSettings) -> str:
    """What a segmentation by this model can claim: stands in the table and over the picture."""
    if settings.train_on == "samples":
        return "trained on slabs of one CT: no claim about accuracy"
    if settings.phantoms:
        return "trained on phantoms: not for real scans"
    return "research only: not a medical device"


def asked(prompts: Sequence[str] | str) -> tuple[str, ...]:
    """The prompts, organs by their keys, each once; a string is split at its commas.

    InputError: there is none, one is empty, or there are more than a label map of 8 bits holds.
    """
    parts = [" ".join(part.split()) for part in (prompts.split(",") if isinstance(prompts, str) else prompts)]
    names = tuple(dict.fromkeys(part.lower() if part.lower() in BY_KEY else part for part in parts))
    if not names or "" in names:
        raise InputError(f'{prompts!r} holds an empty prompt: give text as in "liver,a bright vessel".')
    if len(names) > 242:
        raise InputError(f"{len(names)} prompts are more than the 242 of a label map: ask several times.")
    return names


def label_numbers(prompts: Sequence[str]) -> tuple[int, ...]:
    """The label of each prompt: an organ's own id, and 14, 15, ... for other text."""
    free = iter(range(14, 256))
    return tuple(BY_KEY[prompt].label if prompt in BY_KEY else next(free) for prompt in prompts)


def _is_nifti(scan: Path) -> bool:
    return scan.name.lower().endswith((".nii", ".nii.gz"))


def read_any(scan: Path | str, series: str = "") -> tuple[np.ndarray, Grid, DicomSeries | None]:
    """Canonical voxels (X, Y, Z) and grid of a NIfTI file or of DICOM, and then the series."""
    scan = Path(scan).expanduser()
    if _is_nifti(scan):
        return *read_scan(scan), None
    voxels, found = read_dicom(scan, series)
    return voxels, found.grid, found


def modality_of(scan: Path, voxels: np.ndarray, found: DicomSeries | None, said: str = "") -> str:
    """CT or MR: as `said`, as DICOM says, or CT where a NIfTI shows air in HU. Warns of a guess."""
    guess = "CT" if np.count_nonzero(voxels < AIR_HU) > AIR_SHARE * voxels.size else "MR"
    modality = said.upper() or (guess if found is None else found.modality)
    if modality not in ("CT", "MR"):
        raise InputError(f"{scan} is of modality {modality!r}: give a CT or MRI, or say MODALITY=CT or MR.")
    if modality == "CT" and voxels.min() >= 0:
        why = "holds no negative value, so it is hardly in Hounsfield units"
        warnings.warn(f"{scan} {why}: subtract its offset (1024, say).", stacklevel=2)
    if modality == "MR" and not said and found is None:
        why = "is taken for an MRI, as it shows no air in HU"
        warnings.warn(f"{scan} {why}: say MODALITY=CT if it is a CT.", stacklevel=2)
    return modality


def store_of(grey: np.ndarray, grid: Grid, modality: str, settings: ClipSegSettings) -> Store:
    """A scan's grey values (X, Y, Z) as the slices of a model with these settings, in memory."""
    case, slices = Case("scan", Path(), modality=modality), to_slices(grey, settings.size)
    return Store(case.id, Path(), slices, None, grid, modality, None, case.label_map, case)


def _on_disk(shape: tuple[int, ...]) -> np.ndarray:
    """Bytes in a temporary file that vanishes with them, for what memory may not hold."""
    home, needed = tempfile.gettempdir(), math.prod(shape)
    if shutil.disk_usage(home).free < needed:  # else the process would be killed when the disk is full
        raise InputError(f"{home} has no room for {needed / 1e9:.1f} GB: free some, or set TMPDIR.")
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def segment_store(
    model: TextPromptedSegmenter, store: Store, prompts: Sequence[str], settings: ClipSegSettings,
    keep: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Canonical labels (X, Y, Z), voxels that each prompt claims (P,), if kept probabilities (P, X, Y, Z).

    Chunk by chunk of slices; one prompt's slices of a chunk at a time are brought back to the scan's pixels.
    """
    columns, rows, depth = store.grid.canonical_shape
    labels, claimed = np.zeros((depth, rows, columns), np.uint8), np.zeros(len(prompts), np.int64)
    start = 0
    kept = _on_disk((len(prompts), depth, rows, columns)) if keep else None
    for chunk in slice_probabilities(model, store, list(prompts), settings):  # (P, C, S, S)
        part = slice(start, start := start + chunk.shape[1])
        surest = np.full((chunk.shape[1], rows, columns), 0.5, np.float32)
        for place, (label, small) in enumerate(zip(label_numbers(prompts), chunk, strict=True)):
            found = resize(small, rows, columns, nearest=False)
            claimed[place] += np.count_nonzero(found > 0.5)
            labels[part][found > surest] = label
            np.maximum(surest, found, out=surest)
            if kept is not None:
                kept[place, part] = np.rint(found * 255)
    return labels.T, claimed, None if kept is None else kept.transpose(0, 3, 2, 1)


def volumes_of(labels: np.ndarray, claimed: np.ndarray, prompts: Sequence[str], grid: Grid) -> pd.DataFrame:
    """Table of volumes (see Segmentation) of canonical labels (X, Y, Z) and (P,) claimed voxels."""
    voxel_ml, numbers = abs(np.linalg.det(grid.affine[:3, :3])) / 1000, list(label_numbers(prompts))
    by_slice = np.array([np.bincount(plane.ravel(), minlength=256)[numbers] for plane in labels.T])  # (Z, P)
    voxels, cut = by_slice.sum(0), by_slice[[0, -1]].sum(0) > 0
    table = {"prompt": prompts, "label": numbers, "voxels": voxels, "ml": voxels * voxel_ml}
    return pd.DataFrame(table | {"claimed_ml": claimed * voxel_ml, "cut": cut})


def segment_scan(
    scan: Path | str, prompts: Sequence[str] | str = PROMPTS, checkpoint: Path | str = "adapter",
    out: Path | str | None = None, *, profile: str = "demo", modality: str = "", series: str = "",
    probabilities: bool = False, overwrite: bool = False,
) -> Segmentation:
    """Segments a scan by text: a NIfTI file, or a folder of DICOM files.

    checkpoint: see `load_checkpoint`; profile: of a run that is named. modality: CT or MR, where the file
    does not say. series: one of several in a DICOM folder (number, description or UID). out: a folder for
    labels.nii.gz, volumes.csv, overview.png, labels.dcm of a DICOM scan and, with `probabilities`, a file for
    each prompt: all are written, or none. overwrite: what an earlier call wrote there, never anything else.

    Raises:
        InputError: the scan, the prompts, the checkpoint or the folder are not as they must be.
    """
    scan, folder = Path(scan).expanduser(), None if out is None else Path(out).expanduser()
    numbers = label_numbers(names := asked(prompts))
    plain = [re.sub(r"\W", "_", name)[:60] for name in names]
    each = [f"probability_{n:02d}_{name}.nii.gz" for n, name in zip(numbers, plain, strict=True)]
    files = ["labels.nii.gz", "volumes.csv", "overview.png", *([] if _is_nifti(scan) else ["labels.dcm"])]
    if folder is not None:
        check_free(folder, files + each * probabilities, overwrite, [scan])
    model, settings = load_checkpoint(checkpoint, profile)
    voxels, grid, found = read_any(scan, series)
    modality = modality_of(scan, voxels, found, modality)
    grey, note = to_uint8(voxels, modality, settings), note_of(settings)
    store = store_of(grey, grid, modality, settings)
    del voxels
    labels, claimed, kept = segment_store(model, store, names, settings, probabilities)
    table = volumes_of(labels, claimed, names, grid)
    table = table.assign(modality=modality, model=str(checkpoint), profile=settings.profile, note=note)
    native = None if kept is None else np.moveaxis(grid.to_native(np.moveaxis(kept, 0, -1)), -1, 0)
    result = Segmentation(names, grid, grid.to_native(labels), grey, table, modality, note, native)
    if folder is not None:
        with writing_into(folder, overwrite) as part:
            write_nifti(result.labels, grid, part / "labels.nii.gz")
            table.to_csv(part / "volumes.csv", index=False, float_format="%.6g")
            overview(result).savefig(part / "overview.png", dpi=150, metadata={"Software": None})
            for name, probability in zip(each, () if native is None else native, strict=False):
                write_nifti(np.asarray(probability), grid, part / name, slope=1 / 255)
            if found is not None:
                segments = list(zip(numbers, names, strict=True))
                write_segments(result.labels, segments, found, part / "labels.dcm", str(checkpoint), note)
    return result


def colours_of(labels: Sequence[int]) -> dict[int, str]:
    """{label: colour}: an organ's own, and others for free text."""
    own = {organ.label: organ.colour for organ in BY_KEY.values()}
    return {label: own.get(label, OTHERS[label % len(OTHERS)]) for label in labels}


def overview(found: Segmentation, slices: int = 8) -> Figure:
    """Axial slices that show what was found, or of the whole scan if nothing was; right is on the left."""
    labels, spacing = found.grid.to_canonical(found.labels), found.grid.spacing_mm
    shown = np.flatnonzero(labels.any((0, 1)))
    chosen = spread(shown if len(shown) else np.arange(labels.shape[2]), slices)
    colours = colours_of([*found.names])
    columns = min(len(chosen), 4)
    figure = Figure(figsize=(7.2, 5 if len(chosen) > 4 else 3), layout="constrained")
    axes = figure.subplots(-(-len(chosen) // columns), columns, squeeze=False).flat
    for axis, z in zip(axes, chosen, strict=False):
        slice_overlay(axis, found.grey[:, :, z].T, labels[:, :, z].T, colours, spacing[1] / spacing[0])
        axis.set_title(f"slice {z + 1} of {labels.shape[2]}", fontsize=8)
    for axis in axes[len(chosen) :]:
        axis.remove()
    note = "axial slices, counted from the feet; the patient's right is on the left"
    figure.suptitle(f"{found.modality}, {found.note}\n{note}", fontsize=8)
    named = zip(colours.values(), found.volumes["prompt"], found.volumes["ml"], strict=True)
    patches = [Patch(color=colour, label=f"{prompt[:40]}: {ml:.1f} ml") for colour, prompt, ml in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7)
    return figure


OPTIONS = (
    "SCAN", "OUT", "PROMPTS", "CHECKPOINT", "PROFILE", "MODALITY", "SERIES", "PROBABILITIES", "OVERWRITE",
)


def main(words: Sequence[str]) -> None:
    """Segments a scan as the words "NAME=value" say, or else the environment, and prints what was found."""
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    given = {name: os.environ.get(name, "") for name in OPTIONS} | dict(
        word.partition("=")[::2] for word in words
    )
    wrong = [name for name in given if name not in OPTIONS]
    if wrong or not (given["SCAN"] and given["OUT"]):
        sys.exit(f"{f'{wrong[0]} is no option. ' if wrong else ''}{__doc__}")
    options: dict[str, Any] = {name.lower(): value for name, value in given.items() if value}
    options |= {name: given[name.upper()] not in ("", "0") for name in ("probabilities", "overwrite")}
    try:
        found = segment_scan(**options)
    except InputError as error:
        sys.exit(str(error))
    table = found.volumes[["prompt", "label", "ml", "claimed_ml", "cut"]]
    print(table.to_string(index=False, float_format="%.1f"))
    print(f"{found.modality}, {found.note}: masks, table and picture are in {given['OUT']}")


if __name__ == "__main__":
    main(sys.argv[1:])
