"""Where things are, how a file is written whole or not at all, and the one kind of error that a reader sees."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]


class InputError(ValueError):
    """Something from outside is not as it must be: one sentence with the file, what is wrong and what to do."""


def data_root() -> Path:
    """Folder of the data sets: $DATA_ROOT, else data/ in the repository."""
    return Path(os.environ.get("DATA_ROOT", ROOT / "data")).expanduser()


def cache_root() -> Path:
    """Folder of prepared slices and phantoms, which can be made again at any time: $CACHE_ROOT, else data/cache."""
    return Path(os.environ.get("CACHE_ROOT", ROOT / "data" / "cache")).expanduser()


def results_root(profile: str) -> Path:
    """Folder of a profile's results: $RESULTS_ROOT/<profile>, else results/<profile> (a mounted drive on Colab, say)."""
    return Path(os.environ.get("RESULTS_ROOT", ROOT / "results")).expanduser() / profile


def figures_root(profile: str) -> Path:
    """Folder of a profile's figures: $FIGURES_ROOT/<profile>, else figures/<profile>."""
    return Path(os.environ.get("FIGURES_ROOT", ROOT / "figures")).expanduser() / profile


def sample_folders() -> list[Path]:
    """Where the sample scans may be, the first being where a download goes: $SAMPLES alone if set, from the repository if relative."""
    if chosen := os.environ.get("SAMPLES"):
        return [ROOT / Path(chosen).expanduser()]
    return [data_root() / "samples", ROOT.parent / "shared" / "samples"]


def samples_folder() -> Path:
    """Folder of the sample scans: $SAMPLES, else data/samples, else a folder `shared/samples` beside the repository.

    Raises:
        InputError: none of them holds the four files.
    """
    names = [f"{modality}_{kind}.nii.gz" for modality in ("ct", "mr") for kind in ("image", "labels")]
    for folder in sample_folders():
        if all((folder / name).is_file() for name in names):
            return folder
    looked = " nor in ".join(str(folder) for folder in sample_folders())
    raise InputError(f"The four sample scans are not in {looked}: run `make samples` to download them, or name their folder by SAMPLES.")


def unwritable(path: Path, error: Exception) -> InputError:
    """What to raise where a write has failed: read-only folder, full disk, no permission."""
    why = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
    return InputError(
        f"{path} cannot be written ({why}): free some space or name a writable folder "
        "(RESULTS_ROOT, FIGURES_ROOT and CACHE_ROOT say where the project writes)."
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`, which takes its place when the block ends well and vanishes when not.

    Raises:
        InputError: the folder cannot be written (read-only, full disk, no permission).
    """
    path = Path(path)
    suffixes = "".join(path.suffixes[-2:]) if path.name.endswith(".nii.gz") else path.suffix
    part = path.with_name(f".{path.name}.{os.getpid()}.part{suffixes}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):  # a parent may be a file
            part.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps other processes out while the block runs; on a drive that knows no locks (Colab's, say), those of this machine."""
    here = Path(tempfile.gettempdir()) / f"{value_hash(str(path))}.lock"
    lock = FileLock(path)
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        lock = FileLock(here)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def clear_parts(folder: Path, name: str = "*") -> None:
    """Removes what `replacing` and `writing_into` left half in `folder` as their process was killed, of a file `name` or of all."""
    for part in folder.glob(f".{name}.*.part*"):
        number = part.name.split(".part")[0].rpartition(".")[2]
        if number.isdigit() and not _lives(int(number)):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content; a file of the same size and time is not read again."""
    now = Path(path).stat()
    return _file_hash(Path(path), now.st_mtime_ns, now.st_size)


@lru_cache(4096)
def _file_hash(path: Path, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_hash(value: Any) -> str:
    """First 12 hex digits of the SHA-256 of a JSON-like value: short enough for a table, long enough to tell runs apart."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
