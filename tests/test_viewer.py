"""lib.viewer: what is painted where, what a prompt is taken for, and what stands in a notebook where no widget runs."""

import base64
import io
from dataclasses import replace
from itertools import pairwise

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import fake_store, tiny_settings

from lib.clipseg import build
from lib.organs import BY_KEY, KEYS
from lib.scans import Segmentation
from lib.viewer import TRUTH, Answer, EncodedSlice, Playground, Scene, Solid, Viewer, scene_of, solid, store_of
from lib.viewer.paint import FALSE, PANEL, TITLE, outline, paint, palette, panel_size
from lib.viewer.scene import CT_WINDOWS_HU, fullest_slice, windows_of
from lib.viewer.solid import front_view
from lib.volumes import Grid

LIVER, SPLEEN = BY_KEY["liver"], BY_KEY["spleen"]
WINDOW = CT_WINDOWS_HU["soft tissue"]
CYAN = (0, 255, 255)


def scene(**changes: object) -> Scene:
    """8 x 8 x 3 voxels of water: the liver at the patient's right front in slice 1; the model adds a piece at the left back."""
    truth = np.zeros((8, 8, 3), np.uint8)
    truth[:4, :4, 1] = LIVER.label
    model = truth.copy()
    model[6:, 6:, 1] = LIVER.label
    names = {LIVER.label: "liver", SPLEEN.label: "spleen", 14: "a bright vessel"}
    made = Scene(np.zeros((8, 8, 3)), (1.0, 1.0, 5.0), "CT", names, {TRUTH: truth, "model": model}, (LIVER.label, SPLEEN.label))
    return replace(made, **changes)


def colour_at(picture: Image.Image, panel: int, x: float, y: float, panels: int = 2) -> tuple[int, ...]:
    """Colour at a place of a panel, as shares of its width and height."""
    step = (picture.width + 6) // panels
    return picture.getpixel((int(panel * step + x * PANEL), int(TITLE + y * PANEL)))


def mixed(organ: str, grey: float) -> list[float]:
    """Of an organ's colour over grey, as a mask is filled."""
    return [0.4 * part + 0.6 * grey for part in palette({1: BY_KEY[organ].colour})[1].tolist()]


GREY = 255 * 160 / 400  # water in the soft tissue window from -160 to 240 HU


def test_the_right_side_is_on_the_left_the_front_is_up_and_false_positives_are_cyan() -> None:
    picture = paint(scene(), 1, WINDOW, {LIVER.label}, false=True)
    assert np.allclose(colour_at(picture, 0, 0.25, 0.25), mixed("liver", GREY), atol=3)  # truth: right front
    assert np.allclose(colour_at(picture, 1, 0.25, 0.25), mixed("liver", GREY), atol=3)
    assert colour_at(picture, 1, 0.75, 0.25) == (int(GREY),) * 3  # nothing at the left front
    assert np.allclose(colour_at(picture, 1, 0.88, 0.88), 0.75 * np.array(CYAN) + 0.25 * GREY, atol=3)  # left back: false
    without = paint(scene(), 1, WINDOW, {LIVER.label}, false=False)
    assert np.allclose(colour_at(without, 1, 0.88, 0.88), mixed("liver", GREY), atol=3)


def test_an_organ_that_is_not_ticked_is_not_seen_and_another_slice_is_another_picture() -> None:
    assert colour_at(paint(scene(), 1, WINDOW, set()), 1, 0.88, 0.88) == (int(GREY),) * 3
    assert colour_at(paint(scene(), 0, WINDOW, {LIVER.label}), 0, 0.25, 0.25) == (int(GREY),) * 3


@pytest.mark.parametrize("known", [(SPLEEN.label,), ()])
def test_what_the_truth_does_not_speak_of_is_never_false(known: tuple[int, ...]) -> None:
    """As the duodenum in BTCV, or any text that is no organ."""
    assert np.allclose(colour_at(paint(scene(known=known), 1, WINDOW, {LIVER.label}), 1, 0.88, 0.88), mixed("liver", GREY), atol=3)


def test_the_grey_window_is_from_black_to_white() -> None:
    voxels = np.full((8, 8, 3), 30.0)
    greys = [colour_at(paint(scene(voxels=voxels), 0, window, ()), 0, 0.5, 0.5)[0] for window in ((30, 99), (-99, 30), (-70, 130))]
    assert greys == [0, 255, 127]


