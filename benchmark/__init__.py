"""`make bench`: the released way against ours, at full size with random weights, in one process."""

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.growth import estimate, growth
from benchmark.loading import loading
from benchmark.measuring import half_rate, has_bf16, matmul_peak
from benchmark.memory import peaks
from benchmark.page import bench_figure, bench_table, caption_of
from benchmark.parts import SIZES, Size, encoder, inference, made_up_case, metrics, preparation, training
from lib.figures.pages import save
from lib.paths import results_root, write_json
from lib.report.formatting import write_table


def _processor() -> str:
    """The processor's name, as the system tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line] if info.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def _measured(size: Size, half: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Every part, one after the other; `say` hears of each."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        case = made_up_case(size, folder)
        found: dict[str, Any] = {}
        say("preparation")
        found["preparation"], store, files = preparation(size, case, folder)
        say("metrics")
        found["metrics"] = metrics(size, case, store)
        say("inference")
        found["inference"] = inference(size, store, half)
        say("encoder")
        found["encoder"] = encoder(size, store)
        say("training")
        found["training"] = training(size, store)
        say("growth")
        found["growth"] = growth(size, store)
        say("memory")
        found["memory"] = peaks(size, store, half)
        say("estimate")
        found["estimate"] = estimate(size, store)
        say("loader")
        slab_seconds = float(np.median(found["training"]["seconds"]["slab"])) * found["training"]["terms"]["slab"]
        found["loader"] = loading(size, store, files, slab_seconds, found["estimate"]["GFLOP"]["adapter"]["a centre, trained"])
    return found


def benchmark(name: str = "full", rounds: int = 0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures everything at a size of SIZES and returns it as JSON holds it. rounds: of those that alternate; 0: the size's own."""
    size = SIZES[name]
    rounds = rounds or size.rounds
    half = has_bf16()
    machine: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    machine |= {"matmul GFLOP/s": matmul_peak(size.matmul), "has bf16": half, "bf16 GFLOP/s": half_rate()}
    found = _measured(replace(size, rounds=rounds), half, say)
    return {"size": name, "rounds": rounds, "machine": machine, "growth pixels": size.growth_pixels} | found


def write(found: dict[str, Any]) -> list[Path]:
    """Writes results/bench.json, the table in results/bench/tables and the figure in figures/bench; returns the files."""
    path = results_root("bench").with_suffix(".json")
    write_json(path, found)
    return [path, *show(found)]


def show(found: dict[str, Any]) -> list[Path]:
    """Writes the table and the figure of a benchmark that was measured before."""
    tables = write_table(bench_table(found), "bench", caption_of(found), "bench")
    return [*tables, *save(bench_figure(found), "bench", "bench")]


__all__ = ["SIZES", "bench_figure", "bench_table", "benchmark", "caption_of", "show", "write"]
