"""CLIPSeg's training path on two-layer models: Hugging Face's own numbers, sample by sample, losses by
hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import RELEASED, fake_store, hub_model, tiny_settings

from lib.adapter import gate_penalty
from lib.clipseg import TextPromptedSegmenter, build, losses, segmentation_loss, sentence_feature
from lib.organs import KEYS
from lib.training import assert_gradients_arrive, parameter_groups
from lib.windows import Windows, WindowSampler

PROMPTS = [*KEYS, "", "a photo of the ❤ Éa"]


def some_samples(window: int, slices: int = 6, size: int = 24) -> Windows:
    """Three centres, five samples; each slice stands once however many windows see it."""
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (slices, size, size), dtype=torch.uint8, generator=generator)
    centres = torch.tensor([1, 2, 4])
    reach = torch.arange(window) - window // 2
    windows = (centres[:, None] + reach).clamp(0, slices - 1)
    masks = torch.zeros(5, size, size)
    masks[:, 4:9, 3:8] = 1
    return Windows(
        pictures,
        windows,
        torch.tensor([0, 0, 1, 2, 2]),
        torch.tensor([0, 14, 3, 12, 0]),
        masks,
        torch.ones(5),
    )


def hf_logits(model: TextPromptedSegmenter, samples: Windows) -> torch.Tensor:
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


@pytest.mark.parametrize("adapted", ["deepest", "all"])
@torch.no_grad()
def test_adapter_starts_as_the_baseline_up_to_its_shut_gate(adapted: str) -> None:
    model, samples = build(tiny_settings("adapter", adapted=adapted, gate_bias=-5.0)).eval(), some_samples(5)
    logits, gate = model(samples, PROMPTS)
    assert torch.allclose(
        gate, torch.full_like(gate, torch.sigmoid(torch.tensor(-5.0)).item())
    )  # 0.0067 everywhere
    baseline = hf_logits(model, samples)
    assert 0 < (logits - baseline).abs().max() < 0.5 * baseline.std()
    torch.nn.init.constant_(model.adapter.gate_proj.bias, -100.0)
    assert torch.allclose(model(samples, PROMPTS)[0], baseline, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("run", ["baseline", "adapter"])
def test_gradients_reach_both_encoders_and_every_trainable_parameter(run: str) -> None:
    model, samples = hub_model(tiny_settings(run)).train(), some_samples(1 if run == "baseline" else 5)
    logits, _ = model(samples, PROMPTS)
    logits.square().mean().backward()
    idle = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not idle
    names = [n for n, p in model.named_parameters() if p.grad is not None]
    assert any("vision_model.encoder.layers.0" in n for n in names) and any(
        "text_model.encoder.layers.0" in n for n in names
    )


@torch.no_grad()
def test_adapter_equals_every_window_by_itself() -> None:
    """Sharing slices changes nothing: each window alone, all five slices encoded anew, gives the same."""
    model = build(tiny_settings("adapter", gate_bias=0.0)).double().eval()
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)
    samples = some_samples(5)
    together = model(samples, PROMPTS)[0]
    for n in range(5):
        assert torch.allclose(model(alone(samples, n), PROMPTS)[0][0], together[n], atol=1e-10)


def alone(samples: Windows, n: int) -> Windows:
    """Term n by itself, with every slice of its window to be encoded anew."""
    window, one = samples.windows[samples.centre[n]], slice(n, n + 1)
    places = torch.arange(len(window))[None]
    return Windows(
        samples.slices[window],
        places,
        torch.tensor([0]),
        samples.prompt[one],
        samples.masks[one],
        samples.weight[one],
    )


@pytest.mark.parametrize(
    "sampler",
    [
        {"sampler": "shuffled", "batch": 5},
        {"sampler": "slab", "slab_centres": 4, "slab_length": 4, "slab_prompts": 3},
    ],
)
@pytest.mark.parametrize("adapted", ["deepest", "all"])
def test_gradients_equal_those_of_every_term_by_itself(sampler: dict, adapted: str) -> None:
    """A batch in which each slice is encoded once, against one forward pass for each term, and one for
    each centre's gate."""
    settings = tiny_settings(
        "adapter", gate_bias=0.3, adapted=adapted, drop_path=0.0, gate_penalty=0.05, **sampler
    )
    store = fake_store(9)
    samples, model = WindowSampler([store], settings)[0], build(settings).double().train()
    samples = Windows(*(field.double() if field.is_floating_point() else field for field in samples))
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.1)
    losses(model, samples, settings, 0.2)["loss"].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    unpenalised = replace(settings, gate_penalty=0.0)
    for n in range(len(samples.prompt)):
        (losses(model, alone(samples, n), unpenalised, 0.2)["loss"] / len(samples.prompt)).backward()
    for window in samples.windows:  # the penalty is a mean over centres, not over samples
        gate = model.adapt(model.encode_slices(samples.slices[window]), torch.arange(len(window))[None])[1]
        (settings.gate_penalty * gate_penalty(gate) / len(samples.windows)).backward()
    assert len(samples.slices) < sum(map(len, samples.windows)) or settings.sampler == "shuffled", (
        "slices are shared"
    )
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert (found[name] - parameter.grad).norm() <= 1e-10 * parameter.grad.norm().clamp(min=1e-6), (
                name
            )


