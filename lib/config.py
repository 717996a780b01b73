"""Every setting of a run by kind of model, the headline runs, and what each profile changes in them.

The defaults are the papers' own at full size; units are in the names. A run is a dict of changes, and so is
an ablation: `settings_of("adapter", "demo", gate=False)`.
"""

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lib.files import ROOT, InputError, file_hash, results_root, value_hash
from lib.organs import KEYS

CODE = 5  # raise it when the same settings would give other weights or scores
HUB_WEIGHTS = "CIDAS/clipseg-rd64-refined"
HUB_REVISION = "999e0328d9e10b484360c477313983f9afdd7050"  # the hub's main branch in September 2026
HUB_SHA256 = "d00ca85d6b859f9d07b7cfb8ef26fe9771cb275b34c9368f2ecf603139307f55"  # of its model.safetensors
STAND_IN = "stand-in"  # how settings name the weights of a small CLIPSeg that notebook 00 makes:
START = ROOT / "weights" / "stand_in.safetensors"
FULL_SIZE = ("full", "proof")  # profiles whose models are the papers' own; the others train small ones
NO_NUMBER = ("test_on",)  # settings that change no weight and no score
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every run has: its data and its optimisation."""

    profile: str = "full"
    seed: int = 0
    train_on: str = "FLARE22"
    test_on: tuple[str, ...] = ("FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI")
    test_variant: str = ""  # of these test sets, a key of VARIANTS
    cases: tuple[int, int, int] = (30, 10, 10)  # training, validation, test (of each data set)
    folds: int = 0  # so many parts of a data set take turns as its test: a training's is `seed` modulo folds
    training_cases: int = 0  # of the cases that train, the first so many do; 0: all
    organs: tuple[str, ...] = KEYS  # that the model is asked for
    size: int = 352  # pixels of a square slice
    slice_mm: float = 0.0  # distance that slices are resampled to; 0: the scan's own
    crop: bool = False  # to the foreground's box, before slices become squares
    ct_window_hu: tuple[float, float] = (-125.0, 275.0)
    mr_percentiles: tuple[float, float] = (1.0, 99.0)
    orientation: str = "canonical"  # "stored": the file's own axes, as released
    resampling: str = "bilinear"  # and rounded; "lanczos": PIL's, and cut to whole numbers, as released
    presence: str = "resampled"  # where pixels of organs are counted; "native": before slices are resampled
    phantoms: bool = False  # procedural cohorts take the place of the data sets
    phantom_voxels: float = 1.0  # their voxels' edges, as a multiple of the site's own
    training_variants: tuple[str, ...] = ("",)  # in which they train, patient by patient in turn: VARIANTS
    degraded: float = 0.1  # their share of slices that only their neighbours explain
    epochs: int = 30
    epoch_steps: int = 0  # 0: as many as the sampler's epoch has
    schedule: str = "restarts"  # cosine; "restarts by epoch": its steps are epochs; "constant"
    restart_epochs: int = 5
    lr_least: float = 0.0  # where the cosine ends
    warmup_steps: int = 0  # of a model that starts from random numbers
    validate_every: int = 1  # epochs; the last one always is
    clip_norm: float = 1.0
    weight_decay: float = 1e-4
    precision: str = "no"  # 32 bits; "fp16", "bf16": Accelerate's names; "tf32": products round to 10 bits
    keep: str = "best"  # weights on validation; "last": those of the last step

    @property
    def full_size(self) -> bool:
        """Whether the models have the papers' own sizes and weights."""
        return self.profile in FULL_SIZE

    @property
    def fold(self) -> int:
        """The number of the part of a data set that this training is tested on; 0 without folds."""
        return self.seed % self.folds if self.folds else 0

    def hash(self) -> str:
        """Short hash of all that can change a score; stands beside every score.

        A setting that has its default does not enter, so a new one leaves old runs valid. Local weights count
        by their content, the stand-in's too: their folder may move, and a download of the hub's own is the
        hub's.
        """
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        kept = {name: getattr(self, name) for name in changed if name not in NO_NUMBER}
        for name in ("weights", "vit", "sam"):
            if file := weights_file(kept.get(name, "")):
                kept[name] = file_hash(file)
        if kept.get("weights") == HUB_SHA256:  # the default
            del kept["weights"]
        return value_hash({"code": CODE, "kind": type(self).__name__} | kept)


