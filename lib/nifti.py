"""A NIfTI file's numbers, and where its header places them: contradictions are said, or refused."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from isal import igzip  # gzip, twice as fast
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.volumeutils import shape_zoom_affine

from lib.files import InputError

UNITS_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units' codes: unknown, metre, millimetre, micron
VOXEL_MM, FARTHEST_MM = (0.05, 100), 1e5  # every scan of a body keeps to these; else its header is wrong
NEAR = 0.1  # voxels by which two grids may differ: ITK's rounding makes 1e-4 mm
QUIET = logging.Logger("nifti", logging.CRITICAL)  # nibabel speaks of headers that it mends, without a name
Forms = tuple[tuple[np.ndarray | None, int], ...]


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
