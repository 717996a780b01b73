"""nnU-Net v2: a split of ours as its raw data set, and scores of label maps that it or another tool drew."""

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

import pandas as pd
from joblib import Parallel, delayed
from tqdm import tqdm

from lib.config import RUNS, STAND_INS, settings_of
from lib.data import Case, cases_of
from lib.files import InputError, file_hash, merge_csv, replacing, results_root, value_hash, write_json
from lib.metrics import KEY, mean_dice, score_case
from lib.organs import BY_KEY, LABEL_MAPS, ORGANS, label_ids, labelled
from lib.volumes import read_labels, read_scan
from tools.written import inside

PARTS = {"training": "Tr", "validation": "Tr", "test": "Ts"}  # and the end of nnU-Net's folders for it
MARK = {"converted_by": "tgated-medvlm-repro"}  # nnU-Net's own key; who sees it knows that the file is ours
OTHERS = {  # what the data sets label beside the 13 organs
    "FLARE22": {},
    "BTCV": {10: "portal vein and splenic vein"},
    "AMOS22": {14: "bladder", 15: "prostate/uterus"},
}
FROM_LABELS = "labels-"  # how the config of such scores begins, which have no settings
ELSEWHERE = "name another folder by OUT."


def label_names(label_map: str) -> dict[str, int]:
    """{name: id} of nnU-Net's dataset.json in the order of ids. InputError: not all ids have names."""
    if label_map.endswith(".json"):
        return json.loads(Path(label_map).read_text(encoding="utf-8"))["labels"]
    if label_map not in OTHERS:
        raise InputError(f"The ids of {label_map} have no names here: export FLARE22, BTCV or AMOS22.")
    keys = {organ.label: organ.key for organ in ORGANS} | {0: "background"}
    names = {i: keys[label] for i, label in LABEL_MAPS[label_map].items()} | OTHERS[label_map]
    return {names[i]: i for i in sorted(names)}


# Export


def _cases(dataset: str, part: str, profile: str) -> list[Case]:
    """T-Gated's test cases of a data set, or the part of a data set that one of the papers trains on."""
    tgated, medvlm = (settings_of(run, profile) for run in ("baseline", "unet"))
    if part not in PARTS:
        raise InputError(f"{part!r} is no part of a split: choose from {', '.join(PARTS)}, joined by +.")
    if part == "test":
        return cases_of(tgated, dataset)
    trained = {settings.train_on: settings for settings in (medvlm, tgated)}
    if dataset not in trained:
        advice = f"choose {' or '.join(trained)}, or the part test."
        raise InputError(f"{dataset!r} trains no model here, so it has no {part} part: {advice}")
    return cases_of(trained[dataset], part)


def _is_there(source: Path, target: Path) -> bool:
    """Whether the target is a link to the source already, or a copy. InputError: it is something else."""
    if not os.path.lexists(target):
        return False
    with suppress(OSError, EOFError, zlib.error):  # a link to nowhere, a folder, no gzip
        if target.samefile(source) or filecmp.cmp(source, target, shallow=False):
            return True
        if source.suffix != ".gz" and gzip.decompress(target.read_bytes()) == source.read_bytes():
            return True
    why = f"exists and is not {source}, so it is left as it is"
    raise InputError(f"{target} {why}: move it away, or {ELSEWHERE}")


def _place(source: Path, target: Path) -> None:
    """A link to a compressed file, or a compressed copy of another; a copy where there are no links."""
    if source.suffix == ".gz":
        with suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
    if _is_there(source, target):
        return
    with replacing(target) as part:
        if source.suffix == ".gz":
            shutil.copyfile(source, part)
        else:
            part.write_bytes(gzip.compress(source.read_bytes(), 3, mtime=0))


def _check_apart(work: Sequence[tuple[Path, Path]], out: Path) -> None:
    """InputError where a target lies in a folder that is read, or such a folder in `out`."""
    sources = [source for source, _ in work]
    read = list(dict.fromkeys(path.parent for source in sources for path in (source, source.resolve())))
    for place in dict.fromkeys([out, *(target.parent for _, target in work)]):
        if folder := inside(place, read):
            raise InputError(f"{place} is or lies in {folder}, which the scans are read from: {ELSEWHERE}")
    if folder := next((folder for folder in read if inside(folder, [out])), None):
        raise InputError(f"{folder}, which the scans are read from, lies in {out}: {ELSEWHERE}")


