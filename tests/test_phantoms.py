"""Phantoms: anatomy on its proper side, degraded slices by a dial, sites that differ, cohorts on disk."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as components
from scipy.ndimage import map_coordinates

from lib import phantoms
from lib.data import degraded_slices, find_cases
from lib.files import InputError
from lib.organs import BY_KEY, KEYS, ORGANS
from lib.phantoms import SITES, Site, degraded_in, draw, write_cohort
from lib.volumes import read_labels, read_scan, to_slices

Phantom = tuple[np.ndarray, np.ndarray, np.ndarray]
SEEDS = (1, 2, 6)
IDS = {  # of the files, from the data sets' own tables, in the order of KEYS; 0: not labelled
    "site B": (6, 2, 1, 11, 8, 9, 12, 13, 4, 5, 7, 0, 3),
    "site M": (6, 2, 1, 10, 8, 9, 11, 12, 4, 5, 7, 13, 3),
}


def coarse(name: str = "site A", **changes: object) -> Site:
    """A site with voxels three times as long, so that a phantom takes a twentieth of a second."""
    site = SITES[name]
    return replace(
        site,
        shape=tuple(n // 3 for n in site.shape),
        spacing_mm=tuple(3 * mm for mm in site.spacing_mm),
        **changes,
    )


@cache
def phantom(name: str = "site A", seed: int = 1, **changes: float) -> Phantom:
    return draw(replace(SITES[name], **changes), seed)


def place(labels: np.ndarray, key: str) -> np.ndarray:
    """Mean voxel (x, y, z) of an organ: LPS axes, so a small x is the patient's right."""
    return np.argwhere(labels == BY_KEY[key].label).mean(0)


def corner_noise(signal: np.ndarray) -> np.ndarray:
    """(Z,) standard deviation in the air beside the patient."""
    return np.concatenate([signal[:8, :8], signal[-8:, :8]]).std((0, 1))


@pytest.mark.parametrize("seed", SEEDS)
def test_all_organs_are_there_and_the_adrenals_large_enough_to_score(seed: int) -> None:
    _, labels, _ = phantom(seed=seed)
    voxels = np.bincount(labels.ravel(), minlength=14)
    assert len(voxels) == 14 and (voxels[1:] >= 60).all()
    small = to_slices(labels, 48, labels=True)
    pixels = np.bincount(small.ravel(), minlength=14)[1:]
    assert (pixels >= 8).all() and pixels.argmax() == KEYS.index("liver")


@pytest.mark.parametrize(
    ("name", "seed"), [*(("site A", seed) for seed in SEEDS), ("site M", 1), ("site B", 1)]
)
def test_every_organ_lies_on_its_proper_side(name: str, seed: int) -> None:
    labels = phantom(name, seed)[1]
    x, y, z = ({key: place(labels, key)[axis] for key in KEYS} for axis in range(3))
    middle = x["aorta"]
    for key in (
        "liver",
        "gallbladder",
        "right kidney",
        "right adrenal gland",
        "inferior vena cava",
        "duodenum",
    ):
        assert x[key] < middle, f"{key} is on the right"
    for key in ("spleen", "stomach", "left kidney", "left adrenal gland"):
        assert x[key] > middle, f"{key} is on the left"
    assert x["right kidney"] < x["right adrenal gland"] < x["left adrenal gland"] < x["left kidney"]
    for kidney, adrenal in (("right kidney", "right adrenal gland"), ("left kidney", "left adrenal gland")):
        assert z[adrenal] > z[kidney] and y[kidney] > y["stomach"], (
            "an adrenal sits on its kidney, and kidneys lie at the back"
        )


def test_organs_share_their_hounsfield_units() -> None:
    """Brightness alone tells no organ: each shares 30 % of its histogram with another, its twin apart."""
    signal, labels, _ = phantom(degraded=0.0)
    shares = {
        organ.key: np.histogram(signal[labels == organ.label], np.arange(-150, 350, 5))[0] for organ in ORGANS
    }
    shares = {key: counts / counts.sum() for key, counts in shares.items()}
    for key, counts in shares.items():
        twins = (key, key.replace("right", "left"), key.replace("left", "right"))
        others = [np.minimum(counts, other).sum() for name, other in shares.items() if name not in twins]
        assert max(others) > 0.3, key


