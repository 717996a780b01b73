"""A scan of your own: organs or free text in, a label map on the scan's own grid and volumes in ml out.

Not a medical device. Options are variables in the environment, as make hands them on:
SCAN=ct.nii.gz OUT=found PROMPTS="liver,a bright vessel" CHECKPOINT=adapter PROFILE=demo MODALITY=CT SERIES=2
OVERWRITE=1 python -m tools.segment
"""

import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lib.clipseg import TextPromptedSegmenter, build, load_weights
from lib.config import ClipSegSettings, Settings, run_folder
from lib.data import Case, Store
from lib.figures import slice_overlay, spread
from lib.files import InputError
from lib.inference import slice_probabilities
from lib.organs import BY_KEY, PROMPTS
from lib.training import processes
from lib.volumes import Grid, is_in_hu, read_scan, rescale, shows_air, to_slices, to_uint8, write_nifti
from tools.dicom import DicomSeries, read_dicom, write_segments
from tools.lettering import write
from tools.written import check_free, writing_into

OPTIONS = "SCAN", "OUT", "PROMPTS", "CHECKPOINT", "PROFILE", "MODALITY", "SERIES", "OVERWRITE"
OTHERS = ("#ff3df2", "#b6ff00", "#2b6bff", "#ffaa00")  # colours of free text: no organ's


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model says of one scan.

    labels: (A, B, C) uint8 on the scan's own `grid`: an organ's id, 14 and on for other text, 0 for neither.
    grey: canonical (X, Y, Z) uint8, the scan as the model sees it. volumes: a row for each prompt: label,
    voxels, ml, and whether it is cut: it reaches the first or last axial slice, so a part may lie outside.
    """

    prompts: tuple[str, ...]
    grid: Grid
    labels: np.ndarray
    grey: np.ndarray
    volumes: pd.DataFrame
    modality: str
    note: str

    @property
    def names(self) -> dict[int, str]:
        """{label: prompt}."""
        return labels_of(self.prompts)


def load_checkpoint(checkpoint: Path | str, profile: str) -> tuple[TextPromptedSegmenter, ClipSegSettings]:
    """A finished run by its name or folder, or safetensors with the config.json of their run beside them.

    InputError: there is none, its training has not ended, its files do not fit, or it takes no text.
    """
    path = Path(checkpoint).expanduser()
    weights = path / "best.safetensors" if path.is_dir() else path
    if not path.exists():  # a run's name: of its settings, those that were trained last
        home = run_folder(str(checkpoint), Settings(profile=profile)).parent
        found = home.glob("seed0-*/best.safetensors")
        weights = max(found, key=os.path.getmtime, default=home / "best.safetensors")
    config = weights.with_name("config.json")
    advice = "train it (`make paper`), or name weights that have their config.json beside them by CHECKPOINT."
    if not (config.is_file() and weights.is_file()):
        raise InputError(f"{config.parent} holds no trained model: {advice}")
    try:
        record = json.loads(config.read_text(encoding="utf-8"))
        stored = {name: tuple(v) if isinstance(v, list) else v for name, v in record["settings"].items()}
        settings = ClipSegSettings(**stored)  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"is not of a model of this version that takes prompts ({error})"
        raise InputError(f"{config} {why}: name a baseline or an adapter.") from error
    load_weights(model := build(settings), weights)
    return model.to(processes().device), settings


def note_of(settings: ClipSegSettings) -> str:
    """What a segmentation by this model can claim: stands in the table and over the picture."""
    if settings.train_on == "samples":
        return "trained on slabs of one CT: no claim about accuracy"
    phantoms = "trained on phantoms: not for real scans"
    return phantoms if settings.phantoms else "research only: not a medical device"


def asked(prompts: Sequence[str] | str) -> tuple[str, ...]:
    """The prompts, organs by their keys, each once; a string is split at its commas. InputError: none."""
    parts = [" ".join(part.split()) for part in (prompts.split(",") if isinstance(prompts, str) else prompts)]
    names = tuple(dict.fromkeys(part.lower() if part.lower() in BY_KEY else part for part in parts))
    if not 0 < len(names) <= 242 or "" in names:
        raise InputError('PROMPTS holds an empty prompt, or over 242: give text as "liver,a bright vessel".')
    return names


def labels_of(prompts: Sequence[str]) -> dict[int, str]:
    """{label: prompt}: an organ's own id, and 14, 15, ... for other text."""
    free = iter(range(14, 256))
    return {BY_KEY[prompt].label if prompt in BY_KEY else next(free): prompt for prompt in prompts}


