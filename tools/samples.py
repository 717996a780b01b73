"""`make samples`: a CT and an MRI with predicted labels, 2.6 MB, public test files of TotalSegmentator."""

import os
import sys
from pathlib import Path

import pooch
from requests import HTTPError, RequestException

from lib.data import sample_folders
from lib.files import InputError, file_hash

# The host takes a short commit name; whatever it sends, the hashes below decide.
BASE = "https://raw.githubusercontent.com/wasserth/TotalSegmentator/0e65a448/tests/reference_files/"
FILES = {  # name here: (name there, SHA-256)
    "ct_image.nii.gz": ("example_ct.nii.gz", "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1"),
    "ct_labels.nii.gz": ("example_seg_fast_force_split.nii.gz", "e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7"),
    "mr_image.nii.gz": ("example_mr_sm.nii.gz", "209b46efaff595dd54a9332872e17a722b62654bbb68dbd89acd5090701bbd4f"),
    "mr_labels.nii.gz": ("example_seg_mr.nii.gz", "e73a5ee12962aa2bb2f3e43ab58dfc67990c5a7ef2dcb426a1bf5e5982b9587f"),
}  # fmt: skip


def _is_there(path: Path, sha256: str) -> bool:
    """Whether the file is there already. InputError: another one of its name is, which is somebody's own."""
    if os.path.lexists(path) and (not path.is_file() or file_hash(path) != sha256):
        raise InputError(f"{path} is not the published sample scan: move it away, then try again.")
    return path.exists()


def download(folder: Path, base: str = BASE) -> int:
    """Downloads what `folder` lacks of the four files, each whole or not at all; returns how many those were.

    InputError: no connection or a broken one, a file unlike the published one, an unwritable folder.
    """
    lacking = [name for name, (_, sha256) in FILES.items() if not _is_there(folder / name, sha256)]
    pooch.get_logger().setLevel("WARNING")  # it would print every address and hash
    for name in lacking:
        there, sha256 = FILES[name]
        print(f"samples: downloading {name}", flush=True)
        try:
            pooch.retrieve(base + there, f"sha256:{sha256}", fname=name, path=folder)
        except (OSError, ValueError) as error:  # requests raises OSErrors, pooch a ValueError
            why = "its SHA-256 is not the published one" if isinstance(error, ValueError) else str(error)
            if isinstance(error, RequestException):
                why = "there is no connection to the server, or it broke off"
            if isinstance(error, HTTPError):
                why = "the server refuses it"
            problem = f"{base + there} could not be stored in {folder}: {why}"
            raise InputError(f"{problem}; run `make samples` again.") from error
    return len(lacking)


if __name__ == "__main__":
    target = sample_folders()[0]
    try:
        print(f"samples: {download(target)} of {len(FILES)} downloaded, all in {target}")
    except InputError as error:
        sys.exit(f"samples: {error}")
