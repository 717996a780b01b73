"""`python -m lib.viewer`: how long a move of the viewer's slider takes here, on a scan as small as a phantom and on large ones."""

import time

import numpy as np

from lib.organs import ORGANS

from .scene import TRUTH, Scene
from .slices import Viewer

SIZES = ((96, 96, 36), (512, 512, 100), (512, 512, 600))
MOVES = 40


def scene_of_noise(shape: tuple[int, int, int]) -> Scene:
    """A CT of noise with three panels of 13 organs each, and a gate: more to draw than any patient has."""
    rng = np.random.default_rng(0)
    voxels = rng.integers(-1000, 1000, shape[::-1], dtype=np.int16).T  # as a NIfTI file has them: x runs fastest
    labels = rng.integers(0, 14, [-(-n // 16) for n in shape[::-1]], dtype=np.uint8)
    labels = labels.repeat(16, 0).repeat(16, 1).repeat(16, 2)[tuple(slice(n) for n in shape[::-1])].T
    panels = {TRUTH: labels, "baseline": labels[::-1], "adapter": labels[:, ::-1]}
    names = {organ.label: organ.key for organ in ORGANS}
    gate = rng.random((shape[2], 22, 22), dtype=np.float32)
    return Scene(voxels, (0.8, 0.8, 2.5), "CT", names, panels, tuple(names), {"adapter": gate})


def main() -> None:
    """Prints median and slowest time of a slice's change, from the slider's event to the picture that goes to the browser."""
    for shape in SIZES:
        viewer = Viewer(scene_of_noise(shape), start=0, gate=True)
        times, started = [], time.process_time()
        for z in np.random.default_rng(1).integers(0, shape[2], MOVES).tolist():
            start = time.perf_counter()
            viewer.slice.value = z
            times.append(1000 * (time.perf_counter() - start))
        processor = 1000 * (time.process_time() - started) / MOVES
        size = " x ".join(map(str, shape))
        print(f"{size}, gate shown: median {np.median(times):.0f} ms, slowest {max(times):.0f} ms; {processor:.0f} ms of one core")


if __name__ == "__main__":
    main()
