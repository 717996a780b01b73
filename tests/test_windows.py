"""What a step is fed: windows of true neighbours and their controls, samples by weight, and single slices."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import fake_store, slice_settings, tiny_settings
from torch import Tensor

from lib.config import ClipSegSettings
from lib.data import Store
from lib.files import InputError
from lib.organs import BY_KEY, KEYS, ORGANS
from lib.phantoms import SITES, draw
from lib.volumes import Grid
from lib.windows import (
    Slices,
    SliceSampler,
    WindowSampler,
    _sample,
    expected_weights,
    manifest_windows,
    store_window,
    turned_grid,
    window_of,
)

STILL = {"rotate_degrees": 0.0, "flip": False}
SAMPLING = {"negatives": "empty", "negatives_per_positive": 0.04, "balance": "released"}


def test_window_is_the_true_neighbours_with_edges_replicated() -> None:
    settings = tiny_settings("adapter")
    assert window_of(5, 9, settings) == [3, 4, 5, 6, 7]
    assert window_of(0, 9, settings) == [0, 0, 0, 1, 2]
    assert window_of(8, 9, settings) == [6, 7, 8, 8, 8]
    assert window_of(0, 1, settings) == [0] * 5, "a one-slice volume"
    assert window_of(4, 9, tiny_settings("centre only")) == [4] * 5
    assert window_of(4, 9, tiny_settings("baseline")) == [4]


@pytest.mark.parametrize(
    ("window", "z", "expected"),
    [
        (1, 4, [4]),
        (3, 0, [0, 0, 1]),
        (3, 8, [7, 8, 8]),
        (9, 4, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (9, 1, [0, 0, 0, 0, 1, 2, 3, 4, 5]),
        (9, 8, [4, 5, 6, 7, 8, 8, 8, 8, 8]),
    ],
)
def test_windows_of_other_sizes(window: int, z: int, expected: list[int]) -> None:
    assert window_of(z, 9, tiny_settings("adapter", window=window)) == expected
    assert window_of(z, 9, tiny_settings("adapter", window=window, neighbours="centre")) == [z] * window
    assert window_of(0, 1, tiny_settings("adapter", window=window)) == [0] * window, "a one-slice volume"


@pytest.mark.parametrize(
    ("spacing_mm", "expected"),
    [
        (2.5, [8, 9, 10, 11, 12]),
        (5.0, [9, 9, 10, 11, 11]),  # 2.5 mm is half a slice, which counts as a whole one on both sides
        (1.25, [6, 8, 10, 12, 14]),
        (0.8, [4, 7, 10, 13, 16]),  # 3.1 and 6.25 slices
        (10.0, [9, 10, 10, 10, 11]),
        (11.0, [10] * 5),
        (0.25, [0, 0, 10, 19, 19]),  # 10 and 20 slices
    ],
)
def test_a_window_in_mm_reaches_as_far_whatever_the_distance_of_the_slices(
    spacing_mm: float, expected: list[int]
) -> None:
    settings = tiny_settings("adapter", window_unit="mm", window_step_mm=2.5)
    assert window_of(10, 20, settings, spacing_mm) == expected
    scan = replace(fake_store(20), grid=Grid((24, 24, 20), np.diag([-1.0, -1.0, spacing_mm, 1.0])))
    assert store_window(scan, 10, settings) == expected
    assert store_window(scan, 10, replace(settings, window_unit="slices")) == [8, 9, 10, 11, 12]


def test_windows_in_mm_of_other_sizes() -> None:
    wide = tiny_settings("adapter", window_unit="mm", window_step_mm=6.0, window=9)
    assert window_of(10, 20, wide, 4.0) == [4, 5, 7, 8, 10, 12, 13, 15, 16], (
        "1.5, 3, 4.5 and 6 slices to each side"
    )
    assert window_of(2, 20, wide, 4.0) == [0, 0, 0, 0, 2, 4, 5, 7, 8]
    assert window_of(10, 20, replace(wide, window=3), 4.0) == [8, 10, 12]
    assert window_of(10, 20, replace(wide, window=1), 4.0) == [10]


@pytest.mark.parametrize("unit", ["slices", "mm"])
@pytest.mark.parametrize("window", [1, 3, 5, 9])
def test_shuffled_neighbours_are_the_same_slices_about_the_same_centre(window: int, unit: str) -> None:
    true = tiny_settings("adapter", window=window, window_unit=unit, window_step_mm=6.0)
    shuffled, moved = replace(true, neighbours="shuffled"), 0
    for z in range(12):
        ours, theirs = (window_of(z, 12, settings, 4.0) for settings in (shuffled, true))
        assert ours[window // 2] == z and sorted(ours) == sorted(theirs)
        assert ours == window_of(z, 12, shuffled, 4.0), "the same for every prompt and call"
        moved += ours != theirs
    assert moved >= 8 if window > 3 else moved > 0 if window == 3 else not moved


@pytest.mark.parametrize(
    ("z", "donor", "expected"),
    [
        (4, 17, [9 + 6, 9 + 7, 4, 9 + 9, 9 + 10]),  # half-way up a scan of twice the length
        (1, 17, [9 + 0, 9 + 1, 1, 9 + 3, 9 + 4]),
        (0, 17, [9, 9, 0, 9 + 1, 9 + 2]),
        (8, 17, [9 + 14, 9 + 15, 8, 9 + 16, 9 + 16]),
        (8, 5, [9 + 2, 9 + 3, 8, 9 + 4, 9 + 4]),
        (4, 1, [9, 9, 4, 9, 9]),
    ],
)
def test_another_patient_s_neighbours_come_from_the_same_relative_height(
    z: int, donor: int, expected: list[int]
) -> None:
    settings = tiny_settings("adapter", neighbours="another patient")
    assert window_of(z, 9, settings, donor=donor) == expected
    assert window_of(z, 9, settings) == window_of(z, 9, tiny_settings("adapter")), "nobody else is there"
    assert window_of(0, 1, settings, donor=5) == [1, 1, 0, 2, 3], "a one-slice volume"
    assert window_of(4, 9, replace(settings, window=1), donor=17) == [4]


def with_donor() -> Store:
    """A store of 9 slices whose neighbours are another patient's 17."""
    return replace(fake_store(9), donor=fake_store(17, seed=1).image)


