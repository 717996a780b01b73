"""lib.training.run: what a run leaves behind, does not do twice and needs, and how it goes on when killed."""

import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tiny import PARTS, fake_store, tiny_settings
from tqdm import tqdm

from lib import training
from lib.config import run_folder, settings_of
from lib.data import cases_of, organs_shown, stores_of
from lib.files import ROOT, InputError, file_hash
from lib.inference import Prediction, predict
from lib.metrics import KEY
from lib.organs import BY_KEY, KEYS, PROMPT_SETS, PROMPTS, labelled
from lib.phantoms import site_of, write_cohort
from lib.training import Trainer, evaluate, trained, validate, volume_dice
from lib.volumes import read_labels
from lib.windows import Windows, WindowSampler

COUNTS = ["overlap_voxels", "truth_voxels", "predicted_voxels", "false_slices", "slices_absent", "slices"]
PROMPTED = [("site A", "", name) for name in PROMPT_SETS]
TESTS = [*PROMPTED, ("site A", "slices x0.5", ""), ("site A", "slices x0.5", "window in mm")]


def run(name: str, tests: Any = (), train: bool = True, **changes: Any) -> pd.DataFrame:
    """A run of the smoke profile, as a notebook has it."""
    return training.run(name, tiny_settings(name, **changes), *PARTS[name], tests, train)


def folder_of(name: str, **changes: Any) -> Path:
    return run_folder(name, tiny_settings(name, **changes))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the results of this module's runs."""
    monkeypatch.setenv("RESULTS_ROOT", str(home))
    return home / "smoke"


@pytest.fixture
def evaluated(here: Path) -> pd.DataFrame:
    """Scores of the baseline, trained by the first test that asks."""
    return run("baseline")


@pytest.fixture
def adapted(here: Path) -> pd.DataFrame:
    """Scores of the adapter, which is asked by other prompts, too."""
    return run("adapter", TESTS)


def scored(table: pd.DataFrame, dataset: str = "site A", variant: str = "", condition: str = "") -> Any:
    """(organs, figures) of the one scan of a test."""
    rows = table[(table[["dataset", "variant", "condition"]] == [dataset, variant, condition]).all(axis=1)]
    return rows.set_index("organ", verify_integrity=True)


def read(results: Path) -> pd.DataFrame:
    table = pd.read_csv(results / "scores.csv", dtype={"config": str, "case": str})
    return table.fillna({"variant": "", "condition": ""})


