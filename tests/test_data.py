"""lib.data: which scans there are, who trains and who tests, and the prepared stores."""

import hashlib
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from trees import NNUNET, OWN, dataset_json, edit, touch, touch_cases, write_trees

from lib import data
from lib.config import RUNS, ClipSegSettings, Settings, SliceSettings, settings_of
from lib.data import (
    LAYOUTS,
    SAMPLES,
    SPLIT_COLUMNS,
    Case,
    cases_of,
    check_disjoint,
    degraded_slices,
    find_cases,
    home_of,
    phantom_cases,
    prepare,
    record_split,
    sample_cases,
    sample_folders,
    split,
    stores_of,
    survey,
)
from lib.files import InputError
from lib.organs import BY_KEY, KEYS, LABEL_MAPS, ORGANS, label_ids, labelled
from lib.volumes import read_labels, read_scan, to_slices

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
    for name, folder in (
        ("CACHE_ROOT", cache),
        ("DATA_ROOT", tmp_path),
        ("RESULTS_ROOT", tmp_path / "results"),
    ):
        monkeypatch.setenv(name, str(folder))
    return tmp_path


def sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and text.count(". ") == 0
    return text


def refusal(dataset: str, root: Path) -> str:
    """The one sentence with which find_cases refuses."""
    with pytest.raises(InputError) as error:
        find_cases(dataset, root)
    return sentence(error)


# The data sets' own layouts


def test_each_data_set_is_found_in_its_layout_sorted_by_id(roots: Path) -> None:
    for dataset, numbers in ALL.items():
        touch_cases(roots, dataset, numbers[::-1])
    cases = {dataset: find_cases(dataset, home_of(dataset)) for dataset in ALL}
    assert {dataset: len(found) for dataset, found in cases.items()} == {
        name: len(n) for name, n in ALL.items()
    }
    for dataset, found in cases.items():
        assert [case.id for case in found] == [LAYOUTS[dataset].case.format(n) for n in ALL[dataset]]
        for case, number in zip(found, ALL[dataset], strict=True):
            names = [roots / f"{stem.format(number)}.nii.gz" for stem in OWN[dataset]]
            assert [case.image, case.labels] == names and case.modality == LAYOUTS[dataset].modality
    assert {dataset: found[0].label_map for dataset, found in cases.items()} == {
        "FLARE22": "FLARE22", "BTCV": "BTCV", "AMOS22 CT": "AMOS22", "AMOS22 MRI": "AMOS22",
    }  # fmt: skip


def test_what_is_no_labelled_case_is_passed_over(roots: Path) -> None:
    """BTCV's labelled scans are 1 to 10 and 21 to 40, AMOS22's test scans have no labels."""
    touch_cases(roots, "BTCV", (1, 11, 20, 21, 41))
    touch(roots / "BTCV/RawData", "Testing/img/img0061.nii.gz", "Training/img/.img0002.nii.gz")
    touch(roots / "BTCV/RawData", "Training/img/img0003.nii.gz.part", "Training/img/._img0004.nii.gz")
    assert [case.id for case in find_cases("BTCV", roots / "BTCV")] == ["BTCV_0001", "BTCV_0021"]
    touch_cases(roots, "FLARE22", (1,))
    touch(roots / "FLARE22/images", "FLARE22_Tr_0009.nii.gz", "FLARE22_Tr_0001_0000.nii.json")
    assert [case.id for case in find_cases("FLARE22", roots / "FLARE22")] == ["FLARE22_Tr_0001"]
    touch(touch_cases(roots, "AMOS22 CT", (1, 500, 501)), "AMOS22/imagesTs/amos_0002.nii.gz")
    found = {
        name: [case.id for case in find_cases(name, roots / "AMOS22")] for name in ("AMOS22 CT", "AMOS22 MRI")
    }
    assert found == {"AMOS22 CT": ["amos_0001", "amos_0500"], "AMOS22 MRI": ["amos_0501"]}, "MRI is over 500"


