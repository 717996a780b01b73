"""From a label map to a DICOM segmentation of the series it belongs to, through highdicom."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.seg import SegmentationTypeValues, SegmentDescription
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from lib.dicom import DicomSeries, geometry_of, multi_frame
from lib.organs import SNOMED, SNOMED_SIDES
from lib.paths import InputError, replacing


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
    marked: Any = table[labels.T]  # (slices, rows, columns)
    found = bool(marked.any())
    if (image := multi_frame(series.images)) is not None:
        marked = geometry_of(image, path).with_array(marked)
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
            omit_empty_frames=found,
        )
    segmentation.SeriesDescription = note[:64]
    with replacing(path) as part:
        segmentation.save_as(part)
