"""tools.dicom: series come back where the patient was, and a folder with no one volume gets its question."""

import shutil
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from dicoms import AFFINES, AXIAL, OBLIQUE, TILTED, changed, enhanced, voxels_of, write_series
from pydicom import dcmread
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from lib.files import InputError
from lib.organs import KEYS
from lib.volumes import read_scan
from tools.dicom import read_dicom, write_segments


def refusal(path: Path, series: str = "") -> str:
    with pytest.raises(InputError) as caught:
        read_dicom(path, series)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and text.endswith(".")
    return text


def test_positions_spacing_and_rescale_by_hand(tmp_path: Path) -> None:
    voxels = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)  # 2 columns, 3 rows, 4 slices
    for z, file in enumerate(write_series(tmp_path, voxels, np.eye(4), slope=2, intercept=-10)):
        changed(
            file, ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[-20, -30, 100 - 5 * z],  # from the head to the feet
            PixelSpacing=[3, 2],  # between rows, between columns
            PixelData=np.full((3, 2), z, np.int16).tobytes(),
        )
    found, series = read_dicom(tmp_path)
    assert series.grid.shape == (2, 3, 4) and series.modality == "CT" and found.dtype == np.int16
    corner = series.grid.affine @ (0, 0, 0, 1), series.grid.affine @ (1, 2, 3, 1)
    np.testing.assert_allclose(sorted(map(tuple, corner)), [(18, 24, 85, 1), (20, 30, 100, 1)])
    assert found[0, 0].tolist() == [-4, -6, -8, -10], "2 z - 10, and the last file is nearest to the feet"


@pytest.mark.parametrize("name", AFFINES)
def test_every_orientation_reads_as_its_nifti_does(name: str, tmp_path: Path) -> None:
    voxels, affine = voxels_of(6, 5, 4), AFFINES[name]
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii")
    write_series(tmp_path / "series", voxels, affine)
    (expected, nifti), (found, series) = read_scan(tmp_path / "scan.nii"), read_dicom(tmp_path / "series")
    np.testing.assert_array_equal(found, expected)
    native = series.grid.to_native(found)
    for place in ((0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 3), (3, 2, 1)):  # same voxel, same millimetre
        there = np.rint(np.linalg.solve(series.grid.affine, affine @ (*place, 1)))[:3].astype(int)
        assert native[tuple(there)] == voxels[place]
        np.testing.assert_allclose(series.grid.affine @ (*there, 1), affine @ (*place, 1), atol=1e-4)
    np.testing.assert_allclose(series.grid.spacing_mm, nifti.spacing_mm, rtol=1e-5)


SYNTAXES = (RLELossless, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, DeflatedExplicitVRLittleEndian)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_compressed_series_hold_the_same_voxels(syntax: str, tmp_path: Path) -> None:
    voxels, deflated = voxels_of(64, 40, 3), syntax == DeflatedExplicitVRLittleEndian
    for file in write_series(tmp_path, voxels, AXIAL, ExplicitVRLittleEndian if deflated else syntax):
        if deflated:
            image = dcmread(file)
            image.file_meta.TransferSyntaxUID = syntax
            image.save_as(file)
        assert dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_dicom(tmp_path)[0], voxels)


@pytest.mark.parametrize(
    ("slope", "intercept", "kind"), [(1, -1024, np.int16), (3, 0, np.float32), (0.25, 0.5, np.float32)]
)
def test_the_smallest_type_that_holds_every_rescaled_value(
    slope: float, intercept: float, kind: type, tmp_path: Path
) -> None:
    voxels = np.full((4, 4, 3), 0.0)
    voxels[:, :, 1] = 3 * 20_000 if slope == 3 else slope * 7 + intercept
    write_series(tmp_path, voxels, AXIAL, slope=slope, intercept=intercept)
    found, _ = read_dicom(tmp_path)
    assert found.dtype == kind
    np.testing.assert_array_equal(found[:, :, 1], voxels[:, :, 1])


