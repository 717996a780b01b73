"""lib.inference: shared slices change nothing, masks come back where they belong, a kidney keeps its side."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import (
    LPS,
    OBLIQUE,
    PSR,
    RELEASED,
    THICK,
    fake_store,
    fixed_site,
    slice_settings,
    tiny_settings,
    written_store,
)
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lib import inference
from lib.clipseg import build
from lib.data import Case, Store, prepare
from lib.inference import (
    SLICES_AT_ONCE,
    Prediction,
    adapted_slices,
    mask_of,
    predict,
    segment_slices,
    slice_gates,
    slice_probabilities,
)
from lib.med_vlm import build_unet
from lib.metrics import dice
from lib.organs import BY_KEY, KEYS, PROMPTS
from lib.phantoms import draw
from lib.volumes import Grid, from_slices, read_labels, write_nifti
from lib.windows import Windows, label_classes, store_window, window_mm

pytestmark = pytest.mark.filterwarnings("error")
THREE = ("liver", "left kidney", "a loop of bowel")
SPLEEN, LIVER = 1 << KEYS.index("spleen"), 1 << KEYS.index("liver")


def store_of(slices: int, columns: int = 31, rows: int = 27) -> Store:
    """Noise in a scan whose native axes are (rows, slices, columns), without ground truth; and a donor."""
    donor, grid = fake_store(2 * slices - 1, seed=1).image, Grid((rows, slices, columns), PSR)
    return replace(fake_store(slices), labels=None, presence=None, donor=donor, grid=grid)


def model_of(run: str, **changes: Any) -> tuple[Any, Any]:
    """A random model with a gate that is half open and differs from token to token; its settings."""
    settings = tiny_settings(run, **{"gate_bias": 0.0, "adapter_depth": 2} | changes)
    model: Any = build(settings).eval()
    if model.adapter is not None and model.adapter.gate_proj is not None:
        torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.3)
    return model, settings


def shown(model: Any, store: Store, settings: Any, prompts: tuple[str, ...] = THREE) -> np.ndarray:
    """(P, Z, S, S) probabilities of all slices."""
    return np.concatenate(list(slice_probabilities(model, store, list(prompts), settings)), 1)


@torch.no_grad()
def plain(model: Any, store: Store, settings: Any) -> Tensor:
    """Logits (P, Z, S, S), one window and one prompt at a time, every slice of it encoded anew."""
    logits = torch.empty(len(THREE), *store.image.shape, dtype=model.mean.dtype)
    for place, z in product(range(len(THREE)), range(len(store.image))):
        places = np.array(store_window(store, z, settings))
        window, mm = torch.from_numpy(store.slices(places)), window_mm(store, places[None])
        first, prompt, rows = torch.tensor([0]), torch.tensor([place]), torch.arange(len(window))[None]
        samples = Windows(window, rows, first, prompt, torch.zeros(1), torch.ones(1), mm)
        logits[place, z] = model(samples, list(THREE))[0][0]
    return logits


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("baseline", {}), ("baseline", {"freeze_encoders": True}), ("centre only", {}), ("adapter", {}),
    ("baseline", {"neighbours": "channels"}), ("adapter", {"gate": False}),
    ("adapter", {"adapted": "deepest"}), ("adapter", RELEASED),
    *(("adapter", {"neighbours": kind}) for kind in ("another patient", "shuffled", "manifest")),
    *(("adapter", {"window": window}) for window in (1, 9)),
    ("adapter", {"window_unit": "mm", "window_step_mm": 8.0, "window": 3}),  # slices are 4 mm apart
    ("adapter", {"within_mm": 9.0, "window": 7}),
]


@pytest.mark.parametrize(("run", "changes"), VARIANTS)
@pytest.mark.parametrize("slices", [1, 7])
def test_predict_equals_every_window_by_itself(
    run: str, changes: dict[str, Any], slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of manifest rows, which need the truth, is tested on true neighbours."""
    monkeypatch.setattr(inference, "CHUNK", 3)  # one, or two with a rest
    (model, settings), store = model_of(run, **changes), store_of(slices)
    true = replace(settings, neighbours="true") if settings.neighbours == "manifest" else settings
    expected, found = plain(model.double(), store, true).sigmoid(), shown(model, store, settings)
    assert found.dtype == np.float32 and np.allclose(found, expected.numpy(), atol=1e-7, rtol=0)
    assert expected.std((1, 2, 3)).min() > 1e-3, "a constant would equal anything"
    full = interpolate(expected, (27, 31), mode="bilinear").numpy().transpose(0, 2, 1, 3)
    prediction = predict(model, store, settings, THREE)
    assert prediction.claims.shape == prediction.winner.shape == (27, slices, 31)  # back, head, right
    for place, probability in enumerate(full):
        sure = abs(probability - 0.5) > 1e-5
        assert np.array_equal(mask_of(prediction.claims, place)[sure], (probability > 0.5)[sure])


