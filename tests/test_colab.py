"""tools.colab: badge and first cell of a notebook, and what pip resolves beside Colab's own packages."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jupytext
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.files import ROOT
from tools import colab

SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
Calls = list[list[str]]
ADDRESS = "https://github.com/someone/something"


def set_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(colab.tomllib, "loads", lambda _: {"project": {"urls": {"Repository": url}}})


# Badges


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_notebook_carries_the_current_badge_and_cell(path: Path) -> None:
    """`make badges` mends it. Written again, nothing changes."""
    assert colab.with_badge(path) == path.read_text()
    cells = jupytext.read(path).cells
    assert [cell.cell_type for cell in cells[:3]] == ["markdown", "markdown", "code"]
    assert all(cell.metadata["tags"] == ["colab"] for cell in cells[1:3])
    assert len(cells[2].source.splitlines()) <= 17


def test_another_address_changes_badge_and_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, before = tmp_path / SOURCES[3].name, SOURCES[3].read_text()
    path.write_text(before)
    set_address(monkeypatch, ADDRESS + ".git")
    path.write_text(after := colab.with_badge(path))
    assert colab.with_badge(path) == after
    badge = f"colab.research.google.com/github/someone/something/blob/main/notebooks/{path.stem}.ipynb)"
    assert badge in after and f'REPOSITORY = "{ADDRESS}"  #' in after
    assert len({*after.splitlines()} - {*before.splitlines()}) == 2, "nothing else moves"


def test_readme_s_badges_and_clone_follow_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    before = (colab.ROOT / "README.md").read_text()
    assert colab.with_address(before) == before
    set_address(monkeypatch, ADDRESS)
    after = colab.with_address(before)
    assert colab.with_address(after) == after and "OWNER" not in after
    assert after.count("google.com/github/someone/something/blob/main/notebooks/") == len(SOURCES)
    assert f"git clone {ADDRESS} && cd something\n" in after
    for path in SOURCES:
        assert f"notebooks/{path.stem}.ipynb)" in after


@pytest.mark.parametrize("url", ["https://example.org/someone/something", "https://github.com/someone"])
def test_an_address_that_colab_cannot_open_is_one_sentence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_address(monkeypatch, url)
    with pytest.raises(SystemExit, match=r"Colab opens https://github\.com/OWNER/REPOSITORY alone"):
        colab.with_badge(SOURCES[0])


# The cell

PIP = {"returncode": 0, "stdout": ""}  # how a command ends here


def run_cell(address_: str = ADDRESS, drive: bool = False, settings: dict | None = None) -> None:
    code = colab.CELL.format(address=address_)
    code = code.replace("ON_DRIVE = False", f"ON_DRIVE = {drive}")
    exec(code.replace("SETTINGS = {}", f"SETTINGS = {settings or {}}"), {"__name__": "__main__"})


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Notes what would be run, in an empty folder; a clone has what the cell needs of the repository."""
    ran: Calls = []

    def stand_in(command: list[str], **_: object) -> SimpleNamespace:
        ran.append(command)
        if command[0] == "git":
            (tmp_path / command[-1] / "notebooks").mkdir(parents=True)
            (tmp_path / command[-1] / "tools").mkdir()
            (tmp_path / command[-1] / "tools/colab.py").write_text((ROOT / "tools/colab.py").read_text())
        return SimpleNamespace(**PIP)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", stand_in)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("RESULTS_ROOT", "FIGURES_ROOT", colab.INSTALLER):
        os.environ.pop(name, None)  # conftest's
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


def test_elsewhere_the_cell_does_nothing(calls: Calls, tmp_path: Path) -> None:
    before = dict(os.environ)
    run_cell()
    assert not calls and Path.cwd() == tmp_path and not list(tmp_path.iterdir())
    assert dict(os.environ) == before


@pytest.mark.parametrize(("at", "branch"), [("", "main"), ("@fix/gate", "fix/gate")])
def test_on_colab_the_cell_clones_and_installs_and_a_second_time_installs_alone(
    calls: Calls, on_colab: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, at: str, branch: str
) -> None:
    run_cell(ADDRESS + at)
    home = tmp_path / "something"
    assert Path.cwd() == home / "notebooks" and sys.path[0] == str(home)
    cloned, installed = calls
    assert cloned == ["git", "clone", "--depth=1", "-b", branch, ADDRESS, "something"]
    assert installed[:4] == [sys.executable, "-m", "pip", "install"]
    assert installed[-4:-1] == ["--editable", str(home), "--constraint"]
    assert capsys.readouterr().out == f"installed; torch {version('torch')}\n"
    run_cell("https://github.com/OWNER/REPOSITORY")  # in a checkout no address is needed
    assert [command[0] for command in calls] == ["git", sys.executable, sys.executable]
    assert not on_colab and "RESULTS_ROOT" not in os.environ


