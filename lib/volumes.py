"""From a NIfTI scan to uint8 slices on the model grid (T-Gated section 3.5), and back to the scan's own grid.

Canonical axes are LPS: x grows to the patient's left, y to the back, z to the head. So `volume[:, :, z].T` is
a picture with rows first, the patient's right on its left and the front up.
"""

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
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import find_objects
from torch.nn.functional import interpolate

from lib.config import Settings
from lib.files import InputError, replacing
from lib.organs import label_ids

CHUNK = 16  # slices that are resized at a time: bounds the memory
LPS = axcodes2ornt("LPS")


@dataclass(frozen=True, eq=False)
class Grid:
    """A scan's own (native) voxels: `shape` and the 4 x 4 `affine` from voxel to NIfTI world (RAS) in mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        return self.to_canonical(np.broadcast_to(0, self.shape)).shape

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(x, y, z) distance of neighbouring voxels along the canonical axes."""
        native = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(native[np.argsort(io_orientation(self.affine)[:, 0])].tolist())

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
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: name one .nii or .nii.gz file that exists.")
    try:
        yield
    except Exception as error:  # gzip, zlib, nibabel and numpy each raise their own kinds for a damaged file
        why = " ".join(str(error).split())[:160] or type(error).__name__
        advice = "it is cut short, damaged or of another format; fetch or export it again as .nii or .nii.gz."
        raise InputError(f"{path} cannot be read as a NIfTI image ({why}): {advice}") from error


def read_scan(path: Path) -> tuple[np.ndarray, Grid]:
    """Canonical voxels (X, Y, Z) and the scan's grid: integers as stored, float32 for floats or a slope.

    InputError: the file is missing, damaged, not 3-D, without a usable affine, or holds NaN or infinity.
    """
    with readable(path := Path(path)):
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = igzip.decompress(raw)  # all of it, so that gzip's checksum counts
        second = raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # the header's length, 540 bytes: NIfTI-2
        image: Any = (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(raw)
    if image.ndim != 3 or min(image.shape) < 1:
        raise InputError(f"{path} has the shape {image.shape}: give one 3-D volume without an empty axis.")
    axes = image.affine[:3, :3]
    smallest = 1e-4 * np.linalg.norm(axes, axis=0).prod()
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(axes)) <= smallest:
        raise InputError(f"{path} has a singular or non-finite affine: export it again from its source.")
    if not (image.header["qform_code"] or image.header["sform_code"]):
        warnings.warn(f"{path} gives no orientation (codes are 0): left and right are a guess.", stacklevel=2)
    with readable(path), np.errstate(all="ignore"):  # what float32 cannot hold becomes infinite, see below
        voxels = np.asanyarray(image.dataobj)  # scaled, where the header says so
        kind = voxels.dtype.kind
        voxels = voxels.astype(np.float32 if kind == "f" else voxels.dtype.newbyteorder("="), copy=False)
    if kind not in "iuf":
        raise InputError(f"{path} holds {voxels.dtype} voxels: give an image of plain numbers.")
    if kind == "f" and (bad := voxels.size - np.count_nonzero(np.isfinite(voxels))):
        raise InputError(f"{path} holds {bad} NaN or infinite voxels: put the value of air there.")
    grid = Grid(image.shape, image.affine)
    return grid.to_canonical(voxels), grid


def read_labels(path: Path, label_map: str, grid: Grid) -> np.ndarray:
    """Canonical (X, Y, Z) uint8 of our label ids from a file with the ids of `label_map` (see `label_ids`).

    InputError: as in `read_scan`; not on the scan's `grid`; values that are no integers or unknown ids.
    """
    ids, (raw, found) = label_ids(label_map), read_scan(path)
    advice = "resample the labels to the scan's grid, or name the labels of this scan."
    if found.shape != grid.shape:
        raise InputError(f"{path} has the shape {found.shape}, its scan {grid.shape}: {advice}")
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * grid.shape
    apart = np.abs(apply_affine(np.linalg.inv(grid.affine) @ found.affine, corners) - corners).max()
    if apart > 0.1:  # voxels; ITK's rounding makes 1e-4 mm
        raise InputError(f"{path} lies up to {apart:.2f} voxels off its scan (0.1 is allowed): {advice}")
    if raw.dtype.kind == "f" and not np.array_equal(raw, np.rint(raw)):
        raise InputError(f"{path} holds non-integer labels: resample by nearest neighbour, save as integers.")
    table = np.full(256, 255, np.uint8)  # 255: unknown
    table[list(ids)] = list(ids.values())
    if raw.min() >= 0 and raw.max() < 256 and (labels := table[raw.astype(np.uint8, copy=False)]).max() < 255:
        return labels
    unknown = [int(i) for i in np.unique(raw) if i not in ids]
    listed = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
    raise InputError(f"{path} holds ids that {label_map} does not know ({listed}): name its own label map.")