def files(folder: Path) -> dict[Path, int]:
    """When each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def never(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Nothing of lib.training that has one of these names may be called from here on."""
    for name in names:
        monkeypatch.setattr(training, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


# what a run leaves behind, and does not do twice


def test_a_run_scores_every_organ_of_every_test_scan(evaluated: pd.DataFrame, here: Path) -> None:
    settings, expected = settings_of("baseline", "smoke"), []
    listed = pd.read_csv(here / "splits.csv", dtype=str)
    listed = listed.set_index(["trained_on", "part", "dataset", "case"])["image_sha256"]
    for dataset in settings.test_on:
        for store in stores_of(settings, dataset):
            expected += [(dataset, store.id, key) for key in KEYS if key in labelled(store.label_map)]
            assert listed["site A", "test", dataset, store.id] == file_hash(store.source.image)
    assert [(row.dataset, row.case, row.organ) for row in evaluated.itertuples()] == expected
    assert len(scored(evaluated)) == 13
    assert "duodenum" not in scored(evaluated, "site B").index, "unlabelled there"
    own = evaluated[["run", "seed", "profile", "config"]].drop_duplicates()
    assert own.to_numpy().tolist() == [["baseline", 0, "smoke", settings.hash()]]
    assert evaluated[[*COUNTS, "flare_dice", "flare_nsd", "voxel_ml"]].notna().all(None)
    stored = read(here)
    stored = stored[stored["run"] == "baseline"].reset_index(drop=True)
    in_order = evaluated.sort_values(KEY, ignore_index=True)
    pd.testing.assert_frame_equal(stored, in_order, check_dtype=False, rtol=1e-4)


def test_stored_predictions_lie_on_the_scan_and_give_the_scores(evaluated: pd.DataFrame) -> None:
    store = stores_of(settings_of("baseline", "smoke"), "site A")[0]
    where = folder_of("baseline") / "predictions" / "site A"
    claims = np.load(where / f"{store.id}.npz")["claims"]
    shown, scan = nib.load(where / f"{store.id}.nii.gz"), nib.load(store.source.image)
    assert claims.shape == shown.shape == scan.shape and np.allclose(shown.affine, scan.affine, atol=1e-4)
    labels = np.asarray(shown.dataobj)
    assert np.array_equal(labels > 0, claims > 0), "the label map is drawn wherever any organ is claimed"
    truth = store.grid.to_native(read_labels(store.source.labels, store.label_map, store.grid))
    for place, row in enumerate(scored(evaluated).reset_index().itertuples()):
        mask, organ = claims >> place & 1 > 0, truth == BY_KEY[row.organ].label
        assert mask[labels == BY_KEY[row.organ].label].all(), "who wins a voxel also claims it"
        counted = ((mask & organ).sum(), organ.sum(), mask.sum())
        assert (row.overlap_voxels, row.truth_voxels, row.predicted_voxels) == counted
        assert row.dice == pytest.approx(2 * counted[0] / (counted[1] + counted[2]))
        drawn = labels == BY_KEY[row.organ].label
        assert row.map_dice == pytest.approx(2 * (drawn & organ).sum() / (drawn.sum() + organ.sum()))
        assert row.slices == store.grid.canonical_shape[2]
        assert row.voxel_ml == pytest.approx(np.prod(store.grid.spacing_mm) / 1000)
    assert (scored(evaluated)["truth_voxels"] > 0).sum() > 9
    assert scored(evaluated)["predicted_voxels"].max() > 0
    assert (scored(evaluated)["map_dice"] != scored(evaluated)["dice"]).any(), "prompts overlap"


def test_a_run_keeps_its_configuration_and_logs(evaluated: pd.DataFrame, here: Path) -> None:
    folder = folder_of("baseline")
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "log.csv", "best.safetensors", "predictions"}  # fmt: skip
    assert len(json.loads((folder / "config.json").read_text())["settings"]) > 50
    steps = pd.read_csv(here / "steps.csv").set_index(["run", "part"]).loc["baseline"]
    assert steps["optimizer_steps"].tolist() == [6, 6] and steps.index.tolist() == ["decoder", "encoder"]
    assert (steps["seconds"] > steps["seconds_validating"]).all()
    assert "baseline" in set(pd.read_csv(here / "logs.csv")["run"])


