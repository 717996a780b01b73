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

from lib.clipseg import TextPromptedSegmenter, build, losses
from lib.config import Settings, settings_of
from lib.data import Case, Store, prepare
from lib.inference import predict
from lib.organs import PROMPTS
from lib.phantoms import SITES, draw
from lib.statistics import Estimate
from lib.tables import write
from lib.training import processes
from lib.volumes import Grid, write_nifti
from lib.windows import Windows, WindowSampler

AS_RELEASED = {"decoder_inputs": "last", "gate_first": True}  # what of the released model is measured


def model_of(profile: str, **changes: Any) -> tuple[TextPromptedSegmenter, Any]:
    """The adapter's model with random weights, at full size built as the hub's checkpoint is; settings."""
    settings = settings_of("adapter", profile, weights="", **changes)
    if not settings.full_size:
        return build(settings).eval(), settings
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
    image, truth = (array.repeat(finer, 0).repeat(finer, 1) for array in (signal, labels))
    image = image + np.random.default_rng(0).normal(0, 12, image.shape)
    grid = Grid(image.shape, np.diag([-spacing[0] / finer, -spacing[1] / finer, spacing[2], 1]))
    write_nifti(image.astype(np.int16), grid, folder / "scan.nii.gz")
    write_nifti(truth, grid, folder / "labels.nii.gz")
    return Case("bench", folder / "scan.nii.gz", folder / "labels.nii.gz")


def released_logits(model: Any, window: Tensor, prompt: str) -> Tensor:
    """(W, S, S) slices and one prompt -> (1, S, S): both encoders for it alone, all layers on all slices."""
    adapter, base, middle = model.adapter, model.base_model, len(window) // 2
    text = model.encode_text([prompt])
    pixels = (window[:, None].to(model.mean.dtype) - model.mean) / model.std  # (W, 3, S, S)
    tokens = base.clip.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    x = adapter.proj_in(tokens).transpose(0, 1)[None] + adapter.temporal_pos_emb  # (1, L, W, d)
    for layer in adapter.temporal_layers:
        x = layer(x)
    mixed, _ = adapter.mix(adapter.proj_out(adapter.transformer_norm(x))[:, :, middle], tokens[middle][None])
    adapted = adapter.mlp_head(adapter.spatial_context(mixed))
    return base.decoder([adapted], text).logits.view(1, *window.shape[1:])


def released_prepare(case: Case, settings: Settings, folder: Path) -> None:
    """Writes an 8-bit image of each slice, and a mask of each organ that it shows."""
    (low, high), edges = settings.ct_window_hu, (settings.size, settings.size)
    paths: Any = case.image, case.labels
    voxels, labels = (nib.Nifti1Image.from_filename(path).get_fdata() for path in paths)
    grey = np.rint((np.clip(voxels, low, high) - low) / (high - low) * 255).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(voxels.shape[2]):
        image = Image.fromarray(grey[:, :, z].T).resize(edges, Image.Resampling.BILINEAR)
        image.save(folder / f"slice_{z:03d}.png")
        truth = labels[:, :, z].T
        for label in np.unique(truth[truth > 0]).astype(int):
            white = Image.fromarray((truth == label).astype(np.uint8) * 255)
            white.resize(edges, Image.Resampling.NEAREST).save(folder / f"slice_{z:03d}_{label:02d}.png")


