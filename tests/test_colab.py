"""What a notebook's first cell installs on Colab: pip resolves it beside Colab's own packages, in an environment that states them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.paths import ROOT
from publish.colab import STAYS

PIP = "pip==24.1.2"  # Colab's own


def stated() -> dict[str, tuple[str, list[str]]]:
    """{package: its version on Colab, what it needs}."""
    blocks = re.findall(r"^([\w-]+)==(\S+)\n((?: +\S.*\n)*)", (ROOT / "tests/colab.txt").read_text(), re.MULTILINE)
    return {name: (version, needs.split()) for name, version, needs in blocks}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment's interpreter: Colab's pip, and of each of Colab's packages no more than its metadata."""
    home = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin/python"
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", PIP], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{PIP} cannot be fetched, so nothing can be resolved: {done.stderr.strip().splitlines()[-1]}")
    site = next(home.glob("lib/python*/site-packages"))
    for name, (version, needs) in stated().items():
        for other in site.glob(f"{name}-*.dist-info"):  # setuptools comes with Python 3.11's venv
            shutil.rmtree(other)
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        for empty in ("INSTALLER", "RECORD"):
            (folder / empty).touch()
    return python


def test_what_must_stay_is_stated() -> None:
    assert set(STAYS) <= set(stated())
    assert stated()["tokenizers"] == ("0.22.2", ["huggingface-hub<2.0,>=0.16.4"])


@pytest.mark.slow
def test_what_colab_has_stays_and_what_it_lacks_resolves(python: Path, tmp_path: Path) -> None:
    """Asks a package registry; without one it is skipped, and says so."""
    for name in ("pyproject.toml", "LICENSE", "requirements.txt", "requirements-notebooks.txt", "requirements-checks.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "publish").mkdir()
    for name in ("__init__.py", "colab.py"):
        shutil.copy(ROOT / "publish" / name, tmp_path / "publish")
    code = "from publish.colab import install; install('--dry-run', '--report', 'report.json')"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    added = {canonicalize_name(entry["metadata"]["name"]) for entry in report["install"]}
    assert not added & set(stated()), "each of these stays as Colab has it"
    wanted = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert {canonicalize_name(requirement.name) for requirement in wanted} <= added | set(stated()), "nothing is left out"
