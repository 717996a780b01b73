"""JupyterLab opens notebook 02 in the smoke profile and runs it cell by cell; ten steps lower the loss."""

import re

import pytest
from playwright.sync_api import Page, expect

from conftest import shoot

STATE = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"
CELLS = "jupyterapp.shell.currentWidget.content.model.cells"  # JupyterLab's own view of the notebook
BADGE = "colab.research.google.com"  # a picture at the head, the only thing that comes from elsewhere
PATIENCE_MS = 600_000  # the notebook trains its tiny models
RAN = f"""number => {{
    const cell = {CELLS}.get(number);
    return cell.type !== 'code' || (cell.executionCount !== null && {STATE} === 'idle');
}}"""
OUTPUTS = f"number => {CELLS}.get(number).type === 'code' ? {CELLS}.get(number).toJSON().outputs : []"


def test_notebook_02_runs_cell_by_cell_and_its_loss_falls(page: Page, lab: str) -> None:
    own, hosts = lab.split("/")[2], set[str]()
    page.route(lambda url: url.startswith("http") and url.split("/")[2] != own, lambda route: route.abort())
    page.on("request", lambda it: hosts.add(it.url.split("/")[2]) if it.url.startswith("http") else None)
    page.goto(lab.format("02_baseline.ipynb"), timeout=120_000)
    expect(page.locator(".jp-Notebook .jp-CodeCell").first).to_be_visible(timeout=120_000)
    page.wait_for_function(f"{STATE} === 'idle'", timeout=120_000)
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")

    losses, told = list[float](), ""
    for number in range(page.evaluate(f"{CELLS}.length")):
        page.evaluate("jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
        page.wait_for_function(RAN, arg=number, timeout=PATIENCE_MS)
        outputs = page.evaluate(OUTPUTS, number)
        failed = [output["evalue"] for output in outputs if output["output_type"] == "error"]
        assert not failed, f"cell {number}"
        if "by_hand" in page.evaluate(f"{CELLS}.get({number}).sharedModel.source") and not losses:
            table = page.locator(".jp-Notebook .jp-Cell").nth(number).locator("table").first
            place = table.locator("thead tr").first.locator("th").all_text_contents().index("loss")
            rows = table.locator("tbody tr").all()
            losses = [float(row.locator("th, td").nth(place).text_content() or "nan") for row in rows]
            table.scroll_into_view_if_needed()
            shoot(page, "ten_steps")
        told += "".join("".join(output.get("text", "")) for output in outputs)
    assert len(losses) >= 2
    match = re.search(r"loss of the first batch: ([\d.]+), after \d+ steps ([\d.]+)", told)
    assert match and float(match[1]) == pytest.approx(losses[0], abs=6e-4)
    assert float(match[2]) < float(match[1]), "the loss does not fall"
    assert page.locator(".jp-Notebook img").count() >= 2, "the curves and the scan"
    shoot(page, "notebook_02")
    assert hosts <= {own, BADGE}, "a request would have gone to another host"
