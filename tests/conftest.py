"""No test may depend on the machine or on what its user has set: here that is put aside, and a test that wants it sets it itself.

SAMPLES alone stays: where the public sample scans are, tests look at them, too.
"""

import os
from collections.abc import Iterator

import pytest

OURS = ("PROFILE", "DATA_ROOT", "CACHE_ROOT", "RESULTS_ROOT", "FIGURES_ROOT", "WEIGHTS", "PRECISION", "ALL_CASES", "LAUNCH")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHERS = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_", "TQDM_", "GIT_", "MAKE", "MFLAGS", "PYTHONWARNINGS", "MATPLOTLIBRC")
HERE = {
    "CUDA_VISIBLE_DEVICES": "",  # sums on a GPU come in no fixed order
    "OMP_NUM_THREADS": "1",  # nor do those of several threads
    "MPLBACKEND": "agg",  # no window
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}

for name in list(os.environ):  # before any test or library is imported, and also for the commands that tests start
    if name in OURS + LAUNCHER or name.startswith(OTHERS):
        del os.environ[name]
os.environ |= HERE


@pytest.fixture(scope="session", autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Phantoms and prepared slices are made anew, once for all processes of a test run, and not in the checkout."""
    home = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_ROOT", str((home.parent if "PYTEST_XDIST_WORKER" in os.environ else home) / "cache"))
        yield
