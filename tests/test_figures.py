"""lib.figures: slices the right way round, cuts by hand, arrays that are kept, the same bytes every time."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.display import Markdown
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from lib import figures
from lib.files import ROOT, InputError
from lib.organs import BY_KEY, ORGANS
from lib.tables import METHODS

pytestmark = pytest.mark.filterwarnings("error")
X, Y, Z = 24, 20, 8
LIVER, PANCREAS = BY_KEY["liver"].label, BY_KEY["pancreas"].label


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("results", "figures"):
        monkeypatch.setenv(f"{name.upper()}_ROOT", str(tmp_path / name))
    return tmp_path


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a notebook would show; and no figure or setting is left to the next test."""
    items: list[Any] = []
    monkeypatch.setattr(figures, "display", items.append)
    with plt.rc_context():
        yield items
    plt.close("all")


def truth() -> np.ndarray:
    """Canonical (X, Y, Z) labels: the liver at the patient's right (low x) and front (low y)."""
    labels = np.zeros((X, Y, Z), np.uint8)
    labels[2:10, 5:8, 1:7] = LIVER
    labels[12:16, 9:12, 2:5] = PANCREAS
    return labels


def grey() -> np.ndarray:
    """Each voxel its own x, the liver 100 brighter."""
    return (np.arange(X)[:, None, None] + 100 * (truth() == LIVER)).astype(np.uint8)


def colours_of(axis: Any) -> set[str]:
    """Colours of the outlines that are drawn."""
    return {to_hex(colour) for drawn in axis.collections for colour in drawn.get_edgecolor()}


# Slices


def test_an_overlay_keeps_rows_first_and_takes_the_organs_colours() -> None:
    axis, picture = plt.figure().subplots(), grey()[:, :, 3].T
    figures.slice_overlay(axis, picture, truth()[:, :, 3].T, aspect=2)
    (image,) = axis.images
    assert np.array_equal(image.get_array(), picture) and image.get_clim() == (0, 255)
    assert axis.get_ylim() == (Y - 0.5, -0.5) and axis.get_xlim() == (-0.5, X - 0.5), "front up, right left"
    assert axis.get_aspect() == 2 and colours_of(axis) >= {BY_KEY["liver"].colour, BY_KEY["pancreas"].colour}
    outline = axis.collections[1].get_paths()[0].vertices
    assert outline.min(0).tolist() == [1.5, 4.5] and outline.max(0).tolist() == [9.5, 7.5], "columns, rows"


def test_an_overlay_draws_what_it_is_asked_for_alone() -> None:
    axis, flat = plt.figure().subplots(1, 2)
    figures.slice_overlay(axis, np.zeros((Y, X)), truth()[:, :, 3].T, {PANCREAS: "#123456", 99: "#ff0000"})
    assert colours_of(axis) == {"#123456"}
    figures.slice_overlay(flat, np.zeros((1, X)), np.full((1, X), LIVER))
    assert not flat.collections, "a contour needs two rows"


def test_a_cut_is_a_square_around_all_masks_the_right_way_round() -> None:
    """Both masks are 11 columns and 3 rows; the square of 1.3 times 11 starts in the upper left corner."""
    liver = truth() == LIVER
    pictures, marks = figures.cut(grey(), np.stack([liver, np.roll(liver, 3, 0)]), [1, 4])
    assert pictures.shape == (2, 14, 14) and marks.shape == (2, 2, 14, 14) and marks.dtype == bool
    rows, columns = np.nonzero(marks[0, 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 7, 2, 9), "rows from the front"
    assert (pictures[0] >= 100).sum() == 3 * 8 and np.array_equal(pictures[0] >= 100, marks[0, 0])
    assert pictures[0, 0].tolist() == list(range(14)), "columns from the patient's right"
    assert np.nonzero(marks[1, 1])[1].min() == 5


def test_a_cut_around_a_small_mask_is_half_a_slice_and_stays_inside() -> None:
    mask = np.zeros((1, X, Y, Z), bool)
    mask[0, 23, 19, 2] = True  # the corner at the patient's left and back
    pictures, marks = figures.cut(grey(), mask, [2])
    assert pictures.shape == (1, 12, 12) and marks[0, 0].nonzero() == (11, 11) and marks.sum() == 1
    assert pictures[0, 0].tolist() == list(range(12, 24))


def test_a_cut_without_a_mask_is_the_whole_slice_and_of_a_large_one_each_kth_pixel_is_kept() -> None:
    pictures, marks = figures.cut(np.zeros((352, 300, 2), np.uint8), np.zeros((1, 352, 300, 2), bool), [0])
    assert pictures.shape == (1, 75, 88) and marks.shape == (1, 1, 75, 88), "each 4th pixel"
    assert max(pictures.shape) <= figures.LARGEST


@pytest.mark.parametrize(
    ("places", "count", "expected"),
    [(range(10), 3, [1, 5, 8]), (range(7), 1, [3]), ([3, 5, 9], 3, [3, 5, 9]), ([3], 4, [3]), ([], 4, [])],
)
def test_places_are_spread_evenly_away_from_the_ends(places: Any, count: int, expected: list) -> None:
    assert figures.spread(places, count).tolist() == expected


# Arrays that are kept


def test_what_is_kept_comes_back_the_same_and_has_the_same_bytes(roots: Path) -> None:
    arrays = {"picture": grey(), "empty": np.zeros((0, 3))}
    about = {"case": "a_0001", "z": [1, 2], "dice": 0.5, "organ": "µ"}
    path, contents = roots / "results/smoke/figure_data/gallery.npz", set()
    for _ in range(2):
        figures.keep("gallery", "smoke", about, **arrays)
        contents.add(path.read_bytes())
    assert len(contents) == 1 and [*path.parent.iterdir()] == [path]
    said, found = figures.kept("gallery", "smoke")
    assert said == about and list(found) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(found[name], array) and found[name].dtype == array.dtype


def test_what_is_not_kept_is_one_sentence_that_says_what_to_run(roots: Path) -> None:
    with pytest.raises(InputError, match=r"gallery\.npz does not exist: run `make paper PROFILE=smoke`"):
        figures.kept("gallery", "smoke")
    assert not (roots / "results").exists()


def test_the_committed_extracts_are_small_and_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(ROOT / "results"))
    files = sorted((ROOT / "results/demo/figure_data").glob("*.npz"))
    assert len(files) > 2
    for path in files:
        about, arrays = figures.kept(path.stem, "demo")
        assert about and arrays and path.stat().st_size < 300_000, path.name


