"""tools.notebooks keeps executed notebooks as git likes them; those of this repository are readable."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from tiny import files_of

from lib.files import ROOT
from tools import notebooks
from tools.notebooks import bring_in_step, cleaned, execute, value_of

SOURCE = """# %% [markdown]
# # A question

# %%
import os
import sys
from IPython.display import HTML, display

# %% tags=["parameters"]
PROFILE = "demo"
SEEDS = (0,)

# %%
print(PROFILE, SEEDS, os.getcwd())
print("50 %", file=sys.stderr)

# %%
display(HTML("<b>42</b>"))
6 * 7
"""
BOOKS = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project of one notebook."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_test.py").write_text(SOURCE)
    return tmp_path


def test_a_notebook_is_kept_with_its_outputs_and_nothing_that_differs_from_run_to_run(home: Path) -> None:
    source, target = home / "notebooks" / "01_test.py", home / "out" / "01_test.ipynb"
    contents = set()
    for _ in range(2):
        execute(source, target, {"PROFILE": "smoke", "SEEDS": [0, 1]})
        contents.add(target.read_bytes())
    (content,) = contents  # no clock times, no random names
    assert files_of(home) == ["notebooks/01_test.py", "out/01_test.ipynb"]
    notebook = nbformat.read(target, as_version=4)
    nbformat.validate(notebook)
    cells, script = (
        [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in book.cells]
        for book in (notebook, jupytext.read(source))
    )
    assert cells == script, "the parameters were injected, and the injected cell is gone"
    text, shown = notebook.cells[3].outputs, notebook.cells[4].outputs
    assert [output.get("text") for output in text] == [f"smoke [0, 1] {home / 'notebooks'}\n"], "no stderr"
    assert [output.data["text/plain"] for output in shown] == ["<IPython.core.display.HTML object>", "42"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3, 4]
    assert shown[1].execution_count == 4
    assert [*notebook.metadata] == ["jupytext", "kernelspec", "language_info"] and b"papermill" not in content
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_a_pair_in_step_stays_as_it_is_and_a_new_cell_alone_has_no_outputs(home: Path) -> None:
    """Also where two blank lines stand between cells, which jupytext's --update would note in the .ipynb."""
    source = home / "notebooks" / "01_test.py"
    source.write_text(SOURCE + "\n\n# %%\nA = 1\n\n\n# %%\ndef f():\n    return 2\n\n\nf()\n")
    execute(source, target := source.with_suffix(".ipynb"), {})
    before = target.read_bytes()
    bring_in_step(source)
    assert target.read_bytes() == before
    source.write_text(source.read_text() + "\n# %%\nprint(A)\n")
    bring_in_step(source)
    cells = nbformat.read(target, 4).cells
    assert cells[-1].source == "print(A)" and not cells[-1].outputs
    assert cells[3].outputs and cells[4].outputs and cells[-2].outputs


def test_a_cell_that_fails_is_one_sentence_and_leaves_the_older_notebook(home: Path) -> None:
    """With the command's own process, as make sees it: a status that is not 0, and no stack trace."""
    source, target = home / "notebooks" / "01_test.py", home / "out" / "01_test.ipynb"
    source.write_text('# %%\nwhere = "after"\nraise OSError("no such\\norgan")\n\n# %%\nopen(where, "w")\n')
    target.parent.mkdir()
    target.write_text("older")
    command = [sys.executable, "-m", "tools.notebooks", str(source), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    told = f'{source}, in the cell `where = "after"`, stops with OSError: no such organ'
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, told)
    assert target.read_text() == "older", "and nothing runs after the failure:"
    assert files_of(home) == ["notebooks/01_test.py", "out/01_test.ipynb"]


def test_of_a_widget_the_picture_stays_and_a_bar_goes_altogether() -> None:
    """A widget without its kernel shows nothing, and hides the picture that stands beside it."""
    widget, scan = {notebooks.WIDGET: {"model_id": "a"}}, {"image/png": "AAAA", "text/plain": "Slice 2"}
    shown = widget | {"text/plain": "  0%|          | 0/6"}, widget | scan, {"text/plain": "no widget"}
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)])
    book.metadata.language_info = {"name": "python"}
    kept = [output.data for output in cleaned(book).cells[0].outputs]
    assert kept == [scan, {"text/plain": "no widget"}]


def test_a_notebook_gets_the_parameters_that_it_has(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Path, dict[str, Any]]] = []

    def executed(source: Path, target: Path, parameters: dict[str, Any]) -> None:
        given.append((source, parameters))
        target.write_text("executed")

    monkeypatch.setattr(notebooks, "execute", executed)
    source, target, also = home / "notebooks" / "01_test.py", home / "a.ipynb", home / "notebooks" / "a.ipynb"
    pairs = ["-p", "PROFILE", "smoke", "-p", "EVERY_RUN", "True", "-p", "SEEDS", "[0, 1]"]
    monkeypatch.setattr(sys, "argv", ["notebooks", str(source), str(target), *pairs, "--also", str(also)])
    notebooks.main()
    assert given == [(source, {"PROFILE": "smoke", "SEEDS": [0, 1]})], "it has no EVERY_RUN"
    assert target.read_text() == also.read_text() == "executed"
    assert [value_of(text) for text in ("True", "3", "../a b")] == [True, 3, "../a b"]


# The notebooks of this repository


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_cells_are_short_and_hold_no_class(path: Path) -> None:
    """What is long or has a state of its own belongs into lib, where it has tests."""
    for cell in jupytext.read(path).cells:
        if cell.cell_type != "code":
            continue
        lines, tree = cell.source.splitlines(), ast.parse(cell.source)
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree)), lines[0]
        imports = all(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
        assert len(lines) <= 30 or imports, lines[0]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_its_question_and_has_its_parameters_in_one_cell(path: Path) -> None:
    cells = jupytext.read(path).cells
    assert cells[0].cell_type == "markdown" and "**Question.**" in cells[0].source
    assert cells[0].source.startswith(f"# {path.stem[:2]} · ")
    (parameters,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    assert 'PROFILE = os.environ.get("PROFILE", "demo")' in parameters
    for name in set(re.findall(r"^(\w+) =", parameters, re.MULTILINE)) - {"TRAIN"}:  # which make gives to all
        used = [cell for cell in cells if cell.cell_type == "code" and re.search(rf"\b{name}\b", cell.source)]
        assert len(used) > 1, f"{name} changes nothing"
