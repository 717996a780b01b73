"""paper.py: order of work, notebooks that run when something changed and never by halves, figures that need no training."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from proof.trees import write_trees

from lib import datasets
from lib.figures import extract
from lib.figures.gallery import gallery
from lib.paths import ROOT, InputError
from lib.profiles import HEADLINE, MEDVLM_HEADLINE, PROFILES, Settings, all_runs, is_finished, settings_of
from lib.profiles.pretrained import check_weights
from lib.runs import evaluate, run_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper", ROOT / "paper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESULTS_ROOT", "FIGURES_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / name))


def said_by(paper: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """With what the command line ends."""
    monkeypatch.setattr(sys, "argv", ["paper.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        paper.main()
    return str(caught.value)


def files_of(*folders: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_figures_without_scores_say_what_to_run(paper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = said_by(paper, monkeypatch, "figures", "--profile", "smoke")
    assert text.startswith(f"paper: {tmp_path / 'RESULTS_ROOT/smoke/scores.csv'} does not exist") and "make paper PROFILE=smoke" in text
    assert "\n" not in text and not files_of(tmp_path)


# A project of one notebook


@pytest.fixture
def project(paper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path of a notebook's source in a project of its own."""
    monkeypatch.setattr(paper, "ROOT", tmp_path)
    monkeypatch.delenv("PROFILE", raising=False)
    for folder in ("lib", "notebooks", "RESULTS_ROOT/smoke/runs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lib" / "code.py").write_text("ONE = 1\n")
    source = tmp_path / "notebooks" / "01_test.py"
    source.write_text('# %% [markdown]\n# # A question\n\n# %%\nimport os\nprint(os.environ["PROFILE"], os.getcwd())\n\n# %%\n6 * 7\n')
    return source


@pytest.fixture
def executions(paper: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the kernel, and notes what would run."""
    ran: list[str] = []

    def client(notebook: nbformat.NotebookNode, **options: object) -> SimpleNamespace:
        return SimpleNamespace(execute=lambda **_: ran.append(notebook.cells[-1].source))

    monkeypatch.setattr(paper, "NotebookClient", client)
    return ran


def test_a_notebook_is_executed_in_its_profile_and_stored_with_its_outputs(paper: ModuleType, project: Path, tmp_path: Path) -> None:
    assert "executed" in paper.execute(project, "smoke")
    target = tmp_path / "RESULTS_ROOT/smoke/notebooks/01_test.ipynb"
    notebook = nbformat.read(target, as_version=4)
    nbformat.validate(notebook)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds == ["markdown", "code", "code"]
    assert notebook.cells[1].outputs[0].text == f"smoke {tmp_path / 'notebooks'}\n"
    assert notebook.cells[2].outputs[0].data["text/plain"] == "42"
    assert all("execution" not in cell.metadata for cell in notebook.cells), "times of the clock differ at every run"
    assert not list((tmp_path / "notebooks").glob("*.ipynb")), "the demo's own notebooks stay as they are"
    assert list(target.parent.iterdir()) == [target], "no half-written file is left"


def test_of_a_widget_the_picture_stays_and_the_widget_goes_and_a_progress_bar_altogether(
    paper: ModuleType, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A widget without its kernel shows nothing, and hides the picture that stands beside it."""

    def client(notebook: nbformat.NotebookNode, **options: object) -> SimpleNamespace:
        data = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "image/png": "AAAA", "text/plain": "Slice 2"}
        bar = {"application/vnd.jupyter.widget-view+json": {"model_id": "b"}, "text/plain": "  0%|          | 0/6"}
        outputs = [nbformat.v4.new_output("display_data", bar), nbformat.v4.new_output("display_data", data)]
        assert options["store_widget_state"] is False
        return SimpleNamespace(execute=lambda **_: notebook.cells[-1].update(outputs=outputs))

    monkeypatch.setattr(paper, "NotebookClient", client)
    paper.execute(project, "smoke")
    notebook = nbformat.read(tmp_path / "RESULTS_ROOT/smoke/notebooks/01_test.ipynb", as_version=4)
    assert [output.data for output in notebook.cells[-1].outputs] == [{"image/png": "AAAA", "text/plain": "Slice 2"}], "no progress bar"


