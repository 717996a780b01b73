"""A model and scans small enough for a test of a second."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from lib.config import SliceSettings, settings_of
from lib.data import Store
from lib.volumes import Grid
from tools import train

FORK = multiprocessing.get_context("fork")
PARTS = train.PARTS
RELEASED: dict[str, Any] = {  # the adapter with every departure of the released code, as notebook 04 has it
    "neighbours": "manifest", "decoder_inputs": "last", "gate_first": True, "frozen_embeddings": True,
    "penalty_on": "bias", "clip_norm": 0.5, "negatives": "empty", "negatives_per_positive": 0.04,
    "balance": "released", "validation": "augmented slices", "mirror": "front-back",
}  # fmt: skip


def tiny_settings(run: str = "baseline", **changes: Any) -> Any:
    """Two-layer models of the smoke profile."""
    return settings_of(run, "smoke", **changes)


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
    # type: ignore[arg-type]
    return Store("fake", Path(), image, labels, grid, "CT", presence, "FLARE22", None)


def slice_settings(**changes: Any) -> SliceSettings:
    """Slices of 24 pixels for the spleen and the liver, as they are stored."""
    return tiny_settings("unet", **{"size": 24, "turns": False, "intensity": False} | changes)


class Fixed(nn.Module):
    """Gives the same output whatever it sees."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, image: Tensor) -> Tensor:
        return self.output


def labels_of_shape(*shape: int) -> np.ndarray:
    """An asymmetrical map of ids 0..13."""
    return (np.arange(np.prod(shape)).reshape(shape) * 5 % 14).astype(np.uint8)


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, by its path from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def at_once(*works: Callable[[Any], None]) -> None:
    """Calls functions of one barrier in processes of their own, which end well."""
    start = FORK.Barrier(len(works))
    workers = [FORK.Process(target=work, args=(start,)) for work in works]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * len(works)