@dataclass(frozen=True, kw_only=True)
class ClipSegSettings(Settings):
    """CLIPSeg, with or without the temporal adapter (T-Gated section 3)."""

    # training samples (section 3.5)
    window: int = 5  # slices that the adapter sees
    # "true"; controls: "centre", "shuffled", "another patient"; "manifest": as released; "channels": of a
    # model without an adapter, whose encoder sees z-1, z and z+1 as red, green and blue (2.5-D)
    neighbours: str = "true"
    window_unit: str = "slices"  # "mm": neighbours at multiples of `window_step_mm`, rounded to slices
    window_step_mm: float = 2.5
    within_mm: float = 0.0  # over 0: of true neighbours, those up to so far away; positions go by mm
    balance: str = "table 1"  # organs' weights; "released"; "equal": 1 each; "none": absent organs count, too
    negatives: str = "organ absent"  # slices that count as negative; "empty": those without any organ
    negatives_from: str = "all scans"  # for the paper only asks that the organ is absent; or "same scan"
    negatives_per_positive: float = 1 / 3
    negative_weight: float = 1.0  # of a negative sample, as a multiple of its organ's
    rotate_degrees: float = 5.0
    move: float = 0.0  # up to this share of its edge a slice is shifted, either way, and grows or shrinks
    corner_grey: float = 0.0  # of corners that a rotation leaves open, 0 to 255
    flip: bool = True  # left-right, never for an organ that has a side
    mirror: str = "left-right"  # what a flip exchanges; "front-back": as an untransposed slice has it
    validation: str = "volumes"  # mean Dice; "augmented slices": over those that show the organ, as released
    sampler: str = "shuffled"  # the paper's; "slab": neighbouring centres and several prompts together
    batch: int = 8  # training samples of a step, shuffled
    slab_centres: int = 8  # centre slices of a step, in slabs
    slab_length: int = 4  # neighbouring centres of a slab
    slab_prompts: int = 1  # prompts drawn for each centre of a slab
    # CLIPSeg: a hub name or folder; STAND_IN, or "" for random numbers, of a small one with these sizes
    weights: str = HUB_WEIGHTS  # or the released code's checkpoint of a whole model (.pt, .pth)
    revision: str = HUB_REVISION
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    joint_width: int = 512
    reduce_dim: int = 64
    decoder_heads: int = 4
    decoder_mlp: int = 2048
    extract_layers: tuple[int, ...] = (3, 6, 9)
    decoder_inputs: str = "extract_layers"  # "last": the last block alone, so that one decoder layer runs
    sam: str = ""  # a SAM in place of CLIPSeg's image encoder: a hub name or folder, or "small"
    freeze_encoders: bool = False
    frozen_blocks: int = 0  # of the image encoder, its first ones
    encoder_precision: str = "no"  # of encoder and adapter where scans are segmented; the decoder has float32
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
    dropout: float = 0.0  # of the adapter's attentions and MLPs; half of it at the end of the extra head
    spatial_drop_path: float = 0.0
    gate_bias: float = -5.0
    gate_penalty: float = 0.001
    # learning rates and loss (sections 3.1 and 3.5)
    lr_encoder: float = 1e-6
    lr_decoder: float = 1e-5
    lr_adapter: float = 5e-5
    lr_gate: float = 5e-5
    loss: str = "mean"  # of BCE and Dice loss, which the paper weighs equally; "sum"
    dice_smoothing: float = 1.0  # pixels, added above and below
    positive_weight: float = 1.0  # of the BCE at first; falls to 1 over this share of the steps:
    anneal: float = 0.5

    @property
    def reach(self) -> int:
        """Slices seen on each side of the centre; without an adapter none, or one where they are channels."""
        return self.window // 2 if self.adapter else int(self.as_channels)

    @property
    def as_channels(self) -> bool:
        """Whether the encoder sees a slice and its two neighbours as one picture in colour."""
        return self.neighbours == "channels" and not self.adapter


