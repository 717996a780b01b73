"""A split of ours as nnU-Net's raw data set: what nnU-Net v2 plans, trains and predicts from."""

import argparse
import filecmp
import gzip
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lib.datasets.cases import cases_of
from lib.datasets.stores import Case
from lib.organs import LABEL_MAPS, ORGANS, OTHERS
from lib.paths import InputError, clear_parts, replacing, unwritable, write_json
from lib.profiles import settings_of
from lib.written import inside

FOLDERS = {"training": "Tr", "validation": "Tr", "test": "Ts"}  # nnU-Net makes folds of its own, or takes those of splits_final.json
MARK = {"converted_by": "tgated-medvlm-repro"}  # nnU-Net's own key; who sees it knows that the file is ours


def label_names(label_map: str) -> dict[str, int]:
    """{name: id} of nnU-Net's dataset.json, the background first, in the order of ids. InputError: the map gives no names to all ids."""
    if label_map.endswith(".json"):
        return json.loads(Path(label_map).read_text())["labels"]
    if label_map not in OTHERS:
        raise InputError(f"Labels with the ids of {label_map} have more ids than names here: export FLARE22, BTCV or AMOS22.")
    keys = {organ.label: organ.key for organ in ORGANS}
    names = {i: keys[label] for i, label in LABEL_MAPS[label_map].items() if label} | OTHERS[label_map]
    return {"background": 0} | {names[i]: i for i in sorted(names)}


def _cases(dataset: str, part: str, profile: str | None) -> list[Case]:
    """T-Gated's test cases of a data set, or the part of a data set that one of the papers trains on."""
    tgated, medvlm = (settings_of(run, profile) for run in ("baseline", "unet"))
    if part not in FOLDERS:
        raise InputError(f"{part!r} is no part of a split: choose from {', '.join(FOLDERS)}, or join them by +.")
    if part == "test":
        return cases_of(tgated, dataset)
    trained = {settings.train_on: settings for settings in (medvlm, tgated)}
    if dataset not in trained:
        raise InputError(f"{dataset!r} trains no model here, so it has no {part} part: choose {' or '.join(trained)}, or the part test.")
    return cases_of(trained[dataset], part)


def _is_there(source: Path, target: Path) -> bool:
    """Whether the target is a link to the source, or a copy of it, already. InputError: it is something else."""
    if not os.path.lexists(target):
        return False
    with suppress(OSError, EOFError, zlib.error):  # a link to nowhere, a folder, no gzip
        if target.samefile(source) or filecmp.cmp(source, target, shallow=False):
            return True
        if source.suffix != ".gz" and gzip.decompress(target.read_bytes()) == source.read_bytes():
            return True
    raise InputError(f"{target} exists and is not {source}, so it is left as it is: move it away, or name another folder by OUT.")


