"""lib.scans: a scan of one's own comes back as a label map on its own grid, with volumes by hand, from NIfTI and DICOM alike."""

import os
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from dicoms import AFFINES, TILTED, enhanced, write_series
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless
from tiny import tiny_settings

from lib import dicom_seg, scans
from lib.checkpoints import load_checkpoint
from lib.clipseg import build
from lib.datasets import Case, prepare
from lib.inference import predict
from lib.organs import KEYS, PROMPTS
from lib.paths import InputError, write_json
from lib.phantoms import SITES, draw
from lib.runs import label_map
from lib.scans import asked, label_numbers, segment_scan
from lib.training.weights import save_weights
from lib.written import RECORD

SITE = replace(SITES["FLARE22"], shape=(40, 36, 9), spacing_mm=(8.0, 8.0, 18.0))
ASKED = ("liver", "left kidney", "a loop of bowel")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny adapter, by chance."""
    settings, folder = tiny_settings("adapter", gate_bias=0.0), tmp_path_factory.mktemp("runs") / "adapter"
    save_weights(build(settings), folder / "best.safetensors")
    write_json(folder / "config.json", {"hash": settings.hash(), "settings": asdict(settings), "finished": settings.hash()})
    return folder


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    """(40, 36, 9) HU, canonical axes."""
    return draw(SITE, 1)[0].round().astype(np.int16)


def written(voxels: np.ndarray, path: Path, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def refusal(*arguments: object, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        segment_scan(*arguments, **more)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 600
    return text


@pytest.mark.parametrize("name", [*AFFINES, "tilted"])
def test_the_label_map_has_the_scans_own_grid_and_its_volumes_are_voxels_times_their_size(
    name: str, run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    affine = TILTED if name == "tilted" else AFFINES[name]
    scan = written(phantom, tmp_path / "scan.nii.gz", affine)
    found = segment_scan(scan, ASKED, run, tmp_path / "out")
    image, table = nib.load(tmp_path / "out" / "labels.nii.gz"), pd.read_csv(tmp_path / "out" / "volumes.csv")
    assert image.shape == phantom.shape and image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.affine, nib.load(scan).affine)
    labels = np.asarray(image.dataobj)
    np.testing.assert_array_equal(labels, found.labels)
    assert table["label"].tolist() == [1, 13, 14] and table["prompt"].tolist() == list(ASKED)
    counts = [int((labels == label).sum()) for label in (1, 13, 14)]
    assert table["voxels"].tolist() == counts and sum(counts) > 0
    assert table["ml"].tolist() == pytest.approx([count * 2 * 3 * 5 / 1000 for count in counts], rel=1e-5)
    assert (table["claimed_ml"] >= table["ml"] - 1e-9).all()
    assert set(table["note"]) == {"trained on phantoms: not for real scans"} and set(table["modality"]) == {"CT"}


def test_it_says_what_predict_says_of_the_prepared_scan(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan = written(phantom, tmp_path / "scan.nii.gz", AFFINES["oblique"])
    model, settings = load_checkpoint(run)
    store = prepare(Case("scan", scan), settings, tmp_path / "stores")
    expected = predict(model, store, settings, ASKED, keep_probabilities=True)
    found = segment_scan(scan, ASKED, run, probabilities=True)
    np.testing.assert_array_equal(found.labels, label_map(expected) - (label_map(expected) == 16) * 2)  # 14 + place there, 14 here
    np.testing.assert_array_equal(found.probabilities, np.rint(expected.probabilities * 255))
    claimed = [expected.mask(prompt).sum() * 0.03 for prompt in ASKED]  # 2 x 3 x 5 mm
    assert found.volumes["claimed_ml"].tolist() == pytest.approx(claimed)
    assert found.files == () and not (tmp_path / "out").exists()


SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1, "multi-frame")


@pytest.mark.parametrize(("modality", "syntax"), [*(("CT", syntax) for syntax in SYNTAXES), *(("MR", syntax) for syntax in SYNTAXES[:2])])
def test_a_dicom_series_gives_the_same_masks_as_its_nifti(
    modality: str, syntax: str, run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    voxels = np.kron(phantom, np.ones((2, 2, 1), np.int16))  # JPEG 2000 wants 64 pixels
    voxels = voxels if modality == "CT" else (voxels + 1000).clip(0) // 3
    affine = AFFINES["oblique"]
    expected = segment_scan(written(voxels, tmp_path / "scan.nii.gz", affine), ASKED, run)
    if syntax == "multi-frame":
        path = enhanced(tmp_path, voxels, affine)
    else:
        write_series(path := tmp_path / "series", voxels, affine, syntax, Modality=modality)
    found = segment_scan(path, ASKED, run, tmp_path / "out")
    assert found.modality == expected.modality == modality
    assert len(np.unique(expected.labels)) == 4, "all three prompts mark something"
    np.testing.assert_array_equal(found.grid.to_canonical(found.labels), expected.grid.to_canonical(expected.labels))
    np.testing.assert_allclose(found.volumes["ml"], expected.volumes["ml"], rtol=1e-5)
    assert {file.name for file in found.files} | {RECORD} == {file.name for file in (tmp_path / "out").iterdir()}
    segments = dcmread(tmp_path / "out" / "labels.dcm")
    assert [segment.SegmentLabel for segment in segments.SegmentSequence] == list(ASKED)


def test_what_lies_beside_the_series_afterwards_is_not_taken_for_another_one(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    write_series(tmp_path, phantom, AFFINES["axial"])
    first = segment_scan(tmp_path, "liver", run, tmp_path / "found")
    again = segment_scan(tmp_path, "liver", run, tmp_path / "found", overwrite=True)
    np.testing.assert_array_equal(again.labels, first.labels)


@pytest.mark.parametrize("shape", [(40, 36, 1), (1, 36, 9), (40, 1, 9), (40, 36, 2)])
def test_a_scan_of_one_slice_along_any_axis(shape: tuple[int, int, int], run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan = written(phantom[tuple(slice(0, edge) for edge in shape)], tmp_path / "scan.nii", AFFINES["axial"])
    found = segment_scan(scan, ASKED, run)
    assert found.labels.shape == found.grey.shape == shape and found.volumes["voxels"].sum() == np.count_nonzero(found.labels)
    assert found.volumes["cut"].tolist() == (found.volumes["voxels"] > 0).tolist() or shape[2] > 2, "a slice is its own first and last"


def test_any_number_of_prompts(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan, many = written(phantom, tmp_path / "scan.nii", AFFINES["axial"]), (*PROMPTS, *(f"thing {n}" for n in range(30)))
    found = segment_scan(scan, many, run)
    assert found.volumes["label"].tolist() == [*range(1, 14), *range(14, 44)]
    assert found.volumes["voxels"].sum() == np.count_nonzero(found.labels), "each voxel has one label"
    alone = segment_scan(scan, ["thing 29"], run)
    assert alone.volumes["claimed_ml"][0] == pytest.approx(found.volumes["claimed_ml"].iat[-1]), "what a prompt claims depends on no other"


def test_prompts_are_split_cleaned_and_asked_once() -> None:
    assert asked(" Liver, the  Spleen,liver ,SPLEEN") == ("liver", "the Spleen", "spleen")
    assert label_numbers(("a vessel", "liver", "a stone")) == (14, 1, 15) and label_numbers(KEYS) == tuple(range(1, 14))


@pytest.mark.parametrize(("prompts", "words"), [("", "empty prompt"), ("liver,,spleen", "empty prompt"), ([], "empty prompt")])
def test_no_prompt_is_one_sentence(prompts: object, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path / "none.nii", prompts)
    assert "243 prompts" in refusal(tmp_path / "none.nii", [f"thing {n}" for n in range(243)])


def test_the_modality_is_seen_in_the_intensities_and_can_be_said(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    ct = written(phantom, tmp_path / "ct.nii", AFFINES["axial"])
    mr = written((phantom + 1100).astype(np.int16), tmp_path / "mr.nii", AFFINES["axial"])
    assert [segment_scan(scan, "liver", run).modality for scan in (ct, mr)] == ["CT", "MR"]
    assert segment_scan(mr, "liver", run, modality="ct").modality == "CT"
    assert "'PET' is no modality" in refusal(ct, "liver", run, modality="PET")
    write_series(tmp_path / "pet", phantom[:, :, :2], AFFINES["axial"], Modality="PT")
    assert "MODALITY=" in refusal(tmp_path / "pet", "liver", run)


def test_probabilities_are_read_back_as_such(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan = written(phantom, tmp_path / "scan.nii", AFFINES["coronal"])
    found = segment_scan(scan, ["liver", "a/b", "a b"], run, tmp_path / "out", probabilities=True)
    names = ["probability_01_liver.nii.gz", "probability_14_a_b.nii.gz", "probability_15_a_b.nii.gz"]
    assert sorted(path.name for path in tmp_path.glob("out/probability*")) == names
    for place, name in enumerate(names):
        image = nib.load(tmp_path / "out" / name)
        np.testing.assert_allclose(image.get_fdata(), found.probabilities[place] / 255, atol=1e-6)
        np.testing.assert_array_equal(image.affine, nib.load(scan).affine)
        assert image.get_data_dtype() == np.uint8 and image.get_fdata().std() > 1e-3
    surest = found.probabilities.max(0)
    assert (found.labels[surest > 128] > 0).all() and (found.labels[surest < 127] == 0).all()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_nothing_is_replaced_without_being_told(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan, out = written(phantom, tmp_path / "scan.nii", AFFINES["axial"]), tmp_path / "out"
    segment_scan(scan, "liver", run, out, probabilities=True)
    before = contents(out)
    assert "OVERWRITE=1" in refusal(scan, "spleen", run, out) and contents(out) == before
    segment_scan(scan, "spleen", run, out, overwrite=True)
    assert sorted(contents(out)) == ["labels.nii.gz", "volumes.csv", RECORD], (
        "an older probability map would be another model's or prompt's"
    )
    assert contents(out)["volumes.csv"] != before["volumes.csv"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "probability_99_mine.nii.gz").write_text("mine")
    segment_scan(scan, "liver", run, other)
    assert contents(other)["probability_99_mine.nii.gz"] == b"mine"
    (out / "labels.nii.gz").unlink()
    (out / "volumes.csv").unlink()
    (out / "overview.png").write_text("mine")
    assert "overview.png exists" in refusal(scan, "liver", run, out)


RESULTS = ("labels.nii.gz", "volumes.csv", "overview.png", "probability_01_liver.nii.gz")


SPELLINGS = ("same", "dotted", "linked folder", "link here", "link there", "hard link")
PAIRS = [(name, how) for name in RESULTS for how in SPELLINGS if name.endswith(".nii.gz") or how not in ("same", "dotted")]


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_the_scan_is_never_replaced(name: str, how: str, run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    """A scan that is called as a result, by whatever way it is the same file."""
    out, scan = tmp_path / "out", tmp_path / "scan.nii.gz"
    out.mkdir()
    real = written(phantom, scan if how in ("link there", "hard link") else out / "other.nii.gz", AFFINES["axial"])
    if how in ("same", "dotted", "linked folder", "link here"):
        real = real.rename(out / name)
    if how == "same":
        scan = real
    elif how == "dotted":
        scan = tmp_path / "out" / ".." / "out" / name
    elif how == "linked folder":
        (tmp_path / "elsewhere").symlink_to(out)
        scan.symlink_to(tmp_path / "elsewhere" / name)
    elif how == "link here":
        scan.symlink_to(real)
    elif how == "link there":
        (out / name).symlink_to(scan)
    else:
        (out / name).hardlink_to(scan)
    before, there = real.read_bytes(), sorted(path.name for path in out.iterdir())
    for overwrite in (False, True):
        text = refusal(scan, "liver", run, out, probabilities=True, overwrite=overwrite)
        assert "is what is read" in text and name in text and "OVERWRITE" not in text
    assert real.read_bytes() == scan.read_bytes() == before and sorted(path.name for path in out.iterdir()) == there


def test_the_scan_in_other_capitals_is_not_replaced(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan = written(phantom, tmp_path / "LABELS.nii.gz", AFFINES["axial"])
    if not (tmp_path / "labels.nii.gz").exists():
        pytest.skip("a file system that tells capitals")
    before = scan.read_bytes()
    assert "is what is read" in refusal(scan, "liver", run, tmp_path, overwrite=True) and scan.read_bytes() == before


def test_a_result_of_ours_that_is_the_scan_itself_stays(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    segment_scan(written(phantom, tmp_path / "scan.nii.gz", AFFINES["axial"]), "liver", run, tmp_path / "out")
    before = contents(tmp_path / "out")
    for scan in (tmp_path / "out" / "labels.nii.gz", tmp_path / "out" / "." / "labels.nii.gz"):
        assert "is what is read" in refusal(scan, "liver", run, tmp_path / "out", modality="CT", overwrite=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("name", [*RESULTS, "labels.dcm"])
@pytest.mark.parametrize("kind", ["file", "edited", "dead link", "link", "folder"])
def test_what_others_put_there_stays(name: str, kind: str, run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    """Another tool's results, and our own that somebody has corrected by hand; said before the scan is read."""
    write_series(tmp_path / "series", phantom, AFFINES["axial"])
    out = tmp_path / "out"
    segment_scan(tmp_path / "series", "liver", run, out, probabilities=True)
    path = out / name
    if kind == "edited" and path.exists():
        path.write_bytes(path.read_bytes() + b" ")
    else:
        path.unlink(missing_ok=True)
        (tmp_path / "theirs").write_text("theirs")
        if kind in ("file", "edited"):
            path.write_text("theirs")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(tmp_path / ("theirs" if kind == "link" else "gone"))
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    assert f"{path} exists and is left as it is" in refusal(
        tmp_path / "series", "liver", tmp_path, out, probabilities=True, overwrite=True
    ), "before the checkpoint is looked for"
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    assert os.path.lexists(path)


