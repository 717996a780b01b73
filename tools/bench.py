"""`make bench`: the released way of T-Gated against ours, by turns, at full size with random weights.

The released way is written anew from its description: every (window, prompt) by itself, and a file for each
slice and organ.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer

from lib.clipseg import TextPromptedSegmenter, build, losses, segmentation_loss
from lib.config import Settings, settings_of
from lib.data import Case, Store
from lib.data import prepare as prepare_store
from lib.inference import predict, slice_probabilities
from lib.organs import ORGANS, PROMPTS
from lib.phantoms import SITES, draw
from lib.statistics import Estimate
from lib.tables import write
from lib.volumes import Grid, write_nifti
from lib.windows import Windows, WindowSampler

AS_RELEASED = {"decoder_inputs": "last", "gate_first": True}  # what of the released model is measured
DOUBLED = (1, 2, 4, 8, 13)  # prompts


def model_of(profile: str, **changes: Any) -> tuple[TextPromptedSegmenter, Any]:
    """The adapter's model with random weights, at full size built as the hub's checkpoint is; settings."""
    settings = settings_of("adapter", profile, weights="", **changes)
    if not settings.full_size:
        return build(settings).eval(), settings
    torch.manual_seed(0)
    config = CLIPSegConfig(vision_config={"patch_size": 16}, use_complex_transposed_convolution=True)
    base_model = CLIPSegForImageSegmentation(config)  # transformers' own sizes are the hub's
    return TextPromptedSegmenter(base_model, byte_tokenizer(), settings).eval(), settings


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with one token a byte and no merges: takes any text, needs no download."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def made_up_case(folder: Path, shape: tuple[int, int, int], finer: int) -> Case:
    """A scan with 13 organs as files: a phantom, drawn coarsely and written finely, with fresh noise."""
    spacing = (326.0 / shape[0], 326.0 / shape[0], 180.0 / shape[2])
    site = replace(SITES["site A"], pixels=shape[0], pixel_mm=spacing[0], slice_mm=(spacing[2], spacing[2]))
    signal, labels, *_ = draw(replace(site, bottom_mm=(20, 20), top_mm=(200, 200), ends_mm=0), 2)
    fine = [array.repeat(finer, 0).repeat(finer, 1) for array in (signal, labels)]
    fine[0] = (fine[0] + np.random.default_rng(0).normal(0, 12, fine[0].shape)).astype(np.int16)
    grid = Grid(fine[0].shape, np.diag([-spacing[0] / finer, -spacing[1] / finer, spacing[2], 1]))
    paths = folder / "scan.nii.gz", folder / "labels.nii.gz"
    for array, path in zip(fine, paths, strict=True):
        write_nifti(array, grid, path)
    return Case("bench", *paths)


def released_logits(model: TextPromptedSegmenter, window: Tensor, prompt: str) -> Tensor:
    """(W, S, S) slices and one prompt -> (1, S, S): both encoders for it alone, all layers on all slices."""
    adapter, base = model.adapter, model.base_model
    assert adapter is not None and adapter.gate_first
    text = model.encode_text([prompt])
    pixels = (window[:, None].to(model.mean.dtype) - model.mean) / model.std  # (W, 3, S, S)
    seen = base.clip.vision_model(pixel_values=pixels, interpolate_pos_encoding=True)
    tokens = seen.last_hidden_state  # (W, L, D)
    x = adapter.proj_in(tokens).transpose(0, 1)[None] + adapter.temporal_pos_emb  # (1, L, W, d)
    for layer in adapter.temporal_layers:
        x = layer(x)
    middle = len(tokens) // 2
    mixed, _ = adapter.mix(adapter.proj_out(adapter.transformer_norm(x))[:, :, middle], tokens[middle][None])
    spatial = adapter.spatial_context(mixed) if adapter.spatial_context is not None else mixed
    return base.decoder([adapter.mlp_head(spatial)], text).logits.view(1, *window.shape[1:])


def released_prepare(case: Case, settings: Settings, folder: Path) -> int:
    """Writes an 8-bit image of each slice, and a mask of each organ that it shows; returns how many files."""
    (low, high), edges = settings.ct_window_hu, (settings.size, settings.size)
    paths: Any = case.image, case.labels
    voxels, labels = (nib.Nifti1Image.from_filename(path).get_fdata() for path in paths)
    grey, count = np.rint((np.clip(voxels, low, high) - low) / (high - low) * 255).astype(np.uint8), 0
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(voxels.shape[2]):
        image = Image.fromarray(grey[:, :, z].T).resize(edges, Image.Resampling.BILINEAR)
        image.save(folder / f"slice_{z:03d}.png")
        masks = {organ.label: (labels[:, :, z] == organ.label).T for organ in ORGANS}
        shown = {label: mask for label, mask in masks.items() if mask.any()}
        for label, mask in shown.items():
            white = Image.fromarray(mask.astype(np.uint8) * 255)
            white.resize(edges, Image.Resampling.NEAREST).save(folder / f"slice_{z:03d}_{label:02d}.png")
        count += 1 + len(shown)
    return count


def alternately(ways: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each way in each round; they take turns, so other work of the machine falls on all."""
    found: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - start)
    return found


