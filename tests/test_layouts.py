"""lib.datasets.layouts: nnU-Net's raw layout of every data set, the names in its dataset.json, and what is in the way."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lib.datasets import Case, Store, cases_of, find_cases, home_of, prepare, survey
from lib.organs import KEYS, LABEL_MAPS, ORGANS, label_ids, labelled
from lib.paths import InputError
from lib.profiles import Settings
from lib.volumes import read_labels, read_scan
from proof.trees import NNUNET, OWN, dataset_json, write_trees

FEW = {"FLARE22": (1, 2), "BTCV": (3, 21), "AMOS22 CT": (4,), "AMOS22 MRI": (507,)}
AMOS22 = {  # as the data set's own dataset.json has it
    "0": "background", "1": "spleen", "2": "right kidney", "3": "left kidney", "4": "gall bladder", "5": "esophagus", "6": "liver",
    "7": "stomach", "8": "arota", "9": "postcava", "10": "pancreas", "11": "right adrenal gland", "12": "left adrenal gland",
    "13": "duodenum", "14": "bladder", "15": "prostate/uterus",
}  # fmt: skip


@pytest.fixture(scope="module", params=[".nii.gz", ".nii"])
def trees(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same cases in the data sets' own layouts and in nnU-Net's."""
    roots = tuple(tmp_path_factory.mktemp(name) for name in ("own", "nnunet"))
    for root, layout in zip(roots, (OWN, NNUNET), strict=True):
        write_trees(root, 24, 6, FEW, layout, request.param)
    return roots


def test_a_case_is_the_same_in_both_layouts(trees: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for root in trees:
        monkeypatch.setenv("DATA_ROOT", str(root))
        found.append({dataset: find_cases(dataset, home_of(dataset)) for dataset in FEW})
    own, nnunet = found
    assert [case.id for cases in own.values() for case in cases] == [
        "FLARE22_Tr_0001", "FLARE22_Tr_0002", "BTCV_0003", "BTCV_0021", "amos_0004", "amos_0507",
    ]  # fmt: skip
    for dataset in FEW:
        for first, second in zip(own[dataset], nnunet[dataset], strict=True):
            assert first.image != second.image
            assert (first.id, first.label_map, first.modality) == (second.id, second.label_map, second.modality)
            (voxels, grid), (others, other_grid) = read_scan(first.image), read_scan(second.image)
            np.testing.assert_array_equal(voxels, others)
            assert first.labels is not None and second.labels is not None
            theirs = read_labels(second.labels, second.label_map, other_grid)
            np.testing.assert_array_equal(read_labels(first.labels, first.label_map, grid), theirs)


@pytest.mark.parametrize(
    "home", ["FLARE22", "Dataset007_FLARE22", "nnUNet_raw/Dataset701_flare2022", "FLARE22/Dataset022_FLARE22", "Task022_FLARE22"]
)
def test_nnunet_s_folder_may_stand_in_several_places(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    touch(
        tmp_path / home, "imagesTr/FLARE22_Tr_0003_0000.nii.gz", "labelsTr/FLARE22_Tr_0003.nii.gz", "imagesTs/FLARE22_Tr_0004_0000.nii.gz"
    )
    touch(tmp_path, "Dataset017_BTCV/imagesTr/img0001_0000.nii.gz")
    dataset_json(tmp_path / home, {"background": 0} | {organ.key: organ.label for organ in ORGANS}, 1)
    assert home_of("FLARE22") == tmp_path / home
    image = tmp_path / home / "imagesTr/FLARE22_Tr_0003_0000.nii.gz"
    assert find_cases("FLARE22", home_of("FLARE22")) == [
        Case("FLARE22_Tr_0003", image, tmp_path / home / "labelsTr/FLARE22_Tr_0003.nii.gz")
    ]
    assert home_of("AMOS22 CT") == tmp_path / "AMOS22", "where it would have to be"


def test_the_own_layout_goes_before_nnunet_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    touch(tmp_path / "BTCV", "RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz")
    touch(tmp_path / "Dataset017_BTCV", "imagesTr/img0002_0000.nii.gz", "labelsTr/img0002.nii.gz")
    assert [case.id for case in find_cases("BTCV", home_of("BTCV"))] == ["BTCV_0001"]


def test_a_split_of_nnunet_s_files_is_that_of_the_data_set_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for name, layout in (("own", OWN), ("nnunet", NNUNET)):
        monkeypatch.setenv("DATA_ROOT", str(tmp_path / name))
        for dataset, numbers in {"FLARE22": range(1, 51), "AMOS22 CT": range(1, 21)}.items():
            for stem in layout[dataset]:
                touch(tmp_path / name, *(f"{stem.format(number)}.nii.gz" for number in numbers))
        if layout is NNUNET:
            dataset_json(tmp_path / name / "Dataset022_FLARE22", {"background": 0, "liver": 1}, 50)
            (tmp_path / name / "Dataset219_AMOS2022" / "dataset.json").write_text(json.dumps({"labels": AMOS22}))
        drawn.append([[case.id for case in cases_of(Settings(), part)] for part in ("training", "validation", "FLARE22", "AMOS22 CT")])
    assert drawn[0] == drawn[1] and [len(part) for part in drawn[0]] == [30, 10, 10, 10]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


# the names in dataset.json


def test_amos22_s_own_file_gives_amos22_s_ids_in_both_versions(tmp_path: Path) -> None:
    for name, labels in (("v1", AMOS22), ("v2", {organ: int(i) for i, organ in AMOS22.items()})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"labels": labels}))
        assert label_ids(str(path)) == LABEL_MAPS["AMOS22"] and labelled(str(path)) == KEYS


