"""lib.report's ablations on score rows whose means and differences are worked out by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib import report
from lib.profiles import AS_RELEASED, PARTS, RELEASED
from lib.report import side_by_side

pytestmark = pytest.mark.filterwarnings("error")  # they would end up in a notebook's output
NAN = float("nan")
Dice = dict[str, float]


@pytest.fixture(autouse=True)
def two_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.report.ablations.ABLATION_SEEDS", (0, 1))


def rows(run: str, dice: Dice, dataset: str = "FLARE22", condition: str = "", **others: float) -> pd.DataFrame:
    """Score rows of one run: {case: Dice of its liver}, and other columns that are the same in all of them."""
    key = {"run": run, "config": "0", "dataset": dataset, "condition": condition, "organ": "liver", "source": "trained here"}
    counts = {"truth_voxels": 10, "predicted_voxels": 10, "overlap_voxels": 5, "false_slices": 1, "slices_absent": 4, "off_component": 0.1}
    return pd.DataFrame([{**key, "case": case, "dice": value, **counts, "voxel_ml": 0.5, **others} for case, value in dice.items()])


def row(table: pd.DataFrame, name: str) -> pd.Series:
    return table.set_index(table.columns[0]).loc[name]


def values(table: pd.DataFrame, name: str, *columns: str) -> list:
    return list(row(table, name)[list(columns)])


def with_ends(name: str) -> tuple[str, str, str]:
    return name, f"{name} low", f"{name} high"


def test_seeds_are_those_of_the_run_the_data_set_and_the_condition() -> None:
    scores = pd.concat(
        [
            rows("adapter", {"a": 0.5}),
            rows("adapter, seed 2", {"a": 0.5}),
            rows("adapter, no gate, seed 1", {"a": 0.5}),
            rows("adapter, seed 7", {"a": 0.5}, "BTCV"),
            rows("adapter, seed 8", {"a": 0.5}, condition="blank"),
        ]
    )
    assert report.seeds_of(scores, "adapter", "FLARE22") == {0, 2}
    assert report.seeds_of(scores, "adapter, no gate", "FLARE22") == {1}
    assert report.seeds_of(scores, "adapter", "FLARE22", "blank") == {8}
    assert report.seeds_of(scores, "baseline", "FLARE22") == set()


def test_seeds_stand_side_by_side_and_are_averaged_as_seeds() -> None:
    """Where a case counts with one seed alone, the mean is still that of the seeds' means: (0.2 + 0.6) / 2, not 0.3."""
    scores = pd.concat([rows("adapter", {"a": 0.2, "b": 0.2}), rows("adapter, seed 1", {"a": 0.6, "b": NAN})])
    table = side_by_side(scores, "adapter", "FLARE22", {1, 0})
    assert table.shape == (2, 26) and list(table.columns.levels[0]) == [0, 1]
    assert float(report.controls(scores).set_index("run").loc["CLIPSeg + temporal adapter", "mean Dice"]) == pytest.approx(0.4)
    assert side_by_side(scores, "adapter", "FLARE22", set()).shape == (0, 13)


def headline() -> list[pd.DataFrame]:
    """Baseline and adapter with three seeds. The adapter's Dice is 0.6 and 0.8, the baseline's 0.4 and 0.6; each seed has 0.02 more."""
    names = ["", ", seed 1", ", seed 2"]
    return [
        rows(f"{run}{name}", {"a": start + 0.02 * seed, "b": start + 0.2 + 0.02 * seed})
        for run, start in (("adapter", 0.6), ("baseline", 0.4))
        for seed, name in enumerate(names)
    ]


