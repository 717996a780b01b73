"""tools.segment: a label map on the scan's own grid, from NIfTI and DICOM alike, and no file is lost."""

import json
import os
import shutil
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
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1, RLELossless
from tiny import fixed_site

from lib.clipseg import build, save_weights
from lib.config import ClipSegSettings, settings_of
from lib.data import Case, prepare
from lib.files import InputError, write_json
from lib.inference import predict
from lib.organs import BY_KEY, KEYS, PROMPTS
from lib.phantoms import draw
from lib.training import check_machine, processes
from lib.volumes import Grid, to_uint8
from lib.windows import store_window, window_mm
from tools import dicom, segment
from tools.segment import Segmentation, asked, labels_of, load_checkpoint, note_of, overview, segment_scan
from tools.written import RECORD

ASKED = ("liver", "left kidney", "a loop of bowel")
WRITTEN = ["labels.nii.gz", "overview.png", "volumes.csv", RECORD]


def finished(folder: Path, run: str = "adapter", **changes: object) -> ClipSegSettings:
    """A finished run of a tiny model, by chance."""
    settings = settings_of(run, "smoke", **changes)
    save_weights(build(settings), folder / "best.safetensors")
    write_json(folder / "config.json", {"settings": asdict(settings)})
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    finished(folder := tmp_path_factory.mktemp("runs") / "adapter", gate_bias=0.0)
    return folder


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    """(40, 36, 9) HU, canonical axes."""
    return draw(fixed_site("site A", 40, 9), 1)[0][:, 2:-2].round().astype(np.int16)


