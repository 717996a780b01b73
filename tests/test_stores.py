"""lib.data's stores: each scan is prepared once, whole or not at all, and anew when anything changes."""

import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import files_of, labels_of_shape

from lib import data, files, organs
from lib.config import Settings
from lib.data import SAMPLES, Case, Store, prepare, sample_folders
from lib.files import ROOT, InputError
from lib.organs import BY_KEY, ORGANS
from lib.volumes import Grid, from_slices, read_labels, read_scan, to_slices, to_uint8, write_nifti

equal = np.testing.assert_array_equal
SETTINGS = Settings(size=12)
AFFINE, SHAPE = np.diag([-1.5, -2.5, 4.0, 1.0]), (6, 4, 3)


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def make_case(folder: Path, name: str = "a", shape: tuple[int, int, int] = SHAPE) -> Case:
    """A small CT whose grey values and labels differ in every voxel's neighbourhood."""
    labels = labels_of_shape(*shape)
    image = save((labels * 30 - 150).astype(np.int16), folder / f"{name}.nii.gz")
    return Case(name, image, save(labels, folder / f"{name}_labels.nii.gz"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def stored(tmp_path) -> Callable[..., Store]:
    """Prepares a case in the test's cache."""
    return lambda case, settings=SETTINGS: prepare([case], settings, tmp_path / "cache")[0]


def test_a_store_holds_slices_labels_counts_and_provenance(stored, tmp_path):
    case = make_case(tmp_path)
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
    assert store.grid.shape == (6, 4, 3)
    assert names(store.folder) == ["case.json", "image.npy", "labels.npy"]
    record = json.loads((store.folder / "case.json").read_text())
    assert record["spacing_mm"] == [1.5, 2.5, 4.0] and record["size"] == 12
    assert len(record["image_sha256"]) == len(record["labels_sha256"]) == 64


def no_reading(path: Path):
    raise AssertionError(f"{path} is read again")


def test_a_store_is_reused(stored, tmp_path, monkeypatch):
    case = make_case(tmp_path)
    first = stored(case)
    monkeypatch.setattr(data, "read_scan", no_reading)
    again = stored(case, replace(SETTINGS, epochs=7))  # epochs do not change a slice
    equal(again.image, first.image)
    equal(again.presence, first.presence)


CHANGES = ({"size": 8}, {"ct_window_hu": (0.0, 100.0)}, {"mr_percentiles": (2.0, 98.0)})


@pytest.mark.parametrize("change", CHANGES)
def test_other_settings_rebuild_the_store(stored, change, tmp_path):
    case, other = make_case(tmp_path), replace(SETTINGS, **change)
    stored(case)
    store = stored(case, other)
    equal(store.image, to_slices(to_uint8(read_scan(case.image)[0], "CT", other), other.size))
    assert json.loads((store.folder / "case.json").read_text())["size"] == other.size


def test_another_source_label_map_or_version_rebuilds_the_store(stored, tmp_path, monkeypatch):
    case = make_case(tmp_path)
    first = stored(case)
    before, old_image = first.labels.copy(), first.image.copy()
    other = stored(replace(case, label_map="AMOS22"))
    assert (other.labels[before == 6] == 1).all() and (before == 6).any()  # AMOS22 calls the liver 6
    assert stored(case).label_map == "FLARE22"
    save(np.full(SHAPE, 75, np.int16), case.image)
    changed = stored(case)
    assert (changed.image == 128).all() and not (old_image == 128).all()
    save(np.full(SHAPE, 13, np.uint8), case.labels)
    assert (stored(case).labels == 13).all()
    monkeypatch.setattr(data, "STORE_VERSION", data.STORE_VERSION + 1)
    monkeypatch.setattr(data, "read_scan", no_reading)
    with pytest.raises(AssertionError, match="read again"):
        stored(case)


def test_a_changed_label_map_rebuilds_the_store(stored, tmp_path, monkeypatch):
    case = make_case(tmp_path)
    assert (stored(case).presence[:, 13] > 0).any()
    monkeypatch.setitem(organs.LABEL_MAPS, "FLARE22", {i: 0 if i == 13 else i for i in range(14)})
    assert not stored(case).presence[:, 13].any()


def test_arrays_of_another_size_beside_the_record_are_made_again(stored, tmp_path):
    case = make_case(tmp_path)
    for name in ("image", "labels"):
        np.save(stored(case).folder / f"{name}.npy", np.zeros((3, 8, 8), np.uint8))
        store = stored(case)
        assert store.image.shape == store.labels.shape == (3, 12, 12)


def test_a_scan_without_truth_has_no_labels_and_leaves_no_old_ones(stored, tmp_path):
    case = make_case(tmp_path)
    stored(case)
    store = stored(replace(case, labels=None))
    assert store.labels is None and store.presence is None
    assert names(store.folder) == ["case.json", "image.npy"]
    assert stored(case).labels is not None


@pytest.mark.parametrize("last", ["image.npy", "labels.npy"])
def test_a_run_killed_between_the_arrays_leaves_no_store(stored, last, tmp_path, monkeypatch):
    case, other = make_case(tmp_path), replace(SETTINGS, ct_window_hu=(0.0, 50.0))
    expected = stored(case).image.copy()
    replacing = files.replacing

    @contextmanager
    def killed(path):
        with replacing(path) as part:
            yield part
        if path.name == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "replacing", killed)
    with pytest.raises(KeyboardInterrupt):
        stored(case, other)  # of the same shape as the old store, which is gone from here on
    monkeypatch.undo()
    assert not (tmp_path / "cache" / "a" / "case.json").exists()
    equal(stored(case).image, expected)
    assert names(tmp_path / "cache" / "a") == ["case.json", "image.npy", "labels.npy"]


DAMAGE = [("image.npy", b""), ("labels.npy", b"half"), ("case.json", b"{"), ("case.json", b"[]")]


@pytest.mark.parametrize(("name", "content"), DAMAGE)
def test_a_damaged_store_is_made_again(stored, name, content, tmp_path):
    case = make_case(tmp_path)
    expected = stored(case).image.copy()
    (tmp_path / "cache" / "a" / name).write_bytes(content)
    equal(stored(case).image, expected)


@pytest.mark.parametrize("shape", [(6, 4, 1), (1, 4, 3), (1, 1, 1)])
def test_a_single_slice_row_or_voxel_is_no_error(stored, shape, tmp_path):
    case = make_case(tmp_path, shape=shape)
    store = stored(case)
    assert store.image.shape == (shape[2], 12, 12)
    equal(from_slices(np.asarray(store.labels), store.grid), labels_of_shape(*shape))


def test_organs_that_are_absent_everywhere_are_counted_as_absent(stored, tmp_path):
    case = make_case(tmp_path)
    save(np.zeros(SHAPE, np.uint8), case.labels)
    presence = stored(case).presence
    assert presence.shape == (3, 14) and (presence[:, 0] == 144).all() and not presence[:, 1:].any()


def test_several_cases_keep_their_order_and_show_a_bar_only_where_there_is_work(tmp_path, capfd):
    cases = [make_case(tmp_path, name) for name in "cab"]
    stores = prepare(cases, SETTINGS, tmp_path / "cache", jobs=2)  # two processes
    assert [store.id for store in stores] == ["c", "a", "b"]
    (alone,) = prepare(cases[1:2], SETTINGS, tmp_path / "alone")
    equal(stores[1].image, alone.image)
    assert isinstance(stores[0].image, np.memmap) and stores[0].presence.shape == (3, 14)
    assert "preparing scans" in capfd.readouterr().err
    assert [store.id for store in prepare(cases, SETTINGS, tmp_path / "cache")] == ["c", "a", "b"]
    assert capfd.readouterr().err == ""
    assert prepare([], SETTINGS, tmp_path / "cache") == []


def prepare_noted(cases, folder, note, barrier):
    """`prepare` in a process of its own, which notes what it makes, slowly. Both start together."""
    write = data._write

    def noted(settings, case, *rest):
        with open(note, "a") as file:
            file.write(f"{case.id} ")
        time.sleep(0.1)
        write(settings, case, *rest)

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


# bad input


@pytest.fixture
def case(tmp_path) -> Case:
    return make_case(tmp_path, "scan")


def with_nan(path: Path) -> Path:
    array = np.zeros(SHAPE, np.float32)
    array[0, 0, 0] = np.nan
    return save(array, path)


def test_what_cannot_be_prepared_is_refused_and_nothing_is_written(stored, case, tmp_path):
    bad = with_nan(tmp_path / "nan.nii.gz")
    changes = {"image": (bad, "1 NaN"), "labels": (bad, "1 NaN"), "label_map": ("Synapse", "BTCV")}
    for name, (value, expected) in changes.items():
        with pytest.raises(InputError, match=expected):
            stored(replace(case, **{name: value}))
    with pytest.raises(InputError, match="'Synapse'"):
        stored(replace(case, labels=None, label_map="Synapse"))
    with pytest.raises(InputError, match="share an id"):
        prepare([case, replace(case, labels=None)], SETTINGS, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []


def test_a_failed_rebuild_does_not_pass_for_the_old_store(stored, case):
    stored(case)
    with_nan(case.image)
    for _ in range(2):
        with pytest.raises(InputError, match="NaN"):
            stored(case)


def test_an_unwritable_folder_is_named(case, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/cache/scan/case\.json cannot be written"):
        prepare([case], SETTINGS, tmp_path / "file" / "cache")
    with pytest.raises(InputError, match=r"file/out\.nii\.gz cannot be written"):
        write_nifti(labels_of_shape(*SHAPE), Grid(SHAPE, AFFINE), tmp_path / "file" / "out.nii.gz")


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from lib.config import Settings
    from lib.data import Case, prepare
    from lib.files import InputError
    from lib.volumes import Grid, write_nifti
    case, folder = Case("a", Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3])
    settings = Settings(size=12)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    noise = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)
    for limit, run in (
        (200, lambda: prepare([case], settings, folder / "first")),  # not even the first array
        (600, lambda: prepare([case], settings, folder / "last")),  # the arrays, but not case.json
        (999, lambda: write_nifti(noise, Grid(noise.shape, np.eye(4)), folder / "p.nii.gz")),
        (999, lambda: write_nifti(noise, Grid(noise.shape, np.eye(4)), folder / "p.nii")),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            run()
        except InputError as error:
            print(error)
"""


def test_a_full_disk_is_named_and_leaves_nothing_half_written(stored, case, tmp_path):
    out = tmp_path / "cache"
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(case.image), str(case.labels), str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    written = ("first/a/image.npy", "last/a/case.json", "p.nii.gz", "p.nii")
    for line, name in zip(run.stdout.splitlines(), written, strict=True):
        assert line.startswith(f"{out / name} cannot be written") and "free some space" in line
    assert files_of(out) == ["last/a/image.npy", "last/a/labels.npy"], "whole, but without case.json no store"
    assert np.load(out / "last/a/image.npy").shape == (3, 12, 12)
    assert prepare([replace(case, id="a")], SETTINGS, out / "last")[0].presence is not None


def test_an_error_in_another_process_arrives_as_it_is(case, tmp_path):
    bad = Case("b", with_nan(tmp_path / "bad.nii.gz"))
    with pytest.raises(InputError, match=r"bad\.nii\.gz holds 1 NaN"):
        prepare([case, bad], SETTINGS, tmp_path / "cache", jobs=2)
    assert not any(name.startswith("b/") for name in files_of(tmp_path / "cache"))


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
    return prepare([case], replace(SETTINGS, size=96), tmp_path_factory.mktemp("cache"))[0]


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
    counts = sample.presence.sum(0)
    equal(counts, np.bincount(np.ravel(sample.labels), minlength=len(ORGANS) + 1))
    assert (counts[[1, 2, 3, 5, 6, 13]] > 0).all() and counts[10] == 0, "no esophagus here"


def test_a_real_label_map_comes_back_through_the_model_grid(sample, tmp_path):
    truth = sample.grid.to_native(read_labels(sample.source.labels, sample.label_map, sample.grid))
    back = from_slices(np.asarray(sample.labels), sample.grid)
    assert back.shape == truth.shape
    liver = [array == BY_KEY["liver"].label for array in (truth, back)]
    assert 2 * (liver[0] & liver[1]).sum() / (liver[0].sum() + liver[1].sum()) > 0.9
    write_nifti(truth, sample.grid, tmp_path / "truth.nii.gz")
    written = tmp_path / "truth.nii.gz"
    equal(read_scan(written)[1].affine, nib.load(sample.source.image).affine)
    equal(read_labels(written, "FLARE22", sample.grid), sample.grid.to_canonical(truth))
