"""Trees in the data sets' exact layouts, from phantoms: what a reader's DATA_ROOT looks like, at any size.

    write_trees(root, pixels=512, cases=ALL)       # 50 FLARE22, 30 BTCV, 10 AMOS22 CT, 10 AMOS22 MRI, as the full profile draws from
    python -m proof.trees ROOT --pixels 512        # the same from the command line

Phantoms are drawn coarsely and enlarged, a few bodies for many cases: each case has noise and a size of its own, so no two are alike.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.ndimage import zoom

from lib.datasets.export import label_names
from lib.organs import LABEL_MAPS
from lib.paths import InputError
from lib.phantoms import SITES, draw

BTCV_IDS = (*range(1, 11), *range(21, 41))
ALL: dict[str, Sequence[int]] = {  # the numbers that the full profile needs
    "FLARE22": range(1, 51),
    "BTCV": BTCV_IDS,
    "AMOS22 CT": range(1, 11),
    "AMOS22 MRI": range(507, 517),
}
OWN = {  # data set: (image, labels), below the root
    "FLARE22": ("FLARE22/images/FLARE22_Tr_{0:04d}_0000", "FLARE22/labels/FLARE22_Tr_{0:04d}"),
    "BTCV": ("BTCV/RawData/Training/img/img{0:04d}", "BTCV/RawData/Training/label/label{0:04d}"),
    "AMOS22 CT": ("AMOS22/imagesTr/amos_{0:04d}", "AMOS22/labelsTr/amos_{0:04d}"),
    "AMOS22 MRI": ("AMOS22/imagesVa/amos_{0:04d}", "AMOS22/labelsVa/amos_{0:04d}"),
}
NNUNET = {  # the same cases in nnU-Net's raw layout
    "FLARE22": ("Dataset022_FLARE22/imagesTr/FLARE22_Tr_{0:04d}_0000", "Dataset022_FLARE22/labelsTr/FLARE22_Tr_{0:04d}"),
    "BTCV": ("Dataset017_BTCV/imagesTr/img{0:04d}_0000", "Dataset017_BTCV/labelsTr/img{0:04d}"),
    "AMOS22 CT": ("Dataset219_AMOS2022/imagesTr/amos_{0:04d}_0000", "Dataset219_AMOS2022/labelsTr/amos_{0:04d}"),
    "AMOS22 MRI": ("Dataset219_AMOS2022/imagesTr/amos_{0:04d}_0000", "Dataset219_AMOS2022/labelsTr/amos_{0:04d}"),
}
BODIES = 2  # phantoms drawn for each data set


def _body(dataset: str, seed: int, pixels: int, slices: int, share: float, width_mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(signal, ids as in the data set's label files, NIfTI affine) of a phantom of `pixels` x `pixels` x `slices`, in the site's axes."""
    site, coarse, drawn = SITES[dataset], 48, round(slices / share)
    field = [site.shape[0] * site.spacing_mm[0], site.shape[1] * site.spacing_mm[1], 36 * 5.0]  # mm, the same for all heights
    site = replace(site, shape=(coarse, coarse, drawn), spacing_mm=tuple(np.divide(field, (coarse, coarse, drawn)).tolist()))
    middle = slice((drawn - slices) // 2, (drawn - slices) // 2 + slices)
    signal, labels = (volume[:, :, middle] for volume in draw(site, seed)[:2])
    factor = (pixels / coarse, pixels / coarse, 1)
    ids = np.zeros(14, np.uint8)
    for theirs, ours in LABEL_MAPS[site.label_map].items():
        ids[ours] = theirs if ours else 0
    wide, deep = (width_mm or edge for edge in field[:2])
    affine = np.diag([-wide / pixels, -deep / pixels, field[2] / drawn, 1.0])
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(site.axes))
    shape = (pixels, pixels, slices)
    return (
        apply_orientation(zoom(signal, factor, order=1), turn),
        apply_orientation(ids[zoom(labels, factor, order=0)], turn),
        affine @ inv_ornt_aff(turn, shape),
    )


def _write(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def _vacant(path: Path) -> Path:
    """The path, where nothing is: real scans have these names. InputError: there is something."""
    if os.path.lexists(path):
        raise InputError(f"{path} exists and is left as it is, for a phantom would take its place: name an empty folder.")
    return path


def dataset_json(root: Path, labels: Mapping[str, int], images: int, channel: str = "CT") -> None:
    """nnU-Net's (version 2) description of a data set."""
    value = {"channel_names": {"0": channel}, "labels": dict(labels), "numTraining": images, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(value))


def write_trees(
    root: Path,
    pixels: int = 512,
    slices: int = 36,
    cases: Mapping[str, Sequence[int]] = ALL,
    layout: Mapping[str, tuple[str, str]] = OWN,
    suffix: str = ".nii.gz",
    share: float = 1.0,
    width_mm: float = 0.0,
) -> Path:
    """Writes images and labels of every data set in `cases`, {data set: numbers}, below `root`, and returns it.

    layout: OWN or NNUNET (with its dataset.json). A scan covers 33 x 33 x 18 cm, or of that height the middle `share`, and `width_mm`
    where a smaller patient is asked for; CT is in HU, MRI in arbitrary units from 0.

    Raises:
        InputError: one of the files is there already: nothing is written.
    """
    files = {  # data set: (image, labels) of each of its cases
        dataset: [tuple(_vacant(root / f"{stem.format(number)}{suffix}") for stem in layout[dataset]) for number in numbers]
        for dataset, numbers in cases.items()
    }
    if layout is NNUNET:
        for pairs in filter(None, files.values()):
            _vacant(pairs[0][0].parents[1] / "dataset.json")
    for dataset, numbers in cases.items():
        bodies: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for place, number in enumerate(numbers):
            seed = 1 + place % BODIES
            if seed not in bodies:
                bodies[seed] = _body(dataset, seed, pixels, slices, share, width_mm)
            signal, ids, affine = bodies[seed]
            noise = np.random.default_rng(number).integers(-9, 10, signal.shape, dtype=np.int16)
            voxels = signal.round().astype(np.int16) + noise
            image, labels = files[dataset][place]
            _write(image, voxels if SITES[dataset].modality == "CT" else voxels.clip(0), affine)
            _write(labels, ids, affine)
        if layout is NNUNET and numbers:
            home = files[dataset][0][0].parents[1]
            channel = "CT" if SITES[dataset].modality == "CT" else "MRI"
            dataset_json(home, label_names(SITES[dataset].label_map), len(list((home / "imagesTr").iterdir())), channel)
    return root


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write data sets of phantoms in their exact layouts.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--slices", type=int, default=36)
    parser.add_argument("--most", type=int, default=50, help="cases of a data set")
    parser.add_argument("--share", type=float, default=1.0, help="of the body's height that is scanned, in the middle")
    parser.add_argument("--width", type=float, default=0.0, help="of a scan, in mm")
    parser.add_argument("--nnunet", action="store_true", help="in nnU-Net's raw layout")
    arguments = parser.parse_args()
    few = {dataset: numbers[: arguments.most] for dataset, numbers in ALL.items()}
    layout, sizes = NNUNET if arguments.nnunet else OWN, {"share": arguments.share, "width_mm": arguments.width}
    try:
        write_trees(arguments.root, arguments.pixels, arguments.slices, few, layout, **sizes)
    except InputError as error:
        sys.exit(str(error))
