"""lib.clipseg: Hugging Face's own numbers, each sample by itself, losses by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import RELEASED, fake_store, hub_model, tiny_settings
from torch import Tensor

from lib.clipseg import TEXT_LENGTH, TextPromptedSegmenter, build, losses, sentence_feature
from lib.organs import KEYS
from lib.training import assert_gradients_arrive, parameter_groups
from lib.windows import Windows, WindowSampler

PROMPTS = [*KEYS, "", "a photo of the ❤ Éa"]


def some_samples(window: int, slices: int = 6, size: int = 24) -> Windows:
    """Three centres, five samples; each slice stands once however many windows see it."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (slices, size, size), dtype=torch.uint8, generator=generator)
    windows = (torch.tensor([[1], [2], [4]]) + torch.arange(window) - window // 2).clamp(0, slices - 1)
    centre, prompt = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 14, 3, 12, 0])
    return Windows(pictures, windows, centre, prompt, torch.zeros(5, size, size), torch.ones(5))


def alone(samples: Windows, n: int) -> Windows:
    """Sample n by itself, with every slice of its window to be encoded anew."""
    window, one, first = samples.windows[samples.centre[n]], slice(n, n + 1), torch.tensor([0])
    own = samples.mm[int(samples.centre[n]) :][:1]
    rest = samples.prompt[one], samples.masks[one], samples.weight[one], own
    return Windows(samples.slices[window], torch.arange(len(window))[None], first, *rest)


