"""lib.datasets.parallel: work in several processes comes back in order, and ends with the process that asked for it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.datasets.parallel import in_processes
from lib.paths import ROOT

SCRIPT = """
import os, sys, time
from pathlib import Path
from lib.datasets.parallel import in_processes

def work(number):
    Path(sys.argv[1], f"{os.getpid()}.started").touch()
    time.sleep(600)

if __name__ == "__main__":
    in_processes(work, [1, 2], "sleeping", jobs=2, progress=False)
"""


def test_results_come_in_order_with_one_process_or_none(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_processes(abs, [-3, 2, -1], "numbers", jobs=1) == [3, 2, 1] and in_processes(abs, [], "numbers") == []
    assert "numbers" in capfd.readouterr().err
    in_processes(abs, [1], "numbers", progress=False)
    assert capfd.readouterr().err == ""


def alive(pid: int) -> bool:
    """Whether a process runs still; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, script, tmp_path], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def wait(ready) -> None:
        end = time.monotonic() + 120
        while not ready() and time.monotonic() < end:
            time.sleep(0.1)
        assert ready()

    try:
        wait(lambda: len(list(tmp_path.glob("*.started"))) == 2)
        workers = [int(path.stem) for path in tmp_path.glob("*.started")]
        assert all(map(alive, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait(lambda: not any(map(alive, workers)))