def test_a_gate_map_lies_over_its_own_panel_and_its_values_stand_in_the_title() -> None:
    gate = np.zeros((3, 2, 2), np.float32)
    gate[1, 0, 1] = 0.5  # front, left
    shown = paint(scene(gates={"model": gate}), 1, WINDOW, (), gate=True)
    open_, shut = colour_at(shown, 1, 0.75, 0.25), colour_at(shown, 1, 0.25, 0.75)
    assert np.allclose(open_, 0.55 * np.array((253, 231, 36)) + 0.45 * GREY, atol=3)  # viridis' yellow
    assert np.allclose(shut, 0.55 * np.array((68, 1, 84)) + 0.45 * GREY, atol=3)  # and violet
    assert colour_at(shown, 0, 0.75, 0.25) == (int(GREY),) * 3


def test_pixels_are_as_wide_and_high_in_the_picture_as_in_the_patient() -> None:
    assert panel_size(100.0, 50.0) == (PANEL, PANEL // 2)
    narrow = paint(scene(spacing_mm=(1.0, 2.0, 5.0)), 1, WINDOW, ())
    assert narrow.width == 2 * (PANEL // 2) + 6


def test_an_outline_is_inside_of_its_label_and_between_neighbours() -> None:
    labels = np.zeros((5, 6), np.uint8)
    labels[1:4, 1:4], labels[1:4, 4] = 1, 2
    assert outline(labels).astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 1, 0, 1, 1, 0],
        [0, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_an_mri_is_windowed_by_its_own_percentiles() -> None:
    values = np.linspace(0, 1000, 8 * 8 * 3).reshape(8, 8, 3)
    windows = windows_of(scene(voxels=values, modality="MR"))
    assert windows["all values"] == (0, 1000) and windows["as the model sees it"] == pytest.approx((10, 990))


def segmentation(store_size: int = 24, depth: int = 6, prompts: tuple[str, ...] = KEYS) -> Segmentation:
    """Of noise; native axes are x to the right, so that they must be turned."""
    store = fake_store(depth, store_size)
    grid = Grid((store_size, store_size, depth), np.diag([1.0, -1.0, 2.0, 1.0]))
    labels = grid.to_native(np.asarray(store.labels).T)
    return Segmentation(prompts, grid, labels, store.image.T, pd.DataFrame(), "CT", "a note")


def test_a_scene_has_canonical_axes_the_organs_that_the_truth_labels_and_refuses_other_prompts() -> None:
    found = segmentation()
    canonical = found.grid.to_canonical(found.labels)
    made = scene_of(found.grey, {"baseline": found, "adapter": found}, canonical, "BTCV")
    assert list(made.labels) == [TRUTH, "baseline", "adapter"] and np.array_equal(made.labels["adapter"], canonical)
    assert BY_KEY["duodenum"].label not in made.known and len(made.known) == 12
    assert scene_of(found.grey, {"adapter": found}).known == ()
    free = scene_of(found.grey, {"adapter": replace(found, prompts=("liver", "a cyst"))})
    assert free.names == {1: "liver", 14: "a cyst"} and free.colours[1] == LIVER.colour and free.colours[14] != FALSE
    with pytest.raises(ValueError, match="2 lists of prompts"):
        scene_of(found.grey, {"baseline": found, "adapter": replace(found, prompts=("liver",))})


def test_the_viewer_starts_where_most_is_seen_and_each_control_changes_the_picture() -> None:
    viewer = Viewer(scene(gates={"model": np.random.default_rng(0).random((3, 2, 2))}))
    assert viewer.slice.value == fullest_slice(scene()) == 1
    seen = [viewer.picture.value]
    for control, value in (
        (viewer.organs[LIVER.label], False),
        (viewer.all, False),
        (viewer.all, True),
        (viewer.false, False),
        (viewer.gate, True),
        (viewer.window, "bone"),
        (viewer.slice, 2),
    ):
        control.value = value
        seen.append(viewer.picture.value)
    assert all(a != b for a, b in pairwise(seen))
    assert all(box.value for box in viewer.organs.values())


def test_where_no_widget_runs_the_first_picture_stands_with_its_text() -> None:
    viewer = Viewer(scene())
    viewer.slice.value = 0
    data, metadata = viewer._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert np.array_equal(np.asarray(picture), np.asarray(paint(scene(), 1, CT_WINDOWS_HU["as the model sees it"], scene().names)))
    assert (
        "application/vnd.jupyter.widget-view+json" in data
        and metadata["image/png"]["alt"] == "Slice 2 of a scan with its organs in colours: truth, model."
    )


def test_a_trained_prompt_is_taken_for_itself_and_the_mask_is_the_segmentation_s() -> None:
    torch.manual_seed(0)
    settings = tiny_settings("adapter")
    model, found = build(settings).eval(), segmentation()
    store = store_of(found, settings)
    assert np.array_equal(store.image, found.grey.T)  # 24 pixels in the smoke profile, as here
    encoded = EncodedSlice(model, store, 3, settings)
    answer = encoded.ask("spleen")
    assert answer.by_text == "spleen" and answer.cosines["spleen"] == pytest.approx(1, abs=1e-5)
    if answer.mask.any():
        assert answer.overlaps["spleen"] == 1
    from lib.inference import slice_probabilities

    expected = np.concatenate(list(slice_probabilities(model, store, ["spleen"], settings)), 1)[0, 3]
    assert np.allclose(answer.probability, expected, atol=1e-5)


def test_an_answer_names_the_best_of_each_list_and_says_when_there_is_none() -> None:
    cosines, overlaps = dict.fromkeys(KEYS, 0.1) | {"liver": 0.9}, dict.fromkeys(KEYS, 0.0) | {"aorta": 0.25, "spleen": float("nan")}
    answer = Answer("lien", np.array([[0.6, 0.4]]), cosines, overlaps)
    assert (answer.by_text, answer.by_mask) == ("liver", "aorta")
    assert answer.sentence == "text nearest to liver (cosine 0.90); mask most like that of aorta (Dice 0.25)"
    assert replace(answer, overlaps=dict.fromkeys(KEYS, 0.0)).sentence.endswith("its mask meets no organ's")
    assert replace(answer, probability=np.zeros((1, 2))).sentence.endswith("its mask is empty in this slice")


def test_the_playground_encodes_a_slice_once_and_answers_every_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, calls = tiny_settings("adapter"), []
    model = build(settings).eval()
    encode = model.encode_slices
    monkeypatch.setattr(model, "encode_slices", lambda slices: calls.append(len(slices)) or encode(slices))
    playground = Playground(model, settings, segmentation(), 2, "liver")
    first, sentence = playground.picture.value, playground.sentence.value
    playground.prompt.value = "aorta"
    assert playground.picture.value != first and playground.sentence.value != sentence and calls == [5]
    playground.slice.value = 0
    assert calls == [5, 3]  # at the edge three slices stand in for five


def test_from_the_front_the_nearest_organ_covers_and_the_right_is_on_the_left() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4, 5:, :4] = LIVER.label  # right, back, low
    labels[4:, 2:, :] = SPLEEN.label  # left, in front
    labels[4:, 6:, :] = LIVER.label  # behind it
    view = np.asarray(front_view(scene(labels={"model": labels}, spacing_mm=(1.0, 1.0, 1.0)), "model")).astype(int)
    liver, spleen = (palette({1: organ.colour})[1].astype(int) for organ in (LIVER, SPLEEN))
    assert (view[40, 60] == 255).all()  # high on the right: nothing
    for place, colour in (((280, 60), liver), ((40, 260), spleen), ((280, 260), spleen)):
        assert np.allclose(view[place] / view[place].max(), colour / colour.max(), atol=0.03)


def test_without_ipyniivue_a_sentence_says_so_above_the_front_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solid, "find_spec", lambda name: None)
    shown = Solid(scene())
    label, picture = shown.children
    assert "pip install ipyniivue" in label.value and isinstance(picture, widgets.Image) and picture.value


def test_niivue_gets_the_label_map_in_the_organs_colours() -> None:
    import nibabel as nib

    shown = Solid(scene())
    volume = shown.canvas.volumes[0]
    image = nib.Nifti1Image.from_bytes(volume.data)
    assert np.array_equal(np.asarray(image.dataobj), scene().labels["model"]) and nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert volume.colormap_label.lut[4 * LIVER.label : 4 * LIVER.label + 4] == [*palette({1: LIVER.colour})[1].tolist(), 255]
    shown.panel.value = TRUTH
    assert shown.canvas.volumes[0].name == "truth.nii"
