"""Phantoms: textbook anatomy on its proper side, sites that differ, acceptance figures, cohorts on disk."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny import fixed_site

from lib import phantoms
from lib.config import settings_of
from lib.data import degraded_slices, find_cases
from lib.files import InputError
from lib.organs import BY_KEY, KEYS, ORGANS
from lib.phantoms import SITES, Phantom, Site, draw, site_of, write_cohort
from lib.volumes import read_labels, read_scan

SEEDS = (1, 2, 6)
COUNTS = [19843, 3376, 2468, 1344, 856, 1209, 77, 79, 405, 0, 3899, 1284, 3077]
DEGRADED = [14, 23, 29]
SLICE_MM = 4.714770447907444
IDS = {  # of the files, from the data sets' own tables, in the order of KEYS; 0: not labelled
    "site B": (6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 0, 3),
    "site M": (6, 2, 1, 10, 8, 9, 11, 12, 4, 5, 7, 13, 3),
}


def coarse(name: str = "site A", **changes: Any) -> Site:
    """A site whose scans show all organs, in voxels of 1 cm and 12 slices: a phantom takes milliseconds."""
    return fixed_site(name, 40, 12, **changes)


@cache
def phantom(name: str = "site A", seed: int = 1, **changes: float) -> Phantom:
    return draw(fixed_site(name, 128, 42, degraded=0.0, **changes), seed)


def place(labels: np.ndarray, key: str) -> np.ndarray:
    """Mean voxel (x, y, z) of an organ: LPS axes, so a small x is the patient's right."""
    return np.argwhere(labels == BY_KEY[key].label).mean(0)


@pytest.mark.parametrize(("name", "seed"), [*(("site A", seed) for seed in SEEDS), ("site M", 1)])
def test_every_organ_lies_on_its_proper_side(name: str, seed: int) -> None:
    labels = phantom(name, seed)[1]
    shown = [key for key in KEYS if (labels == BY_KEY[key].label).any()]
    assert {*KEYS} - {*shown} <= {*phantoms.LACKING}
    x, y, z = ({key: place(labels, key)[axis] for key in shown} for axis in range(3))
    right = {"liver", "gallbladder", "right kidney", "right adrenal gland", "inferior vena cava", "duodenum"}
    for key in right & {*shown}:
        assert x[key] < x["aorta"], f"{key} is on the right"
    for key in {"spleen", "stomach", "left kidney", "left adrenal gland"} & {*shown}:
        assert x[key] > x["aorta"], f"{key} is on the left"
    for side in {"right", "left"} - {key.split()[0] for key in {*KEYS} - {*shown}}:
        assert z[f"{side} adrenal gland"] > z[f"{side} kidney"] and y[f"{side} kidney"] > y["stomach"]


def test_organs_have_the_volumes_of_textbooks() -> None:
    """Millilitres, mean of ten patients: half to one and a half times what anatomy books give."""
    books = {"liver": 1500, "spleen": 180, "right kidney": 160, "left kidney": 160, "pancreas": 80}
    books |= {"gallbladder": 35, "right adrenal gland": 4.5, "left adrenal gland": 4.5, "stomach": 350}
    site = replace(SITES["site A"], bottom_mm=(-60, -60), top_mm=(300, 300))
    found = []
    for seed in range(1, 11):
        _, labels, _, spacing_mm = draw(site, seed)
        found.append(np.bincount(labels.ravel(), minlength=14) * np.prod(spacing_mm) / 1000)
    volumes = np.array(found)
    for key, book in books.items():
        own = volumes[:, BY_KEY[key].label]
        assert 0.5 < own[own > 0].mean() / book < 1.5, (key, own.mean())
    assert 15 < (volumes[:, BY_KEY["esophagus"].label]).mean() < 60, "from the heart down, a thin tube"


def test_organs_share_their_hounsfield_units() -> None:
    """Brightness alone tells no organ: each shares a fifth of its histogram with another, its twin apart."""
    shares: dict[str, np.ndarray] = dict.fromkeys(KEYS, np.zeros(62))
    for seed in range(1, 7):  # patients differ, too
        signal, labels, *_ = draw(fixed_site("site A", 64, 21, degraded=0.0), seed)
        for organ in ORGANS:
            counts = np.histogram(signal[labels == organ.label], np.arange(-150, 480, 10))[0]
            shares[organ.key] = shares[organ.key] + counts
    shares = {key: counts / counts.sum() for key, counts in shares.items()}
    for key, counts in shares.items():
        twins = (key, key.replace("right", "left"), key.replace("left", "right"))
        others = [np.minimum(counts, other).sum() for name, other in shares.items() if name not in twins]
        assert max(others) > 0.2, key


