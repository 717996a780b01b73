"""CLIPSeg's training path, the temporal adapter and what each ablation makes of them, on two-layer models."""

from dataclasses import replace

import pytest
import torch
from tiny import fake_store, tiny_settings

from lib.adapter import TemporalAdapter, drop_path, gate_penalty
from lib.baselines import Patches, build_dynunet, volume_losses
from lib.clipseg import TextPromptedSegmenter, build, losses
from lib.organs import KEYS
from lib.paths import InputError
from lib.profiles import ABLATIONS
from lib.training import assert_gradients_arrive, parameter_groups
from lib.windows import Terms, TermSampler

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


def alone(terms: Terms, n: int) -> Terms:
    """Term n by itself, with every slice of its window to be encoded anew."""
    window, one = terms.windows[terms.centre[n]], slice(n, n + 1)
    places = torch.arange(len(window))[None]
    return Terms(terms.slices[window], places, torch.tensor([0]), terms.prompt[one], terms.masks[one], terms.weight[one])


@pytest.mark.parametrize("sampler", [{"sampler": "shuffled", "batch": 5}, {"sampler": "slab", "batch": 4, "run_length": 4, "prompts": 3}])
@pytest.mark.parametrize("adapted", ["deepest", "all"])
def test_gradients_equal_those_of_every_term_by_itself(sampler: dict, adapted: str) -> None:
    """A batch in which each slice is encoded once, against one forward pass for each term, and one for each centre's gate."""
    settings = tiny_settings("adapter", gate_bias=0.3, adapted=adapted, drop_path=0.0, gate_penalty=0.05, **sampler)
    store = fake_store(9)
    terms, model = TermSampler([store], settings)[0], build(settings).double().train()
    terms = Terms(*(field.double() if field.is_floating_point() else field for field in terms))
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)
    losses(model, terms, settings, 0.2)["loss"].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    unpenalised = replace(settings, gate_penalty=0.0)
    for n in range(len(terms.prompt)):
        (losses(model, alone(terms, n), unpenalised, 0.2)["loss"] / len(terms.prompt)).backward()
    for window in terms.windows:  # the penalty is a mean over centres, not over terms
        gate = model.adapt(model.encode_slices(terms.slices[window]), torch.arange(len(window))[None])[1]
        (settings.gate_penalty * gate_penalty(gate) / len(terms.windows)).backward()
    assert len(terms.slices) < sum(map(len, terms.windows)) or settings.sampler == "shuffled", "slices are shared"
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (found[name] - parameter.grad).norm() <= 1e-10 * parameter.grad.norm().clamp(min=1e-6), name


def plain_adapter(adapter: TemporalAdapter, tokens: torch.Tensor) -> torch.Tensor:
    """Section 3 written out for one window by torch's own attention, the centre taken last. (W, L, D) -> (L, D)."""
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
    sizes = {"token_width": 24, "window": 5, "width": 16, "depth": 3, "heads": 4, "drop_path_rate": 0.1, "gate_bias": 0.3}
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
    adapter, tokens = random_adapter(gate_first=gate_first, **changes), torch.randn(9, 7, 24, dtype=torch.float64)
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
        return (~torch.isclose(adapter(changed, window)[0], adapter(tokens, window)[0], rtol=1e-9)).any(-1)[0].tolist()

    whole, no_layers, no_block = (random_adapter(**changes) for changes in ({}, {"depth": 0}, {"spatial_block": False}))
    assert all(moved(whole, beside)) and all(moved(no_block, beside)) and not any(moved(no_layers, beside))
    assert all(moved(whole, elsewhere)) and all(moved(no_layers, elsewhere))
    assert moved(no_block, elsewhere) == [place == 3 for place in range(7)]


def one_step(run: str) -> torch.nn.Module:
    """The run's model after the backward pass of one step; scans are noise, with another patient's slices beside them."""
    settings = tiny_settings(run)
    if settings.model == "dynunet":
        model, generator = build_dynunet(settings).train(), torch.Generator().manual_seed(0)
        shape = (2, 1, *settings.patch_voxels)
        patches = Patches(torch.rand(shape, generator=generator), torch.randint(0, 14, shape, generator=generator, dtype=torch.uint8))
        volume_losses(model, patches, settings, 0.0)["loss"].backward()
        return model
    store = replace(fake_store(9), donor=fake_store(7, seed=1).image)
    model, terms = build(settings).train(), TermSampler([store], settings)[0]
    assert terms.windows.shape[1] == (settings.window if settings.adapter else 1)
    logits, gate = model(terms, list(KEYS))
    assert logits.shape == terms.masks.shape and (gate is not None) == (settings.adapter and settings.gate)
    losses(model, terms, settings, 0.0)["loss"].backward()
    return model


