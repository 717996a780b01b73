"""benchmark at a tiny size: the released way computes what its description says, every part is measured, table and figure follow."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import fake_store, tiny_settings

from benchmark import SIZES, bench_figure, bench_table, benchmark, write
from benchmark.loading import waiting
from benchmark.measuring import alternately, gflop, has_bf16, peak_memory
from benchmark.page import doublings, on_a_line, ratio
from benchmark.parts import cut, made_up_case, model_of
from benchmark.released import logits_of, prepare, read_window
from lib.clipseg import build
from lib.datasets import prepare as prepare_store
from lib.windows import Terms, TermSampler


@pytest.fixture(scope="module", params=[False, True], ids=["without bf16", "with bf16"])
def found(request: pytest.FixtureRequest) -> dict:
    """Everything measured, as on a processor with or without instructions for bf16, whatever this one has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmark.has_bf16", lambda: request.param)
        return benchmark("tiny", say=lambda part: None)


@torch.no_grad()
def test_the_released_way_is_the_model_as_released_window_by_window() -> None:
    """Written anew from its description, it agrees with our model of the same switches to the last digits."""
    model = build(tiny_settings("adapter, as released", gate_bias=0.3)).double().eval()
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.2)
    window = torch.from_numpy(fake_store(5).image)
    terms = Terms(window, torch.arange(5)[None], torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 24, 24), torch.ones(1))
    ours, theirs = model(terms, ["liver"])[0], logits_of(model, window, "liver")
    assert torch.allclose(ours, theirs, atol=1e-10) and theirs.std() > 1e-3


def test_the_released_way_prepares_a_file_for_each_slice_and_organ(tmp_path: Path) -> None:
    case, settings = made_up_case(SIZES["tiny"], tmp_path), tiny_settings()
    count = prepare(case, settings, tmp_path / "files")
    store = prepare_store(case, settings, tmp_path / "store")
    assert count == len(list((tmp_path / "files").iterdir())) == len(store.image) + (store.presence[:, 1:] > 0).sum()
    z, label = (int(place[0]) for place in np.nonzero(store.presence[2:-2, 1:]))
    window, mask = read_window(tmp_path / "files", list(range(z, z + 5)), label + 1)
    assert np.array_equal(window, store.image[z : z + 5]) and np.array_equal(mask > 0, store.labels[z + 2] == label + 1)
    assert Image.open(tmp_path / "files" / "slice_000.png").size == (settings.size,) * 2
    assert {*np.unique(store.labels)} == {*range(14)}, "all organs are there"


