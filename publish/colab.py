"""What a notebook's first cell runs on Colab, inside its kernel: installs what the project needs and Colab lacks.

It uses nothing but the standard library, since nothing of the project is installed yet.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DRIVE = Path("/content/drive")

# What Colab's kernel runs on or has loaded, and torch, which fits the machine's card: another version crashes the running kernel.
STAYS = (
    *("ipykernel", "ipython", "ipywidgets", "jupyter-client", "jupyter-core", "pyzmq", "tornado", "traitlets"),
    *("torch", "numpy", "pandas", "scipy", "matplotlib", "pillow"),
)


def constraints() -> str:
    """A constraints file for pip: what is installed of `STAYS`, in the version that is installed."""
    lines = []
    for name in STAYS:
        with suppress(PackageNotFoundError):
            lines.append(f"{name}=={version(name)}\n")
    return "".join(lines)


def install(*options: str) -> None:
    """Installs the project with requirements.txt into this environment; `STAYS` stay as they are. Ends with a sentence if pip fails.

    options: more of pip's, `--dry-run` say.
    """
    with tempfile.TemporaryDirectory() as folder:
        (stays := Path(folder, "stays.txt")).write_text(constraints())
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
        command = [*pip, "--editable", str(ROOT), "--constraint", str(stays), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(*done.stdout.splitlines()[-20:], sep="\n")
        sys.exit("What the project needs cannot be installed beside what Colab has; pip's reason stands above.")
    sys.path.insert(0, str(ROOT))  # this kernel has read its list of editable installs already
    print(f"installed; torch {version('torch')}")


def keep_results_on_drive() -> None:
    """Mounts the reader's Google Drive, and lets results go there, where the next session finds them."""
    from google.colab import drive

    drive.mount(str(DRIVE))
    os.environ["RESULTS_ROOT"] = str(DRIVE / "MyDrive" / ROOT.name / "results")


if __name__ == "__main__":
    install()
    if globals().get("ON_DRIVE"):
        keep_results_on_drive()