def test_what_lies_beside_the_results_stays(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    """Results of another tool that this call does not write, though an older one of ours might have."""
    scan, out = written(phantom, tmp_path / "scan.nii", AFFINES["axial"]), tmp_path / "out"
    segment_scan(scan, "liver", run, out)
    for name in ("probability_01_liver.nii.gz", "probability_99_mine.nii.gz", "labels.dcm", ".labels.nii.gz.1.part.nii.gz"):
        (out / name).write_text("theirs")
    segment_scan(scan, "spleen", run, out, overwrite=True)
    held = contents(out)
    assert sum(content == b"theirs" for content in held.values()) == 4 and len(held) == 7


def test_the_folder_of_the_series_may_be_the_folder_of_the_results_and_no_image_is_lost(
    run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    files = write_series(tmp_path / "series", phantom, AFFINES["axial"])
    out = tmp_path / "series"
    first = segment_scan(out, "liver", run, out)
    images = {file: file.read_bytes() for file in files}
    again = segment_scan(tmp_path / "series" / ".." / "series", "liver", run, out, overwrite=True)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert {file: file.read_bytes() for file in files} == images
    (out / "labels.dcm").write_bytes(files[0].read_bytes())
    files[0].unlink()  # one of the slices has the name of a result
    for overwrite in (False, True):
        assert "labels.dcm exists and is left" in refusal(out, "liver", run, out, overwrite=overwrite)
        assert "labels.dcm is what is read" in refusal(out / "labels.dcm", "liver", run, out, overwrite=overwrite)
    assert (out / "labels.dcm").read_bytes() == images[files[0]]


def test_a_dicom_segmentation_that_cannot_be_written_leaves_nothing(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "series", phantom, AFFINES["axial"])
    segment_scan(tmp_path / "series", "spleen", run, tmp_path / "out")
    before = contents(tmp_path / "out")

    def refused(*_: object, **__: object) -> None:
        raise ValueError("no such character set")

    monkeypatch.setattr(dicom_seg.hd.seg, "Segmentation", refused)
    assert str(tmp_path / "fresh" / "labels.dcm") in refusal(tmp_path / "series", "liver", run, tmp_path / "fresh")
    assert list((tmp_path / "fresh").iterdir()) == []
    refusal(tmp_path / "series", "liver", run, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before, "the older result is whole, too"


def test_a_folder_that_cannot_be_is_said_before_the_work(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is not a folder that can be written" in refusal(tmp_path / "none.nii", "liver", run, out)


def test_a_disk_that_fills_leaves_no_part_of_a_file(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = written(phantom, tmp_path / "scan.nii", AFFINES["axial"])

    def full(self: Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(bytes(data)[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in refusal(scan, "liver", run, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_room_for_probabilities_is_said_and_not_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans.shutil, "disk_usage", lambda home: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"no room for 0\.0 GB .* TMPDIR"):
        scans._on_disk((2, 3, 4, 5))


def test_no_more_than_a_chunk_of_one_prompt_is_held(run: Path, phantom: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is resized to the scan's own pixels is bounded, however long the scan is and however much is asked."""
    model, settings = load_checkpoint(run)
    store, _ = scans._store(np.tile(phantom, (1, 1, 5)), scans.Grid((40, 36, 45), AFFINES["axial"]), "CT", settings)
    sizes, resize = [], scans.resize
    monkeypatch.setattr(scans, "resize", lambda slices, *rest, **more: sizes.append(len(slices)) or resize(slices, *rest, **more))
    scans._segment(model, store, ASKED, settings, keep=False)
    assert max(sizes) <= 16 and sum(sizes) == 3 * 45


def test_volumes_by_hand() -> None:
    labels = np.zeros((4, 4, 3), np.uint8)
    labels[:2, :2, 1], labels[0, 0, 2], labels[3, 3, :] = 1, 14, 3
    grid = scans.Grid((4, 4, 3), np.diag([-2.0, -2.0, 10.0, 1.0]))  # 0.04 ml a voxel
    table = scans.volumes_of(labels, np.array([4, 5, 3, 0]), ["liver", "a stone", "spleen", "aorta"], grid)
    assert table["voxels"].tolist() == [4, 1, 3, 0] and table["cut"].tolist() == [False, True, True, False]
    assert np.allclose(table["ml"], [0.16, 0.04, 0.12, 0.0]) and np.allclose(table["claimed_ml"], [0.16, 0.2, 0.12, 0.0])


def test_bad_scans_are_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    assert "cannot be read as a NIfTI image" in refusal(tmp_path / "broken.nii.gz", "liver", run)
    assert "does not exist" in refusal(tmp_path / "none.nii.gz", "liver", run)
    assert "does not exist" in refusal(tmp_path / "none", "liver", run)
    assert "holds no DICOM image" in refusal(run, "liver", run)
