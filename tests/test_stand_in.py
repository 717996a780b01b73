"""The committed start weights (notebook 00): they obey phrases that no training held, and know no organ."""

import numpy as np
import torch
from safetensors.torch import load_file
from test_acceptance import cells

from lib.clipseg import build
from lib.config import START, settings_of
from lib.data import stores_of
from lib.training import volume_dice


def test_the_file_is_small_and_holds_the_model_of_the_demo_alone() -> None:
    saved = load_file(START)
    assert START.stat().st_size < 4e6 and all(tensor.dtype == torch.float16 for tensor in saved.values())
    assert saved.keys() == build(settings_of("baseline", "demo", weights="")).state_dict().keys()
    model = build(settings_of("adapter", "demo")).state_dict()
    assert all(torch.equal(model[name], tensor.float()) for name, tensor in saved.items())


def test_a_phrase_s_mask_is_what_fits_it() -> None:
    scenes = cells("00_stand_in", "scenes")
    batch, phrases = scenes["scenes"](seed=3, step=0)
    assert len(batch.slices) == scenes["SCENES"] and len(phrases) == scenes["SCENES"] * scenes["PHRASES"]
    again, _ = scenes["scenes"](seed=3, step=0)
    assert torch.equal(batch.slices, again.slices) and torch.equal(batch.masks, again.masks)
    for phrase, mask in zip(phrases, batch.masks.numpy(), strict=True):
        words = phrase.split()
        if mask.any():
            row, column = np.argwhere(mask).mean(0) / scenes["SIZE"]
            assert ("upper" not in words or row < 0.5) and ("lower" not in words or row > 0.5)
            assert ("left" not in words or column < 0.5) and ("right" not in words or column > 0.5)
    new = " ".join(scenes["scenes"](seed=3, step=1, held_out=True)[1])
    assert "bright" in new and not [p for p in phrases if {"dark", "ring"} <= {*p.split()}]


@torch.inference_mode()
def test_it_obeys_phrases_that_no_training_held() -> None:
    """Dice on new scenes, and with the phrases of a scene exchanged: it is the words that decide."""
    scenes, model = cells("00_stand_in", "scenes"), build(settings_of("baseline", "demo")).eval()
    asked, exchanged = [], []
    for step in range(6):
        batch, phrases = scenes["scenes"](5, step, held_out=True)
        for found, other in ((asked, phrases), (exchanged, phrases[1:] + phrases[:1])):
            marked, masks = model(batch, other)[0] > 0, batch.masks > 0
            both, area = (marked & masks).sum((1, 2)), masks.sum((1, 2))
            found += (2 * both / (area + marked.sum((1, 2))))[area > 0].tolist()
    assert np.mean(asked) > 0.4 and np.mean(asked) > np.mean(exchanged) + 0.1


def test_it_knows_no_organ_before_any_training() -> None:
    settings = settings_of("baseline", "demo", cases=(0, 2, 0))
    assert volume_dice(build(settings), stores_of(settings, "validation"), settings) < 0.1
