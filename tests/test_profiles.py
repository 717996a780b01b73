"""lib.profiles: a comparison compares what its name says and nothing else, and a hash changes with what can change a score."""

import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest

from lib.organs import PROMPT_SETS, TEXTS
from lib.paths import InputError, value_hash
from lib.profiles import (
    ABLATION_SEEDS,
    ABLATIONS,
    ABSENT,
    AS_RELEASED,
    ASKED,
    ASKED_OTHERWISE,
    BY_CASES,
    BY_TEXT,
    CONTROLS,
    DOSES,
    HEADLINE,
    HELD_OUT,
    LEARNING_CURVE,
    MEDVLM_HEADLINE,
    MEDVLM_RUNS,
    MEDVLM_SEEDS,
    PARTS,
    PRETRAINING,
    PROFILES,
    RELEASED,
    SEEDS,
    SPACINGS,
    WINDOW_IN_MM,
    WITHOUT_TURNS,
    Settings,
    all_runs,
    data_note,
    differences,
    evaluations,
    is_finished,
    run_folder,
    settings_of,
)
from lib.profiles.settings import CODE, FULL_SIZE, NO_NUMBER

EVERY = [*all_runs(True), *PRETRAINING]
FOUR = ["FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "WEIGHTS", "PRECISION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("profile", list(PROFILES))
def test_headline_runs_differ_in_what_their_names_say(profile: str) -> None:
    assert differences("baseline", "adapter", profile) == {"adapter": (False, True)}
    assert differences("adapter", "centre only", profile) == {"neighbours": ("true", "centre")}
    assert differences("adapter", "adapter, seed 1", profile) == {"seed": (0, 1)}
    assert differences("baseline", "baseline", profile) == {}
    assert differences("baseline", "dynunet", profile)["model"] == ("clipseg", "dynunet")
    data = {"train_on", "cases", "ct_window_hu", "mr_percentiles", "phantoms", "phantom_voxels", "degraded", "seed"}
    assert not data & set(differences("baseline", "dynunet", profile)), "the same scans"


def test_at_full_size_only_the_released_schedule_comes_with_the_3d_baseline() -> None:
    assert set(differences("baseline", "dynunet", "full")) == {"model", "batch", "epochs", "restart_epochs", "weight_decay"}


@pytest.mark.parametrize("run", [*HEADLINE, *MEDVLM_HEADLINE, "baseline, shuffled", "med-vlm small, 3 cases"])
def test_the_proof_differs_from_the_full_profile_in_how_much_it_does_and_in_no_size(run: str) -> None:
    full, proof = settings_of(run, "full"), settings_of(run, "proof")
    changed = {field.name for field in fields(Settings) if getattr(full, field.name) != getattr(proof, field.name)}
    assert changed - {"restart_epochs"} == {"profile", "cases", "epochs", "epoch_steps", "checkpoint_steps"}
    assert proof.full_size and full.full_size and not settings_of(run, "demo").full_size
    assert proof.cases == (2, 1, 0 if run in MEDVLM_RUNS else 1) and proof.epochs * proof.epoch_steps == 2
    assert evaluations(run, "proof") == evaluations(run, "full")


@pytest.mark.parametrize("profile", list(PROFILES))
@pytest.mark.parametrize("run", list(ABLATIONS))
def test_an_ablation_differs_from_its_method_in_its_named_change_alone(run: str, profile: str) -> None:
    method, _, name = run.partition(", ")
    if method == "dynunet":
        expected = {"turns": True}
    elif name == "shuffled":
        expected = {"sampler": "shuffled"} | ({"batch": 14} if profile not in FULL_SIZE else {})
    elif name == "as released":
        expected = AS_RELEASED[method]
    else:
        expected = (PARTS | CONTROLS).get(name) or RELEASED[name.removeprefix("released ")][method]
    found = differences(method, run, profile)
    assert {setting: pair[1] for setting, pair in found.items()} == expected and expected
    assert all(pair[0] == getattr(settings_of(method, profile), setting) for setting, pair in found.items())
    assert settings_of(run, profile).test_on == settings_of(method, profile).test_on[:1], "and on the first test set only"


def test_the_ablations_are_all_there() -> None:
    assert set(PARTS) == {
        *("no temporal layers", "no spatial block", "no gate", "no gate penalty"),
        *("window 1", "window 3", "window 7", "window 9"),
    }
    assert set(CONTROLS) == {"neighbours shuffled", "neighbours another patient"}
    assert {run.partition(", ")[0] for run in ABLATIONS} == {"baseline", "adapter", "dynunet"}
    assert AS_RELEASED["baseline"] == {
        "freeze_encoders": True,
        "negatives": "empty",
        "negatives_per_positive": 0.04,
        "balance": "released",
        "validation": "augmented slices",
        "mirror": "front-back",
    }
    shared = {setting for setting in AS_RELEASED["baseline"] if setting != "freeze_encoders"}
    assert set(AS_RELEASED["adapter"]) - shared == {
        *("neighbours", "decoder_inputs", "gate_first", "frozen_embeddings", "penalty_on", "clip_norm"),
    }
    assert not {"manifest windows", "frozen encoders"} - set(RELEASED)


@pytest.mark.parametrize("run", ["baseline", "adapter, as released", "dynunet"])
@pytest.mark.parametrize("profile", ["smoke", "full"])
def test_a_hash_is_of_the_settings_that_have_not_their_default(profile: str, run: str) -> None:
    """So a new setting, which has its default in every older run, leaves their hashes as they are."""
    settings = settings_of(run, profile)
    changed = {f.name: getattr(settings, f.name) for f in fields(Settings) if getattr(settings, f.name) != f.default}
    for free in NO_NUMBER:
        changed.pop(free, None)
    assert settings.hash() == value_hash({"code": CODE} | changed)
    assert Settings().hash() == value_hash({"code": CODE}), "the paper's own settings"


def test_what_cannot_change_a_weight_is_not_in_the_hash_and_all_else_is() -> None:
    settings = settings_of("adapter", "smoke")
    assert replace(settings, test_on=("BTCV",), checkpoint_steps=7, recompute=True).hash() == settings.hash()
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5, str: lambda v: v + "x", tuple: lambda v: v[1:]}
    for field in fields(Settings):
        value = getattr(settings, field.name)
        changed = replace(settings, **{field.name: other[type(value)](value)})
        assert (changed.hash() == settings.hash()) == (field.name in ("test_on", "checkpoint_steps", "recompute")), field.name


