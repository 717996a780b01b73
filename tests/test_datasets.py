"""lib.datasets: which scans there are, who trains and who tests, and the prepared stores of the smoke profile."""

import random
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import stores_of, tiny_settings

from lib.datasets import (
    Case,
    cases_of,
    check_disjoint,
    degraded_slices,
    find_cases,
    phantom_cases,
    prepare_all,
    sample_cases,
    site_of,
    split,
)
from lib.datasets import cases as cases_module
from lib.organs import BY_KEY
from lib.paths import InputError, samples_folder
from lib.profiles import ABSENT, Settings, settings_of
from lib.volumes import read_labels, to_slices


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def roots(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(cache))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))


def flare22(root: Path, numbers: range, suffix: str = ".nii.gz") -> Path:
    """Empty files with FLARE22's names."""
    for folder, ending in (("images", "_0000"), ("labels", "")):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            (root / folder / f"FLARE22_Tr_{number:04d}{ending}{suffix}").touch()
    return root


def refusal(dataset: str, root: Path) -> str:
    """The one sentence with which find_cases refuses."""
    with pytest.raises(InputError) as caught:
        find_cases(dataset, root)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and text.count(". ") == 0
    return text


def test_cases_are_found_in_flare22_s_layout_sorted_by_id(tmp_path: Path) -> None:
    root = flare22(flare22(tmp_path, range(3, 5)), range(1, 3), ".nii")
    (root / "images" / "FLARE22_Tr_0009.nii.gz").touch()  # no image: _0000 is missing
    (root / "images" / "FLARE22_Tr_0001_0000.nii.json").touch()
    cases = find_cases("FLARE22", root)
    assert [case.id for case in cases] == [f"FLARE22_Tr_000{n}" for n in (1, 2, 3, 4)]
    assert cases[0] == Case(
        "FLARE22_Tr_0001", root / "images/FLARE22_Tr_0001_0000.nii", root / "labels/FLARE22_Tr_0001.nii", "FLARE22", "CT"
    )
    assert cases[3].labels == root / "labels/FLARE22_Tr_0004.nii.gz"


def test_an_image_and_its_labels_may_differ_in_compression(tmp_path: Path) -> None:
    root = flare22(tmp_path, range(1, 2))
    (root / "labels/FLARE22_Tr_0001.nii.gz").rename(root / "labels/FLARE22_Tr_0001.nii")
    assert find_cases("FLARE22", root)[0].labels == root / "labels/FLARE22_Tr_0001.nii"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = flare22(tmp_path / "whole", range(1, 4))
    (root / "labels/FLARE22_Tr_0002.nii.gz").unlink()
    text = refusal("FLARE22", root)
    assert str(root / "images/FLARE22_Tr_0002_0000.nii.gz") in text and str(root / "labels/FLARE22_Tr_0002.nii.gz") in text
    (tmp_path / "empty" / "images").mkdir(parents=True)
    for folder in ("empty", "nowhere"):
        text = refusal("FLARE22", tmp_path / folder)
        assert str(tmp_path / folder) in text and "FLARE22_Tr_0001_0000.nii.gz" in text and "DATA_ROOT" in text
    assert "'" not in refusal("Synapse", root) and "FLARE22" in refusal("Synapse", root)


def test_the_split_is_drawn_as_the_released_code_draws_it(tmp_path: Path) -> None:
    cases = find_cases("FLARE22", flare22(tmp_path, range(1, 51)))
    parts = split(cases[::-1], (30, 10, 10))
    names = sorted(case.image.name for case in cases)
    random.Random(42).shuffle(names)
    found = {part: [case.image.name for case in those] for part, those in parts.items()}
    assert found == {"training": names[:30], "validation": names[30:40], "test": names[40:]}
    assert len({name for those in found.values() for name in those}) == 50
    assert [case.id[-2:] for case in parts["training"][:5]] == ["26", "24", "20", "12", "05"], "the same in every version of Python"


