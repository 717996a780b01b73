"""`make bench`: the released way of T-Gated against ours, at full size with random weights; ratios of ways
that take turns in one run.

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
from scipy import ndimage
from torch import Tensor
from transformers import CLIPSegForImageSegmentation

from lib.clipseg import TextPromptedSegmenter, losses, segmentation_loss, small_config, small_tokenizer
from lib.config import Settings, settings_of
from lib.data import Case, Store
from lib.data import prepare as prepare_store
from lib.inference import CHUNK, WIDE, at_once, predict, slice_probabilities
from lib.metrics import score_case
from lib.organs import KEYS, ORGANS, PROMPTS
from lib.phantoms import SITES, draw
from lib.statistics import Estimate
from lib.tables import write
from lib.volumes import Grid, read_labels, write_nifti
from lib.windows import Windows, WindowSampler

AS_RELEASED = {"decoder_inputs": "last", "gate_first": True}  # what of the released model is measured
WORDS, EDGE = (
    49408, 224,
)  # of CLIP's vocabulary; pixels of the images that the hub's position embeddings are for
DOUBLED = (1, 2, 4, 8, 13)  # prompts


def model_of(profile: str, **changes: Any) -> tuple[TextPromptedSegmenter, Any]:
    """The adapter's model with random weights, at full size built as the hub's checkpoint is, and its
    settings."""
    torch.manual_seed(0)
    settings = settings_of("adapter", profile, weights="", **changes)
    tokenizer = small_tokenizer()
    config: Any = small_config(settings, tokenizer)
    if settings.full_size:
        config.text_config.vocab_size, config.vision_config.image_size = WORDS, EDGE
        config.use_complex_transposed_convolution = True
    return TextPromptedSegmenter(CLIPSegForImageSegmentation(config), tokenizer, settings).eval(), settings


def made_up_case(folder: Path, shape: tuple[int, int, int], finer: int) -> Case:
    """A scan with 13 organs as files: a phantom, drawn coarsely and written finely, with noise of its own
    in every voxel."""
    spacing = (326.0 / shape[0], 326.0 / shape[1], 180.0 / shape[2])
    signal, labels, _ = draw(replace(SITES["site A"], shape=shape, spacing_mm=spacing, axes="LPS"), 1)
    fine = [array.repeat(finer, 0).repeat(finer, 1) for array in (signal, labels)]
    noisy = (fine[0] + np.random.default_rng(0).normal(0, 12, fine[0].shape)).astype(np.int16)
    grid = Grid(fine[0].shape, np.diag([-spacing[0] / finer, -spacing[1] / finer, spacing[2], 1]))
    paths = folder / "scan.nii.gz", folder / "labels.nii.gz"
    for array, path in zip((noisy, fine[1]), paths, strict=True):
        write_nifti(array, grid, path)
    return Case("bench", *paths)


def released_logits(model: TextPromptedSegmenter, window: Tensor, prompt: str) -> Tensor:
    """(W, S, S) slices and one prompt -> (1, S, S): both encoders run for it alone, and all layers compute
    all slices."""
    adapter, base = model.adapter, model.base_model
    assert adapter is not None and adapter.gate_first
    text = model.encode_text([prompt])
    pixels = (window[:, None].to(model.mean.dtype) - model.mean) / model.std  # (W, 3, S, S)
    tokens = base.clip.vision_model(
        pixel_values=pixels, interpolate_pos_encoding=True
    ).last_hidden_state  # (W, L, D)
    x = adapter.proj_in(tokens).transpose(0, 1)[None] + adapter.temporal_pos_emb  # (1, L, W, d)
    for layer in adapter.temporal_layers:
        x = layer(x)
    middle = len(tokens) // 2
    mixed, _ = adapter.mix(adapter.proj_out(adapter.transformer_norm(x))[:, :, middle], tokens[middle][None])
    spatial = adapter.spatial_context(mixed) if adapter.spatial_context is not None else mixed
    return base.decoder([adapter.mlp_head(spatial)], text).logits.view(1, *window.shape[1:])


def released_prepare(case: Case, settings: Settings, folder: Path) -> int:
    """Writes an 8-bit image for each slice, and a mask for each slice and organ that it shows.

    Returns the number of files.
    """
    (low, high), edges = settings.ct_window_hu, (settings.size, settings.size)
    voxels, labels = (nib.Nifti1Image.from_filename(path).get_fdata() for path in (case.image, case.labels))
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
    """Seconds of each way in each round.

    The ways take turns, so that what else the machine does falls on all of them.
    """
    found: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - start)
    return found


def matmul_peak(size: int) -> float:
    """GFLOP/s of the fastest float32 matrix product that the machine was seen to do, of the encoder's
    shapes."""
    a, b = torch.randn(4 * size, 768), torch.randn(768, 3072)
    took = alternately({"": lambda: a @ b}, 4)[""]
    return 2e-9 * 4 * size * 768 * 3072 / min(took)


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 by instructions of its own.

    Else it takes many times as long as float32.
    """
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cut(store: Store, slices: int) -> Store:
    """The first slices of a prepared scan, over and over if there are too few, without labels."""
    rows = np.arange(slices) % len(store.image)
    grid = Grid((*store.grid.shape[:2], slices), store.grid.affine)
    return replace(
        store, image=np.ascontiguousarray(store.image[rows]), labels=None, presence=None, grid=grid
    )


