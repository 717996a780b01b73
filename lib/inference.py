"""Scan in, masks on the scan's own grid out. Each slice is encoded once for all prompts; memory does not grow with the slices, or with
the prompts asked."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lib.baselines import planes
from lib.clipseg import TextPromptedSegmenter
from lib.datasets import Store
from lib.organs import KEYS, PROMPTS
from lib.profiles import Settings
from lib.volumes import Grid, resize
from lib.windows import store_window

CHUNK, TERMS = 16, 64  # centre slices, and (slice, prompt) pairs, that are computed at a time
WIDE, THIN = 1000, 3400  # tokens of the encoder, and of adapter and decoder, at a time on a processor: its cache is small
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
SLICES_AT_ONCE = 64  # of a model without neighbours, for which the prompts are read once


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one scan, on the scan's own grid and axes.

    claims: (A, B, C) uint16; bit p is set where prompt p's probability is over 0.5. Prompts may claim a voxel together.
    winner: (A, B, C) uint8; 1 + the prompt with the highest probability where any is over 0.5, else 0: a label map for people.
    probabilities: (P, A, B, C) float32 on request, else None.
    """

    prompts: tuple[str, ...]
    grid: Grid
    claims: np.ndarray
    winner: np.ndarray
    probabilities: np.ndarray | None = None

    def mask(self, prompt: str) -> np.ndarray:
        """(A, B, C) bool: the binary segmentation that the paper scores."""
        return mask_of(self.claims, self.prompts.index(prompt))


def mask_of(claims: np.ndarray, place: int) -> np.ndarray:
    """Bool mask of the prompt at `place` out of an array of claims."""
    return (claims >> place & 1).astype(bool)


