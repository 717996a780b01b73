"""lib.report on a handful of scores whose means, intervals and files are worked out by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib import report
from lib.organs import BY_KEY, KEYS
from lib.paths import ROOT, InputError
from lib.published import TGATED_DROP, TGATED_TABLE1, TGATED_TABLE2, TGATED_TABLE3, TGATED_TABLE3_MEAN, TGATED_TABLE4
from lib.statistics import average_drop, mean_with_interval

pytestmark = pytest.mark.filterwarnings("error")  # they would end up in a notebook's output
NAN = float("nan")
# (run, case): Dice and true voxels of liver and spleen. In case b the spleen is absent: the adapter marks it, the baseline does not.
TWO_CASES = {
    ("baseline", "a"): {"liver": (0.5, 100), "spleen": (0.2, 50)},
    ("baseline", "b"): {"liver": (0.7, 100), "spleen": (NAN, 0)},
    ("adapter", "a"): {"liver": (0.8, 100), "spleen": (0.6, 50)},
    ("adapter", "b"): {"liver": (0.8, 100), "spleen": (0.0, 0)},
}
# what the tables of consistency and conventions read beside Dice
OTHERS = {"overlap_voxels": 5, "predicted_voxels": 10, "false_slices": 1, "slices_absent": 4, "off_component": 0.1}
OTHERS |= {"nsd": 0.5, "hd95_mm": 2.0, "flare_dice": 0.5, "flare_nsd": 0.5, "voxel_ml": 0.1}


def scores(cases: dict = TWO_CASES, dataset: str = "FLARE22", config: str = "0123456789ab", condition: str = "") -> pd.DataFrame:
    key = {"config": config, "dataset": dataset, "condition": condition}
    rows = [
        {"run": run, **key, "case": case, "organ": organ, "dice": dice, "truth_voxels": voxels, **OTHERS}
        for (run, case), organs in cases.items()
        for organ, (dice, voxels) in organs.items()
    ]
    return pd.DataFrame(rows).assign(source="trained here")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the smoke profile's results, with scores."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    folder = tmp_path / "smoke"
    folder.mkdir()
    scores().drop(columns="source").to_csv(folder / "scores.csv", index=False)
    return folder


def row(table: pd.DataFrame, name: str) -> pd.Series:
    return table.set_index(table.columns[0]).loc[name]


def test_the_published_tables_agree_with_the_organs_and_with_each_other() -> None:
    assert {key: BY_KEY[key].weight for key in KEYS} == TGATED_TABLE1
    assert sorted(TGATED_TABLE3) == sorted(KEYS)
    for baseline, temporal, gain in [*TGATED_TABLE3.values(), *TGATED_TABLE2.values(), TGATED_TABLE3_MEAN]:
        assert temporal - baseline == pytest.approx(gain, abs=0.0011)
    assert np.mean(list(TGATED_TABLE3.values()), 0) == pytest.approx([0.5195, 0.7035, 0.1841], abs=1e-4)


def test_table1_has_a_row_for_each_organ_and_a_share_on_request() -> None:
    table = report.tgated_table1()
    assert list(row(table, "R. adrenal")) == [8, 8]
    assert len(table) == 13
    assert row(report.tgated_table1(dict.fromkeys(KEYS, 0.25)), "Liver")["share of training"] == 0.25


def test_table2_is_the_mean_over_organs_of_the_mean_over_cases() -> None:
    table = report.tgated_table2(scores())
    assert row(table, "CLIPSeg baseline")["FLARE22 measured"] == pytest.approx((0.6 + 0.2) / 2)
    adapter = row(table, "CLIPSeg + temporal adapter")
    assert adapter["FLARE22 measured"] == pytest.approx((0.8 + 0.3) / 2)
    assert (adapter["FLARE22 published"], adapter["FLARE22 measured n"], adapter["BTCV measured n"]) == (0.704, 2, 0)
    assert not table["method"].str.contains("centre").any()


def test_a_difference_takes_both_methods_on_the_same_drawn_cases() -> None:
    # drawn cases aa, ab and bb (1, 2 and 1 times of 4) give 0.70 - 0.35, 0.55 - 0.40 and 0.40 - 0.70
    difference = row(report.tgated_table2(scores()), "Difference: adapter - baseline")
    names = ["FLARE22 measured", "FLARE22 measured low", "FLARE22 measured high"]
    assert list(difference[names]) == pytest.approx([0.15, -0.3, 0.35])


def test_a_difference_counts_common_cases_only() -> None:
    cases = {key: value for key, value in TWO_CASES.items() if key != ("adapter", "b")}
    difference = row(report.tgated_table2(scores(cases)), "Difference: adapter - baseline")
    assert difference["FLARE22 measured"] == pytest.approx(0.70 - 0.35)
    assert difference["FLARE22 measured n"] == 1 and np.isnan(difference["FLARE22 measured low"])


def test_the_control_has_rows_once_it_has_scores() -> None:
    control = {("centre only", case): organs for (run, case), organs in TWO_CASES.items() if run == "baseline"}
    table = report.tgated_table2(scores(TWO_CASES | control))
    assert row(table, "Difference: adapter - centre only")["FLARE22 measured"] == pytest.approx(0.15)
    assert np.isnan(row(table, "Control: centre slice only")["FLARE22 published"])


def test_a_mean_over_btcv_is_one_over_its_12_organs() -> None:
    organs = {key: (0.6, 10) for key in KEYS if key != "duodenum"}
    table = report.tgated_table2(pd.concat([scores(), scores({("baseline", "x"): organs}, "BTCV")]))
    assert row(table, "CLIPSeg baseline")["BTCV measured"] == pytest.approx(0.6)


def test_sample_scans_have_columns_of_their_own() -> None:
    table = report.show(report.tgated_table2(scores(dataset="sample CT")))
    assert list(table)[-2:] == ["sample CT measured", "scores"] and "FLARE22 measured" not in table
    assert table.loc["CLIPSeg baseline", "average drop published"] == "0.380" and "average drop measured" not in table


def across_sites(run: str, *means: tuple[float, float]) -> pd.DataFrame:
    """Dice of the liver in two cases of each of Table 2's data sets."""
    tables = [
        scores({(run, case): {"liver": (dice, 10)} for case, dice in zip("ab", pair, strict=True)}, dataset)
        for dataset, pair in zip(TGATED_TABLE2, means, strict=True)
    ]
    return pd.concat(tables)


