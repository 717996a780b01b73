"""Work in other processes: one piece for each scan, with a progress bar, or a module as `python -m` runs it.

Processes are forked from a server that has imported what they need and does nothing else: one forked from here would inherit the threads
of this process and their locks, and a new one would import PyTorch and MONAI for ten seconds. A script that asks for them needs
`if __name__ == "__main__"`; a notebook does not.
"""

import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

Work = TypeVar("Work")
Done = TypeVar("Done")


FORKS = multiprocessing.get_context("forkserver")


def place() -> tuple[int, int]:
    """The number of this process among those of `accelerate launch` on all machines, and how many these are."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def cores() -> int:
    """Processor cores for this process: the machine's, which those of `accelerate launch` share."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _end_with_parent() -> None:
    """This process ends with the one that started it, however that ends."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _start() -> None:
    _end_with_parent()
    torch.set_num_threads(1)


def in_processes(function: Callable[[Work], Done], work: Sequence[Work], title: str, jobs: int = 0, progress: bool = True) -> list[Done]:
    """`function` of each piece of work, in order, in `jobs` processes of one thread (0: by `cores`; no more than there is work)."""
    jobs = min(jobs or cores(), len(work))
    bar: dict[str, Any] = {"total": len(work), "desc": title, "leave": False} | ({} if progress and work else {"disable": True})
    if jobs <= 1:
        return list(tqdm(map(function, work), **bar))
    with ProcessPoolExecutor(jobs, FORKS, _start) as pool:
        return list(tqdm(pool.map(function, work), **bar))


def _run(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    _end_with_parent()
    os.environ.clear()  # the server's are those of the time when it was started
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    sys.argv = [module, *arguments]
    import_module(module).main()


def run_module(module: str, arguments: Sequence[str]) -> int:
    """`python -m module arguments`, without warnings; returns its exit status."""
    process = FORKS.Process(target=_run, args=(module, arguments, dict(os.environ)))
    process.start()
    process.join()
    return process.exitcode or 0
