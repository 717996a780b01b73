"""The sample scans: a CT and an MRI with labels, 2.6 MB, public test files of TotalSegmentator (labels predicted, not drawn)."""

import argparse
import os
import sys
from pathlib import Path

import pooch
from requests import HTTPError, RequestException

from lib.paths import InputError, file_hash, sample_folders

# The host takes a short commit name; whatever it sends, the hashes below decide.
BASE = "https://raw.githubusercontent.com/wasserth/TotalSegmentator/0e65a448/tests/reference_files/"
FILES = {  # name here: (name there, SHA-256)
    "ct_image.nii.gz": ("example_ct.nii.gz", "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1"),
    "ct_labels.nii.gz": ("example_seg_fast_force_split.nii.gz", "e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7"),
    "mr_image.nii.gz": ("example_mr_sm.nii.gz", "209b46efaff595dd54a9332872e17a722b62654bbb68dbd89acd5090701bbd4f"),
    "mr_labels.nii.gz": ("example_seg_mr.nii.gz", "e73a5ee12962aa2bb2f3e43ab58dfc67990c5a7ef2dcb426a1bf5e5982b9587f"),
}


def _is_there(path: Path, sha256: str) -> bool:
    """Whether the file is there already; another file of its name is somebody's own, and an error."""
    if os.path.lexists(path) and (not path.is_file() or file_hash(path) != sha256):
        raise InputError(f"{path} is not the published sample scan: move it away, then run `make samples` again.")
    return path.exists()


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return "the server refuses it"
    if isinstance(error, RequestException):
        return "there is no connection to the server, or it broke off"
    return "its SHA-256 is not the published one" if isinstance(error, ValueError) else str(error)


def download(folder: Path, base: str = BASE) -> int:
    """Downloads what `folder` lacks of the four files, each whole or not at all, and returns how many those were.

    InputError: no connection or a broken one, a file unlike the published one, a folder that cannot be written.
    """
    lacking = [name for name, (_, sha256) in FILES.items() if not _is_there(folder / name, sha256)]
    pooch.get_logger().setLevel("WARNING")  # it would print every address and hash
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty())
    for name in lacking:
        there, sha256 = FILES[name]
        print(f"samples: downloading {name}", flush=True)
        try:
            pooch.retrieve(base + there, f"sha256:{sha256}", fname=name, path=folder, downloader=downloader)
        except (OSError, ValueError) as error:
            raise InputError(f"{base + there} could not be stored in {folder}: {_reason(error)}; run `make samples` again.") from error
    return len(lacking)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Download the four public sample scans.")
    parser.add_argument("--folder", type=Path, default=sample_folders()[0], help="where they go (default: $SAMPLES, else data/samples)")
    target = parser.parse_args().folder
    try:
        print(f"samples: {download(target)} of {len(FILES)} downloaded, all in {target}")
    except InputError as error:
        sys.exit(str(error))
