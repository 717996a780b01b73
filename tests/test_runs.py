"""lib.runs in the smoke profile: what a run leaves behind, what it does not do twice, and how it says that it cannot go on."""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import fake_store, stores_of, tiny_settings

from lib import profiles, runs, validation
from lib.clipseg import build
from lib.datasets import cases_of
from lib.metrics import KEY
from lib.organs import BY_KEY, KEYS, PROMPT_SETS, PROMPTS, labelled
from lib.paths import ROOT, InputError, file_hash
from lib.profiles import HELD_OUT, WINDOW_IN_MM, evaluations, settings_of
from lib.runs import evaluate, evaluate_on, merge_scores, prompts_of, run_folder
from lib.validation import slice_validator, validator
from lib.volumes import Grid, read_labels
from lib.windows import Terms, TermSampler
from proof.trees import write_trees

COUNTS = ["overlap_voxels", "truth_voxels", "predicted_voxels", "false_slices", "slices_absent", "slices"]
FIGURES = ["dice", *COUNTS, "off_component", "nsd", "hd95_mm", "flare_dice", "flare_nsd", "voxel_ml"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def roots(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROFILE", raising=False)
    for name in ("RESULTS_ROOT", "CACHE_ROOT", "FIGURES_ROOT"):
        monkeypatch.setenv(name, str(home / name))


@pytest.fixture
def evaluated(roots: None) -> pd.DataFrame:
    """Scores of the baseline, trained by the first test that asks."""
    return evaluate("baseline", "smoke")


@pytest.fixture
def adapted(roots: None) -> pd.DataFrame:
    """Scores of the adapter, which is asked by other prompts, too."""
    return evaluate("adapter", "smoke")


def scored(table: pd.DataFrame, dataset: str = "FLARE22", condition: str = "") -> pd.DataFrame:
    """(organs, figures) of the one scan of a data set."""
    rows = table[(table["dataset"] == dataset) & (table["condition"] == condition)]
    return rows.set_index("organ", verify_integrity=True)


def files_of(folder: Path) -> dict[str, int]:
    """{file: time of its last change}, locks apart."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock"}


def test_a_run_scores_every_organ_of_every_test_scan(evaluated: pd.DataFrame, home: Path) -> None:
    settings, expected = settings_of("baseline", "smoke"), []
    for dataset, condition in evaluations("baseline", "smoke"):
        for store in stores_of(settings, dataset):
            expected += [(dataset, condition, store.id, key) for key in KEYS if key in labelled(store.label_map)]
    assert [(row.dataset, row.condition, row.case, row.organ) for row in evaluated.itertuples()] == expected
    assert len(scored(evaluated)) == 13 and "duodenum" not in scored(evaluated, "BTCV").index, "which BTCV does not label"
    assert list(evaluated) == [*KEY, *FIGURES] and (evaluated[["run", "config"]] == ["baseline", settings.hash()]).all(None)
    assert evaluated[[*COUNTS, "flare_dice", "flare_nsd", "voxel_ml"]].notna().all(None)
    stored = read(home / "RESULTS_ROOT/smoke")
    pd.testing.assert_frame_equal(
        stored[stored["run"] == "baseline"].reset_index(drop=True), evaluated.sort_values(KEY, ignore_index=True), rtol=1e-4
    )
    listed = pd.read_csv(home / "RESULTS_ROOT/smoke/splits.csv", dtype=str).set_index(["trained_on", "part", "dataset", "case"])
    for dataset, case in set(zip(evaluated["dataset"], evaluated["case"], strict=True)):
        store = next(store for store in stores_of(settings, dataset) if store.id == case)
        assert listed.loc[("FLARE22", "test", dataset, case), "image_sha256"] == file_hash(store.source.image)


def test_stored_predictions_lie_on_the_scan_and_give_the_scores(evaluated: pd.DataFrame) -> None:
    store = stores_of(settings_of("baseline", "smoke"), "FLARE22")[0]
    where = run_folder("baseline", "smoke") / "predictions" / "FLARE22"
    claims = np.load(where / f"{store.id}.npz")["claims"]
    shown, scan = nib.load(where / f"{store.id}.nii.gz"), nib.load(store.source.image)
    assert claims.shape == shown.shape == scan.shape and np.allclose(shown.affine, scan.affine, atol=1e-4)
    labels = np.asarray(shown.dataobj)
    assert np.array_equal(labels > 0, claims > 0), "the label map is drawn wherever any organ is claimed"
    truth = store.grid.to_native(read_labels(store.source.labels, store.label_map, store.grid))
    for place, row in enumerate(evaluated[evaluated["dataset"] == "FLARE22"].itertuples()):
        mask, organ = claims >> place & 1 > 0, truth == BY_KEY[row.organ].label
        assert mask[labels == BY_KEY[row.organ].label].all(), "who wins a voxel also claims it"
        assert (row.overlap_voxels, row.truth_voxels, row.predicted_voxels) == ((mask & organ).sum(), organ.sum(), mask.sum())
        assert row.dice == pytest.approx(2 * (mask & organ).sum() / (mask.sum() + organ.sum()))
        assert row.slices == 12, "axial slices, whatever the scan's own axes"
    assert scored(evaluated)["truth_voxels"].min() > 0 and scored(evaluated)["predicted_voxels"].max() > 0
    assert evaluated["voxel_ml"].max() > 1 and scored(evaluated)["voxel_ml"].iloc[0] == pytest.approx(10.2 * 10.2 * 15 / 1000)
    pictured = {path.parent.name for path in where.parent.rglob("*.npz")}
    assert pictured == {*settings_of("baseline", "smoke").test_on, HELD_OUT}, "figures show these; other scans leave their scores alone"


def test_a_run_keeps_its_whole_configuration_and_starts_from_the_one_before(evaluated: pd.DataFrame) -> None:
    folder = run_folder("baseline", "smoke")
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.csv", "audit.csv", "best.safetensors", "predictions"}
    config = pd.read_json(folder / "config.json", typ="series")
    assert config["finished"] == config["hash"] == settings_of("baseline", "smoke").hash()
    assert config["settings"]["start_from"] == "pretraining" and len(config["settings"]) > 50
    first, second, third = (load_file(run_folder(run, "smoke") / "best.safetensors") for run in ("encoders", "pretraining", "baseline"))
    same = [name for name in first if first[name].equal(second[name])]
    assert {name.split(".")[1] for name in same} == {"clip"} and not any("decoder" in name for name in same)
    assert all(name in same for name in first if ".clip.vision_model" in name), "pretraining trains a decoder on frozen encoders"
    fresh = build(settings_of("baseline", "smoke")).state_dict()
    apart = [sum((weights[name] - third[name]).square().sum() for name in third) for weights in (second, fresh)]
    assert apart[0] < 0.5 * apart[1], "the baseline is far nearer to where it started than to random numbers"


def test_a_second_call_trains_and_predicts_nothing(evaluated: pd.DataFrame, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(home / "RESULTS_ROOT/smoke/runs")
    for name in ("train", "predict_any"):
        monkeypatch.setattr(runs, name, lambda *_, name=name: pytest.fail(f"{name} was called again"))
    again = evaluate("baseline", "smoke")
    pd.testing.assert_frame_equal(again, evaluated)
    assert files_of(home / "RESULTS_ROOT/smoke/runs") == before


def test_conditions_are_scored_beside_the_plain_run_and_once(adapted: pd.DataFrame, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = read(home / "RESULTS_ROOT/smoke")
    stored = stored[stored["run"] == "adapter"]
    pairs = stored[["dataset", "condition"]].drop_duplicates().itertuples(index=False, name=None)
    assert set(pairs) == set(evaluations("adapter", "smoke")) and {"blank", "wrong organ", "synonym"} <= set(stored["condition"])
    for condition in ("blank", "wrong organ", "synonym", "template"):
        assert len(scored(stored, "FLARE22", condition)) == 13
    monkeypatch.setattr(runs, "predict_any", lambda *_: pytest.fail("predicted again"))
    pd.testing.assert_frame_equal(evaluate("adapter", "smoke"), adapted)


def test_a_wrong_prompt_s_row_is_what_its_organ_s_own_prompt_claims(adapted: pd.DataFrame) -> None:
    plain, wrong, blank = (scored(adapted, condition=condition) for condition in ("", "wrong organ", "blank"))
    for key in KEYS:
        assert wrong["predicted_voxels"][key] == plain["predicted_voxels"][BY_KEY[key].wrong]
        assert wrong["truth_voxels"][key] == plain["truth_voxels"][key], "scored against the organ that was to be found"
    assert plain["predicted_voxels"].nunique() > 1 and blank["predicted_voxels"].nunique() == 1, "nothing tells the organs apart"


def test_a_window_in_mm_sees_other_slices(adapted: pd.DataFrame) -> None:
    """Slices of half the training's distance: its window reaches two and four of them away, not one and two."""
    dataset, settings = "FLARE22, slices x0.5", settings_of("adapter", "smoke")
    store = stores_of(settings, dataset)[0]
    model = runs.trained("adapter", "smoke")
    for condition, unit in (("", "slices"), (WINDOW_IN_MM, "mm")):
        expected = validation.predict(model, store, replace(settings, window_unit=unit)).claims
        found = scored(adapted, dataset, condition)["predicted_voxels"]
        assert found.tolist() == [int((expected >> place & 1).sum()) for place in range(13)]
    assert not scored(adapted, dataset)["predicted_voxels"].equals(scored(adapted, dataset, WINDOW_IN_MM)["predicted_voxels"])


def test_prompts_of_one_s_own(adapted: pd.DataFrame, home: Path) -> None:
    before = (home / "RESULTS_ROOT/smoke/scores.csv").read_bytes()
    mine = scored(evaluate_on("adapter", "FLARE22", "mine", "smoke", prompts={"liver": "stomach", "aorta": "Leber"}), condition="mine")
    plain = scored(adapted)
    assert mine["predicted_voxels"]["liver"] == plain["predicted_voxels"]["stomach"]
    others = [key for key in KEYS if key not in ("liver", "aorta")]
    pd.testing.assert_frame_equal(mine.loc[others, FIGURES], plain.loc[others, FIGURES])
    again = scored(evaluate_on("adapter", "FLARE22", "mine", "smoke", prompts={"liver": "spleen"}), condition="mine")
    assert again["predicted_voxels"]["liver"] == plain["predicted_voxels"]["spleen"], "the name is the same, the prompts are not"
    assert (home / "RESULTS_ROOT/smoke/scores.csv").read_bytes() == before
    pd.testing.assert_frame_equal(scored(evaluate("adapter", "smoke")), plain, obj="the run's own scores")


def test_prompts_of_a_condition() -> None:
    assert prompts_of("") == prompts_of(WINDOW_IN_MM) == PROMPTS == KEYS
    assert prompts_of("blank") == ("",) * 13
    assert prompts_of("synonym") == PROMPT_SETS["synonym"] and set(prompts_of("wrong organ")) == set(KEYS)
    assert not any(asked == key for asked, key in zip(prompts_of("wrong organ"), KEYS, strict=True))
    assert prompts_of("mine", {"spleen": "Milz"}) == ("liver", "right kidney", "Milz", *KEYS[3:])


@pytest.mark.parametrize(
    ("condition", "own", "expected"),
    [
        ("mine", {"livr": "liver", "spleen": "spleen"}, "'livr' in the prompts of 'mine' is no organ: choose from liver, right kidney"),
        ("mine", None, "'mine' with no prompts of your own"),
        ("synonyms", {}, "choose one of 'window in mm', 'blank', 'wrong organ', 'synonym', 'template', or"),
        ("", {"liver": "Leber"}, "'' with prompts of your own"),  # they would take the place of the run's own scores
        ("blank", {"liver": "Leber"}, "'blank' with prompts of your own"),
        (WINDOW_IN_MM, {"liver": "Leber"}, "a new name"),
    ],
)
def test_conditions_that_are_none_end_in_one_sentence(condition: str, own: dict | None, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        evaluate_on("adapter", "FLARE22", condition, "smoke", prompts=own)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_data_set_that_is_none_ends_in_one_sentence(adapted: pd.DataFrame) -> None:
    with pytest.raises(InputError, match="'Synapse' is no data set of phantoms"):
        evaluate_on("adapter", "Synapse", profile="smoke")


def test_a_test_scan_that_was_learned_from_is_refused(adapted: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    real, settings = runs.check_disjoint, settings_of("adapter", "smoke")
    learned = stores_of(settings, "training")
    monkeypatch.setattr("lib.datasets.cases.stores_of", lambda *_: learned)
    with pytest.raises(InputError, match="which the model learned from"):
        evaluate_on("adapter", "BTCV", profile="smoke")
    assert runs.check_disjoint is real


@pytest.mark.parametrize("run", ["adapter, as released", "dynunet"])
def test_other_runs_train_and_score_as_well(run: str, home: Path) -> None:
    table, settings = evaluate(run, "smoke"), settings_of(run, "smoke")
    assert set(table["dataset"]) == set(settings.test_on) and set(table["config"]) == {settings.hash()}
    config = json.loads((run_folder(run, "smoke") / "config.json").read_text())
    assert config["finished"] == settings.hash() and 0 <= config["validation_dice"] <= 1
    claims = np.load(run_folder(run, "smoke") / "predictions/FLARE22/FLARE22_0001.npz")["claims"]
    assert scored(table)["predicted_voxels"].tolist() == [int((claims >> place & 1).sum()) for place in range(13)]
    if run == "dynunet":
        assert (np.bitwise_count(claims) <= 1).all(), "its organs share no voxel"
    assert run in set(read(home / "RESULTS_ROOT/smoke")["run"])


def test_only_what_is_missing_is_predicted(evaluated: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("trained again"))
    scores = run_folder("baseline", "smoke") / "predictions/FLARE22/FLARE22_0001.csv"
    text = scores.read_text()
    scores.unlink()
    pd.testing.assert_frame_equal(evaluate("baseline", "smoke"), evaluated)
    assert scores.read_text() == text


def test_a_3d_network_takes_no_prompts() -> None:
    with pytest.raises(InputError, match=r"^'dynunet' cannot be tested on 'blank': it takes neither prompts nor windows\.$"):
        evaluate_on("dynunet", "FLARE22", "blank", "smoke")


def test_other_settings_train_and_score_anew(evaluated: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    evaluate("baseline", "smoke")
    first = load_file(run_folder("baseline", "smoke") / "best.safetensors")
    monkeypatch.setitem(profiles.PROFILES, "smoke", profiles.PROFILES["smoke"] | {"lr_decoder": 0.05})
    table = evaluate("baseline", "smoke")
    assert set(table["config"]) == {settings_of("baseline", "smoke").hash()} != set(evaluated["config"])
    assert not table["predicted_voxels"].equals(evaluated["predicted_voxels"]), "no prediction of the older settings is left"
    second = load_file(run_folder("baseline", "smoke") / "best.safetensors")
    assert any(not first[name].equal(second[name]) for name in first)
    stored = read(tmp_path / "smoke")
    assert len(stored) == len(table) and set(stored["config"]) == set(table["config"])


# What a run needs


@pytest.fixture
def scans(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATA_ROOT with FLARE22 alone, on which the smoke profile trains in a few steps as on a data set of patients."""
    write_trees(tmp_path / "data", 32, 9, {"FLARE22": range(1, 5)})
    for name, folder in (("DATA_ROOT", "data"), ("RESULTS_ROOT", "results"), ("CACHE_ROOT", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    brief = {"phantoms": False, "start_from": "", "epochs": 1, "test_on": ("FLARE22", "BTCV")}
    monkeypatch.setitem(profiles.PROFILES, "smoke", profiles.PROFILES["smoke"] | brief)
    return tmp_path / "data"


def test_a_missing_test_set_is_left_out_and_scored_alone_later(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said_by(monkeypatch, "dynunet", "--profile", "smoke")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("dynunet is not scored on BTCV: ") and "BTCV holds no case of BTCV: put RawData/Training/img" in out[0]
    assert (
        "mean Dice" in out[1]
        and len(out) == 2
        and text == ("Test sets were left out, as said above: once they are there, the same command scores them alone.")
    )
    first = read(scans.parent / "results/smoke")
    assert set(first["dataset"]) == {"FLARE22"}
    write_trees(scans, 32, 9, {"BTCV": range(1, 3)})
    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("trained again"))
    whole, predicted = runs.predict_any, []
    monkeypatch.setattr(runs, "predict_any", lambda model, store, *rest: predicted.append(store.id) or whole(model, store, *rest))
    monkeypatch.setattr(sys, "argv", ["lib.runs", "dynunet", "--profile", "smoke"])
    runs.main()
    both = read(scans.parent / "results/smoke")
    assert len(predicted) == 1 and predicted[0].startswith("BTCV") and set(both["dataset"]) == {"FLARE22", "BTCV"}
    pd.testing.assert_frame_equal(both[both["dataset"] == "FLARE22"].reset_index(drop=True), first)
    (scans / "BTCV").rename(scans / "elsewhere")
    evaluate("dynunet", "smoke")
    pd.testing.assert_frame_equal(read(scans.parent / "results/smoke"), both, obj="scores of a set that has gone")


def test_a_test_set_that_cannot_be_used_is_left_out_before_the_training(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One scan cannot be read; in another data set lies a scan that the model learned from."""
    write_trees(scans, 32, 9, {"BTCV": range(1, 3), "AMOS22 CT": range(1, 2)})
    for path in (scans / "BTCV/RawData/Training/img").iterdir():
        path.write_bytes(b"cut short")
    settings = settings_of("dynunet", "smoke")
    learned = cases_of(settings, "training")[0]
    (scans / "AMOS22/imagesTr/amos_0001.nii.gz").write_bytes(learned.image.read_bytes())
    (scans / "AMOS22/labelsTr/amos_0001.nii.gz").write_bytes(learned.labels.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiles.PROFILES, "smoke", profiles.PROFILES["smoke"] | {"test_on": ("FLARE22", "BTCV", "AMOS22 CT")})
        patch.setattr(runs, "train", lambda *_: pytest.fail("trained"))
        with pytest.raises(pytest.fail.Exception):
            evaluate("dynunet", "smoke")
    broken, twin = capsys.readouterr().out.splitlines()
    assert broken.startswith("dynunet is not scored on BTCV: ") and "img00" in broken
    assert twin.startswith("dynunet is not scored on AMOS22 CT: ") and "which the model learned from" in twin


def test_without_its_training_scans_a_run_does_not_start(scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scans / "FLARE22").rename(scans / "elsewhere")
    monkeypatch.setattr(runs, "build_model", lambda *_: pytest.fail("a model was built"))
    for call in (evaluate, runs.trained):
        with pytest.raises(InputError, match=r"FLARE22 holds no case of FLARE22: put .* there, or name another folder by DATA_ROOT"):
            call("dynunet", "smoke")
    assert not list((scans.parent / "results/smoke/runs").iterdir())


def test_of_several_runs_each_is_done_that_can_be(scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def train_and_score(run: str, profile: str) -> list[str]:
        if run == "unet":
            raise InputError("A step does not fit.")
        return done.append(run) or []

    monkeypatch.setattr(runs, "_train_and_score", train_and_score)
    assert said_by(monkeypatch, "dynunet", "unet", "unetr", "--profile", "smoke") == "unet: A step does not fit."
    assert done == ["dynunet", "unetr"]


@pytest.mark.parametrize("call", [runs.trained, evaluate])
def test_at_full_size_a_gpu_is_needed_unless_the_processor_is_asked_for(
    call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a notebook calls it."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    for name in ("CPU", "PRECISION", "WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    only = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, device=torch.device("cpu"))
    monkeypatch.setattr(runs, "processes", lambda: only)
    with pytest.raises(InputError, match=r"^PROFILE=full needs a GPU, .* or set CPU=1 to go on without\.$"):
        call("dynunet", "full")
    assert not (tmp_path / "results").exists()
    monkeypatch.setenv("CPU", "1")
    with pytest.raises(InputError, match="holds no case of FLARE22"):
        call("dynunet", "full")
    monkeypatch.delenv("CPU")
    only.device = torch.device("cuda")
    with pytest.raises(InputError, match="holds no case of FLARE22"):
        call("dynunet", "full")


def test_the_same_run_from_nothing_scores_the_same(evaluated: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    pd.testing.assert_frame_equal(evaluate("baseline", "smoke"), evaluated)


def test_seeds_are_runs_of_their_own(home: Path) -> None:
    assert run_folder("adapter, seed 2", "smoke") == home / "RESULTS_ROOT/smoke/runs/adapter-seed_2"
    hashes = {settings_of(run, "smoke").hash() for run in ("adapter", "adapter, seed 1", "adapter, seed 2", "centre only", "baseline")}
    assert len(hashes) == 5


def test_a_validation_scan_without_any_organ_ends_no_run() -> None:
    """Nothing there and nothing predicted has no Dice; the checkpoint must still be chosen, so it is a number."""
    store = stores_of(settings_of("baseline", "smoke"), "validation")[0]
    empty = np.zeros((4, 3, 2), np.uint8)
    silent = runs.Prediction(KEYS, Grid(store.grid.shape, store.grid.affine), np.zeros(store.grid.shape, np.uint16), empty)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "predict_any", lambda *_: silent)
        patch.setattr(validation, "read_labels", lambda *_: np.zeros(store.grid.canonical_shape, np.uint8))
        assert validator([store], settings_of("baseline", "smoke"))(None) > -1  # type: ignore[arg-type]


class Marks(torch.nn.Module):
    """Stands in for a model: marks the organ where it is, or everything; what it says of slices without the organ must not count."""

    def __init__(self, right: bool, absent: float) -> None:
        super().__init__()
        self.right, self.absent, self.seen = right, absent, []
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, terms: Terms, prompts: list[str]) -> tuple[torch.Tensor, None]:
        assert prompts == list(PROMPTS) and not self.training
        self.seen.append(terms)
        shown = terms.masks * 2 - 1 if self.right else torch.ones_like(terms.masks)
        return torch.where(terms.masks.any(1, keepdim=True).any(2, keepdim=True), shown, self.absent), None


@pytest.mark.parametrize("absent", [-1.0, 1.0])
def test_the_released_validation_counts_slices_that_show_the_organ_alone(absent: float) -> None:
    store, settings = fake_store(9), tiny_settings("adapter, released validation", flip=True)
    right, everything = Marks(True, absent), Marks(False, absent)
    assert slice_validator([store], settings, 6)(right) == 1
    areas = [area for step in range(6) for area in TermSampler([store], settings)[step].masks.sum((1, 2)).tolist()]
    expected = [2 * area / (area + 24 * 24) for area in areas if area]
    assert slice_validator([store], settings, 6)(everything) == pytest.approx(np.mean(expected)) and 0 < len(expected) < len(areas)
    upright = {picture.tobytes() for picture in store.image}
    turned = [picture.numpy().round().astype(np.uint8).tobytes() not in upright for terms in right.seen for picture in terms.slices]
    assert np.mean(turned) > 0.9, "the pictures are augmented, as in training"


def test_the_released_validation_is_the_one_that_the_run_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store, released = fake_store(9), tiny_settings("baseline, released validation")
    assert validator([store], released)(Marks(True, 1.0)) == 1
    store.labels[:], store.presence[:, 1:] = 0, 0
    store.presence[:, 1] = 1  # says that a liver is there, and none is
    assert validator([store], released)(Marks(True, 1.0)) == 0, "no slice shows an organ: a score none the less"
    monkeypatch.setattr(runs, "read_labels", lambda *_: pytest.fail("whole scans are the paper's way"))
    assert validator([store], released)(Marks(False, 1.0)) == 0


def rows(run: str, dice: float, cases: int = 2, config: str = "0001") -> pd.DataFrame:
    """Score rows with names that look like numbers."""
    table = [(run, config, "FLARE22", "", f"{case:04d}", key, dice, *range(6)) for case in range(cases) for key in KEYS]
    return pd.DataFrame(table, columns=[*KEY, "dice", *COUNTS])


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "scores.csv", dtype={"config": str, "condition": str, "case": str}).fillna({"condition": ""})


def test_merging_replaces_a_run_s_rows_and_keeps_the_others(tmp_path: Path) -> None:
    merge_scores(rows("baseline", 0.1, cases=3), tmp_path)
    merge_scores(rows("adapter", 0.3), tmp_path)
    merge_scores(rows("baseline", 0.2, cases=1), tmp_path)
    merge_scores(rows("adapter, seed 1", np.nan), tmp_path)
    table = read(tmp_path)
    assert table.groupby("run")["dice"].agg(["size", "mean"]).to_dict("index") == {
        "adapter": {"size": 26, "mean": pytest.approx(0.3)},
        "adapter, seed 1": {"size": 26, "mean": pytest.approx(np.nan, nan_ok=True)},
        "baseline": {"size": 13, "mean": pytest.approx(0.2)},
    }
    assert set(table["config"]) == {"0001"} and set(table["case"]) == {"0000", "0001"}, "names keep their zeros"
    text = (tmp_path / "scores.csv").read_text()
    merge_scores(rows("adapter", 0.3), tmp_path)
    assert (tmp_path / "scores.csv").read_text() == text, "the same rows again change nothing, their order included"


def merge_many(name: str, folder: Path, start: object) -> None:
    start.wait(60)  # type: ignore[attr-defined]
    for number in range(12):
        merge_scores(rows(f"{name}, seed {number}", 0.5), folder)


def test_processes_that_merge_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [context.Process(target=merge_many, args=(name, tmp_path, start)) for name in ("baseline", "adapter")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert read(tmp_path)["run"].value_counts().to_dict() == {
        f"{name}, seed {n}": 26 for name in ("baseline", "adapter") for n in range(12)
    }


def said_by(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """With what the command line ends."""
    monkeypatch.setattr(sys, "argv", ["lib.runs", *arguments])
    with pytest.raises(SystemExit) as caught:
        runs.main()
    return str(caught.value)


def test_an_unknown_run_ends_in_one_sentence() -> None:
    command = [sys.executable, "-m", "lib.runs", "nonsense", "--profile", "smoke"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "'nonsense' is no run" in done.stderr and "baseline" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["baseline", "--profile", "large"], "'large' is no profile"),
        (["adapter, seed one", "--profile", "smoke"], "'adapter, seed one' is no run"),
        (["adapter seed 1", "--profile", "smoke"], "'adapter seed 1' is no run"),
    ],
)
def test_other_unknown_names_do_too(arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = said_by(monkeypatch, *arguments)
    assert expected in text and "\n" not in text


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc on this system")
def test_a_folder_that_cannot_be_written_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", "/proc/results")
    text = said_by(monkeypatch, "baseline", "--profile", "smoke")
    assert "/proc/results/smoke/runs cannot be written" in text and "RESULTS_ROOT" in text and "\n" not in text


def test_training_on_scans_without_organs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    bare = fake_store(4)
    bare.presence[:] = 0
    monkeypatch.setattr(runs, "stores_of", lambda *_: [bare])
    with pytest.raises(InputError, match="shows any organ"):
        evaluate("baseline", "smoke")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
