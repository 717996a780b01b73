"""lib.inference: sharing slices between windows changes nothing, masks come back where they belong, and a kidney never changes sides."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import fake_store, tiny_settings
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lib import inference
from lib.clipseg import TextPromptedSegmenter, build
from lib.datasets import Case, Store, prepare
from lib.inference import Prediction, _adapted, _decoded, mask_of, predict, slice_gates, slice_probabilities
from lib.metrics import dice
from lib.organs import BY_KEY, PROMPTS
from lib.phantoms import SITES, draw
from lib.profiles import Settings
from lib.runs import label_map
from lib.volumes import Grid, from_slices, write_nifti
from lib.windows import Terms, window_of

pytestmark = pytest.mark.filterwarnings("error")
THREE = ("liver", "left kidney", "a loop of bowel")
PSR = np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])  # axes back, head, patient's left


def store_of(slices: int, columns: int = 31, rows: int = 27) -> Store:
    """Noise in a scan whose native axes are (rows, slices, columns)."""
    return replace(fake_store(slices), grid=Grid((rows, slices, columns), PSR))


def model_of(run: str, **changes: object) -> tuple[TextPromptedSegmenter, Settings]:
    """A random model with a gate that is half open and differs from token to token."""
    settings = tiny_settings(run, **{"gate_bias": 0.0, "adapter_depth": 2} | changes)
    model = build(settings).eval()
    if model.adapter is not None and model.adapter.gate_proj is not None:
        torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.3)
    return model, settings


@torch.no_grad()
def plain(model: TextPromptedSegmenter, image: np.ndarray, settings: Settings) -> Tensor:
    """Logits (P, Z, S, S) by the model's forward pass: one window and one prompt at a time, every slice of it encoded anew."""
    logits = torch.empty(len(THREE), *image.shape, dtype=model.mean.dtype)
    for place, z in product(range(len(THREE)), range(len(image))):
        window = torch.from_numpy(image[window_of(z, len(image), settings)])
        first = torch.tensor([0])
        terms = Terms(window, torch.arange(len(window))[None], first, torch.tensor([place]), torch.zeros(1), torch.ones(1))
        logits[place, z] = model(terms, list(THREE))[0][0]
    return logits


@pytest.mark.parametrize("run", ["baseline", "adapter", "centre only", "adapter, no gate", "adapter, as released", "baseline, as released"])
@pytest.mark.parametrize("slices", [1, 2, 4, 11])
def test_predict_equals_every_window_by_itself(run: str, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 4)  # shorter than a chunk, one chunk, and two with a rest
    (model, settings), store = model_of(run), store_of(slices)
    expected = interpolate(plain(model, store.image, settings).sigmoid(), (27, 31), mode="bilinear").numpy()
    prediction = predict(model, store, settings, THREE, keep_probabilities=True)
    found = prediction.probabilities
    assert found.shape == (3, 27, slices, 31) and found.dtype == np.float32  # (P, back, head, left)
    assert np.allclose(found, expected.transpose(0, 2, 1, 3), atol=1e-6, rtol=1e-4)
    assert expected.std(axis=(1, 2, 3)).min() > 1e-3, "a constant would equal anything"
    assert prediction.grid is store.grid and prediction.prompts == THREE


@pytest.mark.parametrize("adapted", ["deepest", "all"])
@torch.no_grad()
def test_in_double_precision_they_are_equal_to_the_last_digits(adapted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 3)
    model, settings = model_of("adapter", adapted=adapted)
    model, store = model.double(), fake_store(8)
    expected, text, found = plain(model, store.image, settings), model.encode_text(list(THREE)), []
    for adapted, _ in _adapted(model, store, settings):
        found += list(_decoded(model, adapted, text))
    assert torch.allclose(torch.cat(found).swapaxes(0, 1), expected, atol=1e-10, rtol=0) and expected.std() > 1e-2
    shown = np.concatenate(list(slice_probabilities(model, store, list(THREE), settings)), 1)
    assert np.allclose(shown, expected.sigmoid().numpy(), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("slices", "chunk"), [(1, 4), (4, 4), (5, 4), (11, 4), (9, 2), (6, 1), (7, 16)])
