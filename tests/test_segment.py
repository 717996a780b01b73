"""tools.segment: a label map on the scan's own grid, from NIfTI and DICOM alike, and no file is lost."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from dicoms import AFFINES, TILTED, enhanced, write_series
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless
from safetensors.torch import load_file

from lib.clipseg import build, save_weights
from lib.config import ClipSegSettings, settings_of
from lib.data import Case, prepare
from lib.files import ROOT, InputError, write_json
from lib.inference import predict
from lib.organs import BY_KEY, KEYS, PROMPTS
from lib.phantoms import draw, site_of
from lib.training import check_precision, processes
from lib.volumes import Grid
from tools import dicom, segment
from tools.segment import Segmentation, asked, label_numbers, load_checkpoint, note_of, overview, segment_scan
from tools.written import RECORD

ASKED = ("liver", "left kidney", "a loop of bowel")


def finished(folder: Path, run: str = "adapter", **changes: object) -> ClipSegSettings:
    """A finished run of a tiny model, by chance."""
    settings = settings_of(run, "smoke", **changes)
    save_weights(build(settings), folder / "best.safetensors")
    record = {"hash": settings.hash(), "settings": asdict(settings), "finished": settings.hash()}
    write_json(folder / "config.json", record)
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    finished(folder := tmp_path_factory.mktemp("runs") / "adapter", gate_bias=0.0)
    return folder


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    """(40, 36, 9) HU, canonical axes."""
    site = site_of("site A", settings_of("adapter", "smoke"), "")
    voxels = draw(replace(site, shape=(40, 36, 9), spacing_mm=(8.0, 8.0, 18.0)), 1)[0]
    return voxels.round().astype(np.int16)


def written(voxels: np.ndarray, path: Path, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def refusal(*arguments: object, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        segment_scan(*arguments, **more)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 600
    return text


# Masks and volumes


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
    assert set(table["note"]) == {"trained on phantoms: not for real scans"} and set(table["modality"]) == {
        "CT"
    }


def test_it_says_what_predict_says_of_the_prepared_scan(
    run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    scan = written(phantom, tmp_path / "scan.nii.gz", AFFINES["oblique"])
    model, settings = load_checkpoint(run, "smoke")
    [store] = prepare([Case("scan", scan)], settings, tmp_path / "stores")
    expected = predict(model, store, settings, ASKED)
    found = segment_scan(scan, ASKED, run)
    np.testing.assert_array_equal(found.labels, np.array([0, 1, 13, 14], np.uint8)[expected.winner])
    claimed = [expected.mask(prompt).sum() * 0.03 for prompt in ASKED]  # 2 x 3 x 5 mm
    assert found.volumes["claimed_ml"].tolist() == pytest.approx(claimed)


SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1, "multi-frame")


@pytest.mark.parametrize(
    ("modality", "syntax"),
    [*(("CT", syntax) for syntax in SYNTAXES), *(("MR", syntax) for syntax in SYNTAXES[:2])],
)
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
    np.testing.assert_array_equal(
        found.grid.to_canonical(found.labels), expected.grid.to_canonical(expected.labels)
    )
    np.testing.assert_allclose(found.volumes["ml"], expected.volumes["ml"], rtol=1e-5)
    names = ["labels.dcm", "labels.nii.gz", "overview.png", "volumes.csv", RECORD]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    segments = dcmread(tmp_path / "out" / "labels.dcm")
    assert [segment.SegmentLabel for segment in segments.SegmentSequence] == list(ASKED)


@pytest.mark.parametrize("shape", [(40, 36, 1), (1, 36, 9), (40, 1, 9), (40, 36, 2)])
def test_a_scan_of_one_slice_along_any_axis(
    shape: tuple[int, int, int], run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    scan = written(phantom[tuple(slice(0, edge) for edge in shape)], tmp_path / "scan.nii", AFFINES["axial"])
    found = segment_scan(scan, ASKED, run)
    assert found.labels.shape == found.grey.shape == shape and found.volumes[
        "voxels"
    ].sum() == np.count_nonzero(found.labels)
    assert found.volumes["cut"].tolist() == (found.volumes["voxels"] > 0).tolist() or shape[2] > 2, (
        "a slice is its own first and last"
    )


def test_any_number_of_prompts(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan, many = (
        written(phantom, tmp_path / "scan.nii", AFFINES["axial"]),
        (*PROMPTS, *(f"thing {n}" for n in range(30))),
    )
    found = segment_scan(scan, many, run)
    assert found.volumes["label"].tolist() == [*range(1, 14), *range(14, 44)]
    assert found.volumes["voxels"].sum() == np.count_nonzero(found.labels), "each voxel has one label"
    alone = segment_scan(scan, ["thing 29"], run)
    assert alone.volumes["claimed_ml"][0] == pytest.approx(found.volumes["claimed_ml"].iat[-1]), (
        "what a prompt claims depends on no other"
    )


def test_prompts_are_split_cleaned_and_asked_once() -> None:
    assert asked(" Liver, the  Spleen,liver ,SPLEEN") == ("liver", "the Spleen", "spleen")
    assert label_numbers(("a vessel", "liver", "a stone")) == (14, 1, 15) and label_numbers(KEYS) == tuple(
        range(1, 14)
    )


def test_the_modality_is_seen_in_the_intensities_and_can_be_said(
    run: Path, phantom: np.ndarray, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    ct = written(phantom, tmp_path / "ct.nii", AFFINES["axial"])
    assert segment_scan(ct, "liver", run).modality == "CT" and not recwarn.list
    noise = np.abs(np.random.default_rng(1).normal(size=phantom.shape) * 300).astype(np.int16)
    noise[3, 3, 1] = -260  # ringing
    for name, voxels in (
        ("mr", noise),
        ("windowed", phantom.clip(-160, 240)),
        ("shifted", phantom - phantom.min()),
    ):
        scan = written(voxels, tmp_path / f"{name}.nii", AFFINES["axial"])
        with pytest.warns(UserWarning, match=f"{name}.nii is taken for an MRI, .* MODALITY=CT"):
            assert segment_scan(scan, "liver", run).modality == "MR"
    recwarn.clear()
    assert (
        segment_scan(tmp_path / "windowed.nii", "liver", run, modality="ct").modality == "CT"
        and not recwarn.list
    )
    with pytest.warns(UserWarning, match="hardly in Hounsfield units"):
        segment_scan(tmp_path / "shifted.nii", "liver", run, modality="CT")
    assert "modality 'PET'" in refusal(ct, "liver", run, modality="PET")
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
    assert sorted(contents(out)) == ["labels.nii.gz", "overview.png", "volumes.csv", RECORD], (
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
PAIRS = [
    (name, how)
    for name in RESULTS
    for how in SPELLINGS
    if name.endswith(".nii.gz") or how not in ("same", "dotted")
]


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_the_scan_is_never_replaced(
    name: str, how: str, run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    """A scan that is called as a result, by whatever way it is the same file."""
    out, scan = tmp_path / "out", tmp_path / "scan.nii.gz"
    out.mkdir()
    real = written(
        phantom, scan if how in ("link there", "hard link") else out / "other.nii.gz", AFFINES["axial"]
    )
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
    assert (
        real.read_bytes() == scan.read_bytes() == before
        and sorted(path.name for path in out.iterdir()) == there
    )


def test_a_result_of_ours_that_is_the_scan_itself_stays(
    run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    segment_scan(written(phantom, tmp_path / "scan.nii.gz", AFFINES["axial"]), "liver", run, tmp_path / "out")
    before = contents(tmp_path / "out")
    for scan in (tmp_path / "out" / "labels.nii.gz", tmp_path / "out" / "." / "labels.nii.gz"):
        assert "is what is read" in refusal(
            scan, "liver", run, tmp_path / "out", modality="CT", overwrite=True
        )
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("name", [*RESULTS, "labels.dcm"])
@pytest.mark.parametrize("kind", ["file", "edited", "dead link", "link", "folder"])
def test_what_others_put_there_stays(
    name: str, kind: str, run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    """Another tool's results, and our own that somebody has corrected; said before the scan is read."""
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
    for name in (
        "probability_01_liver.nii.gz",
        "probability_99_mine.nii.gz",
        "labels.dcm",
        ".labels.nii.gz.1.part.nii.gz",
    ):
        (out / name).write_text("theirs")
    segment_scan(scan, "spleen", run, out, overwrite=True)
    held = contents(out)
    assert sum(content == b"theirs" for content in held.values()) == 4 and len(held) == 8


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
        assert "labels.dcm is what is read" in refusal(
            out / "labels.dcm", "liver", run, out, overwrite=overwrite
        )
    assert (out / "labels.dcm").read_bytes() == images[files[0]]