@pytest.mark.parametrize("sampler", ["shuffled", "slab"])
def test_samples_show_the_own_centre_among_another_patient_s_slices(sampler: str) -> None:
    store = with_donor()
    samples = WindowSampler(
        [store], tiny_settings("adapter", neighbours="another patient", sampler=sampler, batch=8, **STILL)
    )[0]
    own, theirs = (
        {picture.tobytes(): z for z, picture in enumerate(images)} for images in (store.image, store.donor)
    )
    pictures = [picture.numpy().round().astype(np.uint8).tobytes() for picture in samples.slices]
    for window in samples.windows.tolist():
        z = own[pictures[window[2]]]
        beside = [theirs[pictures[row]] for place, row in enumerate(window) if place != 2]
        assert beside == [min(max(2 * z + step, 0), 16) for step in (-2, -1, 1, 2)]
    for n, row in enumerate(samples.windows[samples.centre, 2]):
        assert np.array_equal(
            samples.masks[n] > 0, store.labels[own[pictures[row]]] == ORGANS[samples.prompt[n]].label
        )


def manifest_by_hand() -> Callable[[int, int], list[int]]:
    """Slices 0 and 3 show nothing, 1 the liver and the spleen, 2 the liver: five rows."""
    presence = np.zeros((4, 14), int)
    presence[:, 0], presence[1:3, 1], presence[1, 3] = 9, 5, 1
    return manifest_windows(presence, 1)


LIVER, SPLEEN, AORTA = (KEYS.index(key) for key in ("liver", "spleen", "aorta"))


@pytest.mark.parametrize(
    ("z", "organ", "expected"),
    [
        (1, LIVER, [0, 1, 1]),
        (1, SPLEEN, [1, 1, 2]),
        (2, LIVER, [1, 2, 3]),
        (0, LIVER, [0, 0, 1]),  # the first row, replicated
        (3, LIVER, [2, 3, 3]),
        (1, AORTA, [0, 1, 1]),  # which the slice does not show: as its first row
        (2, SPLEEN, [1, 2, 3]),
    ],
)
def test_a_manifest_s_windows_by_hand(z: int, organ: int, expected: list[int]) -> None:
    assert manifest_by_hand()(z, organ) == expected


