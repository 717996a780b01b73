"""Every page of `make site`: no error, dead link or request to another host; phone width; the search."""

import functools
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from playwright.sync_api import Browser, Page, expect

from conftest import shoot
from lib.files import ROOT

SITE = Path(os.environ.get("SITE", ROOT / "build" / "site"))
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
pytestmark = pytest.mark.skipif(not PAGES, reason=f"{SITE} holds no page: run `make site` or name it by SITE")


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


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_without_an_error_and_each_link_leads_somewhere(
    page: Page, address: str, name: str
) -> None:
    wrong, ours = list[str](), (address, "data:", "blob:")
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("request", lambda asked: None if asked.url.startswith(ours) else wrong.append(f"to {asked.url}"))
    page.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url}"))
    page.route("**/favicon.ico", lambda route: route.fulfill(status=204))  # the browser's own wish
    page.goto(address + name, wait_until="networkidle")
    assert not wrong
    images = page.eval_on_selector_all("img", "all => all.map(i => [i.alt, !i.complete || i.naturalWidth])")
    assert all(alt.strip() and width for alt, width in images), "a picture has no words, or is not there"
    shoot(page, f"site_{Path(name).stem}")
    broken = []
    for link in page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))"):
        target, mark = urldefrag(urljoin(address + name, link))
        if not target.startswith(address):
            continue  # to another host: a reader may follow it, a test may not
        file = SITE / unquote(target.removeprefix(address))
        file = file / "index.html" if file.is_dir() else file
        if not file.is_file() or (mark and f'id="{unquote(mark)}"' not in file.read_text()):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(browser: Browser, address: str, name: str) -> None:
    """What is wider than the screen (a table, an equation, code) scrolls by itself."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True)
    page = context.new_page()
    page.goto(address + name)
    width = page.evaluate("document.documentElement.scrollWidth")
    shoot(page, f"phone_{Path(name).stem}")
    context.close()
    assert width <= 391, f"{width} pixels wide on a screen of 390"


def test_the_search_finds_a_notebook(page: Page, address: str) -> None:
    page.goto(address)
    field = page.locator("input.sidebar-search")
    field.fill("CLIPSeg")
    field.press("Enter")
    found = page.locator("#search-results ul.search a", has_text="02")
    expect(found.first).to_be_visible()
    shoot(page, "site_search")
    found.first.click()
    expect(page.locator("h1")).to_contain_text("baseline")
