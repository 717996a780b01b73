"""What small profiles add to the papers: stand-ins for pretrained weights, and a 3-D network that two cores train in minutes."""

from typing import Any

# What stands in for pretrained weights where none can be downloaded: clean phantoms of their own, one slice at a time.
_STAND_IN: dict[str, Any] = {
    "train_on": "pretraining",
    "cases": (30, 0, 0),
    "test_on": (),
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
        "positive_weight": 15.0,  # with 5, one adrenal gland stayed empty
        "anneal": 1e9,
        "lr_decoder": 4e-3,
    },
}
BRIEF: dict[str, Any] = {"cases": (2, 0, 0), "batch": 4, "epochs": 1, "epoch_steps": 3, "warmup_steps": 0}  # for the smoke profile
_SMALL_UNET: dict[str, Any] = {  # chosen on validation phantoms among sizes that train in two minutes on one core
    "voxel_mm": (6.8, 6.8, 5.0),
    "patch_voxels": (24, 24, 24),
    "filters": (16, 32, 64, 128),
    "batch": 1,
    "epochs": 4,
    "epoch_steps": 300,
    "restart_epochs": 4,
    "lr_unet": 3e-3,
}
_TINY_UNET = _SMALL_UNET | {
    "voxel_mm": (12.0, 12.0, 15.0),
    "patch_voxels": (16, 16, 8),
    "filters": (4, 8, 8),
    "epochs": 2,
    "epoch_steps": 2,
}
UNET_SIZES = {"smoke": _TINY_UNET, "demo": _SMALL_UNET, "sample": _SMALL_UNET}
