"""`make paper` and `make figures`: what is out of date is done, in order, and every step says what it does."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from lib.datasets import stores_of
from lib.datasets.parallel import FORKS, run_module
from lib.figures import all_figures, extract
from lib.paths import ROOT, InputError, figures_root, file_hash, replacing, results_root, value_hash
from lib.profiles import all_runs, evaluations, is_finished, run_folder, settings_of
from lib.report import all_tables

WIDGET = "application/vnd.jupyter.widget-view+json"
QUIET = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}


def _call(run: str, profile: str, threads: int) -> list[str]:
    """One run in a process of its own, which takes up where it was killed; or in those of $LAUNCH, as `accelerate launch` starts them.

    Returns why test sets were left out, a sentence each. InputError: the run has failed.
    """
    with TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        arguments = [run, "--profile", profile, "--told", str(told)]
        if launch := shlex.split(os.environ.get("LAUNCH", "")):  # it divides the cores itself
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # where accelerate lies in a .venv
            status = subprocess.run([*launch, "-m", "lib.runs", *arguments], cwd=ROOT, env=os.environ | {"PATH": path}).returncode
        else:
            status = run_module("lib.runs", [*arguments, "--threads", str(threads)])
        lines = told.read_text().splitlines() if told.exists() else []
    if status:
        how = f"was killed by signal {-status} (out of memory, perhaps)" if status < 0 else "ended early; its message stands above"
        raise InputError(lines[-1] if lines else f"it {how}. The same command goes on from its checkpoint.")
    return lines


def _is_scored(run: str, profile: str, scores: pd.DataFrame) -> bool:
    """Whether the run is finished here, and the scores hold its rows for all that it is scored on."""
    settings = settings_of(run, profile)
    rows = scores[(scores["run"] == run) & (scores["config"] == settings.hash())]
    held = set(zip(rows["dataset"], rows["condition"], strict=True))
    return is_finished(run_folder(run, profile), settings) and held >= set(evaluations(run, profile))


def out_of_date(runs: list[str], profile: str) -> list[str]:
    """The runs that are to be trained or scored."""
    path = results_root(profile) / "scores.csv"
    columns = ["run", "config", "dataset", "condition"]
    scores = pd.read_csv(path, dtype=str, usecols=lambda name: name in columns) if path.exists() else pd.DataFrame()
    scores = scores.reindex(columns=columns).fillna("")
    return [run for run in runs if not _is_scored(run, profile, scores)]


def prepare(profile: str, parts: Iterable[str]) -> None:
    """Makes the prepared slices of these parts, so that none of several processes waits for another that makes the same ones."""
    for part in parts:
        with suppress(InputError):  # the run that needs the part says what is wrong with it
            print(f"paper: {len(stores_of(settings_of('baseline', profile), part))} scans of {part} are prepared", flush=True)


def _without_data(runs: Iterable[str], profile: str) -> dict[str, str]:
    """{run: why it cannot start} for those whose scans to train and to validate on are not there.

    Raises:
        InputError: one cannot start whatever data there are, which is mended before hours are spent on the others.
    """
    from lib.needs import missing_data  # here and below, because figures alone should not wait for PyTorch and its libraries
    from lib.runs import ready

    for run in runs:
        ready(run, profile)
    why: dict[str, str] = {}
    for run in runs:
        try:
            missing_data(settings_of(run, profile), ())
        except InputError as error:
            why[run] = str(error)
    return why


def train_and_score(runs: list[str], profile: str) -> tuple[dict[str, str], list[str]]:
    """Trains and scores `runs`, small ones side by side, each as soon as the run that it starts from is done.

    A run that fails, or whose data set is not there, keeps no other from going on. Returns {run that began and failed: why}, and a
    sentence for each other thing that was left out. InputError: see `_without_data`.
    """
    without = _without_data(runs, profile)
    left_out = [f"{_listed(run for run in without if without[run] == why)}: {why}" for why in dict.fromkeys(without.values())]
    runs = [run for run in runs if run not in without]
    for line in left_out:
        print(f"paper: left out {line}", flush=True)
    if not runs:
        return {}, left_out
    origin = {run: settings_of(run, profile).start_from for run in runs}
    starts = [s for s in dict.fromkeys(origin.values()) if s and not is_finished(run_folder(s, profile), settings_of(s, profile))]
    cores = os.cpu_count() or 1
    alone = settings_of("baseline", profile).full_size or os.environ.get("LAUNCH")  # such a run needs the whole machine
    workers = 1 if alone else min(cores, len(runs))
    threads = max(1, cores // workers)
    FORKS.set_forkserver_preload(["__main__", "lib.runs"])  # imported once for all runs
    print(f"paper: training and scoring {_listed([*starts, *runs])}, {workers} at a time", flush=True)
    failed: dict[str, str] = {}
    begun: dict[str, Future[None]] = {}

    def attempt(run: str) -> None:
        try:
            if start := begun.get(origin.get(run, "")):
                start.result()  # waits
            if origin.get(run) in failed:
                raise InputError(f"it starts from {origin[run]!r}, which has failed.")
            left_out.extend(_call(run, profile, threads))
        except InputError as error:
            failed[run] = str(error)

    prepare(profile, learned := ("training", "validation"))
    with ThreadPoolExecutor(workers) as pool:
        for start in starts:
            begun[start] = pool.submit(attempt, start)
        prepare(profile, dict.fromkeys(dataset for run in runs for dataset, _ in evaluations(run, profile) if dataset not in learned))
        list(pool.map(attempt, sorted(runs, key=lambda run: origin[run] in begun)))  # those that need not wait go first
    if done := [run for run in runs if run not in failed]:
        print(f"paper: done are {_listed(done)}", flush=True)
    return failed, left_out


def _listed(runs: Iterable[str]) -> str:
    return ", ".join(map(repr, runs))


def _state(source: Path, profile: str) -> str:
    """Hash of all that an executed notebook depends on: its cells, lib, and the scores."""
    scores = results_root(profile) / "scores.csv"
    files = [source, *sorted(p for p in (ROOT / "lib").rglob("*") if p.suffix in (".py", ".csv")), *([scores] if scores.exists() else [])]
    return value_hash([file_hash(path) for path in files])


def notebooks_at_once(profile: str) -> int:
    """One where models are large, else two."""
    return 1 if settings_of("baseline", profile).full_size else 2


def execute(source: Path, profile: str) -> str:
    """Runs a notebook from its .py and writes the .ipynb with its outputs, unless nothing that it depends on has changed.

    The demo's notebooks take their place beside their sources; those of another profile go to results/<profile>/notebooks.
    """
    home = ROOT / "notebooks" if profile == "demo" else results_root(profile) / "notebooks"
    target, stamp = home / f"{source.stem}.ipynb", results_root(profile) / "runs" / f"{source.stem}.executed"
    state = _state(source, profile)
    if target.exists() and stamp.exists() and stamp.read_text() == state:
        return f"{source.stem}: up to date"
    notebook = jupytext.read(source)
    environment = os.environ | QUIET | {"PROFILE": profile}
    if (kernels := notebooks_at_once(profile)) > 1:  # or they would get into each other's way
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // kernels))
    try:
        where = {"metadata": {"path": str(ROOT / "notebooks")}}
        calm = ["--log-level=ERROR"]  # the kernel would print a warning about its local port
        options: dict[str, Any] = {"store_widget_state": False, "resources": where, "extra_arguments": calm}
        NotebookClient(notebook, timeout=None, **options).execute(env=environment)
    except CellExecutionError as error:
        raise InputError(f"{source} stops with {error.ename}: {' '.join(error.evalue.split())}") from error
    except DeadKernelError as error:
        raise InputError(f"{source} stops because its kernel was killed: it may need more memory than there is.") from error
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)  # times of the clock and random names would differ at every run
        cell.id = f"cell-{number}"
        if "outputs" in cell:  # a progress bar is a widget with its text alone; tqdm's notebook kind does not heed TQDM_DISABLE
            cell.outputs = [output for output in cell.outputs if set(output.get("data", {})) != {WIDGET, "text/plain"}]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)  # it needs a kernel; the picture beside it does not
    with replacing(target) as part:
        nbformat.write(notebook, part)
    with replacing(stamp) as part:
        part.write_text(_state(source, profile))
    return f"{source.stem}: executed, in {target}"


def execute_notebooks(profile: str, failed: list[str]) -> bool:
    """All notebooks, side by side where models are small; 08_figures comes last, for it shows what the others made.

    Why one stops goes to `failed`, and the others go on. Returns whether 08_figures was executed, which writes every table and figure.
    """

    def line(source: Path) -> str:
        try:
            return execute(source, profile)
        except InputError as error:
            failed.append(str(error))
            return f"{source.stem}: failed"

    sources = sorted((ROOT / "notebooks").glob("*.py"))
    last = [source for source in sources if source.stem.startswith("08")]
    print(f"paper: {len(sources)} notebooks", flush=True)
    with ThreadPoolExecutor(notebooks_at_once(profile)) as pool:
        for said in pool.map(line, [s for s in sources if s not in last]):
            print(f"  {said}", flush=True)
    shown = [line(source) for source in last]
    for said in shown:
        print(f"  {said}", flush=True)
    return any(": executed" in said for said in shown)


def figures(profile: str) -> None:
    """Every table and figure from the stored scores and extracts: seconds, no training."""
    for make in (all_tables, all_figures):
        for path in make(profile):
            print(f"  {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}", flush=True)


def paper(profile: str, every_run: bool) -> None:
    """Trains and scores what is out of date, then rebuilds tables, figures and notebooks; all that can be done is done.

    Raises:
        InputError: something could not be done; a line for each says what and why.
    """
    runs = all_runs(every_run)
    todo = out_of_date(runs, profile)
    failed, left_out = train_and_score(todo, profile) if todo else ({}, [])
    problems = [*(f"{run!r} has failed: {why}" for run, why in failed.items()), *left_out]
    print(f"paper: {len(todo)} of {len(runs)} runs were out of date", flush=True)
    if (scores := results_root(profile) / "scores.csv").exists() or not problems:
        _show(profile, scores, problems, notebooks=not failed)
    if problems:
        raise InputError("\n  ".join(["not all could be done, and the same command does the rest once these are mended:", *problems]))
    print(f"paper: tables in {results_root(profile) / 'tables'}, figures in {figures_root(profile)}", flush=True)


def _show(profile: str, scores: Path, problems: list[str], notebooks: bool) -> None:
    """Rebuilds what the figures read, notebooks, tables and figures; what stands in the way of one goes to `problems`."""
    shown, drawn = results_root(profile) / "figure_data" / "gallery.npz", False
    try:
        if not shown.exists() or shown.stat().st_mtime < scores.stat().st_mtime:
            extract(profile)
    except InputError as error:
        problems.append(str(error))
    if notebooks:
        drawn = execute_notebooks(profile, problems)
    else:
        print("paper: the notebooks wait until no run fails, for they would train it themselves", flush=True)
    try:
        if not drawn:
            figures(profile)
    except InputError as error:
        problems.append(str(error))


def main() -> None:
    """Command line of the Makefile."""
    parser = argparse.ArgumentParser(description="Rebuild the papers' tables and figures.")
    parser.add_argument("what", choices=("paper", "figures"))
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--all", action="store_true", help="train every run, extra seeds included")
    arguments = parser.parse_args()
    try:
        if arguments.what == "paper":
            paper(arguments.profile, arguments.all)
        else:
            figures(arguments.profile)
    except InputError as error:
        sys.exit(f"paper: {error}")


if __name__ == "__main__":
    os.environ["PYTHONWARNINGS"] = "ignore"
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "20")  # a log file wants few lines of a progress bar
    main()
