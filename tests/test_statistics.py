"""lib.statistics on tables small enough to work out by hand; nothing warns."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jupytext
import numpy as np
import pandas as pd
import pytest

from lib.files import ROOT
from lib.metrics import mean_dice
from lib.statistics import COVERAGE, Estimate, average_drop, difference, mean, note, paired_tests, select

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")


def frame(**organs: list[float]) -> pd.DataFrame:
    return pd.DataFrame(organs, dtype=float)


STUDENT = {1: 12.7062, 2: 4.30265}  # 97.5 % of his distribution by degrees of freedom, from a printed table


def near(estimate: Estimate, value: float, error: float, n: int, degrees: int = 1) -> bool:
    """Value, interval (of this standard error) and n as expected; NaN where NaN is."""
    reach = STUDENT[degrees] * error
    expected = value, value - reach, value + reach, n
    return estimate[:4] == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.5712, 0.519, 0.6104, 10), "0.571 [0.519, 0.610]"),
        (Estimate(-0.15, -0.3, 0.35, 2, signed=True), "-0.150 [-0.300, 0.350]"),
        (Estimate(0.5, n=1, signed=True), "+0.500"),
        (Estimate(NAN), "–"),
    ],
)
def test_an_estimate_as_text(estimate: Estimate, text: str) -> None:
    assert str(estimate) == text


def test_a_sentence_on_intervals_names_the_trainings_behind_them() -> None:
    one, three, none = (Estimate(0.5, 0.4, 0.6, 10, trainings=count) for count in (1, 3, 0))
    assert note([one, none, one]) == f"95 % intervals (Student's) over the cases of one training; {COVERAGE}."
    assert "over cases and 3 trainings;" in note([three]) and "and 1 to 3 trainings;" in note([three, one])
    assert note([none, Estimate(0.5, trainings=1)]) == "", "no interval, or none of ours"


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


def test_a_table_holds_one_run_data_set_variant_and_condition_with_seeds_side_by_side() -> None:
    scores = score_rows()
    table = select(scores, "adapter", "BTCV")
    assert list(table) == [(0, "liver"), (0, "spleen"), (1, "spleen")], "organs in their order"
    assert table.loc["a"].tolist() == pytest.approx([NAN, 0.5, 0.7], nan_ok=True)
    assert table.loc["b"].tolist() == pytest.approx([0.6, NAN, NAN], nan_ok=True)
    assert list(select(scores, "adapter", "BTCV", seeds={1, 5})) == [(1, "spleen")]
    assert select(scores, "adapter", "BTCV", condition="blank").to_numpy().tolist() == [[0.1]]
    assert select(scores, "adapter", "BTCV", "every case").to_numpy().tolist() == [[0.4]]
    assert select(scores, "adapter", "BTCV", column="nsd", organs=["liver"]).to_numpy().tolist() == [[0.8]]
    assert select(scores, "adapter: no gate", "BTCV").to_numpy().tolist() == [[0.2]]


@pytest.mark.parametrize("which", [{"run": "dynunet"}, {"seeds": []}, {"seeds": [7]}, {"condition": "none"}])
def test_what_is_not_there_is_an_empty_table(which: dict) -> None:
    table = select(score_rows(), **{"run": "adapter", "dataset": "BTCV"} | which)
    assert table.size == 0 and near(mean(table), NAN, NAN, 0)


# Means of organs in cases a and b. The standard error is half the distance of b alone from a alone


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ({"liver": [0.2, 0.6], "spleen": [0.4, 0.8]}, (0.5, 0.2, 2)),
        ({"liver": [0.2, 0.6], "spleen": [NAN, 1.0]}, (0.7, 0.3, 2)),  # b alone 0.8, a alone 0.2
        ({"liver": [0.8, 0.6], "spleen": [0.2, NAN], "aorta": [NAN, NAN]}, (0.45, 0.05, 2)),  # 0.6 and 0.5
        ({"liver": [0.2, NAN], "spleen": [0.4, NAN]}, (0.3, NAN, 1)),  # b says nothing
        ({"liver": [NAN, NAN]}, (NAN, NAN, 0)),
        ({"liver": [0.5], "spleen": [0.7]}, (0.6, NAN, 1)),  # one case has no interval
        ({"liver": []}, (NAN, NAN, 0)),
    ],
)
def test_the_headline_is_the_mean_over_organs_of_the_mean_over_cases(dice: dict, expected: tuple) -> None:
    table = frame(**dice)
    assert near(mean(table), *expected)
    rows = table.rename_axis("case").melt(var_name="organ", value_name="dice", ignore_index=False)
    assert mean_dice(rows) == pytest.approx(expected[0], nan_ok=True)


def test_a_mean_with_voxels_is_one_mean_over_all_cells() -> None:
    dice, voxels = frame(liver=[0.2, 0.4], spleen=[0.6, NAN]), frame(liver=[10, 60], spleen=[30, 0])
    assert mean(dice, voxels).value == pytest.approx((0.2 * 10 + 0.6 * 30 + 0.4 * 60) / 100)
    assert near(mean(frame(liver=[0.2, 0.6]), frame(liver=[30, 10])), 0.3, 0.2, 2)
    assert near(mean(dice[:0], voxels), NAN, NAN, 0)
    # a alone has 0.2 and 0.6, b alone 0.4 of the liver
    assert near(mean(dice, voxels, apart=True), (26 / 70 + 0.6) / 2, 0, 2)


def by_seed(scores: np.ndarray) -> pd.DataFrame:
    """A table of (cases, seeds, organs)."""
    columns = pd.MultiIndex.from_product([range(size) for size in scores.shape[1:]], names=["seed", "organ"])
    return pd.DataFrame(scores.reshape(len(scores), -1), columns=columns)


def test_an_interval_adds_up_what_cases_and_trainings_vary() -> None:
    """Two cases and two trainings: 0.1 from each, and Satterthwaite's two degrees of freedom; and alone."""
    table = by_seed(np.array([[0.3, 0.5], [0.5, 0.7]])[:, :, None])
    found = mean(table)
    assert near(found, 0.5, 0.1 * np.sqrt(2), 2, degrees=2) and found.trainings == 2
    assert near(mean(table[[0]]), 0.4, 0.1, 2) and mean(table[[0]]).trainings == 1
    assert near(mean(by_seed(np.array([[[0.4], [0.6]]] * 2))), 0.5, 0.1, 2), "the trainings alone differ"
    ratio = 0.5 / (0.1 * np.sqrt(2))
    assert found.p == pytest.approx(1 - ratio / np.sqrt(2 + ratio**2)), "t's distribution with two degrees"
    apart = difference(table, table + 0.25)
    assert near(apart, 0.25, 0, 2) and apart.p < 1e-9 and difference(table, table).p == 1


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.02)])
def test_intervals_cover_the_true_mean_about_as_often_as_they_say(seeds: int, spread: float) -> None:
    """10 cases and 4 organs, of which each case and each training draws a level: 190 of 200 hold 0.6."""
    rng, hits, narrow = np.random.default_rng(2), 0, 0
    for _ in range(200):
        levels = 0.03 * rng.normal(size=(10, 1, 1)) + spread * rng.normal(size=(1, seeds, 1))
        table = by_seed(0.6 + levels + 0.02 * rng.normal(size=(10, seeds, 4)))
        estimate, alone = mean(table), mean(table.T.groupby("organ").mean().T)
        hits += estimate.low <= 0.6 <= estimate.high
        narrow += alone.low <= 0.6 <= alone.high
    assert 180 <= hits <= 199
    assert (narrow < 180) == (spread > 0), "the cases of one training do not say how trainings vary"


