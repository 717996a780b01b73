"""What is measured: the released way against ours, and how the cost grows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from transformers import CLIPSegForImageSegmentation

from benchmark import released
from benchmark.measuring import alternately, gflop, matmul_peak, seconds
from lib.clipseg import TextPromptedSegmenter, losses, small_config, small_tokenizer
from lib.datasets import Case, Store
from lib.datasets import prepare as prepare_store
from lib.inference import predict, slices_at_once
from lib.metrics import score_case
from lib.organs import KEYS, ORGANS, PROMPTS
from lib.phantoms import SITES, draw
from lib.profiles import Settings, settings_of
from lib.volumes import Grid, read_labels, write_nifti
from lib.windows import Terms, TermSampler

WORDS, EDGE = 49408, 224  # of CLIP's vocabulary; pixels of the pictures that the hub's position embeddings are for


@dataclass(frozen=True)
class Size:
    """How large the benchmark is: `profile` of the model, and what is measured on."""

    profile: str = "full"
    rounds: int = 3
    phantom: tuple[int, int, int] = (128, 128, 100)  # whose pixels become `finer` x `finer` ones
    finer: int = 4
    slices: int = 16  # of a timed inference
    growth_pixels: int = 112  # of slices, where the number of slices grows
    growth_slices: tuple[int, ...] = (20, 40, 80, 160, 320)
    growth_prompts: tuple[int, ...] = (1, 2, 4, 8, 13, 26, 52, 104)
    growth_windows: tuple[int, ...] = (1, 3, 5, 7, 9)
    released_prompts: int = 2  # of 13 that are timed, for each costs the same
    matmul: int = 2048


SIZES = {
    "full": Size(),
    "quick": Size(
        rounds=1, slices=4, growth_slices=(20, 40, 80), growth_prompts=(1, 4, 8, 13, 104), growth_windows=(1, 5, 9), released_prompts=1
    ),
    "tiny": Size("smoke", 1, (24, 24, 12), 2, 6, 16, (4, 8), (1, 2, 13), (1, 3), 1, 64),
}


def model_of(run: str, size: Size, **changes: Any) -> tuple[TextPromptedSegmenter, Settings]:
    """A run's model at its full size with random weights, as the hub's checkpoint is built, and its settings."""
    torch.manual_seed(0)
    settings = replace(settings_of(run, size.profile), weights="", **changes)
    tokenizer = small_tokenizer()
    config: Any = small_config(settings, tokenizer)
    if size.profile == "full":
        config.text_config.vocab_size, config.vision_config.image_size, config.use_complex_transposed_convolution = WORDS, EDGE, True
    return TextPromptedSegmenter(CLIPSegForImageSegmentation(config), tokenizer, settings).eval(), settings


def made_up_case(size: Size, folder: Path) -> Case:
    """A scan with 13 organs as files: a phantom, drawn coarsely and written finely, with noise of its own in every voxel."""
    x, y, z = size.phantom
    spacing = (326.0 / x, 326.0 / y, 180.0 / z)
    signal, labels, _ = draw(replace(SITES["FLARE22"], shape=size.phantom, spacing_mm=spacing, axes="LPS"), 1)
    fine = [array.repeat(size.finer, 0).repeat(size.finer, 1) for array in (signal, labels)]
    noisy = fine[0] + np.random.default_rng(0).normal(0, 12, fine[0].shape).astype(np.float32)
    grid = Grid(fine[0].shape, np.diag([-spacing[0] / size.finer, -spacing[1] / size.finer, spacing[2], 1]))
    paths = folder / "scan.nii.gz", folder / "labels.nii.gz"
    for array, path in zip((noisy.astype(np.int16), fine[1]), paths, strict=True):
        write_nifti(array, grid, path)
    return Case("bench", *paths, "FLARE22")


def cut(store: Store, slices: int, pixels: int = 0) -> Store:
    """The first slices of a prepared scan, over and over if there are too few, of `pixels` x `pixels`, without their labels."""
    rows = np.arange(slices) % len(store.image)
    edge = pixels or store.image.shape[1]
    grid = Grid((edge, edge, slices) if pixels else (*store.grid.shape[:2], slices), store.grid.affine)
    return replace(store, image=np.ascontiguousarray(store.image[rows, :edge, :edge]), labels=None, presence=None, grid=grid)


def inference_ways(size: Size, store: Store, half: bool) -> dict[str, Callable[[], Any]]:
    """The released way of one slice for `size.released_prompts` prompts, and ours of `size.slices` slices for 13."""
    (theirs, _), (ours, settings) = model_of("adapter, as released", size), model_of("adapter", size)
    middle = len(store.image) // 2
    window = torch.from_numpy(store.image[middle - 2 : middle + 3].copy())
    few = cut(store, size.slices)

    @torch.inference_mode()
    def released_way() -> None:
        for prompt in PROMPTS[: size.released_prompts]:
            released.logits_of(theirs, window, prompt).sigmoid()

    ways: dict[str, Callable[[], Any]] = {"released": released_way, "ours": lambda: predict(ours, few, settings)}
    if half:
        ways["ours, bf16"] = lambda: predict(ours, few, replace(settings, encoder_precision="bf16"))
    return ways


def inference(size: Size, store: Store, half: bool) -> dict[str, Any]:
    """Seconds of a slice for 13 prompts, both ways, and the released way's GFLOP: those of the prompts measured, scaled to 13."""
    ways = inference_ways(size, store, half)
    per = {name: len(PROMPTS) / size.released_prompts if name == "released" else 1 / size.slices for name in ways}
    work = gflop(ways["released"]) * per["released"]
    ways["released"]()  # once unmeasured
    found = {name: [value * per[name] for value in values] for name, values in alternately(ways, size.rounds).items()}
    return {"seconds": found, "released GFLOP": work}


