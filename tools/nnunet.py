"""nnU-Net v2: a split of ours as its raw data set, its own commands from plan to prediction, and scores of
label maps that it or another tool drew."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from lib.config import FULL_SIZE, RUNS, settings_of
from lib.data import SUFFIX, Case, cases_of, nifti_called
from lib.files import ROOT, InputError, locked, results_root, unwritable, write_json
from lib.metrics import keep_scores, mean_dice, score_case
from lib.organs import BY_KEY, LABEL_MAPS, ORGANS, label_ids, labelled
from lib.volumes import read_labels, read_scan

# of a data set, and the end of nnU-Net's folders for it; Med-VLM tests on the scans that validate, too
PARTS = {"training": "Tr", "validation": "Tr", "test": "Ts", "held out": "Ts"}
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
    if part == "test" or (part == "held out" and dataset == papers[1].train_on):
        return cases_of(papers[0], dataset, part.removeprefix("test"))
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

    With training and validation, splits_final.json gives nnU-Net our split, which its planning copies.
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
    value["overwrite_image_reader_writer"] = "NibabelIOWithReorient"  # else other sites' axes stay as stored
    value["numTraining"] = sum(len(cases) for part, cases in chosen.items() if PARTS[part] == "Tr")
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


def score(name: str, dataset: str, folder: Path, profile: str, ids: str = "",
          variant: str = "") -> pd.DataFrame:
    """Scores the label maps in `folder` against a test set's ground truth, for scores.csv as run `name`.

    ids: as in `ids_of`. variant: of VARIANTS. InputError: `name` is a run of ours, or a label map is bad.
    """
    path, ours = results_root(profile) / "scores.csv", {"", *RUNS}
    if path.is_file():  # an ablation is not among RUNS
        stored = pd.read_csv(path, usecols=["run", "config"], dtype=str)
        ours |= {*stored.loc[stored["config"] != LABELS, "run"]}
    if name in ours:
        raise InputError(f"{name!r} names nothing, or a run of our own: give the label maps another name.")
    ids = ids_of(folder := folder.expanduser(), ids)
    cases = cases_of(settings_of("baseline", profile), dataset, variant)
    work = [(case, label_map_of(case, folder), ids) for case in cases]
    jobs = -1 if len(work) > 3 else 1  # to start a process takes as long as a small scan
    scored = Parallel(jobs, return_as="generator")(delayed(_rows)(*one) for one in work)
    table = pd.concat(list(tqdm(scored, f"scoring {name} on {dataset}", len(work), leave=False)))
    own = {"run": name, "seed": 0, "profile": profile, "dataset": dataset, "condition": ""}
    table = table.assign(**own, variant=variant, config=LABELS)
    return keep_scores(table, profile)


# nnU-Net's own commands

# A small profile plans voxels of 6.4 mm, and patches and batches for one core; and starts no process more
SMALL = ["-gpu_memory_target", "0.2", "-overwrite_target_spacing", *["6.4"] * 3, "-np", "1", "-npfp", "1"]
ALONE = {"nnUNet_def_n_proc": "1", "nnUNet_npp": "1", "nnUNet_nps": "1", "nnUNet_n_proc_DA": "0"}
COMMANDS = PLAN, TRAIN, PREDICT = "nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict"


def _program(command: str) -> str:
    """Where a command of nnU-Net is: on the PATH, or beside this Python. InputError: nowhere."""
    places = os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(sys.executable)])
    if found := shutil.which(command, path=places):
        return found
    install = f"{sys.executable} -m pip install -r requirements-nnunet.txt -c constraints.txt"
    raise InputError(f"{command} is neither on the PATH nor beside this Python: get nnU-Net by `{install}`.")


def _step(done: Path, command: list[str], environment: dict[str, str]) -> None:
    """Runs one of nnU-Net's commands, unless `done` says that the very same one has ended well."""
    said = " ".join(command)
    if done.is_file() and json.loads(done.read_text(encoding="utf-8"))["command"] == command:
        print(f"nnunet: done already: {said}")
        return
    print(f"nnunet: {said}", flush=True)
    begun, whole = time.monotonic(), [_program(command[0]), *command[1:]]
    if status := subprocess.run(whole, env=environment, check=False).returncode:
        advice = "its own message stands above; the same `make nnunet` goes on from there."
        raise InputError(f"`{said}` ended with status {status}: {advice}")
    write_json(done, {"command": command, "seconds": round(time.monotonic() - begun)})


