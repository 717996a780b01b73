"""The runs by name, each a short diff against its profile, and what each is scored on."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from lib.organs import PROMPT_SETS
from lib.paths import InputError, results_root
from lib.profiles.med_vlm import (
    ASKED_OTHERWISE,
    HELD_OUT,
    MEDVLM_ABLATIONS,
    MEDVLM_HEADLINE,
    MEDVLM_REPEATED,
    MEDVLM_RUNS,
    MEDVLM_SEEDS,
    VIT_PRETRAINING,
    medvlm_sizes,
)
from lib.profiles.settings import FULL_SIZE, PROFILES, PROOF, Settings
from lib.profiles.small import BRIEF, PRETRAINING, UNET_SIZES

# Runs by name, as changes to the profile. The headline runs differ from each other in the one thing that their name says.
HEADLINE: dict[str, dict[str, Any]] = {
    "baseline": {},
    "adapter": {"adapter": True},
    "centre only": {"adapter": True, "neighbours": "centre"},
    "dynunet": {
        "model": "dynunet",
        "start_from": "",
        "batch": 2,
        "epochs": 300,
        "restart_epochs": 50,
        "weight_decay": 1e-5,
        "warmup_steps": 0,
    },
}
LONGEST_FIRST = (  # of both papers' headline runs, with their scoring: so two at a time end together
    "dynunet",
    "adapter",
    "centre only",
    "unetr",
    "med-vlm large",
    "baseline",
    "med-vlm small",
    "unet",
    "clipseg on BTCV",
)
SEEDS = (1, 2)  # further seeds of the CLIPSeg headline runs: "adapter, seed 1"

# What the released code does where the paper says otherwise: changes to each method.
_SAMPLING = {"negatives": "empty", "negatives_per_positive": 0.04, "balance": "released"}  # 10 % more draws at 0.4 of the weight
_VALIDATION = {"validation": "augmented slices", "mirror": "front-back"}
RELEASED: dict[str, dict[str, dict[str, Any]]] = {
    "manifest windows": {"adapter": {"neighbours": "manifest"}},
    "frozen encoders": {"baseline": {"freeze_encoders": True}},
    "one activation": {"adapter": {"decoder_inputs": "last"}},
    "gate first": {"adapter": {"gate_first": True}},
    "optimizer": {"adapter": {"frozen_embeddings": True, "penalty_on": "bias", "clip_norm": 0.5}},
    "sampling": {"baseline": _SAMPLING, "adapter": _SAMPLING},
    "validation": {"baseline": _VALIDATION, "adapter": _VALIDATION},
}
AS_RELEASED = {
    method: {setting: value for changes in RELEASED.values() for setting, value in changes.get(method, {}).items()}
    for method in ("baseline", "adapter")
}
PARTS: dict[str, dict[str, Any]] = {  # the adapter without one of its parts, and with other windows
    "no temporal layers": {"adapter_depth": 0},
    "no spatial block": {"spatial_block": False},
    "no gate": {"gate": False},
    "no gate penalty": {"gate_penalty": 0.0},
    **{f"window {slices}": {"window": slices} for slices in (1, 3, 7, 9)},
}
CONTROLS = {f"neighbours {kind}": {"neighbours": kind} for kind in ("shuffled", "another patient")}
SHUFFLED = {f"{method}, shuffled": HEADLINE[method] | {"sampler": "shuffled"} for method in ("baseline", "adapter")}  # the paper's sampler
ABLATIONS: dict[str, dict[str, Any]] = {
    **{f"adapter, {name}": HEADLINE["adapter"] | changes for name, changes in (PARTS | CONTROLS).items()},
    **{f"{method}, released {name}": HEADLINE[method] | changes[method] for name, changes in RELEASED.items() for method in changes},
    **{f"{method}, as released": HEADLINE[method] | changes for method, changes in AS_RELEASED.items()},
    "dynunet, flips and turns": HEADLINE["dynunet"] | {"turns": True},
    **SHUFFLED,
}
ABLATION_SEEDS = (0,)  # each more seed takes `ALL=1` half an hour more
SHUFFLED_SEEDS = (0, *SEEDS)  # of SHUFFLED, so that each has its counterpart
SHUFFLED_TERMS = 14  # of a step of SHUFFLED in the small profiles: as many as a step of their slabs holds on average
RUNS = HEADLINE | ABLATIONS

# Test sets that phantoms alone can give: FLARE22's test patients, spoiled otherwise or without some organs; and phantoms of the same
# seeds with slices closer or further apart, whose organs are drawn anew
DOSES = (0.0, 0.2, 0.6, 0.8)  # shares of degraded slices, beside the 0.4 of the training
SPACINGS = (0.5, 1.5, 2.0)  # distances of slices, as multiples of the training's
ABSENT = "FLARE22, organs absent"
WINDOW_IN_MM = "window in mm"  # a condition
ELSEWHERE = "labels-"  # how `config` begins in the scores of label maps that no run here made
EVERY_CASE = "every case"  # "BTCV, every case": all labelled scans of a data set, where the papers' 10 are drawn from them
CHECKPOINT_RUN = "adapter, as released"  # whose model a checkpoint of the released code is
PRECISIONS = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}  # in Accelerate's words; 32 bits are the published


def settings_of(run: str, profile: str | None = None) -> Settings:
    """Settings of a run in a profile ($PROFILE, else demo). "adapter, seed 1" is the run "adapter" with another seed.

    Raises:
        InputError: there is no such run or profile.
    """
    profile = profile or os.environ.get("PROFILE", "demo")
    if profile not in PROFILES:
        raise InputError(f"{profile!r} is no profile: choose one of {', '.join(PROFILES)}.")
    name, _, seed = run.partition(", seed ")
    known = RUNS | MEDVLM_RUNS | PRETRAINING | VIT_PRETRAINING
    if name not in known or (seed and not seed.isdecimal()):
        raise InputError(f"{run!r} is no run: choose one of {', '.join(known)}, with ', seed N' behind it for another seed.")
    changes = PROFILES[profile] | known[name]
    if name in PRETRAINING and profile == "smoke":
        changes |= BRIEF
    if changes.get("model") == "dynunet":
        changes |= UNET_SIZES.get(profile, {})
    if name in MEDVLM_RUNS | VIT_PRETRAINING:
        changes |= medvlm_sizes(name, profile)
    if name in SHUFFLED and profile not in FULL_SIZE:
        changes["batch"] = SHUFFLED_TERMS
    if name in ABLATIONS:
        changes["test_on"] = changes.get("test_on", Settings.test_on)[:1]
    if profile in FULL_SIZE:
        changes |= _from_outside(name)
    if profile == "proof":
        changes |= PROOF | {"cases": (2, 1, min(1, changes.get("cases", Settings.cases)[2]))}
    if start := changes.get("start_from"):
        changes["start_hash"] = settings_of(start, profile).hash()
    return replace(Settings(profile), **changes, seed=int(seed or 0))


def _from_outside(run: str) -> dict[str, Any]:
    """What $WEIGHTS and $PRECISION change in a run at full size.

    Raises:
        InputError: there is no such precision, or the run cannot start from a checkpoint of a whole model.
    """
    weights, precision = os.environ.get("WEIGHTS", ""), os.environ.get("PRECISION") or "fp32"
    if precision not in PRECISIONS:
        raise InputError(f"PRECISION={precision} is none: choose one of {', '.join(PRECISIONS)}.")
    changes: dict[str, Any] = {"precision": PRECISIONS[precision]} | ({"weights": weights} if weights else {})
    if not weights.endswith((".pt", ".pth")):
        return changes
    if run != CHECKPOINT_RUN:
        raise InputError(
            f"WEIGHTS={weights} is a whole model as its authors released it, and no start for {run!r}: score it by "
            f"`python -m lib.runs '{CHECKPOINT_RUN}' --profile full`, and leave WEIGHTS out elsewhere."
        )
    return changes | {"epochs": 0}  # scored as it is


def run_folder(run: str, profile: str | None = None) -> Path:
    """Folder of a run: config.json, log.csv, weights, predictions and its own scores."""
    return results_root(settings_of(run, profile).profile) / "runs" / run.replace(", ", "-").replace(" ", "_")


def record_of(folder: Path) -> dict[str, Any]:
    """The config.json of a run's folder: its hash, its settings and, once it is finished, what came of it; {} where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / "config.json"
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is no configuration of a run ({error}): give {folder} another name, and the run starts anew.") from error


