"""Scans and labels that are not as they must be: one InputError sentence, and nothing half-written."""

import gzip
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lib.config import Settings
from lib.data import Case, Store, prepare
from lib.files import ROOT, InputError
from lib.volumes import Grid, read_labels, read_scan, to_uint8, write_nifti

SETTINGS = Settings(size=12)
AFFINE = np.diag([-1.5, -2.5, 4.0, 1.0])
SHAPE = (6, 4, 3)
NOISE = np.random.default_rng(0).integers(-500, 500, SHAPE).astype(np.int16)


def save(array: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def prepared(case: Case, settings: Settings, folder: Path) -> Store:
    return prepare([case], settings, folder)[0]


@pytest.fixture
def case(tmp_path) -> Case:
    image = save(NOISE, tmp_path / "scan.nii.gz")
    return Case("a", image, save((NOISE % 14).astype(np.uint8), tmp_path / "labels.nii.gz"))


def message(case: Case, folder: Path, settings: Settings = SETTINGS) -> str:
    """The one sentence with which `prepare` refuses; asserts that nothing was written."""
    with pytest.raises(InputError) as caught:
        prepared(case, settings, folder / "cache")
    text = str(caught.value)
    assert not [path for path in (folder / "cache").rglob("*") if path.is_file()]
    assert "\n" not in text and text.endswith(".") and len(text) < 500
    return text


def patch(path: Path, offset: int, values: np.ndarray) -> Path:
    """Overwrites bytes of a NIfTI header."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + values.nbytes] = values.tobytes()
    path.write_bytes(raw)
    return path


def with_voxel(value: float, count: int = 1) -> np.ndarray:
    array = NOISE.astype(np.float32)
    array.ravel()[:count] = value
    return array


def random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(5000))


def cut(path: Path, share: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])


def flip_a_bit(path: Path) -> None:
    """Damages the gzip's checksum alone: the voxels unpack, though they are not to be trusted."""
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1
    path.write_bytes(raw)


SCANS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("gone.nii.gz", lambda path: None, "does not exist"),
    "folder": ("dicom.nii.gz", lambda path: path.mkdir(), "is a folder"),
    "random bytes": ("noise.nii.gz", random_bytes, "cannot be read as a NIfTI image"),
    "random bytes, plain": ("noise.nii", random_bytes, "cannot be read as a NIfTI image"),
    "text": (
        "text.nii.gz",
        lambda path: path.write_text("<html>404</html>\n" * 99),
        "cannot be read as a NIfTI image",
    ),
    "gzipped text": (
        "text.nii.gz",
        lambda path: path.write_bytes(gzip.compress(b"404\n" * 99)),
        "cannot be read as a NIfTI image",
    ),
    "empty": ("empty.nii", lambda path: path.touch(), "cannot be read as a NIfTI image"),
    "gzip cut": ("cut.nii.gz", lambda path: cut(save(NOISE, path), 0.7), "cut short"),
    "gzip cut in its header": ("cut.nii.gz", lambda path: cut(save(NOISE, path), 0.1), "cut short"),
    "plain cut": ("cut.nii", lambda path: cut(save(NOISE, path), 0.9), "cut short"),
    "plain cut in its header": ("cut.nii", lambda path: cut(save(NOISE, path), 0.3), "cut short"),
    "checksum": ("bit.nii.gz", lambda path: flip_a_bit(save(NOISE, path)), "CRC"),
    "4-D": ("four.nii.gz", lambda path: save(np.zeros((3, 3, 3, 2), np.int16), path), "(3, 3, 3, 2)"),
    "2-D": ("two.nii.gz", lambda path: save(np.zeros((3, 3), np.int16), path), "(3, 3)"),
    "empty axis": (
        "zero.nii",
        lambda path: patch(save(NOISE, path), 40, np.array([3, 6, 0, 3], "<i2")),
        "(6, 0, 3)",
    ),
    "negative axis": (
        "minus.nii",
        lambda path: patch(save(NOISE, path), 40, np.array([3, 6, -4, 3], "<i2")),
        "(6, -4, 3)",
    ),
    "huge axes": (
        "huge.nii",
        lambda path: patch(save(NOISE, path), 40, np.array([3, 32767, 32767, 32767], "<i2")),
        "cut short",
    ),
    "NaN": ("nan.nii.gz", lambda path: save(with_voxel(np.nan, 5), path), "5 NaN or infinite voxels"),
    "infinite": ("inf.nii.gz", lambda path: save(with_voxel(-np.inf), path), "1 NaN or infinite voxels"),
    "beyond float32": ("big.nii.gz", lambda path: save(NOISE * 1e300, path), "NaN or infinite voxels"),
    "colour": (
        "rgb.nii",
        lambda path: save(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), path),
        "plain numbers",
    ),
    "complex": ("complex.nii", lambda path: save(np.zeros(SHAPE, np.complex64), path), "plain numbers"),
    "singular affine": (
        "flat.nii",
        lambda path: patch(save(NOISE, path), 280, np.zeros(12, "<f4")),
        "singular or non-finite affine",
    ),
    "NaN affine": (
        "nan.nii",
        lambda path: patch(save(NOISE, path), 280, np.full(1, np.nan, "<f4")),
        "singular or non-finite affine",
    ),
    "parallel axes": (
        "parallel.nii",
        lambda path: patch(save(NOISE, path), 280, np.array([1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], "<f4")),
        "singular or non-finite affine",
    ),
}


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.filterwarnings("error")
def test_a_bad_scan_is_refused(kind, tmp_path):
    name, make, expected = SCANS[kind]
    make(tmp_path / name)
    text = message(Case("a", tmp_path / name), tmp_path)
    assert str(tmp_path / name) in text and expected in text


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "random bytes", "gzip cut", "4-D", "NaN", "singular affine"]
)
def test_bad_labels_are_refused_like_a_bad_scan(kind, case, tmp_path):
    name, make, expected = SCANS[kind]
    make(tmp_path / name)
    text = message(replace(case, labels=tmp_path / name), tmp_path)
    assert str(tmp_path / name) in text and expected in text