def test_another_start_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("adapter", "smoke")
    assert settings.start_hash == settings_of("pretraining", "smoke").hash()
    assert settings_of("pretraining", "smoke").start_hash == settings_of("encoders", "smoke").hash()
    assert settings_of("adapter, as released", "smoke").start_hash == settings.start_hash, "all runs start from the same weights"
    monkeypatch.setitem(PRETRAINING, "encoders", PRETRAINING["encoders"] | {"lr_encoder": 0.1})
    assert settings_of("adapter", "smoke").hash() != settings.hash(), "a start's start counts, too"
    assert set(differences("adapter", "baseline", "smoke")) == {"adapter"}


@pytest.mark.parametrize("profile", list(PROFILES))
def test_no_two_runs_share_a_hash_or_a_folder(profile: str) -> None:
    assert len(set(EVERY)) == len({run_folder(run, profile) for run in EVERY}) == len(EVERY)
    hashes = Counter(settings_of(run, profile).hash() for run in EVERY if run not in alike(profile))
    assert max(hashes.values()) == 1


def alike(profile: str) -> set[str]:
    """Runs that a profile of few scans cannot tell from others: it has one number of training cases for the whole learning curve."""
    return {run for runs in BY_CASES.values() for run in runs.values()} if profile in ("smoke", "sample") else set()


def test_profiles_do_not_share_hashes_either() -> None:
    hashes = Counter(settings_of(run, profile).hash() for profile in PROFILES for run in EVERY if run not in alike(profile))
    assert max(hashes.values()) == 1 and len(hashes) == len(EVERY) * len(PROFILES) - 2 * 6, "two profiles leave six runs out"


