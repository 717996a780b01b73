"""lib.statistics on tables small enough to work out by hand; nothing warns."""

import math

import numpy as np
import pandas as pd
import pytest

from lib.metrics import mean_dice
from lib.organs import KEYS
from lib.statistics import (
    Estimate,
    average_drop,
    conventions,
    difference,
    holm,
    interval,
    mean,
    paired_tests,
    resampled,
    select,
)

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")


def frame(**organs: list[float]) -> pd.DataFrame:
    return pd.DataFrame(organs, dtype=float)


def near(estimate: Estimate, *expected: float) -> bool:
    """Value, low and high (and n) as expected; NaN where NaN is."""
    return estimate[: len(expected)] == pytest.approx(expected, nan_ok=True)


# An estimate's text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5712, 0.519, 0.6104, 10), "0.571 [0.519, 0.610]"),
        (Estimate(0.15, -0.3, 0.35, 2, signed=True), "+0.150 [-0.300, 0.350]"),
        (Estimate(-0.15, -0.3, 0.35, 2, signed=True), "-0.150 [-0.300, 0.350]"),
        (Estimate(0.5, n=1), "0.500"),
        (Estimate(0.5, n=1, signed=True), "+0.500"),
        (Estimate(NAN), "–"),
    ],
)
def test_an_estimate_as_text(estimate: Estimate, text: str) -> None:
    assert str(estimate) == text


# Rows into tables


def score_rows() -> pd.DataFrame:
    columns = ["run", "seed", "dataset", "variant", "condition", "case", "organ", "dice", "nsd"]
    rows = [
        ("adapter", 0, "BTCV", "", "", "a", "spleen", 0.5, 0.7),
        ("adapter", 0, "BTCV", "", "", "b", "liver", 0.6, 0.8),
        ("adapter", 1, "BTCV", "", "", "a", "spleen", 0.7, 0.9),
        ("adapter", 0, "BTCV", "", "blank", "a", "spleen", 0.1, 0.2),
        ("adapter", 0, "BTCV", "every case", "", "a", "spleen", 0.4, 0.2),
        ("adapter", 0, "FLARE22", "", "", "a", "spleen", 0.3, 0.4),
        ("adapter: no gate", 0, "BTCV", "", "", "a", "spleen", 0.2, 0.1),
    ]
    return pd.DataFrame(rows, columns=columns)


def test_a_table_holds_one_run_data_set_variant_and_condition() -> None:
    scores = score_rows()
    table = select(scores, "adapter", "BTCV", seeds=[0])
    assert list(table.index) == ["a", "b"] and list(table) == [(0, "liver"), (0, "spleen")], (
        "organs in their order"
    )
    assert table.loc["a", (0, "spleen")] == 0.5 and table.loc["b", (0, "liver")] == 0.6
    assert table.isna().sum().sum() == 2, "each case lacks an organ"
    assert select(scores, "adapter", "BTCV", condition="blank").to_numpy().tolist() == [[0.1]]
    assert select(scores, "adapter", "BTCV", "every case").to_numpy().tolist() == [[0.4]]
    assert select(scores, "adapter", "BTCV", column="nsd", organs=["liver"]).to_numpy().tolist() == [[0.8]]
    assert select(scores, "adapter: no gate", "BTCV").to_numpy().tolist() == [[0.2]], (
        "a run by its whole name"
    )


def test_seeds_stand_side_by_side() -> None:
    scores = score_rows()
    table = select(scores, "adapter", "BTCV")
    assert list(table) == [(0, "liver"), (0, "spleen"), (1, "spleen")]
    assert list(select(scores, "adapter", "BTCV", seeds={1, 5})) == [(1, "spleen")]
    assert table.loc["a"].tolist() == pytest.approx([NAN, 0.5, 0.7], nan_ok=True)


@pytest.mark.parametrize("which", [{"run": "dynunet"}, {"seeds": []}, {"seeds": [7]}, {"condition": "none"}])
def test_what_is_not_there_is_an_empty_table(which: dict) -> None:
    table = select(score_rows(), **{"run": "adapter", "dataset": "BTCV"} | which)
    assert table.size == 0
    estimate = mean(table)
    assert str(estimate) == "–" and estimate.n == 0


