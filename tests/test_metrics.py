"""lib.metrics on arrays small enough to count by hand; no figure comes with a numpy warning."""

import math

import numpy as np
import pandas as pd
import pytest

from lib.metrics import bootstrap_interval, dice, mean_dice, off_component_share, score_case, score_organ
from lib.organs import BY_KEY, KEYS

pytestmark = pytest.mark.filterwarnings("error")


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
    assert score_organ(mask, truth) == {
        "dice": pytest.approx(2 * 2 / (6 + 4)),
        "overlap_voxels": 2,
        "truth_voxels": 6,
        "predicted_voxels": 4,
        "false_slices": 2,
        "slices_absent": 3,
        "slices": 5,
        "off_component": pytest.approx(0.5),
    }


def test_slices_are_counted_along_z() -> None:
    """Asymmetrical shape: an organ in one slice of two, seen in all columns and rows."""
    truth, mask = empty(5, 4, 2), empty(5, 4, 2)
    truth[:, :, 1] = mask[:, :, 0] = True
    row = score_organ(mask, truth)
    assert (row["false_slices"], row["slices_absent"], row["slices"], row["dice"]) == (1, 1, 2, 0)


def test_an_absent_organ_has_no_score_unless_it_is_predicted() -> None:
    nothing, something = empty(3, 3, 4), empty(3, 3, 4)
    something[1, 1, 2] = True
    row = score_organ(nothing, nothing)
    assert math.isnan(row["dice"]) and math.isnan(row["off_component"]) and row["false_slices"] == 0 and row["slices_absent"] == 4
    row = score_organ(something, nothing)
    assert row["dice"] == 0 and row["false_slices"] == 1 and row["off_component"] == 0
    row = score_organ(nothing, something)
    assert row["dice"] == 0 and math.isnan(row["off_component"]) and row["slices_absent"] == 3


def test_a_one_slice_volume() -> None:
    truth, mask = empty(3, 2, 1), empty(3, 2, 1)
    truth[0, 0, 0] = truth[1, 0, 0] = mask[0, 0, 0] = True
    row = score_organ(mask, truth)
    assert row["dice"] == pytest.approx(2 / 3) and (row["slices"], row["false_slices"], row["slices_absent"]) == (1, 0, 0)


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
    rows = list(score_case(masks_of(truth), truth, "FLARE22"))
    assert [row["organ"] for row in rows] == list(KEYS) and {row["dice"] for row in rows} == {1.0}
    assert [row["truth_voxels"] for row in rows] == [int((truth == BY_KEY[key].label).sum()) for key in KEYS]
    rows = list(score_case(masks_of(truth), truth, "BTCV"))
    assert len(rows) == 12 and "duodenum" not in {row["organ"] for row in rows}


def test_each_mask_meets_the_truth_of_its_own_organ() -> None:
    truth = np.zeros((3, 3, 2), np.uint8)
    truth[0, 0, 0] = BY_KEY["left kidney"].label
    kidneys = [("right kidney", truth > 0), ("left kidney", truth > 0)]
    right, left = score_case(kidneys, truth, "AMOS22")
    assert (right["organ"], right["dice"], left["organ"], left["dice"]) == ("right kidney", 0.0, "left kidney", 1.0)


def test_the_headline_is_the_mean_over_organs_of_the_mean_over_cases() -> None:
    nan = float("nan")
    scores = pd.DataFrame(
        [("a", "liver", 0.8), ("b", "liver", 0.6), ("a", "spleen", 0.2), ("b", "spleen", nan), ("a", "aorta", nan), ("b", "aorta", nan)],
        columns=["case", "organ", "dice"],
    )
    assert mean_dice(scores) == pytest.approx((0.7 + 0.2) / 2), "not the mean of all rows, 0.533; the aorta, which nobody has, is left out"
    assert math.isnan(mean_dice(scores[scores["organ"] == "aorta"]))


def test_interval_of_two_cases_by_hand() -> None:
    """Draws of two cases of two: (a, a), (a, b), (b, a), (b, b), so a quarter of the means is a's, a quarter b's."""
    table = pd.DataFrame({"liver": [0.2, 0.6], "spleen": [0.4, 0.8]})
    assert bootstrap_interval(table) == pytest.approx((0.3, 0.7))
    assert bootstrap_interval(table, level=0.4) == pytest.approx((0.5, 0.5)), "quantiles 0.3 and 0.7 lie in the middle half"


def test_an_organ_missing_from_a_draw_is_left_out_of_it() -> None:
    """(a, a): the liver alone, 0.2; (b, b): liver 0.6, spleen 1.0; mixed: liver 0.4, spleen 1.0."""
    table = pd.DataFrame({"liver": [0.2, 0.6], "spleen": [np.nan, 1.0]})
    assert bootstrap_interval(table) == pytest.approx((0.2, 0.8))
    assert bootstrap_interval(table, level=0.4) == pytest.approx((0.7, 0.7))


def test_an_interval_needs_two_cases() -> None:
    assert all(map(math.isnan, bootstrap_interval(pd.DataFrame({"liver": [0.5], "spleen": [0.7]}))))
    assert all(map(math.isnan, bootstrap_interval(pd.DataFrame({"liver": []}, dtype=float))))


def test_cases_without_any_score_do_no_harm() -> None:
    nan = np.nan
    some = bootstrap_interval(pd.DataFrame({"liver": [0.2, nan], "spleen": [0.4, nan]}))
    assert some == pytest.approx((0.3, 0.3)), "half of the draws hold a, and (b, b) says nothing"
    assert all(map(math.isnan, bootstrap_interval(pd.DataFrame({"liver": [nan, nan], "spleen": [nan, nan]}))))


def test_the_interval_is_the_same_every_time_and_follows_the_seed() -> None:
    table = pd.DataFrame(np.random.default_rng(1).random((9, 13)), columns=list(KEYS))
    assert bootstrap_interval(table) == bootstrap_interval(table) != bootstrap_interval(table, seed=1)
    low, high = bootstrap_interval(table)
    wide = bootstrap_interval(table, level=0.99)
    assert wide[0] < low < table.to_numpy().mean() < high < wide[1]


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """30 cases, of which each draws a level common to its organs: about 95 of 100 intervals hold the true mean, 0.6."""
    rng, hits = np.random.default_rng(2), 0
    for _ in range(200):
        table = pd.DataFrame(0.6 + 0.1 * rng.normal(size=(30, 1)) + 0.05 * rng.normal(size=(30, 4)))
        low, high = bootstrap_interval(table, draws=400)
        hits += low <= 0.6 <= high
    assert 0.88 <= hits / 200 <= 0.99
