"""lib.volumes on hand-computed arrays, on all 48 orientations and on the two real sample scans."""

import itertools
import json
import multiprocessing
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lib import data, organs, volumes
from lib.config import Settings
from lib.data import SAMPLES, Case, Store, prepare, sample_folders
from lib.organs import BY_KEY, ORGANS
from lib.volumes import Grid, from_slices, read_labels, read_scan, to_slices, to_uint8, write_nifti

SETTINGS = Settings(size=12)
DIRECTIONS = {
    "R": (0, 1),
    "L": (0, -1),
    "A": (1, 1),
    "P": (1, -1),
    "S": (2, 1),
    "I": (2, -1),
}  # world axis (RAS), sign
CODES = [
    "".join(pair[side] for pair, side in zip(pairs, sides, strict=True))
    for pairs in itertools.permutations(("RL", "AP", "SI"))
    for sides in itertools.product((0, 1), repeat=3)
]
SPACING_MM = (1.0, 2.0, 5.0)


def labels_of_shape(*shape: int) -> np.ndarray:
    """An asymmetrical map of ids 0..13."""
    return (np.arange(np.prod(shape)).reshape(shape) * 5 % 14).astype(np.uint8)


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


def save(array: np.ndarray, affine: np.ndarray, path: Path) -> Path:
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


def make_case(
    folder: Path, name: str = "a", shape: tuple[int, int, int] = (6, 4, 3), labelled: bool = True
) -> Case:
    """A small CT whose grey values and labels differ in every voxel's neighbourhood."""
    labels = labels_of_shape(*shape)
    affine = np.diag([-1.5, -2.5, 4.0, 1.0])
    image = save((labels * 30 - 150).astype(np.int16), affine, folder / f"{name}.nii.gz")
    return Case(name, image, save(labels, affine, folder / f"{name}_labels.nii.gz") if labelled else None)


def prepared(case: Case, settings: Settings, folder: Path) -> Store:
    return prepare([case], settings, folder)[0]


# axes and the way back


def test_there_are_48_codes():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("code", CODES)
def test_every_orientation_reads_the_same_and_goes_back_exactly(code, tmp_path):
    canonical = labels_of_shape(3, 4, 5)
    native, affine = in_orientation(canonical, code)
    path = save(native, affine, tmp_path / "labels.nii.gz")
    voxels, grid = read_scan(path)
    np.testing.assert_array_equal(voxels, canonical)
    np.testing.assert_array_equal(read_labels(path, "FLARE22", grid), canonical)
    assert grid.canonical_shape == (3, 4, 5) and grid.shape == native.shape
    assert grid.spacing_mm == SPACING_MM
    np.testing.assert_array_equal(grid.to_native(grid.to_canonical(native)), native)
    back = from_slices(to_slices(canonical, 12, labels=True), grid)  # 12 is a multiple of 3 and 4
    np.testing.assert_array_equal(back, native)
    write_nifti(back, grid, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), native)
    np.testing.assert_array_equal(written.affine, affine)
    np.testing.assert_allclose(written.get_qform(), affine, atol=1e-4)
    assert (written.header["sform_code"], written.header["qform_code"]) == (1, 1)
    assert written.header.get_xyzt_units()[0] == "mm" and written.get_data_dtype() == np.uint8


@pytest.mark.parametrize("code", ["RAS", "LPS", "PSR", "ILA"])
@pytest.mark.parametrize("degrees", [10.0, 25.0, -30.0])
def test_an_oblique_scan_reads_by_its_nearest_axes_and_keeps_its_affine(code, degrees, tmp_path):
    canonical = labels_of_shape(3, 4, 5)
    native, affine = in_orientation(canonical, code)
    path = save(native, rotation(degrees) @ affine, tmp_path / "oblique.nii")
    voxels, grid = read_scan(path)
    np.testing.assert_array_equal(voxels, canonical)
    np.testing.assert_allclose(grid.spacing_mm, SPACING_MM, rtol=1e-6)
    np.testing.assert_array_equal(from_slices(to_slices(voxels, 12, labels=True), grid), native)
    write_nifti(native, grid, tmp_path / "out.nii")
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(written.affine, nib.load(path).affine)
    assert written.header["qform_code"] == 1


