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
        [1.15502, 0.240883, 0.654825, 0.184687, 0.827933, 0.604565],
        {"site A": 0.0247986, "site B": 0.0166747, "site C": 0.0219699, "site M": 0.0209184},
    ),
    "adapter": (
        [1.1452, 0.235867, 0.660635, 0.17585, 0.810788, 0.574418],
        {"site A": 0.0305744, "site B": 0.021145, "site C": 0.0220413, "site M": 0.0226306},
    ),
    "dynunet": (
        [4.36373, 4.3653, 4.24394, 4.17895],
        {"site A": 0.014384, "site B": 0.0132248, "site C": 0.0104365, "site M": 0.00517093},
    ),
    "med-vlm small": ([1.60147, 1.3976, 1.33588, 1.2963, 1.27774, 1.26708], {"site B": 0.0}),
    "unet": ([1.91719, 1.89396, 1.88754, 1.81016, 1.83003, 1.80944], {"site B": 0.00723325}),
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