# Means and their intervals


def test_the_headline_is_the_mean_over_organs_of_the_mean_over_cases() -> None:
    rows = [("a", "liver", 0.8), ("b", "liver", 0.6), ("a", "spleen", 0.2), ("b", "spleen", NAN)]
    rows += [("a", "aorta", NAN), ("b", "aorta", NAN)]
    scores = pd.DataFrame(rows, columns=["case", "organ", "dice"])
    assert mean_dice(scores) == pytest.approx((0.7 + 0.2) / 2), (
        "not 0.533, the mean of all rows; nobody has an aorta"
    )
    assert math.isnan(mean_dice(scores[scores["organ"] == "aorta"]))
    table = scores.pivot(index="case", columns="organ", values="dice")
    assert mean(table).value == pytest.approx(mean_dice(scores))


def test_a_mean_with_voxels_is_one_mean_over_all_cells() -> None:
    dice, voxels = frame(liver=[0.2, 0.4], spleen=[0.6, NAN]), frame(liver=[10, 60], spleen=[30, 0])
    assert mean(dice, voxels).value == pytest.approx((0.2 * 10 + 0.6 * 30 + 0.4 * 60) / 100)
    dice, voxels = frame(liver=[0.2, 0.6], spleen=[NAN, NAN]), frame(liver=[30, 10], spleen=[0, 0])
    assert near(mean(dice), 0.4, 0.2, 0.6, 2)
    assert near(mean(dice, voxels), 0.3, 0.2, 0.6, 2)
    assert near(mean(dice[:0], voxels), NAN, NAN, NAN, 0)


def test_a_mean_over_seeds_is_the_mean_of_their_means() -> None:
    """Where a case counts with one seed alone: (0.2 + 0.6) / 2, not 0.3."""
    both = pd.DataFrame({(0, "liver"): [0.2, 0.2], (1, "liver"): [0.6, NAN]})
    assert mean(both).value == pytest.approx(0.4)


def test_interval_of_two_cases_by_hand() -> None:
    """Draws of two cases of two: aa, ab, ba, bb, so a quarter of the means is a's, a quarter b's."""
    assert near(mean(frame(liver=[0.2, 0.6], spleen=[0.4, 0.8])), 0.5, 0.3, 0.7, 2)


def test_an_organ_missing_from_a_draw_is_left_out_of_it() -> None:
    """aa: the liver alone, 0.2; bb: liver 0.6, spleen 1.0."""
    assert near(mean(frame(liver=[0.2, 0.6], spleen=[NAN, 1.0])), (0.4 + 1) / 2, 0.2, 0.8, 2)


def test_an_interval_needs_two_cases() -> None:
    assert near(mean(frame(liver=[0.5], spleen=[0.7])), 0.6, NAN, NAN, 1)
    assert near(mean(frame(liver=[])), NAN, NAN, NAN, 0)


def test_cases_without_any_score_do_no_harm() -> None:
    some = frame(liver=[0.2, NAN], spleen=[0.4, NAN])
    assert near(mean(some), 0.3, 0.3, 0.3, 1), "half of the draws hold a, and bb says nothing"
    assert near(mean(some * NAN), NAN, NAN, NAN, 0)


def test_the_interval_is_the_same_every_time_and_draws_follow_the_seed() -> None:
    table = pd.DataFrame(np.random.default_rng(1).random((9, 13)), columns=list(KEYS))
    assert mean(table) == mean(table) and mean(table).low < table.to_numpy().mean() < mean(table).high
    counts = resampled(9)
    assert counts.shape == (2000, 9) and (counts.sum(1) == 9).all()
    assert np.array_equal(counts, resampled(9)) and not np.array_equal(counts, resampled(9, seed=1))


def test_the_middle_of_draws() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.array([NAN, 1, 3])) == pytest.approx((1.05, 2.95))
    assert all(map(math.isnan, interval(np.array([NAN]))))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    """30 cases, of which each draws a level common to its organs: about 95 of 100 intervals hold 0.6."""
    rng, hits = np.random.default_rng(2), 0
    for _ in range(200):
        estimate = mean(pd.DataFrame(0.6 + 0.1 * rng.normal(size=(30, 1)) + 0.05 * rng.normal(size=(30, 4))))
        hits += estimate.low <= 0.6 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.99