@pytest.mark.parametrize("dataset", OWN)
def test_what_is_missing_is_named(dataset: str, roots: Path) -> None:
    number = LAYOUTS[dataset].numbers[0][0]
    image, labels = (f"{stem.format(number)}.nii.gz" for stem in OWN[dataset])
    home = roots / LAYOUTS[dataset].folder
    for _ in range(2):  # the folder is not there, then empty
        text = refusal(dataset, home)
        assert f"{home} holds no case of {dataset}" in text
        assert f"put its images into {LAYOUTS[dataset].images[0]} there" in text
        assert "DATA_ROOT" in text
        (roots / image).parent.mkdir(parents=True, exist_ok=True)
    touch(roots, image)
    text = refusal(dataset, home)
    assert str(roots / image) in text and f"{roots / labels} does not exist" in text
    touch(roots, labels.removesuffix(".gz"))  # an image and its labels may differ in compression
    assert find_cases(dataset, home)[0].labels == roots / labels.removesuffix(".gz")
    assert "FLARE22" in refusal("Synapse", home)


def test_a_folder_of_links_is_as_good(roots: Path) -> None:
    """Images on one disk, labels on another: each folder a link to its own place."""
    touch_cases(roots / "disk", "FLARE22", (1,))
    for part in ("images", "labels"):
        (roots / f"disk/FLARE22/{part}").rename(roots / f"disk of {part}")
        (roots / "FLARE22").mkdir(exist_ok=True)
        (roots / "FLARE22" / part).symlink_to(roots / f"disk of {part}")
    case = find_cases("FLARE22", roots / "FLARE22")[0]
    assert case.labels is not None and case.labels.samefile(roots / "disk of labels/FLARE22_Tr_0001.nii.gz")


def test_one_number_twice_is_refused_and_all_of_them_are_surveyed(roots: Path) -> None:
    touch_cases(roots, "AMOS22 CT", (1, 2, 4))
    touch(
        roots / "AMOS22", *(f"{kind}Va/amos_{n:04d}.nii.gz" for kind in ("images", "labels") for n in (1, 2))
    )
    touch(roots / "AMOS22", "imagesTr/amos_0003.nii.gz")
    assert "are both case amos_0001: keep one of them" in refusal("AMOS22 CT", roots / "AMOS22")
    cases, errors = survey("AMOS22 CT", roots / "AMOS22")
    assert [case.id for case in cases] == ["amos_0001", "amos_0002", "amos_0004"]
    said = [next(word for word in ("both", "no labels") if word in str(error)) for error in errors]
    assert said == ["both", "both", "no labels"]