def test_released_switches_by_hand() -> None:
    more = [
        rows("adapter, released gate first", {"a": 0.5, "b": 0.9}),
        rows("adapter, released gate first, seed 1", {"a": 0.6, "b": 1.0}),
        rows("baseline, released frozen encoders", {"a": 0.1, "b": 0.3}),
        rows("baseline, released sampling", {"a": 0.1, "b": 0.3}),
        rows("adapter, as released", {"a": 0.5, "b": 0.7}),
        rows("baseline, as released", {"a": 0.1, "b": 0.1}),
    ]
    table = report.released(pd.concat([*headline(), *more]))
    assert list(table["code"]) == ["as published", *RELEASED, "as released"]
    names = ("baseline", "adapter", "difference adapter - baseline", "n", "seeds")
    # the ablations' seeds 0 and 1 alone: 0.50 and 0.52, 0.70 and 0.72
    assert values(table, "as published", *names) == pytest.approx([0.51, 0.71, 0.2, 2, 2])
    assert values(table, "gate first", *names) == pytest.approx([0.51, 0.75, 0.24, 2, 2])
    # a: 0.55 - 0.41, b: 0.95 - 0.61
    assert values(table, "gate first", *with_ends(names[2])) == pytest.approx([0.24, 0.14, 0.34])
    assert values(table, "frozen encoders", *names) == pytest.approx([0.2, 0.7, 0.5, 2, 1]), "the published adapter of the same seed"
    assert values(table, "as released", *names) == pytest.approx([0.1, 0.6, 0.5, 2, 1])
    assert values(table, "sampling", "n", "seeds") == [0, 0], "it changes both, and the adapter has not run"
    assert report.show(table).loc["sampling", names[2]] == "–"
    assert report.show(table).loc["as published", names[2]] == "+0.200 [0.200, 0.200]"


def test_released_says_which_runs_it_means() -> None:
    """Every run of the ablations that the table asks for is one that can be trained."""
    from lib.profiles import ABLATIONS

    asked = {f"{run}, released {name}" for name, changed in RELEASED.items() for run in changed} | {
        f"{run}, as released" for run in AS_RELEASED
    }
    assert asked == {run for run in ABLATIONS if "released" in run}


def test_parts_are_measured_against_the_adapter_of_the_same_seeds() -> None:
    more = [
        rows("adapter, no gate, seed 1", {"a": 0.52, "b": 0.92}, false_slices=2, off_component=0.3),
        rows("adapter, window 9", {"a": 0.6, "b": 0.8}),
        rows("adapter, window 9, seed 1", {"a": 0.7, "b": 0.9}, false_slices=3, off_component=0.2),
    ]
    table = report.parts(pd.concat([*headline(), *more]))
    assert list(table["run"]) == ["adapter (window 5)", *PARTS]
    names = ("mean Dice", "difference to the adapter", "false slices (share)", "off-component share", "n", "seeds")
    assert values(table, "adapter (window 5)", *names) == pytest.approx([0.71, NAN, 0.25, 0.1, 2, 2], nan_ok=True)
    # seed 1 alone, whose adapter has 0.62 and 0.82
    assert values(table, "no gate", *names) == pytest.approx([0.72, 0.0, 0.5, 0.3, 2, 1])
    assert values(table, "no gate", *with_ends("difference to the adapter")) == pytest.approx([0.0, -0.1, 0.1])
    assert values(table, "window 9", *names) == pytest.approx([0.75, 0.04, 0.5, 0.15, 2, 2])
    assert values(table, "window 1", *names[-2:]) == [0, 0] and np.isnan(row(table, "window 1")["false slices (share)"])
    shown = report.show(table)
    assert shown.loc["window 9", "difference to the adapter"] == "+0.040 [0.040, 0.040]"
    assert set(shown.loc["window 1", list(names[:4])]) == {"–"} and shown.loc["adapter (window 5)", "difference to the adapter"] == "–"


def test_a_share_of_false_slices_is_one_over_all_slices() -> None:
    """1 of 1 and 1 of 9 slices: 2 of 10, not the mean of the cases' shares."""
    scores = pd.concat([rows("adapter", {"a": 0.5}, slices_absent=1), rows("adapter", {"b": 0.5}, slices_absent=9)])
    assert row(report.controls(scores), "CLIPSeg + temporal adapter")["false slices (share)"] == pytest.approx(0.2)
    full = report.controls(rows("adapter", {"a": 0.5}, false_slices=0, slices_absent=0))
    assert np.isnan(row(full, "CLIPSeg + temporal adapter")["false slices (share)"]), "the organ is in every slice"


@pytest.fixture
def cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the adapter's trainings cost in the smoke profile."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    (tmp_path / "smoke" / "figure_data").mkdir(parents=True)
    lines = ["run,terms a step,steps,seconds a training", "adapter,13.7,600,88.4", '"adapter, shuffled",14,600,800.6']
    (tmp_path / "smoke" / "figure_data" / "samplers.csv").write_text("\n".join(lines))