def hf_logits(model: TextPromptedSegmenter, samples: Windows) -> Tensor:
    """What Hugging Face's own forward pass says of the same samples."""
    centres = samples.slices[samples.windows[:, samples.windows.shape[1] // 2]][samples.centre]
    pixels = (centres[:, None].float() - model.mean) / model.std
    prompts = [PROMPTS[i] for i in samples.prompt]
    if model.tokenizer is None:
        text = {"conditional_embeddings": torch.stack([sentence_feature(prompt) for prompt in prompts])}
    else:
        text = dict(model.tokenizer(prompts, padding=True, return_tensors="pt"))
    return model.base_model(pixel_values=pixels, **text).logits


@pytest.mark.parametrize("make", [build, hub_model])
@torch.no_grad()
def test_logits_equal_hugging_face(make: Callable[[Any], TextPromptedSegmenter]) -> None:
    model, samples = make(tiny_settings()).eval(), some_samples(1)
    logits, gate = model(samples, PROMPTS)
    assert gate is None and logits.shape == (5, 24, 24)
    assert torch.allclose(logits, hf_logits(model, samples), atol=1e-5, rtol=1e-5)
    assert logits.std() > 1e-3, "a constant would equal anything"


@torch.no_grad()
def test_neighbours_as_channels_are_hugging_face_s_logits_of_the_stack() -> None:
    model, samples = hub_model(tiny_settings(neighbours="channels")).eval(), some_samples(3)
    stack = samples.slices[samples.windows][samples.centre].float()  # z-1, z and z+1 as red, green and blue
    tokens = model.tokenizer([PROMPTS[i] for i in samples.prompt], padding=True, return_tensors="pt")
    expected = model.base_model(pixel_values=(stack - model.mean) / model.std, **tokens).logits
    assert torch.allclose(model(samples, PROMPTS)[0], expected, atol=1e-5, rtol=1e-5)
    assert (expected - hf_logits(model, samples)).abs().max() > 1e-3, "the centre alone says otherwise"


@pytest.mark.parametrize("adapted", ["deepest", "all"])
@torch.no_grad()
def test_adapter_starts_as_the_baseline_up_to_its_shut_gate(adapted: str) -> None:
    model, samples = build(tiny_settings("adapter", adapted=adapted, gate_bias=-5.0)).eval(), some_samples(5)
    logits, gate = model(samples, PROMPTS)
    assert gate.flatten().numpy() == pytest.approx(0.0066929, abs=1e-6)  # sigmoid(-5)
    baseline = hf_logits(model, samples)
    assert 0 < (logits - baseline).abs().max() < 0.5 * baseline.std()
    activations, centres = model.encode_slices(samples.slices), samples.windows[:, 2]
    moved = [not torch.equal(mixed, alone[centres]) for mixed, alone in zip(
        model.adapt(activations, samples.windows)[0], activations, strict=True)]
    assert moved == [True, adapted == "all"]
    torch.nn.init.constant_(model.adapter.gate_proj.bias, -100.0)
    assert torch.allclose(model(samples, PROMPTS)[0], baseline, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "sampler", [{"sampler": "shuffled", "batch": 4}, {"slab_prompts": 3}, {"within_mm": 1.5}])
@pytest.mark.parametrize("adapted", ["deepest", "all"])
def test_gradients_equal_those_of_every_term_by_itself(sampler: dict[str, Any], adapted: str) -> None:
    """A batch in which each slice is encoded once, against one forward pass for each term and each gate."""
    settings = tiny_settings(
        "adapter", gate_bias=0.3, adapted=adapted, drop_path=0.0, gate_penalty=0.05, **sampler)
    samples, model = WindowSampler([fake_store(9)], settings)[0], build(settings).double().train()
    samples = Windows(*(field.double() if field.is_floating_point() else field for field in samples))
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)
    losses(model, samples, settings, 0.2)["loss"].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    unpenalised = replace(settings, gate_penalty=0.0)
    for n in range(len(samples.prompt)):
        (losses(model, alone(samples, n), unpenalised, 0.2)["loss"] / len(samples.prompt)).backward()
    for window, mm in zip(samples.windows, samples.mm, strict=True):  # the penalty is a mean over centres
        encoded, rows = model.encode_slices(samples.slices[window]), torch.arange(len(window))[None]
        gate = model.adapt(encoded, rows, mm[None])[1]
        (settings.gate_penalty * (gate * (1 - gate)).mean() / len(samples.windows)).backward()
    shared = len(samples.slices) < sum(map(len, samples.windows))
    assert shared or settings.sampler == "shuffled"
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in found.items():
        expected = model.get_parameter(name).grad
        assert (gradient - expected).norm() <= 1e-10 * expected.norm().clamp(min=1e-6), name


SWITCHES = ("neighbours", "decoder_inputs", "gate_first", "frozen_embeddings")
ABLATIONS: list[tuple[str, dict[str, Any]]] = [  # of notebook 04: what changes what is computed
    ("baseline", {}), ("baseline", {"sampler": "shuffled", "batch": 14}), ("adapter", {}),
    ("baseline", {"freeze_encoders": True}),
    ("adapter", {"adapter_depth": 0}), ("adapter", {"spatial_block": False}), ("adapter", {"gate": False}),
    *(("adapter", {"window": window}) for window in (1, 3, 7, 9)), ("adapter", {"within_mm": 1.5}),
    *(("adapter", {"neighbours": kind}) for kind in ("shuffled", "another patient", "centre")),
    *(("adapter", {name: RELEASED[name]}) for name in SWITCHES),
    ("adapter", {"penalty_on": "bias", "clip_norm": 0.5, "mirror": "front-back"}),
    ("adapter", {"negatives": "empty", "negatives_per_positive": 0.1, "balance": "released"}),
    ("baseline", {"neighbours": "channels"}), ("adapter", {"dropout": 0.1, "spatial_drop_path": 0.05}),
    ("adapter", RELEASED),
]


@pytest.mark.parametrize(("run", "changes"), ABLATIONS)
def test_gradients_arrive_in_every_ablation(run: str, changes: dict[str, Any]) -> None:
    settings = tiny_settings(run, **changes)
    store = replace(fake_store(9), donor=fake_store(7, seed=1).image)
    model, samples = hub_model(settings).train(), WindowSampler([store], settings)[0]
    assert samples.windows.shape[1] == 1 + 2 * settings.reach
    logits, gate = model(samples, list(KEYS))
    assert logits.shape == samples.masks.shape and (gate is not None) == (settings.adapter and settings.gate)
    losses(model, samples, settings, 0.0)["loss"].backward()
    assert_gradients_arrive(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    grouped = {id(p) for group in parameter_groups(model, settings) for p in group["params"]}
    assert grouped == {id(model.get_parameter(name)) for name in trained}
    for encoder in ("vision_model", "text_model"):
        whole = any(f"{encoder}.encoder.layers.0" in name for name in trained)
        assert whole != settings.freeze_encoders


def test_each_released_switch_freezes_what_it_says() -> None:
    def frozen(run: str, **changes: Any) -> set[str]:
        named = hub_model(tiny_settings(run, **changes)).named_parameters()
        return {name for name, parameter in named if not parameter.requires_grad}

    usual, clip = frozen("adapter"), "base_model.clip."
    assert usual == frozen("baseline") and all(name.startswith(clip) for name in usual)
    embeddings = {"adapter.temporal_pos_emb", f"{clip}text_projection.weight"}
    assert frozen("adapter", frozen_embeddings=True) - usual == embeddings
    every = {name for name, _ in hub_model(tiny_settings()).named_parameters() if name.startswith(clip)}
    assert frozen("baseline", freeze_encoders=True) == every, "the decoder alone trains"
    first = f"{clip}vision_model.encoder.layers.0."
    assert all(name.startswith(first) for name in frozen("baseline", frozen_blocks=1) - usual)
    assert f"{first}mlp.fc1.weight" in frozen("baseline", frozen_blocks=1)
    idle = {".".join(name.split(".")[2:4]) for name in frozen("adapter", decoder_inputs="last") - usual}
    assert idle == {"layers.1", "reduces.1"}


@torch.no_grad()
def test_one_activation_is_what_hugging_face_s_decoder_makes_of_one_tensor() -> None:
    settings = tiny_settings("adapter", decoder_inputs="last", depth=3)  # of blocks 0, 1 and 2
    model, samples = build(settings).eval(), some_samples(5)
    text, decoder = model.encode_text(PROMPTS), model.base_model.decoder
    adapted, _ = model.adapt(model.encode_slices(samples.slices), samples.windows)
    assert len(adapted) == 1
    expected = decoder([adapted[0][samples.centre]], text[samples.prompt]).logits
    logits, _ = model(samples, PROMPTS)
    assert torch.allclose(logits, expected, atol=1e-5, rtol=1e-5) and logits.std() > 1e-3
    pixels = (samples.slices[:, None].float() - model.mean) / model.std
    last = model.base_model.clip.vision_model(pixel_values=pixels).last_hidden_state  # no norm behind it
    assert torch.allclose(model.encode_slices(samples.slices)[0], last, atol=1e-5)
    for unused in (*decoder.layers[1:].parameters(), *decoder.reduces[1:].parameters()):
        torch.nn.init.normal_(unused)
    assert torch.equal(model(samples, PROMPTS)[0], logits), "the other decoder layers have no part in it"


@pytest.mark.parametrize(("penalty_on", "expected"), [("gate", None), ("bias", 0.25 * 0.75)])
def test_the_penalty_is_on_the_gate_s_values_or_its_bias(penalty_on: str, expected: float | None) -> None:
    quarter = -torch.tensor(3.0).log().item()  # whose sigmoid is 1/4
    settings = tiny_settings("adapter", penalty_on=penalty_on, gate_penalty=2.0, gate_bias=quarter)
    model, samples = build(settings).eval(), WindowSampler([fake_store(9)], settings)[0]
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.5)
    parts, gate = losses(model, samples, settings, 0.0), model(samples, list(KEYS))[1]
    penalty = (parts["loss"] - (parts["bce"] + parts["dice_loss"]) / 2) / 2.0
    of_values = (gate * (1 - gate)).mean().item()
    assert penalty.item() == pytest.approx(expected or of_values, abs=1e-5)
    assert abs(of_values - 0.25 * 0.75) > 1e-3, "the two differ"
    assert parts["gate"].item() == pytest.approx(gate.mean().item(), abs=1e-5)


def test_without_a_gate_there_is_no_penalty() -> None:
    settings = tiny_settings("adapter", gate=False, gate_penalty=100.0)
    parts = losses(build(settings).eval(), WindowSampler([fake_store(9)], settings)[0], settings, 0.0)
    assert set(parts) == {"bce", "dice_loss", "loss"}
    assert parts["loss"].item() == pytest.approx((parts["bce"] + parts["dice_loss"]).item() / 2)


def test_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (build(tiny_settings(seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    name = "base_model.decoder.film_mul.weight"
    assert not torch.equal(first[name], other[name])


def test_loss_by_hand() -> None:
    """Two samples of 2 x 2 pixels: an organ in one pixel, an absent one; logits 0, so p = 1/2 everywhere."""
    masks, nothing, half = torch.zeros(2, 2, 2), torch.zeros(0), torch.log(torch.tensor(2.0)).item()
    masks[0, 0, 0] = 1

    def loss(weight: list[float], positive: float = 1.0, done: float = 0.0, **changes: Any) -> dict:
        batch = Windows(nothing, nothing, nothing, nothing, masks, torch.tensor(weight))
        settings = tiny_settings(positive_weight=positive, anneal=0.5, **changes)
        says: Any = lambda *_: (torch.zeros(2, 2, 2), None)  # noqa: E731
        return {name: part.item() for name, part in losses(says, batch, settings, done).items()}

    # 1 - (2 * 0.5 + 1) / (1 + 2 + 1) = 1/2 and 1 - (0 + 1) / (0 + 2 + 1) = 2/3
    dice = (1 / 2 + 2 / 3) / 2
    assert loss([1.0, 1.0]) == pytest.approx({"bce": half, "dice_loss": dice, "loss": (half + dice) / 2})
    assert loss([2.0, 0.0])["dice_loss"] == pytest.approx(1 / 2)
    released = loss([1.0, 1.0], loss="sum", dice_smoothing=1e-5)  # 1 - 1 / 3, and 1 of an absent organ
    assert released["dice_loss"] == pytest.approx(5 / 6, abs=1e-5)
    assert released["loss"] == pytest.approx(half + released["dice_loss"])
    assert loss([1.0, 1.0], 5.0)["bce"] == pytest.approx(half * (8 + 4) / 8)
    assert loss([1.0, 1.0], 5.0, 0.25)["bce"] == pytest.approx(half * (8 + 2) / 8), "the weight falls to 1"
    assert loss([1.0, 1.0], 5.0, 0.5)["bce"] == loss([1.0, 1.0], 5.0, 1.0)["bce"] == pytest.approx(half)


@torch.no_grad()
def test_a_synonym_is_nearer_than_another_organ_and_an_empty_text_is_one() -> None:
    """MiniLM's real weights: a name that no training holds means something."""
    feature = {text: sentence_feature(text) / TEXT_LENGTH for text in ("kidney", "renal organ", "aorta", "")}
    assert all(vector.norm().item() == pytest.approx(1) for vector in feature.values())
    assert feature["kidney"] @ feature["renal organ"] > feature["kidney"] @ feature["aorta"] + 0.2
