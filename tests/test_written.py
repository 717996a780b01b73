"""tools.written: what we wrote is known again, whatever happened in between, and nothing else is touched."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.files import ROOT, InputError
from tools.written import RECORD, check_free, inside, writing_into


def write(folder: Path, overwrite: bool = False, **texts: str) -> None:
    with writing_into(folder, overwrite) as part:
        for name, text in texts.items():
            path = part / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


def held(folder: Path) -> dict[str, str]:
    """What is there, beside the record."""
    files = {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files.pop(RECORD, None)
    return files


def test_only_what_was_written_and_not_changed_since_is_replaced_or_removed(tmp_path: Path) -> None:
    write(tmp_path, a="1", b="1", sub__c="1", sub__d="1")
    (tmp_path / "b").write_text("mine")
    (tmp_path / "sub" / "e").write_text("mine")
    with pytest.raises(
        InputError, match="b exists and is left as it is, for it was not written by this command"
    ):
        write(tmp_path, True, a="2", b="2")
    assert held(tmp_path) == {"a": "1", "b": "mine", "sub/c": "1", "sub/d": "1", "sub/e": "mine"}
    write(tmp_path, True, a="2", sub__c="2")
    assert held(tmp_path) == {"a": "2", "b": "mine", "sub/c": "2", "sub/e": "mine"}
    with pytest.raises(InputError, match="OVERWRITE=1"):
        write(tmp_path, a="3")
    write(tmp_path, f="3")
    write(tmp_path, True, a="4", f="4")
    assert held(tmp_path) == {"a": "4", "b": "mine", "f": "4", "sub/e": "mine"}


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
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(step)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == -signal.SIGKILL
    assert {text for name, text in held(tmp_path).items() if name in "abcd"} <= {"1", "2"}
    (tmp_path / f".{RECORD}.mine.part").write_text("mine")
    write(tmp_path, True, a="3", d="3")
    assert held(tmp_path) == {"a": "3", "d": "3", f".{RECORD}.mine.part": "mine"}, (
        "what was left half is gone, too"
    )
    assert json.loads((tmp_path / RECORD).read_text())["files"].keys() == {"a", "d"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": {}}', '{"about": "another tool", "files": {"a": ["1"]}}']
)
def test_a_record_of_somebody_else_stays(text: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(InputError, match="is no record of what was written there"):
        check_free(tmp_path, ["a"], True)
    with pytest.raises(InputError, match="is no record of what was written there"):
        write(tmp_path, True, a="1")
    assert [path.name for path in tmp_path.iterdir()] == [RECORD] and (tmp_path / RECORD).read_text() == text


def test_a_file_that_comes_while_the_block_runs_stays(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists and is left as it is"), writing_into(tmp_path) as part:
        (part / "a").write_text("1")
        (tmp_path / "a").write_text("mine")
    assert held(tmp_path) == {"a": "mine"}


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="is not a folder that can be written"):
        check_free(tmp_path / "out", ["a"])


def test_inside_sees_through_links_and_spellings(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "scans" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    folders = [tmp_path / "none", home / "scans"]
    for path in ("home/scans", "link/scans", "home/../link/scans/deep", "home/scans/new/newer"):
        assert inside(tmp_path / path, folders) == home / "scans", path
    for path in ("home", "home/scans2", "home/scans/../other", "link"):
        assert inside(tmp_path / path, folders) is None, path
    if (tmp_path / "HOME").exists():  # a file system that does not tell capitals
        assert inside(tmp_path / "HOME" / "Scans", folders) == home / "scans"