def labelled(value: float, dtype: type = np.float32) -> np.ndarray:
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 0] = value
    return array


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((6, 4, 2), np.uint8), r"has the shape \(6, 4, 2\), its scan \(6, 4, 3\)"),
        (labelled(14), r"FLARE22 does not know \(14\)"),
        (labelled(-1, np.int16), r"does not know \(-1\)"),
        (labelled(-250, np.int16), r"does not know \(-250\)"),  # 6 in 8 bits
        (labelled(257, np.int16), r"does not know \(257\)"),
        (labelled(255, np.uint8), r"does not know \(255\)"),
        (
            np.arange(72).reshape(SHAPE).astype(np.uint8),
            r"\(14, 15, 16, 17, 18, 19, 20, 21, 22, 23, \.\.\.\)",
        ),
        (labelled(1.5), "non-integer labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(array, expected, case, tmp_path):
    path = save(array, tmp_path / "other.nii.gz")
    text = message(replace(case, labels=path), tmp_path)
    assert str(path) in text and re.search(expected, text)


def test_float_labels_with_whole_values_are_welcome(case, tmp_path):
    path = save(labelled(13.0), tmp_path / "float.nii.gz")
    assert set(np.unique(prepared(replace(case, labels=path), SETTINGS, tmp_path / "cache").labels)) == {
        0,
        13,
    }


@pytest.mark.parametrize(
    ("move", "voxels"),
    [((0, 0, 0.6), "0.15"), ((1.5, 0, 0), "1.00"), ((0, -250.0, 0), "100.00")],
)
def test_labels_off_their_scan_are_refused_by_how_much(move, voxels, case, tmp_path):
    affine = AFFINE.copy()
    affine[:3, 3] = move
    text = message(replace(case, labels=save(labelled(1), tmp_path / "moved.nii.gz", affine)), tmp_path)
    assert f"lies up to {voxels} voxels off its scan" in text


def test_mirrored_or_rescaled_labels_are_refused_at_their_far_corner(case, tmp_path):
    mirrored = save(labelled(1), tmp_path / "mirrored.nii.gz", np.diag([1.5, -2.5, 4.0, 1.0]))
    assert "12.00 voxels off" in message(replace(case, labels=mirrored), tmp_path)
    rescaled = save(labelled(1), tmp_path / "rescaled.nii.gz", np.diag([-1.5, -2.5, 4.4, 1.0]))
    assert "0.30 voxels off" in message(replace(case, labels=rescaled), tmp_path)
    nearly = save(labelled(1), tmp_path / "nearly.nii.gz", np.diag([-1.5, -2.5, 4.01, 1.0]))
    assert prepared(replace(case, labels=nearly), SETTINGS, tmp_path / "cache").labels is not None


def test_unknown_names_are_refused_with_the_known_ones(case, tmp_path):
    text = message(replace(case, label_map="Synapse"), tmp_path)
    assert "'Synapse'" in text and "BTCV" in text
    assert "'Synapse'" in message(replace(case, labels=None, label_map="Synapse"), tmp_path)
    text = message(replace(case, modality="PET"), tmp_path)
    assert "'PET'" in text and "CT or MR" in text
    grid = Grid(SHAPE, AFFINE)
    with pytest.raises(InputError, match="Synapse"):
        read_labels(case.labels, "Synapse", grid)
    with pytest.raises(InputError, match="PET"):
        to_uint8(NOISE, "PET", SETTINGS)


def test_a_window_that_does_not_rise_is_refused(case, tmp_path):
    assert "275 to -125 does not rise" in message(
        case, tmp_path, replace(SETTINGS, ct_window_hu=(275.0, -125.0))
    )
    assert "does not rise" in message(case, tmp_path, replace(SETTINGS, ct_window_hu=(0.0, 0.0)))


def test_two_cases_of_one_id_are_refused(case, tmp_path):
    with pytest.raises(InputError, match="share an id"):
        prepare([case, replace(case, labels=None)], SETTINGS, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_failed_rebuild_does_not_pass_for_the_old_store(case, tmp_path):
    prepared(case, SETTINGS, tmp_path / "cache")
    save(with_voxel(np.nan), case.image)
    for _ in range(2):
        with pytest.raises(InputError, match="NaN"):
            prepared(case, SETTINGS, tmp_path / "cache")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc on this system")
def test_an_unwritable_folder_is_named(case):
    with pytest.raises(InputError, match=r"/proc/cache/a/image\.npy cannot be written"):
        prepared(case, SETTINGS, Path("/proc/cache"))
    with pytest.raises(InputError, match=r"/proc/out\.nii\.gz cannot be written"):
        write_nifti(NOISE, Grid(SHAPE, AFFINE), Path("/proc/out.nii.gz"))


FULL_DISK = """
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from lib.config import Settings
    from lib.data import Case, prepare
    from lib.files import InputError
    from lib.volumes import *
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


def test_a_full_disk_is_named_and_leaves_nothing_half_written(case, tmp_path):
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(FULL_DISK),
        str(case.image),
        str(case.labels),
        str(tmp_path / "out"),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    lines = run.stdout.splitlines()
    names = ["first/a/image.npy", "last/a/case.json", "p.nii.gz", "p.nii"]
    assert len(lines) == 4
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"{tmp_path / 'out' / name} cannot be written") and "free some space" in line
    left = {
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert left == {
        "last/a/image.npy",
        "last/a/labels.npy",
    }  # whole arrays; without case.json they are no store
    assert np.load(tmp_path / "out" / "last" / "a" / "image.npy").shape == (3, 12, 12)
    assert prepared(case, SETTINGS, tmp_path / "out" / "last").presence is not None


def test_an_error_in_another_process_arrives_as_it_is(case, tmp_path):
    bad = Case("b", save(with_voxel(np.nan), tmp_path / "bad.nii.gz"))
    with pytest.raises(InputError, match=r"bad\.nii\.gz holds 1 NaN"):
        prepare([case, bad], SETTINGS, tmp_path / "cache", jobs=2)
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.parent.name == "b"
    ]
    assert read_scan(case.image)[0].shape == SHAPE
