"""lib.tables: scores come in with their names, tables go out in three formats with their caption."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.config import RUNS
from lib.files import ROOT, InputError
from lib.metrics import KEY
from lib.organs import KEYS
from lib.statistics import Estimate
from lib.tables import METHODS, raw, read_table, write

pytestmark = pytest.mark.filterwarnings("error")  # they would end up in a notebook's output
NAN = float("nan")
CAPTION = "50 % of it. (smoke profile: phantoms, not patients.)"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the smoke profile's results."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    return tmp_path / "smoke"


def table() -> pd.DataFrame:
    """A cell of each kind."""
    cells = {
        "Dice": [Estimate(0.1234567, 0.1, 0.2, 10), Estimate(NAN)],
        "gain": [Estimate(0.5, n=1, signed=True), None],
        "share": [0.25, NAN],
        "scans": [3, 0],
        "a_b": ["x & y | z", "w"],
    }
    return pd.DataFrame(cells, pd.Index(["DynUNet", "50 % of α"], name="method"))


def contents(results: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (results / "tables").iterdir()}


# Scores in


@pytest.mark.parametrize("config", ["012345678901", "1234567890e5"])
def test_names_that_look_like_numbers_stay_and_an_empty_condition_is_text(results: Path, config: str) -> None:
    results.mkdir()
    row = ["adapter: no gate", 0, "smoke", "site A", "", "", "0007", "liver", config, 0.5]
    blank = [*row[:5], "blank", *row[6:9], NAN]
    pd.DataFrame([row, blank], columns=[*KEY, "config", "dice"]).to_csv(results / "scores.csv", index=False)
    read = read_table("smoke", "scores.csv")
    assert read[["config", "case"]].to_numpy().tolist() == 2 * [[config, "0007"]]
    assert read["condition"].tolist() == ["", "blank"] and read["variant"].tolist() == ["", ""]
    assert read["dice"].isna().tolist() == [False, True], "a missing number stays one"


@pytest.mark.parametrize("name", ["scores.csv", "figure_data/presence.csv"])
def test_what_is_not_there_is_one_sentence_that_says_what_to_run(results: Path, name: str) -> None:
    with pytest.raises(InputError, match="does not exist: run `make paper PROFILE=smoke`") as caught:
        read_table("smoke", name)
    assert str(caught.value).startswith(str(results / name)) and not results.exists()


def test_the_committed_scores_have_one_row_a_case_and_organ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(ROOT / "results"))
    read = read_table("demo", "scores.csv")
    assert not read.duplicated(KEY).any() and {*read["organ"]} == {*KEYS} and {*read["profile"]} == {"demo"}
    assert read.groupby(["run", "seed"])["config"].nunique().max() == 1, "no table mixes two trainings"
    assert {*METHODS} <= {*RUNS} and {*METHODS} <= {*read["run"]}


# Tables out


def test_all_three_formats_are_written_and_carry_the_profile_s_note(results: Path) -> None:
    write(table(), "t_1", "50 % of it.", "smoke")
    written = contents(results)
    csv, md, tex = (written[f"t_1.{kind}"].decode() for kind in ("csv", "md", "tex"))
    assert csv.splitlines() == [
        "method,Dice,Dice low,Dice high,Dice n,gain,gain low,gain high,gain n,share,scans,a_b",
        "DynUNet,0.123457,0.1,0.2,10,0.5,,,1,0.25,3,x & y | z",
        "50 % of α,,,,0,,,,0,,0,w",
    ], "raw numbers alone"
    assert md.splitlines() == [
        "| method | Dice | gain | share | scans | a_b |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        r"| DynUNet | 0.123 [0.100, 0.200] | +0.500 | 0.250 | 3 | x & y \| z |",
        "| 50 % of α | – | – | – | 0 | w |",
        "",
        CAPTION,
    ]
    assert r"\caption{50 \% of it. (smoke profile: phantoms, not patients.)}" in tex
    assert r"\label{tab:t_1}" in tex and r"method & Dice & gain & share & scans & a\_b \\" in tex
    assert r"DynUNet & 0.123 [0.100, 0.200] & +0.500 & 0.250 & 3 & x \& y | z \\" in tex
    assert all(rule in tex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"50 \% of α & – "))
    write(table(), "t_1", "50 % of it.", "smoke")
    assert contents(results) == written and len(written) == 3, "the same bytes, and nothing else"


def test_a_table_is_shown_whole_with_its_caption(results: Path) -> None:
    words = " ".join(["word"] * 40)
    shown = write(table().assign(prompt=words), "t", "A < B & 50 % of it.", "smoke")
    text, html = repr(shown), shown._repr_html_()
    assert text.splitlines()[-1] == "A < B & 50 % of it. (smoke profile: phantoms, not patients.)"
    assert html.index("</table>") < html.index("A &lt; B &amp; 50 % of it.")
    assert "0.123 [0.100, 0.200]" in text and "0.123 [0.100, 0.200]" in html and "nan" not in text.lower()
    assert words in html, "pandas cuts a frame's own _repr_html_ after 50 letters"
    ours = pd.DataFrame({"Dice": [Estimate(0.5, 0.4, 0.6, 10, trainings=3)]})
    caption = write(ours, "t", "It.", "smoke").caption
    assert caption.startswith("It. 95 % intervals (Student's) over cases and 3 trainings; coverage")


def test_without_row_names_there_is_no_column_and_counts_are_told_from_numbers(results: Path) -> None:
    write(pd.DataFrame({"mean": [10.0, 1e-5], "count": [10, np.int64(1)]}), "t", "It.", "smoke")
    written = contents(results)
    assert written["t.csv"] == b"mean,count\n10.0,10\n1e-05,1\n"
    assert written["t.md"].startswith(b"| mean | count |\n| --- | ---: |\n| 10.000 | 10 |\n")


def test_columns_of_two_levels_become_one_line(results: Path) -> None:
    columns = pd.MultiIndex.from_tuples([("BTCV", "published"), ("BTCV", "here"), ("n", "")])
    write(pd.DataFrame([[0.334, Estimate(0.6, 0.5, 0.7, 10), 3]], columns=columns), "t", "It.", "smoke")
    written = contents(results)
    assert written["t.md"].startswith(b"| BTCV published | BTCV here | n |\n")
    assert b"| 0.334 | 0.600 [0.500, 0.700] | 3 |" in written["t.md"]
    assert written["t.csv"].startswith(b"BTCV published,BTCV here,BTCV here low,")


def test_raw_numbers_of_a_column_that_is_partly_estimated() -> None:
    found = raw(pd.DataFrame({"Dice": [Estimate(0.5, 0.4, 0.6, 9), "–", None], "scans": [1, 2, 3]}))
    assert list(found) == ["Dice", "Dice low", "Dice high", "Dice n", "scans"]
    assert found["Dice"].tolist() == pytest.approx([0.5, NAN, NAN], nan_ok=True)
    assert found["Dice n"].tolist() == [9, 0, 0] and found["scans"].tolist() == [1, 2, 3]


def test_a_folder_that_cannot_be_written_is_one_sentence(results: Path) -> None:
    results.write_text("mine")
    with pytest.raises(InputError, match=r"tables/t\.csv cannot be written"):
        write(table(), "t", "It.", "smoke")
    assert results.read_text() == "mine"


def test_a_failure_leaves_the_older_table(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three are made before the first is written, so no two tell of different scores."""
    write(table(), "t", "It.", "smoke")
    before = contents(results)
    monkeypatch.setattr(pd.DataFrame, "to_latex", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(table().head(1), "t", "It.", "smoke")
    assert contents(results) == before


def test_a_table_is_utf_8_whatever_the_locale(results: Path) -> None:
    """The dash of a missing number, written by a process that reads and writes ASCII by default."""
    code = "import pandas; from lib.tables import write; "
    code += "write(pandas.DataFrame({'Dice': [float('nan')]}), 't', '', 'smoke')"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert "| – |" in contents(results)["t.md"].decode()


def test_every_committed_table_has_its_three_files_and_the_demo_s_note() -> None:
    folder = ROOT / "results" / "demo" / "tables"
    names = {path.stem for path in folder.iterdir()}
    assert {f"tgated_table{n}" for n in range(1, 6)} | {f"medvlm_table{n}" for n in range(1, 5)} <= names
    for name in names:
        assert (folder / f"{name}.csv").is_file()
        for kind in ("md", "tex"):
            text = (folder / f"{name}.{kind}").read_text(encoding="utf-8")
            assert "demo profile: phantoms, not patients" in text, name
            assert not re.search(r"\bnan\b|Estimate\(", text), name
    bench = (ROOT / "results" / "bench" / "tables" / "bench.md").read_text(encoding="utf-8")
    assert "it measures time and memory, not accuracy" in bench
