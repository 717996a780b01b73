"""tools.nnunet: splits as nnU-Net's raw data sets, and scores of label maps that another tool has drawn."""

import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from trees import NNUNET, OWN, dataset_json, touch, touch_cases, write_trees

from lib.config import settings_of
from lib.data import Case, cases_of, find_cases
from lib.files import InputError, merge_csv
from lib.metrics import KEY
from lib.organs import BY_KEY, LABEL_MAPS, ORGANS, labelled
from lib.volumes import read_labels, read_scan
from tools import nnunet
from tools.nnunet import export, label_map_of, label_names, main, score


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def roots(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(cache))
    for name in ("DATA_ROOT", "RESULTS_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name[:-5].lower()))
    monkeypatch.setenv("PROFILE", "smoke")


# Export


def by_nnunet_s_rules(out: Path) -> dict:
    """dataset.json, after the checks that nnU-Net v2 makes of a raw data set before it plans."""
    value = json.loads((out / "dataset.json").read_text())
    labels = list(value["labels"].values())
    assert value["labels"]["background"] == 0
    assert sorted(labels) == list(range(len(labels))), "consecutive from 0"
    assert list(value["channel_names"]) == ["0"] and value["file_ending"] == ".nii.gz"
    images, truths = ({path.name for path in (out / f"{kind}Tr").glob("*")} for kind in ("images", "labels"))
    assert images == {name.replace(".nii.gz", "_0000.nii.gz") for name in truths}
    assert value["numTraining"] == len(truths)
    return value


def test_a_whole_split_goes_out_and_comes_back(tmp_path: Path) -> None:
    out, settings = tmp_path / "nnUNet_raw" / "Dataset022_FLARE22", settings_of("baseline", "smoke")
    export("site A", ["training", "validation", "test"], out, "smoke")
    value = by_nnunet_s_rules(out)
    assert value["numTraining"] == 3 and value["channel_names"] == {"0": "CT"} and len(value["labels"]) == 14
    parts = {part: cases_of(settings, part) for part in ("training", "validation", "site A")}
    ids = {part: [case.id for case in cases] for part, cases in parts.items()}
    folds = [{"train": ids["training"], "val": ids["validation"]}]
    assert json.loads((out / "splits_final.json").read_text()) == folds
    assert [path.name for path in (out / "imagesTs").iterdir()] == [f"{ids['site A'][0]}_0000.nii.gz"]
    back = {case.id[-4:]: case for case in find_cases("FLARE22", out)}
    for case in parts["training"] + parts["validation"]:
        twin = back[case.id[-4:]]
        assert twin.label_map == "FLARE22" and twin.image.is_symlink() and twin.labels and case.labels
        (voxels, grid), (others, _) = read_scan(case.image), read_scan(twin.image)
        np.testing.assert_array_equal(voxels, others)
        truths = [read_labels(one.labels, one.label_map, grid) for one in (case, twin)]
        np.testing.assert_array_equal(*truths)


def test_parts_add_to_each_other_and_another_data_set_does_not(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    assert export("site A", ["training"], out, "smoke")["numTraining"] == 2
    assert not (out / "splits_final.json").exists()
    assert export("site A", ["validation"], out, "smoke")["numTraining"] == 3
    assert export("site A", ["test"], out, "smoke")["numTraining"] == 3
    by_nnunet_s_rules(out)
    with pytest.raises(InputError, match="is of another data set"):
        export("site B", ["test"], out, "smoke")


def test_every_data_set_names_all_its_ids(tmp_path: Path) -> None:
    for site, channel, count in (("B", "CT", 14), ("C", "CT", 16), ("M", "MRI", 16)):
        value = export(f"site {site}", ["test"], tmp_path / f"Dataset100_{site}", "smoke")
        assert value["channel_names"] == {"0": channel}
        assert sorted(value["labels"].values()) == list(range(count))
    assert label_names("BTCV")["portal vein and splenic vein"] == 10 and "duodenum" not in label_names("BTCV")
    value = export("site B", ["training", "validation"], tmp_path / "Dataset017_BTCV", "smoke")
    assert value["numTraining"] == 3, "Med-VLM's split"


def test_uncompressed_scans_are_compressed(tmp_path: Path) -> None:
    write_trees(tmp_path / "data", 16, 4, {"BTCV": range(1, 11)}, suffix=".nii")
    out = tmp_path / "Dataset017_BTCV"
    assert len(export("BTCV", ["test"], out, "full")["labels"]) == 14
    image = out / "imagesTs/BTCV_0007_0000.nii.gz"
    assert not image.is_symlink() and image.read_bytes()[:2] == b"\x1f\x8b"
    source = tmp_path / "data/BTCV/RawData/Training/img/img0007.nii"
    np.testing.assert_array_equal(read_scan(image)[0], read_scan(source)[0])


# What is there already


def state(folder: Path) -> dict[str, object]:
    """Where each link leads and what each file holds, with the time at which it was written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
    return {str(path): os.readlink(path) if path.is_symlink() else (path.read_bytes(), path.stat().st_mtime_ns)
            for path in files}


def refusal(*arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        export(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and "OUT" in text
    return text


def tree(root: Path, suffix: str = ".nii.gz", layout: dict[str, tuple[str, str]] = OWN) -> None:
    """FLARE22's 50 cases, of which none is a scan."""
    touch_cases(root, "FLARE22", range(1, 51), layout)
    for path in root.rglob("*.nii.gz"):
        path.write_text(path.name)
        path.rename(path.with_name(path.name.replace(".nii.gz", suffix)))


def test_the_same_export_again_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    parts = ["training", "validation", "test"]
    value = export("site A", parts, out, "smoke")
    before = {path: found for path, found in state(out).items() if not path.endswith("/dataset.json")}
    assert len(before) == 9 and export("site A", parts, out, "smoke") == value
    after = state(out)
    assert len(after) == 10 and before.items() <= after.items()


def test_a_killed_export_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at every file in turn, with links and without."""
    place = nnunet._place
    for links in (True, False):
        out = tmp_path / str(links) / "Dataset022_FLARE22"
        if not links:
            monkeypatch.setattr(Path, "symlink_to", Mock(side_effect=OSError("no links here")))
        for count in range(1, 5):
            done = iter(range(count))

            def killed(source: Path, target: Path, done: Iterator[int] = done, links: bool = links) -> None:
                if next(done, None) is None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not links:  # a link is made at once
                        target.with_name(f".{target.name}.part.nii.gz").write_text("half")
                    raise KeyboardInterrupt
                place(source, target)

            monkeypatch.setattr(nnunet, "_place", killed)
            with suppress(KeyboardInterrupt):
                export("site A", ["training", "validation"], out, "smoke")
        monkeypatch.setattr(nnunet, "_place", place)
        export("site A", ["training", "validation"], out, "smoke")
        assert by_nnunet_s_rules(out)["numTraining"] == 3
        assert {path.is_symlink() for path in out.glob("*Tr/*")} == {links}


def test_hidden_leftovers_are_no_cases(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    (out / "labelsTr").mkdir(parents=True)
    names = ("._A_0001.nii.gz", ".A_0009.nii.gz.part.nii.gz", ".DS_Store")
    theirs = [out / "labelsTr" / name for name in names]
    for path in theirs:
        path.write_text("theirs")
    assert export("site A", ["training"], out, "smoke")["numTraining"] == 2
    assert [path.read_text() for path in theirs] == ["theirs"] * 3


@pytest.mark.parametrize("kind", ["file", "link to another case", "link to nowhere", "folder"])
@pytest.mark.parametrize("place", ["imagesTr", "labelsTr", "imagesTs", "labelsTs"])
def test_another_file_in_the_place_of_a_case_stays_and_nothing_is_written(
    place: str, kind: str, tmp_path: Path
) -> None:
    parts, out = ["training", "test"], tmp_path / "Dataset022_FLARE22"
    export("site A", parts, tmp_path / "Dataset001_First", "smoke")
    target = out / place / sorted(path.name for path in (tmp_path / "Dataset001_First" / place).iterdir())[-1]
    if kind == "folder":
        (target / "inside").mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True)
        (tmp_path / "another case").write_text("theirs")
        link = tmp_path / kind.removeprefix("link to ")
        target.symlink_to(link) if kind.startswith("link") else target.write_text("theirs")
    before = state(tmp_path)
    assert f"{target} exists and is not " in refusal("site A", parts, out, "smoke")
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
    assert str(changed) in refusal("FLARE22", ["test"], out, "full")
    assert gzip.decompress(changed.read_bytes()) == b"corrected by hand"


@pytest.mark.parametrize("name", ["dataset.json", "splits_final.json"])
@pytest.mark.parametrize("kind", ["theirs", "no json", "link", "link to nowhere"])
def test_a_description_of_somebody_else_stays(name: str, kind: str, tmp_path: Path) -> None:
    out, path = tmp_path / "Dataset022_FLARE22", tmp_path / "Dataset022_FLARE22" / name
    parts = ["training", "validation"]
    export("site A", parts, tmp_path / "Dataset001_First", "smoke")
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
    assert str(path) in refusal("site A", parts, out, "smoke")
    assert state(tmp_path) == before


def test_what_was_added_to_our_description_by_hand_stays(tmp_path: Path) -> None:
    out = tmp_path / "Dataset022_FLARE22"
    value = export("site A", ["training"], out, "smoke")
    added = {"overwrite_image_reader_writer": "SimpleITKIO", "licence": "see the challenge"}
    (out / "dataset.json").write_text(json.dumps(value | added))
    export("site A", ["validation"], out, "smoke")
    assert json.loads((out / "dataset.json").read_text()) == value | added | {"numTraining": 3}


# What is read is not written


@pytest.mark.parametrize("parts", [["training"], ["test"], ["training", "validation", "test"]])
@pytest.mark.parametrize("how", ["same", "dotted", "link to it", "below"])
def test_the_data_set_itself_is_no_place_for_its_export(
    parts: list[str], how: str, tmp_path: Path
) -> None:
    home = tmp_path / "data" / "nnUNet_raw" / "Dataset022_FLARE22"
    tree(home.parent, layout=NNUNET)
    dataset_json(home, {organ.key: organ.label for organ in ORGANS})
    dotted, below = home / "imagesTr" / ".." / ".." / home.name, home / "labelsTr" / "new" / "Dataset001_Below"
    out = {"same": home, "dotted": dotted, "link to it": tmp_path / "Dataset001_Link", "below": below}[how]
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
    assert before.items() <= state(tmp_path / "data").items()
    assert len(find_cases("FLARE22", out)) == 40


@pytest.mark.parametrize(
    ("dataset", "part", "out", "why"),
    [
        ("site A", "train", "Dataset022_A", "'site A' has no part 'train': choose test, or training or validation"),
        ("site C", "training", "Dataset022_C", "'site C' has no part 'training'"),
        ("site A", "training", "FLARE22", "let OUT end in DatasetNNN_NAME"),
        ("Synapse", "test", "Dataset022_Synapse", "is no site of phantoms"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(
    dataset: str, part: str, out: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["nnunet", "export", dataset, part, str(tmp_path / "raw" / out)])
    with pytest.raises(SystemExit, match=why) as ended:
        main()
    assert "\n" not in str(ended.value.code) and str(ended.value.code).endswith(".")
    assert not (tmp_path / "raw").exists()


# Scores


def case_of(dataset: str) -> Case:
    return cases_of(settings_of("baseline", "smoke"), dataset)[0]


def theirs(dataset: str, folder: Path, ids: str, change: dict[int, int] | None = None) -> Path:
    """A folder with a tool's label map of the test case: the truth in other ids, with some labels changed."""
    case = case_of(dataset)
    truth = nib.load(case.labels)
    ours = np.vectorize(LABEL_MAPS[case.label_map].get)(np.asanyarray(truth.dataobj)).astype(np.uint8)
    for old, new in (change or {}).items():
        ours[ours == old] = new
    back = {label: i for i, label in LABEL_MAPS[ids].items() if label} | {0: 0}
    folder.mkdir(exist_ok=True)
    ids_there = np.vectorize(back.get)(ours).astype(np.uint8)
    nib.save(nib.Nifti1Image(ids_there, truth.affine), folder / f"{case.id}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("dataset", "ids"),
    [("site A", "TotalSegmentator"), ("site B", "BTCV"), ("site M", "FLARE22"), ("site C", "AMOS22")],
)
def test_a_perfect_label_map_scores_one_in_any_ids(dataset: str, ids: str, tmp_path: Path) -> None:
    table = score("tool", dataset, theirs(dataset, tmp_path / "maps", ids), "smoke", ids)
    assert set(table["organ"]) == set(labelled(case_of(dataset).label_map)) & set(labelled(ids))
    assert (table.loc[table["truth_voxels"] > 0, "dice"] == 1).all()
    stored = pd.read_csv(tmp_path / "results/smoke/scores.csv")
    assert len(stored) == len(table) and {*stored["run"]} == {"tool"}
    assert stored["case"].unique().tolist() == [case_of(dataset).id]


def test_a_lost_and_a_doubled_organ_score_as_they_must(tmp_path: Path) -> None:
    spleen, liver = BY_KEY["spleen"].label, BY_KEY["liver"].label
    folder = theirs("site A", tmp_path / "maps", "FLARE22", change={spleen: liver})
    rows = score("tool", "site A", folder, "smoke").set_index("organ")
    truth = rows["truth_voxels"]
    assert rows.loc["spleen", "dice"] == 0 and rows.loc["spleen", "predicted_voxels"] == 0
    expected = 2 * truth["liver"] / (2 * truth["liver"] + truth["spleen"])
    assert rows.loc["liver", "dice"] == pytest.approx(expected)
    assert (rows["dice"].drop(["spleen", "liver"]).dropna() == 1).all()


def test_the_names_in_nnunet_s_dataset_json_count_where_it_lies_beside_the_label_maps(tmp_path: Path) -> None:
    """nnU-Net writes it there; an nnU-Net of BTCV has no duodenum, so none is scored on FLARE22."""
    folder = theirs("site A", tmp_path / "maps", "BTCV", change={BY_KEY["duodenum"].label: 0})
    keys = {organ.label: organ.key for organ in ORGANS} | {0: "background"}
    dataset_json(folder, {keys[label]: i for i, label in LABEL_MAPS["BTCV"].items() if label or not i})
    table = score("nnunet", "site A", folder, "smoke")
    assert "duodenum" not in set(table["organ"]) and (table["dice"].dropna() == 1).all()


def test_a_label_map_is_found_by_the_names_that_tools_give_it(tmp_path: Path) -> None:
    case = Case("BTCV_0001", Path("img/img0001.nii.gz"), Path("label/label0001.nii.gz"), "BTCV")
    flare = Case("FLARE22_Tr_0001", Path("images/FLARE22_Tr_0001_0000.nii.gz"))
    names = {"BTCV_0001.nii.gz": case, "img0001.nii": case, "label0001.nii.gz": case}
    for name, owner in (names | {"FLARE22_Tr_0001_0000.nii.gz": flare, "FLARE22_Tr_0001.nii": flare}).items():
        touch(tmp_path / name, name)
        assert label_map_of(owner, tmp_path / name) == tmp_path / name / name
    with pytest.raises(InputError, match=r"has no label map of BTCV_0001: call it .*img0001\.nii\.gz"):
        label_map_of(case, tmp_path)


def test_bad_label_maps_are_one_sentence_and_change_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = theirs("site A", tmp_path / "maps", "FLARE22")
    path = good / f"{case_of('site A').id}.nii.gz"
    score("tool", "site A", good, "smoke")
    scores = tmp_path / "results/smoke/scores.csv"
    before, image = scores.read_bytes(), nib.load(path)
    voxels = np.asanyarray(image.dataobj)
    for array, affine, why in (
        (voxels[1:], image.affine, "resample the labels to the scan's grid"),
        (voxels, image.affine + np.eye(4, k=3) * 20, "voxels off its scan"),
        (voxels + 77, image.affine, "does not know"),
    ):
        nib.save(nib.Nifti1Image(array, affine), path)
        monkeypatch.setattr("sys.argv", ["nnunet", "score", "tool", "site A", str(good), ""])
        with pytest.raises(SystemExit, match=why) as ended:
            main()
        assert str(path) in str(ended.value.code) and "\n" not in str(ended.value.code)
    for name, dataset, folder, ids, why in (
        ("adapter", "site A", good, "", "or a run of our own"),
        ("", "site A", good, "", "names nothing"),
        ("tool", "site A", tmp_path / "nowhere", "", "has no label map of"),
        ("tool", "site A", good, "Synapse", "'Synapse' is no label map"),
        ("tool", "Synapse", good, "", "is no site of phantoms"),
    ):
        with pytest.raises(InputError, match=why):
            score(name, dataset, folder, "smoke", ids)
    assert scores.read_bytes() == before


def test_rows_take_the_place_of_their_own_alone_and_no_run_of_ours_gives_its_name(tmp_path: Path) -> None:
    """Beside them stand a run's own rows, also of an ablation that lib.config does not know."""
    maps = {site: theirs(site, tmp_path / site, "FLARE22") for site in ("site A", "site B")}
    first = score("tool", "site A", maps["site A"], "smoke")
    path = tmp_path / "results/smoke/scores.csv"
    merge_csv(path, first.assign(run="adapter: no gate", config="0123456789ab"), ["run", "seed"], KEY)
    score("tool", "site B", maps["site B"], "smoke")
    theirs("site A", maps["site A"], "FLARE22", change={BY_KEY["spleen"].label: 0})
    score("tool", "site A", maps["site A"], "smoke")
    stored = pd.read_csv(path, dtype={"config": str})
    assert list(stored) == [*KEY, "config", *list(first)[len(KEY) + 1 :]]
    expected = {("adapter: no gate", "site A"): 13, ("tool", "site A"): 13, ("tool", "site B"): 12}
    assert stored.groupby(["run", "dataset"]).size().to_dict() == expected
    spleen = stored[(stored["organ"] == "spleen") & (stored["dataset"] == "site A")].set_index("run")
    assert spleen["dice"].to_dict() == {"adapter: no gate": 1, "tool": 0}
    with pytest.raises(InputError, match="'adapter: no gate' names nothing, or a run of our own"):
        score("adapter: no gate", "site A", maps["site A"], "smoke")
