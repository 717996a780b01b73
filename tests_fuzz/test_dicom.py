"""Any change to a series' attributes or bytes ends in the right volume and segmentation, or one sentence."""

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

VOXELS = voxels_of(6, 5, 4)
ODD = st.sampled_from(["", "0", "1", "-1", "0.5", "1,5", "1.5.2", "1e3", "nan", "inf", "-1e30", "x", " 2 "])
NUMBER = st.one_of(st.floats(0.1, 9).map(lambda value: f"{value:.6g}"), ODD)
UIDS = st.sampled_from(["", "1.2.3", "ANON", "1.2.840.10008.5.1.4.1.1.4", "1." * 40, "0"])


def numbers(count: int) -> st.SearchStrategy:
    """So many numbers as text, or a few more or less of them."""
    exact = st.lists(NUMBER, min_size=count, max_size=count)
    return st.one_of(exact, st.lists(NUMBER, max_size=count + 1)).map("\\".join)


def turned(degrees: float) -> str:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return f"{cos:.6f}\\{sin:.6f}\\0\\{-sin:.6f}\\{cos:.6f}\\0"


TEXTS: dict[str, tuple[str, st.SearchStrategy]] = {  # VR, and what is stored as text
    "PixelSpacing": ("DS", numbers(2)),
    "ImagePositionPatient": ("DS", numbers(3)),
    "ImageOrientationPatient": ("DS", st.one_of(numbers(6), st.floats(-180, 180).map(turned))),
    **dict.fromkeys(["SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept",
                     "PatientWeight"], ("DS", numbers(1))),
    **dict.fromkeys(["InstanceNumber", "SeriesNumber", "NumberOfFrames"], ("IS", ODD)),
    **dict.fromkeys(["SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID",
                     "FrameOfReferenceUID"], ("UI", UIDS)),
    "SpecificCharacterSet": ("CS", st.sampled_from([
        r"\ISO 2022 IR 87", r"\ISO 2022 IR 149", "ISO_IR 192", "X", "", r"ISO_IR 192\ISO 2022 IR 87"])),
    "PatientSex": ("CS", st.sampled_from(["", "M", "UNKNOWN", "m"])),
    "StudyDate": ("DA", st.sampled_from(["", "20200101", "2020.01.01", "20201301", "x"])),
    "Modality": ("CS", st.sampled_from(["", "ct", "MR", "PT", "SEG", "OT"])),
    "PhotometricInterpretation": ("CS", st.sampled_from(["", "MONOCHROME1", "RGB", "PALETTE COLOR"])),
}
WORDS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "Rows",
         "Columns")


@st.composite
def change(draw: Any) -> tuple[str, tuple[str, bytes] | None, int | None]:
    """An attribute, its VR and bytes (None: it goes), and the file that has it so (None: all)."""
    name = draw(st.sampled_from([*TEXTS, *WORDS, "PatientName"]))
    place = draw(st.sampled_from([None, None, 0, 1, 3]))
    if draw(st.integers(0, 9)) == 0:
        return name, None, place
    if name in WORDS:
        return name, ("US", draw(st.sampled_from([0, 1, 8, 12, 15, 16, 31, 32])).to_bytes(2, "little")), place
    if name == "PatientName":
        return name, ("PN", draw(st.binary(max_size=9))), place
    kind, texts = TEXTS[name]
    return name, (draw(st.sampled_from([kind, kind, "LO"])), draw(texts).encode()), place


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
@given(st.lists(change(), min_size=1, max_size=3))
@settings(**AROUND)
def test_any_attributes_end_in_the_right_volume_or_one_sentence(changes: list) -> None:
    with tempfile.TemporaryDirectory() as home:
        files = write_series(Path(home) / "series", VOXELS, AXIAL)
        for name, value, place in changes:
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
            assert max(abs(a), abs(b), abs(z - round(z))) < 0.06, "every slice is where it lies"
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
