"""What a training will take, before it starts: work and memory of a step are counted on tensors that have shapes and no numbers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lib.profiles import Settings

# Peak of a device in FLOP/s, in 32 bits and in half precision on tensor cores, as its maker states them
PEAKS = {"T4": (8.1e12, 65e12), "L4": (30.3e12, 121e12), "V100": (15.7e12, 125e12), "A100": (19.5e12, 312e12), "H100": (67e12, 989e12)}
REACHED = {"no": 0.6, "fp16": 0.25, "bf16": 0.25}  # share of the peak that such a training is taken to reach: a guess


@dataclass(frozen=True)
class Cost:
    """Of one step: floating-point operations (forward and backward), bytes of what stays from it, and bytes of the model's own state."""

    flops: float
    activation_bytes: int
    state_bytes: int  # weights; of those that learn also gradients and AdamW's two moments

    def hours(self, steps: int, device: str, precision: str) -> float | None:
        """Of so many steps on a device of PEAKS; None for another, whose speed is not known."""
        peak = next((peaks[precision != "no"] for name, peaks in PEAKS.items() if name in device), None)
        return None if peak is None else self.flops * steps / (peak * REACHED[precision]) / 3600

    def gigabytes(self, parts: int, precision: str) -> float:
        """That a step needs when it is taken in `parts` equal pieces."""
        halved = 1 if precision == "no" else 2
        return (self.state_bytes + self.activation_bytes / parts / halved) / 1e9


class _YesOnMeta(TorchDispatchMode):
    """Answers 1 where code asks a tensor without numbers for its value: "is this mask all ones?", of prompts without padding."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1
        return func(*args, **(kwargs or {}))


def without_numbers(model: nn.Module) -> nn.Module:
    """The model's twin on the meta device, made without copying a weight."""
    twins: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        twins[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, twins).train()


def cost_of(model: nn.Module, batch: Any, step_losses: Callable[..., dict[str, Any]], settings: Settings) -> Cost:
    """Cost of a step on `batch`, of which the shapes count alone. Attention keeps its matrices here; a GPU's kernels may not."""
    twin, kept = without_numbers(model), dict[int, int]()
    weights = {tensor.untyped_storage()._cdata for tensor in twin.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    shapes = type(batch)(*(field.to("meta") for field in batch))
    with _YesOnMeta(), FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = step_losses(twin, shapes, settings, 0.0)["loss"]
        activations = sum(kept.values())
        loss.backward()
    sizes = [(parameter.nbytes, parameter.requires_grad) for parameter in model.parameters()]
    return Cost(counter.get_total_flops(), activations, sum(size * (4 if learns else 1) for size, learns in sizes))


def estimate(cost: Cost, steps: int, device: str, settings: Settings) -> str:
    """One line for people: steps, work, hours, and memory with all of a step at once and in the smallest pieces.

    The process's own is what Python, its libraries and the device's driver hold: about half a gigabyte, and one with MONAI.
    """
    shown = [f"{steps} steps of {cost.flops / 1e12:.3g} TFLOP"]
    for name in dict.fromkeys([device, "T4"]):
        hours = cost.hours(steps, name, settings.precision)
        shown.append(f"no estimate for {name}, whose speed is not known" if hours is None else f"about {hours:.1f} hours on one {name}")
    most, least = cost.gigabytes(1, settings.precision), cost.gigabytes(settings.batch, settings.precision)
    return ", ".join(shown) + f", {most:.1f} GB or in pieces down to {least:.1f} GB, beside the process's own"
