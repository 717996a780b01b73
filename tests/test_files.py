"""lib.files: files are written whole or not at all, rows are merged, processes take turns."""

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lib import files
from lib.files import ROOT, InputError, file_hash, locked, merge_csv, replacing, value_hash, write_json

pytestmark = pytest.mark.filterwarnings("error")
FORK = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Places


def test_roots_come_from_the_environment_and_else_from_the_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DATA_ROOT", "CACHE_ROOT", "RESULTS_ROOT", "FIGURES_ROOT"):
        monkeypatch.delenv(name, raising=False)
    assert (files.data_root(), files.cache_root()) == (ROOT / "data", ROOT / "data/cache")
    assert (files.results_root("demo"), files.figures_root("demo")) == (
        ROOT / "results/demo",
        ROOT / "figures/demo",
    )
    for name in ("DATA_ROOT", "CACHE_ROOT", "RESULTS_ROOT", "FIGURES_ROOT"):
        monkeypatch.setenv(name, f"~/{name}")
    home = Path.home()
    assert (files.data_root(), files.cache_root()) == (home / "DATA_ROOT", home / "CACHE_ROOT")
    assert files.results_root("demo") == home / "RESULTS_ROOT/demo"
    assert files.figures_root("demo") == home / "FIGURES_ROOT/demo"


# Whole or not at all


@pytest.mark.parametrize("name", ["a.csv", "a.nii.gz", "a"])
def test_a_file_is_replaced_as_a_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / name
    for text in ("old", "new"):
        with replacing(path) as part:
            assert part.parent == path.parent and part.suffix == (path.suffix or ".part")
            assert part.name.endswith(".nii.gz") == name.endswith(".nii.gz"), (
                "as its ending says how it is written"
            )
            part.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text and names(path.parent) == [name]


