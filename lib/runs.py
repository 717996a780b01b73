"""A run from its name to its scores: train, predict every test scan, score. What is there already is not done again."""

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm.auto import tqdm

from lib.baselines import PatchSampler, build_dynunet, build_unetr, volume_losses
from lib.clipseg import build, losses
from lib.datasets import Store, check_disjoint, stores_of
from lib.datasets.splits import record_split
from lib.inference import Prediction, mask_of
from lib.med_vlm import (
    MedVLM,
    build_med_vlm,
    build_patch_classifier,
    build_unet,
    med_vlm_losses,
    patch_losses,
    start_image_encoder,
    unet_losses,
)
from lib.metrics import KEY, score_case
from lib.needs import check_machine, check_setup, missing_data
from lib.organs import KEYS, ORGANS, PROMPT_SETS, PROMPTS, TEXTS, text_prompts
from lib.paths import InputError, clear_parts, locked, replacing, results_root
from lib.profiles import WINDOW_IN_MM, Settings, evaluations, is_finished, run_folder, settings_of
from lib.statistics import mean_dice
from lib.training import StepLosses, adopt, load_weights, take_up, train
from lib.validation import judged, predict_any
from lib.volumes import read_labels, write_nifti
from lib.windows import SliceSampler, TermSampler

# A kind of model: what builds it, what feeds it, and what it learns by
KINDS: dict[str, tuple[Callable[[Settings], nn.Module], Any, StepLosses]] = {
    "clipseg": (build, TermSampler, losses),
    "dynunet": (build_dynunet, PatchSampler, volume_losses),
    "unetr": (build_unetr, PatchSampler, volume_losses),
    "unet": (build_unet, SliceSampler, unet_losses),
    "med-vlm": (build_med_vlm, SliceSampler, med_vlm_losses),
    "vit": (build_patch_classifier, SliceSampler, patch_losses),
}


def _rows(prediction: Prediction, store: Store, organs: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Score rows of one scan, against the truth on the scan's own grid; prompts stand in the order of ORGANS."""
    assert store.source.labels is not None
    truth = read_labels(store.source.labels, store.label_map, store.grid)
    masks = ((key, store.grid.to_canonical(mask_of(prediction.claims, place))) for place, key in enumerate(KEYS) if key in organs)
    return score_case(masks, truth, store.label_map, store.grid.spacing_mm)


def build_model(settings: Settings) -> nn.Module:
    """The untrained model of a run."""
    return KINDS[settings.model][0](settings)


def processes() -> PartialState:
    """This process among those of `accelerate launch`, and its device. Others may wait for hours while one prepares volumes."""
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(hours=6))


def ready(run: str, profile: str | None = None) -> Settings:
    """The run's settings, once its folder is that of these settings (see `take_up`) and nothing that its training needs is missing.

    Raises:
        InputError: it is not finished, and something is missing (see `check_setup`); data sets are looked at by `missing_data`.
    """
    settings, folder, process = settings_of(run, profile), run_folder(run, profile), processes()
    if process.is_main_process:
        take_up(folder, settings)
    process.wait_for_everyone()
    if settings.epochs and not is_finished(folder, settings):
        check_setup(settings, process.device)
    return settings


def trained(run: str, profile: str | None = None) -> Any:
    """The run's model with the weights that were best on validation; trains what is not trained yet, its start included.

    Raises:
        InputError: something that the training needs is missing; it is looked for before anything starts.
    """
    settings, folder = ready(run, profile), run_folder(run, profile)
    best = folder / "best.safetensors"
    process = processes()  # each of several takes its share of a step
    if settings.epochs and not is_finished(folder, settings):
        missing_data(settings, ())
    model = build_model(settings)
    if not is_finished(folder, settings) and not settings.epochs:
        load_weights(model, Path(settings.weights).expanduser())
        adopt(model, settings, folder)
    elif not is_finished(folder, settings):
        if settings.start_from:
            trained(settings.start_from, profile)
            start = run_folder(settings.start_from, profile) / "best.safetensors"
            if isinstance(model, MedVLM):
                start_image_encoder(model, settings_of(settings.start_from, profile), start)
            else:
                load_weights(model, start, strict=False)
        _, kind, step_losses = KINDS[settings.model]
        stores = stores_of(settings, "training")
        with process.local_main_process_first():  # what a sampler keeps on disk is made once
            sampler = kind(stores, settings, process.process_index, process.num_processes)
        train(settings, model, sampler, judged(settings) if settings.test_on else None, folder, step_losses)
    load_weights(model, best)
    return model.to(process.device)  # a run that was finished before was not moved there by its training


def _write_prediction(prediction: Prediction, store: Store, folder: Path) -> None:
    """The claims of all prompts for the figures, and a label map for people."""
    write_nifti(label_map(prediction), store.grid, folder / f"{store.id}.nii.gz")
    with replacing(folder / f"{store.id}.npz") as part, open(part, "wb") as file:
        np.savez_compressed(file, claims=prediction.claims)