ABLATIONS: list[
    tuple[str, dict]
] = [  # of notebook 04: every change of a setting that changes what is computed
    ("baseline", {"sampler": "shuffled", "batch": 14}),
    ("baseline", {"freeze_encoders": True}),
    ("adapter", {"adapter_depth": 0}),
    ("adapter", {"spatial_block": False}),
    ("adapter", {"gate": False}),
    ("adapter", {"gate_penalty": 0.0}),
    *[("adapter", {"window": window}) for window in (1, 3, 7, 9)],
    *[("adapter", {"neighbours": kind}) for kind in ("shuffled", "another patient", "centre")],
    *[
        ("adapter", {name: RELEASED[name]})
        for name in ("neighbours", "decoder_inputs", "gate_first", "frozen_embeddings")
    ],
    ("adapter", {"penalty_on": "bias", "clip_norm": 0.5, "mirror": "front-back"}),
    ("adapter", {"negatives": "empty", "negatives_per_positive": 0.04, "balance": "released"}),
    ("adapter", RELEASED),
]


@pytest.mark.parametrize(("run", "changes"), ABLATIONS)
def test_gradients_arrive_in_every_ablation(run: str, changes: dict) -> None:
    """Scans are noise, with another patient's slices beside them."""
    settings = tiny_settings(run, **changes)
    store = replace(fake_store(9), donor=fake_store(7, seed=1).image)
    model, samples = build(settings).train(), WindowSampler([store], settings)[0]
    assert samples.windows.shape[1] == (settings.window if settings.adapter else 1)
    logits, gate = model(samples, list(KEYS))
    assert logits.shape == samples.masks.shape and (gate is not None) == (settings.adapter and settings.gate)
    losses(model, samples, settings, 0.0)["loss"].backward()
    assert_gradients_arrive(model)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    trained = {id(p) for group in parameter_groups(model, settings) for p in group["params"]}
    assert (
        trained == {id(parameter) for parameter in model.parameters() if parameter.requires_grad} and trained
    )


def test_each_released_switch_freezes_what_it_says() -> None:
    def frozen(run: str, **changes: object) -> set[str]:
        model = hub_model(tiny_settings(run, **changes))
        return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}

    usual = frozen("adapter")
    assert usual == frozen("baseline") and not any(
        name.startswith(("adapter", "base_model.decoder")) for name in usual
    )
    released = frozen("adapter", frozen_embeddings=True)
    assert released - usual == {"adapter.temporal_pos_emb", "base_model.clip.text_projection.weight"}
    clip = {
        name
        for name, _ in hub_model(tiny_settings()).named_parameters()
        if name.startswith("base_model.clip.")
    }
    assert frozen("baseline", freeze_encoders=True) == clip, "the decoder alone trains"
    idle = {
        name.removeprefix("base_model.decoder.").rsplit(".", 1)[0]
        for name in frozen("adapter", decoder_inputs="last") - usual
    }
    assert {name.split(".")[0] + name.split(".")[1] for name in idle} == {"layers1", "reduces1"}


@torch.no_grad()
def test_one_activation_is_what_hugging_face_s_decoder_makes_of_one_tensor() -> None:
    settings = tiny_settings(
        "adapter", decoder_inputs="last", depth=3
    )  # the last of three blocks is none of them
    model, samples = build(settings).eval(), some_samples(5)
    text = model.encode_text(PROMPTS)
    adapted, _ = model.adapt(model.encode_slices(samples.slices), samples.windows)
    assert len(adapted) == 1
    expected = model.base_model.decoder([adapted[0][samples.centre]], text[samples.prompt]).logits
    logits = model(samples, PROMPTS)[0]
    assert torch.allclose(logits, expected, atol=1e-5, rtol=1e-5) and logits.std() > 1e-3
    pixels = (samples.slices[:, None].float() - model.mean) / model.std
    last = model.base_model.clip.vision_model(pixel_values=pixels).last_hidden_state
    assert torch.allclose(model.encode_slices(samples.slices)[0], last, atol=1e-5), (
        "the last block's output, without a norm behind it"
    )
    decoder = model.base_model.decoder
    for unused in (*decoder.layers[1:].parameters(), *decoder.reduces[1:].parameters()):
        torch.nn.init.normal_(unused)
    assert torch.equal(model(samples, PROMPTS)[0], logits), "the other decoder layers have no part in it"
    torch.nn.init.normal_(decoder.layers[0].mlp.fc1.weight)
    assert not torch.allclose(model(samples, PROMPTS)[0], logits)


