"""Supervised 3-D networks on resampled scans: DynUNet (T-Gated 4.5, as released), UNETR (Med-VLM 3.2), and
the 3-D U-Net and Swin UNETR of T-Gated's related work."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from lib.config import VolumeSettings
from lib.data import Store, write_array
from lib.files import InputError
from lib.organs import KEYS
from lib.volumes import foreground, plain_tensors, read_labels, read_scan, resize, to_uint8
from lib.windows import check_organs, class_labels, label_classes

PATCHES = 2  # drawn from each scan of a step
LEVEL_WEIGHTS = (0.5333, 0.2667, 0.2)  # of the losses of the output and of the two coarser ones
OVERLAP = 0.5  # of neighbouring windows, as a share of their edges


class Patches(NamedTuple):
    """What one step computes: B boxes of X x Y x Z voxels on canonical axes."""

    image: Tensor  # (B, 1, X, Y, Z) float, 0 to 1
    labels: Tensor  # (B, 1, X, Y, Z) uint8, classes: 0, or 1 + the organ's place in `settings.organs`


def resampled(store: Store, settings: VolumeSettings) -> tuple[np.ndarray, np.ndarray | None]:
    """Grey values and labels (None without truth) in voxels of `voxel_mm`, (X, Y, Z) uint8, kept on disk."""
    names = ["image"] if store.source.labels is None else ["image", "labels"]
    size = "x".join(f"{mm:g}" for mm in settings.voxel_mm)
    files = [store.folder / f"{name}_{size}mm.npy" for name in names]
    prepared = (store.folder / "case.json").stat().st_mtime_ns  # files are made again when they are older
    if not all(file.exists() and file.stat().st_mtime_ns > prepared for file in files):
        voxels, grid = read_scan(store.source.image, store.grid.stored)
        volumes = [to_uint8(voxels, store.modality, settings)]
        if store.source.labels is not None:
            volumes.append(read_labels(store.source.labels, store.label_map, grid))
        edges = zip(grid.canonical_shape, grid.spacing_mm, settings.voxel_mm, strict=True)
        x, y, z = (max(1, round(count * old / new)) for count, old, new in edges)  # the outer faces stay
        for file, volume, nearest in zip(files, volumes, (False, True), strict=False):
            across = resize(volume.T, y, x, nearest)  # (Z, y, x)
            write_array(file, resize(across.T, y, z, nearest))
    image, *labels = (np.load(file, mmap_mode="r") for file in files)
    return image, labels[0] if labels else None


def _cut(volume: np.ndarray, centre: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """The box of `size` voxels about `centre`, moved inside the scan; zeros around a scan that is smaller."""
    edges = np.array(size)
    starts = np.clip(centre - edges // 2, 0, np.maximum(volume.shape - edges, 0))
    part = volume[tuple(map(slice, starts, starts + edges))]
    missing = edges - part.shape
    return np.pad(part, np.stack([missing // 2, missing - missing // 2], 1))


class PatchSampler(Dataset):
    """Step number -> Patches, a pure function of the seed and the step: `batch` scans, and two boxes of each.

    Half are centred on any voxel of an organ, half on one that shows none and is not black as air.
    `settings.turns` flips and turns them as released, which mixes up the sides.
    """

    def __init__(self, stores: list[Store], settings: VolumeSettings, rank: int = 0, world: int = 1) -> None:
        check_organs(stores, settings)
        from monai import transforms as ts
        boxes, patch = PATCHES * settings.batch, settings.patch_voxels
        if world > boxes:
            raise InputError(f"{world} processes cannot share {boxes} patches: start fewer or raise `batch`.")
        if settings.turns and patch[0] != patch[1]:
            raise InputError(f"A patch of {patch} voxels cannot be turned: make its first two edges equal.")
        self.settings, self.rank, self.world = settings, rank, world
        field = ts.RandBiasField(prob=0.5, coeff_range=(0.0, 0.3))  # smooth, as of a receiver coil
        self.contrasts = ts.Compose([field, ts.RandAdjustContrast(prob=0.5, gamma=(0.5, 2.0))])
        self.scans = []  # image and classes of each, cropped to the box around all grey values over 0
        for image, labels in (resampled(store, settings) for store in stores):
            if labels is not None:  # with all organs, labels are the classes and stay on disk
                classes = labels if settings.organs == KEYS else label_classes(settings)[labels]
                box = foreground(image)
                self.scans.append((image[box], classes[box]))

    def __len__(self) -> int:
        per_epoch = self.settings.epoch_steps or -(-len(self.scans) // self.settings.batch)
        return per_epoch * self.settings.epochs

    def __getitem__(self, step: int) -> Patches:
        settings, count, boxes = self.settings, len(self.scans), []
        rng = np.random.default_rng([settings.seed, step])
        picks = rng.choice(count, settings.batch, replace=count < settings.batch).repeat(PATCHES)
        for pick, own in list(zip(picks, rng.spawn(len(picks)), strict=True))[self.rank :: self.world]:
            image, labels = self.scans[pick]  # a box is the same whichever process draws it
            organ = own.random() < 0.5
            eligible = np.flatnonzero(labels > 0 if organ else (labels == 0) & (image > 0))
            place = own.choice(eligible) if len(eligible) else own.integers(labels.size)
            centre = np.unravel_index(place, labels.shape)
            box = np.stack([_cut(volume, centre, settings.patch_voxels) for volume in (image, labels)])
            if settings.turns:
                box = np.flip(box, tuple(1 + np.flatnonzero(own.random(3) < 0.5)))
                box = np.rot90(box, int(own.integers(1, 4)), (1, 2)) if own.random() < 0.5 else box
            image, labels = torch.from_numpy(box.copy())[:, None]  # (1, X, Y, Z) each
            image = image.float() / 255
            if settings.contrasts:
                self.contrasts.set_random_state(int(own.integers(2**31)))
                with plain_tensors():
                    image = self.contrasts(image).clip(0, 1)
                image = 1 - image if own.random() < 0.5 else image
            boxes.append((image, labels))
        return Patches(*map(torch.stack, zip(*boxes, strict=True)))


def build_dynunet(settings: VolumeSettings) -> nn.Module:
    """DynUNet: (B, 1, X, Y, Z) -> (B, classes, X, Y, Z) logits, in training (B, levels, classes, X, Y, Z)."""
    from monai.networks.nets import DynUNet
    halvings, patch = len(settings.filters) - 1, settings.patch_voxels
    if any(edge % 2**halvings for edge in patch):
        raise InputError(f"Patches of {patch} voxels do not fit DynUNet: use multiples of {2**halvings}.")
    torch.manual_seed(settings.seed)
    model = DynUNet(
        spatial_dims=3, in_channels=1, out_channels=len(settings.organs) + 1, filters=settings.filters,
        kernel_size=[3] * (halvings + 1), strides=[1] + [2] * halvings, upsample_kernel_size=[2] * halvings,
        norm_name="instance", deep_supervision=True,
        deep_supr_num=min(len(LEVEL_WEIGHTS), halvings) - 1,  # no head is idle: the bottleneck has none
    )
    for twin in ("input_block", "downsamples", "bottleneck", "upsamples", "deep_supervision_heads"):
        delattr(model, twin)  # `skip_layers` holds them all; safetensors refuses a weight with two names
    return model


def build_unetr(settings: VolumeSettings) -> nn.Module:
    """UNETR: (B, 1, X, Y, Z) -> (B, classes, X, Y, Z) logits. MONAI fixes its 12 layers."""
    from monai.networks.nets import UNETR
    if any(edge % 16 for edge in settings.patch_voxels):
        raise InputError(f"Patches of {settings.patch_voxels} voxels do not fit UNETR: use multiples of 16.")
    torch.manual_seed(settings.seed)
    network = UNETR(
        in_channels=1, out_channels=len(settings.organs) + 1, img_size=settings.patch_voxels,
        feature_size=settings.feature_size, hidden_size=settings.hidden, mlp_dim=4 * settings.hidden,
        num_heads=settings.heads,
    )
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # MONAI makes one for a cross-attention that UNETR has not
    return nn.Sequential(OrderedDict(network=network))  # as its weights are named


def build_swin_unetr(settings: VolumeSettings) -> nn.Module:
    """Swin UNETR: (B, 1, X, Y, Z) -> (B, classes, X, Y, Z) logits."""
    from monai.networks.nets import SwinUNETR
    patch = settings.patch_voxels
    if any(edge % 32 for edge in patch) or max(patch) == 32:
        advice = "use multiples of 32, and one over 32."  # five halvings leave its norms more than one voxel
        raise InputError(f"Patches of {patch} voxels do not fit Swin UNETR: {advice}")
    torch.manual_seed(settings.seed)
    classes = len(settings.organs) + 1
    return SwinUNETR(in_channels=1, out_channels=classes, feature_size=settings.feature_size)


def build_unet_3d(settings: VolumeSettings) -> nn.Module:
    """The 3-D U-Net: (B, 1, X, Y, Z) -> (B, classes, X, Y, Z) logits; `filters` has its five levels."""
    from monai.networks.nets import BasicUNet
    torch.manual_seed(settings.seed)
    features = *settings.filters, settings.filters[0]  # the last is what the output reads
    return BasicUNet(spatial_dims=3, out_channels=len(settings.organs) + 1, features=features)


def volume_losses(model: nn.Module, patches: Patches, *_: Any) -> dict[str, Tensor]:
    """{"loss"}: Dice and cross-entropy of the output and of the coarser ones."""
    from monai.losses import DiceCELoss
    measure = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    logits = model(patches.image).float()  # half precision overflows in a sum of voxels
    levels = logits.unbind(1) if logits.ndim == 6 else [logits]
    weights = LEVEL_WEIGHTS[: len(levels)]
    losses = [weight * measure(level, patches.labels) for weight, level in zip(weights, levels, strict=True)]
    return {"loss": torch.stack(losses).sum() / sum(weights)}


@torch.inference_mode()
def segment_volume(model: nn.Module, store: Store, settings: VolumeSettings) -> np.ndarray:
    """Our label ids of a prepared scan, (X, Y, Z) uint8 on its own voxels and canonical axes."""
    from monai.inferers import sliding_window_inference
    device = next(model.eval().parameters()).device
    scan = torch.from_numpy(np.asarray(resampled(store, settings)[0], np.float32))[None, None] / 255
    home: Any = "cpu"
    if device.type == "cuda":  # the whole scan's probabilities add up there where they fit three times
        clear_device_cache()
        room = 3 * 4 * (len(settings.organs) + 1) * scan.numel()
        home = device if torch.cuda.mem_get_info(device)[0] > room else home
    found: Any = sliding_window_inference(  # (1, classes, x, y, z)
        scan, settings.patch_voxels, PATCHES * settings.batch, lambda x: model(x).softmax(1), OVERLAP,
        sw_device=device, device=home,
    )  # probabilities go back to the scan's voxels, for borders between labels would be coarse
    slices = [plane.argmax(0).byte().cpu().numpy() for plane in planes(found[0], store.grid.canonical_shape)]
    return class_labels(settings)[np.stack(slices, -1)]


def planes(found: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """(P, x, y, z) on a model's voxels -> (P, X, Y) of each slice of a scan of `shape` (X, Y, Z), linear."""
    depth = found.shape[-1]
    for z in range(shape[2]):
        height = min(max((z + 0.5) * depth / shape[2] - 0.5, 0), depth - 1)  # its place between the model's
        below, share = int(height), height % 1
        plane = torch.lerp(found[..., below], found[..., min(below + 1, depth - 1)], share)
        yield interpolate(plane[None], shape[:2], mode="bilinear")[0]
