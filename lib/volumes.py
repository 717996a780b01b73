"""From a NIfTI scan to uint8 slices on the model grid (T-Gated section 3.5), and back to the scan's own grid.

First the file: its numbers, and where its header places them; contradictions are said, or refused. Then the
grids. Canonical axes are LPS: x grows to the patient's left, y to the back, z to the head. So
`volume[:, :, z].T` is a picture with rows first, the patient's right on its left and the front up.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from isal import igzip  # gzip, twice as fast
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.volumeutils import shape_zoom_affine
from PIL.Image import Resampling, fromarray
from scipy.ndimage import find_objects
from torch import Tensor
from torch.nn.functional import interpolate

from lib.config import Settings
from lib.files import InputError, replacing
from lib.organs import label_ids

UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units' codes: unknown, metre, millimetre, micron
VOXEL_MM, FARTHEST_MM = (0.05, 100), 1e5  # every scan of a body keeps to these; else its header is wrong
NEAR = 0.1  # voxels by which two grids may differ: ITK's rounding makes 1e-4 mm
QUIET = logging.Logger("nifti", logging.CRITICAL)  # nibabel speaks of headers that it mends, without a name
Forms = tuple[tuple[np.ndarray | None, int], ...]
CHUNK = 16  # slices that are resized at a time: bounds the memory
LPS = axcodes2ornt("LPS")
TISSUES_HU = (-1500, -800), (-150, -50), (800, math.inf)  # air, fat, and bone or metal
FEW = 0.001  # share of a scan's voxels that shows nothing: ringing, noise, a marker
WHOLE, MOST = 0.01, 0.25  # how far off a whole number labels may be: WHOLE, and half a step of their slope


class Nifti(NamedTuple):
    """A volume as it is stored, and where its voxels are."""

    voxels: np.ndarray  # (A, B, C): integers, or float32 for floats and where a slope scales integers
    affine: np.ndarray  # (4, 4) from voxel to world (RAS) in mm
    forms: Forms  # sform and qform in mm, each with its code; (None, 0): not given, or impossible
    step: float  # between two stored numbers, where a slope scales integers; else 0


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever reading `path` raises inside the block into one InputError sentence."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}: name one .nii or .nii.gz file that exists.")
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # gzip, zlib, nibabel and numpy each raise their own kinds for a damaged file
        why = " ".join(str(error).split())[:160] or type(error).__name__
        advice = "it is cut short, damaged or of another format; fetch or export it again as .nii or .nii.gz."
        raise InputError(f"{path} cannot be read as a NIfTI image ({why}): {advice}") from error


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return apply_affine(affine, np.indices((2, 2, 2)).reshape(3, 8).T * shape)


def voxels_apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """By how many voxels of `one` two affines of a scan differ at most."""
    return float(abs(_corners(np.linalg.inv(one) @ other, shape) - _corners(np.eye(4), shape)).max())


def _fault(affine: np.ndarray, shape: tuple[int, ...]) -> str:
    """Why an affine in mm is that of no scan; empty where it may be one."""
    sizes, far = voxel_sizes(affine), abs(_corners(affine, shape)).max()
    if not np.isfinite(affine).all():
        return "lacks a spacing over 0, a rotation or finite numbers"
    if not VOXEL_MM[0] <= sizes.min() <= sizes.max() <= VOXEL_MM[1]:
        return f"makes voxels of {' x '.join(f'{size:.3g}' for size in sizes)} mm"
    if abs(np.linalg.det(affine[:3, :3])) < 0.1 * sizes.prod():
        return "has parallel axes"
    return f"puts voxels {far:.3g} mm away" if far > FARTHEST_MM else ""


def _place(path: Path, stored: nib.Nifti1Header, shape: tuple[int, ...]) -> tuple[np.ndarray, Forms]:
    """Affine and forms: by the sform, else the qform, else the spacing; warns of what contradicts that."""
    (header := stored.copy()).check_fix(QUIET)  # codes and mirror alone: see below for the spacing
    if (unit := int(header["xyzt_units"]) & 7) not in UNITS_MM:
        raise InputError(f"{path} gives its lengths in an unknown unit (code {unit}): correct its header.")
    mm, spacing = np.diag([*[UNITS_MM[unit]] * 3, 1.0]), stored["pixdim"][1:4]
    header["pixdim"][1:4] = np.where(spacing > 0, spacing, np.nan)  # nibabel would make 1 of 0, and 2 of -2
    quaternion = np.array([header[f"quatern_{x}"] for x in "bcd"])
    if 1 < (length := np.linalg.norm(quaternion)) < 1.005:  # rounded: NIfTI's own library normalises it, too
        header["quatern_b"], header["quatern_c"], header["quatern_d"] = quaternion / length
    given = {}
    if header["sform_code"]:
        given["sform"] = header.get_sform()
    if header["qform_code"]:
        try:
            given["qform"] = header.get_qform()
        except ValueError:  # its quaternion is no rotation
            given["qform"] = np.full((4, 4), np.nan)
    given = given or {"spacing": shape_zoom_affine(shape, header["pixdim"][1:4])}
    forms = {name: mm @ form for name, form in given.items()}
    faults = {name: fault for name, form in forms.items() if (fault := _fault(form, shape))}
    wrong, good = [f"its {name} {fault}" for name, fault in faults.items()], forms.keys() - faults.keys()
    if not good:
        advice = "correct its header (unit, spacing, origin), or export it again."
        raise InputError(f"{path} cannot be placed, for {' and '.join(wrong)}: {advice}")
    used = next(name for name in forms if name in good)
    if len(good) > 1 and (apart := voxels_apart(forms["sform"], forms["qform"], shape)) > NEAR:
        wrong.append(f"its qform lies up to {apart:.3g} voxels off its sform, and results keep both")
    elif used == "sform" and not np.allclose(mm[:3, :3] @ spacing, voxel_sizes(forms[used]), rtol=0.2):
        wrong.append("its spacing is not that of its sform")
    if wrong:
        warnings.warn(f"{path}: {' and '.join(wrong)}; its {used} is used.", stacklevel=4)
    if used == "spacing":
        warnings.warn(f"{path} gives no orientation (codes are 0): left and right are a guess.", stacklevel=4)
    codes = ((name, int(header[f"{name}_code"])) for name in ("sform", "qform"))
    return forms[used], tuple((forms[name], code) if name in good else (None, 0) for name, code in codes)


def read_nifti(path: Path) -> Nifti:
    """One 3-D volume, also as (x, y, z, 1), of a .nii or .nii.gz file.

    InputError: the file is missing or damaged, its header contradicts its length or its place is impossible,
    it is not 3-D, or holds colours, NaN or infinity.
    """
    with readable(path), np.errstate(all="ignore"):
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = igzip.decompress(raw)  # all of it, so that gzip's checksum counts
        second = raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")  # the header's length, 540 bytes: NIfTI-2
        kind = nib.Nifti2Header if second else nib.Nifti1Header
        header = kind(raw[: kind.sizeof_hdr], check=False)
        header.copy().check_fix(QUIET)  # raises where the format or the number type is unknown
        shape, dtype, start = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        fits = kind.single_vox_offset <= start <= len(raw) - math.prod(shape) * dtype.itemsize
        if not fits or header["bitpix"] not in (0, 8 * dtype.itemsize):
            stated = f"{shape} voxels of {dtype} in {header['bitpix']} bits from byte {start}"
            raise ValueError(f"{stated} do not fit together, or not its {len(raw)} bytes")
        if np.isinf(header["scl_slope"]):
            raise ValueError("its slope is infinite")
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"{path} has the shape {shape}: give one 3-D volume without an empty axis.")
        if dtype.kind not in "iuf":
            raise InputError(f"{path} holds {dtype} voxels: give an image of plain numbers.")
        affine, forms = _place(path, header, shape)
        voxels = header.data_from_fileobj(BytesIO(raw)).reshape(shape)  # scaled, where the header says so
        scaled = voxels.dtype.kind == "f"
        voxels = voxels.astype(np.float32 if scaled else voxels.dtype.newbyteorder("="), copy=False)
        if scaled and (bad := voxels.size - np.count_nonzero(np.isfinite(voxels))):
            raise InputError(f"{path} holds {bad} NaN or infinite voxels: put the value of air there.")
        return Nifti(voxels, affine, forms, abs(header.get_slope_inter()[0] or 0.0) * (dtype.kind != "f"))


@dataclass(frozen=True, eq=False)
class Grid:
    """A scan's own (native) voxels: `shape` and the 4 x 4 `affine` from voxel to NIfTI world (RAS) in mm.

    forms: the sform and qform of the NIfTI that it was read from, which what is written for it keeps.
    stored: the file's own axes pass for canonical ones, as in the released code.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    forms: Forms = ()
    stored: bool = False

    @property
    def axes(self) -> np.ndarray:
        """Orientation of what is called canonical, as nibabel has it."""
        return io_orientation(self.affine) if self.stored else LPS

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        return self.to_canonical(np.broadcast_to(0, self.shape)).shape

    @property
    def axes_mm(self) -> np.ndarray:
        """(3, 3): columns are the steps to the next voxel along x, y and z; a tilted gantry shears them."""
        turn = ornt_transform(io_orientation(self.affine), self.axes)
        return (self.affine @ inv_ornt_aff(turn, self.shape))[:3, :3]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """(x, y, z) distance of neighbouring columns, rows and slices, at right angles to them."""
        along, apart = np.linalg.norm(self.axes_mm, axis=0), abs(np.diag(np.linalg.qr(self.axes_mm).R))
        return tuple(np.where(np.isclose(along, apart), along, apart).tolist())

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Native (A, B, C, ...) -> canonical (X, Y, Z, ...); a view, no voxel is resampled."""
        return apply_orientation(array, ornt_transform(io_orientation(self.affine), self.axes))

    def to_native(self, array: np.ndarray) -> np.ndarray:
        """Canonical (X, Y, Z, ...) -> native (A, B, C, ...); the exact inverse of `to_canonical`."""
        return apply_orientation(array, ornt_transform(self.axes, io_orientation(self.affine)))


def read_scan(path: Path, stored: bool = False) -> tuple[np.ndarray, Grid]:
    """Canonical voxels (X, Y, Z) and the scan's grid; numbers, warnings and InputError as in `read_nifti`.
    stored: as in `Grid`."""
    voxels, affine, forms, _ = read_nifti(Path(path))
    grid = Grid(voxels.shape, affine, forms, stored)
    return grid.to_canonical(voxels), grid


def read_labels(path: Path, label_map: str, grid: Grid) -> np.ndarray:
    """Canonical (X, Y, Z) uint8 of our label ids from a file with the ids of `label_map` (see `label_ids`).

    InputError: as in `read_nifti`; not on the scan's `grid`; values that are not whole, or unknown ids.
    """
    ids, (raw, affine, _, step) = label_ids(label_map), read_nifti(path := Path(path))
    advice = "resample the labels to the scan's grid, or name the labels of this scan."
    if raw.shape != grid.shape:
        raise InputError(f"{path} has the shape {raw.shape}, its scan {grid.shape}: {advice}")
    if (apart := voxels_apart(grid.affine, affine, grid.shape)) > NEAR:
        raise InputError(f"{path} lies up to {apart:.2f} voxels off its scan ({NEAR} is allowed): {advice}")
    if raw.dtype.kind == "f":  # a slope cannot meet every whole number
        whole, allowed = np.rint(raw), min(WHOLE + step / 2, MOST)
        if (off := abs(raw - whole).max()) > allowed:
            why = f"holds non-integer labels, up to {off:.2g} off ({allowed:.2g} is allowed)"
            raise InputError(f"{path} {why}: resample by nearest neighbour, save as integers.")
        raw = whole
    raw = grid.to_canonical(raw)
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
        scaled = scaled.clip(0, 255)
        grey[:, :, z] = scaled if settings.resampling == "lanczos" else np.rint(scaled)
    return grey


def is_in_hu(voxels: np.ndarray) -> bool:
    """Whether a CT shows fat where Hounsfield units have it, and little that is as bright as bone: an offset
    or another scale moves both. Air alone may be in HU, too."""
    counts = (np.count_nonzero((voxels >= low) & (voxels < high)) for low, high in TISSUES_HU)
    air, fat, bone = (int(count) for count in counts)
    rest = voxels.size - air
    return rest <= FEW * voxels.size or (fat >= FEW * rest and bone < 0.15 * rest)


def shows_air(voxels: np.ndarray, below_hu: float = -200) -> bool:
    """Whether more than a few voxels are as dark as air in HU: single ones may be so in any image."""
    return bool(np.count_nonzero(voxels < below_hu) > FEW * voxels.size)


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
    return rescale(torch.from_numpy(slices.copy()), rows, columns).numpy()


def rescale(slices: Tensor, rows: int, columns: int) -> Tensor:
    """(N, H, W) -> (N, rows, columns) on the same device: bilinear, antialiased where it shrinks."""
    if slices.shape[1:] == (rows, columns):
        return slices
    out = slices.new_empty(len(slices), rows, columns)
    for z in range(0, len(slices), CHUNK):  # as (n, 1, H, W): torch has a fast kernel for up to 4 channels
        part = slices[z : z + CHUNK, None]
        out[z : z + CHUNK] = interpolate(part, (rows, columns), mode="bilinear", antialias=True)[:, 0]
    return out


def to_slices(volume: np.ndarray, size: int, labels: bool = False, lanczos: bool = False) -> np.ndarray:
    """Canonical uint8 (X, Y, Z) -> (Z, size, size), rows first, stretched to the square as in the paper."""
    if lanczos and not labels:
        resized = (fromarray(slice_).resize((size, size), Resampling.LANCZOS) for slice_ in volume.T)
        return np.stack([np.asarray(picture) for picture in resized])
    return resize(volume.T, size, size, nearest=labels)


def from_slices(slices: np.ndarray, grid: Grid) -> np.ndarray:
    """Labels (integers) or probabilities: (Z, S, S) -> native (A, B, C), or (P, Z, S, S) -> (P, A, B, C)."""
    columns, rows, depth = grid.canonical_shape
    if slices.shape[-3] != depth:
        raise ValueError(f"{slices.shape[-3]} slices for a scan of {depth}.")
    flat = resize(slices.reshape(-1, *slices.shape[-2:]), rows, columns, nearest=slices.dtype.kind != "f")
    native = grid.to_native(flat.reshape(*slices.shape[:-2], rows, columns).T)  # (A, B, C) or (A, B, C, P)
    return native if slices.ndim == 3 else np.moveaxis(native, -1, 0)


def write_nifti(array: np.ndarray, grid: Grid, path: Path) -> None:
    """Writes native (A, B, C) uint8 labels or float32 probabilities; InputError where it cannot.

    A scan's own sform and qform stand in its results, too: every viewer shows both in one place.
    """
    image = (nib.Nifti1Image if max(array.shape) < 2**15 else nib.Nifti2Image)(array, grid.affine)
    image.header.set_xyzt_units("mm")
    sform, qform = grid.forms or ((grid.affine, 1), (grid.affine, 1))
    image.set_sform(*sform)
    image.set_qform(*qform)
    if not grid.forms and not np.allclose(image.get_qform(), grid.affine, atol=1e-3):
        image.header["qform_code"] = 0  # a quaternion cannot hold shear: the sform alone speaks
    with replacing(path) as part:
        nib.save(image, part)
