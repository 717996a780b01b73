"""The set-up files agree with each other, and the Makefile does what it says."""

import os
import re
import shlex
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

MAKE, GIT = shutil.which("make"), shutil.which("git")
BOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.py"))
STEMS = sorted({*BOOKS, *(path.stem for path in ROOT.glob("notebooks/*.ipynb"))})
NEEDED, NOTEBOOKS, CHECKS = REQUIREMENTS = tuple(
    f"requirements{part}.txt" for part in ("", "-notebooks", "-checks")
)


def lines_of(name: str) -> list[str]:
    """Lines of a requirements file without comments."""
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


ALL_LINES = [line for name in REQUIREMENTS for line in lines_of(name)]


def pins() -> dict[str, str]:
    pairs = (line.split("==") for line in lines_of("constraints.txt"))
    return {canonicalize_name(name): version for name, version in pairs}


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """What make says, without its own variables of the environment and in plain English."""
    environment |= {"PATH": os.environ["PATH"]}
    command = [str(MAKE), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


needs_make = pytest.mark.skipif(not MAKE, reason="make is not installed")


def test_conda_users_get_the_same_requirements() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [entry["pip"] for entry in dependencies if isinstance(entry, dict)] == [ALL_LINES]
    assert "python>=3.11" in dependencies


@pytest.mark.parametrize("requirement", map(Requirement, ALL_LINES), ids=lambda requirement: requirement.name)
def test_each_range_has_two_ends_and_a_tested_version_inside(requirement: Requirement) -> None:
    assert sorted(part.operator for part in requirement.specifier) == ["<", ">="]
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier
    assert requirement.name not in ("torchvision", "timm")


def test_constraints_are_exact_and_hold_for_every_build_of_torch() -> None:
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines_of("constraints.txt"))
    assert pins()["torch"] == "2.13.0" and not {"torchvision", "timm"} & {*pins()}


def test_the_project_installs_lib_and_tools_with_what_they_need_and_the_rest_by_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dynamic = project["tool"]["setuptools"]["dynamic"]
    optional = {"notebooks": {"file": [NOTEBOOKS]}, "checks": {"file": [CHECKS]}}
    optional["nnunet"] = {"file": ["requirements-nnunet.txt"]}  # alone, for it needs torchvision
    assert (dynamic["dependencies"], dynamic["optional-dependencies"]) == ({"file": [NEEDED]}, optional)
    assert project["tool"]["setuptools"]["packages"] == {"find": {"include": ["lib*", "tools*"]}}
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert cited == project["project"]["version"]


@pytest.mark.skipif(not GIT, reason="git is not installed")
def test_gitignore_keeps_what_is_committed_and_hides_what_is_not(tmp_path: Path) -> None:
    kept = ["lib/files.py", "data/README.md", "results/demo/scores.csv", "results/demo/tables/t.tex"]
    kept += ["results/demo/figure_data/a.npz", "figures/demo/f.png", "notebooks/01.ipynb", "published/a.csv"]
    hidden = [".venv/x", "build/x", "data/cache/x", "data/FLARE22/x.nii.gz", "lib/__pycache__/a.pyc"]
    hidden += ["results/smoke/scores.csv", "results/full/notebooks/01.ipynb", "results/demo/runs/a/log.csv"]
    hidden += ["results/demo/a.safetensors", "results/demo/a.nii.gz", "results/demo/.scores.csv.part.csv"]
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run([str(GIT), "init", "--quiet", tmp_path], check=True)
    command = [str(GIT), "check-ignore", *kept, *hidden]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == hidden


