"""tools.bench: the released way computes and writes what its description says, and every part is measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.config import settings_of
from lib.data import prepare
from lib.windows import Windows
from tools import bench


@torch.no_grad()
def test_the_released_way_is_the_model_as_released_window_by_window() -> None:
    model, settings = bench.model_of("smoke", **bench.AS_RELEASED, gate_bias=0.3)
    torch.nn.init.normal_(model.double().adapter.gate_proj.weight, std=0.2)
    window = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 24, 24), dtype=np.uint8))
    first = torch.tensor([0])
    batch = Windows(window, torch.arange(5)[None], first, first, torch.zeros(1, 24, 24), torch.ones(1))
    ours, theirs = model(batch, ["liver"])[0], bench.released_logits(model, window, "liver")
    assert settings.size == 24 and theirs.shape == (1, 24, 24)
    assert torch.allclose(ours, theirs, atol=1e-10) and theirs.std() > 1e-3


def test_the_released_way_prepares_a_file_for_each_slice_and_organ(tmp_path: Path) -> None:
    case, settings = bench.made_up_case(tmp_path, (24, 24, 12), 2), settings_of("adapter", "smoke")
    bench.released_prepare(case, settings, tmp_path / "files")
    store = prepare([case], settings, tmp_path / "stores", 1)[0]
    assert {*np.unique(store.labels)} == {*range(14)}, "all organs are there"
    shown = store.presence[:, 1:] > 0
    assert len(list((tmp_path / "files").iterdir())) == len(store.image) + shown.sum()
    for z, place in np.argwhere(shown)[::5]:
        mask = np.asarray(Image.open(tmp_path / "files" / f"slice_{z:03d}_{place + 1:02d}.png"))
        assert np.array_equal(mask > 0, store.labels[z] == place + 1)
    for z, image in enumerate(store.image):
        assert np.array_equal(Image.open(tmp_path / "files" / f"slice_{z:03d}.png"), image)


def test_everything_is_measured_and_ratios_are_taken_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(ways: dict, rounds: int) -> dict[str, np.ndarray]:
        for work in ways.values():
            work()
        return {name: np.array([8.0, 40, 9] if name == "released" else [2.0, 8, 3]) for name in ways}

    monkeypatch.setattr(bench, "alternately", seconds)
    table = bench.measure("smoke", 3, 6, (24, 24, 12), 2)
    samples = ["a training sample, slab", "a training sample, shuffled"]
    slices = ["a slice for 13 prompts", "a slice for 13 prompts, ours in bf16"]
    slices.append("a slice, 13 prompts against one")
    assert [*table.index] == ["preparation of a scan", *slices, *samples]
    scan, ratio = table.iloc[0], table.iloc[0]["ratio"]
    assert (scan["released"], scan["ours"]) == (9, 3)
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == (4, 3, 5, 3)
    assert table["released"][slices[0]] == 9 * 13 and table["ours"][slices[0]] == 3 / 6, "of one slice"
    assert table["ours"][samples[1]] == 3 > table["ours"][samples[0]], "of one sample"


def test_ways_take_turns() -> None:
    calls = list[str]()
    took = bench.alternately({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3 and [len(seconds) for seconds in took.values()] == [3, 3]


def test_the_full_size_is_the_hub_s_model() -> None:
    with torch.device("meta"):  # counted without allocating them
        model, settings = bench.model_of("full", **bench.AS_RELEASED)
    assert settings.size == 352 and settings.sampler == "shuffled"
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(160.8, abs=0.05)
