"""lib.baselines: the boxes of a step, where gradients go, and label maps that come back to their voxels."""

import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save
from tiny import Fixed, tiny_settings
from torch import Tensor, nn

from lib import baselines
from lib.baselines import (
    Patches,
    PatchSampler,
    _cut,
    _Scan,
    build_dynunet,
    build_unetr,
    resampled,
    segment_volume,
    volume_losses,
)
from lib.clipseg import load_weights
from lib.config import VolumeSettings, settings_of
from lib.data import Case, Store, prepare, stores_of
from lib.files import InputError
from lib.organs import KEYS
from lib.training import assert_gradients_arrive, train
from lib.windows import class_labels, label_classes

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(0)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
OBLIQUE = np.array([[-1.9, 0.5, 0, 3], [-0.5, -1.9, 0.2, 5], [0.1, 0.1, 4, -7], [0, 0, 0, 1]])


def written(
    folder: Path,
    settings: VolumeSettings,
    hu: np.ndarray,
    labels: np.ndarray | None,
    affine: np.ndarray = LPS,
    name: str = "a",
) -> Store:
    """A store of one scan, whose stored axes are the canonical ones unless `affine` says otherwise."""
    image, truth = folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz"
    nib.save(nib.Nifti1Image(hu.astype(np.int16), affine), image)
    if labels is not None:
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), truth)
    case = Case(name, image, truth if labels is not None else None)
    return prepare([case], settings, folder / "stores")[0]


