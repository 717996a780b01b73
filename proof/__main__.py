"""`make full-proof`: every part of the full profile by its own command, at full size, and what it takes of memory and time.

Real-layout trees of phantoms stand in for the data sets, random weights of full size for the hub's. All of it lies in build/full-proof;
what is done there is not done again, unless the code has changed. The last line says PASS or FAIL, and so does the exit status.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from lib.paths import ROOT, file_hash, replacing, value_hash, write_json
from lib.profiles import evaluations, is_finished, run_folder, settings_of

RUNS = ("dynunet", "baseline", "adapter", "med-vlm large")
KILLED = "baseline"  # in its second step
STEPS = 2
COUNTED = ("baseline", "adapter")
TOLERANCE = 0.1  # of the estimated work
TREES = ("--most", "4", "--slices", "6", "--share", "0.2", "--width", "200")  # 6 slices of 6 mm: a whole abdomen would take hours
OUTSIDE = ("WEIGHTS", "PRECISION", "ALL_CASES", "LAUNCH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE")
FETCH = {"baseline": "hf download CIDAS/clipseg-rd64-refined --revision", "med-vlm large": "hf download google/vit-base-patch16-224"}
TABLES = ("tgated_table2", "tgated_table3", "tgated_table4", "tgated_table5", "medvlm_table3", "common_ground")
FIGURES = ("tgated_fig1", "tgated_fig2", "training_curves", "gate_maps", "medvlm_fig1")


class Failed(Exception):
    """What did not hold, as a sentence."""


class Ended(NamedTuple):
    """What a command left behind."""

    status: int
    output: str
    gigabytes: float  # the most that one of its processes held in memory at once


def hold(condition: bool, otherwise: str) -> None:
    """Raises Failed, with the sentence `otherwise`, unless the condition holds."""
    if not condition:
        raise Failed(otherwise)


def processor_seconds() -> float:
    """Of all commands that have ended: on a machine that does other work, too, it says more than the clock."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Proof:
    """How far the proof has come, and its commands. What is done stands in state.json, under a hash of the code that did it."""

    def __init__(self, home: Path, narrow: bool) -> None:
        self.home, self.narrow = home, narrow
        code = value_hash([narrow, *(file_hash(path) for part in ("lib", "proof") for path in sorted((ROOT / part).rglob("*.py")))])
        path = home / "state.json"
        self.state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if self.state.get("code") != code:
            shutil.rmtree(home, ignore_errors=True)
            self.state = {"code": code, "done": {}}
        (home / "logs").mkdir(parents=True, exist_ok=True)

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `work` finds, and the seconds that it takes, by the clock and of all cores; from state.json where it is done."""
        if name not in self.state["done"]:
            print(f"full-proof: {name} ...", end=" ", flush=True)
            start, before = time.monotonic(), processor_seconds()
            found = work()
            took = {"seconds": round(time.monotonic() - start, 1), "CPU seconds": round(processor_seconds() - before, 1)}
            self.state["done"][name] = found | took
            write_json(self.home / "state.json", self.state)
            print(f"{self.state['done'][name]['seconds']:.0f} s", flush=True)
        return self.state["done"][name]

    def call(self, log: str, *arguments: str, kill: Callable[[], bool] | None = None, **environment: str) -> Ended:
        """Runs Python with these arguments; its output goes to logs/<log>.txt. As soon as `kill` says so, it is killed a second later."""
        path, ended = self.home / "logs" / f"{log}.txt", 0
        with open(path, "w") as file:
            process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, stdout=file, stderr=file)
            while not ended:
                time.sleep(0.1)
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if kill is not None and kill():
                    time.sleep(1)
                    os.kill(process.pid, signal.SIGKILL)
                    kill = None
        process.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
        return Ended(process.returncode, path.read_text(), usage.ru_maxrss * unit / 1e9)

    def need(self, log: str, *arguments: str) -> Ended:
        """`call` of a command that must end well."""
        ended = self.call(log, *arguments)
        last = (ended.output.strip().splitlines() or [""])[-1]
        hold(ended.status == 0, f"{log} ended with status {ended.status} ({last}); see {self.home / 'logs' / log}.txt")
        return ended


def refusal(proof: Proof, run: str) -> dict[str, Any]:
    """Without a hub and without its cache, a run ends in one sentence that says what to fetch."""
    ended = proof.call(f"{run} offline", "-m", "lib.runs", run, "--profile", "proof", HF_HOME=str(proof.home / "empty"))
    lines = ended.output.strip().splitlines()
    hold(ended.status == 1 and len(lines) == 1 and FETCH[run] in lines[0], f"{run}: nothing says what to fetch, but {lines[-3:]}")
    return {}


def train(proof: Proof, run: str) -> dict[str, Any]:
    """Two steps of a run, one of the runs killed between them, and its scores on every data set."""
    settings, folder, log = settings_of(run, "proof"), run_folder(run, "proof"), run.replace(" ", "_")
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted proof has left was not measured
    command, most = ("-m", "lib.runs", run, "--profile", "proof"), 0.0
    if run == KILLED:
        killed = proof.call(f"{log}-killed", *command, kill=lambda: any(folder.glob("checkpoint-*")))
        hold(killed.status == -signal.SIGKILL and not is_finished(folder, settings), f"{run} was not killed in its training")
        most = killed.gigabytes
    ended = proof.need(log, *command)
    left = [path.name for path in folder.iterdir() if path.name.startswith("checkpoint-") or ".part" in path.name]
    hold(is_finished(folder, settings) and not left, f"{run} is not finished, or has left {left} in {folder}")
    rows, config = pd.read_csv(folder / "log.csv"), json.loads((folder / "config.json").read_text())
    hold(rows["step"].iloc[-1] == STEPS and rows["loss"].notna().all(), f"{folder / 'log.csv'} does not end with step {STEPS} and a loss")
    found = re.search(r"(\d+) steps of (\S+) TFLOP.* ([\d.]+) GB or in pieces", ended.output)
    hold(found is not None, f"{run} has given no estimate")
    assert found is not None
    hold(int(found[1]) == STEPS - (run == KILLED), f"{run} has not gone on from its checkpoint: {found[1]} steps were left")
    measured = {"seconds a step": round(config["computed"] / STEPS, 1), "peak GB": round(max(most, ended.gigabytes), 1)}
    return measured | {"estimated GB": float(found[3]), "TFLOP a step": float(found[2]), "pieces": config["pieces"]}


def count(proof: Proof) -> dict[str, Any]:
    """{run: estimated and counted work}, where the two agree."""
    found: dict[str, Any] = json.loads(proof.need("work", "-m", "proof.costs", *COUNTED).output.splitlines()[-1])
    for run, work in found.items():
        hold(abs(work["estimated"] / work["counted"] - 1) < TOLERANCE, f"{run}: the estimated work is {work}")
    return found


def show(proof: Proof, runs: tuple[str, ...]) -> dict[str, Any]:
    """Tables and figures from the scores, which are there for every run, data set and condition."""
    results, figures = (Path(os.environ[f"{name}_ROOT"]) / "proof" for name in ("RESULTS", "FIGURES"))
    scores = pd.read_csv(results / "scores.csv").fillna({"condition": ""})
    for run in runs:
        held = set(scores.loc[scores["run"] == run, ["dataset", "condition"]].itertuples(index=False, name=None))
        hold(held == set(evaluations(run, "proof")), f"{run} is scored on {sorted(held)} alone")
    proof.need("extract", "-c", "from lib.figures import extract; extract('proof')")
    proof.need("figures", "paper.py", "figures", "--profile", "proof")
    wanted = [results / "tables" / f"{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex")]
    wanted += [figures / f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")]
    hold(not (missing := [path.name for path in wanted if not path.exists()]), f"there is no {', '.join(missing)}")
    return {"tables": len([*results.glob("tables/*.csv")]), "figures": len([*figures.glob("*.png")])}


def prove(proof: Proof, runs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What each part has found. Failed: one of them does not hold."""
    home, narrow = proof.home, ("--narrow",) if proof.narrow else ()

    def command(log: str, *arguments: str, made: Path | None = None) -> Callable[[], dict[str, Any]]:
        def work() -> dict[str, Any]:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)  # what an interrupted proof has left there
            return {"peak GB": round(proof.need(log, *arguments).gigabytes, 1)}

        return work

    data, hub = home / "data", home / "huggingface" / "hub"
    proof.part("trees of the data sets", command("trees", "-m", "proof.trees", str(data), *TREES, made=data))
    proof.part("data check", command("data-check", "-m", "lib.datasets.check"))
    proof.part("random weights in the hub's cache", command("weights", "-m", "proof.hub", str(hub), *narrow, made=hub))
    for run in FETCH:
        proof.part(f"{run} without the hub", partial(refusal, proof, run))
    for run in runs:
        proof.part(run, partial(train, proof, run))
    proof.part("work of a step", partial(count, proof))
    proof.part("tables and figures", partial(show, proof, runs))
    return proof.state["done"]