def test_contrast_medium_changes_what_vessels_and_kidneys_look_like() -> None:
    bright = {}
    for phase in ("non-contrast", "arterial", "portal"):
        signal, labels, *_ = phantom(phases=(phase,))
        bright[phase] = {key: np.median(signal[labels == BY_KEY[key].label]) for key in KEYS}
    aorta = [bright[phase]["aorta"] for phase in ("non-contrast", "portal", "arterial")]
    assert aorta[0] < 80 < aorta[1] < 200 < aorta[2]
    assert bright["portal"]["left kidney"] > bright["non-contrast"]["left kidney"] + 80
    assert abs(bright["portal"]["gallbladder"] - bright["non-contrast"]["gallbladder"]) < 20


def test_the_mri_site_has_no_hounsfield_units() -> None:
    signal, labels, *_ = phantom("site M", 2)
    assert signal.min() >= 0 and signal.dtype == np.float32
    bright = {key: signal[labels == BY_KEY[key].label].mean() for key in KEYS}
    assert bright["aorta"] < bright["liver"] < bright["gallbladder"], "vessels are dark and bile is bright"


def test_sites_differ_and_share_no_seed() -> None:
    tests = [SITES[name] for name in ("site A", "site B", "site C", "site M")]
    for one, other in combinations(tests, 2):
        assert one.slice_mm != other.slice_mm and one.pixel_mm != other.pixel_mm
        assert (one.noise, one.phases, one.modality) != (other.noise, other.phases, other.modality)
    assert len({site.axes for site in tests}) == 4
    assert min(np.diff(sorted(site.first_seed for site in SITES.values()))) >= 1000
    assert replace(SITES["site S"], name="site A", first_seed=0) == SITES["site A"], "the same scanner"


def test_fields_of_view_vary_and_are_150_mm_at_least() -> None:
    heights, shown = [], []
    for seed in range(1, 41):
        _, labels, _, spacing_mm = draw(replace(SITES["site A"], pixels=32, pixel_mm=12.8), seed)
        heights.append(labels.shape[2] * spacing_mm[2])
        shown.append(np.mean([len(np.unique(labels[:, :, z])) - 1 for z in range(labels.shape[2])]))
    assert 140 <= min(heights) < 220 and 400 < max(heights) < 620 and 3 <= np.mean(shown) <= 6


@pytest.mark.parametrize(("dial", "low", "high"), [(0.0, 0, 0), (0.4, 0.34, 0.46), (1.0, 1, 1)])
def test_the_share_of_degraded_slices_follows_its_dial(dial: float, low: float, high: float) -> None:
    share = np.mean([draw(coarse(degraded=dial), seed)[2].mean() for seed in range(1, 41)])
    assert low <= share <= high


@pytest.mark.parametrize("name", ["site A", "site M"])
def test_degraded_slices_are_noisier_and_the_same_at_every_higher_share(name: str) -> None:
    drawn = {share: draw(coarse(name, degraded=share), 3) for share in (0.0, 0.4, 0.8, 1.0)}
    spoiled = [set(np.flatnonzero(found[2])) for found in drawn.values()]
    assert all(fewer < more for fewer, more in pairwise(spoiled))
    assert all(np.array_equal(found[1], drawn[0.0][1]) for found in drawn.values()), "the same anatomy"
    signal, _, degraded, _ = drawn[0.4]
    noise = np.concatenate([signal[:4, :4], signal[-4:, :4]]).std((0, 1))  # in the air
    assert noise[degraded].min() > 1.5 * noise[~degraded].max()


def test_a_seed_gives_the_same_phantom_and_another_gives_another() -> None:
    one, again, other = draw(coarse(), 1), draw(coarse(), 1), draw(coarse(), 2)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0]) and not np.array_equal(one[1], other[1])
    assert not np.array_equal(one[1], draw(coarse("site S"), 1)[1]), "no two sites share a patient"


def test_the_phantoms_of_this_version_stay_what_they_are() -> None:
    """The committed scores are theirs: who changes these counts raises phantoms.VERSION."""
    _, labels, degraded, spacing_mm = draw(SITES["site A"], 1)
    assert phantoms.VERSION == 2
    assert np.bincount(labels.ravel(), minlength=14)[1:].tolist() == COUNTS
    assert np.flatnonzero(degraded).tolist() == DEGRADED and spacing_mm[2] == pytest.approx(SLICE_MM, 1e-6)