@pytest.mark.parametrize("seed", [1, 2])
def test_a_manifest_s_windows_give_the_label_away(seed: int) -> None:
    """Positive windows hold 1.6 slices, 46 % one alone, 1 % the true ones; negative ones nearly 5."""
    labels = draw(SITES["site A"], seed)[1]
    shown = np.stack([np.bincount(labels[:, :, z].ravel(), minlength=14) for z in range(labels.shape[2])])
    presence = np.concatenate(
        [np.zeros((9, 14), int), shown, np.zeros((9, 14), int)]
    )  # and slices of the pelvis and the chest
    window, present = manifest_windows(presence, 2), presence[:, 1:] > 0
    positive = {(z, organ): window(z, organ) for z, organ in np.argwhere(present)}
    negative = [window(z, organ) for z in np.flatnonzero(~present.any(1)) for organ in range(13)]
    assert all(found[2] == z for (z, _), found in positive.items()), "the centre is the sample's slice"
    distinct = [len(set(found)) for found in positive.values()]
    assert np.mean(distinct) < 2.1 and np.mean([len(set(found)) for found in negative]) > 4.5
    assert 0.3 < np.mean(np.equal(distinct, 1)) < 0.6
    assert np.mean([found == list(range(z - 2, z + 3)) for (z, _), found in positive.items()]) < 0.02


@pytest.mark.parametrize("sampler", ["shuffled", "slab"])
def test_samples_of_a_manifest_have_windows_of_their_own_about_the_sample_s_slice(sampler: str) -> None:
    store = fake_store(9)
    settings = tiny_settings(
        "adapter", neighbours="manifest", sampler=sampler, batch=16, slab_prompts=13, **STILL
    )
    known, by_rows = (
        {picture.tobytes(): z for z, picture in enumerate(store.image)},
        manifest_windows(store.presence, 2),
    )
    windows: dict[int, set[tuple[int, ...]]] = {}
    for step in range(3):
        samples = WindowSampler([store], settings)[step]
        drawn = [known[picture.numpy().round().astype(np.uint8).tobytes()] for picture in samples.slices]
        for n, organ in enumerate(samples.prompt.tolist()):
            found = [drawn[row] for row in samples.windows[samples.centre[n]]]
            assert found == by_rows(found[2], organ)
            assert np.array_equal(samples.masks[n] > 0, store.labels[found[2]] == ORGANS[organ].label)
            windows.setdefault(found[2], set()).add(tuple(found))
    assert max(map(len, windows.values())) > 1, "two prompts on one slice, two windows"
    plain = tiny_settings("baseline", neighbours="manifest", **STILL)
    assert WindowSampler([store], plain)[0].windows.shape[1] == 1, (
        "without an adapter there is nothing to see but the slice"
    )


def test_expected_weights_by_hand() -> None:
    presence = np.zeros((6, 14), int)
    presence[:3, 1] = 7  # liver, weight 1, in three of six slices
    presence[2:4, BY_KEY["esophagus"].label] = 2  # weight 8, in two of six
    weights = expected_weights(presence, tiny_settings())
    assert weights[:, 0].tolist() == pytest.approx([1, 1, 1, 1 / 3, 1 / 3, 1 / 3]), (
        "1 negative per 3 positives"
    )
    assert weights[:, KEYS.index("esophagus")].tolist() == pytest.approx(
        [8 * 2 / 12, 8 * 2 / 12, 8, 8, 8 * 2 / 12, 8 * 2 / 12]
    )
    assert not weights[:, KEYS.index("spleen")].any(), "an organ that the scan never shows is not asked for"


def test_expected_weights_as_released_by_hand() -> None:
    """Negatives are slices without any organ, here two of six; they share 0.04 of the positives' weight."""
    presence = np.zeros((6, 14), int)
    presence[:3, 1] = 7  # liver
    presence[3, BY_KEY["duodenum"].label] = presence[3, BY_KEY["pancreas"].label] = 2
    weights = expected_weights(presence, tiny_settings("adapter", **SAMPLING))
    assert weights[:, LIVER].tolist() == pytest.approx([1, 1, 1, 0, 0.04 * 3 / 2, 0.04 * 3 / 2]), (
        "slice 3 shows another organ"
    )
    for key, weight in (("duodenum", 5), ("pancreas", 3)):
        assert weights[:, KEYS.index(key)].tolist() == pytest.approx(
            [0, 0, 0, weight, weight * 0.02, weight * 0.02]
        )
    presence[4:, BY_KEY["esophagus"].label] = 1
    full = expected_weights(presence, tiny_settings("adapter", **SAMPLING))
    assert full[:, KEYS.index("esophagus")].tolist() == [0, 0, 0, 0, 8, 8]
    assert np.array_equal(full > 0, presence[:, 1:] > 0), "every slice shows an organ, so nothing is negative"


