"""lib.runs in the smoke profile: what a run leaves behind, what it does not do twice, and how it says that it cannot go on."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from tiny import fake_store, stores_of

from lib import profiles, runs
from lib.clipseg import build
from lib.metrics import KEY
from lib.organs import BY_KEY, KEYS
from lib.paths import ROOT, InputError
from lib.profiles import settings_of
from lib.runs import evaluate, merge_scores, run_folder, validator
from lib.volumes import Grid, read_labels

COUNTS = ["overlap_voxels", "truth_voxels", "predicted_voxels", "false_slices", "slices_absent", "slices"]


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


def files_of(folder: Path) -> dict[str, int]:
    """{file: time of its last change}, locks apart."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock"}


def test_a_run_scores_every_organ_of_every_test_scan(evaluated: pd.DataFrame, home: Path) -> None:
    settings = settings_of("baseline", "smoke")
    cases = [store.id for store in stores_of(settings, "FLARE22")]
    assert [(row.case, row.organ) for row in evaluated.itertuples()] == [(case, key) for case in cases for key in KEYS]
    assert list(evaluated)[:5] == KEY and (evaluated[["run", "config", "dataset"]] == ["baseline", settings.hash(), "FLARE22"]).all(None)
    stored = pd.read_csv(home / "RESULTS_ROOT/smoke/scores.csv", dtype={"config": str, "case": str})
    expected = evaluated.sort_values(KEY, ignore_index=True)
    pd.testing.assert_frame_equal(stored[stored["run"] == "baseline"].reset_index(drop=True), expected, rtol=1e-4)


def test_stored_predictions_lie_on_the_scan_and_give_the_scores(evaluated: pd.DataFrame) -> None:
    store = stores_of(settings_of("baseline", "smoke"), "FLARE22")[0]
    where = run_folder("baseline", "smoke") / "predictions" / "FLARE22"
    claims = np.load(where / f"{store.id}.npz")["claims"]
    shown, scan = nib.load(where / f"{store.id}.nii.gz"), nib.load(store.source.image)
    assert claims.shape == shown.shape == scan.shape and np.allclose(shown.affine, scan.affine, atol=1e-4)
    labels = np.asarray(shown.dataobj)
    assert np.array_equal(labels > 0, claims > 0), "the label map is drawn wherever any organ is claimed"
    truth = store.grid.to_native(read_labels(store.source.labels, store.label_map, store.grid))
    for place, row in enumerate(evaluated.itertuples()):
        mask, organ = claims >> place & 1 > 0, truth == BY_KEY[row.organ].label
        assert mask[labels == BY_KEY[row.organ].label].all(), "who wins a voxel also claims it"
        assert (row.overlap_voxels, row.truth_voxels, row.predicted_voxels) == ((mask & organ).sum(), organ.sum(), mask.sum())
        assert row.dice == pytest.approx(2 * (mask & organ).sum() / (mask.sum() + organ.sum()))
        assert row.slices == 12, "axial slices, whatever the scan's own axes"
    assert evaluated["truth_voxels"].min() > 0 and evaluated["predicted_voxels"].max() > 0


def test_a_run_keeps_its_whole_configuration_and_starts_from_the_one_before(evaluated: pd.DataFrame) -> None:
    folder = run_folder("baseline", "smoke")
    assert {path.name for path in folder.iterdir()} == {"config.json", "log.csv", "best.safetensors", "predictions"}
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
    for name in ("train", "predict"):
        monkeypatch.setattr(runs, name, lambda *_, name=name: pytest.fail(f"{name} was called again"))
    again = evaluate("baseline", "smoke")
    pd.testing.assert_frame_equal(again, evaluated)
    assert files_of(home / "RESULTS_ROOT/smoke/runs") == before


def test_only_what_is_missing_is_predicted(evaluated: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "train", lambda *_: pytest.fail("trained again"))
    scores = run_folder("baseline", "smoke") / "predictions/FLARE22/FLARE22_0001.csv"
    text = scores.read_text()
    scores.unlink()
    pd.testing.assert_frame_equal(evaluate("baseline", "smoke"), evaluated)
    assert scores.read_text() == text


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
    stored = pd.read_csv(tmp_path / "smoke/scores.csv", dtype={"config": str})
    assert len(stored) == 13 and set(stored["config"]) == set(table["config"])


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
        patch.setattr(runs, "predict", lambda *_: silent)
        patch.setattr(runs, "read_labels", lambda *_: np.zeros(store.grid.canonical_shape, np.uint8))
        assert validator([store], settings_of("baseline", "smoke"))(None) > -1  # type: ignore[arg-type]


def rows(run: str, dice: float, cases: int = 2, config: str = "0001") -> pd.DataFrame:
    """Score rows with names that look like numbers."""
    table = [(run, config, "FLARE22", f"{case:04d}", key, dice, *range(6)) for case in range(cases) for key in KEYS]
    return pd.DataFrame(table, columns=[*KEY, "dice", *COUNTS])


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "scores.csv", dtype={"config": str, "case": str})


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
        worker.join(60)
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
    assert "/proc/results/smoke/runs/encoders/config.json cannot be written" in text and "RESULTS_ROOT" in text and "\n" not in text


def test_training_on_scans_without_organs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    bare = fake_store(4)
    bare.presence[:] = 0
    monkeypatch.setattr(runs, "stores_of", lambda *_: [bare])
    with pytest.raises(InputError, match="shows any organ"):
        evaluate("baseline", "smoke")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