# Differences


def test_a_difference_takes_both_runs_on_the_same_drawn_cases() -> None:
    """Draws aa, ab and bb, 1, 2 and 1 times of 4, give 0.1, 0.2 and 0.3; alone, each mean varies by 0.4."""
    first = pd.DataFrame({"liver": [0.2, 0.6, 0.9]}, index=["a", "b", "c"])
    second = pd.DataFrame({"liver": [0.9, 0.3, 0.0]}, index=["b", "a", "d"])
    found = difference(first, second)
    assert near(found, 0.2, 0.1, 0.3, 2) and str(found) == "+0.200 [0.100, 0.300]"
    voxels = pd.DataFrame({"liver": [3, 1]}, index=["a", "b"])
    assert difference(first, second, voxels).value == pytest.approx((0.3 * 3 + 0.9) / 4 - (0.2 * 3 + 0.6) / 4)


def test_a_difference_of_means_over_organs_by_hand() -> None:
    """In case b the spleen is absent; the second run claims it. Draws give 0.35, 0.15 and -0.3."""
    first, second = frame(liver=[0.5, 0.7], spleen=[0.2, NAN]), frame(liver=[0.8, 0.8], spleen=[0.6, 0.0])
    assert near(difference(first, second), 0.15, -0.3, 0.35, 2)


def test_a_difference_takes_the_columns_that_both_have() -> None:
    first = pd.DataFrame({(0, "liver"): [0.2, 0.2], (1, "liver"): [0.9, 0.9], (2, "liver"): [0.4, 0.4]})
    second = pd.DataFrame({(0, "liver"): [0.3, 0.3], (2, "liver"): [0.7, 0.7], (3, "liver"): [0, 0]})
    assert near(difference(first, second), 0.2, 0.2, 0.2, 2)


def test_a_difference_needs_common_cases() -> None:
    first = pd.DataFrame({"liver": [0.2]}, index=["a"])
    second = pd.DataFrame({"liver": [0.5, 0.7]}, index=["a", "b"])
    assert near(difference(first, second), 0.3, NAN, NAN, 1)
    assert near(difference(first, second.loc[["b"]]), NAN, NAN, NAN, 0)


# Average drops


def test_the_average_drop_by_hand() -> None:
    """Means 0.8, 0.4 and 0.6: half and a quarter of the Dice is lost. Home's draws: 0.7 to 0.9."""
    tables = [frame(liver=pair) for pair in ([0.7, 0.9], [0.4, 0.4], [0.6, 0.6])]
    found = average_drop(tables)
    assert near(found, 0.375, 1 - 0.5 / 0.7, 1 - 0.5 / 0.9, 4) and str(found).startswith("0.375 [")


def test_a_difference_of_drops_takes_the_same_drawn_cases() -> None:
    """Both rise and fall together at home: the drops, 1 - 0.5 / m and 1 - 0.25 / m, differ by 0.25 / m."""
    home, some, less = frame(liver=[0.7, 0.9]), frame(liver=[0.5, 0.5]), frame(liver=[0.25, 0.25])
    found = average_drop([home, some, some], [home, less, less])
    assert near(found, -0.25 / 0.8, -0.25 / 0.7, -0.25 / 0.9, 4) and found.signed


def test_a_difference_of_drops_counts_the_cases_that_both_have() -> None:
    home, away, more = frame(liver=[0.5, 0.5]), frame(liver=[0.4, 0.4]), frame(liver=[0.2, 0.2, 0.9])
    assert near(average_drop([home, away], [home, more]), 0.2 - 0.6, -0.4, -0.4, 2)


def test_a_drop_draws_the_cases_of_each_data_set_by_themselves() -> None:
    """Where one site alone varies, the drop's interval is that site's."""
    flat, wide = frame(liver=[0.8, 0.8]), frame(liver=[0.2, 0.6])
    assert near(average_drop([flat, wide]), 0.5, 0.25, 0.75, 2)
    # were the two sites drawn together, 0.2 would always meet 0.6 and the drop would not vary
    assert average_drop([flat, wide, wide[::-1]])[1:3] == pytest.approx((0.25, 0.75))


