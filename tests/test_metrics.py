"""lib.metrics on arrays small enough to count by hand; nothing warns, neither numpy nor MONAI."""

import math

import numpy as np
import pytest

from lib.metrics import dice, hausdorff95_mm, off_component_share, score_case, score_organ, surface_dice
from lib.organs import BY_KEY, KEYS

pytestmark = pytest.mark.filterwarnings("error")
MM = (1.0, 1.0, 1.0)


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
    row = score_organ(mask, truth, (0.5, 2.0, 3.0), "spleen")
    surfaces = ("nsd", "hd95_mm", "flare_dice", "flare_nsd")  # tested below
    assert {name: value for name, value in row.items() if name not in surfaces} == {
        "dice": pytest.approx(2 * 2 / (6 + 4)),
        "overlap_voxels": 2,
        "truth_voxels": 6,
        "predicted_voxels": 4,
        "false_slices": 2,
        "slices_absent": 3,
        "slices": 5,
        "off_component": pytest.approx(0.5),
        "voxel_ml": pytest.approx(0.003),
    }


def test_slices_are_counted_along_z() -> None:
    """Asymmetrical shape: an organ in one slice of two, seen in all columns and rows."""
    truth, mask = empty(5, 4, 2), empty(5, 4, 2)
    truth[:, :, 1] = mask[:, :, 0] = True
    row = score_organ(mask, truth, MM, "liver")
    assert (row["false_slices"], row["slices_absent"], row["slices"], row["dice"]) == (1, 1, 2, 0)


def test_an_absent_organ_has_no_score_unless_it_is_predicted() -> None:
    nothing, something = empty(3, 3, 4), empty(3, 3, 4)
    something[1, 1, 2] = True
    row = score_organ(nothing, nothing, MM, "liver")
    assert (
        math.isnan(row["dice"])
        and math.isnan(row["off_component"])
        and row["false_slices"] == 0
        and row["slices_absent"] == 4
    )
    row = score_organ(something, nothing, MM, "liver")
    assert row["dice"] == 0 and row["false_slices"] == 1 and row["off_component"] == 0
    row = score_organ(nothing, something, MM, "liver")
    assert row["dice"] == 0 and math.isnan(row["off_component"]) and row["slices_absent"] == 3


def test_a_one_slice_volume() -> None:
    truth, mask = empty(3, 2, 1), empty(3, 2, 1)
    truth[0, 0, 0] = truth[1, 0, 0] = mask[0, 0, 0] = True
    row = score_organ(mask, truth, MM, "liver")
    assert row["dice"] == pytest.approx(2 / 3) and (
        row["slices"],
        row["false_slices"],
        row["slices_absent"],
    ) == (1, 0, 0)


def test_components_touch_at_corners_and_the_largest_counts() -> None:
    mask = empty(6, 6, 6)
    assert math.isnan(off_component_share(mask))
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True  # one component, by its corners
    assert off_component_share(mask) == 0
    mask[5, 5, 5] = True
    assert off_component_share(mask) == pytest.approx(1 / 4)
    mask[5, 5, 0] = mask[5, 4, 0] = True
    assert off_component_share(mask) == pytest.approx(3 / 6)


def masks_of(truth: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(key, truth == BY_KEY[key].label) for key in KEYS]


def test_rows_of_a_case_are_of_the_organs_that_its_data_set_labels() -> None:
    truth = (np.arange(4 * 5 * 3).reshape(4, 5, 3) % 14).astype(np.uint8)
    rows = list(score_case(masks_of(truth), truth, "FLARE22", MM))
    assert [row["organ"] for row in rows] == list(KEYS) and {row["dice"] for row in rows} == {1.0}
    assert [row["truth_voxels"] for row in rows] == [int((truth == BY_KEY[key].label).sum()) for key in KEYS]
    rows = list(score_case(masks_of(truth), truth, "BTCV", MM))
    assert len(rows) == 12 and "duodenum" not in {row["organ"] for row in rows}


def test_each_mask_meets_the_truth_of_its_own_organ() -> None:
    truth = np.zeros((3, 3, 2), np.uint8)
    truth[0, 0, 0] = BY_KEY["left kidney"].label
    kidneys = [("right kidney", truth > 0), ("left kidney", truth > 0)]
    right, left = score_case(kidneys, truth, "AMOS22", MM)
    assert (right["organ"], right["dice"], left["organ"], left["dice"]) == (
        "right kidney",
        0.0,
        "left kidney",
        1.0,
    )


def test_each_organ_meets_its_own_tolerance() -> None:
    """A cube of 4 mm that is 4 mm off: within the liver's 5 mm, not within the spleen's 3."""
    cube = np.zeros((4, 4, 9), np.uint8)
    cube[1:3, 1:3, 2:4] = 1
    rows = {}
    for key in ("liver", "spleen"):
        (rows[key],) = score_case(
            [(key, np.roll(cube, 2, 2) > 0)], cube * BY_KEY[key].label, "FLARE22", (2.0, 2.0, 2.0)
        )
    assert rows["liver"]["nsd"] == 1 and 0 < rows["spleen"]["nsd"] < 1
    assert rows["liver"]["hd95_mm"] == rows["spleen"]["hd95_mm"] == 4


