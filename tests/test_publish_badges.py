"""publish.badges and publish.colab: the first cell of a notebook, on Colab and elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jupytext
import pytest

from lib.paths import ROOT, InputError
from publish import badges, colab

SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
ADDRESS = "https://github.com/someone/something"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the repository's address."""
    return lambda url: monkeypatch.setattr(badges, "project", lambda: {"urls": {"Repository": url}})


# Badges


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_notebook_carries_the_current_badge_and_cell(path: Path) -> None:
    """`make badges` mends it. Written again, nothing changes."""
    assert badges.with_badge(path) == path.read_text()
    cells = jupytext.read(path).cells
    assert cells[0].cell_type == "markdown" and "**Question.**" in cells[0].source, "a notebook opens with its question"
    badge, cell = badges.colab_cells(path.stem)
    assert [(c.cell_type, c.source) for c in cells[1:3]] == [("markdown", badge.source), ("code", cell.source)]
    assert len(cell.source.splitlines()) < 25


def test_another_address_changes_badge_and_cell_alone(address: Callable[[str], None], tmp_path: Path) -> None:
    path = tmp_path / "03_temporal_adapter.py"
    before = (ROOT / "notebooks/03_temporal_adapter.py").read_text()
    path.write_text(before)
    address(ADDRESS + ".git")
    after = badges.with_badge(path)
    path.write_text(after)
    assert badges.with_badge(path) == after
    assert f'REPOSITORY = "{ADDRESS}"\n' in after
    assert "colab.research.google.com/github/someone/something/blob/main/notebooks/03_temporal_adapter.ipynb)" in after
    changed = {line for line in after.splitlines() if line not in before.splitlines()}
    assert len(changed) == 2, "nothing else moves"


@pytest.mark.parametrize("url", ["https://example.org/someone/something", "https://github.com/someone"])
def test_an_address_that_colab_cannot_open_is_one_sentence(url: str, address: Callable[[str], None]) -> None:
    address(url)
    with pytest.raises(
        InputError, match=r"names .* as Repository, which Colab cannot open: give it as https://github.com/OWNER/REPOSITORY"
    ):
        badges.colab_cells("01")


# The cell


def run_cell(address_: str = ADDRESS, drive: bool = False) -> None:
    code = badges.CELL.format(address=address_)
    exec(code.replace("ON_DRIVE = False", f"ON_DRIVE = {drive}"), {"__name__": "__main__"})


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Notes what would be run, in an empty folder; a clone is a folder with what the cell needs of the repository."""
    ran: list[list[str]] = []

    def stand_in(command: list[str], **_: object) -> None:
        ran.append(command)
        if command[0] == "git":
            (tmp_path / command[-1] / "notebooks").mkdir(parents=True)
            (tmp_path / command[-1] / "publish").mkdir()
            for name in ("publish/colab.py", "requirements.txt", "constraints.txt"):
                (tmp_path / command[-1] / name).write_text((ROOT / name).read_text())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", stand_in)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return ran


@pytest.fixture
def on_colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for google.colab; notes where the drive is mounted."""
    mounted: list[str] = []
    for name in ("google", "google.colab"):
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["google"].colab = sys.modules["google.colab"]  # type: ignore[attr-defined]
    sys.modules["google.colab"].drive = SimpleNamespace(mount=mounted.append)  # type: ignore[attr-defined]
    return mounted


def test_elsewhere_the_cell_does_nothing(calls: list[list[str]], tmp_path: Path) -> None:
    before = dict(os.environ)
    run_cell()
    assert not calls and Path.cwd() == tmp_path and not list(tmp_path.iterdir()) and dict(os.environ) == before


def test_on_colab_the_cell_clones_and_installs_and_a_second_time_installs_alone(
    calls: list[list[str]], on_colab: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_cell()
    home = tmp_path / "something"
    assert Path.cwd() == home / "notebooks" and sys.path[0] == str(home)
    assert calls[0] == ["git", "clone", "--depth=1", ADDRESS, "something"]
    wanted, own = calls[1:]
    assert wanted[:4] == [sys.executable, "-m", "pip", "install"] and wanted[-4:-2] == ["-r", str(home / "requirements.txt")]
    assert own[-3:] == ["--no-deps", "-e", str(home)]
    assert f"torch=={version('torch')}" in Path(wanted[-1]).read_text().split()
    assert capsys.readouterr().out == f"installed; torch {version('torch')}\n"
    run_cell()
    assert [command[0] for command in calls].count("git") == 1 and len(calls) == 5
    assert not on_colab and "RESULTS_ROOT" not in os.environ


def test_results_go_to_the_drive_on_request(calls: list[list[str]], on_colab: list[str]) -> None:
    run_cell(drive=True)
    assert on_colab == ["/content/drive"]
    assert os.environ["RESULTS_ROOT"] == "/content/drive/MyDrive/something/results"


# What is installed


def test_what_the_kernel_has_loaded_stays_if_the_requirements_allow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("torch>=2,<3\nnumpy>=2.0,<3\npandas>=2.2,<4\n")
    (tmp_path / "constraints.txt").write_text("# tested\nnumpy==2.4.6\npandas==3.1.1\nscipy==1.17.1\ntorch==2.13.0\n")
    installed = {"torch": "2.9.0+cu126", "numpy": "2.0.2", "pandas": "2.1.0", "ipython": "7.34.0", "scipy": "1.16.0"}
    modules = {"numpy": ["numpy"], "pandas": ["pandas"], "IPython": ["ipython"], "scipy": ["scipy"]}
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    monkeypatch.setattr(colab, "_version", lambda name: installed.get(name, ""))
    monkeypatch.setattr(colab, "packages_distributions", lambda: modules)
    stay = colab.kept(["numpy.linalg", "pandas", "IPython.core", "os"])
    assert stay == {"torch": "2.9.0+cu126", "numpy": "2.0.2", "ipython": "7.34.0"}, "pandas is too old, and scipy was not loaded"
    assert colab.constraints(stay).split() == [
        "numpy==2.0.2",
        "pandas==3.1.1",
        "scipy==1.17.1",
        "torch==2.9.0+cu126",
        "ipython==7.34.0",
    ]


def test_the_cells_are_in_the_ipynb_too() -> None:
    for path in SOURCES:
        book = json.loads(path.with_suffix(".ipynb").read_text())
        tagged = [cell for cell in book["cells"] if badges.TAG in cell["metadata"].get("tags", [])]
        assert ["".join(cell["source"]) for cell in tagged] == [cell.source for cell in badges.colab_cells(path.stem)], path.stem