def test_bowel_loops_look_like_organs_in_one_slice_and_are_labelled_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[np.ndarray] = []
    bowel = phantoms._bowel

    def watched(signal: np.ndarray, *rest: object) -> None:
        before = signal.copy()
        bowel(signal, *rest)  # type: ignore[arg-type]
        drawn.append(signal != before)

    monkeypatch.setattr(phantoms, "_bowel", watched)
    signal, labels, _ = draw(replace(SITES["site A"], degraded=0.0), 1)
    loops = drawn[0] & (labels == 0)
    parts, count = components(loops)
    boxes = [parts == part for part in range(1, count + 1) if (parts == part).sum() >= 12]
    single = [box for box in boxes if box.any((0, 1)).sum() == 1]
    assert len(single) > 10 and len(single) > len(boxes) / 2, "most loops show in a single slice"
    organs = signal[labels > 0]
    inside = np.array([signal[box].mean() for box in single])
    assert ((inside > np.percentile(organs, 1)) & (inside < np.percentile(organs, 99))).mean() > 0.8, (
        "as bright as some organ"
    )
    outside = []
    for box in single:
        z = int(np.flatnonzero(box.any((0, 1)))[0])
        for beside in (z - 1, z + 1):
            if 0 <= beside < signal.shape[2]:
                there = box[:, :, z] & ~drawn[0][:, :, beside] & (labels[:, :, beside] == 0)
                outside.extend(signal[:, :, beside][there])
    assert np.mean(outside) < inside.mean() - 60, "the slices beside it show fat there"


@pytest.mark.parametrize(("dial", "low", "high"), [(0.0, 0, 0), (0.4, 0.34, 0.46), (1.0, 1, 1)])
def test_the_share_of_degraded_slices_follows_its_dial(dial: float, low: float, high: float) -> None:
    site = coarse(degraded=dial)
    share = np.mean([draw(site, seed)[2].mean() for seed in range(1, 41)])
    assert low <= share <= high


@pytest.mark.parametrize("name", ["site A", "site M"])
def test_degraded_slices_are_really_noisier(name: str) -> None:
    signal, _, degraded = phantom(name, 2)
    noise = corner_noise(signal)
    assert 0 < degraded.sum() < len(degraded) and noise[degraded].min() > 2 * noise[~degraded].max()


def test_a_seed_gives_the_same_phantom_and_another_gives_another() -> None:
    site = coarse()
    (signal, labels, degraded), again, other = draw(site, 1), draw(site, 1), draw(site, 2)
    assert all(np.array_equal(a, b) for a, b in zip((signal, labels, degraded), again, strict=True))
    assert not np.array_equal(signal, other[0]) and not np.array_equal(labels, other[1])
    assert not np.array_equal(labels, draw(coarse("site P"), 1)[1]), "no two sites share a patient"


def test_the_phantoms_of_this_version_stay_what_they_are() -> None:
    """The committed scores are theirs: who changes these counts raises phantoms.VERSION."""
    _, labels, degraded = draw(SITES["site A"], 0)
    assert phantoms.VERSION == 1
    assert np.bincount(labels.ravel())[1:].tolist() == [
        15376,
        1483,
        1889,
        1074,
        1426,
        1433,
        180,
        295,
        686,
        438,
        3241,
        838,
        1880,
    ]
    assert np.flatnonzero(degraded).tolist() == [2, 3, 10, 11, 18, 23, 24, 25, 26, 29, 31, 32, 33, 35]


def test_the_bend_is_the_spline_through_its_knots() -> None:
    knots, shape = np.random.default_rng(1).normal(0, 5, (3, 5, 5, 5)).astype(np.float32), (9, 7, 6)
    where = np.meshgrid(*[np.linspace(0, 4, n) for n in shape], indexing="ij")
    expected = [map_coordinates(axis, where, order=3, mode="nearest") for axis in knots]
    assert np.allclose(phantoms._between(knots, shape), expected, atol=1e-4)