def _place(source: Path, target: Path) -> None:
    """A link to a compressed file, or a compressed copy of another; a copy where there are no links."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(target.parent, target.name)
        if source.suffix == ".gz":
            target.symlink_to(source.resolve())
            return
    except OSError as error:
        if not target.parent.is_dir() or isinstance(error, FileExistsError):
            raise unwritable(target, error) from error
    with replacing(target) as part:
        if source.suffix == ".gz":
            shutil.copyfile(source, part)
        else:
            part.write_bytes(gzip.compress(source.read_bytes(), 3, mtime=0))


def _check_apart(work: Sequence[tuple[Path, Path]], out: Path) -> None:
    """InputError where one of the (source, target) would be written among what is read, or what is read lies in `out`."""
    read = list(dict.fromkeys(folder for source, _ in work for folder in (source.parent, source.resolve().parent)))
    for place in dict.fromkeys([out, *(target.parent for _, target in work)]):
        if (folder := inside(place, read)) is not None:
            raise InputError(f"{place} is or lies in {folder}, which the scans are read from: name another folder by OUT.")
    if (folder := next((folder for folder in read if inside(folder, [out])), None)) is not None:
        raise InputError(f"{folder}, which the scans are read from, lies in {out}: name another folder by OUT.")


def _found(path: Path) -> Any:
    """What a JSON file holds; None where there is no file, or none that we may have written."""
    try:
        return None if path.is_symlink() else json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _description(cases: Sequence[Case], dataset: str, out: Path) -> dict[str, Any]:
    """dataset.json of nnU-Net v2, which chooses its normalisation by the channel's name, with what was added to ours by hand.

    InputError: the cases differ in kind, or `out` holds another one, or one that is not ours.
    """
    maps = {(case.label_map, case.modality) for case in cases}
    if len(maps) > 1:
        raise InputError(f"The cases of {dataset} have several label maps or modalities: export them one by one.")
    label_map, modality = maps.pop()
    value = {"name": dataset, "channel_names": {"0": "CT" if modality == "CT" else "MRI"}, "labels": label_names(label_map)} | MARK
    there = out / "dataset.json"
    if not os.path.lexists(there):
        return value
    if not isinstance(found := _found(there), dict) or not value.items() <= found.items():
        raise InputError(f"{there} describes another data set, or is not one that `make export` wrote: name another folder by OUT.")
    return found


def export(dataset: str, parts: Sequence[str], out: Path, profile: str | None = None) -> dict[str, Any]:
    """Writes images and labels of the parts into `out` (named as nnU-Net has it, Dataset022_FLARE22), and returns its dataset.json.

    Training and validation go to imagesTr and labelsTr, the test to imagesTs and labelsTs; exports add to each other. With training
    and validation together, splits_final.json gives nnU-Net our validation in the place of its folds: copy it to nnUNet_preprocessed.
    What is there already stays: a case is not written again, and anything else in its place is an error before the first is written.

    Raises:
        InputError: there is no such part, `out` is no name for nnU-Net, is among what is read, holds something else or cannot be written.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", out.name):
        raise InputError(f"{out} is no folder that nnU-Net takes: let OUT end in DatasetNNN_NAME, Dataset022_FLARE22 for example.")
    chosen = {part: _cases(dataset, part, profile) for part in parts}
    work: list[tuple[Path, Path]] = []
    for part, case in ((part, case) for part, cases in chosen.items() for case in cases):
        assert case.labels is not None
        work.append((case.image, out / f"images{FOLDERS[part]}" / f"{case.id}_0000.nii.gz"))
        work.append((case.labels, out / f"labels{FOLDERS[part]}" / f"{case.id}.nii.gz"))
    _check_apart(work, out)
    value = _description([case for cases in chosen.values() for case in cases], dataset, out)
    split, folds = out / "splits_final.json", None
    if {"training", "validation"} <= set(chosen):
        folds = [{name: [case.id for case in chosen[part]] for name, part in (("train", "training"), ("val", "validation"))}]
        if os.path.lexists(split) and _found(split) != folds:
            raise InputError(f"{split} holds another split, so it is left as it is: move it away, or name another folder by OUT.")
    for source, target in tqdm([pair for pair in work if not _is_there(*pair)], "exporting scans", leave=False):
        _place(source, target)
    labelled = [path for path in out.glob("labelsTr/*.nii.gz") if not path.name.startswith(".")]  # macOS writes ._NAME beside NAME
    value |= {"numTraining": len(labelled), "file_ending": ".nii.gz"}
    write_json(out / "dataset.json", value)
    if folds and not split.exists():
        write_json(split, folds)
    return value


def main() -> None:
    """Command line: dataset, part (or parts joined by +), and the folder to write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("dataset", help="FLARE22, BTCV, 'AMOS22 CT', 'AMOS22 MRI'")
    parser.add_argument("part", help="training, validation, test, or several joined by +")
    parser.add_argument("out", type=lambda name: Path(os.path.abspath(name)), help="nnUNet_raw/Dataset022_FLARE22, for example")
    parser.add_argument("--profile")
    asked = parser.parse_args()
    try:
        value = export(asked.dataset, asked.part.split("+"), asked.out, asked.profile)
    except InputError as error:
        sys.exit(f"export: {error}")
    print(f"export: {asked.part} of {asked.dataset} is in {asked.out}, which has {value['numTraining']} training cases")


if __name__ == "__main__":
    main()