def noisy(
    folder: Path, settings: VolumeSettings, shape: tuple[int, int, int] = (20, 18, 16), name: str = "a"
) -> Store:
    """Noise in voxels of 1 mm with a 6 x 6 x 6 liver around the middle voxel."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(n // 2 - 3, n // 2 + 3) for n in shape)] = 1
    return written(folder, settings, RNG.integers(-120, 270, shape), labels, name=name)


def unit_settings(**changes: object) -> VolumeSettings:
    """Voxels of 1 mm, so that `noisy` is not resampled, and boxes of 4 voxels."""
    return replace(
        tiny_settings("dynunet", voxel_mm=(1.0, 1.0, 1.0), patch_voxels=(4, 4, 4), batch=2), **changes
    )


@pytest.fixture(scope="module")
def phantoms() -> list[Store]:
    return stores_of(tiny_settings("dynunet"), "training")


def equal(one: Patches, two: Patches) -> bool:
    return torch.equal(one.image, two.image) and torch.equal(one.labels, two.labels)


# resampled scans


def test_resampling_halves_or_doubles_by_hand(tmp_path: Path) -> None:
    hu = np.broadcast_to(np.array([-125, 75, 275, 275])[:, None, None], (4, 2, 2))
    labels = np.broadcast_to(np.array([1, 2, 3, 4])[:, None, None], (4, 2, 2))
    settings = tiny_settings("dynunet", voxel_mm=(0.5, 1.0, 2.0))
    image, truth = resampled(written(tmp_path, settings, hu, labels), settings)
    assert image.dtype == np.uint8 and image.shape == (8, 2, 1)
    assert image[:, 0, 0].tolist() == pytest.approx([0, 32, 96, 159, 223, 255, 255, 255], abs=1), (
        "linear: 0, 128, 255, 255 at every other edge"
    )
    assert truth is not None and truth[:, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_resampled_scan_is_kept_until_its_store_is_younger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, reads = unit_settings(), []
    store = noisy(tmp_path, settings)
    read_scan = baselines.read_scan
    monkeypatch.setattr(baselines, "read_scan", lambda path: reads.append(path) or read_scan(path))
    image, _ = resampled(store, settings)
    assert (
        isinstance(image, np.memmap)
        and np.array_equal(image, resampled(store, settings)[0])
        and len(reads) == 1
    )
    resampled(store, replace(settings, voxel_mm=(2.0, 2.0, 2.0)))
    assert len(reads) == 2 and resampled(store, settings)[0].shape == image.shape, (
        "each voxel size has files of its own"
    )
    for file in store.folder.glob("*mm.npy"):
        os.utime(file, ns=(0, 0))
    resampled(store, settings)
    assert len(reads) == 3, "made again"


def test_scan_without_truth_has_no_labels(tmp_path: Path) -> None:
    settings = unit_settings()
    store = written(tmp_path, settings, np.zeros((5, 6, 7)), None)
    image, labels = resampled(store, settings)
    assert image.shape == (5, 6, 7) and labels is None


# the sampler


def test_training_scans_are_cropped_to_what_is_not_black(tmp_path: Path) -> None:
    hu = np.full((9, 8, 7), -1000)
    hu[2:5, 3:8, 1:3] = 60
    labels = np.zeros(hu.shape)
    labels[3, 4, 2] = 1
    settings = unit_settings()
    store = written(tmp_path, settings, hu, labels)
    scan = PatchSampler([store], settings).scans[0]
    assert scan.image.shape == (3, 5, 2) and scan.labels[1, 1, 1] == 1
    assert resampled(store, settings)[0].shape == (9, 8, 7), "only training crops"


def test_a_step_is_a_pure_function_of_seed_and_step(phantoms: list[Store]) -> None:
    settings = tiny_settings("dynunet", batch=2, turns=True)
    first, again = PatchSampler(phantoms, settings), PatchSampler(phantoms, settings)
    assert len(first) == settings.epochs * settings.epoch_steps
    assert equal(first[3], again[3]) and equal(first[0], first[0])
    assert not equal(first[0], first[1])
    assert not equal(first[0], PatchSampler(phantoms, replace(settings, seed=1))[0])
    assert (
        len(PatchSampler(phantoms * 2, replace(settings, epoch_steps=0, batch=3))) == settings.epochs * 2
    ), "4 cases, 3 a step"


def test_patches_have_the_shapes_and_values_of_their_docstring(phantoms: list[Store]) -> None:
    settings = tiny_settings("dynunet")
    image, labels = PatchSampler(phantoms, settings)[0]
    assert image.shape == labels.shape == (2 * settings.batch, 1, *settings.patch_voxels)
    assert image.dtype == torch.float32 and image.min() >= 0 and 0.5 < image.max() <= 1
    assert labels.dtype == torch.uint8 and 0 < labels.max() <= 13


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_a_step_exactly(phantoms: list[Store], world: int) -> None:
    settings = tiny_settings("dynunet", batch=2, turns=True)
    whole = PatchSampler(phantoms, settings)[1]
    for rank in range(world):
        mine = PatchSampler(phantoms, settings, rank, world)[1]
        assert equal(mine, Patches(whole.image[rank::world], whole.labels[rank::world]))


def test_scans_of_a_step_differ_where_there_are_enough(tmp_path: Path) -> None:
    settings = unit_settings(batch=3)
    sampler = PatchSampler([noisy(tmp_path, settings, name=name) for name in "abc"], settings)
    for scan, grey in zip(sampler.scans, (60, 120, 180), strict=True):
        scan.image = np.full_like(scan.image, grey)
    for step in range(10):
        greys = (sampler[step].image.amax((1, 2, 3, 4)) * 255).round().int().tolist()
        assert sorted(greys) == [60, 60, 120, 120, 180, 180]


def test_patches_hold_what_the_scan_holds(tmp_path: Path) -> None:
    settings = unit_settings()
    store = noisy(tmp_path, settings)
    image, labels = resampled(store, settings)
    assert labels is not None
    boxes = sliding_window_view(image, settings.patch_voxels)
    for step in range(5):
        for box, truth in zip(*PatchSampler([store], settings)[step], strict=True):
            found = np.argwhere((boxes == (box[0] * 255).round().numpy()).all((3, 4, 5)))
            assert len(found) == 1, "the box is in the scan, unturned, and once, for the scan is noise"
            x, y, z = found[0]
            assert np.array_equal(truth[0], labels[x : x + 4, y : y + 4, z : z + 4]), (
                "labels are cut where the image is"
            )


def test_half_of_the_patches_are_centred_on_an_organ(tmp_path: Path) -> None:
    settings = unit_settings(batch=20)
    sampler = PatchSampler([noisy(tmp_path, settings)], settings)
    centres = torch.cat([sampler[step].labels[:, 0, 2, 2, 2] for step in range(25)])  # 1000 of them
    assert (centres > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("organ", [True, False])
def test_every_voxel_of_its_kind_is_drawn_alike(organ: bool) -> None:
    labels = np.zeros((3, 2, 3), np.uint8)
    labels[0, 1, 2], labels[2, 0, 0], labels[2, 1, 1] = 5, 1, 13
    image = np.ones_like(labels)
    image[1, 0], image[2, 1, 1] = 0, 0  # air is no background; an organ may be as black
    scan, rng = _Scan(image, labels), np.random.default_rng(0)
    counts = np.zeros(labels.shape)
    for _ in range(3000):
        counts[scan.draw(organ, rng)] += 1
    eligible = labels > 0 if organ else (labels == 0) & (image > 0)
    assert not counts[~eligible].any()
    assert counts[eligible] == pytest.approx(np.full(eligible.sum(), 3000 / eligible.sum()), rel=0.3)


def test_a_scan_without_voxels_of_a_kind_is_drawn_from_anywhere() -> None:
    everywhere = _Scan(np.ones((2, 2, 2), np.uint8), np.ones((2, 2, 2), np.uint8))
    nowhere = _Scan(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8))
    rng = np.random.default_rng(0)
    for scan, organ in ((everywhere, False), (nowhere, True), (nowhere, False)):
        assert {scan.draw(organ, rng) for _ in range(200)} == set(product((0, 1), repeat=3))


def test_small_scans_are_padded_with_zeros_on_both_sides() -> None:
    volume = np.ones((2, 9, 3), np.uint8)
    box = _cut(volume, (1, 8, 0), (4, 4, 4))
    assert box.shape == (4, 4, 4) and box.sum() == 2 * 4 * 3
    assert box[1:3, :, 0:3].all(), (
        "one plane before and one behind; the odd one behind, as in sliding windows"
    )


def test_no_turn_unless_asked_for(tmp_path: Path) -> None:
    ramp = np.broadcast_to(
        np.arange(20)[:, None, None] * 10 - 100, (20, 18, 16)
    )  # rises to the patient's left
    labels = np.zeros(ramp.shape)
    labels[12:, 8:12, 6:12] = 13  # left kidney
    settings = unit_settings()
    store = written(tmp_path, settings, ramp, labels)
    plain, turned = PatchSampler([store], settings), PatchSampler([store], replace(settings, turns=True))
    kinds = set()
    for step in range(40):
        assert (plain[step].image.diff(dim=2) > 0).all(), "left stays left"
        for straight, box, truth, same in zip(
            plain[step].image, turned[step].image, turned[step].labels, plain[step].labels, strict=True
        ):
            assert box.sum() == pytest.approx(straight.sum()) and truth.sum() == same.sum(), (
                "the same box, turned"
            )
            kinds |= {
                name
                for name, way in zip(("left", "right"), (1, -1), strict=True)
                if (box.diff(dim=1) * way > 0).all()
            }
            kinds |= {
                name
                for name, way in zip(("back", "front"), (1, -1), strict=True)
                if (box.diff(dim=2) * way > 0).all()
            }
    assert kinds == {"left", "right", "back", "front"}
    with pytest.raises(InputError, match="first two edges"):
        PatchSampler([store], replace(settings, turns=True, patch_voxels=(4, 8, 4)))


def test_sampler_refuses_what_it_cannot_draw_from(tmp_path: Path, phantoms: list[Store]) -> None:
    settings = unit_settings()
    empty = written(tmp_path, settings, np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match="No case of site A shows any organ"):
        PatchSampler([empty], settings)
    with pytest.raises(InputError, match="5 processes cannot share 4 patches"):
        PatchSampler(phantoms, settings, 0, 5)


# organs that are asked for, and the others


def test_classes_of_the_organs_asked() -> None:
    some, every = replace(unit_settings(), organs=("spleen", "liver")), unit_settings()
    assert every.organs == KEYS and class_labels(every).tolist() == label_classes(every).tolist() == list(
        range(14)
    )
    assert class_labels(some).tolist() == [0, 3, 1] and label_classes(some).tolist() == [
        0,
        2,
        0,
        1,
        *[0] * 10,
    ]


def test_patches_show_the_classes_of_the_organs_asked(tmp_path: Path) -> None:
    labels = np.zeros((20, 18, 16), np.uint8)
    labels[2:8, 4:14, 4:12], labels[8:13, 4:14, 4:12], labels[13:18, 4:14, 4:12] = (
        1,
        3,
        13,
    )  # liver, spleen, left kidney
    settings = unit_settings(patch_voxels=(12, 12, 12), batch=10)
    store = written(tmp_path, settings, RNG.integers(-120, 270, labels.shape), labels)
    whole = PatchSampler([store], settings)
    assert np.array_equal(whole.scans[0].labels, labels), "with all organs the classes are our label ids"
    sampler = PatchSampler([store], replace(settings, organs=("spleen", "liver")))
    assert np.array_equal(sampler.scans[0].labels, np.where(labels == 3, 1, np.where(labels == 1, 2, 0)))
    drawn = torch.cat([sampler[step].labels for step in range(5)])
    assert drawn.dtype == torch.uint8 and drawn.unique().tolist() == [0, 1, 2]
    centres = torch.cat([sampler[step].labels[:, 0, 6, 6, 6] for step in range(20)])
    assert (centres > 0).float().mean() > 0.3, "a box about an organ is about one that is asked for"
    with pytest.raises(InputError, match="shows aorta"):
        PatchSampler([store], replace(settings, organs=("aorta",)))


# the models and their loss


@pytest.mark.parametrize("filters", [(4, 8, 8), (4, 8, 8, 8), (4, 4, 8, 8, 8)])
def test_every_parameter_gets_a_gradient_and_has_one_name(filters: tuple[int, ...]) -> None:
    settings = tiny_settings("dynunet", filters=filters, patch_voxels=(32, 32, 32))
    model = build_dynunet(settings).train()
    image = torch.rand(2, 1, 32, 32, 32)
    assert model(image).shape == (2, min(3, len(filters) - 1), 14, 32, 32, 32)
    volume_losses(model, Patches(image, torch.randint(0, 14, image.shape)), settings, 0.0)["loss"].backward()
    assert not [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad or p.grad is None or not p.grad.any()
    ]
    assert len(save(model.state_dict())) > 4 * sum(p.numel() for p in model.parameters()), (
        "safetensors refuses a shared weight"
    )
    assert model.eval()(image).shape == (2, 14, 32, 32, 32)


def test_weights_are_a_function_of_the_seed() -> None:
    one, same, other = (build_dynunet(tiny_settings("dynunet", seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_full_size_model_has_the_released_sizes() -> None:
    with torch.device("meta"):
        model = build_dynunet(settings_of("dynunet", "full"))
    assert sum(p.numel() for p in model.parameters()) == 16_541_642
    with pytest.raises(InputError, match="multiples of 16"):
        build_dynunet(replace(settings_of("dynunet", "full"), patch_voxels=(96, 96, 40)))


def test_loss_by_hand() -> None:
    labels = torch.ones(1, 1, 2, 2, 2, dtype=torch.uint8)  # liver everywhere
    right, flat = torch.zeros(14, 2, 2, 2), torch.zeros(14, 2, 2, 2)
    right[1] = 50.0
    patches, settings = Patches(torch.zeros(1, 1, 2, 2, 2), labels), tiny_settings("dynunet")

    def loss(*levels: Tensor) -> float:
        return volume_losses(Fixed(torch.stack(levels)[None]), patches, settings, 0.5)["loss"].item()

    assert loss(right, right, right) == pytest.approx(0, abs=1e-4)
    dice = (
        1 - 2 / 14 / (1 + 1 / 14) + 12
    ) / 13  # the liver's overlap, and twelve absent organs with a voxel in 14 each
    wrong = np.log(14) + dice
    assert loss(flat) == pytest.approx(wrong, abs=1e-4)
    assert loss(flat, right, right) == pytest.approx(0.5333 * wrong, abs=1e-3)
    assert loss(right, right, flat) == pytest.approx(0.2 * wrong, abs=1e-3)
    assert loss(right, flat) == pytest.approx(0.2667 / 0.8 * wrong, abs=1e-3), (
        "two levels share the whole weight"
    )


def test_it_learns_two_patches(phantoms: list[Store]) -> None:
    settings = tiny_settings("dynunet", batch=1)
    model, patches = build_dynunet(settings), PatchSampler(phantoms, settings)[0]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        losses.append(loss := volume_losses(model.train(), patches, settings, 0.0)["loss"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# whole scans


class Says(nn.Module):
    """Logits for the liver where the grey value is over a half (or everywhere), else for the background."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = nn.Parameter(torch.tensor(float(always)))

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.full((len(image), 14, *image.shape[2:]), -50.0)
        logits[:, 1] = 20 * (image[:, 0] + self.always - 0.5)
        logits[:, 0] = -logits[:, 1]
        return logits


