"""What a notebook's first cell runs on Colab, inside its kernel: installs what the project needs beside what Colab has already loaded.

It uses nothing but the standard library and `packaging`, since nothing of the project is installed yet.
"""

import os
import subprocess
import sys
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
DRIVE = Path("/content/drive")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def kept(loaded: Collection[str]) -> dict[str, str]:
    """{package: its version} of what must stay as it is: torch, which fits this machine's card, and what the kernel has loaded.

    loaded: names of modules. A package whose version the requirements rule out is not kept: the kernel must be restarted for it.
    """
    ours = {canonicalize_name(wanted.name): wanted for wanted in map(Requirement, _lines(ROOT / "requirements.txt"))}
    owners, modules = packages_distributions(), {name.partition(".")[0] for name in loaded}
    names = {name for module in modules for name in owners.get(module, ())}
    found = {canonicalize_name(name): _version(name) for name in {"torch", *names}}
    return {
        name: here for name, here in found.items() if here and (name not in ours or ours[name].specifier.contains(here, prereleases=True))
    }


def constraints(stay: dict[str, str]) -> str:
    """The tested versions, with those of `stay` in the place of their own."""
    tested = dict(line.split("==") for line in _lines(ROOT / "constraints.txt"))
    return "".join(f"{name}=={number}\n" for name, number in ({canonicalize_name(n): v for n, v in tested.items()} | stay).items())


def install() -> None:
    """Installs the requirements and the project; what the running kernel has loaded stays. Raises CalledProcessError if pip fails."""
    stay = kept([*sys.modules])
    path = ROOT / "build" / "colab-constraints.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(constraints(stay))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements.txt"), "-c", str(path)], check=True)
    subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
    sys.path.insert(0, str(ROOT))  # this kernel has read its list of editable installs already
    print(f"installed; torch {_version('torch')}")


def keep_results_on_drive() -> None:
    """Mounts the reader's Google Drive, and lets results go there, where the next session finds them."""
    from google.colab import drive

    drive.mount(str(DRIVE))
    os.environ["RESULTS_ROOT"] = str(DRIVE / "MyDrive" / ROOT.name / "results")


if __name__ == "__main__":
    install()
    if globals().get("ON_DRIVE"):
        keep_results_on_drive()