def encoder(size: Size, store: Store) -> dict[str, float]:
    """GFLOP/s of the encoder, and its share of the matmul peak, which is measured by turns with it: the speed of a shared machine moves."""
    model, settings = model_of("baseline", size)
    pictures = torch.from_numpy(store.image[: size.slices].copy())
    chunks, peaks = pictures.split(slices_at_once(settings, pictures.device)), list[float]()
    ways: dict[str, Callable[[], Any]] = {"peak": lambda: peaks.append(matmul_peak(size.matmul))}
    with torch.inference_mode():
        model.encode_slices(pictures[:1])
        took = min(alternately(ways | {"encode": lambda: list(map(model.encode_slices, chunks))}, size.rounds)["encode"])
        work = gflop(lambda: model.encode_slices(pictures[:1])) * len(pictures)
    found = {"GFLOP a slice": work / len(pictures), "GFLOP/s": work / took, "matmul GFLOP/s": max(peaks)}
    return found | {"share of matmul peak": work / took / max(peaks)}


def one_term(terms: Terms) -> Terms:
    """The first term with its own window alone."""
    window = terms.windows[terms.centre[0]]
    places = torch.arange(len(window))[None]
    return Terms(terms.slices[window], places, torch.zeros(1, dtype=torch.long), terms.prompt[:1], terms.masks[:1], terms.weight[:1])


def learn(model: TextPromptedSegmenter, terms: Terms) -> None:
    """Forward and backward pass of a step of ours."""
    losses(model, terms, model.settings, 0.0)["loss"].backward()


def training_ways(size: Size, store: Store) -> tuple[dict[str, Callable[[], Any]], dict[str, int]]:
    """Forward and backward passes: of a term in the released way, of a step of ours by each sampler; and how many terms each holds."""
    (theirs, _), (ours, slab) = model_of("adapter, as released", size), model_of("adapter", size)
    shuffled = replace(slab, sampler="shuffled", batch=1, epoch_steps=1)
    batches = {"slab": full_slab(store, slab), "shuffled": TermSampler([store], shuffled)[0]}
    single = one_term(batches["slab"])
    theirs.train(), ours.train()

    def with_new_gradients(model: TextPromptedSegmenter, work: Callable[[], None]) -> None:
        model.zero_grad()
        work()

    ways: dict[str, Callable[[], Any]] = {
        "released": partial(with_new_gradients, theirs, lambda: released.train_term(theirs, single, PROMPTS[0]))
    }
    ways |= {name: partial(with_new_gradients, ours, partial(learn, ours, batch)) for name, batch in batches.items()}
    return ways, {"released": 1} | {name: len(batch.prompt) for name, batch in batches.items()}


def training(size: Size, store: Store) -> dict[str, Any]:
    """Seconds of a training term (one window, one prompt; forward and backward), both ways, ours by each sampler."""
    ways, terms = training_ways(size, store)
    found = alternately(ways, size.rounds)
    return {"seconds": {name: [value / terms[name] for value in values] for name, values in found.items()}, "terms": terms}


def full_slab(store: Store, settings: Settings) -> Terms:
    """A step of one slab, the first whose centres and neighbours are all within the scan."""
    sampler = TermSampler([store], replace(settings, sampler="slab", batch=settings.run_length, epoch_steps=1))
    steps = (sampler[step] for step in range(1000))
    return next(t for t in steps if len(t.slices) == settings.run_length + 2 * settings.reach and len(t.prompt) >= settings.run_length)


def preparation(size: Size, case: Case, folder: Path) -> tuple[dict[str, Any], Store, Path]:
    """Seconds of preparing the scan, both ways; our store; and the folder of the released way's files."""
    settings, files, number = settings_of("adapter", size.profile), [0], iter(range(10**6))
    theirs = folder / "released"

    def released_way() -> None:
        files[0] = released.prepare(case, settings, theirs)

    found = alternately(
        {"released": released_way, "ours": lambda: prepare_store(case, settings, folder / f"store{next(number)}")}, size.rounds
    )
    store = prepare_store(case, settings, folder / "store0")
    return {"seconds": found, "files": {"released": files[0], "ours": 2}, "shape": list(store.grid.shape)}, store, theirs


def metrics(size: Size, case: Case, store: Store) -> dict[str, Any]:
    """Seconds of Dice, NSD, HD95 and stray voxels of 13 organs on the scan's grid; predicted is the truth, displaced and with holes."""
    assert case.labels is not None
    truth = read_labels(case.labels, case.label_map, store.grid)
    rng = np.random.default_rng(0)
    moved = ndimage.shift(truth, (3, -2, 1), order=0)
    holes = ndimage.zoom(rng.random([-(-edge // 6) for edge in truth.shape]), 6, order=0) < 0.05
    moved[holes[tuple(map(slice, truth.shape))]] = 0
    masks = [(key, moved == organ.label) for key, organ in zip(KEYS, ORGANS, strict=True)]
    took = seconds(lambda: list(score_case(masks, truth, case.label_map, store.grid.spacing_mm)))
    return {"seconds": took, "organs": len(masks), "shape": list(truth.shape)}