@pytest.mark.parametrize("run", ["baseline", "adapter"])
def test_each_slice_is_encoded_once_for_all_windows_and_prompts(run: str, slices: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", chunk)
    (model, settings), store, seen, texts, projected = model_of(run), store_of(slices), [], [], []
    if model.adapter is not None:
        model.adapter.proj_in.register_forward_hook(lambda _, given, out: projected.append(len(out)))
    encode_slices, encode_text = model.encode_slices, model.encode_text
    monkeypatch.setattr(model, "encode_slices", lambda pictures: seen.extend(pictures) or encode_slices(pictures))
    monkeypatch.setattr(model, "encode_text", lambda prompts: texts.append(prompts) or encode_text(prompts))
    predict(model, store, settings)
    assert [picture.numpy().tobytes() for picture in seen] == [picture.tobytes() for picture in store.image]
    assert texts == [list(PROMPTS)]
    levels = len(model.levels) if run == "adapter" else 0  # of which the adapter reads all three in the small profiles
    assert sum(projected) == slices * levels


@pytest.mark.parametrize("count", [1, 3, 13, 104])
@torch.no_grad()
def test_a_slice_is_reduced_once_for_the_prompts_that_are_decoded_together(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "TERMS", 8)
    (model, _), reduced, sizes = model_of("baseline"), [], []
    model.base_model.decoder.reduces[0].register_forward_hook(lambda _, given, out: reduced.append(len(out)))
    activations, text = model.encode_slices(torch.from_numpy(fake_store(5).image)), torch.randn(count, 32)
    logits = torch.cat([sizes.append(len(part)) or part for part in _decoded(model, activations, text)])
    assert sum(reduced) == 5 and max(sizes) == max(1, min(5, 8 // count))
    alone = model.decode([level[3:4] for level in activations], text[-1:], torch.tensor([0]))
    assert logits.shape[:2] == (5, count) and torch.allclose(logits[3, -1], alone[0], atol=1e-5)


def test_half_a_precision_is_for_the_encoder_alone() -> None:
    """The decoder gets and gives float32; the masks are nearly the same."""
    (model, settings), store, seen = model_of("adapter"), store_of(5), {}
    clip, decoder = model.base_model.clip, model.base_model.decoder
    modules = {
        "vision": clip.vision_model.encoder.layers[0].mlp.fc1,
        "adapter": model.adapter.proj_in[0],
        "decoder": decoder.layers[0].mlp.fc1,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: out.dtype}))
    whole = predict(model, store, settings, THREE, keep_probabilities=True).probabilities
    assert set(seen.values()) == {torch.float32}
    half = predict(model, store, replace(settings, encoder_precision="bf16"), THREE, keep_probabilities=True).probabilities
    assert seen == {"vision": torch.bfloat16, "adapter": torch.bfloat16, "decoder": torch.float32}
    assert 0 < np.abs(half - whole).max() < 0.05 and np.abs(half - whole).mean() < 0.002 and half.dtype == np.float32


@torch.no_grad()
def test_memory_is_bounded_by_the_chunk_whatever_the_length_of_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 4)
    model, settings = model_of("adapter")
    chunks, kept = _adapted(model, fake_store(30), settings), []
    for adapted, gate in chunks:
        kept.append(len(chunks.gi_frame.f_locals["kept"]))
        assert len(adapted[0]) == len(gate) <= 4
    assert len(kept) == 8 and max(kept) == 2 + 4 + 2, "a chunk's centres and their neighbours"


def test_predict_shuts_off_drop_path_and_gradients() -> None:
    model, settings = model_of("adapter", drop_path=0.9)
    store = store_of(5)
    expected = predict(model, store, settings, THREE, keep_probabilities=True).probabilities
    again = predict(model.train(), store, settings, THREE, keep_probabilities=True).probabilities
    assert np.array_equal(again, expected) and all(p.grad is None for p in model.parameters())


