"""lib.data's stores: each scan is prepared once, whole or not at all, and anew when anything changes."""

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny import at_once, files_of, labels_of_shape
from trees import sample_scans

from lib import data, organs
from lib.config import Settings, SliceSettings
from lib.data import Case, Store, prepare
from lib.files import InputError
from lib.organs import BY_KEY, ORGANS
from lib.volumes import Grid, from_slices, read_labels, read_scan, to_slices, to_uint8, write_nifti

equal = np.testing.assert_array_equal
SETTINGS = Settings(size=12)
AFFINE, SHAPE = np.diag([-1.5, -2.5, 4.0, 1.0]), (6, 4, 3)
FILES = ["case.json", "image.npy", "labels.npy"]


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def make_case(folder: Path, name: str = "a", shape: tuple[int, int, int] = SHAPE) -> Case:
    """A small CT whose grey values and labels differ in every voxel's neighbourhood."""
    labels = labels_of_shape(*shape)
    image = save((labels * 30 - 150).astype(np.int16), folder / f"{name}.nii.gz")
    return Case(name, image, save(labels, folder / f"{name}_labels.nii.gz"))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Store]:
    """Prepares a case in the test's cache."""
    return lambda case, settings=SETTINGS: prepare([case], settings, tmp_path / "cache")[0]


def test_a_store_holds_slices_labels_and_counts(stored: Any, case: Case) -> None:
    store = stored(case)
    voxels, grid = read_scan(case.image)
    equal(store.image, to_slices(to_uint8(voxels, "CT", SETTINGS), 12))
    equal(store.labels, to_slices(labels_of_shape(6, 4, 3), 12, labels=True))
    assert store.image.dtype == store.labels.dtype == np.uint8
    assert isinstance(store.image, np.memmap) and not store.image.flags.writeable
    assert store.presence.shape == (3, 14) and (store.presence.sum(1) == 144).all()
    aorta = labels_of_shape(6, 4, 3)[:, :, 1] == 5
    assert store.presence[1, 5] == 6 * aorta.sum(), "a voxel covers 2 x 3 pixels"
    assert (store.id, store.modality, store.label_map, store.source) == ("a", "CT", "FLARE22", case)
    equal(store.grid.affine, grid.affine)
    for (own, code), (form, expected) in zip(store.grid.forms, grid.forms, strict=True):
        assert code == expected and (own is form is None or np.array_equal(own, form))
    assert any(form is not None for form, _ in grid.forms), "what is written for the scan keeps them"
    assert store.grid.shape == (6, 4, 3) and store.box is None and files_of(store.folder) == FILES


def test_grey_values_and_counts_as_released(stored: Any, tmp_path: Path) -> None:
    """-122 HU is 1.91 of 255 levels; nearest resizing from 8 to 4 pixels takes the odd ones alone."""
    hu, labels = np.full((8, 8, 1), -122, np.int16), np.zeros((8, 8, 1), np.uint8)
    hu[4:], labels[0, 0] = 100, 1
    case = Case("a", save(hu, tmp_path / "a.nii"), save(labels, tmp_path / "b.nii"))
    ours = stored(case, Settings(size=4))
    theirs = stored(case, Settings(size=4, resampling="lanczos", presence="native"))
    assert {ours.image.min(), theirs.image.min()} == {2, 0}, "Lanczos undershoots beside an edge"
    assert stored(case, Settings(size=8, resampling="lanczos")).image.min() == 1, "cut, not rounded"
    assert not theirs.labels.any() and (ours.presence[0, 1], theirs.presence[0, 1]) == (0, 1)


def test_stored_axes_pass_for_canonical_ones(stored: Any, tmp_path: Path) -> None:
    """A file of axes right, front, head: both are mirrored against canonical LPS, and all comes back."""
    case = make_case(tmp_path)
    save(labels_of_shape(*SHAPE), case.image, affine := np.diag([1.5, 2.5, 4.0, 1.0]))
    save(labels_of_shape(*SHAPE), case.labels, affine)
    ours, theirs = stored(case), stored(case, replace(SETTINGS, orientation="stored"))
    equal(theirs.labels, to_slices(labels_of_shape(*SHAPE), 12, labels=True))
    equal(theirs.labels, ours.labels[:, ::-1, ::-1])
    equal(from_slices(np.asarray(theirs.labels), theirs.grid), labels_of_shape(*SHAPE))
    equal(read_labels(case.labels, "FLARE22", theirs.grid), labels_of_shape(*SHAPE))


