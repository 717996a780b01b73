"""No test may depend on the machine or on what its user has set: that is put aside here, and a test that
wants it sets it itself.

SAMPLES alone stays: where the public sample scans are, tests look at them, too.
"""

import os
from collections.abc import Iterator

import pytest

ROOTS = ("DATA_ROOT", "CACHE_ROOT", "RESULTS_ROOT", "FIGURES_ROOT")
OURS = (*ROOTS, "PROFILE", "WEIGHTS", "PRECISION", "FAST", "CPU", "LAUNCH")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHERS = (
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_", "TQDM_", "GIT_", "MAKE", "MFLAGS"),
    *("MATPLOTLIBRC", "PYTHONWARNINGS", "nnUNet_"),
)
HERE = {
    "CUDA_VISIBLE_DEVICES": "",  # sums on a GPU come in no fixed order
    "OMP_NUM_THREADS": "1",  # nor do those of several threads
    "MPLBACKEND": "agg",  # no window
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}

# before a test or library is imported, and for the commands that tests start, too
for name in list(os.environ):
    if name in OURS + LAUNCHER or name.startswith(OTHERS):
        del os.environ[name]
os.environ |= HERE


@pytest.fixture(scope="session", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Phantoms and prepared slices are made anew, once for all processes of a test run, and not in the
    checkout."""
    home = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        shared = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home
        patch.setenv("CACHE_ROOT", str(shared / "cache"))
        yield


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and figures that a test writes without naming a folder of its own do not come into the
    checkout."""
    for name in ("RESULTS_ROOT", "FIGURES_ROOT"):
        if name not in os.environ:
            monkeypatch.setenv(name, str(tmp_path_factory.getbasetemp() / name.lower()))