def test_the_average_drop_by_hand() -> None:
    """Means 0.8, 0.4 and 0.6: half and a quarter of the Dice is lost, 0.375 on average."""
    table = report.tgated_table2(across_sites("adapter", (0.7, 0.9), (0.4, 0.4), (0.6, 0.6)))
    adapter, baseline = row(table, "CLIPSeg + temporal adapter"), row(table, "CLIPSeg baseline")
    assert adapter["average drop measured"] == pytest.approx(0.375) and adapter["average drop measured n"] == 4
    # FLARE22's draws aa, ab, bb have the means 0.7, 0.8, 0.9; the other sites' do not change: 1 - 0.5 / mean
    assert [adapter[f"average drop measured {end}"] for end in ("low", "high")] == pytest.approx([1 - 0.5 / 0.7, 1 - 0.5 / 0.9])
    assert [adapter["average drop published"], baseline["average drop published"]] == [0.249, 0.380]
    assert np.isnan(baseline["average drop measured"]) and baseline["average drop measured n"] == 0
    assert report.show(table).loc["CLIPSeg baseline", "average drop measured"] == "– (not run yet)"


def test_a_difference_of_drops_takes_the_same_drawn_cases() -> None:
    """Both methods rise and fall together on FLARE22, so their drops, 1 - 0.5 / m and 1 - 0.25 / m, differ by 0.25 / m."""
    both = pd.concat([across_sites("adapter", *[(0.7, 0.9), (0.5, 0.5), (0.5, 0.5)])])
    both = pd.concat([both, across_sites("baseline", *[(0.7, 0.9), (0.25, 0.25), (0.25, 0.25)])])
    difference = row(report.tgated_table2(both), "Difference: adapter - baseline")
    names = [f"average drop measured{end}" for end in ("", " low", " high")]
    assert list(difference[names]) == pytest.approx([-0.25 / 0.8, -0.25 / 0.7, -0.25 / 0.9])
    assert difference["average drop published"] == pytest.approx(TGATED_DROP["adapter"] - TGATED_DROP["baseline"]) == -0.131
    assert report.show(report.tgated_table2(both)).loc["Difference: adapter - baseline", "average drop published"] == "-0.131"


