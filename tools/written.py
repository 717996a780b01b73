"""Files in a folder that the user names: what we wrote is known by its hash, and nothing else is touched."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lib.files import InputError, file_hash, locked, unwritable, write_json

RECORD = "written.json"  # beside the files: a mark inside of each would stay when somebody edits a mask
ABOUT = "SHA-256 of what tgated-medvlm-repro wrote here: its next call may replace files that still have it."


def _recorded(folder: Path) -> dict[str, list[str]]:
    """{file: hashes of what we wrote there}. InputError: the record is not ours."""
    path = folder / RECORD
    if not os.path.lexists(path):
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not path.is_symlink() and record["about"] == ABOUT:
            return dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path} is no record of what was written there: move it away, or name another folder.")


def _is_ours(path: Path, hashes: Iterable[str]) -> bool:
    return path.is_file() and not path.is_symlink() and file_hash(path) in hashes


def check_free(folder: Path, names: Iterable[str], overwrite: bool, scan: Path | None = None) -> None:
    """InputError where `folder` cannot be written, or holds one of `names`: only what we wrote there may be
    replaced, with `overwrite`, and never the `scan` that is read."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise InputError(f"{there} is not a folder that can be written: name another OUT.")
    recorded = _recorded(folder)
    for path in (folder / name for name in names if os.path.lexists(folder / name)):
        if scan and scan.exists() and path.exists() and path.samefile(scan):
            raise InputError(f"{path} is what is read, and is left as it is: name another folder.")
        if not _is_ours(path, recorded.get(path.name, ())):
            why = "it was not written by this command, or was changed since"
            raise InputError(f"{path} exists and is left as it is, for {why}: move it away.")
        if not overwrite:
            raise InputError(f"{path} exists: name another OUT, or say OVERWRITE=1 (overwrite=True).")


@contextmanager
def writing_into(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder, whose files move to `folder` when the block ends well; else nothing changes.

    With `overwrite`, they replace files that we wrote there, and others that we wrote go; all else stays.
    InputError: as in `check_free`, or the disk is full.
    """
    stage = folder / f".{RECORD}.part"  # of a killed call: taken over
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(os.path.realpath(folder)):
            shutil.rmtree(stage, ignore_errors=True)
            stage.mkdir()
            try:
                yield stage
                new = {path.name: [file_hash(path)] for path in sorted(stage.iterdir())}
                check_free(folder, new, overwrite)
                old = _recorded(folder)  # meanwhile with both hashes: after a kill, all are known as ours
                both = old | {name: old.get(name, []) + new[name] for name in new}
                write_json(folder / RECORD, {"about": ABOUT, "files": both})
                for name in new:
                    os.replace(stage / name, folder / name)
                for name in old.keys() - new if overwrite else ():
                    if _is_ours(folder / name, old[name]):
                        (folder / name).unlink()
                write_json(folder / RECORD, {"about": ABOUT, "files": new if overwrite else old | new})
            finally:
                shutil.rmtree(stage, ignore_errors=True)
    except InputError as error:
        raise InputError(str(error).replace(str(stage), str(folder))) from error
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        for path in missing:  # those that are empty, as no result came into them
            with suppress(OSError):
                path.rmdir()
