"""Every page of `make site`: no console error, no failed request, no broken link, no request to another host; readable on a phone."""

import functools
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import Browser, Page

from conftest import shoot
from lib.paths import ROOT

SITE = Path(os.environ.get("SITE", ROOT / "build" / "site"))
PAGES = sorted(SITE.rglob("*.html"))
needs_site = pytest.mark.skipif(not PAGES, reason=f"{SITE} holds no page: run `make site` first, or name its folder by SITE")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing: what fails is seen in the browser."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site, served from this machine alone."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def name_of(path: Path) -> str:
    return path.relative_to(SITE).as_posix()


@needs_site
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_loads_without_an_error(page: Page, address: str, path: Path) -> None:
    wrong = list[str]()
    page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.on("response", lambda response: wrong.append(f"{response.status}: {response.url}") if response.status >= 400 else None)
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:")) else wrong.append(f"to {request.url}"))
    page.goto(address + name_of(path), wait_until="networkidle")
    assert not wrong
    nameless = page.eval_on_selector_all("img", "all => all.filter(i => !i.alt.trim()).length")
    assert not nameless, f"{nameless} pictures without alternative text"
    empty = page.eval_on_selector_all("img", "all => all.filter(i => i.complete && !i.naturalWidth).length")
    assert not empty, f"{empty} pictures that cannot be shown"
    shoot(page, f"site_{path.stem}")


@needs_site
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_each_link_leads_somewhere(page: Page, address: str, path: Path) -> None:
    page.goto(address + name_of(path))
    broken = []
    for link in page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))"):
        target, mark = urldefrag(urljoin(address + name_of(path), link))
        if not target.startswith(address):
            continue  # to another host: a reader may follow it, a test may not
        file = SITE / unquote(target.removeprefix(address))
        file = file / "index.html" if file.is_dir() else file
        if not file.is_file():
            broken.append(link)
        elif mark and file.suffix == ".html" and not _has_mark(file.read_text(), unquote(mark)):
            broken.append(f"{link} (no such heading)")
    assert not broken


def _has_mark(text: str, mark: str) -> bool:
    return any(f'{attribute}="{mark}"' in text for attribute in ("id", "name"))


@needs_site
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_page_fits_a_phone(browser: Browser, address: str, path: Path) -> None:
    """Nothing but a table or a block of code may be wider than the screen, and those scroll by themselves."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, device_scale_factor=2)
    page = context.new_page()
    page.goto(address + name_of(path))
    width = page.evaluate("document.documentElement.scrollWidth")
    shoot(page, f"phone_{path.stem}")
    context.close()
    assert width <= 391, f"{width} pixels wide on a screen of 390"
