"""The set-up files agree with each other, and the Makefile does what it says."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.files import ROOT

MAKE = shutil.which("make")
GIT = shutil.which("git")
STEMS = sorted({path.with_suffix("") for path in ROOT.glob("notebooks/*") if path.suffix in (".py", ".ipynb")})


def lines_of(name: str) -> list[str]:
    """Lines of a requirements file without comments."""
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


NEEDED, NOTEBOOKS, CHECKS = REQUIREMENTS = "requirements.txt", "requirements-notebooks.txt", "requirements-checks.txt"
ALL_LINES = [line for name in REQUIREMENTS for line in lines_of(name)]


def pins() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines_of("constraints.txt"))}


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]}  # and none of make's variables, nor a language for its messages
    return subprocess.run([str(MAKE), *arguments], cwd=folder, env=environment, capture_output=True, text=True)


needs_make = pytest.mark.skipif(not MAKE, reason="make is not installed")


def test_conda_users_get_the_same_requirements() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [entry["pip"] for entry in dependencies if isinstance(entry, dict)] == [ALL_LINES]
    assert "python>=3.11" in dependencies


@pytest.mark.parametrize("requirement", map(Requirement, ALL_LINES), ids=lambda requirement: requirement.name)
def test_each_range_has_two_ends_and_a_tested_version_inside(requirement: Requirement) -> None:
    assert sorted(part.operator for part in requirement.specifier) == ["<", ">="]
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_constraints_are_exact_and_hold_for_every_build_of_torch() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines_of("constraints.txt"))
    assert pins()["torch"] == "2.13.0"


@pytest.mark.parametrize("name", [*REQUIREMENTS, "constraints.txt", "environment.yml"])
def test_no_torchvision_and_no_timm(name: str) -> None:
    assert not re.search(r"\b(torchvision|timm)\b", (ROOT / name).read_text())


def test_the_project_itself_asks_for_what_it_needs_and_for_the_rest_by_name() -> None:
    dynamic = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": [NEEDED]}
    assert dynamic["optional-dependencies"] == {"notebooks": {"file": [NOTEBOOKS]}, "checks": {"file": [CHECKS]}}


def test_lib_is_what_gets_installed_and_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["packages"] == {"find": {"include": ["lib*"]}}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project["project"]["version"]


@pytest.mark.skipif(not GIT, reason="git is not installed")
def test_gitignore_keeps_what_is_committed_and_hides_what_is_not(tmp_path: Path) -> None:
    kept = [
        "lib/paths.py",
        "data/README.md",
        "results/demo/scores.csv",
        "results/demo/tables/t.tex",
        "figures/demo/f.png",
        "notebooks/01.ipynb",
    ]
    hidden = [".venv/x", "build/x", "data/cache/x", "data/FLARE22/x.nii.gz", "results/demo/runs/a/log.csv", "results/smoke/scores.csv"]
    hidden += ["results/demo/a.safetensors", "results/demo/a.nii.gz", "results/demo/.scores.csv.12.part.csv", "lib/__pycache__/a.pyc"]
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run([str(GIT), "init", "--quiet", tmp_path], check=True)
    done = subprocess.run([str(GIT), "check-ignore", *kept, *hidden], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == hidden


@needs_make
def test_plain_make_lists_the_targets() -> None:
    listed = re.findall(r"^  make (\S+)", make().stdout, re.MULTILINE)
    everyday = ["help", "paper", "figures", "report", "site", "badges", "samples", "segment", "test", "bench", "notebooks", "lint"]
    assert listed == [*everyday, "test-browser", "clean", "data-check", "splits", "export", "score", "full-proof"]


@needs_make
def test_another_environment_skips_the_install() -> None:
    installed = re.findall(r"pip install .*", make("--dry-run", "--always-make", "paper").stdout)
    assert installed[0].endswith(f"-r {NEEDED} -r {NOTEBOOKS} -r {CHECKS} -c constraints.txt")
    assert "pip install" not in make("--dry-run", "--always-make", "PY=python", "paper").stdout


@needs_make
def test_profile_and_all_reach_the_driver_and_relative_folders_become_absolute() -> None:
    assert "python paper.py paper --profile full --all" in make("--dry-run", "PY=python", "PROFILE=full", "ALL=1", "paper").stdout
    show = 'show: ; @echo "$$PROFILE|$$SAMPLES|$$DATA_ROOT"'
    assert make(f"--eval={show}", "show", "SAMPLES=../my scans", "DATA_ROOT=/data").stdout == f"demo|{ROOT}/../my scans|/data\n"
    assert make(f"--eval={show}", "show").stdout == "demo||\n"


@needs_make
def test_clean_deletes_products_and_leaves_links_and_what_is_not_its_own(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("build/site/index.html", "data/FLARE22/images/a.nii.gz", "results/smoke/scores.csv", "disk/cache/a.npy", "lib/a.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "data/cache").symlink_to(tmp_path / "disk/cache")
    (tmp_path / "dist").symlink_to(tmp_path / "gone")
    said = make("clean", folder=tmp_path).stdout
    assert "leaving data/cache, which is a link\n" in said and "deleting build\n" in said and "deleting results/smoke\n" in said
    assert (tmp_path / "data/cache/a.npy").is_file() and (tmp_path / "dist").is_symlink() and (tmp_path / "lib/a.py").is_file()
    assert (tmp_path / "data/FLARE22/images/a.nii.gz").is_file()
    assert not (tmp_path / "build").exists() and not (tmp_path / "results/smoke").exists()


@needs_make
def test_no_python_is_one_clear_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", *REQUIREMENTS, "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = make("PYTHON=no-such-python", "paper", folder=tmp_path)
    assert done.returncode != 0 and done.stderr.startswith("Python 3.11 or newer is needed, and no-such-python is not")
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_no_notebook_is_a_failure_and_not_a_silent_pass(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = make("PY=python", "test-notebooks", folder=tmp_path)
    assert done.returncode != 0 and "no notebooks" in done.stderr


@pytest.mark.parametrize("stem", STEMS, ids=lambda stem: stem.name)
def test_notebook_pairs_are_in_step(stem: Path) -> None:
    """Same cells, same order, same tags in the .py and the .ipynb; `make notebooks` mends it."""
    book, script = (jupytext.read(stem.with_suffix(suffix)) for suffix in (".ipynb", ".py"))
    assert [_essence(cell) for cell in book.cells] == [_essence(cell) for cell in script.cells]


def _essence(cell: dict) -> tuple[str, str, list[str]]:
    return cell["cell_type"], cell["source"], cell["metadata"].get("tags", [])