def test_a_sheared_affine_stays_and_gets_no_false_quaternion(tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 2] = 0.5
    write_nifti(labels_of_shape(2, 3, 4), Grid((2, 3, 4), affine), tmp_path / "out.nii")
    written = nib.load(tmp_path / "out.nii")
    np.testing.assert_array_equal(written.affine, affine)
    assert (written.header["sform_code"], written.header["qform_code"]) == (1, 0)


def test_a_picture_shows_the_right_on_the_left_and_the_front_up(tmp_path):
    scan = np.zeros(
        (8, 10, 3), np.int16
    )  # RAS: the last x is the patient's right, the last y the front, the last z the head
    scan[6:, 8:, 2] = 200
    path = save(scan, np.diag([1.0, 1.0, 1.0, 1.0]), tmp_path / "ras.nii.gz")
    voxels, _ = read_scan(path)
    pictures = to_slices(to_uint8(voxels, "CT", SETTINGS), 40)
    assert pictures.shape == (3, 40, 40)
    bright = np.argwhere(pictures > 150)
    assert set(bright[:, 0]) == {2}
    assert bright[:, 1].max() < 20 and bright[:, 2].max() < 20


def test_without_orientation_codes_the_reader_is_warned(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), None)
    nib.save(image, tmp_path / "no_codes.nii")
    with pytest.warns(UserWarning, match="left and right are a guess"):
        read_scan(tmp_path / "no_codes.nii")


# stored numbers


def test_integers_stay_as_stored_and_a_slope_gives_float32(tmp_path):
    stored = np.arange(-4, 4, dtype=np.int16).reshape(2, 2, 2)
    voxels, _ = read_scan(save(stored, np.diag([-1.0, -1, 1, 1]), tmp_path / "plain.nii"))
    assert voxels.dtype == np.int16
    np.testing.assert_array_equal(voxels, stored)
    image = nib.Nifti1Image(stored, np.diag([-1.0, -1, 1, 1]))
    image.header.set_slope_inter(0.5, -1024)
    image.to_filename(tmp_path / "scaled.nii")
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    raw[352:] = stored.tobytes(order="F")
    raw[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope and scl_inter
    (tmp_path / "scaled.nii").write_bytes(raw)
    voxels, _ = read_scan(tmp_path / "scaled.nii")
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, stored * 0.5 - 1024)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "float32", "float64", ">i2", ">f4"])
def test_every_usual_number_type_reads(dtype, tmp_path):
    values = np.arange(24).reshape(2, 3, 4)
    image = nib.Nifti1Image(values.astype(dtype), np.diag([-1.0, -1, 1, 1]))
    if dtype.startswith(">"):
        image = nib.Nifti1Image(values.astype(dtype), image.affine, image.header.as_byteswapped(">"))
    nib.save(image, tmp_path / "scan.nii")
    voxels, _ = read_scan(tmp_path / "scan.nii")
    np.testing.assert_array_equal(voxels, values)
    assert voxels.dtype.isnative and voxels.dtype in (np.float32, np.dtype(dtype).newbyteorder("="))


def test_nifti_2_and_a_misnamed_gzip_read_too(tmp_path):
    values = labels_of_shape(2, 3, 4)
    nib.save(nib.Nifti2Image(values, np.diag([-1.0, -1, 1, 1])), tmp_path / "two.nii.gz")
    (tmp_path / "misnamed.nii").write_bytes((tmp_path / "two.nii.gz").read_bytes())
    for name in ("two.nii.gz", "misnamed.nii"):
        np.testing.assert_array_equal(read_scan(tmp_path / name)[0], values)


