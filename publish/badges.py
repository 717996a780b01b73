"""`make badges`: every notebook's Colab badge and first cell, for the address that stands in pyproject.toml alone."""

import sys
from pathlib import Path

import jupytext
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from lib.paths import ROOT, InputError, replacing

from .contents import project

TAG = "colab"  # marks what is written here, so that the next call finds it
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
from pathlib import Path

REPOSITORY = "{address}"  # or your fork's, and @branch if not main
ON_DRIVE = False  # True: results on your Google Drive, where the next session takes them up

if "google.colab" in sys.modules:
    if not Path("../publish/colab.py").exists():
        if "/OWNER/" in REPOSITORY:
            sys.exit("Put your fork's address into REPOSITORY above, and run this cell again.")
        address, branch = (REPOSITORY + "@main").split("@")[:2]
        home = Path(address).name
        if not Path(home).exists():
            subprocess.run(["git", "clone", "--depth=1", "-b", branch, address, home], check=True)
        os.chdir(f"{{home}}/notebooks")
    runpy.run_path("../publish/colab.py", {{"ON_DRIVE": ON_DRIVE}}, run_name="__main__")"""


def colab_cells(stem: str) -> list[NotebookNode]:
    """The badge and the cell of a notebook.

    Raises:
        InputError: the address in pyproject.toml is not one that Colab can open.
    """
    address = project()["urls"]["Repository"].removesuffix("/").removesuffix(".git")
    repository = address.removeprefix(HOST)
    if address == repository or repository.count("/") != 1:
        raise InputError(f"pyproject.toml names {address!r} as Repository, which Colab cannot open: give it as {HOST}OWNER/REPOSITORY.")
    badge = BADGE.format(repository=repository, stem=stem)
    code = CELL.format(address=address)
    return [new_markdown_cell(badge, metadata={"tags": [TAG]}), new_code_cell(code, metadata={"tags": [TAG]})]


def with_badge(path: Path) -> str:
    """A notebook's .py with the current badge and cell behind its opening, and its other cells as they are."""
    notebook = jupytext.read(path)
    own = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]
    notebook.cells = [*own[:1], *colab_cells(path.stem), *own[1:]]
    return jupytext.writes(notebook, fmt="py:percent")


def main() -> None:
    """Command line of the Makefile."""
    try:
        for path in sorted((ROOT / "notebooks").glob("*.py")):
            text = with_badge(path)
            if text != path.read_text():
                with replacing(path) as part:
                    part.write_text(text)
                print(f"badges: {path.relative_to(ROOT)}")
    except InputError as error:
        sys.exit(f"badges: {error}")


if __name__ == "__main__":
    main()