def report(done: dict[str, dict[str, Any]], runs: tuple[str, ...], folder: Path) -> None:
    """Writes and prints full_proof.json and full_proof.txt in `folder`."""
    machine = f"{os.cpu_count()} CPU cores, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    table = pd.DataFrame([{"run": run} | done[run] for run in runs]).rename(columns={"seconds": "seconds in all"})
    lines = ["make full-proof: two steps at full size, on a CPU in 32 bits, and scores on every data set", f"Machine: {machine}", ""]
    lines += [table.to_string(index=False), ""]
    for run in COUNTED:
        estimated, counted = (done["work of a step"][run][kind] / 1e12 for kind in ("estimated", "counted"))
        lines.append(f"{run}, half a step: {estimated:.3f} TFLOP estimated, {counted:.3f} counted, a ratio of {estimated / counted:.3f}")
    clock, processor = (sum(part[kind] for part in done.values()) / 60 for kind in ("seconds", "CPU seconds"))
    lines.append(f"All parts: {clock:.1f} minutes by the clock, {processor:.1f} of the processor's cores")
    write_json(folder / "full_proof.json", {"machine": machine, "parts": done})
    with replacing(folder / "full_proof.txt") as part:
        part.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def surround(home: Path) -> None:
    """The environment of all commands: every folder below `home`, no hub, and nothing that the user has set for runs of his own."""
    for name in OUTSIDE:
        os.environ.pop(name, None)
    folders = {"DATA_ROOT": "data", "CACHE_ROOT": "cache", "RESULTS_ROOT": "results", "FIGURES_ROOT": "figures", "HF_HOME": "huggingface"}
    os.environ |= {name: str(home / folder) for name, folder in folders.items()}
    os.environ |= {"PROFILE": "proof", "CPU": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}


def main() -> None:
    """Command line of the Makefile."""
    parser = argparse.ArgumentParser(description="Prove that nothing is left to fail in the full profile.")
    parser.add_argument("--narrow", action="store_true", help="narrow encoders and no DynUNet: tries the proof itself, in minutes")
    narrow = parser.parse_args().narrow
    home, runs = ROOT / "build" / ("narrow-proof" if narrow else "full-proof"), RUNS[narrow:]
    surround(home)
    try:
        proof = Proof(home, narrow)
        report(prove(proof, runs), runs, home if narrow else ROOT / "results")
    except Failed as error:
        sys.exit(f"\nfull-proof: FAIL: {error}")
    print("full-proof: PASS")


if __name__ == "__main__":
    main()