def test_two_series_get_a_question_that_any_of_its_answers_settles(tmp_path: Path) -> None:
    first, second = voxels_of(6, 5, 4), voxels_of(6, 5, 3, seed=1)
    write_series(tmp_path / "a", first, AXIAL, SeriesNumber=2, SeriesDescription="portal venous")
    about = {"SeriesNumber": 7, "SeriesDescription": "T1 dixon", "Modality": "MR"}
    text, uid = "", dcmread(write_series(tmp_path / "b", second, AXIAL, **about)[0]).SeriesInstanceUID
    text = refusal(tmp_path)
    assert "2 series" in text and "SERIES=" in text and "2, 'portal venous', CT, images: 4" in text
    assert f"7, 'T1 dixon', MR, images: 3, UID {uid}" in text
    for answer in ("7", "T1 dixon", uid):
        np.testing.assert_array_equal(read_dicom(tmp_path, answer)[0], second)
    assert "no series '9'" in refusal(tmp_path, "9") and "portal venous" in refusal(tmp_path, "9")


def test_what_else_lies_in_the_folder_does_not_matter(tmp_path: Path) -> None:
    voxels = voxels_of(6, 5, 4)
    files = write_series(tmp_path / "series", voxels, AXIAL, SeriesNumber=2)
    shutil.copy(files[1], tmp_path / "series" / "copy.dcm")  # the same image twice
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_series(tmp_path / "scout", voxels_of(9, 5, 1), AFFINES["coronal"], **scout)
    dose = write_series(tmp_path / "dose", voxels_of(9, 5, 1), AXIAL, SeriesNumber=999)[0]
    changed(dose, ImagePositionPatient=None, ImageOrientationPatient=None)
    (tmp_path / "readme.txt").write_text("not DICOM")
    report = dcmread(files[0])
    del report.ImagePositionPatient, report.PixelData
    report.SOPClassUID, report.Modality = BasicTextSRStorage, "SR"
    report.SOPInstanceUID = report.SeriesInstanceUID = generate_uid()
    report.save_as(tmp_path / "report.dcm")
    for series in ("", "2"):
        np.testing.assert_array_equal(read_dicom(tmp_path, series)[0], voxels)


def test_a_folder_without_images_and_a_path_without_anything(tmp_path: Path) -> None:
    assert "holds no DICOM image" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("slice_", "attributes", "why"),
    [
        (2, {"SOPInstanceUID": "1.2.3", "ImagePositionPatient": [0, 0, 5]}, "not a regularly-spaced volume"),
        (2, {"ImagePositionPatient": [0, 0, 12.2]}, "not a regularly-spaced volume"),
        (3, {"Rows": 4, "PixelData": bytes(2 * 4 * 6)}, "same shape"),
        (3, {"PixelSpacing": [1, 1]}, "same spacing"),
        (3, {"PixelSpacing": None}, "PixelSpacing"),
        (3, {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "Orientations are not consistent"),
        (4, {"PixelData": bytes(20)}, "pixel data"),
    ],
)
def test_what_is_no_volume_is_told_why(slice_: int, attributes: dict, why: str, tmp_path: Path) -> None:
    changed(write_series(tmp_path, voxels_of(6, 5, 6), AXIAL)[slice_], **attributes)
    text = refusal(tmp_path)
    assert "cannot be decoded into a volume" in text and why in text


def test_missing_slices_and_a_tilted_gantry_make_no_volume(tmp_path: Path) -> None:
    """A tilted gantry's voxels are no boxes: read as such, they would not lie where the patient was."""
    files = write_series(tmp_path / "lacking", voxels_of(6, 5, 9), AXIAL)
    files[3].unlink()
    write_series(tmp_path / "tilted", voxels_of(6, 5, 4), TILTED)
    assert "complete" in refusal(tmp_path / "lacking") and "regularly-spaced" in refusal(tmp_path / "tilted")


