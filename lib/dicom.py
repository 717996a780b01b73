"""From a folder of DICOM files to voxels on the scan's own grid.

pydicom and highdicom read and sort; here is what is asked of them, and what is said where a folder does not hold one volume.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.spatial import get_series_volume_positions
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut
from pydicom.uid import CTImageStorage, MRImageStorage

from lib.paths import InputError
from lib.volumes import Grid

SPACING = 0.05  # share of the slices' distance by which positions may deviate: scanners round them to 0.01 mm and worse
FRAMES = "PerFrameFunctionalGroupsSequence"  # which a multi-frame image has
KINDS: tuple[Any, ...] = (np.int16, np.int32, np.float32)
TILT = 0.5  # 1 - cosine between the slices' normal and the way from slice to slice: a tilted gantry's is below 0.15


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One series: its `grid` with the axes (column, row, slice), and the headers of its `images` from slice to slice."""

    grid: Grid
    modality: str
    images: list[Dataset]


def multi_frame(images: list[Dataset]) -> hd.Image | None:
    """The one file of an enhanced CT or MRI, whose frames are read as they are needed; None for a file for each slice."""
    return hd.imread(images[0].filename, lazy_frame_retrieval=True) if FRAMES in images[0] else None


def _headers(path: Path) -> list[Dataset]:
    """Headers of all images with a place in the patient, without localizers, segmentations and second copies."""
    if not path.exists():
        raise InputError(f"{path} does not exist: name a NIfTI file (.nii, .nii.gz), or a folder of DICOM files.")
    found: dict[str, Dataset] = {}
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        try:
            header = dcmread(file, stop_before_pixels=True)
        except InvalidDicomError:
            continue
        except Exception as error:  # pydicom raises many kinds for a damaged file
            raise InputError(
                f"{file} cannot be read as DICOM ({str(error)[:120]}): fetch it again, or take it out of the folder."
            ) from error
        placed = FRAMES in header or all(header.get(f"Image{name}Patient") for name in ("Position", "Orientation"))
        if not placed and header.get("SOPClassUID") in (CTImageStorage, MRImageStorage):
            raise InputError(f"{file} does not say where in the patient it lies: it is cut short or edited; export the series again.")
        other = header.get("Modality") == "SEG" or "LOCALIZER" in header.get("ImageType", "")
        if placed and not other and header.get("SamplesPerPixel") == 1:
            found.setdefault(header.get("SOPInstanceUID", str(file)), header)
    if not found:
        raise InputError(
            f"{path} holds no DICOM image of a slice through a patient: name the folder of a CT or MRI series, or a NIfTI file."
        )
    return list(found.values())


def _series(path: Path, asked: str) -> list[Dataset]:
    """The one series in the folder, or the one that is `asked` for by its number, description or UID."""
    by_uid: dict[str, list[Dataset]] = {}
    for header in _headers(path):
        by_uid.setdefault(header.get("SeriesInstanceUID", "none"), []).append(header)
    fitting = [
        images
        for uid, images in by_uid.items()
        if not asked or asked in (uid, str(images[0].get("SeriesNumber")), str(images[0].get("SeriesDescription")))
    ]
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(
        f"number {images[0].get('SeriesNumber', '-')}, {str(images[0].get('SeriesDescription', '')) or 'no description'!r}, "
        f"{images[0].get('Modality', '?')}, {len(images)} image{'s' * (len(images) > 1)}, UID {uid}"
        for uid, images in by_uid.items()
    )
    which = f"{len(fitting)} series" if fitting else "no series"
    answer = 'which one do you mean? Say SERIES=... (series="..."): its number, its description or its UID'
    raise InputError(f"{path} holds {which}{f' {asked!r}' * bool(asked)}, {answer}. There are: {listed}.")


def _sorted(images: list[Dataset], path: Path) -> list[Dataset]:
    """Single-frame images by slice; along axes (column, row, slice) that are right-handed, so an axial series runs to the head."""
    for name, word in (("Rows", "sizes"), ("Columns", "sizes"), ("PixelSpacing", "pixel spacings")):
        if len(kinds := {str(image.get(name)) for image in images}) > 1 or "None" in kinds:
            raise InputError(f"{path} holds a series with slices of several or unknown {word} ({', '.join(sorted(kinds))}): keep one kind.")
    places_of = partial(get_series_volume_positions, images, rtol=SPACING, perpendicular_tol=TILT, orientation_tol=1e-3)
    _, places = places_of()
    if places is not None:
        return [image for _, image in sorted(zip(places, images, strict=True), key=lambda pair: -pair[0])]
    first = np.array(images[0].ImageOrientationPatient, float)
    if turned := sum(not np.allclose(np.array(image.ImageOrientationPatient, float), first, atol=1e-3) for image in images):
        raise InputError(f"{path} holds a series in several orientations ({turned} of {len(images)} are not like the first): keep one.")
    if (apart := len({tuple(image.ImagePositionPatient) for image in images})) < len(images):
        raise InputError(
            f"{path} holds a series of {len(images)} images at {apart} places (phases, echoes, copies?): keep one for each place."
        )
    _, places = places_of(allow_missing_positions=True)
    if places is not None:
        raise InputError(
            f"{path} lacks {max(places) + 1 - len(images)} of the series' {max(places) + 1} slices: export it again, complete."
        )
    raise InputError(f"{path} holds a series whose slices are not at equal distances: resample it to a NIfTI file with equal ones.")


