"""Phantoms in the data sets' exact layouts, or in nnU-Net's: what a reader's DATA_ROOT looks like."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.ndimage import zoom
from tiny import fixed_site

from lib.data import SAMPLES, sample_folders
from lib.organs import LABEL_MAPS
from lib.phantoms import SITES, draw
from tools.nnunet import label_names

Layout = Mapping[str, tuple[str, str]]  # data set: (image, labels), below the root
OWN: Layout = {
    "FLARE22": ("FLARE22/images/FLARE22_Tr_{0:04d}_0000", "FLARE22/labels/FLARE22_Tr_{0:04d}"),
    "BTCV": ("BTCV/RawData/Training/img/img{0:04d}", "BTCV/RawData/Training/label/label{0:04d}"),
    "AMOS22 CT": ("AMOS22/imagesTr/amos_{0:04d}", "AMOS22/labelsTr/amos_{0:04d}"),
    "AMOS22 MRI": ("AMOS22/imagesVa/amos_{0:04d}", "AMOS22/labelsVa/amos_{0:04d}"),
}
_AMOS = ("Dataset219_AMOS2022/imagesTr/amos_{0:04d}_0000", "Dataset219_AMOS2022/labelsTr/amos_{0:04d}")
NNUNET: Layout = {  # the same cases in nnU-Net's raw layout
    "FLARE22": ("Dataset022_FLARE22/imagesTr/FLARE22_Tr_{0:04d}_0000",
                "Dataset022_FLARE22/labelsTr/FLARE22_Tr_{0:04d}"),
    "BTCV": ("Dataset017_BTCV/imagesTr/img{0:04d}_0000", "Dataset017_BTCV/labelsTr/img{0:04d}"),
    "AMOS22 CT": _AMOS, "AMOS22 MRI": _AMOS,
}  # fmt: skip
ROLES = {"FLARE22": "site A", "BTCV": "site B", "AMOS22 CT": "site C", "AMOS22 MRI": "site M"}
BODIES = 2  # phantoms drawn for each data set: each case has noise of its own, so no two are alike


def sample_scans() -> Path:
    """The folder of the sample scans; a test that needs them is skipped where they are not."""
    here = next((one for one in sample_folders() if all((one / name).is_file() for name in SAMPLES)), None)
    return here or pytest.skip("the sample scans are not here: `make samples`")


def touch(root: Path, *names: str) -> Path:
    """Empty files below a folder, which it returns."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def touch_cases(root: Path, dataset: str, numbers: Sequence[int], layout: Layout = OWN) -> Path:
    """Empty files with the names of a data set's cases."""
    return touch(root, *(f"{stem.format(n)}.nii.gz" for stem in layout[dataset] for n in numbers))


Change = Callable[[np.ndarray], np.ndarray]


def edit(path: Path, change: Change = np.asarray, affine: Change = np.asarray) -> None:
    """Saves a NIfTI file again with other voxels or another affine."""
    scan = nib.load(path)
    voxels = np.asanyarray(scan.dataobj)
    changed = np.ascontiguousarray(change(voxels.copy())).astype(voxels.dtype)
    nib.save(nib.Nifti1Image(changed, affine(scan.affine.copy())), path)


def dataset_json(root: Path, labels: Mapping[str, object]) -> Path:
    """nnU-Net's (version 2) description of a data set, as far as we read it."""
    root.mkdir(parents=True, exist_ok=True)
    (path := root / "dataset.json").write_text(json.dumps({"labels": dict(labels)}))
    return path


def _body(dataset: str, seed: int, pixels: int, slices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(signal, the data set's ids, affine) of a phantom of 35 x 35 x 21 cm, drawn coarsely and enlarged."""
    site, coarse = SITES[ROLES[dataset]], 48
    field = np.array([350.0, 350.0, 210.0])
    signal, labels, *_ = draw(fixed_site(ROLES[dataset], coarse, slices, pixel_mm=350 / coarse), seed)
    ids = np.zeros(14, np.uint8)
    for theirs, ours in LABEL_MAPS[site.label_map].items():
        ids[ours] = theirs if ours else 0
    factor, shape = (pixels / coarse, pixels / coarse, 1), (pixels, pixels, slices)
    turn = ornt_transform(axcodes2ornt("LPS"), axcodes2ornt(site.axes))
    affine = np.diag([*(field / shape * (-1, -1, 1)), 1.0]) @ inv_ornt_aff(turn, shape)
    volumes = (zoom(signal, factor, order=1), ids[zoom(labels, factor, order=0)])
    return *(apply_orientation(volume, turn) for volume in volumes), affine  # type: ignore[return-value]


def write_trees(root: Path, pixels: int, slices: int, cases: Mapping[str, Sequence[int]],
                layout: Layout = OWN, suffix: str = ".nii.gz") -> Path:  # fmt: skip
    """Writes images and labels of the data sets in `cases`, {data set: numbers}, below `root`; returns it."""
    for dataset, numbers in cases.items():
        site = SITES[ROLES[dataset]]
        bodies = [_body(dataset, seed, pixels, slices) for seed in range(1, 1 + min(BODIES, len(numbers)))]
        for place, number in enumerate(numbers):
            signal, ids, affine = bodies[place % BODIES]
            noise = np.random.default_rng(number).integers(-9, 10, signal.shape, dtype=np.int16)
            voxels = signal.round().astype(np.int16) + noise
            image = voxels if site.modality == "CT" else voxels.clip(0)
            for stem, array in zip(layout[dataset], (image, ids), strict=True):
                path = root / f"{stem.format(number)}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(array, affine), path)
        if layout is NNUNET:
            dataset_json((root / layout[dataset][0]).parents[1], label_names(site.label_map))
    return root
