"""What a notebook's first cell runs in Colab's kernel: installs what the project needs and Colab lacks.

Until then there is nothing but the standard library. `make badges` runs this file, too, and writes the cells.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DRIVE = "/content/drive"
# What Colab's kernel runs on or has loaded, and torch, which fits the card: other versions crash the kernel
STAYS = (
    "ipykernel", "ipython", "ipywidgets", "jupyter-client", "jupyter-core", "pyzmq", "tornado", "traitlets",
    "torch", "numpy", "pandas", "scipy", "matplotlib", "pillow",
)
TAG = "colab"  # marks what `make badges` writes, so that the next call finds it
INSTALLER = "INSTALLED_BY_PROCESS"  # environment variable, which kernels started from this one inherit
HOST = "https://github.com/"
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{stem}.ipynb) "
    "On Colab the next cell fetches the repository and installs what Colab lacks; elsewhere it does nothing."
)
CELL = """\
import os
import runpy
import subprocess
import sys

REPOSITORY = "{address}"  # or your fork's, and @branch if not main
ON_DRIVE = False  # True: results on your Google Drive, where the next session takes them up
SETTINGS = {{}}  # at full size such as {{"PROFILE": "full", "DATA_ROOT": "/content/data"}}: see data/colab.md

if "google.colab" in sys.modules:
    if not os.path.exists("../tools/colab.py"):
        address, branch = f"{{REPOSITORY}}@main".split("@")[:2]
        assert "/OWNER/" not in address, "Put your fork's address into REPOSITORY and run this cell again."
        if not os.path.exists(home := os.path.basename(address)):
            subprocess.run(["git", "clone", "--depth=1", "-b", branch, address, home], check=True)
        os.chdir(f"{{home}}/notebooks")
    runpy.run_path("../tools/colab.py", {{"ON_DRIVE": ON_DRIVE, "SETTINGS": SETTINGS}}, run_name="colab")"""


def constraints() -> str:
    """A constraints file for pip: what is installed of `STAYS`, in the version that is installed."""
    lines = []
    for name in STAYS:
        with suppress(PackageNotFoundError):
            lines.append(f"{name}=={version(name)}\n")
    return "".join(lines)


def install(*options: str) -> None:
    """Installs the project with further pip `options`; `STAYS` stay. Ends in a sentence if pip fails."""
    with tempfile.TemporaryDirectory() as folder:
        (stays := Path(folder, "stays.txt")).write_text(constraints())
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
        command = [*pip, "--editable", str(ROOT), "--constraint", str(stays), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(*done.stdout.splitlines()[-20:], sep="\n")
        sys.exit("The project's needs cannot be installed beside what Colab has; pip's reason stands above.")
    sys.path.insert(0, str(ROOT))  # this kernel has read its list of editable installs already
    print(f"installed; torch {version('torch')}")


def repository() -> str:
    """OWNER/REPOSITORY, as pyproject.toml names it. Ends in a sentence if it names no such address."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    name = address.removesuffix("/").removesuffix(".git").removeprefix(HOST)
    if not address.startswith(HOST) or name.count("/") != 1:
        sys.exit(f"pyproject.toml names {address!r} as Repository: Colab opens {HOST}OWNER/REPOSITORY alone.")
    return name


def with_address(text: str) -> str:
    """README with the repository's address in its badges and in its line that clones it."""
    name = repository()
    text = re.sub(r"(google\.com/github/)[\w.-]+/[\w.-]+(?=/blob)", rf"\g<1>{name}", text)
    return re.sub(r"git clone \S+ && cd \S+", f"git clone {HOST}{name} && cd {name.split('/')[1]}", text)


def with_badge(path: Path) -> str:
    """A notebook's .py with the current badge and cell behind its opening, its other cells as they are."""
    import jupytext
    from nbformat.v4 import new_code_cell, new_markdown_cell

    name = repository()
    badge = new_markdown_cell(BADGE.format(repository=name, stem=path.stem), metadata={"tags": [TAG]})
    cell = new_code_cell(CELL.format(address=HOST + name), metadata={"tags": [TAG]})
    notebook = jupytext.read(path)
    own = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]
    notebook.cells = [*own[:1], badge, cell, *own[1:]]
    return jupytext.writes(notebook, fmt="py:percent")


if __name__ == "colab":  # as a notebook's cell calls this file
    if os.environ.setdefault(INSTALLER, str(os.getpid())) == str(os.getpid()):
        install()  # not in papermill's kernels below it: of two pips at once, one may fail
    os.environ.update(globals().get("SETTINGS", {}))
    if globals().get("ON_DRIVE"):
        from google.colab import drive

        drive.mount(DRIVE)
        for name in ("results", "figures"):
            os.environ[f"{name.upper()}_ROOT"] = f"{DRIVE}/MyDrive/{ROOT.name}/{name}"
elif __name__ == "__main__":
    texts = {ROOT / "README.md": with_address((ROOT / "README.md").read_text())}
    texts |= {path: with_badge(path) for path in sorted((ROOT / "notebooks").glob("*.py"))}
    for path, text in texts.items():
        if text != path.read_text():
            path.write_text(text)
            print(f"badges: {path.relative_to(ROOT)}")
