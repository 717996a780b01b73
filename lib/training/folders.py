"""A run's folder: one of other settings is put aside beside it under its hash, and taken up again when its settings come back."""

import glob
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from lib.paths import locked, unwritable
from lib.profiles import Settings, is_finished, record_of
from lib.profiles.settings import NO_NUMBER

Move = tuple[Path, Path, str]  # from, to, and what is said of it


def _changed(record: dict[str, Any], settings: Settings) -> str:
    """The settings that differ from those of a config.json, which may be older than some of them."""
    now, default = (json.loads(json.dumps(asdict(each))) for each in (settings, Settings()))
    before = default | record.get("settings", {})
    pairs = [f"{name} was {before[name]!r}, is {now[name]!r}" for name in now if name not in NO_NUMBER and before[name] != now[name]]
    return "; ".join(pairs) or "of another version of the code, or of weights with other content"


def _kept(folder: Path, settings: Settings) -> Path | None:
    """The folder beside it that holds the run of these settings; the furthest, should somebody have copied it."""
    beside = folder.parent.glob(f"{glob.escape(folder.name)}-{settings.hash()[:8]}*")
    found = [path for path in beside if path.is_dir() and record_of(path).get("hash") == settings.hash()]
    return max(found, key=lambda path: (is_finished(path, settings), _checkpoints(path), path.name), default=None)


def _checkpoints(folder: Path) -> list[str]:
    return sorted((path.name for path in folder.glob("checkpoint-*")), reverse=True)


def _moves(folder: Path, settings: Settings, start: bool) -> Iterator[Move]:
    """What is to be renamed, in this order: a kill between two leaves what the next call goes on with."""
    record = record_of(folder)
    if record.get("hash") == settings.hash():
        return
    kept = _kept(folder, settings)
    of_worth = bool(record) and ("finished" in record or bool(_checkpoints(folder)))
    if folder.is_dir() and any(folder.iterdir()) and (kept or (start and of_worth)):
        stem = f"{folder.name}-{record.get('hash', 'unknown')[:8]}"
        free = (path for number in count(1) if not (path := folder.with_name(f"{stem}-{number}" if number > 1 else stem)).exists())
        aside, why = next(free), f"; {_changed(record, settings)}" if record else ""
        yield folder, aside, f"{folder.name}: what was there is kept in {aside}, and its settings take it up again{why}"
    if kept:
        yield kept, folder, f"{folder.name}: goes on with what was put aside in {kept.name}, which has these settings"


def take_up(folder: Path, settings: Settings, start: bool = False) -> None:
    """Makes `folder` that of the run with these settings, where it was put aside before; one process does it, and others wait.

    start: where there is none to take up, a run of other settings that has a checkpoint or is finished is put aside, for a new one
    is to start. Nothing is deleted.

    Raises:
        InputError: a config.json cannot be read, or a folder cannot be renamed.
    """
    if not list(_moves(folder, settings, start)):
        return
    with locked(folder.parent / "folders.lock"):
        for source, target, said in list(_moves(folder, settings, start)):  # another process may have been faster
            with suppress(OSError):
                target.rmdir()  # an empty folder is in nobody's way
            try:
                source.rename(target)
            except OSError as error:
                raise unwritable(target, error) from error
            print(said, flush=True)