def plan_to_scores(dataset: str, configurations: Sequence[str], trainer: str, profile: str) -> None:
    """Plans, trains, predicts and scores by nnU-Net's own commands, in results/<profile>/runs/nnunet.

    dataset: T-Gated's training set ("": this one), tested on all its test sets, or Med-VLM's, on what is held
    out of it. trainer: a class of nnU-Net's; "": its default, in a small profile that of nnunet_trainer.
    InputError: nnU-Net is not installed, one of its commands fails, or there is no such training set.
    """
    from lib.training import processes  # which takes a while

    for command in COMMANDS:
        _program(command)  # before anything is written
    ours, small = settings_of("baseline", profile), profile not in FULL_SIZE
    dataset = dataset or ours.train_on
    of, tests = "", [(site, "") for site in ours.test_on]
    if dataset != ours.train_on:
        of, tests = " on BTCV", [(dataset, "held out")]  # as other runs of Med-VLM's scans are called
    work = results_root(profile).absolute() / "runs" / "nnunet" / dataset.replace(" ", "_")
    paths = {f"nnUNet_{part}": str(work / part) for part in ("raw", "preprocessed", "results")}
    paths["nnUNet_extTrainer"] = str(ROOT / "tools" / "nnunet_trainer")
    environment = (ALONE if small else {}) | os.environ | paths
    chosen = ["-tr", trainer or ("nnUNetTrainerBrief" if small else "nnUNetTrainer")]
    chosen += ["-device", processes().device.type]

    def exported(part: str, data: str, folder: str) -> Path:
        if not (out := work / folder / f"Dataset001_{data.replace(' ', '_')}").exists():
            export(data, part.split("+"), out, profile)
        return out

    with locked(str(work)):
        exported("training+validation", dataset, "raw")
        plan = [PLAN, "-d", "1", "-c", *configurations, *(SMALL if small else [])]
        planning = environment | ({"nnUNet_n_proc_DA": "1"} if small else {})  # it takes no 0
        _step(work / "steps" / "plan.json", plan, planning)
        for name in configurations:
            train = [TRAIN, "1", name, "0", *chosen, "--c"]  # goes on from a checkpoint, if there is one
            _step(work / "steps" / f"train {name}.json", train, environment)
            for site, variant in tests:
                images = exported(variant or "test", site, "tests") / "imagesTs"
                out = work / "predictions" / f"{chosen[1]} {name}" / site
                predict = [PREDICT, "-i", str(images), "-o", str(out), "-d", "1", "-c", name, "-f", "0"]
                _step(work / "steps" / f"predict {name} {site}.json", predict + chosen, environment)
                table = score(run := f"nnU-Net {name}{of}", site, out, profile, variant=variant)
                print(f"nnunet: {run} has a mean Dice of {mean_dice(table):.3f} on {site} {variant}".rstrip())


def main() -> None:
    """As the Makefile calls it: export DATASET PART OUT, score NAME DATASET LABELS IDS, or
    nnunet DATASET CONFIGURATIONS TRAINER."""
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    command, *words = sys.argv[1:]
    profile = os.environ.get("PROFILE") or "demo"
    try:
        if command == "export":
            dataset, parts, out = words
            count = export(dataset, parts.split("+"), Path(out), profile)["numTraining"]
            print(f"export: {parts} of {dataset} is in {out}, which has {count} training cases")
        elif command == "nnunet":
            dataset, configurations, trainer = words
            plan_to_scores(dataset, configurations.split() or ["2d", "3d_fullres"], trainer, profile)
        else:
            name, dataset, labels, ids = words
            table = score(name, dataset, Path(labels), profile, ids)
            result = f"{mean_dice(table):.3f} on {table['case'].nunique()} cases of {dataset}"
            print(f"score: {name} has a mean Dice of {result}, in scores.csv")
    except InputError as error:
        sys.exit(f"{command}: {error}")


if __name__ == "__main__":
    main()
