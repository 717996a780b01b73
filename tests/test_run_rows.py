"""scores.csv belongs to several notebooks: each asks a run for its own tests."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lib import training
from lib.config import settings_of
from lib.metrics import KEY


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run` without models and scans: every test has one row."""

    def rows(model: None, settings: Any, test: tuple[str, str, str], folder: Path) -> pd.DataFrame:
        return pd.DataFrame(
            [dict(zip(KEY[3:6], test, strict=True), case="1", organ="liver", dice=settings.batch / 100)]
        )

    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    monkeypatch.setattr(training, "evaluate", rows)
    for name in ("trained", "check_disjoint", "record_split"):
        monkeypatch.setattr(training, name, lambda *_: None)
    # type: ignore[arg-type]
    return lambda settings, *tests: training.run("unet", settings, None, None, None, tests)


def stored(settings: Any) -> list[tuple[str, float]]:
    table = training.run("unet", settings, None, None, None, train=False)  # type: ignore[arg-type]
    return list(zip(table["condition"], table["dice"], strict=True))


def test_other_tests_of_a_run_keep_their_rows(run: Any) -> None:
    settings = settings_of("unet", "smoke", batch=4)
    run(settings, ("site B", "held out", "name"))
    asked = run(settings, ("site B", "held out", "another"))
    assert asked["condition"].tolist() == ["", "another"]
    assert stored(settings) == [("", 0.04), ("another", 0.04), ("name", 0.04)]


def test_a_test_that_is_asked_for_twice_is_scored_once(run: Any) -> None:
    assert len(run(settings_of("unet", "smoke"), ("site B", "held out", ""))) == 1


def test_rows_of_other_settings_go(run: Any) -> None:
    run(settings_of("unet", "smoke", batch=4), ("site B", "held out", "name"))
    changed = settings_of("unet", "smoke", batch=5)
    run(changed)
    assert stored(changed) == [("", 0.05)]
