"""tools.data_check: planted in phantoms, three faults of each kind are named, and nothing else is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from trees import OWN, edit, write_trees

from lib.config import settings_of
from lib.data import SAMPLES, Case, cases_of, find_cases, organs_shown, sample_folders, split
from lib.organs import KEYS
from lib.volumes import read_scan
from tools.data_check import STOPS, VOLUMES_ML, check, content_of, examine, main

CASES = {"FLARE22": range(1, 51), "BTCV": range(1, 10), "AMOS22 CT": range(1, 17)}
CASES["AMOS22 MRI"] = range(507, 511)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """79 cases of 72 x 72 x 22 voxels."""
    return write_trees(tmp_path_factory.mktemp("clean"), 72, 22, CASES)


@pytest.fixture
def tree(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to plant faults in."""
    monkeypatch.setenv("DATA_ROOT", str(shutil.copytree(clean, tmp_path / "data")))
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    return tmp_path / "data"


def files(root: Path, dataset: str, number: int) -> tuple[Path, Path]:
    image, labels = (root / f"{stem.format(number)}.nii.gz" for stem in OWN[dataset])
    return image, labels


def exchange(first: int, second: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda ids: np.where(ids == first, second, np.where(ids == second, first, ids))


def almost_without(label: int) -> Callable[[np.ndarray], np.ndarray]:
    """All but the two middle voxels of an organ go: 1 ml is left."""

    def change(ids: np.ndarray) -> np.ndarray:
        places = np.flatnonzero(ids == label)
        ids.flat[np.delete(places, [len(places) // 2, len(places) // 2 + 1])] = 0
        return ids

    return change


def without_orientation(path: Path) -> None:
    """A file whose header says nothing of orientation, as some converters write it."""
    scan = nib.load(path)
    bare = nib.Nifti1Image(np.asanyarray(scan.dataobj), None)
    bare.header.set_zooms(scan.header.get_zooms())
    nib.save(bare, path)


def mirrored(image: Path, labels: Path) -> None:
    """A qform that mirrors the sform."""
    for path in (image, labels):
        scan = nib.load(path)
        scan.set_qform(scan.affine @ np.diag([-1, 1, 1, 1]), 1)
        nib.save(nib.Nifti1Image(np.asanyarray(scan.dataobj).copy(), scan.affine, scan.header), path)


def clipped(hu: np.ndarray) -> np.ndarray:
    """A CT in the models' window, but for one voxel of ringing."""
    hu = hu.clip(-125, 120)
    hu[0, 0, 0] = -400
    return hu


Change = Callable[[np.ndarray], np.ndarray]


def fault(*places: int, change: Change = np.asarray, affine: Change = np.asarray) -> Callable[..., object]:
    """Edits the files of a case at these places of (image, labels)."""
    return lambda *pair: [edit(pair[place], change, affine) for place in places]


FAULTS: list[tuple[str, int, int, str, Callable[..., object]]] = [
    # data set, first of three cases, place of the file that is named, what is said of it, and the fault
    ("FLARE22", 1, 0, "cannot be read", lambda image, _: image.write_bytes(image.read_bytes()[:-200])),
    ("FLARE22", 4, 0, "one 3-D volume", fault(0, change=lambda voxels: np.stack([voxels, voxels], 3))),
    ("FLARE22", 10, 1, "has the shape", fault(1, change=lambda ids: ids[:, :-1])),
    ("FLARE22", 13, 1, "lies up to", fault(1, affine=lambda affine: affine + np.eye(4, k=3) * 9)),
    ("FLARE22", 16, 1, "does not know (77)", fault(1, change=exchange(13, 77))),
    ("FLARE22", 19, 0, "are implausible", fault(0, 1, affine=lambda a: a @ np.diag([4.0, 4, 1, 1]))),
    ("FLARE22", 22, 1, "left kidney", fault(1, change=almost_without(13))),
    ("FLARE22", 25, 1, "right are swapped: right kidney / left kidney", fault(1, change=exchange(2, 13))),
    ("FLARE22", 28, 1, "head and feet are swapped", fault(0, 1, change=lambda array: array[:, :, ::-1])),
    ("FLARE22", 31, 1, "front and back are swapped", fault(0, 1, change=lambda array: array[:, ::-1])),
    ("BTCV", 1, 0, "gives no orientation", lambda *pair: [without_orientation(path) for path in pair]),
    ("AMOS22 CT", 11, 0, "off its sform", mirrored),
    ("AMOS22 CT", 14, 0, "lacks the fat of a CT in HU", fault(0, change=lambda hu: hu + 1024)),
    ("AMOS22 CT", 1, 0, "lacks the fat of a CT in HU", fault(0, change=lambda hu: clipped(hu) // 2 + 62)),
    ("AMOS22 CT", 7, 0, "has no labels", lambda _, labels: labels.unlink()),
    ("AMOS22 MRI", 507, 0, "shows air in HU", fault(0, change=lambda signal: signal - 1024)),
]


def plant(root: Path) -> dict[str, str]:
    """{name of the file that is at fault: what is said of it}; three of each kind."""
    said = {}
    for dataset, first, place, what, harm in FAULTS:
        for number in range(first, first + 3):
            harm(*(pair := files(root, dataset, number)))
            said[pair[place].name] = what
    for number in range(4, 7):
        image, labels = files(root, "AMOS22 CT", number)
        for path, folder in ((image, "imagesVa"), (labels, "labelsVa")):  # a second time
            shutil.copy(path, root / "AMOS22" / folder / path.name)
        said[f"imagesVa/{image.name}"] = "are both case"
        said[turned_copy(root, number, number + 3).name] = "is a duplicate"
    return said


def turned_copy(root: Path, number: int, copy: int) -> Path:
    """A scan of BTCV under another number: not compressed, of another number type, its axes turned."""
    for source, target in zip(files(root, "BTCV", number), files(root, "BTCV", copy), strict=True):
        scan = nib.as_closest_canonical(nib.load(source))
        target.unlink()
        nib.save(nib.Nifti1Image(scan.get_fdata(dtype=np.float32), scan.affine), target.with_suffix(""))
    return files(root, "BTCV", copy)[0].with_suffix("")


def plant_across_the_split(root: Path) -> dict[str, str]:
    """Three training scans of FLARE22 under the names of scans that validate or test."""
    parts = split(find_cases("FLARE22", root / "FLARE22"), (30, 10, 10))
    late = {part: [case for case in cases if int(case.id[-4:]) > 33] for part, cases in parts.items()}
    said = {}
    for source, copy in list(zip(late["training"], late["validation"] + late["test"], strict=False))[:3]:
        assert source.labels is not None and copy.labels is not None
        shutil.copy(source.image, copy.image)
        shutil.copy(source.labels, copy.labels)
        said[max(source.image.name, copy.image.name)] = "stands in two splits ("
    return said


def test_three_faults_of_each_kind_are_named_and_nothing_else(tree: Path) -> None:
    said = plant_across_the_split(tree) | plant(tree)
    assert len(said) == 3 * 19
    table, _, faults = check(1)
    for name, what in said.items():
        named = [told for *_, told in faults if what in told and name in told.split(" holds the same")[0]]
        assert len(named) == 1, (name, what)
    assert len(faults) == len(said)
    would_stop = {"cannot be read", "one 3-D volume", "has the shape", "off its scan", "does not know"}
    would_stop |= {"has no labels", "are both case", "stands in two splits"}
    for *_, told in faults:
        assert told.startswith(STOPS) == any(what in told for what in would_stop)
    assert table["faults"].tolist() == ["33", "6", "15", "3"]


def test_clean_data_sets_have_no_fault_and_a_second_run_reads_no_scan(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, notes, faults = check(1)
    assert not faults and table["cases"].tolist() == ["50 of 50", "9 of 30", "16 of 300", "4 of 60"]
    assert table["axes"].tolist() == ["50 RAS", "9 LAS", "16 LPS", "4 PIR"]
    assert table["organs"].tolist() == ["13", "12", "13", "13"]
    assert not any("no label file shows" in note or "clipped" in note for note in notes)
    btcv, ct, mri, folds, can, cannot = notes
    assert btcv == "BTCV: incomplete: a test drawn from it holds other scans than one from all 30."
    assert (ct[:22], mri[:23]) == ("AMOS22 CT: incomplete:", "AMOS22 MRI: incomplete:")
    assert folds.startswith("PROFILE=btcv can train baseline, ") and "9 cases of BTCV are there" in folds
    assert can.startswith("PROFILE=full can train baseline, ") and "50 of the 50 cases of FLARE22" in can
    assert cannot.startswith("PROFILE=full cannot train med-vlm large,") and "9 of the 30 cases" in cannot
    monkeypatch.setattr("tools.data_check.examine", lambda case: pytest.fail("read again"))
    monkeypatch.setattr("tools.data_check.check", lambda: check(1))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and capsys.readouterr().out.splitlines()[-1] == "data-check: no fault found"
    monkeypatch.setattr("tools.data_check.examine", lambda case: {"faults": ["read again"]})
    edit(files(tree, "BTCV", 2)[0], lambda hu: hu + 1)
    assert check(1)[2] == [("BTCV", "BTCV_0002", "read again")]


def test_a_picture_that_lies_off_its_labels_is_a_fault(tmp_path: Path) -> None:
    """Of two sites, CT and MRI: as drawn, mirrored, 30 mm too far to the back, and to the feet."""
    for name in ("site B", "site M"):
        case = cases_of(settings_of("adapter", "demo", cases=(1, 1, 1)), name)[0]
        image = tmp_path / f"{name}.nii.gz"
        grid = read_scan(case.image)[1]
        _, back, head = np.rint(30 / np.array(grid.spacing_mm)).astype(int)
        for said, mirror, steps in (
            ("", 1, (0, 0, 0)),
            ("mirrored left to right", -1, (0, 0, 0)),
            ("moved by -30 mm to the back", 1, (0, back, 0)),
            ("moved by 30 mm to the head", 1, (0, 0, -head)),
        ):
            voxels = grid.to_canonical(np.asanyarray(nib.load(case.image).dataobj))
            moved = grid.to_native(np.roll(voxels[::mirror], steps, (0, 1, 2)))
            shutil.copy(case.image, image)
            edit(image, lambda _, moved=moved: moved)
            faults = examine(replace(case, image=image))["faults"]
            assert [fault for fault in faults if "fit the picture" in fault] == faults
            assert said in faults[0] if said else not faults


def test_what_is_not_there_is_said_and_an_empty_folder_is_one_sentence(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tree / "FLARE22")
    shutil.rmtree(tree / "AMOS22")
    for number in CASES["BTCV"]:  # clipped, and of seven organs and the portal vein
        image, labels = files(tree, "BTCV", number)
        edit(image, clipped)
        edit(labels, lambda ids: np.where((ids < 9) | (ids == 10), ids, 0))
    table, notes, faults = check(1)
    lacking = "pancreas, inferior vena cava, right adrenal gland, left adrenal gland"
    assert notes[1:3] == [f"BTCV: no label file shows {lacking}: neither asked for nor scored.",
                         "BTCV: 9 clipped CTs (-125 to 120 HU): harmless where the model's window ends "
                         "there, too."]
    monkeypatch.setattr("lib.data.read_nifti", lambda path: pytest.fail("read again"))
    shown = organs_shown(settings_of("unet", "full"), "BTCV")
    assert {*KEYS} - {*shown} == {*lacking.split(", "), "duodenum"}
    assert not faults and table["folder"].str.startswith("not there").tolist() == [True, False, True, True]
    (tree.parent / "empty").mkdir()
    (tree.parent / "file").touch()
    for folder in ("empty", "nowhere", "file"):
        monkeypatch.setenv("DATA_ROOT", str(tree.parent / folder))
        with pytest.raises(SystemExit) as ended:
            main()
        text = str(ended.value.code)
        assert f"{tree.parent / folder} holds none of the data sets" in text
        assert "\n" not in text and text.endswith(".")
    assert capsys.readouterr().out == ""


def test_the_exit_status_and_the_last_line_are_the_verdict(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tree / "FLARE22")
    edit(files(tree, "BTCV", 2)[1], exchange(2, 3))
    monkeypatch.setattr("tools.data_check.check", lambda: check(1))
    with pytest.raises(SystemExit) as ended:
        main()
    *_, fault, verdict = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1 and verdict == "data-check: 1 fault in 1 case, 0 of which would stop a run"
    what = "left and right are swapped: right kidney / left kidney"
    assert fault == f"BTCV: {files(tree, 'BTCV', 2)[1]}: {what}."


def test_the_sample_scans_pass_but_not_as_the_other_modality() -> None:
    folder = next((one for one in sample_folders() if all((one / name).is_file() for name in SAMPLES)), None)
    if folder is None:
        pytest.skip("the sample scans are not here: `make samples`")
    ct = Case("ct", folder / "ct_image.nii.gz", folder / "ct_labels.nii.gz", "TotalSegmentator")
    mr = Case("mr", folder / "mr_image.nii.gz", folder / "mr_labels.nii.gz", "TotalSegmentatorMR", "MR")
    assert examine(ct)["faults"] == examine(mr)["faults"] == []
    assert "its number is an MRI's" in examine(replace(ct, modality="MR"))["faults"][0]
    assert "a CT in HU" in examine(replace(mr, modality="CT"))["faults"][0]


def test_a_tilted_scan_counts_its_true_millilitres(tmp_path: Path) -> None:
    """20 degrees: 600 voxels of 5 mm3; one voxel of ringing makes no CT of an MRI."""
    affine = np.diag([-1.0, -1, 5, 1])
    affine[1, 2] = 5 * np.tan(np.radians(20))
    labels, signal = np.zeros((30, 30, 10), np.uint8), np.full((30, 30, 10), 90, np.int16)
    labels[5:15, 5:15, 2:8], signal[0, 0, 0] = 1, -1000
    case = Case("c", tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", modality="MR")
    for path, array in ((case.image, signal), (case.labels, labels)):
        nib.save(nib.Nifti1Image(array, affine), path)
    seen = examine(case)
    assert seen["organs_ml"] == {"liver": pytest.approx(3)} and seen["spacing_mm"] == pytest.approx((1, 1, 5))
    assert not any("HU" in fault for fault in seen["faults"])


def test_one_scan_has_one_content_however_it_is_stored(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    stored, to = nib.Nifti1Image(voxels, affine), nib.orientations.axcodes2ornt("SAL")
    turned = stored.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), to))
    floats = nib.Nifti1Image(voxels.astype(np.float32), affine)
    contents, kinds = set(), {"a.nii.gz": stored, "a.nii": stored, "float.nii": floats, "turned.nii": turned}
    for name, scan in kinds.items():
        nib.save(scan, tmp_path / name)
        contents.add(content_of(read_scan(tmp_path / name)[0]))
    assert len(contents) == 1
    others = {content_of(other) for other in (voxels + 1, voxels.reshape(6, 5, 7), voxels[::-1])}
    assert content_of(voxels) not in others


def test_every_organ_has_a_range_that_holds_real_and_drawn_organs() -> None:
    assert set(VOLUMES_ML) == set(KEYS) and all(0 < 10 * low < high for low, high in VOLUMES_ML.values())
    assert VOLUMES_ML["right kidney"] == VOLUMES_ML["left kidney"]
    assert VOLUMES_ML["right adrenal gland"] == VOLUMES_ML["left adrenal gland"]
