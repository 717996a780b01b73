"""JupyterLab opens 09 on a phantom: the slider moves, an organ is unticked, a prompt is typed, and each time the picture changes."""

import time
from io import BytesIO

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from conftest import shoot

READY = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
BADGE = "colab.research.google.com"  # a picture at the notebook's head, the only thing that comes from elsewhere
PATIENCE_MS = 600_000  # the notebook trains its tiny models first


def pixels(picture: Locator) -> np.ndarray:
    """What is seen of an element."""
    picture.scroll_into_view_if_needed()
    return np.asarray(Image.open(BytesIO(picture.screenshot())).convert("RGB")).astype(int)


def changed(page: Page, picture: Locator, before: np.ndarray, source: str) -> float:
    """Waits for a picture other than `source`; share of the pixels that differ from `before`."""
    expect(picture).not_to_have_attribute("src", source, timeout=30_000)
    page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=picture.element_handle())
    after = pixels(picture)
    return float((abs(after - before).max(-1) > 40).mean()) if after.shape == before.shape else 1.0


def test_the_viewer_and_the_playground_answer(page: Page, lab: str) -> None:
    own, hosts = lab.split("/")[2], set[str]()
    page.route(lambda url: url.startswith("http") and url.split("/")[2] != own, lambda route: route.abort())
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url.startswith("http") else None)
    page.goto(lab.format("09_your_scan.ipynb"), timeout=120_000)
    expect(page.locator(".jp-Notebook .jp-CodeCell").first).to_be_visible(timeout=120_000)
    page.wait_for_function(READY, timeout=120_000)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    pictures = page.locator("img.widget-image")
    expect(pictures).to_have_count(3, timeout=PATIENCE_MS)  # two viewers and the playground
    expect(page.locator("canvas").last).to_be_visible(timeout=PATIENCE_MS)  # NiiVue's
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] >> text=Error").count() == 0
    viewer, picture = page.locator(".jp-OutputArea-output", has=pictures.first).first, pictures.first

    before, source, handle = pixels(picture), str(picture.get_attribute("src")), viewer.locator(".noUi-handle").first
    shoot(page, "viewer")
    handle.focus()
    started = time.perf_counter()
    handle.press("ArrowRight")
    moved = changed(page, picture, before, source)
    print(f"\na slice's change, browser to kernel and back: {1000 * (time.perf_counter() - started):.0f} ms, {moved:.0%} of the pixels")
    assert moved > 0.01

    before, source = pixels(picture), str(picture.get_attribute("src"))
    viewer.get_by_label("all", exact=True).uncheck()
    assert changed(page, picture, before, source) > 0.002
    bare, source = pixels(picture), str(picture.get_attribute("src"))
    viewer.get_by_label("liver", exact=True).check()
    assert changed(page, picture, bare, source) > 0.001
    shoot(page, "viewer_liver_alone")

    source, before = str(picture.get_attribute("src")), pixels(picture)
    viewer.locator("select").select_option("bone")
    assert changed(page, picture, before, source) > 0.01
    shoot(page, "viewer_bone_window")

    asked, source = pictures.nth(2), str(pictures.nth(2).get_attribute("src"))
    before, field = pixels(asked), page.locator(".widget-text input").first
    field.fill("spleen")
    field.press("Enter")
    assert changed(page, asked, before, source) > 0.001
    expect(page.get_by_text("text nearest to spleen (cosine 1.00)")).to_be_visible()
    shoot(page, "playground")
    page.locator("canvas").last.scroll_into_view_if_needed()
    page.wait_for_timeout(2000)
    shoot(page, "solid")
    assert hosts <= {own, BADGE}, "a request would have gone to another host"