def test_a_store_is_reused(stored: Any, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stored(case)
    wide = replace(SETTINGS, ct_window_hu=(0.0, 100.0))
    for other in (replace(SETTINGS, size=8), wide, replace(SETTINGS, mr_percentiles=(2.0, 98.0))):
        expected = to_slices(to_uint8(read_scan(case.image)[0], "CT", other), other.size)
        equal(stored(case, other).image, expected)
    monkeypatch.setattr(data, "read_scan", lambda path: pytest.fail("read again"))
    again = stored(case, replace(SETTINGS, epochs=7))  # epochs do not change a slice
    equal(again.image, first.image)
    equal(again.presence, first.presence)
    assert again.folder == first.folder and stored(case, wide).folder != first.folder


def test_another_source_label_map_or_version_makes_another_store(
    stored: Any, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the place of the old one, and is younger: scores go by its age."""
    ages, original = [], case.image.read_bytes()

    def made(changed: Case) -> Store:
        store = stored(changed)
        assert files_of(store.folder.parent) == [f"{store.folder.name}/{name}" for name in FILES]
        ages.append((store.folder / "case.json").stat().st_mtime_ns)
        return store

    before, image = made(case).labels.copy(), made(case).image.copy()
    other = made(replace(case, label_map="AMOS22"))
    assert (other.labels[before == 6] == 1).all() and (before == 6).any(), "AMOS22 calls the liver 6"
    save(np.full(SHAPE, 75, np.int16), case.image)
    assert (made(case).image == 128).all() and not (image == 128).all()
    case.image.write_bytes(original)
    equal(made(case).image, image)
    save(np.full(SHAPE, 13, np.uint8), case.labels)
    assert (made(case).labels == 13).all()
    monkeypatch.setitem(organs.LABEL_MAPS, "FLARE22", {i: 0 if i == 13 else i for i in range(14)})
    assert not made(case).presence[:, 13].any()
    monkeypatch.setattr(data, "STORE_VERSION", data.STORE_VERSION + 1)
    made(case)
    assert ages[0] == ages[1] and ages[1:] == sorted(set(ages)), "each is younger than the one before"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"", b"{", b"half of it"])
def test_a_store_that_is_not_whole_is_made_again(
    stored: Any, case: Case, name: str, content: bytes | None
) -> None:
    store = stored(case)
    image, labels, file = store.image.copy(), store.labels.copy(), store.folder / name
    if content == b"half of it":
        content = file.read_bytes()[:-50]
    file.unlink() if content is None else file.write_bytes(content)
    (store.folder / ".image.npy.part.npy").touch()
    again = stored(case)
    equal(again.image, image)
    equal(again.labels, labels)
    assert files_of(store.folder) == FILES


def test_a_scan_without_truth_has_no_labels(stored: Any, case: Case) -> None:
    stored(case)
    store = stored(replace(case, labels=None))
    assert store.labels is None and store.presence is None and files_of(store.folder) == FILES[:2]
    assert stored(case).labels is not None


@pytest.mark.parametrize("shape", [(6, 4, 1), (1, 4, 3), (1, 1, 1)])
def test_a_single_slice_row_or_voxel_is_no_error(stored: Any, shape: Any, tmp_path: Path) -> None:
    store = stored(make_case(tmp_path, shape=shape))
    assert store.image.shape == (shape[2], 12, 12)
    equal(from_slices(np.asarray(store.labels), store.grid), labels_of_shape(*shape))


def test_organs_that_are_absent_everywhere_are_counted_as_absent(stored: Any, case: Case) -> None:
    save(np.zeros(SHAPE, np.uint8), case.labels)
    presence = stored(case).presence
    assert presence.shape == (3, 14) and (presence[:, 0] == 144).all() and not presence[:, 1:].any()


# Slices at another distance, and boxes


def body_in_air(folder: Path, affine: Any = np.diag([-2.0, -2.0, 5.0, 1.0]), hu: int = 60) -> Case:  # noqa: B008
    """20 x 18 x 12 voxels of 2 x 2 x 5 mm with a body of that HU in a part of them."""
    voxels, labels = np.full((20, 18, 12), -1000, np.int16), np.zeros((20, 18, 12), np.uint8)
    voxels[3:15, 4:14, 2:10] = hu
    labels[5:9, 6:10, 3:6], labels[9:13, 6:10, 6:9] = 1, 13
    image = save(voxels, folder / "a.nii.gz", affine)
    return Case("a", image, save(labels, folder / "a_labels.nii.gz", affine))


WHOLE, BODY = np.s_[0:20, 0:18, 0:12], np.s_[3:15, 4:14, 2:10]
UNCROPPED = [(0.0, False, 12), (2.5, False, 24), (4.0, False, 15), (1000.0, False, 1)]


@pytest.mark.parametrize(("slice_mm", "crop", "slices"), [*UNCROPPED, (0.0, True, 8), (2.0, True, 20)])
def test_slices_fill_the_box_at_the_distance_asked_for(
    slice_mm: float, crop: bool, slices: int, stored: Any, tmp_path: Path
) -> None:
    case, settings = body_in_air(tmp_path), SliceSettings(size=24, slice_mm=slice_mm, crop=crop)
    for store in (stored(case, settings), stored(case, settings)):
        assert store.box == ((BODY if crop else WHOLE) if crop or slice_mm else None)
        assert store.grid.shape == (20, 18, 12), "the scan's own"
        assert store.image.shape == store.labels.shape == (slices, 24, 24)
        assert len(store.presence) == slices and store.presence.sum() == store.labels.size
        assert {*np.unique(store.labels)} <= {0, 1, 13}, "no label between two others"
        assert not crop or (store.image == round((60 + 125) / 400 * 255)).all(), "the body and nothing else"


def test_another_distance_keeps_every_organ_at_its_height(stored: Any, tmp_path: Path) -> None:
    case = body_in_air(tmp_path)
    plain, fine = (stored(case, SliceSettings(size=24, slice_mm=mm)) for mm in (0.0, 1.25))
    equal(fine.labels, plain.labels.repeat(4, 0))  # nearest: each slice four times
    edge = fine.image[4:12, 12, 12].astype(int)  # from air to body between slices 1 and 2
    assert (np.diff(edge) >= 0).all() and len(np.unique(edge)) > 3, "linear"
    assert edge[0] == 0 and edge[-1] == plain.image[2, 12, 12]


def test_a_scan_of_air_alone_is_not_cropped_and_a_box_needs_no_labels(stored: Any, tmp_path: Path) -> None:
    settings = SliceSettings(size=24, slice_mm=2.0, crop=True)
    store = stored(body_in_air(tmp_path, hu=-1000), settings)
    assert store.box == WHOLE and len(store.image) == 30 and not store.image.any()
    turned = np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])
    store = stored(replace(body_in_air(tmp_path, turned), labels=None), settings)
    assert store.labels is None and store.presence is None and store.grid.canonical_shape == (12, 20, 18)
    assert store.box == np.s_[2:10, 3:15, 4:14] and len(store.image) == 20, "10 slices of 4 mm"


# Several cases, several processes


def test_cases_keep_their_order_and_a_bar_shows_work(tmp_path: Path, capfd: Any) -> None:
    cases = [make_case(tmp_path, name) for name in "cab"]
    stores = prepare(cases, SETTINGS, tmp_path / "cache", jobs=2)  # two processes
    assert [store.id for store in stores] == ["c", "a", "b"]
    equal(stores[1].image, prepare(cases[1:2], SETTINGS, tmp_path / "alone")[0].image)
    assert "preparing scans" in capfd.readouterr().err
    again = prepare(cases, SETTINGS, tmp_path / "cache")
    assert [store.folder for store in again] == [store.folder for store in stores]
    assert capfd.readouterr().err == "" and prepare([], SETTINGS, tmp_path / "cache") == []
    bad = Case("bad", with_nan(tmp_path / "bad.nii.gz"))
    with pytest.raises(InputError, match=r"bad\.nii\.gz holds 1 NaN"):  # from another process, as it is
        prepare([*cases, bad], SETTINGS, tmp_path / "cache", jobs=2)
    assert not any("bad" in name for name in files_of(tmp_path / "cache"))


def test_two_runs_at_once_make_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases, note, write = [make_case(tmp_path, name) for name in "abcd"], tmp_path / "note", data._write

    def noted(case: Case, *rest: Any) -> None:
        with open(note, "a") as file:
            file.write(case.id)
        time.sleep(0.05)
        write(case, *rest)

    def run(start: Any) -> None:
        start.wait(60)
        assert [store.id for store in prepare(cases, SETTINGS, tmp_path / "cache", jobs=1)] == [*"abcd"]

    monkeypatch.setattr(data, "_write", noted)
    at_once(run, run)
    assert note.read_text() == "abcd" and not list((tmp_path / "cache").rglob("*.part*"))


# Bad input


def with_nan(path: Path) -> Path:
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, 0] = np.nan
    return save(array, path)


def test_what_cannot_be_prepared_is_refused_and_leaves_nothing(
    stored: Any, case: Case, tmp_path: Path
) -> None:
    bad = with_nan(tmp_path / "nan.nii.gz")
    for change, expected in (
        ({"image": bad}, "1 NaN"),
        ({"labels": bad}, "1 NaN"),
        ({"image": tmp_path / "none.nii.gz"}, r"none\.nii\.gz does not exist"),
        ({"label_map": "Synapse"}, "'Synapse' is no label map: choose one of FLARE22, BTCV"),
        ({"label_map": "Synapse", "labels": None}, "'Synapse'"),
    ):
        with pytest.raises(InputError, match=expected):
            stored(replace(case, **change))
    with pytest.raises(InputError, match="share an id: give every scan its own"):
        prepare([case, replace(case, labels=None)], SETTINGS, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


def test_an_unwritable_folder_is_named(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/cache/.*/a/.*/image\.npy cannot be written"):
        prepare([case], SETTINGS, tmp_path / "file" / "cache")
    with pytest.raises(InputError, match=r"file/out\.nii\.gz cannot be written"):
        write_nifti(labels_of_shape(*SHAPE), Grid(SHAPE, AFFINE), tmp_path / "file" / "out.nii.gz")


@pytest.mark.parametrize(
    ("limit", "name"), [(150, "image.npy"), (200, "case.json"), (999, "out.nii"), (999, "out.nii.gz")]
)
def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    limit: int, name: str, case: Case, tmp_path: Path
) -> None:
    folder, small = tmp_path / "cache", Settings(size=4)  # arrays of 176 bytes
    noise = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)

    def fill(_: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(InputError, match=rf"/{name} cannot be written .*: free some space"):
            if "nii" in name:
                write_nifti(noise, Grid(noise.shape, np.eye(4)), folder / name)
            prepare([case], small, folder)

    at_once(fill)
    assert [Path(file).name for file in files_of(folder)] == (FILES[1:] if name == "case.json" else [])
    assert prepare([case], small, folder)[0].presence is not None, "without case.json it was no store"


# Real scans


@pytest.fixture(scope="module", params=["ct", "mr"])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of a real scan."""
    image, labels = (sample_scans() / f"{request.param}_{what}.nii.gz" for what in ("image", "labels"))
    label_map = {"ct": "TotalSegmentator", "mr": "TotalSegmentatorMR"}[request.param]
    case = Case(request.param, image, labels, label_map, request.param.upper())
    return prepare([case], Settings(size=96), tmp_path_factory.mktemp("cache"))[0]


def test_a_real_scan_shows_the_patient_s_sides_and_has_contrast(sample: Store) -> None:
    def centre(key: str) -> np.ndarray:
        """(z, row, column)."""
        return np.argwhere(sample.labels == BY_KEY[key].label).mean(0)

    assert centre("liver")[2] < centre("spleen")[2]
    assert centre("inferior vena cava")[2] < centre("aorta")[2]
    assert centre("stomach")[1] < centre("spleen")[1], "in front of it"
    assert centre("right kidney")[2] < centre("left kidney")[2]
    if sample.modality == "CT":  # the MRI's field of view ends at the right kidney
        assert centre("right kidney")[2] < 48 < centre("left kidney")[2]
        assert centre("right kidney")[0] < centre("liver")[0], "z grows to the head"
    assert sample.image.std() > 20 and sample.image.min() == 0 and sample.image.max() == 255
    np.testing.assert_allclose(sample.grid.spacing_mm, 3, atol=1e-3)
    counts = sample.presence.sum(0)
    equal(counts, np.bincount(np.ravel(sample.labels), minlength=len(ORGANS) + 1))
    assert (counts[[1, 2, 3, 5, 6, 13]] > 0).all() and counts[10] == 0, "no esophagus here"


def test_a_real_label_map_comes_back_through_the_model_grid(sample: Store, tmp_path: Path) -> None:
    truth = sample.grid.to_native(read_labels(sample.source.labels, sample.label_map, sample.grid))
    back = from_slices(np.asarray(sample.labels), sample.grid)
    one, two = truth == BY_KEY["liver"].label, back == BY_KEY["liver"].label
    assert 2 * (one & two).sum() / (one.sum() + two.sum()) > 0.9
    write_nifti(truth, sample.grid, written := tmp_path / "truth.nii.gz")
    equal(read_scan(written)[1].affine, nib.load(sample.source.image).affine)
    equal(read_labels(written, "FLARE22", sample.grid), sample.grid.to_canonical(truth))
