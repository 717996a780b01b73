"""Runs a notebook by papermill and keeps it as git likes it: the same cells and outputs on every run.

`python -m tools.notebooks notebooks/02_baseline.py OUT.ipynb -p PROFILE demo` is one rule of the Makefile.
"""

import argparse
import ast
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from jupytext.combine import combine_inputs_with_outputs
from nbformat import NotebookNode

from lib.files import InputError, replacing

WIDGET = "application/vnd.jupyter.widget-view+json"  # needs a kernel; the picture beside it does not
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def cleaned(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs from run to run: times, counters, bars, injected parameters."""
    cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for number, cell in enumerate(cells):
        tags = cell.metadata.get("tags", [])
        cell.metadata, cell.id = NotebookNode({"tags": tags} if tags else {}), f"cell-{number}"
        if cell.cell_type == "code":
            cell.execution_count = count = count + 1
            outputs = [one for one in cell.outputs if one.get("name") != "stderr"]  # bars and warnings
            widgets = [one for one in outputs if one.get("data", {}).pop(WIDGET, None)]
            bars = [one for one in widgets if {*one.data} <= {"text/plain"}]
            cell.outputs = [one for one in outputs if one not in bars]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    language = notebook.metadata.get("language_info", {})
    language = {key: language[key] for key in ("name", "file_extension", "mimetype") if key in language}
    metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": KERNEL, "language_info": language}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def execute(source: Path, target: Path, parameters: dict[str, Any]) -> None:
    """Runs the notebook that a .py:percent file holds, in its folder, and writes it to `target`.

    InputError: a cell ended in an error, which is told in one sentence; nothing is written.
    """
    options = {"cwd": str(source.parent), "kernel_name": "python3", "language": "python", "log_output": True}
    options |= {"extra_arguments": ["--IPKernelApp.log_level=ERROR"]}  # it warns that it is local
    with tempfile.TemporaryDirectory() as folder:
        given, executed = Path(folder, "in.ipynb"), Path(folder, "out.ipynb")
        jupytext.write(jupytext.read(source), given)
        try:
            papermill.execute_notebook(given, executed, parameters, **options)
        except papermill.PapermillExecutionError as error:
            first, why = error.source.strip().partition("\n")[0], " ".join(error.evalue.split())
            raise InputError(f"{source}, in the cell `{first}`, stops with {error.ename}: {why}") from error
        with replacing(target) as part:
            nbformat.write(cleaned(nbformat.read(executed, 4)), part)


def bring_in_step(source: Path) -> None:
    """Writes a .py's cells into the .ipynb beside it; outputs stay where jupytext finds their cells again.

    The rest as `cleaned` has it: jupytext's --update puts blank lines of the .py into the cells' metadata.
    """
    target, notebook = source.with_suffix(".ipynb"), jupytext.read(source)
    if target.exists():
        older = nbformat.read(target, 4)
        notebook = combine_inputs_with_outputs(notebook, older)
        notebook.metadata = older.metadata
    with replacing(target) as part:
        nbformat.write(cleaned(notebook), part)


def value_of(text: str) -> Any:
    """A parameter's value as the command line gives it: True, False, numbers, lists of these, or text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main() -> None:
    """Command line of the Makefile; `in-step` and notebooks: brings each one's .ipynb in step."""
    if sys.argv[1:2] == ["in-step"]:
        for path in map(Path, sys.argv[2:]):
            bring_in_step(path)
        return
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--also", type=Path, help="a second place for the executed notebook")
    asked = parser.parse_args()
    source, target = asked.source.resolve(), asked.target.absolute()
    cells = jupytext.read(source).cells
    known = next((cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])), "")
    try:
        given = {name: value_of(value) for name, value in asked.p if re.search(rf"^{name} =", known, re.M)}
        execute(source, target, given)
        if asked.also:
            with replacing(asked.also.absolute()) as part:
                shutil.copyfile(target, part)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
