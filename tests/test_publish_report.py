"""publish.contents and publish.report: what stands in the CSV files is read as written, and printed."""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from lib.paths import ROOT, InputError
from lib.report import formatted, write_table
from lib.report.formatting import _markdown
from publish import report
from publish.contents import (
    hardware,
    part_of,
    read_contents,
    read_table,
    sentence,
    title_of,
    verdicts,
    versions,
)

needs_pdftotext = pytest.mark.skipif(not shutil.which("pdftotext"), reason="pdftotext is not installed")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's scores, two of its tables and its claims, and one figure, in a folder of their own."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path / "figures"))
    folder, figures = tmp_path / "results" / "demo", tmp_path / "figures" / "demo"
    (folder / "tables").mkdir(parents=True)
    figures.mkdir(parents=True)
    for name in ("scores.csv", "claims.csv", "tables/tgated_table2.csv", "tables/medvlm_table3.csv"):
        shutil.copy(ROOT / "results/demo" / name, folder / name)
    shutil.copy(ROOT / "figures/demo/doses.png", figures)
    return folder


def words_of(pdf: Path) -> str:
    return subprocess.run(["pdftotext", "-layout", pdf, "-"], check=True, capture_output=True, text=True).stdout


# Reading


def test_a_table_comes_back_from_its_csv_as_it_was_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    frame = pd.DataFrame(
        {
            "method": ["a", "difference b - a", "c"],
            "Dice": [1.0, 0.25, float("nan")],  # a whole number is no count
            "Dice low": [0.5, float("nan"), float("nan")],
            "Dice high": [1.0, float("nan"), float("nan")],
            "Dice n": [10, 1, 0],
            "cases": pd.array([3, None, 0], "Int64"),
            "printed": ["53", "2.9", ""],
            "change in %": [1e-5, -12.0, 3.0],
        }
    )
    path = write_table(frame, "tgated_table9", "Some words, 50 % of them.", "demo")[0]
    table = read_table(path)
    pd.testing.assert_frame_equal(table.cells, formatted(frame))
    assert table.cells["Dice"].tolist() == ["1.000 [0.500, 1.000], n = 10", "+0.250 [n/a], n = 1", "– (not run yet)"]
    assert table.cells["printed"].tolist() == ["53", "2.9", ""]
    assert table.caption == "Some words, 50 % of them. (demo profile: phantoms, not patients: not clinical.)"


@pytest.mark.parametrize("path", sorted((ROOT / "results/demo/tables").glob("*.csv")), ids=lambda path: path.stem)
def test_a_committed_table_reads_as_its_markdown(path: Path) -> None:
    table = read_table(path)
    assert _markdown(table.cells, table.caption) == path.with_suffix(".md").read_text()


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "caption\n"], ids=["empty", "no caption", "no rows"])
def test_a_file_that_is_no_table_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=r"t.csv is no table with a caption in its last column: run `make figures`"):
        read_table(tmp_path / "t.csv")


def test_titles_and_parts_follow_from_the_names() -> None:
    names = ("tgated_table2", "medvlm_fig4", "tgated_ablation_doses", "gate_maps", "common_ground")
    assert [title_of(name) for name in names] == ["Table 2", "Figure 4", "Ablation doses", "Gate maps", "Common ground"]
    papers = ["T-Gated Adapter", "Med-VLM on BTCV", "T-Gated Adapter", "T-Gated Adapter", "Both papers on common ground"]
    assert [part_of(name) for name in names] == papers


def test_verdicts_are_counted_by_kind() -> None:
    rows = [("direction", "reproduced")] * 2 + [("direction", "not reproduced"), ("size", "not testable in this profile")]
    claims = pd.DataFrame([*rows, ("arithmetic", "agrees"), ("arithmetic", "does not agree")], columns=["kind", "verdict"])
    counts = verdicts(claims).set_index("claims about")
    assert counts.loc["direction"].tolist() == [2, 1, 0, 0, 0] and counts.loc["pairing"].sum() == 0
    assert "of 3 claimed directions that can be tested here (who is ahead), 2 are reproduced" in sentence(claims)
    assert "1 of 1 claimed sizes" in sentence(claims) and "1 of 2 sums" in sentence(claims)


def test_what_is_not_there_is_named_by_part(results: Path) -> None:
    contents = read_contents("demo")
    assert [table.name for table in contents.tables] == ["tgated_table2", "medvlm_table3"]
    assert [picture.name for picture in contents.pictures] == ["doses"]
    assert {"Table 1", "Figure 1", "Seeds"} <= {*contents.absent["T-Gated Adapter"]}
    assert contents.absent["Both papers on common ground"] == ["Common ground"]
    runs = contents.runs.set_index(["run", "seed"])
    scores = pd.read_csv(results / "scores.csv")
    assert runs.loc[("adapter", 1), "scores"] == (scores["run"] == "adapter, seed 1").sum()


def test_versions_and_hardware_are_this_machine_s() -> None:
    found = versions()
    assert found["pandas"] == pd.__version__ and len(found) > 20
    assert "cores" in hardware()["processor"] and hardware()["memory"].endswith("GiB")


# Printing


@needs_pdftotext
def test_the_pdf_holds_the_numbers_of_the_csv_and_changes_with_them(results: Path) -> None:
    pdf = report.typeset("demo")
    words = words_of(pdf)
    path = results / "tables" / "tgated_table2.csv"
    measured = pd.read_csv(path).loc[1, "FLARE22 measured"]  # the adapter's
    assert f"{measured:.3f}" in words and "0.988" not in words
    assert words.count("phantoms, not patients: not clinical") >= words.count("\f"), "each page says what it shows"
    assert "Not run in the demo profile: Table 1" in " ".join(words.split())
    path.write_text(path.read_text().replace(str(measured), "0.987654"))
    again = words_of(report.typeset("demo"))
    assert "0.988" in again and again.count(f"{measured:.3f}") < words.count(f"{measured:.3f}")


def test_the_same_files_give_the_same_pdf(results: Path) -> None:
    first = report.typeset("demo").read_bytes()
    assert report.typeset("demo").read_bytes() == first and first.startswith(b"%PDF")
    assert not list(results.glob(".*.part*"))


def test_a_figure_without_words_keeps_its_title_for_who_cannot_see_it(results: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "figures/demo/gate_maps.png")
    shown = {picture.name: picture.caption for picture in read_contents("demo").pictures}
    assert shown["gate_maps"] == "T-Gated Adapter, Gate maps." and all(shown.values())


@pytest.mark.parametrize(("lost", "said"), [("scores.csv", "make paper PROFILE=demo"), ("claims.csv", "make figures PROFILE=demo")])
def test_nothing_to_print_is_one_sentence(lost: str, said: str, results: Path) -> None:
    (results / lost).unlink()
    with pytest.raises(InputError) as caught:
        report.typeset("demo")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (results / "report.pdf").exists()
