"""Models of single slices: how slices are drawn and turned, the U-Net and its loss, and masks that come back to the voxels of the scan."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import fake_store, stores_of, tiny_settings
from torch import Tensor, nn

from lib.baselines import label_classes
from lib.datasets import Case, Store, prepare
from lib.inference import SLICES_AT_ONCE, segment_slices
from lib.med_vlm import build_unet, unet_losses
from lib.organs import KEYS
from lib.paths import InputError
from lib.profiles import Settings, settings_of
from lib.volumes import read_labels
from lib.windows import Slices, SliceSampler

SPLEEN, LIVER = 1 << KEYS.index("spleen"), 1 << KEYS.index("liver")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ANISOTROPIC = np.diag([-1.2, -0.9, 4.0, 1.0])
THICK = np.diag([-2.0, -2.0, 5.0, 1.0])
OBLIQUE = np.array([[-1.9, 0.5, 0, 3], [-0.5, -1.9, 0.2, 5], [0.1, 0.1, 4, -7], [0, 0, 0, 1]])
SIDEWAYS = np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])


def slice_settings(**changes: object) -> Settings:
    """Slices of 24 pixels for the spleen and the liver, as they are stored."""
    return tiny_settings("unet", **({"size": 24, "turns": False, "intensity": False} | changes))


def equal(one: Slices, two: Slices) -> bool:
    return torch.equal(one.image, two.image) and torch.equal(one.labels, two.labels)


def filled(slices: int, first: int) -> Store:
    """A store whose slices are each of one grey value, which counts on from `first`."""
    store = fake_store(slices)
    store.image[:] = (first + np.arange(slices))[:, None, None]
    return store


# what a step draws


def test_a_step_is_a_pure_function_of_seed_and_step() -> None:
    settings, stores = slice_settings(turns=True, intensity=True), [fake_store(9), fake_store(5, seed=1)]
    first, again = SliceSampler(stores, settings), SliceSampler(stores, settings)
    later = again[5]
    assert equal(first[0], again[0]) and equal(first[5], later) and equal(first[0], first[0])
    assert not equal(first[0], first[1])
    assert not equal(first[0], SliceSampler(stores, replace(settings, seed=1))[0])


def test_slices_have_the_shapes_and_kinds_of_their_docstring() -> None:
    for changes in ({}, {"turns": True}, {"intensity": True}, {"turns": True, "intensity": True}):
        image, labels = SliceSampler([fake_store(9)], slice_settings(**changes))[0]
        assert image.shape == labels.shape == (4, 24, 24)
        assert image.dtype == torch.float32 and labels.dtype == torch.uint8
        assert type(image) is type(labels) is Tensor, "a tensor of MONAI's own kind would go through the whole model"


def test_an_epoch_is_as_many_draws_as_there_are_slices() -> None:
    stores = [fake_store(9), fake_store(5)]
    assert len(SliceSampler(stores, slice_settings(epochs=3, epoch_steps=0, batch=4))) == 3 * 4, "14 slices, 4 a step"
    assert len(SliceSampler(stores, slice_settings(epochs=3, epoch_steps=7))) == 3 * 7


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_a_step_exactly(world: int) -> None:
    settings, stores = slice_settings(turns=True, intensity=True), [fake_store(9)]
    whole = SliceSampler(stores, settings)[1]
    for rank in range(world):
        assert equal(SliceSampler(stores, settings, rank, world)[1], Slices(whole.image[rank::world], whole.labels[rank::world]))


def test_every_slice_of_every_scan_is_drawn_alike() -> None:
    settings = slice_settings(batch=100)
    sampler, counts = SliceSampler([filled(9, 10), filled(1, 100), filled(4, 200)], settings), np.zeros(256, int)
    for step in range(50):
        greys = (sampler[step].image.amax((1, 2)) * 255).round().int().numpy()
        counts += np.bincount(greys, minlength=256)
    assert set(np.flatnonzero(counts)) == {*range(10, 19), 100, *range(200, 204)}
    assert counts[counts > 0] == pytest.approx(np.full(14, 5000 / 14), rel=0.2), "a scan of one slice counts as one slice"


def test_without_turns_and_intensity_a_slice_is_the_store_s_own() -> None:
    store, settings = fake_store(9), slice_settings()
    known = {picture.tobytes(): z for z, picture in enumerate(store.image)}
    drawn = set()
    for step in range(10):
        for image, labels in zip(*SliceSampler([store], settings)[step], strict=True):
            z = known[(image * 255).round().byte().numpy().tobytes()]
            assert torch.equal(image, torch.from_numpy(store.image[z]).float() / 255)
            shown = store.labels[z]
            assert np.array_equal(labels, np.where(shown == 3, 1, np.where(shown == 1, 2, 0))), "spleen, liver, and all else is background"
            drawn.add(z)
    assert len(drawn) > 5


def test_validation_is_not_augmented() -> None:
    settings, store = slice_settings(turns=True, intensity=True), fake_store(9)
    plain = SliceSampler([store], replace(settings, turns=False, intensity=False))
    assert equal(SliceSampler([store], settings, augmented=False)[3], plain[3])
    assert not equal(SliceSampler([store], settings)[3], plain[3])


def test_turns_keep_image_and_labels_together() -> None:
    """Every pixel has a grey value of its own, and the organ is a function of it; so a pixel is known again wherever it goes."""
    greys = np.random.default_rng(0).permutation(256).astype(np.uint8).reshape(16, 16)
    ids = np.array([3] * 90 + [1] * 80 + [5] * 86, np.uint8)  # spleen, liver, and the aorta, which nobody asks for
    table = torch.tensor([1] * 90 + [2] * 80 + [0] * 86, dtype=torch.uint8)
    store = fake_store(4, size=16)
    store.image[:], store.labels[:] = greys, ids[greys]
    sampler, found = SliceSampler([store], slice_settings(size=16, turns=True, batch=16)), []
    for step in range(20):
        for image, labels in zip(*sampler[step], strict=True):
            shown = (image * 255).round().long()
            assert torch.equal(labels, table[shown])
            found.append(shown.byte().numpy().tobytes())
    ways = [np.rot90(picture, quarters) for picture in (greys, greys.T) for quarters in range(4)]
    counts = np.array([found.count(way.tobytes()) for way in ways])
    assert counts.sum() == len(found) == 320 and counts.min() > 10, "flips and quarter turns, all eight, and nothing else"


def test_intensity_changes_grey_values_a_little_and_labels_never() -> None:
    store, settings = fake_store(9), slice_settings(batch=32)
    changed, plain = SliceSampler([store], replace(settings, intensity=True)), SliceSampler([store], settings)
    shifts, apart = [], []
    for step in range(10):
        one, two = changed[step], plain[step]
        assert torch.equal(one.labels, two.labels)
        difference = one.image - two.image
        shifts += difference.mean((1, 2)).tolist()
        apart += difference.abs().amax((1, 2)).tolist()
    assert max(apart) < 0.1 + 0.11 + 5 * 0.02, "a tenth more, a tenth brighter, and noise of two hundredths"
    assert 0.05 < np.mean(np.array(apart) == 0) < 0.25, "an eighth of the slices stays as it is"
    assert min(shifts) < -0.05 and max(shifts) > 0.05 and abs(np.mean(shifts)) < 0.02, "brighter as often as darker"


def test_sampler_refuses_what_it_cannot_draw_from() -> None:
    store, settings = fake_store(9), slice_settings()
    with pytest.raises(InputError, match="5 processes cannot share 4 slices"):
        SliceSampler([store], settings, 0, 5)
    store.presence[:, [1, 3]] = 0  # eleven other organs are there
    with pytest.raises(InputError, match=r"^No case of BTCV shows spleen or liver: .*\.$"):
        SliceSampler([store], settings)
    with pytest.raises(InputError, match="shows spleen or liver"):
        SliceSampler([replace(store, presence=None)], settings)
    SliceSampler([store, fake_store(9)], settings)
    SliceSampler([store], replace(settings, organs=("aorta",)))


# the U-Net and its loss


def test_full_size_unet_has_the_paper_s_size() -> None:
    with torch.device("meta"):
        model = build_unet(settings_of("unet", "full"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(7.7e6, rel=0.05)


def test_every_parameter_of_the_unet_gets_a_gradient() -> None:
    settings = slice_settings(size=32)
    model, store = build_unet(settings).train(), fake_store(9, size=32)
    slices = SliceSampler([store], settings)[0]
    assert model(slices.image).shape == (4, 3, 32, 32)
    unet_losses(model, slices, settings, 0.0)["loss"].backward()
    assert not [name for name, p in model.named_parameters() if not p.requires_grad or p.grad is None or not p.grad.any()]
    with torch.no_grad():
        shares = model.eval().probabilities(slices.image)
        assert shares.shape == (4, 2, 32, 32) and torch.equal(shares, model(slices.image).softmax(1)[:, 1:])
    same, other = (build_unet(replace(settings, seed=seed)).state_dict() for seed in (0, 1))
    mine = build_unet(settings).state_dict()
    assert all(torch.equal(mine[name], same[name]) for name in mine) and any(not torch.equal(mine[name], other[name]) for name in mine)


class Fixed(nn.Module):
    """Gives the same output whatever it sees."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, image: Tensor) -> Tensor:
        return self.output