def test_labels_are_renamed_to_ours(tmp_path):
    btcv = np.array([0, 1, 6, 10, 13, 2], np.float64).reshape(
        1, 2, 3
    )  # nothing, spleen, liver, portal vein, left adrenal, right kidney
    path = save(btcv, np.diag([-1.0, -1, 1, 1]), tmp_path / "labels.nii.gz")
    labels = read_labels(path, "BTCV", read_scan(path)[1])
    assert labels.dtype == np.uint8
    assert labels.ravel().tolist() == [0, 3, 1, 0, 8, 2]


def test_labels_may_lie_off_by_itks_rounding(tmp_path):
    values, affine = labels_of_shape(3, 4, 5), np.diag([-0.8, -0.8, 3.0, 1.0])
    _, grid = read_scan(save(values.astype(np.int16), affine, tmp_path / "scan.nii"))
    affine[:3, 3] += 1e-4
    np.testing.assert_array_equal(
        read_labels(save(values, affine, tmp_path / "labels.nii"), "FLARE22", grid), values
    )


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
        np.testing.assert_array_equal(to_slices(volume, 12, labels), volume.transpose(2, 1, 0))


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
    for old, new in itertools.product(range(1, 24), repeat=2):
        row = torch.arange(old, dtype=torch.uint8)
        expected = torch.nn.functional.interpolate(row[None, None, None], (1, new), mode="nearest-exact")[
            0, 0, 0
        ].numpy()
        found = to_slices(row.numpy()[:, None, None], new, labels=True)[0, 0]
        tie = (2 * np.arange(new) + 1) * old % (
            2 * new
        ) == 0  # a new centre on an old border: torch's float32 may fall below it
        np.testing.assert_array_equal(found[~tie], expected[~tie], f"{old} -> {new}")
        assert (found[tie] == (2 * np.arange(new) + 1)[tie] * old / (2 * new)).all()


def test_many_slices_are_resized_like_one():
    volume = np.random.default_rng(2).integers(0, 256, (20, 14, 2 * volumes.CHUNK + 3), dtype=np.uint8)
    whole = to_slices(volume, 12)
    for z in (0, volumes.CHUNK - 1, volumes.CHUNK, volume.shape[2] - 1):
        np.testing.assert_array_equal(whole[z], to_slices(volume[:, :, z : z + 1], 12)[0])


@pytest.mark.parametrize("factor", [1, 2, 3, 7])
def test_a_label_map_survives_a_model_grid_of_a_multiple(factor):
    native = labels_of_shape(5, 5, 4)
    grid = Grid(native.shape, np.diag([1.0, 1.0, 1.0, 1.0]))
    slices = to_slices(grid.to_canonical(native), 5 * factor, labels=True)
    back = from_slices(slices.astype(np.int64), grid)
    np.testing.assert_array_equal(back, native)
    assert back.dtype == np.int64


def test_probabilities_go_back_bilinearly_with_their_prompts():
    grid = Grid((4, 1, 1), np.diag([1.0, 1.0, 1.0, 1.0]))  # x is stored from the left: it turns
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
    np.testing.assert_array_equal(back[1], in_orientation(slices[1].transpose(2, 1, 0), "SAR")[0])


def test_a_wrong_number_of_slices_is_named():
    with pytest.raises(ValueError, match="3 slices for a scan of 4"):
        from_slices(np.zeros((3, 5, 5), np.uint8), Grid((5, 5, 4), np.eye(4)))


# the store


def test_a_store_holds_slices_labels_counts_and_provenance(tmp_path):
    case = make_case(tmp_path)
    store = prepared(case, SETTINGS, tmp_path / "cache")
    voxels, grid = read_scan(case.image)
    np.testing.assert_array_equal(store.image, to_slices(to_uint8(voxels, "CT", SETTINGS), 12))
    np.testing.assert_array_equal(store.labels, to_slices(labels_of_shape(6, 4, 3), 12, labels=True))
    assert store.image.dtype == store.labels.dtype == np.uint8
    assert isinstance(store.image, np.memmap) and not store.image.flags.writeable
    assert store.presence.shape == (3, 14) and (store.presence.sum(1) == 144).all()
    assert (
        store.presence[1, 5] == 6 * (labels_of_shape(6, 4, 3)[:, :, 1] == 5).sum()
    )  # a voxel covers 2 x 3 pixels
    assert (store.id, store.modality, store.label_map, store.source, store.folder) == (
        "a",
        "CT",
        "FLARE22",
        case,
        tmp_path / "cache" / "a",
    )
    np.testing.assert_array_equal(store.grid.affine, grid.affine)
    assert store.grid.shape == (6, 4, 3)
    assert sorted(path.name for path in store.folder.iterdir()) == ["case.json", "image.npy", "labels.npy"]
    record = json.loads((store.folder / "case.json").read_text())
    assert (
        record["spacing_mm"] == [1.5, 2.5, 4.0] and len(record["image_sha256"]) == 64 and record["size"] == 12
    )