def _is_nifti(scan: Path | str) -> bool:
    return str(scan).lower().endswith((".nii", ".nii.gz"))


def read_any(scan: Path | str, series: str = "") -> tuple[np.ndarray, Grid, DicomSeries | None]:
    """Canonical voxels (X, Y, Z) and grid of a NIfTI file or of DICOM, and then the series."""
    if _is_nifti(scan):
        return *read_scan(Path(scan).expanduser()), None
    voxels, found = read_dicom(Path(scan).expanduser(), series)
    return voxels, found.grid, found


def modality_of(scan: Path, voxels: np.ndarray, found: DicomSeries | None, said: str = "") -> str:
    """CT or MR: as `said`, as DICOM says, or by a NIfTI's air and fat in HU, where it warns of a guess.

    InputError: another modality, or a CT that is not in HU, so that its window would show something else.
    """
    in_hu = is_in_hu(voxels)
    modality = said.upper() or (found.modality if found else "CT" if in_hu else "MR")
    if modality not in ("CT", "MR"):
        raise InputError(f"{scan} is of modality {modality!r}: give a CT or MRI, or say MODALITY=CT or MR.")
    if modality == "CT" and not in_hu:
        low, high = np.percentile(voxels, (1, 99))
        why = f"is a CT that is not in HU (its values are mostly {low:.5g} to {high:.5g})"
        raise InputError(f"{scan} {why}: convert it to HU (subtract its offset, 1024?), or say MODALITY=MR.")
    if not said and found is None and not (in_hu and shows_air(voxels)):
        shown = "a CT, though clipped, as it shows fat" if in_hu else "an MRI, as it shows no fat"
        warnings.warn(f"{scan} is taken for {shown} in HU: say MODALITY=CT or MR if not so.", stacklevel=2)
    return modality


def store_of(grey: np.ndarray, grid: Grid, modality: str, settings: ClipSegSettings) -> Store:
    """A scan's grey values (X, Y, Z) as the slices of a model with these settings, in memory."""
    case = Case("scan", Path(), modality=modality)
    slices = to_slices(grey, settings.size, lanczos=settings.resampling == "lanczos")
    return Store(case.id, Path(), slices, None, grid, modality, None, case.label_map, case)


def segment_store(model: TextPromptedSegmenter, store: Store, prompts: Sequence[str],
                  settings: ClipSegSettings) -> np.ndarray:
    """Canonical labels (X, Y, Z) uint8: of each voxel the surest prompt, where one is over 0.5."""
    columns, rows, depth = store.grid.canonical_shape
    labels, start = np.zeros((depth, rows, columns), np.uint8), 0
    for chunk in slice_probabilities(model, store, list(prompts), settings):  # (P, C, S, S)
        part = slice(start, start := start + chunk.shape[1])
        surest = chunk.new_full((chunk.shape[1], rows, columns), 0.5)
        best = surest.new_zeros(surest.shape, dtype=torch.uint8)
        for label, small in zip(labels_of(prompts), chunk, strict=True):  # one at a time: it is large
            found = rescale(small, rows, columns)
            best[found > surest] = label
            surest = surest.maximum(found)
        labels[part] = best.cpu()
    return labels.T


def volumes_of(labels: np.ndarray, prompts: Sequence[str], grid: Grid) -> pd.DataFrame:
    """Table of volumes (see Segmentation) of canonical labels (X, Y, Z)."""
    numbers = [*labels_of(prompts)]
    by_slice = np.array([np.bincount(plane.ravel(), minlength=256)[numbers] for plane in labels.T])  # (Z, P)
    table = pd.DataFrame({"prompt": prompts, "label": numbers, "voxels": by_slice.sum(0)})
    return table.assign(ml=table["voxels"] * grid.voxel_ml, cut=by_slice[[0, -1]].sum(0) > 0)