def test_a_second_call_trains_and_predicts_nothing(
    evaluated: pd.DataFrame, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(here / "runs")
    never(monkeypatch, "train", "predict")
    pd.testing.assert_frame_equal(run("baseline"), evaluated)
    assert files(here / "runs") == before
    never(monkeypatch, "trained")
    stored = run("baseline", train=False).reset_index(drop=True)
    in_order = evaluated.sort_values(KEY, ignore_index=True)
    pd.testing.assert_frame_equal(stored, in_order, check_dtype=False, rtol=1e-4)
    assert run("centre only", train=False).empty, "the stored scores alone"


def test_only_what_is_missing_is_predicted(evaluated: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    never(monkeypatch, "train")
    (scores,) = (folder_of("baseline") / "predictions/site A").glob("*.csv")
    text = scores.read_text()
    scores.unlink()
    pd.testing.assert_frame_equal(run("baseline"), evaluated)
    assert scores.read_text() == text
    scores.write_text("older than the prepared slices")
    os.utime(scores, (0, 0))
    pd.testing.assert_frame_equal(run("baseline"), evaluated)


def test_tests_that_are_not_asked_for_again_keep_their_rows(adapted: pd.DataFrame, here: Path) -> None:
    assert not adapted.duplicated(KEY).any()
    stored = read(here)
    twice = run("adapter", [PROMPTED[0], PROMPTED[0], ("site A", "", "")])
    assert not twice.duplicated(KEY).any(), "a test that is asked for twice is scored once"
    assert set(twice["condition"]) == {"", PROMPTED[0][2]}
    pd.testing.assert_frame_equal(read(here), stored)
    assert set(PROMPT_SETS) < set(stored[stored["run"] == "adapter"]["condition"])


def test_a_wrong_prompt_s_row_is_what_its_organ_s_own_prompt_claims(adapted: pd.DataFrame) -> None:
    plain, wrong, blank = (scored(adapted, condition=condition) for condition in ("", "wrong organ", "blank"))
    assert wrong["truth_voxels"].equals(plain["truth_voxels"]), "scored against the organ to be found"
    for key in KEYS:
        assert wrong["predicted_voxels"][key] == plain["predicted_voxels"][BY_KEY[key].wrong]
    assert plain["predicted_voxels"].nunique() > 1 and blank["predicted_voxels"].nunique() == 1


def test_a_window_in_mm_sees_other_slices(adapted: pd.DataFrame) -> None:
    """Slices of half the training's distance: it reaches two and four of them away, not one and two."""
    settings = settings_of("adapter", "smoke")
    store = stores_of(settings, "site A", "slices x0.5")[0]
    model, counts = trained("adapter", settings, *PARTS["adapter"]), []
    for condition, unit in (("", "slices"), ("window in mm", "mm")):
        expected = predict(model, store, replace(settings, window_unit=unit)).claims
        counts.append(scored(adapted, "site A", "slices x0.5", condition)["predicted_voxels"].tolist())
        assert counts[-1] == [int((expected >> place & 1).sum()) for place in range(13)]
    assert counts[0] != counts[1]


def test_prompts_of_one_s_own(adapted: pd.DataFrame, here: Path) -> None:
    before, settings = (here / "scores.csv").read_bytes(), settings_of("adapter", "smoke")
    model, folder = trained("adapter", settings, *PARTS["adapter"]), folder_of("adapter") / "own"
    plain = scored(adapted)["predicted_voxels"]
    for word in ("stomach", "spleen"):  # the name is the same, the prompts are not
        found = evaluate(model, settings, ("site A", "", "mine"), folder, (word, *PROMPTS[1:]))
        found = found.set_index("organ")["predicted_voxels"]
        assert found["liver"] == plain[word] and found["aorta"] == plain["aorta"]
    assert (here / "scores.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["centre only", "dynunet", "unetr", "clipseg on BTCV"])
def test_other_runs_train_and_score_as_well(name: str, here: Path) -> None:
    table, settings = run(name), settings_of(name, "smoke")
    assert set(table["dataset"]) == set(settings.test_on) and set(table["config"]) == {settings.hash()}
    assert set(table["organ"]) == set(settings.organs) and name in set(read(here)["run"])
    if name == "dynunet":
        (path,) = (folder_of(name) / "predictions/site A").glob("*.npz")
        assert (np.bitwise_count(np.load(path)["claims"]) <= 1).all(), "its organs share no voxel"


def test_other_settings_have_a_folder_of_their_own_and_the_same_come_back_to_theirs(
    evaluated: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    first, results = run("baseline", test_on=("site A",)), tmp_path / "smoke"
    expected = evaluated[evaluated["dataset"] == "site A"]
    pd.testing.assert_frame_equal(first, expected, obj="the same settings, from nothing")
    log, before = (results / "logs.csv").read_bytes(), files(folder_of("baseline"))
    other = run("baseline", lr_decoder=0.05, test_on=("site A",))
    assert not other["predicted_voxels"].equals(first["predicted_voxels"]), "no older prediction is left"
    assert set(read(results)["config"]) == set(other["config"]) != set(first["config"]), "rows of others go"
    assert (results / "logs.csv").read_bytes() != log and files(folder_of("baseline")) == before
    seeded = run("baseline", seed=1, test_on=("site A",))
    assert len(read(results)) == len(other) + len(seeded), "seeds are apart"
    never(monkeypatch, "train", "predict")
    pd.testing.assert_frame_equal(run("baseline", test_on=("site A",)), first)
    stored = read(results)
    assert set(stored.loc[stored["seed"] == 0, "config"]) == set(first["config"])
    logs, own = pd.read_csv(results / "logs.csv"), pd.read_csv(folder_of("baseline") / "log.csv")
    assert logs.loc[logs["seed"] == 0, "loss"].tolist() == pytest.approx(own["loss"].tolist(), rel=1e-5)


# how weights are chosen


def test_a_validation_scan_without_any_organ_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there and nothing predicted has no Dice, but weights must still be chosen: it is a number."""
    settings = settings_of("baseline", "smoke")
    store = stores_of(settings, "validation")[0]
    nothing = np.zeros(store.grid.shape, np.uint16)
    silent = Prediction(nothing, nothing.astype(np.uint8))
    monkeypatch.setattr(training, "predict", lambda *_: silent)
    monkeypatch.setattr(training, "read_labels", lambda *_: np.zeros(store.grid.canonical_shape, np.uint8))
    assert volume_dice(torch.nn.Identity(), [store], settings) == 0


class Marks(torch.nn.Module):
    """Marks the organ where it is, or everything; what it says of slices without the organ must not count."""

    def __init__(self, right: bool, absent: float) -> None:
        super().__init__()
        self.right, self.absent = right, absent
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch: Windows, prompts: list[str]) -> tuple[torch.Tensor, None]:
        assert prompts == list(PROMPTS) and not self.training
        shown = batch.masks * 2 - 1 if self.right else torch.ones_like(batch.masks)
        return torch.where(batch.masks.any(1, keepdim=True).any(2, keepdim=True), shown, self.absent), None


@pytest.mark.parametrize("absent", [-1.0, 1.0])
def test_the_released_validation_counts_slices_that_show_the_organ_alone(
    absent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings("adapter", validation="augmented slices", mirror="front-back", flip=True)
    never(monkeypatch, "read_labels")  # whole scans are the paper's way
    sampler = WindowSampler([fake_store(9)], settings)
    areas = [area for step in range(40) for area in sampler[step].masks.sum((1, 2)).tolist()]
    expected = [2 * area / (area + 24 * 24) for area in areas if area]
    assert 0 < len(expected) < len(areas)
    for right, dice in ((True, 1.0), (False, np.mean(expected))):
        found = validate(Marks(right, absent), settings, lambda *_: sampler, PARTS["adapter"][2])
        assert found == {"validation_dice": pytest.approx(dice)}


# what a run needs


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATA_ROOT with FLARE22 alone, its scans drawn."""
    for name, folder in (("DATA_ROOT", "data"), ("RESULTS_ROOT", "results"), ("CACHE_ROOT", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    write_cohort(site_of("site A", tiny_settings()), range(1, 5), tmp_path / "data/FLARE22")
    return tmp_path / "data"


PATIENTS: dict[str, Any] = {
    "phantoms": False, "epochs": 1, "train_on": "FLARE22", "test_on": ("FLARE22", "BTCV")}  # fmt: skip


def write_btcv(data: Path) -> None:
    drawn = write_cohort(site_of("site B", tiny_settings()), range(1, 3), data.parent / "drawn")
    for kind, folder, name in (("images", "img", "img"), ("labels", "label", "label")):
        for number, path in enumerate(sorted((drawn / kind).iterdir()), 1):
            target = data / f"BTCV/RawData/Training/{folder}/{name}{number:04d}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def test_a_label_map_is_asked_for_all_that_was_learned_whatever_a_test_set_labels(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_btcv(scans)
    for path in (scans / "BTCV/RawData/Training/label").iterdir():
        labels = nib.load(path)
        alone = np.asarray(labels.dataobj) * (np.asarray(labels.dataobj) == 6)  # BTCV's liver
        nib.save(nib.Nifti1Image(alone, labels.affine, labels.header), path)
    asked, whole = dict[str, set[str]](), training.predict

    def noted(model: Any, store: Any, settings: Any, prompts: Any, organs: Any) -> Any:
        asked[store.id] = {*organs}
        return whole(model, store, settings, prompts, organs)

    monkeypatch.setattr(training, "predict", noted)
    run("baseline", **PATIENTS)
    learned = {*organs_shown(tiny_settings("baseline", **PATIENTS), "FLARE22")}
    assert len(learned) > 1 and {id[:4] for id in asked} == {"BTCV", "FLAR"}
    assert all(organs == learned for organs in asked.values())
    scores = read(scans.parent / "results/smoke")
    assert set(scores.loc[scores["dataset"] == "BTCV", "organ"]) == {"liver"}


def test_a_missing_test_set_is_left_out_and_scored_alone_later(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("dynunet", **PATIENTS)
    line, told = capsys.readouterr()
    assert "training dynunet: 2 optimizer steps; summed learning rate: network " in told
    assert line.count("\n") == 1 and line.startswith("dynunet is not scored on BTCV: ")
    assert "BTCV holds no case of BTCV: put its images into RawData/Training/img there" in line
    results, predicted, whole = scans.parent / "results/smoke", [], training.predict
    first = read(results)
    assert set(first["dataset"]) == {"FLARE22"}
    write_btcv(scans)
    never(monkeypatch, "train")
    monkeypatch.setattr(training, "predict", lambda *all_: predicted.append(all_[1].id) or whole(*all_))
    run("dynunet", **PATIENTS)
    both = read(results)
    assert len(predicted) == 1 and predicted[0].startswith("BTCV")
    assert set(both["dataset"]) == {"FLARE22", "BTCV"}
    pd.testing.assert_frame_equal(both[both["dataset"] == "FLARE22"].reset_index(drop=True), first)
    (scans / "BTCV").rename(scans / "elsewhere")
    run("dynunet", **PATIENTS)
    pd.testing.assert_frame_equal(read(results), both, obj="scores of a set that has gone")


def test_a_test_set_that_cannot_be_used_is_left_out_before_the_training(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One scan cannot be read; in another data set lies a scan that the model learned from."""
    write_btcv(scans)
    for path in (scans / "BTCV/RawData/Training/img").iterdir():
        path.write_bytes(b"cut short")
    learned = cases_of(tiny_settings("dynunet", **PATIENTS), "training")[0]
    for kind, source in (("imagesTr", learned.image), ("labelsTr", learned.labels)):
        (scans / "AMOS22" / kind).mkdir(parents=True)
        shutil.copy(source, scans / "AMOS22" / kind / "amos_0001.nii.gz")
    never(monkeypatch, "train")
    with pytest.raises(pytest.fail.Exception):
        run("dynunet", **PATIENTS | {"test_on": ("FLARE22", "BTCV", "AMOS22 CT")})
    broken, twin = capsys.readouterr().out.splitlines()
    assert broken.startswith("dynunet is not scored on BTCV: ") and "img00" in broken
    assert twin.startswith("dynunet is not scored on AMOS22 CT: ") and "which the model learned from" in twin
    with pytest.raises(InputError, match="img00"):  # the one test set
        run("dynunet", **PATIENTS | {"test_on": ("BTCV",)})


def test_a_phantom_that_was_learned_from_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At one site of four: a fault of the program is no data set that happens to be missing."""
    learned = stores_of(settings_of("adapter", "smoke"), "training")
    stores = {"site B": lambda *_: learned}
    monkeypatch.setattr("lib.data.stores_of", lambda *of: stores.get(of[1], stores_of)(*of))
    with pytest.raises(InputError, match="which the model learned from"):
        run("adapter")


def test_without_its_training_scans_a_run_does_not_start(scans: Path) -> None:
    (scans / "FLARE22").rename(scans / "elsewhere")
    with pytest.raises(InputError, match=r"FLARE22 holds no case of FLARE22: put .*by DATA_ROOT"):
        run("dynunet", **PATIENTS)
    assert not (scans.parent / "results").exists()


@pytest.mark.parametrize("call", [training.trained, training.run])
def test_at_full_size_a_gpu_is_needed_unless_the_processor_is_asked_for(
    call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RESULTS_ROOT", "DATA_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name))
    settings = settings_of("dynunet", "full")
    with pytest.raises(InputError, match=r"^PROFILE=full needs a GPU, .* or set CPU=1 to go on without "):
        call("dynunet", settings, *PARTS["dynunet"])
    monkeypatch.setenv("CPU", "1")
    with pytest.raises(InputError, match=r"^PRECISION=fp16 needs a GPU"):
        call("dynunet", replace(settings, precision="fp16"), *PARTS["dynunet"])
    assert not list(tmp_path.iterdir()), "said before anything is written"
    with pytest.raises(InputError, match="holds no case of FLARE22"):
        call("dynunet", settings, *PARTS["dynunet"])


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be written .*RESULTS_ROOT") as caught:
        run("baseline")
    assert "\n" not in str(caught.value)


def test_the_command_line_runs_what_it_can_and_says_what_it_cannot(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for profile, found, failed in (("smoke", 2, 0), ("full", 0, 2)):
        monkeypatch.setattr(sys, "argv", ["train", "unet", "dynunet", "--profile", profile])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")
        assert capsys.readouterr().out.count(": mean Dice 0.") == found
        assert str(ended.value.code or "").count(": PROFILE=full needs a GPU") == failed


# sessions that end, or start at once, and several processes


def session(root: Path) -> multiprocessing.Process:
    """A process that runs the baseline from its start to its scores, and notes each step and prediction."""

    def noted(call: Callable) -> Callable:
        def longer(*arguments: Any) -> Any:
            with (root / "done").open("a") as file:
                file.write(f"{call.__name__}\n")
            time.sleep(0.1)
            return call(*arguments)

        return longer

    def whole() -> None:
        os.environ |= {"RESULTS_ROOT": str(root), "TQDM_DISABLE": "1"}
        root.mkdir(exist_ok=True)
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its own is shared by forks: a killed one keeps it
        Trainer.step, training.predict = noted(Trainer.step), noted(training.predict)
        run("baseline")

    child = multiprocessing.get_context("fork").Process(target=whole)  # what is imported need not be again
    child.start()
    return child


def assert_same_results(one: Path, two: Path) -> None:
    names = ["scores.csv", *(path.relative_to(one) for path in one.glob("runs/*/*/*.*"))]
    assert len(names) == 1 + 3, "one run, with its configuration, log and weights"
    for name in names:
        lines = [(root / name).read_bytes().splitlines() for root in (one, two)]
        first, second = ([line for line in file if not line.startswith(b' "seconds')] for file in lines)
        assert first == second, name  # but for the time that it took
    assert {path.name for path in one.rglob("*")} == {path.name for path in two.rglob("*")}, "and no more"


@pytest.mark.slow
def test_killed_at_random_or_started_twice_at_once_a_run_ends_as_the_unbroken_one(tmp_path: Path) -> None:
    unbroken, broken, twice = (tmp_path / name for name in ("unbroken", "broken", "twice"))
    session(tmp_path / "warm").join()  # makes the phantoms
    clock = time.perf_counter()
    session(unbroken).join()
    whole, draw, kills = time.perf_counter() - clock, random.Random(0), 0
    while kills < 5:
        (child := session(broken)).join(draw.uniform(0.05, 0.6) * whole)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0:
            shutil.rmtree(broken)  # another one is to be killed
    children = [session(broken), session(twice), session(twice)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    for root in (broken, twice):
        assert_same_results(unbroken / "smoke", root / "smoke")
    once, both = (sorted((root / "done").read_text().split()) for root in (unbroken, twice))
    assert both == once, "each step and each prediction is made once"


SHARED = """
import os
import torch
from lib import training
from tiny import PARTS, tiny_settings
def noted(model, store, *rest):
    with open(os.environ["NOTES"] + os.environ["RANK"], "a") as file:
        print(store.id, file=file)
    return predict(model, store, *rest)
predict, training.predict = training.predict, noted
torch.set_num_threads(1)
training.run("adapter", tiny_settings("adapter", **SETTINGS), *PARTS["adapter"])
"""


@pytest.mark.slow
def test_two_processes_train_and_score_as_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --multi_gpu` also starts processes on a machine without any GPU."""
    settings = {"cases": (2, 2, 3), "test_on": ("site A", "site B"), "epochs": 1,
                "epoch_steps": 4, "sampler": "shuffled", "batch": 8, "drop_path": 0.0}  # fmt: skip
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "alone"))
    one = run("adapter", **settings).set_index(["dataset", "case", "organ"])
    folder = folder_of("adapter", **settings)
    log, weights = pd.read_csv(folder / "log.csv"), load_file(folder / "best.safetensors")
    more = {"RESULTS_ROOT": str(tmp_path / "shared"), "NOTES": str(tmp_path / "notes"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}  # fmt: skip
    (script := tmp_path / "run.py").write_text(SHARED.replace("SETTINGS", repr(settings)))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--main_process_port", "0"]
    command = [sys.executable, *launch, str(script)]
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-5000:]
    two = read(tmp_path / "shared/smoke").set_index(["dataset", "case", "organ"])
    assert set(two.index) == set(one.index) and not two.index.has_duplicates
    assert (one["dice"] - two["dice"]).abs().max() < 0.01
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "shared"))
    shared = pd.read_csv((other := folder_of("adapter", **settings)) / "log.csv")
    assert shared["lr"].tolist() == log["lr"].tolist(), "the schedule moves once a step"
    assert shared["loss"].tolist() == pytest.approx(log["loss"].tolist(), abs=1e-4)
    for name, tensor in load_file(other / "best.safetensors").items():
        rounded = name.endswith("k_proj.bias")  # whose gradient is rounding alone
        assert rounded or (tensor - weights[name]).abs().max() < 1e-4, name
    shares = [(tmp_path / f"notes{rank}").read_text().split() for rank in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == sorted(set(shares[0] + shares[1])), "each scan once"
    assert min(map(len, shares)) >= 2 + 1, "of those tested and those validated"