def written(voxels: np.ndarray, path: Path, affine: np.ndarray = AFFINES["axial"]) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def refusal(*arguments: object, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        segment_scan(*arguments, **more)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 600
    return text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


# Masks and volumes


@pytest.mark.parametrize("name", [*AFFINES, "tilted"])
def test_the_label_map_has_the_scans_own_grid_and_its_volumes_are_voxels_times_their_size(
    name: str, run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    scan = written(phantom, tmp_path / "scan.nii.gz", TILTED if name == "tilted" else AFFINES[name])
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
    assert {*table["note"]} == {"trained on phantoms: not for real scans"} and {*table["modality"]} == {"CT"}


def test_it_says_what_predict_says_of_the_scan(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan = written(phantom, tmp_path / "scan.nii.gz", AFFINES["oblique"])
    model, settings = load_checkpoint(run, "smoke")
    [store] = prepare([Case("scan", scan)], settings, tmp_path / "stores")
    expected = np.array([0, 1, 13, 14], np.uint8)[predict(model, store, settings, ASKED).winner]
    np.testing.assert_array_equal(segment_scan(scan, ASKED, run).labels, expected)


SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1, "multi-frame")
SERIES = [*(("CT", syntax) for syntax in SYNTAXES), *(("MR", syntax) for syntax in SYNTAXES[:2])]


@pytest.mark.parametrize(("modality", "syntax"), SERIES)
def test_a_dicom_series_gives_the_same_masks_as_its_nifti(
    modality: str, syntax: str, run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    voxels = np.kron(phantom, np.ones((2, 2, 1), np.int16))  # JPEG 2000 wants 64 pixels
    voxels, affine = voxels if modality == "CT" else (voxels + 1000).clip(0) // 3, AFFINES["oblique"]
    expected = segment_scan(written(voxels, tmp_path / "scan.nii.gz", affine), ASKED, run)
    if syntax == "multi-frame":
        path = enhanced(tmp_path, voxels, affine)
    else:
        write_series(path := tmp_path / "series", voxels, affine, syntax, Modality=modality)
    found = segment_scan(path, ASKED, run, tmp_path / "out")
    assert found.modality == expected.modality == modality
    assert len(np.unique(expected.labels)) == 4, "all three prompts mark something"
    ours, theirs = (one.grid.to_canonical(one.labels) for one in (found, expected))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found.volumes["ml"], expected.volumes["ml"], rtol=1e-5)
    assert sorted(contents(tmp_path / "out")) == ["labels.dcm", *WRITTEN]
    segments = dcmread(tmp_path / "out" / "labels.dcm")
    assert [segment.SegmentLabel for segment in segments.SegmentSequence] == list(ASKED)


@pytest.mark.parametrize(("apart_mm", "steps"), [(5.0, [-2, -1, 0, 1, 2]), (2.5, [-4, -2, 0, 2, 4])])
def test_a_window_in_mm_goes_by_the_distance_of_a_dicom_series_own_slices(
    apart_mm: float, steps: list[int], phantom: np.ndarray, tmp_path: Path
) -> None:
    """It is that of their positions: slices may be thicker than they lie apart."""
    affine = AFFINES["axial"] @ np.diag([1, 1, apart_mm / AFFINES["axial"][2, 2], 1])
    write_series(tmp_path, phantom, affine, SliceThickness=9)
    voxels, grid, _ = segment.read_any(tmp_path)
    settings = settings_of("adapter", "smoke", window_unit="mm", window_step_mm=5.0)
    store = segment.store_of(to_uint8(voxels, "CT", settings), grid, "CT", settings)
    assert (np.array(store_window(store, 4, settings)) - 4).tolist() == steps
    near = replace(settings, window_unit="slices", within_mm=5.0)
    rows = np.array([store_window(store, 4, near)])
    assert sorted(mm for mm in window_mm(store, rows)[0].tolist() if np.isfinite(mm)) == pytest.approx(
        np.arange(-5, 5.1, apart_mm))


@pytest.mark.parametrize("shape", [(40, 36, 1), (1, 36, 9), (40, 1, 9), (40, 36, 2)])
def test_a_scan_of_one_slice_along_any_axis(
    shape: tuple[int, int, int], run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    found = segment_scan(
        written(phantom[tuple(slice(0, edge) for edge in shape)], tmp_path / "a.nii"), ASKED, run)
    table = found.volumes
    assert found.labels.shape == found.grey.shape == shape
    assert table["voxels"].sum() == np.count_nonzero(found.labels)
    assert table["cut"].tolist() == (table["voxels"] > 0).tolist() or shape[2] > 2, "a slice is its own ends"


def test_any_number_of_prompts(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    many = (*PROMPTS, *(f"thing {n}" for n in range(30)))
    found = segment_scan(written(phantom, tmp_path / "scan.nii"), many, run)
    assert found.volumes["label"].tolist() == [*range(1, 14), *range(14, 44)]
    assert found.volumes["voxels"].sum() == np.count_nonzero(found.labels), "each voxel has one label"


def test_prompts_are_split_cleaned_and_asked_once() -> None:
    assert asked(" Liver, the  Spleen,liver ,SPLEEN") == ("liver", "the Spleen", "spleen")
    assert labels_of(("a vessel", "liver", "a stone")) == {14: "a vessel", 1: "liver", 15: "a stone"}
    assert labels_of(KEYS) == dict(enumerate(KEYS, 1))
    for prompts in ("", "liver,,spleen", [], [f"thing {n}" for n in range(243)]):
        assert "an empty prompt, or over 242" in refusal("none.nii", prompts)


def test_the_modality_is_seen_in_the_intensities_and_can_be_said(
    run: Path, phantom: np.ndarray, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    ct = written(phantom, tmp_path / "ct.nii")
    assert segment_scan(ct, "liver", run).modality == "CT" and not recwarn.list
    noise = np.abs(np.random.default_rng(1).normal(size=phantom.shape) * 300).astype(np.int16)
    noise[3, 3, 1] = -260  # ringing
    for voxels, modality in ((noise, "MR"), (phantom + 1024, "MR"), (phantom.clip(-160, 240), "CT")):
        scan = written(voxels, tmp_path / "scan.nii")
        with pytest.warns(UserWarning, match=rf"scan.nii is taken for an? {modality}.*say MODALITY="):
            assert segment_scan(scan, "liver", run).modality == modality
    recwarn.clear()
    assert segment_scan(scan, "liver", run, modality="ct").modality == "CT" and not recwarn.list
    assert "modality 'PET'" in refusal(ct, "liver", run, modality="PET")
    write_series(tmp_path / "pet", phantom[:, :, :2], AFFINES["axial"], Modality="PT")
    assert "MODALITY=" in refusal(tmp_path / "pet", "liver", run)


@pytest.mark.parametrize("offset", [1000, 1024])
def test_a_ct_not_in_hu_is_refused(offset: int, run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    """Stored with an offset that nothing takes away, in NIfTI or DICOM without rescaling; padded, or not."""
    padded = np.where(phantom < -900, -2000, phantom)
    for voxels in (phantom, padded):
        write_series(tmp_path / "series", voxels + offset, AFFINES["axial"])
        for scan, said in ((written(voxels + offset, tmp_path / "ct.nii"), "CT"), (tmp_path / "series", "")):
            text = refusal(scan, "liver", run, tmp_path / "out", modality=said)
            assert "is a CT that is not in HU (its values are mostly" in text and "its offset" in text
            assert not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "series")


def test_the_label_map_keeps_both_forms_of_a_header(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    """ITK takes the qform, nibabel the sform: each tool shows the labels over the scan."""
    image = nib.Nifti1Image(phantom, np.diag([-2.0, -2, 5, 1]))
    image.set_sform(np.diag([-2.0, -2, 5, 1]), 2)
    image.set_qform(np.diag([2.0, -2, 5, 1]), 1)
    nib.save(image, tmp_path / "scan.nii")
    with pytest.warns(UserWarning, match="its qform lies up to 80 voxels off its sform, and results"):
        segment_scan(tmp_path / "scan.nii", "liver", run, tmp_path / "out")
    labels = nib.load(tmp_path / "out" / "labels.nii.gz").header
    for name in ("sform", "qform"):
        theirs = getattr(image.header, f"get_{name}")(coded=True)
        ours = getattr(labels, f"get_{name}")(coded=True)
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
        assert ours[1] == theirs[1]


def test_no_more_than_a_chunk_of_one_prompt_is_held(
    run: Path, phantom: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is resized at a time is bounded, however long the scan is and however much is asked."""
    model, settings = load_checkpoint(run, "smoke")
    grey = np.tile(phantom.clip(0, 255).astype(np.uint8), (1, 1, 5))
    store = segment.store_of(grey, Grid((40, 36, 45), AFFINES["axial"]), "CT", settings)
    sizes, rescale = [], segment.rescale
    spy = lambda some, *how, **more: sizes.append(len(some)) or rescale(some, *how, **more)  # noqa: E731
    monkeypatch.setattr(segment, "rescale", spy)
    segment.segment_store(model, store, ASKED, settings)
    assert max(sizes) <= 16 and sum(sizes) == 3 * 45


def test_volumes_by_hand() -> None:
    labels = np.zeros((4, 4, 3), np.uint8)
    labels[:2, :2, 1], labels[0, 0, 2], labels[3, 3, :] = 1, 14, 3
    grid = Grid((4, 4, 3), np.diag([-2.0, -2.0, 10.0, 1.0]))  # 0.04 ml a voxel
    table = segment.volumes_of(labels, ["liver", "a stone", "spleen", "aorta"], grid)
    assert table["voxels"].tolist() == [4, 1, 3, 0] and table["cut"].tolist() == [False, True, True, False]
    assert np.allclose(table["ml"], [0.16, 0.04, 0.12, 0.0])


def test_bad_scans_are_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8bnothing")
    assert "cannot be read as a NIfTI image" in refusal(tmp_path / "broken.nii.gz", "liver", run)
    assert "does not exist" in refusal(tmp_path / "none.nii.gz", "liver", run)
    assert "does not exist" in refusal(tmp_path / "none", "liver", run)
    assert "holds no DICOM image" in refusal(run, "liver", run)


# Files


def test_nothing_is_replaced_without_being_told(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    scan, out = written(phantom, tmp_path / "scan.nii"), tmp_path / "out"
    write_series(tmp_path / "series", phantom, AFFINES["axial"])
    segment_scan(tmp_path / "series", "liver", run, out)
    before = contents(out)
    assert "OVERWRITE=1" in refusal(scan, "spleen", run, out) and contents(out) == before
    (out / "mine.nii.gz").write_text("mine")
    segment_scan(scan, "spleen", run, out, overwrite=True)
    assert {*contents(out)} == {*WRITTEN, "mine.nii.gz"}, "an older labels.dcm would be another scan's"
    assert contents(out)["volumes.csv"] != before["volumes.csv"] and contents(out)["mine.nii.gz"] == b"mine"
    (out / "labels.nii.gz").unlink()
    (out / "volumes.csv").unlink()
    (out / "overview.png").write_text("mine")
    assert "overview.png exists" in refusal(scan, "liver", run, out)


@pytest.mark.parametrize("how", ["same", "dotted", "linked folder", "link here", "link there", "hard link"])
def test_the_scan_is_never_replaced(how: str, run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    """A scan that is called as a result, by whatever way it is the same file."""
    name, out, scan = "labels.nii.gz", tmp_path / "out", tmp_path / "scan.nii.gz"
    out.mkdir()
    real = written(phantom, scan if how in ("link there", "hard link") else out / name)
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
        text = refusal(scan, "liver", run, out, overwrite=overwrite)
        assert "is what is read" in text and name in text and "OVERWRITE" not in text
    assert real.read_bytes() == scan.read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == there


def test_a_result_of_ours_that_is_the_scan_stays(run: Path, phantom: np.ndarray, tmp_path: Path) -> None:
    segment_scan(written(phantom, tmp_path / "scan.nii.gz"), "liver", run, out := tmp_path / "out")
    before = contents(out)
    for scan in (out / "labels.nii.gz", out / "." / "labels.nii.gz"):
        assert "is what is read" in refusal(scan, "liver", run, out, modality="CT", overwrite=True)
    assert contents(out) == before


@pytest.mark.parametrize("name", ["labels.nii.gz", "labels.dcm"])
@pytest.mark.parametrize("kind", ["file", "edited", "dead link", "link", "folder"])
def test_what_others_put_there_stays(
    name: str, kind: str, run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    """Another tool's results, and our own that somebody has corrected; said before the scan is read."""
    write_series(tmp_path / "series", phantom[:, :, :2], AFFINES["axial"])
    segment_scan(tmp_path / "series", "liver", run, out := tmp_path / "out")
    path, theirs = out / name, tmp_path / "theirs"
    if kind == "edited":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        path.unlink()
        theirs.write_text("theirs")
        if kind == "folder":
            path.mkdir()
        elif kind == "file":
            path.write_text("theirs")
        else:
            path.symlink_to(theirs if kind == "link" else tmp_path / "gone")
    before = contents(out)
    text = refusal(tmp_path / "series", "liver", tmp_path, out, overwrite=True)
    assert f"{path} exists and is left as it is" in text, "before the checkpoint is looked for"
    assert contents(out) == before and os.path.lexists(path)


def test_the_folder_of_the_series_may_be_the_folder_of_the_results_and_no_image_is_lost(
    run: Path, phantom: np.ndarray, tmp_path: Path
) -> None:
    files = write_series(out := tmp_path / "series", phantom, AFFINES["axial"])
    first = segment_scan(out, "liver", run, out)
    images = {file: file.read_bytes() for file in files}
    again = segment_scan(out / ".." / "series", "liver", run, out, overwrite=True)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert {file: file.read_bytes() for file in files} == images
    (out / "labels.dcm").write_bytes(files[0].read_bytes())
    files[0].unlink()  # one of the slices has the name of a result
    assert "labels.dcm exists and is left" in refusal(out, "liver", run, out, overwrite=True)
    assert "labels.dcm is what is read" in refusal(out / "labels.dcm", "liver", run, out, overwrite=True)
    assert (out / "labels.dcm").read_bytes() == images[files[0]]


def test_a_dicom_segmentation_that_cannot_be_written_leaves_nothing(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(series := tmp_path / "series", phantom, AFFINES["axial"])
    segment_scan(series, "spleen", run, tmp_path / "out")
    before, fresh = contents(tmp_path / "out"), tmp_path / "fresh"

    def refused(*_: object, **__: object) -> None:
        raise ValueError("no such character set")

    monkeypatch.setattr(dicom.hd.seg, "Segmentation", refused)
    assert str(fresh / "labels.dcm") in refusal(series, "liver", run, fresh)
    assert not fresh.exists()
    refusal(series, "liver", run, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before, "the older result is whole, too"


def test_a_folder_that_cannot_be_is_said_before_the_work(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is not a folder that can be written" in refusal(tmp_path / "none.nii", "liver", run, out)


def test_a_disk_that_fills_leaves_no_part_of_a_file(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = written(phantom, tmp_path / "scan.nii")

    def full(image: nib.Nifti1Image, path: Path) -> None:
        path.write_bytes(image.to_bytes()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    assert "No space left" in refusal(scan, "liver", run, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


# Checkpoints


def unloadable(*arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_run_by_name_folder_or_file_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    older, folder = (tmp_path / "smoke/runs/adapter" / name for name in ("seed0-b", "seed0-a"))
    finished(older)
    expected = finished(folder, adapter_width=16)  # the last one, though not what the profile has today
    os.utime(older / "best.safetensors", (0, 0))
    weights = build(expected).state_dict()
    for checkpoint in ("adapter", folder, folder / "best.safetensors"):
        model, settings = load_checkpoint(checkpoint, "smoke" if checkpoint == "adapter" else "demo")
        assert settings == expected
        assert all(torch.equal(weights[name], tensor.cpu()) for name, tensor in model.state_dict().items())


def test_what_is_no_trained_model_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    folder = tmp_path / "smoke/runs/adapter/seed0-0123456789ab"
    text = unloadable("adapter", "smoke")
    assert text.startswith(str(folder.parent)) and "holds no trained model" in text and "make paper" in text
    for name in ("runs/nowhere", "model.safetensors"):
        assert "holds no trained model" in unloadable(name, "smoke")
    finished(folder)
    record = json.loads((config := folder / "config.json").read_text())
    (folder / "best.safetensors").rename(folder / "best-so-far.safetensors")
    assert "holds no trained model" in unloadable(folder, "smoke"), "its training has not ended"
    (folder / "best-so-far.safetensors").rename(folder / "best.safetensors")
    for change in ({"colour": "blue"}, {"run_length": 4, "prompts": 5, "model": "clipseg"}):
        write_json(config, record | {"settings": record["settings"] | change})
        assert "is not of a model of this version that takes prompts" in unloadable("adapter", "smoke")
    write_json(config, record | {"settings": asdict(settings_of("dynunet", "smoke"))})
    assert "takes prompts" in unloadable("adapter", "smoke")
    config.write_text("{")
    assert "is not of a model of this version" in unloadable("adapter", "smoke")


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
        check_machine(settings_of("adapter", "smoke", precision="fp16"))


def test_every_model_says_what_it_can_claim() -> None:
    phantoms = "trained on phantoms: not for real scans"
    assert note_of(settings_of("adapter", "smoke")) == note_of(settings_of("baseline", "demo")) == phantoms
    assert note_of(settings_of("adapter", "sample")) == "trained on slabs of one CT: no claim about accuracy"
    assert note_of(settings_of("adapter", "full")) == "research only: not a medical device"


# Picture and command


def test_the_overview_shows_what_was_found_where_a_reader_looks_for_it() -> None:
    shape, labels = (30, 24, 12), np.zeros((30, 24, 12), np.uint8)
    labels[:10, :8], labels[-1, -1] = 1, 14  # a liver in the patient's right front, and a stone
    grid, grey = Grid(shape, np.diag([-1.0, -2.0, 5.0, 1.0])), np.full(shape, 128, np.uint8)
    volumes = pd.DataFrame({"prompt": ["liver", "a stone"], "label": [1, 14], "ml": [1234.56, 0.25]})
    found = Segmentation(("liver", "a stone"), grid, labels, grey, volumes, "CT", "a note")
    figure = overview(found, slices=4)
    assert "a note" in figure.get_suptitle() and "right is on the left" in figure.get_suptitle()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["liver: 1234.6 ml", "a stone: 0.2 ml"]
    assert [axis.get_title() for axis in figure.axes] == [f"slice {z} of 12" for z in (2, 5, 8, 11)]
    (canvas := FigureCanvasAgg(figure)).draw()
    axis = figure.axes[0]
    box = axis.bbox
    assert box.height / box.width == pytest.approx(2 * 24 / 30, rel=0.02), "2 mm rows, 1 mm columns"
    left, top = axis.transData.transform((2, 2))  # column and row of the liver
    assert left < box.x0 + box.width / 3 and top > box.y0 + box.height * 2 / 3
    picture, liver = np.asarray(canvas.buffer_rgba()), np.array(colors.to_rgb(BY_KEY["liver"].colour))
    shade = picture[picture.shape[0] - round(top), round(left), :3] / 255
    assert np.allclose(shade, 0.4 * liver + 0.6 * 128 / 255, atol=0.03)


def test_the_command_writes_everything_once_and_says_what_it_found(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 400, (16, 14, 5)).astype(np.int16)
    out = tmp_path / "out"
    scan = written(voxels, tmp_path / "scan.nii.gz", np.diag([-2.0, -2, 5, 1]))

    def command(**given: object) -> None:
        for name in segment.OPTIONS:
            monkeypatch.setenv(name, str(given.get(name, "")))
        segment.main()

    for given in ({}, {"SCAN": scan}):
        with pytest.raises(SystemExit, match=r"SCAN=ct\.nii\.gz OUT=found"):
            command(**given)
    about = {"SCAN": scan, "CHECKPOINT": run, "OUT": out, "PROMPTS": "liver, a thing"}
    command(**about)
    said = capsys.readouterr().out
    assert "a thing" in said and "not for real scans" in said and str(out) in said
    assert sorted(before := contents(out)) == WRITTEN
    for more in ({}, {"OVERWRITE": "0"}):
        with pytest.raises(SystemExit, match="OVERWRITE=1"):
            command(**about, **more)
    command(**about, OVERWRITE=1)
    assert contents(out) == before, "the same input gives the same bytes"
    (out / "overview.png").write_text("theirs")
    with pytest.raises(SystemExit, match=r"overview.png exists and is left as it is, for it was not"):
        command(**about, OVERWRITE=1)
    assert contents(out) == before | {"overview.png": b"theirs"}


def test_a_tilde_is_the_home_folder(
    run: Path, phantom: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(phantom, tmp_path / "SCAN.NII")
    shutil.copytree(run, tmp_path / "weights")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    segment_scan("~/SCAN.NII", "liver", "~/weights", "~/found")
    assert (tmp_path / "found" / "labels.nii.gz").is_file()