@pytest.mark.parametrize(
    ("balance", "duodenum", "pancreas", "aorta"),
    [("table 1", 8, 2, 1), ("released", 5, 3, 1), ("equal", 1, 1, 1)],
)
def test_weights_of_organs_by_name(balance: str, duodenum: float, pancreas: float, aorta: float) -> None:
    presence = np.ones((2, 14), int)
    weights = expected_weights(presence, tiny_settings(balance=balance))
    assert weights[0, [KEYS.index(key) for key in ("duodenum", "pancreas", "aorta")]].tolist() == [
        duodenum,
        pancreas,
        aorta,
    ]
    presence[1, 1:] = 0
    equal = expected_weights(presence, tiny_settings(balance="none"))
    assert (equal == 1).all(), "absent or present, all the same"


def test_a_flipped_run_of_slices_that_show_organs_with_a_side_alone() -> None:
    """Nothing may be asked there: a kidney's lower end, flipped, with negatives from empty slices only."""
    store = fake_store(9)
    store.presence[:, 1:] = 0
    store.presence[:5, BY_KEY["left kidney"].label] = store.presence[4:, BY_KEY["liver"].label] = 4
    settings = tiny_settings(flip=True, negatives="empty", slab_centres=8, slab_length=4, slab_prompts=5)
    asked = [int(organ) for step in range(30) for organ in WindowSampler([store], settings)[step].prompt]
    assert set(asked) == {KEYS.index("liver"), KEYS.index("left kidney")}


def counted(settings: ClipSegSettings, steps: int) -> np.ndarray:
    """Mean weight that each (slice, organ) of one scan gets, over many steps."""
    store = fake_store(9)
    sampler, total = WindowSampler([store], settings), np.zeros((9, 13))
    for step in range(steps):
        samples = sampler[step]
        centres = samples.slices[samples.windows[samples.centre, samples.windows.shape[1] // 2]]
        known = {store.image[z].astype(np.float32).tobytes(): z for z in range(9)}
        for picture, organ, weight in zip(centres.numpy(), samples.prompt, samples.weight, strict=True):
            total[known[picture.round().tobytes()], organ] += float(weight) / len(samples.weight)
    return total / total.sum()


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (200, {"sampler": "shuffled", "batch": 40}),
        (1500, {"sampler": "slab", "slab_centres": 8, "slab_prompts": 2}),
        (800, {"sampler": "slab", "slab_centres": 8, "slab_prompts": 13}),
    ],
)
def test_both_samplers_give_every_slice_and_organ_its_weight(steps: int, changes: dict[str, object]) -> None:
    """By counting: all come out at the weights of Table 1 with 1 negative per 3 positives."""
    expected = expected_weights(fake_store(9).presence, tiny_settings())
    expected = expected / expected.sum()
    assert np.abs(counted(tiny_settings(slab_length=4, **changes, **STILL), steps) - expected).max() < 0.008
    assert expected.max() > 0.05, "the tolerance is small beside the weights"


def test_flips_never_touch_an_organ_with_a_side_and_are_half_of_the_others() -> None:
    store = fake_store(9)
    settings = tiny_settings(rotate_degrees=0.0, slab_centres=8, slab_length=4, slab_prompts=13, flip=True)
    sampler, flips = WindowSampler([store], settings), {key: [0.0, 0.0] for key in KEYS}
    upright = {picture.astype(np.float32).tobytes() for picture in store.image}
    for step in range(400):
        samples = sampler[step]
        for row, organ, weight in zip(
            samples.windows[samples.centre, 0], samples.prompt, samples.weight, strict=True
        ):
            flipped = samples.slices[row].round().numpy().tobytes() not in upright
            flips[KEYS[organ]][flipped] += float(weight) / len(samples.weight)
    for organ in ORGANS:
        kept, turned = flips[organ.key]
        assert turned == 0 if organ.lateral else turned / (kept + turned) == pytest.approx(0.5, abs=0.06)


def test_a_flip_exchanges_left_and_right_and_front_and_back_only_on_request() -> None:
    picture = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(_sample(picture, turned_grid(0, "left-right", 4), "nearest"), picture.flip(-1))
    assert torch.equal(_sample(picture, turned_grid(0, "front-back", 4), "nearest"), picture.flip(-2)), (
        "as the released code does"
    )
    assert torch.equal(_sample(picture, turned_grid(0, "", 4), "nearest"), picture)
    turned = _sample(picture, turned_grid(90, "", 4), "nearest")
    for mirror, axis in (("left-right", -1), ("front-back", -2)):
        assert torch.equal(_sample(picture, turned_grid(90, mirror, 4), "nearest"), turned.flip(axis)), (
            "turned, then exchanged"
        )


