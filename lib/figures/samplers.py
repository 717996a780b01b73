"""What a training costs by each sampler: an extract for the table that compares them."""

import time
from typing import Any

import numpy as np
import pandas as pd

from lib.profiles import SHUFFLED, is_finished, run_folder, settings_of

from .extracts import stored, write_extract

STEPS = 10  # that are timed, after one that is not
DRAWN = 200  # steps whose terms are counted
COLUMNS = ["run", "terms a step", "steps", "seconds a training"]


def _step_seconds(run: str, profile: str, sampler: Any) -> float:
    """Mean seconds of an untrained model's step, its terms' preparation included.

    They are a processor's on one thread, so that other work on the machine counts little.
    """
    import torch  # here, because figures alone should take seconds

    from lib.clipseg import build, losses

    settings, threads = settings_of(run, profile), torch.get_num_threads()
    model = build(settings).train()
    optimizer = torch.optim.AdamW(model.parameters())

    def take(step: int) -> None:
        losses(model, sampler[step], settings, 0.0)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.set_num_threads(1)
    try:
        take(0)
        start = time.process_time()
        for step in range(STEPS):
            take(step)
        return (time.process_time() - start) / STEPS
    finally:
        torch.set_num_threads(threads)


def _cost(run: str, profile: str, stores: list[Any]) -> tuple[str, float, int, float]:
    from lib.windows import TermSampler

    sampler = TermSampler(stores, settings_of(run, profile))
    terms = float(np.mean([len(sampler[step].prompt) for step in range(DRAWN)]))
    timed = not settings_of(run, profile).full_size  # whose steps the benchmark measures
    return run, terms, len(sampler), len(sampler) * _step_seconds(run, profile, sampler) if timed else np.nan


def extract_samplers(profile: str) -> None:
    """samplers.csv: terms a step, steps and seconds of a training by each sampler; methods not trained here keep their stored rows."""
    from lib.datasets import stores_of

    kept = stored(profile, "samplers.csv", needed=False)
    rows = pd.read_csv(kept) if kept.is_file() else pd.DataFrame(columns=COLUMNS)
    for shuffled in SHUFFLED:
        if is_finished(run_folder(shuffled, profile), settings_of(shuffled, profile)):
            stores, pair = stores_of(settings_of(shuffled, profile), "training"), (shuffled.partition(",")[0], shuffled)
            new = pd.DataFrame([_cost(run, profile, stores) for run in pair], columns=COLUMNS)
            rows = pd.concat([rows[~rows["run"].isin(pair)], new]) if len(rows) else new
    write_extract(rows, profile, "samplers.csv", float_format="%.4g")