def test_sites_differ_and_share_no_seed() -> None:
    tests = [SITES[name] for name in ("site A", "site B", "site C", "site M")]
    for one, other in combinations(tests, 2):
        assert one.spacing_mm != other.spacing_mm and one.shape != other.shape
        assert (one.noise_hu, one.contrast, one.modality) != (other.noise_hu, other.contrast, other.modality)
    assert len({site.axes for site in tests}) == 4
    starts = sorted(site.first_seed for site in SITES.values())
    assert min(np.diff(starts)) >= 1000
    noise = [
        np.median(corner_noise(signal)[~degraded])
        for signal, _, degraded in map(phantom, ("site A", "site B", "site C"))
    ]
    assert (np.diff(noise) > 3).all(), "HU"


def test_contrast_brings_organs_closer_together() -> None:
    spread = []
    for contrast in (1.0, 0.5):
        signal, labels, _ = phantom(degraded=0.0, contrast=contrast)
        spread.append(np.std([signal[labels == organ.label].mean() for organ in ORGANS]))
    assert spread[1] < 0.7 * spread[0]


def test_the_mri_site_has_no_hounsfield_units() -> None:
    signal, labels, _ = phantom("site M")
    assert signal.min() == 0 and signal.dtype == np.float32
    bright = {key: signal[labels == BY_KEY[key].label].mean() for key in KEYS}
    assert bright["aorta"] < bright["liver"] < bright["gallbladder"], (
        "vessels are dark and bile is bright, unlike in the CT"
    )


def test_an_organ_that_nobody_has_is_drawn_nowhere() -> None:
    signal, labels, _ = draw(coarse(without=("left kidney",)), 1)
    whole, both, _ = draw(coarse(), 1)
    left = both == BY_KEY["left kidney"].label
    assert not (labels == BY_KEY["left kidney"].label).any() and left.any()
    assert set(np.unique(both)) - set(np.unique(labels)) == {BY_KEY["left kidney"].label}
    assert np.array_equal(labels == BY_KEY["right kidney"].label, both == BY_KEY["right kidney"].label)
    assert signal[left].mean() < whole[left].mean() - 30, "nor in the image"