@pytest.mark.parametrize(("mirror", "axis"), [("left-right", -1), ("front-back", -2)])
def test_flipped_samples_are_mirrored_as_the_run_says(mirror: str, axis: int) -> None:
    store = fake_store(9)
    settings = tiny_settings(
        "adapter", mirror=mirror, rotate_degrees=0.0, flip=True, sampler="shuffled", batch=40
    )
    upright = {picture.tobytes() for picture in store.image}
    samples, mirrored = WindowSampler([store], settings)[0], 0
    for n, row in enumerate(samples.windows[samples.centre, 2]):
        picture = samples.slices[row].numpy().round().astype(np.uint8)
        if picture.tobytes() not in upright:
            back = np.flip(picture, axis)
            z = next(z for z in range(9) if np.array_equal(store.image[z], back))
            assert np.array_equal(
                np.flip(samples.masks[n].numpy(), axis) > 0,
                store.labels[z] == ORGANS[samples.prompt[n]].label,
            )
            mirrored += 1
    assert 5 < mirrored < 35


def test_one_augmentation_for_all_slices_of_a_window_and_their_masks() -> None:
    """Slices that are copies of their own label map stay so, whatever the turn and flip."""
    store = fake_store(9)
    store.image[:] = store.labels
    sampler = WindowSampler([store], tiny_settings("adapter", sampler="shuffled", batch=30, flip=True))
    turned = 0
    for step in range(5):
        samples = sampler[step]
        for n in range(len(samples.prompt)):
            window = samples.slices[samples.windows[samples.centre[n]]]
            label = ORGANS[int(samples.prompt[n])].label
            inside = window[2] == label  # bilinear keeps the inside of a region exact
            assert (samples.masks[n][inside] == 1).float().mean() >= 0.9 if inside.any() else True
            turned += bool((window[2] % 1 != 0).any())
    assert turned > 50, "the pictures were turned"


