"""lib.statistics on tables small enough to work out by hand; no figure comes with a warning."""

import math

import numpy as np
import pandas as pd
import pytest

from lib.organs import KEYS
from lib.statistics import (
    bootstrap_interval,
    conventions,
    dice_table,
    difference,
    holm,
    mean_dice,
    mean_over_organs,
    paired_tests,
)

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")


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


def test_a_table_holds_one_run_data_set_and_condition() -> None:
    columns = ["run", "dataset", "condition", "case", "organ", "dice", "nsd"]
    scores = pd.DataFrame(
        [
            ("adapter", "BTCV", "", "a", "liver", 0.5, 0.7),
            ("adapter", "BTCV", "", "b", "spleen", 0.6, 0.8),
            ("adapter", "BTCV", "blank", "a", "liver", 0.1, 0.2),
            ("adapter", "FLARE22", "", "a", "liver", 0.3, 0.4),
            ("baseline", "BTCV", "", "a", "liver", 0.2, 0.1),
        ],
        columns=columns,
    )
    table = dice_table(scores, "adapter", "BTCV")
    assert table.shape == (2, 13) and list(table) == list(KEYS) and table.notna().sum().sum() == 2
    assert (table.loc["a", "liver"], table.loc["b", "spleen"]) == (0.5, 0.6)
    assert dice_table(scores, "adapter", "BTCV", "blank").loc["a", "liver"] == 0.1
    assert dice_table(scores, "adapter", "BTCV", column="nsd").loc["a", "liver"] == 0.7
    assert dice_table(scores, "dynunet", "BTCV").shape == (0, 13)


def test_means_over_organs_by_hand() -> None:
    dice = np.array([[0.2, 0.6, NAN], [0.4, NAN, NAN]])  # (cases, organs); nobody has the third organ
    assert mean_over_organs(dice) == pytest.approx((0.3 + 0.6) / 2)
    voxels = np.array([[10, 30, 0], [60, 0, 0]])
    assert mean_over_organs(dice, voxels) == pytest.approx((0.2 * 10 + 0.6 * 30 + 0.4 * 60) / 100)
    assert np.isnan(mean_over_organs(np.full((2, 3), NAN))) and np.isnan(mean_over_organs(np.empty((0, 13))))


def test_means_of_several_draws_at_once() -> None:
    dice = np.array([[0.2, 0.6], [0.4, NAN]])
    assert mean_over_organs(np.stack([dice, dice[[1, 1]]])) == pytest.approx([0.45, 0.4])


def test_a_difference_takes_both_runs_on_the_same_drawn_cases() -> None:
    """Drawn cases aa, ab and bb, 1, 2 and 1 times of 4, give 0.1, 0.2 and 0.3; alone, each mean varies by 0.4 and more."""
    first = pd.DataFrame({"liver": [0.2, 0.6, 0.9]}, index=["a", "b", "c"])
    second = pd.DataFrame({"liver": [0.9, 0.3, 0.0]}, index=["b", "a", "d"])
    assert difference(first, second) == pytest.approx((0.2, 0.1, 0.3))
    voxels = pd.DataFrame({"liver": [3, 1]}, index=["a", "b"])
    assert difference(first, second, voxels)[0] == pytest.approx((0.3 * 3 + 0.9) / 4 - (0.2 * 3 + 0.6) / 4)


def test_a_difference_needs_common_cases() -> None:
    first, second = pd.DataFrame({"liver": [0.2]}, index=["a"]), pd.DataFrame({"liver": [0.5, 0.7]}, index=["a", "b"])
    value, low, high = difference(first, second)
    assert value == pytest.approx(0.3) and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, difference(first, second.loc[["b"]])))


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1 are 0.03, 0.06, 0.04; none may fall below the one before."""
    assert holm(np.array([0.04, 0.01, NAN, 0.03])) == pytest.approx([0.06, 0.03, NAN, 0.06], nan_ok=True)
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1, 1])
    assert len(holm(np.array([]))) == 0


def pair(deltas: dict[str, list[float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dice of two runs with these differences."""
    second = 0.5 + pd.DataFrame(deltas)
    return pd.DataFrame(0.5, second.index, second.columns), second


def test_paired_tests_by_hand() -> None:
    """Of 6 cases all improve: 2 of the 2^6 signs are as extreme. 5 of 6 with the least falling: rank sum 1, 4 of 64 signs."""
    first, second = pair({"liver": [0.1, 0.2, 0.3, 0.15, 0.25, 0.05], "spleen": [0.1, 0.2, 0.3, 0.15, 0.25, -0.05]})
    table = paired_tests(first, second).set_index("organ")
    assert list(table.index) == ["liver", "spleen"] and list(table["n"]) == [6, 6]
    assert list(table["difference"]) == pytest.approx([1.05 / 6, 0.95 / 6])
    assert list(table["p"]) == pytest.approx([2 / 64, 4 / 64])
    assert list(table["p Holm"]) == pytest.approx([4 / 64, 4 / 64])
    assert list(paired_tests(second, first)["difference"]) == pytest.approx([-1.05 / 6, -0.95 / 6])


def test_paired_tests_have_intervals_over_the_cases_that_both_have() -> None:
    first, second = pair({"liver": [0.1, 0.3, NAN]})
    (row,) = paired_tests(first.drop(index=2), second).to_dict("records")
    assert (row["n"], row["difference low"], row["difference high"]) == (2, pytest.approx(0.1), pytest.approx(0.3))
    assert row["p"] == 0.5, "2 of the 4 signs"