@pytest.mark.parametrize("run", list(ABLATIONS))
def test_gradients_arrive_in_every_ablation(run: str) -> None:
    model = one_step(run)
    assert_gradients_arrive(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name in frozen)
    trained = {id(parameter) for group in parameter_groups(model, tiny_settings(run)) for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad} and trained


def test_each_released_switch_freezes_what_it_says() -> None:
    def frozen(run: str) -> set[str]:
        return {name for name, parameter in build(tiny_settings(run)).named_parameters() if not parameter.requires_grad}

    usual = frozen("adapter")
    assert usual == frozen("baseline") and not any(name.startswith(("adapter", "base_model.decoder")) for name in usual)
    assert frozen("adapter, released optimizer") - usual == {"adapter.temporal_pos_emb", "base_model.clip.text_projection.weight"}
    clip = {name for name, _ in build(tiny_settings()).named_parameters() if name.startswith("base_model.clip.")}
    assert frozen("baseline, released frozen encoders") == clip, "the decoder alone trains"
    idle = {name.removeprefix("base_model.decoder.").rsplit(".", 1)[0] for name in frozen("adapter, released one activation") - usual}
    assert {name.split(".")[0] + name.split(".")[1] for name in idle} == {"layers1", "layers2", "reduces1", "reduces2"}


@torch.no_grad()
def test_one_activation_is_what_hugging_face_s_decoder_makes_of_one_tensor() -> None:
    settings = tiny_settings("adapter, released one activation", extract_layers=(0, 1))  # the last of three blocks is none of them
    model, terms = build(settings).eval(), some_terms(5)
    text = model.encode_text(PROMPTS)
    adapted, _ = model.adapt(model.encode_slices(terms.slices), terms.windows)
    assert len(adapted) == 1
    expected = model.base_model.decoder([adapted[0][terms.centre]], text[terms.prompt]).logits
    logits = model(terms, PROMPTS)[0]
    assert torch.allclose(logits, expected, atol=1e-5, rtol=1e-5) and logits.std() > 1e-3
    pixels = (terms.slices[:, None].float() - model.mean) / model.std
    last = model.base_model.clip.vision_model(pixel_values=pixels).last_hidden_state
    assert torch.allclose(model.encode_slices(terms.slices)[0], last, atol=1e-5), "the last block's output, without a norm behind it"
    decoder = model.base_model.decoder
    for unused in (*decoder.layers[1:].parameters(), *decoder.reduces[1:].parameters()):
        torch.nn.init.normal_(unused)
    assert torch.equal(model(terms, PROMPTS)[0], logits), "the other decoder layers have no part in it"
    torch.nn.init.normal_(decoder.layers[0].mlp.fc1.weight)
    assert not torch.allclose(model(terms, PROMPTS)[0], logits)


@pytest.mark.parametrize(("penalty_on", "expected"), [("gate", None), ("bias", 0.25 * 0.75)])
def test_the_penalty_is_on_the_gate_s_values_or_on_its_bias_alone(penalty_on: str, expected: float | None) -> None:
    settings = tiny_settings("adapter", penalty_on=penalty_on, gate_penalty=2.0, gate_bias=-torch.tensor(3.0).log().item())  # sigmoid: 1/4
    model, terms = build(settings).eval(), TermSampler([fake_store(9)], settings)[0]
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.5)
    parts = losses(model, terms, settings, 0.0)
    penalty = (parts["loss"] - (parts["bce"] + parts["dice_loss"]) / 2) / 2.0
    gate = model(terms, list(KEYS))[1]
    assert penalty.item() == pytest.approx(expected or (gate * (1 - gate)).mean().item(), abs=1e-5)
    assert abs((gate * (1 - gate)).mean().item() - 0.25 * 0.75) > 1e-3, "the two differ"
    assert parts["gate"].item() == pytest.approx(gate.mean().item(), abs=1e-5)


def test_without_a_gate_there_is_no_penalty() -> None:
    settings = tiny_settings("adapter, no gate", gate_penalty=100.0)
    parts = losses(build(settings).eval(), TermSampler([fake_store(9)], settings)[0], settings, 0.0)
    assert set(parts) == {"bce", "dice_loss", "loss"} and parts["loss"].item() == pytest.approx(
        (parts["bce"] + parts["dice_loss"]).item() / 2
    )


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