def test_a_kernel_below_one_that_installed_does_not_install_again(
    calls: Calls, on_colab: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colab's `make paper` runs two notebooks side by side, whose cells would call pip at the same time."""
    run_cell()
    run_cell()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    run_cell(settings={"PRECISION": "fp16"})
    assert [command[0] for command in calls] == ["git", sys.executable, sys.executable]
    assert os.environ["PRECISION"] == "fp16", "the rest of the cell is done"


def test_a_placeholder_is_one_sentence(calls: Calls, on_colab: list[str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Put your fork's address into REPOSITORY and run this cell"):
        run_cell("https://github.com/OWNER/REPOSITORY")
    assert not calls and not list(tmp_path.iterdir())


def test_what_cannot_be_installed_is_one_sentence_below_pip_s_own(
    calls: Calls, on_colab: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(PIP, "returncode", 1)
    monkeypatch.setitem(PIP, "stdout", "ERROR: ResolutionImpossible\n")
    with pytest.raises(SystemExit, match="cannot be installed beside what Colab has; pip's reason stands"):
        run_cell()
    assert capsys.readouterr().out == "ERROR: ResolutionImpossible\n" and str(ROOT) not in sys.path[:1]


def test_results_go_to_the_drive_on_request(calls: Calls, on_colab: list[str]) -> None:
    run_cell(drive=True, settings={"PRECISION": "fp16"})
    assert on_colab == ["/content/drive"]
    for name in ("results", "figures"):
        assert os.environ[f"{name.upper()}_ROOT"] == f"/content/drive/MyDrive/something/{name}"
    assert os.environ["PRECISION"] == "fp16"


# What stays


def test_what_stays_is_named_in_the_version_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "monai": "1.6.1"}

    def stand_in(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(colab, "version", stand_in)
    assert colab.constraints() == "torch==2.11.0+cu128\nnumpy==2.1.3\n", "monai may change"


# What is installed

COLAB_PIP = "pip==24.1.2"  # Colab's own


def stated() -> dict[str, tuple[str, list[str]]]:
    """{package: its version on Colab, what it needs}."""
    text = (ROOT / "tests/colab.txt").read_text()
    blocks = re.findall(r"^([\w-]+)==(\S+)\n((?: +\S.*\n)*)", text, re.MULTILINE)
    return {name: (version, needs.split()) for name, version, needs in blocks}


def wanted() -> set[str]:
    """The packages that requirements.txt names."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return {canonicalize_name(Requirement(line).name) for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's interpreter: Colab's pip, and of Colab's packages no more than their metadata."""
    home = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin/python"
    command = [python, "-m", "pip", "install", "--quiet", COLAB_PIP]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1]
        pytest.skip(f"{COLAB_PIP} cannot be fetched, so nothing is resolved: {why}")
    site = next(home.glob("lib/python*/site-packages"))
    for name, (number, needs) in stated().items():
        for other in site.glob(f"{name}-*.dist-info"):  # setuptools comes with Python 3.11's venv
            shutil.rmtree(other)
        folder = site / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir()
        required = "".join(f"Requires-Dist: {need}\n" for need in needs)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{required}"
        for file, text in (("METADATA", metadata), ("INSTALLER", ""), ("RECORD", "")):
            (folder / file).write_text(text)
    return python


def test_what_must_stay_is_stated() -> None:
    assert set(colab.STAYS) <= set(stated())
    assert stated()["tokenizers"] == ("0.22.2", ["huggingface-hub<2.0,>=0.16.4"])


def test_all_that_is_imported_is_installed_or_colab_s_own() -> None:
    """Colab installs requirements.txt alone, and data/colab.md runs tools there, too."""
    folders = (ROOT / name for name in ("lib", "tools", "notebooks"))
    trees = [ast.parse(path.read_text()) for folder in folders for path in folder.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    own = {*sys.stdlib_module_names, "lib", "tools", "google"}  # google.colab is Colab's
    origin = packages_distributions()
    needed = {origin[name][0] for name in {name.split(".")[0] for name in names} - own}
    assert {canonicalize_name(name) for name in needed} <= wanted() | set(stated())


@pytest.mark.slow
def test_what_colab_has_stays_and_what_it_lacks_resolves(python: Path, tmp_path: Path) -> None:
    """Asks a package registry; without one it is skipped, and says so."""
    for name in ("pyproject.toml", "LICENSE", *(path.name for path in ROOT.glob("requirements*.txt"))):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tools").mkdir()
    for name in ("__init__.py", "colab.py"):
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools")
    code = "from tools.colab import install; install('--dry-run', '--report', 'report.json')"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    added = {canonicalize_name(entry["metadata"]["name"]) for entry in report["install"]}
    assert not added & set(stated()), "each of these stays as Colab has it"
    assert wanted() <= added | set(stated()), "nothing is left out"


def test_until_all_is_installed_the_standard_library_is_enough() -> None:
    """As the cell calls it: without site-packages, up to pip's own answer."""
    code = "import runpy; print(runpy.run_path('tools/colab.py')['constraints']() == '')"
    done = subprocess.run([sys.executable, "-S", "-I", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