@pytest.mark.parametrize("shape", [(21, 17, 9), (5, 6, 7), (30, 26, 1)])
@pytest.mark.parametrize(
    "affine", [LPS, OBLIQUE, np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])]
)
def test_liver_everywhere_on_the_scans_own_voxels(
    tmp_path: Path, shape: tuple[int, int, int], affine: np.ndarray
) -> None:
    settings = tiny_settings("dynunet", voxel_mm=(1.5, 1.5, 2.0))
    store = written(tmp_path, settings, np.full(shape, -1000), None, affine)
    labels = segment_volume(Says(always=True), store, settings)
    assert labels.dtype == np.uint8 and labels.shape == store.grid.canonical_shape and (labels == 1).all()
    assert store.grid.to_native(labels).shape == shape
    trained = segment_volume(build_dynunet(settings), store, settings)
    assert trained.shape == labels.shape, (
        "the real model takes a scan that is smaller than its patch, or one slice"
    )


def test_what_is_seen_comes_back_where_it_is(tmp_path: Path) -> None:
    hu = np.full((24, 20, 12), -1000)
    hu[4:12, 10:16, 3:9] = 300  # to the right, at the back, low
    affine = np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])
    settings = tiny_settings("dynunet", voxel_mm=(1.0, 3.0, 2.0))
    store = written(tmp_path, settings, hu, None, affine)
    labels = segment_volume(Says(always=False), store, settings)
    truth = store.grid.to_canonical(hu) > 0
    both = ((labels == 1) & truth).sum()
    assert 2 * both / ((labels == 1).sum() + truth.sum()) > 0.9
    assert np.argwhere(labels == 1).mean(0) == pytest.approx(np.argwhere(truth).mean(0), abs=0.3)


