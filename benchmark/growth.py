"""How the cost of ours grows, and the hours on a T4 that the counted arithmetic comes to."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmark import released
from benchmark.measuring import alternately, gflop, t4_hours
from benchmark.parts import Size, cut, full_slab, learn, model_of, one_term
from lib.clipseg import TextPromptedSegmenter
from lib.datasets import Store
from lib.inference import predict, text_probabilities
from lib.organs import PROMPTS
from lib.profiles import Settings
from lib.windows import Terms

FEW_PROMPTS, MORE_ROUNDS = 13, 2  # up to so many take three times the rounds: they differ by less than two runs of the same
CASES, SLICES, ORGANS_SEEN, EPOCHS = 30, 100, 7, 30  # of the paper's training: 21,000 terms an epoch
VALIDATION_CASES = 10


def _slices_growth(size: Size, store: Store) -> dict[int, dict[str, float]]:
    """Seconds of scans by their number of slices, which are small, so that 320 take seconds."""
    model, settings = model_of("adapter", size)
    predict(model, cut(store, size.growth_slices[0], size.growth_pixels), settings)
    ways = {count: partial(predict, model, cut(store, count, size.growth_pixels), settings) for count in size.growth_slices}
    return {count: {"seconds": float(np.median(took))} for count, took in alternately(ways, size.rounds).items()}


def growth(size: Size, store: Store) -> dict[str, Any]:
    """Seconds by number of slices, and seconds of a slice by number of prompts and of slices in a window: the rounds and their median.

    Prompts are read beforehand: a scan's once, not for each of its slices.
    """
    model, settings = model_of("adapter", size)
    few, ways = cut(store, 4), dict[str, dict[int, Callable[[], Any]]](prompts={}, window={})
    with torch.inference_mode():
        text = model.encode_text([f"{prompt} {number}" if number else prompt for number in range(8) for prompt in PROMPTS])
    for count in size.growth_prompts:
        ways["prompts"][count] = partial(_segment, model, few, text[:count], settings)
    for window in size.growth_windows:
        wide = replace(settings, window=window)
        other = TextPromptedSegmenter(model.base_model, model.tokenizer, wide)
        ways["window"][window] = partial(_segment, other, few, text[: len(PROMPTS)], wide)
    found: dict[str, Any] = {"slices": _slices_growth(size, store)}
    took = {kind: alternately(these, size.rounds) for kind, these in ways.items()}
    close = {count: way for count, way in ways["prompts"].items() if count <= FEW_PROMPTS}
    for count, values in alternately(close, MORE_ROUNDS * size.rounds).items():
        took["prompts"][count] += values
    for kind, each in took.items():
        rounds = {count: [value / len(few.image) for value in values] for count, values in each.items()}
        found[kind] = {count: {"seconds": float(np.median(values)), "rounds": values} for count, values in rounds.items()}
    return found


def _segment(model: TextPromptedSegmenter, store: Store, text: torch.Tensor, settings: Settings) -> None:
    """All probabilities of a scan, of any number of prompts, whose features are given: (P, J)."""
    for _ in text_probabilities(model, store, text, settings):
        pass


def _trained(model: TextPromptedSegmenter, terms: Terms) -> float:
    """GFLOP of a step of ours, forward and backward."""
    return gflop(partial(learn, model.train(), terms))


@torch.inference_mode()
def _segmented(model: TextPromptedSegmenter, scan: Store) -> float:
    """GFLOP of a slice for 13 prompts."""
    return gflop(lambda: predict(model, scan, model.settings)) / len(scan.image)


def estimate(size: Size, store: Store) -> dict[str, Any]:
    """T4-hours of Table 2's two models, baseline and adapter: training and validation, both ways, and the GFLOP that they come from.

    The paper's 30 scans are taken to have 100 slices with 7 organs each. An epoch is a term for each slice and organ it shows in the
    released way, and each slice as a centre once in ours. The released baseline is counted as ours is, with encoders that learn.
    """
    theirs, _ = model_of("adapter, as released", size)
    work: dict[str, dict[str, float]] = {}
    for run in ("baseline", "adapter"):
        model, settings = model_of(run, size)
        terms = full_slab(store, settings)
        single = one_term(terms)
        learned = _trained(model, single) if run == "baseline" else gflop(partial(released.train_term, theirs.train(), single, PROMPTS[0]))
        work[run] = {"a centre, trained": _trained(model, terms) / len(terms.windows), "a term, trained as released": learned}
        work[run]["a slice, segmented"] = _segmented(model, cut(store, size.slices))
    total = {name: sum(each[name] for each in work.values()) for name in work["adapter"]}
    training, validation = EPOCHS * CASES * SLICES, EPOCHS * VALIDATION_CASES * SLICES
    ours = training * total["a centre, trained"] + validation * total["a slice, segmented"]
    released_way = training * ORGANS_SEEN * total["a term, trained as released"]
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    return {"released": t4_hours(released_way), "ours": t4_hours(ours)} | {"GFLOP": work, "parameters": parameters}
