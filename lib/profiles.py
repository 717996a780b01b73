"""Every setting of a run in one frozen object. A profile, and an ablation, is a short diff against the paper's own values."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lib.paths import InputError, results_root, value_hash

CODE = 1  # raise it when the same settings would give other weights or scores


@dataclass(frozen=True)
class Settings:
    """The defaults are the paper's (T-Gated section 3) at full size; units are in the names."""

    profile: str = "full"
    # data: which scans train, validate and test, and how they become slices
    train_on: str = "FLARE22"  # a data set of lib/datasets.py
    test_on: tuple[str, ...] = ("FLARE22",)
    cases: tuple[int, int, int] = (30, 10, 10)  # training, validation, test
    size: int = 352  # pixels of a square slice
    ct_window_hu: tuple[float, float] = (-125.0, 275.0)
    mr_percentiles: tuple[float, float] = (1.0, 99.0)
    phantoms: bool = False  # procedural cohorts take the place of the data sets
    phantom_voxels: float = 1.0  # their voxels' edges, as a multiple of the site's own
    degraded: float = 0.4  # their share of slices that only their neighbours explain
    # samples (section 3.5)
    window: int = 5  # slices that the adapter sees
    neighbours: str = "true"  # "true": z-2..z+2; "centre": the centre slice repeated (a control)
    balance: str = "table 1"  # weights of the organs; "equal": 1 each; "none": absent organs count as much, too
    negatives_per_positive: float = 1 / 3
    rotate_degrees: float = 5.0
    flip: bool = True  # left-right, never for an organ that has a side
    sampler: str = "shuffled"  # the paper's; "slab": neighbouring centres and several prompts together
    batch: int = 8  # terms of a step when shuffled; centres of a step in slabs
    run_length: int = 4  # neighbouring centres of a slab
    prompts: int = 1  # prompts drawn for each centre of a slab
    # model: a hub name or folder, or the sizes of a small one that starts from random numbers
    weights: str = "CIDAS/clipseg-rd64-refined"
    revision: str = "main"
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    text_width: int = 512
    text_depth: int = 12
    text_heads: int = 8
    joint_width: int = 512
    reduce_dim: int = 64
    decoder_heads: int = 4
    decoder_mlp: int = 2048
    extract_layers: tuple[int, ...] = (3, 6, 9)
    align: bool = False  # train the encoders alone to match patches with prompts: a stand-in for CLIP's pretraining
    freeze_encoders: bool = False
    start_from: str = ""  # a run whose best weights this one starts from
    # adapter (sections 3.2 to 3.4)
    adapter: bool = False
    adapted: str = "deepest"  # of the decoder's three inputs: "deepest", or "all" of them
    adapter_width: int = 256
    adapter_depth: int = 4
    adapter_heads: int = 8
    drop_path: float = 0.1
    gate_bias: float = -5.0
    gate_penalty: float = 0.001
    # optimization (section 3.5)
    epochs: int = 30
    epoch_steps: int = 0  # 0: every positive slice once
    lr_encoder: float = 1e-6
    lr_decoder: float = 1e-5
    lr_adapter: float = 5e-5
    lr_gate: float = 5e-5
    clip_norm: float = 1.0
    weight_decay: float = 1e-4
    restart_epochs: int = 5
    warmup_steps: int = 0  # of a model that starts from random numbers
    positive_weight: float = 1.0  # of the BCE at the first step; falls to 1 over the first `anneal` of the steps
    anneal: float = 0.5
    precision: str = "no"  # or "fp16", "bf16": Accelerate's names
    checkpoint_steps: int = 200
    seed: int = 0

    def hash(self) -> str:
        """Short hash of everything that can change a score; stands beside every score."""
        skip = {"checkpoint_steps", "test_on"}  # they change no weight
        start = settings_of(self.start_from, self.profile).hash() if self.start_from else ""
        return value_hash({"code": CODE, "start": start} | {key: value for key, value in asdict(self).items() if key not in skip})