@dataclass(frozen=True, kw_only=True)
class SliceSettings(Settings):
    """Med-VLM and its 2-D U-Net: slices without neighbours (Med-VLM sections 3.3 to 3.5)."""

    batch: int = 8  # slices of a step, which Med-VLM asks for every organ
    lr: float = 1e-4
    turns: bool = False  # flips along both axes and 90-degree rotations, which make a right side a left one
    intensity: bool = False  # random shift and scale of grey values, and Gaussian noise
    features: tuple[int, ...] = (32, 64, 128, 256, 512)  # of the U-Net's levels: 7.8 M parameters
    text: str = "name"  # one of TEXTS; "one-hot": an embedding without any text
    vit: str = ""  # image encoder: a hub name or folder; STAND_IN, or "" for random numbers, of these sizes
    bert: str = ""  # and of the text encoder; "MiniLM": the one that comes with the requirements
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    lora_rank: int = 16
    mixer_depth: int = 2
    mixer_mlp: int = 4  # width of its MLPs, as a multiple of the tokens'
    mask_width: int = 512  # of the mask decoder
    mask_depth: int = 1  # layers of its bidirectional transformer


@dataclass(frozen=True, kw_only=True)
class VolumeSettings(Settings):
    """The 3-D networks (T-Gated section 4.5, Med-VLM section 3.2)."""

    batch: int = 2  # scans of a step, two patches of each
    lr: float = 1e-3
    turns: bool = False  # flips along all axes and axial 90-degree rotations, which break laterality
    contrasts: bool = False  # random gamma, bias field and inversion of grey values, for scans that differ so
    voxel_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    patch_voxels: tuple[int, int, int] = (96, 96, 96)
    filters: tuple[int, ...] = (32, 64, 128, 256, 320)  # of DynUNet's levels, as released
    feature_size: int = 16  # of the first level of UNETR and Swin UNETR
    hidden: int = 768  # width of UNETR's transformer
    heads: int = 12


# The test scans of a data set in another form. Those of phantoms alone change how the cohort is drawn: the
# share of degraded slices, the distance of slices as a multiple of the site's own, or organs that nobody has.
VARIANTS: dict[str, Values] = {
    "": {},
    **{f"{share:.0%} degraded": {"degraded": share} for share in (0.0, 0.2, 0.6, 0.8)},
    **{f"slices x{factor:g}": {"slice_distance": factor} for factor in (0.5, 1.5, 2.0)},
    "organs absent": {"without": ("gallbladder", "spleen", "left kidney")},
    "held out": {},  # the scans of BTCV that neither train nor choose weights in Med-VLM's runs
    "every case": {},  # all labelled scans of a data set, where the papers' 10 are drawn from them
}

# The headline runs, as changes to the profile. Those of a paper differ in the one thing that their name says.
# On BTCV 24 scans train and 6 validate; the last step's weights count, so that the 6 choose nothing
_ON_BTCV = Values(
    train_on="BTCV", test_on=("BTCV",), test_variant="held out", cases=(24, 6, 0), organs=("spleen", "liver"),
    keep="last")
_SLICES = _ON_BTCV | Values(
    size=224, slice_mm=2.0,  # not in the paper: gives its "about 5k" training slices
    crop=True, turns=True, intensity=True, weight_decay=0.01, clip_norm=0.0, schedule="constant")
# The paper duplicates slices, once for each of two organs: 4 slices a step make its 8 samples, and its epoch
_MED_VLM = _SLICES | Values(text="description", epochs=10, batch=4)
_LARGE = Values(vit="google/vit-base-patch16-224", bert="dmis-lab/biobert-base-cased-v1.1")
_SMALL = Values(
    vit="WinKawaks/vit-tiny-patch16-224", bert="sentence-transformers/all-MiniLM-L6-v2", mask_width=64)
