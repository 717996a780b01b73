"""One training loop for every model, on Hugging Face Accelerate: one process or many, CPU or GPU, by its configuration alone."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lib.clipseg import losses
from lib.paths import replacing, unwritable, write_json
from lib.profiles import Settings, is_finished
from lib.training.audit import audit
from lib.training.weights import save_weights

LOG_STEPS = 25
StepLosses = Callable[[nn.Module, Any, Settings, float], dict[str, Tensor]]
COLUMNS = ["step", "epoch", "loss", "bce", "dice_loss", "gate", "lr", "validation_dice", "validation_loss", "training_dice"]


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Learning rates of section 3.5 by part of the model; every trainable parameter is in exactly one group."""
    groups: dict[str, dict[str, Any]] = {}
    rates = {"encoder": settings.lr_encoder, "decoder": settings.lr_decoder, "adapter": settings.lr_adapter, "gate": settings.lr_gate}
    rates["unet"] = settings.lr_unet
    parts = {"base_model.clip.": "encoder", "base_model.decoder.": "decoder", "adapter.gate_proj.": "gate", "adapter.": "adapter"}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next((part for start, part in parts.items() if name.startswith(start)), "unet")
            groups.setdefault(part, {"name": part, "lr": rates[part], "params": []})["params"].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(set(trainable)), "each trainable parameter belongs in exactly one optimizer group"
    return list(groups.values())


def schedule(optimizer: torch.optim.Optimizer, settings: Settings, epoch_steps: int) -> LRScheduler:
    """Cosine annealing with warm restarts (section 3.5), after a linear rise where the settings ask for one."""
    cosine = CosineAnnealingWarmRestarts(optimizer, settings.restart_epochs * epoch_steps)
    if not settings.warmup_steps:
        return cosine
    rise = LinearLR(optimizer, 0.05, total_iters=settings.warmup_steps)
    return SequentialLR(optimizer, [rise, cosine], [settings.warmup_steps])


def assert_gradients_arrive(model: nn.Module) -> None:
    """After the first backward pass: no trainable parameter may be without a gradient (design: the released baseline's encoders were).

    LoRA's first matrix has one of zeros, for its second starts at zero.
    """
    trainable = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    idle = [n for n, gradient in trainable.items() if gradient is None or not (gradient.any() or "lora_A" in n)]
    assert not idle, f"no gradient reaches {', '.join(idle[:5])}{' ...' if len(idle) > 5 else ''}"


class Progress:
    """Where a run stands: saved with every checkpoint, and the source of log.csv."""

    def __init__(self) -> None:
        self.step, self.best, self.best_step = 0, -1.0, 0
        self.rows: list[dict[str, Any]] = []
        self.recent: list[dict[str, float]] = []  # losses of the steps since the last row
        self.gradients: dict[str, float] = {}  # norm of each parameter's gradient at the first step

    def state_dict(self) -> dict[str, Any]:
        """For Accelerate's checkpoints."""
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From Accelerate's checkpoints."""
        vars(self).update(state)

    def log(self, **columns: Any) -> None:
        """Adds a row: means over the steps since the last one."""
        means = {name: sum(row[name] for row in self.recent) / len(self.recent) for name in self.recent[0]}
        self.rows.append({"step": self.step, **means, **columns})
        self.recent = []

    def write(self, path: Path) -> None:
        """Writes log.csv."""
        with replacing(path) as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


