"""A folder of DICOM files to voxels on their own grid; a label map to a DICOM segmentation. By highdicom."""

import warnings
from collections.abc import Sequence
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
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, MRImageStorage

from lib.files import InputError
from lib.volumes import Grid

SPACING = 0.05  # share of the slices' distance by which positions may deviate: scanners round to 0.01 mm
TILT = 0.5  # 1 - cosine between slice normal and stacking direction: a tilted gantry's is below 0.15
FRAMES = "PerFrameFunctionalGroupsSequence"  # which a multi-frame image has
SNOMED = {  # SNOMED CT codes as DICOM segmentations use them; the side of a paired organ is a code of its own
    "liver": "10200004", "kidney": "64033007", "spleen": "78961009", "pancreas": "15776009",
    "aorta": "15825003", "inferior vena cava": "64131007", "adrenal gland": "23451007",
    "gallbladder": "28231008", "esophagus": "32849002", "stomach": "69695003", "duodenum": "38848004",
}  # fmt: skip
SIDES = {"right": "24028007", "left": "7771000"}
NEEDED = "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime"


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One series: its `grid` with the axes (column, row, slice), and the headers of its images by slice.

    volume: of a multi-frame image, with the axes (slice, row, column); None for a file for each slice.
    """

    grid: Grid
    modality: str
    images: list[Dataset]
    volume: hd.Volume | None = None


def _header(file: Path) -> Dataset:
    """A file's header, also where it lacks DICOM's preamble; empty where the file is not DICOM."""
    try:
        return dcmread(file, stop_before_pixels=True)
    except InvalidDicomError:
        with open(file, "rb") as opened:
            bare = opened.read(2) in (b"\x02\0", b"\x08\0")  # group of an image's first element
        return dcmread(file, stop_before_pixels=True, force=True) if bare else Dataset()
    except Exception as error:  # pydicom raises many kinds for a damaged file
        why, advice = " ".join(str(error).split())[:120], "fetch it again, or take it out of the folder."
        raise InputError(f"{file} cannot be read as DICOM ({why}): {advice}") from error


def _placed(header: Dataset) -> bool:
    return FRAMES in header or all(header.get(f"Image{x}Patient") for x in ("Position", "Orientation"))


def _with_place(image: Dataset) -> Dataset:
    if not _placed(image):
        why = "does not say where in the patient it lies: it is cut short or edited"
        raise InputError(f"{image.filename} {why}; export the series again.")
    return image


def _images(path: Path, asked: str) -> list[Dataset]:
    """Headers of the only series in the folder, or of the one with the number, description or UID `asked`."""
    if not path.exists():
        raise InputError(f"{path} does not exist: name a .nii or .nii.gz file, or a folder of DICOM files.")
    found: dict[str, dict[Any, Dataset]] = {}
    for file in [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file()):
        header = _header(file)
        image = _placed(header) or header.get("SOPClassUID") in (CTImageStorage, MRImageStorage)
        other = header.get("Modality") == "SEG" or "LOCALIZER" in header.get("ImageType", "")
        if image and not other and header.get("SamplesPerPixel", 1) == 1:
            itself = header.get("SOPInstanceUID", file), str(header.get("ImagePositionPatient"))
            series = found.setdefault(str(header.get("SeriesInstanceUID", "none")), {})
            series.setdefault(
                itself, header if "Rows" in header else _with_place(header)
            )  # copies count once
    every = {uid: [*images.values()] for uid, images in found.items()}
    known = {uid: every[uid] for uid in every if any(map(_placed, every[uid]))} or every  # no dose reports
    if not known:
        advice = "name the folder of a CT or MRI series, or a NIfTI file."
        raise InputError(f"{path} holds no DICOM image of a slice through a patient: {advice}")
    first = {uid: images[0] for uid, images in known.items()}
    names = "SeriesNumber", "SeriesDescription"
    told = {uid: [str(first[uid].get(name) or "-") for name in names] for uid in known}
    fitting = [uid for uid in known if not asked or asked in (uid, *told[uid])]
    if len(fitting) != 1:
        listed = "; ".join(
            f"number {told[uid][0]}, {told[uid][1]!r}, {first[uid].get('Modality', '?')}, "
            f"images: {len(known[uid])}, UID {uid}"
            for uid in known
        )
        which = f"{len(fitting) or 'no'} series{f' {asked!r}' * bool(asked)}"
        advice = 'say SERIES=... (series="..."), its number, its description or its UID'
        raise InputError(f"{path} holds {which}: {advice}. There are: {listed}.")
    return [_with_place(image) for image in known[fitting[0]]]


def _sorted(images: list[Dataset], path: Path) -> list[Dataset]:
    """Images by slice; axes (column, row, slice) are right-handed, so an axial series runs to the head."""
    facts: dict[str, set[Any]] = {
        "sizes": {(image.get("Rows"), image.get("Columns")) for image in images},
        "pixel spacings": {str(image.get("PixelSpacing") or "unknown") for image in images},
        "orientations": {tuple(np.round(np.array(i.ImageOrientationPatient, float), 2)) for i in images},
        "places": {tuple(image.ImagePositionPatient) for image in images},
    }
    spacings = facts["pixel spacings"]
    one = len(facts["sizes"]) == len(spacings) == 1 and spacings != {"unknown"}
    tolerances: dict[str, Any] = {"rtol": SPACING, "perpendicular_tol": TILT, "orientation_tol": 1e-3}
    places_of = partial(get_series_volume_positions, images, **tolerances)
    if one and (places := places_of()[1]) is not None:
        return [image for _, image in sorted(zip(places, images, strict=True), key=lambda pair: -pair[0])]
    if one and (places := places_of(allow_missing_positions=True)[1]) is not None:
        lost, whole = max(places) + 1 - len(images), max(places) + 1
        raise InputError(f"{path} lacks {lost} of the series' {whole} slices: export it again, complete.")
    counted = ", ".join(f"{len(values)} {name}" for name, values in facts.items())
    why = f"that make no volume ({counted}; pixel spacing {' or '.join(sorted(spacings))})"
    advice = "keep one image for each place, of one size and orientation, at equal distances."
    raise InputError(f"{path} holds a series of {len(images)} images {why}: {advice}")


def _grid(images: list[Dataset]) -> Grid:
    """Grid of sorted slices. Its third axis goes from slice to slice: a tilted gantry shears it."""
    first, affine = images[0], np.eye(4)
    row, column = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    start, end = (np.array(image.ImagePositionPatient, float) for image in (first, images[-1]))
    thickness = abs(float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1))
    step = (end - start) / (len(images) - 1) if len(images) > 1 else np.cross(row, column) * thickness
    affine[:3] = np.column_stack([row * first.PixelSpacing[1], column * first.PixelSpacing[0], step, start])
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's world is LPS, NIfTI's RAS
    return Grid((first.Columns, first.Rows, len(images)), affine)


def _small(plane: np.ndarray) -> np.ndarray:
    """int16 where it holds the values, else float32."""
    small = plane.clip(-(2**15), 2**15 - 1).astype(np.int16)
    return small if np.array_equal(small, plane) else plane.astype(np.float32)


def _plane(image: Dataset) -> np.ndarray:
    """(columns, rows) of a single-frame image, rescaled as it says."""
    whole = dcmread(image.filename, force=True)
    return _small(np.asarray(apply_modality_lut(whole.pixel_array, whole), np.float64).T)


def read_dicom(path: Path, series: str = "") -> tuple[np.ndarray, DicomSeries]:
    """Canonical voxels (X, Y, Z), rescaled as the files say, of a folder or file; `series`: one of several.

    Raises:
        InputError: there is no series, or several; its slices make no volume, or cannot be decoded.
    """
    images, volume = _images(path, series), None
    if len(images) > 1 and any(FRAMES in image for image in images):
        raise InputError(f"{path} holds a series of {len(images)} multi-frame files: name the one you mean.")
    if FRAMES not in images[0]:
        images = _sorted(images, path)
        grid = _grid(images)
        if path.is_file():
            warnings.warn(f"{path} is one slice: for the whole series, name its folder.", stacklevel=2)
    try:
        if FRAMES in images[0]:
            plain: dict[str, Any] = {
                "apply_real_world_transform": False, "apply_presentation_lut": False, "rtol": SPACING,
            }
            volume = hd.imread(images[0].filename).get_volume(**plain)
            turned = volume.permute_spatial_axes([2, 1, 0])
            grid, voxels = Grid(turned.spatial_shape, turned.get_affine("RAH")), _small(turned.array)
        else:
            voxels = np.stack([_plane(image) for image in images], axis=2)
    except Exception as error:  # each decoder raises its own kinds
        why = " ".join(str(error).split())[:200]
        advice = "export it again, uncompressed, one phase with equal distances, or as NIfTI."
        raise InputError(f"{path} cannot be decoded into a volume ({why}): {advice}") from error
    return grid.to_canonical(voxels), DicomSeries(grid, str(images[0].get("Modality", "")), images, volume)


def _segment(number: int, prompt: str, algorithm: hd.AlgorithmIdentificationSequence) -> Any:
    """An organ by its SNOMED CT code, with its side; other text as an anatomical structure."""
    side = prompt.split(" ")[0] if prompt.startswith(("left ", "right ")) else ""
    name, kind = prompt.removeprefix(f"{side} "), codes.SCT.AnatomicalStructure
    if name in SNOMED:
        kind = Code(SNOMED[name], "SCT", name.capitalize())
    about = (number, prompt[:64], codes.SCT.AnatomicalStructure, kind, "AUTOMATIC")
    segment = hd.seg.SegmentDescription(*about, algorithm_identification=algorithm)
    if name in SNOMED and side:
        modifier = hd.sr.CodedConcept(SIDES[side], "SCT", side.capitalize())
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return segment


def _completed(images: list[Dataset]) -> list[Dataset]:
    """Headers with all that DICOM asks for, empty where an anonymiser removed it, and in UTF-8."""
    space = hd.UID()
    for image in images:
        image.decode()
        image.SpecificCharacterSet = "ISO_IR 192"  # highdicom does not know every character set of Asia
        for name in NEEDED.split():
            image.setdefault(name, "")
        image.setdefault("FrameOfReferenceUID", space)
    return images


def write_segments(
    labels: np.ndarray, names: Sequence[tuple[int, str]], series: DicomSeries, path: Path, model: str,
    note: str,
) -> None:
    """Writes native (columns, rows, slices) labels as a DICOM segmentation: a segment for each of `names`.

    InputError: highdicom refuses the series' headers.
    """
    table = np.zeros(256, np.uint8)
    table[[label for label, _ in names]] = np.arange(1, len(names) + 1)  # segments are numbered from 1
    marked: Any = table[labels.T]  # (slices, rows, columns)
    more: dict[str, Any] = {"content_description": note[:64], "omit_empty_frames": bool(marked.any())}
    if series.volume is not None:
        marked = series.volume.with_array(marked)
    algorithm = hd.AlgorithmIdentificationSequence(model[:64], codes.DCM.ArtificialIntelligence, "1")
    segments = [_segment(number, prompt, algorithm) for number, (_, prompt) in enumerate(names, 1)]
    number, maker = (hd.UID(), 900, hd.UID(), 1), ("tgated-medvlm-repro", model[:64], "1", "0")
    kind = hd.seg.SegmentationTypeValues.BINARY
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names not written as DICOM asks
        try:
            images = _completed(series.images)
            found = hd.seg.Segmentation(images, marked, kind, segments, *number, *maker, **more)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:160]
            fault = "for the scan's own DICOM headers are against the standard"
            raise InputError(f"{path} cannot be written, {fault} ({why}).") from error
    found.SeriesDescription = note[:64]
    found.save_as(path)