@pytest.mark.parametrize(
    "error", [KeyError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_block_that_fails_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with (
        pytest.raises(InputError if isinstance(error, OSError) else type(error)) as caught,
        replacing(path) as part,
    ):
        part.write_text("half")
        raise error
    assert names(tmp_path) == ["a.csv"] and path.read_text() == "old"
    if isinstance(error, OSError):
        assert str(caught.value).startswith(
            f"{path} cannot be written (No space left on device): free some space"
        )


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    for path in (tmp_path / "file" / "a.csv", tmp_path / "folder"):
        with pytest.raises(InputError, match="cannot be written") as caught, replacing(path) as part:
            part.write_text("new")
        text = str(caught.value)
        assert (
            text.startswith(str(path)) and "\n" not in text and text.endswith(".") and "RESULTS_ROOT" in text
        )
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path / "folder") == ["mine"]


KILLED = """
import os, signal, sys
from pathlib import Path
from lib.files import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL and path.read_text() == "old" and len(names(tmp_path)) == 2
    with replacing(path) as part:
        part.write_text("new")
    assert names(tmp_path) == ["a.csv"] and path.read_text() == "new"


def test_json_is_utf_8_and_indented(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"size": "5 µm", "list": []})
    assert (tmp_path / "a.json").read_bytes() == '{\n "size": "5 µm",\n "list": []\n}\n'.encode()
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", {"array": np.zeros(1)})
    assert names(tmp_path) == ["a.json"]


# Rows

BY, ORDER = ["run", "seed", "variant"], ["run", "seed", "variant", "case"]


def rows(
    run: str, dice: float, cases: int = 2, config: str = "0001", seed: int = 0, variant: str = ""
) -> pd.DataFrame:
    same = {"run": run, "seed": seed, "variant": variant, "config": config}
    return pd.DataFrame([{**same, "case": f"{case:04d}", "dice": dice} for case in range(cases)])


def merged(path: Path, *tables: pd.DataFrame) -> list[tuple[Any, ...]]:
    """(run, seed, variant, config, case, Dice) of each row, as they are stored."""
    for table in tables:
        merge_csv(path, table, BY, ORDER)
    stored = pd.read_csv(path, dtype={"config": str, "case": str, "variant": str}, keep_default_na=False)
    return list(
        stored[["run", "seed", "variant", "config", "case", "dice"]].itertuples(index=False, name=None)
    )


def test_rows_take_the_place_of_their_own_and_leave_the_others(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    found = merged(path, rows("baseline", 0.1, 3), rows("adapter", 0.3), rows("baseline", 0.2, 1))
    assert found == [
        *(("adapter", 0, "", "0001", case, 0.3) for case in ("0000", "0001")),
        ("baseline", 0, "", "0001", "0000", 0.2),
    ], "names keep their zeros"
    text = path.read_bytes()
    merged(path, rows("adapter", 0.3), rows("baseline", 0.2, 1))
    assert path.read_bytes() == text, "the same rows again change nothing, their order included"


def test_an_empty_name_is_a_name(tmp_path: Path) -> None:
    """An empty cell, which pandas reads as NaN, is the plain variant: only its rows are replaced."""
    plain, held_out = rows("adapter", 0.3, 1), rows("adapter", 0.4, 1, variant="held out")
    found = merged(tmp_path / "scores.csv", plain, held_out, rows("adapter", 0.5, 1))
    assert [(row[2], row[5]) for row in found] == [("", 0.5), ("held out", 0.4)]
    assert ",," in (tmp_path / "scores.csv").read_text()


def test_rows_of_other_settings_of_the_same_run_and_seed_go(tmp_path: Path) -> None:
    """Or a table would mix two trainings; another seed and another run stay."""
    path = tmp_path / "scores.csv"
    old = [
        rows("adapter", 0.3, 1, seed=seed, variant=variant) for seed in (0, 1) for variant in ("", "held out")
    ]
    found = merged(path, *old, rows("baseline", 0.1, 1), rows("adapter", 0.5, 1, config="0002"))
    assert [row[:4] for row in found] == [
        ("adapter", 0, "", "0002"),
        ("adapter", 1, "", "0001"),
        ("adapter", 1, "held out", "0001"),
        ("baseline", 0, "", "0001"),
    ]


def test_a_file_without_a_config_has_no_such_rule(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    for part, case in (("training", "a"), ("test", "b"), ("training", "c")):
        merge_csv(path, pd.DataFrame([{"part": part, "case": case}]), ["part"], ["part", "case"])
    assert path.read_text() == "part,case\ntest,b\ntraining,c\n"


def test_numbers_have_six_digits_and_missing_ones_are_empty(tmp_path: Path) -> None:
    table = rows("adapter", 0.123456789, 1).assign(nsd=np.nan, hd95=1e-7)
    merge_csv(tmp_path / "scores.csv", table, BY, ORDER)
    assert (tmp_path / "scores.csv").read_text().splitlines()[1] == "adapter,0,,0001,0000,0.123457,,1e-07"


def merge_many(name: str, path: Path, start: Any) -> None:
    start.wait(60)
    for seed in range(8):
        merge_csv(path, rows(name, 0.5, seed=seed), BY, ORDER)


def both_at_once(*works: Any) -> None:
    """Two processes that start together; both end well."""
    start = FORK.Barrier(len(works))
    workers = [FORK.Process(target=target, args=(*arguments, start)) for target, *arguments in works]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * len(works)


def test_processes_that_merge_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    both_at_once((merge_many, "baseline", path), (merge_many, "adapter", path))
    assert pd.read_csv(path).groupby("run")["seed"].nunique().to_dict() == {"adapter": 8, "baseline": 8}
    assert len(pd.read_csv(path)) == 32 and names(tmp_path) == ["scores.csv"]


# Turns


def hold(name: str, log: Path, start: Any) -> None:
    start.wait(60)
    for _ in range(3):
        with locked(name):
            with open(log, "a") as file:
                file.write("in ")
            time.sleep(0.05)
            with open(log, "a") as file:
                file.write("out ")


def test_one_process_at_a_time_is_in_a_block(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both_at_once((hold, str(log), log), (hold, str(log), log))
    assert log.read_text() == "in out " * 6 and names(tmp_path) == ["log"], "the lock lies elsewhere"


def test_a_lock_ends_with_its_block_and_other_names_do_not_wait(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), locked(f"{tmp_path} one"), locked(f"{tmp_path} two"):
            raise KeyError


# Hashes


def test_a_file_s_hash_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"one", b"three", b""):
        path.write_bytes(content)
        assert file_hash(path) == hashlib.sha256(content).hexdigest()
    before = path.stat()
    path.write_bytes(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_hash(path) == hashlib.sha256(b"x").hexdigest(), "another size at the same time"
    with pytest.raises(FileNotFoundError):
        file_hash(tmp_path / "gone")


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"one")
    first = file_hash(tmp_path / "a")
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert file_hash(tmp_path / "a") == first


def test_a_value_s_hash_does_not_follow_the_order_of_its_keys() -> None:
    assert value_hash({"a": 1, "b": [2]}) == value_hash({"b": (2,), "a": 1}) == "ae8a9a505246"
    assert value_hash({"a": 1}) != value_hash({"a": 1.5})