def test_both_samplers_by_the_seeds_that_both_have(cost: None) -> None:
    more = [rows(f"adapter, shuffled{name}", {"a": 0.55, "b": 0.75 + plus}) for name, plus in (("", 0.0), (", seed 2", 0.06))]
    table = report.samplers(pd.concat([*headline(), *more]), "smoke")
    assert list(table["run"]) == ["baseline, slab", "baseline, shuffled", "adapter, slab", "adapter, shuffled"]
    numbers = table.set_index("run").drop(columns=["terms a step", "steps", "seconds a training"])
    names = ["mean Dice", "seed 0", "seed 1", "seed 2", "n", "seeds"]
    # the adapter's seeds 0 and 2 alone: 0.6 and 0.64, 0.8 and 0.84
    assert list(numbers.loc["adapter, slab", names]) == pytest.approx([0.72, 0.7, NAN, 0.74, 2, 2], nan_ok=True)
    assert list(numbers.loc["adapter, shuffled", names]) == pytest.approx([0.665, 0.65, NAN, 0.68, 2, 2], nan_ok=True)
    # a: 0.55 - 0.62, b: 0.78 - 0.82
    assert list(numbers.loc["adapter, shuffled", list(with_ends("difference to slab"))]) == pytest.approx([-0.055, -0.07, -0.04])
    shown = report.show(table)
    assert list(shown.loc["adapter, slab", ["terms a step", "steps", "seconds a training"]]) == ["14", "600", "88"]
    assert shown.loc["adapter, shuffled", "seconds a training"] == "801" and shown.loc["adapter, slab", "difference to slab"] == "–"
    assert shown.loc["baseline, shuffled", "seconds a training"] == "–" and list(numbers.loc["baseline, slab", ["n", "seeds"]]) == [0, 0]


def test_controls_have_every_seed_that_there_is() -> None:
    more = [rows("centre only, seed 2", {"a": 0.44, "b": 0.64}), rows("adapter, neighbours shuffled", {"a": 0.5, "b": 0.9})]
    table = report.controls(pd.concat([*headline(), *more]))
    names = ("mean Dice", "difference to the adapter", "seeds")
    assert values(table, "CLIPSeg baseline", *names) == pytest.approx([0.52, -0.2, 3])
    assert values(table, "Control: centre slice only", *names) == pytest.approx([0.54, 0.54 - 0.74, 1])
    assert values(table, "Control: neighbours shuffled", *names) == pytest.approx([0.7, 0.0, 1])
    assert values(table, "Control: neighbours another patient", "n", "seeds") == [0, 0]


def test_doses_over_seeds_and_by_seed() -> None:
    spoiled = "FLARE22, 80% degraded"
    more = [
        rows("adapter", {"a": 0.5, "b": 0.5}, spoiled),
        rows("adapter, seed 1", {"a": 0.7, "b": 0.9}, spoiled),
        rows("baseline", {"a": 0.4, "b": 0.4}, spoiled),
        rows("baseline, seed 1", {"a": 0.4, "b": 0.4}, spoiled),
        rows("centre only, seed 1", {"a": 0.6, "b": 0.9}, spoiled),
    ]
    table = report.doses(pd.concat([*headline(), *more]))
    assert list(table["degraded slices"]) == ["0 %", "20 %", "40 %", "60 %", "80 %"]
    gain, control = "difference adapter - baseline", "difference adapter - centre only"
    assert values(table, "80 %", "baseline", "adapter", "centre only", "n", "seeds") == pytest.approx([0.4, 0.65, 0.75, 2, 2])
    # a: (0.1 + 0.3) / 2, b: (0.1 + 0.5) / 2; seed 0: 0.1, seed 1: 0.4
    assert values(table, "80 %", *with_ends(gain), f"{gain}, least seed", f"{gain}, greatest seed") == pytest.approx(
        [0.25, 0.2, 0.3, 0.1, 0.4]
    )
    assert values(table, "80 %", control, f"{control}, least seed") == pytest.approx([0.05, 0.05]), "seed 1, which both have"
    assert values(table, "40 %", gain, f"{gain}, least seed", "seeds") == pytest.approx([0.2, 0.2, 3]), "the training's own share"
    assert np.isnan(row(table, "40 %")[control]) and values(table, "0 %", "n", "seeds") == [0, 0]
    assert report.show(table).loc["80 %", f"{gain}, greatest seed"] == "+0.400"


