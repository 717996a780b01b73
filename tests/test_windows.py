"""What a step is fed: windows of true neighbours and their controls, samples by weight, and single slices."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import fake_store, slice_settings, tiny_settings
from torch import Tensor

from lib.files import InputError
from lib.organs import BY_KEY, KEYS, ORGANS
from lib.volumes import Grid
from lib.windows import (
    SliceSampler,
    WindowSampler,
    expected_samples,
    expected_weights,
    manifest_windows,
    store_window,
    turned,
    window_mm,
)

STILL: dict[str, Any] = {"rotate_degrees": 0.0, "flip": False}
LIVER, SPLEEN, AORTA, ESOPHAGUS = (KEYS.index(key) for key in ("liver", "spleen", "aorta", "esophagus"))


def seen(z: int, slices: int, settings: Any, spacing_mm: float = 1.0, donor: int = 0) -> list[int]:
    """The window of slice z in a scan of that many slices, maybe beside another patient's."""
    grid = Grid((24, 24, slices), np.diag([-1.0, -1.0, spacing_mm, 1.0]))
    other = fake_store(donor).image if donor else None
    return store_window(replace(fake_store(slices), grid=grid, donor=other), z, settings)


WINDOWS = [
    (5, 5, 9, [3, 4, 5, 6, 7]), (5, 0, 9, [0, 0, 0, 1, 2]), (5, 8, 9, [6, 7, 8, 8, 8]), (5, 0, 1, [0] * 5),
    (1, 4, 9, [4]), (3, 0, 9, [0, 0, 1]), (9, 4, 9, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    (9, 1, 9, [0, 0, 0, 0, 1, 2, 3, 4, 5]), (9, 8, 9, [4, 5, 6, 7, 8, 8, 8, 8, 8]),
]  # fmt: skip


@pytest.mark.parametrize(("window", "z", "slices", "expected"), WINDOWS)
def test_a_window_is_the_true_neighbours_with_edges_replicated(window, z, slices, expected) -> None:
    assert seen(z, slices, tiny_settings("adapter", window=window)) == expected
    assert seen(z, slices, tiny_settings("centre only", window=window)) == [z] * window
    assert seen(z, slices, tiny_settings("baseline", window=window)) == [z]


@pytest.mark.parametrize(
    ("spacing_mm", "step_mm", "window", "z", "expected"),
    [
        (2.5, 2.5, 5, 10, [8, 9, 10, 11, 12]),
        (5.0, 2.5, 5, 10, [9, 9, 10, 11, 11]),  # half a slice counts as a whole one on both sides
        (0.8, 2.5, 5, 10, [4, 7, 10, 13, 16]),  # 3.1 and 6.25 slices
        (10.0, 2.5, 5, 10, [9, 10, 10, 10, 11]),
        (11.0, 2.5, 5, 10, [10] * 5),
        (0.25, 2.5, 5, 10, [0, 0, 10, 19, 19]),  # 10 and 20 slices
        (4.0, 6.0, 9, 10, [4, 5, 7, 8, 10, 12, 13, 15, 16]),  # 1.5, 3, 4.5 and 6 slices
        (4.0, 6.0, 9, 2, [0, 0, 0, 0, 2, 4, 5, 7, 8]),
        (4.0, 6.0, 1, 10, [10]),
    ],
)
def test_a_window_in_mm_reaches_as_far_whatever_the_spacing(spacing_mm, step_mm, window, z, expected) -> None:
    settings = tiny_settings("adapter", window_unit="mm", window_step_mm=step_mm, window=window)
    assert seen(z, 20, settings, spacing_mm) == expected
    plain = replace(settings, window_unit="slices")
    assert seen(10, 20, plain, spacing_mm) == [*range(10 - window // 2, 11 + window // 2)]


@pytest.mark.parametrize(
    ("spacing_mm", "window", "z", "expected"),
    [
        (2.5, 5, 10, [-2, -1, 0, 1, 2]),
        (5.0, 5, 10, [0, -1, 0, 1, 0]),  # two slices are too far
        (6.0, 5, 10, [0, 0, 0, 0, 0]),
        (1.1, 5, 10, [-2, -1, 0, 1, 2]),  # no more than the window holds
        (1.1, 11, 10, [0, -4, -3, -2, -1, 0, 1, 2, 3, 4, 0]),
        (5 / 3, 9, 10, [0, -3, -2, -1, 0, 1, 2, 3, 0]),  # 5 mm to the last
        (2.5, 5, 0, [0, 0, 0, 1, 2]),
        (2.5, 5, 18, [-2, -1, 0, 1, 0]),
    ],
)
def test_a_window_within_5_mm_holds_what_lies_there_and_no_edge_twice(
    spacing_mm, window, z, expected
) -> None:
    settings = tiny_settings("adapter", within_mm=5.0, window=window)
    found = np.array([seen(z, 20, settings, spacing_mm)])
    assert (found - z).tolist() == [expected]
    grid = Grid((24, 24, 20), np.diag([-1.0, -1.0, spacing_mm, 1.0]))
    mm = window_mm(replace(fake_store(20), grid=grid), found)[0].tolist()
    middle = [0.0 if place == window // 2 else np.inf for place in range(window)]
    assert mm == pytest.approx([a * spacing_mm or b for a, b in zip(expected, middle, strict=True)])


@pytest.mark.parametrize("sampler", ["shuffled", "slab"])
def test_windows_within_mm_come_with_their_distances_in_every_piece_of_a_step(sampler: str) -> None:
    grids = [Grid((24, 24, 9), np.diag([-1.0, -1.0, apart, 1.0])) for apart in (2.0, 4.0)]
    stores = [replace(fake_store(9, seed=seed), grid=grid) for seed, grid in enumerate(grids)]
    settings = tiny_settings("adapter", within_mm=5.0, window=7, sampler=sampler, batch=8, **STILL)
    drawn, again = (WindowSampler(stores, settings) for _ in range(2))
    for step in range(4):
        batch = drawn[step]
        assert all(map(torch.equal, batch, again[step])) and len(batch.windows) == len(batch.mm)
        rows = np.array(places(batch.slices, *(store.image for store in stores)))[batch.windows]
        for window, mm in zip(rows, batch.mm, strict=True):
            case, z = divmod(int(window[3]), 9)
            assert window.tolist() == [9 * case + row for row in store_window(stores[case], z, settings)]
            assert torch.equal(mm[None], window_mm(stores[case], window[None]))
        pieces = [piece for _, piece in batch.split(2)]
        assert len(pieces) == 2 and torch.equal(torch.cat([piece.mm for piece in pieces]), batch.mm)


@pytest.mark.parametrize("unit", ["slices", "mm"])
@pytest.mark.parametrize(("window", "fewest"), [(1, 0), (3, 1), (5, 8), (9, 8)])
def test_shuffled_neighbours_are_the_same_slices_about_the_same_centre(window, fewest, unit) -> None:
    true = tiny_settings("adapter", window=window, window_unit=unit, window_step_mm=6.0)
    shuffled, moved = replace(true, neighbours="shuffled"), 0
    for z in range(12):
        ours, theirs = (seen(z, 12, settings, 4.0) for settings in (shuffled, true))
        assert ours[window // 2] == z and sorted(ours) == sorted(theirs)
        assert ours == seen(z, 12, shuffled, 4.0), "the same for every prompt and call"
        moved += ours != theirs
    assert moved >= fewest


@pytest.mark.parametrize(
    ("z", "slices", "donor", "expected"),
    [
        (4, 9, 17, [9 + 6, 9 + 7, 4, 9 + 9, 9 + 10]),  # half-way up a scan of twice the length
        (0, 9, 17, [9, 9, 0, 9 + 1, 9 + 2]),
        (8, 9, 17, [9 + 14, 9 + 15, 8, 9 + 16, 9 + 16]),
        (8, 9, 5, [9 + 2, 9 + 3, 8, 9 + 4, 9 + 4]),
        (4, 9, 1, [9, 9, 4, 9, 9]),
        (0, 1, 5, [1, 1, 0, 2, 3]),
        (5, 9, 0, [3, 4, 5, 6, 7]),  # nobody else is there
    ],
)
def test_another_patient_s_neighbours_come_from_the_same_relative_height(z, slices, donor, expected) -> None:
    settings = tiny_settings("adapter", neighbours="another patient")
    assert seen(z, slices, settings, donor=donor) == expected
    assert seen(z, slices, replace(settings, window=1), donor=donor) == [z]


def places(pictures: Tensor, *images: np.ndarray) -> list[int | None]:
    """Which row of `images`, one after the other, each picture of a step is; None: a turned one."""
    known = {picture.tobytes(): row for row, picture in enumerate(np.concatenate(images))}
    return [known.get(picture.numpy().round().astype(np.uint8).tobytes()) for picture in pictures]


@pytest.mark.parametrize("sampler", ["shuffled", "slab"])
@pytest.mark.parametrize("neighbours", ["true", "another patient", "manifest"])
def test_samples_have_their_slice_s_window_and_mask(sampler: str, neighbours: str) -> None:
    store = replace(fake_store(9), donor=fake_store(17, seed=1).image)
    change = {"neighbours": neighbours, "slab_prompts": 13, "batch": 16, "sampler": sampler, **STILL}
    settings, released = tiny_settings("adapter", **change), neighbours == "manifest"
    manifest = manifest_windows(store.presence, 2)
    for step in range(3):
        samples = WindowSampler([store], settings)[step]
        rows = np.array(places(samples.slices, store.image, store.donor))
        windows = rows[samples.windows[samples.centre]]
        for organ, mask, window in zip(samples.prompt, samples.masks, windows.tolist(), strict=True):
            z = window[2]
            assert window == (manifest[z, organ].tolist() if released else store_window(store, z, settings))
            assert np.array_equal(mask > 0, store.labels[z] == ORGANS[organ].label)
    distinct = {(z, tuple(window)) for z, window in zip(windows[:, 2], windows.tolist(), strict=True)}
    assert (len(distinct) > len({*windows[:, 2]})) == released, "a window for each prompt"
    assert WindowSampler([store], tiny_settings(**change))[0].windows.shape[1] == 1, "no adapter, no window"


# The released code's manifest


def test_a_manifest_s_windows_by_hand() -> None:
    """Slices 0 and 3 show nothing, 1 the liver and the spleen, 2 the liver: five rows."""
    presence = np.zeros((4, 14), int)
    presence[:, 0], presence[1:3, 1], presence[1, 3] = 9, 5, 1
    windows = manifest_windows(presence, 1)
    assert windows.shape == (4, 14, 3)
    assert windows[1, [LIVER, SPLEEN]].tolist() == [[0, 1, 1], [1, 1, 2]]
    assert windows[2, LIVER].tolist() == [1, 2, 3]
    assert windows[[0, 3], 13].tolist() == [[0, 0, 1], [2, 3, 3]], "edges are replicated"
    assert windows[1, AORTA].tolist() == [0, 1, 1], "what a slice does not show stands at its first row"
    assert windows[2, SPLEEN].tolist() == [1, 2, 3]


# Weights


def test_expected_weights_by_hand() -> None:
    """One negative sample to three positive ones; as released from slices without any organ, a tenth of them
    but at least one, and with 0.4 of the organ's weight."""
    presence, few = np.zeros((6, 14), int), 8 * 2 / 12
    presence[:3, BY_KEY["liver"].label] = 7  # weight 1, in three of six slices
    presence[2:4, BY_KEY["esophagus"].label] = 2  # weight 8, in two of six
    weights = expected_weights(presence, tiny_settings(balance="table 1"))
    assert weights[:, LIVER].tolist() == pytest.approx([1, 1, 1, 1 / 3, 1 / 3, 1 / 3])
    assert weights[:, ESOPHAGUS].tolist() == pytest.approx([few, few, 8, 8, few, few])
    assert not weights[:, SPLEEN].any(), "an organ that the scan never shows is not asked for"
    rare = {"negatives_per_positive": 0.1, "negative_weight": 0.4}
    released = tiny_settings(balance="table 1", negatives="empty", **rare)
    weights = expected_weights(presence, released)
    assert weights[:, LIVER].tolist() == pytest.approx([1, 1, 1, 0, 0.2, 0.2])
    assert weights[:, ESOPHAGUS].tolist() == pytest.approx([0, 0, 8, 8, 1.6, 1.6])
    assert expected_samples(presence, released).sum() == pytest.approx(3 + 2 + 1 + 1)
    assert expected_samples(np.repeat(presence, 10, 0), released).sum() == pytest.approx(30 + 20 + 3 + 2)
    presence[4:, BY_KEY["aorta"].label] = 1
    assert np.array_equal(expected_weights(presence, released) > 0, presence[:, 1:] > 0), "no slice is empty"


def test_a_scan_without_an_organ_shares_its_negatives_unless_they_are_the_same_scan_s() -> None:
    """Two of four slices show the liver, none of another scan's four: two thirds of a sample over six."""
    with_it, without = fake_store(4), fake_store(4)
    for store in (with_it, without):
        store.presence[:, 1:] = 0
    with_it.presence[:2, 1] = 5
    shares = {"all scans": [1, 1, *[1 / 9] * 6], "same scan": [1, 1, 1 / 3, 1 / 3, *[0] * 4]}
    for source, expected in shares.items():
        weights = WindowSampler([with_it, without], tiny_settings(negatives_from=source)).weights[:, LIVER]
        assert (weights / weights[0]).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("balance", "expected"), [("table 1", [8, 2, 1]), ("released", [5, 3, 1]), ("equal", [1, 1, 1])]
)
def test_weights_of_organs_by_name(balance: str, expected: list[float]) -> None:
    presence, three = np.ones((2, 14), int), [KEYS.index(key) for key in ("duodenum", "pancreas", "aorta")]
    assert expected_weights(presence, tiny_settings(balance=balance))[0, three].tolist() == expected
    presence[1, 1:] = 0
    assert (expected_weights(presence, tiny_settings(balance="none")) == 1).all(), "absent or present"


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (120, {"sampler": "shuffled", "batch": 60}),
        (1000, {"sampler": "slab", "slab_centres": 12, "slab_prompts": 2}),
        (500, {"sampler": "slab", "slab_centres": 12, "slab_prompts": 13}),
    ],
)
def test_both_samplers_give_every_slice_and_organ_its_weight(steps: int, changes: dict[str, Any]) -> None:
    """By counting: all come out at the weights of Table 1 with 1 negative per 3 positives."""
    stores = [fake_store(9, size=16), fake_store(1, size=16, seed=1)]
    settings = tiny_settings(slab_length=4, balance="table 1", **changes, **STILL)
    sampler, total = WindowSampler(stores, settings), np.zeros((10, 13))
    images = [store.image for store in stores]
    for step in range(steps):
        samples = sampler[step]
        centres = np.array(places(samples.slices[samples.windows[:, 0]], *images))[samples.centre]
        np.add.at(total, (centres, samples.prompt), samples.weight / len(samples.weight))
    expected = expected_weights(np.concatenate([store.presence for store in stores]), settings)
    assert np.abs(total / total.sum() - expected / expected.sum()).max() < 0.008
    assert expected.max() / expected.sum() > 0.039, "the tolerance is small beside the weights"


# Flips and turns


@pytest.mark.parametrize(
    ("mirror", "axis", "steps", "changes"),
    [
        ("left-right", -1, 120, {"sampler": "slab", "slab_centres": 8, "slab_length": 4, "slab_prompts": 13}),
        ("front-back", -2, 40, {"sampler": "shuffled", "batch": 60, "balance": "equal"}),
    ],
)
def test_flips_never_touch_an_organ_with_a_side_and_are_half_of_others(mirror, axis, steps, changes) -> None:
    store, flips = fake_store(9, size=16), np.zeros((13, 2))
    settings = tiny_settings("adapter", rotate_degrees=0.0, flip=True, mirror=mirror, **changes)
    sampler = WindowSampler([store], settings)
    for step in range(steps):
        samples = sampler[step]
        centres = samples.slices[samples.windows[:, 2]]
        kept, back = (np.array(places(way, store.image), float) for way in (centres, centres.flip(axis)))
        flipped = np.isnan(kept)[samples.centre]
        np.add.at(flips, (samples.prompt, flipped.astype(int)), samples.weight / len(samples.weight))
        z = np.where(np.isnan(kept), back, kept)[samples.centre].astype(int)
        masks = torch.where(torch.from_numpy(flipped)[:, None, None], samples.masks.flip(axis), samples.masks)
        assert np.array_equal(masks > 0, store.labels[z] == samples.prompt.numpy()[:, None, None] + 1)
    for organ, (upright, mirrored) in zip(ORGANS, flips, strict=True):
        assert mirrored / (upright + mirrored) == (0 if organ.lateral else pytest.approx(0.5, abs=0.1))


def test_a_flipped_run_of_slices_that_show_organs_with_a_side_alone() -> None:
    """Nothing may be asked there: a kidney's lower end, flipped, with negatives from empty slices only."""
    store = fake_store(9)
    store.presence[:, 1:] = 0
    store.presence[:5, BY_KEY["left kidney"].label] = store.presence[4:, BY_KEY["liver"].label] = 4
    settings = tiny_settings(flip=True, negatives="empty", slab_centres=8, slab_length=4, slab_prompts=5)
    asked = {int(organ) for step in range(30) for organ in WindowSampler([store], settings)[step].prompt}
    assert asked == {LIVER, KEYS.index("left kidney")}


def test_pictures_are_turned_and_then_flipped() -> None:
    picture = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    quarter = turned(picture, 90, "", "nearest")
    assert torch.equal(quarter, torch.from_numpy(np.rot90(picture, 1, (1, 2)).copy()).float())
    upright = torch.from_numpy(picture).float()
    assert torch.equal(turned(picture, 0, "", "nearest"), upright)
    assert torch.equal(turned(picture, 0, "", "bilinear"), upright)
    for mirror, axis in (("left-right", -1), ("front-back", -2)):  # the latter as the released code does
        assert torch.equal(turned(picture, 0, mirror, "nearest"), upright.flip(axis))
        assert torch.equal(turned(picture, 90, mirror, "nearest"), quarter.flip(axis))
    corner = turned(np.zeros((1, 32, 32), np.uint8), 45, "", "bilinear", 114.5)[0, 0, 0]
    assert corner == 114.5, "and not black"


def test_slices_are_shifted_and_enlarged_about_their_middle() -> None:
    picture = np.random.default_rng(0).integers(1, 255, (1, 32, 32)).astype(np.uint8)
    whole = torch.from_numpy(picture).float()
    right = turned(picture, 0, "", "nearest", frame=(1.0, 2 * 4 / 32, 0.0))
    assert torch.equal(right[..., :28], whole[..., 4:]) and not right[..., 28:].any()
    down = turned(picture, 0, "", "nearest", frame=(1.0, 0.0, -2 * 3 / 32))
    assert torch.equal(down[:, 3:], whole[:, :-3]) and not down[:, :3].any()
    middle = whole[:, 8:24, 8:24].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(turned(picture, 0, "", "nearest", frame=(0.5, 0.0, 0.0)), middle)


def test_a_moved_slice_takes_its_mask_along() -> None:
    store = fake_store(4, size=64)
    store.image[:] = 255 * (store.labels == 1 + LIVER)
    settings = tiny_settings(move=0.2, rotate_degrees=0.0, flip=False, organs=("liver",))
    sampler, areas = WindowSampler([store], settings), set()
    for step in range(6):
        batch = sampler[step]
        pictures = batch.slices[batch.windows[batch.centre, 0]] > 127
        assert torch.equal(pictures, batch.masks > 0) or (pictures ^ (batch.masks > 0)).float().mean() < 0.01
        areas.add(int(batch.masks.sum()))
    assert len(areas) > 3, "sizes vary"


def test_one_augmentation_for_all_slices_of_a_window_and_their_masks() -> None:
    """Slices that are copies of their own label map stay so, whatever the turn and flip."""
    store = fake_store(9)
    store.image[:] = store.labels
    sampler = WindowSampler([store], tiny_settings("adapter", sampler="shuffled", batch=75, flip=True))
    tilted = 0
    for samples in (sampler[0], sampler[1]):
        for n, place in enumerate(samples.windows[samples.centre, 2]):
            inside = samples.slices[place] == ORGANS[int(samples.prompt[n])].label  # bilinear keeps it exact
            assert not inside.any() or samples.masks[n][inside].mean() >= 0.9
            tilted += bool((samples.slices[place] % 1 != 0).any())
    assert tilted > 50, "the pictures were turned"


# Steps


def same(one: Any, two: Any) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_samples_are_a_function_of_seed_and_step() -> None:
    store, settings = fake_store(9), tiny_settings("adapter")
    first = WindowSampler([store], settings)[7]
    assert same(first, WindowSampler([store], settings)[7])
    assert not same(first, WindowSampler([store], settings)[6])
    assert not same(first, WindowSampler([store], replace(settings, seed=1))[7])


def test_an_epoch_draws_positives_and_a_third_as_many_negatives_or_every_slice_once() -> None:
    store = fake_store(9)  # 13 organs in 36 pairs of slice and organ: 48 samples, 5.3 a slice

    def epoch(**changes: Any) -> int:
        usual = {"epoch_steps": 0, "epochs": 3, "slab_centres": 2, "slab_length": 2}
        settings = tiny_settings(**usual | changes)
        return len(WindowSampler([store], settings)) // 3

    assert epoch(sampler="shuffled", batch=8) == 6
    assert epoch(sampler="shuffled", batch=8, organs=("liver",)) == 1, "three slices and one more"
    assert epoch(sampler="slab", slab_centres=8, slab_prompts=1) == 6, "the fast way has the paper's steps"
    assert epoch(sampler="slab", slab_prompts=3) == 8
    assert {epoch(sampler="slab", slab_prompts=prompts) for prompts in (6, 13)} == {5}, "two slices at a time"
    assert epoch(sampler="slab", epoch_steps=7) == 7, "as the small profiles say it themselves"
    stores = [store, fake_store(5)]
    assert len(SliceSampler(stores, slice_settings(epochs=3, epoch_steps=0, batch=4))) == 3 * 4
    assert len(SliceSampler(stores, slice_settings(epochs=3, epoch_steps=7))) == 3 * 7


# Slices by themselves


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_step_is_a_function_of_seed_and_step_that_processes_share(world: int) -> None:
    settings, stores = slice_settings(turns=True, intensity=True), [fake_store(9), fake_store(5, seed=1)]
    sampler = SliceSampler(stores, settings)
    whole = sampler[1]
    for field, dtype in zip(whole, (torch.float32, torch.uint8), strict=True):
        assert field.shape == (4, 24, 24) and field.dtype == dtype
        assert type(field) is Tensor, "MONAI's own kind would go through the whole model"
    assert not same(whole, sampler[0])
    assert not same(whole, SliceSampler(stores, replace(settings, seed=1))[1])
    for rank in range(world):
        assert same(SliceSampler(stores, settings, rank, world)[1], [field[rank::world] for field in whole])


def test_every_slice_of_every_scan_is_drawn_once_an_epoch() -> None:
    """Fourteen slices, four a step: seven steps are two epochs, the first of which ends within the fourth."""
    stores, drawn = [fake_store(9), fake_store(1), fake_store(4)], []
    for store, first in zip(stores, (10, 100, 200), strict=True):
        store.image[:] = (first + np.arange(len(store.image)))[:, None, None]  # a grey value for each slice
    sampler = SliceSampler(stores, slice_settings(batch=4))
    for step in range(7):
        drawn += (sampler[step].image.amax((1, 2)) * 255).round().int().tolist()
    assert sorted(drawn[:14]) == sorted(drawn[14:]) == [*range(10, 19), 100, *range(200, 204)]
    assert drawn[:14] != drawn[14:], "in another order"


def test_without_turns_and_intensity_a_slice_is_the_store_s_own() -> None:
    """So it is in validation, whose sampler does not augment. Spleen, liver, and all else is background."""
    store, drawn = fake_store(9), set[int]()
    plain = SliceSampler([store], slice_settings())
    bare = SliceSampler([store], slice_settings(turns=True, intensity=True), augmented=False)
    for step in range(10):
        assert same(plain[step], bare[step]) and plain[step].image.shape == (4, 24, 24)
        rows = places(plain[step].image * 255, store.image)
        for z, image, labels in zip(rows, *plain[step], strict=True):
            assert torch.equal(image, torch.from_numpy(store.image[z]).float() / 255)
            shown = store.labels[z]
            assert np.array_equal(labels, np.where(shown == 3, 1, np.where(shown == 1, 2, 0)))
            drawn.add(z)
    assert len(drawn) > 5


def test_turns_keep_image_and_labels_together() -> None:
    """Every pixel has a grey value of its own, which tells its organ: it is known again wherever it goes."""
    greys = np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(16, 16)
    ids = np.array([3] * 90 + [1] * 80 + [5] * 86, np.uint8)  # spleen, liver, and the aorta, not asked for
    table = torch.tensor([1] * 90 + [2] * 80 + [0] * 86, dtype=torch.uint8)
    store = fake_store(4, size=16)
    store.image[:], store.labels[:] = greys, ids[greys]
    sampler, found = SliceSampler([store], slice_settings(size=16, turns=True, batch=16)), []
    for step in range(20):
        for image, labels in zip(*sampler[step], strict=True):
            shown = (image * 255).round().long()
            assert torch.equal(labels, table[shown])
            found.append(shown.byte().numpy().tobytes())
    ways = [np.rot90(picture, quarters) for picture in (greys, greys.T) for quarters in range(4)]
    counts = np.array([found.count(way.tobytes()) for way in ways])
    assert counts.sum() == len(found) == 320 and counts.min() > 10, "flips and quarter turns, all eight"


def test_intensity_changes_grey_values_a_little_and_labels_never() -> None:
    store, settings = fake_store(9), slice_settings(batch=32)
    changed, plain = SliceSampler([store], replace(settings, intensity=True)), SliceSampler([store], settings)
    shifts, apart = [], []
    for step in range(10):
        one, two = changed[step], plain[step]
        assert torch.equal(one.labels, two.labels)
        difference = one.image - two.image
        shifts += difference.mean((1, 2)).tolist()
        apart += difference.abs().amax((1, 2)).tolist()
    assert max(apart) < 0.1 + 0.11 + 5 * 0.02, "a tenth more, a tenth brighter, and noise of two hundredths"
    assert 0.05 < np.mean(np.array(apart) == 0) < 0.25, "an eighth of the slices stays as it is"
    assert min(shifts) < -0.05 and max(shifts) > 0.05 and abs(np.mean(shifts)) < 0.02


# What samplers refuse


def test_processes_share_slabs_each_with_the_slices_of_its_own() -> None:
    settings = tiny_settings("adapter", slab_centres=8, slab_length=4, slab_prompts=2)
    stores = [fake_store(9), fake_store(7, seed=1)]
    whole = WindowSampler(stores, settings)[3]
    parts = [WindowSampler(stores, settings, rank, 2)[3] for rank in (0, 1)]
    assert torch.equal(torch.cat([part.slices for part in parts]), whole.slices)
    assert torch.equal(torch.cat([part.prompt for part in parts]), whole.prompt)
    assert np.mean([part.weight.mean() for part in parts]) == pytest.approx(float(whole.weight.mean()))
    with pytest.raises(InputError, match="3 processes cannot share 2 slabs"):
        WindowSampler(stores, settings, 0, 3)


def test_samplers_refuse_what_they_cannot_draw_from() -> None:
    store, settings = fake_store(9), slice_settings()
    with pytest.raises(InputError, match="5 processes cannot share 4 slices"):
        SliceSampler([store], settings, 0, 5)
    store.presence[:, [1, 3]] = 0  # eleven other organs are there
    for bare in (store, replace(store, presence=None)):
        with pytest.raises(InputError, match=r"^No case of site B shows spleen or liver: .*\.$"):
            SliceSampler([bare], settings)
    SliceSampler([store, fake_store(9)], settings)
    SliceSampler([store], replace(settings, organs=("aorta",)))
    store.presence[:, 1:] = 0
    with pytest.raises(InputError, match="any organ"):
        WindowSampler([store], tiny_settings())
