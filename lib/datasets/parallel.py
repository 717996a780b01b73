"""One piece of work for each scan, in several processes, with a progress bar."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

Work = TypeVar("Work")
Done = TypeVar("Done")


def _start() -> None:
    """A worker has one thread, and ends with the process that started it, however that ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def in_processes(function: Callable[[Work], Done], work: Sequence[Work], title: str, jobs: int = 0, progress: bool = True) -> list[Done]:
    """`function` of each piece of work, in order, in `jobs` processes (0: one for each core, and no more than there is work).

    Processes are spawned, for a forked child would inherit its parent's threads and their locks: a script that asks for several needs
    `if __name__ == "__main__"`; a notebook does not.
    """
    jobs = min(jobs or os.cpu_count() or 1, len(work))
    bar: dict[str, Any] = {"total": len(work), "desc": title, "leave": False} | ({} if progress and work else {"disable": True})
    if jobs <= 1:
        return list(tqdm(map(function, work), **bar))
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start) as pool:
        return list(tqdm(pool.map(function, work), **bar))
