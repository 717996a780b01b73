"""Sessions that end, and several processes: whole runs of the smoke profile, killed at random or shared, end as the unbroken one.

They take a minute or two: `pytest tests/test_sessions.py`; `pytest -m "not slow"` leaves them out.
"""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import tiny_settings

from lib.clipseg import build
from lib.paths import ROOT, InputError, clear_parts, locked, replacing, write_json
from lib.profiles import PROFILES, is_finished, settings_of
from lib.runs import evaluate, trained
from lib.training import take_up
from lib.training.run import Run

RUN = "baseline"  # with both stand-ins for pretraining before it


def evaluate_in(root: Path) -> None:
    """A whole run; notes each step of a training in a file when it is done."""
    os.environ |= {"RESULTS_ROOT": str(root), "CACHE_ROOT": str(root.parent / "cache"), "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    step, start = Run.step, Run.start

    def noted(self: Run, *arguments) -> None:
        step(self, *arguments)
        time.sleep(0.2)  # most of a session is training, as it is at full size
        with open(root / "steps", "a") as file:
            file.write(f"{self.folder.name} {self.progress.step}\n")

    def started(self: Run) -> None:
        start(self)
        with open(root / "steps", "a") as file:
            file.write(f"{self.folder.name} start {self.progress.step}\n")

    Run.step, Run.start = noted, started
    root.mkdir(exist_ok=True)
    evaluate(RUN, "smoke")


def session(root: Path, seconds: float | None) -> bool:
    """A session of the run, which a SIGKILL ends after so many seconds; whether it came to its end before."""
    child = multiprocessing.get_context("fork").Process(target=evaluate_in, args=(root,))  # what is imported need not be again
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def assert_same_end(one: Path, two: Path) -> None:
    """Two finished runs with the same scores, weights and logs, and nothing half-written beside them."""
    assert (one / "smoke/scores.csv").read_bytes() == (two / "smoke/scores.csv").read_bytes()
    for name in ("encoders", "pretraining", RUN):
        for file in ("best.safetensors", "log.csv", "audit.csv"):
            assert (one / "smoke/runs" / name / file).read_bytes() == (two / "smoke/runs" / name / file).read_bytes(), (name, file)
    assert not list((two / "smoke/runs").rglob("*.part*")) and not list((two / "smoke/runs").rglob("*checkpoint*"))


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_scores_are_those_of_the_unbroken_run(tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    session(unbroken, None)  # makes the phantoms, too
    shutil.rmtree(unbroken)
    clock = time.perf_counter()
    assert session(unbroken, None)
    whole = time.perf_counter() - clock
    draw, kills = random.Random(0), 0
    while kills < 10:
        if not session(broken, draw.uniform(0.05, 0.6) * whole):
            kills += 1
            continue
        assert_same_end(unbroken, broken)  # before the tenth; another one is to be killed
        assert lost_steps(broken / "steps") <= 3
        shutil.rmtree(broken)
    assert session(broken, None)
    assert_same_end(unbroken, broken)
    assert lost_steps(broken / "steps") <= 3, "an epoch of the smoke profile, which ends with a checkpoint"


def lost_steps(notes: Path) -> int:
    """The most steps that a start had to do again."""
    done: dict[str, int] = {}
    most = 0
    for name, *what in map(str.split, notes.read_text().splitlines()):
        if what[0] == "start":
            most = max(most, done.get(name, 0) - int(what[1]))
        else:
            done[name] = int(what[0])
    return most


SHARED = """
import os
import time
import torch
from accelerate import accelerator
from lib import profiles, runs
from lib.training import run as training
torch.set_num_threads(1)
def late(function, rank):
    return lambda *arguments, **more: time.sleep(0.5 * (os.environ.get("RANK") == rank)) or function(*arguments, **more)
accelerator.save_accelerator_state = late(accelerator.save_accelerator_state, "1")
training.audit = late(training.audit, "0")
profiles.PROFILES["smoke"] |= {"cases": (2, 2, 3), "test_on": ("FLARE22", "BTCV")}
whole = runs.predict_any
def noted(model, store, *rest):
    with open(os.environ["NOTES"] + os.environ.get("RANK", ""), "a") as file:
        print(store.id, file=file)
    return whole(model, store, *rest)
runs.predict_any = noted
runs.trained("dynunet", "smoke")
runs.evaluate("dynunet", "smoke")
"""


@pytest.mark.slow
def test_two_processes_train_and_score_as_one_does(tmp_path: Path) -> None:
    """`accelerate launch --multi_gpu` also starts processes on a machine without any GPU. Each is late where the other might not wait."""
    script = tmp_path / "run.py"
    script.write_text(SHARED)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    tables, logs = [], []
    for name, how in (("alone", []), ("shared", launch)):
        more = {"RESULTS_ROOT": str(tmp_path / name), "CACHE_ROOT": str(tmp_path / "cache"), "NOTES": str(tmp_path / f"{name}-notes")}
        older = tmp_path / name / "smoke/runs/dynunet"  # finished, with other settings: one process puts it aside
        write_json(older / "config.json", {"hash": "0123456789ab", "finished": "0123456789ab", "settings": {}})
        environment = os.environ | more | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        done = subprocess.run([sys.executable, *how, str(script)], env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-20000:]
        assert done.stdout.count("is kept in") == 1 and names(older.parent) >= {"dynunet", "dynunet-01234567"}
        tables.append(pd.read_csv(tmp_path / name / "smoke/scores.csv", dtype={"config": str}).set_index(["dataset", "case", "organ"]))
        logs.append(pd.read_csv(tmp_path / name / "smoke/runs/dynunet/log.csv"))
    one, two = tables
    assert one.index.equals(two.index) and not two.index.has_duplicates
    assert (one["dice"] - two["dice"]).abs().max() < 0.01 and one["config"].equals(two["config"])
    assert logs[0]["step"].equals(logs[1]["step"])
    assert (logs[0]["loss"] - logs[1]["loss"]).abs().max() < 1e-4 and (
        logs[0]["validation_dice"] - logs[1]["validation_dice"]
    ).abs().max() < 0.01
    alone, *shares = (path.read_text().split() for path in sorted(tmp_path.glob("*-notes*")))
    assert len(shares) == 2 and all(shares) and sorted([*shares[0], *shares[1]]) == sorted(alone), "each scan once"
    assert len(alone) == 6


def test_what_a_killed_process_left_half_is_cleared_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".scores.csv.{gone.pid}.part.csv").touch()
    (tmp_path / f".scan.nii.gz.{gone.pid}.part.nii.gz").touch()
    (tmp_path / "scores.csv").touch()
    with replacing(tmp_path / "living.csv") as part:
        part.touch()
        clear_parts(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([part.name, "scores.csv"])
    clear_parts(tmp_path / "nothing")


def test_a_drive_without_locks_gets_one_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "here"))
    (tmp_path / "here").mkdir()
    with locked(tmp_path / "a.lock"):
        assert not list((tmp_path / "here").iterdir())
    with locked(tmp_path / "a.lock" / "b.lock"):  # which no system gives, for a.lock is a file
        assert len(list((tmp_path / "here").iterdir())) == 1


