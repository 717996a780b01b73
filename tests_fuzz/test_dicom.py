"""Any change to the attributes of a series ends in the right volume, with its segmentation, or in one sentence."""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from lib.files import InputError
from tools.dicom import read_dicom, write_segments

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from dicoms import AXIAL, changed, voxels_of, write_series

VOXELS, STEP = voxels_of(6, 5, 4), 5.0
ODD = st.sampled_from(["", "0", "1", "-1", "0.5", "1,5", "1.5.2", "1e3", "nan", "inf", "-1e30", "x", " 2 ", "1e-9"])
NUMBER = st.one_of(st.floats(0.1, 9).map(lambda v: f"{v:.6g}"), ODD)
UIDS = st.sampled_from(["", "1.2.3", "ANON", "1.2.840.10008.5.1.4.1.1.4", "1." * 40, "0"])
SETS = st.sampled_from([r"\ISO 2022 IR 87", r"\ISO 2022 IR 149", "ISO_IR 100", "ISO_IR 192", "GB18030", "X", "",
                        r"ISO_IR 192\ISO 2022 IR 87"])
NAMES = st.one_of(st.text(max_size=9).map(lambda s: s.encode("utf-8", "replace")), st.binary(max_size=9))


def numbers(count: int) -> st.SearchStrategy:
    """So many numbers as text, or a few more or less of them."""
    exact = st.lists(NUMBER, min_size=count, max_size=count)
    return st.one_of(exact, st.lists(NUMBER, max_size=count + 1)).map("\\".join)


def turned(degrees: float) -> str:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return f"{cos:.6f}\\{sin:.6f}\\0\\{-sin:.6f}\\{cos:.6f}\\0"


TEXTS: dict[str, st.SearchStrategy] = {  # stored as text
    "PixelSpacing": numbers(2), "SliceThickness": numbers(1), "SpacingBetweenSlices": numbers(1),
    "ImagePositionPatient": numbers(3), "RescaleSlope": numbers(1), "RescaleIntercept": numbers(1),
    "ImageOrientationPatient": st.one_of(numbers(6), st.floats(-180, 180).map(turned)),
    "InstanceNumber": ODD, "SeriesNumber": ODD, "NumberOfFrames": ODD, "SpecificCharacterSet": SETS,
    **dict.fromkeys(["SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID"], UIDS),
    "FrameOfReferenceUID": UIDS, "PatientWeight": NUMBER, "PatientSex": st.sampled_from(["", "M", "UNKNOWN", "m"]),
    "StudyDate": st.sampled_from(["", "20200101", "2020.01.01", "20201301", "x"]), "Modality":
    st.sampled_from(["", "ct", "MR", "PT", "SEG", "OT"]), "PhotometricInterpretation":
    st.sampled_from(["", "MONOCHROME1", "RGB", "PALETTE COLOR"]), "ImageType": st.just(r"DERIVED\SECONDARY"),
}
WORDS = {name: st.sampled_from([0, 1, 8, 12, 15, 16, 31, 32]) for name in (
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "Rows", "Columns")}
VRS = {"PixelSpacing": "DS", "SliceThickness": "DS", "SpacingBetweenSlices": "DS", "ImagePositionPatient": "DS",
       "RescaleSlope": "DS", "RescaleIntercept": "DS", "ImageOrientationPatient": "DS", "PatientWeight": "DS",
       "InstanceNumber": "IS", "SeriesNumber": "IS", "NumberOfFrames": "IS", "StudyDate": "DA"}
TEXT = st.sampled_from([*TEXTS]).flatmap(lambda name: st.tuples(
    st.just(name), st.one_of(
        st.none(), TEXTS[name].flatmap(lambda text: st.sampled_from(
            [(VRS.get(name, "UI" if name.endswith("UID") else "CS"), text.encode()), ("LO", text.encode())])))))
WORD = st.sampled_from([*WORDS]).flatmap(lambda name: st.tuples(
    st.just(name), st.one_of(st.none(), WORDS[name].map(lambda v: ("US", v.to_bytes(2, "little"))))))
NAME = st.tuples(st.just("PatientName"), NAMES.map(lambda raw: ("PN", raw)))
CHANGE = st.tuples(st.one_of(TEXT, TEXT, TEXT, WORD, NAME), st.sampled_from([None, None, 0, 1, 3]))
AROUND: Any = {"max_examples": 2000, "deadline": None, "suppress_health_check": list(HealthCheck)}


def expected(image: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Values (rows, columns) and place of one file, by the formulas of the standard alone."""
    values = np.frombuffer(image.PixelData, np.int16 if image.PixelRepresentation else np.uint16)
    bits = 16 - image.BitsStored
    values = (values << bits) >> bits  # what lies above the bits that are stored does not count
    slope, intercept = (image.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = (float(slope) if slope not in (None, "") else 1, float(intercept or 0))
    place = np.array(image.ImagePositionPatient, float) * (-1, -1, 1)
    return values.reshape(int(image.Rows), int(image.Columns)) * slope + intercept, place


@pytest.mark.filterwarnings("ignore")
@given(st.lists(CHANGE, min_size=1, max_size=3))
@settings(**AROUND)
def test_any_attributes_end_in_the_right_volume_or_one_sentence(changes: list) -> None:
    with tempfile.TemporaryDirectory() as home:
        files = write_series(Path(home) / "series", VOXELS, AXIAL)
        for (name, value), place in changes:
            for file in files if place is None else [files[place]]:
                if value is not None or name in dcmread(file):
                    changed(file, **{name: value})
        try:
            found, series = read_dicom(Path(home) / "series")
        except InputError as error:
            assert str(error).startswith(home) and str(error).endswith(".") and "\n" not in str(error)
            event("refused: " + str(error).split("(")[-1].split(" ")[0])
            return
        assert len(series.order) == found.shape[2] == 4, "no slice is lost"
        native = series.grid.to_native(found)
        for file in files:
            values, place = expected(dcmread(file))
            a, b, z = np.linalg.solve(series.grid.affine, [*place, 1])[:3]
            assert abs(a) < 0.06 and abs(b) < 0.06 and abs(z - round(z)) < 0.06, "every slice is where it lies"
            np.testing.assert_allclose(native[:, :, round(z)].T, values, rtol=1e-5, atol=1e-3)
        labels = np.zeros(series.grid.shape, np.uint8)
        labels[1, 2] = 14
        write_segments(labels, {14: "肝臓"}, series, Path(home) / "labels.dcm", "adapter", "a note")
        written = dcmread(Path(home) / "labels.dcm")
        assert written.NumberOfFrames == 4 and written.SegmentSequence[0].SegmentLabel == "肝臓"
        event("read")


@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, 3), st.integers(0, 1200), st.binary(max_size=4), st.booleans())
@settings(**AROUND)
def test_damaged_bytes_end_in_a_volume_of_every_slice_or_one_sentence(
    which: int, at: int, raw: bytes, cut: bool
) -> None:
    with tempfile.TemporaryDirectory() as home:
        file = write_series(Path(home) / "series", VOXELS, AXIAL)[which]
        whole = file.read_bytes()
        file.write_bytes(whole[:at] + raw + (b"" if cut else whole[at + len(raw) :]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found, _ = read_dicom(Path(home) / "series")
            except InputError as error:
                assert str(error).startswith(home) and "\n" not in str(error)
                return
        assert found.shape == (6, 5, 4)