@pytest.mark.parametrize("how", ["cut short", "no value"])
def test_a_damaged_image_of_a_series_is_named_and_not_left_out(how: str, tmp_path: Path) -> None:
    files = write_series(tmp_path, voxels_of(6, 5, 4), AXIAL)
    if how == "cut short":
        files[3].write_bytes(files[3].read_bytes()[:700])
    else:
        changed(files[3], ImagePositionPatient="")
    with pytest.raises(InputError, match=f"{files[3]} does not say where"):
        read_dicom(tmp_path)


def test_positions_that_are_rounded_as_scanners_round_them_still_are_one_volume(tmp_path: Path) -> None:
    affine = AXIAL @ np.diag([1, 1, 0.14, 1.0])  # 0.7 mm
    for z, file in enumerate(write_series(tmp_path, voxels_of(6, 5, 8), affine)):
        changed(file, ImagePositionPatient=[0, 0, round(z * 0.7 + 0.01 * (z % 2), 2)])
    assert read_dicom(tmp_path)[1].grid.spacing_mm[2] == pytest.approx(0.7, rel=0.01)


def test_one_slice_is_as_thick_as_it_says_and_of_a_series_called_so(tmp_path: Path) -> None:
    write_series(tmp_path / "one", voxels_of(6, 5, 1), AXIAL)
    grid = read_dicom(tmp_path / "one")[1].grid
    assert grid.shape == (6, 5, 1) and grid.spacing_mm == (2, 3, 5)
    files = write_series(tmp_path / "four", voxels_of(6, 5, 4), AXIAL)
    with pytest.warns(UserWarning, match="is one slice: for the whole series, name its folder"):
        assert read_dicom(files[2])[0].shape == (6, 5, 1)


@pytest.mark.parametrize("name", ["axial", "coronal", "oblique"])
def test_a_multi_frame_image_is_the_series_that_it_was_made_of(name: str, tmp_path: Path) -> None:
    file = enhanced(tmp_path, voxels := voxels_of(6, 5, 4), AFFINES[name])
    (found, whole), (single, series) = read_dicom(file), read_dicom(tmp_path / "single")
    np.testing.assert_array_equal(found, single)
    assert found.dtype == np.int16 and set(np.unique(found)) == set(np.unique(voxels))
    there = np.linalg.solve(whole.grid.affine, series.grid.affine @ (1, 2, 3, 1))[:3].round().astype(int)
    assert whole.grid.to_native(found)[tuple(there)] == series.grid.to_native(single)[1, 2, 3]
    image = dcmread(file)
    places = [frame.PlanePositionSequence[0] for frame in image.PerFrameFunctionalGroupsSequence]
    places[1].ImagePositionPatient = places[0].ImagePositionPatient
    image.save_as(file)
    assert "cannot be decoded into a volume (Multiple frames" in refusal(file)


@pytest.mark.parametrize("which", [slice(0, 1), slice(3, 4), slice(None)])
def test_files_without_a_preamble_are_read_too(which: slice, tmp_path: Path) -> None:
    """As some old scanners and tools write them."""
    voxels = voxels_of(6, 5, 4)
    for file in write_series(tmp_path, voxels, AXIAL)[which]:
        file.write_bytes(file.read_bytes()[132:])
    (tmp_path / "note.txt").write_bytes(b"\x08\0")
    np.testing.assert_array_equal(read_dicom(tmp_path)[0], voxels)


def test_slices_that_an_anonymiser_gave_one_uid_are_all_read(tmp_path: Path) -> None:
    voxels = voxels_of(6, 5, 4)
    for file in write_series(tmp_path, voxels, AXIAL):
        changed(file, SOPInstanceUID="1.2.3", FrameOfReferenceUID=None)
    np.testing.assert_array_equal(read_dicom(tmp_path)[0], voxels)


# Segmentations: what highdicom reads back marks the same voxels of the patient, by name and code