def _grid(images: list[Dataset]) -> Grid:
    """Grid of sorted single-frame images. The third axis goes from slice to slice, so a tilted gantry shears it, as it does the body."""
    first, affine = images[0], np.eye(4)
    row, column = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    start, end = (np.array(image.ImagePositionPatient, float) for image in (first, images[-1]))
    thickness = float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)  # of a slice by itself
    step = (end - start) / (len(images) - 1) if len(images) > 1 else np.cross(row, column) * abs(thickness)
    affine[:3] = np.column_stack([row * first.PixelSpacing[1], column * first.PixelSpacing[0], step, start])
    return Grid((first.Columns, first.Rows, len(images)), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # DICOM's world is LPS, NIfTI's RAS


def _planes(images: list[Dataset]) -> Iterator[np.ndarray]:
    """(rows, columns) float64 of each single-frame image, as stored or compressed, rescaled."""
    for image in images:
        whole = dcmread(image.filename)
        yield np.asarray(apply_modality_lut(whole.pixel_array, whole), np.float64)


def _frames(image: hd.Image, depth: int) -> Iterator[np.ndarray]:
    """The same of a multi-frame image, in the order of its geometry."""
    plane_of = partial(image.get_volume, as_indices=True, rtol=SPACING, apply_real_world_transform=False, apply_presentation_lut=False)
    for z in range(depth):
        yield plane_of(slice_start=z, slice_end=z + 1).array[0]


def _kind(plane: np.ndarray) -> int:
    """Place in KINDS of the smallest type that holds the values."""
    whole, low, high = np.array_equal(plane, np.rint(plane)), plane.min(), plane.max()
    return next((i for i, kind in enumerate(KINDS[:2]) if whole and np.iinfo(kind).min <= low and high <= np.iinfo(kind).max), 2)


def _stack(planes: Iterator[np.ndarray], shape: tuple[int, int, int], path: Path) -> np.ndarray:
    """(columns, rows, slices) of the smallest of KINDS that holds all values; one plane at a time."""
    voxels, kind = np.zeros(shape, KINDS[0], order="F"), 0
    try:
        for z, plane in enumerate(planes):
            voxels = voxels.astype(KINDS[kind := max(kind, _kind(plane))], copy=False)
            voxels[:, :, z] = plane.T
    except Exception as error:  # each decoder raises its own kinds
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{path} holds an image whose pixels cannot be decoded ({why}): export it again, uncompressed.") from error
    return voxels


def geometry_of(image: hd.Image, path: Path) -> hd.VolumeGeometry:
    """Geometry of a multi-frame image: axes (slice, row, column). InputError where its frames make no volume."""
    geometry = image.get_volume_geometry(rtol=SPACING, allow_duplicate_positions=False)
    if geometry is None:
        advice = "export one phase of it, with equal distances, as single images or NIfTI."
        raise InputError(
            f"{path} holds a multi-frame image whose frames make no volume, as they overlap, are tilted or lack some: {advice}"
        )
    return geometry


def read_dicom(path: Path, series: str = "") -> tuple[np.ndarray, DicomSeries]:
    """Canonical voxels (X, Y, Z), rescaled as the files say, of the series in a folder (or a file); `series` chooses one of several.

    Raises:
        InputError: there is none, or there are several, its slices make no volume, or its pixels cannot be decoded.
    """
    images = _series(path, series)
    if len(images) > 1 and any(FRAMES in image for image in images):
        raise InputError(f"{path} holds a series of {len(images)} multi-frame files: name the one file that you mean.")
    if (image := multi_frame(images)) is not None:
        geometry = geometry_of(image, path).permute_spatial_axes([2, 1, 0])
        grid, planes = Grid(geometry.spatial_shape, geometry.get_affine("RAH")), _frames(image, geometry.spatial_shape[2])
    else:
        images = _sorted(images, path)
        grid, planes = _grid(images), _planes(images)
    return grid.to_canonical(_stack(planes, grid.shape, path)), DicomSeries(grid, str(images[0].get("Modality", "")), images)
