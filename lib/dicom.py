"""A folder of DICOM files to voxels on their own grid, and a label map to a DICOM segmentation of that series.

pydicom and highdicom read, sort and write; here is what is asked of them, and what is said where a folder holds no one volume.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentationTypeValues, SegmentDescription
from highdicom.spatial import get_series_volume_positions
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from lib.organs import SNOMED, SNOMED_SIDES
from lib.paths import InputError, replacing
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


def _multi_frame(images: list[Dataset]) -> hd.Image | None:
    """The one file of an enhanced CT or MRI, whose frames are read as they are needed; None for a file for each slice."""
    return hd.imread(images[0].filename, lazy_frame_retrieval=True) if FRAMES in images[0] else None


def _headers(path: Path) -> list[Dataset]:
    """Headers of all images with a place in the patient, without localizers and second copies of an image."""
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
        placed = FRAMES in header or {"ImagePositionPatient", "ImageOrientationPatient"} <= set(header.dir("Image"))
        if placed and header.get("SamplesPerPixel") == 1 and not {"LOCALIZER", "SEGMENTATION"} & set(header.get("ImageType", "")):
            found.setdefault(header.SOPInstanceUID, header)
    if not found:
        raise InputError(
            f"{path} holds no DICOM image of a slice through a patient: name the folder of a CT or MRI series, or a NIfTI file."
        )
    return list(found.values())


def _series(path: Path, asked: str) -> list[Dataset]:
    """The one series in the folder, or the one that is `asked` for by its number, description or UID."""
    by_uid: dict[str, list[Dataset]] = {}
    for header in _headers(path):
        by_uid.setdefault(header.SeriesInstanceUID, []).append(header)
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


def _geometry(image: hd.Image, path: Path) -> hd.VolumeGeometry:
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
    if (image := _multi_frame(images)) is not None:
        geometry = _geometry(image, path).permute_spatial_axes([2, 1, 0])
        grid, planes = Grid(geometry.spatial_shape, geometry.get_affine("RAH")), _frames(image, geometry.spatial_shape[2])
    else:
        images = _sorted(images, path)
        grid, planes = _grid(images), _planes(images)
    return grid.to_canonical(_stack(planes, grid.shape, path)), DicomSeries(grid, str(images[0].get("Modality", "")), images)


def _segment(number: int, prompt: str, algorithm: hd.AlgorithmIdentificationSequence) -> SegmentDescription:
    """An organ by its SNOMED CT code, with its side; other text as an anatomical structure."""
    kind = Code(SNOMED[prompt][0], "SCT", SNOMED[prompt][1]) if prompt in SNOMED else codes.SCT.AnatomicalStructure
    category = codes.SCT.AnatomicalStructure
    segment = SegmentDescription(number, prompt[:64], category, kind, "AUTOMATIC", algorithm_identification=algorithm)
    if prompt in SNOMED and (side := prompt.split()[0]) in SNOMED_SIDES:
        modifier = hd.sr.CodedConcept(SNOMED_SIDES[side], "SCT", side.capitalize())
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return segment


def _completed(images: list[Dataset]) -> list[Dataset]:
    """Headers with what every DICOM file must have, empty where an anonymiser took it away."""
    space = hd.UID()
    for image in images:
        for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            image.setdefault(name, "")
        image.setdefault("FrameOfReferenceUID", space)
    return images


@contextmanager
def _encodable(path: Path) -> Iterator[None]:
    """Turns what highdicom says of a header against the standard into one InputError sentence."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be written, for the scan's own DICOM headers are against the standard ({why}).") from error


def write_segments(labels: np.ndarray, names: Sequence[tuple[int, str]], series: DicomSeries, path: Path, model: str, note: str) -> None:
    """Writes native (columns, rows, slices) labels as a DICOM segmentation of the series: a segment for each (label, prompt)."""
    table = np.zeros(256, np.uint8)
    table[[label for label, _ in names]] = np.arange(1, len(names) + 1)  # segments are numbered from 1
    marked: Any = table[labels.T]
    if (image := _multi_frame(series.images)) is not None:
        marked = _geometry(image, path).with_array(marked)
    algorithm = hd.AlgorithmIdentificationSequence(model[:64], codes.DCM.ArtificialIntelligence, "1")
    with warnings.catch_warnings(), _encodable(path):
        warnings.simplefilter("ignore", UserWarning)  # of names that are not in DICOM's manner, as an anonymised patient's
        segmentation = hd.seg.Segmentation(
            source_images=_completed(series.images),
            pixel_array=marked,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(number, prompt, algorithm) for number, (_, prompt) in enumerate(names, 1)],
            series_instance_uid=hd.UID(),
            series_number=900,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="tgated-medvlm-repro",
            manufacturer_model_name=model[:64],
            software_versions="1",
            device_serial_number="0",
            content_description=note[:64],
        )
    segmentation.SeriesDescription = note[:64]
    with replacing(path) as part:
        segmentation.save_as(part)
