"""segment.py and the overview picture: the command line is segment_scan's, and the picture is turned as a radiologist expects it."""

import inspect
import os
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tiny import tiny_settings

import segment
from lib.clipseg import build
from lib.figures import prompt_colours, scan_overview
from lib.organs import BY_KEY
from lib.paths import ROOT, write_json
from lib.scans import Segmentation, segment_scan
from lib.training.weights import save_weights
from lib.volumes import Grid
from lib.written import RECORD


@pytest.fixture
def run(tmp_path: Path) -> Path:
    settings = tiny_settings("baseline")
    save_weights(build(settings), tmp_path / "run" / "best.safetensors")
    write_json(tmp_path / "run" / "config.json", {"settings": asdict(settings), "finished": settings.hash()})
    return tmp_path / "run"


def found_in(shape: tuple[int, int, int]) -> Segmentation:
    """A liver in the patient's right front, and a stone."""
    labels = np.zeros(shape, np.uint8)
    labels[: shape[0] // 3, : shape[1] // 3] = 1
    labels[-1, -1] = 14
    volumes = pd.DataFrame({"prompt": ["liver", "a stone"], "label": [1, 14], "ml": [1234.56, 0.25]})
    grey = np.full(shape, 128, np.uint8)
    return Segmentation(("liver", "a stone"), Grid(shape, np.diag([-1.0, -2.0, 5.0, 1.0])), labels, grey, volumes, "CT", "a note")


def drawn(figure: Figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def test_the_overview_shows_what_was_found_where_a_reader_looks_for_it() -> None:
    found = found_in((30, 24, 12))
    figure = scan_overview(found, slices=4)
    assert "a note" in figure.get_suptitle() and "right is on the left" in figure.get_suptitle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["liver: 1234.6 ml", "a stone: 0.2 ml"]
    assert [axis.get_title() for axis in figure.axes] == [f"slice {z} of 12" for z in (2, 5, 8, 11)]
    canvas = drawn(figure)
    axis = figure.axes[0]
    box = axis.bbox
    assert box.height / box.width == pytest.approx(2 * 24 / 30, rel=0.02), "2 mm rows, 1 mm columns"
    left, top = axis.transData.transform((2, 2))  # column and row of the liver
    assert left < box.x0 + box.width / 3 and top > box.y0 + box.height * 2 / 3
    picture = np.asarray(canvas.buffer_rgba())
    shade = picture[picture.shape[0] - round(top), round(left), :3] / 255
    assert np.allclose(shade, 0.4 * np.array(colors.to_rgb(BY_KEY["liver"].colour)) + 0.6 * 128 / 255, atol=0.03)


def test_an_organ_has_its_own_colour_and_free_text_another() -> None:
    colours = prompt_colours(found_in((9, 9, 2)))
    assert colours[1] == BY_KEY["liver"].colour and colours[14] not in {organ.colour for organ in BY_KEY.values()}


@pytest.mark.parametrize("shape", [(1, 20, 9), (20, 1, 9), (20, 20, 1)])
def test_one_slice_along_any_axis_and_nothing_found_are_drawn_too(shape: tuple[int, int, int]) -> None:
    drawn(scan_overview(found_in(shape)))
    empty = replace(found_in(shape), labels=np.zeros(shape, np.uint8))
    figure = scan_overview(empty)
    drawn(figure)
    assert sum(bool(axis.get_title()) for axis in figure.axes) == min(shape[2], 8)


def test_the_command_writes_everything_once_and_says_what_it_found(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 400, (16, 14, 5)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([-2.0, -2, 5, 1])), tmp_path / "scan.nii.gz")
    words = [str(tmp_path / "scan.nii.gz"), str(tmp_path / "out"), "--prompts", "liver, a thing", "--checkpoint", str(run)]
    segment.main(words)
    said = capsys.readouterr().out
    assert "a thing" in said and "not for real scans" in said
    names = ["labels.nii.gz", "overview.png", "volumes.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*names, RECORD] and all(name in said for name in names)
    with pytest.raises(SystemExit, match="OVERWRITE=1"):
        segment.main(words)
    before = (tmp_path / "out" / "overview.png").read_bytes()
    segment.main([*words, "--overwrite"])
    assert (tmp_path / "out" / "overview.png").read_bytes() == before, "the same input gives the same bytes"
    (tmp_path / "out" / "overview.png").write_text("theirs")
    labels = (tmp_path / "out" / "labels.nii.gz").read_bytes()
    with pytest.raises(SystemExit, match=r"overview.png exists and is left as it is, for it was not written by this command"):
        segment.main([*words[:2], "--prompts", "spleen", *words[4:], "--overwrite"])
    assert (tmp_path / "out" / "overview.png").read_text() == "theirs" and (tmp_path / "out" / "labels.nii.gz").read_bytes() == labels


def test_the_command_line_names_what_segment_scan_takes() -> None:
    every = ["a.nii", "out", "--prompts", "liver", "--checkpoint", "baseline", "--profile", "smoke", "--modality", "MR", "--series", "3"]
    asked = vars(segment.arguments([*every, "--probabilities", "--overwrite"]))
    assert set(asked) == set(inspect.signature(segment_scan).parameters)
    assert set(vars(segment.arguments(["a.nii", "out"]))) == {"scan", "out", "prompts"}, "all others are segment_scan's defaults"


def make(*words: str) -> subprocess.CompletedProcess:
    command = ["make", "--no-print-directory", "-n", "PY=python", "segment", *words]
    return subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_hands_on_what_it_was_given() -> None:
    said = make("SCAN=my scan", "OUT=out", "PROMPTS=liver, a thing", "SERIES=3", "OVERWRITE=1").stdout
    assert " ".join(said.split()).endswith('segment.py --prompts "liver, a thing" --series "3" --overwrite "my scan" "out"')
    assert "name a scan and a folder" in make("SCAN=scan.nii.gz").stdout
