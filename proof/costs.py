"""Whether the estimate of a step's work, which is counted on tensors without numbers, is what torch counts on the real step.

`PROFILE=proof python -m proof.costs baseline adapter` prints JSON.
"""

import argparse
import json
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib.datasets import stores_of
from lib.profiles import settings_of
from lib.runs import KINDS, build_model
from lib.training.costs import cost_of


def counted(run: str) -> dict[str, float]:
    """{"estimated", "counted"}: floating-point operations of one forward and backward pass of half a step of CLIPSeg."""
    settings = settings_of(run)
    settings = replace(settings, batch=settings.run_length)
    _, kind, step_losses = KINDS[settings.model]
    batch, model = kind(stores_of(settings, "training"), settings)[0], build_model(settings).train()
    estimated = cost_of(model, batch, step_losses, settings).flops
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch does not count its fused attention on a CPU
        step_losses(model, batch, settings, 0.0)["loss"].backward()
    return {"estimated": estimated, "counted": float(counter.get_total_flops())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count a step's work twice.")
    parser.add_argument("run", nargs="+")
    with torch.random.fork_rng():
        print(json.dumps({run: counted(run) for run in parser.parse_args().run}))
