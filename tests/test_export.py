"""lib.datasets.export: splits as nnU-Net raw data sets, which our own reader takes back, and nnU-Net's rules for dataset.json."""

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lib.datasets import cases_of, find_cases
from lib.datasets import export as exports
from lib.datasets.export import export, label_names, main
from lib.organs import ORGANS
from lib.paths import InputError
from lib.profiles import settings_of
from lib.volumes import read_labels, read_scan
from proof.trees import NNUNET, OWN, dataset_json, write_trees


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("PROFILE", "smoke")


def by_nnunet_s_rules(out: Path) -> dict:
    """dataset.json, after the checks that nnU-Net v2 makes of a raw data set before it plans."""
    value = json.loads((out / "dataset.json").read_text())
    labels = list(value["labels"].values())
    assert value["labels"]["background"] == 0 and sorted(labels) == list(range(len(labels))), "consecutive from 0"
    assert list(value["channel_names"]) == ["0"] and value["file_ending"] == ".nii.gz"
    images, truths = ({path.name for path in (out / f"{kind}Tr").glob("*")} for kind in ("images", "labels"))
    assert images == {name.replace(".nii.gz", "_0000.nii.gz") for name in truths} and value["numTraining"] == len(truths)
    return value


def test_a_whole_split_goes_out_and_comes_back(tmp_path: Path) -> None:
    out, settings = tmp_path / "nnUNet_raw" / "Dataset022_FLARE22", settings_of("baseline", "smoke")
    export("FLARE22", ["training", "validation", "test"], out)
    value = by_nnunet_s_rules(out)
    assert value["numTraining"] == 3 and value["channel_names"] == {"0": "CT"} and len(value["labels"]) == 14
    parts = {part: cases_of(settings, part) for part in ("training", "validation", "FLARE22")}
    ids = {part: [case.id for case in cases] for part, cases in parts.items()}
    assert json.loads((out / "splits_final.json").read_text()) == [{"train": ids["training"], "val": ids["validation"]}]
    assert [path.name for path in (out / "imagesTs").iterdir()] == [f"{ids['FLARE22'][0]}_0000.nii.gz"]
    back = {case.id[-4:]: case for case in find_cases("FLARE22", out)}
    for case in parts["training"] + parts["validation"]:
        twin = back[case.id[-4:]]
        assert twin.label_map == "FLARE22" and twin.image.is_symlink() and twin.labels is not None and case.labels is not None
        (voxels, grid), (others, _) = read_scan(case.image), read_scan(twin.image)
        np.testing.assert_array_equal(voxels, others)
        np.testing.assert_array_equal(read_labels(case.labels, case.label_map, grid), read_labels(twin.labels, twin.label_map, grid))


def test_parts_add_to_each_other_and_another_data_set_does_not(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    assert export("FLARE22", ["training"], out)["numTraining"] == 2
    assert not (out / "splits_final.json").exists()
    assert export("FLARE22", ["validation"], out)["numTraining"] == 3
    assert export("FLARE22", ["test"], out)["numTraining"] == 3
    by_nnunet_s_rules(out)
    with pytest.raises(InputError, match="describes another data set"):
        export("BTCV", ["test"], out)


def test_every_data_set_names_all_its_ids(tmp_path: Path) -> None:
    for number, (dataset, channel, count) in enumerate((("BTCV", "CT", 14), ("AMOS22 CT", "CT", 16), ("AMOS22 MRI", "MRI", 16)), 100):
        value = export(dataset, ["test"], tmp_path / f"Dataset{number}_X")
        assert value["channel_names"] == {"0": channel} and sorted(value["labels"].values()) == list(range(count))
    assert label_names("BTCV")["portal vein and splenic vein"] == 10 and "duodenum" not in label_names("BTCV")
    assert export("BTCV", ["training", "validation"], tmp_path / "Dataset017_BTCV")["numTraining"] == 3, "Med-VLM's split"


def test_uncompressed_scans_are_compressed(tmp_path: Path) -> None:
    write_trees(tmp_path / "data", 16, 4, {"BTCV": range(1, 11)}, suffix=".nii")
    out = tmp_path / "Dataset017_BTCV"
    assert len(export("BTCV", ["test"], out, "full")["labels"]) == 14
    image = out / "imagesTs/BTCV_0007_0000.nii.gz"
    assert not image.is_symlink() and image.read_bytes()[:2] == b"\x1f\x8b"
    np.testing.assert_array_equal(read_scan(image)[0], read_scan(tmp_path / "data/BTCV/RawData/Training/img/img0007.nii")[0])


# What is there already


def state(folder: Path) -> dict[str, object]:
    """Where each link leads and what each file holds, with the time at which it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return {str(path): os.readlink(path) if path.is_symlink() else (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def refusal(*arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        export(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and "OUT" in text
    return text


def tree(root: Path, suffix: str = ".nii.gz", layout: dict[str, tuple[str, str]] = OWN) -> None:
    """FLARE22's 50 cases, of which none is a scan."""
    for number in range(1, 51):
        for kind, stem in zip("il", layout["FLARE22"], strict=True):
            path = root / f"{stem.format(number)}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{kind}{number}".encode())


