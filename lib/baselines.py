"""The supervised 3-D networks: MONAI's DynUNet (T-Gated section 4.5, as its released configuration trains it)
and UNETR (Med-VLM 3.2).

Everything lives on a scan's canonical axes, resampled to one voxel size; what comes back is on the scan's own
voxels again.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from lib.config import VolumeSettings
from lib.data import Store, write_array
from lib.files import InputError
from lib.organs import KEYS
from lib.volumes import foreground, read_labels, read_scan, resize, to_uint8
from lib.windows import check_organs, class_labels, label_classes

PATCHES = 2  # drawn from each scan of a step
LEVEL_WEIGHTS = (0.5333, 0.2667, 0.2)  # of the losses of the output and of the two coarser ones
OVERLAP = 0.5  # of neighbouring windows, as a share of their edges


class Patches(NamedTuple):
    """What one step computes: B boxes of X x Y x Z voxels on canonical axes."""

    image: Tensor  # (B, 1, X, Y, Z) float, 0 to 1
    # (B, 1, X, Y, Z) uint8, classes: 0, or 1 + the organ's place in `settings.organs` (for all organs, our
    # label ids)
    labels: Tensor


def _resample(
    volume: np.ndarray, spacing_mm: tuple[float, ...], voxel_mm: tuple[float, ...], nearest: bool
) -> np.ndarray:
    """(X, Y, Z) uint8 on voxels of `voxel_mm`, stretched by less than half a voxel so that the outer faces
    stay where they are."""
    x, y, z = (
        max(1, round(n * old / new)) for n, old, new in zip(volume.shape, spacing_mm, voxel_mm, strict=True)
    )
    across = resize(volume.T, y, x, nearest)  # (Z, y, x)
    return resize(across.T, y, z, nearest)  # (x, y, z)


def resampled(store: Store, settings: VolumeSettings) -> tuple[np.ndarray, np.ndarray | None]:
    """The scan's grey values and labels (None without truth), each (X, Y, Z) uint8 on canonical axes, in
    voxels of `voxel_mm`.

    The image is linear (antialiased where it shrinks), the labels are nearest. Both are kept beside the
    store, for a step of a training that read NIfTI would wait for the disk, and are made again when the store
    is younger. InputError: as in `read_scan` and `read_labels`, or the store's folder cannot be written.
    """
    size = "x".join(f"{mm:g}" for mm in settings.voxel_mm)
    kinds = ["image"] if store.source.labels is None else ["image", "labels"]
    files = [store.folder / f"{kind}_{size}mm.npy" for kind in kinds]
    prepared = (store.folder / "case.json").stat().st_mtime_ns
    if not all(file.exists() and file.stat().st_mtime_ns > prepared for file in files):
        voxels, grid = read_scan(store.source.image)
        volumes = [to_uint8(voxels, store.modality, settings)]
        if store.source.labels is not None:
            volumes.append(read_labels(store.source.labels, store.label_map, grid))
        for file, volume in zip(files, volumes, strict=True):
            write_array(
                file, _resample(volume, grid.spacing_mm, settings.voxel_mm, nearest=volume is not volumes[0])
            )
    image, *labels = (np.load(file, mmap_mode="r") for file in files)
    return image, labels[0] if labels else None


class _Scan:
    """A training scan, cropped to its foreground: the box around all grey values over 0."""

    def __init__(self, image: np.ndarray, labels: np.ndarray) -> None:
        box = foreground(image)
        self.image, self.labels = image[box], labels[box]
        counts = [
            [np.count_nonzero(self._eligible(x, kind)) for x in range(len(self.image))]
            for kind in (False, True)
        ]
        self.ends = np.cumsum(
            counts, 1
        )  # (2, X) eligible voxels up to each sagittal plane, in place of a list of their places

    def _eligible(self, x: int, organ: bool) -> np.ndarray:
        """(Y, Z) bool: voxels of a sagittal plane that show any organ, or those that show none and are not
        as black as air."""
        return self.labels[x] > 0 if organ else (self.labels[x] == 0) & (self.image[x] > 0)

    def draw(self, organ: bool, rng: np.random.Generator) -> tuple[int, ...]:
        """An eligible voxel, each as likely as the next; any voxel of a scan that has none."""
        ends = self.ends[int(organ)]
        if not ends[-1]:
            return tuple(int(rng.integers(edge)) for edge in self.image.shape)
        pick = int(rng.integers(ends[-1]))
        x = int(np.searchsorted(ends, pick, "right"))
        y, z = np.argwhere(self._eligible(x, organ))[pick - ends[x]]  # counted from the plane's last one
        return x, int(y), int(z)


def _cut(volume: np.ndarray, centre: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """The box of `size` voxels about `centre`, moved inside the scan.

    Zeros on both sides where the scan is smaller, as in inference.
    """
    starts = [
        min(max(c - s // 2, 0), max(n - s, 0)) for c, s, n in zip(centre, size, volume.shape, strict=True)
    ]
    part = volume[tuple(slice(start, start + s) for start, s in zip(starts, size, strict=True))]
    return np.pad(part, [(missing // 2, missing - missing // 2) for missing in np.subtract(size, part.shape)])


class PatchSampler(Dataset):
    """Step number -> Patches, a pure function of the seed and the step: `batch` scans, and two boxes of each.

    A box is centred on an organ or on the background with equal chance. `settings.turns` flips each axis and
    turns the axial plane by chance, as the released configuration does; off by default, for a mirrored body
    has its left kidney on the right. A process takes its share of the boxes.
    """

    def __init__(self, stores: list[Store], settings: VolumeSettings, rank: int = 0, world: int = 1) -> None:
        check_organs(stores, settings)
        if world > PATCHES * settings.batch:
            raise InputError(
                f"{world} processes cannot share {PATCHES * settings.batch} patches a step: start fewer, or "
                "raise `batch`."
            )
        if settings.turns and settings.patch_voxels[0] != settings.patch_voxels[1]:
            raise InputError(
                f"A patch of {settings.patch_voxels} voxels cannot be turned: make its first two edges equal."
            )
        pairs = (resampled(store, settings) for store in stores)
        every = settings.organs == KEYS  # whose labels are the classes: they stay on disk
        self.scans = [
            _Scan(image, labels if every else label_classes(settings)[labels])
            for image, labels in pairs
            if labels is not None
        ]
        self.settings, self.rank, self.world = settings, rank, world

    def __len__(self) -> int:
        per_epoch = self.settings.epoch_steps or -(-len(self.scans) // self.settings.batch)
        return per_epoch * self.settings.epochs

    def __getitem__(self, step: int) -> Patches:
        rng, batch = np.random.default_rng([self.settings.seed, step]), self.settings.batch
        scans = rng.choice(len(self.scans), batch, replace=len(self.scans) < batch).repeat(PATCHES)
        own = rng.spawn(len(scans))  # a patch is the same whichever process draws it
        mine = list(zip(scans, own, strict=True))[self.rank :: self.world]
        images, labels = zip(*(self._patch(self.scans[scan], rng) for scan, rng in mine), strict=True)
        return Patches(torch.from_numpy(np.stack(images)).float() / 255, torch.from_numpy(np.stack(labels)))

    def _patch(self, scan: _Scan, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels of one box, (1, X, Y, Z) uint8 each."""
        centre = scan.draw(rng.random() < 0.5, rng)
        flipped = np.flatnonzero(rng.random(3) < 0.5) if self.settings.turns else ()
        quarters = int(rng.integers(1, 4)) if self.settings.turns and rng.random() < 0.5 else 0
        cuts = (_cut(volume, centre, self.settings.patch_voxels) for volume in (scan.image, scan.labels))
        image, labels = (np.rot90(np.flip(cut, tuple(flipped)), quarters, (0, 1))[None] for cut in cuts)
        return image, labels