@torch.no_grad()
def test_gates_are_one_mean_for_each_patch_of_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 3)
    (model, settings), store = model_of("adapter"), store_of(7)
    gates = slice_gates(model, store, settings)
    windows = torch.tensor([window_of(z, 7, settings) for z in range(7)])
    _, gate = model.adapt(model.encode_slices(torch.from_numpy(store.image)), windows)  # (7, 1 + 6 * 6, D)
    assert gates.shape == (7, 6, 6) and gates.dtype == np.float32
    for row, column in ((0, 0), (0, 5), (3, 1)):  # the first token is the class token, then rows of patches
        assert gates[:, row, column] == pytest.approx(gate[:, 1 + 6 * row + column].mean(-1).numpy(), abs=1e-6)
    assert len(np.unique(gates.round(6))) > 7, "they differ from patch to patch"
    assert slice_gates(model, store_of(1), settings).shape == (1, 6, 6)
    assert slice_gates(model_of("baseline")[0], store, tiny_settings()).shape == (0, 0, 0), "no adapter, no gate"
    model, settings = model_of("adapter, no gate")
    assert slice_gates(model, store, settings).size == 0


class Scripted(nn.Module):
    """Stands in for a model: `answer` gives the logits (C, S, S) of the prompt at a place for pictures (C, S, S)."""

    levels = (0,)

    def __init__(self, answer: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.answer, self.windows = answer, []
        self.register_buffer("mean", torch.zeros(1))

    def encode_text(self, prompts: list[str]) -> Tensor:
        return torch.arange(len(prompts))[:, None]

    def encode_slices(self, slices: Tensor) -> list[Tensor]:
        return [slices.float()]

    def project(self, activations: list[Tensor]) -> list[Tensor]:
        return []

    def adapt(self, activations: list[Tensor], windows: Tensor, projected: list[Tensor]) -> tuple[list[Tensor], None]:
        self.windows += [activations[0][window].numpy() for window in windows]
        return [activations[0][windows[:, windows.shape[1] // 2]]], None

    def reduce(self, activations: list[Tensor]) -> list[Tensor]:
        return activations

    def decode_reduced(self, activations: list[Tensor], text: Tensor, centre: Tensor) -> Tensor:
        return torch.cat([self.answer(activations[0][c][None], int(row)) for c, row in zip(centre, text[:, 0], strict=True)])


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        ("adapter, neighbours another patient", {}),
        ("adapter, neighbours shuffled", {}),
        ("adapter", {"window_unit": "mm", "window_step_mm": 8.0, "window": 3}),  # slices are 4 mm apart
        ("adapter", {"window": 9}),
        ("adapter", {"window": 1}),
        ("centre only", {}),
    ],
)
def test_a_model_sees_the_pictures_of_its_window(run: str, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 4)  # another patient's slices, too, are passed on from chunk to chunk
    settings, store = tiny_settings(run, **changes), replace(store_of(11), donor=fake_store(21, seed=1).image)
    both, model = np.concatenate([store.image, store.donor]), Scripted(lambda *_: torch.zeros(0))
    assert sum(len(pictures) for (pictures,), _ in _adapted(model, store, settings)) == 11
    seen = model.windows
    assert len(seen) == 11 and store.spacing_mm == 4
    for z, window in enumerate(seen):
        steps = np.arange(-settings.reach, settings.reach + 1)
        expected = (z + steps * (2 if settings.window_unit == "mm" else 1) * (settings.neighbours != "centre")).clip(0, 10)
        if "patient" in run:
            expected = np.where(steps == 0, z, 11 + (2 * z + steps).clip(0, 20))  # 11 slices against 21: half the distance
        if "shuffled" in run:
            order = [next(row for row in expected if np.array_equal(picture, both[row])) for picture in window]
            assert sorted(order) == sorted(expected) and order[settings.reach] == z
        else:
            assert np.array_equal(window, both[expected])


def test_a_model_of_manifest_rows_is_tested_on_true_neighbours() -> None:
    """A manifest needs the truth, which a test scan does not have."""
    store = replace(store_of(6), labels=None, presence=None)
    settings = tiny_settings("adapter, released manifest windows")
    model = build(settings).eval()
    found, true = (next(slice_probabilities(model, store, ["liver"], s)) for s in (settings, replace(settings, neighbours="true")))
    assert np.array_equal(found, true) and found.std() > 0
    assert not np.array_equal(found, next(slice_probabilities(model, store, ["liver"], replace(settings, neighbours="centre"))))


def by_hand(probabilities: np.ndarray, keep: bool = False) -> Prediction:
    """Prediction of a scan of one slice from (P, rows, columns) probabilities; native axes are the canonical ones."""
    size = probabilities.shape[-1]
    grid = Grid((size, size, 1), np.diag([-1.0, -1, 1, 1]))
    logits = torch.logit(torch.from_numpy(probabilities).double())
    store = replace(fake_store(1, 24), image=np.zeros((1, size, size), np.uint8), grid=grid)
    prompts = tuple(f"organ {n}" for n in range(len(probabilities)))
    return predict(Scripted(lambda pictures, place: logits[place][None]), store, tiny_settings(), prompts, keep)


def test_claims_may_overlap_and_the_more_probable_one_wins() -> None:
    probabilities = np.array([[[0.9, 0.6], [0.2, 0.4]], [[0.8, 0.7], [0.3, 0.51]], [[0.1, 0.65], [0.4, 0.1]]])
    prediction = by_hand(probabilities, keep=True)
    # rows first in a slice, x first in a scan
    assert prediction.claims[:, :, 0].T.tolist() == [[0b011, 0b111], [0b000, 0b010]]
    assert prediction.winner[:, :, 0].T.tolist() == [[1, 2], [0, 2]]
    assert prediction.mask("organ 2")[:, :, 0].T.tolist() == [[False, True], [False, False]]
    assert prediction.probabilities[:, :, :, 0].transpose(0, 2, 1) == pytest.approx(probabilities)
    assert (prediction.claims.dtype, prediction.winner.dtype, prediction.mask("organ 0").dtype) == (np.uint16, np.uint8, bool)


def test_a_probability_of_one_half_claims_nothing() -> None:
    prediction = by_hand(np.full((2, 3, 3), 0.5))
    assert not prediction.claims.any() and not prediction.winner.any() and prediction.probabilities is None


def test_sixteen_prompts_fit_and_no_more() -> None:
    probabilities = np.full((16, 2, 2), 0.1)
    probabilities[15], probabilities[3, 0, 0] = 0.6, 0.7
    prediction = by_hand(probabilities)
    assert prediction.claims[:, :, 0].tolist() == [[1 << 15 | 1 << 3, 1 << 15], [1 << 15] * 2]
    assert prediction.winner[:, :, 0].tolist() == [[4, 16], [16, 16]] and mask_of(prediction.claims, 15).all()
    for count in (0, 17):
        with pytest.raises(ValueError, match=f"{count} prompts"):
            by_hand(np.zeros((count, 2, 2)))


def test_the_label_map_has_our_ids_and_other_prompts_count_on() -> None:
    prediction = Prediction(("spleen", "a stone", "liver"), Grid((4, 1, 1), np.eye(4)), np.zeros((4, 1, 1)), np.arange(4)[:, None, None])
    assert label_map(prediction).ravel().tolist() == [0, BY_KEY["spleen"].label, 15, BY_KEY["liver"].label]


CODES = ["".join(axes) for letters in permutations(("RL", "AP", "SI")) for axes in product(*letters)]
WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}  # axis and sign in NIfTI's world, RAS
HALF = 186  # grey value between the kidney's, 255, and the brightest other one, 118
KIDNEYS, SITE = ("right kidney", "left kidney"), replace(SITES["FLARE22"], shape=(32, 28, 12), spacing_mm=(10.2, 11.7, 15.0))


@pytest.fixture(scope="module", params=KIDNEYS)
def one_kidney(request: pytest.FixtureRequest) -> tuple[str, np.ndarray, np.ndarray]:
    """The kidney's key, and a phantom in LPS axes that has no other; nothing in its image is as bright."""
    other = next(key for key in KIDNEYS if key != request.param)
    signal, labels, _ = draw(replace(SITE, without=(other,), degraded=0.0), 1)
    kidney = labels == BY_KEY[request.param].label
    assert kidney.sum() > 20 and not (labels == BY_KEY[other].label).any()
    return request.param, np.where(kidney, 400, np.minimum(signal, 60)).astype(np.int16), labels


def in_orientation(lps: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """The array as a scanner with these axes would store it, and its affine; x = 0 in the world is the patient's midline."""
    axes = [WORLD[letter][0] for letter in code]
    array = np.flip(lps.transpose(axes), [i for i, letter in enumerate(code) if letter in "RAI"])  # against LPS
    affine = np.zeros((4, 4))
    for i, letter in enumerate(code):
        axis, sign = WORLD[letter]
        affine[axis, i] = sign * SITE.spacing_mm[axis]
    affine[:, 3] = [*(-affine[:3, :3] @ (np.array(array.shape) - 1) / 2 + (0, 11, -7)), 1]
    return np.ascontiguousarray(array), affine


def world_x(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World x of a mask's voxels in mm: positive is the patient's right."""
    return (np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3])[:, 0]


def scan_of(one_kidney: tuple[str, np.ndarray, np.ndarray], code: str, folder: Path, size: int) -> tuple[Store, np.ndarray, np.ndarray]:
    """The phantom written with some axes and prepared; its native labels and affine."""
    files = []
    for name, volume in zip(("image", "labels"), one_kidney[1:], strict=True):
        array, affine = in_orientation(volume, code)
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii")
        files.append(folder / f"{name}.nii")
    return prepare(Case("canary", *files), tiny_settings(size=size), folder / "stores"), array, affine


def test_all_48_orientations_are_tried_and_patients_right_is_positive() -> None:
    assert len(set(CODES)) == 48
    for code in CODES:
        assert nib.aff2axcodes(in_orientation(np.zeros(SITE.shape, np.uint8), code)[1]) == tuple(code)
    assert nib.aff2axcodes(np.eye(4))[0] == "R"


@pytest.mark.parametrize("code", CODES)
def test_true_labels_return_to_their_own_voxels(code: str, one_kidney: tuple, tmp_path: Path) -> None:
    """The truth as a model of the scan's own size would claim it: down to slices, back to the scan, into a file."""
    store, truth, affine = scan_of(one_kidney, code, tmp_path, 32)
    write_nifti(from_slices(np.asarray(store.labels), store.grid), store.grid, tmp_path / "back.nii.gz")
    back = nib.load(tmp_path / "back.nii.gz")
    assert back.shape == truth.shape and np.allclose(back.affine, affine, atol=1e-4)
    assert np.array_equal(np.asarray(back.dataobj), truth)
    x = world_x(np.asarray(back.dataobj) == BY_KEY[one_kidney[0]].label, back.affine)
    assert (x > 0).all() if one_kidney[0] == "right kidney" else (x < 0).all()


@pytest.mark.parametrize("code", CODES)
def test_a_lone_kidney_stays_on_its_side(code: str, one_kidney: tuple, tmp_path: Path) -> None:
    """The whole path: a file in any axes, slices, a model that marks what is bright as this kidney, a label map on disk."""
    key, right = one_kidney[0], one_kidney[0] == "right kidney"
    store, truth, affine = scan_of(one_kidney, code, tmp_path, 24)
    _, rows, columns = np.nonzero(store.image > HALF)
    assert (columns < 12).all() if right else (columns >= 12).all(), "the patient's right is on a picture's left"
    assert np.mean(rows) > 12, "and the back is below"
    mine = PROMPTS.index(key)
    model = Scripted(lambda pictures, place: (pictures - HALF) / 20 if place == mine else torch.full_like(pictures, -9))
    prediction = predict(model, store, tiny_settings("adapter", size=24))
    write_nifti(label_map(prediction), store.grid, tmp_path / "predicted.nii.gz")
    file = nib.load(tmp_path / "predicted.nii.gz")
    found = np.asarray(file.dataobj)
    assert found.shape == truth.shape and np.allclose(file.affine, affine, atol=1e-4)
    assert set(np.unique(found)) == {0, BY_KEY[key].label}
    x = world_x(found > 0, file.affine)
    assert (x > 0).all() if right else (x < 0).all()
    assert np.array_equal(prediction.mask(key), found > 0)
    organ = truth == BY_KEY[key].label
    assert dice((found > 0)[organ].sum(), organ.sum(), (found > 0).sum()) > 0.75
