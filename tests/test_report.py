"""tools.report: the PDF holds what the profile's table files hold."""

import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from lib import figures, tables
from lib.files import InputError
from lib.statistics import Estimate
from tools.report import typeset


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tables and a figure of the demo, in a folder of their own."""
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path / "figures"))
    dice = [Estimate(0.5666, 0.5434, 0.5851, 10), Estimate(-0.0161, -0.0211, float("nan"), 1, signed=True)]
    frame = pd.DataFrame({"Dice": dice, "scans": [10, 1]}, index=pd.Index(["baseline", "gain"], name="run"))
    tables.write(frame, "tgated_table2", "Mean Dice with its interval.", "demo")
    tables.write(frame[["scans"]], "other_counts", "Scans by run, 50 % of them.", "demo")
    page, axis = plt.subplots(figsize=(2, 1))
    axis.plot([0, 1])
    figures.save(page, "tgated_fig9", "A line.", "demo")
    return tmp_path / "results" / "demo"


@pytest.mark.skipif(not shutil.which("pdftotext"), reason="pdftotext is not installed: it reads the PDF")
def test_the_pdf_holds_captions_and_intervals(results: Path) -> None:
    pdf = typeset("demo")
    assert pdf == results / "report.pdf"
    read = subprocess.run(["pdftotext", "-layout", pdf, "-"], check=True, capture_output=True, text=True)
    words = " ".join(read.stdout.split())
    assert "Mean Dice with its interval. (demo profile: phantoms, not patients.)" in words
    assert "Scans by run, 50 % of them." in words
    assert "0.567" in words and "[0.543, 0.585]" in words and "−0.016" in words
    assert "T-Gated Adapter" in words and "Beside the papers" in words and "tgated fig9" in words


def test_the_same_files_give_the_same_bytes(results: Path) -> None:
    first = typeset("demo").read_bytes()
    assert typeset("demo").read_bytes() == first and first.startswith(b"%PDF")
    assert sorted(path.name for path in results.iterdir()) == ["report.pdf", "tables"]


def test_no_table_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    with pytest.raises(InputError, match="holds no table: run `make figures PROFILE=smoke` first"):
        typeset("smoke")
    assert not list(tmp_path.iterdir())