class Run:
    """A model in training, in a folder of its own: config.json, log.csv, best.safetensors, and the newest checkpoint."""

    def __init__(self, settings: Settings, model: nn.Module, epoch_steps: int, folder: Path) -> None:
        self.settings, self.folder, self.progress = settings, folder, Progress()
        once = DataLoaderConfiguration(split_batches=True)  # the schedule moves once a step, however many processes share it
        self.accelerator = Accelerator(mixed_precision=settings.precision, dataloader_config=once)
        optimizer = torch.optim.AdamW(parameter_groups(model, settings), weight_decay=settings.weight_decay)
        prepared = self.accelerator.prepare(model, optimizer, schedule(optimizer, settings, epoch_steps))
        self.model, self.optimizer, self.scheduler = prepared
        self.accelerator.register_for_checkpointing(self.progress)
        self.checked = False

    @property
    def bare_model(self) -> nn.Module:
        """The model without what Accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def start(self) -> None:
        """Takes up the newest checkpoint; clears the folder if it is another configuration's."""
        config = self.folder / "config.json"
        if self.accelerator.is_main_process:
            if config.exists() and json.loads(config.read_text())["hash"] != self.settings.hash():
                shutil.rmtree(self.folder)
            self.write_config()
        self.accelerator.wait_for_everyone()
        if whole := sorted(self.folder.glob("checkpoint-*")):
            self.accelerator.load_state(str(whole[-1]))

    def step(self, batch: Any, step_losses: StepLosses, total: int) -> None:
        """One step of the optimizer and of its schedule. `batch`: a named tuple of tensors."""
        self.model.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.progress.step)  # drop-path, too, is a function of the step
        batch = type(batch)(*(field.to(self.accelerator.device) for field in batch))
        with self.accelerator.autocast():
            parts = step_losses(self.model, batch, self.settings, self.progress.step / total)
        self.accelerator.backward(parts["loss"])
        if not self.checked:
            assert_gradients_arrive(self.bare_model)
            self.checked = True
        if self.settings.clip_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if not self.progress.step:
            named = self.bare_model.named_parameters()
            self.progress.gradients = {name: p.grad.norm().item() for name, p in named if p.grad is not None}
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.progress.recent.append({name: part.item() for name, part in parts.items()})
        self.progress.step += 1

    def judge(self, score: float) -> None:
        """Keeps the weights if their validation score is the best so far."""
        if score > self.progress.best:
            self.progress.best, self.progress.best_step = score, self.progress.step
            if self.accelerator.is_main_process:
                save_weights(self.bare_model, self.folder / "best.safetensors")

    def checkpoint(self) -> None:
        """Writes the whole state beside the last one, then removes that: a kill at any point leaves one that is whole."""
        part = self.folder / "part-of-checkpoint"
        if self.accelerator.is_main_process:
            self.progress.write(self.folder / "log.csv")
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(part))
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors each raise their own for a full disk
            raise unwritable(part, error) from error
        if self.accelerator.is_main_process:
            older = list(self.folder.glob("checkpoint-*"))
            part.rename(self.folder / f"checkpoint-{self.progress.step:09d}")
            for folder in older:
                shutil.rmtree(folder)

    def write_config(self, **more: Any) -> None:
        """The whole configuration, and at the end what came of it."""
        write_json(self.folder / "config.json", {"hash": self.settings.hash(), "settings": asdict(self.settings), **more})

    def finish(self, start: dict[str, Tensor]) -> None:
        """Writes the gradient audit, marks the run as finished and drops its checkpoint, which is of no more use."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            table = audit(self.bare_model, start, load_file(self.folder / "best.safetensors"), self.progress.gradients)
            with replacing(self.folder / "audit.csv") as part:
                table.to_csv(part, index=False, float_format="%.6g")
            self.write_config(finished=self.settings.hash(), validation_dice=self.progress.best, best_step=self.progress.best_step)
            for folder in self.folder.glob("checkpoint-*"):
                shutil.rmtree(folder)


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
    total = len(sampler)
    epoch_steps = total // settings.epochs
    start = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    run = Run(settings, model, epoch_steps, folder)
    run.start()
    progress = run.progress
    quiet = {} if run.accelerator.is_main_process else {"disable": True}
    bar = tqdm(total=total, initial=progress.step, desc=f"training {folder.name}", leave=False, **quiet)
    for batch in DataLoader(sampler, batch_size=None, sampler=range(progress.step, total)):
        run.step(batch, step_losses, total)
        bar.update()
        epoch, position = divmod(progress.step, epoch_steps)
        scored: dict[str, float] = {}
        if position == 0:
            scored = validate(run.bare_model) if validate else {}
            run.judge(scored["validation_dice"] if scored and settings.keep == "best" else float(epoch))
        if position == 0 or progress.step % LOG_STEPS == 0:
            progress.log(epoch=epoch, lr=run.scheduler.get_last_lr()[0], **scored)
            best_dice = (
                {"best validation Dice": f"{progress.best:.3f}"} if validate and settings.keep == "best" and progress.best_step else {}
            )
            bar.set_postfix({"loss": f"{progress.rows[-1]['loss']:.3f}"} | best_dice)
        if position == 0 or progress.step % settings.checkpoint_steps == 0:
            run.checkpoint()
    run.finish(start)
    bar.close()
    return best
