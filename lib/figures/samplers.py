"""What a training costs by each sampler: an extract for the table that compares them."""

import time
from typing import Any

import numpy as np
import pandas as pd

from lib.profiles import SHUFFLED, is_finished, run_folder, settings_of

from .extracts import stored, write_extract

STEPS, ROUNDS = 10, 2  # steps that are timed, and how often each
DRAWN = 200  # steps whose terms are counted
COLUMNS = ["run", "terms a step", "steps", "seconds a training"]


def _step_seconds(runs: list[str], profile: str, samplers: list[Any]) -> np.ndarray:
    """Seconds of an untrained model's step of each run, its terms' preparation included: the mean over steps of each one's best round."""
    import torch  # here, because figures alone should take seconds

    from lib.clipseg import build, losses

    settings = [settings_of(run, profile) for run in runs]
    models = [build(one).train() for one in settings]
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    seconds = np.empty((ROUNDS, STEPS, len(runs)))
    for at in np.ndindex(seconds.shape):  # the best round, and the runs by turns: what else the machine does counts little
        _, step, i = at
        start = time.perf_counter()
        losses(models[i], samplers[i][step], settings[i], 0.0)["loss"].backward()
        optimizers[i].step()
        optimizers[i].zero_grad()
        seconds[at] = time.perf_counter() - start
    return seconds.min(axis=0).mean(axis=0)


def _costs(runs: list[str], profile: str, stores: list[Any]) -> pd.DataFrame:
    from lib.windows import TermSampler

    samplers = [TermSampler(stores, settings_of(run, profile)) for run in runs]
    terms = [np.mean([len(sampler[step].prompt) for step in range(DRAWN)]) for sampler in samplers]
    timed = not settings_of(runs[0], profile).full_size  # whose steps the benchmark measures
    seconds = _step_seconds(runs, profile, samplers) if timed else np.full(len(runs), np.nan)
    steps = np.array([len(sampler) for sampler in samplers])
    return pd.DataFrame(dict(zip(COLUMNS, (runs, terms, steps, steps * seconds), strict=True)))


def extract_samplers(profile: str) -> None:
    """samplers.csv: terms a step, steps and seconds of a training by each sampler; methods not trained here keep their stored rows."""
    from lib.datasets import stores_of

    kept = stored(profile, "samplers.csv", needed=False)
    rows = pd.read_csv(kept) if kept.is_file() else pd.DataFrame(columns=COLUMNS)
    for shuffled in SHUFFLED:
        if is_finished(run_folder(shuffled, profile), settings_of(shuffled, profile)):
            stores, pair = stores_of(settings_of(shuffled, profile), "training"), [shuffled.partition(",")[0], shuffled]
            new = _costs(pair, profile, stores)
            rows = pd.concat([rows[~rows["run"].isin(pair)], new]) if len(rows) else new
    write_extract(rows, profile, "samplers.csv", float_format="%.4g")
