"""lib.data: which scans there are, who trains and who tests."""

import hashlib
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from trees import NNUNET, OWN, dataset_json, edit, sample_scans, touch, touch_cases, write_trees

from lib import data
from lib.config import RUNS, Settings, settings_of
from lib.data import LAYOUTS, SPLIT_COLUMNS, Case, cases_of, check_disjoint, find_cases, home_of, stores_of
from lib.files import InputError
from lib.organs import BY_KEY, KEYS, LABEL_MAPS, ORGANS, label_ids, labelled
from lib.volumes import read_labels, read_scan

BTCV = (*range(1, 11), *range(21, 41))
ALL = {"FLARE22": range(1, 51), "BTCV": BTCV, "AMOS22 CT": range(1, 13), "AMOS22 MRI": range(501, 512)}
ON_BTCV = [name for name, (_, changes) in RUNS.items() if changes.get("train_on") == "BTCV"]
SMOKE = settings_of("adapter", "smoke")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def roots(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATA_ROOT, in which there is nothing yet."""
    monkeypatch.setenv("CACHE_ROOT", str(cache))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    return tmp_path


def refusal(call: Any, *arguments: Any) -> str:
    """The one sentence with which a call refuses."""
    with pytest.raises(InputError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and text.count(". ") == 0
    return text


def ids(cases: list[Case]) -> list[str]:
    return [case.id for case in cases]


# The data sets' own layouts


@pytest.mark.parametrize("dataset", OWN)
def test_a_data_set_is_found_in_its_layout_sorted_by_id(dataset: str, roots: Path) -> None:
    for name, numbers in ALL.items():
        touch_cases(roots, name, numbers[::-1])
    layout, found = LAYOUTS[dataset], find_cases(dataset, home_of(dataset))
    for case, number in zip(found, ALL[dataset], strict=True):
        image, labels = (roots / f"{stem.format(number)}.nii.gz" for stem in OWN[dataset])
        assert case == Case(layout.case.format(number), image, labels, dataset.split()[0], layout.modality)


def test_what_is_no_labelled_case_is_passed_over(roots: Path) -> None:
    """BTCV's labelled scans are 1 to 10 and 21 to 40, AMOS22's test scans have no labels, MRI is over 500."""
    touch_cases(roots, "BTCV", (1, 11, 20, 21, 41))
    touch(roots / "BTCV/RawData", "Testing/img/img0061.nii.gz", "Training/img/.img0002.nii.gz")
    touch(roots / "BTCV/RawData", "Training/img/img0003.nii.gz.part", "Training/img/._img0004.nii.gz")
    touch_cases(roots, "FLARE22", (1,))
    touch(roots / "FLARE22/images", "FLARE22_Tr_0009.nii.gz", "FLARE22_Tr_0001_0000.nii.json")
    touch(touch_cases(roots, "AMOS22 CT", (1, 500, 501)), "AMOS22/imagesTs/amos_0002.nii.gz")
    assert {name: ids(find_cases(name, roots / name.split()[0])) for name in ALL} == {
        "BTCV": ["BTCV_0001", "BTCV_0021"], "FLARE22": ["FLARE22_Tr_0001"],
        "AMOS22 CT": ["amos_0001", "amos_0500"], "AMOS22 MRI": ["amos_0501"],
    }  # fmt: skip


@pytest.mark.parametrize("dataset", OWN)
def test_what_is_missing_is_named(dataset: str, roots: Path) -> None:
    number = LAYOUTS[dataset].numbers[0][0]
    image, labels = (roots / f"{stem.format(number)}.nii.gz" for stem in OWN[dataset])
    home = roots / LAYOUTS[dataset].folder
    for _ in range(2):  # the folder is not there, then empty
        text = refusal(find_cases, dataset, home)
        assert f"{home} holds no case of {dataset}: put its images into {LAYOUTS[dataset].images[0]}" in text
        assert "DATA_ROOT" in text
        image.parent.mkdir(parents=True, exist_ok=True)
    touch(roots, str(image))
    text = refusal(find_cases, dataset, home)
    assert str(image) in text and f"{labels} does not exist" in text
    other = labels.with_suffix("")  # an image and its labels may differ in compression
    touch(roots, str(other))
    assert find_cases(dataset, home)[0].labels == other
    assert "FLARE22" in refusal(find_cases, "Synapse", home)


def test_a_folder_of_links_is_as_good(roots: Path) -> None:
    """Images on one disk, labels on another: each folder a link to its own place."""
    touch_cases(roots / "disk", "FLARE22", (1,))
    (roots / "FLARE22").mkdir()
    for part in ("images", "labels"):
        (roots / f"disk/FLARE22/{part}").rename(roots / f"disk of {part}")
        (roots / "FLARE22" / part).symlink_to(roots / f"disk of {part}")
    case = find_cases("FLARE22", roots / "FLARE22")[0]
    assert case.labels is not None and case.labels.samefile(roots / "disk of labels/FLARE22_Tr_0001.nii.gz")


UNPACKED = [
    ("FLARE22", "FLARE22Train"), ("FLARE22", "FLARE22/FLARE22Train"), ("FLARE22", "flare22"),
    ("FLARE22", "FLARE22Train/FLARE22Train"), ("AMOS22 CT", "amos22"), ("AMOS22 CT", "amos22/amos22"),
    ("AMOS22 MRI", "AMOS22/amos22"), ("AMOS22 MRI", "amos"), ("BTCV", "RawData"), ("BTCV", "Abdomen/RawData"),
    ("BTCV", "BTCV/Abdomen"), ("BTCV", "btcv"), ("BTCV", "BTCV/rawdata"),
]  # fmt: skip


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("dataset", "home"), UNPACKED)
def test_a_data_set_is_found_as_its_archive_unpacks_it(
    dataset: str, home: str, linked: bool, roots: Path
) -> None:
    """As a folder, or as a link to one."""
    number = LAYOUTS[dataset].numbers[0][0]
    touch_cases(roots / "disk", dataset, (number,))
    own = roots / "disk" / LAYOUTS[dataset].folder
    own = own / "RawData" if home.lower().endswith("rawdata") else own
    (roots / home).parent.mkdir(parents=True, exist_ok=True)
    (roots / home).symlink_to(own) if linked else own.rename(roots / home)
    touch(roots, "amos23/imagesTr/amos_0002.nii.gz", "FLARE22Testing/images/FLARE22_Tr_0002_0000.nii.gz")
    (case,) = find_cases(dataset, home_of(dataset))
    assert case.id == LAYOUTS[dataset].case.format(number)
    assert case.image.resolve().is_relative_to((roots / home).resolve())
    for name, layout in LAYOUTS.items():
        assert name == dataset or home_of(name) == roots / layout.folder, "none has a case"
    touch_cases(roots, dataset, (number,))
    assert home_of(dataset) == roots / LAYOUTS[dataset].folder, "the documented folder goes first"


def test_one_number_twice_is_refused_and_all_of_them_are_surveyed(roots: Path) -> None:
    touch_cases(roots, "AMOS22 CT", (1, 2, 4))
    twice = [f"{kind}Va/amos_{number:04d}.nii.gz" for kind in ("images", "labels") for number in (1, 2)]
    touch(roots / "AMOS22", *twice, "imagesTr/amos_0003.nii.gz")
    text = refusal(find_cases, "AMOS22 CT", roots / "AMOS22")
    assert "are both case amos_0001: keep one of them" in text
    cases, errors = data.survey("AMOS22 CT", roots / "AMOS22")
    assert ids(cases) == ["amos_0001", "amos_0002", "amos_0004"]
    for error, said in zip(errors, ("are both", "are both", "has no labels"), strict=True):
        assert said in str(error)


# nnU-Net's layout, and the names in its dataset.json


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_case_is_the_same_in_both_layouts(suffix: str, roots: Path, monkeypatch: Any) -> None:
    few, found = {"FLARE22": (1, 2), "BTCV": (3, 21), "AMOS22 CT": (4,), "AMOS22 MRI": (507,)}, []
    for root, layout in ((roots / "own", OWN), (roots / "nnunet", NNUNET)):
        monkeypatch.setenv("DATA_ROOT", str(write_trees(root, 24, 6, few, layout, suffix)))
        found.append([case for dataset in few for case in find_cases(dataset, home_of(dataset))])
    assert len(found[0]) == 6
    for one, two in zip(*found, strict=True):
        assert one == replace(two, image=one.image, labels=one.labels) and one.image != two.image
        (voxels, grid), (others, other_grid) = read_scan(one.image), read_scan(two.image)
        np.testing.assert_array_equal(voxels, others)
        theirs = read_labels(two.labels, two.label_map, other_grid)
        np.testing.assert_array_equal(read_labels(one.labels, one.label_map, grid), theirs)


@pytest.mark.parametrize(
    "home", ["FLARE22", "Dataset007_FLARE22", "nnUNet_raw/Dataset701_flare", "FLARE22/Dataset022_FLARE22"]
)
def test_nnunet_s_folder_may_stand_in_several_places(home: str, roots: Path) -> None:
    touch(roots / home, "imagesTr/FLARE22_Tr_0003_0000.nii.gz", "labelsTr/FLARE22_Tr_0003.nii.gz")
    touch(roots / home, "imagesTs/FLARE22_Tr_0004_0000.nii.gz")
    touch(roots, "Dataset017_BTCV/imagesTr/img0001_0000.nii.gz")
    dataset_json(roots / home, {"background": 0} | {organ.key: organ.label for organ in ORGANS})
    assert home_of("FLARE22") == roots / home
    assert home_of("AMOS22 CT") == roots / "AMOS22", "where it would have to be"
    (case,) = find_cases("FLARE22", roots / home)
    assert (case.id, case.label_map) == ("FLARE22_Tr_0003", "FLARE22")
    touch_cases(roots, "FLARE22", (1,))
    assert home_of("FLARE22") == roots / "FLARE22", "the own layout goes before nnU-Net's"
    assert ids(find_cases("FLARE22", roots / "FLARE22")) == ["FLARE22_Tr_0001"]


def test_amos22_s_own_names_give_amos22_s_ids(roots: Path) -> None:
    names = (
        "background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver",
        "stomach", "arota", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum",
        "bladder", "prostate/uterus",
    )  # fmt: skip
    path = str(dataset_json(roots, {str(i): name for i, name in enumerate(names)}))
    assert label_ids(path) == LABEL_MAPS["AMOS22"] and labelled(path) == KEYS


def test_another_order_of_ids_is_read_by_its_names(roots: Path) -> None:
    """Kidneys and liver as TotalSegmentator calls them, in an order of nobody's; some organs are enough."""
    write_trees(roots, 24, 6, {"FLARE22": (1,)}, NNUNET)
    names = {"background": 0, "kidney_right": 1, "Liver": 2, "inferior vena cava (IVC)": 3, "left adrenal": 4}
    path = str(dataset_json(roots / "Dataset022_FLARE22", names))
    case = find_cases("FLARE22", roots / "Dataset022_FLARE22")[0]
    assert case.label_map == path and case.labels is not None
    edit(case.labels, lambda ids: np.where(ids < 5, ids, 0))
    store = data.prepare([case], SMOKE, roots / "stores")[0]
    assert set(np.flatnonzero(store.presence.sum(0))) == {0, 1, 2, 6, 8}


@pytest.mark.parametrize("text", ["{", None])
def test_a_dataset_json_that_says_nothing_is_one_sentence(text: str | None, roots: Path) -> None:
    touch(roots, "imagesTr/FLARE22_Tr_0001_0000.nii.gz", "labelsTr/FLARE22_Tr_0001.nii.gz")
    if text:
        (roots / "dataset.json").write_text(text)
    said = f"{roots / 'dataset.json'} does not hold nnU-Net's labels"
    assert refusal(find_cases, "FLARE22", roots).startswith(said)


# Splits


def test_the_split_is_drawn_as_the_released_code_draws_it(roots: Path) -> None:
    cases = find_cases("FLARE22", touch_cases(roots, "FLARE22", range(1, 51)) / "FLARE22")
    parts = data.split(cases[::-1], (30, 10, 10))
    names = sorted(case.image.name for case in cases)
    random.Random(42).shuffle(names)
    found = {part: [case.image.name for case in those] for part, those in parts.items()}
    assert found == {"training": names[:30], "validation": names[30:40], "test": names[40:]}
    first = [case.id[-2:] for case in parts["training"][:5]]
    assert first == ["26", "24", "20", "12", "05"], "the same in every version of Python"
    told = refusal(data.split, cases[1:], (30, 10, 10))
    assert "holds 49 cases where 50 are split (30, 10, 10): complete the data set, for the papers'" in told


def test_the_full_profile_draws_each_part_once_from_either_layout(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, list[str]]] = []
    for root, layout in ((roots / "own", OWN), (roots / "nnunet", NNUNET)):
        monkeypatch.setenv("DATA_ROOT", str(root))
        for dataset, numbers in ALL.items():
            home = touch_cases(root, dataset, numbers, layout) / Path(layout[dataset][0]).parts[0]
            if layout is NNUNET:
                dataset_json(home, {organ.key: i for i, organ in enumerate(ORGANS, 1)})
        parts = ("training", "validation", *Settings().test_on)
        drawn.append({part: ids(cases_of(Settings(), part)) for part in parts})
    own, nnunet = drawn
    assert own == nnunet
    assert {part: len(those) for part, those in own.items()} == dict.fromkeys(own, 10) | {"training": 30}
    assert len({*own["training"], *own["validation"], *own["FLARE22"]}) == 50, "no test case trains"
    for site in ("BTCV", "AMOS22 CT", "AMOS22 MRI"):
        every = ids(cases_of(Settings(), site, "every case"))
        assert own[site] == sorted(own[site]) and {*own[site]} < {*every} and len(every) == len(ALL[site])