# nnU-Net's layout, and the names in its dataset.json


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_case_is_the_same_in_both_layouts(
    suffix: str, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, found = {"FLARE22": (1, 2), "BTCV": (3, 21), "AMOS22 CT": (4,), "AMOS22 MRI": (507,)}, []
    for root, layout in ((roots / "own", OWN), (roots / "nnunet", NNUNET)):
        monkeypatch.setenv("DATA_ROOT", str(write_trees(root, 24, 6, few, layout, suffix)))
        found.append([case for dataset in few for case in find_cases(dataset, home_of(dataset))])
    assert len(found[0]) == 6
    for one, two in zip(*found, strict=True):
        assert one.image != two.image
        assert (one.id, one.label_map, one.modality) == (
            two.id,
            two.label_map,
            two.modality,
        )
        (voxels, grid), (others, other_grid) = read_scan(one.image), read_scan(two.image)
        np.testing.assert_array_equal(voxels, others)
        assert one.labels is not None and two.labels is not None
        theirs = read_labels(two.labels, two.label_map, other_grid)
        np.testing.assert_array_equal(read_labels(one.labels, one.label_map, grid), theirs)


@pytest.mark.parametrize(
    "home", ["FLARE22", "Dataset007_FLARE22", "nnUNet_raw/Dataset701_flare", "FLARE22/Dataset022_FLARE22"]
)  # fmt: skip
def test_nnunet_s_folder_may_stand_in_several_places(home: str, roots: Path) -> None:
    touch(
        roots / home,
        *(f"{kind}Tr/FLARE22_Tr_0003{end}.nii.gz" for kind, end in (("images", "_0000"), ("labels", ""))),
    )
    touch(
        roots, f"{home}/imagesTs/FLARE22_Tr_0004_0000.nii.gz", "Dataset017_BTCV/imagesTr/img0001_0000.nii.gz"
    )
    dataset_json(roots / home, {"background": 0} | {organ.key: organ.label for organ in ORGANS})
    assert home_of("FLARE22") == roots / home
    assert home_of("AMOS22 CT") == roots / "AMOS22", "where it would have to be"
    assert [(case.id, case.label_map) for case in find_cases("FLARE22", roots / home)] == [
        ("FLARE22_Tr_0003", "FLARE22")
    ]
    touch_cases(roots, "FLARE22", (1,))
    assert home_of("FLARE22") == roots / "FLARE22", "the own layout goes before nnU-Net's"
    assert [case.id for case in find_cases("FLARE22", roots / "FLARE22")] == ["FLARE22_Tr_0001"]


def test_amos22_s_own_file_gives_amos22_s_ids_in_both_versions(roots: Path) -> None:
    names = (
        "background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver",
        "stomach", "arota", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum",
        "bladder", "prostate/uterus",
    )  # fmt: skip
    for labels in ({str(i): name for i, name in enumerate(names)}, {name: i for i, name in enumerate(names)}):
        path = str(dataset_json(roots, labels))
        assert label_ids(path) == LABEL_MAPS["AMOS22"] and labelled(path) == KEYS


def test_another_order_of_ids_is_read_by_its_names(roots: Path) -> None:
    """Kidneys and liver as TotalSegmentator calls them, in an order of nobody's; some organs are enough."""
    write_trees(roots, 24, 6, {"FLARE22": (1,)}, NNUNET)
    names = {"background": 0, "kidney_right": 1, "Liver": 2, "inferior vena cava (IVC)": 3, "left adrenal": 4}
    path = str(dataset_json(roots / "Dataset022_FLARE22", names))
    case = find_cases("FLARE22", roots / "Dataset022_FLARE22")[0]
    assert case.label_map == path and label_ids(path) == {0: 0, 1: 2, 2: 1, 3: 6, 4: 8}
    assert labelled(path) == ("liver", "right kidney", "inferior vena cava", "left adrenal gland")
    assert case.labels is not None
    edit(case.labels, lambda ids: np.where(ids < 5, ids, 0))
    store = prepare([case], SMOKE, roots / "stores")[0]
    assert set(np.flatnonzero(store.presence.sum(0))) == {0, 1, 2, 6, 8}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            '{"labels": {"liver": 1, "heart": 2, "lung": 3}}',
            "known neither as organs nor as others (heart, lung)",
        ),
        ('{"labels": {"background": 0, "kidneys": [1, 2]}}', "one id for each name"),
        ('{"labels": ["liver"]}', "one id for each name"),
        ('{"label": {}}', "does not hold nnU-Net's labels"),
        ("{", "does not hold nnU-Net's labels"),
        (None, "does not hold nnU-Net's labels"),
    ],
)
def test_a_dataset_json_that_says_nothing_is_one_sentence(text: str | None, why: str, roots: Path) -> None:
    touch(roots, "imagesTr/FLARE22_Tr_0001_0000.nii.gz", "labelsTr/FLARE22_Tr_0001.nii.gz")
    if text is not None:
        (roots / "dataset.json").write_text(text)
    said = refusal("FLARE22", roots)
    assert why in said and str(roots / "dataset.json") in said


# Splits


def test_the_split_is_drawn_as_the_released_code_draws_it(roots: Path) -> None:
    cases = find_cases("FLARE22", touch_cases(roots, "FLARE22", range(1, 51)) / "FLARE22")
    parts = split(cases[::-1], (30, 10, 10))
    names = sorted(case.image.name for case in cases)
    random.Random(42).shuffle(names)
    found = {part: [case.image.name for case in those] for part, those in parts.items()}
    assert found == {"training": names[:30], "validation": names[30:40], "test": names[40:]}
    first = [case.id[-2:] for case in parts["training"][:5]]
    assert first == ["26", "24", "20", "12", "05"], "the same in every version of Python"
    with pytest.raises(InputError, match=r"holds 49 cases where 50 are split \(30, 10, 10\)"):
        split(cases[1:], (30, 10, 10))


