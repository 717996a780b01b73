"""lib.metrics on arrays small enough to count by hand; nothing warns, neither numpy nor MONAI."""

import math

import numpy as np
import pytest

from lib.metrics import dice, hausdorff95_mm, off_component_share, score_case, score_organ, surface_dice
from lib.organs import BY_KEY, KEYS

pytestmark = pytest.mark.filterwarnings("error")
MM = np.eye(3)


def mm(*sizes: float) -> np.ndarray:
    """The axes of upright voxels."""
    return np.diag(sizes)


def empty(*shape: int) -> np.ndarray:
    return np.zeros(shape, bool)


def test_dice_by_hand() -> None:
    assert dice(3, 4, 6) == pytest.approx(0.6)
    assert dice(5, 5, 5) == 1 and dice(0, 5, 0) == 0
    assert math.isnan(dice(0, 0, 0)), "absent and not predicted: no score"
    assert dice(0, 0, 7) == 0, "absent but predicted"


def test_an_organ_by_hand() -> None:
    truth, mask = empty(4, 3, 5), empty(4, 3, 5)
    truth[0, :, 1] = truth[0, :, 2] = True  # slices 1 and 2, 6 voxels
    mask[0, :2, 2] = mask[3, 2, 4] = mask[3, 2, 0] = True  # 2 hits in slice 2, false slices 0 and 4, 4 voxels
    row = score_organ(mask, truth, mm(0.5, 2.0, 3.0), "spleen")
    surfaces = ("nsd", "hd95_mm", "flare_dice", "flare_nsd")  # tested below
    assert {name: value for name, value in row.items() if name not in surfaces} == {
        "dice": pytest.approx(2 * 2 / (6 + 4)), "overlap_voxels": 2, "truth_voxels": 6, "predicted_voxels": 4,
        "false_slices": 2, "found_slices": 1, "slices_absent": 3, "slices": 5,
        "off_component": pytest.approx(0.5), "voxel_ml": pytest.approx(0.003),
    }  # fmt: skip


def test_slices_are_counted_along_z() -> None:
    """Asymmetrical shape: an organ in one slice of two, seen in all columns and rows; and a scan of one."""
    truth, mask = empty(5, 4, 2), empty(5, 4, 2)
    truth[:, :, 1] = mask[:, :, 0] = True
    row = score_organ(mask, truth, MM, "liver")
    assert (row["false_slices"], row["slices_absent"], row["slices"], row["dice"]) == (1, 1, 2, 0)
    truth, mask = empty(3, 2, 1), empty(3, 2, 1)
    truth[:2, 0, 0] = mask[0, 0, 0] = True
    row = score_organ(mask, truth, MM, "liver")
    assert (row["slices"], row["false_slices"], row["slices_absent"]) == (1, 0, 0)
    assert row["dice"] == pytest.approx(2 / 3)


def test_an_absent_organ_has_no_score_unless_it_is_predicted() -> None:
    nothing, something = empty(3, 3, 4), empty(3, 3, 4)
    something[1, 1, 2] = True
    row = score_organ(nothing, nothing, MM, "liver")
    assert all(math.isnan(row[name]) for name in ("dice", "off_component", "nsd", "hd95_mm"))
    assert row["false_slices"] == 0 and row["slices_absent"] == 4
    row = score_organ(something, nothing, MM, "liver")
    assert row["dice"] == row["nsd"] == row["off_component"] == 0 and row["false_slices"] == 1
    assert math.isnan(row["hd95_mm"])
    row = score_organ(nothing, something, MM, "liver")
    assert row["dice"] == row["nsd"] == 0 and row["slices_absent"] == 3
    assert math.isnan(row["off_component"]) and math.isnan(row["hd95_mm"])