def test_which_runs_there_are() -> None:
    both = ["dynunet", "adapter", "centre only", "unetr", "med-vlm large", "baseline", "med-vlm small", "unet", "clipseg on BTCV"]
    assert all_runs(False) == both and sorted(both) == sorted([*HEADLINE, *MEDVLM_HEADLINE])
    assert not {f"{run}, seed 1" for run in ("dynunet", "med-vlm large", "unetr", "clipseg on BTCV", "adapter on BTCV")} & set(EVERY), (
        "trained once"
    )
    repeated = ["unet", *BY_TEXT.values()]
    expected = (
        len(HEADLINE) + len(SEEDS) * 3 + len(ABLATION_SEEDS) * len(ABLATIONS) + 2 * 2 + len(MEDVLM_RUNS) + len(MEDVLM_SEEDS) * len(repeated)
    )
    assert len(all_runs(True)) == len(set(all_runs(True))) == expected
    assert {f"{run}, seed {seed}" for run in repeated for seed in MEDVLM_SEEDS} | set(MEDVLM_RUNS) <= set(EVERY)
    assert {f"{method}, shuffled, seed {seed}" for method in ("baseline", "adapter") for seed in (1, 2)} <= set(EVERY)
    for run in ABLATIONS:
        assert {f"{run}, seed {seed}" if seed else run for seed in ABLATION_SEEDS} <= set(EVERY)
        assert differences(run, f"{run}, seed 1", "smoke") == {"seed": (0, 1)}


def test_what_a_run_is_scored_on() -> None:
    plain, smoke = [(name, "") for name in FOUR], {run: evaluations(run, "smoke") for run in EVERY}
    doses = [(f"FLARE22, {share}% degraded", "") for share in (0, 20, 60, 80)]
    assert DOSES == (0.0, 0.2, 0.6, 0.8) and settings_of("adapter", "smoke").degraded == 0.4
    for run in ("centre only", "baseline, seed 1", "centre only, seed 2"):
        assert smoke[run] == plain + doses
    assert smoke["baseline"] == [*plain, (HELD_OUT, ""), *doses, (ABSENT, "")]
    spaced = [(f"FLARE22, slices x{factor}", condition) for factor in ("0.5", "1.5", "2") for condition in ("", WINDOW_IN_MM)]
    assert SPACINGS == (0.5, 1.5, 2.0)
    assert smoke["adapter, seed 1"] == plain + doses + spaced
    more = [(ABSENT, ""), (HELD_OUT, "")]
    assert Counter(smoke["adapter"]) == Counter(plain + doses + spaced + more + [("FLARE22", name) for name in PROMPT_SETS])
    assert {"blank", "wrong organ", "synonym"} <= set(PROMPT_SETS)
    assert smoke["dynunet"] == plain and all(smoke[run] == plain[:1] for run in ABLATIONS)
    assert not any(smoke[run] for run in PRETRAINING)
    assert all(len(set(pairs)) == len(pairs) for pairs in smoke.values())


def test_real_scans_have_no_doses_and_no_made_up_patients() -> None:
    plain = [(name, "") for name in (*FOUR, HELD_OUT)]
    assert evaluations("baseline", "full") == plain
    adapter = evaluations("adapter", "full")
    assert adapter == plain + [("FLARE22", name) for name in PROMPT_SETS] + [(name, WINDOW_IN_MM) for name in FOUR]
    sample = evaluations("adapter", "sample")
    assert {dataset for dataset, _ in sample} == {"sample CT", "sample MRI"}


@pytest.mark.parametrize("profile", list(PROFILES))
def test_what_med_vlm_s_runs_are_scored_on(profile: str) -> None:
    test = "sample CT" if profile == "sample" else HELD_OUT
    texts = [(test, text) for text in ("", "name", "shuffled description", "another's description")]
    assert [text for _, text in texts[1:]] == list(ASKED_OTHERWISE)
    for run in MEDVLM_RUNS:
        assert evaluations(run, profile) == (texts if run in ("med-vlm large", "med-vlm small") else [(test, "")])
        settings = settings_of(run, profile)
        assert settings.keep == "last" and settings.organs == ASKED == ("spleen", "liver") and settings.cases[2] == 0
        assert settings.train_on == ("samples" if profile == "sample" else "BTCV")
    assert evaluations("med-vlm small, seed 1", profile) == [(test, "")]