CHANGES: dict[str, Callable[[Path], object]] = {
    "its source": lambda root: (root / "notebooks/01_test.py").write_text("# %%\n6 * 8\n"),
    "lib": lambda root: (root / "lib/code.py").write_text("ONE = 1.0\n"),
    "a new module": lambda root: (root / "lib/more.py").touch(),
    "the scores": lambda root: (root / "RESULTS_ROOT/smoke/scores.csv").write_text("run,dice\n"),
    "its .ipynb is gone": lambda root: (root / "RESULTS_ROOT/smoke/notebooks/01_test.ipynb").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_notebook_runs_again_when_something_changed_and_only_then(
    change: str, paper: ModuleType, project: Path, tmp_path: Path, executions: list[str]
) -> None:
    paper.execute(project, "smoke")
    assert len(executions) == 1 and paper.execute(project, "smoke") == "01_test: up to date" and len(executions) == 1
    CHANGES[change](tmp_path)
    assert "executed" in paper.execute(project, "smoke") and len(executions) == 2
    assert executions[1] == ("6 * 8" if change == "its source" else "6 * 7")
    assert paper.execute(project, "smoke") == "01_test: up to date"


def test_the_demo_s_notebooks_stand_beside_their_sources(paper: ModuleType, project: Path, tmp_path: Path, executions: list[str]) -> None:
    (tmp_path / "RESULTS_ROOT/demo/runs").mkdir(parents=True)
    paper.execute(project, "demo")
    assert project.with_suffix(".ipynb").exists() and not (tmp_path / "RESULTS_ROOT/demo/notebooks").exists()
    first = project.with_suffix(".ipynb").read_bytes()
    (tmp_path / "lib/code.py").write_text("")
    paper.execute(project, "demo")
    assert len(executions) == 2 and project.with_suffix(".ipynb").read_bytes() == first, "no random names: the same bytes again"


def test_a_notebook_needs_no_run_before_it(paper: ModuleType, project: Path, tmp_path: Path, executions: list[str]) -> None:
    shutil.rmtree(tmp_path / "RESULTS_ROOT")
    assert "executed" in paper.execute(project, "smoke") and paper.execute(project, "smoke") == "01_test: up to date"


def test_a_cell_that_fails_is_named_and_leaves_the_older_notebook(paper: ModuleType, project: Path, tmp_path: Path) -> None:
    older = tmp_path / "RESULTS_ROOT/smoke/notebooks/01_test.ipynb"
    older.parent.mkdir()
    older.write_text("{}")
    project.write_text('# %%\nraise KeyError("no such organ")\n\n# %%\nopen("after", "w")\n')
    with pytest.raises(InputError) as caught:
        paper.execute(project, "smoke")
    text = str(caught.value)
    assert str(project) in text and "KeyError: 'no such organ'" in text and "\n" not in text
    assert list(older.parent.iterdir()) == [older] and older.read_text() == "{}"
    assert not list((tmp_path / "RESULTS_ROOT/smoke/runs").iterdir()), "it is not up to date"
    assert not (tmp_path / "notebooks/after").exists(), "nothing runs after the failure"


def test_figures_come_last(paper: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("08_figures", "09_your_scan"):
        (project.parent / f"{name}.py").touch()
    order: list[str] = []
    monkeypatch.setattr(paper, "execute", lambda source, profile: order.append(source.stem) or source.stem)
    paper.execute_notebooks("smoke", [])
    assert sorted(order) == ["01_test", "08_figures", "09_your_scan"] and order[-1] == "08_figures"


@pytest.mark.parametrize("figures", [True, False])
def test_whether_notebook_08_was_executed_is_told(paper: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch, figures: bool) -> None:
    (project.parent / "08_figures.py").touch()
    said = {"01_test": "01_test: executed", "08_figures": "08_figures: executed" if figures else "08_figures: up to date"}
    monkeypatch.setattr(paper, "execute", lambda source, profile: said[source.stem])
    assert paper.execute_notebooks("smoke", []) is figures


def test_a_session_that_ends_between_notebooks_goes_on_with_the_next(
    paper: ModuleType, project: Path, executions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (2, 3):
        (project.parent / f"0{number}_test.py").write_text(f"# %%\n{number}\n")
    client = paper.NotebookClient

    def ends(notebook: nbformat.NotebookNode, **options: object) -> SimpleNamespace:
        if notebook.cells[-1].source == "2":
            raise KeyboardInterrupt
        return client(notebook, **options)

    monkeypatch.setattr(paper, "NotebookClient", ends)
    sources = sorted(project.parent.glob("*.py"))
    with pytest.raises(KeyboardInterrupt):
        for source in sources:
            paper.execute(source, "smoke")
    monkeypatch.setattr(paper, "NotebookClient", client)
    done = [paper.execute(source, "smoke") for source in sources]
    assert executions == ["6 * 7", "2", "3"] and done[0] == "01_test: up to date"


# Training


def test_what_others_start_from_is_trained_first(paper: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(paper, "_call", lambda run, *_, **__: called.append(run) or [])
    assert paper.train_and_score([*HEADLINE], "smoke") == ({}, [])
    assert called[0] == "pretraining" and sorted(called[1:]) == sorted(HEADLINE)


def test_a_failing_run_among_three_keeps_no_other_from_going_on(
    paper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoint cannot be read. What was done is told, why the one has failed, and nothing is a stack trace."""
    runs, failing = ["unet", "dynunet", "unetr"], "dynunet"
    broken = run_folder(failing, "smoke") / "checkpoint-000000002" / "model.safetensors"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"cut short")
    monkeypatch.setattr(paper, "all_runs", lambda every: runs)
    shown: list[str] = []
    monkeypatch.setattr(paper, "extract", lambda profile: shown.append("extract"))
    monkeypatch.setattr(paper, "figures", lambda profile: shown.append("figures"))
    monkeypatch.setattr(paper, "execute_notebooks", lambda *_: pytest.fail("a notebook would train the run that failed"))
    text = said_by(paper, monkeypatch, "paper", "--profile", "smoke")
    out, err = capfd.readouterr()
    assert text.count("\n") == 1 and f"'dynunet' has failed: {broken.parent} cannot be read" in text.splitlines()[1]
    assert "paper: done are 'unet', 'unetr'\n" in out and "Traceback" not in out + err
    assert shown == ["extract", "figures"], "from what there is"
    for run in runs:
        assert is_finished(run_folder(run, "smoke"), settings_of(run, "smoke")) == (run != failing)
    shutil.rmtree(broken.parent)
    monkeypatch.setattr(paper, "execute_notebooks", lambda *_: False)
    monkeypatch.setattr(paper, "_call", lambda run, *_, **__: shown.append(run) or [])
    paper.paper("smoke", every_run=False)
    assert shown[2:] == ["dynunet", "extract", "figures"], "and the next call does the rest"


def test_a_run_whose_start_failed_is_not_begun(paper: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def call(run: str, *_: object) -> list[str]:
        called.append(run)
        if run == "pretraining":
            raise InputError("it was killed by signal 9.")
        return []

    monkeypatch.setattr(paper, "_call", call)
    failed, left_out = paper.train_and_score(["baseline", "adapter", "dynunet"], "smoke")
    assert sorted(called) == ["dynunet", "pretraining"] and not left_out
    why = "it starts from 'pretraining', which has failed."
    assert failed == {"pretraining": "it was killed by signal 9.", "baseline": why, "adapter": why}


def test_a_notebook_that_fails_keeps_no_other_from_going_on(
    paper: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.parent / "00_first.py").touch()
    (project.parent / "08_figures.py").touch()

    def execute(source: Path, profile: str) -> str:
        if source.stem == "00_first":
            raise InputError("00_first.py stops with KeyError: 'no such organ'")
        return f"{source.stem}: executed"

    monkeypatch.setattr(paper, "execute", execute)
    failed: list[str] = []
    assert paper.execute_notebooks("smoke", failed)
    assert failed == ["00_first.py stops with KeyError: 'no such organ'"]
    assert capsys.readouterr().out.splitlines()[1:] == ["  00_first: failed", "  01_test: executed", "  08_figures: executed"]


# At full size: what a machine lacks is said before anything starts


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lib.runs.processes", lambda: SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, device=CPU))
    for name in ("PRECISION", "WEIGHTS", "LAUNCH", "CPU", "ALL_CASES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "PROFILE=full needs a GPU, and none is found: on two processor cores a step takes 12 to 79 seconds"),
        ({"CPU": "0"}, "PROFILE=full needs a GPU"),
        ({"CPU": "1", "PRECISION": "fp16"}, "PRECISION=fp16 needs a GPU, and none is found"),
        (
            {"CPU": "1", "WEIGHTS": "{}"},
            "there is no model.safetensors or pytorch_model.bin in this folder): connect to the network once, or",
        ),
    ],
)
def test_what_no_run_can_do_without_is_said_once_before_anything_starts(
    paper: ModuleType,
    no_gpu: None,
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    for name in ("_call", "prepare", "extract", "execute_notebooks", "figures"):
        monkeypatch.setattr(paper, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    monkeypatch.setattr(
        "lib.needs.check_weights", lambda weights, *_: check_weights(weights, "CLIPSeg") if weights == str(tmp_path) else None
    )
    text = said_by(paper, monkeypatch, "paper", "--profile", "full")
    out, err = capfd.readouterr()
    assert expected in text and "\n" not in text and out + err == ""


def test_the_seconds_of_a_processor_are_the_measured_ones() -> None:
    parts = json.loads((ROOT / "results/full_proof.json").read_text())["parts"]
    took = [part["seconds a step"] for part in parts.values() if "seconds a step" in part]
    assert f"{min(took):.0f} to {max(took):.0f} seconds" in (ROOT / "lib/needs.py").read_text()


def test_runs_whose_data_are_not_there_are_left_out_and_others_go_on(
    paper: ModuleType, no_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """FLARE22 alone: T-Gated's runs go on, Med-VLM's need BTCV; what a run leaves out is told at the end, too."""
    write_trees(tmp_path / "data", 8, 6, {"FLARE22": range(1, 51)})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("CPU", "1")
    monkeypatch.setattr("lib.needs.check_weights", lambda *_: None)
    monkeypatch.setattr(paper, "extract", lambda profile: pytest.fail("there is no score"))
    prepared: list[str] = []
    monkeypatch.setattr(paper, "prepare", lambda profile, parts: prepared.extend(parts))
    called: list[str] = []
    monkeypatch.setattr(paper, "_call", lambda run, *_: called.append(run) or [f"{run} is not scored on BTCV: it is not there."])
    first, *lines = said_by(paper, monkeypatch, "paper", "--profile", "full").splitlines()
    assert called == ["dynunet", "adapter", "centre only", "baseline"] and prepared[:2] == ["training", "validation"]
    assert first.startswith("paper: not all could be done")
    assert lines[0].startswith("  'unetr', 'med-vlm large', 'med-vlm small', 'unet', 'clipseg on BTCV': ")
    assert "BTCV holds no case of BTCV: put RawData/Training/img/img0001.nii.gz" in lines[0]
    assert [line.strip() for line in lines[1:]] == [f"{run} is not scored on BTCV: it is not there." for run in called]
    shutil.rmtree(tmp_path / "data")
    called.clear()
    lines = said_by(paper, monkeypatch, "paper", "--profile", "full").splitlines()
    assert not called and len(lines) == 3 and "holds no case of FLARE22" in lines[1], "nothing can start: a line for each data set"
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_run_has_this_environment_and_its_own_arguments(paper: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of processes may be older than both."""
    monkeypatch.delenv("LAUNCH", raising=False)
    for name in ("one", "two"):
        monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / name))
        paper._call("encoders", "smoke", 1)
        assert is_finished(tmp_path / name / "smoke/runs/encoders", settings_of("encoders", "smoke"))
    with pytest.raises(InputError, match=r"^'adaptor' is no run: choose one of"):
        paper._call("adaptor", "smoke", 1)


def test_a_launcher_starts_each_run_in_its_processes(paper: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def run(command: list[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        started.append(command)
        assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent), "where accelerate lies"
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(paper, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(paper, "run_module", lambda module, arguments: started.append([module, *arguments]) or 0)
    monkeypatch.delenv("LAUNCH", raising=False)
    paper._call("adapter", "full", 2)
    monkeypatch.setenv("LAUNCH", "accelerate launch --num_processes 2")
    paper._call("adapter", "full", 2)
    run_it = ["lib.runs", "adapter", "--profile", "full"]
    where = [command.pop(command.index("--told") + 1) for command in started]
    assert started[0] == [*run_it, "--told", "--threads", "2"] and not any(Path(path).parent.exists() for path in where)
    assert started[1] == ["accelerate", "launch", "--num_processes", "2", "-m", *run_it, "--told"], "which divides the cores itself"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RESULTS_ROOT with the headline runs of the smoke profile, scored and extracted."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESULTS_ROOT", str(folder / "results"))
        patch.setenv("CACHE_ROOT", str(folder / "cache"))
        for run in HEADLINE:
            evaluate(run, "smoke")
        extract("smoke")
    return folder


def test_a_second_paper_trains_nothing(paper: ModuleType, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(finished / "results"))
    drawn: list[str] = []
    monkeypatch.setattr(paper, "extract", lambda profile: None)
    monkeypatch.setattr(paper, "figures", drawn.append)
    monkeypatch.setattr(paper, "execute_notebooks", lambda profile, failed: bool(drawn))  # of which 08 is up to date, then executed
    wanted: list[str] = []
    monkeypatch.setattr(paper, "_call", lambda run, *_, **__: wanted.append(run) or [])
    paper.paper("smoke", every_run=False)
    starts = {"vit large", "vit small"}  # which Med-VLM starts from
    assert {*wanted} == {*MEDVLM_HEADLINE} | starts, "nothing of T-Gated, which was trained and scored before"
    wanted.clear()
    paper.paper("smoke", every_run=True)
    assert {*wanted} == {*all_runs(True)} - {*HEADLINE} | starts, "ALL=1 adds the seeds and the ablations"
    assert drawn == ["smoke"], "tables and figures are drawn once, by notebook 08 or without it"


def test_a_run_without_scores_or_with_other_settings_is_out_of_date(
    paper: ModuleType, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "results", tmp_path / "RESULTS_ROOT")
    assert not paper.out_of_date([*HEADLINE], "smoke")
    path = tmp_path / "RESULTS_ROOT/smoke/scores.csv"
    scores = pd.read_csv(path, dtype={"config": str})
    scores[scores["run"] != "adapter"].to_csv(path, index=False)
    assert paper.out_of_date([*HEADLINE], "smoke") == ["adapter"]
    scores[scores["condition"] != "blank"].to_csv(path, index=False)
    assert paper.out_of_date([*HEADLINE], "smoke") == ["adapter"], "it was scored, but not on everything"
    monkeypatch.setitem(PROFILES, "smoke", PROFILES["smoke"] | {"lr_decoder": 0.05})
    assert paper.out_of_date([*HEADLINE], "smoke") == [*HEADLINE]


def test_extracts_are_made_of_the_test_sets_that_are_there(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLARE22 alone, as where no other data set was at hand."""
    monkeypatch.setenv("CACHE_ROOT", str(finished / "cache"))
    results = shutil.copytree(finished / "results", tmp_path / "RESULTS_ROOT")
    for path in results.glob("smoke/runs/*/predictions/*"):
        if not path.name.startswith("FLARE22"):
            shutil.rmtree(path)
    whole = datasets.stores_of

    def stores_of(settings: Settings, part: str) -> list[datasets.Store]:
        if part.startswith(("BTCV", "AMOS22")):
            raise InputError(f"there is no case of {part}")
        return whole(settings, part)

    monkeypatch.setattr(datasets, "stores_of", stores_of)
    extract("smoke")
    assert gallery("smoke")["mri"]["dataset"] == "FLARE22" and "liver" in gallery("smoke")


def test_figures_need_the_committed_files_alone(
    paper: ModuleType, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """scores.csv and figure_data, as a clone has them: every table and figure is the one that came with the training."""
    monkeypatch.setenv("RESULTS_ROOT", str(finished / "results"))
    paper.figures("smoke")
    first = files_of(finished / "results/smoke/tables", tmp_path / "FIGURES_ROOT/smoke")
    wanted = {f"tgated_table{n}.{kind}" for n in range(1, 6) for kind in ("csv", "md", "tex")}
    assert first.keys() >= wanted | {f"{name}.{kind}" for name in (f"tgated_fig{n}" for n in range(1, 5)) for kind in ("png", "pdf")}
    clone = tmp_path / "clone/smoke"
    shutil.copytree(finished / "results/smoke/figure_data", clone / "figure_data")
    shutil.copy(finished / "results/smoke/scores.csv", clone)
    monkeypatch.setenv("RESULTS_ROOT", str(clone.parent))
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path / "other"))
    monkeypatch.setenv("CACHE_ROOT", "/proc/nothing")  # neither scans nor phantoms
    capsys.readouterr()
    paper.figures("smoke")
    assert len(capsys.readouterr().out.splitlines()) == len(first) + 2, "each file is named, the claims too"
    second = files_of(clone / "tables", tmp_path / "other/smoke")
    assert second.keys() == first.keys()
    named = {f"committed scores, config {settings_of(run, 'smoke').hash()}" for run in HEADLINE}
    for name, content in second.items():
        for source in named:
            for text in (f'"{source}"', source):  # a CSV cell with a comma stands in quotes
                content = content.replace(text.encode(), b"trained here")
        if name.endswith(".png"):  # a line of the layout may fall to either side of half a pixel
            here, there = (plt.imread(BytesIO(file), "png") for file in (content, first[name]))
            assert here.shape == there.shape and np.abs(here - there).mean() < 1e-3, name
        elif not name.endswith(".pdf"):
            assert content == first[name], name
    assert all(source in (clone / "tables/tgated_table2.csv").read_text() for source in named), "and says where its rows come from"
    assert run_folder("baseline", "smoke").exists() is False