def test_the_same_export_again_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    parts = ["training", "validation", "test"]
    value = export("FLARE22", parts, out)
    before = {path: found for path, found in state(out).items() if not path.endswith("/dataset.json")}
    assert len(before) == 9 and export("FLARE22", parts, out) == value
    assert {path: found for path, found in state(out).items() if path in before} == before and len(state(out)) == 10


def test_a_killed_export_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every file in turn, with links and without."""
    place = exports._place
    for links in (True, False):
        out = tmp_path / str(links) / "Dataset022_FLARE22"
        if not links:
            monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        for count in range(1, 5):
            done = iter(range(count))

            def killed(source: Path, target: Path, done: Iterator[int] = done) -> None:
                if next(done, None) is None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.with_name(f".{target.name}.{2**22 + 1}.part.nii.gz").write_text("half")  # no process has that number
                    raise KeyboardInterrupt
                place(source, target)

            monkeypatch.setattr(exports, "_place", killed)
            with suppress(KeyboardInterrupt):
                export("FLARE22", ["training", "validation"], out)
        monkeypatch.setattr(exports, "_place", place)
        export("FLARE22", ["training", "validation"], out)
        assert by_nnunet_s_rules(out)["numTraining"] == 3
        assert {path.is_symlink() for path in out.glob("*Tr/*")} == {links}


def test_hidden_leftovers_are_no_cases(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    (out / "labelsTr").mkdir(parents=True)
    theirs = [out / "labelsTr" / name for name in ("._FLARE22_0001.nii.gz", ".FLARE22_0009.nii.gz.1.part.nii.gz", ".DS_Store")]
    for path in theirs:
        path.write_text("theirs")
    assert export("FLARE22", ["training"], out)["numTraining"] == 2
    assert [path.read_text() for path in theirs] == ["theirs"] * 3


@pytest.mark.parametrize("kind", ["file", "link to another case", "link to nowhere", "folder"])
@pytest.mark.parametrize("place", ["imagesTr", "labelsTr", "imagesTs", "labelsTs"])
def test_another_file_in_the_place_of_a_case_stays_and_nothing_is_written(place: str, kind: str, tmp_path: Path) -> None:
    parts, out = ["training", "test"], tmp_path / "Dataset022_FLARE22"
    export("FLARE22", parts, tmp_path / "Dataset001_First")
    target = out / place / sorted(path.name for path in (tmp_path / "Dataset001_First" / place).iterdir())[-1]
    if kind == "folder":
        (target / "inside").mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True)
        others = {"link to another case": tmp_path / "other.nii.gz", "link to nowhere": tmp_path / "gone.nii.gz"}
        (tmp_path / "other.nii.gz").write_text("theirs")
        target.symlink_to(others[kind]) if kind in others else target.write_text("theirs")
    before = state(tmp_path)
    assert f"{target} exists and is not " in refusal("FLARE22", parts, out)
    assert state(tmp_path) == before


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_copy_of_the_very_case_is_ours_and_another_is_not(suffix: str, tmp_path: Path) -> None:
    tree(tmp_path / "data", suffix)
    first, out = tmp_path / "Dataset001_First", tmp_path / "Dataset002_Second"
    export("FLARE22", ["test"], first, "full")
    shutil.copytree(first, out)  # its links become copies
    before = state(out / "imagesTs")
    assert not any(path.is_symlink() for path in out.rglob("*")) and len(before) == 10
    export("FLARE22", ["test"], out, "full")
    assert state(out / "imagesTs") == before
    changed = next(out.glob("labelsTs/*"))
    changed.write_bytes(gzip.compress(b"corrected by hand"))
    assert str(changed) in refusal("FLARE22", ["test"], out, "full") and gzip.decompress(changed.read_bytes()) == b"corrected by hand"


@pytest.mark.parametrize("name", ["dataset.json", "splits_final.json"])
@pytest.mark.parametrize("kind", ["theirs", "no json", "link", "link to nowhere"])
def test_a_description_of_somebody_else_stays(name: str, kind: str, tmp_path: Path) -> None:
    out, path = tmp_path / "Dataset022_FLARE22", tmp_path / "Dataset022_FLARE22" / name
    parts = ["training", "validation"]
    export("FLARE22", parts, tmp_path / "Dataset001_First")
    own = json.loads((tmp_path / "Dataset001_First" / name).read_text())
    if name == "dataset.json":
        del own["converted_by"]  # as a tool writes it that gives the same names to the ids
    else:
        own[0]["train"].append(own[0]["val"].pop())
    out.mkdir()
    if kind.startswith("link"):
        path.symlink_to(tmp_path / ("gone" if "nowhere" in kind else f"Dataset001_First/{name}"))
    else:
        path.write_text(json.dumps(own) if kind == "theirs" else "{")
    if (name, kind) == ("splits_final.json", "link"):
        (tmp_path / "Dataset001_First" / name).write_text(json.dumps(own))
    before = state(tmp_path)
    assert str(path) in refusal("FLARE22", parts, out)
    assert state(tmp_path) == before


def test_what_was_added_to_our_description_by_hand_stays(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    value = export("FLARE22", ["training"], out)
    added = {"overwrite_image_reader_writer": "SimpleITKIO", "licence": "see the challenge"}
    (out / "dataset.json").write_text(json.dumps(value | added))
    export("FLARE22", ["validation"], out)
    assert json.loads((out / "dataset.json").read_text()) == value | added | {"numTraining": 3}


# What is read is not written


@pytest.mark.parametrize("parts", [["training"], ["test"], ["training", "validation", "test"]])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("how", ["same", "dotted", "link to it", "below"])
def test_the_data_set_itself_is_no_place_for_its_export(parts: list[str], suffix: str, how: str, tmp_path: Path) -> None:
    home = tmp_path / "data" / "nnUNet_raw" / "Dataset022_FLARE22"
    tree(home.parent, suffix, NNUNET)
    labels = {"background": 0} | {organ.key: organ.label for organ in ORGANS}
    dataset_json(home, labels, 50)
    out = {
        "same": home,
        "dotted": home / "imagesTr" / ".." / ".." / home.name,
        "link to it": tmp_path / "Dataset001_Link",
        "below": home / "labelsTr" / "new" / "Dataset001_Below",
    }[how]
    if how == "link to it":
        out.symlink_to(home)
    before = state(tmp_path)
    assert "the scans are read from" in refusal("FLARE22", parts, out, "full")
    assert state(tmp_path) == before and not (home / "labelsTr" / "new").exists()


@pytest.mark.parametrize("linked", ["imagesTr", "labelsTr", "imagesTs", "sources", "files"])
def test_a_folder_that_leads_to_the_scans_is_no_place_either(linked: str, tmp_path: Path) -> None:
    out, home = tmp_path / "Dataset022_FLARE22", tmp_path / "data" / "FLARE22"
    tree(tmp_path / "data")
    out.mkdir()
    if linked == "sources":  # the data set's folders are links into OUT
        for own, theirs in (("images", "imagesTr"), ("labels", "labelsTr")):
            (home / own).rename(out / theirs)
            (home / own).symlink_to(out / theirs)
    elif linked == "files":  # its files are
        (out / "imagesTr").mkdir()
        for path in [*(home / "images").iterdir()]:
            path.symlink_to(path.rename(out / "imagesTr" / path.name))
    else:
        (out / linked).symlink_to(home / ("labels" if "labels" in linked else "images"))
    before = state(tmp_path)
    assert "the scans are read from" in refusal("FLARE22", ["training", "validation", "test"], out, "full")
    assert state(tmp_path) == before


def test_an_export_beside_the_data_sets_is_fine(tmp_path: Path) -> None:
    tree(tmp_path / "data")
    before = state(tmp_path / "data")
    out = tmp_path / "data" / "nnUNet_raw" / "Dataset022_FLARE22"
    assert export("FLARE22", ["training", "validation"], out, "full")["numTraining"] == 40
    assert {path: found for path, found in state(tmp_path / "data").items() if path in before} == before
    assert len(find_cases("FLARE22", out)) == 40


@pytest.mark.parametrize(
    ("dataset", "part", "out", "why"),
    [
        ("FLARE22", "train", "Dataset022_FLARE22", "'train' is no part of a split: choose from training, validation, test"),
        ("AMOS22 CT", "training", "Dataset022_AMOS", "trains no model here"),
        ("FLARE22", "training", "FLARE22", "let OUT end in DatasetNNN_NAME"),
        ("Synapse", "test", "Dataset022_Synapse", "is no data set"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    dataset: str, part: str, out: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["export", dataset, part, str(tmp_path / "raw" / out)])
    with pytest.raises(SystemExit, match=why) as ended:
        main()
    assert "\n" not in str(ended.value.code) and str(ended.value.code).endswith(".") and not (tmp_path / "raw").exists()