def test_six_of_btcv_s_thirty_scans_are_held_out_by_both_papers(roots: Path) -> None:
    touch_cases(roots, "BTCV", BTCV)
    held = cases_of(settings_of("baseline", "full"), "BTCV", "held out")
    assert len(held) == 6
    for settings in (settings_of(run, "full") for run in ON_BTCV):
        training = cases_of(settings, "training")
        assert cases_of(settings, "BTCV", "held out") == cases_of(settings, "validation") == held
        assert len({case.id for case in training + held}) == 30
        for count in (3, 12, 30):
            fewer = replace(settings, training_cases=count)
            assert cases_of(fewer, "training") == training[:count] and cases_of(fewer, "validation") == held
    few = settings_of("unet", "full", cases=(10, 4, 0))  # of a data set that is not complete
    assert cases_of(few, "BTCV", "held out") == cases_of(few, "validation") != held


def test_each_fold_tests_other_cases_and_both_papers_test_the_same(roots: Path) -> None:
    touch_cases(roots, "BTCV", BTCV[:14])
    tested = []
    for seed in range(5):
        ours, theirs = (settings_of(run, "btcv", seed) for run in ("adapter", "med-vlm small"))
        training, validation, test = (cases_of(ours, part) for part in ("training", "validation", "BTCV"))
        assert len({*training, *validation, *test}) == 14 and len(validation) == 2
        assert {*cases_of(theirs, "training")} == {*training, *validation}
        for settings in (ours, theirs):
            assert {*cases_of(settings, "BTCV", "held out")} == {*test}
        again = settings_of("adapter", "btcv", seed + 5)
        assert cases_of(again, "BTCV") == test and again.hash() != ours.hash()
        tested += test
    assert len(tested) == 14 == len({*tested})
    for seed in (3, 1):
        data.record_split(settings_of("adapter", "btcv", seed), [("BTCV", "")])
    listed = pd.read_csv(roots / "results/btcv/splits.csv")
    counts = {"training": 9, "validation": 2, "test": 3}
    assert {fold: own["part"].value_counts().to_dict() for fold, own in listed.groupby("fold")} == {
        1: counts, 3: counts}
    data.record_split(settings_of("unet", "btcv", 1), [("BTCV", "held out")])
    listed = pd.read_csv(roots / "results/btcv/splits.csv").fillna("").query("fold == 1")
    assert listed.value_counts(["variant", "part"]).to_dict() == {
        ("", "training"): 9, ("", "validation"): 2, ("", "test"): 3,  # and the other paper's beside them
        ("held out", "training"): 11, ("held out", "validation"): 3, ("held out", "test"): 3}
    drawn = data.split(find_cases("BTCV", home_of("BTCV")), (9, 2, 3))
    assert cases_of(settings_of("adapter", "btcv"), "BTCV") == drawn["test"], "as the released code draws"
    with pytest.raises(InputError, match="holds 14 cases for 15 folds"):
        cases_of(settings_of("adapter", "btcv", folds=15), "BTCV")