def inference(profile: str, store: Store, slices: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a slice for 13 prompts, each way, and of ours with fewer prompts."""
    (theirs, _), (ours, settings) = model_of(profile, **AS_RELEASED), model_of(profile)
    middle, few = len(store.image) // 2, cut(store, slices)
    window = torch.from_numpy(np.array(store.image[middle - 2 : middle + 3]))

    @torch.inference_mode()
    def released() -> None:
        released_logits(theirs, window, PROMPTS[0]).sigmoid()

    ways: dict[Any, Callable[[], Any]] = {"released": released, "ours": lambda: predict(ours, few, settings)}
    if has_bf16():
        ways["ours, bf16"] = lambda: predict(ours, few, replace(settings, encoder_precision="bf16"))
    with torch.inference_mode():
        texts = {count: ours.encode_text(list(PROMPTS[:count])) for count in DOUBLED}
    for count, text in texts.items():
        ways[count] = lambda text=text: list(slice_probabilities(ours, few, text, settings))
    released()  # once unmeasured
    per = {"released": len(PROMPTS)}
    found = alternately(ways, rounds)
    return {name: [value * per.get(name, 1 / slices) for value in values] for name, values in found.items()}


def encoder(profile: str, store: Store, slices: int, rounds: int) -> float:
    """The encoder's share of the matmul peak, which is measured by turns with it.

    Its arithmetic by PyTorch's counter.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, settings = model_of(profile)
    pictures, peaks = torch.from_numpy(np.array(store.image[:slices])), list[float]()
    tokens = (settings.size // settings.patch) ** 2 + 1
    chunks = pictures.split(at_once(CHUNK, WIDE, tokens, pictures.device))
    with torch.inference_mode():
        with (
            sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter,
        ):  # fused attention is not counted
            model.encode_slices(pictures[:1])
        ways = {
            "peak": lambda: peaks.append(matmul_peak(2048)),
            "ours": lambda: [model.encode_slices(c) for c in chunks],
        }
        took = min(alternately(ways, rounds)["ours"])
    return counter.get_total_flops() * len(pictures) / 1e9 / took / max(peaks)


def training(profile: str, store: Store, rounds: int) -> dict[str, list[float]]:
    """Seconds of a training sample (one window, one prompt.

    Forward and backward), each way, ours by each sampler.
    """
    (theirs, _), (ours, slab) = model_of(profile, **AS_RELEASED), model_of(profile, sampler="slab")
    samplers = {"slab": WindowSampler([store], replace(slab, slab_centres=slab.slab_length, epoch_steps=1))}
    samplers["shuffled"] = WindowSampler([store], replace(slab, sampler="shuffled", batch=1, epoch_steps=1))
    whole = slab.slab_length + 2 * slab.reach
    batches = {
        "slab": next(b for b in map(samplers["slab"].__getitem__, range(1000)) if len(b.slices) == whole)
    }
    batches["shuffled"] = samplers["shuffled"][0]
    window = batches["slab"].slices[batches["slab"].windows[batches["slab"].centre[0]]]
    single = Windows(
        window, torch.arange(5)[None], torch.zeros(1, dtype=torch.long), *(f[:1] for f in batches["slab"][3:])
    )
    theirs.train(), ours.train()

    def released() -> None:
        theirs.zero_grad()
        bce, dice = segmentation_loss(released_logits(theirs, single.slices, PROMPTS[0]), single, 1.0)
        ((bce + dice) / 2).backward()

    def learn(batch: Windows) -> None:
        ours.zero_grad()
        losses(ours, batch, ours.settings, 0.0)["loss"].backward()

    ways: dict[Any, Callable[[], Any]] = {"released": released}
    ways |= {name: partial(learn, batch) for name, batch in batches.items()}
    samples = {"released": 1} | {name: len(batch.prompt) for name, batch in batches.items()}
    return {name: [v / samples[name] for v in values] for name, values in alternately(ways, rounds).items()}


def metrics_seconds(case: Case, store: Store) -> float:
    """Seconds of all metrics of 13 organs on the scan's grid.

    Predicted is the ground truth, displaced and with holes.
    """
    truth = read_labels(case.labels, case.label_map, store.grid)  # type: ignore[arg-type]
    moved = ndimage.shift(truth, (3, -2, 1), order=0)
    holes = (
        ndimage.zoom(np.random.default_rng(0).random([-(-edge // 6) for edge in truth.shape]), 6, order=0)
        < 0.05
    )
    moved[holes[tuple(map(slice, truth.shape))]] = 0
    masks = [(key, moved == organ.label) for key, organ in zip(KEYS, ORGANS, strict=True)]
    work = lambda: list(score_case(masks, truth, case.label_map, store.grid.spacing_mm))  # noqa: E731
    return alternately({"": work}, 1)[""][0]


def ratio(theirs: list[float], ours: list[float]) -> Estimate:
    """Median over rounds of released / ours, with the least and the greatest round in the interval's
    place."""
    quotients = np.array(theirs) / np.array(ours)
    return Estimate(
        float(np.median(quotients)), float(quotients.min()), float(quotients.max()), len(quotients)
    )


def measure(profile: str, rounds: int, slices: int, shape: tuple[int, int, int], finer: int) -> pd.DataFrame:
    """Every part, one after the other: what is measured, seconds of each way, and the ratio."""
    rows: dict[str, dict[str, Any]] = {}

    def row(name: str, theirs: list[float], ours: list[float]) -> None:
        rows[name] = {
            "released": float(np.median(theirs)), "ours": float(np.median(ours)),
            "ratio": ratio(theirs, ours),
        }
        print(f"bench: {name}: {rows[name]['ratio']}", flush=True)

    with tempfile.TemporaryDirectory() as home:
        folder, settings, number = Path(home), settings_of("adapter", profile), iter(range(10**6))
        case = made_up_case(folder, shape, finer)
        ways = {
            "released": lambda: released_prepare(case, settings, folder / "released"),
            "ours": lambda: prepare_store([case], settings, folder / f"store{next(number)}", 1),
        }
        took = alternately(ways, rounds)
        row("preparation of a scan", took["released"], took["ours"])
        store = prepare_store([case], settings, folder / "store0", 1)[0]
        found = inference(profile, store, slices, rounds)
        for name in ("ours", "ours, bf16"):
            if name in found:
                row(f"a slice for 13 prompts, {name}", found["released"], found[name])
        for one, two in zip(DOUBLED, DOUBLED[1:], strict=False):
            row(f"a slice, {two} prompts after {one}", found[two], found[one])
        took = training(profile, store, rounds)
        for name in ("slab", "shuffled"):
            row(f"a training sample, {name}", took["released"], took[name])
        rows["encoder, share of the matmul peak"] = {"ours": encoder(profile, store, slices, rounds)}
        rows["metrics of 13 organs in a scan"] = {"ours": metrics_seconds(case, store)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("measured")


def main() -> None:
    """Command line of the Makefile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model and scan: shows that everything runs"
    )
    asked = parser.parse_args()
    size = ("smoke", 1, 6, (24, 24, 12), 2) if asked.tiny else ("full", asked.rounds, 16, (128, 128, 100), 4)
    table = measure(*size)
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    )
    caption = (
        f"Seconds of the released way, written anew from its description, and of ours on a CPU ({machine}), "
        f"medians of {size[1]} rounds; "
        "ratio: median over rounds of released / ours [least, greatest]. Rows of prompts compare ours with "
        "itself."
    )
    print(write(table, "bench", caption, "bench"))


if __name__ == "__main__":
    main()
