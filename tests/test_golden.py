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
        [0.797185, 1.15287, 1.50176, 0.632842, 0.615014, 1.4871],
        {"site A": 0.0098525, "site B": 0.00617501, "site C": 0.0101516, "site M": 0.0101811},
    ),
    "adapter": (
        [0.797195, 1.15289, 1.50178, 0.632869, 0.615043, 1.48718],
        {"site A": 0.00986856, "site B": 0.00620332, "site C": 0.0101624, "site M": 0.0102186},
    ),
    "dynunet": (
        [4.35965, 4.39357, 4.29214, 4.21174],
        {"site A": 0.024832, "site B": 0.0180916, "site C": 0.0132879, "site M": 0.00187704},
    ),
    "med-vlm small": ([1.57124, 1.4255, 1.36762, 1.30584, 1.30228, 1.30055], {"site B": 0.0}),
    "unet": ([1.92565, 1.89565, 1.87709, 1.83488, 1.8519, 1.83928], {"site B": 0.00964499}),
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
    log = pd.read_csv(run_folder(name, "smoke") / "log.csv")
    assert log["loss"].tolist() == pytest.approx(losses, rel=1e-3)
    assert found == pytest.approx(dice, rel=1e-2)