def test_a_drop_without_cases_or_from_nothing_is_nan() -> None:
    some, none, zero = frame(liver=[0.5, 0.7]), frame(liver=[]), frame(liver=[0.0, 0.0])
    assert near(average_drop([some, none]), NAN, NAN, NAN, 0)
    assert near(average_drop([zero, some]), NAN, NAN, NAN)
    assert near(average_drop([some, some[:1]]), 1 - 0.5 / 0.6, NAN, NAN, 1), (
        "an interval needs two cases a site"
    )


# Tests of each organ


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1 are 0.03, 0.06, 0.04; none may fall below the one before."""
    assert holm(np.array([0.04, 0.01, NAN, 0.03])) == pytest.approx([0.06, 0.03, NAN, 0.06], nan_ok=True)
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1, 1])
    assert len(holm(np.array([]))) == 0


def pair(**deltas: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dice of two runs with these differences."""
    second = 0.5 + pd.DataFrame({(0, organ): values for organ, values in deltas.items()}, dtype=float)
    return pd.DataFrame(0.5, second.index, second.columns), second


def values(table: pd.DataFrame) -> list[float]:
    return [estimate.value for estimate in table["difference"]]


def test_paired_tests_by_hand() -> None:
    """All of 6 cases improve: 2 of 2^6 signs are as extreme. 5 of 6, the least falling: 4 of them."""
    up = [0.1, 0.2, 0.3, 0.15, 0.25]
    first, second = pair(liver=[*up, 0.05], spleen=[*up, -0.05])
    table = paired_tests(first, second)
    assert list(table.index) == ["liver", "spleen"] and list(table) == ["n", "difference", "p", "p Holm"]
    assert list(table["n"]) == [6, 6] and values(table) == pytest.approx([1.05 / 6, 0.95 / 6])
    assert list(table["p"]) == pytest.approx([2 / 64, 4 / 64])
    assert list(table["p Holm"]) == pytest.approx([4 / 64, 4 / 64])
    assert values(paired_tests(second, first)) == pytest.approx([-1.05 / 6, -0.95 / 6])


def test_paired_tests_have_intervals_over_the_cases_that_both_have() -> None:
    first, second = pair(liver=[0.1, 0.3, NAN])
    row = paired_tests(first.drop(index=2), second).loc["liver"]
    assert near(row["difference"], 0.2, 0.1, 0.3, 2) and str(row["difference"]).startswith("+")
    assert row["n"] == 2 and row["p"] == 0.5, "2 of the 4 signs"


def test_paired_tests_without_a_difference_or_a_pair() -> None:
    table = paired_tests(*pair(liver=[0.0, 0.0], spleen=[NAN, NAN], aorta=[0.0, 0.1]))
    assert list(table["n"]) == [2, 0, 2] and str(table.loc["spleen", "difference"]) == "–"
    assert list(table["p"]) == pytest.approx([1, NAN, 1], nan_ok=True) == list(table["p Holm"])
    assert table.loc["liver", "difference"].value == 0
    assert paired_tests(frame(), frame()).empty


def test_seeds_are_no_further_cases() -> None:
    several = pd.DataFrame({(0, "liver"): [0.2, 0.4], (1, "liver"): [0.3, 0.5]})
    with pytest.raises(ValueError, match="take one seed"):
        paired_tests(several, several)


def test_equal_differences_are_a_tie_whatever_their_last_digit() -> None:
    """0.3 - 0.2 and 0.2 - 0.1 differ in floating point; with opposite signs they are no evidence at all."""
    first, second = (pd.DataFrame({(0, "liver"): dice}) for dice in ([0.2, 0.2], [0.3, 0.1]))
    assert paired_tests(first, second)["p"].tolist() == [1]


# Conventions of the mean. organ: (overlap, truth, predicted, FLARE22's Dice and NSD, NSD, HD95)

LIVER_A, LIVER_B = (30, 40, 60, 0.7, 0.5, 0.6, 4.0), (80, 100, 100, 0.9, 0.8, 0.7, 2.0)
SPLEEN_A = (5, 10, 10, 0.4, 0.3, 0.2, 9.0)
CASES = {  # in case b the spleen is absent: one run claims it
    ("adapter", "a"): {"liver": LIVER_A, "spleen": SPLEEN_A},
    ("adapter", "b"): {"liver": LIVER_B, "spleen": (0, 0, 10, 0.0, 0.0, 0.0, NAN)},
    ("baseline", "a"): {"liver": LIVER_A, "spleen": SPLEEN_A},
    ("baseline", "b"): {"liver": LIVER_B, "spleen": (0, 0, 0, 1.0, 1.0, NAN, NAN)},
}