_VOLUMES = Values(epochs=300, weight_decay=1e-5, validate_every=10)
_UNETR = _VOLUMES | Values(voxel_mm=(1.5, 1.5, 2.0), restart_epochs=300, lr=1e-4)
RUNS: dict[str, tuple[type[Settings], Values]] = {
    "baseline": (ClipSegSettings, {}),
    "adapter": (ClipSegSettings, {"adapter": True}),
    "centre only": (ClipSegSettings, {"adapter": True, "neighbours": "centre"}),
    "dynunet": (VolumeSettings, _VOLUMES | {"restart_epochs": 50}),
    "med-vlm large": (SliceSettings, _MED_VLM | _LARGE),
    "med-vlm small": (SliceSettings, _MED_VLM | _SMALL),
    "unet": (SliceSettings, _SLICES | {"epochs": 50}),
    "unetr": (VolumeSettings, _ON_BTCV | _UNETR),
    "clipseg on BTCV": (ClipSegSettings, _ON_BTCV),  # T-Gated's models, trained on the same scans
    "adapter on BTCV": (ClipSegSettings, _ON_BTCV | {"adapter": True}),
}

# What a profile changes in every run
_SITES = ("site A", "site B", "site C", "site M")  # as FLARE22, BTCV, AMOS22 CT and AMOS22 MRI
_PHANTOMS = Values(phantoms=True, train_on="site A", test_on=_SITES, size=96)
DATA: dict[str, Values] = {
    "smoke": _PHANTOMS | Values(size=24, phantom_voxels=3.0, cases=(2, 1, 1)),
    "demo": _PHANTOMS,
    "sample": Values(train_on="samples", test_on=("sample CT", "sample MRI"), size=96),
    "btcv": Values(train_on="BTCV", test_on=("BTCV", "sample CT", "sample MRI"), size=96, folds=5),
    "full": {},
    "proof": {},  # and in every run two steps, which show that nothing fails at full size
}

# What a profile changes in CLIPSeg and the adapter
_SMALL_CLIPSEG = Values(  # that two CPU cores train in minutes
    weights=STAND_IN, width=128, depth=4, heads=4, patch=8, joint_width=384, reduce_dim=64, decoder_heads=4,
    decoder_mlp=128, extract_layers=(1, 3), adapter_width=64, adapter_depth=2, adapter_heads=4,
    sampler="slab", epochs=2, epoch_steps=350, restart_epochs=2, warmup_steps=50, window_step_mm=5.0,
    lr_encoder=5e-4, lr_decoder=1e-3, lr_adapter=1e-3, lr_gate=1e-3,
    balance="equal",  # else the small organs, of which few slices show any, take most of a short training
    slab_prompts=5,  # three times as many samples in a quarter more time
    positive_weight=15.0, anneal=1.0)  # else most organs' probabilities fall to 0 and stay there
_TINY_CLIPSEG = _SMALL_CLIPSEG | Values(
    weights="", width=32, depth=2, heads=2, reduce_dim=16, decoder_heads=2, decoder_mlp=32,
    extract_layers=(0, 1), adapter_width=32, window_step_mm=15.0, epoch_steps=3, warmup_steps=0)
# Chosen on the validation scans of folds 0 and 1. A step asks each slice for every organ; slices turn and
# move more, for 9 patients do not lie everywhere; and none is flipped, which cost a quarter of the Dice
_ON_PATIENTS = _SMALL_CLIPSEG | Values(
    epochs=4, restart_epochs=4, slab_length=1, slab_prompts=13, positive_weight=3.0,
    rotate_degrees=15.0, move=0.1, flip=False)
CLIPSEG = {"smoke": _TINY_CLIPSEG, "demo": _SMALL_CLIPSEG, "sample": _SMALL_CLIPSEG, "btcv": _ON_PATIENTS}

