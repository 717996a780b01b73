"""lib.volumes on hand-computed arrays, on all 48 orientations, and on files that are not as they must be."""

import gzip
import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import labels_of_shape
from torch.nn.functional import interpolate

from lib import volumes
from lib.config import Settings
from lib.files import InputError
from lib.organs import LABEL_MAPS
from lib.volumes import Grid, from_slices, read_labels, read_scan, to_slices, to_uint8, write_nifti

equal = np.testing.assert_array_equal
SETTINGS = Settings(size=12)
# letter: world axis (RAS), sign
DIRECTIONS = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
CODES = [
    "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    for pairs in itertools.permutations(("RL", "AP", "SI"))
    for sides in itertools.product((0, 1), repeat=3)
]
SPACING_MM = (1.0, 2.0, 5.0)
LPS, AFFINE, SHAPE = np.diag([-1.0, -1, 1, 1]), np.diag([-1.5, -2.5, 4.0, 1.0]), (6, 4, 3)
NOISE = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)


def in_orientation(canonical: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """The native array and affine of an LPS array saved with an axis code, worked out without nibabel."""
    axes = [DIRECTIONS[letter][0] for letter in code]
    backwards = tuple(i for i, letter in enumerate(code) if letter in "RAI")
    affine = np.eye(4)
    affine[:3, 3] = (7.0, -11.0, 13.0)
    for i, letter in enumerate(code):
        axis, sign = DIRECTIONS[letter]
        affine[:3, i] = 0
        affine[axis, i] = sign * SPACING_MM[axis]
    return np.flip(canonical.transpose(axes), backwards), affine


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), path)
    return path


def rotation(degrees: float) -> np.ndarray:
    """(4, 4) about the x axis, then half as far about the z axis."""
    a, b = np.radians([degrees, degrees / 2])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x
    return matrix


# axes and the way back


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_reads_the_same_and_goes_back_exactly(code, tmp_path):
    canonical = labels_of_shape(3, 4, 5)
    native, affine = in_orientation(canonical, code)
    path = save(native, tmp_path / "labels.nii.gz", affine)
    voxels, grid = read_scan(path)
    equal(voxels, canonical)
    equal(read_labels(path, "FLARE22", grid), canonical)
    assert grid.canonical_shape == (3, 4, 5) and grid.shape == native.shape
    assert grid.spacing_mm == SPACING_MM
    equal(grid.to_native(grid.to_canonical(native)), native)
    back = from_slices(to_slices(canonical, 12, labels=True), grid)  # 12 is a multiple of 3 and 4
    equal(back, native)
    write_nifti(back, grid, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    equal(np.asanyarray(written.dataobj), native)
    equal(written.affine, affine)
    assert written.header.get_xyzt_units()[0] == "mm" and written.get_data_dtype() == np.uint8
    write_nifti(back, Grid(grid.shape, affine), tmp_path / "new.nii.gz")  # of DICOM: no forms to keep
    new = nib.load(tmp_path / "new.nii.gz").header
    for form, code in (new.get_sform(True), new.get_qform(True)):
        np.testing.assert_allclose(form, affine, atol=1e-4)
        assert code == 1


@pytest.mark.parametrize(("code", "degrees"), [("RAS", 10), ("LPS", 25), ("PSR", -30), ("ILA", 25)])
def test_an_oblique_scan_reads_by_its_nearest_axes_and_keeps_its_affine(code, degrees, tmp_path):
    canonical = labels_of_shape(3, 4, 5)
    native, affine = in_orientation(canonical, code)
    path = save(native, tmp_path / "oblique.nii", rotation(degrees) @ affine)
    voxels, grid = read_scan(path)
    equal(voxels, canonical)
    np.testing.assert_allclose(grid.spacing_mm, SPACING_MM, rtol=1e-6)
    equal(from_slices(to_slices(voxels, 12, labels=True), grid), native)
    write_nifti(native, grid, tmp_path / "out.nii")
    written = nib.load(tmp_path / "out.nii")
    equal(written.affine, nib.load(path).affine)


def test_a_tilted_gantry_has_no_quaternion_and_its_slices_are_as_far_apart_as_they_are(tmp_path):
    """20 degrees: each slice lies 1.8 mm further to the front."""
    affine = np.diag([-1.0, -2.0, 5.0, 1.0])
    affine[1, 2] = 5 * np.tan(np.radians(20))
    grid = Grid((2, 3, 4), affine)
    write_nifti(labels_of_shape(2, 3, 4), grid, tmp_path / "out.nii")
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_allclose(written.affine, affine, rtol=1e-6)
    assert (written.header["sform_code"], written.header["qform_code"]) == (1, 0)
    for found in (grid, read_scan(tmp_path / "out.nii")[1], Grid((4, 3, 2), affine[:, [2, 1, 0, 3]])):
        assert found.spacing_mm == pytest.approx((1, 2, 5)) and found.voxel_ml == pytest.approx(0.01)
        np.testing.assert_allclose(found.axes_mm, affine[:3, :3], atol=1e-6)  # it is LPS


def test_a_picture_shows_the_right_on_the_left_and_the_front_up(tmp_path):
    scan = np.zeros((8, 10, 3), np.int16)
    scan[6:, 8:, 2] = 200  # RAS: the last x is the patient's right, the last y the front, the last z the head
    path = save(scan, tmp_path / "ras.nii.gz", np.eye(4))
    voxels, _ = read_scan(path)
    pictures = to_slices(to_uint8(voxels, "CT", SETTINGS), 40)
    assert pictures.shape == (3, 40, 40)
    bright = np.argwhere(pictures > 150)
    assert set(bright[:, 0]) == {2}
    assert bright[:, 1].max() < 20 and bright[:, 2].max() < 20


# stored numbers


def test_integers_stay_as_stored_and_a_slope_gives_float32(tmp_path):
    stored = np.arange(-4, 4, dtype=np.int16).reshape(2, 2, 2)
    voxels, _ = read_scan(save(stored, tmp_path / "plain.nii", LPS))
    assert voxels.dtype == np.int16
    equal(voxels, stored)
    image = nib.Nifti1Image(stored, LPS)
    image.header.set_slope_inter(0.5, -1024)
    image.to_filename(tmp_path / "scaled.nii")
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    raw[352:] = stored.tobytes(order="F")
    raw[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope and scl_inter
    (tmp_path / "scaled.nii").write_bytes(raw)
    voxels, _ = read_scan(tmp_path / "scaled.nii")
    assert voxels.dtype == np.float32
    equal(voxels, stored * 0.5 - 1024)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "float32", "float64", ">i2", ">f4"])