def test_scans_of_patients_have_no_dose() -> None:
    table = report.doses(pd.concat(headline()))
    assert table["seeds"].tolist() == [0] * 5 and table["adapter"].isna().all(), "their FLARE22 has no 40 % of degraded slices"


def test_spacings_of_phantoms_by_hand() -> None:
    far = "FLARE22, slices x2"
    more = [
        rows("adapter", {"a": 0.3, "b": 0.5}, far),
        rows("adapter, seed 1", {"a": 0.4, "b": 0.6}, far),
        rows("adapter, seed 1", {"a": 0.6, "b": 0.7}, far, "window in mm"),
        rows("adapter", {"a": 0.6, "b": 0.6}, "FLARE22, slices x0.5"),
    ]
    scores = pd.concat([*headline(), *more])
    table = report.spacings(scores, "demo")
    assert list(table["distance of slices"]) == ["2.5 mm", "5 mm", "7.5 mm", "10 mm"]
    assert list(report.spacings(scores, "smoke")["distance of slices"]) == ["7.5 mm", "15 mm", "22.5 mm", "30 mm"]
    assert values(table, "10 mm", "fixed window", "window in mm", "n", "seeds") == pytest.approx([0.5, 0.65, 2, 1]), "seed 1 has both"
    assert values(table, "10 mm", *with_ends("difference mm - fixed")) == pytest.approx([0.15, 0.1, 0.2])
    assert values(table, "5 mm", "fixed window", "seeds") == pytest.approx([0.72, 3])
    shown = report.show(table)
    assert list(shown.loc["2.5 mm", ["fixed window", "window in mm"]]) == ["0.600 [0.600, 0.600]", "–"]
    assert set(shown.loc["7.5 mm", ["fixed window", "difference mm - fixed"]]) == {"–"}


def test_spacings_of_patients_are_those_of_their_data_set() -> None:
    scores = pd.concat([*headline(), rows("adapter", {"a": 0.7, "b": 0.9}, condition="window in mm")])
    table = report.spacings(scores, "full")
    assert list(table["scans"]) == ["FLARE22", "BTCV", "AMOS22 CT", "AMOS22 MRI"]
    assert values(table, "FLARE22", "fixed window", "window in mm", "difference mm - fixed") == pytest.approx([0.7, 0.8, 0.1])


def test_absent_organs_are_counted_by_scan() -> None:
    gone, counts = "FLARE22, organs absent", {"truth_voxels": 0}
    scores = pd.concat(
        [
            rows("adapter", {"a": 0.0}, gone, predicted_voxels=40, **counts),
            rows("adapter", {"b": 0.0}, gone, predicted_voxels=100, **counts),
            rows("adapter", {"c": NAN}, "BTCV", predicted_voxels=0, **counts),
            rows("adapter", {"c": 0.0}, "BTCV", predicted_voxels=2, **counts).assign(organ="spleen"),
            rows("baseline", {"c": NAN}, "BTCV", predicted_voxels=0, **counts),
            rows("adapter", {"a": 0.0}, "FLARE22, 20% degraded", predicted_voxels=4, **counts),  # FLARE22's patients again
            rows("adapter", {"a": 0.0}, gone, "blank", predicted_voxels=4, **counts),
            rows("adapter", {"d": 0.5}, gone),  # it is there
            rows("adapter, seed 1", {"a": 0.0}, gone, predicted_voxels=4, **counts),
        ]
    )
    table = report.absent(scores)
    assert list(table["organ"]) == ["Liver", "Spleen", "All organs"]
    names = ("scans", "share claimed", "median ml")
    assert values(table, "Liver", *(f"adapter: {name}" for name in names)) == pytest.approx([3, 2 / 3, 35.0])
    assert values(table, "All organs", *(f"adapter: {name}" for name in names)) == pytest.approx([4, 3 / 4, 20.0])
    assert values(table, "Liver", *(f"baseline: {name}" for name in names)) == pytest.approx([1, 0, NAN], nan_ok=True)
    shown = report.show(table).loc["Spleen"]
    assert list(shown[["adapter: scans", "adapter: median ml", "baseline: scans", "baseline: share claimed"]]) == ["1", "1.000", "0", "–"]


