"""Every setting of a run in one frozen object, and what each profile changes in the paper's own values."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lib.organs import KEYS
from lib.paths import file_hash, value_hash

CODE = 2  # raise it when the same settings would give other weights or scores
HUB_WEIGHTS = "CIDAS/clipseg-rd64-refined"
HUB_REVISION = "999e0328d9e10b484360c477313983f9afdd7050"  # the hub's main branch in September 2026
HUB_SHA256 = "d00ca85d6b859f9d07b7cfb8ef26fe9771cb275b34c9368f2ecf603139307f55"  # of its model.safetensors
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # as a folder in the hub's format names them, the first one first
FULL_SIZE = ("full", "proof")  # profiles whose models are the papers' own; the others train small ones from random numbers
NO_NUMBER = {"checkpoint_steps", "recompute", "test_on"}  # settings that change no weight and no score


@dataclass(frozen=True)
class Settings:
    """The defaults are the paper's (T-Gated section 3) at full size; units are in the names."""

    profile: str = "full"
    # data: which scans train, validate and test, and how they become slices
    train_on: str = "FLARE22"  # a data set of lib/datasets.py
    test_on: tuple[str, ...] = ("FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI")
    cases: tuple[int, int, int] = (30, 10, 10)  # training, validation, test (of each data set)
    training_cases: int = 0  # of these the first so many train; 0: all
    organs: tuple[str, ...] = KEYS  # that the model is asked for
    size: int = 352  # pixels of a square slice
    slice_mm: float = 0.0  # distance that slices are resampled to; 0: the scan's own
    crop: bool = False  # to the foreground's box, before slices become squares
    ct_window_hu: tuple[float, float] = (-125.0, 275.0)
    mr_percentiles: tuple[float, float] = (1.0, 99.0)
    phantoms: bool = False  # procedural cohorts take the place of the data sets
    phantom_voxels: float = 1.0  # their voxels' edges, as a multiple of the site's own
    degraded: float = 0.4  # their share of slices that only their neighbours explain
    # samples (section 3.5)
    window: int = 5  # slices that the adapter sees
    neighbours: str = "true"  # z-2..z+2; controls: "centre", "shuffled", "another patient"; "manifest": rows of (slice, organ)
    window_unit: str = "slices"  # "mm": neighbours at multiples of `window_step_mm`, rounded to slices (the paper's future direction)
    window_step_mm: float = 2.5
    balance: str = "table 1"  # weights of the organs; "released": as released; "equal": 1 each; "none": absent organs count as much, too
    negatives: str = "organ absent"  # slices that count as negative; "empty": those without any organ
    negatives_per_positive: float = 1 / 3
    rotate_degrees: float = 5.0
    flip: bool = True  # left-right, never for an organ that has a side
    mirror: str = "left-right"  # what a flip exchanges; "front-back": as an untransposed slice has it
    validation: str = "volumes"  # mean Dice over whole scans; "augmented slices": over augmented slices that show the organ
    sampler: str = "shuffled"  # the paper's; "slab": neighbouring centres and several prompts together
    batch: int = 8  # terms of a step when shuffled; centres of a step in slabs
    run_length: int = 4  # neighbouring centres of a slab
    prompts: int = 1  # prompts drawn for each centre of a slab
    # Med-VLM and its 2-D U-Net (its sections 3.3 to 3.5)
    text: str = "name"  # "description", "shuffled description", "another's description"; "one-hot": an embedding without any text
    intensity: bool = False  # random shift and scale of grey values, and Gaussian noise
    vit: str = ""  # hub name or folder of the image encoder; without one, a ViT of the sizes below
    bert: str = ""  # and of the text encoder; "MiniLM": the one that comes with the requirements
    lora_rank: int = 16
    mixer_depth: int = 2
    mixer_mlp: int = 4  # width of its MLPs, as a multiple of the tokens'
    mask_width: int = 512  # of the mask decoder
    mask_depth: int = 1  # layers of its bidirectional transformer
    # model: a hub name or folder, or the sizes of a small one that starts from random numbers
    weights: str = HUB_WEIGHTS  # or the released code's checkpoint of a whole model (.pt, .pth)
    revision: str = HUB_REVISION
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
    start_hash: str = ""  # and the hash of its settings
    decoder_inputs: str = "extract_layers"  # "last": the last block's output alone, so that one decoder layer runs
    # adapter (sections 3.2 to 3.4)
    adapter: bool = False
    adapted: str = "deepest"  # of the decoder's three inputs: "deepest", or "all" of them
    spatial_block: bool = True
    gate: bool = True  # False: the temporal features alone
    gate_first: bool = False  # the gate before the spatial block, and an extra head after it
    penalty_on: str = "gate"  # g(1 - g) of the gate's values; "bias": of the bias alone
    frozen_embeddings: bool = False  # position embedding and text projection in no optimizer group
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
    encoder_precision: str = "no"  # of the encoder of slices and the adapter where scans are segmented; the decoder stays in float32
    # 3-D baseline (section 4.5; its sizes are the released configuration's)
    model: str = "clipseg"  # or "dynunet"; Med-VLM's "med-vlm", "unet", "unetr", and "vit", its stand-in for pretraining
    voxel_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    patch_voxels: tuple[int, int, int] = (96, 96, 96)
    filters: tuple[int, ...] = (32, 64, 128, 256, 320)
    lr_unet: float = 1e-3
    turns: bool = False  # flips along all axes (of the slice, in 2-D) and 90-degree turns, which break laterality
    keep: str = "best"  # weights on validation; "last": those of the last step
    checkpoint_steps: int = 200
    recompute: bool = False  # activations in the backward pass: less memory, a third more time, the same numbers
    seed: int = 0

    @property
    def full_size(self) -> bool:
        """Whether the models have the papers' own sizes and weights."""
        return self.profile in FULL_SIZE

    @property
    def reach(self) -> int:
        """Slices seen on each side of the centre; without an adapter none."""
        return self.window // 2 if self.adapter else 0

    def hash(self) -> str:
        """Short hash of everything that can change a score; stands beside every score.

        Settings that have their default value do not enter, so a new setting leaves old runs valid. Local weights count by their
        content: their folder may move, and a download of the hub's own is the hub's.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"weights": _identity(self.weights)}
        changed = {f.name: values[f.name] for f in fields(self) if f.name not in NO_NUMBER and values[f.name] != f.default}
        return value_hash({"code": CODE} | changed)


def weights_file(weights: str) -> Path | None:
    """The file of local weights, which are a folder in the hub's format or a checkpoint; None: there is none, as for a hub name."""
    path = Path(weights).expanduser()
    return next((file for file in (path, *(path / name for name in WEIGHT_FILES)) if weights and file.is_file()), None)


def _identity(weights: str) -> str:
    """What weights count as in a hash: the SHA-256 of local ones, the name of the hub's."""
    if (file := weights_file(weights)) is None:
        return weights
    return HUB_WEIGHTS if (content := file_hash(file)) == HUB_SHA256 else content


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
    "window_step_mm": 5.0,  # the phantoms' own
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
    "window_step_mm": 15.0,
    "cases": (2, 1, 1),
    "batch": 4,
    "epochs": 2,
    "epoch_steps": 3,
    "warmup_steps": 0,
}
# at full size the papers' own settings, but for the sampler, which encodes a slice once for all its windows and prompts: the runs
# "baseline, shuffled" and "adapter, shuffled" are the paper's to the letter
FULL = {"sampler": "slab", "prompts": len(KEYS)}
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": TINY,
    "demo": SMALL,
    "sample": {**SMALL, "train_on": "samples", "test_on": ("sample CT", "sample MRI")},
    "full": FULL,
    "proof": FULL,  # and what PROOF changes in every run: two steps, which show that nothing fails at full size
}
PROOF = {"epochs": 1, "epoch_steps": 2, "restart_epochs": 1, "checkpoint_steps": 1}
