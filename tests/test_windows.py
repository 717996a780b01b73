"""Windows over true neighbours, the terms of a step, and the augmentation that they share."""

import numpy as np
import pytest
import torch
from tiny import fake_store, tiny_settings

from lib.organs import BY_KEY, KEYS, ORGANS
from lib.paths import InputError
from lib.windows import TermSampler, _sample, _turned_grid, expected_weights, window_of


def test_window_is_the_true_neighbours_with_edges_replicated() -> None:
    settings = tiny_settings("adapter")
    assert window_of(5, 9, settings) == [3, 4, 5, 6, 7]
    assert window_of(0, 9, settings) == [0, 0, 0, 1, 2]
    assert window_of(8, 9, settings) == [6, 7, 8, 8, 8]
    assert window_of(0, 1, settings) == [0] * 5, "a one-slice volume"
    assert window_of(4, 9, tiny_settings("centre only")) == [4] * 5
    assert window_of(4, 9, tiny_settings("baseline")) == [4]


def test_expected_weights_by_hand() -> None:
    presence = np.zeros((6, 14), int)
    presence[:3, 1] = 7  # liver, weight 1, in three of six slices
    presence[2:4, BY_KEY["esophagus"].label] = 2  # weight 8, in two of six
    weights = expected_weights(presence, tiny_settings())
    assert weights[:, 0].tolist() == pytest.approx([1, 1, 1, 1 / 3, 1 / 3, 1 / 3]), "1 negative per 3 positives"
    assert weights[:, KEYS.index("esophagus")].tolist() == pytest.approx([8 * 2 / 12, 8 * 2 / 12, 8, 8, 8 * 2 / 12, 8 * 2 / 12])
    assert not weights[:, KEYS.index("spleen")].any(), "an organ that the scan never shows is not asked for"


def counted(settings, steps: int) -> np.ndarray:
    """Mean weight that each (slice, organ) of one scan gets, over many steps."""
    store = fake_store(9)
    sampler, total = TermSampler([store], settings), np.zeros((9, 13))
    for step in range(steps):
        terms = sampler[step]
        centres = terms.slices[terms.windows[terms.centre, terms.windows.shape[1] // 2]]
        known = {store.image[z].astype(np.float32).tobytes(): z for z in range(9)}
        for picture, organ, weight in zip(centres.numpy(), terms.prompt, terms.weight, strict=True):
            total[known[picture.round().tobytes()], organ] += float(weight) / len(terms.weight)
    return total / total.sum()


@pytest.mark.parametrize("prompts", [2, 13])
def test_slab_gives_every_slice_and_organ_the_weight_that_shuffled_gives(prompts: int) -> None:
    """By counting: both come out at the weights of Table 1 with 1 negative per 3 positives."""
    still = {"rotate_degrees": 0.0, "flip": False}
    expected = expected_weights(fake_store(9).presence, tiny_settings())
    expected = expected / expected.sum()
    shuffled = counted(tiny_settings(sampler="shuffled", batch=40, **still), 300)
    slab = counted(tiny_settings(sampler="slab", batch=8, run_length=4, prompts=prompts, **still), 1500)
    assert np.abs(shuffled - expected).max() < 0.008 and np.abs(slab - expected).max() < 0.008
    assert expected.max() > 0.05, "the tolerance is small beside the weights"


def test_flips_never_touch_an_organ_with_a_side_and_are_half_of_the_others() -> None:
    store = fake_store(9)
    settings = tiny_settings(rotate_degrees=0.0, batch=8, run_length=4, prompts=13, flip=True)
    sampler, flips = TermSampler([store], settings), {key: [0.0, 0.0] for key in KEYS}
    upright = {picture.astype(np.float32).tobytes() for picture in store.image}
    for step in range(400):
        terms = sampler[step]
        for row, organ, weight in zip(terms.windows[terms.centre, 0], terms.prompt, terms.weight, strict=True):
            flipped = terms.slices[row].round().numpy().tobytes() not in upright
            flips[KEYS[organ]][flipped] += float(weight) / len(terms.weight)
    for organ in ORGANS:
        kept, turned = flips[organ.key]
        assert turned == 0 if organ.lateral else turned / (kept + turned) == pytest.approx(0.5, abs=0.06)


def test_a_flip_exchanges_left_and_right_not_front_and_back() -> None:
    picture = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(_sample(picture, _turned_grid(0, True, 4), "nearest"), picture.flip(-1))
    assert torch.equal(_sample(picture, _turned_grid(0, False, 4), "nearest"), picture)


def test_one_augmentation_for_all_slices_of_a_window_and_their_masks() -> None:
    """Slices that are copies of their own label map stay so, whatever the turn and flip."""
    store = fake_store(9)
    store.image[:] = store.labels
    sampler = TermSampler([store], tiny_settings("adapter", sampler="shuffled", batch=30, flip=True))
    turned = 0
    for step in range(5):
        terms = sampler[step]
        for n in range(len(terms.prompt)):
            window = terms.slices[terms.windows[terms.centre[n]]]
            label = ORGANS[int(terms.prompt[n])].label
            inside = window[2] == label  # bilinear keeps the inside of a region exact
            assert (terms.masks[n][inside] == 1).float().mean() >= 0.9 if inside.any() else True
            turned += bool((window[2] % 1 != 0).any())
    assert turned > 50, "the pictures were turned"


def test_terms_are_a_function_of_seed_and_step() -> None:
    store = fake_store(9)
    first, again = (TermSampler([store], tiny_settings("adapter"))[7] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = TermSampler([store], tiny_settings("adapter", seed=1))[7]
    assert first.slices.shape != other.slices.shape or not torch.equal(first.slices, other.slices)


def test_epoch_is_every_positive_slice_once() -> None:
    store = fake_store(9)
    positives = int((store.presence[:, 1:] > 0).sum())
    sampler = TermSampler([store], tiny_settings(epoch_steps=0, batch=8, epochs=3))
    assert len(sampler) == 3 * -(-positives // 8)


def test_no_organ_at_all_is_one_clear_sentence() -> None:
    store = fake_store(4)
    store.presence[:, 1:] = 0
    with pytest.raises(InputError, match="any organ"):
        TermSampler([store], tiny_settings())
