"""The runs of the Med-VLM paper by name, and their sizes in each profile."""

from typing import Any

from lib.organs import TEXTS
from lib.profiles.settings import FULL_SIZE

HELD_OUT = "BTCV held out"  # the 6 of BTCV's 30 labelled scans that neither train nor choose weights
ASKED = ("spleen", "liver")

# What Med-VLM and both U-Nets share: 24 scans to train, 6 to validate, and the weights of the last step, so that the 6 choose nothing
_ON_BTCV: dict[str, Any] = {
    "train_on": "BTCV",
    "test_on": (HELD_OUT,),
    "cases": (24, 6, 0),
    "organs": ASKED,
    "keep": "last",
}
_SLICES = _ON_BTCV | {
    "size": 224,
    "slice_mm": 2.0,  # not in the paper: gives its "about 5k" training slices
    "crop": True,
    "turns": True,
    "intensity": True,
    "start_from": "",
    "lr_unet": 1e-4,
    "weight_decay": 0.01,  # AdamW's own
    "clip_norm": 0.0,
    "warmup_steps": 0,
}
_MED_VLM = _SLICES | {"model": "med-vlm", "text": "description", "epochs": 10, "restart_epochs": 10}
MEDVLM_HEADLINE: dict[str, dict[str, Any]] = {
    "med-vlm large": _MED_VLM
    | {
        "vit": "google/vit-base-patch16-224",
        "bert": "dmis-lab/biobert-base-cased-v1.1",
    },
    "med-vlm small": _MED_VLM
    | {
        "vit": "WinKawaks/vit-tiny-patch16-224",
        "bert": "sentence-transformers/all-MiniLM-L6-v2",
        "mask_width": 64,
    },
    "unet": _SLICES | {"model": "unet", "epochs": 50, "restart_epochs": 50, "filters": (32, 64, 128, 256, 512)},  # 7.8 M parameters
    "unetr": _ON_BTCV
    | {
        "model": "unetr",
        "start_from": "",
        "voxel_mm": (1.5, 1.5, 2.0),
        "filters": (16,),
        "batch": 2,
        "epochs": 300,
        "restart_epochs": 300,
        "lr_unet": 1e-4,
        "weight_decay": 1e-5,
        "warmup_steps": 0,
    },
    "clipseg on BTCV": _ON_BTCV,  # T-Gated's baseline, trained on the same scans
}
MEDVLM_SEEDS = (1, 2)
LEARNING_CURVE = (3, 6, 12)  # training cases, beside all 24
WITHOUT_TURNS = tuple(f"{run}, no turns" for run in ("med-vlm large", "med-vlm small", "unet"))
BY_TEXT = {text: f"med-vlm small, {text}" if text != "description" else "med-vlm small" for text in TEXTS}
BY_CASES = {run: {cases: f"{run}, {cases} cases" for cases in LEARNING_CURVE} for run in ("med-vlm small", "unet")}
MEDVLM_ABLATIONS: dict[str, dict[str, Any]] = {
    **{run: MEDVLM_HEADLINE[run.partition(", ")[0]] | {"turns": False} for run in WITHOUT_TURNS},
    **{run: MEDVLM_HEADLINE["med-vlm small"] | {"text": text} for text, run in BY_TEXT.items() if text != "description"},
    **{run: MEDVLM_HEADLINE[name] | {"training_cases": n} for name, runs in BY_CASES.items() for n, run in runs.items()},
    "adapter on BTCV": _ON_BTCV | {"adapter": True},
}
MEDVLM_RUNS = MEDVLM_HEADLINE | MEDVLM_ABLATIONS
MEDVLM_REPEATED = ("unet", *BY_TEXT.values())  # with further seeds
ASKED_OTHERWISE = ("name", "shuffled description", "another's description")  # conditions: the same weights, other prompts

