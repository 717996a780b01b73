"""One training loop for every model, on Hugging Face Accelerate: one process or many, CPU or GPU, by its configuration alone."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lib.clipseg import losses
from lib.profiles import Settings, is_finished
from lib.training.costs import cost_of, estimate
from lib.training.run import Run, StepLosses

LOG_STEPS = 25
WORKERS = 4  # processes that prepare the batches of full-size slices and volumes


def loader(sampler: Any, settings: Settings, start: int, device: torch.device) -> DataLoader:
    """Batches from step `start` on. Full-size ones are prepared ahead by processes of their own: a batch is a function of its step."""
    large = settings.size > 200 or math.prod(settings.patch_voxels) > 2**19
    ahead = min(WORKERS, (os.cpu_count() or 1) - 1) if settings.full_size and large else 0
    pinned = device.type == "cuda"
    return DataLoader(sampler, batch_size=None, sampler=range(start, len(sampler)), num_workers=ahead, pin_memory=pinned)


def train(
    settings: Settings,
    model: nn.Module,
    sampler: Any,
    validate: Callable[[Any], dict[str, float]] | None,
    folder: Path,
    step_losses: StepLosses = losses,
) -> Path:
    """Trains `model` in `folder`, from its checkpoint where it has one; returns the weights that were best on validation.

    `sampler` (TermSampler, PatchSampler, SliceSampler) maps a step to its batch, `validate` a model to its "validation_dice" and other
    columns of log.csv, once an epoch (without it, or if `settings.keep` says so, the last weights count). Nothing is done where the
    folder holds a finished run of the same settings. Killed and called again, the run ends bit for bit as if it had not been.
    """
    best = folder / "best.safetensors"
    if is_finished(folder, settings):
        return best
    epoch_steps = (total := len(sampler)) // settings.epochs
    start = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    cost = cost_of(model, sampler[0], step_losses, settings) if settings.full_size else None
    run = Run(settings, model, epoch_steps, folder)
    run.start()
    progress, device, quiet = run.progress, run.accelerator.device, not run.accelerator.is_main_process
    if cost is not None and not quiet:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        print(f"{folder.name}: {estimate(cost, total - progress.step, name, settings)}", flush=True)
    bar = tqdm(total=total, initial=progress.step, desc=f"training {folder.name}", leave=False, disable=quiet)
    for batch in run.batches(loader(sampler, settings, progress.step, device)):
        run.step(batch, step_losses, total)
        bar.update()
        epoch, position = divmod(progress.step, epoch_steps)
        scored: dict[str, float] = {}
        if position == 0:
            scored = validate(run.bare_model) if validate else {}
            run.judge(scored["validation_dice"] if scored and settings.keep == "best" else float(epoch))
        if position == 0 or progress.step % LOG_STEPS == 0:
            progress.log(epoch=epoch, lr=run.scheduler.get_last_lr()[0], **scored)
            shown = {"loss": f"{progress.rows[-1]['loss']:.3f}", "waiting": f"{progress.waited / max(progress.seconds, 1e-9):.0%}"}
            if validate and settings.keep == "best" and progress.best_step:
                shown["best validation Dice"] = f"{progress.best:.3f}"
            bar.set_postfix(shown)
        if run.is_due() or position == 0:
            run.checkpoint()
    run.finish(start)
    bar.close()
    return best


def adopt(model: nn.Module, settings: Settings, folder: Path) -> None:
    """Makes the model's weights those of a finished run in `folder`, which is not to be trained: a released checkpoint's."""
    run = Run(settings, model, 1, folder)
    run.start()
    run.judge(0.0)
    run.finish({name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()})
