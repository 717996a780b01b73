"""Cheap controls that a gain must beat: the baseline's probabilities averaged over slices, its largest
piece, an atlas, an oracle."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool1d, pad

from lib.clipseg import TextPromptedSegmenter
from lib.config import ClipSegSettings
from lib.data import Store
from lib.inference import mask_of, slice_probabilities
from lib.organs import KEYS, PROMPTS
from lib.volumes import read_labels, resize


def mean_over_slices(
    model: TextPromptedSegmenter, store: Store, settings: ClipSegSettings, width: int
) -> np.ndarray:
    """Canonical (X, Y, Z) claims where the mean probability over `width` neighbouring slices is over 0.5.

    Edges are replicated.
    """
    small = np.concatenate(
        list(slice_probabilities(model, store, list(PROMPTS), settings)), axis=1
    )  # (P, Z, S, S)
    columns, rows, depth = store.grid.canonical_shape
    claims = np.zeros((depth, rows, columns), np.uint16)
    for place, volume in enumerate(small):
        series = torch.from_numpy(volume).flatten(1).T[None]  # (1, pixels, Z)
        padded = pad(series, (width // 2, width // 2), mode="replicate")
        smooth = avg_pool1d(padded, width, 1)[0].T.reshape(volume.shape).numpy()
        claims |= (resize(smooth, rows, columns, nearest=False) > 0.5).astype(np.uint16) << place
    return claims.T


def largest_piece(claims: np.ndarray) -> np.ndarray:
    """Claims (X, Y, Z), of which each organ keeps its largest 26-connected piece."""
    kept = np.zeros_like(claims)
    for place in range(len(KEYS)):
        pieces, count = ndimage.label(mask_of(claims, place), np.ones((3, 3, 3)))
        if count:
            kept |= (pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()).astype(np.uint16) << place
    return kept


def without_false_slices(claims: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Claims (X, Y, Z) without the slices in which the ground truth (our label ids) has no such organ: the
    headroom, by an oracle."""
    kept = np.zeros_like(claims)
    for place in range(len(KEYS)):
        present = (truth == place + 1).any((0, 1))
        kept |= (mask_of(claims, place) & present).astype(np.uint16) << place
    return kept


def atlas_of(stores: Sequence[Store]) -> np.ndarray:
    """(13, 32, S, S) share of training scans that show each organ, by relative height and place in the
    slice: it sees no image."""
    total = np.zeros((len(KEYS), 32, *stores[0].image.shape[1:]), np.float32)
    for store in stores:
        assert store.labels is not None
        heights = ((np.arange(32) + 0.5) * len(store.labels) / 32).astype(int)
        total += np.asarray(store.labels)[heights][None] == np.arange(1, len(KEYS) + 1)[:, None, None, None]
    return total / len(stores)


def from_atlas(atlas: np.ndarray, store: Store, threshold: float = 0.5) -> np.ndarray:
    """Canonical (X, Y, Z) claims of the atlas on a scan: where the organ's share is over the threshold."""
    columns, rows, depth = store.grid.canonical_shape
    heights = ((np.arange(depth) + 0.5) * atlas.shape[1] / depth).astype(int)
    claims = np.zeros((depth, rows, columns), np.uint16)
    for place, share in enumerate(atlas):
        claims |= (resize(share[heights], rows, columns, nearest=False) > threshold).astype(
            np.uint16
        ) << place
    return claims.T


def truth_of(store: Store) -> np.ndarray:
    """Canonical (X, Y, Z) ground truth of a scan, our label ids."""
    assert store.source.labels is not None
    return read_labels(store.source.labels, store.label_map, store.grid)
