"""tools.written: what we wrote is known again, whatever happened in between, and nothing else is touched."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.files import ROOT, InputError
from tools.written import RECORD, check_free, writing_into


def write(folder: Path, overwrite: bool = False, **texts: str) -> None:
    with writing_into(folder, overwrite) as part:
        for name, text in texts.items():
            (part / name).write_text(text)


def held(folder: Path) -> dict[str, str]:
    """What is there, beside the record."""
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.name != RECORD}


def test_only_what_was_written_and_not_changed_since_is_replaced_or_removed(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="1", c="1", d="1")
    (tmp_path / "b").write_text("mine")
    (tmp_path / "e").write_text("mine")
    with pytest.raises(InputError, match="b exists and is left as it is, for it was not written by"):
        write(tmp_path, True, a="2", b="2")
    assert held(tmp_path) == {"a": "1", "b": "mine", "c": "1", "d": "1", "e": "mine"}
    write(tmp_path, True, a="2", c="2")
    assert held(tmp_path) == {"a": "2", "b": "mine", "c": "2", "e": "mine"}
    with pytest.raises(InputError, match="OVERWRITE=1"):
        write(tmp_path, a="3")
    write(tmp_path, f="3")
    assert held(tmp_path) == {"a": "2", "b": "mine", "c": "2", "e": "mine", "f": "3"}
    write(tmp_path, True, a="4", f="4")
    assert held(tmp_path) == {"a": "4", "b": "mine", "e": "mine", "f": "4"}


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out", a="1")
    before = (tmp_path / "out" / RECORD).read_bytes()
    for error in (KeyError("x"), OSError(28, "No space left"), KeyboardInterrupt()):
        expected = InputError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected), writing_into(tmp_path / "out", True) as part:
            (part / "a").write_text("2")
            raise error
    assert held(tmp_path / "out") == {"a": "1"} and (tmp_path / "out" / RECORD).read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", RECORD]


KILLED = """
import os, signal, sys
from pathlib import Path
from tools import written
real, count = os.replace, 0
def replace(source, target):
    global count
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    real(source, target)
os.replace = replace
with written.writing_into(Path(sys.argv[1]), True) as part:
    for name in "abd":
        (part / name).write_text("2")
"""


@pytest.mark.parametrize("step", range(5))  # the record, three files, the record
def test_after_a_kill_all_files_are_known_as_ours(step: int, tmp_path: Path) -> None:
    write(tmp_path, a="1", b="1", c="1")
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(step)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert {path.read_text() for path in tmp_path.glob("[abcd]")} <= {"1", "2"}
    (tmp_path / f".{RECORD}.mine.part").write_text("mine")
    write(tmp_path, True, a="3", d="3")
    left = {"a": "3", "d": "3", f".{RECORD}.mine.part": "mine"}
    assert held(tmp_path) == left, "what was left half is gone, too"
    assert json.loads((tmp_path / RECORD).read_text())["files"].keys() == {"a", "d"}


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"about": "x", "files": {"a": ["1"]}}'])
def test_a_record_of_somebody_else_stays(text: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    for writes in (lambda: check_free(tmp_path, ["a"], True), lambda: write(tmp_path, True, a="1")):
        with pytest.raises(InputError, match="is no record of what was written there"):
            writes()
    assert [path.name for path in tmp_path.iterdir()] == [RECORD] and (tmp_path / RECORD).read_text() == text


def test_a_file_that_comes_while_the_block_runs_stays(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists and is left as it is"), writing_into(tmp_path) as part:
        (part / "a").write_text("1")
        (tmp_path / "a").write_text("mine")
    assert held(tmp_path) == {"a": "mine"}


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="is not a folder that can be written"):
        check_free(tmp_path / "out", ["a"], True)