# Differences


def test_a_difference_takes_both_runs_on_the_same_cases() -> None:
    """0.1 in case a, 0.3 in case b; alone, each mean varies by 0.4."""
    first = pd.DataFrame({"liver": [0.2, 0.6, 0.9]}, index=["a", "b", "c"])
    second = pd.DataFrame({"liver": [0.9, 0.3, 0.0]}, index=["b", "a", "d"])
    found = difference(first, second)
    assert near(found, 0.2, 0.1, 2) and str(found) == "+0.200 [-1.071, 1.471]"
    voxels = pd.DataFrame({"liver": [3, 1]}, index=["a", "b"])
    assert difference(first, second, voxels).value == pytest.approx((0.3 * 3 + 0.9) / 4 - (0.2 * 3 + 0.6) / 4)
    assert near(difference(first[:1], second), 0.1, NAN, 1)
    assert near(difference(first[:1], second[:1]), NAN, NAN, 0), "no common case"


def test_a_difference_of_means_over_organs_by_hand() -> None:
    """In case b the spleen is absent; the second run claims it. b alone gives -0.3, a alone 0.35."""
    first, second = frame(liver=[0.5, 0.7], spleen=[0.2, NAN]), frame(liver=[0.8, 0.8], spleen=[0.6, 0.0])
    assert near(difference(first, second), 0.15, 0.325, 2)