def test_organs_that_were_never_learned_are_not_asked_for() -> None:
    """Neither their masks nor the label map have them, whatever the model would have said."""
    settings = tiny_settings()
    model, store = build(settings), fake_store(3)
    torch.nn.init.constant_(model.base_model.decoder.transposed_convolution[-1].bias, 5.0)  # marks all
    every, some = (predict(model, store, settings, (), organs) for organs in (KEYS, ("spleen", "liver")))
    places = [KEYS.index(key) for key in ("liver", "spleen")]
    assert set(np.unique(every.claims)) == {2**13 - 1}
    assert set(np.unique(some.claims)) == {sum(1 << place for place in places)}
    assert {*np.unique(some.winner)} <= {place + 1 for place in places}



def test_what_a_window_holds_makes_a_difference() -> None:
    model, settings = model_of("adapter")
    kinds = ("true", "centre", "another patient")
    found = [shown(model, store_of(5), replace(settings, neighbours=kind)) for kind in kinds]
    assert not any(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(("slices", "chunk"), [(1, 4), (4, 4), (11, 4), (6, 1), (7, 16)])
@pytest.mark.parametrize("run", ["baseline", "adapter"])
def test_each_slice_is_encoded_once_for_all_windows_and_prompts(
    run: str, slices: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CHUNK", chunk)
    (model, settings), store, seen, texts = model_of(run), store_of(slices), [], []
    encode_slices, encode_text = model.encode_slices, model.encode_text
    monkeypatch.setattr(model, "encode_slices", lambda some: seen.extend(some) or encode_slices(some))
    monkeypatch.setattr(model, "encode_text", lambda prompts: texts.append(prompts) or encode_text(prompts))
    predict(model, store, settings)
    assert [picture.numpy().tobytes() for picture in seen] == [picture.tobytes() for picture in store.image]
    assert texts == [list(PROMPTS)]


@pytest.mark.parametrize("count", [1, 3, 13, 104])
def test_prompts_and_slices_are_decoded_some_at_a_time(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "PAIRS", 8)
    (model, settings), store, pairs = model_of("baseline"), fake_store(5), []
    model.base_model.decoder.layers[0].register_forward_hook(lambda _, given, out: pairs.append(len(out)))
    prompts = tuple(f"organ {n}" for n in range(count))
    found = shown(model, store, settings, prompts)
    assert found.shape == (count, 5, 24, 24) and sum(pairs) == 5 * count and max(pairs) <= 8
    alone = shown(model, replace(store, image=store.image[3:4]), settings, prompts[-1:])
    assert np.allclose(found[-1, 3], alone[0, 0], atol=1e-5) and found.std() > 1e-3


def test_half_a_precision_is_for_the_encoder_alone() -> None:
    """The decoder gets and gives float32; the probabilities are nearly the same."""
    (model, settings), store, seen = model_of("adapter"), store_of(5), {}
    modules = {
        "vision": model.base_model.clip.vision_model.encoder.layers[0].mlp.fc1,
        "adapter": model.adapter.proj_in[0], "decoder": model.base_model.decoder.layers[0].mlp.fc1,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: out.dtype}))
    whole = shown(model, store, settings)
    assert set(seen.values()) == {torch.float32}
    half = shown(model, store, replace(settings, encoder_precision="bf16"))
    assert seen == {"vision": torch.bfloat16, "adapter": torch.bfloat16, "decoder": torch.float32}
    apart = np.abs(half - whole)
    assert 0 < apart.max() < 0.05 and apart.mean() < 0.002 and half.dtype == np.float32


