"""From a NIfTI scan to a store of uint8 slices on the model grid, and from the model grid back to the scan's
own grid.

Canonical axes are LPS: x grows to the patient's left, y to the back, z to the head. So `volume[:, :, z].T` is
a picture with rows first, the patient's right on its left and the front up. Preprocessing is T-Gated's
(section 3.5): window, 8 bits, 352 x 352.
"""

import gzip
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from isal import igzip  # gzip, twice as fast
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from torch.nn.functional import interpolate

from lib.config import Settings
from lib.files import InputError, replacing
from lib.organs import label_ids

CHUNK = 16  # slices that are resized at a time: bounds the memory
LPS = axcodes2ornt("LPS")


@dataclass(frozen=True, eq=False)
class Grid:
    """A scan's own (native) voxel grid: `shape` and the 4 x 4 `affine` from voxel to NIfTI world (RAS)
    coordinates in mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        return self.to_canonical(np.broadcast_to(0, self.shape)).shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(x, y, z) distance of neighbouring voxels along the canonical axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)[
            np.argsort(io_orientation(self.affine)[:, 0])
        ].tolist()
        return x, y, z

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Native (A, B, C, ...) -> canonical (X, Y, Z, ...); a view, no voxel is resampled."""
        return apply_orientation(array, ornt_transform(io_orientation(self.affine), LPS))

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """Canonical (X, Y, Z, ...) -> native (A, B, C, ...); the exact inverse of `to_canonical`."""
        return apply_orientation(array, ornt_transform(LPS, io_orientation(self.affine)))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever reading `path` raises inside the block into one InputError sentence."""
    if not path.is_file():
        raise InputError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: name one .nii or .nii.gz file "
            "that exists."
        )
    try:
        yield
    except Exception as error:  # gzip, zlib, nibabel and numpy each raise their own kinds for a damaged file
        why = " ".join(str(error).split())[:160] or type(error).__name__
        advice = "it is cut short, damaged or of another format; fetch or export it again as .nii or .nii.gz."
        raise InputError(f"{path} cannot be read as a NIfTI image ({why}): {advice}") from error


def read_scan(path: Path) -> tuple[np.ndarray, Grid]:
    """Canonical voxels (X, Y, Z) and the scan's own grid. Integers as stored, or float32 where floats or a
    slope are stored.

    InputError: the file is missing, damaged, not 3-D, without a usable affine, or holds NaN or infinite
    voxels.
    """
    with readable(path := Path(path)):
        raw = path.read_bytes()
        raw = (
            igzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        )  # all of it, so that gzip's checksum counts
        second = raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # the header's length, 540 bytes: NIfTI-2
        image: Any = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(raw)
    if image.ndim != 3 or min(image.shape) < 1:
        raise InputError(f"{path} has the shape {image.shape}: give one 3-D volume without an empty axis.")
    axes = image.affine[:3, :3]
    if (
        not np.isfinite(image.affine).all()
        or abs(np.linalg.det(axes)) <= 1e-4 * np.linalg.norm(axes, axis=0).prod()
    ):
        raise InputError(
            f"{path} has a singular or non-finite affine: its orientation is lost; export the scan again "
            "from its source."
        )
    if not (image.header["qform_code"] or image.header["sform_code"]):
        warnings.warn(
            f"{path} gives no orientation (qform and sform codes are 0): left and right are a guess.",
            stacklevel=2,
        )
    with (
        readable(path), np.errstate(all="ignore"),
    ):  # what float32 cannot hold becomes infinite and is counted below
        voxels = np.asanyarray(image.dataobj)  # scaled, where the header says so
        voxels = voxels.astype(
            np.float32 if voxels.dtype.kind == "f" else voxels.dtype.newbyteorder("="), copy=False
        )
    if voxels.dtype.kind not in "iuf":
        raise InputError(
            f"{path} holds {voxels.dtype} voxels: give a grey-value or label image of plain numbers."
        )
    if voxels.dtype.kind == "f" and (bad := voxels.size - np.count_nonzero(np.isfinite(voxels))):
        raise InputError(
            f"{path} holds {bad} NaN or infinite voxels: replace them (by the value of air, say) and save "
            "it again."
        )
    grid = Grid(image.shape, image.affine)
    return grid.to_canonical(voxels), grid


def read_labels(path: Path, label_map: str, grid: Grid) -> np.ndarray:
    """Canonical (X, Y, Z) uint8 of our label ids (lib.organs), from a file with the ids of the data set
    `label_map`.

    InputError: as in `read_scan`; or not on the scan's `grid`, non-integer values, ids that the map does not
    know.
    """
    ids, (raw, found) = label_ids(label_map), read_scan(path)
    advice = "resample the labels to the scan's grid, or name the labels of this scan."
    if found.shape != grid.shape:
        raise InputError(f"{path} has the shape {found.shape}, its scan {grid.shape}: {advice}")
    corners = np.vstack(
        [np.indices((2, 2, 2)).reshape(3, 8) * np.reshape(grid.shape, (3, 1)), np.ones((1, 8))]
    )  # homogeneous
    apart = np.abs(np.linalg.solve(grid.affine, found.affine @ corners) - corners).max()
    if apart > 0.1:  # voxels; ITK's rounding makes 1e-4 mm
        raise InputError(
            f"{path} lies up to {apart:.2f} voxels off its scan (0.1 is allowed), for their affines differ: "
            f"{advice}"
        )
    if raw.dtype.kind == "f" and not np.array_equal(raw, np.rint(raw)):
        raise InputError(
            f"{path} holds non-integer labels: save it again with nearest-neighbour resampling and an "
            "integer type."
        )
    table = np.full(256, 255, np.uint8)  # 255: unknown
    table[list(ids)] = list(ids.values())
    if raw.min() >= 0 and raw.max() < 256 and (labels := table[raw.astype(np.uint8, copy=False)]).max() < 255:
        return labels
    unknown = [int(i) for i in np.unique(raw) if i not in ids]
    listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
    raise InputError(
        f"{path} holds label ids that {label_map} does not know ({listed}): name the data set's own map, or "
        "remap the file."
    )


@contextmanager
def plain_tensors() -> Iterator[None]:
    """MONAI without the record of what it did to a tensor, which takes longer than the work on a small one.

    Its setting is a global one.
    """
    from monai.data import get_track_meta, set_track_meta

    tracked = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(tracked)


def to_uint8(voxels: np.ndarray, modality: str, settings: Settings) -> np.ndarray:
    """Grey values 0..255 of a volume (X, Y, Z): a CT's HU window, or an MRI's own percentiles.

    Zeros where these are equal.
    """
    if modality not in ("CT", "MR"):
        raise InputError(f"{modality!r} is no modality: choose CT or MR.")
    low, high = settings.ct_window_hu if modality == "CT" else np.percentile(voxels, settings.mr_percentiles)
    if low > high or (modality == "CT" and low == high):
        raise InputError(
            f"The grey window {low:g} to {high:g} does not rise: set ct_window_hu and mr_percentiles to "
            "(low, high)."
        )
    grey = np.zeros_like(voxels, dtype=np.uint8)
    for z in range(voxels.shape[2] if high > low else 0):  # slice by slice: no float copy of the volume
        scaled = (voxels[:, :, z].astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        grey[:, :, z] = np.rint(scaled.clip(0, 255))
    return grey


def foreground(grey: np.ndarray) -> tuple[slice, ...]:
    """The box around all grey values over 0 of a volume (X, Y, Z); the whole volume where there are none."""
    shown = [np.flatnonzero((grey > 0).any(others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(
        slice(int(p[0]), int(p[-1]) + 1) if len(p) else slice(0, n)
        for p, n in zip(shown, grey.shape, strict=True)
    )


def resize(slices: np.ndarray, rows: int, columns: int, nearest: bool) -> np.ndarray:
    """(N, H, W) -> (N, rows, columns), same dtype: nearest, or bilinear, antialiased where it shrinks.

    Identity at its size.
    """
    sizes = tuple(zip(slices.shape[1:], (rows, columns), strict=True))
    if nearest:  # the pixel under each new pixel's centre: torch's "nearest-exact", in integers
        row, column = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in sizes)
        return slices.take(row, 1).take(column, 2)
    if all(old == new for old, new in sizes):
        return np.ascontiguousarray(slices)
    out = np.empty((len(slices), rows, columns), slices.dtype)
    for z in range(0, len(slices), CHUNK):
        part = torch.from_numpy(slices[z : z + CHUNK].copy())[
            :, None
        ]  # (n, 1, H, W): torch has a fast kernel for up to 4 channels
        out[z : z + CHUNK] = interpolate(part, (rows, columns), mode="bilinear", antialias=True)[:, 0]
    return out


def to_slices(volume: np.ndarray, size: int, labels: bool = False) -> np.ndarray:
    """Canonical uint8 (X, Y, Z) -> pictures (Z, size, size), rows first, stretched to the square as in the
    paper."""
    return resize(volume.T, size, size, nearest=labels)


def from_slices(slices: np.ndarray, grid: Grid) -> np.ndarray:
    """Model grid -> the scan's own grid and axes: (Z, S, S) -> (A, B, C), or (P, Z, S, S) -> (P, A, B, C), of
    the same dtype.

    Integers are a label map (nearest), floats are probabilities (bilinear). ValueError where Z is not the
    grid's.
    """
    columns, rows, depth = grid.canonical_shape
    if slices.shape[-3] != depth:
        raise ValueError(f"{slices.shape[-3]} slices for a scan of {depth}.")
    flat = resize(slices.reshape(-1, *slices.shape[-2:]), rows, columns, nearest=slices.dtype.kind != "f")
    native = grid.to_native(flat.reshape(*slices.shape[:-2], rows, columns).T)  # (A, B, C) or (A, B, C, P)
    return native if slices.ndim == 3 else np.moveaxis(native, -1, 0)


def write_nifti(array: np.ndarray, grid: Grid, path: Path, slope: float = 1.0) -> None:
    """Writes native (A, B, C) uint8 labels or float32 probabilities with the scan's affine; InputError where
    it cannot.

    slope: what a stored unit means, such as 1 / 255 for probabilities in 8 bits.
    """
    image = nib.Nifti1Image(array, grid.affine)
    if slope != 1.0:
        image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    if not np.allclose(image.get_qform(), grid.affine, atol=1e-3):
        image.header["qform_code"] = 0  # a quaternion cannot hold shear: the sform alone speaks
    raw = image.to_bytes()
    with replacing(path) as part:
        part.write_bytes(gzip.compress(raw, 3, mtime=0) if Path(path).suffix == ".gz" else raw)
