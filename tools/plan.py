"""`make plan`: every headline run with its steps, and hours, memory and disk on this device, as measured.

`make paper PROFILE=full` prints it before it starts. Each model takes three steps on the run's own scans and
segments one validation scan, so that a plan costs minutes and not a guess.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache
from torch.utils.flop_counter import FlopCounterMode

from lib.config import RUNS, listed, run_folder, settings_of
from lib.data import Store, cases_of, stores_of
from lib.files import InputError
from lib.training import Trainer, check_machine, processes, volume_dice
from tools.train import PARTS

FIRST = 2  # steps that are not measured, in which libraries choose their kernels
SCORING = 2.0  # seconds of a scan's metrics: 1.75 for 12 organs in 512 x 512 x 100 voxels on one core


class Measured(NamedTuple):
    """What some steps of a run took."""

    model: Any
    seconds: float  # of a step
    tflop: float  # of a step, counted
    peak_gb: float  # of a GPU's memory; NaN on a processor
    pieces: int  # that a step was cut into to fit
    losses: list[float]  # of each step, from the first


def wait(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(work: Callable[[], Any]) -> float:
    """Seconds that the device takes for it."""
    device = processes().device
    began = wait(device)
    work()
    return wait(device) - began


def measure(name: str, settings: Any, stores: list[Store], steps: int = 3) -> Measured:
    """Takes `steps` steps of a run, after FIRST others; their batches are ready. InputError: as in a run."""
    check_machine(settings)
    device, (build, sampler, losses) = processes().device, PARTS[name]
    clear_device_cache(garbage_collection=True)
    AcceleratorState._reset_state()  # or a second precision in one process would be refused
    batches = sampler(stores, settings)
    ready = [batches[step] for step in range(FIRST + steps)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(build(settings), settings, losses, len(batches), Path(folder))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with FlopCounterMode(display=False) as counter:
        trainer.step(ready[0])
    for batch in ready[1:FIRST]:
        trainer.step(batch)
    began = wait(device)
    for batch in ready[FIRST:]:
        trainer.step(batch)
    seconds = (wait(device) - began) / steps
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else float("nan")
    found = [row["loss"].item() for row in trainer.progress.recent]
    model, flop = trainer.accelerator.unwrap_model(trainer.model), counter.get_total_flops()
    return Measured(model, seconds, flop / 1e12, peak, trainer.pieces, found)


def plan_of(name: str, settings: Any) -> dict[str, Any]:
    """A row of the plan. Scoring: the run's own test sets, without notebook 04's prompts and windows."""
    if (run_folder(name, settings) / "best.safetensors").exists():
        return {"run": name, "steps": "trained", "hours": 0.0}
    stores, judges = stores_of(settings, "training"), stores_of(settings, "validation")
    took = measure(name, settings, stores)
    sampler, each = PARTS[name][1], seconds_of(lambda: volume_dice(took.model, judges[:1], settings))
    tested = sum(len(cases_of(settings, one, settings.test_variant)) for one in settings.test_on)
    total, weights = len(sampler(stores, settings)), sum(p.numel() for p in took.model.parameters()) * 4e-9
    hours = {
        "training": total * took.seconds / 3600,
        "validation": -(-settings.epochs // settings.validate_every) * len(judges) * each / 3600,
        "scoring": tested * (each + SCORING) / 3600,
    }
    return {
        "run": name, "steps": total, "seconds a step": took.seconds, **hours, "hours": sum(hours.values()),
        "GPU memory, GB": took.peak_gb, "pieces a step": took.pieces, "disk, GB": 7 * weights}


def plan(profile: str) -> pd.DataFrame:
    """The headline runs of a profile (those that $RUNS names), in the order in which they go."""
    rows, names = [], listed("RUNS")
    for name in (name for name in RUNS if not names or name in names):
        try:
            rows.append(plan_of(name, settings_of(name, profile)))
        except InputError as error:  # what is missing is left out, and `make paper` leaves it out, too
            print(f"plan: {name} is left out: {error}", flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table = plan(os.environ.get("PROFILE", "full"))
    if len(table):
        print(table.to_string(index=False, na_rep="–", float_format="{:.2f}".format))
        whole = f"{table['hours'].sum():.1f} hours for {len(table)} runs on {processes().device}"
        print(f"plan: {whole}, by three measured steps and one scan of each. The disk is what a run takes "
              "while it trains: two checkpoints and its weights.", flush=True)