def test_unet_loss_by_hand() -> None:
    """Two slices of 2 x 2 pixels, background, spleen and liver, with any logits."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 2, 2)), np.array([[[0, 1], [2, 0]], [[0, 0], [1, 0]]])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (labels[:, None] == np.arange(3)[:, None, None]).astype(float)
    entropy = -(truth * np.log(shares)).sum(1).mean()
    dice = 2 * (shares * truth).sum((0, 2, 3)) / (shares.sum((0, 2, 3)) + truth.sum((0, 2, 3)))  # over the whole batch
    slices = Slices(torch.zeros(2, 2, 2), torch.from_numpy(labels).byte())
    found = unet_losses(Fixed(torch.from_numpy(logits)), slices, slice_settings(), 0.5)
    assert list(found) == ["loss"] and found["loss"].item() == pytest.approx(entropy + (1 - dice).mean(), abs=1e-4)


# whole scans


class Knows(nn.Module):
    """Says what the store's labels say, slice after slice in the order in which it is asked."""

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.store, self.table, self.asked, self.seen = store, label_classes(settings), len(settings.organs), 0

    def probabilities(self, image: Tensor) -> Tensor:
        assert not self.training and len(image) <= SLICES_AT_ONCE
        rows = slice(self.seen, self.seen + len(image))
        self.seen += len(image)
        assert np.array_equal((image * 255).round().byte(), self.store.image[rows]), "each slice once, in order"
        classes = self.table[self.store.labels[rows]]
        return torch.stack([torch.from_numpy(classes == 1 + place).float() for place in range(self.asked)], 1)