def test_components_touch_at_corners_and_the_largest_counts() -> None:
    mask = empty(6, 6, 6)
    assert math.isnan(off_component_share(mask))
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True  # one component, by its corners
    assert off_component_share(mask) == 0
    mask[5, 5, 5] = True
    assert off_component_share(mask) == pytest.approx(1 / 4)
    mask[5, 5, 0] = mask[5, 4, 0] = True
    assert off_component_share(mask) == pytest.approx(3 / 6)


def test_rows_of_a_case_are_of_the_organs_that_its_data_set_labels() -> None:
    truth = (np.arange(4 * 5 * 3).reshape(4, 5, 3) % 14).astype(np.uint8)
    masks = [(key, truth == BY_KEY[key].label) for key in KEYS]
    rows = list(score_case(masks, truth, "FLARE22", MM))
    assert [row["organ"] for row in rows] == list(KEYS) and {row["dice"] for row in rows} == {1.0}
    assert [row["truth_voxels"] for row in rows] == [int(mask.sum()) for _, mask in masks]
    rows = list(score_case(masks, truth, "BTCV", MM))
    assert len(rows) == 12 and "duodenum" not in {row["organ"] for row in rows}


def test_each_mask_meets_the_truth_of_its_own_organ() -> None:
    truth = np.zeros((3, 3, 2), np.uint8)
    truth[0, 0, 0] = BY_KEY["left kidney"].label
    rows = score_case([("right kidney", truth > 0), ("left kidney", truth > 0)], truth, "AMOS22", MM)
    assert [(row["organ"], row["dice"]) for row in rows] == [("right kidney", 0), ("left kidney", 1)]


def test_each_organ_meets_its_own_tolerance() -> None:
    """A cube of 4 mm that is 4 mm off: within the liver's 5 mm, not within the spleen's 3."""
    cube, rows = np.zeros((4, 4, 9), np.uint8), {}
    cube[1:3, 1:3, 2:4] = 1
    for key in ("liver", "spleen"):
        truth = cube * BY_KEY[key].label
        (rows[key],) = score_case([(key, np.roll(cube, 2, 2) > 0)], truth, "FLARE22", mm(2.0, 2.0, 2.0))
    assert rows["liver"]["nsd"] == 1 and 0 < rows["spleen"]["nsd"] < 1
    assert rows["liver"]["hd95_mm"] == rows["spleen"]["hd95_mm"] == 4