def label_map(prediction: Prediction) -> np.ndarray:
    """Native uint8 label map with our label ids, where prompts are organ keys; others count on from 14."""
    ids = [next((organ.label for organ in ORGANS if organ.prompt == p), 14 + i) for i, p in enumerate(prediction.prompts)]
    return np.array([0, *ids], np.uint8)[prediction.winner]


def prompts_of(condition: str, own: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The 13 prompts of a condition, in the order of ORGANS: a set of PROMPT_SETS, `own` ({organ: prompt}), else the organs' names.

    Raises:
        InputError: `own` names what is no organ, or the condition is none, or has prompts already.
    """
    if (condition in ("", WINDOW_IN_MM, *PROMPT_SETS)) == bool(own):
        known = ", ".join(map(repr, (WINDOW_IN_MM, *PROMPT_SETS)))
        raise InputError(f"{condition!r} with {'' if own else 'no '}prompts of your own: choose one of {known}, or prompts and a new name.")
    if unknown := [key for key in own or {} if key not in KEYS]:
        raise InputError(f"{', '.join(map(repr, unknown))} in the prompts of {condition!r} is no organ: choose from {', '.join(KEYS)}.")
    return tuple((own or {}).get(key, prompt) for key, prompt in zip(KEYS, PROMPT_SETS.get(condition, PROMPTS), strict=True))


def _asked(run: str, settings: Settings, condition: str, own: Mapping[str, str] | None) -> tuple[str, ...]:
    """The prompts that a run is tested with: CLIPSeg's 13, or Med-VLM's own texts in another wording.

    Raises:
        InputError: the run does not take the condition; see `prompts_of`.
    """
    if settings.model == "clipseg":
        return prompts_of(condition, own)
    worded = (
        {} if settings.model != "med-vlm" or settings.text == "one-hot" else {t: t for t in TEXTS if t != "one-hot"} | {"": settings.text}
    )
    if own or condition not in {"", *worded}:
        known = f"choose one of {', '.join(map(repr, worded))}" if worded else "it takes neither prompts nor windows"
        raise InputError(f"{run!r} cannot be tested on {condition!r}{' with prompts of your own' if own else ''}: {known}.")
    return text_prompts(worded.get(condition, "name"), settings.organs)


def evaluate_on(
    run: str,
    dataset: str,
    condition: str = "",
    profile: str | None = None,
    prompts: Mapping[str, str] | None = None,
    model: nn.Module | None = None,
) -> pd.DataFrame:
    """Scores of a run on one data set, case by case; cases that were scored with these settings are not predicted again.

    Several processes share the cases, and each returns all of their scores. They need one RESULTS_ROOT between them.

    condition: a set of prompts (PROMPT_SETS), WINDOW_IN_MM, or a name of your own for `prompts`, {organ: prompt}. model: the run's,
    where the caller has it already.
    """
    settings = settings_of(run, profile)
    asked = _asked(run, settings, condition, prompts)
    check_disjoint(settings, dataset)
    return _scored(run, dataset, condition, profile, asked, model or trained(run, profile), anew=bool(prompts))


def _scored(
    run: str, dataset: str, condition: str, profile: str | None, asked: tuple[str, ...], model: nn.Module, anew: bool = False
) -> pd.DataFrame:
    """`evaluate_on`, of a model that is there and a data set that was checked; `anew`: whatever was scored before."""
    settings, folder = settings_of(run, profile), run_folder(run, profile)
    seen = replace(settings, window_unit="mm") if condition == WINDOW_IN_MM else settings
    if isinstance(model, MedVLM):
        model.prompts = asked
    stores, process = stores_of(settings, dataset), processes()
    where = folder / "predictions" / " ".join([dataset, condition]).strip()
    if process.is_main_process:
        clear_parts(where)
    process.wait_for_everyone()  # what another machine writes would seem left by a killed process
    mine = stores[process.process_index :: process.num_processes]
    for store in tqdm(mine, f"{run} on {dataset} {condition}", leave=False, disable=not process.is_main_process):
        scores = where / f"{store.id}.csv"
        if anew or not scores.exists() or scores.stat().st_mtime < (store.folder / "case.json").stat().st_mtime:
            check_machine(settings, process.device)
            prediction = predict_any(model, store, seen, asked)
            if not condition and "," not in dataset:  # what the figures show
                _write_prediction(prediction, store, where)
            with replacing(scores) as part:
                pd.DataFrame(_rows(prediction, store, settings.organs)).to_csv(part, index=False)
    process.wait_for_everyone()
    key = {"run": run, "config": settings.hash(), "dataset": dataset, "condition": condition}
    table = pd.concat([pd.read_csv(where / f"{store.id}.csv").assign(**key, case=store.id) for store in stores])
    return table[[*KEY, *(name for name in table if name not in KEY)]]


def evaluate(run: str, profile: str | None = None) -> pd.DataFrame:
    """Scores of a run on all that it is tested on (profiles.evaluations), put into the profile's scores.csv.

    A test set that is not there, or cannot be used, is left out with one printed line; a later call scores what is missing, alone.
    """
    return _evaluate(run, profile)[0]


def _evaluate(run: str, profile: str | None) -> tuple[pd.DataFrame, list[str]]:
    """`evaluate`, and a sentence for each reason why test sets were left out."""
    settings, pairs, process = ready(run, profile), evaluations(run, profile), processes()
    asked = {condition: _asked(run, settings, condition, None) for _, condition in pairs}
    left_out = _left_out(settings, dict.fromkeys(dataset for dataset, _ in pairs))
    told = []
    for reason in dict.fromkeys(left_out.values()):
        told.append(f"{run} is not scored on {', '.join(name for name in left_out if left_out[name] == reason)}: {reason}")
    if process.is_main_process and told:
        print("\n".join(told), flush=True)
    model = trained(run, profile)
    there = [(dataset, condition) for dataset, condition in pairs if dataset not in left_out]
    table = pd.concat([_scored(run, dataset, condition, profile, asked[condition], model) for dataset, condition in there])
    if process.is_main_process:
        merge_scores(table, results_root(settings.profile), keep=left_out)
        record_split(settings, dict.fromkeys(["training", "validation", *(dataset for dataset, _ in there)]))
    return table, told


def _left_out(settings: Settings, datasets: Collection[str]) -> dict[str, str]:
    """{test set: why it cannot be scored on}: it is not there, a scan cannot be read, or the model learned from one.

    Raises:
        InputError: this holds of the scans to train and to validate on, or of all test sets.
    """
    missing = missing_data(settings, datasets)
    for part in ("training", "validation"):
        stores_of(settings, part)
    for dataset in datasets:
        try:
            if dataset not in missing:
                check_disjoint(settings, dataset)
        except InputError as error:
            if settings.phantoms:  # they are ours, so something is wrong with the machine
                raise
            missing[dataset] = str(error)
    if processes().num_processes > 1:
        broadcast_object_list(box := [missing])  # or they would wait for each other at different scans
        missing = box[0]
    if len(missing) == len(datasets):
        raise InputError(next(iter(missing.values())))
    return missing


def merge_scores(table: pd.DataFrame, results: Path, by: Sequence[str] = ("run",), keep: Collection[str] = ()) -> None:
    """Puts a run's rows into scores.csv, in the place of those with the same values in `by`; runs that end at once take turns.

    keep: data sets whose older rows stay, where the run had the same settings.
    """
    path = results / "scores.csv"
    with locked(results / "runs" / "scores.lock"):
        if path.exists():
            old = pd.read_csv(path, dtype={"config": str, "condition": str, "case": str}).fillna({"condition": ""})
            newer = pd.MultiIndex.from_frame(table[[*by]])
            kept = old["dataset"].isin(keep) & old["config"].isin(table["config"])
            table = pd.concat([old[~pd.MultiIndex.from_frame(old[[*by]]).isin(newer) | kept], table])
        with replacing(path) as part:
            table.sort_values(KEY).to_csv(part, index=False, float_format="%.6g")


def main() -> None:
    """Command line: train and score runs one after the other. What they need is looked at before the first one starts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", nargs="+", help='"baseline", "adapter", "adapter, seed 1", "pretraining"')
    parser.add_argument("--profile")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (default: all)")
    parser.add_argument("--told", type=Path, help="file for what was left out or failed; a missing test set is then no failure")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    left_out: list[str] = []
    failed: list[str] = []
    try:
        for run in arguments.run:
            ready(run, arguments.profile)
        for run in arguments.run:
            try:
                left_out += _train_and_score(run, arguments.profile)
            except InputError as error:
                if processes().num_processes > 1:  # the others are in the middle of this one
                    raise
                failed.append(f"{run}: {error}" if len(arguments.run) > 1 else str(error))
    except InputError as error:
        failed.append(str(error))
    if arguments.told and processes().is_main_process:
        arguments.told.write_text("".join(f"{line}\n" for line in [*left_out, *failed]))
    if failed or (left_out and not arguments.told):
        sys.exit("\n".join(failed) or "Test sets were left out, as said above: once they are there, the same command scores them alone.")


def _train_and_score(run: str, profile: str | None) -> list[str]:
    """Does all of a run; returns what was left out."""
    if not (tested := settings_of(run, profile).test_on):
        trained(run, profile)
        return []
    scores, left_out = _evaluate(run, profile)
    plain = scores[(scores["dataset"] == tested[0]) & (scores["condition"] == "")]
    if processes().is_main_process and len(plain):
        print(f"{run}: mean Dice {mean_dice(plain):.3f} on {tested[0]}", flush=True)
    return left_out


if __name__ == "__main__":
    main()
