"""A DICOM series to voxels on their own grid; a label map to a DICOM segmentation. By highdicom."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset, config
from pydicom.datadict import dictionary_VR
from pydicom.sr.codedict import codes
from pydicom.valuerep import validate_value

from lib.files import InputError, replacing
from lib.organs import KEYS
from lib.volumes import Grid
from tools.dicom_files import FRAMES, NUMBERS, UIDS, choose, mend, text_of

SHARED = "SharedFunctionalGroupsSequence"
KEPT = (*UIDS, *NUMBERS, SHARED, FRAMES, "NumberOfFrames", "SpacingBetweenSlices", "SOPClassUID",
        "SOPInstanceUID", "Modality")
ABOUT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
         "AccessionNumber", "ReferringPhysicianName")
AS_STORED: dict[str, Any] = {  # rescaled, and nothing else; `_step` asks more of the places
    "apply_real_world_transform": False, "apply_presentation_lut": False, "dtype": np.float32,
    "perpendicular_tol": 1, "rtol": 0.5,
}


@dataclass(frozen=True, eq=False)
class DicomSeries:
    """One series: its `grid` with the axes (column, row, slice), sheared where the gantry was tilted.

    images: what segmentations take from the headers of its images, or of the one that has all frames.
    left_out: attributes of these that are against the standard. order: which image or frame each slice is.
    """

    grid: Grid
    modality: str
    images: list[Dataset]
    left_out: list[str]
    order: np.ndarray


def _step(places: np.ndarray, axes: np.ndarray, names: list[str]) -> np.ndarray:
    """(3,) mm from one slice to the next of sorted places (N, 3). ValueError: they are no even stack.

    highdicom 0.28 takes no tilted gantry for a volume, and passes over 2.5 degrees of tilt without a word.
    """
    step = (places[-1] - places[0]) / (len(places) - 1)
    if abs(step @ np.cross(*axes)) < max(0.5 * np.linalg.norm(step), 1e-3):
        raise ValueError(f"{names[0]} and {names[-1]} do not lie one above the other")
    off = np.linalg.norm(places - places[0] - np.outer(np.arange(len(places)), step), axis=1)
    if off.max() > 0.05 * np.linalg.norm(step) + 0.02:  # scanners round to 0.01 mm
        apart = np.linalg.norm(np.diff(places, axis=0), axis=1)
        usual = np.median(apart[apart > 0])
        worst = int(np.abs(apart - usual).argmax())
        what = f"{apart[worst]:.3g} mm apart, most others {usual:.3g} mm"
        raise ValueError(f"{names[worst]} and {names[worst + 1]} lie {what}")
    return step


def _volume(images: list[Dataset]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels (column, row, slice), affine, and which image or frame each slice is. ValueError: no volume."""
    measures, plane, placed = images[0], images[0], images
    names = ["/".join(Path(image.filename).parts[-2:]) for image in images]
    if FRAMES in images[0]:
        frames, shared = images[0][FRAMES].value, images[0][SHARED].value[0]
        for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):  # where highdicom 0.28 wants them
            if name not in shared:
                shared[name] = frames[0][name]
        measures, plane = shared.PixelMeasuresSequence[0], shared.PlaneOrientationSequence[0]
        placed = [(f if "PlanePositionSequence" in f else shared).PlanePositionSequence[0] for f in frames]
        names = [f"frame {number}" for number in range(1, len(frames) + 1)]
    places = np.array([[*item.ImagePositionPatient] for item in placed], float)
    order = hd.spatial.get_plane_sort_index(places.tolist(), plane.ImageOrientationPatient)
    axes = np.reshape(plane.ImageOrientationPatient, (2, 3)).astype(float)
    if len(order) > 1:
        step = _step(places[order], axes, [names[n] for n in order])
    elif measures.get("SliceThickness"):
        step = np.cross(*axes) * abs(float(measures.SliceThickness))
    else:
        raise ValueError("it is one slice, and SliceThickness is missing")
    if FRAMES in images[0]:
        volume = hd.Image.from_dataset(images[0], copy=False).get_volume(**AS_STORED)
    else:
        volume = hd.get_volume_from_series(images, **AS_STORED)
    if volume.array.ndim != 3:
        raise ValueError("it is in colour")
    volume = volume.permute_spatial_axes([2, 1, 0])
    affine = volume.get_affine("RAH").copy()
    affine[:3, 2] = step * (-1, -1, 1)
    if not (np.isfinite(affine).all() and np.isfinite(volume.array).all()):
        raise ValueError("its values are no numbers, or too large")
    for image in images:  # for the segmentation
        image.SpacingBetweenSlices = round(abs(float(step @ np.cross(*axes))), 6)
        image.setdefault("SliceThickness", image.SpacingBetweenSlices)
    return volume.array, affine, np.array(order)


