"""Peak memory of each way, in a process of its own, which gives back at once what it frees: else the next peak would not show."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

from benchmark.measuring import GIB, peak_memory
from benchmark.parts import Size, cut, inference_ways, model_of, training_ways
from lib.datasets import Store
from lib.inference import predict

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # as glibc reads them when a process starts


def _peaks(size: Size, store: Store, half: bool) -> dict[str, Any]:
    """GiB beside what the process held before: of each way of inference and of training, and of scans by their number of slices."""
    inference, training = inference_ways(size, store, half), training_ways(size, store)[0]
    model, settings = model_of("adapter", size)
    scans = {count: cut(store, count, size.growth_pixels) for count in size.growth_slices}
    slices: dict[int, Callable[[], Any]] = {count: partial(predict, model, scan, settings) for count, scan in scans.items()}
    slices[size.growth_slices[0]]()  # once unmeasured
    found: dict[str, Any] = {}
    parts: dict[str, dict[Any, Callable[[], Any]]] = {"inference": inference, "training": training, "slices": slices}
    for part, ways in parts.items():
        found[part] = {}
        for name, work in ways.items():
            with peak_memory() as peak:
                work()
            found[part][name] = peak[0]
    for count in scans:  # beside the masks that are given back: 3 bytes a voxel
        found["slices"][count] -= 3 * count * size.growth_pixels**2 / GIB
    return found


def peaks(size: Size, store: Store, half: bool) -> dict[str, Any]:
    """{"inference": {way: GiB}, "training": {way: GiB}, "slices": {number of slices: GiB, masks aside}}."""
    with patch.dict(os.environ, GIVE_BACK), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peaks, size, store, half).result()
