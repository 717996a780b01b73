"""The temporal adapter (T-Gated sections 3.2 to 3.4): neighbouring slices, the slice itself, then a gate.

Letters in shape comments: U slices encoded, C centre slices, W slices of a window, Q of them asked, L tokens
of a slice, D token width, d adapter width, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.config import ClipSegSettings


class Attention(nn.MultiheadAttention):
    """nn.MultiheadAttention's parameters; attends along the last but one axis, with any axes before it."""

    def forward(self, queries: Tensor, keys: Tensor,  # type: ignore[override]
                seen: Tensor | None = None) -> Tensor:
        """(..., Q, d) and (..., K, d) -> (..., Q, d). seen: (..., K) bool, the keys that count; None: all."""
        d, heads, weight, bias = self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias
        q = F.linear(queries, weight[:d], bias[:d]).unflatten(-1, (heads, -1)).transpose(-2, -3)
        both = F.linear(keys, weight[d:], bias[d:]).unflatten(-1, (2, heads, -1))  # (..., K, 2, H, d/H)
        k, v = both.transpose(-2, -4).unbind(-3)  # (..., H, K, d/H) each
        shape, rate = q.shape, self.dropout if self.training else 0.0
        q, k, v = (x.flatten(0, -4) for x in (q, k, v))  # (N, H, ...): for more axes torch has no fast kernel
        mask = None if seen is None else seen.flatten(0, -2)[:, None, None]  # (N, 1, 1, K)
        mixed = F.scaled_dot_product_attention(q, k, v, mask, rate).view(shape)
        return self.out_proj(mixed.transpose(-2, -3).flatten(-2))


def drop_path(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth: drops the whole residual branch of a window (axis 0), scales the others."""
    if rate == 0 or not training:
        return branch
    keep = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= rate
    return branch * keep / (1 - rate)


class TemporalLayer(nn.Module):
    """Pre-norm transformer layer across a window's slices, each token position on its own (section 3.2)."""

    def __init__(self, *, width: int, heads: int, drop_path_rate: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout, batch_first=True)
        wide = nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout)
        self.ff = nn.Sequential(*wide, nn.Linear(4 * width, width), nn.Dropout(dropout))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor, queries: slice = slice(None), seen: Tensor | None = None) -> Tensor:
        """(C, L, W, d) -> (C, L, Q, d), where `queries` names the window positions to compute, and `seen`
        (C, L, W) those that hold a slice."""
        normed = self.norm1(x)
        attended = self.self_attn(normed[:, :, queries], normed, seen)
        x = x[:, :, queries] + drop_path(attended, self.drop_path_rate, self.training)
        return x + drop_path(self.ff(self.norm2(x)), self.drop_path_rate, self.training)


class SpatialContext(nn.Module):
    """Pre-norm self-attention over the tokens of the centre slice, then a GELU MLP (section 3.3)."""

    def __init__(self, *, width: int, heads: int, dropout: float = 0.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.drop = Attention(width, heads, dropout, batch_first=True), nn.Dropout(dropout)
        wide = nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout)
        self.mlp = nn.Sequential(*wide, nn.Linear(2 * width, width), nn.Dropout(dropout))
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """(C, L, D) -> (C, L, D)."""
        normed = self.norm1(x)
        x = x + drop_path(self.drop(self.attn(normed, normed)), self.drop_path_rate, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_rate, self.training)


