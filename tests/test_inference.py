"""lib.inference: shared slices change nothing, masks come back where they belong, a kidney keeps its side."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import RELEASED, fake_store, fixed_site, slice_settings, tiny_settings
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lib import inference
from lib.clipseg import TextPromptedSegmenter, build
from lib.config import ClipSegSettings, SliceSettings
from lib.data import Case, Store, prepare, stores_of
from lib.inference import (
    SLICES_AT_ONCE,
    Prediction,
    _by_text,
    _decoded,
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
from lib.windows import Windows, label_classes, window_of

pytestmark = pytest.mark.filterwarnings("error")
THREE = ("liver", "left kidney", "a loop of bowel")
SPLEEN, LIVER = 1 << KEYS.index("spleen"), 1 << KEYS.index("liver")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ANISOTROPIC = np.diag([-1.2, -0.9, 4.0, 1.0])
THICK = np.diag([-2.0, -2.0, 5.0, 1.0])
OBLIQUE = np.array([[-1.9, 0.5, 0, 3], [-0.5, -1.9, 0.2, 5], [0.1, 0.1, 4, -7], [0, 0, 0, 1]])
PSR = np.array(
    [[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]]
)  # axes back, head, patient's left


def store_of(slices: int, columns: int = 31, rows: int = 27) -> Store:
    """Noise in a scan whose native axes are (rows, slices, columns)."""
    return replace(fake_store(slices), grid=Grid((rows, slices, columns), PSR))


def model_of(run: str, **changes: object) -> tuple[TextPromptedSegmenter, ClipSegSettings]:
    """A random model with a gate that is half open and differs from token to token."""
    settings = tiny_settings(run, **{"gate_bias": 0.0, "adapter_depth": 2} | changes)
    model = build(settings).eval()
    if model.adapter is not None and model.adapter.gate_proj is not None:
        torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.3)
    return model, settings


@torch.no_grad()
def plain(model: TextPromptedSegmenter, image: np.ndarray, settings: ClipSegSettings) -> Tensor:
    """Logits (P, Z, S, S), one window and one prompt at a time, every slice of it encoded anew."""
    logits = torch.empty(len(THREE), *image.shape, dtype=model.mean.dtype)
    for place, z in product(range(len(THREE)), range(len(image))):
        window = torch.from_numpy(image[window_of(z, len(image), settings)])
        first = torch.tensor([0])
        samples = Windows(
            window,
            torch.arange(len(window))[None],
            first,
            torch.tensor([place]),
            torch.zeros(1),
            torch.ones(1),
        )
        logits[place, z] = model(samples, list(THREE))[0][0]
    return logits


VARIANTS = [
    ("baseline", {}),
    ("adapter", {}),
    ("centre only", {}),
    ("adapter", {"gate": False}),
    ("adapter", RELEASED),
    ("baseline", {"freeze_encoders": True}),
]


@pytest.mark.parametrize(("run", "changes"), VARIANTS)
@pytest.mark.parametrize("slices", [1, 2, 11])
def test_predict_equals_every_window_by_itself(
    run: str, changes: dict, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CHUNK", 4)  # shorter than a chunk, and two with a rest
    (model, settings), store = model_of(run, **changes), store_of(slices)
    expected = plain(
        model, store.image, replace(settings, neighbours="true") if changes == RELEASED else settings
    ).sigmoid()
    found = np.concatenate(list(slice_probabilities(model, store, list(THREE), settings)), 1)  # (P, Z, S, S)
    assert found.dtype == np.float32 and np.allclose(found, expected.numpy(), atol=1e-6, rtol=1e-4)
    assert expected.std((1, 2, 3)).min() > 1e-3, "a constant would equal anything"
    prediction, full = (
        predict(model, store, settings, THREE),
        interpolate(expected, (27, 31), mode="bilinear").numpy(),
    )
    assert prediction.grid is store.grid and prediction.prompts == THREE
    assert prediction.claims.shape == prediction.winner.shape == (27, slices, 31)  # back, head, left
    for prompt, probability in zip(THREE, full.transpose(0, 2, 1, 3), strict=True):
        sure = abs(probability - 0.5) > 1e-5
        assert np.array_equal(prediction.mask(prompt)[sure], (probability > 0.5)[sure])


@pytest.mark.parametrize("adapted", ["deepest", "all"])
@torch.no_grad()
def test_in_double_precision_they_are_equal_to_the_last_digits(
    adapted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CHUNK", 3)
    model, settings = model_of("adapter", adapted=adapted)
    model, store = model.double(), fake_store(8)
    expected, text, found = plain(model, store.image, settings), model.encode_text(list(THREE)), []
    for adapted, _ in adapted_slices(model, store, settings):
        found += list(_decoded(model, adapted, text))
    assert (
        torch.allclose(torch.cat(found).swapaxes(0, 1), expected, atol=1e-10, rtol=0)
        and expected.std() > 1e-2
    )
    shown = np.concatenate(list(slice_probabilities(model, store, list(THREE), settings)), 1)
    assert np.allclose(shown, expected.sigmoid().numpy(), atol=1e-7, rtol=0)


@pytest.mark.parametrize(("slices", "chunk"), [(1, 4), (4, 4), (5, 4), (11, 4), (9, 2), (6, 1), (7, 16)])
@pytest.mark.parametrize("run", ["baseline", "adapter"])
def test_each_slice_is_encoded_once_for_all_windows_and_prompts(
    run: str, slices: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CHUNK", chunk)
    (model, settings), store, seen, texts, projected = model_of(run), store_of(slices), [], [], []
    if model.adapter is not None:
        model.adapter.proj_in.register_forward_hook(lambda _, given, out: projected.append(len(out)))
    encode_slices, encode_text = model.encode_slices, model.encode_text
    monkeypatch.setattr(
        model, "encode_slices", lambda pictures: seen.extend(pictures) or encode_slices(pictures)
    )
    monkeypatch.setattr(model, "encode_text", lambda prompts: texts.append(prompts) or encode_text(prompts))
    predict(model, store, settings)
    assert [picture.numpy().tobytes() for picture in seen] == [picture.tobytes() for picture in store.image]
    assert texts == [list(PROMPTS)]
    assert sum(projected) == (slices if run == "adapter" else 0), "of the deepest level alone"


@pytest.mark.parametrize("count", [1, 3, 13, 104])
@torch.no_grad()
def test_a_slice_is_reduced_once_for_the_prompts_that_are_decoded_together(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "PAIRS", 8)
    (model, _), reduced, sizes = model_of("baseline"), [], []
    model.base_model.decoder.reduces[0].register_forward_hook(lambda _, given, out: reduced.append(len(out)))
    activations, text = model.encode_slices(torch.from_numpy(fake_store(5).image)), torch.randn(count, 384)
    logits = torch.cat([sizes.append(len(part)) or part for part in _decoded(model, activations, text)])
    assert sum(reduced) == 5 and max(sizes) == max(1, min(5, 8 // count))
    alone = model.decode([level[3:4] for level in activations], text[-1:], torch.tensor([0]))
    assert logits.shape[:2] == (5, count) and torch.allclose(logits[3, -1], alone[0], atol=1e-5)


def test_half_a_precision_is_for_the_encoder_alone() -> None:
    """The decoder gets and gives float32; the probabilities are nearly the same."""
    (model, settings), store, seen = model_of("adapter"), store_of(5), {}
    clip, decoder = model.base_model.clip, model.base_model.decoder
    modules = {
        "vision": clip.vision_model.encoder.layers[0].mlp.fc1,
        "adapter": model.adapter.proj_in[0],
        "decoder": decoder.layers[0].mlp.fc1,
    }
    for name, module in modules.items():
        module.register_forward_hook(lambda _, given, out, name=name: seen.update({name: out.dtype}))
    whole = next(slice_probabilities(model, store, list(THREE), settings))
    assert set(seen.values()) == {torch.float32}
    half = next(slice_probabilities(model, store, list(THREE), replace(settings, encoder_precision="bf16")))
    assert seen == {"vision": torch.bfloat16, "adapter": torch.bfloat16, "decoder": torch.float32}
    apart = np.abs(half - whole)
    assert 0 < apart.max() < 0.05 and apart.mean() < 0.002 and half.dtype == np.float32


@torch.no_grad()
def test_memory_is_bounded_by_the_chunk_whatever_the_length_of_the_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "CHUNK", 4)
    model, settings = model_of("adapter")
    chunks, kept = adapted_slices(model, fake_store(30), settings), []
    for adapted, gate in chunks:
        kept.append(len(chunks.gi_frame.f_locals["kept"]))
        assert len(adapted[0]) == len(gate) <= 4
    assert len(kept) == 8 and max(kept) == 2 + 4 + 2, "a chunk's centres and their neighbours"


def test_predict_shuts_off_drop_path_and_gradients() -> None:
    model, settings = model_of("adapter", drop_path=0.9)
    store = store_of(5)
    expected, again = predict(model, store, settings, THREE), predict(model.train(), store, settings, THREE)
    assert np.array_equal(again.claims, expected.claims) and np.array_equal(again.winner, expected.winner)
    assert expected.claims.any() and all(p.grad is None for p in model.parameters())


@torch.no_grad()
def test_gates_are_one_mean_for_each_patch_of_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "CHUNK", 3)
    (model, settings), store = model_of("adapter"), store_of(7)
    gates = slice_gates(model, store, settings)
    windows = torch.tensor([window_of(z, 7, settings) for z in range(7)])
    _, gate = model.adapt(model.encode_slices(torch.from_numpy(store.image)), windows)  # (7, 1 + 3 * 3, D)
    assert gates.shape == (7, 3, 3) and gates.dtype == np.float32
    for row, column in ((0, 0), (0, 2), (2, 1)):  # the first token is the class token, then rows of patches
        assert gates[:, row, column] == pytest.approx(
            gate[:, 1 + 3 * row + column].mean(-1).numpy(), abs=1e-6
        )
    assert len(np.unique(gates.round(6))) > 7, "they differ from patch to patch"
    assert slice_gates(model, store_of(1), settings).shape == (1, 3, 3)
    assert slice_gates(model_of("baseline")[0], store, tiny_settings()).shape == (0, 0, 0), (
        "no adapter, no gate"
    )
    model, settings = model_of("adapter", gate=False)
    assert slice_gates(model, store, settings).size == 0


class Scripted(nn.Module):
    """Stands in for a model: `answer` maps (C, S, S) pictures and a prompt's place to (C, S, S) logits."""

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

    def adapt(
        self, activations: list[Tensor], windows: Tensor, projected: list[Tensor]
    ) -> tuple[list[Tensor], None]:
        self.windows += [activations[0][window].numpy() for window in windows]
        return [activations[0][windows[:, windows.shape[1] // 2]]], None

    def reduce(self, activations: list[Tensor]) -> list[Tensor]:
        return activations

    def decode_reduced(self, activations: list[Tensor], text: Tensor, centre: Tensor) -> Tensor:
        return torch.cat(
            [
                self.answer(activations[0][c][None], int(row))
                for c, row in zip(centre, text[:, 0], strict=True)
            ]
        )


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        ("adapter", {"neighbours": "another patient"}),
        ("adapter", {"neighbours": "shuffled"}),
        ("adapter", {"window_unit": "mm", "window_step_mm": 8.0, "window": 3}),  # slices are 4 mm apart
        ("adapter", {"window": 9}),
        ("adapter", {"window": 1}),
        ("centre only", {}),
    ],
)
def test_a_model_sees_the_pictures_of_its_window(
    run: str, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        inference, "CHUNK", 4
    )  # another patient's slices, too, are passed on from chunk to chunk
    settings, store = tiny_settings(run, **changes), replace(store_of(11), donor=fake_store(21, seed=1).image)
    both, model = np.concatenate([store.image, store.donor]), Scripted(lambda *_: torch.zeros(0))
    assert sum(len(pictures) for (pictures,), _ in adapted_slices(model, store, settings)) == 11
    seen = model.windows
    assert len(seen) == 11 and store.spacing_mm == 4
    for z, window in enumerate(seen):
        steps = np.arange(-settings.reach, settings.reach + 1)
        expected = (
            z + steps * (2 if settings.window_unit == "mm" else 1) * (settings.neighbours != "centre")
        ).clip(0, 10)
        if settings.neighbours == "another patient":
            expected = np.where(
                steps == 0, z, 11 + (2 * z + steps).clip(0, 20)
            )  # 11 slices against 21: half the distance
        if settings.neighbours == "shuffled":
            order = [
                next(row for row in expected if np.array_equal(picture, both[row])) for picture in window
            ]
            assert sorted(order) == sorted(expected) and order[settings.reach] == z
        else:
            assert np.array_equal(window, both[expected])


def test_a_model_of_manifest_rows_is_tested_on_true_neighbours() -> None:
    """A manifest needs the truth, which a test scan does not have."""
    store = replace(store_of(6), labels=None, presence=None)
    settings = tiny_settings("adapter", neighbours="manifest")
    model = build(settings).eval()
    found, true = (
        next(slice_probabilities(model, store, ["liver"], s))
        for s in (settings, replace(settings, neighbours="true"))
    )
    assert np.array_equal(found, true) and found.std() > 0
    assert not np.array_equal(
        found, next(slice_probabilities(model, store, ["liver"], replace(settings, neighbours="centre")))
    )


def by_hand(probabilities: np.ndarray) -> Prediction:
    """Prediction of a scan of one slice, on canonical axes, from (P, rows, columns) probabilities."""
    size = probabilities.shape[-1]
    grid = Grid((size, size, 1), np.diag([-1.0, -1, 1, 1]))
    logits = torch.logit(torch.from_numpy(probabilities).double())
    store = replace(fake_store(1, 24), image=np.zeros((1, size, size), np.uint8), grid=grid)
    prompts = tuple(f"organ {n}" for n in range(len(probabilities)))
    return _by_text(Scripted(lambda pictures, place: logits[place][None]), store, tiny_settings(), prompts)


def test_claims_may_overlap_and_the_more_probable_one_wins() -> None:
    probabilities = np.array([[[0.9, 0.6], [0.2, 0.4]], [[0.8, 0.7], [0.3, 0.51]], [[0.1, 0.65], [0.4, 0.1]]])
    prediction = by_hand(probabilities)
    # rows first in a slice, x first in a scan
    assert prediction.claims[:, :, 0].T.tolist() == [[0b011, 0b111], [0b000, 0b010]]
    assert prediction.winner[:, :, 0].T.tolist() == [[1, 2], [0, 2]]
    assert prediction.mask("organ 2")[:, :, 0].T.tolist() == [[False, True], [False, False]]
    assert (prediction.claims.dtype, prediction.winner.dtype, prediction.mask("organ 0").dtype) == (
        np.uint16,
        np.uint8,
        bool,
    )


def test_a_probability_of_one_half_claims_nothing() -> None:
    prediction = by_hand(np.full((2, 3, 3), 0.5))
    assert not prediction.claims.any() and not prediction.winner.any()


def test_sixteen_prompts_fit_and_no_more() -> None:
    probabilities = np.full((16, 2, 2), 0.1)
    probabilities[15], probabilities[3, 0, 0] = 0.6, 0.7
    prediction = by_hand(probabilities)
    assert prediction.claims[:, :, 0].tolist() == [[1 << 15 | 1 << 3, 1 << 15], [1 << 15] * 2]
    assert prediction.winner[:, :, 0].tolist() == [[4, 16], [16, 16]] and mask_of(prediction.claims, 15).all()
    with pytest.raises(AssertionError, match="16 bits"):
        by_hand(np.zeros((17, 2, 2)))


CODES = ["".join(axes) for letters in permutations(("RL", "AP", "SI")) for axes in product(*letters)]
WORLD = {
    "R": (0, 1),
    "L": (0, -1),
    "A": (1, 1),
    "P": (1, -1),
    "S": (2, 1),
    "I": (2, -1),
}  # in NIfTI's world
HALF = 186  # grey value between the kidney's, 255, and the brightest other one, 118
KIDNEYS, SITE = (
    ("right kidney", "left kidney"),
    fixed_site("site A", 32, 12, pixel_mm=10.5),
)
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
    axes = [WORLD[letter][0] for letter in code]
    array = np.flip(
        lps.transpose(axes), [i for i, letter in enumerate(code) if letter in "RAI"]
    )  # against LPS
    affine = np.zeros((4, 4))
    for i, letter in enumerate(code):
        axis, sign = WORLD[letter]
        affine[axis, i] = sign * SPACING_MM[axis]
    affine[:, 3] = [*(-affine[:3, :3] @ (np.array(array.shape) - 1) / 2 + (0, 11, -7)), 1]
    return np.ascontiguousarray(array), affine


def world_x(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World x of a mask's voxels in mm: positive is the patient's right."""
    return (np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3])[:, 0]


def scan_of(
    one_kidney: tuple[str, np.ndarray, np.ndarray], code: str, folder: Path, size: int
) -> tuple[Store, np.ndarray, np.ndarray]:
    """The phantom written with some axes and prepared; its native labels and affine."""
    files = []
    for name, volume in zip(("image", "labels"), one_kidney[1:], strict=True):
        array, affine = in_orientation(volume, code)
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii")
        files.append(folder / f"{name}.nii")
    return prepare([Case("canary", *files)], tiny_settings(size=size), folder / "stores")[0], array, affine


def test_all_48_orientations_are_tried_and_patients_right_is_positive() -> None:
    assert len(set(CODES)) == 48
    for code in CODES:
        assert nib.aff2axcodes(in_orientation(np.zeros((32, 32, 12), np.uint8), code)[1]) == tuple(code)
    assert nib.aff2axcodes(np.eye(4))[0] == "R"


@pytest.mark.parametrize("code", CODES)
def test_true_labels_return_to_their_own_voxels(code: str, one_kidney: tuple, tmp_path: Path) -> None:
    """The truth as a model of the scan's own size would claim it: to slices, back to the scan, into a
    file."""
    store, truth, affine = scan_of(one_kidney, code, tmp_path, 32)
    write_nifti(from_slices(np.asarray(store.labels), store.grid), store.grid, tmp_path / "back.nii.gz")
    back = nib.load(tmp_path / "back.nii.gz")
    assert back.shape == truth.shape and np.allclose(back.affine, affine, atol=1e-4)
    assert np.array_equal(np.asarray(back.dataobj), truth)
    x = world_x(np.asarray(back.dataobj) == BY_KEY[one_kidney[0]].label, back.affine)
    assert (x > 0).all() if one_kidney[0] == "right kidney" else (x < 0).all()


@pytest.mark.parametrize("code", CODES)
def test_a_lone_kidney_stays_on_its_side(code: str, one_kidney: tuple, tmp_path: Path) -> None:
    """A file in any axes, slices, a model that marks what is bright as this kidney, a label map on disk."""
    key, right = one_kidney[0], one_kidney[0] == "right kidney"
    store, truth, affine = scan_of(one_kidney, code, tmp_path, 24)
    _, rows, columns = np.nonzero(store.image > HALF)
    assert (columns < 12).all() if right else (columns >= 12).all(), (
        "the patient's right is on a picture's left"
    )
    assert np.mean(rows) > 12, "and the back is below"
    mine = PROMPTS.index(key)
    model = Scripted(
        lambda pictures, place: (pictures - HALF) / 20 if place == mine else torch.full_like(pictures, -9)
    )
    prediction = _by_text(model, store, tiny_settings("adapter", size=24), PROMPTS)
    write_nifti(prediction.winner, store.grid, tmp_path / "predicted.nii.gz")
    file = nib.load(tmp_path / "predicted.nii.gz")
    found = np.asarray(file.dataobj)
    assert found.shape == truth.shape and np.allclose(file.affine, affine, atol=1e-4)
    assert set(np.unique(found)) == {0, BY_KEY[key].label}
    x = world_x(found > 0, file.affine)
    assert (x > 0).all() if right else (x < 0).all()
    assert np.array_equal(prediction.mask(key), found > 0)
    organ = truth == BY_KEY[key].label
    assert dice((found > 0)[organ].sum(), organ.sum(), (found > 0).sum()) > 0.75


# slice by slice: Med-VLM and its U-Net


class Knows(nn.Module):
    """Says what the store's labels say, slice after slice in the order in which it is asked."""

    def __init__(self, store: Store, settings: SliceSettings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.store, self.table, self.asked, self.seen = (
            store,
            label_classes(settings),
            len(settings.organs),
            0,
        )

    def probabilities(self, image: Tensor) -> Tensor:
        assert not self.training and len(image) <= SLICES_AT_ONCE
        rows = slice(self.seen, self.seen + len(image))
        self.seen += len(image)
        assert np.array_equal((image * 255).round().byte(), self.store.image[rows]), (
            "each slice once, in order"
        )
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
    folder: Path, affine: np.ndarray, settings: SliceSettings, shape: tuple[int, int, int] = (44, 40, 18)
) -> tuple[Store, np.ndarray, np.ndarray]:
    """A body in air with a liver and a spleen in it: its store, and its canonical labels and HU."""
    x, y, z = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1))
    hu, labels = np.full(shape, -1000), np.zeros(shape, np.uint8)
    hu[(abs(x - 0.55) < 0.35) & (abs(y - 0.45) < 0.3) & (abs(z - 0.5) < 0.4)] = 40
    for label, centre, radius in (
        (1, (0.4, 0.4, 0.6), 0.16),
        (3, (0.72, 0.5, 0.4), 0.12),
        (5, (0.6, 0.6, 0.5), 0.05),
    ):
        inside = sum((axis - c) ** 2 for axis, c in zip((x, y, z), centre, strict=True)) < radius**2
        labels[inside], hu[inside] = label, 100
    for name, array in (("a", hu.astype(np.int16)), ("a_labels", labels)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    case = Case("a", folder / "a.nii.gz", folder / "a_labels.nii.gz")
    store = prepare([case], settings, folder / "stores")[0]
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
    assert np.array_equal(claims, np.where(truth == 3, SPLEEN, np.where(truth == 1, LIVER, 0))) and {
        SPLEEN,
        LIVER,
    } < set(np.unique(claims))


def test_organs_may_claim_a_voxel_together_and_a_half_is_not_enough() -> None:
    store, settings = fake_store(3), slice_settings()
    assert (segment_slices(Always(0.6, 0.51), store, settings) == SPLEEN | LIVER).all()
    assert (segment_slices(Always(0.5, 0.51), store, settings) == LIVER).all()
    assert not segment_slices(Always(0.5, 0.1), store, settings).any()


@pytest.mark.parametrize("affine", [THICK, ANISOTROPIC, OBLIQUE, PSR])
@pytest.mark.parametrize(
    "changes",
    [
        {"slice_mm": 0.0, "crop": False},
        {"slice_mm": 0.0},
        {"slice_mm": 1.7, "crop": False},
        {"slice_mm": 1.7},
    ],
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
    assert np.array_equal(everywhere == SPLEEN, body if settings.crop else np.ones_like(body)), (
        "nothing outside of the box"
    )
    assert not everywhere[~(everywhere == SPLEEN)].any()


@pytest.mark.parametrize("changes", [{}, {"slice_mm": 0.7}, {"slice_mm": 30.0, "crop": True}, {"crop": True}])
def test_a_scan_of_one_slice(tmp_path: Path, changes: dict) -> None:
    hu, labels = np.full((20, 18, 1), -1000), np.zeros((20, 18, 1), np.uint8)
    hu[4:16, 5:15], labels[6:10, 7:11], labels[11:14, 8:13] = 40, 3, 1
    for name, array in (("a", hu.astype(np.int16)), ("a_labels", labels)):
        nib.save(nib.Nifti1Image(array, LPS), tmp_path / f"{name}.nii.gz")
    settings = slice_settings(size=48, **changes)
    case = Case("a", tmp_path / "a.nii.gz", tmp_path / "a_labels.nii.gz")
    store = prepare([case], settings, tmp_path / "stores")[0]
    assert len(store.image) == 1
    assert min(overlap(segment_slices(Knows(store, settings), store, settings), labels).values()) > 0.9
    untrained = build_unet(settings)
    assert segment_slices(untrained, store, settings).shape == (20, 18, 1)


def test_the_truth_of_a_phantom_comes_back() -> None:
    settings = tiny_settings("med-vlm small", size=64, slice_mm=6.0)
    store = stores_of(settings, "validation")[0]
    truth = read_labels(store.source.labels, store.label_map, store.grid)
    claims = segment_slices(Knows(store, settings), store, settings)
    assert min(overlap(claims, truth).values()) > 0.9
    assert store.box is not None and store.box != tuple(slice(0, n) for n in truth.shape), (
        "the phantom has air around it"
    )
    outside = np.ones(truth.shape, bool)
    outside[store.box] = False
    assert outside.any() and not claims[outside].any()