# What a small profile changes in a run of another kind of model
_VIT = Values(vit=STAND_IN, size=96, patch=8, width=128, depth=4, heads=4)
_SMALL_VIT = _VIT | Values(depth=2)  # the first two blocks of the same encoder
_ON_SITE_B = Values(train_on="site B", test_on=("site B",))
_BRIEF_SLICES = _ON_SITE_B | Values(slice_mm=4.0, epochs=5, epoch_steps=60, lr=1e-3)
_BRIEF_MED_VLM = _BRIEF_SLICES | Values(bert="MiniLM", mixer_depth=1, mixer_mlp=2, clip_norm=1.0)
_DEMO: dict[str, Values] = {
    "dynunet": Values(  # chosen on validation phantoms among sizes that train in two minutes on one core
        voxel_mm=(6.8, 6.8, 5.0), patch_voxels=(24, 24, 24), filters=(16, 32, 64, 128), batch=1,
        epochs=4, epoch_steps=300, restart_epochs=4, validate_every=1, lr=3e-3),
    "med-vlm large": _BRIEF_MED_VLM | _VIT | {"mask_width": 64},
    "med-vlm small": _BRIEF_MED_VLM | _SMALL_VIT | {"mask_width": 32},
    "unet": _BRIEF_SLICES | Values(size=96, features=(16, 32, 64, 64, 64), epochs=8),
    "unetr": _ON_SITE_B | Values(
        voxel_mm=(6.6, 6.6, 5.0), patch_voxels=(48, 48, 32), hidden=48, heads=4, feature_size=8, batch=1,
        epochs=5, epoch_steps=60, restart_epochs=5, validate_every=1, lr=2e-3),
    "clipseg on BTCV": _ON_SITE_B, "adapter on BTCV": _ON_SITE_B,
}
_TWO = Values(cases=(2, 1, 0))
_TINY_VIT = Values(size=24, width=32, depth=2, heads=2, batch=4, epochs=2, epoch_steps=3)
_TINY_MED_VLM = _TWO | _TINY_VIT | Values(vit="", slice_mm=12.0, mask_width=32)
_TINY_VOLUMES = Values(voxel_mm=(12.0, 12.0, 15.0), epochs=2, epoch_steps=2)
_SMOKE: dict[str, Values] = {
    "dynunet": _TINY_VOLUMES | Values(patch_voxels=(16, 16, 8), filters=(4, 8, 8)),
    "med-vlm large": _TINY_MED_VLM, "med-vlm small": _TINY_MED_VLM | {"depth": 1},
    "unet": _TWO | _TINY_VIT | Values(size=32, slice_mm=12.0, features=(8, 8, 8, 8, 8)),
    "unetr": _TWO | _TINY_VOLUMES | Values(patch_voxels=(16, 16, 16), hidden=32, heads=2),
    "clipseg on BTCV": _TWO, "adapter on BTCV": _TWO,
}
_PATIENTS = dict.fromkeys(("med-vlm large", "med-vlm small"), Values(epoch_steps=240))
_PATIENTS["unet"] = Values(epoch_steps=120)
_CHANGES = {"smoke": _SMOKE, "btcv": _PATIENTS}  # to _DEMO's