class TemporalAdapter(nn.Module):
    """Tokens of every slice in, those of the centres out, informed by their neighbours as the gate opens.

    Names of modules are the released checkpoint's. `spatial_block`, `gate` and a depth of 0 take a part away;
    `gate_first` is the released order: gate, spatial block, and a head that the paper does not have.
    With `within_mm` (future direction 1) places of a window may be empty, and positions go by mm.
    """

    def __init__(self, token_width: int, settings: ClipSegSettings) -> None:
        super().__init__()
        s, width, heads, dropout = settings, settings.adapter_width, settings.adapter_heads, settings.dropout
        self.gate_first, self.within_mm = s.gate_first, s.within_mm
        self.proj_in = nn.Sequential(nn.Linear(token_width, width, bias=False), nn.LayerNorm(width))
        self.temporal_pos_emb = nn.Parameter(torch.randn(1, s.window, width) * 0.02)
        rates = torch.linspace(0, s.drop_path, s.adapter_depth, device="cpu").tolist()
        self.temporal_layers = nn.ModuleList(
            TemporalLayer(width=width, heads=heads, drop_path_rate=rate, dropout=dropout) for rate in rates)
        self.transformer_norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, token_width, bias=False)
        self.spatial_context = None if not s.spatial_block else SpatialContext(
            width=token_width, heads=heads, dropout=dropout, drop_path_rate=s.spatial_drop_path)
        self.gate_proj = nn.Linear(token_width, token_width) if s.gate else None
        if self.gate_proj is not None:  # section 3.4: shut at first, so the model starts as the baseline
            nn.init.zeros_(self.gate_proj.weight)
            nn.init.constant_(self.gate_proj.bias, s.gate_bias)
        if s.gate_first:
            head = nn.Linear(token_width, token_width), nn.LayerNorm(token_width), nn.GELU()
            last = nn.Dropout(dropout), nn.Linear(token_width, token_width), nn.Dropout(dropout / 2)
            self.mlp_head = nn.Sequential(*head, *last)

    def mix(self, temporal: Tensor, single: Tensor) -> tuple[Tensor, Tensor | None]:
        """Equation 2, per channel: (C, L, D) twice -> (C, L, D) and the gate's values in [0, 1]."""
        if self.gate_proj is None:
            return temporal, None
        gate = torch.sigmoid(self.gate_proj(temporal))
        return gate * temporal + (1 - gate) * single, gate

    def positions(self, mm: Tensor) -> Tensor:
        """(C, W) mm -> (C, 1, W, d). The published table's W rows stand evenly from -R to R mm, and between
        two of them a distance has their linear mix: slices that stand there start as the published ones."""
        rows = self.temporal_pos_emb[0]
        place = ((mm.to(rows) / self.within_mm).clamp(-1, 1) + 1) * (len(rows) - 1) / 2  # 0 to W - 1
        share = 1 - (place[..., None] - torch.arange(len(rows), device=mm.device)).abs()  # (C, W, W) of a row
        return (share.clamp(min=0) @ rows)[:, None]

    def forward(self, tokens: Tensor, windows: Tensor,
                mm: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens (U, L, D) and (C, W) rows of U -> (C, L, D) and the gate's values, None without a gate.

        mm: `within_mm` needs the slices' distances (C, W) from the centres, inf where a place is empty.
        """
        middle = windows.shape[1] // 2
        single, centre = tokens[windows[:, middle]], slice(middle, middle + 1)  # (C, L, D)
        positions: Tensor = self.temporal_pos_emb
        seen = None
        if self.within_mm:
            assert mm is not None, "a window in mm comes with its distances"
            positions, seen = self.positions(mm), mm.isfinite()[:, None].expand(-1, tokens.shape[1], -1)
        x = self.proj_in(tokens)[windows].transpose(1, 2) + positions  # equation 1: (C, L, W, d)
        for layer in self.temporal_layers[:-1]:
            x = layer(x, seen=seen)
        # of the last layer nothing but the centre is read
        x = self.temporal_layers[-1](x, centre, seen) if self.temporal_layers else x[:, :, centre]
        temporal = self.proj_out(self.transformer_norm(x.squeeze(2)))  # (C, L, D)
        spatial = self.spatial_context or nn.Identity()
        if not self.gate_first:
            return self.mix(spatial(temporal), single)
        mixed, gate = self.mix(temporal, single)
        return self.mlp_head(spatial(mixed)), gate
