"""lib.adapter: section 3 of the paper written out, whatever part is missing, and what each part is for."""

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
