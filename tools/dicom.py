"""A folder of DICOM files to voxels on their own grid; a label map to a DICOM segmentation. By highdicom."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, MRImageStorage

from lib.files import InputError
from lib.organs import KEYS
from lib.volumes import Grid

FRAMES = "PerFrameFunctionalGroupsSequence"  # which a multi-frame image has
NEEDED = "PatientID PatientName PatientBirthDate PatientSex AccessionNumber StudyID StudyDate StudyTime"
AS_STORED: dict[str, Any] = {  # rescaled, and nothing else; scanners round positions to 0.01 mm
    "apply_real_world_transform": False, "apply_presentation_lut": False, "rtol": 0.05,
}


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One series: its `grid` with the axes (column, row, slice), the same as highdicom has it with the axes
    (slice, row, column), and the headers of its images."""

    grid: Grid
    modality: str
    images: list[Dataset]
    geometry: hd.VolumeGeometry


def _header(file: Path) -> Dataset:
    """A file's header, also where it lacks DICOM's preamble; empty where the file is not DICOM."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(132)
        if start[128:] != b"DICM" and start[:2] not in (b"\x02\0", b"\x08\0"):  # an image's first element
            return Dataset()
        return dcmread(file, stop_before_pixels=True, force=True)
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
            series = found.setdefault(str(header.get("SeriesInstanceUID", "none")), {})  # copies count once
            series.setdefault(itself, header if "Rows" in header else _with_place(header))
    every = {uid: [*images.values()] for uid, images in found.items()}
    known = {uid: every[uid] for uid in every if any(map(_placed, every[uid]))} or every  # no dose reports
    if not known:
        advice = "name the folder of a CT or MRI series, or a NIfTI file."
        raise InputError(f"{path} holds no DICOM image of a slice through a patient: {advice}")
    names = "SeriesNumber", "SeriesDescription", "Modality"
    told = {uid: [str(images[0].get(name) or "-") for name in names] for uid, images in known.items()}
    fitting = [uid for uid in known if not asked or asked in (uid, *told[uid][:2])]
    if len(fitting) != 1:
        listed = "; ".join(f"number {number}, {about!r}, {kind}, images: {len(known[uid])}, UID {uid}"
                           for uid, (number, about, kind) in told.items())
        which = f"{len(fitting) or 'no'} series{f' {asked!r}' * bool(asked)}"
        advice = 'say SERIES=... (series="..."), its number, its description or its UID'
        raise InputError(f"{path} holds {which}: {advice}. There are: {listed}.")
    return [_with_place(image) for image in known[fitting[0]]]


def read_dicom(path: Path, series: str = "") -> tuple[np.ndarray, DicomSeries]:
    """Canonical voxels (X, Y, Z), rescaled as the files say, of a folder or file; `series`: one of several.

    InputError: there is no series, or several; its slices make no volume (some are missing, they have
    several sizes, distances or orientations, or a gantry was tilted), or cannot be decoded.
    """
    images = _images(path, series)
    if len(images) > 1 and any(FRAMES in image for image in images):
        raise InputError(f"{path} holds a series of {len(images)} multi-frame files: name the one you mean.")
    try:
        if FRAMES in images[0]:
            volume = hd.imread(images[0].filename).get_volume(**AS_STORED)
        else:
            if path.is_file():
                warnings.warn(f"{path} is one slice: for the whole series, name its folder.", stacklevel=2)
            whole, space = [dcmread(image.filename, force=True) for image in images], hd.UID()
            for image in whole:
                image.setdefault("SpacingBetweenSlices", image.get("SliceThickness") or 1)  # of a single one
                image.setdefault("FrameOfReferenceUID", space)
            volume = hd.get_volume_from_series(whole, dtype=np.float32, orientation_tol=1e-3, **AS_STORED)
    except Exception as error:  # each decoder raises its own kinds
        why = " ".join(str(error).split())[:200]
        advice = "export it again, complete, one phase with equal distances, or as NIfTI."
        raise InputError(f"{path} cannot be decoded into a volume ({why}): {advice}") from error
    turned = volume.permute_spatial_axes([2, 1, 0])
    grid, voxels = Grid(turned.spatial_shape, turned.get_affine("RAH")), turned.array
    small = voxels.clip(-(2**15), 2**15 - 1).astype(np.int16)
    voxels = grid.to_canonical(small if np.array_equal(small, voxels) else voxels.astype(np.float32))
    return voxels, DicomSeries(grid, str(images[0].get("Modality", "")), images, volume.get_geometry())


def _segment(number: int, prompt: str, algorithm: hd.AlgorithmIdentificationSequence) -> Any:
    """An organ by its SNOMED CT code, with its side; other text as an anatomical structure."""
    side = prompt.split(" ")[0] if prompt.startswith(("left ", "right ")) else ""
    name, kind = prompt.removeprefix(f"{side} ").title().replace(" ", ""), codes.SCT.AnatomicalStructure
    if prompt in KEYS:
        kind = getattr(codes.SCT, name)  # codes.SCT.InferiorVenaCava
    about = (number, prompt[:64], codes.SCT.AnatomicalStructure, kind, "AUTOMATIC")
    segment = hd.seg.SegmentDescription(*about, algorithm_identification=algorithm)
    if prompt in KEYS and side:
        modifier = hd.sr.CodedConcept.from_code(getattr(codes.SCT, side.title()))
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return segment


def write_segments(
    labels: np.ndarray, names: dict[int, str], series: DicomSeries, path: Path, model: str, note: str
) -> None:
    """Writes native (columns, rows, slices) labels as a DICOM segmentation: a segment for each {label: name}.

    InputError: highdicom refuses the series' headers.
    """
    table = np.zeros(256, np.uint8)
    table[[*names]] = np.arange(1, len(names) + 1)  # segments are numbered from 1
    marked = series.geometry.with_array(table[labels.T])  # (slices, rows, columns)
    algorithm = hd.AlgorithmIdentificationSequence(model[:64], codes.DCM.ArtificialIntelligence, "1")
    segments = [_segment(number, prompt, algorithm) for number, prompt in enumerate(names.values(), 1)]
    number, maker = (hd.UID(), 900, hd.UID(), 1), ("tgated-medvlm-repro", model[:64], "1", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names not written as DICOM asks
        try:
            for image in series.images:  # what an anonymiser took; a character set that highdicom knows
                image.decode()
                image.SpecificCharacterSet = "ISO_IR 192"
                image.setdefault("FrameOfReferenceUID", series.geometry.frame_of_reference_uid)
                for name in NEEDED.split():
                    image.setdefault(name, "")
            found = hd.seg.Segmentation(
                series.images, marked, "BINARY", segments, *number, *maker, content_description=note[:64],
                omit_empty_frames=bool(labels.any()))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:160]
            fault = "for the scan's own DICOM headers are against the standard"
            raise InputError(f"{path} cannot be written, {fault} ({why}).") from error
    found.SeriesDescription = note[:64]
    found.save_as(path)