def test_everything_is_measured_and_told(found: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESULTS_ROOT", str(tmp_path / "results"))
    monkeypatch.setenv("FIGURES_ROOT", str(tmp_path / "figures"))
    paths = write(found)
    assert [path.name for path in paths] == ["bench.json", "bench.csv", "bench.md", "bench.tex", "bench.png", "bench.pdf"]
    assert all(path.stat().st_size > 500 for path in paths)
    half = ["ours, bf16"] if found["machine"]["has bf16"] else []
    assert list(found["inference"]["seconds"]) == ["released", "ours", *half]
    for part in ("inference", "training", "preparation"):
        assert all(value > 0 for values in found[part]["seconds"].values() for value in values)
    assert found["inference"]["released GFLOP"] > 0
    assert found["preparation"]["files"]["released"] > 12 and found["metrics"]["organs"] == 13
    assert list(found["growth"]["slices"]) == [4, 8] and list(found["growth"]["prompts"]) == [1, 2, 13]
    assert found["training"]["terms"]["slab"] > found["training"]["terms"]["shuffled"] == 1
    assert {part: list(peaks) for part, peaks in found["memory"].items()} == {
        "inference": ["released", "ours", *half],
        "training": ["released", "slab", "shuffled"],
        "slices": [4, 8],
    }
    shares = found["loader"]["share of waiting"]
    assert list(shares) == ["this processor", "a T4 in float32", "a T4 in fp16"] and all(0 <= share <= 1 for share in shares.values())
    took = found["loader"]["seconds a step"]
    assert took["a T4 in float32"] / took["a T4 in fp16"] == pytest.approx(65 * 0.25 / (8.1 * 0.6)), "peaks and what is reached of them"
    counted = found["estimate"]["GFLOP"]["adapter"]
    assert counted["a term, trained as released"] > 0 and counted["a centre, trained"] > counted["a slice, segmented"]
    assert found["estimate"]["released"] > found["estimate"]["ours"] > 0
    text = paths[2].read_text()
    assert "measures time and memory, not accuracy" in text and "at least 45" in text and "ours under 6" in text
    assert ("bf16 is left out: the processor has no instructions for it" in text) != bool(half)


def test_waiting_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only a pause and the making of a batch move: after the first batch, 3 seconds each against pauses of 9."""
    now, made = [0.0], []

    class Sampler(TermSampler):
        def __getitem__(self, step: int) -> Terms:
            made.append(step)
            now[0] += 3
            return super().__getitem__(step)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda pause: now.__setitem__(0, now[0] + pause))
    sampler = Sampler([fake_store(5)], tiny_settings(epoch_steps=20))
    assert waiting(sampler, 9.0, 5) == pytest.approx(3 / (3 + 9)) and made == [*range(6)]


def test_ratios_are_taken_within_rounds() -> None:
    pair = {"released": [8.0, 40.0, 9.0], "ours": [2.0, 8.0, 3.0]}
    assert ratio(pair) == (4, 3, 5)


def test_growth_with_prompts_by_hand() -> None:
    prompts = {str(n): {"seconds": value} for n, value in ((1, 1.0), (2, 1.1), (4, 1.21), (8, 1.21), (13, 1.331), (26, 99.0))}
    assert doublings(prompts) == pytest.approx([0.1, 0.1, 0, 0.1])
    scattered = {"1": {"seconds": 2.0}, "2": {"seconds": 0.0}, "3": {"seconds": 4.0}}
    assert [entry["seconds"] for entry in on_a_line(scattered).values()] == pytest.approx([1, 2, 3])


def test_the_table_by_hand(found: dict) -> None:
    told = found | {"inference": found["inference"] | {"seconds": {"released": [90.0, 100.0], "ours": [2.0, 2.0]}}}
    line = bench_table(told).set_index("measured").loc["a slice for 13 prompts, float32"]
    assert line[["released", "ours", "released / ours", "released / ours low", "released / ours high"]].tolist() == [95, 2, 47.5, 45, 50]
    assert line["wanted"] == "at least 45" and "a slice for 13 prompts, bf16" not in bench_table(told)["measured"].tolist()
    told["machine"] = found["machine"] | {"matmul GFLOP/s": found["inference"]["released GFLOP"] / 45}
    assert bench_table(told).set_index("measured").loc["inference, share of the matmul peak", "released"] == pytest.approx(0.5)
    half = told["inference"]["seconds"] | {"ours, bf16": [1.0, 1.0]}
    with_half = bench_table(told | {"inference": told["inference"] | {"seconds": half}}).set_index("measured")
    assert with_half.loc["a slice for 13 prompts, bf16", "released / ours"] == 95
    assert "T4-hours" in bench_figure(told).get_label()


def test_ways_take_turns() -> None:
    calls: list[str] = []
    took = alternately({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 3 and {name: len(values) for name, values in took.items()} == {"a": 3, "b": 3}


def test_arithmetic_and_memory_are_counted() -> None:
    a = torch.randn(64, 64)
    assert gflop(lambda: a @ a) == pytest.approx(2 * 64**3 / 1e9)
    q = torch.randn(1, 2, 8, 4)
    attention = gflop(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == pytest.approx(2 * 2 * 2 * 8 * 8 * 4 / 1e9), "both products of an attention"
    with peak_memory() as peak:
        block = np.ones(30_000_000)
        for _ in range(5):
            block += 1
    assert 0.2 < peak[0] < 0.5, "240 MB"


def test_a_build_of_torch_without_onednn_has_no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)  # such a build does not know the question
    assert has_bf16() is False


def test_a_cut_scan_has_as_many_slices_as_asked() -> None:
    store = replace(fake_store(5), id="x")
    longer = cut(store, 12, 16)
    assert longer.image.shape == (12, 16, 16) and np.array_equal(longer.image[7], store.image[2, :16, :16])
    assert longer.grid.shape == (16, 16, 12) and longer.labels is None


def test_the_full_size_is_the_hub_s_model() -> None:
    """160.8 million parameters, counted without allocating them."""
    with torch.device("meta"):
        model, settings = model_of("adapter, as released", SIZES["full"])
    assert settings.size == 352 and settings.sampler == "slab"
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(160.8, abs=0.05)