def test_who_lacks_an_organ_keeps_the_others() -> None:
    gone = ("gallbladder", "spleen", "left kidney")
    signal, labels, *_ = phantom(seed=2, without=gone)
    whole, both, *_ = phantom(seed=2)
    left = both == BY_KEY["left kidney"].label
    assert left.any() and {*np.unique(both)} - {*np.unique(labels)} == {BY_KEY[key].label for key in gone}
    kept = ~np.isin(both, [BY_KEY[key].label for key in gone])
    assert (labels[kept] == both[kept]).mean() > 0.999
    assert signal[left].mean() < whole[left].mean() - 30, "nor in the image"


def test_some_patients_lack_an_organ() -> None:
    shown = np.array([np.bincount(draw(coarse(), s)[1].ravel(), minlength=14) > 0 for s in range(1, 61)])
    assert 0.02 < 1 - shown[:, BY_KEY["gallbladder"].label].mean() < 0.3 and shown[:, 1].all()


def test_a_variant_changes_what_it_says() -> None:
    settings = settings_of("adapter", "demo")
    plain, finer = site_of("site C", settings), site_of("site C", settings, "slices x0.5")
    assert finer == replace(plain, slice_mm=(1.25, 3.0))
    assert site_of("site C", settings, "60% degraded") == replace(plain, degraded=0.6)
    small = site_of("site A", settings_of("adapter", "smoke"))
    assert small.pixels * small.pixel_mm == pytest.approx(128 * 3.2, rel=0.02)
    with pytest.raises(InputError, match="'site X' is no site of phantoms: choose one of site A"):
        site_of("site X", settings)


def files_of(folder: Path) -> dict[str, int]:
    """{file: time of its last change}."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in every}


@pytest.mark.parametrize("name", list(SITES))
def test_what_is_written_is_what_was_drawn_in_the_site_s_own_axes(name: str, tmp_path: Path) -> None:
    site = coarse(name)
    case = find_cases("FLARE22", write_cohort(site, [1], tmp_path))[0]
    signal, labels, degraded, spacing_mm = draw(site, 1)
    assert "".join(nib.aff2axcodes(nib.load(case.image).affine)) == site.axes
    read, grid = read_scan(case.image)
    assert grid.spacing_mm == pytest.approx(spacing_mm, rel=1e-5) and np.array_equal(read, signal.round())
    truth = read_labels(case.labels, site.label_map, grid)
    missing = BY_KEY["duodenum"].label if site.label_map == "BTCV" else 99
    assert np.array_equal(truth, np.where(labels == missing, 0, labels))
    assert degraded_slices(case) == set(np.flatnonzero(degraded))


@pytest.mark.parametrize("name", list(IDS))
def test_label_files_hold_the_data_set_s_own_ids(name: str, tmp_path: Path) -> None:
    write_cohort(coarse(name), [2], tmp_path)
    ids = np.asarray(nib.load(tmp_path / "labels" / "FLARE22_Tr_0002.nii.gz").dataobj)
    labels = draw(coarse(name), 2)[1]
    for key, number in zip(KEYS, IDS[name], strict=True):
        assert number == 0 or (ids == number).sum() == (labels == BY_KEY[key].label).sum()
    assert set(np.unique(ids)) <= {0, *IDS[name]} and len(np.unique(ids)) > 9


def test_cases_of_any_numbers_are_those_of_the_whole_cohort(tmp_path: Path) -> None:
    """So a variant can be made of the test patients alone."""
    whole = write_cohort(coarse(), range(1, 6), tmp_path / "whole")
    cases = find_cases("FLARE22", write_cohort(coarse(), (2, 5), tmp_path / "some"))
    assert [case.id for case in cases] == ["FLARE22_Tr_0002", "FLARE22_Tr_0005"]
    for case in cases:
        assert case.image.read_bytes() == (whole / "images" / case.image.name).read_bytes()


def test_a_second_call_writes_nothing_and_a_broken_off_cohort_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(coarse(), range(1, 3), tmp_path)
    before = files_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "_write_case", lambda *_: pytest.fail("drawn again"))
        write_cohort(coarse(), range(1, 3), tmp_path)
    assert files_of(tmp_path) == before
    (tmp_path / "cohort.json").unlink()
    write_cohort(coarse(noise=40.0), range(1, 3), tmp_path)
    assert all(files_of(tmp_path)[name] > time for name, time in before.items())
    assert json.loads((tmp_path / "cohort.json").read_text())["site"]["noise"] == 40.0


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/cohort/cohort\.json cannot be written"):
        write_cohort(coarse(), [1], tmp_path / "file" / "cohort")