def test_a_difference_takes_the_trainings_that_both_have() -> None:
    """Seeds 0 and 2 gain 0.1 and 0.3 in each case."""
    first, second = (by_seed(np.array([dice] * 2)[:, :, None]) for dice in ([0.2, 0.9, 0.4], [0.3, 0.0, 0.7]))
    found = difference(first, second.drop(columns=1, level="seed"))
    assert near(found, 0.2, 0.1, 2) and found.trainings == 2


# Average drops


def liver(*dice: float) -> pd.DataFrame:
    return frame(liver=list(dice))


HOME, SOME, LESS = liver(0.7, 0.9), liver(0.5, 0.5), liver(0.25, 0.25)
DROPS = [  # tables, those of another method, and the estimate: value, standard error, n, degrees of freedom
    # half and a quarter of the mean of 0.8 are lost; without a case home's is 0.9 or 0.7
    ([HOME, liver(0.4, 0.4), liver(0.6, 0.6)], None, (0.375, (0.5 / 0.7 - 0.5 / 0.9) / 2, 4)),
    # both methods rise and fall together at home: 1 - 0.5 / m and 1 - 0.25 / m differ by 0.25 / m
    ([HOME, SOME, SOME], [HOME, LESS, LESS], (-0.25 / 0.8, (0.25 / 0.7 - 0.25 / 0.9) / 2, 4)),
    # the cases that both have
    ([SOME, liver(0.4, 0.4)], [SOME, liver(0.2, 0.2, 0.9)], (0.2 - 0.6, 0, 2)),
    # where one site alone varies, the drop's interval is that site's
    ([liver(0.8, 0.8), liver(0.2, 0.6)], None, (0.5, 0.25, 2)),
    # two sites vary by themselves
    ([liver(0.8, 0.8), liver(0.2, 0.6), liver(0.6, 0.2)], None, (0.5, 0.125 * np.sqrt(2), 4, 2)),
    ([SOME, liver()], None, (NAN, NAN, 0)),
    ([liver(0.0, 0.0), SOME], None, (NAN, NAN, 2)),
    ([HOME, liver(0.5)], None, (1 - 0.5 / 0.8, NAN, 1)),  # an interval needs two cases of each data set
]


@pytest.mark.parametrize(("tables", "minus", "expected"), DROPS)
def test_average_drops_by_hand(tables: list, minus: list | None, expected: tuple) -> None:
    found = average_drop(tables, minus)
    assert near(found, *expected) and found.signed == bool(minus)


def test_a_drop_compares_the_organs_that_the_other_set_labels() -> None:
    """At home 0.8 and 0.2; of the liver, which the other set has alone, half is lost."""
    home, site = frame(liver=[0.8, 0.8], spleen=[0.2, 0.2]), frame(liver=[0.4, 0.4], spleen=[NAN, NAN])
    for other in (site, site[["liver"]]):
        assert average_drop([home, other]).value == pytest.approx(0.5)
        assert average_drop([home, other], same_organs=False).value == pytest.approx(1 - 0.4 / 0.5)


# Tests of each organ


