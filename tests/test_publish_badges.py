"""publish.badges and publish.colab: the first cell of a notebook, on Colab and elsewhere."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
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
    assert len(cell.source.splitlines()) < 20


def test_another_address_changes_badge_and_cell_alone(address: Callable[[str], None], tmp_path: Path) -> None:
    path = tmp_path / "03_temporal_adapter.py"
    before = (ROOT / "notebooks/03_temporal_adapter.py").read_text()
    path.write_text(before)
    address(ADDRESS + ".git")
    after = badges.with_badge(path)
    path.write_text(after)
    assert badges.with_badge(path) == after
    assert f'REPOSITORY = "{ADDRESS}"  #' in after
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

PIP = {"returncode": 0, "stdout": ""}  # how a command ends here


def run_cell(address_: str = ADDRESS, drive: bool = False) -> None:
    code = badges.CELL.format(address=address_)
    exec(code.replace("ON_DRIVE = False", f"ON_DRIVE = {drive}"), {"__name__": "__main__"})


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Notes what would be run, in an empty folder; a clone is a folder with what the cell needs of the repository."""
    ran: list[list[str]] = []

    def stand_in(command: list[str], **_: object) -> SimpleNamespace:
        ran.append(command)
        if command[0] == "git":
            (tmp_path / command[-1] / "notebooks").mkdir(parents=True)
            (tmp_path / command[-1] / "publish").mkdir()
            (tmp_path / command[-1] / "publish/colab.py").write_text((ROOT / "publish/colab.py").read_text())
        return SimpleNamespace(**PIP)

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
    cloned, installed = calls
    assert cloned == ["git", "clone", "--depth=1", "-b", "main", ADDRESS, "something"]
    assert installed[:4] == [sys.executable, "-m", "pip", "install"] and installed[-4:-1] == ["--editable", str(home), "--constraint"]
    assert capsys.readouterr().out == f"installed; torch {version('torch')}\n"
    run_cell()
    assert [command[0] for command in calls] == ["git", sys.executable, sys.executable]
    assert not on_colab and "RESULTS_ROOT" not in os.environ


def test_a_fork_s_branch_is_cloned_by_its_name(calls: list[list[str]], on_colab: list[str]) -> None:
    run_cell(f"{ADDRESS}@fix/gate")
    assert calls[0] == ["git", "clone", "--depth=1", "-b", "fix/gate", ADDRESS, "something"]


def test_while_the_address_is_a_placeholder_one_sentence_says_what_to_do(
    calls: list[list[str]], on_colab: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^Put your fork's address into REPOSITORY above, and run this cell again\.$"):
        run_cell("https://github.com/OWNER/REPOSITORY")
    assert not calls and not list(tmp_path.iterdir())


def test_in_a_checkout_no_address_is_needed(
    calls: list[list[str]], on_colab: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "clone", "mine"])
    monkeypatch.chdir(tmp_path / "mine/notebooks")
    run_cell("https://github.com/OWNER/REPOSITORY")
    assert calls[1][-3] == str(tmp_path / "mine")


def test_what_cannot_be_installed_is_one_sentence_below_pip_s_own(
    calls: list[list[str]], on_colab: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PIP, "returncode", 1)
    monkeypatch.setitem(PIP, "stdout", "ERROR: ResolutionImpossible\n")
    with pytest.raises(SystemExit, match="cannot be installed beside what Colab has; pip's reason stands above"):
        run_cell()
    assert capsys.readouterr().out == "ERROR: ResolutionImpossible\n" and str(ROOT) not in sys.path[:1]


def test_results_go_to_the_drive_on_request(calls: list[list[str]], on_colab: list[str]) -> None:
    run_cell(drive=True)
    assert on_colab == ["/content/drive"]
    assert os.environ["RESULTS_ROOT"] == "/content/drive/MyDrive/something/results"


# What stays


def test_what_stays_is_named_in_the_version_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "monai": "1.6.1"}

    def stand_in(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(colab, "version", stand_in)
    assert colab.constraints() == "torch==2.11.0+cu128\nnumpy==2.1.3\n", "monai may change, and pandas is not here"


def test_the_cells_are_in_the_ipynb_too() -> None:
    for path in SOURCES:
        book = json.loads(path.with_suffix(".ipynb").read_text())
        tagged = [cell for cell in book["cells"] if badges.TAG in cell["metadata"].get("tags", [])]
        assert ["".join(cell["source"]) for cell in tagged] == [cell.source for cell in badges.colab_cells(path.stem)], path.stem