@pytest.mark.parametrize(
    ("settings", "part", "variant", "why"),
    [
        (Settings(), "BTCV", "", "holds no case of BTCV"),
        (Settings(), "Synapse", "every case", "Synapse is no data set"),
        (Settings(), "FLARE22", "60% degraded", "choose one of held out, every case, or none"),
        (Settings(), "FLARE22", "upside down", "has no variant"),
        (settings_of("baseline", "sample"), "sample CT", "slices x2", "has no variant"),
        (SMOKE, "FLARE22", "", "'FLARE22' is no site of phantoms: choose"),
        (SMOKE, "site A", "upside down", "has no variant"),
    ],
)
def test_what_no_profile_has_is_one_sentence(settings: Any, part: str, variant: str, why: str) -> None:
    assert why in refusal(cases_of, settings, part, variant)


def test_splits_csv_lists_every_part_with_its_hashes(roots: Path) -> None:
    for dataset, numbers in ALL.items():
        touch_cases(roots, dataset, numbers)
    tests = [*((dataset, "") for dataset in Settings().test_on), ("BTCV", "held out")]
    data.record_split(Settings(), tests)
    data.record_split(settings_of("unet", "full", training_cases=3), [("BTCV", "held out")])
    path = roots / "results/full/splits.csv"
    table = pd.read_csv(path, dtype=str).fillna("")
    assert list(table) == SPLIT_COLUMNS and not table.duplicated(SPLIT_COLUMNS[:6]).any()
    assert table.groupby(SPLIT_COLUMNS[1:5]).size().to_dict() == {
        ("BTCV", "BTCV", "held out", "training"): 24,  # where fewer train, they are the first of these
        ("BTCV", "BTCV", "held out", "validation"): 6,
        ("BTCV", "BTCV", "held out", "test"): 6,
        ("FLARE22", "AMOS22 CT", "", "test"): 10,
        ("FLARE22", "AMOS22 MRI", "", "test"): 10,
        ("FLARE22", "BTCV", "", "test"): 10,
        ("FLARE22", "BTCV", "held out", "test"): 6,
        ("FLARE22", "FLARE22", "", "test"): 10,
        ("FLARE22", "FLARE22", "", "training"): 30,
        ("FLARE22", "FLARE22", "", "validation"): 10,
    }
    assert set(table["image_sha256"]) == set(table["labels_sha256"]) == {hashlib.sha256(b"").hexdigest()}
    (roots / "FLARE22/images/FLARE22_Tr_0026_0000.nii.gz").write_bytes(b"another scan")
    data.record_split(Settings(), tests)
    changed = pd.read_csv(path, dtype=str).fillna("").set_index(["case", "part"])["image_sha256"]
    assert len(changed) == len(table), "rows take the place of their older ones"
    assert changed["FLARE22_Tr_0026", "training"] == hashlib.sha256(b"another scan").hexdigest()
    path.write_text("case,fold\n1,0\n")
    text = refusal(data.record_split, Settings(), tests)
    assert str(path) in text and "move it away" in text and path.read_text() == "case,fold\n1,0\n"


