"""Seconds, memory and arithmetic: how the benchmark measures."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import psutil
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lib.training.costs import Cost

GIB = 2.0**30
Name = TypeVar("Name", bound=Hashable)


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternately(ways: Mapping[Name, Callable[[], Any]], rounds: int) -> dict[Name, list[float]]:
    """Seconds of each way in each round. The ways take turns, so that what else the machine does falls on all of them."""
    found: dict[Name, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            found[name].append(seconds(work))
    return found


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yields a list that holds, once the block has ended, the most GiB that the process used beside what it had before."""
    process, found, done = psutil.Process(), [0.0], threading.Event()
    before = process.memory_info().rss

    def note() -> None:
        found[0] = max(found[0], (process.memory_info().rss - before) / GIB)

    def watch() -> None:
        while not done.wait(0.005):
            note()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        note()  # on a busy machine the watcher may not have had its turn
        done.set()
        watcher.join()


def gflop(work: Callable[[], Any]) -> float:
    """Arithmetic of a call in GFLOP, by PyTorch's counter; a multiplication and an addition are two."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused attention is not counted on a CPU
        work()
    return counter.get_total_flops() / 1e9


def t4_hours(work: float, precision: str = "no") -> float:
    """That so many GFLOP take a T4, by the same estimate that is shown before a training."""
    hours = Cost(1e9 * work, 0, 0).hours(1, "T4", precision)
    assert hours is not None
    return hours


def matmul_peak(size: int = 2048, repeats: int = 3) -> float:
    """GFLOP/s of the fastest float32 matrix product that the machine was seen to do, of the encoder's shapes and square ones."""
    best = 0.0
    for rows, inner, columns in ((4 * size, 768, 3072), (4 * size, 3072, 768), (size, size, size)):
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        a @ b
        best = max(best, *(2e-9 * rows * inner * columns / seconds(lambda a=a, b=b: a @ b) for _ in range(repeats)))  # type: ignore[misc]
    return best


def half_rate(size: int = 256) -> float:
    """GFLOP/s of bf16 matrix products."""
    a = torch.randn(size, size).bfloat16()
    a @ a
    return 2e-9 * size**3 / seconds(lambda: a @ a)


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 by instructions of its own; else it takes many times as long as float32."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
