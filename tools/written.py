"""Files in a folder that the user names: what we wrote is known by its hash, and nothing else is touched."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.files import InputError, file_hash, locked, unwritable, write_json

RECORD = "written.json"  # beside the files: a mark inside of each would stay when somebody edits a mask
ABOUT = "SHA-256 of what tgated-medvlm-repro wrote here: its next call may replace files that still have it."


def inside(path: Path, folders: Iterable[Path]) -> Path | None:
    """The first of `folders` that `path` is or lies in, through whatever links and spellings; else None."""
    real = Path(os.path.realpath(path))
    above = [place for place in (real, *real.parents) if place.exists()]
    known = (folder for folder in folders if folder.exists())
    return next((folder for folder in known if any(place.samefile(folder) for place in above)), None)


def _recorded(folder: Path) -> dict[str, list[str]]:
    """{file: SHA-256 of what we wrote there}; two hashes for a file that a killed call may have replaced.

    InputError: the record is not ours.
    """
    path = folder / RECORD
    if not os.path.lexists(path):
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not path.is_symlink() and record["about"] == ABOUT:
            return {str(name): [*map(str, hashes)] for name, hashes in record["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{path} is no record of what was written there: move it away, or name another folder.")


def _is_ours(path: Path, hashes: Iterable[str]) -> bool:
    return path.is_file() and not path.is_symlink() and file_hash(path) in hashes


def check_free(
    folder: Path, names: Iterable[str], overwrite: bool = False, read: Iterable[Path] = ()
) -> None:
    """Checks that files may be written into `folder`; with `overwrite`, over those that we wrote.

    Raises:
        InputError: `folder` cannot be written, or a file may not be replaced, as one that is `read`.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(f"{there} is not a folder that can be written: name another OUT.")
    recorded, sources = _recorded(folder), [path for path in read if path.exists()]
    present = {name: folder / name for name in names if os.path.lexists(folder / name)}
    for name, path in present.items():
        if path.exists() and any(path.samefile(source) for source in sources):
            raise InputError(f"{path} is what is read, and is left as it is: name another folder.")
        if not _is_ours(path, recorded.get(name, ())):
            why = "it was not written by this command, or was changed since"
            advice = "move it away, or name another folder."
            raise InputError(f"{path} exists and is left as it is, for {why}: {advice}")
    if present and not overwrite:
        advice = "name another OUT, or say OVERWRITE=1 (overwrite=True) to replace it."
        raise InputError(f"{next(iter(present.values()))} exists and is left as it is: {advice}")


@contextmanager
def writing_into(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder, whose files move to `folder` when the block ends well; else nothing changes.

    With `overwrite`, they replace files that we wrote there, and others that we wrote go. All else stays.

    Raises:
        InputError: as in `check_free`, or the disk is full.
    """
    stage = folder / f".{RECORD}.part"  # of a killed call: taken over
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(os.path.realpath(folder)):
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            try:
                yield stage
                _move(stage, folder, overwrite)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    except InputError as error:
        raise InputError(str(error).replace(str(stage), str(folder))) from error
    except OSError as error:
        raise unwritable(folder, error) from error


def _move(stage: Path, folder: Path, overwrite: bool) -> None:
    """Moves the files. Meanwhile the record holds old and new hashes, so that after a kill all are known."""
    files = (path for path in sorted(stage.rglob("*")) if path.is_file())
    new = {path.relative_to(stage).as_posix(): [file_hash(path)] for path in files}
    check_free(folder, new, overwrite)
    old = _recorded(folder)
    both = old | {name: old.get(name, []) + new[name] for name in new}
    write_json(folder / RECORD, {"about": ABOUT, "files": both})
    for name in new:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / name, folder / name)
    for name in old.keys() - new if overwrite else ():
        if _is_ours(folder / name, old[name]):
            (folder / name).unlink()
    write_json(folder / RECORD, {"about": ABOUT, "files": new if overwrite else old | new})
