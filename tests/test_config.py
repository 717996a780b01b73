"""lib.config: a comparison compares what its name says alone; a hash is of what can change a score."""

import json
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
    is_finished,
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
    assert compared("adapter", "adapter", profile, gate=False) == {"gate": (True, False)}, (
        "an ablation is its change"
    )
    assert compared("clipseg on BTCV", "adapter on BTCV", profile) == {"adapter": (False, True)}
    data = {
        "train_on",
        "cases",
        "ct_window_hu",
        "mr_percentiles",
        "phantoms",
        "phantom_voxels",
        "degraded",
        "seed",
    }
    assert not data & set(compared("baseline", "dynunet", profile)), "the same scans"
    for run in MED_VLM[1:]:
        assert not (data | {"organs", "keep"}) & set(compared("med-vlm small", run, profile)), (
            "the same scans and organs"
        )
    seen = {"size", "slice_mm", "crop", "turns", "intensity", "batch", "lr", "weight_decay"}
    if profile != "smoke":
        assert not seen & set(compared("med-vlm small", "unet", profile))
    assert not seen & set(compared("med-vlm small", "med-vlm large", profile))


def test_at_full_size_the_papers_values_stand() -> None:
    assert set(compared("baseline", "dynunet", "full")) == {
        "batch",
        "epochs",
        "restart_epochs",
        "weight_decay",
    }
    assert compared("med-vlm large", "med-vlm small", "full").keys() == {"vit", "bert", "mask_width"}
    settings = settings_of("med-vlm small", "full")
    assert (settings.cases, settings.size, settings.epochs, settings.lr) == ((24, 6, 0), 224, 10, 1e-4)
    assert settings_of("unet", "full").epochs == 50
    adapter = settings_of("adapter", "full")
    assert (adapter.size, adapter.window, adapter.gate_bias, adapter.gate_penalty) == (352, 5, -5.0, 0.001)
    assert adapter.weights == HUB_WEIGHTS and adapter.revision == HUB_REVISION and len(HUB_REVISION) == 40
    assert adapter.reach == 2 and settings_of("baseline", "full").reach == 0


@pytest.mark.parametrize("run", list(RUNS))
def test_the_proof_differs_from_the_full_profile_in_how_much_it_does_and_in_no_size(run: str) -> None:
    full, proof = settings_of(run, "full"), settings_of(run, "proof")
    brief = {"profile", "cases", "epochs", "epoch_steps", "checkpoint_steps"}
    assert {f.name for f in fields(full) if getattr(full, f.name) != getattr(proof, f.name)} - {
        "restart_epochs"
    } == brief
    assert proof.full_size and full.full_size and not settings_of(run, "demo").full_size
    assert (
        proof.cases == (2, 1, 0 if "held out" in full.test_variant else 1)
        and proof.epochs * proof.epoch_steps == 2
    )


@pytest.mark.parametrize("run", ["baseline", "adapter", "dynunet", "unet"])
@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_a_hash_is_of_the_settings_that_have_not_their_default(profile: str, run: str) -> None:
    """So a new setting, which has its default in every older run, leaves their hashes as they are."""
    settings = settings_of(run, profile)
    changed = {f.name: value for f in fields(settings) if (value := getattr(settings, f.name)) != f.default}
    kept = {name: value for name, value in changed.items() if name not in NO_NUMBER}
    assert settings.hash() == value_hash({"code": CODE, "kind": type(settings).__name__} | kept)
    kinds = {kind().hash() for kind in (ClipSegSettings, SliceSettings, VolumeSettings)}
    assert len(kinds) == 3, "the kind of model counts"


@pytest.mark.parametrize("run", ["adapter", "dynunet", "unet"])
def test_what_cannot_change_a_weight_is_not_in_the_hash_and_all_else_is(run: str) -> None:
    settings = settings_of(run, "smoke")
    other = {
        bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5, str: lambda v: v + "x",
        tuple: lambda v: v[1:],
    }  # fmt: skip
    for field in fields(settings):
        value = getattr(settings, field.name)
        changed = replace(settings, **{field.name: other[type(value)](value)})
        assert (changed.hash() == settings.hash()) == (field.name in NO_NUMBER), field.name


def test_another_start_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("adapter", "med-vlm small"):
        settings, seen = settings_of(run, "demo"), []
        for content in (b"one", b"another"):
            (file := tmp_path / f"{content.decode()}.safetensors").write_bytes(content)
            monkeypatch.setattr(config, "START", file)
            seen.append(settings.hash())
        assert seen[0] != seen[1], "start weights count by their content"


