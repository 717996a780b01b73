"""nnU-Net v2: a split of ours as its raw data set, and scores of label maps that it or another tool drew."""

import gzip
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from lib.config import RUNS, settings_of
from lib.data import SUFFIX, Case, cases_of, nifti_called
from lib.files import InputError, results_root, unwritable, write_json
from lib.metrics import keep_scores, mean_dice, score_case
from lib.organs import BY_KEY, LABEL_MAPS, ORGANS, label_ids, labelled
from lib.volumes import read_labels, read_scan

PARTS = {"training": "Tr", "validation": "Tr", "test": "Ts"}  # and the end of nnU-Net's folders for it
OTHERS = {  # what the data sets label beside the 13 organs
    "FLARE22": {}, "BTCV": {10: "portal vein and splenic vein"},
    "AMOS22": {14: "bladder", 15: "prostate/uterus"},
}
LABELS = "label maps"  # stands as config in the rows of such scores, which have no settings


def label_names(label_map: str) -> dict[str, int]:
    """{name: id} of nnU-Net's dataset.json in the order of ids. InputError: not all ids have names."""
    if label_map.endswith(".json"):
        return json.loads(Path(label_map).read_text(encoding="utf-8"))["labels"]
    if label_map not in OTHERS:
        raise InputError(f"The ids of {label_map} have no names here: export FLARE22, BTCV or AMOS22.")
    keys = {organ.label: organ.key for organ in ORGANS} | {0: "background"}
    names = {i: keys[label] for i, label in LABEL_MAPS[label_map].items()} | OTHERS[label_map]
    return {names[i]: i for i in sorted(names)}


def _cases(dataset: str, part: str, profile: str) -> list[Case]:
    """T-Gated's test cases of a data set, or the part of a data set that one of the papers trains on."""
    papers = [settings_of(run, profile) for run in ("baseline", "unet")]
    if part == "test":
        return cases_of(papers[0], dataset)
    trained = next((settings for settings in papers if settings.train_on == dataset), None)
    if trained is None or part not in PARTS:
        advice = f"choose test, or training or validation of {' or '.join(s.train_on for s in papers)}."
        raise InputError(f"{dataset!r} has no part {part!r}: {advice}")
    return cases_of(trained, part)