@torch.no_grad()
def test_memory_is_bounded_whatever_the_length_of_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 4)
    model, settings = model_of("adapter")
    chunks, kept = adapted_slices(model, fake_store(30), settings), []
    for adapted, gate in chunks:
        kept.append(len(chunks.gi_frame.f_locals["kept"]))
        assert len(adapted[0]) == len(gate) <= 4
    assert len(kept) == 8 and max(kept) == 2 + 4 + 2, "a chunk's centres and their neighbours"


def test_predict_shuts_off_drop_path_and_gradients() -> None:
    (model, settings), store = model_of("adapter", drop_path=0.9), store_of(5)
    expected, again = predict(model, store, settings, THREE), predict(model.train(), store, settings, THREE)
    assert all(map(np.array_equal, again, expected)) and expected.claims.any()
    assert all(p.grad is None for p in model.parameters())


@torch.no_grad()
def test_gates_are_one_mean_for_each_patch_of_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 3)
    (model, settings), store = model_of("adapter"), store_of(7)
    gates = slice_gates(model, store, settings)
    windows = torch.tensor([store_window(store, z, settings) for z in range(7)])
    _, gate = model.adapt(model.encode_slices(torch.from_numpy(store.image)), windows)  # (7, 1 + 3 * 3, D)
    assert gates.shape == (7, 3, 3) and gates.dtype == np.float32
    for row, column in ((0, 0), (0, 2), (2, 1)):  # the first token is the class token, then rows of patches
        expected = gate[:, 1 + 3 * row + column].mean(-1).numpy()
        assert gates[:, row, column] == pytest.approx(expected, abs=1e-6)
    assert len(np.unique(gates.round(6))) > 7, "they differ from patch to patch"
    for run, changes in (("baseline", {}), ("adapter", {"gate": False})):
        assert slice_gates(*(parts := model_of(run, **changes))[:1], store, parts[1]).shape == (0, 0, 0)


