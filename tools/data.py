"""`make data`: FLARE22, BTCV and, of AMOS22, the scans that are drawn as tests, fetched into DATA_ROOT."""

import json
import os
import re
import shutil
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pooch
from tqdm import tqdm

from lib import files
from lib.config import settings_of
from lib.data import LAYOUTS, find_cases, home_of, split, survey
from lib.files import InputError
from tools.remote import Remote, check_space, download, synapse_get

SETS = {"FLARE22": ["FLARE22"], "BTCV": ["BTCV"], "AMOS22": ["AMOS22 CT", "AMOS22 MRI"]}
FLARE22 = "https://zenodo.org/records/7860267/files/FLARE22Train.zip"
# as github.com/constantinpape/torch-em lists it in flare.py; the record's page has an MD5
FLARE22_SHA256 = "d57e201dc9002bd4a6fc1f5e0d4525285f46bcc5be1a3c8f12543151e6675154"
# 24 GB, of which parts are read: each file is held against the CRC-32 in the archive's directory
AMOS22 = "https://zenodo.org/records/7262581/files/amos22.zip"
BTCV = "syn3379050"  # RawData.zip of syn3193805, Abdomen; synapseclient checks its MD5


def choose(archive: zipfile.ZipFile, name: str, everything: bool) -> dict[Path, zipfile.ZipInfo]:
    """{path below the data set's folder: member}: all labelled scans, or those that runs draw as tests."""
    chosen = {}
    with TemporaryDirectory() as folder:  # of empty files, where lib.data finds and draws as on a disk
        root = Path(folder) / name
        for member in archive.namelist():
            if re.search(r"(?i)(^|/)[^./][^/]*\.nii(\.gz)?$", member) and ".." not in Path(member).parts:
                (root / member).parent.mkdir(parents=True, exist_ok=True)
                (root / member).touch()
        for dataset in SETS[name]:
            home = home_of(dataset, Path(folder))
            cases = find_cases(dataset, home)
            if not everything:
                cases = split(cases, (0, 0, settings_of("adapter", "full").cases[2]))["test"]
            for path in (path for case in cases for path in (case.image, case.labels) if path):
                chosen[path.relative_to(home)] = archive.getinfo(path.relative_to(root).as_posix())
    return chosen


def is_member(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a file is there as the archive has it."""
    whole = path.is_file() and path.stat().st_size == member.file_size
    return whole and zlib.crc32(path.read_bytes()) == member.CRC


def unpack(archive: zipfile.ZipFile, chosen: dict[Path, zipfile.ZipInfo], home: Path, stage: Path) -> None:
    """Brings what is lacking into `stage` and, once all is there, into `home`: from a part of a data set,
    other tests would be drawn. InputError: no room, or a file of another content, which stays."""
    for path, member in chosen.items():
        if os.path.lexists(home / path) and not is_member(home / path, member):
            raise InputError(f"{home / path} is not the file of that name in the archive: move it away.")
    missing = [(path, member) for path, member in chosen.items() if not os.path.lexists(home / path)]
    lacking = [(path, member) for path, member in missing if not is_member(stage / path, member)]
    check_space(stage, sum(member.file_size for _, member in lacking))
    for path, member in tqdm(sorted(lacking, key=lambda one: one[1].header_offset), f"{home.name}: files"):
        (stage / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with archive.open(member) as source, (stage / path).open("wb") as file:
                shutil.copyfileobj(source, file, 2**20)
        except BaseException:
            (stage / path).unlink(missing_ok=True)
            raise
    for path, _ in missing:
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(home / path):  # none has come meanwhile
            shutil.move(stage / path, home / path)


def fetch(name: str, everything: bool) -> str:
    """Brings what is lacking of a data set into DATA_ROOT/<name>, and goes on where an earlier call ended.

    everything: all of AMOS22, not the drawn scans alone. InputError: why it is not there.
    """
    home, everything = files.data_root() / name, everything or name != "AMOS22"
    stage, record = home / ".download", home / ".drawn.json"  # the files that were drawn
    if all(len(survey(one, home_of(one))[0]) >= LAYOUTS[one].cases for one in SETS[name]):
        return f"all of it is in {home_of(SETS[name][0])}"
    try:
        cases = [case for one in SETS[name] for case in survey(one, home)[0]]
        there = {path for case in cases for path in (case.image, case.labels)}
        drawn = json.loads(record.read_text()) if record.exists() else []
        if drawn and not everything and there == {home / path for path in drawn}:
            return f"the scans that are drawn as tests are in {home}"
        stage.mkdir(parents=True, exist_ok=True)
        if name == "FLARE22":
            pooch.retrieve(FLARE22, f"sha256:{FLARE22_SHA256}", "FLARE22.zip", stage, downloader=download)
        elif name == "BTCV" and not any(stage.glob("*.zip")):
            synapse_get(BTCV, stage)
        source: Any = Remote(AMOS22) if name == "AMOS22" else next(stage.glob("*.zip"))
        with zipfile.ZipFile(source) as archive:
            chosen = choose(archive, name, everything)
            if not everything and there - {home / path for path in chosen}:
                why = "so that a run would draw its tests from them, too"
                raise InputError(f"{home} holds other scans, {why}: move them away, or say ALL_CASES=1.")
            unpack(archive, chosen, home, stage)
        if not everything:
            files.write_json(record, [path.as_posix() for path in chosen])
        shutil.rmtree(stage)
        return f"{len(chosen) // 2} scans and their labels are in {home}"
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if not isinstance(error, OSError):  # the archive is damaged: the next call fetches another
            for path in stage.glob("*.zip"):
                path.unlink()
        why = " ".join(str(error).split(". ")[0].split())[:200]
        advice = "look at the connection, then run the same command again to go on."
        raise InputError(f"{name} is not whole in {home} ({why}): {advice}") from error
    finally:
        for folder in (stage, home):
            with suppress(OSError):  # it holds something
                folder.rmdir()


def main() -> int:
    """Fetches $DATASET, else all three; what one lacks keeps none of the others. Returns the exit status."""
    failures = 0
    for name in os.environ.get("DATASET", "").split() or SETS:
        try:
            if name not in SETS:
                raise InputError(f"{name} is no data set: choose of {', '.join(SETS)}.")
            everything = os.environ.get("ALL_CASES", "") not in ("", "0")
            with files.locked(f"data {files.data_root().absolute()} {name}"):
                print(f"data: {name}: {fetch(name, everything)}", flush=True)
        except InputError as error:
            failures += 1
            print(f"data: {error}", file=sys.stderr, flush=True)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
