"""Cheap controls that a gain must beat: a mean over slices, the largest piece, an atlas, two oracles."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import find_objects, label, uniform_filter1d
from torch.nn.functional import interpolate

from lib.clipseg import MEAN, STD, TextPromptedSegmenter
from lib.config import ClipSegSettings
from lib.data import Store
from lib.inference import mask_of, slice_probabilities
from lib.organs import KEYS, PROMPTS
from lib.volumes import read_labels, resize


def _on_scan(volumes: Iterable[np.ndarray], store: Store, threshold: float) -> np.ndarray:
    """Canonical (X, Y, Z) uint16 claims: bit p where organ p's (Z, S, S) values exceed the threshold."""
    claims = np.zeros(store.grid.canonical_shape, np.uint16)
    columns, rows, _ = claims.shape
    for place, volume in enumerate(volumes):
        claims[(resize(volume, rows, columns, nearest=False) > threshold).T] |= 1 << place
    return claims


def mean_over_slices(model: TextPromptedSegmenter, store: Store, settings: ClipSegSettings,
                     width: int) -> np.ndarray:
    """Claims where the mean probability over `width` neighbouring slices (edges replicated) is over 0.5."""
    volumes = torch.cat([*slice_probabilities(model, store, list(PROMPTS), settings)], 1).cpu().numpy()
    return _on_scan((uniform_filter1d(volume, width, 0, mode="nearest") for volume in volumes), store, 0.5)


def largest_piece(claims: np.ndarray) -> np.ndarray:
    """Claims (X, Y, Z), of which each organ keeps its largest 26-connected piece."""
    kept = np.zeros_like(claims)
    for place in range(len(KEYS)):
        pieces, _ = label(mask_of(claims, place), np.ones((3, 3, 3)))
        sizes = np.bincount(pieces[pieces > 0], minlength=2)
        kept[pieces == max(1, sizes.argmax())] |= 1 << place
    return kept


def without_false_slices(claims: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Claims (X, Y, Z) in slices that show the organ in the ground truth (our label ids): the headroom."""
    kept = claims.copy()
    for place in range(len(KEYS)):
        kept[:, :, ~(truth == place + 1).any((0, 1))] &= ~np.uint16(1 << place)
    return kept


@torch.inference_mode()
def from_boxes(sam: Any, store: Store, medical: bool) -> np.ndarray:
    """Canonical (X, Y, Z) claims of a SamModel that is given each organ's box in each slice of the ground
    truth: an oracle, told what a text-prompted model has to find. A slice is encoded once for all its boxes.

    medical: a slice's grey values span 0 to 1, as in MedSAM's own inference (bowang-lab/MedSAM), which
    enlarges slices by cubic splines where this is linear; else SAM's mean and deviation are taken out.
    """
    assert store.labels is not None
    pixels, (depth, *shape) = sam.config.vision_config.image_size, store.image.shape
    mean, std = (torch.tensor(x, device=sam.device).view(3, 1, 1) for x in (MEAN, STD))
    found = np.zeros((len(KEYS), depth, *shape), np.float32)
    for z in range(depth):
        there = {place: box for place, box in enumerate(find_objects(np.asarray(store.labels[z]))) if box}
        if not there:
            continue
        edges = [[x.start, y.start, x.stop, y.stop] for y, x in there.values()]
        boxes = np.array(edges, np.float32) * pixels / shape[0] - (0, 0, 1, 1)  # its first and last pixels
        grey = torch.from_numpy(store.slices(np.array([z]))).to(sam.device)[None] / 255  # (1, 1, S, S)
        grey = interpolate(grey, (pixels, pixels), mode="bilinear")
        low, high = grey.aminmax()
        spread = (grey - low) / (high - low).clamp(1e-8) if medical else (grey - mean) / std
        seen = sam.get_image_embeddings(spread.expand(-1, 3, -1, -1))
        asked = torch.tensor(boxes[None], dtype=seen.dtype, device=sam.device)
        masks = sam(image_embeddings=seen, input_boxes=asked, multimask_output=False).pred_masks
        masks = interpolate(masks[0].sigmoid(), shape, mode="bilinear", antialias=True)  # (boxes, 1, S, S)
        found[[*there], z] = masks[:, 0].cpu()
    return _on_scan(found, store, 0.5)


def atlas_of(stores: Sequence[Store]) -> np.ndarray:
    """(13, 32, S, S) share of training scans that show each organ, by relative height and place."""
    total = np.zeros((len(KEYS), 32, *stores[0].image.shape[1:]), np.float32)
    for store in stores:
        assert store.labels is not None
        heights = ((np.arange(32) + 0.5) * len(store.labels) / 32).astype(int)
        total += np.asarray(store.labels)[heights][None] == np.arange(1, len(KEYS) + 1)[:, None, None, None]
    return total / len(stores)


def from_atlas(atlas: np.ndarray, store: Store, threshold: float = 0.5) -> np.ndarray:
    """Canonical (X, Y, Z) claims of the atlas on a scan: where the organ's share is over the threshold. One
    averaged to a single height, (13, 1, S, S), says the same of every slice: a 2-D atlas."""
    depth = store.grid.canonical_shape[2]
    heights = ((np.arange(depth) + 0.5) * atlas.shape[1] / depth).astype(int)
    return _on_scan(atlas[:, heights], store, threshold)


def truth_of(store: Store) -> np.ndarray:
    """Canonical (X, Y, Z) ground truth of a scan, our label ids."""
    assert store.source.labels is not None
    return read_labels(store.source.labels, store.label_map, store.grid)