def _source(image: Dataset) -> Dataset:
    """What a segmentation takes from an image's header, as far as it is good."""
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"  # highdicom 0.28 lacks Korean, and an empty first value
    for name in KEPT:
        if name in image:
            header.add(image[name])
    for name in ABOUT:
        text = text_of(image, name)
        try:
            validate_value(dictionary_VR(name), text, config.RAISE)
        except ValueError:
            text = ""
        setattr(header, name, text if name != "PatientSex" or text in ("M", "F", "O") else "")
    return header


def read_dicom(path: Path, series: str = "") -> tuple[np.ndarray, DicomSeries]:
    """Canonical voxels (X, Y, Z), rescaled as the files say, of a folder or file; `series`: one of several.

    InputError: there is no series, or several; its slices make no volume (some are missing, they have
    several sizes, distances or orientations), or cannot be decoded.
    """
    folder = path.parent if path.name.upper() == "DICOMDIR" else path
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # pydicom's, of each odd value in each file
        images = choose(folder, series)
        try:
            if len(images) > 1 and any(FRAMES in image for image in images):
                raise ValueError(f"it is {len(images)} multi-frame files: name one")
            images = mend(images)
            voxels, affine, order = _volume(images)
            sources = [_source(image) for image in images]
            left_out = [name for name in ABOUT if text_of(images[0], name) != text_of(sources[0], name)]
        except Exception as error:  # each decoder raises its own kinds
            why = " ".join(str(error).split())[:300]
            advice = "export it again, complete, one phase with equal distances, or as NIfTI."
            raise InputError(f"{path} cannot be decoded into a volume ({why}): {advice}") from error
    if folder.is_file() and len(images) > 1:
        warnings.warn(f"{path} is one of {len(images)} slices of its series: all are read.", stacklevel=2)
    small = voxels.clip(-(2**15), 2**15 - 1).astype(np.int16)
    voxels = small if np.array_equal(small, voxels) else voxels
    grid = Grid(voxels.shape, affine)
    found = DicomSeries(grid, images[0].Modality, sources, left_out, order)
    return grid.to_canonical(voxels), found


def _plain(text: str) -> str:
    """Text as a DICOM file holds it: 64 characters, none of them a control or a backslash."""
    return re.sub(r"[\\\x00-\x1f\x7f]", "/", text.encode(errors="replace").decode())[:64] or "-"


def _segment(number: int, prompt: str, algorithm: hd.AlgorithmIdentificationSequence) -> Any:
    """An organ by its SNOMED CT code, with its side; other text as an anatomical structure."""
    side = prompt.split(" ")[0] if prompt.startswith(("left ", "right ")) else ""
    name, kind = prompt.removeprefix(f"{side} ").title().replace(" ", ""), codes.SCT.AnatomicalStructure
    if prompt in KEYS:
        kind = getattr(codes.SCT, name)  # codes.SCT.InferiorVenaCava
    about = (number, _plain(prompt), codes.SCT.AnatomicalStructure, kind, "AUTOMATIC")
    segment = hd.seg.SegmentDescription(*about, algorithm_identification=algorithm)
    if segment.SegmentLabel != prompt:  # what was typed
        segment.SegmentDescription = prompt.encode(errors="replace").decode()[:1024]
    if prompt in KEYS and side:
        modifier = hd.sr.CodedConcept.from_code(getattr(codes.SCT, side.title()))
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return segment


def write_segments(labels: np.ndarray, names: dict[int, str], series: DicomSeries, path: Path, model: str,
                   note: str) -> None:
    """Writes native (columns, rows, slices) labels as a DICOM segmentation: a segment for each {label: name}.

    InputError: highdicom refuses the series' headers.
    """
    table = np.zeros(256, np.uint8)
    table[[*names]] = np.arange(1, len(names) + 1)  # segments are numbered from 1
    marked = np.empty_like(labels.T)  # (images or frames, rows, columns)
    marked[series.order] = table[labels.T]
    number, maker = (hd.UID(), 900, hd.UID(), 1), ("tgated-medvlm-repro", _plain(model), "1", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names not written as DICOM asks
        try:
            family = codes.DCM.ArtificialIntelligence
            algorithm = hd.AlgorithmIdentificationSequence(_plain(model), family, "1")
            segments = [_segment(n, prompt, algorithm) for n, prompt in enumerate(names.values(), 1)]
            found = hd.seg.Segmentation(
                series.images, marked, "BINARY", segments, *number, *maker, content_description=note[:64],
                omit_empty_frames=bool(labels.any()))
            found.SeriesDescription = note[:64]
            with replacing(path) as part:
                found.save_as(part)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())[:160]
            fault = "for the scan's own DICOM headers are against the standard"
            raise InputError(f"{path} cannot be written, {fault} ({why}).") from error
    if series.left_out:
        why = "which the scan's headers give against the standard"
        warnings.warn(f"{path.name} leaves out {', '.join(series.left_out)}, {why}.", stacklevel=2)
