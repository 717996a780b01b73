"""Training terms: a term is (case, slice, organ), and its window is the true slices around it (T-Gated section 3.5)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lib.datasets import Store
from lib.organs import KEYS, ORGANS
from lib.paths import InputError
from lib.profiles import Settings

LATERAL = np.array([organ.lateral for organ in ORGANS])
WEIGHT = np.array([organ.weight for organ in ORGANS])
RELEASED_WEIGHT = np.array([{"duodenum": 5.0, "pancreas": 3.0}.get(organ.key, organ.weight) for organ in ORGANS])


class Terms(NamedTuple):
    """What one step computes: N terms over C centre slices, whose windows of W point into U encoded slices of S x S pixels."""

    slices: Tensor  # (U, S, S), 0 to 255
    windows: Tensor  # (C, W) rows of `slices`; the middle one is the centre
    centre: Tensor  # (N,) rows of `windows`
    prompt: Tensor  # (N,) places in ORGANS, or in the prompts asked
    masks: Tensor  # (N, S, S) truth, 0 or 1
    weight: Tensor  # (N,) of the term's loss; 1 on average


def window_of(z: int, slices: int, settings: Settings, spacing_mm: float = 1.0, donor: int = 0) -> list[int]:
    """Slices that slice z sees: z-2..z+2 for a window of 5, edges replicated, or one of the controls.

    slices, spacing_mm: the scan's number of slices and their distance. donor: slices of another patient, which stand behind the
    scan's own as rows slices, slices + 1, ...; there the neighbours are those of the same relative height.
    """
    steps = np.arange(-settings.reach, settings.reach + 1)
    if settings.neighbours == "centre":
        return [z] * len(steps)
    if settings.window_unit == "mm":
        steps = np.sign(steps) * np.floor(abs(steps) * settings.window_step_mm / round(spacing_mm, 4) + 0.5).astype(int)
    if settings.neighbours == "shuffled":
        steps[np.arange(len(steps)) != settings.reach] = np.random.default_rng(z).permutation(np.delete(steps, settings.reach))
    window = (z + steps).clip(0, slices - 1)
    if settings.neighbours == "another patient" and donor:
        there = (round(z * (donor - 1) / max(slices - 1, 1)) + steps).clip(0, donor - 1) + slices
        window = np.where(np.arange(len(steps)) == settings.reach, z, there)
    return window.tolist()


def store_window(store: Store, z: int, settings: Settings) -> list[int]:
    """`window_of` a prepared scan: rows for `store.slices`."""
    donor = 0 if store.donor is None else len(store.donor)
    return window_of(z, len(store.image), settings, store.spacing_mm, donor)


def manifest_windows(presence: np.ndarray, reach: int) -> Callable[[int, int], list[int]]:
    """(Z, 14) pixels of a case -> (z, organ's place) -> the slices of its window among the rows of the released code's manifest.

    The manifest has a row for each slice and organ that it shows, one for a slice that shows none, and the released code takes
    consecutive rows for consecutive slices. An organ that the slice does not show stands where the slice's first row is.
    """
    z, organ = np.nonzero(np.column_stack([presence[:, 1:] > 0, ~(presence[:, 1:] > 0).any(1)]))
    place = {(int(a), int(b)): i for i, (a, b) in reversed(list(enumerate(zip(z, organ, strict=True))))}
    first = np.searchsorted(z, np.arange(len(presence)))

    def window(slice_: int, organ_: int) -> list[int]:
        row = place.get((slice_, organ_), int(first[slice_]))
        return z[np.arange(row - reach, row + reach + 1).clip(0, len(z) - 1)].tolist()

    return window


def expected_weights(presence: np.ndarray, settings: Settings) -> np.ndarray:
    """(Z, 14) pixels of a case -> (Z, 13): how much each (slice, organ) counts in an epoch.

    A slice that shows the organ counts the organ's weight of Table 1. The slices of the same scan that do not show it share a third
    (`negatives_per_positive`) of what the organ's positive slices count together: 1 negative per 3 positives. As released, only
    slices without any organ are negative.
    """
    asked = np.isin(KEYS, settings.organs)
    if settings.balance == "none":
        return np.ones((len(presence), len(ORGANS))) * asked
    present = presence[:, 1:] > 0
    absent = ~present & ~present.any(1, keepdims=True) if settings.negatives == "empty" else ~present
    negative = absent * settings.negatives_per_positive * present.sum(0) / np.maximum(absent.sum(0), 1)
    weight = {"table 1": WEIGHT, "released": RELEASED_WEIGHT, "equal": np.ones(len(ORGANS))}
    return np.where(present, 1.0, negative) * weight[settings.balance] * asked


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
        """Steps of the training. The paper's epoch draws as many terms as are positive; in one of slabs a centre stands for its positive
        terms, or for as many as are drawn for it: where all organs are asked for, that is every slice once."""
        positive, settings = self.positive_slices(), self.settings
        drawn = min(settings.prompts, positive / int(self.first[-1])) if settings.sampler == "slab" else 1
        per_epoch = settings.epoch_steps or math.ceil(positive / (settings.batch * drawn))
        return per_epoch * settings.epochs

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
            draws = np.stack([rng.multinomial(prompts, row / (whole or 1)) for row, whole in zip(share, total, strict=True)])
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
        windows, row = self._windows(store, centres, centre, organ)
        needed, places = np.unique(windows, return_inverse=True)
        assert store.labels is not None
        labels = store.labels[np.array(centres)]
        mirror = self.settings.mirror if flip else ""
        grid = _turned_grid(rng.uniform(-1, 1) * self.settings.rotate_degrees, mirror, labels.shape[-1])
        pictures = _sample(torch.from_numpy(store.slices(needed)).float(), grid, "bilinear")
        truth = _sample(torch.from_numpy(labels).float(), grid, "nearest")
        wanted = torch.tensor([ORGANS[o].label for o in organ])
        return Terms(
            pictures,
            torch.from_numpy(places.reshape(windows.shape)),
            torch.from_numpy(row),
            torch.from_numpy(organ),
            (truth[centre] == wanted[:, None, None]).float(),
            torch.from_numpy(weight).float(),
        )

    def _windows(self, store: Store, centres: list[int], centre: np.ndarray, organ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(C, W) windows and each term's row of them; among rows of a manifest a term's window depends on its organ, too."""
        if self.settings.neighbours != "manifest" or not self.settings.reach:
            return np.array([store_window(store, z, self.settings) for z in centres]), centre
        assert store.presence is not None
        window = manifest_windows(store.presence, self.settings.reach)
        windows = np.array([window(centres[c], int(o)) for c, o in zip(centre, organ, strict=True)])
        windows, row = np.unique(windows.reshape(len(centre), -1), axis=0, return_inverse=True)
        return windows, row.ravel()


def _join(parts: list[Terms]) -> Terms:
    """Terms of several windows as one: rows of slices and windows move up by what stands before them."""
    slices = np.cumsum([0, *(len(part.slices) for part in parts)])
    centres = np.cumsum([0, *(len(part.windows) for part in parts)])
    moved = [p._replace(windows=p.windows + int(s), centre=p.centre + int(c)) for p, s, c in zip(parts, slices, centres, strict=False)]
    return Terms(*(torch.cat(field) for field in zip(*moved, strict=True)))


def _turned_grid(degrees: float, mirror: str, size: int) -> Tensor:
    """(1, S, S, 2) sampling grid: rotation about the middle of the picture, then left and right, or front and back, exchanged."""
    angle = np.deg2rad(degrees)
    x, y = (-1.0 if mirror == "left-right" else 1.0), (-1.0 if mirror == "front-back" else 1.0)
    matrix = [[x * np.cos(angle), -y * np.sin(angle), 0.0], [x * np.sin(angle), y * np.cos(angle), 0.0]]
    return F.affine_grid(torch.tensor([matrix], dtype=torch.float32), [1, 1, size, size], align_corners=False)


def _sample(pictures: Tensor, grid: Tensor, mode: str) -> Tensor:
    """(K, S, S) pictures on the grid; the same for all slices of a window, so that they stay aligned."""
    return F.grid_sample(pictures[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