def pair(**deltas: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dice of two runs with these differences."""
    second = 0.5 + pd.DataFrame({(0, organ): values for organ, values in deltas.items()}, dtype=float)
    return pd.DataFrame(0.5, second.index, second.columns), second


def test_paired_tests_by_hand() -> None:
    """All of 6 cases improve: 2 of 2^6 signs are as extreme. 5 of 6, the least falling: 4 of them; the two
    least falling: 6. The least p times 4, the next times 3 and 2, and none below the one before."""
    up = [0.1, 0.2, 0.3, 0.15]
    one, two = pair(spleen=[*up, 0.25, -0.05], liver=[*up, 0.25, 0.05], aorta=[NAN] * 6, stomach=[0.0] * 6)
    table = paired_tests(one, two)
    assert list(table.index) == ["spleen", "liver", "aorta", "stomach"]
    assert list(table) == ["n", "difference", "p", "p Holm"] and list(table["n"]) == [6, 6, 0, 6]
    assert [e.value for e in table["difference"]] == pytest.approx([0.95 / 6, 1.05 / 6, NAN, 0], nan_ok=True)
    assert list(table["p"]) == pytest.approx([4 / 64, 2 / 64, NAN, 1], nan_ok=True)
    assert list(table["p Holm"]) == pytest.approx([8 / 64, 6 / 64, NAN, 1], nan_ok=True)
    two[(0, "stomach")] = two[(0, "liver")]  # 2 / 64 times 3, times 2 and 4 / 64: the first is the largest
    assert list(paired_tests(one, two)["p Holm"]) == pytest.approx([6 / 64, 6 / 64, NAN, 6 / 64], nan_ok=True)
    assert paired_tests(two, one).loc["liver", "difference"].value == pytest.approx(-1.05 / 6)
    assert paired_tests(*pair(liver=[0.0], spleen=[0.0]))["p Holm"].tolist() == [1, 1], "not 2"
    assert paired_tests(frame(), frame()).empty


def test_paired_tests_have_intervals_over_the_cases_that_both_have() -> None:
    first, second = pair(liver=[0.1, 0.3, NAN, 0.4])
    row = paired_tests(first.drop(index=3), second).loc["liver"]
    assert near(row["difference"], 0.2, 0.1, 2) and str(row["difference"]).startswith("+")
    assert row["n"] == 2 and row["p"] == 0.5, "2 of the 4 signs"


def test_seeds_are_no_further_cases() -> None:
    several = pd.DataFrame({(0, "liver"): [0.2, 0.4], (1, "liver"): [0.3, 0.5]})
    with pytest.raises(ValueError, match="take one seed"):
        paired_tests(several, several)


def test_equal_differences_are_a_tie_whatever_their_last_digit() -> None:
    """0.3 - 0.2 is a little less than 0.2 - 0.1. Of 16 choices of signs, 5 have at most one minus."""
    first, second = (pd.DataFrame({(0, "liver"): dice}) for dice in ([0.3, 0.1, 0.1, 0.1], [0.2] * 4))
    assert paired_tests(first, second)["p"].tolist() == [2 * 5 / 16]


# Conventions of the mean, as notebook 04 has them

COLUMNS = "overlap_voxels", "truth_voxels", "predicted_voxels", "flare_dice", "flare_nsd", "nsd", "hd95_mm"
LIVER_A, LIVER_B = (30, 40, 60, 0.7, 0.5, 0.6, 4.0), (80, 100, 100, 0.9, 0.8, 0.7, 2.0)
SPLEEN_A = (5, 10, 10, 0.4, 0.3, 0.2, 9.0)
CASES = {  # in case b the spleen is absent: one run claims it
    ("adapter", "a"): {"liver": LIVER_A, "spleen": SPLEEN_A},
    ("adapter", "b"): {"liver": LIVER_B, "spleen": (0, 0, 10, 0.0, 0.0, 0.0, NAN)},
    ("baseline", "a"): {"liver": LIVER_A, "spleen": SPLEEN_A},
    ("baseline", "b"): {"liver": LIVER_B, "spleen": (0, 0, 0, 1.0, 1.0, NAN, NAN)},
}
OURS = "absent and predicted counts 0, absent and empty is left out (ours)"
POOLED = "one Dice of all cases' voxels together, then mean over organs"


@pytest.fixture(params=[1, 2])
def conventions(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Estimate]]:
    """The notebook's function, on CASES, of one training or a fold each; with a blank prompt's rows."""
    folds, same = request.param, {"dataset": "FLARE22", "variant": "", "condition": ""}
    rows = [
        {"run": run, "case": case, "organ": organ} | same | dict(zip(COLUMNS, found, strict=True))
        for (run, case), organs in CASES.items()
        for organ, found in organs.items()
    ]
    table = pd.DataFrame(rows)
    voxels = (table["truth_voxels"] + table["predicted_voxels"]).replace(0, np.nan)
    fold = table["case"].map({"a": 0, "b": folds - 1})
    table = table.assign(dice=2 * table["overlap_voxels"] / voxels, seed=fold)
    table = pd.concat([table, table.assign(condition="blank", dice=0.0)])
    cells = jupytext.read(ROOT / "notebooks" / "04_ablations.py").cells
    own = "\n".join(cell.source for cell in cells if re.match(r"def (once|conventions)\(", cell.source))
    names: dict[str, Any] = {
        "partial": partial, "select": select, "mean": mean, "pd": pd, "scores": table, "HOME": "FLARE22",
        "FIRST": [*range(folds)]}
    exec(own, names)
    return names["conventions"]


def test_conventions_by_hand(conventions: Callable[[str], dict[str, Estimate]]) -> None:
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
        found = conventions(run)
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert found[name].value == pytest.approx(values[place]) and found[name].n == 2, name