# What a profile changes in the paper's own settings
SMALL = {  # a CLIPSeg that two CPU cores train from random numbers in minutes
    "phantoms": True,
    "size": 48,
    "weights": "",
    "width": 96,
    "depth": 4,
    "heads": 4,
    "patch": 4,
    "text_width": 64,
    "text_depth": 2,
    "text_heads": 4,
    "joint_width": 64,
    "reduce_dim": 32,
    "decoder_heads": 2,
    "decoder_mlp": 64,
    "extract_layers": (1, 2, 3),
    "adapted": "all",
    "adapter_width": 64,
    "adapter_depth": 2,
    "adapter_heads": 4,
    "gate_bias": 0.0,  # from -5 the gate does not open in so few steps
    "sampler": "slab",
    "flip": False,  # so few steps do not undo that the stand-ins for pretraining know left from right
    "batch": 4,
    "prompts": 5,
    "epochs": 3,
    "epoch_steps": 200,
    "restart_epochs": 3,
    "warmup_steps": 50,
    "lr_encoder": 1e-5,  # more undoes in a hundred steps what the encoders learned before
    "lr_decoder": 1e-3,
    "lr_adapter": 3e-3,
    "lr_gate": 1e-3,
    "positive_weight": 15.0,  # else whole organs stay empty
    "anneal": 1.0,
    "start_from": "pretraining",
}
TINY = {
    **SMALL,
    "size": 24,
    "width": 32,
    "depth": 3,
    "heads": 2,
    "text_width": 32,
    "text_depth": 1,
    "text_heads": 2,
    "joint_width": 32,
    "reduce_dim": 16,
    "extract_layers": (0, 1, 2),
    "adapter_width": 32,
    "phantom_voxels": 3.0,
    "cases": (2, 1, 1),
    "batch": 4,
    "epochs": 2,
    "epoch_steps": 3,
    "warmup_steps": 0,
}
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": TINY,
    "demo": SMALL,
    "sample": {**SMALL, "train_on": "samples", "test_on": ("sample CT", "sample MRI")},
    "full": {},
}

# The headline runs differ from each other in the one thing that their name says.
RUNS: dict[str, dict[str, Any]] = {
    "baseline": {"window": 1},
    "adapter": {"adapter": True},
    "centre only": {"adapter": True, "neighbours": "centre"},
}
HEADLINE, SEEDS = tuple(RUNS), (1, 2)

# What stands in for pretrained weights where none can be downloaded: clean phantoms of their own, one slice at a time.
_STAND_IN: dict[str, Any] = {
    "train_on": "pretraining",
    "cases": (30, 0, 0),
    "test_on": (),
    "window": 1,
    "run_length": 1,
    "flip": False,
}
PRETRAINING: dict[str, dict[str, Any]] = {
    "encoders": {  # as CLIP: patches are matched with prompts
        **_STAND_IN,
        "align": True,
        "start_from": "",
        "balance": "none",
        "batch": 24,
        "prompts": 13,
        "epochs": 1,
        "epoch_steps": 300,
        "restart_epochs": 1,
        "warmup_steps": 30,
        "positive_weight": 1.0,
        "lr_encoder": 2e-3,
    },
    "pretraining": {  # as CLIPSeg: a decoder learns to draw on frozen encoders
        **_STAND_IN,
        "freeze_encoders": True,
        "start_from": "encoders",
        "balance": "equal",
        "batch": 4,
        "prompts": 5,
        "epochs": 3,
        "epoch_steps": 500,
        "restart_epochs": 3,
        "positive_weight": 5.0,
        "anneal": 1e9,
        "lr_decoder": 4e-3,
    },
}
_BRIEF: dict[str, Any] = {"cases": (2, 0, 0), "batch": 4, "epochs": 1, "epoch_steps": 3, "warmup_steps": 0}  # for the smoke profile


def settings_of(run: str, profile: str | None = None) -> Settings:
    """Settings of a run in a profile ($PROFILE, else demo). "adapter, seed 1" is the run "adapter" with another seed.

    Raises:
        InputError: there is no such run or profile.
    """
    profile = profile or os.environ.get("PROFILE", "demo")
    if profile not in PROFILES:
        raise InputError(f"{profile!r} is no profile: choose one of {', '.join(PROFILES)}.")
    name, _, seed = run.partition(", seed ")
    known = RUNS | PRETRAINING
    if name not in known or (seed and not seed.isdecimal()):
        raise InputError(f"{run!r} is no run: choose one of {', '.join(known)}, with ', seed N' behind it for another seed.")
    changes = PROFILES[profile] | known[name] | (_BRIEF if profile == "smoke" and name in PRETRAINING else {})
    if profile == "full" and (weights := os.environ.get("WEIGHTS")):
        changes["weights"] = weights
    return replace(Settings(profile), **changes, seed=int(seed or 0))


def run_folder(run: str, profile: str | None = None) -> Path:
    """Folder of a run: config.json, log.csv, weights, predictions and its own scores."""
    return results_root(settings_of(run, profile).profile) / "runs" / run.replace(", ", "-").replace(" ", "_")


def is_finished(folder: Path, settings: Settings) -> bool:
    """True where `folder` holds a finished run of these very settings."""
    config = folder / "config.json"
    return (folder / "best.safetensors").exists() and config.exists() and json.loads(config.read_text()).get("finished") == settings.hash()