def test_a_checkpoint_that_cannot_be_read_ends_in_one_sentence(tmp_path: Path) -> None:
    settings = tiny_settings("baseline")
    broken = tmp_path / "checkpoint-000000002"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(InputError, match="cannot be read") as caught:
        Run(settings, build(settings), 2, tmp_path).start()
    assert "\n" not in str(caught.value) and "delete it" in str(caught.value)


# A run of other settings in the folder


STEPS = 6


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def small(phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """RESULTS_ROOT of a profile with a run that starts from random numbers, six steps, each with a checkpoint; returns its runs' folder."""
    for name, folder in (("CACHE_ROOT", phantoms), ("RESULTS_ROOT", tmp_path)):
        monkeypatch.setenv(name, str(folder))
    brief = {"start_from": "", "epochs": 1, "epoch_steps": STEPS, "checkpoint_steps": 1, "restart_epochs": 1, "test_on": ("FLARE22",)}
    monkeypatch.setitem(PROFILES, "smoke", PROFILES["smoke"] | brief)
    return tmp_path / "smoke/runs"


def other(monkeypatch: pytest.MonkeyPatch, **changes: object) -> str:
    """Other settings of the profile, as another PRECISION or WEIGHTS gives them; returns how a folder of the ones before is named."""
    before = settings_of(RUN, "smoke").hash()
    monkeypatch.setitem(PROFILES, "smoke", PROFILES["smoke"] | changes)
    return f"{RUN}-{before[:8]}"


def train_until(step: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains the run, which is broken off in this step."""
    whole = Run.step

    def broken(self: Run, *arguments) -> None:
        if self.progress.step == step:
            raise KeyboardInterrupt
        whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", broken)
        if step is None:
            trained(RUN, "smoke")
        else:
            with pytest.raises(KeyboardInterrupt):
                trained(RUN, "smoke")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


@pytest.mark.parametrize("reached", [2, None])
@pytest.mark.parametrize("change", [{"lr_decoder": 0.05}, {"seed": 1}])
def test_a_run_of_other_settings_is_put_aside_and_taken_up_again_bit_for_bit(
    change: dict, reached: int | None, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a checkpoint or finished: nothing of it is lost, and it ends as one that nothing came between."""
    if "seed" in change:  # of the same name: one that somebody has changed in the code
        settings = settings_of(RUN, "smoke")
        monkeypatch.setattr("lib.runs.settings_of", lambda run, profile=None: replace(settings, seed=seed[0]))
        seed, aside = [0], f"{RUN}-{settings.hash()[:8]}"
    train_until(reached, monkeypatch)
    (small / RUN / "notes.txt").write_text("mine")
    before = contents(small / RUN)
    capsys.readouterr()
    if "seed" in change:
        seed[0] = 1
    else:
        aside = other(monkeypatch, **change)
    train_until(4, monkeypatch)
    assert contents(small / aside) == before and names(small) == {RUN, aside} and "notes.txt" not in names(small / RUN)
    said = capsys.readouterr().out.splitlines()
    setting, value = next(iter(change.items()))
    assert (
        len(said) == 1 and str(small / aside) in said[0] and f"{setting} was {'0' if setting == 'seed' else '0.001'}, is {value}" in said[0]
    )
    if "seed" in change:
        seed[0], new = 0, f"{RUN}-{replace(settings, seed=1).hash()[:8]}"
    else:
        new = other(monkeypatch, lr_decoder=0.001)
    train_until(None, monkeypatch)
    assert names(small) == {RUN, new} and "checkpoint-000000004" in names(small / new)
    after = contents(small / RUN)
    if reached is None:
        assert after == before, "it was finished, and nothing is done again"
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "unbroken"))
    train_until(None, monkeypatch)
    unbroken = contents(tmp_path / "unbroken/smoke/runs" / RUN)
    for file in ("best.safetensors", "log.csv", "audit.csv"):
        assert after[file] == unbroken[file], file


