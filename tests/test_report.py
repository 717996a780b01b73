"""lib/report.py on a handful of scores whose means, intervals and files are worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib import report
from lib.organs import BY_KEY, KEYS
from lib.paths import InputError
from lib.published import TGATED_TABLE1, TGATED_TABLE2, TGATED_TABLE3, TGATED_TABLE3_MEAN

pytestmark = pytest.mark.filterwarnings("error")  # they would end up in a notebook's output
NAN = float("nan")
# (run, case): Dice and true voxels of liver and spleen. In case b the spleen is absent: the adapter marks it, the baseline does not.
TWO_CASES = {
    ("baseline", "a"): {"liver": (0.5, 100), "spleen": (0.2, 50)},
    ("baseline", "b"): {"liver": (0.7, 100), "spleen": (NAN, 0)},
    ("adapter", "a"): {"liver": (0.8, 100), "spleen": (0.6, 50)},
    ("adapter", "b"): {"liver": (0.8, 100), "spleen": (0.0, 0)},
}


def scores(cases: dict = TWO_CASES, dataset: str = "FLARE22", config: str = "0123456789ab") -> pd.DataFrame:
    rows = [
        {"run": run, "config": config, "dataset": dataset, "case": case, "organ": organ, "dice": dice, "truth_voxels": voxels}
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
        expected = {"baseline": source, "adapter": source, "centre only": "not run yet"}
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


def test_all_tables_are_written_whole_and_carry_profile_and_source(results: Path) -> None:
    paths = report.all_tables("smoke")
    names = ("tgated_table1", "tgated_table2", "tgated_table3", "tgated_seeds")
    assert [path.name for path in paths] == [f"{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    assert sorted(path.name for path in (results / "tables").iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        text = path.read_text()
        assert "smoke profile: phantoms, not patients: not clinical" in text
        assert ("committed scores, config 0123456789ab" in text) == ("table1" not in path.name)
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in report.all_tables("smoke")] == before


def test_the_three_formats_are_well_formed(results: Path) -> None:
    frame = pd.DataFrame({"a_b": ["x & y | z", "w"], "Dice": [0.123456, NAN], "Dice low": [0.1, NAN], "Dice high": [0.2, NAN]})
    csv, md, tex = (path.read_text() for path in report.write_table(frame, "t_1", "50 % of it.", "smoke"))
    assert csv.splitlines()[0] == "a_b,Dice,Dice low,Dice high,caption"
    assert csv.splitlines()[1].startswith('x & y | z,0.123456,0.1,0.2,"50 % of it.') and csv.splitlines()[2] == "w,,,,"
    assert md.splitlines()[2:] == ["| a_b | Dice |", "| --- | ---: |", r"| x & y \| z | 0.123 [0.100, 0.200] |", "| w | – |"]
    assert r"\caption{50 \% of it." in tex and r"x \& y | z & 0.123 [0.100, 0.200] \\" in tex and r"a\_b & Dice \\" in tex
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:t_1}"))


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