def _found(path: Path) -> Any:
    """What a JSON file holds; None where there is no file, or none that we may have written."""
    try:
        return None if path.is_symlink() else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _description(cases: Sequence[Case], dataset: str, out: Path) -> dict[str, Any]:
    """nnU-Net's dataset.json (it normalises by the channel's name) with what was added to ours by hand.

    InputError: the cases differ in kind, or `out` has another data set's description, or one not of ours.
    """
    kinds = {(case.label_map, case.modality) for case in cases}
    if len(kinds) > 1:
        raise InputError(f"The cases of {dataset} have several label maps or modalities: export one by one.")
    label_map, modality = kinds.pop()
    channel = {"0": "CT" if modality == "CT" else "MRI"}
    value = {"name": dataset, "channel_names": channel, "labels": label_names(label_map)} | MARK
    there = out / "dataset.json"
    if not os.path.lexists(there):
        return value
    if not isinstance(found := _found(there), dict) or not value.items() <= found.items():
        raise InputError(f"{there} is of another data set, or not written by `make export`: {ELSEWHERE}")
    return found


def export(dataset: str, parts: Sequence[str], out: Path, profile: str) -> dict[str, Any]:
    """Writes images and labels of the parts into `out`, named as nnU-Net has it; returns its dataset.json.

    Training and validation go to imagesTr and labelsTr, test to imagesTs and labelsTs; exports add up.
    With both of the first, splits_final.json gives nnU-Net our validation in place of its folds: copy it to
    nnUNet_preprocessed. What is there stays: a case is not written again, and anything else in its place is
    an error before the first is written.

    Raises:
        InputError: no such part; `out` is no name for nnU-Net, is among what is read, holds something else
            or cannot be written.
    """
    if not re.fullmatch(r"Dataset\d{3}_\w+", out.name):
        advice = "let OUT end in DatasetNNN_NAME, Dataset022_FLARE22 for example."
        raise InputError(f"{out} is no folder that nnU-Net takes: {advice}")
    chosen = {part: _cases(dataset, part, profile) for part in parts}
    work: list[tuple[Path, Path]] = []
    for part, case in ((part, case) for part, cases in chosen.items() for case in cases):
        assert case.labels is not None
        work.append((case.image, out / f"images{PARTS[part]}" / f"{case.id}_0000.nii.gz"))
        work.append((case.labels, out / f"labels{PARTS[part]}" / f"{case.id}.nii.gz"))
    _check_apart(work, out)
    value = _description([case for cases in chosen.values() for case in cases], dataset, out)
    split, folds = out / "splits_final.json", None
    if {"training", "validation"} <= set(chosen):
        ids = {part: [case.id for case in cases] for part, cases in chosen.items()}
        folds = [{"train": ids["training"], "val": ids["validation"]}]
        if os.path.lexists(split) and _found(split) != folds:
            raise InputError(f"{split} holds another split, so it is left: move it away, or {ELSEWHERE}")
    lacking = [pair for pair in work if not _is_there(*pair)]
    for source, target in tqdm(lacking, "exporting scans", leave=False):
        _place(source, target)
    there = [path for path in out.glob("labelsTr/*.nii.gz") if not path.name.startswith(".")]  # macOS: ._NAME
    value |= {"numTraining": len(there), "file_ending": ".nii.gz"}
    write_json(out / "dataset.json", value)
    if folds and not split.exists():
        write_json(split, folds)
    return value


# Scores


def label_map_of(case: Case, folder: Path) -> Path:
    """The file in `folder` that is called as the case's id, image or labels. InputError: none is."""
    stems = [re.sub(r"\.nii(\.gz)?$", "", path.name) for path in (case.image, case.labels) if path]
    stems = [name for stem in (case.id, *stems) for name in (stem, stem.removesuffix("_0000"))]
    names = list(dict.fromkeys(f"{stem}{suffix}" for stem in stems for suffix in (".nii.gz", ".nii")))
    if there := next((folder / name for name in names if (folder / name).is_file()), None):
        return there
    advice = f"put one there under one of the names {', '.join(names)}."
    raise InputError(f"{folder} has no label map of {case.id}: {advice}")


