"""Trains and scores headline runs as the notebooks do, by several processes, which a notebook cannot be.

`accelerate launch --num_processes 2 -m tools.train baseline adapter --profile full`; then `make paper
PROFILE=full` finds them finished.
"""

import argparse
import sys
from typing import Any

from lib import clipseg, med_vlm
from lib.baselines import PatchSampler, build_dynunet, build_unetr, volume_losses
from lib.config import RUNS, settings_of
from lib.files import InputError
from lib.metrics import mean_dice
from lib.training import processes, run
from lib.windows import SliceSampler, WindowSampler

MED_VLM = (med_vlm.build_med_vlm, SliceSampler, med_vlm.med_vlm_losses)
# what builds each run's model, its sampler and its losses, as the notebooks give them
PARTS: dict[str, tuple[Any, Any, Any]] = {
    **dict.fromkeys(RUNS, (clipseg.build, WindowSampler, clipseg.losses)),
    "dynunet": (build_dynunet, PatchSampler, volume_losses),
    "unetr": (build_unetr, PatchSampler, volume_losses),
    "unet": (med_vlm.build_unet, SliceSampler, med_vlm.unet_losses),
    "med-vlm large": MED_VLM, "med-vlm small": MED_VLM,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", choices=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--profile", default="full")
    parser.add_argument("--seed", type=int, default=0)
    asked, failed = parser.parse_args(), []
    for name in asked.runs:
        try:
            scores = run(name, settings_of(name, asked.profile, asked.seed), *PARTS[name])
            if processes().is_main_process:
                first = scores[scores["dataset"] == scores["dataset"].iloc[0]]
                print(f"{name}: mean Dice {mean_dice(first):.3f} on {first['dataset'].iloc[0]}", flush=True)
        except InputError as error:
            failed.append(f"{name}: {error}")
    sys.exit("\n".join(failed) or 0)
