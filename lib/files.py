"""Where things are, how a file is written whole or not at all, and the one error that a reader sees."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
# columns of text, also where all cells are empty or look like numbers
_TEXT = dict.fromkeys(("config", "case", "variant", "condition"), str)
_HASHES: dict[tuple[Path, int, int], str] = {}  # of files by their time and size


class InputError(ValueError):
    """Bad input, in one sentence: the file, what is wrong and what to do."""


def _root(variable: str, default: str, profile: str = "") -> Path:
    """The folder that an environment variable names, else the default below ROOT; a profile's, if asked."""
    return Path(os.environ.get(variable) or ROOT / default).expanduser() / profile


data_root = partial(_root, "DATA_ROOT", "data")
cache_root = partial(_root, "CACHE_ROOT", "data/cache")  # prepared slices and phantoms: can be made again
results_root = partial(_root, "RESULTS_ROOT", "results")  # takes the profile
figures_root = partial(_root, "FIGURES_ROOT", "figures")  # takes the profile


def unwritable(path: Path, error: Exception) -> InputError:
    """What to raise where a write has failed: read-only folder, full disk, no permission."""
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    variables = "RESULTS_ROOT, FIGURES_ROOT or CACHE_ROOT"
    return InputError(f"{path} cannot be written ({why}): free some space or name a folder by {variables}.")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, which takes its place if the block ends well and else vanishes.

    A killed process leaves it to the next write of the same file. InputError: the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part{'.nii.gz' if path.name.endswith('.nii.gz') else path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # a parent may be a file
            part.unlink(missing_ok=True)


def locked(name: str) -> FileLock:
    """`with locked(name):` keeps this user's other processes out of a block that has the same name."""
    return FileLock(Path(tempfile.gettempdir()) / f"{value_hash([name, os.path.expanduser('~')])}.lock")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_csv(path: Path) -> pd.DataFrame:
    """A table that `merge_csv` has written; an empty variant or condition is "" there."""
    return pd.read_csv(path, dtype=_TEXT).fillna({"variant": "", "condition": ""})


def merge_csv(path: Path, table: pd.DataFrame, by: Sequence[str], order: Sequence[str]) -> None:
    """Puts rows into a CSV file in the place of those with the same values in `by`; `order` sorts them.

    Of rows with a `config`, those that other settings of the same run and seed have left go, too.
    """
    rows = pd.MultiIndex.from_frame
    with locked(str(path)):  # processes that end at once take turns
        if path.is_file():
            old = read_csv(path)
            if not {*by, *order} <= {*old}:
                raise InputError(f"{path} is a table of other columns: move it away.")
            gone = rows(old[[*by]]).isin(rows(table[[*by]]))
            if "config" in old and "config" in table:
                seed, config = ["run", "seed"], ["run", "seed", "config"]
                gone |= rows(old[seed]).isin(rows(table[seed])) & ~rows(old[config]).isin(rows(table[config]))
            table = pd.concat([old[~gone], table])
        with replacing(path) as part:
            table.sort_values([*order], kind="stable").to_csv(part, index=False, float_format="%.6g")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content; a file of the same time and size is not read again."""
    now = path.stat()
    key = path, now.st_mtime_ns, now.st_size
    if key not in _HASHES:
        with path.open("rb") as file:
            _HASHES[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHES[key]


def value_hash(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
