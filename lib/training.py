"""One training loop for every model, on Hugging Face Accelerate: one process or many, CPU or GPU, by its configuration alone."""

import csv
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from monai.losses import DiceLoss
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, LRScheduler, SequentialLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from lib.adapter import gate_penalty
from lib.organs import ORGANS
from lib.paths import InputError, replacing, write_json
from lib.profiles import Settings
from lib.windows import Terms, TermSampler

PROMPTS = [organ.prompt for organ in ORGANS]
DICE = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
LOG_STEPS = 25
COLUMNS = ["step", "epoch", "loss", "bce", "dice_loss", "gate", "lr", "validation_dice"]


def parameter_groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Learning rates of section 3.5 by part of the model; every trainable parameter is in exactly one group."""
    groups: dict[str, dict[str, Any]] = {}
    rates = {"encoder": settings.lr_encoder, "decoder": settings.lr_decoder, "adapter": settings.lr_adapter, "gate": settings.lr_gate}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = {"base_model.clip": "encoder", "base_model.decoder": "decoder"}.get(".".join(name.split(".")[:2]), "adapter")
            part = "gate" if "gate_proj" in name else part
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
    """After the first backward pass: no trainable parameter may be without a gradient (design: the released baseline's encoders were)."""
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle, f"no gradient reaches {', '.join(idle[:5])}{' ...' if len(idle) > 5 else ''}"


def segmentation_loss(logits: Tensor, terms: Terms, positive_weight: float) -> tuple[Tensor, Tensor]:
    """Weighted means over the terms of binary cross-entropy and of soft Dice loss (section 3.1 takes them in equal parts)."""
    weight = torch.tensor(positive_weight, device=logits.device)
    logits, masks = logits.float(), F.adaptive_avg_pool2d(terms.masks, logits.shape[-2:])  # patches hold shares of an organ
    bce = F.binary_cross_entropy_with_logits(logits, masks, pos_weight=weight, reduction="none").mean((1, 2))
    dice = DICE(logits[:, None], masks[:, None]).flatten()
    return (bce * terms.weight).mean(), (dice * terms.weight).mean()


def losses(model: nn.Module, terms: Terms, settings: Settings, done: float) -> dict[str, Tensor]:
    """Loss of a step of CLIPSeg and its parts; `done` is the share of the training that lies behind."""
    logits, gate = model(terms, PROMPTS)
    fall = max(0.0, 1 - done / settings.anneal)
    bce, dice = segmentation_loss(logits, terms, 1 + (settings.positive_weight - 1) * fall)
    parts = {"bce": bce, "dice_loss": dice, "loss": bce if settings.align else (bce + dice) / 2}
    if gate is not None:
        parts["loss"] = parts["loss"] + settings.gate_penalty * gate_penalty(gate)
        parts["gate"] = gate.detach().mean()
    return parts


class Progress:
    """Where a run stands; saved with every checkpoint."""

    def __init__(self) -> None:
        self.step, self.best, self.best_step = 0, -1.0, 0
        self.rows: list[dict[str, Any]] = []
        self.recent: list[dict[str, float]] = []

    def add(self, parts: dict[str, Tensor]) -> None:
        """Notes the losses of a step."""
        self.recent.append({name: part.item() for name, part in parts.items()})

    def log(self, **columns: Any) -> dict[str, Any]:
        """One row of log.csv: means over the steps since the last row."""
        means = {name: sum(row[name] for row in self.recent) / len(self.recent) for name in self.recent[0]}
        self.rows.append({"step": self.step, **means, **columns})
        self.recent = []
        return self.rows[-1]

    def state_dict(self) -> dict[str, Any]:
        return vars(self).copy()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's weights as safetensors, whole or not at all."""
    with replacing(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, part)


def load_weights(model: nn.Module, path: Path, strict: bool = True) -> None:
    """Loads safetensors. Not strict: a model with an adapter may start from one without, and every other name must agree.

    Raises:
        InputError: there is no such file, or it belongs to another model.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: train the run first (`make paper`), or name another checkpoint.")
    weights = load_file(path)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if strict or not name.startswith("adapter.")]
    if missing or unexpected:
        name = [*missing, *unexpected][0]
        raise InputError(f"{path} belongs to another model ({name} does not fit): use the settings in the config.json beside it.")


class Checkpoint:
    """One folder with the newest state of a run: model, optimizer, scheduler, random state and progress."""

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator, self.folder, self.old = accelerator, folder / "checkpoint", folder / "checkpoint.old"

    def save(self) -> None:
        """Writes beside the old state and takes its place; a kill at any point leaves one whole state."""
        part = self.folder.with_name("checkpoint.part")
        if self.accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(part))
        if self.accelerator.is_main_process:
            shutil.rmtree(self.old, ignore_errors=True)
            if self.folder.exists():
                self.folder.rename(self.old)
            part.rename(self.folder)
            shutil.rmtree(self.old, ignore_errors=True)

    def load(self) -> None:
        """Takes up the newest whole state, if there is any."""
        for folder in (self.folder, self.old):
            if folder.exists():
                self.accelerator.load_state(str(folder))
                return


def write_log(rows: list[dict[str, Any]], path: Path) -> None:
    """log.csv: one row for every logged step and every validation."""
    with replacing(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def is_finished(folder: Path, settings: Settings) -> bool:
    """True where `folder` holds a finished run of these very settings."""
    config = folder / "config.json"
    return (folder / "best.safetensors").exists() and config.exists() and json.loads(config.read_text()).get("finished") == settings.hash()


def _start(folder: Path, settings: Settings) -> None:
    """Clears what other settings left in the folder, and writes config.json."""
    config = folder / "config.json"
    if config.exists() and json.loads(config.read_text())["hash"] != settings.hash():
        shutil.rmtree(folder)
    write_json(config, {"hash": settings.hash(), "settings": asdict(settings)})


def _step(accelerator: Accelerator, model: nn.Module, optimizer: Any, scheduler: Any, parts: dict[str, Tensor], clip: float) -> None:
    """One step of the optimizer and its schedule."""
    accelerator.backward(parts["loss"])
    if clip:
        accelerator.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()


def train(
    settings: Settings,
    model: nn.Module,
    sampler: TermSampler,
    validate: Callable[[nn.Module], float] | None,
    folder: Path,
    step_losses: Callable[..., dict[str, Tensor]] = losses,
) -> Path:
    """Trains `model` in `folder`, from its checkpoint where it has one; returns the weights that were best on validation.

    `sampler` maps a step to its batch, `validate` a model to its mean Dice over whole volumes, once an epoch. Nothing is done where
    the folder holds a finished run of the same settings. Killed and called again, the run ends bit for bit as if it had not been.
    """
    best = folder / "best.safetensors"
    if is_finished(folder, settings):
        return best
    accelerator = Accelerator(mixed_precision=settings.precision)
    if accelerator.is_main_process:
        _start(folder, settings)
    accelerator.wait_for_everyone()
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), weight_decay=settings.weight_decay)
    epoch_steps = len(sampler) // settings.epochs
    scheduler = schedule(optimizer, settings, epoch_steps)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    progress, checkpoint = Progress(), Checkpoint(accelerator, folder)
    accelerator.register_for_checkpointing(progress)
    checkpoint.load()
    quiet = {} if accelerator.is_main_process else {"disable": True}
    bar = tqdm(total=len(sampler), initial=progress.step, desc=f"training {folder.name}", **quiet)
    for terms in DataLoader(sampler, batch_size=None, sampler=range(progress.step, len(sampler))):
        model.train()
        torch.manual_seed(settings.seed * 1_000_003 + progress.step)  # drop-path, too, is a function of the step
        terms = Terms(*(field.to(accelerator.device) for field in terms))
        with accelerator.autocast():
            parts = step_losses(model, terms, settings, progress.step / len(sampler))
        _step(accelerator, model, optimizer, scheduler, parts, settings.clip_norm)
        progress.add(parts)
        progress.step += 1
        bar.update()
        epoch, position = divmod(progress.step, epoch_steps)
        if position == 0:
            score = validate(accelerator.unwrap_model(model)) if validate else float(epoch)
            if score > progress.best:
                progress.best, progress.best_step = score, progress.step
                if accelerator.is_main_process:
                    save_weights(accelerator.unwrap_model(model), best)
        if position == 0 or progress.step % LOG_STEPS == 0:
            row = progress.log(epoch=epoch, lr=scheduler.get_last_lr()[0], validation_dice=score if position == 0 else None)
            bar.set_postfix({"loss": f"{row['loss']:.3f}", "validation Dice": f"{max(progress.best, 0):.3f}"})
        if position == 0 or progress.step % settings.checkpoint_steps == 0:
            if accelerator.is_main_process:
                write_log(progress.rows, folder / "log.csv")
            checkpoint.save()
    bar.close()
    config = {"hash": settings.hash(), "settings": asdict(settings), "finished": settings.hash()}
    write_json(folder / "config.json", config | {"validation_dice": progress.best, "best_step": progress.best_step})
    shutil.rmtree(checkpoint.folder, ignore_errors=True)
    return best
