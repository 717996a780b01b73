"""Scores a trained run on any folder of images and labels.

Options are variables in the environment, as make hands them on:
RUN=adapter PROFILE=demo IMAGES=folder LABELS=folder IDS=BTCV NAME=clinic MODALITY=CT python -m tools.score
"""

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from lib.clipseg import load_weights
from lib.config import run_folder, settings_of
from lib.data import LAYOUTS, SUFFIX, Case, prepare
from lib.files import InputError, cache_root, file_hash, read_csv, results_root
from lib.metrics import keep_scores, mean_dice
from lib.training import evaluate, processes
from lib.volumes import read_scan
from tools.nnunet import ids_of
from tools.segment import modality_of
from tools.train import PARTS

OPTIONS = "RUN", "PROFILE", "IMAGES", "LABELS", "IDS", "NAME", "MODALITY"


def _stems(place: Path) -> dict[str, Path]:
    """{name without its end and nnU-Net's _0000: path} of the NIfTI files in a folder, or of one file."""
    paths = [place] if place.is_file() else sorted(place.glob("[!.]*"))
    named = ((re.fullmatch(rf"(.+?)(_0000)?{SUFFIX}", path.name), path) for path in paths)
    return {match[1]: path for match, path in named if match}


def _numbers(stem: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", stem)]


def paired(images: Path, labels: Path, ids: str, modality: str) -> list[Case]:
    """Cases of two folders, or of two files: an image has the labels of its own stem, else of its numbers.

    InputError: there is no image, or one is not of the modality, or has no labels or those of another, too.
    """
    cases, theirs = list[Case](), _stems(labels)
    for stem, image in _stems(images).items():
        found = [path for name, path in theirs.items() if _numbers(name) == _numbers(stem)]
        if stem in theirs:
            found = [theirs[stem]]
        elif not (_numbers(stem) or images.is_file()):
            found = []
        if len(found) != 1 or found[0] in [case.labels for case in cases]:
            files = ", ".join(path.name for path in found) or "no file"
            advice = "give an image and its labels one name or number, which no other has."
            raise InputError(f"{image} has {files} in {labels} for its labels: {advice}")
        said = modality_of(image, read_scan(image)[0], None, modality)  # which refuses a CT that is not in HU
        cases.append(Case(stem, image, found[0], ids, said))
    if not cases:
        raise InputError(f"{images} holds no .nii or .nii.gz file: name the folder of the images by IMAGES.")
    return cases


def score_run(run: str, images: Path, labels: Path, profile: str = "demo", *, ids: str = "", name: str = "",
              modality: str = "CT", seed: int = 0) -> pd.DataFrame:
    """Scores a trained run; its rows take their place in scores.csv, as of the data set `name`.

    ids: as in `ids_of`. name: by default the name of the images' folder. Scans that trained the run, or chose
    its weights, are left out, and said. InputError: it is not trained, or a file or a name does not fit.
    """
    if run not in PARTS:
        raise InputError(f"{run!r} is no run: choose one of {', '.join(PARTS)}.")
    settings, images, labels = settings_of(run, profile, seed), images.expanduser(), labels.expanduser()
    folder, name = run_folder(run, settings), name or re.sub(SUFFIX, "", images.name)
    if not (weights := folder / "best.safetensors").is_file():
        raise InputError(f"{folder} holds no trained model: train it by `make paper PROFILE={profile}`.")
    if name in (settings.train_on, *settings.test_on, *LAYOUTS) or name != Path(name).name:
        raise InputError(f"{name!r} is a data set of the papers, or no name: give these scans one by NAME.")
    cases = paired(images, labels, ids_of(labels if labels.is_dir() else labels.parent, ids), modality)
    if (path := results_root(profile) / "splits.csv").is_file():
        splits, parts = read_csv(path), ["training", "validation"][: 1 + (settings.keep == "best")]
        if "fold" not in splits:
            raise InputError(f"{path} is a table of other columns: move it away, and run `make paper` again.")
        own = (splits["fold"] == settings.fold) & (splits["trained_on"] == settings.train_on)
        own &= splits["variant"] == settings.test_variant
        learned = splits[own & splits["part"].isin(parts)]
        known = [case for case in cases if file_hash(case.image) in {*learned["image_sha256"]}]
        if known:
            scans = ", ".join(case.id for case in known)
            print(f"{run} learned from {len(known)} of {len(cases)} scans, which are left out: {scans}")
            cases = [case for case in cases if case not in known]
    if not cases:
        raise InputError(f"{run} learned from all scans of {images}: name others by IMAGES.")
    load_weights(model := PARTS[run][0](settings), weights)
    stores = prepare(cases, settings, cache_root() / "stores" / f"scored-{name}")
    model, test = model.to(processes().device), (name, "", "")
    table = evaluate(model, settings, test, folder / "predictions", stores=stores)
    if table.empty:
        raise InputError(f"{labels} shows no organ that {run} has learned: check its ids, and say IDS=.")
    table = table.assign(run=run, seed=seed, profile=profile, config=settings.hash())
    return keep_scores(table, profile)


def main() -> None:
    """Scores as the environment says; prints the mean Dice of each organ and of all."""
    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
    given: dict[str, Any] = {name.lower(): os.environ[name] for name in OPTIONS if os.environ.get(name)}
    if not {"run", "images", "labels"} <= given.keys():
        sys.exit(__doc__)
    try:
        images, labels = Path(given.pop("images")), Path(given.pop("labels"))
        table = score_run(given.pop("run"), images, labels, **given)
    except InputError as error:
        sys.exit(f"score: {error}")
    organs = table.groupby("organ", sort=False)["dice"].mean()
    print(organs.to_string(header=False, float_format="%.3f"))
    run, profile, name = table.iloc[0][["run", "profile", "dataset"]]
    settings = settings_of(run, profile)
    if missing := [key for key in settings.organs if key not in organs]:
        print(f"not scored, for no label file here or of the training set shows them: {', '.join(missing)}")
    taught = f"{run} (trained on {settings.train_on}{', phantoms' * settings.phantoms})"
    count = table["case"].nunique()
    result = f"{mean_dice(table):.3f} over {len(organs)} organs on {count} case{'s'[: count > 1]} of {name}"
    print(f"score: {taught} has a mean Dice of {result}, in scores.csv")


if __name__ == "__main__":
    main()