def test_a_network_for_some_organs_gives_our_label_ids_back(tmp_path: Path) -> None:
    hu = np.full((12, 10, 8), -1000)
    hu[3:9, 2:8, 2:6] = 300
    settings = unit_settings(organs=("spleen", "liver"), patch_voxels=(8, 8, 8))
    store = written(tmp_path, settings, hu, None)
    spleen = segment_volume(Says(always=False), store, settings)
    assert np.array_equal(spleen, np.where(hu > 0, 3, 0)), "class 1 is the spleen, whose label is 3"
    assert np.array_equal(
        segment_volume(Says(always=False), store, replace(settings, organs=KEYS)), np.where(hu > 0, 1, 0)
    )


# UNETR


@pytest.mark.parametrize("patch", [(16, 16, 24), (96, 90, 96), (8, 8, 8)])
def test_unetr_refuses_patches_that_it_cannot_cut(patch: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="multiples of 16") as caught:
        build_unetr(tiny_settings("unetr", patch_voxels=patch))
    assert str(patch) in str(caught.value) and "\n" not in str(caught.value)


def test_unetr_trains_and_segments_a_scan(phantoms: list[Store], tmp_path: Path) -> None:
    settings = tiny_settings("unetr", epochs=1, epoch_steps=2)
    model, sampler = build_unetr(settings), PatchSampler(phantoms, settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = sampler[0].image
    assert image.shape[1:] == (1, 16, 16, 16)
    assert model.train()(image).shape == (len(image), 3, 16, 16, 16)
    volume_losses(model, sampler[0], settings, 0.0)["loss"].backward()
    assert_gradients_arrive(model)
    model.zero_grad()
    train(model, sampler, volume_losses, settings, tmp_path / "run")
    again = build_unetr(settings).eval()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in before.items()), (
        "a function of the seed"
    )
    load_weights(again, tmp_path / "run" / "best.safetensors")
    assert not any(torch.equal(parameter, before[name]) for name, parameter in again.named_parameters()), (
        "every part learned"
    )
    assert again(image).shape == (len(image), 3, 16, 16, 16)
    labels = segment_volume(again, phantoms[0], settings)
    assert labels.shape == phantoms[0].grid.canonical_shape and set(np.unique(labels)) <= {0, 1, 3}