def test_paired_tests_without_a_difference_or_a_pair() -> None:
    first, second = pair({"liver": [0.0, 0.0], "spleen": [NAN, NAN], "aorta": [0.0, 0.1]})
    table = paired_tests(first, second).set_index("organ")
    assert list(table["n"]) == [2, 0, 2]
    assert list(table["p"]) == pytest.approx([1, NAN, 1], nan_ok=True) == list(table["p Holm"])
    assert math.isnan(table.loc["spleen", "difference"]) and table.loc["liver", "difference"] == 0


def test_equal_differences_are_a_tie_whatever_their_last_digit() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 differ in floating point; as a tie with opposite signs they are no evidence at all."""
    first, second = pd.DataFrame({"liver": [0.2, 0.2]}), pd.DataFrame({"liver": [0.3, 0.1]})
    assert paired_tests(first, second)["p"][0] == 1


# organ: (overlap, truth, predicted, FLARE22's Dice and NSD, NSD, HD95). In case b the spleen is absent: one run marks it.
LIVER_A, LIVER_B, SPLEEN_A = (30, 40, 60, 0.7, 0.5, 0.6, 4.0), (80, 100, 100, 0.9, 0.8, 0.7, 2.0), (5, 10, 10, 0.4, 0.3, 0.2, 9.0)
CASES = {
    ("adapter", "a"): {"liver": LIVER_A, "spleen": SPLEEN_A},
    ("adapter", "b"): {"liver": LIVER_B, "spleen": (0, 0, 10, 0.0, 0.0, 0.0, NAN)},
    ("baseline", "a"): {"liver": LIVER_A, "spleen": SPLEEN_A},
    ("baseline", "b"): {"liver": LIVER_B, "spleen": (0, 0, 0, 1.0, 1.0, NAN, NAN)},
}


def scores() -> pd.DataFrame:
    names = ["overlap_voxels", "truth_voxels", "predicted_voxels", "flare_dice", "flare_nsd", "nsd", "hd95_mm"]
    rows = [
        {"run": run, "dataset": "FLARE22", "condition": "", "case": case, "organ": organ, **dict(zip(names, figures, strict=True))}
        for (run, case), organs in CASES.items()
        for organ, figures in organs.items()
    ]
    table = pd.DataFrame(rows)
    return table.assign(dice=2 * table["overlap_voxels"] / (table["truth_voxels"] + table["predicted_voxels"]).replace(0, np.nan))


def test_conventions_by_hand() -> None:
    """Dice: liver 0.6 and 0.8, spleen 0.5 in case a; in case b the adapter's spleen is predicted and absent."""
    expected = {  # adapter, baseline
        "absent and predicted counts 0, absent and empty is left out (ours)": ((0.7 + 0.25) / 2, (0.7 + 0.5) / 2),
        "absent is left out, predicted or not": ((0.7 + 0.5) / 2, (0.7 + 0.5) / 2),
        "absent and empty counts 1": ((0.7 + 0.25) / 2, (0.7 + 0.75) / 2),
        "mean over all voxels (weighted by true voxels)": ((24 + 80 + 5) / 150, (24 + 80 + 5) / 150),
        "mean over cases of the mean over organs": ((0.55 + 0.4) / 2, (0.55 + 0.8) / 2),
        "one Dice of all cases' voxels together, then mean over organs": ((220 / 300 + 10 / 30) / 2, (220 / 300 + 10 / 20) / 2),
        "FLARE22's official Dice": ((0.8 + 0.2) / 2, (0.8 + 0.7) / 2),
        "FLARE22's official NSD": ((0.65 + 0.15) / 2, (0.65 + 0.65) / 2),
        "NSD (ours)": ((0.65 + 0.1) / 2, (0.65 + 0.2) / 2),
        "HD95 in mm (ours; lower is better)": ((3 + 9) / 2, (3 + 9) / 2),
    }
    table = conventions(scores(), ["adapter", "baseline"], "FLARE22").set_index("convention")
    assert list(table) == [f"{run}{end}" for run in ("adapter", "baseline") for end in ("", " low", " high", " n")]
    assert list(table.index) == list(expected)
    assert table[["adapter", "baseline"]].to_numpy() == pytest.approx(np.array(list(expected.values())))
    assert (table["adapter n"] == 2).all()


def test_intervals_of_conventions_by_hand() -> None:
    """Draws aa, ab and bb, 1, 2 and 1 times of 4, each counted anew: the pooled Dice is no mean of cases."""
    table = conventions(scores(), ["adapter", "baseline"], "FLARE22").set_index("convention")
    pooled = table.loc["one Dice of all cases' voxels together, then mean over organs"]
    assert list(pooled[["adapter low", "adapter high"]]) == pytest.approx([(0.8 + 0) / 2, (0.6 + 0.5) / 2])
    ours = table.loc["absent and predicted counts 0, absent and empty is left out (ours)"]
    assert list(ours[["adapter low", "adapter high"]]) == pytest.approx([0.4, 0.55])
    assert list(ours[["baseline low", "baseline high"]]) == pytest.approx([0.55, 0.8]), "bb has no spleen"


def test_conventions_of_one_case_and_of_none() -> None:
    one = scores().query("case == 'b' and run == 'baseline'")
    table = conventions(one, ["baseline", "adapter"], "FLARE22").set_index("convention")
    assert table.loc["NSD (ours)", "baseline"] == 0.7 and table["baseline low"].isna().all() and (table["baseline n"] == 1).all()
    assert table[["adapter", "adapter low", "adapter high"]].isna().all(axis=None) and (table["adapter n"] == 0).all()


def test_conventions_leave_other_conditions_out() -> None:
    both = pd.concat([scores(), scores().assign(condition="blank", dice=0.0)])
    pd.testing.assert_frame_equal(conventions(both, ["adapter"], "FLARE22"), conventions(scores(), ["adapter"], "FLARE22"))