NAMES = {1: "liver", 8: "left adrenal gland", 14: "ein großes Gefäß"}
NOTE = "research only: not a medical device"


def segmented(path: Path, names: dict[int, str], labels: np.ndarray | None = None) -> Path:
    """Writes labels.dcm beside the series, everywhere of the first label if none are given."""
    _, series = read_dicom(path)
    labels = np.full(series.grid.shape, min(names), np.uint8) if labels is None else labels
    write_segments(labels, names, series, path.parent / "labels.dcm", "adapter", NOTE)
    return path.parent / "labels.dcm"


@pytest.mark.parametrize("name", [*AFFINES, "multi-frame"])
def test_the_segmentation_marks_the_same_voxels_at_the_same_millimetres(name: str, tmp_path: Path) -> None:
    path = tmp_path / "series"
    if name == "multi-frame":
        path = enhanced(tmp_path, voxels_of(6, 5, 4), OBLIQUE)
    else:
        write_series(path, voxels_of(6, 5, 4), AFFINES[name])
    _, series = read_dicom(path)
    labels = np.zeros(series.grid.shape, np.uint8)
    labels[1:4, 2, 0], labels[5, 4, 1:3], labels[2, 1, 3] = 1, 8, 14
    found = hd.seg.segread(segmented(path, NAMES, labels))
    assert [found.get_segment_description(n).segment_label for n in (1, 2, 3)] == [*NAMES.values()]
    marked: dict[int, set] = {1: set(), 2: set(), 3: set()}
    for frame, groups in enumerate(found.PerFrameFunctionalGroupsSequence):
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
        a, b, c = np.linalg.solve(series.grid.affine, (*place, 1))[:3].round().astype(int)
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        marked[number] |= {(int(a + x), int(b + y), int(c)) for y, x in np.argwhere(found.pixel_array[frame])}
    places = ({tuple(map(int, voxel)) for voxel in np.argwhere(labels == label)} for label in NAMES)
    assert marked == dict(enumerate(places, 1))
    assert (found.SeriesDescription, found.Modality, found.PatientID) == (NOTE, "SEG", "1")


def test_segments_carry_snomed_codes_and_sides(tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL)
    names = dict(enumerate([*KEYS, "a bright vessel"], 1))
    found = dcmread(segmented(tmp_path / "series", names, np.zeros((6, 5, 2), np.uint8)))  # nothing was found
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in found.SegmentSequence]
    bare = [key.removeprefix("left ").removeprefix("right ").capitalize() for key in KEYS]
    assert [kind.CodeMeaning for kind in kinds] == [*bare, "Anatomical Structure"]
    assert kinds[0].CodeValue == "10200004" and {kind.CodingSchemeDesignator for kind in kinds} == {"SCT"}
    sides = {key: kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning
             for key, kind in zip(KEYS, kinds, strict=False) if len(kind) > 3}
    assert sides == {key: key.split()[0].capitalize() for key in KEYS if key.startswith(("left", "right"))}


GONE = "PatientName", "PatientID", "PatientSex", "StudyDate", "AccessionNumber", "FrameOfReferenceUID"
YAMADA = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"}
HONG = {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gildong=洪^吉洞=홍^길동"}


@pytest.mark.parametrize("change", [dict.fromkeys(GONE), YAMADA, HONG], ids=["anonymised", "Yamada", "Hong"])
def test_an_unusual_header_still_gets_its_segmentation(change: dict, tmp_path: Path) -> None:
    for file in write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL):
        changed(file, **change)
    found = dcmread(segmented(tmp_path / "series", {1: "liver"}))
    assert found.NumberOfFrames == 2 and str(found.PatientName) == (change["PatientName"] or "")


def test_a_header_against_the_standard_leaves_no_file(tmp_path: Path) -> None:
    for file in write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL):
        changed(file, PatientSex="UNKNOWN")
    with pytest.raises(InputError, match="headers are against the standard"):
        segmented(tmp_path / "series", {1: "liver"})
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
