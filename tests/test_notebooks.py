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

from lib.files import ROOT, InputError
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
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one notebook."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_test.py").write_text(SOURCE)
    return tmp_path


def test_a_notebook_is_kept_with_its_outputs_and_nothing_that_differs_from_run_to_run(home: Path) -> None:
    source, target = home / "notebooks" / "01_test.py", home / "out" / "01_test.ipynb"
    contents = []
    for _ in range(2):
        execute(source, target, {"PROFILE": "smoke", "SEEDS": [0, 1]})
        contents.append(target.read_bytes())
    assert contents[0] == contents[1], "no clock times, no random names"
    assert files_of(home) == ["notebooks/01_test.py", "out/01_test.ipynb"]
    notebook = nbformat.read(target, as_version=4)
    nbformat.validate(notebook)
    cells = [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]
    script = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in jupytext.read(source).cells]
    assert cells == script, "the parameters were injected, and the injected cell is gone"
    text, shown = notebook.cells[3].outputs, notebook.cells[4].outputs
    assert [output.get("text") for output in text] == [f"smoke [0, 1] {home / 'notebooks'}\n"], (
        "and no stderr"
    )
    assert [output.data["text/plain"] for output in shown] == ["<IPython.core.display.HTML object>", "42"]
    assert [cell.execution_count for cell in notebook.cells[1:]] == [1, 2, 3, 4]
    assert shown[1].execution_count == 4
    assert [*notebook.metadata] == [
        "jupytext",
        "kernelspec",
        "language_info",
    ] and b"papermill" not in contents[0]
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
    source, target = home / "notebooks" / "01_test.py", home / "out" / "01_test.ipynb"
    source.write_text('# %%\nwhere = "after"\nraise KeyError("no such\\norgan")\n\n# %%\nopen(where, "w")\n')
    with pytest.raises(InputError) as caught:
        execute(source, target, {})
    assert str(caught.value) == (
        f"""{source}, in the cell `where = "after"`, stops with KeyError: 'no such\\norgan'""".replace(
            "\n", ""
        )
    )
    assert files_of(home) == ["notebooks/01_test.py"], (
        "nothing is written, and nothing runs after the failure"
    )
    target.parent.mkdir()
    target.write_text("older")
    with pytest.raises(InputError):
        execute(source, target, {})
    assert target.read_text() == "older" and files_of(home) == ["notebooks/01_test.py", "out/01_test.ipynb"]


def test_of_a_widget_the_picture_stays_and_a_bar_goes_altogether() -> None:
    """A widget without its kernel shows nothing, and hides the picture that stands beside it."""
    widget = {notebooks.WIDGET: {"model_id": "a"}}
    scan, bar = (
        widget | {"image/png": "AAAA", "text/plain": "Slice 2"},
        widget | {"text/plain": "  0%|          | 0/6"},
    )
    outputs = [
        nbformat.v4.new_output("display_data", data) for data in (bar, scan, {"text/plain": "no widget"})
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)])
    book.metadata.language_info = {"name": "python"}
    kept = [output.data for output in cleaned(book).cells[0].outputs]
    assert kept == [{"image/png": "AAAA", "text/plain": "Slice 2"}, {"text/plain": "no widget"}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("False", False),
        ("3", 3),
        ("[0, 1, 2]", [0, 1, 2]),
        ("demo", "demo"),
        ("../a b", "../a b"),
    ],
)
def test_a_value_on_the_command_line(text: str, value: Any) -> None:
    assert value_of(text) == value and type(value_of(text)) is type(value)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["notebooks", *arguments])
    notebooks.main()


def test_a_notebook_gets_the_parameters_that_it_has_and_goes_to_both_places(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Path, dict[str, Any]]] = []

    def executed(source: Path, target: Path, parameters: dict[str, Any]) -> None:
        given.append((source, parameters))
        target.parent.mkdir()
        target.write_text("executed")

    monkeypatch.setattr(notebooks, "execute", executed)
    source, target, also = (
        home / "notebooks" / "01_test.py",
        home / "out" / "a.ipynb",
        home / "notebooks" / "a.ipynb",
    )
    pairs = ["-p", "PROFILE", "smoke", "-p", "EVERY_RUN", "True", "-p", "SEEDS", "[0, 1]"]
    run_main(monkeypatch, str(source), str(target), *pairs, "--also", str(also))
    assert given == [(source, {"PROFILE": "smoke", "SEEDS": [0, 1]})], "it has no EVERY_RUN"
    assert target.read_text() == also.read_text() == "executed"


def test_the_command_line_ends_in_one_sentence(tmp_path: Path) -> None:
    """With the command's own process, as make sees it: a status that is not 0, and no stack trace."""
    (tmp_path / "a.py").write_text("# %%\n1 / 0\n")
    command = [sys.executable, "-m", "tools.notebooks", str(tmp_path / "a.py"), str(tmp_path / "out.ipynb")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not (tmp_path / "out.ipynb").exists()
    last = done.stderr.splitlines()[-1]
    assert last == f"{tmp_path / 'a.py'}, in the cell `1 / 0`, stops with ZeroDivisionError: division by zero"


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
