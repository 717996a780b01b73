"""A model and scans small enough for a test of a second."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.datasets import Store, stores_of
from lib.profiles import Settings, settings_of
from lib.volumes import Grid


def tiny_settings(run: str = "baseline", **changes: object) -> Settings:
    """Two-layer models of the smoke profile."""
    return replace(settings_of(run, "smoke"), **changes)


def fake_store(slices: int, size: int = 24, seed: int = 0) -> Store:
    """A store in memory: noise, and each organ in a band of slices of its own."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((slices, size, size), np.uint8)
    for label in range(1, 14):
        z = label % slices
        labels[z : z + 3, label : label + 3, 2:9] = label
    presence = np.stack([np.bincount(picture.ravel(), minlength=14) for picture in labels])
    image = rng.integers(0, 256, labels.shape, dtype=np.uint8)
    grid = Grid((size, size, slices), np.diag([-1.0, -1.0, 1.0, 1.0]))
    return Store("fake", Path(), image, labels, grid, "CT", presence, "FLARE22", None)  # type: ignore[arg-type]


__all__ = ["fake_store", "stores_of", "tiny_settings"]