def _at_once(most: int, tokens: int, each: int, device: torch.device) -> int:
    """How many of `each` tokens are computed at a time: `most`, on a processor no more than make up `tokens`."""
    return most if device.type != "cpu" else max(1, min(most, tokens // each))


def slices_at_once(settings: Settings, device: torch.device) -> int:
    """How many slices are encoded at a time."""
    return _at_once(CHUNK, WIDE, (settings.size // settings.patch) ** 2 + 1, device)


def _adapted(model: TextPromptedSegmenter, store: Store, settings: Settings) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """For each chunk of C centres: the decoder's inputs, each (C, L, D) float32, and the gate, as `model.adapt` gives them.

    Each slice is encoded once, and projected once for the adapter: what the next chunk's windows see is kept, and nothing else. A window
    of manifest rows needs the truth, so a model that was trained on those is tested on true neighbours.
    """
    device, half = model.mean.device, HALF.get(settings.encoder_precision)
    chunk = slices_at_once(settings, device)
    kept: dict[int, list[Tensor]] = {}
    for start in range(0, len(store.image), chunk):
        windows = np.array([store_window(store, z, settings) for z in range(start, min(start + chunk, len(store.image)))])
        needed, places = np.unique(windows, return_inverse=True)
        kept = {z: kept[z] for z in needed if z in kept}  # the neighbours shared with the chunk before
        new = np.array([z for z in needed if z not in kept], int)
        with torch.autocast(device.type, half, enabled=half is not None):
            if len(new):
                activations = model.encode_slices(torch.from_numpy(store.slices(new)).to(device))
                encoded = [*activations, *model.project(activations)]
                kept |= {z: [level[i] for level in encoded] for i, z in enumerate(new)}
            stacked = [torch.stack(level) for level in zip(*(kept[z] for z in needed), strict=True)]
            rows = torch.from_numpy(places.reshape(windows.shape)).to(device)
            count, few = len(model.levels), _at_once(CHUNK, THIN, windows.shape[1] * stacked[0].shape[1], device)
            parts = [model.adapt(stacked[:count], some, stacked[count:]) for some in rows.split(few)]
        adapted, gates = zip(*parts, strict=True)
        levels = [torch.cat(level).to(model.mean.dtype) for level in zip(*adapted, strict=True)]
        yield levels, None if gates[0] is None else torch.cat(gates)


def _decoded(model: TextPromptedSegmenter, adapted: list[Tensor], text: Tensor) -> Iterator[Tensor]:
    """Some centres at a time, (C, P, S, S) logits: the decoder's first reduction of a centre serves all of its P prompts."""
    terms = _at_once(TERMS, THIN, adapted[0].shape[1], text.device)
    prompts = text.chunk(-(-len(text) // terms))
    for start in range(0, len(adapted[0]), step := max(1, terms // len(text))):
        some = model.reduce([level[start : start + step] for level in adapted])
        centres = torch.arange(len(some[0]), device=text.device)
        parts = [model.decode_reduced(some, few.repeat(len(centres), 1), centres.repeat_interleave(len(few))) for few in prompts]
        yield torch.cat([part.unflatten(0, (len(centres), -1)) for part in parts], 1)


@torch.inference_mode()
def slice_probabilities(model: TextPromptedSegmenter, store: Store, prompts: list[str], settings: Settings) -> Iterator[np.ndarray]:
    """Chunk by chunk from the lowest slice, (P, C, S, S) float32 probabilities."""
    model.eval()
    yield from text_probabilities(model, store, model.encode_text(prompts), settings)


@torch.inference_mode()
def text_probabilities(model: TextPromptedSegmenter, store: Store, text: Tensor, settings: Settings) -> Iterator[np.ndarray]:
    """`slice_probabilities` of prompts that are read already: (P, J) features, as `model.encode_text` gives them."""
    model.eval()
    for adapted, _ in _adapted(model, store, settings):
        for logits in _decoded(model, adapted, text):
            yield logits.sigmoid().float().cpu().numpy().swapaxes(0, 1)


@torch.inference_mode()
def slice_gates(model: TextPromptedSegmenter, store: Store, settings: Settings) -> np.ndarray:
    """(Z, side, side) mean value of the adapter's gate at each patch of each slice, from the feet to the head; without a gate empty."""
    model.eval()
    maps = [gate[:, 1:].mean(-1) for _, gate in _adapted(model, store, settings) if gate is not None]  # without the class token: (C, L - 1)
    if not maps:
        return np.empty((0, 0, 0), np.float32)
    side = int(maps[0].shape[1] ** 0.5)
    return torch.cat(maps).unflatten(1, (side, side)).float().cpu().numpy()


def predict(
    model: TextPromptedSegmenter,
    store: Store,
    settings: Settings,
    prompts: tuple[str, ...] = PROMPTS,
    keep_probabilities: bool = False,
) -> Prediction:
    """Segments a prepared scan by up to 16 prompts.

    Raises:
        ValueError: more than 16 prompts, or none.
    """
    if not 0 < len(prompts) <= 16:
        raise ValueError(f"{len(prompts)} prompts: ask for 1 to 16 at a time")
    columns, rows, depth = store.grid.canonical_shape
    claims, winner = np.zeros((depth, rows, columns), np.uint16), np.zeros((depth, rows, columns), np.uint8)
    kept = np.zeros((len(prompts), depth, rows, columns), np.float32) if keep_probabilities else None
    start = 0
    for chunk in slice_probabilities(model, store, list(prompts), settings):
        part = slice(start, start := start + chunk.shape[1])
        chunk = resize(chunk.reshape(-1, *chunk.shape[-2:]), rows, columns, False).reshape(
            len(chunk), -1, rows, columns
        )  # (P, C, rows, columns)
        claims[part] = sum((p > 0.5).astype(np.uint16) << i for i, p in enumerate(chunk))
        best, place = torch.from_numpy(chunk).max(0)
        winner[part] = torch.where(best > 0.5, place + 1, 0)
        if kept is not None:
            kept[:, part] = chunk
    native = store.grid.to_native
    probabilities = None if kept is None else np.moveaxis(native(kept.T), -1, 0)
    return Prediction(tuple(prompts), store.grid, native(claims.T), native(winner.T), probabilities)


def prediction_of(labels: np.ndarray, store: Store) -> Prediction:
    """A canonical label map (X, Y, Z) of our ids as a prediction: each organ claims its own voxels, as a 3-D network's do."""
    bits = np.array([0, *(1 << place for place in range(len(PROMPTS)))], np.uint16)
    return prediction_of_claims(bits[labels], store)


def prediction_of_claims(claims: np.ndarray, store: Store) -> Prediction:
    """Canonical (X, Y, Z) uint16 claims, bit p for ORGANS[p]. Where organs claim a voxel together, the last one wins."""
    winner = np.zeros(claims.shape, np.uint8)
    for place in range(len(PROMPTS)):
        winner[mask_of(claims, place)] = place + 1
    return Prediction(PROMPTS, store.grid, store.grid.to_native(claims), store.grid.to_native(winner))


class SliceModel(Protocol):
    """A network that marks each slice by itself."""

    def probabilities(self, image: Tensor) -> Tensor:
        """(B, S, S) -> (B, P, S, S), a channel for each organ asked."""


@torch.inference_mode()
def segment_slices(model: nn.Module, store: Store, settings: Settings) -> np.ndarray:
    """Canonical (X, Y, Z) uint16 claims of a prepared scan: bit p for ORGANS[p], where the organ's probability is over 0.5.

    Probabilities go back from the model's slices to the scan's voxels, linearly; outside of the box that was prepared is nothing.
    """
    model.eval()
    device = next(model.parameters()).device
    marks: SliceModel = model  # type: ignore[assignment]
    found = []
    for start in range(0, len(store.image), SLICES_AT_ONCE):
        rows = np.arange(start, min(start + SLICES_AT_ONCE, len(store.image)))
        image = torch.from_numpy(store.slices(rows)).to(device).float() / 255
        found.append(marks.probabilities(image).float().cpu())
    volume = torch.cat(found).permute(1, 3, 2, 0)  # (P, x, y, z)
    claims = np.zeros(store.grid.canonical_shape, np.uint16)
    box = store.box or tuple(slice(0, edge) for edge in claims.shape)
    inside, shape = claims[box], tuple(edges.stop - edges.start for edges in box)
    bits = torch.tensor([1 << KEYS.index(key) for key in settings.organs])[:, None, None]
    for z, plane in enumerate(planes(volume, shape)):
        inside[:, :, z] = ((plane > 0.5) * bits).sum(0).numpy()
    return claims