def no_reading(path: Path):
    raise AssertionError(f"{path} is read again")


def test_a_store_is_reused(tmp_path, monkeypatch):
    case = make_case(tmp_path)
    first = prepared(case, SETTINGS, tmp_path / "cache")
    monkeypatch.setattr(data, "read_scan", no_reading)
    again = prepared(case, replace(SETTINGS, epochs=7), tmp_path / "cache")  # epochs do not change a slice
    np.testing.assert_array_equal(again.image, first.image)
    np.testing.assert_array_equal(again.presence, first.presence)


@pytest.mark.parametrize(
    "change", [{"size": 8}, {"ct_window_hu": (0.0, 100.0)}, {"mr_percentiles": (2.0, 98.0)}]
)
def test_other_settings_rebuild_the_store(change, tmp_path):
    case, other = make_case(tmp_path), replace(SETTINGS, **change)
    prepared(case, SETTINGS, tmp_path / "cache")
    store = prepared(case, other, tmp_path / "cache")
    np.testing.assert_array_equal(
        store.image, to_slices(to_uint8(read_scan(case.image)[0], "CT", other), other.size)
    )
    assert json.loads((store.folder / "case.json").read_text())["size"] == other.size


def test_another_source_label_map_or_version_rebuilds_the_store(tmp_path, monkeypatch):
    case = make_case(tmp_path)
    first = prepared(case, SETTINGS, tmp_path / "cache")
    before, old_image = first.labels.copy(), first.image.copy()
    other = prepared(replace(case, label_map="AMOS22"), SETTINGS, tmp_path / "cache")
    assert (other.labels[before == 6] == 1).all() and (before == 6).any()  # AMOS22 calls the liver 6
    assert prepared(case, SETTINGS, tmp_path / "cache").label_map == "FLARE22"
    save(np.full((6, 4, 3), 75, np.int16), np.diag([-1.5, -2.5, 4.0, 1.0]), case.image)
    changed = prepared(case, SETTINGS, tmp_path / "cache")
    assert (changed.image == 128).all() and not (old_image == 128).all()
    save(np.full((6, 4, 3), 13, np.uint8), np.diag([-1.5, -2.5, 4.0, 1.0]), case.labels)
    assert (prepared(case, SETTINGS, tmp_path / "cache").labels == 13).all()
    monkeypatch.setattr(data, "STORE_VERSION", data.STORE_VERSION + 1)
    monkeypatch.setattr(data, "read_scan", no_reading)
    with pytest.raises(AssertionError, match="read again"):
        prepared(case, SETTINGS, tmp_path / "cache")


def test_a_changed_label_map_rebuilds_the_store(tmp_path, monkeypatch):
    case = make_case(tmp_path)
    assert (prepared(case, SETTINGS, tmp_path / "cache").presence[:, 13] > 0).any()
    monkeypatch.setitem(organs.LABEL_MAPS, "FLARE22", {i: 0 if i == 13 else i for i in range(14)})
    assert not prepared(case, SETTINGS, tmp_path / "cache").presence[:, 13].any()


def test_arrays_of_another_size_beside_the_record_are_made_again(tmp_path):
    case = make_case(tmp_path)
    for name in ("image", "labels"):
        np.save(
            prepared(case, SETTINGS, tmp_path / "cache").folder / f"{name}.npy", np.zeros((3, 8, 8), np.uint8)
        )
        store = prepared(case, SETTINGS, tmp_path / "cache")
        assert store.image.shape == store.labels.shape == (3, 12, 12)