def _rows(case: Case, path: Path, ids: str) -> pd.DataFrame:
    """Score rows of one case, for the organs that both label maps know."""
    assert case.labels is not None
    _, grid = read_scan(case.image)
    truth, theirs = read_labels(case.labels, case.label_map, grid), read_labels(path, ids, grid)
    masks = ((key, theirs == BY_KEY[key].label) for key in labelled(ids))
    return pd.DataFrame(score_case(masks, truth, case.label_map, grid.spacing_mm)).assign(case=case.id)


def _check_name(name: str, scores: Path) -> None:
    """InputError where `name` is empty or one of our own runs, an ablation with stored scores included."""
    ours = {*RUNS, *STAND_INS}
    if scores.is_file():
        stored = pd.read_csv(scores, usecols=["run", "config"], dtype=str)
        ours |= {*stored.loc[~stored["config"].str.startswith(FROM_LABELS), "run"]}
    if not name or name in ours:
        what = "a run of our own" if name else "nothing"
        raise InputError(f"{name!r} names {what}: give the label maps a name, nnunet for example.")


def score(name: str, dataset: str, folder: Path, profile: str, ids: str = "", jobs: int = 0) -> pd.DataFrame:
    """Scores the label maps in `folder` against a test set's ground truth, for scores.csv as run `name`.

    dataset: one that the baseline is tested on. ids: what the numbers in the files mean, a key of LABEL_MAPS
    or the path of an nnU-Net dataset.json; by default the folder's, else FLARE22's. jobs: processes.

    InputError: `name` is a run of ours, or a label map is missing, off its scan's grid or of unknown ids.
    """
    path = results_root(profile) / "scores.csv"
    _check_name(name, path)
    ids = ids or (str(folder / "dataset.json") if (folder / "dataset.json").is_file() else "FLARE22")
    label_ids(ids)  # before the first scan is read
    cases = cases_of(settings_of("baseline", profile), dataset)
    work = [(case, label_map_of(case, folder), ids) for case in cases]
    jobs = jobs or (-1 if len(work) > 3 else 1)  # to start a process takes as long as a small scan
    scored = Parallel(jobs, return_as="generator")(delayed(_rows)(*one) for one in work)
    table = pd.concat(list(tqdm(scored, f"scoring {name} on {dataset}", len(work), leave=False)))
    own = {"run": name, "seed": 0, "profile": profile, "dataset": dataset, "variant": "", "condition": ""}
    hashes = [file_hash(path) for _, path, _ in work]
    table = table.assign(**own, config=FROM_LABELS + value_hash([ids, *hashes]))
    table = table[[*KEY, "config", *(column for column in table if column not in (*KEY, "config"))]]
    merge_csv(path, table, ["run", "seed", "dataset", "variant"], KEY)
    return table


def main() -> None:
    """Command line of `make export` and `make score`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    out, back = commands.add_parser("export"), commands.add_parser("score")
    back.add_argument("name", help="how the tables call it: nnunet")
    for command in (out, back):
        command.add_argument("dataset", help="FLARE22, BTCV, 'AMOS22 CT', 'AMOS22 MRI'; 'site A' ...")
        command.add_argument("--profile", default=os.environ.get("PROFILE") or "demo")
    out.add_argument("part", help="training, validation, test, or several joined by +")
    out.add_argument("out", help="nnUNet_raw/Dataset022_FLARE22, for example")
    back.add_argument("labels", type=Path, help="folder of the label maps, one for each test case")
    back.add_argument("--ids", default="", help=f"{', '.join(LABEL_MAPS)}, or an nnU-Net dataset.json")
    asked = parser.parse_args()
    try:
        if asked.command == "export":
            folder = Path(os.path.abspath(asked.out))
            value = export(asked.dataset, asked.part.split("+"), folder, asked.profile)
            where = f"{folder}, which has {value['numTraining']} training cases"
            print(f"export: {asked.part} of {asked.dataset} is in {where}")
        else:
            table = score(asked.name, asked.dataset, asked.labels, asked.profile, asked.ids)
            result = f"{mean_dice(table):.3f} on {table['case'].nunique()} cases of {asked.dataset}"
            print(f"score: {asked.name} has a mean Dice of {result}, in scores.csv")
    except InputError as error:
        sys.exit(f"{asked.command}: {error}")


if __name__ == "__main__":
    main()