def test_slices_degraded_at_a_low_share_are_degraded_at_a_higher_one_in_the_same_patient() -> None:
    drawn = {share: draw(coarse(degraded=share), 1) for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    assert all(np.array_equal(labels, drawn[0.0][1]) for _, labels, _ in drawn.values()), "the same anatomy"
    spoiled = [set(np.flatnonzero(degraded)) for *_, degraded in drawn.values()]
    assert all(fewer <= more for fewer, more in pairwise(spoiled)) and [
        len(spoiled[0]),
        len(spoiled[-1]),
    ] == [0, 12]
    assert sorted(map(len, spoiled)) == list(map(len, spoiled)) and len(set(map(len, spoiled))) > 3


def test_who_lacks_an_organ_keeps_the_others() -> None:
    gone = ("gallbladder", "spleen", "left kidney")
    _, labels, degraded = draw(coarse(without=gone), 1)
    _, whole, spoiled = draw(coarse(), 1)
    kept = ~np.isin(whole, [BY_KEY[key].label for key in gone])
    assert np.array_equal(labels[kept], whole[kept]) and np.array_equal(degraded, spoiled)


def files_of(folder: Path) -> dict[str, int]:
    """{file: time of its last change}."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_cohort_has_flare22_s_layout(tmp_path: Path) -> None:
    folder = write_cohort(coarse(), (1, 2), tmp_path / "cohort")
    names = {f"images/FLARE22_Tr_{n:04d}_0000.nii.gz" for n in (1, 2)} | {
        f"labels/FLARE22_Tr_{n:04d}.nii.gz" for n in (1, 2)
    }
    assert set(files_of(folder)) == names | {"cohort.json"}
    assert [case.id for case in find_cases("FLARE22", folder)] == ["FLARE22_Tr_0001", "FLARE22_Tr_0002"]


@pytest.mark.parametrize("name", list(SITES))
def test_what_is_written_is_what_was_drawn_in_the_site_s_own_axes(name: str, tmp_path: Path) -> None:
    site = coarse(name)
    case = find_cases("FLARE22", write_cohort(site, [1], tmp_path))[0]
    signal, labels, degraded = draw(site, 1)
    assert "".join(nib.aff2axcodes(nib.load(case.image).affine)) == site.axes
    read, grid = read_scan(case.image)
    assert grid.spacing_mm == pytest.approx(site.spacing_mm) and np.array_equal(read, signal.round())
    truth = read_labels(case.labels, site.label_map, grid)
    missing = BY_KEY["duodenum"].label if site.label_map == "BTCV" else 99
    assert np.array_equal(truth, np.where(labels == missing, 0, labels))
    assert degraded_slices(case) == set(np.flatnonzero(degraded))


@pytest.mark.parametrize("name", list(IDS))
def test_label_files_hold_the_data_set_s_own_ids(name: str, tmp_path: Path) -> None:
    site = coarse(name)
    write_cohort(site, [1], tmp_path)
    file = nib.load(tmp_path / "labels" / "FLARE22_Tr_0001.nii.gz")
    ids, voxels = np.asarray(file.dataobj), np.argwhere(np.asarray(file.dataobj) >= 0)
    labels, number = draw(site, 1)[1], dict(zip(KEYS, IDS[name], strict=True))
    for key in KEYS:
        assert number[key] == 0 or (ids == number[key]).sum() == (labels == BY_KEY[key].label).sum() > 0
    assert set(np.unique(ids)) == {0, *IDS[name]}
    world = (voxels @ file.affine[:3, :3].T)[:, 0].reshape(ids.shape)  # RAS: grows to the patient's right
    assert world[ids == number["liver"]].mean() > world[ids == number["spleen"]].mean()
    assert world[ids == number["right kidney"]].mean() > world[ids == number["left kidney"]].mean()


def test_cases_of_any_numbers_are_those_of_the_whole_cohort(tmp_path: Path) -> None:
    """So a variant can be made of the test patients alone."""
    whole, some = (
        write_cohort(coarse(), range(1, 6), tmp_path / "whole"),
        write_cohort(coarse(), (2, 5), tmp_path / "some"),
    )
    cases = find_cases("FLARE22", some)
    assert [case.id for case in cases] == ["FLARE22_Tr_0002", "FLARE22_Tr_0005"]
    for case in cases:
        assert case.image.read_bytes() == (whole / "images" / case.image.name).read_bytes()
        assert (
            degraded_in(some, case.id[-4:])
            == degraded_in(whole, case.id[-4:])
            == set(np.flatnonzero(draw(coarse(), int(case.id[-4:]))[2]))
        )
    assert degraded_in(tmp_path, "0002") == set(), "a folder that holds no cohort"


def test_a_second_call_writes_nothing_and_other_settings_write_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(coarse(), range(1, 3), tmp_path)
    before = files_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "_write_case", lambda *_: pytest.fail("drawn again"))
        write_cohort(coarse(), range(1, 3), tmp_path)
    assert files_of(tmp_path) == before
    write_cohort(coarse(noise_hu=40.0), range(1, 3), tmp_path)
    assert all(files_of(tmp_path)[name] > time for name, time in before.items())
    assert json.loads((tmp_path / "cohort.json").read_text())["site"]["noise_hu"] == 40.0


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/cohort/cohort\.json cannot be written"):
        write_cohort(coarse(), [1], tmp_path / "file" / "cohort")


def test_a_cohort_that_was_broken_off_is_completed(tmp_path: Path) -> None:
    whole, broken = (
        write_cohort(coarse(), range(1, 4), tmp_path / "whole"),
        write_cohort(coarse(), range(1, 4), tmp_path / "broken"),
    )
    (broken / "cohort.json").unlink()
    (broken / "labels" / "FLARE22_Tr_0003.nii.gz").unlink()
    (broken / "images" / "FLARE22_Tr_0002_0000.nii.gz").write_bytes(b"of another phantom")
    write_cohort(coarse(), range(1, 4), broken)
    assert set(files_of(broken)) == set(files_of(whole))
    for name in files_of(whole):
        one, other = (whole / name).read_bytes(), (broken / name).read_bytes()
        assert one == other, name


def test_other_processes_draw_the_same_cohort(tmp_path: Path) -> None:
    """Degraded slices stand beside their own phantom; from 20 phantoms on, every core draws."""
    site = replace(coarse(), shape=(12, 12, 9))
    for case in find_cases("FLARE22", write_cohort(site, range(1, 21), tmp_path)):
        signal, _, degraded = draw(site, int(case.id[-4:]))
        assert degraded_slices(case) == set(np.flatnonzero(degraded))
        assert np.array_equal(read_scan(case.image)[0], signal.round())
