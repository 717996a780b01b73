"""`make samples`: a CT and an MRI with predicted labels, 2.6 MB, public test files of TotalSegmentator."""

import os
import sys
from pathlib import Path

import pooch

from lib.data import sample_folders
from lib.files import InputError, file_hash

# The host takes a short commit name; whatever it sends, the hashes below decide.
BASE = "https://raw.githubusercontent.com/wasserth/TotalSegmentator/0e65a448/tests/reference_files/"
FILES = {  # name here: (name there, SHA-256)
    "ct_image.nii.gz": (
        "example_ct.nii.gz", "dbd3ae6d614d1d7ef3a46925c30c70038ed52da6b37fdd6afdc7b9b71387e3e1"),
    "ct_labels.nii.gz": ("example_seg_fast_force_split.nii.gz",
                         "e8097758e56e73099075b6caaebce23ef11bc6fad66a4ec3753b9406846558c7"),
    "mr_image.nii.gz": (
        "example_mr_sm.nii.gz", "209b46efaff595dd54a9332872e17a722b62654bbb68dbd89acd5090701bbd4f"),
    "mr_labels.nii.gz": (
        "example_seg_mr.nii.gz", "e73a5ee12962aa2bb2f3e43ab58dfc67990c5a7ef2dcb426a1bf5e5982b9587f"),
}


def download(folder: Path, base: str = BASE) -> int:
    """Downloads what `folder` lacks of the four files, each whole or not at all; returns how many those were.

    InputError: another file of that name, which stays; no connection or a broken one; a wrong hash.
    """
    for name, (_, sha256) in FILES.items():
        path = folder / name
        if os.path.lexists(path) and (not path.is_file() or file_hash(path) != sha256):
            raise InputError(f"{path} is not the published sample scan: move it away, then try again.")
    lacking = [name for name in FILES if not (folder / name).exists()]
    pooch.get_logger().setLevel("WARNING")  # it would print every address and hash
    for name in lacking:
        there, sha256 = FILES[name]
        print(f"samples: downloading {name}", flush=True)
        try:
            pooch.retrieve(base + there, f"sha256:{sha256}", fname=name, path=folder)
        except (OSError, ValueError) as error:  # requests raises OSErrors, pooch a ValueError for the hash
            why = " ".join(str(error).split())[:200]
            what = f"{base + there} is not stored in {folder} ({why})"
            raise InputError(f"{what}: look at the connection, then try again.") from error
    return len(lacking)


if __name__ == "__main__":
    target = sample_folders()[0]
    try:
        print(f"samples: {download(target)} of {len(FILES)} downloaded, all in {target}")
    except InputError as error:
        sys.exit(f"samples: {error}")
