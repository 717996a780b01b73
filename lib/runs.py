"""A run from its name to its scores: train, predict every test scan, score. What is there already is not done again."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from filelock import FileLock
from tqdm.auto import tqdm

from lib.clipseg import TextPromptedSegmenter, build
from lib.datasets import Store, stores_of
from lib.inference import Prediction, predict
from lib.metrics import KEY, mean_dice, score_case
from lib.organs import KEYS, ORGANS
from lib.paths import InputError, replacing, results_root
from lib.profiles import Settings, is_finished, run_folder, settings_of
from lib.training import load_weights, train
from lib.volumes import read_labels, write_nifti
from lib.windows import TermSampler


def _rows(prediction: Prediction, store: Store) -> list[dict[str, Any]]:
    """Score rows of one scan, against the truth on the scan's own grid."""
    assert store.source.labels is not None
    truth = read_labels(store.source.labels, store.label_map, store.grid)
    masks = ((key, store.grid.to_canonical(prediction.mask(key))) for key in KEYS)
    return list(score_case(masks, truth, store.label_map))


def validator(stores: list[Store], settings: Settings) -> Callable[[TextPromptedSegmenter], float]:
    """Model -> mean Dice over whole validation volumes, by which the best checkpoint is chosen."""

    def validate(model: TextPromptedSegmenter) -> float:
        rows = [row for store in stores for row in _rows(predict(model, store, settings), store)]
        return float(np.nan_to_num(mean_dice(pd.DataFrame(rows))))  # 0 where no organ is there or found: some weights must be kept

    return validate


def trained(run: str, profile: str | None = None) -> TextPromptedSegmenter:
    """The run's model with the weights that were best on validation; trains what is not trained yet, its start included."""
    settings, folder = settings_of(run, profile), run_folder(run, profile)
    best = folder / "best.safetensors"
    process = PartialState(cpu=not torch.accelerator.is_available())  # each of several processes takes its share of a step
    model = build(settings)
    if not is_finished(folder, settings):
        if settings.start_from:
            trained(settings.start_from, profile)
            load_weights(model, run_folder(settings.start_from, profile) / "best.safetensors", strict=False)
        sampler = TermSampler(stores_of(settings, "training"), settings, process.process_index, process.num_processes)
        validate = validator(stores_of(settings, "validation"), settings) if settings.test_on else None
        train(settings, model, sampler, validate, folder)
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


def evaluate(run: str, profile: str | None = None) -> pd.DataFrame:
    """Scores of a run on all its test data, case by case; cases that were scored with these settings are not predicted again."""
    settings, folder = settings_of(run, profile), run_folder(run, profile)
    model = trained(run, profile)
    tables = []
    for dataset in settings.test_on:
        for store in tqdm(stores_of(settings, dataset), f"{run} on {dataset}", leave=False):
            where = folder / "predictions" / dataset
            scores = where / f"{store.id}.csv"
            if not scores.exists() or scores.stat().st_mtime < (store.folder / "case.json").stat().st_mtime:
                prediction = predict(model, store, settings)
                _write_prediction(prediction, store, where)
                with replacing(scores) as part:
                    pd.DataFrame(_rows(prediction, store)).to_csv(part, index=False)
            key = {"run": run, "config": settings.hash(), "dataset": dataset, "case": store.id}
            tables.append(pd.read_csv(scores).assign(**key))
    table = pd.concat(tables)
    table = table[[*KEY, *(name for name in table if name not in KEY)]]
    merge_scores(table, results_root(settings.profile))
    return table


def merge_scores(table: pd.DataFrame, results: Path) -> None:
    """Puts a run's rows into scores.csv, in the place of those that the run has there; runs that end at once take turns."""
    path = results / "scores.csv"
    with FileLock(results / "runs" / "scores.lock"):
        if path.exists():
            old = pd.read_csv(path, dtype={"config": str, "case": str})
            table = pd.concat([old[~old["run"].isin(table["run"].unique())], table])
        with replacing(path) as part:
            table.sort_values(KEY).to_csv(part, index=False, float_format="%.6g")


def main() -> None:
    """Command line: train and score runs one after the other."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", nargs="+", help='"baseline", "adapter", "adapter, seed 1", "pretraining"')
    parser.add_argument("--profile")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (default: all)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        for run in arguments.run:
            if settings_of(run, arguments.profile).test_on:
                print(f"{run}: mean Dice {mean_dice(evaluate(run, arguments.profile)):.3f}", flush=True)
            else:
                trained(run, arguments.profile)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