def is_finished(folder: Path, settings: Settings) -> bool:
    """True where `folder` holds a finished run of these very settings. InputError: see `record_of`."""
    return (folder / "best.safetensors").exists() and record_of(folder).get("finished") == settings.hash()


def all_runs(every: bool) -> list[str]:
    """The headline runs of both papers, or these with every ablation and seed."""
    more = [f"{run}, seed {seed}" for seed in SEEDS for run in HEADLINE if run != "dynunet"]
    for seed in ABLATION_SEEDS:
        more += [f"{run}, seed {seed}" if seed else run for run in ABLATIONS]
    more += [f"{run}, seed {seed}" for run in SHUFFLED for seed in SHUFFLED_SEEDS if seed not in ABLATION_SEEDS]
    more += [*MEDVLM_ABLATIONS, *(f"{run}, seed {seed}" for seed in MEDVLM_SEEDS for run in MEDVLM_REPEATED)]
    return [*LONGEST_FIRST, *(more if every else [])]


def every_case() -> bool:
    """Whether $ALL_CASES asks for every labelled case of the other data sets, not for the papers' 10."""
    return os.environ.get("ALL_CASES", "0") not in ("", "0")


def evaluations(run: str, profile: str | None = None) -> list[tuple[str, str]]:
    """(data set, condition) pairs that a run is scored on. A condition changes the prompts or the window, never the weights."""
    settings, name = settings_of(run, profile), run.partition(", seed ")[0]
    pairs = [(dataset, "") for dataset in settings.test_on]
    if name in MEDVLM_RUNS:
        asked = ASKED_OTHERWISE if settings.model == "med-vlm" and settings.text == "description" and run in MEDVLM_HEADLINE else ()
        return pairs + [(dataset, text) for dataset in settings.test_on for text in asked]
    if run in ("baseline", "adapter") and settings.train_on == "FLARE22":
        pairs += [(HELD_OUT, "")]  # both papers on the same scans
    first = settings.test_on[:1]
    if run == "adapter":
        pairs += [(dataset, prompts) for dataset in first for prompts in PROMPT_SETS]
    if settings.phantoms and settings.train_on == "FLARE22" and name in ("baseline", "adapter", "centre only"):
        pairs += [(f"FLARE22, {dose:.0%} degraded", "") for dose in DOSES]
        pairs += [(ABSENT, "")] if run in ("baseline", "adapter") else []
        spaced = [f"FLARE22, slices x{factor:g}" for factor in SPACINGS] if name == "adapter" else []
        pairs += [(dataset, condition) for dataset in spaced for condition in ("", WINDOW_IN_MM)]
    elif name == "adapter" and not settings.phantoms:
        pairs += [(dataset, WINDOW_IN_MM) for dataset in settings.test_on]
    if every_case() and not settings.phantoms and settings.train_on == "FLARE22":
        pairs += [(f"{dataset}, {EVERY_CASE}", "") for dataset in settings.test_on[1:]]
    return pairs


def differences(first: str, second: str, profile: str | None = None) -> dict[str, tuple[Any, Any]]:
    """{setting: (first run's value, second run's)}: what a comparison of two runs compares, and nothing else may be in it."""
    one, two = settings_of(first, profile), settings_of(second, profile)
    pairs = {field.name: (getattr(one, field.name), getattr(two, field.name)) for field in fields(one)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name != "test_on"}


def data_note(profile: str) -> str:
    """Which profile, and what its numbers can claim: stands on every table and figure."""
    if profile == "bench":
        return "benchmark: random weights and a made-up scan; it measures time and memory, not accuracy"
    settings = settings_of("baseline", profile)
    if settings.train_on == "samples":
        return f"{profile} profile: two real scans (slabs of the CT count as cases), no claim about accuracy"
    if profile == "proof":
        return "proof profile: two steps at full size, to prove that they run, no claim about accuracy"
    return f"{profile} profile: {'phantoms, not patients: not clinical' if settings.phantoms else 'scans of patients'}"