class Scripted(nn.Module):
    """Stands in for CLIPSeg: `answer` maps (1, S, S) pictures and a prompt's place to (1, S, S) logits."""

    def __init__(self, answer: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.register_buffer("mean", torch.zeros(1))

    def encode_text(self, prompts: list[str]) -> Tensor:
        return torch.arange(len(prompts))[:, None]

    def encode_slices(self, slices: Tensor) -> list[Tensor]:
        return [slices.float()]

    def adapt(self, activations: list[Tensor], windows: Tensor, _: Tensor) -> tuple[list[Tensor], None]:
        return [activations[0][windows[:, windows.shape[1] // 2]]], None

    def decode(self, activations: list[Tensor], text: Tensor, centre: Tensor) -> Tensor:
        pairs = zip(activations[0][centre], text[:, 0], strict=True)
        return torch.cat([self.answer(picture[None], int(place)) for picture, place in pairs])


def by_hand(probabilities: np.ndarray) -> Prediction:
    """Prediction of a scan of one slice, on canonical axes, from (P, rows, columns) probabilities."""
    size, logits = probabilities.shape[-1], torch.logit(torch.from_numpy(probabilities).double())
    image, grid = np.zeros((1, size, size), np.uint8), Grid((size, size, 1), LPS)
    model = Scripted(lambda _, place: logits[place][None])
    prompts = tuple(f"organ {n}" for n in range(len(probabilities)))
    return predict(model, replace(fake_store(1), image=image, grid=grid), tiny_settings(), prompts)


def test_claims_may_overlap_and_the_more_probable_one_wins() -> None:
    probabilities = np.array([[[0.9, 0.6], [0.2, 0.4]], [[0.8, 0.7], [0.3, 0.51]], [[0.1, 0.65], [0.4, 0.1]]])
    claims, winner = by_hand(probabilities)
    # rows first in a slice, x first in a scan
    assert claims[:, :, 0].T.tolist() == [[0b011, 0b111], [0b000, 0b010]]
    assert winner[:, :, 0].T.tolist() == [[1, 2], [0, 2]]
    assert mask_of(claims, 2)[:, :, 0].T.tolist() == [[False, True], [False, False]]
    assert (claims.dtype, winner.dtype, mask_of(claims, 0).dtype) == (np.uint16, np.uint8, bool)
    assert not any(part.any() for part in by_hand(np.full((2, 3, 3), 0.5))), "one half claims nothing"


def test_sixteen_prompts_fit_and_no_more() -> None:
    probabilities = np.full((16, 2, 2), 0.1)
    probabilities[15], probabilities[3, 0, 0] = 0.6, 0.7
    claims, winner = by_hand(probabilities)
    assert claims[:, :, 0].tolist() == [[1 << 15 | 1 << 3, 1 << 15], [1 << 15] * 2]
    assert winner[:, :, 0].tolist() == [[4, 16], [16, 16]] and mask_of(claims, 15).all()
    with pytest.raises(AssertionError, match="16 bits"):
        by_hand(np.zeros((17, 2, 2)))


# a lone kidney, in all orientations

CODES = ["".join(axes) for letters in permutations(("RL", "AP", "SI")) for axes in product(*letters)]
WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}  # NIfTI's axes
HALF = 186  # grey value between the kidney's, 255, and the brightest other one, 118
KIDNEYS = ("right kidney", "left kidney")
SITE = fixed_site("site A", 32, 12, pixel_mm=10.5)
SPACING_MM = (10.5, 10.5, 210 / 12)


@pytest.fixture(scope="module", params=KIDNEYS)
def one_kidney(request: pytest.FixtureRequest) -> tuple[str, np.ndarray, np.ndarray]:
    """The kidney's key, and a phantom in LPS axes that has no other; nothing in its image is as bright."""
    other = next(key for key in KIDNEYS if key != request.param)
    signal, labels, *_ = draw(replace(SITE, without=(other,), degraded=0.0), 1)
    kidney = labels == BY_KEY[request.param].label
    assert kidney.sum() > 20 and not (labels == BY_KEY[other].label).any()
    return request.param, np.where(kidney, 400, np.minimum(signal, 60)).astype(np.int16), labels


def in_orientation(lps: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """The array as a scanner with these axes stores it, and its affine; the patient's midline is at x = 0."""
    axes, against = [WORLD[letter][0] for letter in code], [i for i in range(3) if code[i] in "RAI"]
    array, affine = np.flip(lps.transpose(axes), against), np.zeros((4, 4))
    for i, letter in enumerate(code):
        axis, sign = WORLD[letter]
        affine[axis, i] = sign * SPACING_MM[axis]
    affine[:, 3] = [*(-affine[:3, :3] @ (np.array(array.shape) - 1) / 2 + (0, 11, -7)), 1]
    assert nib.aff2axcodes(affine) == tuple(code)
    return np.ascontiguousarray(array), affine


@pytest.mark.parametrize("code", CODES)
def test_a_lone_kidney_stays_on_its_side(code: str, one_kidney: tuple, tmp_path: Path) -> None:
    """A file in any axes, slices, a model that marks what is bright as this kidney, label maps on disk."""
    (key, image, labels), right = one_kidney, one_kidney[0] == "right kidney"
    for name, volume in (("image", image), ("labels", labels)):
        truth, affine = in_orientation(volume, code)
        nib.save(nib.Nifti1Image(truth, affine), tmp_path / f"{name}.nii")
    case, organ = Case("canary", tmp_path / "image.nii", tmp_path / "labels.nii"), truth == BY_KEY[key].label
    store, fine = (prepare([case], tiny_settings(size=n), tmp_path / f"{n}")[0] for n in (24, 32))
    _, rows, columns = np.nonzero(store.image > HALF)
    assert (columns < 12).all() if right else (columns >= 12).all(), "the patient's right is on the left"
    assert np.mean(rows) > 12, "and the back is below"

    def bright(pictures: Tensor, place: int) -> Tensor:
        return (pictures - HALF) / 20 if PROMPTS[place] == key else torch.full_like(pictures, -9)

    claims, winner = predict(Scripted(bright), store, tiny_settings("adapter", size=24))
    # the truth, as a model of the scan's own size would claim it, returns to its own voxels
    for name, volume in (("winner", winner), ("truth", from_slices(np.asarray(fine.labels), fine.grid))):
        write_nifti(volume, store.grid, tmp_path / f"{name}.nii.gz")
        file = nib.load(tmp_path / f"{name}.nii.gz")
        found = np.asarray(file.dataobj)
        assert found.shape == truth.shape and np.allclose(file.affine, affine, atol=1e-4)
        kidney = np.argwhere(found == BY_KEY[key].label)
        x = (kidney @ file.affine[:3, :3].T + file.affine[:3, 3])[:, 0]  # positive is the patient's right
        assert len(x) and ((x > 0).all() if right else (x < 0).all())
        assert name == "winner" or np.array_equal(found, truth)
    mask = mask_of(claims, PROMPTS.index(key))
    assert set(np.unique(winner)) == {0, BY_KEY[key].label} and np.array_equal(mask, winner > 0)
    assert dice(mask[organ].sum(), organ.sum(), mask.sum()) > 0.75


# slice by slice: Med-VLM and its U-Net


class Knows(nn.Module):
    """Says what the store's labels say, slice after slice in the order in which it is asked."""

    def __init__(self, store: Store, settings: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.store, self.table, self.seen = store, label_classes(settings), 0

    def forward(self, image: Tensor) -> Tensor:
        assert not self.training and len(image) <= SLICES_AT_ONCE
        rows = slice(self.seen, self.seen + len(image))
        self.seen += len(image)
        assert np.array_equal((image * 255).round().byte(), self.store.image[rows]), "each once, in order"
        classes = self.table[self.store.labels[rows]]
        marks = [torch.from_numpy(classes == place).float() for place in range(1, 1 + self.table.max())]
        return torch.stack(marks, 1).logit(eps=1e-7)


class Always(nn.Module):
    """Says the same of every pixel."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.each = nn.Parameter(torch.tensor(probabilities))

    def forward(self, image: Tensor) -> Tensor:
        return self.each.logit()[None, :, None, None].expand(len(image), -1, *image.shape[1:])


def abdomen() -> tuple[np.ndarray, np.ndarray]:
    """HU and labels (44, 40, 18) of a body in air with a liver, a spleen and a pancreas in it."""
    x, y, z = np.indices((44, 40, 18)) / np.reshape((44, 40, 18), (3, 1, 1, 1))
    hu, labels = np.full(x.shape, -1000), np.zeros(x.shape, np.uint8)
    hu[(abs(x - 0.55) < 0.35) & (abs(y - 0.45) < 0.3) & (abs(z - 0.5) < 0.4)] = 40
    organs = ((1, (0.4, 0.4, 0.6), 0.16), (3, (0.72, 0.5, 0.4), 0.12), (5, (0.6, 0.6, 0.5), 0.05))
    for label, centre, radius in organs:
        inside = sum((axis - c) ** 2 for axis, c in zip((x, y, z), centre, strict=True)) < radius**2
        labels[inside], hu[inside] = label, 100
    return hu, labels


def overlap(claims: np.ndarray, truth: np.ndarray) -> float:
    """The lower Dice of spleen and liver."""
    pairs = [(claims & SPLEEN > 0, truth == 3), (claims & LIVER > 0, truth == 1)]
    return min(2 * (one & two).sum() / (one.sum() + two.sum()) for one, two in pairs)


def test_a_store_of_the_scan_s_own_slices_gives_its_truth_back_exactly() -> None:
    store, settings = fake_store(2 * SLICES_AT_ONCE + 1), slice_settings()
    claims, truth = segment_slices(Knows(store, settings), store, settings), store.labels.T  # canonical axes
    assert claims.dtype == np.uint16 and claims.shape == store.grid.canonical_shape
    assert np.array_equal(claims, np.where(truth == 3, SPLEEN, np.where(truth == 1, LIVER, 0)))
    assert {SPLEEN, LIVER} < set(np.unique(claims))


def test_organs_may_claim_a_voxel_together_and_a_half_is_not_enough() -> None:
    store, settings = fake_store(3), slice_settings()
    assert (segment_slices(Always(0.6, 0.51), store, settings) == SPLEEN | LIVER).all()
    assert (segment_slices(Always(0.5, 0.51), store, settings) == LIVER).all()
    assert not segment_slices(Always(0.5, 0.1), store, settings).any()


def test_a_u_net_s_first_channel_is_the_background() -> None:
    store, settings = fake_store(3), slice_settings()
    for shares, expected in (((0.3, 0.6, 0.1), SPLEEN), ((0.1, 0.35, 0.55), LIVER), ((0.8, 0.1, 0.1), 0)):
        model = Always(*torch.tensor(shares).log().sigmoid().tolist())  # so its logits are log shares
        assert (segment_slices(model, store, settings) == expected).all()


@pytest.mark.parametrize("affine", [THICK, OBLIQUE, PSR])
@pytest.mark.parametrize("slice_mm", [0.0, 1.7])
@pytest.mark.parametrize("crop", [False, True])
def test_the_truth_comes_back_where_it_is(
    affine: np.ndarray, slice_mm: float, crop: bool, tmp_path: Path
) -> None:
    (hu, labels), settings = abdomen(), slice_settings(size=64, slice_mm=slice_mm, crop=crop)
    store = written_store(tmp_path, settings, hu, labels, affine)
    truth = read_labels(store.source.labels, "FLARE22", store.grid)
    claims = segment_slices(Knows(store, settings), store, settings)
    assert claims.shape == store.grid.canonical_shape == truth.shape
    assert overlap(claims, truth) > 0.9 and set(np.unique(claims)) == {0, SPLEEN, LIVER}
    for bit, label in ((SPLEEN, 3), (LIVER, 1)):
        apart = np.argwhere(claims & bit > 0).mean(0) - np.argwhere(truth == label).mean(0)
        assert np.abs(apart).max() < 0.15, "not a part of a voxel to the side"
    everywhere, body = segment_slices(Always(0.9, 0.1), store, settings), np.zeros(truth.shape, bool)
    edges = np.nonzero(store.grid.to_canonical(hu) > -125)
    body[tuple(slice(axis.min(), axis.max() + 1) for axis in edges)] = True
    assert np.array_equal(everywhere, SPLEEN * (body if crop else 1 + 0 * body)), "nothing outside of the box"


@pytest.mark.parametrize("changes", [{}, {"slice_mm": 0.7}, {"slice_mm": 30.0, "crop": True}, {"crop": True}])
def test_a_scan_of_one_slice(tmp_path: Path, changes: dict) -> None:
    hu, labels = np.full((20, 18, 1), -1000), np.zeros((20, 18, 1), np.uint8)
    hu[4:16, 5:15], labels[6:10, 7:11], labels[11:14, 8:13] = 40, 3, 1
    settings = slice_settings(size=48, **changes)
    store = written_store(tmp_path, settings, hu, labels)
    assert len(store.image) == 1
    assert overlap(segment_slices(Knows(store, settings), store, settings), labels) > 0.9
    assert segment_slices(build_unet(settings), store, settings).shape == (20, 18, 1)
