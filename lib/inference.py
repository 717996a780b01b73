"""From a model and a prepared scan to masks on the scan's own voxels; CLIPSeg encodes each slice once."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.baselines import planes, segment_volume
from lib.clipseg import TextPromptedSegmenter
from lib.config import ClipSegSettings, SliceSettings
from lib.data import Store
from lib.organs import KEYS, PROMPTS
from lib.volumes import rescale
from lib.windows import store_window, window_mm

CHUNK, PAIRS = 16, 64  # centre slices, and (slice, prompt) pairs, that are computed at a time
WIDE, THIN = 1000, 3400  # on a processor, tokens at a time of the encoder, and of the decoder
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
SLICES_AT_ONCE = 64  # of a model without neighbours, for which the prompts are read once


class Prediction(NamedTuple):
    """What a model says of one scan, on the scan's own grid and axes (A, B, C)."""

    claims: np.ndarray  # uint16; bit p is set where prompt p's probability is over 0.5: several may be
    winner: np.ndarray  # uint8; 1 + the prompt with the highest probability where any is over 0.5, else 0


def mask_of(claims: np.ndarray, place: int) -> np.ndarray:
    """Bool mask of the prompt at `place` out of an array of claims: the segmentation that is scored."""
    return (claims >> place & 1).astype(bool)


