"""lib.datasets: which scans there are, who trains and who tests, and the prepared stores of the smoke profile."""

import random
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt
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
from lib.profiles import ABSENT, HELD_OUT, MEDVLM_RUNS, Settings, settings_of
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


def test_what_a_killed_preparation_left_half_goes_when_it_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path))
    settings = settings_of("baseline", "smoke")
    store = stores_of(settings, "training")[0]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    scan, cohort = store.source.image, store.source.image.parents[1]
    for mark in (store.folder / "case.json", cohort / "cohort.json"):
        mark.unlink()
    for name in (f".image.npy.{gone.pid}.part.npy", "preparing.lock"):
        (store.folder / name).touch()
    scan.with_name(f".{scan.name}.{gone.pid}.part.nii.gz").touch()
    assert len(stores_of(settings, "training")) == settings.cases[0] and (cohort / "cohort.json").exists()
    assert not [*tmp_path.rglob("*.part*"), *store.folder.glob("*.lock")]


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
    image = nib.load(learned.source.image)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), axcodes2ornt("SAL")))
    nib.save(turned, twin)  # another file, the same voxels
    copied = Case("BTCV_0007", twin)
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


# slices at another distance, and boxes


def body_in_air(folder: Path, affine: np.ndarray | None = None, air: bool = False, labelled: bool = True) -> Case:
    """A scan of 20 x 18 x 12 voxels of 2 x 2 x 5 mm with a body in a part of it, or with air alone; the labels' ids are FLARE22's."""
    hu, labels = np.full((20, 18, 12), -1000, np.int16), np.zeros((20, 18, 12), np.uint8)
    if not air:
        hu[3:15, 4:14, 2:10] = 60
        labels[5:9, 6:10, 3:6], labels[9:13, 6:10, 6:9] = 1, 13
    affine = np.diag([-2.0, -2.0, 5.0, 1.0]) if affine is None else affine
    image, truth = folder / "a.nii.gz", folder / "a_labels.nii.gz"
    nib.save(nib.Nifti1Image(hu, affine), image)
    nib.save(nib.Nifti1Image(labels, affine), truth)
    return Case("a", image, truth if labelled else None)


@pytest.mark.parametrize(
    ("changes", "slices", "box"),
    [
        ({"slice_mm": 2.5}, 24, [(0, 20), (0, 18), (0, 12)]),
        ({"slice_mm": 4.0}, 15, [(0, 20), (0, 18), (0, 12)]),
        ({"slice_mm": 1000.0}, 1, [(0, 20), (0, 18), (0, 12)]),
        ({"crop": True}, 8, [(3, 15), (4, 14), (2, 10)]),
        ({"crop": True, "slice_mm": 2.0}, 20, [(3, 15), (4, 14), (2, 10)]),
        ({"crop": True, "slice_mm": 5.0}, 8, [(3, 15), (4, 14), (2, 10)]),
    ],
)
def test_slices_fill_the_box_at_the_distance_asked_for(changes: dict, slices: int, box: list, tmp_path: Path) -> None:
    case = body_in_air(tmp_path)
    store = prepare_all([case], tiny_settings(**changes), tmp_path / "stores")[0]
    assert store.box == tuple(slice(*edges) for edges in box) and store.grid.shape == (20, 18, 12), "the scan's own grid stays"
    assert store.image.shape == store.labels.shape == (slices, 24, 24) and store.image.dtype == store.labels.dtype == np.uint8
    assert len(store.presence) == slices and store.presence.sum() == store.labels.size
    assert set(np.unique(store.labels)) <= {0, 1, 13} and (slices == 1 or len(np.unique(store.labels)) == 3), "no label between two others"
    if "crop" in changes:
        assert (store.image == round((60 + 125) / 400 * 255)).all(), "the body and nothing else"
    again = prepare_all([case], tiny_settings(**changes), tmp_path / "stores")[0]
    assert again.box == store.box and np.array_equal(again.image, store.image)


def test_another_distance_keeps_every_organ_at_its_height(tmp_path: Path) -> None:
    case = body_in_air(tmp_path)
    plain, fine = (prepare_all([case], tiny_settings(slice_mm=mm), tmp_path / f"stores{mm}")[0] for mm in (0.0, 1.25))
    assert plain.box is None and len(fine.image) == 4 * len(plain.image)
    assert np.array_equal(fine.labels, plain.labels.repeat(4, 0)), "nearest: each slice four times"
    assert np.array_equal(fine.image[0], plain.image[0]) and np.array_equal(fine.image[24], plain.image[6])
    edge = fine.image[4:12, 12, 12].astype(int)  # from air to body between slices 1 and 2
    assert (np.diff(edge) >= 0).all() and edge[0] == 0 and edge[-1] == plain.image[2, 12, 12] and len(np.unique(edge)) > 3, "linear"


@pytest.mark.parametrize("slice_mm", [0.0, 2.0])
def test_a_scan_of_air_alone_is_not_cropped(slice_mm: float, tmp_path: Path) -> None:
    store = prepare_all([body_in_air(tmp_path, air=True)], tiny_settings(crop=True, slice_mm=slice_mm), tmp_path / "stores")[0]
    assert store.box == (slice(0, 20), slice(0, 18), slice(0, 12)) and not store.image.any() and not store.labels.any()
    assert len(store.image) == (30 if slice_mm else 12)


