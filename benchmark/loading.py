"""Whether a model ever waits for its batches."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark import released
from benchmark.measuring import alternately, seconds, t4_hours
from benchmark.parts import Size
from lib.datasets import Store
from lib.profiles import settings_of
from lib.training.loop import loader
from lib.windows import TermSampler

STEPS = 20  # that are waited for


def waiting(sampler: TermSampler, step_seconds: float, steps: int = STEPS) -> float:
    """Share of its time that a device which takes `step_seconds` a step waits for the training's own loader.

    A pause stands in for the device's work: like a GPU's, it leaves the processor to the loader.
    """
    batches = iter(loader(sampler, sampler.settings, 0, torch.device("cpu")))
    next(batches)  # once its processes have started
    waited = 0.0
    for _ in range(steps):
        time.sleep(step_seconds)
        waited += seconds(lambda: next(batches))
    return waited / (waited + steps * step_seconds)


def loading(size: Size, store: Store, files: Path, slab_seconds: float, centre_gflop: float) -> dict[str, Any]:
    """Seconds of a step's batch by one process; the share of time spent waiting for it; and seconds of a slice, from files and ours.

    slab_seconds: what a slab's forward and backward pass takes this processor. centre_gflop: its work by centre, for a T4's time.
    """
    settings = settings_of("adapter", size.profile)
    sampler, step = TermSampler([store], replace(settings, epoch_steps=STEPS + 1)), iter(range(10**6))
    batch = float(np.median(alternately({"ours": lambda: sampler[next(step)]}, 5 * size.rounds)["ours"]))
    here = slab_seconds * settings.batch / settings.run_length
    work, precisions = settings.batch * centre_gflop, {"a T4 in float32": "no", "a T4 in fp16": "fp16"}
    there = {name: 3600 * t4_hours(work, precision) for name, precision in precisions.items()}
    middle = len(store.image) // 2
    window = list(range(middle - 2, middle + 3))
    ways = {"released": lambda: released.read_window(files, window, 1), "ours": lambda: store.slices(np.array(window))}
    reads = alternately(ways, 10 * size.rounds)
    return {
        "seconds a batch": batch,
        "seconds a step": {"this processor": here} | there,
        "share of waiting": {"this processor": batch / (batch + here)} | {name: waiting(sampler, took) for name, took in there.items()},
        "seconds a slice read": {name: [value / len(window) for value in values] for name, values in reads.items()},
    }