class Always(nn.Module):
    """Says the same of every pixel."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.each = nn.Parameter(torch.tensor(probabilities))

    def probabilities(self, image: Tensor) -> Tensor:
        return self.each[None, :, None, None].expand(len(image), -1, *image.shape[1:])


def abdomen(
    folder: Path, affine: np.ndarray, settings: Settings, shape: tuple[int, int, int] = (44, 40, 18)
) -> tuple[Store, np.ndarray, np.ndarray]:
    """A body in air with a liver and a spleen in it: its store, and its canonical labels and HU."""
    x, y, z = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1))
    hu, labels = np.full(shape, -1000), np.zeros(shape, np.uint8)
    hu[(abs(x - 0.55) < 0.35) & (abs(y - 0.45) < 0.3) & (abs(z - 0.5) < 0.4)] = 40
    for label, centre, radius in ((1, (0.4, 0.4, 0.6), 0.16), (3, (0.72, 0.5, 0.4), 0.12), (5, (0.6, 0.6, 0.5), 0.05)):
        inside = sum((axis - c) ** 2 for axis, c in zip((x, y, z), centre, strict=True)) < radius**2
        labels[inside], hu[inside] = label, 100
    for name, array in (("a", hu.astype(np.int16)), ("a_labels", labels)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    store = prepare(Case("a", folder / "a.nii.gz", folder / "a_labels.nii.gz"), settings, folder / "stores")
    return store, read_labels(folder / "a_labels.nii.gz", "FLARE22", store.grid), store.grid.to_canonical(hu)


def overlap(claims: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice of the spleen and the liver."""
    pairs = {"spleen": (claims & SPLEEN > 0, truth == 3), "liver": (claims & LIVER > 0, truth == 1)}
    return {key: 2 * (one & two).sum() / (one.sum() + two.sum()) for key, (one, two) in pairs.items()}


