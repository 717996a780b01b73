"""What moves a model: learning rates by part, their schedule, and the proof that a gradient reaches every parameter."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LinearLR, LRScheduler, SequentialLR

from lib.profiles import Settings


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
