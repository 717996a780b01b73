"""Training terms: a term is (case, slice, organ), and its window is the true slices around it (T-Gated section 3.5)."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lib.datasets import Store
from lib.organs import ORGANS
from lib.paths import InputError
from lib.profiles import Settings

LATERAL = np.array([organ.lateral for organ in ORGANS])
WEIGHT = np.array([organ.weight for organ in ORGANS])


class Terms(NamedTuple):
    """What one step computes: N terms over C centre slices, whose windows of W point into U encoded slices of S x S pixels."""

    slices: Tensor  # (U, S, S), 0 to 255
    windows: Tensor  # (C, W) rows of `slices`; the middle one is the centre
    centre: Tensor  # (N,) rows of `windows`
    prompt: Tensor  # (N,) places in ORGANS, or in the prompts asked
    masks: Tensor  # (N, S, S) truth, 0 or 1
    weight: Tensor  # (N,) of the term's loss; 1 on average


def window_of(z: int, slices: int, settings: Settings) -> list[int]:
    """Slices that slice z sees: z-2..z+2 for a window of 5, edges replicated; z alone, repeated, as the control."""
    reach = settings.window // 2
    if settings.neighbours == "centre":
        return [z] * settings.window
    return [min(max(z + step, 0), slices - 1) for step in range(-reach, reach + 1)]


def expected_weights(presence: np.ndarray, settings: Settings) -> np.ndarray:
    """(Z, 14) pixels of a case -> (Z, 13): how much each (slice, organ) counts in an epoch.

    A slice that shows the organ counts the organ's weight of Table 1. The slices of the same scan that do not show it share a third
    (`negatives_per_positive`) of what the organ's positive slices count together: 1 negative per 3 positives.
    """
    if settings.balance == "none":
        return np.ones((len(presence), len(ORGANS)))
    present = presence[:, 1:] > 0
    positives, absent = present.sum(0), (~present).sum(0)
    negative = settings.negatives_per_positive * positives / np.maximum(absent, 1)
    return np.where(present, 1.0, negative) * (WEIGHT if settings.balance == "table 1" else 1.0)


class TermSampler(Dataset):
    """Step number -> Terms, a pure function of the seed and the step: a resumed run draws what the unbroken one drew.

    Both samplers give every (slice, organ, flip) the same expected weight:
    "shuffled" (the paper's) draws `batch` terms in proportion to their weight, each with a window and an augmentation of its own;
    "slab" draws runs of `run_length` neighbouring centres of one scan under one augmentation, so that each slice is encoded once
    for all windows and prompts that need it. It draws `prompts` organs for each centre in proportion to their weights, merges
    equal draws, and weighs the terms of a centre by the centre's total weight; 13 prompts are all organs, by their weights. A
    flipped run asks for no organ that has a side, an upright one counts those twice.
    """

    def __init__(self, stores: list[Store], settings: Settings, rank: int = 0, world: int = 1) -> None:
        if not any(store.presence is not None and store.presence[:, 1:].any() for store in stores):
            raise InputError(f"No training case of {settings.train_on} shows any organ: check the label files and their label map.")
        self.stores, self.settings, self.rank, self.world = stores, settings, rank, world
        weights = [expected_weights(store.presence, settings) for store in stores if store.presence is not None]
        self.weights = np.concatenate(weights)  # (slices of all cases, 13)
        self.weights /= self.weights.sum(1).mean()  # a centre counts 1 on average
        self.first = np.cumsum([0, *(len(w) for w in weights)])  # each case's first row
        shape = stores[0].image.shape[1:]
        if any(store.image.shape[1:] != shape for store in stores):
            raise InputError("The prepared cases differ in slice size: prepare them with one setting of `size`.")

    def positive_slices(self) -> int:
        """Number of (slice, organ) pairs in which the organ is seen: an epoch of the paper."""
        return int(sum((store.presence[:, 1:] > 0).sum() for store in self.stores if store.presence is not None))

    def __len__(self) -> int:
        per_epoch = self.settings.epoch_steps or -(-self.positive_slices() // self.settings.batch)
        return per_epoch * self.settings.epochs

    def __getitem__(self, step: int) -> Terms:
        rng = np.random.default_rng([self.settings.seed, step])
        draw = {"shuffled": self._shuffled, "slab": self._slab}[self.settings.sampler]
        return draw(rng)

    def _locate(self, row: int) -> tuple[Store, int]:
        case = int(np.searchsorted(self.first, row, "right")) - 1
        return self.stores[case], int(row - self.first[case])

    def _shuffled(self, rng: np.random.Generator) -> Terms:
        chance = self.weights.ravel() / self.weights.sum()
        picks = rng.choice(chance.size, self.settings.batch, p=chance)
        parts = []
        own = rng.spawn(len(picks))  # a term is the same whichever process draws it
        for pick, rng in list(zip(picks, own, strict=True))[self.rank :: self.world]:
            row, organ = divmod(int(pick), len(ORGANS))
            store, z = self._locate(row)
            flip = self.settings.flip and not LATERAL[organ] and rng.random() < 0.5
            parts.append(self._terms(store, [z], np.array([0]), np.array([organ]), np.ones(1), rng, flip))
        return _join(parts)

    def _slab(self, rng: np.random.Generator) -> Terms:
        runs = self.settings.batch // self.settings.run_length
        terms = _join([self._run_of_centres(rng) for _ in range(runs)])
        return terms._replace(weight=terms.weight * len(terms.weight) * self.world / runs)  # for a mean over the terms is coming

    def _run_of_centres(self, rng: np.random.Generator) -> Terms:
        """Neighbouring centres of one scan under one augmentation, each asked for several organs."""
        length, prompts = self.settings.run_length, self.settings.prompts
        starts = np.array([len(store.image) + length - 1 for store in self.stores])  # so that any slice is as likely as another
        case = int(rng.choice(len(starts), p=starts / starts.sum()))
        start = int(rng.integers(1 - length, len(self.stores[case].image)))
        centres = list(range(max(start, 0), min(start + length, len(self.stores[case].image))))
        flip = bool(self.settings.flip and rng.random() < 0.5)
        lateral = 1.0 if not self.settings.flip else 0.0 if flip else 2.0
        share = self.weights[self.first[case] + np.array(centres)] * np.where(LATERAL, lateral, 1.0)  # (C, 13)
        total = share.sum(1)
        if prompts < len(ORGANS):
            draws = np.stack([rng.multinomial(prompts, row / whole) for row, whole in zip(share, total, strict=True)])
            share = draws * total[:, None] / prompts
        centre, organ = share.nonzero()
        weight = share[centre, organ] / length
        mine = slice(self.rank, None, self.world)
        return self._terms(self.stores[case], centres, centre[mine], organ[mine], weight[mine], rng, flip)

    def _terms(
        self,
        store: Store,
        centres: list[int],
        centre: np.ndarray,
        organ: np.ndarray,
        weight: np.ndarray,
        rng: np.random.Generator,
        flip: bool,
    ) -> Terms:
        """Terms of one scan under one augmentation: `centre` are places in `centres`."""
        windows = np.array([window_of(z, len(store.image), self.settings) for z in centres])
        needed, places = np.unique(windows, return_inverse=True)
        assert store.labels is not None
        labels = store.labels[np.array(centres)]
        grid = _turned_grid(rng.uniform(-1, 1) * self.settings.rotate_degrees, flip, labels.shape[-1])
        pictures = _sample(torch.from_numpy(store.image[needed]).float(), grid, "bilinear")
        truth = _sample(torch.from_numpy(labels).float(), grid, "nearest")
        wanted = torch.tensor([ORGANS[o].label for o in organ])
        return Terms(
            pictures,
            torch.from_numpy(places.reshape(windows.shape)),
            torch.from_numpy(centre),
            torch.from_numpy(organ),
            (truth[centre] == wanted[:, None, None]).float(),
            torch.from_numpy(weight).float(),
        )


def _join(parts: list[Terms]) -> Terms:
    """Terms of several windows as one: rows of slices and windows move up by what stands before them."""
    slices = np.cumsum([0, *(len(part.slices) for part in parts)])
    centres = np.cumsum([0, *(len(part.windows) for part in parts)])
    moved = [p._replace(windows=p.windows + int(s), centre=p.centre + int(c)) for p, s, c in zip(parts, slices, centres, strict=False)]
    return Terms(*(torch.cat(field) for field in zip(*moved, strict=True)))


def _turned_grid(degrees: float, flip: bool, size: int) -> Tensor:
    """(1, S, S, 2) sampling grid: rotation about the middle of the picture, then left and right exchanged."""
    angle = np.deg2rad(degrees)
    mirror = -1.0 if flip else 1.0
    matrix = [[mirror * np.cos(angle), -np.sin(angle), 0.0], [mirror * np.sin(angle), np.cos(angle), 0.0]]
    return F.affine_grid(torch.tensor([matrix], dtype=torch.float32), [1, 1, size, size], align_corners=False)


def _sample(pictures: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(K, S, S) pictures on the grid; the same for all slices of a window, so that they stay aligned."""
    return F.grid_sample(pictures[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
