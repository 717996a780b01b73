"""lib.datasets: which scans there are, who trains and who tests, and the prepared stores of the smoke profile."""

import random
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import stores_of, tiny_settings

from lib import datasets
from lib.datasets import Case, cases_of, degraded_slices, find_cases, phantom_cases, sample_cases, split
from lib.paths import InputError, samples_folder
from lib.profiles import Settings, settings_of
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
    monkeypatch.setattr(datasets, "_build", lambda job: pytest.fail("prepared again"))
    monkeypatch.setattr("lib.phantoms._write_case", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(stores_of(settings, "FLARE22")[0].image, parts["FLARE22"][0].image)


def test_stores_of_another_size_stand_beside_each_other() -> None:
    small, large = (stores_of(tiny_settings(size=size), "FLARE22")[0] for size in (24, 32))
    assert small.image.shape[1:] == (24, 24) and large.image.shape[1:] == (32, 32) and small.folder != large.folder
    assert stores_of(tiny_settings(), "FLARE22")[0].image.shape == small.image.shape


def test_phantoms_of_other_sites_come_as_their_own_data_set() -> None:
    settings = settings_of("baseline", "smoke")
    cases = phantom_cases("AMOS22 MRI", 2, settings)
    assert [(case.id, case.label_map, case.modality) for case in cases] == [(f"AMOS22_MRI_000{n}", "AMOS22", "MR") for n in (1, 2)]
    assert len(cases_of(settings, "AMOS22 MRI")) == 1, "as many as the test split has"
    store = datasets.prepare_all(cases[:1], settings, datasets.cache_root() / "stores")[0]
    assert store.modality == "MR" and set(np.unique(store.labels)) > {0, 1, 2, 3}


def test_degraded_slices_follow_the_settings_and_real_scans_have_none(tmp_path: Path) -> None:
    settings = settings_of("baseline", "smoke")
    every = phantom_cases("FLARE22", 2, replace(settings, degraded=1.0))
    assert [degraded_slices(case) for case in every] == [set(range(12))] * 2
    assert degraded_slices(phantom_cases("FLARE22", 2, replace(settings, degraded=0.0))[0]) == set()
    assert degraded_slices(phantom_cases("pretraining", 2, settings)[0]) == set(), "a site of clean slices stays so"
    some = [degraded_slices(case) for case in phantom_cases("FLARE22", 4, settings)]
    assert some[0] != some[1] and all(0 < len(slices) < 12 for slices in some)
    assert degraded_slices(find_cases("FLARE22", flare22(tmp_path / "real", range(1, 2)))[0]) == set()


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


@pytest.mark.parametrize("part", ["training", "validation", "sample CT"])
def test_each_part_of_the_sample_ct_shows_organs(samples: dict[str, list[Case]], part: str) -> None:
    stores = stores_of(replace(settings_of("baseline", "sample"), size=24), part)
    seen = np.concatenate([store.presence for store in stores])[:, 1:].any(0)
    assert seen.sum() >= 4