def test_without_an_absent_organ_there_is_a_row_of_nothing() -> None:
    table = report.absent(pd.concat(headline()))
    assert list(table["organ"]) == ["All organs"] and values(table, "All organs", "adapter: scans", "baseline: scans") == [0, 0]


def test_tests_name_the_organs_and_correct_for_those_that_are_tested() -> None:
    cases = "abcdef"
    first = pd.concat([rows("baseline", dict.fromkeys(cases, 0.4)).assign(organ=organ) for organ in ("liver", "spleen")])
    second = rows("adapter", {case: 0.5 + 0.01 * place for place, case in enumerate(cases)})
    same = rows("adapter", dict.fromkeys(cases, 0.4)).assign(organ="spleen")
    table = report.tests(pd.concat([first, second, same]))
    assert len(table) == 13 and values(table, "Aorta", "n") == [0]
    # six differences of one sign: p = 2 / 2^6, times 2 organs
    assert values(table, "Liver", "n", "difference", "p", "p Holm") == pytest.approx([6, 0.125, 1 / 32, 1 / 16])
    assert values(table, "Spleen", "difference", "p") == pytest.approx([0, 1])
    assert report.show(table).loc["Aorta", "p"] == "–" and report.show(table).loc["Liver", "difference"].startswith("+0.125 [")


def test_consistency_by_hand() -> None:
    scores = pd.concat(
        [
            rows("baseline", {"a": 0.5}, false_slices=3, slices_absent=4, off_component=0.5),
            rows("baseline", {"b": 0.5}, false_slices=1, slices_absent=12, off_component=0.1),
            rows("adapter", {"a": 0.5}, false_slices=1, slices_absent=4, off_component=0.2),
            rows("adapter", {"b": 0.5}, false_slices=1, slices_absent=12, off_component=NAN),
            rows("adapter, seed 1", {"a": 0.5}, false_slices=4),
        ]
    )
    table = report.consistency(scores)
    share, off = "share of false slices", "off-component share"
    names = ("false slices", "slices without the organ", share, off, "false slices of an organ in a scan")
    assert values(table, "CLIPSeg baseline", *names) == pytest.approx([4, 16, 0.25, 0.3, 2.0])
    assert values(table, "CLIPSeg + temporal adapter", *names) == pytest.approx([2, 16, 0.125, 0.2, 1.0])
    # drawn cases aa, ab, bb: 1/4 - 3/4, 2/16 - 4/16, 1/12 - 1/12
    assert values(table, "CLIPSeg + temporal adapter", *with_ends(f"difference in {share}")) == pytest.approx([-0.125, -0.5, 0.0])
    assert row(table, "CLIPSeg + temporal adapter")[f"difference in {off}"] == pytest.approx(-0.1)
    assert pd.isna(row(table, "CLIPSeg baseline")[f"difference in {share}"])
    shown = report.show(table)
    assert list(shown.loc["DynUNet", ["false slices", share, f"difference in {off}"]]) == ["–", "– (not run yet)", "–"]
    assert shown.loc["CLIPSeg + temporal adapter", "slices without the organ"] == "16"


@pytest.mark.parametrize("run", ["baseline", "adapter", "dynunet", "adapter, no gate"])
def test_one_run_alone_fails_no_table(run: str) -> None:
    scores = rows(run, {"a": 0.5, "b": 0.7}).assign(nsd=0.5, hd95_mm=2.0, flare_dice=0.5, flare_nsd=0.5)
    tables = [make(scores) for make in (report.tgated_table2, report.tgated_table3, report.tgated_table4, report.tgated_table5)]
    tables += [make(scores) for make in (report.released, report.parts, report.controls, report.tests, report.consistency)]
    tables += [report.doses(scores), report.spacings(scores, "demo"), report.absent(scores), report.seeds(scores)]
    tables += [report.conventions(scores, ["baseline", "adapter"], "FLARE22")]
    shown = [report.show(table) for table in tables]
    assert [len(table) for table in shown[:4]] == [3, 15, 5, 6]
    assert all(isinstance(cell, str) and "nan" not in cell.lower() for table in shown for cell in table.to_numpy().ravel())
