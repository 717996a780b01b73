"""Cheap controls that a gain must beat: a mean over slices, the largest piece, an atlas, an oracle."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.ndimage import label, uniform_filter1d

from lib.clipseg import TextPromptedSegmenter
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