def test_every_usual_number_type_reads(dtype, tmp_path):
    values = np.arange(24).reshape(2, 3, 4)
    image = nib.Nifti1Image(values.astype(dtype), LPS)
    if dtype.startswith(">"):
        image = nib.Nifti1Image(values.astype(dtype), image.affine, image.header.as_byteswapped(">"))
    nib.save(image, tmp_path / "scan.nii")
    voxels, _ = read_scan(tmp_path / "scan.nii")
    equal(voxels, values)
    assert voxels.dtype.isnative and voxels.dtype in (np.float32, np.dtype(dtype).newbyteorder("="))


def test_nifti_2_and_a_misnamed_gzip_read_too(tmp_path):
    values = labels_of_shape(2, 3, 4)
    nib.save(nib.Nifti2Image(values, LPS), tmp_path / "two.nii.gz")
    (tmp_path / "misnamed.nii").write_bytes((tmp_path / "two.nii.gz").read_bytes())
    for name in ("two.nii.gz", "misnamed.nii"):
        equal(read_scan(tmp_path / name)[0], values)


def test_labels_are_renamed_to_ours(tmp_path):
    # nothing, spleen, liver, portal vein, left adrenal gland, right kidney
    btcv = np.array([0, 1, 6, 10, 13, 2], np.float64).reshape(1, 2, 3)
    path = save(btcv, tmp_path / "labels.nii.gz", LPS)
    labels = read_labels(path, "BTCV", read_scan(path)[1])
    assert labels.dtype == np.uint8
    assert labels.ravel().tolist() == [0, 3, 1, 0, 8, 2]


# grey values


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.int32])
def test_ct_window_at_its_edges(dtype):
    hu = np.array([-2000, -126, -125, -124, 75, 274, 275, 276, 3000], dtype).reshape(3, 3, 1)
    expected = [0, 0, 0, 1, 128, 254, 255, 255, 255]  # (hu + 125) * 0.6375; 127.5 rounds to the even 128
    grey = to_uint8(hu, "CT", SETTINGS)
    assert grey.dtype == np.uint8 and grey.ravel().tolist() == expected