def boxes(shift: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A box of 3 x 3 x 3 voxels, and the same box so many voxels further."""
    truth = empty(10, 10, 10)
    truth[2:5, 2:5, 2:5] = True
    return np.roll(truth, shift, (0, 1, 2)), truth


def test_identical_masks_have_the_same_surface() -> None:
    mask, truth = boxes((0, 0, 0))
    assert (
        surface_dice(mask, truth, (0.7, 0.9, 5.0), 0.0) == 1
        and hausdorff95_mm(mask, truth, (0.7, 0.9, 5.0)) == 0
    )
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
    spacing = (1.0, 1.0, 5.0)
    flat, upright = 2 * math.sqrt(26) / 2, 2 * 5 * math.sqrt(2) / 2  # edges of two voxels
    corner = math.sqrt(5**2 + 5**2 + 1) / 8
    surface, off = 2 * 4 * 1 + 4 * 4 * 5 + 8 * flat + 4 * upright + 8 * corner, 4 * 1 + 4 * flat + 4 * corner
    assert surface_dice(*boxes((0, 0, 1)), spacing, 4.0) == pytest.approx(1 - off / surface)
    assert surface_dice(*boxes((0, 0, 1)), spacing, 5.0) == 1
    assert surface_dice(*boxes((4, 0, 0)), spacing, 4.0) == 1, "four voxels, but 4 mm"


def test_rounding_in_an_affine_does_not_decide_about_a_tolerance() -> None:
    assert surface_dice(*boxes((0, 0, 1)), (1.0, 1.0, 5.000002), 5.0) == 1
    assert surface_dice(*boxes((0, 0, 1)), (1.0, 1.0, 5.01), 5.0) < 1


def test_hausdorff_distance_by_hand() -> None:
    """Of a box's 26 border voxels 9 are off by one layer, which is more than 5 %."""
    assert hausdorff95_mm(*boxes((0, 0, 1)), (1.0, 1.0, 5.0)) == 5
    assert hausdorff95_mm(*boxes((1, 0, 0)), (1.0, 1.0, 5.0)) == 1
    mask, truth = empty(5, 6, 1), empty(5, 6, 1)
    mask[0, 0, 0] = truth[3, 2, 0] = True
    assert hausdorff95_mm(mask, truth, (1.0, 2.0, 9.0)) == 5, "3 mm and 4 mm"


def test_hausdorff_distance_is_the_95th_percentile_of_the_worse_direction() -> None:
    """A line of 20 voxels against its first 19: 19 distances of 0, one of 2 mm."""
    mask, truth = empty(20, 1, 1), empty(20, 1, 1)
    mask[:], truth[:19] = True, True
    for pair in ((mask, truth), (truth, mask)):
        assert hausdorff95_mm(*pair, (2.0, 1.0, 1.0)) == pytest.approx(0.1, abs=1e-5)


def test_surfaces_of_empty_masks() -> None:
    nothing, something = empty(4, 4, 4), empty(4, 4, 4)
    something[1:3, 1:3, 1:3] = True
    for pair, nsd in (((nothing, nothing), math.nan), ((something, nothing), 0), ((nothing, something), 0)):
        row = score_organ(*pair, MM, "liver")
        assert row["nsd"] == pytest.approx(nsd, nan_ok=True) and math.isnan(row["hd95_mm"])


def test_the_rest_of_the_scan_changes_no_figure() -> None:
    """The same organ in a corner of its scan and amid a larger one."""
    truth = np.random.default_rng(0).random((5, 6, 7)) > 0.5
    mask = truth ^ (np.random.default_rng(1).random(truth.shape) > 0.9)
    around = ((3, 0), (2, 9), (4, 1))
    small, large = (
        score_organ(m, t, (1, 2, 3), "aorta")
        for m, t in ((mask, truth), (np.pad(mask, around), np.pad(truth, around)))
    )
    assert small.pop("slices") == 7 and large.pop("slices") == 12
    assert large.pop("slices_absent") == small.pop("slices_absent") + 5
    assert small == large


def flare(
    mask: np.ndarray, truth: np.ndarray, key: str, spacing_mm: tuple[float, float, float] = MM
) -> tuple[float, float]:
    row = score_organ(mask, truth, spacing_mm, key)
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


def test_flare_scores_the_other_organs_as_a_whole() -> None:
    row = score_organ(column(0, 9), column(2, 5), MM, "left adrenal gland")
    assert row["flare_dice"] == row["dice"] == pytest.approx(2 * 4 / (4 + 10))
    assert row["flare_nsd"] == row["nsd"] and 0 < row["nsd"] < 1


def test_flare_sees_no_slice_of_an_organ_in_one_slice() -> None:
    assert (
        flare(column(0, 9), column(4, 4), "aorta") == flare(empty(8, 8, 10), column(4, 4), "aorta") == (1, 1)
    )
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
