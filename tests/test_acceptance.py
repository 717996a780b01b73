"""The phantoms' acceptance (notebook 01): an atlas that sees no image must not do well on them."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lib.config import settings_of
from lib.data import cases_of
from lib.files import ROOT, read_csv
from lib.statistics import mean, select


def cells(notebook: str, tag: str) -> dict[str, Any]:
    """What the cells of a notebook with this tag define, after its imports."""
    text = (ROOT / "notebooks" / f"{notebook}.py").read_text()
    found: dict[str, Any] = {}
    for cell in re.split(r"(?m)^# %%", text):
        head, _, code = cell.partition("\n")
        if f'tags=["{tag}"]' in head or ("\nfrom lib" in code and "[markdown]" not in head):
            exec(code, found)
    return found


def test_an_image_blind_atlas_does_not_do_well() -> None:
    """The demo's own phantoms, 30 to learn from and 10 of each site to test: as the notebook has it."""
    settings = settings_of("adapter", "demo")
    parts = {part: cases_of(settings, part) for part in ("training", "site A", "site B")}
    table = cells("01_data_preparation", "acceptance")["acceptance"](parts.pop("training"), parts, settings)
    assert isinstance(table, pd.DataFrame) and list(table.index) == ["site A", "site B"]
    assert (table["atlas, share of the scan"] < 0.25).all()
    assert table["organs in a slice"].between(3, 6).all()
    assert table["atlas, mm from the lungs"].between(0.2, 0.45).all(), "more where it knows the lungs"


def test_what_sees_the_image_does_better() -> None:
    """In the committed scores, at home: baseline and 3-D U-Net beside the best atlas of notebook 01."""
    scores = read_csv(ROOT / "results/demo/scores.csv")
    table = pd.read_csv(ROOT / "results/demo/tables/acceptance.csv", index_col=0)
    best = table.filter(like="atlas").loc["site A"].max()
    for name in ("baseline", "dynunet"):
        assert mean(select(scores, name, "site A")).value > best + 0.02, name


def test_the_atlas_by_hand() -> None:
    """Two scans of two slices: the liver fills the lower one's left half in both, one shows a spleen."""
    found = cells("01_data_preparation", "acceptance")
    side, rows = found["SIDE"], {"share of the scan": np.array([0, 39])}
    labels = np.zeros((2, side, side), np.uint8)
    labels[0, :, : side // 2] = 1
    other = labels.copy()
    other[1] = 3
    atlas = found["atlas_of"]([(labels, rows), (other, rows)], "share of the scan")
    assert atlas[0, 0].mean() == 0.5 and atlas[0, 39].max() == 0 and atlas[2, 39].min() == 0.5
    scores = found["dice_of"](atlas, (labels, rows), "share of the scan", 13 * [0.4])
    assert scores[0] == pytest.approx(1) and np.isnan(scores[2]), "Dice asks only for what is there"
    scores = found["dice_of"](atlas, (other, rows), "share of the scan", 13 * [0.6])
    assert scores[0] == pytest.approx(1) and scores[2] == 0
