"""tools.dicom: series come back where the patient was, and a folder with no one volume gets its question."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
from dicoms import AFFINES, AXIAL, OBLIQUE, TILTED, changed, compressed, enhanced, voxels_of, write_series
from pydicom import dcmread
from pydicom.fileset import FileSet
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

PLACED = AFFINES | {"tilted": TILTED}


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


@pytest.mark.parametrize("name", PLACED)
def test_every_orientation_reads_as_its_nifti_does(name: str, tmp_path: Path) -> None:
    voxels, affine = voxels_of(6, 5, 4), PLACED[name]
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


def everywhere(**attributes: Any) -> Callable:
    return lambda files: [changed(file, **attributes) for file in files]


def in_one(place: int, **attributes: Any) -> Callable:
    return lambda files: changed(files[place], **attributes)


def as_text(name: str) -> Callable:
    """A number by a VR of text, as a converter leaves it that does not know the attribute."""

    def write(files: list[Path]) -> None:
        for file in files:
            value = dcmread(file)[name].value
            parts = [value] if isinstance(value, int | float | str) else value
            changed(file, **{name: ("LO", "\\".join(map(str, parts)).encode())})

    return write


def copied(files: list[Path]) -> None:
    """Once more in a folder below, compressed, with UIDs of their own."""
    (folder := files[0].parent / "copy").mkdir()
    for file in files:
        compressed(Path(shutil.copy(file, folder)), RLELossless)
        changed(folder / file.name, SOPInstanceUID=generate_uid())


def on_a_disc(files: list[Path]) -> None:
    """With a DICOMDIR, in folders below, by names without an ending."""
    disc = FileSet()
    for file in files:
        changed(file, StudyDate="20200101", StudyTime="120000", StudyID="1")
        disc.add(file)
    disc.write(files[0].parent)
    for file in files:
        file.unlink()


def with_links(files: list[Path]) -> None:
    """The files elsewhere, their folder linked here, and a link from there to here."""
    there = files[0].parent.with_name("elsewhere")
    files[0].parent.rename(there)
    files[0].parent.mkdir()
    (files[0].parent / "linked").symlink_to(there)
    (there / "back").symlink_to(files[0].parent)


def without_preamble(which: slice, meta: bool) -> Callable:
    def write(files: list[Path]) -> None:
        for file in files[which]:
            raw = file.read_bytes()
            file.write_bytes(raw[132 if meta else raw.index(b"\x08\0\x08\0", 300) :])

    return write


GONE = dict.fromkeys(("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"))
READ: dict[str, Callable] = {  # none of it takes away what the slices are and where they lie
    "one UID for all": everywhere(SOPInstanceUID="1.2.3"),
    "no UIDs": everywhere(**GONE, SOPClassUID=None),
    "blank UIDs": everywhere(**dict.fromkeys(GONE, ""), SOPClassUID="", SeriesNumber=None),
    "a word for UIDs": everywhere(**dict.fromkeys(GONE, "ANON"), SOPClassUID="ANON"),
    "one without a frame of reference": in_one(2, FrameOfReferenceUID=""),
    "last without preamble": without_preamble(slice(3, 4), meta=True),
    "none with preamble": without_preamble(slice(None), meta=True),
    "none with meta information": without_preamble(slice(None), meta=False),
    "copies": copied, "links": with_links,
    "names without ending": lambda files: [file.rename(file.with_suffix("")) for file in files],
    "names in capitals": lambda files: [file.rename(str(file).replace("dcm", "DCM")) for file in files],
    "on a disc": on_a_disc,
    "a Mac's leftover": lambda files: (files[0].parent / "._0.dcm").write_bytes(b"\0\5\x16\7"),
    "a text": lambda files: (files[0].parent / "note.txt").write_bytes(b"\x08\0"),
    "no instance numbers": everywhere(InstanceNumber=None), "one number": everywhere(InstanceNumber=1),
    "no samples, no colour model": everywhere(SamplesPerPixel=None, PhotometricInterpretation=None),
    "no thickness": everywhere(SliceThickness=None), "spacing 0": everywhere(SpacingBetweenSlices=0),
    "no modality": everywhere(Modality=None), "small letters": everywhere(Modality="ct"),
    "an inverted display": everywhere(PhotometricInterpretation="MONOCHROME1"),
    "orientation rounded": in_one(1, ImageOrientationPatient=[0.9999, 0.001, 0, -0.0009, 0.9999, 0]),
    "spacing rounded": in_one(1, PixelSpacing=[3.001, 2]),
    "a comma in the weight": everywhere(PatientWeight=("DS", b"70,5")),
    "no rescale": everywhere(RescaleSlope=None, RescaleIntercept=None),
    **{f"{name} as text": as_text(name) for name in ("Rows", "PixelSpacing", "ImagePositionPatient")},
}


@pytest.mark.parametrize("name", READ)
def test_what_another_tool_has_done_costs_no_slice(name: str, tmp_path: Path) -> None:
    voxels = voxels_of(6, 5, 4)
    READ[name](write_series(tmp_path / "series", voxels, AXIAL))
    found, series = read_dicom(tmp_path / "series" / ("DICOMDIR" if name == "on a disc" else ""))
    np.testing.assert_array_equal(found, voxels)
    np.testing.assert_allclose(series.grid.spacing_mm, (2, 3, 5), rtol=1e-4)
    assert series.modality == "CT"
    assert dcmread(segmented(tmp_path / "series", {1: "liver"})).NumberOfFrames == 4


def phases(files: list[Path]) -> None:
    """A second phase at the same places, where one UID stands for every image."""
    for file in files:
        changed(file, SOPInstanceUID="1.2.3")
        changed(Path(shutil.copy(file, file.with_suffix(".2"))), PixelData=bytes(60))


def side_by_side(files: list[Path]) -> None:
    for n, file in enumerate(files):
        changed(file, ImagePositionPatient=[20 * n, 0, 0])


def newly_compressed(files: list[Path]) -> None:
    files[0].write_bytes(files[0].read_bytes().replace(b".1.2.1\0", b".1.2.9\0"))


def lost(what: bytes | None, name: str = "") -> Callable:
    """The last file is `what`, or a link to nothing."""

    def write(files: list[Path]) -> None:
        file = files[-1].with_name(name or files[-1].name)
        files[-1].unlink()
        file.symlink_to("nothing") if what is None else file.write_bytes(what)

    return write


SHORT = "03743.dcm: The number of bytes of pixel data is less"
NEW = "Unable to decode the pixel data as a (0002,0010) 'Transfer Syntax UID' value of '1.2.840.10008.1.2.9'"
REFUSED: dict[str, tuple[Callable, str]] = {  # what is not known is not guessed, and the file is named
    "two phases": (phases, "lie 0 mm apart, most others 5 mm"),
    "a gap": (lambda files: files[2].unlink(), "07919.dcm lie 10 mm apart"),
    "uneven": (in_one(2, ImagePositionPatient=[0, 0, 12.2]), "mm apart"),
    "side by side": (side_by_side, "do not lie one above the other"),
    "another size": (in_one(3, Rows=4, PixelData=bytes(48)), "Rows of 00000.dcm and 03743.dcm differ"),
    "other pixels": (in_one(3, PixelSpacing=[1, 1]), "PixelSpacing of 00000.dcm and 03743.dcm differ"),
    "turned": (in_one(3, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "ImageOrientationPatient of 00000"),
    "askew": (everywhere(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "cannot be [1.0, 0.0, 0.0, 1.0"),
    "commas": (everywhere(PixelSpacing=("DS", b"3,0\\2,0")), "PixelSpacing of 00000.dcm is missing, or no"),
    "a comma": (everywhere(RescaleSlope=("DS", b"1,5 ")), "RescaleSlope of 00000.dcm is missing, or no"),
    "no number": (in_one(1, RescaleSlope=("DS", b"nan ")), "RescaleSlope of 07919.dcm"),
    "far away": (in_one(1, ImagePositionPatient=("DS", b"0\\0\\1e30")), "ImagePositionPatient of 07919.dcm"),
    "negative": (everywhere(PixelSpacing=[-1, 2]), "PixelSpacing of 00000.dcm cannot be [-1.0, 2.0]"),
    "slope 0": (everywhere(RescaleSlope=0), "RescaleSlope of 00000.dcm cannot be 0"),
    "one not rescaled": (in_one(1, RescaleSlope=None, RescaleIntercept=None), "RescaleIntercept of 07919"),
    "left-aligned bits": (everywhere(BitsStored=12), "HighBit of 00000.dcm cannot be 15"),
    "old multi-frame": (everywhere(NumberOfFrames=2), "NumberOfFrames of 00000.dcm cannot be 2"),
    "no place": (in_one(3, ImagePositionPatient=""), "ImagePositionPatient of 03743.dcm is missing"),
    "no orientation": (everywhere(ImageOrientationPatient=None), "ImageOrientationPatient of 00000.dcm"),
    "no spacing": (in_one(3, PixelSpacing=None), "PixelSpacing of 03743.dcm is missing"),
    "no sign": (everywhere(PixelRepresentation=None), "Pixel Representation"),
    "few pixels": (in_one(3, PixelData=bytes(20)), SHORT),
    "no pixels": (in_one(3, PixelData=None), "03743.dcm holds no pixels"),
    "new compression": (newly_compressed, NEW),
    "an empty file": (lost(b""), "03743.dcm cannot be read as DICOM (it is empty"),
    "an empty file without ending": (lost(b"", "IM4"), "IM4 cannot be read as DICOM (it is empty"),
    "an error page": (lost(b"<html>"), "03743.dcm cannot be read as DICOM"),
    "a packed file": (lost(b"\x1f\x8b", "IM4.dcm.gz"), "IM4.dcm.gz cannot be read as DICOM (it is empty"),
    "a dead link": (lost(None, "IM4"), "IM4 cannot be read as DICOM (No such file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_volume_is_one_sentence(name: str, tmp_path: Path) -> None:
    write, why = REFUSED[name]
    write(write_series(tmp_path, voxels_of(6, 5, 4), AXIAL))
    assert why in refusal(tmp_path)


def test_a_file_cut_short_anywhere_is_missed(tmp_path: Path) -> None:
    last = write_series(tmp_path, voxels_of(6, 5, 4), AXIAL)[3]
    raw = last.read_bytes()
    for end in range(0, len(raw), 37):
        last.write_bytes(raw[:end])
        assert "03743.dcm" in refusal(tmp_path)


def test_positions_that_are_rounded_as_scanners_round_them_still_are_one_volume(tmp_path: Path) -> None:
    affine = AXIAL @ np.diag([1, 1, 0.14, 1.0])  # 0.7 mm
    for z, file in enumerate(write_series(tmp_path, voxels_of(6, 5, 8), affine)):
        changed(file, ImagePositionPatient=[0, 0, round(z * 0.7 + 0.01 * (z % 2), 2)])
    assert read_dicom(tmp_path)[1].grid.spacing_mm[2] == pytest.approx(0.7, rel=0.01)


def test_one_slice_is_as_thick_as_it_says_and_a_file_stands_for_its_series(tmp_path: Path) -> None:
    [one] = write_series(tmp_path / "one", voxels_of(6, 5, 1), AXIAL)
    grid = read_dicom(one)[1].grid
    assert grid.shape == (6, 5, 1) and grid.spacing_mm == (2, 3, 5)
    changed(one, SliceThickness=None)
    assert "it is one slice, and SliceThickness is missing" in refusal(tmp_path / "one")
    files = write_series(tmp_path / "four", voxels := voxels_of(6, 5, 4), AXIAL)
    write_series(tmp_path / "four" / "another", voxels, AXIAL)
    with pytest.warns(UserWarning, match="is one of 4 slices of its series: all are read"):
        np.testing.assert_array_equal(read_dicom(files[2])[0], voxels)
    packed = shutil.make_archive(str(tmp_path / "a"), "zip", one.parent)
    assert "the folder, unpacked" in refusal(Path(packed))


@pytest.mark.parametrize("where", ["shared", "in each frame"])
@pytest.mark.parametrize("name", ["axial", "coronal", "oblique", "tilted"])
def test_a_multi_frame_image_is_the_series_that_it_was_made_of(name: str, where: str, tmp_path: Path) -> None:
    file = enhanced(tmp_path, voxels := voxels_of(6, 5, 4), PLACED[name])
    image = dcmread(file)
    shared, frames = image.SharedFunctionalGroupsSequence[0], image.PerFrameFunctionalGroupsSequence
    for part in ("PlaneOrientationSequence", "PixelMeasuresSequence") if where != "shared" else ():
        for frame in frames:
            frame[part] = shared[part]
        del shared[part]
    image.save_as(file)
    (found, whole), (single, series) = read_dicom(file), read_dicom(tmp_path / "single")
    np.testing.assert_array_equal(found, single)
    assert found.dtype == np.int16 and set(np.unique(found)) == set(np.unique(voxels))
    np.testing.assert_allclose(whole.grid.affine, series.grid.affine, atol=1e-6)
    frames[1].PlanePositionSequence = frames[0].PlanePositionSequence
    image.save_as(file)
    assert "lie 0 mm apart" in refusal(file)


# Segmentations: what highdicom reads back marks the same voxels of the patient, by name and code

NAMES = {1: "liver", 8: "left adrenal gland", 14: "ein großes Gefäß"}
NOTE = "research only: not a medical device"


def segmented(path: Path, names: dict[int, str], labels: np.ndarray | None = None) -> Path:
    """Writes labels.dcm beside the series, everywhere of the first label if none are given."""
    _, series = read_dicom(path)
    labels = np.full(series.grid.shape, min(names), np.uint8) if labels is None else labels
    write_segments(labels, names, series, path.parent / "labels.dcm", "adapter", NOTE)
    return path.parent / "labels.dcm"


@pytest.mark.parametrize("name", [*PLACED, "multi-frame"])
def test_the_segmentation_marks_the_same_voxels_at_the_same_millimetres(name: str, tmp_path: Path) -> None:
    path = tmp_path / "series"
    if name == "multi-frame":
        path = enhanced(tmp_path, voxels_of(6, 5, 4), OBLIQUE)
    else:
        write_series(path, voxels_of(6, 5, 4), PLACED[name])
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


EMPTIED = "PatientName", "PatientID", "PatientSex", "StudyDate", "AccessionNumber"
YAMADA, HONG = "Yamada^Tarou=山田^太郎", "Hong^Gildong=洪^吉洞=홍^길동"
HEADERS: list[tuple[dict, str, str]] = [  # attributes, the name that comes back, and what is left out
    (dict.fromkeys(EMPTIED), "", ""),
    ({"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": YAMADA}, YAMADA, ""),
    ({"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": HONG}, HONG, ""),
    ({"SpecificCharacterSet": "ISO_IR 138", "PatientName": "שרון^דבורה"}, "שרון^דבורה", ""),
    ({"SpecificCharacterSet": ("CS", b"GARBAGE ")}, "Phantom^One", ""),
    ({"PatientSex": "UNKNOWN", "StudyDate": "20221301"}, "Phantom^One", "PatientSex, StudyDate"),
    ({"PatientID": "1" * 80}, "Phantom^One", "PatientID"),
]


@pytest.mark.parametrize(("attributes", "name", "left"), HEADERS)
def test_an_unusual_header_still_gets_its_segmentation(
    attributes: dict, name: str, left: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    everywhere(**attributes)(write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL))
    found = dcmread(segmented(tmp_path / "series", {1: "liver"}))
    assert found.NumberOfFrames == 2 and str(found.PatientName) == name
    said = [str(warning.message) for warning in recwarn.list]
    why = "which the scan's headers give against the standard"
    assert said == ([f"labels.dcm leaves out {left}, {why}."] if left else [])


@pytest.mark.parametrize(
    ("prompt", "label"),
    [("肝臓", "肝臓"), ("간", "간"), ("الكبد", "الكبد"), ("a\\b\x07", "a/b/"), (70 * "肝", 64 * "肝"),
     ("a\udcff", "a?")],
)
def test_prompts_come_back_as_they_were_typed(prompt: str, label: str, tmp_path: Path) -> None:
    write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL)
    segment = dcmread(segmented(tmp_path / "series", {14: prompt})).SegmentSequence[0]
    assert segment.SegmentLabel == label
    assert segment.get("SegmentDescription", label) == prompt.replace("\udcff", "?")


def test_what_highdicom_refuses_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "series", voxels_of(6, 5, 2), AXIAL)
    monkeypatch.setattr(hd.seg.Segmentation, "save_as", lambda _, path: {}[path.write_text("half of it")])
    with pytest.raises(InputError, match="headers are against the standard"):
        segmented(tmp_path / "series", {1: "liver"})
    assert [path.name for path in tmp_path.iterdir()] == ["series"]