def test_mr_percentiles_span_the_grey_values():
    values = np.arange(101, dtype=np.float32).reshape(101, 1, 1)  # percentile p is p itself
    grey = to_uint8(values, "MR", SETTINGS).ravel()
    assert grey[[0, 1, 50, 99, 100]].tolist() == [0, 0, 128, 255, 255]
    wide = to_uint8(values, "MR", replace(SETTINGS, mr_percentiles=(0.0, 100.0))).ravel()
    assert wide[[0, 20, 100]].tolist() == [0, 51, 255]


def test_a_flat_mri_becomes_zeros_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not to_uint8(np.full((4, 4, 2), 7, np.int16), "MR", SETTINGS).any()


# resizing


def test_identity_where_the_slice_has_the_model_size():
    volume = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    for labels in (False, True):
        equal(to_slices(volume, 12, labels), volume.transpose(2, 1, 0))


def test_shrinking_averages_and_growing_interpolates():
    shrunk = to_slices(np.array([[[0], [100]], [[100], [200]]], np.uint8), 1)
    assert shrunk.tolist() == [[[100]]]
    grown = to_slices(np.array([[[0]], [[100]]], np.uint8), 4)  # x: 0, 100; one row
    assert grown.tolist() == [[[0, 25, 75, 100]] * 4]


