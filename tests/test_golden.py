"""Golden numbers: what the smoke profile trains and scores, to the digits on which processors agree.

A change that is to change no number is right when these still hold. Losses hold within a thousandth; Dice
within a hundredth, for a voxel whose probability is near one half may fall on either side.
"""

from pathlib import Path

import pandas as pd
import pytest
from tiny import PARTS, tiny_settings

from lib.config import run_folder
from lib.metrics import mean_dice
from lib.training import run

GOLDEN: dict[str, tuple[list[float], dict[str, float]]] = {  # losses step by step, and mean Dice by test set
    "baseline": (
        [0.0825858, 1.39681, 0.501623, 0.0794497, 0.510529, 0.24294],
        {"site A": 0.022276, "site B": 0.017599, "site C": 0.0219357, "site M": 0.0177273},
    ),
    "adapter": (
        [0.0922301, 1.52233, 0.500188, 0.0820391, 0.506284, 0.231608],
        {"site A": 0.0197282, "site B": 0.0146945, "site C": 0.0164848, "site M": 0.0154795},
    ),
    "dynunet": (
        [4.36373, 4.3653, 4.24394, 4.17895],
        {"site A": 0.014384, "site B": 0.0132248, "site C": 0.0104365, "site M": 0.00517093},
    ),
    "med-vlm small": ([1.54221, 1.38504, 1.29118, 1.25564, 1.22635, 1.22123], {"site B": 0.0}),
    "unet": ([1.94345, 1.8987, 1.88436, 1.86807, 1.82261, 1.83065], {"site B": 0.0147511}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers_of_the_smoke_profile(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(home))
    scores = run(name, tiny_settings(name), *PARTS[name])
    losses, dice = GOLDEN[name]
    found = {dataset: mean_dice(rows) for dataset, rows in scores.groupby("dataset")}
    log = pd.read_csv(run_folder(name, tiny_settings(name)) / "log.csv")
    assert log["loss"].tolist() == pytest.approx(losses, rel=1e-3)
    assert found == pytest.approx(dice, rel=1e-2)