def touched(root: Path, *names: str) -> Path:
    """Empty files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_cases_are_found_in_btcv_s_layout(tmp_path: Path) -> None:
    """Its 30 labelled scans are 1 to 10 and 21 to 40; labels have the image's number and a folder beside it."""
    root = touched(tmp_path, "RawData/Testing/img/img0061.nii.gz")
    for n in (1, 10, 11, 20, 21, 40, 41):
        touched(root, f"RawData/Training/img/img{n:04d}.nii.gz", f"RawData/Training/label/label{n:04d}.nii.gz")
    touched(root, "RawData/Training/img/.img0002.nii.gz", "RawData/Training/img/img0003.nii.gz.part")
    cases = find_cases("BTCV", root)
    assert [case.id for case in cases] == ["BTCV_0001", "BTCV_0010", "BTCV_0021", "BTCV_0040"]
    training = root / "RawData/Training"
    assert cases[0] == Case("BTCV_0001", training / "img/img0001.nii.gz", training / "label/label0001.nii.gz", "BTCV", "CT")


def amos22(root: Path, numbers: dict[str, tuple[int, ...]]) -> Path:
    """AMOS22's folders, imagesTr and so on, with these numbers; test images have no labels."""
    for part, those in numbers.items():
        touched(root, *(f"images{part}/amos_{n:04d}.nii.gz" for n in those))
        if part != "Ts":
            touched(root, *(f"labels{part}/amos_{n:04d}.nii.gz" for n in those))
    return root


def test_amos22_s_two_modalities_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    root = amos22(tmp_path, {"Tr": (1, 500, 501, 507), "Va": (8, 580), "Ts": (2, 600)})
    ct, mri = find_cases("AMOS22 CT", root), find_cases("AMOS22 MRI", root)
    assert [case.id for case in ct] == ["amos_0001", "amos_0008", "amos_0500"] and {case.modality for case in ct} == {"CT"}
    assert [case.id for case in mri] == ["amos_0501", "amos_0507", "amos_0580"] and {case.modality for case in mri} == {"MR"}
    assert ct[1] == Case("amos_0008", root / "imagesVa/amos_0008.nii.gz", root / "labelsVa/amos_0008.nii.gz", "AMOS22", "CT")
    assert mri[1].labels == root / "labelsTr/amos_0507.nii.gz" and {case.label_map for case in ct + mri} == {"AMOS22"}


@pytest.mark.parametrize(
    ("dataset", "image", "labels"),
    [
        ("BTCV", "RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz"),
        ("AMOS22 CT", "imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz"),
        ("AMOS22 MRI", "imagesVa/amos_0507.nii.gz", "labelsVa/amos_0507.nii.gz"),
    ],
)
def test_what_another_data_set_lacks_is_named(dataset: str, image: str, labels: str, tmp_path: Path) -> None:
    for folder in ("empty", "nowhere"):
        (tmp_path / "empty" / Path(image).parent).mkdir(parents=True, exist_ok=True)
        text = refusal(dataset, tmp_path / folder)
        assert f"no case of {dataset}" in text and str(tmp_path / folder) in text and "DATA_ROOT" in text and ".nii.gz" in text
    root = touched(tmp_path / "part", image)
    text = refusal(dataset, root)
    assert str(root / image) in text and f"{root / labels} does not exist" in text
    assert find_cases(dataset, touched(root, labels))[0].labels == root / labels
    (root / labels).rename(root / labels.removesuffix(".gz"))
    assert find_cases(dataset, root)[0].labels == root / labels.removesuffix(".gz")


def test_a_folder_of_links_is_as_good(tmp_path: Path) -> None:
    """Images on one disk, labels on another: each folder a link to its own place."""
    for name, part in (("images/FLARE22_Tr_0001_0000.nii.gz", "images"), ("labels/FLARE22_Tr_0001.nii.gz", "labels")):
        touched(tmp_path / f"disk of {part}", name)
        (tmp_path / "linked").mkdir(exist_ok=True)
        (tmp_path / "linked" / part).symlink_to(tmp_path / f"disk of {part}" / part)
    case = find_cases("FLARE22", tmp_path / "linked")[0]
    assert case.labels is not None and case.labels.samefile(tmp_path / "disk of labels/labels/FLARE22_Tr_0001.nii.gz")


def test_the_full_profile_draws_its_test_scans_of_other_data_sets(tmp_path: Path) -> None:
    settings = Settings()
    amos22(tmp_path / "data/AMOS22", {"Tr": tuple(range(1, 13)), "Va": tuple(range(501, 512))})
    for dataset, first in (("AMOS22 CT", range(1, 13)), ("AMOS22 MRI", range(501, 512))):
        cases = cases_of(settings, dataset)
        assert len(cases) == 10 and {case.id for case in cases} < {f"amos_{n:04d}" for n in first}
        assert cases == sorted(cases, key=lambda case: case.id) == cases_of(settings, dataset), "the same every time"
    with pytest.raises(InputError, match="BTCV"):
        cases_of(settings, "BTCV")
    with pytest.raises(InputError, match="Synapse is no data set"):
        cases_of(settings, "Synapse")