def build_dynunet(settings: VolumeSettings) -> nn.Module:
    """DynUNet with weights of `settings.seed`: (B, 1, X, Y, Z) -> (B, 14, X, Y, Z) logits; in training (B, 1
    + coarser, 14, X, Y, Z).

    InputError: the patch cannot be halved as often as the model halves it.
    """
    from monai.networks.nets import DynUNet

    halvings = len(settings.filters) - 1
    if any(edge % 2**halvings for edge in settings.patch_voxels):
        raise InputError(
            f"A patch of {settings.patch_voxels} voxels does not fit the model: make its edges multiples of "
            f"{2**halvings}."
        )
    torch.manual_seed(settings.seed)
    model = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=len(settings.organs) + 1,
        kernel_size=[3] * (halvings + 1),
        strides=[1] + [2] * halvings,
        upsample_kernel_size=[2] * halvings,
        filters=settings.filters,
        norm_name="instance",
        deep_supervision=True,
        deep_supr_num=min(
            len(LEVEL_WEIGHTS) - 1, halvings - 1
        ),  # no head is idle: the bottleneck's output has none
    )
    for twin in ("input_block", "downsamples", "bottleneck", "upsamples", "deep_supervision_heads"):
        delattr(model, twin)  # `skip_layers` holds them all; safetensors refuses a weight with two names
    return model


