"""Any NIfTI file, whatever its header holds or its bytes are, ends in the right volume or one sentence."""

import gzip
import math
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.files import InputError
from lib.volumes import Grid, read_labels, read_scan, write_nifti

SHAPE, MM = (4, 3, 2), {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8"}
LENGTHS = st.sampled_from([0.0, 1.0, 2.5, -1.0, 0.002, 2000.0, 1e-30, 3e38, math.nan, math.inf, -math.inf])
SMALL = st.one_of(LENGTHS, st.floats(0.1, 6), st.floats(width=32))
TURNS = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.7071068, 0.70713, 0.5774, 2.0, math.nan]))
CODES = st.one_of(st.integers(-1, 6), st.sampled_from([99, 255]))
FAR = st.one_of(st.floats(-500, 500, width=32), st.sampled_from([1e4, 1e6, -3e38, math.nan, math.inf]))
PLACES = {  # field, its index or None: what it may hold
    **{("pixdim", i): SMALL for i in range(5)},
    **{(f"quatern_{x}", None): TURNS for x in "bcd"}, **{(f"qoffset_{x}", None): FAR for x in "xyz"},
    **{(f"srow_{x}", i): SMALL if i < 3 else FAR for x in "xyz" for i in range(4)},
    ("qform_code", None): CODES, ("sform_code", None): CODES,
    ("xyzt_units", None): st.one_of(st.integers(0, 8), st.integers(0, 255)),
    ("scl_slope", None): st.one_of(LENGTHS, st.floats(-3, 3, width=32)),
    ("scl_inter", None): st.one_of(LENGTHS, st.floats(-3, 3, width=32)),
    ("datatype", None): st.one_of(st.sampled_from([*TYPES, 0, 1, 32, 128, 1536]), st.integers(0, 2400)),
    ("bitpix", None): st.sampled_from([0, 8, 16, 32, 64, 24, -8]),
    **{("dim", i): st.one_of(st.integers(-1, 7), st.sampled_from([32767, -32768])) for i in range(8)},
    ("vox_offset", None): st.sampled_from([0, 100, 352, 368, 544, 1000, 10**6]),
    ("magic", None): st.sampled_from([b"n+1", b"ni1", b"n+2", b"abc", b""]),
    ("sizeof_hdr", None): st.sampled_from([348, 540, 0, -1]),
}
CHANGE = st.one_of(*(st.tuples(st.just(where), what) for where, what in PLACES.items()))
CODED = st.tuples(st.integers(0, 2), st.integers(0, 2))  # sform, qform
AROUND: Any = {"max_examples": 2000, "deadline": None, "suppress_health_check": list(HealthCheck)}


def file_of(changes: list, codes: tuple[int, int], second: bool, fit: bool) -> tuple[bytes, Any]:
    """An oblique scan of int16 with both forms, and then some changes; and its header. fit: the bits of a
    voxel follow its number type."""
    header = (nib.Nifti2Header if second else nib.Nifti1Header)()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header.set_xyzt_units("mm")
    affine = np.array([[-1.8, 0.4, 0, 70], [-0.3, -2.4, 0, 90], [0, 0, 5, -300], [0, 0, 0, 1]])
    header.set_qform(affine, 1)
    header.set_sform(header.get_qform(), 1)
    header["sform_code"], header["qform_code"] = codes
    header["vox_offset"] = header.single_vox_offset
    with np.errstate(all="ignore"):
        for (name, at), value in changes:
            try:
                if at is None:
                    header[name] = value
                else:
                    header[name][at] = value
            except (OverflowError, ValueError):  # more than the field holds
                continue
            if name == "datatype" and fit and value in TYPES:
                header["bitpix"] = 8 * np.dtype(TYPES[value]).itemsize
    numbers = np.random.default_rng(0).integers(0, 100, 800).astype("<i2").tobytes()
    return header.binaryblock + bytes(4) + numbers, header


def qform_of(h: Any) -> np.ndarray:
    """By the formulas of nifti1.h, with its library's forgiveness for rounding."""
    b, c, d = (float(h[f"quatern_{x}"]) for x in "bcd")
    length = math.sqrt(b * b + c * c + d * d)
    if not length < 1.005:
        return np.full((4, 4), np.nan)
    if length > 1:
        b, c, d = b / length, c / length, d / length
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    turn = np.array([
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
    ])
    form = np.eye(4)
    sizes = [float(size) if size > 0 else math.nan for size in h["pixdim"][1:4]]
    form[:3, :3] = turn * sizes * (1, 1, -1 if h["pixdim"][0] == -1 else 1)
    form[:3, 3] = [float(h[f"qoffset_{x}"]) for x in "xyz"]
    return form


def sform_of(h: Any) -> np.ndarray:
    return np.array([*(h[f"srow_{x}"] for x in "xyz"), [0, 0, 0, 1]], float)


def possible(affine: np.ndarray, shape: tuple[int, ...]) -> bool | None:
    """Whether a body may lie so; None: on the edge of what is allowed."""
    with np.errstate(all="ignore"):
        sizes = np.sqrt((affine[:3, :3] ** 2).sum(0))
        ends = np.array([affine @ [*np.multiply(shape, corner), 1] for corner in np.ndindex(2, 2, 2)])
        share = abs(np.linalg.det(affine[:3, :3] / sizes)) if np.isfinite(affine).all() else math.nan
    checks = ((sizes.min(), 0.05), (100, sizes.max()), (share, 0.1), (1e5, abs(ends[:, :3]).max()))
    if any(np.isclose(one, other, rtol=1e-3) for one, other in checks):
        return None
    return all(one > other for one, other in checks)


