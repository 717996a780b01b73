"""A real browser, and a JupyterLab of its own: `make test-browser` runs what is here, not `make test`."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import jupytext
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from lib.files import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
SCREENSHOTS = ROOT / "build" / "screenshots"
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
SOFTWARE = ("--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader")  # WebGL without a graphics card
FOLDERS = ("RESULTS_ROOT", "FIGURES_ROOT", "CACHE_ROOT", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
FOLDERS += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # else cells out of sight are not in the page
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    if not CHROMIUM or not Path(CHROMIUM).is_file():
        pytest.exit("No chromium here: install one, or name its file by CHROMIUM=path.", returncode=2)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *SOFTWARE])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page as wide as a laptop's screen."""
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    yield context.new_page()
    context.close()


def shoot(page: Page, name: str) -> None:
    """A screenshot for people, in build/screenshots."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address, with a {} for a notebook's name, of a JupyterLab on copies of them (smoke profile)."""
    home, token = tmp_path_factory.mktemp("lab"), secrets.token_hex(16)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (home / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.py"):  # as they stand now, without outputs
        jupytext.write(jupytext.read(path), home / "notebooks" / f"{path.stem}.ipynb")
    for name, value in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    environment = os.environ | {"PROFILE": "smoke", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in FOLDERS:
        environment[name] = str(home / name.split("_")[-2].lower())
    options = ["--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True"]
    options += [f"--ServerApp.port={port}", "--ServerApp.ip=127.0.0.1", f"--IdentityProvider.token={token}"]
    options += [f"--ServerApp.root_dir={home / 'notebooks'}"]
    with open(home / "lab.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=2)
                break
            except (URLError, OSError):
                assert server.poll() is None, (home / "lab.log").read_text()[-2000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}"
    finally:
        server.terminate()  # its kernels end with it
        server.wait(30)