def test_samples_are_a_function_of_seed_and_step() -> None:
    store = fake_store(9)
    first, again = (WindowSampler([store], tiny_settings("adapter"))[7] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = WindowSampler([store], tiny_settings("adapter", seed=1))[7]
    assert first.slices.shape != other.slices.shape or not torch.equal(first.slices, other.slices)


def test_an_epoch_draws_as_many_samples_as_are_positive_or_every_slice_once() -> None:
    store = fake_store(
        9
    )  # 13 organs in three slices each: 39 positive samples, 4.3 a slice; two organs end with the scan
    positives = int((store.presence[:, 1:] > 0).sum())

    def epoch(**changes: object) -> int:
        return len(WindowSampler([store], tiny_settings(epoch_steps=0, epochs=3, **changes))) // 3

    assert epoch(sampler="shuffled", batch=8) == -(-positives // 8), "every positive slice once"
    assert epoch(sampler="slab", slab_centres=2, slab_prompts=1) == -(-positives // 2)
    assert epoch(sampler="slab", slab_centres=2, slab_prompts=3) == -(-positives // 6)
    assert (
        epoch(sampler="slab", slab_centres=2, slab_prompts=13)
        == epoch(sampler="slab", slab_centres=2, slab_prompts=5)
        == 5
    ), "9 slices, two at a time"
    fixed = tiny_settings(slab_centres=2, slab_prompts=13, epochs=3, epoch_steps=7)
    assert len(WindowSampler([store], fixed)) == 21, "as the small profiles say it themselves"


def test_no_organ_at_all_is_one_clear_sentence() -> None:
    store = fake_store(4)
    store.presence[:, 1:] = 0
    with pytest.raises(InputError, match="any organ"):
        WindowSampler([store], tiny_settings())


def equal(one: Slices, two: Slices) -> bool:
    return torch.equal(one.image, two.image) and torch.equal(one.labels, two.labels)


def filled(slices: int, first: int) -> Store:
    """A store whose slices are each of one grey value, which counts on from `first`."""
    store = fake_store(slices)
    store.image[:] = (first + np.arange(slices))[:, None, None]
    return store


# slices by themselves


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    settings, stores = slice_settings(turns=True, intensity=True), [fake_store(9), fake_store(5, seed=1)]
    first, again = SliceSampler(stores, settings), SliceSampler(stores, settings)
    later = again[5]
    assert equal(first[0], again[0]) and equal(first[5], later) and equal(first[0], first[0])
    assert not equal(first[0], first[1])
    assert not equal(first[0], SliceSampler(stores, replace(settings, seed=1))[0])


def test_slices_have_the_shapes_and_kinds_of_their_docstring() -> None:
    for changes in ({}, {"turns": True}, {"intensity": True}, {"turns": True, "intensity": True}):
        image, labels = SliceSampler([fake_store(9)], slice_settings(**changes))[0]
        assert image.shape == labels.shape == (4, 24, 24)
        assert image.dtype == torch.float32 and labels.dtype == torch.uint8
        assert type(image) is type(labels) is Tensor, (
            "a tensor of MONAI's own kind would go through the whole model"
        )


def test_an_epoch_is_as_many_draws_as_there_are_slices() -> None:
    stores = [fake_store(9), fake_store(5)]
    assert len(SliceSampler(stores, slice_settings(epochs=3, epoch_steps=0, batch=4))) == 3 * 4, (
        "14 slices, 4 a step"
    )
    assert len(SliceSampler(stores, slice_settings(epochs=3, epoch_steps=7))) == 3 * 7


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_a_step_exactly(world: int) -> None:
    settings, stores = slice_settings(turns=True, intensity=True), [fake_store(9)]
    whole = SliceSampler(stores, settings)[1]
    for rank in range(world):
        assert equal(
            SliceSampler(stores, settings, rank, world)[1],
            Slices(whole.image[rank::world], whole.labels[rank::world]),
        )


def test_every_slice_of_every_scan_is_drawn_alike() -> None:
    settings = slice_settings(batch=100)
    sampler, counts = (
        SliceSampler([filled(9, 10), filled(1, 100), filled(4, 200)], settings),
        np.zeros(256, int),
    )
    for step in range(50):
        greys = (sampler[step].image.amax((1, 2)) * 255).round().int().numpy()
        counts += np.bincount(greys, minlength=256)
    assert set(np.flatnonzero(counts)) == {*range(10, 19), 100, *range(200, 204)}
    assert counts[counts > 0] == pytest.approx(np.full(14, 5000 / 14), rel=0.2), (
        "a scan of one slice counts as one slice"
    )


def test_without_turns_and_intensity_a_slice_is_the_store_s_own() -> None:
    store, settings = fake_store(9), slice_settings()
    known = {picture.tobytes(): z for z, picture in enumerate(store.image)}
    drawn = set()
    for step in range(10):
        for image, labels in zip(*SliceSampler([store], settings)[step], strict=True):
            z = known[(image * 255).round().byte().numpy().tobytes()]
            assert torch.equal(image, torch.from_numpy(store.image[z]).float() / 255)
            shown = store.labels[z]
            assert np.array_equal(labels, np.where(shown == 3, 1, np.where(shown == 1, 2, 0))), (
                "spleen, liver, and all else is background"
            )
            drawn.add(z)
    assert len(drawn) > 5


def test_validation_is_not_augmented() -> None:
    settings, store = slice_settings(turns=True, intensity=True), fake_store(9)
    plain = SliceSampler([store], replace(settings, turns=False, intensity=False))
    assert equal(SliceSampler([store], settings, augmented=False)[3], plain[3])
    assert not equal(SliceSampler([store], settings)[3], plain[3])


def test_turns_keep_image_and_labels_together() -> None:
    """Every pixel has a grey value of its own, which tells its organ: it is known again wherever it goes."""
    greys = np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(16, 16)
    ids = np.array(
        [3] * 90 + [1] * 80 + [5] * 86, np.uint8
    )  # spleen, liver, and the aorta, which nobody asks for
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
    assert counts.sum() == len(found) == 320 and counts.min() > 10, (
        "flips and quarter turns, all eight, and nothing else"
    )


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
    assert min(shifts) < -0.05 and max(shifts) > 0.05 and abs(np.mean(shifts)) < 0.02, (
        "brighter as often as darker"
    )


def test_sampler_refuses_what_it_cannot_draw_from() -> None:
    store, settings = fake_store(9), slice_settings()
    with pytest.raises(InputError, match="5 processes cannot share 4 slices"):
        SliceSampler([store], settings, 0, 5)
    store.presence[:, [1, 3]] = 0  # eleven other organs are there
    with pytest.raises(InputError, match=r"^No case of site B shows spleen or liver: .*\.$"):
        SliceSampler([store], settings)
    with pytest.raises(InputError, match="shows spleen or liver"):
        SliceSampler([replace(store, presence=None)], settings)
    SliceSampler([store, fake_store(9)], settings)
    SliceSampler([store], replace(settings, organs=("aorta",)))