def test_a_scan_without_truth_has_no_labels_and_leaves_no_old_ones(tmp_path):
    case = make_case(tmp_path)
    prepared(case, SETTINGS, tmp_path / "cache")
    store = prepared(replace(case, labels=None), SETTINGS, tmp_path / "cache")
    assert store.labels is None and store.presence is None
    assert sorted(path.name for path in store.folder.iterdir()) == ["case.json", "image.npy"]
    assert prepared(case, SETTINGS, tmp_path / "cache").labels is not None


@pytest.mark.parametrize("last", ["image.npy", "labels.npy"])
def test_a_run_killed_between_the_arrays_leaves_no_store(last, tmp_path, monkeypatch):
    case, other = make_case(tmp_path), replace(SETTINGS, ct_window_hu=(0.0, 50.0))
    expected = prepared(case, SETTINGS, tmp_path / "cache").image.copy()
    replacing = data.replacing

    @contextmanager
    def killed(path):
        with replacing(path) as part:
            yield part
        if path.name == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(data, "replacing", killed)
    with pytest.raises(KeyboardInterrupt):
        prepared(
            case, other, tmp_path / "cache"
        )  # of the same shape as the old store, which is gone from here on
    monkeypatch.undo()
    assert not (tmp_path / "cache" / "a" / "case.json").exists()
    np.testing.assert_array_equal(prepared(case, SETTINGS, tmp_path / "cache").image, expected)
    assert sorted(path.name for path in (tmp_path / "cache" / "a").iterdir()) == [
        "case.json",
        "image.npy",
        "labels.npy",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("image.npy", b""), ("labels.npy", b"half"), ("case.json", b"{"), ("case.json", b"[]")],
)
def test_a_damaged_store_is_made_again(name, content, tmp_path):
    case = make_case(tmp_path)
    expected = prepared(case, SETTINGS, tmp_path / "cache").image.copy()
    (tmp_path / "cache" / "a" / name).write_bytes(content)
    np.testing.assert_array_equal(prepared(case, SETTINGS, tmp_path / "cache").image, expected)


@pytest.mark.parametrize("shape", [(6, 4, 1), (1, 4, 3), (1, 1, 1)])
def test_a_single_slice_row_or_voxel_is_no_error(shape, tmp_path):
    case = make_case(tmp_path, shape=shape)
    store = prepared(case, SETTINGS, tmp_path / "cache")
    assert store.image.shape == (shape[2], 12, 12)
    np.testing.assert_array_equal(from_slices(np.asarray(store.labels), store.grid), labels_of_shape(*shape))


def test_organs_that_are_absent_everywhere_are_counted_as_absent(tmp_path):
    case = make_case(tmp_path)
    save(np.zeros((6, 4, 3), np.uint8), np.diag([-1.5, -2.5, 4.0, 1.0]), case.labels)
    presence = prepared(case, SETTINGS, tmp_path / "cache").presence
    assert presence.shape == (3, 14) and (presence[:, 0] == 144).all() and not presence[:, 1:].any()


def test_prepare_all_keeps_the_order_and_shows_its_bar_only_when_it_works(tmp_path, capfd):
    cases = [make_case(tmp_path, name) for name in "cab"]
    stores = prepare(cases, SETTINGS, tmp_path / "cache", jobs=2)  # two processes
    assert [store.id for store in stores] == ["c", "a", "b"]
    alone = prepared(cases[1], SETTINGS, tmp_path / "alone")
    np.testing.assert_array_equal(stores[1].image, alone.image)
    assert isinstance(stores[0].image, np.memmap) and stores[0].presence.shape == (3, 14)
    assert "preparing scans" in capfd.readouterr().err
    assert [store.id for store in prepare(cases, SETTINGS, tmp_path / "cache")] == ["c", "a", "b"]
    assert capfd.readouterr().err == ""
    assert prepare([], SETTINGS, tmp_path / "cache") == []