def test_another_order_of_ids_is_read_by_its_names(tmp_path: Path) -> None:
    """Kidneys and liver as TotalSegmentator calls them, in an order of nobody's; a part of the organs is enough."""
    root = tmp_path / "Dataset300_FLARE22"
    write_trees(tmp_path, 24, 6, {"FLARE22": (1,)}, NNUNET)
    (tmp_path / "Dataset022_FLARE22").rename(root)
    dataset_json(root, {"background": 0, "kidney_right": 1, "Liver": 2, "inferior vena cava (IVC)": 3, "left adrenal": 4}, 1)
    case = find_cases("FLARE22", root)[0]
    assert case.label_map == str(root / "dataset.json")
    assert label_ids(case.label_map) == {0: 0, 1: 2, 2: 1, 3: 6, 4: 8}
    assert labelled(case.label_map) == ("liver", "right kidney", "inferior vena cava", "left adrenal gland")
    store = prepare_with(case, tmp_path, ids=range(5))
    assert set(np.flatnonzero(store.presence.sum(0))) == {0, 1, 2, 6, 8}


def prepare_with(case: Case, folder: Path, ids: range) -> Store:
    """The store of the case after its labels were cut down to `ids`."""
    labels = nib.load(case.labels)
    voxels = np.asanyarray(labels.dataobj)
    nib.save(nib.Nifti1Image(np.where(np.isin(voxels, ids), voxels, 0).astype(np.uint8), labels.affine), case.labels)
    return prepare(case, Settings(size=24), folder / "stores")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"labels": {"background": 0, "liver": 1, "heart": 2, "lung": 3}}', r"known neither as organs nor as others \(heart, lung\)"),
        ('{"labels": {"background": 0, "kidneys": [1, 2]}}', "one id for each name"),
        ('{"labels": ["liver"]}', "one id for each name"),
        ('{"label": {}}', "does not hold nnU-Net's labels"),
        ("{", "does not hold nnU-Net's labels"),
        (None, "does not hold nnU-Net's labels"),
    ],
)
def test_a_dataset_json_that_says_nothing_is_one_sentence(text: str | None, why: str, tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/FLARE22_Tr_0001_0000.nii.gz", "labelsTr/FLARE22_Tr_0001.nii.gz")
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=why) as caught:
        find_cases("FLARE22", tmp_path)
    said = str(caught.value)
    assert str(tmp_path / "dataset.json") in said and "\n" not in said and said.endswith(".") and said.count(". ") == 0


# what is in the way


def test_one_number_twice_is_refused_and_all_of_them_are_surveyed(tmp_path: Path) -> None:
    for number in (1, 2):
        for part in ("Tr", "Va"):
            touch(tmp_path, f"images{part}/amos_{number:04d}.nii.gz", f"labels{part}/amos_{number:04d}.nii.gz")
    touch(tmp_path, "imagesTr/amos_0003.nii.gz", "imagesTr/amos_0004.nii", "labelsTr/amos_0004.nii")
    with pytest.raises(InputError, match="are both case amos_0001: keep one of the two"):
        find_cases("AMOS22 CT", tmp_path)
    cases, errors = survey("AMOS22 CT", tmp_path)
    assert [case.id for case in cases] == ["amos_0001", "amos_0002", "amos_0004"]
    assert [next(word for word in ("both", "no labels") if word in str(error)) for error in errors] == ["both", "both", "no labels"]
    touch(tmp_path, "imagesTr/amos_0004.nii.gz")
    assert "are both case amos_0004" in str(survey("AMOS22 CT", tmp_path)[1][-1])