def inference(profile: str, store: Store, slices: int, rounds: int) -> dict[Any, list[float]]:
    """Seconds of a slice for 13 prompts, each way, and of ours with fewer prompts."""
    (theirs, _), (ours, settings) = model_of(profile, **AS_RELEASED), model_of(profile)
    middle, rows = len(store.image) // 2, np.arange(slices) % len(store.image)
    grid = Grid((*store.grid.shape[:2], slices), store.grid.affine)
    few = replace(store, image=np.ascontiguousarray(store.image[rows]), labels=None, presence=None, grid=grid)
    window = torch.from_numpy(np.array(store.image[middle - 2 : middle + 3]))

    @torch.inference_mode()
    def released() -> None:
        released_logits(theirs, window, PROMPTS[0]).sigmoid()

    ways: dict[Any, Callable[[], Any]] = {"released": released, "ours": lambda: predict(ours, few, settings)}
    with torch.inference_mode():
        text = ours.encode_text(list(PROMPTS))
    for count in DOUBLED:
        ways[count] = partial(lambda some: list(slice_probabilities(ours, few, some, settings)), text[:count])
    released()  # once unmeasured
    per, found = {"released": len(PROMPTS)}, alternately(ways, rounds)
    return {name: [value * per.get(name, 1 / slices) for value in values] for name, values in found.items()}


def training(profile: str, store: Store, rounds: int) -> dict[str, list[float]]:
    """Seconds of a training sample (window and prompt), forward and backward, by each way and sampler."""
    (theirs, _), (ours, slab) = model_of(profile, **AS_RELEASED), model_of(profile, sampler="slab")
    slabs = WindowSampler([store], replace(slab, slab_centres=slab.slab_length, epoch_steps=1))
    shuffled = WindowSampler([store], replace(slab, sampler="shuffled", batch=1, epoch_steps=1))
    whole = slab.slab_length + 2 * slab.reach
    batch = next(batch for batch in map(slabs.__getitem__, range(1000)) if len(batch.slices) == whole)
    window, first = batch.slices[batch.windows[batch.centre[0]]], torch.zeros(1, dtype=torch.long)
    single = Windows(window, torch.arange(5)[None], first, *(field[:1] for field in batch[3:]))
    theirs.train(), ours.train()

    def released() -> None:
        theirs.zero_grad()
        bce, dice = segmentation_loss(released_logits(theirs, single.slices, PROMPTS[0]), single, 1.0)
        ((bce + dice) / 2).backward()

    def learn(batch: Windows) -> None:
        ours.zero_grad()
        losses(ours, batch, ours.settings, 0.0)["loss"].backward()

    batches = {"slab": batch, "shuffled": shuffled[0]}
    ways: dict[Any, Callable[[], Any]] = {"released": released}
    ways |= {name: partial(learn, batch) for name, batch in batches.items()}
    samples = {"released": 1} | {name: len(batch.prompt) for name, batch in batches.items()}
    return {name: [v / samples[name] for v in values] for name, values in alternately(ways, rounds).items()}


def ratio(theirs: list[float], ours: list[float]) -> Estimate:
    """Median of released / ours over rounds, the least and the greatest round in the interval's place."""
    middle, low, high = np.quantile(np.array(theirs) / np.array(ours), (0.5, 0, 1)).tolist()
    return Estimate(middle, low, high, len(ours))


def measure(profile: str, rounds: int, slices: int, shape: tuple[int, int, int], finer: int) -> pd.DataFrame:
    """Every part, one after the other: what is measured, seconds of each way, and the ratio."""
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, theirs: list[float], ours: list[float]) -> None:
        medians = {"released": float(np.median(theirs)), "ours": float(np.median(ours))}
        rows[name] = medians | {"ratio": ratio(theirs, ours)}
        print(f"bench: {name}: {rows[name]['ratio']}", flush=True)

    with tempfile.TemporaryDirectory() as home:
        folder, settings, number = Path(home), settings_of("adapter", profile), iter(range(10**6))
        case = made_up_case(folder, shape, finer)
        took: dict[Any, list[float]] = alternately({
            "released": lambda: released_prepare(case, settings, folder / "released"),
            "ours": lambda: prepare_store([case], settings, folder / f"store{next(number)}", 1),
        }, rounds)
        row("preparation of a scan", took["released"], took["ours"])
        store = prepare_store([case], settings, folder / "store0", 1)[0]
        took = inference(profile, store, slices, rounds)
        row("a slice for 13 prompts", took["released"], took["ours"])
        for one, two in pairwise(DOUBLED):
            row(f"a slice, {two} prompts after {one}", took[two], took[one])
        took = training(profile, store, rounds)
        for name in ("slab", "shuffled"):
            row(f"a training sample, {name}", took["released"], took[name])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measured")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    caption = (
        f"Seconds of the released way, written anew from its description, and of ours on a CPU ({machine}), "
        f"medians of {rounds} rounds; ratio: median over rounds of released / ours [least, greatest]. Rows "
        "of prompts compare ours with itself.")
    print(write(measure("full", rounds, 16, (128, 128, 100), 4), "bench", caption, "bench"))
