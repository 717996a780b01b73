"""lib.adapter: section 3 of the paper written out, whatever part is missing, and what each part is for."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny import tiny_settings
from torch import Tensor
from torch.nn import MultiheadAttention

from lib.adapter import TemporalAdapter, drop_path
from lib.clipseg import build


def plain_adapter(adapter: Any, tokens: Tensor) -> Tensor:
    """(W, L, D) -> (L, D): section 3 for one window by torch's own attention, the centre taken last."""
    x, centre = adapter.proj_in(tokens).transpose(0, 1) + adapter.temporal_pos_emb, tokens[len(tokens) // 2]
    for layer in adapter.temporal_layers:  # (L, W, d)
        y = layer.norm1(x)
        x = x + MultiheadAttention.forward(layer.self_attn, y, y, y, need_weights=False)[0]
        x = x + layer.ff(layer.norm2(x))
    temporal = adapter.proj_out(adapter.transformer_norm(x))[:, len(tokens) // 2]

    def spatial(x: Tensor) -> Tensor:
        if (block := adapter.spatial_context) is None:
            return x
        y = block.norm1(x)
        x = x + MultiheadAttention.forward(block.attn, y, y, y, need_weights=False)[0]
        return x + block.mlp(block.norm2(x))

    def gated(x: Tensor) -> Tensor:
        gate = 1 if adapter.gate_proj is None else torch.sigmoid(adapter.gate_proj(x))
        return gate * x + (1 - gate) * centre

    return adapter.mlp_head(spatial(gated(temporal))) if adapter.gate_first else gated(spatial(temporal))


def random_adapter(**changes: Any) -> TemporalAdapter:
    """Twenty-four channels a token and a gate that is half open, in double precision."""
    torch.manual_seed(0)
    sizes = {"window": 5, "adapter_width": 16, "adapter_depth": 3, "adapter_heads": 4, "gate_bias": 0.3}
    adapter = TemporalAdapter(24, tiny_settings("adapter", **sizes | changes)).double().eval()
    if adapter.gate_proj is not None:
        torch.nn.init.normal_(adapter.gate_proj.weight, std=0.2)
    return adapter


PARTS: list[dict[str, Any]] = [
    {}, {"adapter_depth": 0}, {"adapter_depth": 1}, {"spatial_block": False}, {"gate": False},
    {"adapter_depth": 0, "spatial_block": False, "gate": False},
    *({"window": window} for window in (1, 3, 7, 9)),
]


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("changes", PARTS)
@torch.no_grad()
def test_adapter_is_section_3_written_out_whatever_part_is_missing(changes: dict, gate_first: bool) -> None:
    adapter = random_adapter(gate_first=gate_first, **changes)
    tokens, window = torch.randn(9, 7, 24, dtype=torch.float64), changes.get("window", 5)
    windows = (torch.tensor([[1], [5]]) + torch.arange(window) - window // 2).clamp(0, 8)  # one at the edge
    out, gate = adapter(tokens, windows)
    assert out.shape == (2, 7, 24) and (gate is None) == (changes.get("gate") is False)
    assert gate is None or (gate.shape == out.shape and 0 < gate.min() < gate.max() < 1)
    for row, of_row in zip(out, windows, strict=True):
        assert torch.allclose(row, plain_adapter(adapter, tokens[of_row]), atol=1e-12)


@torch.no_grad()
def test_what_each_part_is_for() -> None:
    """Neighbours come in by the temporal layers alone, other places of a slice by the spatial block alone."""
    tokens, window = torch.randn(5, 7, 24, dtype=torch.float64), torch.arange(5)[None]
    beside, elsewhere = tokens.clone(), tokens.clone()
    beside[0] += torch.randn(7, 24)
    elsewhere[2, 3] += torch.randn(24)

    def moved(adapter: TemporalAdapter, changed: Tensor) -> list[bool]:
        """Which of the centre's tokens change."""
        same = torch.isclose(adapter(changed, window)[0], adapter(tokens, window)[0], rtol=1e-9)
        return (~same).any(-1)[0].tolist()

    whole, no_layers, no_block = (random_adapter(**part) for part in ({}, {"adapter_depth": 0}, PARTS[3]))
    assert all(moved(whole, beside)) and all(moved(no_block, beside)) and not any(moved(no_layers, beside))
    assert all(moved(whole, elsewhere)) and all(moved(no_layers, elsewhere))
    assert moved(no_block, elsewhere) == [place == 3 for place in range(7)]


def by_mm(*mm: float, **changes: Any) -> tuple[TemporalAdapter, Tensor, Tensor, Tensor]:
    """An adapter of five places within 10 mm, tokens, and one window with these distances."""
    adapter, rows = random_adapter(within_mm=10.0, **changes), torch.arange(len(mm))[None]
    return adapter, torch.randn(len(mm), 7, 24, dtype=torch.float64), rows, torch.tensor([mm])


@torch.no_grad()
def test_a_window_by_mm_that_is_full_and_evenly_spaced_is_the_published_one() -> None:
    adapter, tokens, rows, mm = by_mm(-10, -5, 0, 5, 10)
    out, gate = adapter(tokens, rows, mm)
    published = random_adapter()
    published.load_state_dict(adapter.state_dict())
    assert all(map(torch.equal, (out, gate), published(tokens, rows)))
    wider, *window = by_mm(-10, -5, 0, 5, 10, adapter_depth=1, spatial_block=False)
    assert torch.allclose(wider(*window)[0][0], plain_adapter(wider, window[0]), atol=1e-12)
    with pytest.raises(AssertionError, match="comes with its distances"):
        adapter(tokens, rows)


@pytest.mark.parametrize("gate_first", [False, True])
@torch.no_grad()
def test_empty_places_of_a_window_have_no_influence(gate_first: bool) -> None:
    inf = float("inf")
    adapter, tokens, rows, mm = by_mm(inf, -5, 0, 5, inf, gate_first=gate_first)
    out, _ = adapter(tokens, rows, mm)
    other, small = tokens.clone(), deepcopy(adapter)
    other[[0, 4]] = torch.randn(2, 7, 24, dtype=torch.float64)
    assert torch.equal(adapter(other, rows, mm)[0], out)
    assert not torch.allclose(adapter(other, rows, torch.tensor([[-10.0, -5, 0, 5, 10]]))[0], out)
    small.temporal_pos_emb = torch.nn.Parameter(adapter.temporal_pos_emb[:, 1:4])
    assert torch.allclose(out[0], plain_adapter(small, tokens[1:4]), atol=1e-12), "as a window of three"
    alone, _ = adapter(tokens, rows, torch.tensor([[inf, inf, 0, inf, inf]]))
    small.temporal_pos_emb = torch.nn.Parameter(adapter.temporal_pos_emb[:, 2:3])
    assert torch.allclose(alone[0], plain_adapter(small, tokens[2:3]), atol=1e-12)
    both, _ = adapter(tokens, rows.expand(2, 5), torch.tensor([[inf, inf, 0, inf, inf], mm[0].tolist()]))
    assert torch.allclose(both, torch.cat([alone, out]), atol=1e-12), "each window has a mask of its own"


@torch.no_grad()
def test_a_slice_is_placed_by_its_distance_and_side() -> None:
    adapter, tokens, rows, mm = by_mm(-6, -3, 0, 2.5, 9)
    table = adapter.temporal_pos_emb[0]
    expected = [0.2 * table[0] + 0.8 * table[1], 0.6 * table[1] + 0.4 * table[2], table[2],
                (table[2] + table[3]) / 2, 0.2 * table[3] + 0.8 * table[4]]  # fmt: skip
    assert torch.allclose(adapter.positions(mm)[0, 0], torch.stack(expected), atol=1e-6)
    assert torch.equal(adapter.positions(torch.tensor([[12.0]]))[0, 0, 0], table[4]), "further than all rows"
    out, order = adapter(tokens, rows, mm)[0], [3, 4, 2, 0, 1]
    assert torch.allclose(adapter(tokens, rows[:, order], mm[:, order])[0], out), "not by its place"
    for otherwise in (-mm, mm / 2):
        assert not torch.allclose(adapter(tokens, rows, otherwise)[0], out)


def test_dropout_acts_in_training_alone_and_where_it_is_asked_for() -> None:
    tokens, windows = torch.rand(5, 9, 24, dtype=torch.float64), torch.arange(5)[None]
    still = random_adapter(drop_path=0.0, gate_first=True).train()
    assert torch.equal(still(tokens, windows)[0], still(tokens, windows)[0])
    for changes in ({"dropout": 0.1}, {"spatial_drop_path": 0.5}):
        adapter = random_adapter(drop_path=0.0, gate_first=True, **changes)
        assert torch.equal(adapter(tokens, windows)[0], still.eval()(tokens, windows)[0])
        outputs = {adapter.train()(tokens, windows)[0].sum().item() for _ in range(20)}
        assert len(outputs) == (20 if "dropout" in changes else 4), "two branches, kept or dropped"


def test_drop_path_keeps_or_drops_whole_windows_and_the_mean() -> None:
    torch.manual_seed(0)
    branch = torch.ones(20_000, 3)
    dropped = drop_path(branch, 0.1, training=True)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9]) and (dropped[:, 0] == dropped[:, 2]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert drop_path(branch, 0.1, training=False) is branch
    layers = build(tiny_settings("adapter", adapter_depth=4)).adapter.temporal_layers
    assert [layer.drop_path_rate for layer in layers] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