def test_a_fine_checkerboard_shrinks_to_grey():
    volume = (np.indices((63, 63)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert set(np.unique(to_slices(volume, 21, labels=True))) == {0, 255}  # what aliasing would look like
    grey = to_slices(volume, 21)[0].astype(float)
    assert np.abs(grey - 127.5).max() < 20 and np.abs(grey[2:-2, 2:-2] - 127.5).max() < 4


def test_labels_take_the_nearest_voxel():
    column = np.array([1, 2, 3, 4], np.uint8).reshape(1, 4, 1)
    assert to_slices(column, 2, labels=True).tolist() == [[[2, 2], [4, 4]]]
    assert to_slices(column, 8, labels=True)[0, :, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    volume = np.random.default_rng(1).choice([0, 3, 9], (50, 37, 4)).astype(np.uint8)
    assert set(np.unique(to_slices(volume, 23, labels=True))) == {0, 3, 9}


def test_nearest_is_torchs_nearest_exact_without_its_rounding():
    """Where a new centre lies on an old border, torch's float32 may fall below it."""
    for old, new in itertools.product(range(1, 24), repeat=2):
        row, centres = torch.arange(old, dtype=torch.uint8), (2 * np.arange(new) + 1) * old
        expected = interpolate(row[None, None, None], (1, new), mode="nearest-exact")[0, 0, 0].numpy()
        found, tie = to_slices(row.numpy()[:, None, None], new, labels=True)[0, 0], centres % (2 * new) == 0
        equal(found[~tie], expected[~tie], f"{old} -> {new}")
        assert (found[tie] == centres[tie] / (2 * new)).all()


def test_many_slices_are_resized_like_one():
    volume = np.random.default_rng(2).integers(0, 256, (20, 14, 2 * volumes.CHUNK + 3), dtype=np.uint8)
    whole = to_slices(volume, 12)
    for z in (0, volumes.CHUNK - 1, volumes.CHUNK, volume.shape[2] - 1):
        equal(whole[z], to_slices(volume[:, :, z : z + 1], 12)[0])


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
def test_a_label_map_survives_a_model_grid_of_a_multiple(factor):
    native = labels_of_shape(5, 5, 4)
    grid = Grid(native.shape, np.eye(4))
    slices = to_slices(grid.to_canonical(native), 5 * factor, labels=True)
    back = from_slices(slices.astype(np.int64), grid)
    equal(back, native)
    assert back.dtype == np.int64


def test_probabilities_go_back_bilinearly_with_their_prompts():
    grid = Grid((4, 1, 1), np.eye(4))  # x is stored from the left: it turns
    row = np.array([[[[0.0, 1.0]]], [[[1.0, 1.0]]]], np.float32).repeat(2, axis=2)  # (2, 1, 2, 2)
    native = from_slices(row, grid)
    assert native.shape == (2, 4, 1, 1) and native.dtype == np.float32
    np.testing.assert_allclose(native[0, :, 0, 0], [1, 0.75, 0.25, 0])
    np.testing.assert_allclose(native[1], 1)
    np.testing.assert_allclose(from_slices(row[0], grid), native[0])


def test_probabilities_of_the_same_size_come_back_bit_by_bit():
    native, affine = in_orientation(np.zeros((6, 6, 3)), "SAR")
    slices = np.random.default_rng(3).random((2, 3, 6, 6), dtype=np.float32)
    back = from_slices(slices, Grid(native.shape, affine))
    assert back.shape == (2, *native.shape)
    equal(back[1], in_orientation(slices[1].transpose(2, 1, 0), "SAR")[0])


def test_a_wrong_number_of_slices_is_named():
    with pytest.raises(ValueError, match="3 slices for a scan of 4"):
        from_slices(np.zeros((3, 5, 5), np.uint8), Grid((5, 5, 4), np.eye(4)))


# bad input


def header(path: Path, **fields: Any) -> None:
    """A scan with other fields in its header."""
    raw = save(NOISE, path).read_bytes()
    block = nib.Nifti1Header(raw[:348], check=False)
    for name, value in fields.items():
        block[name] = value
    path.write_bytes(block.binaryblock + raw[348:])


def cut(path: Path, share: float) -> None:
    raw = save(NOISE, path).read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def flip_a_bit(path: Path) -> None:
    """Damages the gzip's checksum alone: the voxels unpack, though they are not to be trusted."""
    raw = bytearray(save(NOISE, path).read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)


def with_voxel(value: float, count: int = 1) -> np.ndarray:
    array = NOISE.astype(np.float32)
    array.ravel()[:count] = value
    return array


NO_NIFTI, NO_NUMBERS = "read as a NIfTI image", "plain numbers"
BY_QFORM: dict[str, Any] = {"sform_code": 0, "qform_code": 1}
BY_SPACING: dict[str, Any] = {"sform_code": 0, "qform_code": 0}
ENDS = (0, 0, 0, 0)  # of pixdim
RANDOM, PAGE, RGB = (
    np.random.default_rng(1).bytes(5000),
    b"<html>404</html>\n" * 99,
    [(name, "u1") for name in "RGB"],
)
HEADERS: dict[str, tuple[dict[str, Any], str]] = {  # fields of a header, and what is said of it
    "no affine": ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, "its sform makes voxels of 0 x 0 x 0 mm"),
    "NaN affine": ({"srow_x": np.nan}, "its sform lacks a spacing"),
    "parallel axes": ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}, "its sform has parallel axes"),
    "far away": ({"srow_z": [0, 0, 4, 1e6]}, "its sform puts voxels 1e+06 mm away"),
    "microns that are mm": ({"xyzt_units": 3}, "its sform makes voxels of 0.0015 x 0.0025 x 0.004 mm"),
    "metres that are mm": ({"xyzt_units": 1}, "makes voxels of 1.5e+03 x 2.5e+03 x 4e+03 mm"),
    "unknown unit": ({"xyzt_units": 5}, "unknown unit (code 5)"),
    "no spacing": (BY_QFORM | {"pixdim": [1, 0, 2, 3, *ENDS]}, "its qform lacks a spacing over 0"),
    "negative spacing": (BY_QFORM | {"pixdim": [1, 2, -2, 3, *ENDS]}, "its qform lacks a spacing over 0"),
    "NaN spacing": (BY_SPACING | {"pixdim": [1, 2, np.nan, 3, *ENDS]}, "its spacing lacks"),
    "infinite spacing": (BY_QFORM | {"pixdim": [1, 2, np.inf, 3, *ENDS]}, "its qform lacks a spacing over 0"),
    "huge spacing": (BY_SPACING | {"pixdim": [1, 2, 2, 300, *ENDS]}, "spacing makes voxels of 2 x 2 x 300"),
    "no rotation": (BY_QFORM | {"quatern_b": 0.8, "quatern_c": 0.8}, "qform lacks a spacing over 0, a"),
    "two that are none": ({"qform_code": 1, "quatern_b": 9, "srow_x": 0}, "sform makes voxels of 0 x 2.5"),
}
SCANS: dict[str, tuple[str, Callable[[Path], object], str]] = {  # file, how it is made, what is said of it
    "missing": ("a.nii.gz", lambda path: None, "does not exist"),
    "folder": ("a.nii.gz", lambda path: path.mkdir(), "is a folder"),
    "random bytes": ("a.nii.gz", lambda path: path.write_bytes(RANDOM), NO_NIFTI),
    "random bytes, plain": ("a.nii", lambda path: path.write_bytes(RANDOM), NO_NIFTI),
    "text": ("a.nii.gz", lambda path: path.write_bytes(PAGE), NO_NIFTI),
    "gzipped text": ("a.nii.gz", lambda path: path.write_bytes(gzip.compress(PAGE)), NO_NIFTI),
    "empty": ("a.nii", lambda path: path.touch(), NO_NIFTI),
    "gzip cut": ("a.nii.gz", lambda path: cut(path, 0.7), "cut short"),
    "gzip cut in its header": ("a.nii.gz", lambda path: cut(path, 0.1), "cut short"),
    "plain cut": ("a.nii", lambda path: cut(path, 0.9), "cut short"),
    "plain cut in its header": ("a.nii", lambda path: cut(path, 0.3), "cut short"),
    "checksum": ("a.nii.gz", flip_a_bit, "CRC"),
    "4-D": ("a.nii.gz", lambda path: save(np.zeros((3, 3, 3, 2), np.int16), path), "(3, 3, 3, 2)"),
    "2-D": ("a.nii.gz", lambda path: save(np.zeros((3, 3), np.int16), path), "(3, 3)"),
    "empty axis": ("a.nii", lambda path: header(path, dim=[3, 6, 0, 3, 1, 1, 1, 1]), "(6, 0, 3)"),
    "negative axis": ("a.nii", lambda path: header(path, dim=[3, 6, -4, 3, 1, 1, 1, 1]), "(6, -4, 3)"),
    "huge axes": ("a.nii", lambda path: header(path, dim=[3, *[32767] * 3, 1, 1, 1, 1]), "cut short"),
    "NaN": ("a.nii.gz", lambda path: save(with_voxel(np.nan, 5), path), "5 NaN or infinite voxels"),
    "infinite": ("a.nii.gz", lambda path: save(with_voxel(-np.inf), path), "1 NaN or infinite voxels"),
    "beyond float32": ("a.nii.gz", lambda path: save(NOISE * 1e300, path), "NaN or infinite voxels"),
    "colour": ("a.nii", lambda path: save(np.zeros(SHAPE, RGB), path), NO_NUMBERS),
    "complex": ("a.nii", lambda path: save(np.zeros(SHAPE, np.complex64), path), NO_NUMBERS),
    "8 bits of 16": ("a.nii", lambda path: header(path, bitpix=8), NO_NIFTI),
    "voxels in the header": ("a.nii", lambda path: header(path, vox_offset=0), NO_NIFTI),
    "infinite slope": ("a.nii", lambda path: header(path, scl_slope=np.inf), "slope is infinite"),
    **{name: ("a.nii", partial(header, **fields), why) for name, (fields, why) in HEADERS.items()},
}


