"""Slices without neighbours: what Med-VLM and its 2-D U-Net are fed (Med-VLM section 3.5)."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lib.datasets import Store
from lib.organs import BY_KEY, ORGANS
from lib.paths import InputError
from lib.profiles import Settings
from lib.volumes import plain_tensors

if TYPE_CHECKING:
    from monai.transforms import Compose, Transform


class Slices(NamedTuple):
    """What one step computes: B slices of S x S pixels, rows first."""

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


def augmentation(settings: Settings) -> "Compose":
    """The paper's augmentations in MONAI's words, on dictionaries of (1, S, S) image and label: its text names them without numbers."""
    from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandRotate90d, RandScaleIntensityd, RandShiftIntensityd

    both = ["image", "label"]
    steps: list[Transform] = []
    if settings.turns:  # which make a right side a left one
        steps += [RandFlipd(both, 0.5, axis) for axis in (0, 1)] + [RandRotate90d(both, 0.5)]
    if settings.intensity:
        steps += [RandShiftIntensityd("image", 0.1, prob=0.5), RandScaleIntensityd("image", 0.1, prob=0.5)]
        steps += [RandGaussianNoised("image", prob=0.5, std=0.02)]
    return Compose(steps)


class SliceSampler(Dataset):
    """Step number -> Slices, a pure function of the seed and the step: each slice of each training scan as likely as the next.

    An epoch is as many draws as there are slices, unless the settings give it a number of steps. A process takes its share.
    """

    def __init__(self, stores: list[Store], settings: Settings, rank: int = 0, world: int = 1, augmented: bool = True) -> None:
        wanted = np.flatnonzero(label_classes(settings))
        if not any(store.presence is not None and store.presence[:, wanted].any() for store in stores):
            raise InputError(
                f"No case of {settings.train_on} shows {' or '.join(settings.organs)}: check the label files and their label map."
            )
        if world > settings.batch:
            raise InputError(f"{world} processes cannot share {settings.batch} slices a step: start fewer, or raise `batch`.")
        self.stores, self.settings, self.rank, self.world = stores, settings, rank, world
        self.first = np.cumsum([0, *(len(store.image) for store in stores)])
        self.classes = torch.from_numpy(label_classes(settings))
        self.augment = augmentation(settings) if augmented else None

    def __len__(self) -> int:
        per_epoch = self.settings.epoch_steps or -(-int(self.first[-1]) // self.settings.batch)
        return per_epoch * self.settings.epochs

    def __getitem__(self, step: int) -> Slices:
        rng = np.random.default_rng([self.settings.seed, step])
        rows = rng.integers(self.first[-1], size=self.settings.batch)
        seeds = rng.integers(2**31, size=len(rows))  # a slice is the same whichever process draws it
        mine = list(zip(rows, seeds, strict=True))[self.rank :: self.world]
        images, labels = zip(*(self.draw(int(row), int(seed)) for row, seed in mine), strict=True)
        return Slices(torch.stack(images), torch.stack(labels))

    def draw(self, row: int, seed: int) -> tuple[Tensor, Tensor]:
        case = int(np.searchsorted(self.first, row, "right")) - 1
        store, z = self.stores[case], row - self.first[case]
        assert store.labels is not None
        image = torch.from_numpy(store.slices(np.array([z]))).float() / 255  # (1, S, S)
        label = self.classes[torch.from_numpy(store.labels[z : z + 1].astype(int))]
        if self.augment is not None and self.augment.transforms:
            self.augment.set_random_state(seed)
            with plain_tensors():
                turned = self.augment({"image": image, "label": label})
            image, label = turned["image"], turned["label"]
        return image[0].float(), label[0].byte()