def test_a_drop_draws_the_cases_of_each_data_set_by_themselves() -> None:
    """Where one site alone varies, the drop's interval is that site's; two cases a and b of every site are not the same patients."""
    flat, wide = pd.DataFrame({"liver": [0.8, 0.8]}), pd.DataFrame({"liver": [0.2, 0.6]})
    assert average_drop([flat, wide]) == pytest.approx((0.5, 0.25, 0.75, 2))
    # were the two sites drawn together, 0.2 would always meet 0.6 and the drop would not vary
    assert average_drop([flat, wide, wide[::-1]])[1:3] == pytest.approx((0.25, 0.75))


def test_a_drop_without_cases_or_from_nothing_is_nan() -> None:
    some, none, zero = (pd.DataFrame({"liver": dice}, dtype=float) for dice in ([0.5, 0.7], [], [0.0, 0.0]))
    assert np.isnan(average_drop([some, none])[:3]).all() and average_drop([some, none])[3] == 0
    assert np.isnan(average_drop([zero, some])[:3]).all()
    one = average_drop([some, some[:1]])
    assert one[0] == pytest.approx(1 - 0.5 / 0.6) and np.isnan(one[1:3]).all(), "an interval needs two cases at each site"


def test_a_mean_with_its_interval_and_with_weights() -> None:
    dice, voxels = pd.DataFrame({"liver": [0.2, 0.6], "spleen": [NAN, NAN]}), pd.DataFrame({"liver": [30, 10], "spleen": [0, 0]})
    assert mean_with_interval(dice) == pytest.approx((0.4, 0.2, 0.6, 2))
    assert mean_with_interval(dice, voxels) == pytest.approx((0.3, 0.2, 0.6, 2))
    assert np.isnan(mean_with_interval(dice[:0])[:3]).all() and mean_with_interval(dice[:0])[3] == 0


def test_table4_prompts_by_hand() -> None:
    adapter = {key: value for key, value in TWO_CASES.items() if key[0] == "adapter"}
    blank = {("adapter", case): {"liver": (0.0, 100), "spleen": (dice, 50)} for case, dice in (("a", 0.1), ("b", 0.3))}
    table = report.tgated_table4(pd.concat([scores(adapter), scores(blank, condition="blank")]))
    assert list(table["prompt"]) == ["correct prompt", "blank prompt", "wrong organ", "synonym", "template"]
    right, empty, wrong = (row(table, name) for name in ("correct prompt", "blank prompt", "wrong organ"))
    assert right["measured Dice"] == pytest.approx(0.55) and right["measured organs at exactly 0"] == 0
    assert [empty["measured Dice"], empty["measured change in %"]] == pytest.approx([0.1, -100 * 0.45 / 0.55])
    assert [empty["measured organs at exactly 0"], empty["measured organs below 0.001"], empty["measured Dice n"]] == [1, 1, 2]
    assert [empty["published Dice"], empty["published organs at exactly 0"], wrong["published organs below 0.001"]] == [0.005, 10, 11]
    assert [right["the liver's"], empty["the liver's"], wrong["the liver's"]] == ['"liver"', '""', '"aorta"']
    shown = report.show(table)
    assert list(shown.loc["blank prompt", ["published change in %", "measured change in %"]]) == ["-99.3", "-81.8"]
    assert list(shown.loc["blank prompt", ["published organs below 0.001", "measured organs below 0.001"]]) == ["–", "1"]
    assert shown.loc["synonym", "measured Dice"] == "– (not run yet)" and shown.loc["synonym", "measured organs at exactly 0"] == "–"


def test_what_table4_prints_agrees_with_itself() -> None:
    for condition in ("blank", "wrong organ"):
        dice, change, *_ = TGATED_TABLE4[condition]
        assert 100 * (dice / TGATED_TABLE4[""][0] - 1) == pytest.approx(change, abs=0.05)