def test_the_full_profile_draws_each_part_once_from_either_layout(
    roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    for root, layout in ((roots / "own", OWN), (roots / "nnunet", NNUNET)):
        monkeypatch.setenv("DATA_ROOT", str(root))
        for dataset, numbers in ALL.items():
            home = touch_cases(root, dataset, numbers, layout) / Path(layout[dataset][0]).parts[0]
            if layout is NNUNET:
                dataset_json(home, {organ.key: i for i, organ in enumerate(ORGANS, 1)})
        parts = ("training", "validation", *Settings().test_on)
        drawn.append({part: [case.id for case in cases_of(Settings(), part)] for part in parts})
    own, nnunet = drawn
    assert own == nnunet
    assert {part: len(ids) for part, ids in own.items()} == dict.fromkeys(own, 10) | {"training": 30}
    assert len({*own["training"], *own["validation"], *own["FLARE22"]}) == 50, "no test case trains"
    assert all(own[site] == sorted(own[site]) for site in ("BTCV", "AMOS22 CT", "AMOS22 MRI"))
    every = {
        site: [case.id for case in cases_of(Settings(), site, "every case")] for site in own if site in ALL
    }
    assert {site: len(ids) for site, ids in every.items()} == {site: len(ALL[site]) for site in ALL}
    assert all({*own[site]} < {*every[site]} for site in ("BTCV", "AMOS22 CT", "AMOS22 MRI"))


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


def test_what_no_profile_has_is_one_sentence(roots: Path) -> None:
    touch_cases(roots, "FLARE22", range(1, 51))
    for settings, part, variant, why in (
        (Settings(), "BTCV", "", "holds no case of BTCV"),
        (Settings(), "Synapse", "every case", "Synapse is no data set"),
        (Settings(), "FLARE22", "60% degraded", "choose one of held out, every case, or none"),
        (Settings(), "FLARE22", "upside down", "has no variant"),
        (settings_of("baseline", "sample"), "sample CT", "slices x2", "has no variant"),
        (SMOKE, "FLARE22", "", "'FLARE22' is no site of phantoms: choose"),
        (SMOKE, "site A", "upside down", "has no variant"),
    ):
        with pytest.raises(InputError, match=why) as error:
            cases_of(settings, part, variant)
        sentence(error)


def test_splits_csv_lists_every_part_with_its_hashes(roots: Path) -> None:
    for dataset, numbers in ALL.items():
        touch_cases(roots, dataset, numbers)
    tests = [*((dataset, "") for dataset in Settings().test_on), ("BTCV", "held out")]
    record_split(Settings(), tests)
    record_split(settings_of("unet", "full", training_cases=3), [("BTCV", "held out")])
    path = roots / "results/full/splits.csv"
    table = pd.read_csv(path, dtype=str).fillna("")
    assert list(table) == SPLIT_COLUMNS and not table.duplicated(SPLIT_COLUMNS[:5]).any()
    assert table.groupby(SPLIT_COLUMNS[:4]).size().to_dict() == {
        ("BTCV", "BTCV", "", "training"): 24,  # where fewer train, they are the first of these
        ("BTCV", "BTCV", "", "validation"): 6,
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
    record_split(Settings(), tests)
    changed = pd.read_csv(path, dtype=str).fillna("").set_index(["case", "part"])["image_sha256"]
    assert len(changed) == len(table), "rows take the place of their older ones"
    assert changed["FLARE22_Tr_0026", "training"] == hashlib.sha256(b"another scan").hexdigest()
    path.write_text("case,fold\n1,0\n")
    with pytest.raises(InputError, match="move it away") as error:
        record_split(Settings(), tests)
    assert str(path) in sentence(error) and path.read_text() == "case,fold\n1,0\n"


# Phantoms


def test_smoke_stores_are_prepared_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {part: stores_of(SMOKE, part) for part in ("training", "validation", "site A")}
    assert {part: len(stores) for part, stores in parts.items()} == {
        "training": 2,
        "validation": 1,
        "site A": 1,
    }
    stores = [store for part in parts.values() for store in part]
    assert {store.id for store in stores} == {f"A_000{n}" for n in (1, 2, 3, 4)}
    for store in stores:
        depth = store.grid.shape[2]
        assert store.grid.shape[:2] == (43, 43) and store.grid.spacing_mm[:2] == pytest.approx((9.6, 9.6))
        assert 13.5 <= store.grid.spacing_mm[2] <= 16.5 and depth >= 10
        assert store.image.shape == store.labels.shape == (depth, 24, 24)
        assert store.image.dtype == store.labels.dtype == np.uint8 and store.image.std() > 30
        truth = read_labels(store.source.labels, store.label_map, store.grid)
        assert np.array_equal(store.labels, to_slices(truth, 24, labels=True))
        assert store.presence.tolist() == [
            np.bincount(z.ravel(), minlength=14).tolist() for z in store.labels
        ]
    monkeypatch.setattr("lib.data._write", lambda *_: pytest.fail("prepared again"))
    monkeypatch.setattr("lib.phantoms._write_case", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(stores_of(SMOKE, "site A")[0].image, parts["site A"][0].image)


def test_phantoms_of_other_sites_come_with_their_modality_and_ids() -> None:
    cases = phantom_cases("site M", [1, 2], SMOKE)
    assert [(case.id, case.label_map, case.modality) for case in cases] == [
        (f"M_000{n}", "AMOS22", "MR") for n in (1, 2)
    ]
    store = stores_of(SMOKE, "site M")[0]
    assert store.modality == "MR" and set(np.unique(store.labels)) > {0, 1, 3}
    assert len(cases_of(SMOKE, "site M")) == 1, "as many as the test split has"


def test_variants_keep_the_test_patients_and_their_degraded_slices() -> None:
    settings = replace(SMOKE, cases=(2, 1, 3))
    plain = sorted(stores_of(settings, "site A"), key=lambda store: store.id)
    degraded = {"10%": [degraded_slices(store.source) for store in plain]}
    for share in ("0%", "20%", "60%", "80%"):
        stores = stores_of(settings, "site A", f"{share} degraded")
        assert [store.id for store in stores] == [store.id for store in plain]
        assert all(np.array_equal(one.labels, two.labels) for one, two in zip(stores, plain, strict=True)), (
            "one anatomy"
        )
        assert {store.folder for store in stores}.isdisjoint(store.folder for store in plain)
        degraded[share] = [degraded_slices(store.source) for store in stores]
    for fewer, more in pairwise(degraded[share] for share in sorted(degraded)):
        assert all(one <= other for one, other in zip(fewer, more, strict=True)), "nested"
        assert sum(map(len, fewer)) < sum(map(len, more))
    assert not any(degraded["0%"])


@pytest.mark.parametrize("factor", [0.5, 1.5, 2])
def test_other_distances_of_slices_leave_the_scan_s_extent(factor: float) -> None:
    variant = f"slices x{factor:g}"
    plain, spaced = stores_of(SMOKE, "site A")[0], stores_of(SMOKE, "site A", variant)[0]
    assert spaced.spacing_mm == pytest.approx(factor * plain.spacing_mm) and spaced.id == plain.id
    height = len(plain.image) * plain.spacing_mm
    assert abs(len(spaced.image) * spaced.spacing_mm - height) <= spaced.spacing_mm
    assert spaced.grid.spacing_mm[:2] == plain.grid.spacing_mm[:2]


def test_patients_without_three_organs() -> None:
    plain, without = stores_of(SMOKE, "site A")[0], stores_of(SMOKE, "site A", "organs absent")[0]
    gone = sorted(BY_KEY[key].label for key in ("gallbladder", "spleen", "left kidney"))
    assert not without.presence[:, gone].any() and plain.presence[:, gone].any(0).all()
    assert set(np.unique(plain.labels)) - set(np.unique(without.labels)) == {*gone} and without.id == plain.id


def test_another_patient_s_slices_stand_beside_each_scan() -> None:
    settings = replace(SMOKE, neighbours="another patient")
    training, others = (
        stores_of(settings, "training"),
        stores_of(settings, "validation") + stores_of(settings, "site A"),
    )
    assert all(store.donor is None for store in stores_of(SMOKE, "training"))
    assert np.array_equal(training[0].donor, training[1].image)
    assert np.array_equal(training[1].donor, training[0].image)
    for store in others:
        assert any(np.array_equal(store.donor, other.image) for other in training), (
            "whose slices the model has seen"
        )
    store, own = others[0], len(others[0].image)
    both = store.slices(np.array([own + 3, 0, own, own - 1]))
    assert np.array_equal(both, np.stack([store.donor[3], store.image[0], store.donor[0], store.image[-1]]))


# What is scored was not learned from


def test_profiles_test_on_scans_that_they_never_learned_from() -> None:
    tests = [*((site, "") for site in SMOKE.test_on), ("site A", "organs absent"), ("site B", "held out")]
    check_disjoint(SMOKE, tests)
    unet = settings_of("unet", "smoke")
    assert unet.keep == "last"
    check_disjoint(unet, [("site B", "held out")])
    with pytest.raises(InputError, match="which the model learned from") as error:
        check_disjoint(replace(unet, keep="best"), [("site B", "held out")])
    assert "site B" in sentence(error)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_copy_of_a_scan_under_another_name_is_found(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, twin = stores_of(SMOKE, part)[0], tmp_path / "img0007.nii.gz"
    scan = nib.load(learned.source.image)
    nib.save(scan.as_reoriented(ornt_transform(io_orientation(scan.affine), axcodes2ornt("SAL"))), twin)
    real, copied = data.cases_of, [Case("BTCV_0007", twin)]  # another file, the same voxels
    monkeypatch.setattr(
        data, "cases_of", lambda s, name, *rest: copied if name == "site B" else real(s, name, *rest)
    )
    with pytest.raises(InputError) as error:
        check_disjoint(SMOKE, [("site B", "")])
    text = sentence(error)
    assert str(twin) in text and str(learned.source.image) in text and "site B" in text
    check_disjoint(SMOKE, [("site C", "")])


# The sample scans


@pytest.fixture
def samples() -> dict[str, list[Case]]:
    if not any(all((folder / name).is_file() for name in SAMPLES) for folder in sample_folders()):
        pytest.skip("the sample scans are not here: `make samples`")
    return sample_cases()


def test_slabs_tile_the_sample_ct_where_it_lies_and_each_shows_organs(samples: dict[str, list[Case]]) -> None:
    assert {part: len(cases) for part, cases in samples.items()} == {
        "training": 4, "validation": 1, "sample CT": 3, "sample MRI": 1,
    }  # fmt: skip
    ct = sorted(
        (case for part, cases in samples.items() if part != "sample MRI" for case in cases),
        key=lambda c: c.id,
    )
    assert len({case.id for case in ct}) == 8 and samples["sample MRI"][0].modality == "MR"
    home = samples["sample MRI"][0].image.parent
    for kind in ("image", "labels"):
        whole, start = nib.load(home / f"ct_{kind}.nii.gz"), 0
        voxels = np.asarray(whole.dataobj)
        for case in ct:
            slab = nib.load(case.image if kind == "image" else case.labels)
            depth = slab.shape[2]
            assert depth >= 5, "a window fits into each"
            assert np.array_equal(np.asarray(slab.dataobj), voxels[:, :, start : start + depth])
            corner = np.array([*whole.shape[:2], depth, 1])
            assert slab.affine @ corner == pytest.approx(
                whole.affine @ np.add(corner, [0, 0, start, 0]), abs=1e-3
            )
            start += depth
        assert start == whole.shape[2]
    settings = settings_of("baseline", "sample", size=24)
    for part in ("training", "validation", "sample CT"):
        assert (
            np.concatenate([store.presence for store in stores_of(settings, part)])[:, 1:].any(0).sum() >= 4
        )
    check_disjoint(settings, [(dataset, "") for dataset in settings.test_on])
    with pytest.raises(
        InputError, match="BTCV is no data set of this profile: choose sample CT or sample MRI"
    ):
        cases_of(settings, "BTCV")


# Stores: slices at another distance, boxes, and what marks a store as whole


def body_in_air(
    folder: Path, affine: np.ndarray | None = None, air: bool = False, labelled: bool = True
) -> Case:
    """20 x 18 x 12 voxels of 2 x 2 x 5 mm with a body in a part of them, or with air alone; FLARE22's ids."""
    hu, labels = np.full((20, 18, 12), -1000, np.int16), np.zeros((20, 18, 12), np.uint8)
    if not air:
        hu[3:15, 4:14, 2:10] = 60
        labels[5:9, 6:10, 3:6], labels[9:13, 6:10, 6:9] = 1, 13
    affine = np.diag([-2.0, -2.0, 5.0, 1.0]) if affine is None else affine
    for name, array in (("a", hu), ("a_labels", labels)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return Case("a", folder / "a.nii.gz", folder / "a_labels.nii.gz" if labelled else None)


WHOLE, BODY = [(0, 20), (0, 18), (0, 12)], [(3, 15), (4, 14), (2, 10)]


@pytest.mark.parametrize(
    ("slice_mm", "crop", "slices"),
    [
        (0.0, False, 12),
        (2.5, False, 24),
        (4.0, False, 15),
        (1000.0, False, 1),
        (0.0, True, 8),
        (2.0, True, 20),
    ],
)
def test_slices_fill_the_box_at_the_distance_asked_for(
    slice_mm: float, crop: bool, slices: int, tmp_path: Path
) -> None:
    case, settings = body_in_air(tmp_path), SliceSettings(size=24, slice_mm=slice_mm, crop=crop)
    prepare([case], ClipSegSettings(size=24), tmp_path / "stores")  # other settings: it is made again
    store = prepare([case], settings, tmp_path / "stores")[0]
    box = tuple(slice(*edges) for edges in (BODY if crop else WHOLE))
    assert store.box == (box if crop or slice_mm else None)
    assert store.grid.shape == (20, 18, 12), "the scan's own"
    assert store.image.shape == store.labels.shape == (slices, 24, 24)
    assert len(store.presence) == slices and store.presence.sum() == store.labels.size
    assert {*np.unique(store.labels)} <= {0, 1, 13}, "no label between two others"
    assert not crop or (store.image == round((60 + 125) / 400 * 255)).all(), "the body and nothing else"
    again = prepare([case], settings, tmp_path / "stores")[0]
    assert again.box == store.box and np.array_equal(again.image, store.image)


def test_another_distance_keeps_every_organ_at_its_height(tmp_path: Path) -> None:
    case = body_in_air(tmp_path)
    plain, fine = (
        prepare([case], SliceSettings(size=24, slice_mm=mm), tmp_path / str(mm))[0] for mm in (0.0, 1.25)
    )
    assert np.array_equal(fine.labels, plain.labels.repeat(4, 0)), "nearest: each slice four times"
    edge = fine.image[4:12, 12, 12].astype(int)  # from air to body between slices 1 and 2
    assert (np.diff(edge) >= 0).all() and len(np.unique(edge)) > 3, "linear"
    assert edge[0] == 0 and edge[-1] == plain.image[2, 12, 12]


def test_a_scan_of_air_alone_is_not_cropped_and_a_box_needs_no_labels(tmp_path: Path) -> None:
    settings = SliceSettings(size=24, slice_mm=2.0, crop=True)
    store = prepare([body_in_air(tmp_path, air=True)], settings, tmp_path / "stores")[0]
    assert store.box == tuple(slice(*edges) for edges in WHOLE)
    assert not store.image.any()
    assert len(store.image) == 30
    turned = np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])
    store = prepare([body_in_air(tmp_path, turned, labelled=False)], settings, tmp_path / "stores")[0]
    assert store.labels is None and store.presence is None and store.grid.canonical_shape == (12, 20, 18)
    assert store.box == (slice(2, 10), slice(3, 15), slice(4, 14))
    assert len(store.image) == 20, "10 slices of 4 mm"


def test_a_store_is_made_again_where_it_is_not_whole_or_its_scan_is_another(tmp_path: Path) -> None:
    case, settings = body_in_air(tmp_path), ClipSegSettings(size=24)
    store = prepare([case], settings, tmp_path / "stores")[0]
    expected, record = store.image.copy(), store.folder / "case.json"
    for harm in (
        lambda: record.unlink(),
        lambda: record.write_text("{"),
        lambda: (store.folder / "image.npy").write_bytes((store.folder / "image.npy").read_bytes()[:-100]),
        lambda: record.write_text(json.dumps(json.loads(record.read_text()) | {"version": -1})),
        lambda: touch(store.folder, ".image.npy.part.npy"),
    ):
        harm()
        assert np.array_equal(prepare([case], settings, tmp_path / "stores")[0].image, expected)
    edit(case.image, lambda hu: hu + 20)
    assert prepare([case], settings, tmp_path / "stores")[0].image.max() > expected.max()
    with pytest.raises(InputError, match="share an id: give every scan its own"):
        prepare([case, case], settings, tmp_path / "stores")


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    case = body_in_air(tmp_path)
    (tmp_path / "stores").touch()
    with pytest.raises(InputError, match="cannot be written") as error:
        prepare([case], ClipSegSettings(size=24), tmp_path / "stores")
    sentence(error)