# Figures


def drawn() -> Figure:
    figures.theme()
    figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
    left.plot([0, 1], [0, 1], label="baseline")
    left.set(title="Dice", xlabel="step")
    figures.slice_overlay(right, grey()[:, :, 3].T, truth()[:, :, 3].T)
    return figure


ODD = {"font.size": 19, "axes.grid": True, "savefig.dpi": 33, "savefig.bbox": "tight", "lines.marker": "o"}
ODD |= {"figure.autolayout": True, "image.origin": "lower", "savefig.transparent": True}
ODD |= {"axes.titlelocation": "left"}


def test_a_figure_has_the_same_bytes_whatever_the_user_s_matplotlibrc_says(roots: Path) -> None:
    contents = []
    for user in ({}, ODD):
        with plt.rc_context(user):
            figures.save(drawn(), "fig", "It.", "smoke")
        contents.append({path.name: path.read_bytes() for path in (roots / "figures/smoke").iterdir()})
    assert contents[0] == contents[1] and sorted(contents[0]) == ["fig.pdf", "fig.png"]
    assert b"CreationDate" not in contents[0]["fig.pdf"] and b"Matplotlib" not in contents[0]["fig.png"]
    assert all(b"phantoms, not patients" in content for content in contents[0].values()), "beside its picture"


def test_a_figure_is_shown_once_with_its_caption_below(roots: Path, shown: list[Any]) -> None:
    figure = drawn()
    figures.save(figure, "fig", "The Dice.", "smoke")
    assert shown[0] is figure and isinstance(shown[1], Markdown) and len(shown) == 2
    assert shown[1].data == "The Dice. (smoke profile: phantoms, not patients.)"
    assert not plt.get_fignums(), "it is closed"
    assert not figure.texts, "the caption is not burnt into the picture"


def test_a_place_that_cannot_be_written_is_one_sentence(roots: Path) -> None:
    (roots / "figures").write_text("mine")
    with pytest.raises(InputError, match=r"fig\.png cannot be written"):
        figures.save(drawn(), "fig", "It.", "smoke")
    assert (roots / "figures").read_text() == "mine"


def as_seen(colour: str, deuteranope: bool) -> np.ndarray:
    """CIELAB of a colour, as everyone or as a deuteranope sees it (Machado, Oliveira and Fernandes 2009)."""
    rgb = np.array(to_rgb(colour))
    light = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if deuteranope:
        red, green = [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413]
        seen = np.array([red, green, [-0.011820, 0.042940, 0.968881]])
        light = np.clip(seen @ light, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = (to_xyz @ light) / (0.9505, 1.0, 1.089)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colours", [[organ.colour for organ in ORGANS], [*figures.COLOURS.values()]])
def test_colours_stay_apart_for_everyone(colours: list[str]) -> None:
    for deuteranope, least in ((False, 20), (True, 12)):
        pairs = combinations([as_seen(colour, deuteranope) for colour in colours], 2)
        assert min(np.linalg.norm(one - two) for one, two in pairs) > least


def test_each_method_has_a_colour_of_its_own() -> None:
    assert set(figures.COLOURS) == {"ground truth", *METHODS}
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)


def test_drawing_needs_no_torch() -> None:
    code = "import sys, lib.figures, lib.tables; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr


def test_every_committed_figure_is_a_picture_and_a_page() -> None:
    folder = ROOT / "figures" / "demo"
    names = {path.stem for path in folder.iterdir()}
    assert {f"tgated_fig{n}" for n in range(1, 5)} | {f"medvlm_fig{n}" for n in range(1, 9)} <= names
    for name in names:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF"), name