def test_table5_sets_ct_beside_mri() -> None:
    runs = {"dynunet": (0.2, 0.9), "adapter": (0.4, 0.6), "baseline": (0.3, 0.5)}
    tables = [
        scores({(run, case): {"liver": (dice, 10)} for case in "ab"}, dataset)
        for run, pair in runs.items()
        for dataset, dice in zip(("AMOS22 MRI", "FLARE22"), pair, strict=True)
    ]
    table = report.tgated_table5(pd.concat(tables))
    names = ["AMOS22 MRI published", "AMOS22 MRI measured", "FLARE22 measured"]
    assert list(row(table, "DynUNet")[names]) == pytest.approx([0.224, 0.2, 0.9])
    assert list(row(table, "CLIPSeg + temporal adapter")[names]) == pytest.approx([0.366, 0.4, 0.6])
    assert list(row(table, "Difference: adapter - dynunet")[names]) == pytest.approx([0.142, 0.2, -0.3])
    assert list(row(table, "Difference: adapter - baseline")[names[1:]]) == pytest.approx([0.1, 0.1])
    assert np.isnan(row(table, "CLIPSeg baseline")[names[0]])
    assert report.show(table).loc["Control: centre slice only", "AMOS22 MRI measured"] == "– (not run yet)"


def test_table5_of_the_samples_has_their_scans() -> None:
    mri = scores({("adapter", "mr"): {"liver": (0.3, 10)}}, "sample MRI")
    table = report.show(report.tgated_table5(mri))
    assert list(table) == ["AMOS22 MRI published", "sample MRI measured", "sample CT measured", "scores"]
    assert table.loc["CLIPSeg + temporal adapter", "sample MRI measured"] == "0.300 [n/a], n = 1"


def test_table3_by_organ_and_both_means() -> None:
    table = report.tgated_table3(scores())
    liver, spleen = row(table, "Liver"), row(table, "Spleen")
    assert list(liver[["published baseline", "published + temporal", "published difference"]]) == [0.911, 0.960, 0.049]
    measured = ["measured baseline", "measured + temporal", "measured difference"]
    assert list(liver[measured]) == pytest.approx([0.6, 0.8, 0.2])
    assert list(liver[["measured difference low", "measured difference high", "n"]]) == pytest.approx([0.1, 0.3, 2])
    assert list(spleen[measured]) == pytest.approx([0.2, 0.3, 0.1])
    assert np.isnan(row(table, "Aorta")["measured baseline"]) and row(table, "Aorta")["n"] == 0
    plain = row(table, "Mean over organs (published: of the rows above)")
    assert list(plain[measured]) == pytest.approx([0.4, 0.55, 0.15])
    assert round(plain["published baseline"], 3) == 0.519
    weighted = row(table, "Mean by voxels (published: as printed)")
    assert list(weighted[measured]) == pytest.approx([130 / 250, 190 / 250, 60 / 250])
    assert weighted["published baseline"] == 0.497


def test_a_run_that_is_missing_is_a_dash() -> None:
    baseline = scores({key: organs for key, organs in TWO_CASES.items() if key[0] == "baseline"})
    two, three = report.show(report.tgated_table2(baseline)), report.show(report.tgated_table3(baseline))
    assert two.loc["CLIPSeg + temporal adapter", "FLARE22 measured"] == "– (not run yet)"
    assert two.loc["CLIPSeg + temporal adapter", "scores"] == "not run yet"
    assert list(three.loc["Liver", ["measured baseline", "measured + temporal", "measured difference"]]) == ["0.600", "–", "–"]


def test_cells_show_value_interval_and_cases() -> None:
    two = report.show(report.tgated_table2(scores()))
    assert two.loc["Difference: adapter - baseline", "FLARE22 measured"] == "+0.150 [-0.300, 0.350], n = 2"
    assert two.loc["Difference: adapter - baseline", "BTCV published"] == "+0.210"
    one = report.show(report.tgated_table2(scores({key: organs for key, organs in TWO_CASES.items() if key[1] == "a"})))
    assert one.loc["CLIPSeg baseline", "FLARE22 measured"] == "0.350 [n/a], n = 1"
    assert report.show(report.tgated_table3(scores())).loc["Liver", "measured difference"] == "+0.200 [0.100, 0.300]"