def listed(variable: str) -> list[str]:
    """The names that an environment variable lists, parted by commas."""
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def settings_of(run: str, profile: str, seed: int = 0, **changes: Any) -> Any:
    """Settings of a headline run in a profile, with `changes`: an ablation is such a dict.

    Returns ClipSegSettings, SliceSettings or VolumeSettings. At full size count $WEIGHTS, $PRECISION,
    $EPOCHS, $TEST_ON ("FLARE22, BTCV": these of a run's test sets, if it has any of them) and $FAST=1: slabs
    of 4 neighbouring centres with one prompt each, at the paper's number of steps and samples.
    In the btcv profile $WEIGHTS makes CLIPSeg and the adapter those of full size.
    InputError: there is no such run, profile or precision, or $WEIGHTS is no start.
    """
    if profile not in DATA:
        raise InputError(f"{profile!r} is no profile: choose one of {', '.join(DATA)}.")
    if run not in RUNS:
        raise InputError(f"{run!r} is no run: choose one of {', '.join(RUNS)}.")
    (kind, own), weights = RUNS[run], os.environ.get("WEIGHTS", "")
    clipseg = kind is ClipSegSettings
    full_size = profile in FULL_SIZE or (profile == "btcv" and clipseg and weights)
    values = DATA[profile] | (CLIPSEG.get(profile, {}) if clipseg and not full_size else {}) | own
    if profile not in FULL_SIZE:
        values |= _DEMO.get(run, {}) | _CHANGES.get(profile, {}).get(run, {})
    if profile == "sample":  # a run on BTCV alone is one on the CT alone
        tested = values["test_on"] if len(values["test_on"]) > 1 else ("sample CT",)
        values |= {"train_on": "samples", "test_variant": "", "test_on": tested}
    if profile == "btcv":
        tested = values["test_on"] if len(values["test_on"]) > 1 else ("BTCV",)
        values |= {"train_on": "BTCV", "test_on": tested} | ({"size": Settings.size} if full_size else {})
    if full_size:
        precision = os.environ.get("PRECISION") or "fp32"
        if precision not in ("fp32", "tf32", "fp16", "bf16"):
            raise InputError(f"PRECISION={precision} is none: choose one of fp32, tf32, fp16, bf16.")
        if weights.endswith((".pt", ".pth")):
            advice = "give it to notebook 04 as RELEASED_CHECKPOINT."
            raise InputError(f"WEIGHTS={weights} is a model trained whole, no start: {advice}")
        values |= {"precision": precision} if precision != "fp32" else {}
        values |= {"weights": weights} if weights and clipseg else {}
        tested = listed("TEST_ON")
        kept = tuple(name for name in values.get("test_on", Settings.test_on) if name in tested)
        values |= {"test_on": kept} if kept else {}
        if epochs := os.environ.get("EPOCHS"):
            if not epochs.isdecimal() or not int(epochs):
                raise InputError(f"EPOCHS={epochs} is no number of epochs: give a whole one, from 1 on.")
            values |= {"epochs": int(epochs)}
        fast = clipseg and os.environ.get("FAST", "0") not in ("", "0")
        values |= {"sampler": "slab"} if fast else {}
    if profile == "proof":
        tested = min(1, values.get("cases", Settings.cases)[2])
        values |= Values(cases=(2, 1, tested), epochs=1, epoch_steps=2, restart_epochs=1)
    return kind(profile=profile, seed=seed, **(values | changes))


def weights_file(weights: str) -> Path | None:
    """The file of local weights, a checkpoint or in a folder in the hub's format; None for a hub's name."""
    path = START if weights == STAND_IN else Path(weights).expanduser()
    files = (path, path / "model.safetensors", path / "pytorch_model.bin")
    return next((file for file in files if weights and file.is_file()), None)


def run_folder(run: str, settings: Settings) -> Path:
    """Folder of a run of these very settings: config.json, log.csv and predictions.

    It holds best.safetensors once its training has ended.
    """
    name = re.sub(r"[^\w.-]+", "_", run)
    return results_root(settings.profile) / "runs" / name / f"seed{settings.seed}-{settings.hash()}"


def differences(one: Settings, two: Settings) -> dict[str, tuple[Any, Any]]:
    """{setting: (first value, second value)}: what a comparison of two runs compares."""
    first, second = vars(one), vars(two)
    shared = [name for name in first if name in second and name != "test_on"]
    return {name: (first[name], second[name]) for name in shared if first[name] != second[name]}


def data_note(profile: str) -> str:
    """Which profile, and what its numbers can claim: stands on every table and figure."""
    claims = {
        "bench": "random weights and a made-up scan; it measures time and memory, not accuracy",
        "btcv": "real scans of BTCV, small models",
        "sample": "two real scans (slabs of the CT count as cases), no claim about accuracy",
        "proof": "two steps at full size, to prove that they run, no claim about accuracy",
        "full": "scans of patients"}
    return f"{profile} profile: {claims.get(profile, 'phantoms, not patients')}"