def build_unetr(settings: VolumeSettings) -> nn.Module:
    """UNETR with weights of `settings.seed`: (B, 1, X, Y, Z) -> (B, classes, X, Y, Z) logits, in training (B,
    1, classes, X, Y, Z).

    Its transformer has 12 layers, which MONAI fixes; `hidden`, `heads` and `feature_size` are open.
    """
    from monai.networks.nets import UNETR

    if any(edge % 16 for edge in settings.patch_voxels):
        raise InputError(
            f"A patch of {settings.patch_voxels} voxels does not fit UNETR: make its edges multiples of 16."
        )
    torch.manual_seed(settings.seed)
    network = UNETR(
        in_channels=1, out_channels=len(settings.organs) + 1, img_size=settings.patch_voxels,
        feature_size=settings.feature_size, hidden_size=settings.hidden, mlp_dim=4 * settings.hidden,
        num_heads=settings.heads,
    )
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # MONAI makes one for a cross-attention that UNETR has not
    return _OneLevel(network)


class _OneLevel(nn.Module):
    """A network without coarser outputs, which trains by the loss of those with them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        out = self.network(image)
        return out[:, None] if self.training else out


def volume_losses(
    model: nn.Module, patches: Patches, settings: VolumeSettings, done: float
) -> dict[str, Tensor]:
    """{"loss"}: Dice and cross-entropy of the output and of the coarser ones.

    `settings` and `done` (0 to 1) change nothing.
    """
    from monai.losses import DiceCELoss

    measure = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    levels = (
        model(patches.image).float().unbind(1)
    )  # each (B, classes, X, Y, Z); float, for half precision overflows in a sum of voxels
    weights = LEVEL_WEIGHTS[: len(levels)]
    losses = [weight * measure(level, patches.labels) for weight, level in zip(weights, levels, strict=True)]
    return {"loss": torch.stack(losses).sum() / sum(weights)}


@torch.inference_mode()
def segment_volume(model: nn.Module, store: Store, settings: VolumeSettings) -> np.ndarray:
    """Our label ids of a prepared scan, (X, Y, Z) uint8 on its own voxels and canonical axes
    (`store.grid.to_native` turns them).

    Probabilities, not labels, go back to the scan's voxels, for borders between labels would be as coarse as
    the model's voxels. One slice of them at a time: beyond the probabilities on the model's voxels, memory
    does not grow with the scan.
    """
    from monai.inferers import sliding_window_inference

    model.eval()
    image, _ = resampled(store, settings)
    scan = torch.from_numpy(image.astype(np.float32))[None, None] / 255  # (1, 1, x, y, z)
    where: dict[str, Any] = {
        "sw_device": next(model.parameters()).device, "device": "cpu",
    }  # the whole scan in main memory
    at_once = (
        PATCHES * settings.batch
    )  # as many as a step trains on; one by one, a convolution takes four times as long on one core
    found = sliding_window_inference(
        scan, settings.patch_voxels, at_once, lambda x: model(x).softmax(1), OVERLAP, **where
    )
    assert isinstance(found, Tensor)  # (1, classes, x, y, z)
    labels = np.stack(
        [plane.argmax(0).byte().numpy() for plane in planes(found[0], store.grid.canonical_shape)], -1
    )
    return class_labels(settings)[labels]


def planes(found: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """(P, x, y, z) probabilities on a model's voxels -> for each slice of a scan of `shape` (X, Y, Z) the
    (P, X, Y) there, linear."""
    for z in range(shape[2]):
        height = min(
            max((z + 0.5) * found.shape[-1] / shape[2] - 0.5, 0), found.shape[-1] - 1
        )  # the slice's place between the model's
        below, share = int(height), height % 1
        plane = torch.lerp(found[..., below], found[..., min(below + 1, found.shape[-1] - 1)], share)
        yield interpolate(plane[None], shape[:2], mode="bilinear")[0]
