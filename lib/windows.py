"""What a training step is fed: windows of slices for CLIPSeg and the adapter, single slices for Med-VLM.

A training sample is (case, slice, organ), and its window is the true slices around it (T-Gated section 3.5).
A batch is a pure function of the seed and the step: a resumed run draws what the unbroken one drew.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lib.config import ClipSegSettings, Settings, SliceSettings
from lib.data import Store
from lib.files import InputError
from lib.organs import BY_KEY, KEYS, ORGANS
from lib.volumes import plain_tensors

LATERAL = np.array([organ.lateral for organ in ORGANS])
WEIGHTS = {"table 1": np.array([organ.weight for organ in ORGANS])}
WEIGHTS |= dict.fromkeys(("equal", "none"), np.ones(len(ORGANS)))
WEIGHTS["released"] = np.array([{"duodenum": 5.0, "pancreas": 3.0}.get(o.key, o.weight) for o in ORGANS])


class Windows(NamedTuple):
    """A step of CLIPSeg: N training samples over C centre slices, with windows of W out of U slices."""

    slices: Tensor  # (U, S, S), 0 to 255
    windows: Tensor  # (C, W) rows of `slices`; the middle one is the centre
    centre: Tensor  # (N,) rows of `windows`
    prompt: Tensor  # (N,) places in ORGANS, or in the prompts asked
    masks: Tensor  # (N, S, S) ground truth, 0 or 1
    weight: Tensor  # (N,) of the sample's loss; 1 on average
    mm: Tensor = torch.empty(0)  # (C, W) as `window_mm` has them; empty where no model asks

    def split(self, parts: int) -> list[tuple[float, "Windows"]]:
        """At most `parts` pieces of neighbouring centres, each with its share of centres and loss."""
        pieces = []
        asked = self.centre.unique().chunk(parts)  # a piece without any sample would have no mean
        for start, stop in pairwise([0, *(int(piece[0]) for piece in asked[1:]), len(self.windows)]):
            mine, share = (self.centre >= start) & (self.centre < stop), (stop - start) / len(self.windows)
            needed, windows = self.windows[start:stop].unique(return_inverse=True)
            weight = self.weight[mine] * (int(mine.sum()) / len(mine) / share)  # losses are means of samples
            centre, prompt, masks = self.centre[mine] - start, self.prompt[mine], self.masks[mine]
            mm = self.mm[start:stop]
            pieces.append((share, Windows(self.slices[needed], windows, centre, prompt, masks, weight, mm)))
        return pieces


def store_window(store: Store, z: int, settings: ClipSegSettings) -> list[int]:
    """What slice z sees: z-2..z+2 with edges replicated, or a control; rows for `store.slices`.

    Of `within_mm`: as many as lie so near, at most the window; other places, edges too, repeat the centre.
    """
    own, steps = len(store.image), np.arange(-settings.reach, settings.reach + 1)
    off_centre, apart_mm = steps != 0, round(store.grid.spacing_mm[2], 4)
    if settings.neighbours == "centre":
        steps[:] = 0
    if settings.window_unit == "mm":
        apart = abs(steps) * settings.window_step_mm / apart_mm
        steps = np.sign(steps) * np.floor(apart + 0.5).astype(int)
    if settings.within_mm:
        far = (abs(steps) * apart_mm).round(3) > settings.within_mm
        steps[far | (z + steps < 0) | (z + steps >= own)] = 0
    if settings.neighbours == "shuffled":
        steps[off_centre] = np.random.default_rng(z).permutation(steps[off_centre])
    window = (z + steps).clip(0, own - 1)
    if settings.neighbours == "another patient" and store.donor is not None:  # at the same relative height
        theirs = len(store.donor)
        middle = round(z * (theirs - 1) / max(own - 1, 1))
        window = np.where(off_centre, own + (middle + steps).clip(0, theirs - 1), z)
    return window.tolist()


def window_mm(store: Store, windows: np.ndarray) -> Tensor:
    """(C, W) rows of one scan -> (C, W) mm from the centre upwards; inf where it is repeated: no slice."""
    middle = windows.shape[1] // 2
    steps = windows - windows[:, [middle]]
    mm = np.where(steps, steps * store.grid.spacing_mm[2], np.inf)
    mm[:, middle] = 0
    return torch.from_numpy(mm).float()


def manifest_windows(presence: np.ndarray, reach: int) -> np.ndarray:
    """(Z, 14) pixels of a case -> (Z, 14, W) slices of the windows in the released code's manifest.
    It has a row for each slice and organ shown, and one (organ 13) for a slice without any; an absent organ
    stands at the slice's first row. Consecutive rows count as consecutive slices.
    """
    shown = presence[:, 1:] > 0
    z, organ = np.nonzero(np.column_stack([shown, ~shown.any(1)]))
    rows = np.repeat(np.searchsorted(z, np.arange(len(presence)))[:, None], len(ORGANS) + 1, 1)
    rows[z, organ] = np.arange(len(z))
    return z[(rows[..., None] + np.arange(-reach, reach + 1)).clip(0, len(z) - 1)]


def expected_samples(presence: np.ndarray, settings: ClipSegSettings) -> np.ndarray:
    """(Z, 14) pixels -> (Z, 13): how often an epoch of the paper holds each (slice, organ) asked for.
    A slice that shows the organ is one sample; the slices without it share a third as many. As released,
    slices without any organ share a whole number of samples, at least one.
    """
    asked = np.isin(KEYS, settings.organs)
    if settings.balance == "none":
        return np.ones((len(presence), len(ORGANS))) * (asked & presence[:, 1:].any(0))  # labelled ones
    present = presence[:, 1:] > 0
    absent, negatives = ~present, settings.negatives_per_positive * present.sum(0)
    if settings.negatives == "empty":
        absent = absent & ~present.any(1, keepdims=True)
        negatives = np.maximum(np.floor(negatives), present.any(0))
    return np.where(present, 1.0, absent * negatives / np.maximum(absent.sum(0), 1)) * asked


def expected_weights(presence: np.ndarray, settings: ClipSegSettings) -> np.ndarray:
    """(Z, 14) pixels -> (Z, 13): the same by weight, in proportion to which samples are drawn."""
    lighter = np.where(presence[:, 1:] > 0, 1.0, settings.negative_weight)
    return expected_samples(presence, settings) * WEIGHTS[settings.balance] * lighter


class WindowSampler(Dataset):
    """Step number -> Windows. Both samplers give every (slice, organ, flip) the same expected weight.
    "shuffled" (the paper's) draws `batch` samples by weight, each with its own window and augmentation.
    "slab" draws `slab_length` neighbouring centres of one scan under one augmentation, so that each slice is
    encoded once, and for each centre `slab_prompts` organs by weight (13: all). A flipped slab asks for no
    organ that has a side, an upright one counts those twice. Processes share the slabs of a step.
    """

    def __init__(self, stores: list[Store], settings: ClipSegSettings, rank: int = 0, world: int = 1) -> None:
        check_organs(stores, settings)
        if settings.sampler == "slab" and world > (count := settings.slab_centres // settings.slab_length):
            raise InputError(f"{world} processes cannot share {count} slabs a step: start fewer.")
        self.stores, self.settings, self.rank, self.world = stores, settings, rank, world
        presence = [store.presence for store in stores if store.presence is not None]
        pools = presence if settings.negatives_from == "same scan" else [np.concatenate(presence)]
        self.epoch = float(sum(expected_samples(pixels, settings).sum() for pixels in pools))
        self.weights = np.concatenate([expected_weights(pixels, settings) for pixels in pools])
        self.weights /= self.weights.sum(1).mean()  # (slices of all cases, 13); a centre counts 1 on average
        self.first = np.cumsum([0, *map(len, presence)])  # each case's first row

    def __len__(self) -> int:
        """Steps of the training: an epoch has each sample once, positive and negative, or each slice once."""
        s, per_step = self.settings, float(self.settings.batch)
        if s.sampler == "slab":
            per_step = s.slab_centres * min(s.slab_prompts, self.epoch / len(self.weights))
        return (s.epoch_steps or math.ceil(round(self.epoch / per_step, 6))) * s.epochs

    def __getitem__(self, step: int) -> Windows:
        rng, slab = np.random.default_rng([self.settings.seed, step]), self.settings.sampler == "slab"
        count = self.settings.slab_centres // self.settings.slab_length
        if slab:  # which is the same whichever process draws it
            parts = [self._slab(own) for own in rng.spawn(count)[self.rank :: self.world]]
        else:
            parts = self._shuffled(rng)
        moved, slices, centres = [], 0, 0
        for part in parts:  # as one batch: rows move up by the slices and windows that stand before them
            moved.append(part._replace(windows=part.windows + slices, centre=part.centre + centres))
            slices, centres = slices + len(part.slices), centres + len(part.windows)
        found = Windows(*(torch.cat(field) for field in zip(*moved, strict=True)))
        weight = found.weight * len(found.weight) * self.world / count  # a mean over the samples is coming
        return found._replace(weight=weight) if slab else found

    def _shuffled(self, rng: np.random.Generator) -> list[Windows]:
        chance, parts = self.weights.ravel() / self.weights.sum(), []
        picks = rng.choice(chance.size, self.settings.batch, p=chance)
        own = rng.spawn(len(picks))  # a sample is the same whichever process draws it
        for pick, rng in list(zip(picks, own, strict=True))[self.rank :: self.world]:
            row, organ = divmod(int(pick), len(ORGANS))
            case = int(np.searchsorted(self.first, row, "right")) - 1
            flip = self.settings.flip and not LATERAL[organ] and rng.random() < 0.5
            sample = np.array([row - self.first[case]]), np.array([0]), np.array([organ]), np.ones(1)
            parts.append(self._cut(self.stores[case], *sample, rng, flip))
        return parts

    def _slab(self, rng: np.random.Generator) -> Windows:
        """Neighbouring centres of one scan under one augmentation, each asked for several organs."""
        length, prompts, slices = self.settings.slab_length, self.settings.slab_prompts, np.diff(self.first)
        starts = slices + length - 1  # of each case, so that any slice is as likely as another
        starts[np.add.reduceat(self.weights.sum(1), self.first[:-1]) == 0] = 0  # scans that teach nothing
        case = int(rng.choice(len(starts), p=starts / starts.sum()))
        start = int(rng.integers(1 - length, slices[case]))
        centres = np.arange(max(start, 0), min(start + length, slices[case]))  # (C,)
        flips = self.settings.flip and self.weights[:, ~LATERAL].any()  # or a flipped slab would ask for none
        flip = bool(flips and rng.random() < 0.5)
        lateral = 1.0 if not flips else 0.0 if flip else 2.0
        share = self.weights[self.first[case] + centres] * np.where(LATERAL, lateral, 1.0)  # (C, 13)
        total = share.sum(1, keepdims=True)
        if prompts < len(ORGANS):
            draws = [rng.multinomial(prompts, row) for row in share / np.where(total > 0, total, 1)]
            share = np.stack(draws) * total / prompts  # equal draws merge
        centre, organ = share.nonzero()
        if not len(centre):  # a flipped slab of sided organs alone: a sample that counts nothing
            centre, organ = np.zeros((2, 1), int)
        return self._cut(self.stores[case], centres, centre, organ, share[centre, organ] / length, rng, flip)

    def _cut(self, store: Store, centres: np.ndarray, centre: np.ndarray, organ: np.ndarray,
             weight: np.ndarray, rng: np.random.Generator, flip: bool) -> Windows:
        """Samples of one scan under one augmentation: `centre` are places in `centres`."""
        assert store.labels is not None and store.presence is not None
        if self.settings.neighbours == "manifest" and self.settings.reach:  # each organ has its own window
            windows = manifest_windows(store.presence, self.settings.reach)[centres[centre], organ]
            windows, row = np.unique(windows, axis=0, return_inverse=True)
        else:
            windows, row = np.array([store_window(store, z, self.settings) for z in centres]), centre
        needed, places = np.unique(windows, return_inverse=True)
        degrees = rng.uniform(-1, 1) * self.settings.rotate_degrees
        mirror, frame = self.settings.mirror if flip else "", [1.0, 0.0, 0.0]
        if share := self.settings.move:
            least, most = np.array([[1 - share, -2 * share, -2 * share], [1 + share, 2 * share, 2 * share]])
            frame = rng.uniform(least, most).tolist()
        pictures = turned(store.slices(needed), degrees, mirror, "bilinear", self.settings.corner_grey, frame)
        truth = turned(store.labels[centres], degrees, mirror, "nearest", frame=frame)[centre]
        masks = (truth == torch.tensor([ORGANS[o].label for o in organ])[:, None, None]).float()
        seen, rows, organs = map(torch.from_numpy, (places.reshape(windows.shape), row.ravel(), organ))
        loss_weight, mm = torch.from_numpy(weight).float(), window_mm(store, windows)
        return Windows(pictures, seen, rows, organs, masks, loss_weight, mm)


def turned(pictures: np.ndarray, degrees: float, mirror: str, mode: str, corners: float = 0.0,
           frame: Sequence[float] = (1.0, 0.0, 0.0)) -> Tensor:
    """(K, S, S) float: rotated about the middle, then "left-right" or "front-back" exchanged.
    All slices of a window are turned alike, so that they stay aligned. mode: "bilinear" or "nearest".
    corners: the value where a rotation leaves nothing. frame: how much is seen along an edge, as a share of
    it, and the place of the middle on it, right and down, where the edges are -1 and 1.
    """
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x, y = (-1.0 if mirror == "left-right" else 1.0), (-1.0 if mirror == "front-back" else 1.0)
    zoom, right, down = frame
    rows = np.array([[x * cos * zoom, -y * sin * zoom, right], [x * sin * zoom, y * cos * zoom, down]])
    matrix = torch.from_numpy(rows[None]).float()
    images = torch.from_numpy(pictures).float()[None]  # the slices as channels
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = F.grid_sample(images - corners, grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
    return moved + corners


class Slices(NamedTuple):
    """A step of Med-VLM or its 2-D U-Net: B slices of S x S pixels, rows first."""

    image: Tensor  # (B, S, S) float, 0 to 1 (before noise and shifts)
    labels: Tensor  # (B, S, S) uint8: 0, or 1 + the organ's place in `settings.organs`


def class_labels(settings: Settings) -> np.ndarray:
    """(classes,) uint8: our label id of each class, the background's first."""
    return np.array([0, *(BY_KEY[key].label for key in settings.organs)], np.uint8)


def label_classes(settings: Settings) -> np.ndarray:
    """(14,) uint8: the class of each of our label ids; organs that are not asked for are background."""
    table = np.zeros(len(ORGANS) + 1, np.uint8)
    table[class_labels(settings)] = np.arange(len(settings.organs) + 1)
    return table


def check_organs(stores: list[Store], settings: Settings) -> None:
    """Raises InputError where no training case shows an organ that is asked for."""
    wanted = class_labels(settings)[1:]
    if not any(store.presence is not None and store.presence[:, wanted].any() for store in stores):
        organs = "any organ" if settings.organs == KEYS else " or ".join(settings.organs)
        raise InputError(f"No case of {settings.train_on} shows {organs}: check label files and label map.")


class SliceSampler(Dataset):
    """Step number -> Slices: each slice once an epoch. The paper gives augmentations no numbers."""

    def __init__(self, stores: list[Store], settings: SliceSettings, rank: int = 0, world: int = 1,
                 augmented: bool = True) -> None:
        from monai import transforms as ts

        check_organs(stores, settings)
        if world > settings.batch:
            raise InputError(f"{world} processes cannot share {settings.batch} slices a step: start fewer.")
        self.stores, self.settings, self.rank, self.world = stores, settings, rank, world
        self.first = np.cumsum([0, *(len(store.image) for store in stores)])
        self.classes = torch.from_numpy(label_classes(settings))
        both, steps = ["image", "label"], []
        if settings.turns and augmented:  # which make a right side a left one
            steps += [ts.RandFlipd(both, 0.5, 0), ts.RandFlipd(both, 0.5, 1), ts.RandRotate90d(both, 0.5)]
        if settings.intensity and augmented:
            steps += [ts.RandShiftIntensityd("image", 0.1, prob=0.5)]
            steps += [ts.RandScaleIntensityd("image", 0.1, prob=0.5)]
            steps += [ts.RandGaussianNoised("image", prob=0.5, std=0.02)]
        self.augment = ts.Compose(steps)

    def __len__(self) -> int:
        s = self.settings
        return (s.epoch_steps or math.ceil(self.first[-1] / s.batch)) * s.epochs

    def __getitem__(self, step: int) -> Slices:
        batch, slices, seed = self.settings.batch, self.first[-1], self.settings.seed
        epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), slices)
        order = {n: np.random.default_rng([seed, n, 1]).permutation(slices) for n in np.unique(epochs)}
        rows = [order[n][place] for n, place in zip(epochs, places, strict=True)]
        seeds = np.random.default_rng([seed, step]).integers(2**31, size=batch)  # of augmentations
        mine = list(zip(rows, seeds, strict=True))[self.rank :: self.world]
        images, labels = zip(*(self.draw(int(row), int(seed)) for row, seed in mine), strict=True)
        return Slices(torch.stack(images), torch.stack(labels))

    def draw(self, row: int, seed: int) -> tuple[Tensor, Tensor]:
        """Image (S, S) and classes (S, S) of slice `row` of all scans, augmented by the seed."""
        case = int(np.searchsorted(self.first, row, "right")) - 1
        store, z = self.stores[case], row - self.first[case]
        assert store.labels is not None
        image = torch.from_numpy(store.slices(np.array([z]))).float() / 255  # (1, S, S)
        label = self.classes[torch.from_numpy(store.labels[z : z + 1].astype(int))]
        if self.augment.transforms:
            self.augment.set_random_state(seed)
            with plain_tensors():
                image, label = self.augment({"image": image, "label": label}).values()
        return image[0].float(), label[0].byte()