def scores() -> pd.DataFrame:
    names = (
        "overlap_voxels",
        "truth_voxels",
        "predicted_voxels",
        "flare_dice",
        "flare_nsd",
        "nsd",
        "hd95_mm",
    )
    same = {"seed": 0, "dataset": "FLARE22", "variant": "", "condition": ""}
    rows = [
        {"run": run, "case": case, "organ": organ} | same | dict(zip(names, found, strict=True))
        for (run, case), organs in CASES.items()
        for organ, found in organs.items()
    ]
    table = pd.DataFrame(rows)
    voxels = (table["truth_voxels"] + table["predicted_voxels"]).replace(0, np.nan)
    return table.assign(dice=2 * table["overlap_voxels"] / voxels)


def of(run: str, rows: pd.DataFrame | None = None) -> dict[str, Estimate]:
    return conventions(scores() if rows is None else rows, run=run, dataset="FLARE22")


OURS = "absent and predicted counts 0, absent and empty is left out (ours)"
POOLED = "one Dice of all cases' voxels together, then mean over organs"


def test_conventions_by_hand() -> None:
    """Dice: liver 0.6 and 0.8, spleen 0.5 in case a; in b the adapter's spleen is predicted and absent."""
    expected = {  # adapter, baseline
        OURS: ((0.7 + 0.25) / 2, (0.7 + 0.5) / 2),
        "absent is left out, predicted or not": ((0.7 + 0.5) / 2, (0.7 + 0.5) / 2),
        "absent and empty counts 1": ((0.7 + 0.25) / 2, (0.7 + 0.75) / 2),
        "mean over all voxels (weighted by true voxels)": ((24 + 80 + 5) / 150, (24 + 80 + 5) / 150),
        "mean over cases of the mean over organs": ((0.55 + 0.4) / 2, (0.55 + 0.8) / 2),
        POOLED: ((220 / 300 + 10 / 30) / 2, (220 / 300 + 10 / 20) / 2),
        "FLARE22's official Dice": ((0.8 + 0.2) / 2, (0.8 + 0.7) / 2),
        "FLARE22's official NSD": ((0.65 + 0.15) / 2, (0.65 + 0.65) / 2),
        "NSD (ours)": ((0.65 + 0.1) / 2, (0.65 + 0.2) / 2),
        "HD95 in mm (ours; lower is better)": ((3 + 9) / 2, (3 + 9) / 2),
    }
    for place, run in enumerate(("adapter", "baseline")):
        found = of(run)
        assert list(found) == list(expected)
        for name, pair in expected.items():
            assert found[name].value == pytest.approx(pair[place]), name
            assert found[name].n == 2, name


def test_intervals_of_conventions_by_hand() -> None:
    """Draws aa, ab and bb, 1, 2 and 1 times of 4, each counted anew: the pooled Dice is no mean of cases."""
    assert of("adapter")[POOLED][1:3] == pytest.approx([(0.8 + 0) / 2, (0.6 + 0.5) / 2])
    assert of("adapter")[OURS][1:3] == pytest.approx([0.4, 0.55])
    assert of("baseline")[OURS][1:3] == pytest.approx([0.55, 0.8]), "bb has no spleen"


def test_conventions_of_one_case_and_of_none() -> None:
    one = scores().query("case == 'b' and run == 'baseline'")
    found = of("baseline", one)
    assert near(found["NSD (ours)"], 0.7, NAN, NAN, 1)
    assert all(math.isnan(estimate.low) and estimate.n == 1 for estimate in found.values())
    assert all(str(estimate) == "–" and estimate.n == 0 for estimate in of("adapter", one).values())


def test_conventions_leave_other_conditions_out() -> None:
    both = pd.concat([scores(), scores().assign(condition="blank", dice=0.0)])
    assert of("adapter", both) == of("adapter")
