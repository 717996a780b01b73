"""tools.viewer: what is painted where, what a prompt is likened to, and what stands where no widget runs."""

import base64
import io
from dataclasses import replace
from itertools import pairwise

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from lib.clipseg import build
from lib.config import settings_of
from lib.inference import slice_probabilities
from lib.organs import BY_KEY, KEYS
from lib.volumes import Grid
from tools import viewer
from tools.segment import Segmentation, store_of
from tools.viewer import CT_WINDOWS_HU, TRUTH, Playground, Scene, Solid, Viewer

LIVER, SPLEEN = BY_KEY["liver"], BY_KEY["spleen"]
WINDOW = CT_WINDOWS_HU["soft tissue"]
CYAN, GREY = np.array((0, 1, 1)), 160 / 400  # water in the soft tissue window from -160 to 240 HU


def scene(**changes: object) -> Scene:
    """Water: in slice 1 the liver at the right front; the model adds a piece at the left back."""
    truth = np.zeros((8, 8, 3), np.uint8)
    truth[:4, :4, 1] = LIVER.label
    model = truth.copy()
    model[6:, 6:, 1] = LIVER.label
    names = {LIVER.label: "liver", SPLEEN.label: "spleen", 14: "a bright vessel"}
    known = (LIVER.label, SPLEEN.label)
    made = Scene(np.zeros((8, 8, 3)), (1.0, 1.0, 5.0), "CT", names, {TRUTH: truth, "model": model}, known)
    return replace(made, **changes)


def panels(*arguments: object) -> list[np.ndarray]:
    """The panels of a drawn slice as they are seen, (rows, columns, 3) from 0 to 1."""
    pictures = []
    for axis in viewer.draw(*arguments).axes:
        grey, marked = (image.to_rgba(image.get_array()) for image in axis.images)
        pictures.append(marked[..., :3] * marked[..., 3:] + grey[..., :3] * (1 - marked[..., 3:]))
    return pictures


def near(pixel: np.ndarray, colour: object, opacity: float = 1) -> bool:
    """A colour over water."""
    return np.allclose(pixel, opacity * np.array(to_rgb(colour)) + (1 - opacity) * GREY, atol=0.01)


def test_the_right_side_is_on_the_left_the_front_is_up_and_false_positives_are_cyan() -> None:
    truth, model = panels(scene(), 1, WINDOW, {LIVER.label})
    assert all(near(picture[1, 1], LIVER.colour, 0.4) for picture in (truth, model))
    assert near(model[1, 5], (0, 0, 0), 0), "nothing at the left front"
    assert near(model[7, 7], CYAN, 0.75), "left back"


def test_an_organ_that_is_not_chosen_is_not_seen_and_another_slice_is_another_picture() -> None:
    for shown, z in ((set(), 1), ({SPLEEN.label}, 1), ({LIVER.label}, 0)):
        assert all(near(picture, (0, 0, 0), 0) for picture in panels(scene(), z, WINDOW, shown))


@pytest.mark.parametrize("known", [(SPLEEN.label,), ()])
def test_what_the_truth_does_not_speak_of_is_never_false(known: tuple[int, ...]) -> None:
    """As the duodenum in BTCV, or any text that is no organ."""
    assert near(panels(scene(known=known), 1, WINDOW, {LIVER.label})[1][7, 7], LIVER.colour, 0.4)


def test_the_grey_window_is_from_black_to_white() -> None:
    thirty = scene(voxels=np.full((8, 8, 3), 30.0))
    windows = ((30, 99), (-99, 30), (-70, 130))
    found = [panels(thirty, 0, window, ())[0][0, 0, 0] for window in windows]
    assert found == pytest.approx([0, 1, 0.5], abs=0.01)


def test_an_mri_is_windowed_by_its_own_percentiles() -> None:
    voxels = np.tile(np.linspace(0, 1000, 101), (2, 2, 1))
    labels = {"model": np.zeros((2, 2, 101), np.uint8)}
    windows = Viewer(scene(voxels=voxels, modality="MR", labels=labels)).windows
    assert windows == {"as the model sees it": pytest.approx((10, 990))}


def test_pixels_are_as_wide_and_high_in_the_picture_as_in_the_patient_and_no_contour_is_drawn() -> None:
    """A contour for each organ takes ten times as long: the slider would stick."""
    figure = viewer.draw(scene(spacing_mm=(1.0, 2.0, 5.0)), 1, WINDOW, {LIVER.label})
    FigureCanvasAgg(figure).draw()
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(2, rel=0.02)
    assert not any(axis.collections for axis in figure.axes)


def test_a_label_is_filled_and_outlined_inside_of_itself() -> None:
    labels = np.zeros((5, 6), np.uint8)
    labels[1:4, 1:4], labels[1:4, 4] = 1, 2
    axis = Figure().subplots()
    viewer.paint(axis, np.zeros((5, 6)), labels, {1: "#ffffff", 2: "#ffffff"}, 1)
    opacity = axis.images[1].get_array()[..., 3]
    assert opacity[1:4, 1:5].tolist() == [[1] * 4, [1, 0.4, 1, 1], [1] * 4]
    assert opacity[0].max() == opacity[4].max() == opacity[:, 5].max() == 0