def test_no_two_runs_share_a_hash_or_a_folder() -> None:
    hashes = Counter(
        settings_of(run, profile, seed).hash() for profile in DATA for run in RUNS for seed in (0, 1)
    )
    assert max(hashes.values()) == 1
    folders = {
        run_folder(name, "smoke", seed)
        for name in (*EVERY, "adapter: no gate", "adapter, no gate!")
        for seed in (0, 1)
    }
    assert len(folders) == 2 * len(EVERY) + 4 and run_folder("adapter", "smoke", 2).parts[-3:] == (
        "runs",
        "adapter",
        "seed2",
    )


@pytest.mark.parametrize("profile", list(DATA))
def test_what_a_run_is_tested_on(profile: str) -> None:
    settings = settings_of("adapter", profile)
    sets = {"sample": ("sample CT", "sample MRI"), "full": ("FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI")}
    sets["proof"] = sets["full"]
    assert settings.test_on == sets.get(profile, ("site A", "site B", "site C", "site M"))
    assert (
        settings.train_on == ("samples" if profile == "sample" else settings.test_on[0])
        and not settings.test_variant
    )
    for run in MED_VLM:
        own = settings_of(run, profile)
        assert own.keep == "last" and own.organs == ("spleen", "liver") and own.cases[2] == 0
        expected = {"sample": ("samples", ("sample CT",), ""), "full": ("BTCV", ("BTCV",), "held out")}
        expected["proof"] = expected["full"]
        found = own.train_on, own.test_on, own.test_variant
        assert found == expected.get(profile, ("site B", ("site B",), "held out"))


def test_variants_of_the_test_scans() -> None:
    assert VARIANTS["60% degraded"] == {"degraded": 0.6} and VARIANTS["slices x0.5"] == {
        "slice_distance": 0.5
    }
    assert settings_of("adapter", "smoke").degraded == 0.1 and "10% degraded" not in VARIANTS, (
        "the scans as they are"
    )
    assert {"organs absent", "held out", "every case", "slices x2"} < set(VARIANTS) and VARIANTS[""] == {}


@pytest.mark.parametrize(
    ("run", "profile", "expected"),
    [
        ("adaptor", "smoke", "'adaptor' is no run: choose one of baseline, adapter, "),
        ("adapter, seed 1", "smoke", "'adapter, seed 1' is no run"),
        ("adapter", "large", "'large' is no profile: choose one of smoke, demo, sample, full, proof."),
    ],
)
def test_unknown_names_end_in_one_sentence(run: str, profile: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_of(run, profile)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_weights_and_precision_from_outside_reach_models_of_full_size_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = settings_of("adapter", "full")
    assert published.precision == "no"
    monkeypatch.setenv("WEIGHTS", "/somewhere/clipseg")
    monkeypatch.setenv("PRECISION", "fp32")
    assert replace(settings_of("adapter", "full"), weights=HUB_WEIGHTS) == published
    assert (
        settings_of("baseline", "full").weights == "/somewhere/clipseg"
        and settings_of("baseline", "smoke").weights == ""
    )
    monkeypatch.setenv("PRECISION", "fp16")
    assert settings_of("unet", "full").precision == "fp16" and settings_of("unet", "demo").precision == "no"
    assert settings_of("adapter", "full").hash() != published.hash()
    monkeypatch.setenv("PRECISION", "half")
    with pytest.raises(InputError, match=r"^PRECISION=half is none: choose one of fp32, fp16, bf16\.$"):
        settings_of("adapter", "full")


def test_only_a_finished_run_of_these_very_settings_counts(tmp_path: Path) -> None:
    settings = settings_of("baseline", "smoke")
    assert not is_finished(tmp_path, settings)
    (tmp_path / "best.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"hash": settings.hash()}))
    assert not is_finished(tmp_path, settings), "still in training"
    (tmp_path / "config.json").write_text(json.dumps({"hash": settings.hash(), "finished": settings.hash()}))
    assert is_finished(tmp_path, settings) and not is_finished(tmp_path, replace(settings, seed=1))
    for text in ('{"hash": ', "[]", '{"settings": {}}', ""):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(
            InputError, match=r"config\.json is no configuration of a run \(.*another name\.$"
        ):
            is_finished(tmp_path, settings)


def test_every_profile_says_what_its_numbers_can_claim() -> None:
    notes = {profile: data_note(profile) for profile in DATA}
    assert all(note.startswith(f"{profile} profile: ") for profile, note in notes.items())
    assert all("phantoms, not patients" in notes[profile] for profile in ("smoke", "demo"))
    assert notes["full"].endswith("scans of patients") and all(
        "no claim" in notes[name] for name in ("proof", "sample")
    )
