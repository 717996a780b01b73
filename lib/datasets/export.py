"""A split of ours as nnU-Net's raw data set: what nnU-Net v2 plans, trains and predicts from."""

import argparse
import gzip
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lib.datasets.cases import cases_of
from lib.datasets.stores import Case
from lib.organs import LABEL_MAPS, ORGANS, OTHERS
from lib.paths import InputError, replacing, unwritable, write_json
from lib.profiles import settings_of

FOLDERS = {"training": "Tr", "validation": "Tr", "test": "Ts"}  # nnU-Net makes folds of its own, or takes those of splits_final.json


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


def _place(source: Path, target: Path) -> None:
    """A link to a compressed file, or a compressed copy of another; a copy where there are no links."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if source.name.endswith(".nii.gz"):
            target.symlink_to(source.resolve())
            return
    except OSError as error:
        if not target.parent.is_dir():
            raise unwritable(target, error) from error
    with replacing(target) as part:
        if source.name.endswith(".nii.gz"):
            shutil.copyfile(source, part)
        else:
            part.write_bytes(gzip.compress(source.read_bytes(), 3, mtime=0))


def _description(cases: Sequence[Case], dataset: str, out: Path) -> dict[str, Any]:
    """dataset.json of nnU-Net v2, which chooses its normalisation by the channel's name. InputError: `out` holds something else."""
    maps = {(case.label_map, case.modality) for case in cases}
    if len(maps) > 1:
        raise InputError(f"The cases of {dataset} have several label maps or modalities: export them one by one.")
    label_map, modality = maps.pop()
    value = {"name": dataset, "channel_names": {"0": "CT" if modality == "CT" else "MRI"}, "labels": label_names(label_map)}
    there = out / "dataset.json"
    if there.exists() and {key: json.loads(there.read_text()).get(key) for key in value} != value:
        raise InputError(f"{there} describes another data set: name another folder by OUT.")
    return value


def export(dataset: str, parts: Sequence[str], out: Path, profile: str | None = None) -> dict[str, Any]:
    """Writes images and labels of the parts into `out` (named as nnU-Net has it, Dataset022_FLARE22), and returns its dataset.json.

    Training and validation go to imagesTr and labelsTr, the test to imagesTs and labelsTs; exports add to each other. With training
    and validation together, splits_final.json gives nnU-Net our validation in the place of its folds: copy it to nnUNet_preprocessed.

    Raises:
        InputError: there is no such part, `out` is no name for nnU-Net, holds another data set or cannot be written.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", out.name):
        raise InputError(f"{out} is no folder that nnU-Net takes: let OUT end in DatasetNNN_NAME, Dataset022_FLARE22 for example.")
    chosen = {part: _cases(dataset, part, profile) for part in parts}
    value = _description([case for cases in chosen.values() for case in cases], dataset, out)
    work = [(FOLDERS[part], case) for part, cases in chosen.items() for case in cases]
    for folder, case in tqdm(work, "exporting scans", leave=False):
        assert case.labels is not None
        _place(case.image, out / f"images{folder}" / f"{case.id}_0000.nii.gz")
        _place(case.labels, out / f"labels{folder}" / f"{case.id}.nii.gz")
    value |= {"numTraining": len(list(out.glob("labelsTr/*.nii.gz"))), "file_ending": ".nii.gz"}
    write_json(out / "dataset.json", value)
    if {"training", "validation"} <= set(chosen):
        fold = {name: [case.id for case in chosen[part]] for name, part in (("train", "training"), ("val", "validation"))}
        write_json(out / "splits_final.json", [fold])
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