def segmentation(size: int = 24, depth: int = 6, prompts: tuple[str, ...] = KEYS) -> Segmentation:
    """Of noise, each organ in slices of its own; native x is to the right, so that it must be turned."""
    rng, labels = np.random.default_rng(0), np.zeros((size, size, depth), np.uint8)
    for label in range(1, 14):
        labels[2:9, label : label + 3, label % depth] = label
    grid = Grid((size, size, depth), np.diag([1.0, -1.0, 2.0, 1.0]))
    grey = rng.integers(0, 256, labels.shape, dtype=np.uint8)
    return Segmentation(prompts, grid, grid.to_native(labels), grey, pd.DataFrame(), "CT", "a note")


def test_the_viewer_starts_where_most_is_seen_each_control_changes_the_picture_and_it_prints() -> None:
    shown = Viewer(scene())
    assert shown.slice.value == 1
    seen = [shown.picture.value]
    changes = [(shown.organs, ()), (shown.organs, (LIVER.label,)), (shown.window, "bone"), (shown.slice, 2)]
    for control, value in changes:
        control.value = value
        seen.append(shown.picture.value)
    assert all(a != b for a, b in pairwise(seen))
    # where no widget runs, the first picture stands with its text
    first = seen[0]
    data, metadata = shown._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]) == first != shown.picture.value
    assert Image.open(io.BytesIO(first)).width > 500 and "application/vnd.jupyter.widget-view+json" in data
    alt = "Slice 2 of a scan with its organs in colours: ground truth, model."
    assert metadata["image/png"]["alt"] == data["text/plain"] == alt


def test_a_trained_prompt_is_likened_to_itself_and_the_mask_is_the_segmentation_s() -> None:
    settings, found = settings_of("adapter", "smoke", gate_bias=0.0), segmentation()
    model = build(settings).eval()
    store = store_of(found.grey, found.grid, "CT", settings)
    assert np.array_equal(store.image, found.grey.T), "24 pixels in the smoke profile, as here"
    playground = Playground(model, settings, found, 3)
    probability, cosines, overlaps = playground.likeness("spleen")
    place = KEYS.index("spleen")
    assert cosines.argmax() == place and cosines[place] == pytest.approx(1, abs=1e-5)
    assert overlaps[place] == 1 or not (probability > 0.5).any()
    expected = np.concatenate(list(slice_probabilities(model, store, ["spleen"], settings)), 1)[0, 3]
    assert np.allclose(probability, expected, atol=1e-5)
    assert not any(tensor.requires_grad for tensor in playground.activations) and torch.is_grad_enabled()


def test_the_playground_encodes_a_slice_once_for_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, calls = settings_of("adapter", "smoke"), []
    model = build(settings).eval()
    encode = model.encode_slices
    monkeypatch.setattr(model, "encode_slices", lambda slices: calls.append(len(slices)) or encode(slices))
    playground = Playground(model, settings, segmentation(), 2, "liver")
    first = playground.picture.value
    for prompt in ("aorta", ""):
        playground.prompt.value = prompt
        assert playground.picture.value != first and calls == [5]
    playground.slice.value = 0
    assert calls == [5, 5]


def test_from_the_front_the_nearest_organ_covers_and_the_right_is_on_the_left() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4, 5:, :4] = LIVER.label  # right, back, low
    labels[4:, 2:, :] = SPLEEN.label  # left, in front
    labels[4:, 6:, :] = LIVER.label  # behind it
    view = viewer.front_view(scene(labels={"model": labels}, spacing_mm=(1.0, 1.0, 1.0)), "model")
    assert (view[1, 1] == 1).all(), "high on the right: nothing"
    for place, organ in (((6, 1), LIVER), ((1, 6), SPLEEN), ((6, 6), SPLEEN)):
        colour = np.array(to_rgb(organ.colour))
        assert np.allclose(view[place] / view[place].max(), colour / colour.max(), atol=0.03)
    flat = scene(labels={"model": labels[:, :, :1]})
    assert viewer.front_view(flat, "model").shape == (1, 8, 3), "one slice has no slope"


def test_niivue_gets_the_label_map_in_the_organs_colours() -> None:
    volume = Solid(scene()).children[0].volumes[0]
    image = nib.Nifti1Image.from_bytes(volume.data)
    assert np.array_equal(np.asarray(image.dataobj), scene().labels["model"])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    lut = np.reshape(volume.colormap_label.lut, (-1, 4))
    assert lut[LIVER.label].tolist() == [*(255 * np.array(to_rgb(LIVER.colour))).round(), 255]
    assert lut[0, 3] == 0, "the background is transparent"


def test_free_text_has_a_colour_of_its_own() -> None:
    assert scene().colours[14] not in {viewer.FALSE, *(organ.colour for organ in BY_KEY.values())}
