"""Where things are, how a file is written whole or not at all, and the one kind of error that a reader
sees."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
# columns of text, also where all cells are empty or look like numbers
NAMES = dict.fromkeys(("config", "case", "variant", "condition"), str)


class InputError(ValueError):
    """Something from outside is not as it must be: one sentence with the file, what is wrong and what to
    do."""


def _root(variable: str, *default: str) -> Path:
    return Path(os.environ.get(variable) or ROOT.joinpath(*default)).expanduser()


def data_root() -> Path:
    """Folder of the data sets: $DATA_ROOT, else data/ in the repository."""
    return _root("DATA_ROOT", "data")


def cache_root() -> Path:
    """Folder of prepared slices and phantoms, which can be made again at any time: $CACHE_ROOT, else
    data/cache."""
    return _root("CACHE_ROOT", "data", "cache")


def results_root(profile: str) -> Path:
    """Folder of a profile's results: $RESULTS_ROOT/<profile>, else results/<profile>."""
    return _root("RESULTS_ROOT", "results") / profile


def figures_root(profile: str) -> Path:
    """Folder of a profile's figures: $FIGURES_ROOT/<profile>, else figures/<profile>."""
    return _root("FIGURES_ROOT", "figures") / profile


def unwritable(path: Path, error: Exception) -> InputError:
    """What to raise where a write has failed: read-only folder, full disk, no permission."""
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    return InputError(
        f"{path} cannot be written ({why}): free some space or name a writable folder "
        "(RESULTS_ROOT, FIGURES_ROOT and CACHE_ROOT say where the project writes)."
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, which takes its place when the block ends well and vanishes when
    not.

    A process that is killed leaves the temporary file; the next write of the same file takes it over.

    Raises:
        InputError: the folder cannot be written (read-only, full disk, no permission).
    """
    path = Path(path)
    suffixes = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    part = path.with_name(f".{path.name}.part{suffixes}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # a parent may be a file
            part.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Removes a file of ours, where it is there. InputError: the folder cannot be written."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Keeps this machine's other processes out of a block that has the same name."""
    here = (
        Path(tempfile.gettempdir())
        / f"{value_hash([name, os.getuid() if hasattr(os, 'getuid') else 0])}.lock"
    )
    with FileLock(here):
        yield


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def merge_csv(path: Path, table: pd.DataFrame, by: Sequence[str], order: Sequence[str]) -> None:
    """Puts rows into a CSV file in the place of those with the same values in `by`; processes that end at
    once take turns.

    Where rows have a `config`, what other settings of the same run and seed have left goes, too. InputError:
    the file is a table of another kind.
    """
    with locked(str(path)):
        if path.is_file():
            old = pd.read_csv(path, dtype=NAMES)
            if missing := {*by, *order} - {*old}:
                what = f"has no column {', '.join(sorted(missing))}, so it was not written here"
                raise InputError(f"{path} {what}: move it away.")
            old = old.fillna(dict.fromkeys((*by, *order), ""))

            def same(names: Sequence[str]) -> np.ndarray:
                return pd.MultiIndex.from_frame(old[[*names]]).isin(pd.MultiIndex.from_frame(table[[*names]]))

            gone = same(by)
            if "config" in old and "config" in table:
                gone |= same(["run", "seed"]) & ~same(["run", "seed", "config"])
            table = pd.concat([old[~gone], table])
        with replacing(path) as part:
            table.sort_values([*order], kind="stable").to_csv(part, index=False, float_format="%.6g")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content; a file of the same size and time is not read again."""
    now = Path(path).stat()
    return _file_hash(Path(path), now.st_mtime_ns, now.st_size)


@lru_cache(4096)
def _file_hash(path: Path, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_hash(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a JSON-like value: short enough for a table, long enough to
    tell runs apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
