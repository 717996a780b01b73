"""The estimate before a training: its work is what torch counts on a real step, and its words can be checked by hand."""

import copy

import numpy as np
import pytest
import torch
from tiny import fake_store, tiny_settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib.baselines import Patches
from lib.profiles import settings_of
from lib.runs import KINDS, build_model
from lib.training.costs import Cost, cost_of, estimate, without_numbers


@pytest.mark.parametrize("run", ["baseline", "adapter", "baseline, released frozen encoders", "dynunet", "med-vlm small"])
def test_a_step_costs_what_torch_counts_on_the_real_one(run: str) -> None:
    settings = tiny_settings(run)
    _, sampler, step_losses = KINDS[settings.model]
    if settings.model == "dynunet":
        labels = torch.from_numpy(np.random.default_rng(0).integers(0, 14, (2, 1, *settings.patch_voxels), dtype=np.uint8))
        batch = Patches(torch.rand(2, 1, *settings.patch_voxels), labels)
    else:
        batch = sampler([fake_store(9, settings.size)], settings)[0]
    model = build_model(settings).train()
    before = copy.deepcopy(model.state_dict())
    cost = cost_of(model, batch, step_losses, settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()), "nothing was computed"
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch does not count its fused attention on a CPU
        step_losses(model, batch, settings, 0.0)["loss"].backward()
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.1) and cost.flops > 1e6
    learns = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    every = sum(parameter.numel() for parameter in model.parameters())
    assert cost.state_bytes == 4 * every + 12 * learns and cost.activation_bytes > 1e5


def test_a_twin_has_shapes_and_no_numbers() -> None:
    model = build_model(tiny_settings("adapter"))
    twin = without_numbers(model)
    shapes = {name: (tensor.shape, tensor.device.type) for name, tensor in twin.state_dict().items()}
    assert shapes == {name: (tensor.shape, "meta") for name, tensor in model.state_dict().items()}


def test_the_estimate_by_hand() -> None:
    """8.1 TFLOP/s at 60 % take 1.75 TFLOP 0.36 s; 30 000 of these are 3 hours. In half precision 65 TFLOP/s at a quarter."""
    cost = Cost(1.7496e12, 12 * 10**9, 2 * 10**9)
    assert cost.hours(30_000, "Tesla T4", "no") == pytest.approx(3)
    assert cost.hours(30_000, "T4", "fp16") == pytest.approx(1.7496e12 * 30_000 / (65e12 * 0.25) / 3600)
    assert cost.hours(1, "cpu", "no") is None
    assert cost.gigabytes(1, "no") == 14 and cost.gigabytes(8, "no") == 3.5 and cost.gigabytes(8, "fp16") == 2.75
    settings = settings_of("baseline", "full")
    expected = "30000 steps of 1.75 TFLOP, about 3.0 hours on one {}, 14.0 GB or in pieces down to 3.5 GB, beside the process's own"
    assert estimate(cost, 30_000, "T4", settings) == expected.format("T4")
    assert "no estimate for cpu, whose speed is not known, about 3.0 hours on one T4" in estimate(cost, 30_000, "cpu", settings)