def test_a_store_of_the_scan_s_own_slices_gives_its_truth_back_exactly() -> None:
    store, settings = fake_store(2 * SLICES_AT_ONCE + 1), slice_settings()
    claims = segment_slices(Knows(store, settings), store, settings)
    truth = store.labels.transpose(2, 1, 0)  # the store's axes are the canonical ones
    assert claims.dtype == np.uint16 and claims.shape == store.grid.canonical_shape
    assert np.array_equal(claims, np.where(truth == 3, SPLEEN, np.where(truth == 1, LIVER, 0))) and {SPLEEN, LIVER} < set(np.unique(claims))


def test_organs_may_claim_a_voxel_together_and_a_half_is_not_enough() -> None:
    store, settings = fake_store(3), slice_settings()
    assert (segment_slices(Always(0.6, 0.51), store, settings) == SPLEEN | LIVER).all()
    assert (segment_slices(Always(0.5, 0.51), store, settings) == LIVER).all()
    assert not segment_slices(Always(0.5, 0.1), store, settings).any()


@pytest.mark.parametrize("affine", [THICK, ANISOTROPIC, OBLIQUE, SIDEWAYS])
@pytest.mark.parametrize(
    "changes", [{"slice_mm": 0.0, "crop": False}, {"slice_mm": 0.0}, {"slice_mm": 1.7, "crop": False}, {"slice_mm": 1.7}]
)
def test_the_truth_comes_back_where_it_is(tmp_path: Path, affine: np.ndarray, changes: dict) -> None:
    settings = slice_settings(**({"size": 64, "crop": True} | changes))
    store, truth, hu = abdomen(tmp_path, affine, settings)
    claims = segment_slices(Knows(store, settings), store, settings)
    assert claims.shape == store.grid.canonical_shape == truth.shape
    assert min(overlap(claims, truth).values()) > 0.9 and set(np.unique(claims)) == {0, SPLEEN, LIVER}
    for bit, label in ((SPLEEN, 3), (LIVER, 1)):
        apart = np.argwhere(claims & bit > 0).mean(0) - np.argwhere(truth == label).mean(0)
        assert np.abs(apart).max() < 0.15, "not a part of a voxel to the side"
    everywhere = segment_slices(Always(0.9, 0.1), store, settings)
    body = np.zeros(truth.shape, bool)
    body[tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(hu > -125))] = True
    assert np.array_equal(everywhere == SPLEEN, body if settings.crop else np.ones_like(body)), "nothing outside of the box"
    assert not everywhere[~(everywhere == SPLEEN)].any()


@pytest.mark.parametrize("changes", [{}, {"slice_mm": 0.7}, {"slice_mm": 30.0, "crop": True}, {"crop": True}])
def test_a_scan_of_one_slice(tmp_path: Path, changes: dict) -> None:
    hu, labels = np.full((20, 18, 1), -1000), np.zeros((20, 18, 1), np.uint8)
    hu[4:16, 5:15], labels[6:10, 7:11], labels[11:14, 8:13] = 40, 3, 1
    for name, array in (("a", hu.astype(np.int16)), ("a_labels", labels)):
        nib.save(nib.Nifti1Image(array, LPS), tmp_path / f"{name}.nii.gz")
    settings = slice_settings(size=48, **changes)
    store = prepare(Case("a", tmp_path / "a.nii.gz", tmp_path / "a_labels.nii.gz"), settings, tmp_path / "stores")
    assert len(store.image) == 1
    assert min(overlap(segment_slices(Knows(store, settings), store, settings), labels).values()) > 0.9
    untrained = build_unet(replace(settings, filters=(8,) * 5))
    assert segment_slices(untrained, store, settings).shape == (20, 18, 1)


def test_the_truth_of_a_phantom_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path))
    settings = replace(settings_of("med-vlm small", "smoke"), size=64, slice_mm=6.0)
    store = stores_of(settings, "validation")[0]
    truth = read_labels(store.source.labels, store.label_map, store.grid)
    claims = segment_slices(Knows(store, settings), store, settings)
    assert min(overlap(claims, truth).values()) > 0.9
    assert store.box is not None and store.box != tuple(slice(0, n) for n in truth.shape), "the phantom has air around it"
    outside = np.ones(truth.shape, bool)
    outside[store.box] = False
    assert outside.any() and not claims[outside].any()