def _place(source: Path, target: Path) -> None:
    """A link to a compressed file, a copy where there are no links; of another a compressed copy."""
    with source.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"  # whatever it is called
    if not compressed:
        target.write_bytes(gzip.compress(source.read_bytes(), 3, mtime=0))
        return
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def export(dataset: str, parts: Sequence[str], out: Path, profile: str) -> dict[str, Any]:
    """Writes images and labels of the parts into a new folder, named as nnU-Net has it: whole, or not at all.

    With training and validation, splits_final.json gives nnU-Net our split: copy it to nnUNet_preprocessed.
    Returns what dataset.json holds. InputError: no such part; `out` is there, or is no name for nnU-Net.
    """
    out = out.expanduser().absolute()
    if not re.fullmatch(r"Dataset\d{3}_\w+", out.name):
        raise InputError(f"{out} is no name for nnU-Net: let OUT end in DatasetNNN_NAME.")
    if os.path.lexists(out):
        raise InputError(f"{out} is there already, and is left as it is: name a new folder by OUT.")
    chosen = {part: _cases(dataset, part, profile) for part in parts}
    case = next(case for cases in chosen.values() for case in cases)
    channel = {"0": "CT" if case.modality == "CT" else "MRI"}  # nnU-Net normalises by this name
    value: dict[str, Any] = {"name": dataset, "channel_names": channel, "file_ending": ".nii.gz"}
    value["numTraining"] = sum(len(cases) for part, cases in chosen.items() if part != "test")
    value["labels"] = label_names(case.label_map)
    stage = out.with_name(f".{out.name}.part")  # of a killed call: taken over
    try:
        if stage.exists():
            shutil.rmtree(stage)
        for kind in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (stage / kind).mkdir(parents=True)
        for part, cases in chosen.items():
            for case in tqdm(cases, f"exporting {part}", leave=False):
                assert case.labels is not None
                _place(case.image, stage / f"images{PARTS[part]}" / f"{case.id}_0000.nii.gz")
                _place(case.labels, stage / f"labels{PARTS[part]}" / f"{case.id}.nii.gz")
        write_json(stage / "dataset.json", value)
        if {"training", "validation"} <= chosen.keys():
            train, val = ([case.id for case in chosen[part]] for part in ("training", "validation"))
            write_json(stage / "splits_final.json", [{"train": train, "val": val}])
        os.rename(stage, out)
    except OSError as error:
        raise unwritable(out, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return value


def label_map_of(case: Case, folder: Path) -> Path:
    """The file in `folder` that is called as the case's id, image or labels. InputError: none is."""
    stems = [case.id, *(re.sub(SUFFIX, "", path.name) for path in (case.image, case.labels) if path)]
    stems = [*dict.fromkeys([*stems, *(stem.removesuffix("_0000") for stem in stems)])]
    if there := next((path for stem in stems if (path := nifti_called(stem, folder))), None):
        return there
    names = ", or ".join(f"{stem}.nii.gz" for stem in stems)
    raise InputError(f"{folder} has no label map of {case.id}: call it {names}.")


def _rows(case: Case, path: Path, ids: str) -> pd.DataFrame:
    """Score rows of one case, for the organs that both label maps know."""
    assert case.labels is not None
    _, grid = read_scan(case.image)
    truth, theirs = read_labels(case.labels, case.label_map, grid), read_labels(path, ids, grid)
    masks = ((key, theirs == BY_KEY[key].label) for key in labelled(ids))
    return pd.DataFrame(score_case(masks, truth, case.label_map, grid.axes_mm)).assign(case=case.id)


def ids_of(folder: Path, ids: str = "") -> str:
    """What the numbers in a folder's label files mean: `ids`, a key of LABEL_MAPS or the path of an nnU-Net
    dataset.json; by default the one in the folder or beside it, else FLARE22's. InputError: no such map."""
    beside = (place / "dataset.json" for place in (folder, folder.parent))
    ids = os.path.expanduser(ids) or next((str(path) for path in beside if path.is_file()), "FLARE22")
    if ids == "TotalSegmentator":  # all numbers of version 1 are numbers of version 2, too
        advice = "say IDS='TotalSegmentator v1' if they are of version 1."
        warnings.warn(f"{folder} is read with the ids of TotalSegmentator v2: {advice}", stacklevel=3)
    label_ids(ids)  # before the first scan is read
    return ids


def score(name: str, dataset: str, folder: Path, profile: str, ids: str = "") -> pd.DataFrame:
    """Scores the label maps in `folder` against a test set's ground truth, for scores.csv as run `name`.

    ids: as in `ids_of`. InputError: `name` is a run of ours, or a label map is bad.
    """
    path, ours = results_root(profile) / "scores.csv", {"", *RUNS}
    if path.is_file():  # an ablation is not among RUNS
        stored = pd.read_csv(path, usecols=["run", "config"], dtype=str)
        ours |= {*stored.loc[stored["config"] != LABELS, "run"]}
    if name in ours:
        raise InputError(f"{name!r} names nothing, or a run of our own: give the label maps another name.")
    ids = ids_of(folder := folder.expanduser(), ids)
    cases = cases_of(settings_of("baseline", profile), dataset)
    work = [(case, label_map_of(case, folder), ids) for case in cases]
    jobs = -1 if len(work) > 3 else 1  # to start a process takes as long as a small scan
    scored = Parallel(jobs, return_as="generator")(delayed(_rows)(*one) for one in work)
    table = pd.concat(list(tqdm(scored, f"scoring {name} on {dataset}", len(work), leave=False)))
    own = {"run": name, "seed": 0, "profile": profile, "dataset": dataset, "variant": "", "condition": ""}
    table = table.assign(**own, config=LABELS)
    return keep_scores(table, profile)


def main() -> None:
    """nnunet export DATASET PART OUT, or nnunet score NAME DATASET LABELS IDS: as the Makefile calls it."""
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    command, *words = sys.argv[1:]
    profile = os.environ.get("PROFILE") or "demo"
    try:
        if command == "export":
            dataset, parts, out = words
            count = export(dataset, parts.split("+"), Path(out), profile)["numTraining"]
            print(f"export: {parts} of {dataset} is in {out}, which has {count} training cases")
        else:
            name, dataset, labels, ids = words
            table = score(name, dataset, Path(labels), profile, ids)
            result = f"{mean_dice(table):.3f} on {table['case'].nunique()} cases of {dataset}"
            print(f"score: {name} has a mean Dice of {result}, in scores.csv")
    except InputError as error:
        sys.exit(f"{command}: {error}")


if __name__ == "__main__":
    main()