# Where no ViT can be downloaded: one that has learned which tissues a patch shows, on phantoms of their own
_STAND_IN: dict[str, Any] = {
    "model": "vit",
    "train_on": "pretraining",
    "cases": (30, 0, 0),
    "test_on": (),
    "start_from": "",
    "crop": True,
    "turns": True,
    "intensity": True,
    "batch": 16,
    "epochs": 1,
    "epoch_steps": 250,
    "restart_epochs": 1,
    "warmup_steps": 30,
    "lr_unet": 2e-3,
}
VIT_PRETRAINING = {"vit large": _STAND_IN, "vit small": _STAND_IN}

_DEMO_LARGE: dict[str, Any] = {"size": 48, "patch": 4, "width": 96, "depth": 4, "heads": 4}
_DEMO_SMALL = _DEMO_LARGE | {"width": 48, "depth": 3, "heads": 3}
_DEMO_TRAINING: dict[str, Any] = {"slice_mm": 4.0, "batch": 8, "epochs": 5, "epoch_steps": 60, "restart_epochs": 5, "lr_unet": 1e-3}
_DEMO_MED_VLM = _DEMO_TRAINING | {"vit": "", "bert": "MiniLM", "mixer_depth": 1, "mixer_mlp": 2, "clip_norm": 1.0}
_DEMO: dict[str, dict[str, Any]] = {
    "vit large": _DEMO_LARGE,
    "vit small": _DEMO_SMALL,
    "med-vlm large": _DEMO_LARGE | _DEMO_MED_VLM | {"mask_width": 64, "start_from": "vit large"},
    "med-vlm small": _DEMO_SMALL | _DEMO_MED_VLM | {"mask_width": 32, "start_from": "vit small"},
    "unet": _DEMO_TRAINING | {"size": 48, "filters": (16, 32, 64, 64, 64), "epochs": 8, "restart_epochs": 8},
    "unetr": {
        "voxel_mm": (6.6, 6.6, 5.0),
        "patch_voxels": (48, 48, 32),
        "width": 48,
        "heads": 4,
        "filters": (8,),
        "batch": 1,
        "epochs": 5,
        "epoch_steps": 60,
        "restart_epochs": 5,
        "lr_unet": 2e-3,
    },
    "clipseg on BTCV": {},
    "adapter on BTCV": {},
}
_TINY_VIT: dict[str, Any] = {
    "size": 24,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "batch": 4,
    "epochs": 2,
    "epoch_steps": 3,
    "restart_epochs": 2,
}
_TINY: dict[str, dict[str, Any]] = {
    "vit large": _TINY_VIT | {"cases": (2, 0, 0), "warmup_steps": 0},
    "vit small": _TINY_VIT | {"cases": (2, 0, 0), "warmup_steps": 0},
    "med-vlm large": _TINY_VIT | {"slice_mm": 12.0, "mask_width": 32},
    "med-vlm small": _TINY_VIT | {"slice_mm": 12.0, "mask_width": 32},
    "unet": _TINY_VIT | {"size": 32, "slice_mm": 12.0, "filters": (8, 8, 8, 8, 8)},
    "unetr": {"voxel_mm": (12.0, 12.0, 15.0), "patch_voxels": (16, 16, 16), "width": 32, "heads": 2, "epochs": 2, "epoch_steps": 2},
}
_BRIEF: dict[str, Any] = {"cases": (2, 1, 0)}


def medvlm_sizes(run: str, profile: str) -> dict[str, Any]:
    """What a profile changes in one of MEDVLM_RUNS or VIT_PRETRAINING; nothing at full size, for that is the paper's."""
    if profile in FULL_SIZE:
        return {}
    name = run.partition(", ")[0]
    changes = dict(_DEMO[name])
    if profile == "smoke":
        changes |= (_BRIEF if name not in VIT_PRETRAINING else {}) | _TINY.get(name, {})
        changes |= {"training_cases": 1} if run.endswith(" cases") else {}
    if profile == "sample" and name not in VIT_PRETRAINING:
        changes |= {"train_on": "samples", "test_on": ("sample CT",), "training_cases": 0}
    return changes
