"""lib.config: a comparison compares what its name says alone; a hash is of what can change a score."""

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from lib import config
from lib.config import (
    CODE,
    DATA,
    HUB_REVISION,
    HUB_WEIGHTS,
    NO_NUMBER,
    RUNS,
    VARIANTS,
    ClipSegSettings,
    SliceSettings,
    VolumeSettings,
    data_note,
    differences,
    run_folder,
    settings_of,
)
from lib.files import InputError, value_hash

EVERY = [*RUNS]
MED_VLM = ("med-vlm large", "med-vlm small", "unet", "unetr", "clipseg on BTCV")


def compared(one: str, two: str, profile: str, **changes: Any) -> dict[str, tuple[Any, Any]]:
    return differences(settings_of(one, profile), settings_of(two, profile, **changes))


@pytest.mark.parametrize("profile", list(DATA))
def test_headline_runs_differ_in_what_their_names_say(profile: str) -> None:
    assert compared("baseline", "adapter", profile) == {"adapter": (False, True)}
    assert compared("adapter", "centre only", profile) == {"neighbours": ("true", "centre")}
    assert compared("adapter", "adapter", profile, gate=False) == {"gate": (True, False)}, "an ablation"
    assert compared("clipseg on BTCV", "adapter on BTCV", profile) == {"adapter": (False, True)}
    data = {"train_on", "cases", "phantoms", "phantom_voxels", "degraded", "seed"}
    data |= {"ct_window_hu", "mr_percentiles"}
    assert not data & set(compared("baseline", "dynunet", profile)), "the same scans"
    for run in MED_VLM[1:]:
        shared = data | {"organs", "keep"}
        assert not shared & set(compared("med-vlm small", run, profile)), "the same scans and organs"
    seen = {"size", "slice_mm", "crop", "turns", "intensity", "lr", "weight_decay"}
    for run in ("med-vlm large",) if profile == "smoke" else ("med-vlm large", "unet"):
        assert not seen & set(compared("med-vlm small", run, profile))


def test_at_full_size_the_papers_values_stand() -> None:
    assert set(compared("baseline", "dynunet", "full")) == {
        "batch", "epochs", "restart_epochs", "weight_decay", "validate_every"}  # fmt: skip
    assert compared("med-vlm large", "med-vlm small", "full").keys() == {"vit", "bert", "mask_width"}
    settings = settings_of("med-vlm small", "full")
    assert (settings.cases, settings.size, settings.epochs, settings.lr) == ((24, 6, 0), 224, 10, 1e-4)
    unet = settings_of("unet", "full")
    assert unet.epochs == 50 and settings.schedule == unet.schedule == "constant"
    assert len(settings.organs) * settings.batch == unet.batch == 8, "samples of a step"
    assert settings_of("med-vlm small", "demo").batch == 4, "and in the demo"
    assert settings_of("dynunet", "full").validate_every == settings_of("unetr", "full").validate_every == 10
    adapter = settings_of("adapter", "full")
    assert (adapter.size, adapter.window, adapter.gate_bias, adapter.gate_penalty) == (352, 5, -5.0, 0.001)
    assert adapter.weights == HUB_WEIGHTS and adapter.revision == HUB_REVISION and len(HUB_REVISION) == 40
    assert adapter.reach == 2 and settings_of("baseline", "full").reach == 0


@pytest.mark.parametrize("run", list(RUNS))
def test_the_proof_differs_from_the_full_profile_in_how_much_it_does_and_in_no_size(run: str) -> None:
    full, proof = settings_of(run, "full"), settings_of(run, "proof")
    brief = {"profile", "cases", "epochs", "epoch_steps", "restart_epochs"}
    assert brief - {"restart_epochs"} <= set(differences(full, proof)) <= brief
    assert proof.full_size and full.full_size and not settings_of(run, "demo").full_size
    assert proof.cases == (2, 1, 0 if "held out" in full.test_variant else 1)
    assert proof.epochs * proof.epoch_steps == 2


@pytest.mark.parametrize("run", ["adapter", "dynunet", "unet"])
@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_a_hash_is_of_the_settings_that_can_change_a_score_and_have_not_their_default(
    profile: str, run: str
) -> None:
    """So a new setting, which has its default in every older run, leaves their hashes as they are."""
    settings = settings_of(run, profile)
    changed = {f.name: value for f in fields(settings) if (value := getattr(settings, f.name)) != f.default}
    kept = {name: value for name, value in changed.items() if name not in NO_NUMBER}
    assert settings.hash() == value_hash({"code": CODE, "kind": type(settings).__name__} | kept)
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5}
    other |= {str: lambda v: v + "x", tuple: lambda v: v[1:]}
    for field in fields(settings):
        value = getattr(settings, field.name)
        changed_one = replace(settings, **{field.name: other[type(value)](value)})
        assert (changed_one.hash() == settings.hash()) == (field.name in NO_NUMBER), field.name


def test_the_kind_of_model_counts() -> None:
    assert len({kind().hash() for kind in (ClipSegSettings, SliceSettings, VolumeSettings)}) == 3


def test_another_start_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("adapter", "med-vlm small"):
        settings, seen = settings_of(run, "demo"), []
        for content in (b"one", b"another"):
            (file := tmp_path / f"{content.decode()}.safetensors").write_bytes(content)
            monkeypatch.setattr(config, "START", file)
            seen.append(settings.hash())
        assert seen[0] != seen[1], "start weights count by their content"