def test_scores_say_where_they_come_from(results: Path) -> None:
    assert set(report.read_scores("smoke")["source"]) == {"committed scores, config 0123456789ab"}
    config = results / "runs" / "anything" / "config.json"
    config.parent.mkdir(parents=True)
    for finished, source in (("other", "committed scores, config 0123456789ab"), ("0123456789ab", "trained here")):
        config.write_text(json.dumps({"hash": finished, "finished": finished}))
        expected = {"baseline": source, "adapter": source, "centre only": "not run yet", "dynunet": "not run yet"}
        assert report.provenance(report.read_scores("smoke")) == expected


@pytest.mark.parametrize("config", ["012345678901", "1234567890e5"])
def test_a_hash_that_looks_like_a_number_stays_as_it_is(results: Path, config: str) -> None:
    scores(config=config).drop(columns="source").to_csv(results / "scores.csv", index=False)
    assert set(report.read_scores("smoke")["config"]) == {config}


def test_no_scores_is_one_sentence_that_says_what_to_run(results: Path) -> None:
    (results / "scores.csv").unlink()
    with pytest.raises(InputError, match=r"scores\.csv does not exist: run `make paper PROFILE=smoke`"):
        report.all_tables("smoke")
    assert not (results / "tables").exists()


def test_a_missing_condition_in_the_file_is_the_plain_one(results: Path) -> None:
    pd.concat([scores(), scores(condition="blank")]).drop(columns="source").to_csv(results / "scores.csv", index=False)
    assert ",," in (results / "scores.csv").read_text().splitlines()[1], "an empty cell, which pandas reads as NaN"
    read = report.read_scores("smoke")
    assert set(read["condition"]) == {"", "blank"}
    assert row(report.tgated_table2(read), "CLIPSeg baseline")["FLARE22 measured"] == pytest.approx(0.4)
    assert row(report.tgated_table4(read), "blank prompt")["measured Dice"] == pytest.approx(0.55)


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The profiles whose claims were asked for; nothing is written for them."""
    asked: list[str] = []
    monkeypatch.setattr("lib.report.everything.write_claims", lambda profile: asked.append(profile) or [])
    return asked


def written(paths: list[Path]) -> set[str]:
    return {path.stem.removeprefix("tgated_") for path in paths}


def test_all_tables_are_written_whole_and_carry_profile_and_source(results: Path, claims: list[str]) -> None:
    paths = report.all_tables("smoke")
    names = ("table1", "table2", "table3", "seeds", "ablation_absent", "tests", "consistency", "conventions")
    assert [path.name for path in paths] == [f"tgated_{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    assert sorted(path.name for path in (results / "tables").iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        text = path.read_text()
        assert "smoke profile: phantoms, not patients: not clinical" in text
        assert ("committed scores, config 0123456789ab" in text) == ("table1" not in path.name)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in report.all_tables("smoke")] == before and claims == ["smoke", "smoke"]


def test_a_table_is_written_once_one_of_its_own_runs_is_there(results: Path, claims: list[str]) -> None:
    old = results / "tables" / "tgated_table4.md"
    old.parent.mkdir()
    old.write_text("as it was")
    one = {("adapter", "a"): {"liver": (0.8, 10)}}
    own = {
        "table4": scores(one, condition="synonym"),
        "table5": scores(one, "AMOS22 MRI"),
        "ablation_released": scores({("adapter, released gate first", "a"): one["adapter", "a"]}),
        "ablation_parts": scores({("adapter, no gate, seed 1", "a"): one["adapter", "a"]}),
        "ablation_controls": scores({("centre only", "a"): one["adapter", "a"]}),
        "ablation_doses": scores(one, "FLARE22, 20% degraded"),
        "ablation_spacings": scores(one, "FLARE22, slices x2"),
    }
    plain = scores()
    always = {"table1", "table2", "table3", "seeds", "ablation_absent", "tests", "consistency", "conventions"}
    for name, more in own.items():
        assert (old.read_text() == "as it was") == (name == "table4"), "a table without runs keeps its old files"
        pd.concat([plain, more]).drop(columns="source").to_csv(results / "scores.csv", index=False)
        assert written(report.all_tables("smoke")) == always | {name}
    pd.concat([plain, *own.values()]).drop(columns="source").to_csv(results / "scores.csv", index=False)
    paths = report.all_tables("smoke")
    assert written(paths) == always | {*own} and len(paths) == 3 * 15
    assert "1 cases" not in old.read_text() and "2 cases of FLARE22" in old.read_text()


def test_the_samples_have_tables_of_their_own(results: Path, claims: list[str]) -> None:
    folder = results.parent / "sample"
    folder.mkdir()
    mri = scores({("adapter", "mr"): {"liver": (0.3, 10)}}, "sample MRI")
    pd.concat([scores(dataset="sample CT"), mri]).drop(columns="source").to_csv(folder / "scores.csv", index=False)
    paths = report.all_tables("sample")
    assert written(paths) >= {"table2", "table3", "table5", "tests", "consistency", "conventions"} and claims == ["sample"]
    assert all("two real scans" in path.read_text() for path in paths)
    consistency = next(path for path in paths if path.name == "tgated_consistency.md").read_text()
    assert "2 cases of sample CT" in consistency and "| CLIPSeg baseline | 4 | 16 |" in consistency


def test_the_three_formats_are_well_formed(results: Path) -> None:
    frame = pd.DataFrame({"a_b": ["x & y | z", "w"], "Dice": [0.123456, NAN], "Dice low": [0.1, NAN], "Dice high": [0.2, NAN]})
    csv, md, tex = (path.read_text() for path in report.write_table(frame, "t_1", "50 % of it.", "smoke"))
    assert csv.splitlines()[0] == "a_b,Dice,Dice low,Dice high,caption"
    assert csv.splitlines()[1].startswith('x & y | z,0.123456,0.1,0.2,"50 % of it.') and csv.splitlines()[2] == "w,,,,"
    assert md.splitlines()[2:] == ["| a_b | Dice |", "| --- | ---: |", r"| x & y \| z | 0.123 [0.100, 0.200] |", "| w | – |"]
    assert r"\caption{50 \% of it." in tex and r"x \& y | z & 0.123 [0.100, 0.200] \\" in tex and r"a\_b & Dice \\" in tex
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:t_1}"))


def test_a_table_is_utf_8_whatever_the_locale(results: Path) -> None:
    """The dash of a missing number, written by a process that reads and writes ASCII by default."""
    code = "import pandas; from lib.report import write_table; write_table(pandas.DataFrame({'Dice': [float('nan')]}), 't', '', 'smoke')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}, check=True)
    assert "| – |" in (results / "tables" / "t.md").read_text(encoding="utf-8")


def test_the_note_of_each_profile() -> None:
    assert "phantoms, not patients" in report.data_note("demo")
    assert "two real scans" in report.data_note("sample") and "no claim about accuracy" in report.data_note("sample")
    assert report.data_note("full") == "full profile: scans of patients"


def test_seeds_stand_beside_their_run() -> None:
    again = scores().assign(run=lambda frame: frame["run"] + ", seed 2", dice=lambda frame: frame["dice"] / 2)
    table = report.seeds(pd.concat([scores(), again]))
    assert table[["run", "seed"]].to_numpy().tolist() == [["adapter", 0], ["adapter", 2], ["baseline", 0], ["baseline", 2]]
    baseline = table[table["run"] == "baseline"].set_index("seed")
    assert baseline.loc[0, "mean Dice"] == pytest.approx(0.4) and baseline.loc[2, "mean Dice"] == pytest.approx(0.2)
    assert baseline.loc[0, "n"] == 2


def test_seeds_are_of_headline_runs_on_real_data_sets_by_their_names() -> None:
    one = {("adapter", "a"): {"liver": (0.8, 10)}}
    others = [
        scores(one, "FLARE22, 20% degraded"),
        scores(one, condition="blank"),
        scores({("adapter, no gate", "a"): one["adapter", "a"]}),
    ]
    table = report.seeds(pd.concat([scores(), scores(one, "AMOS22 MRI"), *others]))
    assert table[["run", "dataset"]].to_numpy().tolist() == [["adapter", "AMOS22 MRI"], ["adapter", "FLARE22"], ["baseline", "FLARE22"]]
    assert table.loc[1, "mean Dice"] == pytest.approx(0.55), "the blank prompts' rows do not enter"
