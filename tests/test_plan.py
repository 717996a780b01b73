"""tools.plan and tools.gpu_proof: narrow models on a processor, in every part that a GPU will run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import PARTS, tiny_settings

from lib.config import RUNS
from lib.data import stores_of
from lib.files import InputError
from lib.training import train
from tools import gpu_proof, plan


def test_a_step_is_the_training_s_own(tmp_path: Path) -> None:
    """The losses of what is measured are the first rows of the log; operations are counted once a step."""
    settings = tiny_settings("adapter")
    build, sampler, losses = PARTS["adapter"]
    took = plan.measure("adapter", settings, stores_of(settings, "training"), 3)
    batches = sampler(stores_of(settings, "training"), settings)
    log = train(build(settings), batches, losses, settings, tmp_path)
    assert took.losses == log["loss"][:5].tolist()
    assert took.seconds > 0 and took.pieces == 1 and np.isnan(took.peak_gb), "no GPU's memory"
    slab = plan.measure("baseline", tiny_settings("baseline"), stores_of(settings, "training"), 1)
    assert 0 < slab.tflop < took.tflop, "the adapter costs more"


def test_a_plan_names_every_run_and_leaves_out_what_cannot_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path))
    table = plan.plan("smoke")
    assert table["run"].tolist() == list(RUNS)
    assert np.allclose(table["hours"], table[["training", "validation", "scoring"]].sum(axis=1))
    assert table["scoring"].iloc[0] * 3600 > 4 * plan.SCORING, "four test sets of one scan"
    steps = dict(zip(table["run"], table["steps"], strict=True))
    assert steps["baseline"] == 6 and steps["dynunet"] == 4

    def lacking(settings: object, part: str) -> list:
        raise InputError("no data")

    monkeypatch.setenv("RUNS", "adapter, baseline")
    folder = plan.run_folder("baseline", tiny_settings())
    folder.mkdir(parents=True)
    (folder / "best.safetensors").touch()
    monkeypatch.setattr(plan, "stores_of", lacking)
    table = plan.plan("smoke")
    assert table.to_dict("records") == [{"run": "baseline", "steps": "trained", "hours": 0.0}]
    assert capsys.readouterr().out == "plan: adapter is left out: no data\n"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    home = tmp_path_factory.mktemp("proof")
    return gpu_proof.proof("smoke", home, {"fp32": "no", "bf16": "bf16"}, (24, 24, 12), 2, 64, 2)


def test_every_part_of_the_gpu_s_proof_runs_on_a_processor(found: dict) -> None:
    steps = pd.DataFrame(found["steps"]).set_index(["precision", "system"])
    assert len(steps) == 2 * len(gpu_proof.SYSTEMS) and (steps["seconds a step"] > 0).all()
    exact, half = steps.loc["fp32"]["loss against fp32"], steps.loc["bf16"]["loss against fp32"]
    assert (exact == 0).all() and half.max() < 0.02 and (half > 0).any()
    assert (steps.loc["fp32"]["seconds of a scan"] > 0).all()
    assert found["inference"]["times the released way"] > 1
    assert found["training"]["steps"] == 24 and found["training"]["steps after the kill"] == 12
    assert found["training"]["greatest relative difference of losses after it"] == 0, "on a processor"
    assert set(found["beside a processor"].values()) == {0.0}


def test_the_page_shows_every_figure(found: dict) -> None:
    page = gpu_proof.page(json.loads(json.dumps(found)))
    assert page.count("| bf16 |") == len(gpu_proof.SYSTEMS)
    for part in ("inference", "training", "beside a processor"):
        assert f"**{part.capitalize()}**" in page and all(f"| {key} |" in page for key in found[part])


def test_without_a_gpu_nothing_is_measured() -> None:
    assert not torch.cuda.is_available()
    with pytest.raises(SystemExit, match=r"^gpu-proof: no GPU is found"):
        gpu_proof.main()