@contextmanager
def plain_tensors() -> Iterator[None]:
    """MONAI without its record of what it did to a tensor: on a small one that takes longer than the work."""
    from monai.data import get_track_meta, set_track_meta

    tracked = get_track_meta()  # a global setting
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(tracked)


def to_uint8(voxels: np.ndarray, modality: str, settings: Settings) -> np.ndarray:
    """Grey values 0..255 of (X, Y, Z) by a CT's HU window or an MRI's percentiles; zeros if these agree."""
    low, high = settings.ct_window_hu if modality == "CT" else np.percentile(voxels, settings.mr_percentiles)
    assert low <= high, f"the grey window {low:g} to {high:g} does not rise"
    grey = np.zeros_like(voxels, dtype=np.uint8)
    for z in range(voxels.shape[2] if high > low else 0):  # slice by slice: no float copy of the volume
        scaled = (voxels[:, :, z].astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        grey[:, :, z] = np.rint(scaled.clip(0, 255))
    return grey


def foreground(grey: np.ndarray) -> tuple[slice, ...]:
    """The box around all grey values over 0 of a volume (X, Y, Z); the whole volume where there are none."""
    boxes = find_objects((grey > 0).view(np.uint8))
    return boxes[0] if boxes else tuple(slice(0, edge) for edge in grey.shape)


def resize(slices: np.ndarray, rows: int, columns: int, nearest: bool) -> np.ndarray:
    """(N, H, W) -> (N, rows, columns), same dtype: nearest, or bilinear, antialiased where it shrinks."""
    sizes = tuple(zip(slices.shape[1:], (rows, columns), strict=True))
    if nearest:  # the pixel under each new pixel's centre: torch's "nearest-exact", in integers
        row, column = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in sizes)
        return slices.take(row, 1).take(column, 2)
    if all(old == new for old, new in sizes):
        return np.ascontiguousarray(slices)
    out = np.empty((len(slices), rows, columns), slices.dtype)
    for z in range(0, len(slices), CHUNK):  # as (n, 1, H, W): torch has a fast kernel for up to 4 channels
        part = torch.from_numpy(slices[z : z + CHUNK].copy())[:, None]
        out[z : z + CHUNK] = interpolate(part, (rows, columns), mode="bilinear", antialias=True)[:, 0]
    return out


def to_slices(volume: np.ndarray, size: int, labels: bool = False) -> np.ndarray:
    """Canonical uint8 (X, Y, Z) -> (Z, size, size), rows first, stretched to the square as in the paper."""
    return resize(volume.T, size, size, nearest=labels)


def from_slices(slices: np.ndarray, grid: Grid) -> np.ndarray:
    """Labels (integers) or probabilities: (Z, S, S) -> native (A, B, C), or (P, Z, S, S) -> (P, A, B, C)."""
    columns, rows, depth = grid.canonical_shape
    if slices.shape[-3] != depth:
        raise ValueError(f"{slices.shape[-3]} slices for a scan of {depth}.")
    flat = resize(slices.reshape(-1, *slices.shape[-2:]), rows, columns, nearest=slices.dtype.kind != "f")
    native = grid.to_native(flat.reshape(*slices.shape[:-2], rows, columns).T)  # (A, B, C) or (A, B, C, P)
    return native if slices.ndim == 3 else np.moveaxis(native, -1, 0)


def write_nifti(array: np.ndarray, grid: Grid, path: Path, slope: float = 1.0) -> None:
    """Writes native (A, B, C) uint8 labels or float32 probabilities; InputError where it cannot."""
    image = nib.Nifti1Image(array, grid.affine)
    if slope != 1.0:  # what a stored unit means, such as 1 / 255 for probabilities in 8 bits
        image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=1)
    image.set_qform(grid.affine, code=1)
    if not np.allclose(image.get_qform(), grid.affine, atol=1e-3):
        image.header["qform_code"] = 0  # a quaternion cannot hold shear: the sform alone speaks
    with replacing(path) as part:
        nib.save(image, part)