def prepare_noted(cases, folder, note, barrier):
    """`prepare` in a process of its own, which notes what it makes, slowly. Both start together."""
    write = data._write

    def noted(case, *rest):
        with open(note, "a") as file:
            file.write(f"{case.id} ")
        time.sleep(0.1)
        write(case, *rest)

    data._write = noted
    barrier.wait(60)
    assert [store.id for store in prepare(cases, SETTINGS, folder, jobs=1)] == [case.id for case in cases]


def test_two_runs_at_once_make_nothing_twice(tmp_path):
    cases = [make_case(tmp_path, name) for name in "abcdef"]
    note, fork = tmp_path / "note", multiprocessing.get_context("fork")
    barrier = fork.Barrier(2)
    arguments = (cases, tmp_path / "cache", note, barrier)
    children = [fork.Process(target=prepare_noted, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0, 0]
    assert note.read_text().split() == [*"abcdef"]
    assert not list((tmp_path / "cache").rglob("*.part*"))


# real scans


@pytest.fixture(scope="module", params=["ct", "mr"])
def sample(request, tmp_path_factory):
    """The store of a real scan."""
    here = next((f for f in sample_folders() if all((f / name).is_file() for name in SAMPLES)), None)
    if here is None:
        pytest.skip("the sample scans are not here")
    image, labels = (here / f"{request.param}_{what}.nii.gz" for what in ("image", "labels"))
    label_map = {"ct": "TotalSegmentator", "mr": "TotalSegmentatorMR"}[request.param]
    case = Case(request.param, image, labels, label_map, request.param.upper())
    return prepared(case, replace(SETTINGS, size=96), tmp_path_factory.mktemp("cache"))


def test_a_real_scan_shows_the_patients_sides(sample):
    def centre(key: str) -> np.ndarray:
        """(z, row, column)."""
        return np.argwhere(sample.labels == BY_KEY[key].label).mean(0)

    assert centre("liver")[2] < centre("spleen")[2]
    assert centre("inferior vena cava")[2] < centre("aorta")[2]
    assert centre("stomach")[1] < centre("spleen")[1]  # in front of it
    if sample.modality == "CT":  # the MRI's field of view ends at the right kidney
        assert centre("right kidney")[2] < 48 < centre("left kidney")[2]
        assert centre("right kidney")[0] < centre("liver")[0]  # z grows to the head
    else:
        assert centre("right kidney")[2] < centre("left kidney")[2]


def test_a_real_scan_has_contrast_and_counts(sample):
    assert sample.image.std() > 20 and sample.image.min() == 0 and sample.image.max() == 255
    assert sample.image.shape == (sample.grid.canonical_shape[2], 96, 96)
    np.testing.assert_allclose(sample.grid.spacing_mm, 3, atol=1e-3)
    np.testing.assert_array_equal(
        sample.presence.sum(0), np.bincount(np.ravel(sample.labels), minlength=len(ORGANS) + 1)
    )
    assert (sample.presence.sum(0)[[1, 2, 3, 5, 6, 13]] > 0).all() and sample.presence.sum(0)[
        10
    ] == 0  # no esophagus here


def test_a_real_label_map_comes_back_through_the_model_grid(sample, tmp_path):
    truth = sample.grid.to_native(read_labels(sample.source.labels, sample.label_map, sample.grid))
    back = from_slices(np.asarray(sample.labels), sample.grid)
    assert back.shape == truth.shape
    liver = [array == BY_KEY["liver"].label for array in (truth, back)]
    assert 2 * (liver[0] & liver[1]).sum() / (liver[0].sum() + liver[1].sum()) > 0.9
    write_nifti(truth, sample.grid, tmp_path / "truth.nii.gz")
    np.testing.assert_array_equal(
        read_scan(tmp_path / "truth.nii.gz")[1].affine, nib.load(sample.source.image).affine
    )
    np.testing.assert_array_equal(
        read_labels(tmp_path / "truth.nii.gz", "FLARE22", sample.grid), sample.grid.to_canonical(truth)
    )