def one_sentence(error: pytest.ExceptionInfo, *parts: object) -> bool:
    text = str(error.value)
    assert all(str(part) in text for part in parts), text
    return "\n" not in text and text.endswith(".") and len(text) < 500


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.filterwarnings("error")
def test_a_bad_scan_is_refused_and_so_are_labels_like_it(kind, tmp_path):
    name, make, expected = SCANS[kind]
    make(tmp_path / name)
    with pytest.raises(InputError) as error:
        read_scan(tmp_path / name)
    assert one_sentence(error, tmp_path / name, expected)
    with pytest.raises(InputError) as error:
        read_labels(tmp_path / name, "FLARE22", Grid(SHAPE, AFFINE))
    assert one_sentence(error, tmp_path / name, expected)


METRES = {"srow_x": [-1.5e-3, 0, 0, 0], "srow_y": [0, -2.5e-3, 0, 0], "srow_z": [0, 0, 4e-3, 0]}
MICRONS = {"xyzt_units": 3, "pixdim": [1, 1500, 2500, 4000, *ENDS]}
SAID: dict[str, tuple[dict[str, Any], str]] = {  # fields of a header of 1.5 x 2.5 x 4 mm, and the warning
    "metres": (METRES | {"xyzt_units": 1, "pixdim": [1, 1.5e-3, 2.5e-3, 4e-3, *ENDS]}, ""),
    "microns": (BY_QFORM | MICRONS, ""),
    "no unit": ({"xyzt_units": 0}, ""),
    "both forms": ({"qform_code": 1}, ""),
    "forms apart": ({"qform_code": 1, "quatern_d": 0}, "its qform lies up to 12 voxels off its sform"),
    "no sform": (BY_QFORM | {"srow_x": 0}, ""),
    "sform of zeros": ({"qform_code": 1} | dict.fromkeys(METRES, 0), "0 x 0 x 0 mm; its qform is used"),
    "qform that is none": ({"qform_code": 1, "quatern_b": 9}, "or finite numbers; its sform is used"),
    "rounded quaternion": (BY_QFORM | {"quatern_b": 0, "quatern_c": 0, "quatern_d": 1.001}, ""),
    "other spacing": ({"pixdim": [1, 1, 1, 1, *ENDS]}, "its spacing is not that of its sform"),
    "no codes": (BY_SPACING, "left and right are a guess"),
    "no slope": ({"scl_slope": np.nan, "scl_inter": np.inf}, ""),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_header_that_contradicts_itself_is_read_with_a_word_and_results_keep_both_forms(kind, tmp_path):
    fields, word = SAID[kind]
    header(path := tmp_path / "scan.nii", **fields)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        voxels, grid = read_scan(path)
    said = [str(one.message) for one in caught]
    assert len(said) == bool(word) and all(text.startswith(str(path)) and word in text for text in said), said
    assert grid.spacing_mm == pytest.approx((1.5, 2.5, 4)) and voxels.shape == SHAPE
    write_nifti(np.zeros(SHAPE, np.uint8), grid, tmp_path / "out.nii")
    written, scan = nib.load(tmp_path / "out.nii"), nib.Nifti1Header(path.read_bytes()[:348], check=False)
    np.testing.assert_allclose(written.affine, grid.affine, atol=1e-5)
    if kind in ("forms apart", "both forms", "no codes", "no sform"):
        for form in ("sform", "qform"):
            assert written.header[f"{form}_code"] == scan[f"{form}_code"]
            theirs, ours = (getattr(one, f"get_{form}")(coded=True)[0] for one in (scan, written.header))
            assert ours is theirs is None or np.allclose(ours, theirs, atol=1e-5)


def test_one_volume_may_have_a_fourth_axis_of_one(tmp_path):
    for more in ((1,), (1, 1)):
        voxels, grid = read_scan(save(NOISE.reshape(*SHAPE, *more), tmp_path / "scan.nii.gz"))
        equal(grid.to_native(voxels), NOISE)
        assert grid.shape == SHAPE


def test_a_scan_longer_than_nifti_1_holds_is_written_as_nifti_2(tmp_path):
    labels = np.zeros((2**15, 1, 2), np.uint8)
    write_nifti(labels, Grid(labels.shape, np.diag([1, 1, 1, 1.0])), tmp_path / "long.nii.gz")
    assert read_scan(tmp_path / "long.nii.gz")[0].shape == labels.shape


def labelled(value: float, dtype: type = np.float32) -> np.ndarray:
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 0] = value
    return array