@pytest.mark.parametrize("profile", ["demo", "full"])
def test_med_vlm_s_ablations_differ_in_what_their_names_say(profile: str) -> None:
    for run in WITHOUT_TURNS:
        assert differences(run.removesuffix(", no turns"), run, profile) == {"turns": (True, False)}
    assert set(BY_TEXT) == set(TEXTS) and BY_TEXT["description"] == "med-vlm small"
    for text, run in BY_TEXT.items():
        assert differences("med-vlm small", run, profile) == ({"text": ("description", text)} if text != "description" else {})
    assert LEARNING_CURVE == (3, 6, 12) and set(BY_CASES) == {"med-vlm small", "unet"}
    for run, runs in BY_CASES.items():
        for cases, fewer in runs.items():
            assert differences(run, fewer, profile) == {"training_cases": (0, cases)} and fewer == f"{run}, {cases} cases"
    assert differences("baseline", "clipseg on BTCV", profile).keys() == {"train_on", "cases", "organs", "keep"}
    assert differences("clipseg on BTCV", "adapter on BTCV", profile) == {"adapter": (False, True)}
    data = {"train_on", "cases", "training_cases", "ct_window_hu", "phantoms", "phantom_voxels", "degraded", "organs", "seed", "keep"}
    for run in MEDVLM_HEADLINE:
        assert not data & set(differences("med-vlm small", run, profile)), "the same scans, organs and way to keep weights"
    seen = {"size", "slice_mm", "crop", "turns", "intensity", "batch", "lr_unet", "weight_decay"}
    assert not seen & {*differences("med-vlm small", "unet", profile), *differences("med-vlm small", "med-vlm large", profile)}


def test_at_full_size_large_and_small_differ_in_encoders_and_the_decoder_s_width() -> None:
    assert differences("med-vlm large", "med-vlm small", "full").keys() == {"vit", "bert", "mask_width"}
    settings = settings_of("med-vlm small", "full")
    assert (settings.cases, settings.size, settings.epochs, settings.lr_unet) == ((24, 6, 0), 224, 10, 1e-4)
    assert settings_of("unet", "full").epochs == 50 and not settings.start_from


@pytest.mark.parametrize(
    ("run", "profile", "expected"),
    [
        ("adaptor", "smoke", "'adaptor' is no run"),
        ("adapter, seed", "smoke", "'adapter, seed' is no run"),
        ("adapter, seed -1", "smoke", "'adapter, seed -1' is no run"),
        ("adapter, released frozen encoders", "smoke", "is no run"),  # they are the baseline's
        ("adapter", "large", "'large' is no profile: choose one of smoke, demo, sample, full, proof."),
    ],
)
def test_unknown_names_end_in_one_sentence(run: str, profile: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_of(run, profile)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_profile_comes_from_the_environment_and_weights_reach_the_full_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of("baseline").profile == "demo"
    monkeypatch.setenv("PROFILE", "smoke")
    monkeypatch.setenv("WEIGHTS", "/somewhere/clipseg")
    assert settings_of("baseline").profile == "smoke" and settings_of("baseline").weights == ""
    assert settings_of("baseline", "full").weights == "/somewhere/clipseg"


def test_only_a_finished_run_of_these_very_settings_counts(tmp_path: Path) -> None:
    settings = settings_of("baseline", "smoke")
    assert not is_finished(tmp_path, settings)
    (tmp_path / "best.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"hash": settings.hash()}))
    assert not is_finished(tmp_path, settings), "still in training"
    (tmp_path / "config.json").write_text(json.dumps({"finished": settings.hash()}))
    assert is_finished(tmp_path, settings) and not is_finished(tmp_path, replace(settings, seed=1))


def test_every_profile_says_what_its_numbers_can_claim() -> None:
    notes = {profile: data_note(profile) for profile in PROFILES}
    assert all(note.startswith(f"{profile} profile: ") for profile, note in notes.items())
    assert all("not clinical" in notes[profile] for profile in ("smoke", "demo")) and "no claim" in notes["sample"]
    assert notes["full"].endswith("scans of patients") and "no claim" in notes["proof"]