def boxes(shift: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A box of 3 x 3 x 3 voxels, and the same box so many voxels further."""
    truth = empty(10, 10, 10)
    truth[2:5, 2:5, 2:5] = True
    return np.roll(truth, shift, (0, 1, 2)), truth


def test_identical_masks_have_the_same_surface() -> None:
    mask, truth = boxes((0, 0, 0))
    assert surface_dice(mask, truth, mm(0.7, 0.9, 5.0), 0.0) == 1
    assert hausdorff95_mm(mask, truth, mm(0.7, 0.9, 5.0)) == 0
    full = np.ones((2, 3, 1), bool)
    assert surface_dice(full, full, MM, 0.0) == 1, "a surface is closed at the scan's border"


def test_surface_dice_of_a_shift_by_hand() -> None:
    """The surface runs between voxels: a face of 3 x 3 voxels has 2 x 2 squares; its edges are bevelled.

    Beyond half a mm lie, of either box, the whole end that the other one leaves free, and the other end's
    face, 1 mm inside it.
    """
    edge, corner = 2 * math.sqrt(1 / 2), math.sqrt(3) / 8
    surface, off = 6 * 4 + 12 * edge + 8 * corner, 2 * 4 + 4 * edge + 4 * corner
    for shift in ((1, 0, 0), (0, -1, 0), (0, 0, 1)):
        assert surface_dice(*boxes(shift), MM, 0.5) == pytest.approx(1 - off / surface)
        assert surface_dice(*boxes(shift), MM, 1.0) == 1, "as far off as is tolerated"


def test_surfaces_are_measured_in_mm_of_each_axis() -> None:
    """One slice of 5 mm: at 4 mm only the free end is off, as the other end's face is 1 mm from the sides."""
    spacing = mm(1.0, 1.0, 5.0)
    flat, upright = 2 * math.sqrt(26) / 2, 2 * 5 * math.sqrt(2) / 2  # edges of two voxels
    corner = math.sqrt(5**2 + 5**2 + 1) / 8
    surface, off = 2 * 4 * 1 + 4 * 4 * 5 + 8 * flat + 4 * upright + 8 * corner, 4 * 1 + 4 * flat + 4 * corner
    assert surface_dice(*boxes((0, 0, 1)), spacing, 4.0) == pytest.approx(1 - off / surface)
    assert surface_dice(*boxes((0, 0, 1)), spacing, 5.0) == 1
    assert surface_dice(*boxes((4, 0, 0)), spacing, 4.0) == 1, "four voxels, but 4 mm"
    assert surface_dice(*boxes((0, 0, 1)), mm(1.0, 1.0, 5.000002), 5.0) == 1, "an affine's rounding"
    assert surface_dice(*boxes((0, 0, 1)), mm(1.0, 1.0, 5.01), 5.0) < 1
    assert surface_dice(*boxes((0, 0, 3)), mm(5.0, 5.0, 5 / 3), 5.0) == 1, "three slices of 5/3 mm are 5 mm"


def test_hausdorff_distance_by_hand() -> None:
    """Of a box's 26 border voxels 9 are off by one layer, which is more than 5 %."""
    assert hausdorff95_mm(*boxes((0, 0, 1)), mm(1.0, 1.0, 5.0)) == 5
    assert hausdorff95_mm(*boxes((1, 0, 0)), mm(1.0, 1.0, 5.0)) == 1
    mask, truth = empty(5, 6, 1), empty(5, 6, 1)
    mask[0, 0, 0] = truth[3, 2, 0] = True
    assert hausdorff95_mm(mask, truth, mm(1.0, 2.0, 9.0)) == 5, "3 mm and 4 mm"
    mask, truth = empty(20, 1, 1), empty(20, 1, 1)  # 19 distances of 0, one of 2 mm
    mask[:], truth[:19] = True, True
    for pair in ((mask, truth), (truth, mask)):
        assert hausdorff95_mm(*pair, mm(2.0, 1.0, 1.0)) == pytest.approx(0.1), "the worse direction"


def ball(axes: np.ndarray, z_mm: float) -> np.ndarray:
    """A ball of 12 mm in the voxels of these axes, so far towards the head from the grid's middle."""
    places = (np.indices((61, 91, 61)).reshape(3, -1).T - (30, 45, 30)) @ axes.T - (0, 0, z_mm)
    return (np.linalg.norm(places, axis=1) < 12).reshape(61, 91, 61)


@pytest.mark.parametrize(("degrees", "turned"), [(35, False), (-35, False), (25, True)])
def test_a_tilted_gantry_or_a_turn_changes_no_distance(degrees: float, turned: bool) -> None:
    """Two balls, 4 mm apart, in such voxels and in upright ones of the same size."""
    angle, upright, axes = math.radians(degrees), mm(0.5, 0.5, 0.5), mm(0.5, 0.5, 0.5)
    if turned:
        cos, sin = math.cos(angle), math.sin(angle)
        axes = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ axes
    else:
        axes[1, 2] = 0.5 * math.tan(angle)  # each slice lies so much further to the front or the back
    pair, like = ((ball(some, -2), ball(some, 2), some) for some in (axes, upright))
    for tolerance in (1.0, 2.0, 3.0):
        assert surface_dice(*pair, tolerance) == pytest.approx(surface_dice(*like, tolerance), abs=0.025)
    assert hausdorff95_mm(*pair) == pytest.approx(0.95 * 4, abs=0.25)
    assert score_organ(*pair, "liver")["voxel_ml"] == pytest.approx(0.125e-3)
    one, other = empty(9, 9, 9), empty(9, 9, 9)
    one[4, 4, 2] = other[4, 4, 4] = True
    assert hausdorff95_mm(one, other, axes) == pytest.approx(1 if turned else 1 / math.cos(angle))


def test_the_rest_of_the_scan_changes_no_figure() -> None:
    """The same organ in a corner of its scan and amid a larger one."""
    truth = np.random.default_rng(0).random((5, 6, 7)) > 0.5
    mask = truth ^ (np.random.default_rng(1).random(truth.shape) > 0.9)
    around = ((3, 0), (2, 9), (4, 1))
    pairs = ((mask, truth), (np.pad(mask, around), np.pad(truth, around)))
    small, large = (score_organ(m, t, mm(1, 2, 3), "aorta") for m, t in pairs)
    assert small.pop("slices") == 7 and large.pop("slices") == 12
    assert large.pop("slices_absent") == small.pop("slices_absent") + 5
    assert large == pytest.approx(small, rel=1e-9)


def flare(mask: np.ndarray, truth: np.ndarray, key: str) -> tuple[float, float]:
    row = score_organ(mask, truth, MM, key)
    return row["flare_dice"], row["flare_nsd"]


def column(first: int, last: int) -> np.ndarray:
    """An organ of 2 x 2 voxels in the slices from first to last of 10."""
    mask = empty(8, 8, 10)
    mask[3:5, 3:5, first : last + 1] = True
    return mask


@pytest.mark.parametrize("key", ["liver", "aorta"])
def test_flare_gives_1_where_both_masks_are_empty_and_0_where_one_is(key: str) -> None:
    assert flare(empty(8, 8, 10), empty(8, 8, 10), key) == (1, 1)
    assert flare(column(2, 5), empty(8, 8, 10), key) == (0, 0)
    assert flare(empty(8, 8, 10), column(2, 5), key) == (0, 0)


@pytest.mark.parametrize("key", ["aorta", "inferior vena cava", "esophagus"])
def test_flare_scores_three_organs_between_the_truths_first_slice_and_its_last(key: str) -> None:
    truth = column(2, 5)
    assert flare(column(0, 9), truth, key) == (1, 1), "what lies above and below counts in no way"
    assert flare(column(2, 4), truth, key) == (1, 1), "nor does the truth's last slice"
    assert flare(column(5, 5), truth, key) == (0, 0), "nothing is predicted in slices 2 to 4"
    assert flare(column(3, 9), truth, key)[0] == pytest.approx(2 * 2 / (3 + 2))
    assert score_organ(column(0, 9), truth, MM, key)["dice"] == pytest.approx(2 * 4 / (4 + 10))
    one_slice = column(4, 4), key
    assert flare(column(0, 9), *one_slice) == (1, 1), "no slice is looked at"
    assert flare(empty(8, 8, 10), *one_slice) == (0, 0), "emptiness is asked of the whole masks, and first"


def test_flare_scores_the_other_organs_as_a_whole() -> None:
    row = score_organ(column(0, 9), column(2, 5), MM, "left adrenal gland")
    assert row["flare_dice"] == row["dice"] == pytest.approx(2 * 4 / (4 + 10))
    assert row["flare_nsd"] == row["nsd"] and 0 < row["nsd"] < 1
    assert flare(empty(8, 8, 10), column(4, 4), "liver") == (0, 0)


def test_flare_looks_at_no_surface_where_dice_is_below_a_fifth() -> None:
    """Columns of 10 voxels side by side, all within the liver's 5 mm, that share 2 voxels, or 1."""
    truth, fifth, less = empty(4, 3, 12), empty(4, 3, 12), empty(4, 3, 12)
    truth[1, 1, :10] = True
    for mask, shared in ((fifth, 2), (less, 1)):
        mask[1, 1, :shared] = mask[2, 1, shared:10] = True
    assert flare(fifth, truth, "liver") == (pytest.approx(0.2), 1)
    assert flare(less, truth, "liver") == (pytest.approx(0.1), 0)
    assert score_organ(less, truth, MM, "liver")["nsd"] == 1