def refused(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> str:
    """With what labels are refused for the scan of AFFINE and SHAPE."""
    with pytest.raises(InputError) as error:
        read_labels(save(array, path, affine), "FLARE22", Grid(SHAPE, AFFINE))
    assert one_sentence(error, path)
    return str(error.value)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((6, 4, 2), np.uint8), "has the shape (6, 4, 2), its scan (6, 4, 3)"),
        (labelled(14), "FLARE22 does not know (14)"),
        (labelled(-1, np.int16), "does not know (-1)"),
        (labelled(-250, np.int16), "does not know (-250)"),  # 6 in 8 bits
        (labelled(257, np.int16), "does not know (257)"),
        (labelled(255, np.uint8), "does not know (255)"),
        (np.arange(72, dtype=np.uint8).reshape(SHAPE), "(14, 15, 16, 17, 18, 19, 20, 21, 22, 23, ...)"),
        (labelled(1.5), "non-integer labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(array, expected, tmp_path):
    assert expected in refused(array, tmp_path / "labels.nii.gz")


@pytest.mark.parametrize(("kind", "most"), [("f4", 13), ("i2", 13), ("u1", 13), ("u1", 117)])
def test_labels_are_read_as_the_whole_numbers_that_a_slope_has_rounded(kind, most, tmp_path):
    """nibabel spreads floats over all numbers of the type: 1 becomes 0.99997, 1.0196 or, of 117, 0.918."""
    labels = (np.arange(72) % (most + 1)).reshape(SHAPE)
    labels[0, 0, 0] = most
    image = nib.Nifti1Image(labels.astype(float), AFFINE)
    image.header.set_data_dtype(kind)
    nib.save(image, path := tmp_path / "labels.nii.gz")
    ids = "TotalSegmentator v2" if most > 13 else "FLARE22"
    expected = np.vectorize(LABEL_MAPS[ids].get)(labels)
    equal(read_labels(path, ids, grid := Grid(SHAPE, AFFINE)), grid.to_canonical(expected))
    nib.save(nib.Nifti1Image((labels * 0.98).astype(np.float32), AFFINE), path)  # interpolated, not rounded
    with pytest.raises(InputError, match="non-integer labels, up to 0"):
        read_labels(path, ids, grid)


@pytest.mark.parametrize(
    ("change", "in_hu", "air"),
    [
        (lambda hu: hu, True, True),
        (lambda hu: hu.clip(-160, 240), True, False),
        (lambda hu: np.where(hu < -900, -2000, hu), True, True),  # padding
        (lambda hu: hu * 0 - 1000, True, True),  # air alone
        (lambda hu: (hu + 1024).astype(np.uint16), False, False),
        (lambda hu: np.where(hu < -900, -2000, hu) + 1024, False, True),
        (lambda hu: hu - 1024, False, True),  # the offset taken away twice
        (lambda hu: (hu + 1000) / 2000, False, False),
        (lambda hu: hu * 0, False, False),
    ],
)
def test_hounsfield_units_are_known_by_fat_and_air_and_not_by_one_voxel(change, in_hu, air):
    """Air, fat, muscle and bone in their shares of a CT, and a voxel of each extreme."""
    hu = np.repeat([-1000, -100, 50, 400], [50, 20, 25, 5]).reshape(10, 10, 1).repeat(40, 2)
    seen = change(hu)
    assert (volumes.is_in_hu(seen), volumes.shows_air(seen)) == (in_hu, air)
    seen[0, 0, 0], seen[0, 0, 1] = seen.max() * 2, 0 if seen.dtype == np.uint16 else -260
    assert (volumes.is_in_hu(seen), volumes.shows_air(seen)) == (in_hu, air)


@pytest.mark.parametrize(
    ("change", "voxels"),
    [
        ({(2, 3): 0.6}, "0.15"),
        ({(0, 3): 1.5}, "1.00"),
        ({(1, 3): -250.0}, "100.00"),
        ({(0, 0): 1.5}, "12.00"),  # mirrored
        ({(2, 2): 4.4}, "0.30"),  # rescaled
    ],
)
def test_labels_off_their_scan_are_refused_by_how_much_at_the_far_corner(change, voxels, tmp_path):
    affine = AFFINE.copy()
    for place, value in change.items():
        affine[place] = value
    assert f"lies up to {voxels} voxels off its scan" in refused(
        labelled(1), tmp_path / "moved.nii.gz", affine
    )


@pytest.mark.parametrize("change", [{(2, 2): 4.01}, {(0, 3): 1e-4}])  # 1e-4 mm: ITK's rounding
def test_labels_that_are_nearly_on_their_scan_are_welcome(change, tmp_path):
    affine = AFFINE.copy()
    for place, value in change.items():
        affine[place] = value
    path = save(labelled(1), tmp_path / "nearly.nii.gz", affine)
    assert read_labels(path, "FLARE22", Grid(SHAPE, AFFINE)).sum() == 1


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'Synapse'.*BTCV"):
        read_labels(save(labelled(1), tmp_path / "a.nii"), "Synapse", Grid(SHAPE, AFFINE))
