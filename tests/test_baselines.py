"""lib.baselines: the boxes of a step, where gradients go, and label maps that come back to their voxels."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save
from tiny import LPS, OBLIQUE, PSR, Fixed, tiny_settings, written_store
from torch import Tensor, nn

from lib import baselines
from lib.baselines import (
    Patches,
    PatchSampler,
    build_dynunet,
    build_swin_unetr,
    build_unet_3d,
    build_unetr,
    resampled,
    segment_volume,
    volume_losses,
)
from lib.clipseg import load_weights
from lib.config import VolumeSettings, settings_of
from lib.data import Store, stores_of
from lib.files import InputError
from lib.organs import KEYS
from lib.training import assert_gradients_arrive, train
from lib.windows import class_labels, label_classes

pytestmark = pytest.mark.filterwarnings("error")
RNG = np.random.default_rng(0)


def noisy(folder: Path, settings: VolumeSettings, name: str = "a") -> Store:
    """Noise in voxels of 1 mm with a 6 x 6 x 6 liver around the middle voxel."""
    labels = np.zeros((20, 18, 16), np.uint8)
    labels[7:13, 6:12, 5:11] = 1
    return written_store(folder, settings, RNG.integers(-120, 270, labels.shape), labels, name=name)


def unit_settings(**changes: Any) -> VolumeSettings:
    """Voxels of 1 mm, so that `noisy` is not resampled, and boxes of 4 voxels."""
    own = {"voxel_mm": (1.0, 1.0, 1.0), "patch_voxels": (4, 4, 4), "batch": 2}
    return tiny_settings("dynunet", **own | changes)


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
    image, truth = resampled(written_store(tmp_path, settings, hu, labels), settings)
    assert image.dtype == np.uint8 and image.shape == (8, 2, 1)
    grey = [0, 32, 96, 159, 223, 255, 255, 255]  # linear: 0, 128, 255, 255 at every other edge
    assert image[:, 0, 0].tolist() == pytest.approx(grey, abs=1)
    assert truth is not None and truth[:, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]


def test_resampled_scan_is_kept_until_its_store_is_younger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, reads, read_scan = unit_settings(), [], baselines.read_scan
    store = noisy(tmp_path, settings)
    monkeypatch.setattr(baselines, "read_scan", lambda *scan: reads.append(scan) or read_scan(*scan))
    image, _ = resampled(store, settings)
    assert isinstance(image, np.memmap)
    assert np.array_equal(image, resampled(store, settings)[0]) and len(reads) == 1
    resampled(store, replace(settings, voxel_mm=(2.0, 2.0, 2.0)))  # which has files of its own
    assert len(reads) == 2 and resampled(store, settings)[0].shape == image.shape and len(reads) == 2
    for file in store.folder.glob("*mm.npy"):
        os.utime(file, ns=(0, 0))
    resampled(store, settings)
    assert len(reads) == 3, "made again"


def test_scan_without_truth_has_no_labels(tmp_path: Path) -> None:
    image, labels = resampled(written_store(tmp_path, unit_settings(), np.zeros((5, 6, 7))), unit_settings())
    assert image.shape == (5, 6, 7) and labels is None


# the sampler


def test_training_scans_are_cropped_to_what_is_not_black(tmp_path: Path) -> None:
    hu, labels, settings = np.full((9, 8, 7), -1000), np.zeros((9, 8, 7)), unit_settings()
    hu[2:5, 3:8, 1:3], labels[3, 4, 2] = 60, 1
    store = written_store(tmp_path, settings, hu, labels)
    (image, classes), = PatchSampler([store], settings).scans
    assert image.shape == (3, 5, 2) and classes[1, 1, 1] == 1
    assert resampled(store, settings)[0].shape == (9, 8, 7), "only training crops"


def test_a_step_is_a_pure_function_of_seed_and_step(phantoms: list[Store]) -> None:
    settings = tiny_settings("dynunet", batch=2, turns=True)
    first, again = PatchSampler(phantoms, settings), PatchSampler(phantoms, settings)
    assert len(first) == settings.epochs * settings.epoch_steps
    assert equal(first[3], again[3]) and equal(first[0], first[0]) and not equal(first[0], first[1])
    assert not equal(first[0], PatchSampler(phantoms, replace(settings, seed=1))[0])
    thirds = PatchSampler(phantoms * 2, replace(settings, epoch_steps=0, batch=3))
    assert len(thirds) == settings.epochs * 2, "4 cases, 3 a step"
    image, labels = first[0]
    assert image.shape == labels.shape == (2 * settings.batch, 1, *settings.patch_voxels)
    assert image.dtype == torch.float32 and image.min() >= 0 and 0.5 < image.max() <= 1
    assert labels.dtype == torch.uint8 and 0 < labels.max() <= 13


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("drawn", ["turns", "contrasts"])
def test_processes_share_a_step_exactly(phantoms: list[Store], world: int, drawn: str) -> None:
    settings = tiny_settings("dynunet", batch=2, **{drawn: True})
    whole = PatchSampler(phantoms, settings)[1]
    for rank in range(world):
        mine = PatchSampler(phantoms, settings, rank, world)[1]
        assert equal(mine, Patches(whole.image[rank::world], whole.labels[rank::world]))


def test_contrasts_change_grey_values_and_no_label(phantoms: list[Store]) -> None:
    plain = PatchSampler(phantoms, settings := tiny_settings("dynunet", batch=2))
    drawn = PatchSampler(phantoms, replace(settings, contrasts=True))
    apart, inverted = 0, 0
    for step in range(8):
        (one, labels), (two, same) = plain[step], drawn[step]
        assert torch.equal(labels, same) and two.min() >= 0 and two.max() <= 1
        for before, after in zip(one, two, strict=True):
            apart += not torch.allclose(before, after)
            inverted += bool(torch.corrcoef(torch.stack([before.ravel(), after.ravel()]))[0, 1] < 0)
    assert 16 <= apart < 32 and 8 <= inverted <= 24, "of 32 patches half are inverted; some are black"


def test_scans_of_a_step_differ_where_there_are_enough(tmp_path: Path) -> None:
    settings = unit_settings(batch=3)
    sampler = PatchSampler([noisy(tmp_path, settings, name) for name in "abc"], settings)
    greys = zip(sampler.scans, (60, 120, 180), strict=True)
    sampler.scans = [(np.full_like(image, grey), labels) for (image, labels), grey in greys]
    for step in range(10):
        seen = (sampler[step].image.amax((1, 2, 3, 4)) * 255).round().int().tolist()
        assert sorted(seen) == [60, 60, 120, 120, 180, 180]


def test_patches_hold_what_the_scan_holds(tmp_path: Path) -> None:
    settings = unit_settings()
    store = noisy(tmp_path, settings)
    image, labels = resampled(store, settings)
    boxes, sampler = sliding_window_view(image, settings.patch_voxels), PatchSampler([store], settings)
    for step in range(5):
        for box, truth in zip(*sampler[step], strict=True):
            found = np.argwhere((boxes == (box[0] * 255).round().numpy()).all((3, 4, 5)))
            assert len(found) == 1, "the box is in the scan, unturned, and once, for the scan is noise"
            x, y, z = found[0]
            assert np.array_equal(truth[0], labels[x : x + 4, y : y + 4, z : z + 4]), "labels are cut alike"


@pytest.fixture
def centres(phantoms: list[Store], monkeypatch: pytest.MonkeyPatch) -> Any:
    """(image, labels) of a scan -> how often each voxel, by its flat index, is the centre of 6000 boxes."""
    def count(image: np.ndarray, labels: np.ndarray) -> Counter[int]:
        sampler = PatchSampler(phantoms, unit_settings(batch=10))
        sampler.scans = [(image, labels)]
        drawn = torch.cat([sampler[step].labels.flatten() for step in range(300)])
        return Counter(drawn.tolist())

    def cut(volume: np.ndarray, centre: tuple[int, ...], _: Any) -> np.ndarray:
        return np.full((1, 1, 1), np.ravel_multi_index(centre, volume.shape), np.uint8)

    monkeypatch.setattr(baselines, "_cut", cut)
    return count


def test_half_of_the_boxes_are_centred_on_an_organ_each_voxel_of_a_kind_alike(centres: Any) -> None:
    labels = np.zeros((3, 2, 3), np.uint8)
    labels[0, 1, 2], labels[2, 0, 0], labels[2, 1, 1] = 5, 1, 13
    image = np.ones_like(labels)
    image[1, 0], image[2, 1, 1] = 0, 0  # air is no background; an organ may be as black
    found = centres(image, labels)
    organ, background = np.flatnonzero(labels), np.flatnonzero((labels == 0) & (image > 0))
    assert sorted(found) == sorted([*organ, *background])
    for voxels in (organ, background):
        assert [found[n] / 3000 for n in voxels] == pytest.approx([1 / len(voxels)] * len(voxels), rel=0.25)


@pytest.mark.parametrize(("grey", "label"), [(1, 1), (0, 0)])
def test_a_scan_without_voxels_of_a_kind_is_drawn_from_anywhere(grey: int, label: int, centres: Any) -> None:
    image, labels = np.full((2, 2, 2), grey, np.uint8), np.full((2, 2, 2), label, np.uint8)
    assert sorted(centres(image, labels)) == list(range(8))


def test_small_scans_are_padded_with_zeros_on_both_sides(phantoms: list[Store]) -> None:
    sampler = PatchSampler(phantoms, unit_settings())
    sampler.scans = [(np.full((2, 9, 3), 255, np.uint8), np.ones((2, 9, 3), np.uint8))]
    for box in sampler[0].image[:, 0]:  # one plane before and one behind; the odd one behind
        assert box.sum() == 2 * 4 * 3 and box[1:3, :, 0:3].all()


def test_no_turn_unless_asked_for(tmp_path: Path) -> None:
    shape, settings = (20, 18, 16), unit_settings()
    ramp = np.broadcast_to(np.arange(20)[:, None, None] * 10 - 100, shape)  # rises to the patient's left
    labels = np.zeros(shape)
    labels[12:, 8:12, 6:12] = 13  # left kidney
    store = written_store(tmp_path, settings, ramp, labels)
    plain, turned = PatchSampler([store], settings), PatchSampler([store], replace(settings, turns=True))
    kinds = set()
    for step in range(40):
        straight, boxes = plain[step], turned[step]
        assert (straight.image.diff(dim=2) > 0).all(), "left stays left"
        for before, after in zip(straight, boxes, strict=True):
            assert after.sum((1, 2, 3, 4)).tolist() == pytest.approx(before.sum((1, 2, 3, 4)).tolist())
        for box in boxes.image[:, 0]:
            for axis, towards in ((0, "left"), (1, "back")):
                kinds |= {towards} if (box.diff(dim=axis) > 0).all() else set()
                kinds |= {f"not {towards}"} if (box.diff(dim=axis) < 0).all() else set()
    assert kinds == {"left", "not left", "back", "not back"}


def test_sampler_refuses_what_it_cannot_draw_from(tmp_path: Path, phantoms: list[Store]) -> None:
    settings = unit_settings()
    empty = written_store(tmp_path, settings, np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))
    with pytest.raises(InputError, match="No case of site A shows any organ"):
        PatchSampler([empty], settings)
    with pytest.raises(InputError, match="5 processes cannot share 4 patches"):
        PatchSampler(phantoms, settings, 0, 5)
    with pytest.raises(InputError, match="first two edges"):
        PatchSampler(phantoms, replace(settings, turns=True, patch_voxels=(4, 8, 4)))


# organs that are asked for, and the others


def test_classes_of_the_organs_asked() -> None:
    some, every = unit_settings(organs=("spleen", "liver")), unit_settings()
    assert class_labels(every).tolist() == label_classes(every).tolist() == list(range(14))
    assert class_labels(some).tolist() == [0, 3, 1]
    assert label_classes(some).tolist() == [0, 2, 0, 1, *[0] * 10]


def test_patches_show_the_classes_of_the_organs_asked(tmp_path: Path) -> None:
    labels = np.zeros((20, 18, 16), np.uint8)
    for start, organ in ((2, 1), (8, 3), (13, 13)):  # liver, spleen, left kidney
        labels[start : start + 5, 4:14, 4:12] = organ
    settings = unit_settings(patch_voxels=(12, 12, 12), batch=10)
    store = written_store(tmp_path, settings, RNG.integers(-120, 270, labels.shape), labels)
    assert np.array_equal(PatchSampler([store], settings).scans[0][1], labels), "all: classes are our ids"
    sampler = PatchSampler([store], replace(settings, organs=("spleen", "liver")))
    assert np.array_equal(sampler.scans[0][1], np.where(labels == 3, 1, np.where(labels == 1, 2, 0)))
    drawn = torch.cat([sampler[step].labels for step in range(20)])
    assert drawn.unique().tolist() == [0, 1, 2]
    assert (drawn[:, 0, 6, 6, 6] > 0).float().mean() > 0.3, "an organ's box is about one that is asked for"
    with pytest.raises(InputError, match="shows aorta"):
        PatchSampler([store], replace(settings, organs=("aorta",)))


# the models and their loss


@pytest.mark.parametrize("filters", [(4, 8, 8), (4, 8, 8, 8), (4, 4, 8, 8, 8)])
def test_every_parameter_gets_a_gradient_and_has_one_name(filters: tuple[int, ...]) -> None:
    settings = tiny_settings("dynunet", filters=filters, patch_voxels=(32, 32, 32))
    model, image = build_dynunet(settings).train(), torch.rand(2, 1, 32, 32, 32)
    assert model(image).shape == (2, min(3, len(filters) - 1), 14, 32, 32, 32)
    volume_losses(model, Patches(image, torch.randint(0, 14, image.shape)), settings, 0.0)["loss"].backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in model.parameters())
    assert len(save(model.state_dict())) > 0, "safetensors refuses a weight of two names"
    assert model.eval()(image).shape == (2, 14, 32, 32, 32)
    same, other = (build_dynunet(replace(settings, seed=seed)).state_dict() for seed in (0, 1))
    assert all(torch.equal(tensor, same[name]) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(same[name], other[name]) for name in same)


def test_full_size_model_has_the_released_sizes() -> None:
    with torch.device("meta"):
        model = build_dynunet(settings_of("dynunet", "full"))
    assert sum(p.numel() for p in model.parameters()) == 16_541_642
    with pytest.raises(InputError, match="multiples of 16"):
        build_dynunet(replace(settings_of("dynunet", "full"), patch_voxels=(96, 96, 40)))


@pytest.mark.parametrize(
    ("build", "changes", "parameters"),
    [(build_swin_unetr, {"feature_size": 48}, 62_187_296), (build_unet_3d, {}, 15_681_742)],
)
def test_other_networks_train_every_parameter(build: Any, changes: dict[str, Any], parameters: int) -> None:
    full = build(settings_of("dynunet", "full", **changes))
    assert sum(p.numel() for p in full.parameters()) == parameters
    small = {"patch_voxels": (64, 32, 32), "feature_size": 12, "filters": (4, 4, 8, 8, 8)}
    settings = tiny_settings("dynunet", **small)
    model, image = build(settings).train(), torch.rand(2, 1, 64, 32, 32)
    assert model(image).shape == (2, 14, 64, 32, 32)
    volume_losses(model, Patches(image, torch.randint(0, 14, image.shape)), settings, 0.0)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert len(save(model.state_dict())) > 0
    assert all(torch.equal(own, same) for own, same in
               zip(model.state_dict().values(), build(settings).state_dict().values(), strict=True))


def test_swin_unetr_names_the_patches_that_fit() -> None:
    for patch in ((32, 32, 32), (64, 64, 40)):
        with pytest.raises(InputError, match="multiples of 32, and one over 32"):
            build_swin_unetr(tiny_settings("dynunet", patch_voxels=patch))


def test_loss_by_hand() -> None:
    right, flat = torch.zeros(14, 2, 2, 2), torch.zeros(14, 2, 2, 2)
    right[1] = 50.0  # liver everywhere
    patches = Patches(torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 1, 2, 2, 2, dtype=torch.uint8))

    def loss(*levels: Tensor) -> float:
        return volume_losses(Fixed(torch.stack(levels)[None]), patches)["loss"].item()

    assert loss(right, right, right) == pytest.approx(0, abs=1e-4)
    # Dice: the liver's overlap, and twelve absent organs with a voxel in 14 each
    wrong = np.log(14) + (1 - 2 / 14 / (1 + 1 / 14) + 12) / 13
    assert loss(flat) == pytest.approx(wrong, abs=1e-4)
    assert loss(flat, right, right) == pytest.approx(0.5333 * wrong, abs=1e-3)
    assert loss(right, right, flat) == pytest.approx(0.2 * wrong, abs=1e-3)
    assert loss(right, flat) == pytest.approx(0.2667 / 0.8 * wrong, abs=1e-3), "two levels share the weight"


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
@pytest.mark.parametrize("affine", [LPS, OBLIQUE, PSR])
def test_liver_everywhere_on_the_scans_own_voxels(
    tmp_path: Path, shape: tuple[int, int, int], affine: np.ndarray
) -> None:
    settings = tiny_settings("dynunet", voxel_mm=(1.5, 1.5, 2.0))
    store = written_store(tmp_path, settings, np.full(shape, -1000), affine=affine)
    labels = segment_volume(Says(always=True), store, settings)
    assert labels.dtype == np.uint8 and labels.shape == store.grid.canonical_shape and (labels == 1).all()
    assert store.grid.to_native(labels).shape == shape
    trained = segment_volume(build_dynunet(settings), store, settings)
    assert trained.shape == labels.shape, "a scan may be smaller than a patch, or one slice"


def test_what_is_seen_comes_back_where_it_is(tmp_path: Path) -> None:
    hu = np.full((24, 20, 12), -1000)
    hu[4:12, 10:16, 3:9] = 300  # to the right, at the back, low
    settings = tiny_settings("dynunet", voxel_mm=(1.0, 3.0, 2.0))
    store = written_store(tmp_path, settings, hu, affine=PSR)
    found, truth = segment_volume(Says(always=False), store, settings) == 1, store.grid.to_canonical(hu) > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    assert np.argwhere(found).mean(0) == pytest.approx(np.argwhere(truth).mean(0), abs=0.3)


@pytest.mark.parametrize(("organs", "label"), [(("spleen", "liver"), 3), (KEYS, 1)])
def test_a_network_for_some_organs_gives_our_label_ids_back(
    organs: tuple[str, ...], label: int, tmp_path: Path
) -> None:
    hu = np.full((12, 10, 8), -1000)
    hu[3:9, 2:8, 2:6] = 300
    settings = unit_settings(organs=organs, patch_voxels=(8, 8, 8))
    labels = segment_volume(Says(always=False), written_store(tmp_path, settings, hu), settings)
    assert np.array_equal(labels, np.where(hu > 0, label, 0)), "class 1 is the first organ asked"


# UNETR


@pytest.mark.parametrize("patch", [(16, 16, 24), (96, 90, 96), (8, 8, 8)])
def test_unetr_refuses_patches_that_it_cannot_cut(patch: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="multiples of 16") as caught:
        build_unetr(tiny_settings("unetr", patch_voxels=patch))
    assert str(patch) in str(caught.value) and "\n" not in str(caught.value)


def test_unetr_trains_and_segments_a_scan(phantoms: list[Store], tmp_path: Path) -> None:
    settings = tiny_settings("unetr", epochs=1, epoch_steps=2)
    model, sampler = build_unetr(settings), PatchSampler(phantoms, settings)
    before, image = {name: tensor.clone() for name, tensor in model.state_dict().items()}, sampler[0].image
    assert image.shape[1:] == (1, 16, 16, 16)
    assert model.train()(image).shape == (len(image), 3, 16, 16, 16)
    volume_losses(model, sampler[0], settings, 0.0)["loss"].backward()
    assert_gradients_arrive(model)
    model.zero_grad()
    train(model, sampler, volume_losses, settings, tmp_path / "run")
    again = build_unetr(settings).eval()
    same = again.state_dict()
    assert all(torch.equal(same[name], tensor) for name, tensor in before.items()), "a function of the seed"
    load_weights(again, tmp_path / "run" / "best.safetensors")
    learned = {name: not torch.equal(parameter, before[name]) for name, parameter in again.named_parameters()}
    assert all(learned.values()), "every part learned"
    labels = segment_volume(again, phantoms[0], settings)
    assert labels.shape == phantoms[0].grid.canonical_shape and set(np.unique(labels)) <= {0, 1, 3}