def at_once(most: int, tokens: int, each: int, device: torch.device) -> int:
    """How many of `each` tokens are computed at a time: `most`, or on a processor what `tokens` allow."""
    return most if device.type != "cpu" else max(1, min(most, tokens // each))


def adapted_slices(model: TextPromptedSegmenter, store: Store,
                   settings: ClipSegSettings) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """For each chunk of C centres, what `model.adapt` gives: the decoder's inputs (C, L, D), and the gate.
    Each slice is encoded once: what the next chunk's windows see is kept, and nothing else. A model that was
    trained on manifest rows, which need the ground truth, is tested on true neighbours.
    """
    device, half = model.mean.device, HALF.get(settings.encoder_precision)
    chunk = at_once(CHUNK, WIDE, (settings.size // settings.patch) ** 2 + 1, device)
    kept: dict[int, list[Tensor]] = {}
    for start in range(0, len(store.image), chunk):
        centres = range(start, min(start + chunk, len(store.image)))
        windows = np.array([store_window(store, z, settings) for z in centres])
        if settings.as_channels:  # each centre's window is a picture of its own
            colours = torch.from_numpy(store.slices(windows.ravel())).unflatten(0, windows.shape).to(device)
            with torch.autocast(device.type, half, enabled=half is not None):
                yield [level.to(model.mean.dtype) for level in model.encode_slices(colours)], None
            continue
        needed, places = np.unique(windows, return_inverse=True)
        kept = {z: kept[z] for z in needed if z in kept}  # the neighbours shared with the chunk before
        new = np.array([z for z in needed if z not in kept], int)
        with torch.autocast(device.type, half, enabled=half is not None):
            if len(new):
                encoded = model.encode_slices(torch.from_numpy(store.slices(new)).to(device))
                kept |= {z: [level[i] for level in encoded] for i, z in enumerate(new)}
            stacked = [torch.stack(level) for level in zip(*(kept[z] for z in needed), strict=True)]
            rows = torch.from_numpy(places.reshape(windows.shape)).to(device)
            adapted, gate = model.adapt(stacked, rows, window_mm(store, windows).to(device))
        yield [level.to(model.mean.dtype) for level in adapted], gate


@torch.inference_mode()
def slice_probabilities(model: TextPromptedSegmenter, store: Store, prompts: list[str],
                        settings: ClipSegSettings) -> Iterator[Tensor]:
    """Some slices at a time from the lowest, their (P, C, S, S) float32 probabilities of the P prompts, on
    the model's device."""
    text = model.eval().encode_text(prompts)
    for adapted, _ in adapted_slices(model, store, settings):
        pairs = at_once(PAIRS, THIN, adapted[0].shape[1], text.device)
        few = max(1, pairs // len(text))  # centres that are decoded at a time
        for start in range(0, len(adapted[0]), few):
            some, parts = [level[start : start + few] for level in adapted], []
            rows = torch.arange(len(some[0]), device=text.device)
            for asked in text.chunk(-(-len(text) // pairs)):
                each = rows.repeat_interleave(len(asked))
                logits = model.decode(some, asked.repeat(len(rows), 1), each)  # (C P, S, S)
                parts.append(logits.unflatten(0, (len(rows), -1)))
            yield torch.cat(parts, 1).sigmoid().float().transpose(0, 1)


@torch.inference_mode()
def slice_gates(model: TextPromptedSegmenter, store: Store, settings: ClipSegSettings) -> np.ndarray:
    """(Z, side, side) mean of the adapter's gate at each patch of each slice; empty without a gate."""
    gates = [gate for _, gate in adapted_slices(model.eval(), store, settings) if gate is not None]
    if not gates:
        return np.empty((0, 0, 0), np.float32)
    maps = torch.cat([gate[:, 1:].mean(-1) for gate in gates])  # without the class token: (Z, L - 1)
    side = int(maps.shape[1] ** 0.5)
    return maps.unflatten(1, (side, side)).float().cpu().numpy()


def predict(model: Any, store: Store, settings: Any, prompts: tuple[str, ...] = (),
            organs: Collection[str] = KEYS) -> Prediction:
    """Segments a prepared scan by whatever kind of model it is.
    prompts: CLIPSeg's, at most 16, by default the 13 organs; or other words for Med-VLM's organs.
    organs: those of CLIPSeg's 13 that are asked for; the model has learned no other."""
    columns, rows, depth = store.grid.canonical_shape
    if isinstance(settings, ClipSegSettings):
        prompts, start = prompts or PROMPTS, 0
        assert len(prompts) <= 16, "claims have 16 bits"
        places = [i for i in range(len(prompts)) if i >= len(KEYS) or KEYS[i] in organs]
        labels = np.array([0, *(place + 1 for place in places)], np.uint8)
        claims, winner = (np.zeros((depth, rows, columns), kind) for kind in (np.uint16, np.uint8))
        for small in slice_probabilities(model, store, [prompts[place] for place in places], settings):
            part = slice(start, start := start + small.shape[1])
            found = rescale(small.flatten(0, 1), rows, columns).unflatten(0, small.shape[:2])
            claims[part] = sum((p > 0.5).int() << i for i, p in zip(places, found, strict=True)).cpu()
            best, which = found.max(0)  # of (P, C, rows, columns)
            winner[part] = labels[torch.where(best > 0.5, which + 1, 0).cpu().numpy()]
        claims, winner = claims.T, winner.T  # to canonical (X, Y, Z)
    else:
        if isinstance(settings, SliceSettings):
            claims = segment_slices(model, store, settings, prompts)
        else:
            bits = np.array([0, *(1 << place for place in range(len(KEYS)))], np.uint16)
            claims = bits[segment_volume(model, store, settings)]
        winner = np.zeros((columns, rows, depth), np.uint8)
        for place in range(len(KEYS)):  # where organs share a voxel, the last wins
            winner[mask_of(claims, place)] = place + 1
    return Prediction(store.grid.to_native(claims), store.grid.to_native(winner))


@torch.inference_mode()
def segment_slices(model: nn.Module, store: Store, settings: SliceSettings,
                   prompts: tuple[str, ...] = ()) -> np.ndarray:
    """Canonical (X, Y, Z) uint16 claims: bit p for ORGANS[p], where its probability is over 0.5.

    model: (B, S, S) to logits (B, P, S, S), a channel for each of the settings' organs; a U-Net's have one
    more, the background's, before them. Probabilities go back to the scan's voxels linearly; outside of the
    prepared box is nothing.
    """
    device, found = next(model.eval().parameters()).device, []
    for start in range(0, len(store.image), SLICES_AT_ONCE):
        rows = np.arange(start, min(start + SLICES_AT_ONCE, len(store.image)))
        image = torch.from_numpy(store.slices(rows)).to(device).float() / 255
        logits = (model(image, prompts) if prompts else model(image)).float()
        alone = logits.shape[1] == len(settings.organs)
        found.append(logits.sigmoid() if alone else logits.softmax(1)[:, 1:])
    volume = torch.cat(found).permute(1, 3, 2, 0)  # (P, x, y, z)
    claims = np.zeros(store.grid.canonical_shape, np.uint16)
    inside = claims[store.box or ...]
    bits = torch.tensor([1 << KEYS.index(key) for key in settings.organs], device=device)[:, None, None]
    for z, plane in enumerate(planes(volume, inside.shape)):
        inside[:, :, z] = ((plane > 0.5) * bits).sum(0).cpu()
    return claims
