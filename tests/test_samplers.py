"""lib.figures.samplers: what a training costs by each sampler, measured where the runs were trained and kept where not."""

from pathlib import Path

import pandas as pd
import pytest
from tiny import fake_store

from lib.figures import samplers


def test_costs_are_measured_for_what_was_trained_here_and_kept_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    monkeypatch.setattr("lib.datasets.stores_of", lambda *_: [fake_store(9)])
    monkeypatch.setattr(samplers, "is_finished", lambda folder, settings: folder.name == "baseline-shuffled")
    monkeypatch.setattr(samplers, "STEPS", 2)
    kept = pd.DataFrame([("baseline", 1.0, 1, 1.0), ("adapter", 13.0, 600, 160.0)], columns=samplers.COLUMNS)
    samplers.write_extract(kept, "smoke", "samplers.csv")
    samplers.extract_samplers("smoke")
    found = pd.read_csv(tmp_path / "smoke" / "figure_data" / "samplers.csv").set_index("run")
    assert list(found.index) == ["adapter", "baseline", "baseline, shuffled"]
    assert list(found.loc["adapter"]) == [13, 600, 160], "not trained here"
    assert found.loc["baseline, shuffled", "terms a step"] == 14 and 4 < found.loc["baseline", "terms a step"] < 20
    assert (found.loc[["baseline", "baseline, shuffled"], "steps"] == 6).all() and (found["seconds a training"] > 0).all()
