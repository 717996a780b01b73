"""lib.adapter: section 3 of the paper written out, whatever part is missing, and what each part is for."""

import pytest
import torch
from tiny import tiny_settings

from lib.adapter import TemporalAdapter, drop_path, gate_penalty
from lib.clipseg import build


def plain_adapter(adapter: TemporalAdapter, tokens: torch.Tensor) -> torch.Tensor:
    """(W, L, D) -> (L, D): section 3 for one window by torch's own attention, the centre taken last."""
    x = adapter.proj_in(tokens).transpose(0, 1) + adapter.temporal_pos_emb  # (L, W, d)
    for layer in adapter.temporal_layers:
        y = layer.norm1(x)
        x = x + torch.nn.MultiheadAttention.forward(layer.self_attn, y, y, y, need_weights=False)[0]
        x = x + layer.ff(layer.norm2(x))
    middle = len(tokens) // 2
    temporal = adapter.proj_out(adapter.transformer_norm(x))[:, middle]

    def spatial(x: torch.Tensor) -> torch.Tensor:
        if (block := adapter.spatial_context) is None:
            return x
        y = block.norm1(x)
        x = x + torch.nn.MultiheadAttention.forward(block.attn, y, y, y, need_weights=False)[0]
        return x + block.mlp(block.norm2(x))

    def gated(x: torch.Tensor) -> torch.Tensor:
        if adapter.gate_proj is None:
            return x
        gate = torch.sigmoid(adapter.gate_proj(x))
        return gate * x + (1 - gate) * tokens[middle]

    return adapter.mlp_head(spatial(gated(temporal))) if adapter.gate_first else gated(spatial(temporal))


def random_adapter(**changes: object) -> TemporalAdapter:
    """Twenty-four channels a token and a gate that is half open, in double precision."""
    torch.manual_seed(0)
    sizes = {
        "token_width": 24,
        "window": 5,
        "width": 16,
        "depth": 3,
        "heads": 4,
        "drop_path_rate": 0.1,
        "gate_bias": 0.3,
    }
    adapter = TemporalAdapter(**sizes | changes).double().eval()
    if adapter.gate_proj is not None:
        torch.nn.init.normal_(adapter.gate_proj.weight, std=0.2)
    return adapter


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 0},
        {"depth": 1},
        {"spatial_block": False},
        {"gate": False},
        {"depth": 0, "spatial_block": False, "gate": False},
        *({"window": window} for window in (1, 3, 7, 9)),
    ],
)
@torch.no_grad()
def test_adapter_is_section_3_written_out_whatever_part_is_missing(changes: dict, gate_first: bool) -> None:
    adapter, tokens = (
        random_adapter(gate_first=gate_first, **changes),
        torch.randn(9, 7, 24, dtype=torch.float64),
    )
    reach = torch.arange(changes.get("window", 5)) - changes.get("window", 5) // 2
    windows = (torch.tensor([[1], [5]]) + reach).clamp(0, 8)  # one at the edge
    out, gate = adapter(tokens, windows)
    assert out.shape == (2, 7, 24) and (gate is None) == (changes.get("gate") is False)
    assert gate is None or (gate.shape == out.shape and 0 < gate.min() < gate.max() < 1)
    for row, window in zip(out, windows, strict=True):
        assert torch.allclose(row, plain_adapter(adapter, tokens[window]), atol=1e-12)


@torch.no_grad()
def test_what_each_part_is_for() -> None:
    """Neighbours come in by the temporal layers alone, other places of a slice by the spatial block alone."""
    tokens, window = torch.randn(5, 7, 24, dtype=torch.float64), torch.arange(5)[None]
    beside, elsewhere = tokens.clone(), tokens.clone()
    beside[0] += torch.randn(7, 24)
    elsewhere[2, 3] += torch.randn(24)

    def moved(adapter: TemporalAdapter, changed: torch.Tensor) -> list[bool]:
        """Which of the centre's tokens change."""
        return (
            (~torch.isclose(adapter(changed, window)[0], adapter(tokens, window)[0], rtol=1e-9))
            .any(-1)[0]
            .tolist()
        )

    whole, no_layers, no_block = (
        random_adapter(**changes) for changes in ({}, {"depth": 0}, {"spatial_block": False})
    )
    assert all(moved(whole, beside)) and all(moved(no_block, beside)) and not any(moved(no_layers, beside))
    assert all(moved(whole, elsewhere)) and all(moved(no_layers, elsewhere))
    assert moved(no_block, elsewhere) == [place == 3 for place in range(7)]


def test_drop_path_keeps_or_drops_whole_windows_and_the_mean() -> None:
    torch.manual_seed(0)
    branch = torch.ones(20_000, 3)
    dropped = drop_path(branch, 0.1, training=True)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9]) and (dropped[:, 0] == dropped[:, 2]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert drop_path(branch, 0.1, training=False) is branch
    rates = [
        layer.drop_path_rate
        for layer in build(tiny_settings("adapter", adapter_depth=4)).adapter.temporal_layers
    ]
    assert rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


def test_gate_penalty_by_hand() -> None:
    assert gate_penalty(torch.tensor([0.0, 0.5, 1.0, 0.1])).item() == pytest.approx((0.25 + 0.09) / 4)