@needs_make
def test_plain_make_lists_the_targets() -> None:
    listed = re.findall(r"^  make (\S+)", make().stdout, re.MULTILINE)
    assert listed[:4] == ["help", "paper", "figures", "report"] and len(set(listed)) == len(listed)
    named = re.findall(r"^([a-z][a-z-]*):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed == named, "each target that says what it does, and nothing else"
    everyday = {"site", "badges", "samples", "segment", "data-check", "export", "score", "bench", "notebooks"}
    assert everyday | {"test", "test-browser", "lint", "clean"} <= {*listed}


def test_texts_and_hooks_name_targets_that_there_are() -> None:
    targets = {*re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    named = re.findall(r"make --silent ([a-z-]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    texts = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "data/full.md")]
    code = [path for folder in ("lib", "tools", "notebooks") for path in ROOT.glob(f"{folder}/*.py")]
    for path in texts + code:
        named += re.findall(r"`make ([a-z0-9-]+)", path.read_text(encoding="utf-8"))
    assert len(named) > 20 and {*named} <= targets, {*named} - targets


@needs_make
def test_another_environment_skips_the_install() -> None:
    installed = re.findall(r"pip install .*", make("--dry-run", "--always-make", "paper").stdout)
    assert installed[0].endswith(f"-r {NEEDED} -r {NOTEBOOKS} -r {CHECKS} -c constraints.txt")
    assert "pip install" not in make("--dry-run", "--always-make", "PY=python", "paper").stdout


@needs_make
def test_relative_folders_count_from_the_repository_and_absolute_ones_stay() -> None:
    show = 'show: ; @echo "$$PROFILE|$$SAMPLES|$$DATA_ROOT|$$CACHE_ROOT"'
    done = make(f"--eval={show}", "show", "SAMPLES=../my scans", DATA_ROOT="/d", CACHE_ROOT="c")
    assert done.stdout == f"demo|{ROOT}/../my scans|/d|{ROOT}/c\n"
    assert make(f"--eval={show}", "show", "CACHE_ROOT=~/cache").stdout == "demo|||~/cache\n"
    assert make(f"--eval={show}", "show", "PROFILE=smoke").stdout == "smoke|||\n"


# The notebooks, as make runs them


def planned(*arguments: str) -> dict[str, list[str]]:
    """{notebook: the arguments that tools.notebooks would get}, in the order of work."""
    done = make("--dry-run", "--always-make", "PY=python", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [line.partition("python -m tools.notebooks ")[2] for line in done.stdout.splitlines()]
    return {Path((words := shlex.split(line))[0]).stem: words[1:] for line in lines if line}


@needs_make
def test_a_notebook_waits_for_its_source_for_lib_and_for_those_that_it_needs() -> None:
    home = "results/demo/notebooks/"
    done, waits = make("--dry-run", "--print-data-base", "PY=python", "executed"), dict[str, set[str]]()
    for name, words in re.findall(rf"^{home}(\w+)\.ipynb:(.*)$", done.stdout, re.MULTILINE):
        waits.setdefault(name, set()).update(words.split())
    lib = {f"lib/{path.name}" for path in (ROOT / "lib").glob("*.py")}
    assert {"notebooks/02_baseline.py"} | lib <= waits["02_baseline"]
    needs = {}
    for name, words in waits.items():
        needs[name] = {Path(word).stem for word in words if word.startswith(home)}
    start, last = {"00_stand_in", "01_data_preparation"}, "08_figures"
    for name in ("02_baseline", "03_temporal_adapter", "07_med_vlm"):
        assert needs[name] == start, "so that they run side by side"
    for name in ("04_ablations", "05_zero_shot", "06_mri", "09_your_scan"):
        assert needs[name] == {"03_temporal_adapter"}
    assert needs[last] == {*BOOKS} - {last}, "figures come last"
    order = list(planned("executed"))
    assert {*order} == {*BOOKS}
    for name, before in needs.items():
        assert all(order.index(other) < order.index(name) for other in before), name


@needs_make
def test_profile_all_and_seeds_reach_the_notebooks() -> None:
    demo, full = planned("executed"), planned("executed", "PROFILE=full", "ALL=1")
    for name, words in demo.items():
        target = f"results/demo/notebooks/{name}.ipynb"
        assert words == [target, "-p", "PROFILE", "demo", "--also", f"notebooks/{name}.ipynb"]
    for name, words in full.items():
        everything = ["-p", "EVERY_RUN", "True", "-p", "SEEDS", "[0, 1, 2]"]
        assert words == [f"results/full/notebooks/{name}.ipynb", "-p", "PROFILE", "full", *everything]
    some = planned("executed", "ALL=1", "SEEDS=[0, 5]")["02_baseline"]
    assert "[0, 5]" in some and "[0, 1, 2]" not in some
    elsewhere = planned("executed", "RESULTS_ROOT=/disk")
    assert elsewhere["02_baseline"][0] == "/disk/demo/notebooks/02_baseline.ipynb"


@needs_make
def test_figures_come_from_the_stored_scores() -> None:
    stored = planned("figures", "PROFILE=smoke")
    assert [*stored][-1] == "08_figures" and not {"00_stand_in", "09_your_scan"} & {*stored}
    for name, words in stored.items():  # and no committed notebook is written
        assert words == [f"build/stored/smoke/{name}.ipynb", "-p", "PROFILE", "smoke", "-p", "TRAIN", "False"]


@needs_make
def test_a_blank_in_the_folder_of_results_is_one_sentence() -> None:
    done = make("--dry-run", "PY=python", "paper", "RESULTS_ROOT=my results")
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and "holds a blank" in done.stderr


@needs_make
def test_clean_deletes_products_and_leaves_links_and_what_is_not_its_own(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    mine = ("data/FLARE22/images/a.nii.gz", "disk/cache/a.npy", "lib/a.py", "tools/a.py", "tests/a.py")
    made = ("build/site/index.html", "results/smoke/scores.csv", "notebooks/.ipynb_checkpoints/a")
    for name in (*mine, *made):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "data/cache").symlink_to(tmp_path / "disk/cache")
    (tmp_path / "dist").symlink_to(tmp_path / "gone")
    said = {*make("clean", folder=tmp_path).stdout.splitlines()}
    gone = ("build", "results/smoke", "notebooks/.ipynb_checkpoints")
    assert {"leaving data/cache, which is a link", *(f"deleting {name}" for name in gone)} <= said
    assert all((tmp_path / name).is_file() for name in (*mine, "data/cache/a.npy"))
    assert (tmp_path / "dist").is_symlink() and not any((tmp_path / name).exists() for name in gone)


@needs_make
def test_no_python_is_one_clear_sentence(tmp_path: Path) -> None:
    for name in ("Makefile", *REQUIREMENTS, "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = make("PYTHON=no-such-python", "paper", folder=tmp_path)
    first, *rest = done.stderr.splitlines()
    assert first.startswith("Python 3.11 or newer is needed, and no-such-python is not: name one by make ")
    assert done.returncode != 0 and all(line.startswith("make") for line in rest)
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_no_notebook_is_a_failure_and_not_a_silent_pass(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = make("PY=python", "test-notebooks", folder=tmp_path)
    assert done.returncode != 0 and "there is no notebooks/*.py to run" in done.stderr


@pytest.mark.parametrize("stem", STEMS)
def test_notebook_pairs_are_in_step(stem: str) -> None:
    """Same cells, same order, same tags in the .py and the .ipynb; `make notebooks` mends it."""
    pair = []
    for suffix in (".ipynb", ".py"):
        cells = jupytext.read(ROOT / "notebooks" / f"{stem}{suffix}").cells
        pair.append([(cell["cell_type"], cell["source"], cell["metadata"].get("tags", [])) for cell in cells])
    assert pair[0] == pair[1]
    outputs = [cell.get("outputs") for cell in jupytext.read(ROOT / "notebooks" / f"{stem}.ipynb").cells]
    assert " at 0x" not in str(outputs), "an object's address: debris that differs in every execution"
