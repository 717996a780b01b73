"""CLIPSeg's training path and the temporal adapter, on two-layer models."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_settings

from lib.adapter import TemporalAdapter, drop_path, gate_penalty
from lib.clipseg import TextPromptedSegmenter, build
from lib.organs import KEYS
from lib.paths import InputError
from lib.windows import Terms

PROMPTS = [*KEYS, "", "a photo of the ❤ Éa"]


def some_terms(window: int, slices: int = 6, size: int = 24) -> Terms:
    """Three centres, five terms; each slice stands once however many windows see it."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (slices, size, size), dtype=torch.uint8, generator=generator)
    centres = torch.tensor([1, 2, 4])
    reach = torch.arange(window) - window // 2
    windows = (centres[:, None] + reach).clamp(0, slices - 1)
    masks = torch.zeros(5, size, size)
    masks[:, 4:9, 3:8] = 1
    return Terms(pictures, windows, torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 14, 3, 12, 0]), masks, torch.ones(5))


def hf_logits(model: TextPromptedSegmenter, terms: Terms) -> torch.Tensor:
    """What Hugging Face's own forward pass says of the same terms."""
    centres = terms.slices[terms.windows[:, terms.windows.shape[1] // 2]][terms.centre]
    pixels = (centres[:, None].float() - model.mean) / model.std
    tokens = model.tokenizer([PROMPTS[i] for i in terms.prompt], padding=True, return_tensors="pt")
    return model.base_model(pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits


@torch.no_grad()
def test_logits_equal_hugging_face() -> None:
    model, terms = build(tiny_settings()).eval(), some_terms(1)
    logits, gate = model(terms, PROMPTS)
    assert gate is None and logits.shape == (5, 24, 24)
    assert torch.allclose(logits, hf_logits(model, terms), atol=1e-5, rtol=1e-5)
    assert logits.std() > 1e-3, "a constant would equal anything"


@pytest.mark.parametrize("adapted", ["deepest", "all"])
@torch.no_grad()
def test_adapter_starts_as_the_baseline_up_to_its_shut_gate(adapted: str) -> None:
    model, terms = build(tiny_settings("adapter", adapted=adapted, gate_bias=-5.0)).eval(), some_terms(5)
    logits, gate = model(terms, PROMPTS)
    assert torch.allclose(gate, torch.full_like(gate, torch.sigmoid(torch.tensor(-5.0)).item()))  # 0.0067 everywhere
    baseline = hf_logits(model, terms)
    assert 0 < (logits - baseline).abs().max() < 0.5 * baseline.std()
    torch.nn.init.constant_(model.adapter.gate_proj.bias, -100.0)
    assert torch.allclose(model(terms, PROMPTS)[0], baseline, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("run", ["baseline", "adapter"])
def test_gradients_reach_both_encoders_and_every_trainable_parameter(run: str) -> None:
    model, terms = build(tiny_settings(run)).train(), some_terms(1 if run == "baseline" else 5)
    logits, _ = model(terms, PROMPTS)
    logits.square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle
    names = [n for n, p in model.named_parameters() if p.grad is not None]
    assert any("vision_model.encoder.layers.0" in n for n in names) and any("text_model.encoder.layers.0" in n for n in names)


@torch.no_grad()
def test_adapter_equals_every_window_by_itself() -> None:
    """Sharing slices between windows changes nothing: each window alone, all five slices encoded anew, gives the same."""
    model = build(tiny_settings("adapter", gate_bias=0.0)).double().eval()
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)
    terms = some_terms(5)
    together = model(terms, PROMPTS)[0]
    for n in range(5):
        window = terms.windows[terms.centre[n]]
        alone = Terms(
            terms.slices[window], torch.arange(5)[None], torch.tensor([0]), terms.prompt[n : n + 1], terms.masks[:1], terms.weight[:1]
        )
        assert torch.allclose(model(alone, PROMPTS)[0][0], together[n], atol=1e-10)


def plain_adapter(adapter: TemporalAdapter, tokens: torch.Tensor) -> torch.Tensor:
    """Section 3 written out for one window by torch's own attention, the centre taken last. (5, L, D) -> (L, D)."""
    x = adapter.proj_in(tokens).transpose(0, 1) + adapter.temporal_pos_emb  # (L, 5, d)
    for layer in adapter.temporal_layers:
        y = layer.norm1(x)
        x = x + torch.nn.MultiheadAttention.forward(layer.self_attn, y, y, y, need_weights=False)[0]
        x = x + layer.ff(layer.norm2(x))
    temporal = adapter.proj_out(adapter.transformer_norm(x))[:, 2][None]
    block = adapter.spatial_context
    y = block.norm1(temporal)
    temporal = temporal + torch.nn.MultiheadAttention.forward(block.attn, y, y, y, need_weights=False)[0]
    temporal = temporal + block.mlp(block.norm2(temporal))
    gate = torch.sigmoid(adapter.gate_proj(temporal))
    return (gate * temporal + (1 - gate) * tokens[2])[0]


@torch.no_grad()
def test_adapter_is_section_3_written_out() -> None:
    torch.manual_seed(0)
    adapter = TemporalAdapter(token_width=24, window=5, width=16, depth=3, heads=4, drop_path_rate=0.1, gate_bias=0.3).double().eval()
    torch.nn.init.normal_(adapter.gate_proj.weight, std=0.2)
    tokens = torch.randn(9, 7, 24, dtype=torch.float64)
    windows = torch.tensor([[0, 0, 0, 1, 2], [3, 4, 5, 6, 7]])
    out, gate = adapter(tokens, windows)
    assert out.shape == gate.shape == (2, 7, 24) and 0 < gate.min() < gate.max() < 1
    for row, window in zip(out, windows, strict=True):
        assert torch.allclose(row, plain_adapter(adapter, tokens[window]), atol=1e-12)


def test_drop_path_keeps_or_drops_whole_windows_and_the_mean() -> None:
    torch.manual_seed(0)
    branch = torch.ones(20_000, 3)
    dropped = drop_path(branch, 0.1, training=True)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.9]) and (dropped[:, 0] == dropped[:, 2]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert drop_path(branch, 0.1, training=False) is branch
    rates = [layer.drop_path_rate for layer in build(tiny_settings("adapter", adapter_depth=4)).adapter.temporal_layers]
    assert rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


def test_gate_penalty_by_hand() -> None:
    assert gate_penalty(torch.tensor([0.0, 0.5, 1.0, 0.1])).item() == pytest.approx((0.25 + 0.09) / 4)


def test_a_pretrained_folder_in_the_hub_s_format_gives_the_same_logits(tmp_path) -> None:
    """Full-size weights come this way; the folder is what `save_pretrained` and the hub hold."""
    made = build(tiny_settings()).eval()
    made.base_model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    read = build(tiny_settings(weights=str(tmp_path))).eval()
    with torch.no_grad():
        assert torch.equal(made(some_terms(1), PROMPTS)[0], read(some_terms(1), PROMPTS)[0])


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="WEIGHTS"):
        build(tiny_settings(weights=str(tmp_path / "nothing")))


def test_both_seeds_and_equal_seeds() -> None:
    first, again, other = (build(replace(tiny_settings(), seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["base_model.decoder.film_mul.weight"], other["base_model.decoder.film_mul.weight"])