def test_no_two_runs_share_a_hash_or_a_folder() -> None:
    every = [settings_of(run, profile, seed) for profile in DATA for run in RUNS for seed in (0, 1)]
    assert max(Counter(settings.hash() for settings in every).values()) == 1
    runs = (*RUNS, "adapter: no gate", "adapter, no gate!")
    folders = {run_folder(name, settings) for name in runs for settings in every}
    assert len(folders) == len(runs) * len(every)
    settings = settings_of("adapter", "smoke", 2)
    named = ("smoke", "runs", "adapter_on_BTCV", f"seed2-{settings.hash()}")
    assert run_folder("adapter on BTCV", settings).parts[-4:] == named


@pytest.mark.parametrize("profile", list(DATA))
def test_what_a_run_is_tested_on(profile: str) -> None:
    patients, sites = ("FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI"), ("site A", "site B", "site C", "site M")
    held_out = "BTCV", ("BTCV",), "held out"
    home, tested, btcv = {
        "btcv": ("BTCV", ("BTCV", "sample CT", "sample MRI"), held_out),
        "full": ("FLARE22", patients, held_out),
        "proof": ("FLARE22", patients, held_out),
        "sample": ("samples", ("sample CT", "sample MRI"), ("samples", ("sample CT",), "")),
    }.get(profile, ("site A", sites, ("site B", ("site B",), "held out")))
    settings = settings_of("adapter", profile)
    assert (settings.train_on, settings.test_on, settings.test_variant) == (home, tested, "")
    for run in MED_VLM:
        own = settings_of(run, profile)
        assert own.keep == "last" and own.organs == ("spleen", "liver") and own.cases[2] == 0
        assert (own.train_on, own.test_on, own.test_variant) == btcv


def test_variants_of_the_test_scans() -> None:
    assert VARIANTS["60% degraded"] == {"degraded": 0.6}
    assert VARIANTS["slices x0.5"] == {"slice_distance": 0.5}
    assert settings_of("adapter", "smoke").degraded == 0.1
    assert "10% degraded" not in VARIANTS, "the scans as they are"
    assert {"organs absent", "held out", "every case", "slices x2"} < set(VARIANTS) and VARIANTS[""] == {}


@pytest.mark.parametrize(("run", "profile", "expected"), [
    ("adaptor", "smoke", "^'adaptor' is no run: choose one of baseline, adapter, [^\n]*$"),
    ("adapter", "large", r"^'large' is no profile: choose one of smoke, demo, sample, btcv, full, proof\.$"),
])  # fmt: skip
def test_unknown_names_end_in_one_sentence(run: str, profile: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        settings_of(run, profile)


def test_weights_and_precision_from_outside_reach_models_of_full_size_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = settings_of("adapter", "full")
    assert published.precision == "no"
    monkeypatch.setenv("WEIGHTS", "/somewhere/clipseg")
    monkeypatch.setenv("PRECISION", "fp32")
    assert replace(settings_of("adapter", "full"), weights=HUB_WEIGHTS) == published
    assert settings_of("baseline", "full").weights == "/somewhere/clipseg"
    assert settings_of("baseline", "smoke").weights == ""
    monkeypatch.setenv("PRECISION", "fp16")
    assert settings_of("unet", "full").precision == "fp16" and settings_of("unet", "demo").precision == "no"
    ours = settings_of("adapter", "btcv")  # on BTCV alone $WEIGHTS takes the place of the small model
    assert (ours.weights, ours.size, ours.width, ours.precision) == ("/somewhere/clipseg", 352, 768, "fp16")
    assert settings_of("unet", "btcv").size == 96
    assert settings_of("adapter", "full").hash() != published.hash()
    monkeypatch.setenv("FAST", "1")
    fast, small = settings_of("adapter", "full"), settings_of("adapter", "smoke")
    assert published.sampler == "shuffled" and published.batch == 8 and fast.sampler == "slab"
    assert (fast.slab_centres, fast.slab_length, fast.slab_prompts) == (8, 4, 1)
    monkeypatch.delenv("FAST")
    assert settings_of("adapter", "smoke") == small and settings_of("adapter", "full").sampler == "shuffled"
    monkeypatch.setenv("TEST_ON", "AMOS22 CT, FLARE22")
    monkeypatch.setenv("EPOCHS", "5")
    part, other = settings_of("adapter", "full"), settings_of("unet", "full")
    assert (part.test_on, part.epochs) == (("FLARE22", "AMOS22 CT"), 5) and other.test_on == ("BTCV",)
    assert settings_of("adapter", "smoke") == small
    monkeypatch.setenv("EPOCHS", "five")
    with pytest.raises(InputError, match=r"^EPOCHS=five is no number of epochs: give a whole one, from 1 on"):
        settings_of("adapter", "full")
    monkeypatch.delenv("EPOCHS")
    monkeypatch.setenv("PRECISION", "half")
    with pytest.raises(InputError, match=r"^PRECISION=half is none: choose one of fp32, tf32, fp16, bf16\.$"):
        settings_of("adapter", "full")


@pytest.mark.parametrize("profile", list(DATA))
def test_every_profile_says_what_its_numbers_can_claim(profile: str) -> None:
    claims = dict.fromkeys(("sample", "proof"), "no claim about accuracy") | {"full": "scans of patients"}
    claims["btcv"] = "real scans of BTCV, small models"
    note = data_note(profile)
    assert note.startswith(f"{profile} profile: ")
    assert note.endswith(claims.get(profile, "phantoms, not patients"))