@pytest.mark.parametrize(("penalty_on", "expected"), [("gate", None), ("bias", 0.25 * 0.75)])
def test_the_penalty_is_on_the_gate_s_values_or_on_its_bias_alone(
    penalty_on: str, expected: float | None
) -> None:
    settings = tiny_settings(
        "adapter", penalty_on=penalty_on, gate_penalty=2.0, gate_bias=-torch.tensor(3.0).log().item()
    )  # sigmoid: 1/4
    model, samples = build(settings).eval(), WindowSampler([fake_store(9)], settings)[0]
    torch.nn.init.normal_(model.adapter.gate_proj.weight, std=0.5)
    parts = losses(model, samples, settings, 0.0)
    penalty = (parts["loss"] - (parts["bce"] + parts["dice_loss"]) / 2) / 2.0
    gate = model(samples, list(KEYS))[1]
    assert penalty.item() == pytest.approx(expected or (gate * (1 - gate)).mean().item(), abs=1e-5)
    assert abs((gate * (1 - gate)).mean().item() - 0.25 * 0.75) > 1e-3, "the two differ"
    assert parts["gate"].item() == pytest.approx(gate.mean().item(), abs=1e-5)


def test_without_a_gate_there_is_no_penalty() -> None:
    settings = tiny_settings("adapter", gate=False, gate_penalty=100.0)
    parts = losses(build(settings).eval(), WindowSampler([fake_store(9)], settings)[0], settings, 0.0)
    assert set(parts) == {"bce", "dice_loss", "loss"} and parts["loss"].item() == pytest.approx(
        (parts["bce"] + parts["dice_loss"]).item() / 2
    )


def test_both_seeds_and_equal_seeds() -> None:
    first, again, other = (build(replace(tiny_settings(), seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["base_model.decoder.film_mul.weight"], other["base_model.decoder.film_mul.weight"]
    )


def samples_of(masks: torch.Tensor, weight: list[float]) -> Windows:
    nothing = torch.zeros(0)
    return Windows(nothing, nothing, nothing, nothing, masks, torch.tensor(weight))


def test_loss_by_hand() -> None:
    """Two samples of 2 x 2 pixels: an organ in one pixel, an absent one; logits 0, so p = 1/2 everywhere."""
    masks = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    logits = torch.zeros(2, 2, 2)
    bce, dice = segmentation_loss(logits, samples_of(masks, [1.0, 1.0]), 1.0)
    assert bce.item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    # 1 - (2 * 0.5 + 1) / (1 + 2 + 1) = 1/2 and 1 - (0 + 1) / (0 + 2 + 1) = 2/3
    assert dice.item() == pytest.approx((1 / 2 + 2 / 3) / 2)
    weighted = segmentation_loss(logits, samples_of(masks, [2.0, 0.0]), 1.0)[1]
    assert weighted.item() == pytest.approx(1 / 2)
    heavier = segmentation_loss(logits, samples_of(masks, [1.0, 1.0]), 5.0)[0]
    assert heavier.item() == pytest.approx(torch.log(torch.tensor(2.0)).item() * (8 + 4) / 8)


def test_positive_weight_anneals_to_one() -> None:
    settings = tiny_settings(positive_weight=15.0, anneal=0.5)
    model, samples = build(settings).eval(), WindowSampler([fake_store(9)], settings)[0]
    with torch.no_grad():
        start, middle, end = (
            losses(model, samples, settings, done)["bce"].item() for done in (0.0, 0.5, 1.0)
        )
        plain = losses(model, samples, tiny_settings(positive_weight=1.0), 0.0)["bce"].item()
    assert start > middle == end == pytest.approx(plain)


@torch.no_grad()
def test_a_synonym_is_nearer_than_another_organ_and_an_empty_text_is_one() -> None:
    """MiniLM's real weights: a name that no training holds means something."""
    feature = {text: sentence_feature(text) for text in ("kidney", "renal organ", "aorta", "")}
    assert all(vector.norm().item() == pytest.approx(1) for vector in feature.values())
    assert feature["kidney"] @ feature["renal organ"] > feature["kidney"] @ feature["aorta"] + 0.2