def test_too_few_cases_for_the_split_are_refused(tmp_path: Path) -> None:
    cases = find_cases("FLARE22", flare22(tmp_path, range(1, 50)))
    with pytest.raises(InputError, match=r"holds 49 cases where 50 are split \(30, 10, 10\)"):
        split(cases, (30, 10, 10))


def test_the_full_profile_reads_data_root_and_never_trains_on_a_test_case(tmp_path: Path) -> None:
    settings = Settings()
    with pytest.raises(InputError, match="DATA_ROOT"):
        cases_of(settings, "training")
    flare22(tmp_path / "data" / "FLARE22", range(1, 51))
    parts = [cases_of(settings, part) for part in ("training", "validation", "FLARE22")]
    assert [len(part) for part in parts] == [30, 10, 10] and len({case.id for part in parts for case in part}) == 50


def test_smoke_stores_are_prepared_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("baseline", "smoke")
    parts = {part: stores_of(settings, part) for part in ("training", "validation", "FLARE22")}
    assert {part: len(stores) for part, stores in parts.items()} == {"training": 2, "validation": 1, "FLARE22": 1}
    stores = [store for part in parts.values() for store in part]
    assert {store.id for store in stores} == {f"FLARE22_000{n}" for n in (1, 2, 3, 4)}
    for store in stores:
        depth = store.grid.canonical_shape[2]
        assert store.grid.shape == (32, 32, 12) and store.grid.spacing_mm == pytest.approx((10.2, 10.2, 15))
        assert store.image.shape == store.labels.shape == (depth, 24, 24)
        assert store.image.dtype == store.labels.dtype == np.uint8 and store.image.std() > 30
        truth = read_labels(store.source.labels, store.label_map, store.grid)
        assert np.array_equal(store.labels, to_slices(truth, 24, labels=True))
        assert store.presence.tolist() == [np.bincount(picture.ravel(), minlength=14).tolist() for picture in store.labels]
    monkeypatch.setattr("lib.datasets.stores._build", lambda job: pytest.fail("prepared again"))
    monkeypatch.setattr("lib.phantoms._write_case", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(stores_of(settings, "FLARE22")[0].image, parts["FLARE22"][0].image)


def test_stores_of_another_size_stand_beside_each_other() -> None:
    small, large = (stores_of(tiny_settings(size=size), "FLARE22")[0] for size in (24, 32))
    assert small.image.shape[1:] == (24, 24) and large.image.shape[1:] == (32, 32) and small.folder != large.folder
    assert stores_of(tiny_settings(), "FLARE22")[0].image.shape == small.image.shape


def test_phantoms_of_other_sites_come_as_their_own_data_set(cache: Path) -> None:
    settings = settings_of("baseline", "smoke")
    cases = phantom_cases("AMOS22 MRI", (1, 2), settings)
    assert [(case.id, case.label_map, case.modality) for case in cases] == [(f"AMOS22_MRI_000{n}", "AMOS22", "MR") for n in (1, 2)]
    assert len(cases_of(settings, "AMOS22 MRI")) == 1, "as many as the test split has"
    store = prepare_all(cases[:1], settings, cache / "stores")[0]
    assert store.modality == "MR" and set(np.unique(store.labels)) > {0, 1, 2, 3}


def test_degraded_slices_follow_the_settings_and_real_scans_have_none(tmp_path: Path) -> None:
    settings = settings_of("baseline", "smoke")
    every = phantom_cases("FLARE22", (1, 2), replace(settings, degraded=1.0))
    assert [degraded_slices(case) for case in every] == [set(range(12))] * 2
    assert degraded_slices(phantom_cases("FLARE22", (1, 2), replace(settings, degraded=0.0))[0]) == set()
    assert degraded_slices(phantom_cases("pretraining", (1, 2), settings)[0]) == set(), "a site of clean slices stays so"
    some = [degraded_slices(case) for case in phantom_cases("FLARE22", range(1, 5), settings)]
    assert some[0] != some[1] and all(0 < len(slices) < 12 for slices in some)
    assert degraded_slices(find_cases("FLARE22", flare22(tmp_path / "real", range(1, 2)))[0]) == set()


def test_variants_keep_the_test_patients_and_their_degraded_slices(cache: Path) -> None:
    settings = replace(settings_of("adapter", "smoke"), cases=(2, 1, 3))
    plain = sorted(stores_of(settings, "FLARE22"), key=lambda store: store.id)
    assert len(plain) == 3
    spoiled = {}
    for share in (0, 20, 40, 60, 80):
        stores = stores_of(settings, f"FLARE22, {share}% degraded")
        assert [store.id for store in stores] == [store.id for store in plain]
        assert all(np.array_equal(store.labels, other.labels) for store, other in zip(stores, plain, strict=True)), "the same anatomy"
        assert {store.folder for store in stores}.isdisjoint(store.folder for store in plain) or share == 40
        spoiled[share] = [degraded_slices(store.source) for store in stores]
        if share == 40:
            assert all(np.array_equal(store.image, other.image) for store, other in zip(stores, plain, strict=True))
    for fewer, more in pairwise(spoiled):
        assert all(one <= other for one, other in zip(spoiled[fewer], spoiled[more], strict=True)), "nested"
        assert sum(map(len, spoiled[fewer])) < sum(map(len, spoiled[more]))
    assert spoiled[40] == [degraded_slices(store.source) for store in plain] and not any(spoiled[0])


@pytest.mark.parametrize(("factor", "slices"), [("0.5", 24), ("1.5", 8), ("2", 6)])
def test_other_distances_of_slices_leave_the_scan_s_extent(factor: str, slices: int) -> None:
    settings = settings_of("adapter", "smoke")
    plain, spaced = (stores_of(settings, dataset)[0] for dataset in ("FLARE22", f"FLARE22, slices x{factor}"))
    assert len(plain.image) == 12 and len(spaced.image) == slices and spaced.id == plain.id
    assert spaced.spacing_mm == pytest.approx(plain.spacing_mm * float(factor)) and spaced.grid.spacing_mm[:2] == plain.grid.spacing_mm[:2]
    assert slices * spaced.spacing_mm == pytest.approx(12 * plain.spacing_mm)


def test_patients_without_three_organs() -> None:
    settings = settings_of("adapter", "smoke")
    plain, without = (stores_of(settings, dataset)[0] for dataset in ("FLARE22", ABSENT))
    gone = {BY_KEY[key].label for key in ("gallbladder", "spleen", "left kidney")}
    assert set(np.unique(plain.labels)) - set(np.unique(without.labels)) == gone and set(np.unique(without.labels)) <= set(range(14))
    assert not without.presence[:, sorted(gone)].any() and plain.presence[:, sorted(gone)].any(0).all()
    assert without.id == plain.id and len(without.image) == len(plain.image)


@pytest.mark.parametrize("dataset", ["Synapse", "FLARE22, upside down", "FLARE22, slices", "FLARE22, slices x", "BTCV, organs absent", ""])
def test_phantoms_of_an_unknown_site_are_refused(dataset: str) -> None:
    with pytest.raises(InputError, match="is no data set of phantoms: choose") as caught:
        site_of(dataset, settings_of("adapter", "smoke"))
    assert repr(dataset) in str(caught.value) and "\n" not in str(caught.value)


def test_sites_by_name() -> None:
    settings = replace(settings_of("adapter", "demo"), degraded=0.3)
    plain, half = site_of("FLARE22", settings), site_of("FLARE22, slices x0.5", settings)
    assert (plain.shape, plain.spacing_mm, plain.degraded) == ((96, 96, 36), (3.4, 3.4, 5.0), 0.3)
    assert (half.shape, half.spacing_mm, half.degraded) == ((96, 96, 72), (3.4, 3.4, 2.5), 0.3)
    assert site_of("FLARE22, 75% degraded", settings).degraded == 0.75 and site_of("pretraining", settings).degraded == 0
    assert site_of("BTCV", replace(settings, phantom_voxels=2.0)).shape == (52, 52, 22)


def test_another_patient_s_slices_stand_beside_each_scan() -> None:
    settings = settings_of("adapter, neighbours another patient", "smoke")
    training, others = stores_of(settings, "training"), [*stores_of(settings, "validation"), *stores_of(settings, "FLARE22")]
    assert all(store.donor is None for store in stores_of(settings_of("adapter", "smoke"), "training"))
    assert np.array_equal(training[0].donor, training[1].image) and np.array_equal(training[1].donor, training[0].image)
    for store in others:
        assert any(np.array_equal(store.donor, other.image) for other in training), "whose slices the model has seen"
    store, own = others[0], len(others[0].image)
    both = store.slices(np.array([own + 3, 0, own, own - 1]))
    assert np.array_equal(both, np.stack([store.donor[3], store.image[0], store.donor[0], store.image[-1]]))
    assert np.array_equal(store.image[0], store.slices(np.array([0]))[0]), "the files are as they were"


def test_profiles_test_on_scans_that_they_never_learned_from() -> None:
    settings = settings_of("adapter", "smoke")
    for dataset in (*settings.test_on, ABSENT, "FLARE22, 60% degraded"):
        check_disjoint(settings, dataset)
    contents = [store.content for part in ("training", "validation", *settings.test_on) for store in stores_of(settings, part)]
    assert len(set(contents)) == len(contents) == 3 + 4


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_copy_of_a_training_scan_under_another_name_is_found(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("adapter", "smoke")
    learned, test = stores_of(settings, part)[0], stores_of(settings, "BTCV")[0].source
    twin = tmp_path / "img0007.nii.gz"
    shutil.copy(learned.source.image, twin)
    copied = Case("BTCV_0007", twin, learned.source.labels, "FLARE22")
    real = cases_module.cases_of
    monkeypatch.setattr(cases_module, "cases_of", lambda s, name: [test, copied] if name == "BTCV" else real(s, name))
    with pytest.raises(InputError) as caught:
        check_disjoint(settings, "BTCV")
    text = str(caught.value)
    assert str(twin) in text and str(learned.source.image) in text and "BTCV" in text and "\n" not in text and text.endswith(".")
    check_disjoint(settings, "AMOS22 CT")


@pytest.fixture
def samples() -> dict[str, list[Case]]:
    try:
        samples_folder()
    except InputError as error:
        pytest.skip(str(error))
    return sample_cases()


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_slabs_tile_the_sample_ct_where_it_lies(samples: dict[str, list[Case]], kind: str) -> None:
    whole = nib.load(samples_folder() / f"ct_{kind}.nii.gz")
    slabs = sorted((case for part in ("training", "validation", "sample CT") for case in samples[part]), key=lambda case: case.id)
    start, voxels = 0, np.asarray(whole.dataobj)
    for slab in slabs:
        image = nib.load(slab.image if kind == "image" else slab.labels)
        depth = image.shape[2]
        assert np.array_equal(np.asarray(image.dataobj), voxels[:, :, start : start + depth])
        for corner in ([0, 0, 0], [*whole.shape[:2], depth]):  # the same place in the patient
            here, there = image.affine @ [*corner, 1], whole.affine @ [*np.add(corner, [0, 0, start]), 1]
            assert here == pytest.approx(there, abs=1e-3)
        start += depth
    assert len(slabs) == 8 and start == whole.shape[2]
    assert min(nib.load(slab.image).shape[2] for slab in slabs) >= 5, "a window fits into each"


def test_sample_parts_share_no_slab(samples: dict[str, list[Case]]) -> None:
    ids = {part: {case.id for case in cases} for part, cases in samples.items()}
    assert {part: len(those) for part, those in ids.items()} == {"training": 4, "validation": 1, "sample CT": 3, "sample MRI": 1}
    assert len(set().union(*ids.values())) == 9, "none stands in two parts"
    assert samples["sample MRI"][0].modality == "MR" and samples["sample MRI"][0].image == samples_folder() / "mr_image.nii.gz"


def test_no_sample_is_tested_that_was_learned_from(samples: dict[str, list[Case]]) -> None:
    settings = replace(settings_of("baseline", "sample"), size=24)
    for dataset in settings.test_on:
        check_disjoint(settings, dataset)
    assert settings.test_on == ("sample CT", "sample MRI") and {"training", *settings.test_on} < set(samples)


@pytest.mark.parametrize("part", ["training", "validation", "sample CT"])
def test_each_part_of_the_sample_ct_shows_organs(samples: dict[str, list[Case]], part: str) -> None:
    stores = stores_of(replace(settings_of("baseline", "sample"), size=24), part)
    seen = np.concatenate([store.presence for store in stores])[:, 1:].any(0)
    assert seen.sum() >= 4
