"""lib.dicom_seg: what highdicom reads back marks the same voxels of the patient, by name and code."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from dicoms import AFFINES, AXIAL, OBLIQUE, TILTED, changed, enhanced, voxels_of, write_series
from pydicom import dcmread
from pydicom.sr.codedict import codes

from lib.dicom import read_dicom
from lib.dicom_seg import write_segments
from lib.organs import KEYS, SNOMED, SNOMED_SIDES
from lib.paths import InputError

NAMES = [(1, "liver"), (8, "left adrenal gland"), (14, "ein großes Gefäß")]


@pytest.mark.parametrize("name", [*AFFINES, "tilted", "multi-frame"])
def test_the_segmentation_marks_the_same_voxels_at_the_same_millimetres(name: str, tmp_path: Path) -> None:
    path = tmp_path / "series"
    if name == "multi-frame":
        path = enhanced(tmp_path, voxels_of(6, 5, 4), OBLIQUE)
    else:
        write_series(path, voxels_of(6, 5, 4), TILTED if name == "tilted" else AFFINES[name])
    _, series = read_dicom(path)
    labels = np.zeros(series.grid.shape, np.uint8)
    labels[1:4, 2, 0], labels[5, 4, 1:3], labels[2, 1, 3] = 1, 8, 14
    write_segments(labels, NAMES, series, tmp_path / "labels.dcm", "adapter", "research only: not a medical device")
    found = hd.seg.segread(tmp_path / "labels.dcm")
    assert [found.get_segment_description(n).segment_label for n in (1, 2, 3)] == [name for _, name in NAMES]
    marked: dict[int, set] = {1: set(), 2: set(), 3: set()}
    for frame, groups in enumerate(found.PerFrameFunctionalGroupsSequence):
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
        a, b, c = np.linalg.solve(series.grid.affine, (*place, 1))[:3].round().astype(int)
        assert (a, b) == (0, 0)
        for row, column in np.argwhere(found.pixel_array[frame]):
            marked[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber].add((int(column), int(row), int(c)))
    assert marked == {n: {tuple(map(int, v)) for v in np.argwhere(labels == label)} for n, (label, _) in enumerate(NAMES, 1)}
    assert (found.SeriesDescription, found.Modality, found.PatientID) == ("research only: not a medical device", "SEG", "1")


def test_segments_carry_snomed_codes_and_sides(tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL)
    _, series = read_dicom(tmp_path / "series")
    names = [*enumerate(KEYS, 1), (14, "a bright vessel")]
    write_segments(np.zeros((6, 5, 2), np.uint8), names, series, tmp_path / "labels.dcm", "adapter", "a note")  # nothing was found
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in dcmread(tmp_path / "labels.dcm").SegmentSequence]
    assert [(kind.CodeValue, kind.CodeMeaning) for kind in kinds[:-1]] == [SNOMED[key] for key in KEYS]
    sides = {
        key: kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning for key, kind in zip(KEYS, kinds, strict=False) if len(kind) > 3
    }
    assert sides == {key: key.split()[0].capitalize() for key in KEYS if key.startswith(("left", "right"))}
    assert kinds[-1].CodeMeaning == "Anatomical Structure" and all(kind.CodingSchemeDesignator == "SCT" for kind in kinds)
    published = {(code.value, code.meaning) for code in (getattr(codes.SCT, name) for name in codes.SCT.dir())}
    assert published >= {*SNOMED.values(), *((code, side.capitalize()) for side, code in SNOMED_SIDES.items())}


def test_an_anonymised_series_still_gets_its_segmentation(tmp_path: Path) -> None:
    gone = dict.fromkeys(("PatientName", "PatientID", "PatientSex", "StudyDate", "StudyID", "AccessionNumber", "FrameOfReferenceUID"))
    for file in write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL):
        changed(file, **gone)
    _, series = read_dicom(tmp_path / "series")
    write_segments(np.ones((6, 5, 2), np.uint8), [(1, "liver")], series, tmp_path / "labels.dcm", "adapter", "a note")
    assert dcmread(tmp_path / "labels.dcm").NumberOfFrames == 2


def test_a_header_against_the_standard_leaves_no_file(tmp_path: Path) -> None:
    for file in write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL):
        changed(file, PatientSex="UNKNOWN")
    _, series = read_dicom(tmp_path / "series")
    with pytest.raises(InputError, match="headers are against the standard"):
        write_segments(np.ones((6, 5, 2), np.uint8), [(1, "liver")], series, tmp_path / "labels.dcm", "adapter", "a note")
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
