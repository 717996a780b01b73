"""lib.files: files are written whole or not at all, rows are merged, processes take turns."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import at_once, files_of

from lib import files
from lib.files import ROOT, InputError, file_hash, merge_csv, replacing, value_hash, write_json

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("name", "root", "default", "profile"),
    [
        ("DATA_ROOT", files.data_root, "data", ""),
        ("CACHE_ROOT", files.cache_root, "data/cache", ""),
        ("RESULTS_ROOT", lambda: files.results_root("demo"), "results/demo", "demo"),
        ("FIGURES_ROOT", lambda: files.figures_root("demo"), "figures/demo", "demo"),
    ],
)
def test_roots_come_from_the_environment(name, root, default, profile, monkeypatch) -> None:
    monkeypatch.delenv(name, raising=False)
    assert root() == ROOT / default
    monkeypatch.setenv(name, "~/there")
    assert root() == Path.home() / "there" / profile


# Whole or not at all


@pytest.mark.parametrize("name", ["a.csv", "a.nii.gz", "a"])
def test_a_file_is_replaced_as_a_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / name
    for text in ("old", "new", "newer"):
        with replacing(path) as part:
            assert part.parent == path.parent and part.suffix == (path.suffix or ".part")
            assert part.name.endswith(".nii.gz") == name.endswith(".nii.gz"), "it says how it is written"
            part.write_text(text)
            assert not path.exists() or path.read_text() != text
        assert path.read_text() == text and files_of(path.parent) == [name]
        part.write_text("half")  # as a killed process leaves it


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_a_block_that_fails_leaves_the_old_file(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    full = f"^{path} cannot be written .No space left.: free some space"
    kind, match = (InputError, full) if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(kind, match=match), replacing(path) as part:
        part.write_text("half")
        raise error
    assert files_of(tmp_path) == ["a.csv"] and path.read_text() == "old"


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    for path in (tmp_path / "file" / "a.csv", tmp_path / "folder"):
        with pytest.raises(InputError, match=f"^{path} cannot be written .*RESULTS_ROOT.*[.]$") as caught:
            write_json(path, "new")
        assert "\n" not in str(caught.value)
    assert files_of(tmp_path) == ["file", "folder/mine"] and (tmp_path / "file").read_text() == "mine"


def test_json_is_utf_8_and_indented(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"size": "5 µm", "list": []})
    assert (tmp_path / "a.json").read_bytes() == '{\n "size": "5 µm",\n "list": []\n}\n'.encode()
    with pytest.raises(TypeError):
        write_json(tmp_path / "b.json", {"array": np.zeros(1)})
    assert files_of(tmp_path) == ["a.json"]


# Rows

ORDER = ["run", "seed", "variant", "case"]


def rows(run: str, dice: float, cases: int = 1, **changes: Any) -> pd.DataFrame:
    same = {"run": run, "seed": 0, "variant": "", "config": "0001"} | changes
    return pd.DataFrame([{**same, "case": f"{case:04d}", "dice": dice} for case in range(cases)])


@pytest.fixture
def merged(tmp_path: Path) -> Any:
    """Merges tables; returns the rows (run, seed, variant, config, case, Dice) of the file."""

    def merge(*tables: pd.DataFrame) -> list[list[Any]]:
        for table in tables:
            merge_csv(tmp_path / "scores.csv", table, ORDER[:3], ORDER)
        texts = dict.fromkeys(("config", "case", "variant"), str)
        return pd.read_csv(tmp_path / "scores.csv", dtype=texts, keep_default_na=False).values.tolist()

    return merge


def test_rows_take_the_place_of_their_own_and_leave_the_others(merged: Any, tmp_path: Path) -> None:
    found = merged(rows("baseline", 0.1, 3), rows("adapter", 0.3, 2), rows("baseline", 0.2))
    assert found == [
        ["adapter", 0, "", "0001", "0000", 0.3],
        ["adapter", 0, "", "0001", "0001", 0.3],
        ["baseline", 0, "", "0001", "0000", 0.2],
    ], "names keep their zeros"
    text = (tmp_path / "scores.csv").read_bytes()
    merged(rows("adapter", 0.3, 2), rows("baseline", 0.2))
    assert (tmp_path / "scores.csv").read_bytes() == text, "the same rows again change nothing"


def test_an_empty_name_is_a_name(merged: Any) -> None:
    """An empty cell, which pandas reads as NaN, is the plain variant: only its rows are replaced."""
    found = merged(rows("adapter", 0.3), rows("adapter", 0.4, variant="held out"), rows("adapter", 0.5))
    assert [(row[2], row[5]) for row in found] == [("", 0.5), ("held out", 0.4)]


def test_rows_of_other_settings_of_the_same_run_and_seed_go(merged: Any) -> None:
    """Or a table would mix two trainings; another seed and another run stay."""
    old = [rows("adapter", 0.3, seed=seed, variant=name) for seed in (0, 1) for name in ("", "held out")]
    found = merged(*old, rows("baseline", 0.1), rows("adapter", 0.5, config="0002"))
    assert [row[:4] for row in found] == [
        ["adapter", 0, "", "0002"],
        ["adapter", 1, "", "0001"],
        ["adapter", 1, "held out", "0001"],
        ["baseline", 0, "", "0001"],
    ]


def test_a_file_without_a_config_has_no_such_rule_and_one_of_other_columns_stays(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    for part, case in (("training", "a"), ("test", "b"), ("training", "c")):
        merge_csv(path, pd.DataFrame([{"part": part, "case": case}]), ["part"], ["part", "case"])
    assert path.read_text() == "part,case\ntest,b\ntraining,c\n"
    with pytest.raises(InputError, match=f"{path} is a table of other columns: move it away"):
        merge_csv(path, rows("adapter", 0.3), ORDER[:3], ORDER)
    assert path.read_text() == "part,case\ntest,b\ntraining,c\n"


def test_numbers_have_six_digits_and_missing_ones_are_empty(merged: Any, tmp_path: Path) -> None:
    merged(rows("adapter", 0.123456789).assign(nsd=np.nan, hd95=1e-7))
    assert (tmp_path / "scores.csv").read_text().splitlines()[1] == "adapter,0,,0001,0000,0.123457,,1e-07"


# Processes take turns


def test_processes_that_merge_at_once_lose_nothing(merged: Any, tmp_path: Path) -> None:
    def merge_eight(name: str) -> Any:
        def work(start: Any) -> None:
            start.wait(60)
            merged(*(rows(name, 0.5, seed=seed) for seed in range(8)))

        return work

    at_once(merge_eight("baseline"), merge_eight("adapter"))
    table = pd.read_csv(tmp_path / "scores.csv")
    assert table.groupby("run")["seed"].nunique().to_dict() == {"adapter": 8, "baseline": 8}
    assert len(table) == 16 and files_of(tmp_path) == ["scores.csv"]


# Hashes


def test_a_file_s_hash_follows_its_content_and_an_unchanged_file_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert file_hash(path) == hashlib.sha256(b"x").hexdigest()


def test_a_value_s_hash_does_not_follow_the_order_of_its_keys() -> None:
    assert value_hash({"a": 1, "b": [2]}) == value_hash({"b": (2,), "a": 1}) == "ae8a9a505246"
    assert value_hash({"a": 1}) != value_hash({"a": 1.5})