def test_a_box_is_of_canonical_voxels_and_needs_no_labels(tmp_path: Path) -> None:
    turned = np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])
    store = prepare_all([body_in_air(tmp_path, turned, labelled=False)], tiny_settings(crop=True, slice_mm=2.0), tmp_path / "stores")[0]
    assert store.labels is None and store.presence is None and store.grid.canonical_shape == (12, 20, 18)
    assert store.box == (slice(2, 10), slice(3, 15), slice(4, 14)) and len(store.image) == 20, "10 slices of 4 mm"


def test_stores_of_other_distances_and_boxes_take_no_other_s_place(tmp_path: Path) -> None:
    kinds = [(0.0, False), (2.5, False), (0.0, True), (2.5, True), (2.0, True)]
    case, shapes = body_in_air(tmp_path), {}
    for slice_mm, crop in kinds:
        own = tmp_path / f"{slice_mm}-{crop}"
        shapes[slice_mm, crop] = len(prepare_all([case], tiny_settings(slice_mm=slice_mm, crop=crop), own)[0].image)
    assert list(shapes.values()) == [12, 24, 8, 16, 20]
    for first in kinds:  # in one folder the newest settings count, whichever were there before
        for second in kinds:
            for slice_mm, crop in (first, second):
                store = prepare_all([case], tiny_settings(slice_mm=slice_mm, crop=crop), tmp_path / "shared")[0]
                assert len(store.image) == shapes[slice_mm, crop] and (store.box is None) == ((slice_mm, crop) == (0.0, False))


def test_stores_of_both_papers_stand_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tgated, medvlm = settings_of("baseline", "smoke"), settings_of("med-vlm small", "smoke")
    one, two = stores_of(tgated, HELD_OUT)[0], stores_of(medvlm, HELD_OUT)[0]
    assert one.box is None and two.box is not None and one.folder != two.folder and one.source.image == two.source.image
    monkeypatch.setattr("lib.datasets.stores._build", lambda job: pytest.fail("prepared again"))
    assert np.array_equal(stores_of(tgated, HELD_OUT)[0].image, one.image)
    assert np.array_equal(stores_of(medvlm, HELD_OUT)[0].image, two.image)


# the scans that Med-VLM holds out


def btcv(root: Path) -> Path:
    """Empty files with the names of BTCV's 30 labelled scans."""
    for n in (*range(1, 11), *range(21, 41)):
        touched(root / "BTCV", f"RawData/Training/img/img{n:04d}.nii.gz", f"RawData/Training/label/label{n:04d}.nii.gz")
    return root


def test_both_papers_hold_out_the_same_phantoms() -> None:
    held = {run: cases_of(settings_of(run, "smoke"), HELD_OUT) for run in ("baseline", "adapter", *MEDVLM_RUNS)}
    first = held["unet"]
    assert len(first) == 1 and all(cases == first for cases in held.values())
    for run in MEDVLM_RUNS:
        settings = settings_of(run, "smoke")
        training = {case.image for case in cases_of(settings, "training")}
        assert cases_of(settings, "validation") == first and first[0].image not in training and training


def test_six_of_btcv_s_thirty_scans_are_held_out(tmp_path: Path) -> None:
    btcv(tmp_path / "data")
    held = cases_of(settings_of("baseline", "full"), HELD_OUT)
    for run in MEDVLM_RUNS:
        settings = settings_of(run, "full")
        training = cases_of(settings, "training")
        assert cases_of(settings, HELD_OUT) == cases_of(settings, "validation") == held and len(held) == 6
        assert len(training) == (settings.training_cases or 24) and not {case.id for case in training} & {case.id for case in held}
    assert len({case.id for case in cases_of(settings_of("unet", "full"), "training") + held}) == 30


def test_fewer_training_cases_are_the_first_of_all(tmp_path: Path) -> None:
    btcv(tmp_path / "data")
    full, smoke = settings_of("unet", "full"), settings_of("unet", "smoke")
    whole = cases_of(full, "training")
    for count in (3, 6, 12, 24, 30):
        fewer = replace(full, training_cases=count)
        assert cases_of(fewer, "training") == whole[:count] and cases_of(fewer, "validation") == cases_of(full, "validation")
    one = replace(smoke, training_cases=1)
    assert cases_of(one, "training") == cases_of(smoke, "training")[:1] and len(cases_of(smoke, "training")) == 2
    assert cases_of(one, "validation") == cases_of(smoke, "validation")


def test_validation_scans_test_a_run_only_where_they_chose_nothing() -> None:
    settings = settings_of("unet", "smoke")
    assert settings.keep == "last"
    check_disjoint(settings, HELD_OUT)
    check_disjoint(settings_of("baseline", "smoke"), HELD_OUT)
    with pytest.raises(InputError, match="which the model learned from") as caught:
        check_disjoint(replace(settings, keep="best"), HELD_OUT)
    assert HELD_OUT in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="which the model learned from"):
        check_disjoint(settings, "training")