# Phantoms


def test_smoke_stores_are_prepared_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {part: stores_of(SMOKE, part) for part in ("training", "validation", "site A")}
    assert [len(stores) for stores in parts.values()] == [2, 1, 1]
    stores = [store for part in parts.values() for store in part]
    assert {store.id for store in stores} == {f"A_000{n}" for n in (1, 2, 3, 4)}
    for store in stores:
        depth = store.grid.shape[2]
        assert store.grid.shape[:2] == (43, 43) and store.grid.spacing_mm[:2] == pytest.approx((9.6, 9.6))
        assert 13.5 <= store.grid.spacing_mm[2] <= 16.5 and depth >= 10
        assert store.image.shape == (depth, 24, 24) and store.image.std() > 30
    monkeypatch.setattr("lib.data._write", lambda *_: pytest.fail("prepared again"))
    monkeypatch.setattr("lib.phantoms._write_case", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(stores_of(SMOKE, "site A")[0].image, parts["site A"][0].image)


def test_phantoms_of_other_sites_come_with_their_modality_and_ids() -> None:
    cases = data.phantom_cases("site M", [1, 2], SMOKE)
    assert ids(cases) == ["M_0001", "M_0002"]
    assert {(case.label_map, case.modality) for case in cases} == {("AMOS22", "MR")}
    (store,) = stores_of(SMOKE, "site M")  # as many as the test split has
    assert store.modality == "MR" and set(np.unique(store.labels)) > {0, 1, 3}


def test_variants_keep_the_test_patients_and_their_degraded_slices() -> None:
    settings = replace(SMOKE, cases=(2, 1, 3))
    plain, degraded = sorted(stores_of(settings, "site A"), key=lambda store: store.id), []
    for variant in ("0% degraded", "", "20% degraded", "60% degraded", "80% degraded"):  # as drawn: 10 %
        stores = sorted(stores_of(settings, "site A", variant), key=lambda store: store.id)
        assert [store.id for store in stores] == [store.id for store in plain]
        assert all(np.array_equal(one.labels, two.labels) for one, two in zip(stores, plain, strict=True))
        assert {store.folder for store in stores}.isdisjoint(s.folder for s in plain) or not variant
        degraded.append([data.degraded_slices(store.source) for store in stores])
    for fewer, more in pairwise(degraded):
        assert all(one <= other for one, other in zip(fewer, more, strict=True)), "nested"
        assert sum(map(len, fewer)) < sum(map(len, more))
    assert not any(degraded[0])


@pytest.mark.parametrize("factor", [0.5, 1.5, 2])
def test_other_distances_of_slices_leave_the_scan_s_extent(factor: float) -> None:
    variant = f"slices x{factor:g}"
    plain, spaced = stores_of(SMOKE, "site A")[0], stores_of(SMOKE, "site A", variant)[0]
    apart, wider = plain.grid.spacing_mm, spaced.grid.spacing_mm
    assert wider == pytest.approx(np.multiply(apart, (1, 1, factor))) and spaced.id == plain.id
    assert abs(len(spaced.image) * wider[2] - len(plain.image) * apart[2]) <= wider[2]


def test_training_patients_take_variants_in_turn_and_no_other_patient_does(roots: Path) -> None:
    mixed = ("slices x2", "", "slices x0.5")
    plain, spaced = replace(SMOKE, cases=(4, 1, 1)), replace(SMOKE, cases=(4, 1, 1), training_variants=mixed)
    ours, theirs = (
        {store.id: store.grid.spacing_mm[2] for store in stores_of(settings, "training")}
        for settings in (spaced, plain)
    )
    assert sorted(ours[name] / theirs[name] for name in theirs) == pytest.approx([0.5, 1, 2, 2])
    for part in ("validation", "site A", "site B"):
        assert cases_of(spaced, part) == cases_of(plain, part)
    fewer = replace(spaced, training_cases=1)
    assert stores_of(fewer, "training")[0].grid.spacing_mm == stores_of(spaced, "training")[0].grid.spacing_mm
    recorded = []
    for settings in (plain, spaced):
        data.record_split(settings, [])
        recorded.append((roots / "results/smoke/splits.csv").read_bytes())
    assert recorded[0] == recorded[1]
    assert "has no variant" in refusal(cases_of, replace(spaced, training_variants=("odd",)), "training")
    patients = Settings(train_on="site A", training_variants=("slices x2",))
    assert "has no variant" in refusal(cases_of, patients, "training")


def test_patients_without_three_organs() -> None:
    plain, without = stores_of(SMOKE, "site A")[0], stores_of(SMOKE, "site A", "organs absent")[0]
    gone = {BY_KEY[key].label for key in ("gallbladder", "spleen", "left kidney")}
    assert set(np.unique(plain.labels)) - set(np.unique(without.labels)) == gone and without.id == plain.id


def test_another_patient_s_slices_stand_beside_each_scan() -> None:
    settings = replace(SMOKE, neighbours="another patient")
    one, two = stores_of(settings, "training")
    assert all(store.donor is None for store in stores_of(SMOKE, "training"))
    assert np.array_equal(one.donor, two.image) and np.array_equal(two.donor, one.image)
    for store in stores_of(settings, "validation") + stores_of(settings, "site A"):
        assert np.array_equal(store.donor, two.image), "whose slices the model has seen"
    own = len(store.image)
    both = store.slices(np.array([own + 3, 0, own, own - 1]))
    assert np.array_equal(both, np.stack([store.donor[3], store.image[0], store.donor[0], store.image[-1]]))


# What is scored was not learned from


def test_profiles_test_on_scans_that_they_never_learned_from() -> None:
    tests = [*((site, "") for site in SMOKE.test_on), ("site A", "organs absent"), ("site B", "held out")]
    check_disjoint(SMOKE, tests)
    unet = settings_of("unet", "smoke")
    assert unet.keep == "last"
    check_disjoint(unet, [("site B", "held out")])
    text = refusal(check_disjoint, replace(unet, keep="best"), [("site B", "held out")])
    assert "site B" in text and "which the model learned from" in text


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_copy_of_a_scan_under_another_name_is_found(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, twin = stores_of(SMOKE, part)[0], tmp_path / "img0007.nii.gz"
    scan = nib.load(learned.source.image)
    nib.save(scan.as_reoriented(ornt_transform(io_orientation(scan.affine), axcodes2ornt("SAL"))), twin)
    real, copy = data.cases_of, [Case("BTCV_0007", twin)]  # another file, the same voxels
    monkeypatch.setattr(data, "cases_of", lambda s, name, *v: copy if name == "site B" else real(s, name, *v))
    text = refusal(check_disjoint, SMOKE, [("site B", "")])
    assert str(twin) in text and str(learned.source.image) in text and "site B" in text
    check_disjoint(SMOKE, [("site C", "")])


# The sample scans


def test_slabs_tile_the_sample_ct_where_it_lies_and_each_shows_organs() -> None:
    home, samples, settings = sample_scans(), data.sample_cases(), settings_of("baseline", "sample", size=24)
    counts = {"training": 4, "validation": 1, "sample CT": 3, "sample MRI": 1}
    assert {part: len(cases) for part, cases in samples.items()} == counts
    assert samples["sample MRI"][0].modality == "MR" and samples["sample MRI"][0].image.parent == home
    slabs = {case.id: case for cases in samples.values() for case in cases if case.modality == "CT"}
    assert sorted(slabs) == [f"ct_slab{number}" for number in range(8)]
    for kind in ("image", "labels"):
        whole, start = nib.load(home / f"ct_{kind}.nii.gz"), 0
        voxels = np.asarray(whole.dataobj)
        for name in sorted(slabs):
            slab = nib.load(getattr(slabs[name], kind))
            depth = slab.shape[2]
            assert depth >= 5, "a window fits into each"
            assert np.array_equal(np.asarray(slab.dataobj), voxels[:, :, start : start + depth])
            ends = np.array([[0, 0, 0], slab.shape])
            expected = apply_affine(whole.affine, np.add(ends, [0, 0, start]))
            assert apply_affine(slab.affine, ends) == pytest.approx(expected, abs=1e-3)
            start += depth
        assert start == whole.shape[2]
    for part in ("training", "validation", "sample CT"):
        assert np.any([store.presence.any(0) for store in stores_of(settings, part)], 0)[1:].sum() >= 4
        assert data.degraded_slices(samples[part][0]) == set(), "which phantoms alone have"
    check_disjoint(settings, [(dataset, "") for dataset in settings.test_on])
    text = "BTCV is no data set of this profile: choose sample CT or sample MRI"
    assert text in refusal(cases_of, settings, "BTCV")