def alternately(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """(rounds,) seconds of each way; they take turns, so other work of the machine falls on all."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - start)
    return {name: np.array(seconds) for name, seconds in found.items()}


def few_slices(store: Store, slices: int) -> Store:
    """So many slices of a prepared scan, from the lowest and again from there, as a scan without truth."""
    image = np.ascontiguousarray(store.image[np.arange(slices) % len(store.image)])
    grid = Grid((*store.grid.shape[:2], slices), store.grid.affine)
    return replace(store, image=image, labels=None, presence=None, grid=grid)


def inference(profile: str, store: Store, slices: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a slice for 13 prompts, each way, and of ours in bf16 (but for the decoder) and for one."""
    device = processes().device
    (theirs, _), (ours, settings) = model_of(profile, **AS_RELEASED), model_of(profile)
    theirs, ours, half = theirs.to(device), ours.to(device), replace(settings, encoder_precision="bf16")
    middle, few = len(store.image) // 2, few_slices(store, slices)
    window = torch.from_numpy(np.array(store.image[middle - 2 : middle + 3])).to(device)

    @torch.inference_mode()
    def released() -> None:
        released_logits(theirs, window, PROMPTS[0]).sigmoid().cpu()  # which waits for the device

    released()  # once unmeasured
    took = alternately({
        "released": released, "ours": lambda: predict(ours, few, settings),
        "ours in bf16": lambda: predict(ours, few, half),
        "one prompt": lambda: predict(ours, few, settings, PROMPTS[:1]),
    }, rounds)
    return {name: s * len(PROMPTS) if name == "released" else s / slices for name, s in took.items()}


def training(profile: str, store: Store, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a training sample (window and prompt), forward and backward, by each way and sampler."""
    (theirs, _), (ours, slab) = model_of(profile, **AS_RELEASED), model_of(profile, sampler="slab")
    slabs = WindowSampler([store], replace(slab, slab_centres=slab.slab_length, epoch_steps=1))
    shuffled = WindowSampler([store], replace(slab, sampler="shuffled", batch=1, epoch_steps=1))
    whole = slab.slab_length + 2 * slab.reach  # slices of a slab that no edge of the scan cuts off
    batches = {"slab": next(b for b in map(slabs.__getitem__, range(1000)) if len(b.slices) == whole)}
    batches["shuffled"] = batches["released"] = shuffled[0]
    theirs.train()
    ours.train()

    def released(batch: Windows, prompts: list[str]) -> tuple[Tensor, None]:
        return released_logits(theirs, batch.slices[batch.windows[0]], prompts[batch.prompt]), None

    def learn(name: str) -> None:
        model: Any = released if name == "released" else ours
        losses(model, batches[name], slab, 0.0)["loss"].backward()
        theirs.zero_grad()
        ours.zero_grad()

    found = alternately({name: partial(learn, name) for name in batches}, rounds)
    return {name: took / len(batches[name].prompt) for name, took in found.items()}


def measure(profile: str, rounds: int, slices: int, shape: tuple[int, int, int], finer: int) -> pd.DataFrame:
    """Every part, one after the other: seconds of each way, and their ratio within the rounds."""
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, theirs: np.ndarray, ours: np.ndarray) -> None:
        middle, least, greatest = np.quantile(theirs / ours, (0.5, 0, 1)).tolist()
        rows[name] = {"released": np.median(theirs), "ours": np.median(ours)}
        rows[name]["ratio"] = Estimate(middle, least, greatest, rounds)
        print(f"bench: {name}: {rows[name]['ratio']}", flush=True)

    with tempfile.TemporaryDirectory() as home:
        folder, settings, number = Path(home), settings_of("adapter", profile), iter(range(rounds))
        case = made_up_case(folder, shape, finer)
        took = alternately({
            "released": lambda: released_prepare(case, settings, folder / "released"),
            "ours": lambda: prepare([case], settings, folder / f"store{next(number)}", 1),
        }, rounds)
        row("preparation of a scan", took["released"], took["ours"])
        store = prepare([case], settings, folder / "store0", 1)[0]
        took = inference(profile, store, slices, rounds)
        row("a slice for 13 prompts", took["released"], took["ours"])
        row("a slice for 13 prompts, ours in bf16", took["released"], took["ours in bf16"])
        row("a slice, 13 prompts against one", took["ours"], took["one prompt"])
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
        f"Seconds of the released way, written anew from its description, and of ours ({machine}), "
        f"medians of {rounds} rounds; ratio: median over rounds of released / ours [least, greatest]. 13 "
        "prompts against one: ours in both columns.")
    print(write(measure("full", rounds, 16, (128, 128, 100), 4), "bench", caption, "bench"))