def test_a_dicom_segmentation_that_cannot_be_written_leaves_nothing(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "series", phantom, AFFINES["axial"])
    segment_scan(tmp_path / "series", "spleen", run, tmp_path / "out")
    before = contents(tmp_path / "out")

    def refused(*_: object, **__: object) -> None:
        raise ValueError("no such character set")

    monkeypatch.setattr(dicom.hd.seg, "Segmentation", refused)
    assert str(tmp_path / "fresh" / "labels.dcm") in refusal(
        tmp_path / "series", "liver", run, tmp_path / "fresh"
    )
    assert list((tmp_path / "fresh").iterdir()) == []
    refusal(tmp_path / "series", "liver", run, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before, "the older result is whole, too"


def test_a_folder_that_cannot_be_is_said_before_the_work(
    run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is not a folder that can be written" in refusal(tmp_path / "none.nii", "liver", run, out)


def test_a_disk_that_fills_leaves_no_part_of_a_file(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = written(phantom, tmp_path / "scan.nii", AFFINES["axial"])

    def full(image: nib.Nifti1Image, path: Path) -> None:
        path.write_bytes(image.to_bytes()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    assert "No space left" in refusal(scan, "liver", run, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_room_for_probabilities_is_said_and_not_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment.shutil, "disk_usage", lambda home: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"no room for 0\.0 GB: .* TMPDIR"):
        segment._on_disk((2, 3, 4, 5))


def test_no_more_than_a_chunk_of_one_prompt_is_held(
    run: Path, phantom: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is resized at a time is bounded, however long the scan is and however much is asked."""
    model, settings = load_checkpoint(run, "smoke")
    grey = np.tile(phantom.clip(0, 255).astype(np.uint8), (1, 1, 5))
    store = segment.store_of(grey, Grid((40, 36, 45), AFFINES["axial"]), "CT", settings)
    sizes, resize = [], segment.resize
    monkeypatch.setattr(
        segment,
        "resize",
        lambda slices, *rest, **more: sizes.append(len(slices)) or resize(slices, *rest, **more),
    )
    segment.segment_store(model, store, ASKED, settings)
    assert max(sizes) <= 16 and sum(sizes) == 3 * 45


@pytest.mark.parametrize("prompts", ["", "liver,,spleen", []])
def test_no_prompt_and_too_many_are_one_sentence(prompts: object) -> None:
    assert "empty prompt" in refusal("none.nii", prompts)
    assert "243 prompts" in refusal("none.nii", [f"thing {n}" for n in range(243)])


def test_volumes_by_hand() -> None:
    labels = np.zeros((4, 4, 3), np.uint8)
    labels[:2, :2, 1], labels[0, 0, 2], labels[3, 3, :] = 1, 14, 3
    grid = Grid((4, 4, 3), np.diag([-2.0, -2.0, 10.0, 1.0]))  # 0.04 ml a voxel
    table = segment.volumes_of(labels, np.array([4, 5, 3, 0]), ["liver", "a stone", "spleen", "aorta"], grid)
    assert table["voxels"].tolist() == [4, 1, 3, 0] and table["cut"].tolist() == [False, True, True, False]
    assert np.allclose(table["ml"], [0.16, 0.04, 0.12, 0.0]) and np.allclose(
        table["claimed_ml"], [0.16, 0.2, 0.12, 0.0]
    )


def test_bad_scans_are_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    assert "cannot be read as a NIfTI image" in refusal(tmp_path / "broken.nii.gz", "liver", run)
    assert "does not exist" in refusal(tmp_path / "none.nii.gz", "liver", run)
    assert "does not exist" in refusal(tmp_path / "none", "liver", run)
    assert "holds no DICOM image" in refusal(run, "liver", run)


# Checkpoints


def unloadable(*arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_run_by_name_folder_or_file_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    folder = tmp_path / "smoke" / "runs" / "adapter/seed0"
    expected = finished(folder, adapter_width=16)  # not what the profile has today
    for checkpoint, profile in (
        ("adapter", "smoke"),
        (folder, "demo"),
        (folder / "best.safetensors", "demo"),
    ):
        model, settings = load_checkpoint(checkpoint, profile)
        assert settings == expected
        weights = build(expected).state_dict()
        assert all(torch.equal(weights[name], tensor.cpu()) for name, tensor in model.state_dict().items())


def test_without_a_trained_run_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    text = unloadable("adapter", "smoke")
    assert (
        text.startswith(str(tmp_path / "smoke/runs/adapter/seed0"))
        and "make paper" in text
        and "weights" in text
    )
    finished(tmp_path / "smoke/runs/adapter/seed0")
    config = tmp_path / "smoke/runs/adapter/seed0/config.json"
    record = json.loads(config.read_text())
    write_json(config, {name: record[name] for name in ("hash", "settings")})
    assert "training has not ended" in unloadable("adapter", "smoke")
    write_json(config, record | {"settings": record["settings"] | {"colour": "blue"}})
    assert "is not the configuration of a run" in unloadable("adapter", "smoke")
    config.write_text("{")
    assert "is not the configuration of a run" in unloadable("adapter", "smoke")


@pytest.fixture
def built_for_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A torch that was compiled for CUDA, on a machine without a GPU."""
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    PartialState._reset_state()  # it holds the device that was chosen before
    yield
    PartialState._reset_state()


def test_torch_built_for_cuda_on_a_machine_without_a_gpu(built_for_cuda: None, tmp_path: Path) -> None:
    """Most newcomers' on Linux: `current_accelerator()` names a device that is not there."""
    assert torch.accelerator.current_accelerator() == torch.device("cuda")
    finished(tmp_path)
    model, _ = load_checkpoint(tmp_path, "smoke")
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
    assert processes().device.type == "cpu"
    with pytest.raises(InputError, match="fp16 needs a GPU, and none is found"):
        check_precision("fp16", processes().device)


@pytest.mark.parametrize("name", ["runs/nowhere", "model.pt", "model.pth", "model.safetensors"])
def test_a_path_that_is_not_there(name: str) -> None:
    assert f"{name} does not exist" in unloadable(name, "smoke")


def test_a_model_that_takes_no_prompts(tmp_path: Path) -> None:
    write_json(
        tmp_path / "config.json", {"settings": asdict(settings_of("dynunet", "smoke")), "finished": ""}
    )
    (tmp_path / "best.safetensors").touch()
    assert "takes no prompts" in unloadable(tmp_path, "smoke")


def test_a_released_checkpoint_loads_with_the_sizes_beside_it_and_nothing_else_is_unpickled(
    run: Path, tmp_path: Path
) -> None:
    small = build(settings_of("adapter", "smoke"))
    small.base_model.config.save_pretrained(tmp_path)  # CLIPSeg's own sizes, not the hub's
    small.tokenizer.save_pretrained(tmp_path)
    released = settings_of("adapter", "full", **segment.AS_RELEASED | {"weights": str(tmp_path / "best.pt")})
    (tmp_path / "best.pt").touch()
    weights = {name.removeprefix("adapter."): tensor for name, tensor in build(released).state_dict().items()}
    torch.save({"epoch": 1, "model_state_dict": weights}, tmp_path / "best.pt")
    found, settings = load_checkpoint(tmp_path / "best.pt", "demo")
    assert settings == released and settings.gate_first and settings.decoder_inputs == "last"
    loaded = {name.removeprefix("adapter."): tensor for name, tensor in found.state_dict().items()}
    assert loaded.keys() == weights.keys() and all(
        torch.equal(loaded[name].cpu(), weights[name]) for name in weights
    )
    torch.save(
        {"model_state_dict": print}, tmp_path / "best.pt"
    )  # a function: unpickling it could run anything
    assert "belongs to another model" in unloadable(tmp_path / "best.pt", "demo")


def test_a_run_of_an_older_version_is_one_sentence(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "old")
    record = json.loads((tmp_path / "old/config.json").read_text())
    for change in ({"run_length": 4, "prompts": 5, "model": "clipseg"}, {"test_on": None, "colour": "blue"}):
        write_json(tmp_path / "old/config.json", record | {"settings": record["settings"] | change})
        assert "is not the configuration of a run of this version" in unloadable(tmp_path / "old", "smoke")
    assert (
        load_file(run / "best.safetensors").keys()
        == build(settings_of("adapter", "smoke")).state_dict().keys()
    )


def test_every_model_says_what_it_can_claim() -> None:
    assert (
        note_of(settings_of("adapter", "smoke"))
        == note_of(settings_of("baseline", "demo"))
        == "trained on phantoms: not for real scans"
    )
    assert note_of(settings_of("adapter", "sample")) == "trained on slabs of one CT: no claim about accuracy"
    assert note_of(settings_of("adapter", "full")) == "research only: not a medical device"


# Picture and command


def found_in(shape: tuple[int, int, int]) -> Segmentation:
    """A liver in the patient's right front, and a stone."""
    labels = np.zeros(shape, np.uint8)
    labels[: shape[0] // 3, : shape[1] // 3] = 1
    labels[-1, -1] = 14
    volumes = pd.DataFrame({"prompt": ["liver", "a stone"], "label": [1, 14], "ml": [1234.56, 0.25]})
    grey = np.full(shape, 128, np.uint8)
    return Segmentation(
        ("liver", "a stone"),
        Grid(shape, np.diag([-1.0, -2.0, 5.0, 1.0])),
        labels,
        grey,
        volumes,
        "CT",
        "a note",
    )


def drawn(figure: Figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def test_the_overview_shows_what_was_found_where_a_reader_looks_for_it() -> None:
    found = found_in((30, 24, 12))
    figure = overview(found, slices=4)
    assert "a note" in figure.get_suptitle() and "right is on the left" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "liver: 1234.6 ml",
        "a stone: 0.2 ml",
    ]
    assert [axis.get_title() for axis in figure.axes] == [f"slice {z} of 12" for z in (2, 5, 8, 11)]
    canvas = drawn(figure)
    axis = figure.axes[0]
    box = axis.bbox
    assert box.height / box.width == pytest.approx(2 * 24 / 30, rel=0.02), "2 mm rows, 1 mm columns"
    left, top = axis.transData.transform((2, 2))  # column and row of the liver
    assert left < box.x0 + box.width / 3 and top > box.y0 + box.height * 2 / 3
    picture = np.asarray(canvas.buffer_rgba())
    shade = picture[picture.shape[0] - round(top), round(left), :3] / 255
    assert np.allclose(
        shade, 0.4 * np.array(colors.to_rgb(BY_KEY["liver"].colour)) + 0.6 * 128 / 255, atol=0.03
    )


def test_the_command_writes_everything_once_and_says_what_it_found(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 400, (16, 14, 5)).astype(np.int16)
    written(voxels, tmp_path / "scan.nii.gz", np.diag([-2.0, -2, 5, 1]))
    monkeypatch.setenv("SCAN", str(tmp_path / "scan.nii.gz"))
    monkeypatch.setenv("CHECKPOINT", str(run))
    out = tmp_path / "out"
    segment.main(["PROMPTS=liver, a thing", f"OUT={out}"])
    said = capsys.readouterr().out
    assert "a thing" in said and "not for real scans" in said and str(out) in said
    assert sorted(contents(out)) == ["labels.nii.gz", "overview.png", "volumes.csv", RECORD]
    for more in ([], ["OVERWRITE=0"]):
        with pytest.raises(SystemExit, match="OVERWRITE=1"):
            segment.main([f"OUT={out}", *more])
    before = contents(out)
    segment.main(["PROMPTS=liver, a thing", f"OUT={out}", "OVERWRITE=1"])
    assert contents(out) == before, "the same input gives the same bytes"
    (out / "overview.png").write_text("theirs")
    with pytest.raises(
        SystemExit, match=r"overview.png exists and is left as it is, for it was not written by this"
    ):
        segment.main(["PROMPTS=spleen", f"OUT={out}", "OVERWRITE=1"])
    assert contents(out) == before | {"overview.png": b"theirs"}


@pytest.mark.parametrize(
    "words", [[], ["SCAN=scan.nii"], ["SCAN=a.nii", "OUT=b", "ORGANS=liver"], ["--help"]]
)
def test_the_command_explains_itself(words: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"python -m tools.segment SCAN=ct.nii.gz OUT=found"):
        segment.main(words)


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
AWKWARD = """scan $HOME $(x) `x` "y" 'z' #1; é.nii.gz"""


@needs_make
@pytest.mark.parametrize("how", ["word", "environment"])
def test_make_hands_on_any_text_as_it_is(how: str, tmp_path: Path) -> None:
    given = {
        "SCAN": AWKWARD,
        "OUT": "~/a b",
        "PROMPTS": 'liver, a "thing" for $5',
        "SERIES": "$(shell echo 3)",
    }
    spy = tmp_path / "python"
    names = "','".join(segment.OPTIONS)
    code = f"import json, os; print(json.dumps({{n: os.environ.get(n, '') for n in ('{names}')}}))"
    spy.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}"\n')
    spy.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in (*segment.OPTIONS, "MAKEFLAGS")}
    command = ["make", "--no-print-directory", f"PY={spy}", "segment"]
    words = [f"{name}={value}" for name, value in given.items()] if how == "word" else []
    environment = clean | (given if how == "environment" else {})
    done = subprocess.run(
        [*command, *words], cwd=ROOT, capture_output=True, text=True, env=environment, check=True
    )
    assert json.loads(done.stdout) == dict.fromkeys(segment.OPTIONS, "") | {"PROFILE": "demo"} | given


def test_a_tilde_is_the_home_folder(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(phantom, tmp_path / "SCAN.NII", AFFINES["axial"])
    shutil.copytree(run, tmp_path / "weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    segment_scan("~/SCAN.NII", "liver", "~/weights", "~/found")
    assert (tmp_path / "found" / "labels.nii.gz").is_file()