def segment_scan(scan: Path | str, prompts: Sequence[str] | str = PROMPTS, checkpoint: Path | str = "adapter",
                 out: Path | str = "", *, profile: str = "demo", modality: str = "", series: str = "",
                 overwrite: bool = False) -> Segmentation:
    """Segments a NIfTI file, or a folder of DICOM files, by text. InputError: one of these does not fit.

    checkpoint: see `load_checkpoint`; profile: of a run that is named. modality: CT or MR, where the file
    does not say. series: one of several in a DICOM folder (number, description or UID). out: a folder for
    labels.nii.gz, volumes.csv, overview.png and, of a DICOM scan, labels.dcm: all are written, or none.
    overwrite: what an earlier call wrote there, never anything else.
    """
    scan, folder, names = Path(scan).expanduser(), Path(out).expanduser(), asked(prompts)
    if out:  # before the work
        files = ["labels.nii.gz", "volumes.csv", "overview.png", *([] if _is_nifti(scan) else ["labels.dcm"])]
        check_free(folder, files, overwrite, scan)
    model, settings = load_checkpoint(checkpoint, profile)
    voxels, grid, found = read_any(scan, series)
    modality = modality_of(scan, voxels, found, modality)
    grey, note = to_uint8(voxels, modality, settings), note_of(settings)
    labels = segment_store(model, store_of(grey, grid, modality, settings), names, settings)
    about = {"modality": modality, "model": str(checkpoint), "profile": settings.profile, "note": note}
    table = volumes_of(labels, names, grid).assign(**about)
    result = Segmentation(names, grid, grid.to_native(labels), grey, table, modality, note)
    if out:
        with writing_into(folder, overwrite) as part:
            write_nifti(result.labels, grid, part / "labels.nii.gz")
            table.to_csv(part / "volumes.csv", index=False, float_format="%.6g")
            overview(result).savefig(part / "overview.png", dpi=150, metadata={"Software": None})
            if found is not None:
                write_segments(result.labels, result.names, found, part / "labels.dcm", str(checkpoint), note)
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
    colours, rows = colours_of([*found.names]), -(-len(chosen) // 4)
    figure = Figure(figsize=(7.2, 1 + 2 * rows), layout="constrained")
    for place, z in enumerate(chosen, 1):
        axis = figure.add_subplot(rows, min(len(chosen), 4), place)
        slice_overlay(axis, found.grey[:, :, z].T, labels[:, :, z].T, colours, spacing[1] / spacing[0])
        axis.set_title(f"slice {z + 1} of {labels.shape[2]}", fontsize=8)
    note = "axial slices, counted from the feet; the patient's right is on the left"
    figure.suptitle(f"{found.modality}, {found.note}\n{note}", fontsize=8)
    patches = [Patch(color=colour, label=str(label)) for label, colour in colours.items()]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=7)
    named = zip(legend.get_texts(), colours, found.volumes["prompt"], found.volumes["ml"], strict=True)
    for text, label, prompt, ml in named:
        write(text, prompt[:40], f": {ml:.1f} ml", f"label {label}")
    return figure


def main() -> None:
    """Segments a scan as the environment says, and prints what was found."""
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a console may lack a script
    given: dict[str, Any] = {name.lower(): os.environ[name] for name in OPTIONS if os.environ.get(name)}
    if not {"scan", "out"} <= given.keys():
        sys.exit(__doc__)
    try:
        found = segment_scan(**given | {"overwrite": given.get("overwrite", "0") != "0"})
    except InputError as error:
        sys.exit(str(error))
    print(found.volumes[["prompt", "label", "ml", "cut"]].to_string(index=False, float_format="%.1f"))
    print(f"{found.modality}, {found.note}: masks, table and picture are in {given['out']}")


if __name__ == "__main__":
    main()