def expected(raw: bytes, h: Any) -> tuple[np.ndarray, list[np.ndarray], bool, bool] | None:
    """Native voxels, the possible affines in the order in which they count, whether one is on the edge, and
    whether none is given but the spacing; nothing where the file must be refused for another reason."""
    dim = [int(edge) for edge in h["dim"]]
    code, start = int(h["datatype"]), float(h["vox_offset"])
    slope, inter = float(h["scl_slope"]), float(h["scl_inter"])
    if h["magic"].item() not in (h.single_magic, h.pair_magic) or code not in TYPES or not 1 <= dim[0] <= 7:
        return None
    shape = dim[1 : dim[0] + 1]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    dtype = np.dtype(TYPES[code])
    if len(shape) != 3 or min(shape) < 1 or int(h["bitpix"]) not in (0, 8 * dtype.itemsize):
        return None
    if start < h.single_vox_offset or int(start) + math.prod(shape) * dtype.itemsize > len(raw):
        return None
    if (unit := int(h["xyzt_units"]) & 7) not in MM or math.isinf(slope):
        return None
    voxels = np.frombuffer(raw, dtype, math.prod(shape), int(start)).reshape(shape, order="F")
    with np.errstate(all="ignore"):
        if slope and not math.isnan(slope):
            if not math.isfinite(inter):
                return None
            voxels = voxels.astype(float) * slope + inter
        if not np.isfinite(voxels.astype(np.float32)).all():
            return None
    both = ((sform_of, "sform_code"), (qform_of, "qform_code"))
    forms = [form(h) for form, name in both if 1 <= h[name] <= 5]
    if guessed := not forms:
        sizes = np.array([float(size) if size > 0 else math.nan for size in h["pixdim"][1:4]]) * (-1, 1, 1)
        forms = [np.diag([*sizes, 1.0])]
        forms[0][:3, 3] = -(np.array(shape) - 1) / 2 * sizes
    scaled = [np.where([[True] * 4] * 3 + [[False] * 4], MM[unit] * form, form) for form in forms]
    can = [possible(form, tuple(shape)) for form in scaled]
    affines = [form for form, may in zip(scaled, can, strict=True) if may is not False]
    return voxels, affines, None in can, guessed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def sentence(error: InputError, path: Path) -> None:
    text = str(error)
    assert text.startswith(str(path)) and text.endswith(".") and "\n" not in text and len(text) < 700, text


@settings(**AROUND)
@given(changes=st.lists(CHANGE, max_size=5), codes=CODED, second=st.booleans(), fit=st.booleans())
def test_a_header_ends_in_the_right_volume_or_in_one_sentence(
    changes: list, codes: tuple[int, int], second: bool, fit: bool, folder: Path
) -> None:
    raw, header = file_of(changes, codes, second, fit)
    (path := folder / "scan.nii").write_bytes(raw)
    right = expected(raw, header) if header["sizeof_hdr"] == header.sizeof_hdr else None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            voxels, grid = read_scan(path)
        except InputError as error:
            sentence(error, path)
            assert right is None or not right[1] or right[2], f"refused: {error}"
            return
    words = [str(one.message) for one in said]
    assert all(word.startswith(str(path)) and word.endswith(".") for word in words), words
    if header["sizeof_hdr"] != header.sizeof_hdr:
        return  # read by the rest of its header, as nibabel does
    assert right is not None and right[1], "read, though it is impossible"
    numbers, affines, edge, guessed = right
    np.testing.assert_allclose(grid.to_native(voxels), numbers.astype(np.float32), rtol=1e-5, atol=1e-30)
    size = np.linalg.norm(grid.affine[:3, :3])
    if not edge:
        np.testing.assert_allclose(grid.affine, affines[0], atol=3e-3 * size)
        assert guessed == any("left and right are a guess" in word for word in words)
        apart = len(affines) > 1 and abs(affines[1][:3] - affines[0][:3]).max() > size
        assert not apart or any("off its sform" in word for word in words), words
    assert np.prod(grid.spacing_mm) == pytest.approx(1000 * grid.voxel_ml, rel=1e-4)
    write_nifti(np.zeros(grid.shape, np.uint8), grid, folder / "labels.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not read_labels(folder / "labels.nii", "FLARE22", grid).any(), "on its scan"
    written = nib.load(folder / "labels.nii").header
    if not guessed and not edge:
        for name in ("sform", "qform"):
            form = getattr(written, f"get_{name}")(coded=True)[0]
            assert form is None or any(np.allclose(form, one, atol=3e-3 * size) for one in affines)


@settings(**AROUND)
@given(
    second=st.booleans(), packed=st.booleans(), keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
)
def test_a_damaged_file_ends_in_a_volume_or_in_one_sentence(
    second: bool, packed: bool, keep: float, flips: list, folder: Path
) -> None:
    raw = file_of([], (1, 1), second, True)[0]
    data = bytearray(gzip.compress(raw) if packed else raw)
    for place, value in flips:
        data[int(place * len(data))] = value
    data = data[: round(keep * len(data))]
    (path := folder / "damaged.nii.gz").write_bytes(data)
    for read in (lambda: read_scan(path), lambda: read_labels(path, "FLARE22", Grid(SHAPE, np.eye(4)))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            try:
                read()
            except InputError as error:
                sentence(error, path)
            else:
                assert not packed or keep > 0.9, "a cut gzip is never a volume"