def test_weights_with_other_content_put_a_run_aside(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder's name is the same, so no setting differs that could be named."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"one")
    settings = tiny_settings(RUN, weights=str(weights))
    folder = small / RUN
    write_json(folder / "config.json", {"hash": settings.hash(), "settings": asdict(settings), "finished": settings.hash()})
    first = settings.hash()
    (weights / "model.safetensors").write_bytes(b"another")
    take_up(folder, settings, start=True)
    assert names(small) == {f"{RUN}-{first[:8]}"} and first != settings.hash()


def test_a_kill_between_two_renamings_loses_nothing(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(2, monkeypatch)
    first = contents(small / RUN)
    aside = other(monkeypatch, lr_decoder=0.05)
    train_until(2, monkeypatch)
    second = contents(small / RUN)
    rename, done = Path.rename, []

    def killed(self: Path, target: Path) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    new = other(monkeypatch, lr_decoder=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            take_up(small / RUN, settings_of(RUN, "smoke"))
    assert names(small) == {aside, new} and contents(small / aside) == first and contents(small / new) == second
    take_up(small / RUN, settings_of(RUN, "smoke"))
    assert names(small) == {RUN, new} and contents(small / RUN) == first and contents(small / new) == second


def test_a_folder_that_has_the_name_already_stays(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has copied the run, or something else is called so."""
    train_until(2, monkeypatch)
    aside = other(monkeypatch, lr_decoder=0.05)
    (small / aside).mkdir()
    (small / aside / "notes.txt").write_text("mine")
    before = contents(small / RUN)
    train_until(2, monkeypatch)
    assert contents(small / aside) == {"notes.txt": b"mine"} and contents(small / f"{aside}-2") == before
    new = other(monkeypatch, lr_decoder=0.001)
    take_up(small / RUN, settings_of(RUN, "smoke"))
    assert contents(small / RUN) == before and names(small) == {RUN, aside, new}


def test_what_is_no_run_stays_where_a_run_is_taken_up(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(2, monkeypatch)
    before = contents(small / RUN)
    (small / RUN).rename(small / f"{RUN}-{settings_of(RUN, 'smoke').hash()[:8]}")
    (small / RUN).mkdir()
    (small / RUN / "notes.txt").write_text("mine")
    take_up(small / RUN, settings_of(RUN, "smoke"))
    assert contents(small / RUN) == before and contents(small / f"{RUN}-unknown") == {"notes.txt": b"mine"}


def test_a_folder_without_checkpoint_and_finish_is_trained_in(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_until(0, monkeypatch)
    (small / RUN / "notes.txt").write_text("mine")
    other(monkeypatch, lr_decoder=0.05)
    train_until(None, monkeypatch)
    assert names(small) == {RUN} and (small / RUN / "notes.txt").read_text() == "mine"
    assert is_finished(small / RUN, settings_of(RUN, "smoke"))


def test_a_run_that_was_put_aside_while_it_trained_writes_into_no_other_s_folder(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(RUN, "smoke")
    run = Run(settings, build(settings), STEPS, small / RUN)
    run.start()
    run.checkpoint()
    other(monkeypatch, lr_decoder=0.05)
    train_until(2, monkeypatch)
    before = contents(small / RUN)
    for write in (run.checkpoint, lambda: run.judge(1.0)):
        with pytest.raises(InputError, match="belongs to a run of other settings by now"):
            write()
    assert contents(small / RUN) == before


def test_a_configuration_that_is_none_ends_in_one_sentence(small: Path) -> None:
    (small / RUN).mkdir(parents=True)
    (small / RUN / "config.json").write_text('{"hash": ')
    with pytest.raises(InputError, match=r"config.json is no configuration of a run .*: give .* another name") as caught:
        trained(RUN, "smoke")
    assert "\n" not in str(caught.value) and names(small / RUN) == {"config.json"}


def test_a_checkpoint_is_due_by_its_steps_or_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings("baseline", checkpoint_steps=5)
    run = Run(settings, build(settings), 2, tmp_path)
    due = []
    for step in (1, 5, 6):
        run.progress.step = step
        due.append(run.is_due())
    assert due == [False, True, False]
    monkeypatch.setattr("lib.training.run.time.monotonic", lambda: run.saved + 601)
    assert run.is_due()
    monkeypatch.setattr("lib.training.run.time.monotonic", lambda: run.saved + 599)
    assert not run.is_due()
