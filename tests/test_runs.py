"""lib.training.run: what a run leaves behind, does not do twice and needs, and how it goes on when killed."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import PARTS, fake_store, tiny_settings
from tqdm import tqdm

from lib import training
from lib.config import is_finished, run_folder, settings_of
from lib.data import cases_of, stores_of
from lib.files import ROOT, InputError, file_hash, write_json
from lib.inference import Prediction, predict
from lib.metrics import KEY
from lib.organs import BY_KEY, KEYS, PROMPT_SETS, PROMPTS, labelled
from lib.phantoms import site_of, write_cohort
from lib.training import Trainer, claim_folder, evaluate, prompts_of, slice_dice, trained, volume_dice
from lib.volumes import Grid, read_labels
from lib.windows import Windows, WindowSampler

COUNTS = ["overlap_voxels", "truth_voxels", "predicted_voxels", "false_slices", "slices_absent", "slices"]
TESTS = [
    *(("site A", "", name) for name in PROMPT_SETS),
    ("site A", "slices x0.5", ""),
    ("site A", "slices x0.5", "window in mm"),
]


def run(name: str, tests: Any = (), train: bool = True, **changes: Any) -> pd.DataFrame:
    """A run of the smoke profile, as a notebook has it."""
    return training.run(name, tiny_settings(name, **changes), *PARTS[name], tests, train)


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


def scored(
    table: pd.DataFrame, dataset: str = "site A", variant: str = "", condition: str = ""
) -> pd.DataFrame:
    """(organs, figures) of the one scan of a test."""
    rows = table[(table[["dataset", "variant", "condition"]] == [dataset, variant, condition]).all(axis=1)]
    return rows.set_index("organ", verify_integrity=True)


def read(results: Path) -> pd.DataFrame:
    table = pd.read_csv(results / "scores.csv", dtype={"config": str, "case": str})
    return table.fillna({"variant": "", "condition": ""})


def never(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Nothing of lib.training that has one of these names may be called from here on."""
    for name in names:
        monkeypatch.setattr(training, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


# what a run leaves behind, and does not do twice


def test_a_run_scores_every_organ_of_every_test_scan(evaluated: pd.DataFrame, here: Path) -> None:
    settings, expected = settings_of("baseline", "smoke"), []
    for dataset in settings.test_on:
        for store in stores_of(settings, dataset):
            expected += [(dataset, store.id, key) for key in KEYS if key in labelled(store.label_map)]
    assert [(row.dataset, row.case, row.organ) for row in evaluated.itertuples()] == expected
    assert len(scored(evaluated)) == 13 and "duodenum" not in scored(evaluated, "site B").index, (
        "unlabelled there"
    )
    assert (evaluated[["run", "seed", "profile", "config"]] == ["baseline", 0, "smoke", settings.hash()]).all(
        None
    )
    assert evaluated[[*COUNTS, "flare_dice", "flare_nsd", "voxel_ml"]].notna().all(None)
    stored = read(here)
    stored = stored[stored["run"] == "baseline"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        stored, evaluated.sort_values(KEY, ignore_index=True), check_dtype=False, rtol=1e-4
    )
    by = ["trained_on", "part", "dataset", "case"]
    listed = pd.read_csv(here / "splits.csv", dtype=str).set_index(by)
    for dataset in settings.test_on:
        for store in stores_of(settings, dataset):
            assert listed.loc[("site A", "test", dataset, store.id), "image_sha256"] == file_hash(
                store.source.image
            )


def test_stored_predictions_lie_on_the_scan_and_give_the_scores(evaluated: pd.DataFrame) -> None:
    store = stores_of(settings_of("baseline", "smoke"), "site A")[0]
    where = run_folder("baseline", "smoke") / "predictions" / "site A"
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
        assert row.slices == store.grid.canonical_shape[2]
        assert row.voxel_ml == pytest.approx(np.prod(store.grid.spacing_mm) / 1000)
    assert (scored(evaluated)["truth_voxels"] > 0).sum() > 9
    assert scored(evaluated)["predicted_voxels"].max() > 0


def test_a_run_keeps_its_configuration_and_logs(evaluated: pd.DataFrame, here: Path) -> None:
    folder = run_folder("baseline", "smoke")
    kept = {"config.json", "log.csv", "audit.csv", "best.safetensors", "predictions"}
    assert {path.name for path in folder.iterdir()} == kept
    config = json.loads((folder / "config.json").read_text())
    assert config["finished"] == config["hash"] == settings_of("baseline", "smoke").hash()
    assert len(config["settings"]) > 50
    for name in ("logs.csv", "audit.csv"):
        assert "baseline" in set(pd.read_csv(here / name)["run"])


def test_a_second_call_trains_and_predicts_nothing(
    evaluated: pd.DataFrame, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (here / "runs").rglob("*") if path.is_file()}

    before = files()
    never(monkeypatch, "train", "predict")
    pd.testing.assert_frame_equal(run("baseline"), evaluated)
    assert files() == before
    never(monkeypatch, "trained")
    stored, scored = (
        run("baseline", train=False).reset_index(drop=True),
        evaluated.sort_values(KEY, ignore_index=True),
    )
    pd.testing.assert_frame_equal(stored, scored, check_dtype=False, rtol=1e-4)
    assert run("centre only", train=False).empty, "the stored scores alone"


def test_only_what_is_missing_is_predicted(evaluated: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    never(monkeypatch, "train")
    (scores,) = (run_folder("baseline", "smoke") / "predictions/site A").glob("*.csv")
    text = scores.read_text()
    scores.unlink()
    pd.testing.assert_frame_equal(run("baseline"), evaluated)
    assert scores.read_text() == text


def test_tests_that_are_not_asked_for_again_keep_their_rows(adapted: pd.DataFrame, here: Path) -> None:
    stored = read(here)
    run("adapter")
    pd.testing.assert_frame_equal(read(here), stored)
    assert set(PROMPT_SETS) < set(stored[stored["run"] == "adapter"]["condition"])


def test_a_wrong_prompt_s_row_is_what_its_organ_s_own_prompt_claims(adapted: pd.DataFrame) -> None:
    plain, wrong, blank = (scored(adapted, condition=condition) for condition in ("", "wrong organ", "blank"))
    for key in KEYS:
        assert wrong["predicted_voxels"][key] == plain["predicted_voxels"][BY_KEY[key].wrong]
        assert wrong["truth_voxels"][key] == plain["truth_voxels"][key], (
            "scored against the organ to be found"
        )
    assert plain["predicted_voxels"].nunique() > 1 and blank["predicted_voxels"].nunique() == 1


def test_a_window_in_mm_sees_other_slices(adapted: pd.DataFrame) -> None:
    """Slices of half the training's distance: its window reaches two and four of them away, not one and
    two."""
    settings = settings_of("adapter", "smoke")
    store, model = (
        stores_of(settings, "site A", "slices x0.5")[0],
        trained("adapter", settings, *PARTS["adapter"]),
    )
    counts = []
    for condition, unit in (("", "slices"), ("window in mm", "mm")):
        expected = predict(model, store, replace(settings, window_unit=unit)).claims
        counts.append(scored(adapted, "site A", "slices x0.5", condition)["predicted_voxels"].tolist())
        assert counts[-1] == [int((expected >> place & 1).sum()) for place in range(13)]
    assert counts[0] != counts[1]


def test_prompts_of_one_s_own(adapted: pd.DataFrame, here: Path) -> None:
    before, settings = (here / "scores.csv").read_bytes(), settings_of("adapter", "smoke")
    model, folder = trained("adapter", settings, *PARTS["adapter"]), run_folder("adapter", "smoke") / "own"
    plain = scored(adapted)
    for word in ("stomach", "spleen"):  # the name is the same, the prompts are not
        prompts = (word, *PROMPTS[1:])
        found = evaluate(model, settings, ("site A", "", "mine"), folder, prompts).set_index("organ")[
            "predicted_voxels"
        ]
        assert (
            found["liver"] == plain["predicted_voxels"][word]
            and found["aorta"] == plain["predicted_voxels"]["aorta"]
        )
    assert (here / "scores.csv").read_bytes() == before


def test_prompts_of_a_condition() -> None:
    adapter, med_vlm = tiny_settings("adapter"), tiny_settings("med-vlm small")
    assert (
        prompts_of(adapter, "") == prompts_of(adapter, "window in mm") == ()
        and prompts_of(adapter, "blank") == ("",) * 13
    )
    assert set(prompts_of(adapter, "wrong organ")) == set(KEYS)
    assert not any(asked == key for asked, key in zip(prompts_of(adapter, "wrong organ"), KEYS, strict=True))
    assert prompts_of(med_vlm, "name") == ("spleen", "liver") and prompts_of(med_vlm, "") == ()


def test_a_test_scan_that_was_learned_from_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = stores_of(settings_of("adapter", "smoke"), "training")
    monkeypatch.setattr("lib.data.stores_of", lambda *_: learned)
    with pytest.raises(InputError, match="which the model learned from"):
        run("adapter")


@pytest.mark.parametrize("name", ["centre only", "dynunet", "unetr", "clipseg on BTCV"])
def test_other_runs_train_and_score_as_well(name: str, here: Path) -> None:
    table, settings = run(name), settings_of(name, "smoke")
    assert set(table["dataset"]) == set(settings.test_on) and set(table["config"]) == {settings.hash()}
    assert set(table["organ"]) == set(settings.organs)
    config = json.loads((run_folder(name, "smoke") / "config.json").read_text())
    assert (
        config["finished"] == settings.hash() and 0 <= config["validation_dice"] <= 1
    ) or settings.keep == "last"
    if name == "dynunet":
        (path,) = (run_folder(name, "smoke") / "predictions/site A").glob("*.npz")
        assert (np.bitwise_count(np.load(path)["claims"]) <= 1).all(), "its organs share no voxel"
    assert name in set(read(here)["run"])


def test_other_settings_train_and_score_anew_and_the_same_from_nothing_the_same(
    evaluated: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    pd.testing.assert_frame_equal(run("baseline"), evaluated)
    table = run("baseline", lr_decoder=0.05)
    assert set(table["config"]) != set(evaluated["config"])
    assert not table["predicted_voxels"].equals(evaluated["predicted_voxels"]), "no older prediction is left"
    stored = read(tmp_path / "smoke")
    assert len(stored) == len(table) and set(stored["config"]) == set(table["config"])
    first = run("baseline", seed=1)
    assert set(first["seed"]) == {1} and len(read(tmp_path / "smoke")) == len(first) + len(table), (
        "seeds are apart"
    )


# how weights are chosen


def test_a_validation_scan_without_any_organ_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing there and nothing predicted has no Dice.

    The checkpoint must still be chosen, so it is a number.
    """
    settings = settings_of("baseline", "smoke")
    store = stores_of(settings, "validation")[0]
    nothing = np.zeros(store.grid.shape, np.uint16)
    silent = Prediction(KEYS, Grid(store.grid.shape, store.grid.affine), nothing, nothing.astype(np.uint8))
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
def test_the_released_validation_counts_slices_that_show_the_organ_alone(absent: float) -> None:
    settings = tiny_settings("adapter", validation="augmented slices", mirror="front-back", flip=True)
    sampler = WindowSampler([fake_store(9)], settings)
    assert slice_dice(Marks(True, absent), sampler, 6) == 1
    areas = [area for step in range(6) for area in sampler[step].masks.sum((1, 2)).tolist()]
    expected = [2 * area / (area + 24 * 24) for area in areas if area]
    assert slice_dice(Marks(False, absent), sampler, 6) == pytest.approx(np.mean(expected))
    assert 0 < len(expected) < len(areas)


def test_the_released_validation_is_the_one_that_the_run_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings("adapter", validation="augmented slices")
    never(monkeypatch, "read_labels")  # whole scans are the paper's way
    found = training.validator(settings, WindowSampler, PARTS["adapter"][2])(Marks(True, 1.0))
    assert found == {"validation_dice": 1}


# what a run needs


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATA_ROOT with FLARE22 alone, its scans drawn."""
    for name, folder in (("DATA_ROOT", "data"), ("RESULTS_ROOT", "results"), ("CACHE_ROOT", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    write_cohort(site_of("site A", tiny_settings()), range(1, 5), tmp_path / "data/FLARE22")
    return tmp_path / "data"


PATIENTS: dict[str, Any] = {
    "phantoms": False,
    "epochs": 1,
    "train_on": "FLARE22",
    "test_on": ("FLARE22", "BTCV"),
}


def write_btcv(data: Path) -> None:
    drawn = write_cohort(site_of("site B", tiny_settings()), range(1, 3), data.parent / "drawn")
    for kind, folder, name in (("images", "img", "img"), ("labels", "label", "label")):
        for number, path in enumerate(sorted((drawn / kind).iterdir()), 1):
            target = data / f"BTCV/RawData/Training/{folder}/{name}{number:04d}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)


def test_a_missing_test_set_is_left_out_and_scored_alone_later(
    scans: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("dynunet", **PATIENTS)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("dynunet is not scored on BTCV: ")
    assert "BTCV holds no case of BTCV: put its images into RawData/Training/img there" in line
    results = scans.parent / "results/smoke"
    first = read(results)
    assert set(first["dataset"]) == {"FLARE22"}
    write_btcv(scans)
    never(monkeypatch, "train")
    whole, predicted = training.predict, []
    monkeypatch.setattr(
        training,
        "predict",
        lambda model, store, *rest: predicted.append(store.id) or whole(model, store, *rest),
    )
    run("dynunet", **PATIENTS)
    both = read(results)
    assert (
        len(predicted) == 1
        and predicted[0].startswith("BTCV")
        and set(both["dataset"]) == {"FLARE22", "BTCV"}
    )
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
    with pytest.raises(InputError, match=r"^PROFILE=full needs a GPU, .* or set CPU=1 to go on without\.$"):
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


# a run of other settings in the folder

STEPS = 6
BRIEF: dict[str, Any] = {
    "epochs": 1,
    "epoch_steps": STEPS,
    "checkpoint_steps": 1,
    "test_on": ("site A",),
}
ONE, OTHER = tiny_settings(**BRIEF), tiny_settings(**BRIEF, lr_decoder=0.05)
ASIDE = {settings.hash(): f"seed0-{settings.hash()}" for settings in (ONE, OTHER)}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of six steps, each with a checkpoint, in an empty RESULTS_ROOT."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    return run_folder("baseline", "smoke")


def train_until(step: int | None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains the run, which is broken off in this step."""
    whole = Trainer.step

    def broken(self: Trainer, batch: Any) -> None:
        if self.progress.step == step:
            raise KeyboardInterrupt
        whole(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", broken)
        try:
            trained("baseline", settings, *PARTS["baseline"])
        except KeyboardInterrupt:
            assert step is not None


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("reached", [2, None])
def test_a_run_of_other_settings_is_put_aside_and_taken_up_again_bit_for_bit(
    reached: int | None,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a checkpoint or finished: nothing of it is lost, and it ends as one that nothing came between."""
    train_until(reached, ONE, monkeypatch)
    (small / "notes.txt").write_text("mine")
    before = contents(small)
    capsys.readouterr()
    train_until(4, OTHER, monkeypatch)
    aside, other = (small.with_name(ASIDE[settings.hash()]) for settings in (ONE, OTHER))
    assert (
        contents(aside) == before
        and names(small.parent) == {"seed0", aside.name}
        and not (small / "notes.txt").exists()
    )
    (said,) = capsys.readouterr().out.splitlines()
    assert aside.name in said and "lr_decoder" in said
    train_until(None, ONE, monkeypatch)
    assert names(small.parent) == {"seed0", other.name} and (other / "checkpoint-000000004").is_dir()
    after = contents(small)
    assert reached is not None or after == before, "it was finished, and nothing is done again"
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "unbroken"))
    train_until(None, ONE, monkeypatch)
    unbroken = contents(run_folder("baseline", "smoke"))
    assert all(after[name] == unbroken[name] for name in ("best.safetensors", "log.csv", "audit.csv"))


def test_weights_with_other_content_put_a_run_aside(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder's name is the same, so no setting differs that could be named."""
    (weights := tmp_path / "weights").mkdir()
    (weights / "model.safetensors").write_bytes(b"one")
    settings = tiny_settings(weights=str(weights))
    first = settings.hash()
    write_json(small / "config.json", {"hash": first, "settings": asdict(settings), "finished": first})
    (weights / "model.safetensors").write_bytes(b"another")
    claim_folder(small, settings)
    assert names(small.parent) == {"seed0", f"seed0-{first}"} and first != settings.hash()
    assert "other settings: the weights." in capsys.readouterr().out


def test_a_kill_between_two_renamings_loses_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(2, ONE, monkeypatch)
    first = contents(small)
    train_until(2, OTHER, monkeypatch)
    second, rename, done = contents(small), Path.rename, []

    def killed(self: Path, target: Path) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            claim_folder(small, ONE)
    assert names(small.parent) == set(ASIDE.values())
    claim_folder(small, ONE)
    other = small.with_name(ASIDE[OTHER.hash()])
    assert (
        names(small.parent) == {"seed0", other.name}
        and contents(small) == first
        and contents(other) == second
    )


def test_a_folder_that_has_the_name_already_stays(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has copied the run, or something else is called so."""
    train_until(2, ONE, monkeypatch)
    (aside := small.with_name(ASIDE[ONE.hash()])).mkdir()
    (aside / "notes.txt").write_text("mine")
    before = contents(small)
    train_until(2, OTHER, monkeypatch)
    second = aside.with_name(f"{aside.name}-2")
    assert contents(aside) == {"notes.txt": b"mine"} and contents(second) == before
    claim_folder(small, ONE)
    assert contents(small) == before and names(small.parent) == {"seed0", *ASIDE.values()}


def test_what_is_no_run_stays_where_a_run_is_taken_up(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(2, ONE, monkeypatch)
    before = contents(small)
    small.rename(small.with_name(ASIDE[ONE.hash()]))
    small.mkdir()
    (small / "notes.txt").write_text("mine")
    claim_folder(small, ONE)
    assert contents(small) == before and contents(small.with_name("seed0-unknown")) == {"notes.txt": b"mine"}


def test_a_folder_without_checkpoint_and_finish_is_trained_in(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until(0, ONE, monkeypatch)
    (small / "notes.txt").write_text("mine")
    train_until(None, OTHER, monkeypatch)
    assert names(small.parent) == {"seed0"} and (small / "notes.txt").read_text() == "mine"
    assert is_finished(small, OTHER)


def test_a_run_that_was_put_aside_while_it_trained_writes_into_no_other_s_folder(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, theirs = Trainer.step, {}

    def overtaken(self: Trainer, batch: Any) -> None:
        whole(self, batch)
        if self.progress.step == 3:
            claim_folder(small, OTHER)
            theirs.update(contents(small))

    monkeypatch.setattr(Trainer, "step", overtaken)
    with pytest.raises(InputError, match="belongs to a run of other settings by now"):
        trained("baseline", ONE, *PARTS["baseline"])
    assert (
        contents(small) == theirs and (small.with_name(ASIDE[ONE.hash()]) / "checkpoint-000000002").is_dir()
    )


def test_a_configuration_that_is_none_ends_in_one_sentence(small: Path) -> None:
    small.mkdir(parents=True)
    (small / "config.json").write_text('{"hash": ')
    with pytest.raises(
        InputError, match=r"config\.json is no configuration of a run .*another name"
    ) as caught:
        run("baseline")
    assert "\n" not in str(caught.value) and names(small) == {"config.json"}


# sessions that end, and several processes


def session(root: Path, seconds: float | None) -> bool:
    """A session of a whole run, which a SIGKILL ends after so many seconds.

    Whether it came to its end before.
    """

    def whole() -> None:
        os.environ |= {"RESULTS_ROOT": str(root), "TQDM_DISABLE": "1"}
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its own is shared by forks: a killed one keeps it
        step = Trainer.step
        Trainer.step = lambda self, batch: (step(self, batch), time.sleep(0.1))[0]  # mostly training
        run("baseline")

    child = multiprocessing.get_context("fork").Process(target=whole)  # what is imported need not be again
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


@pytest.mark.slow
def test_killed_at_random_moments_the_scores_are_those_of_the_unbroken_run(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    session(tmp_path / "warm", None)  # makes the phantoms
    clock = time.perf_counter()
    assert session(unbroken, None)
    whole, draw, kills = time.perf_counter() - clock, random.Random(0), 0
    while kills < 5:
        if session(broken, draw.uniform(0.05, 0.6) * whole):
            shutil.rmtree(broken)  # another one is to be killed
        else:
            kills += 1
    assert session(broken, None)
    assert (unbroken / "smoke/scores.csv").read_bytes() == (broken / "smoke/scores.csv").read_bytes()
    for name in ("baseline",):
        for file in ("best.safetensors", "log.csv", "audit.csv"):
            one, two = (root / "smoke/runs" / name / "seed0" / file for root in (unbroken, broken))
            assert one.read_bytes() == two.read_bytes(), (name, file)
    assert not list((broken / "smoke/runs").rglob("*checkpoint*")) and not list(broken.rglob(".*part*"))


SHARED = """
import os
import torch
from tiny import PARTS, tiny_settings
from lib import training
torch.set_num_threads(1)
whole = training.predict
def noted(model, store, *rest):
    with open(os.environ["NOTES"] + os.environ.get("RANK", ""), "a") as file:
        print(store.id, file=file)
    return whole(model, store, *rest)
training.predict = noted
settings = tiny_settings("dynunet", cases=(2, 2, 3), test_on=("site A", "site B"))
training.run("dynunet", settings, *PARTS["dynunet"])
"""


@pytest.mark.slow
def test_two_processes_train_and_score_as_one_does(tmp_path: Path) -> None:
    """`accelerate launch --multi_gpu` also starts processes on a machine without any GPU."""
    (script := tmp_path / "run.py").write_text(SHARED)
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    tables, logs, path = [], [], os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for name, how in (("alone", []), ("shared", [*launch, "--main_process_port", "0"])):
        older = (
            tmp_path / name / "smoke/runs/dynunet/seed0"
        )  # finished, with other settings: one process puts it aside
        write_json(
            older / "config.json", {"hash": "0123456789ab", "finished": "0123456789ab", "settings": {}}
        )
        more = {
            "RESULTS_ROOT": str(tmp_path / name),
            "NOTES": str(tmp_path / f"{name}-notes"),
            "PYTHONPATH": path,
        }
        command = [sys.executable, *how, str(script)]
        done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-5000:]
        assert done.stdout.count("is kept as") == 1 and names(older.parent) == {"seed0", "seed0-0123456789ab"}
        tables.append(read(tmp_path / name / "smoke").set_index(["dataset", "case", "organ"]))
        logs.append(pd.read_csv(older / "log.csv"))
    one, two = tables
    assert (
        one.index.equals(two.index) and not two.index.has_duplicates and one["config"].equals(two["config"])
    )
    assert (one["dice"] - two["dice"]).abs().max() < 0.01 and logs[0]["step"].equals(logs[1]["step"])
    assert (logs[0]["loss"] - logs[1]["loss"]).abs().max() < 1e-4
    alone, *shares = (notes.read_text().split() for notes in sorted(tmp_path.glob("*-notes*")))
    assert len(shares) == 2 and sorted([*shares[0], *shares[1]]) == sorted(alone), "each scan once"
