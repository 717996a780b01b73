"""Weights in the hub's format and in the released code's: what loads, and how the rest is refused."""

import datetime
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import RELEASED, fake_store, hub_model, tiny_settings
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    SamConfig,
    SamModel,
    SamVisionConfig,
    SamVisionModel,
)

from lib.clipseg import (
    TextPromptedSegmenter,
    build,
    load_weights,
    losses,
    save_weights,
)
from lib.config import HUB_REVISION, HUB_WEIGHTS, settings_of, weights_file
from lib.files import InputError, file_hash
from lib.organs import KEYS
from lib.windows import Windows, WindowSampler
from tools.bench import byte_tokenizer


class ReleasedBlock(nn.Module):
    """Pre-norm self-attention and MLP, `wide` times as wide, under the released names."""

    def __init__(self, width: int, heads: int, wide: int, attention: str, mlp: str) -> None:
        super().__init__()
        self.attention, self.mlp_name = attention, mlp
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.add_module(attention, nn.MultiheadAttention(width, heads, batch_first=True))
        layers = nn.Linear(width, wide * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(wide * width, width)
        self.add_module(mlp, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.get_submodule(self.attention)(y, y, y)[0]
        return x + self.get_submodule(self.mlp_name)(self.norm2(x))


class Released(nn.Module):
    """The released model: the names of its weights, and the order of its forward pass."""

    def __init__(self, config: CLIPSegConfig, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.base_model = CLIPSegForImageSegmentation(config)
        tokens = config.vision_config.hidden_size
        self.proj_in = nn.Sequential(nn.Linear(tokens, width, bias=False), nn.LayerNorm(width))
        self.temporal_pos_emb = nn.Parameter(torch.randn(1, 5, width))
        layers = (ReleasedBlock(width, heads, 4, "self_attn", "ff") for _ in range(depth))
        self.temporal_layers = nn.ModuleList(layers)
        self.transformer_norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, tokens, bias=False)
        self.gate_proj = nn.Linear(tokens, tokens)
        self.spatial_context = ReleasedBlock(tokens, heads, 2, "attn", "mlp")
        first, last = nn.Linear(tokens, tokens), nn.Linear(tokens, tokens)
        self.mlp_head = nn.Sequential(first, nn.LayerNorm(tokens), nn.GELU(), nn.Dropout(0.1), last)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, 5, 3, S, S) pixels and B prompts -> (B, S, S) logits."""
        clip = self.base_model.clip
        tokens = clip.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state
        tokens = tokens.unflatten(0, (-1, 5))  # (B, 5, L, D)
        places = tokens.shape[2]
        x = self.proj_in(tokens).transpose(1, 2).flatten(0, 1) + self.temporal_pos_emb  # (B L, 5, d)
        for layer in self.temporal_layers:
            x = layer(x)
        temporal = self.proj_out(self.transformer_norm(x)).unflatten(0, (-1, places))[:, :, 2]  # (B, L, D)
        gate = torch.sigmoid(self.gate_proj(temporal))
        adapted = self.mlp_head(self.spatial_context(gate * temporal + (1 - gate) * tokens[:, 2]))
        words = clip.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return self.base_model.decoder([adapted], clip.text_projection(words)).logits


@pytest.fixture(scope="module")
def released() -> Released:
    """Random weights, norms and biases included, so that none can be mistaken for another."""
    settings = tiny_settings("adapter", **RELEASED)
    torch.manual_seed(7)
    sizes = settings.adapter_width, settings.adapter_depth, settings.adapter_heads
    model = Released(hub_model(settings).base_model.config, *sizes)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.2)
    return model.eval()


@pytest.fixture
def ours() -> TextPromptedSegmenter:
    return hub_model(tiny_settings("adapter", seed=3, **RELEASED))  # other random numbers


def written(weights: dict, path: Path) -> Path:
    """As the released training script writes it."""
    beside = {"epoch": 1, "optimizer_state_dict": {"state": {}, "param_groups": []}, "dice": 0.7}
    torch.save({"model_state_dict": weights, **beside}, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@torch.no_grad()
def test_a_released_checkpoint_loads_whole_and_gives_the_same_logits(
    released: Released, ours: TextPromptedSegmenter, suffix: str, tmp_path: Path
) -> None:
    load_weights(ours.eval(), written(released.state_dict(), tmp_path / f"best_model{suffix}"))
    names, theirs = ours.state_dict(), released.state_dict()
    names = {name.removeprefix("adapter."): tensor for name, tensor in names.items()}
    assert set(names) == set(theirs) and all(torch.equal(names[name], theirs[name]) for name in theirs)
    slices = torch.randint(0, 256, (6, 24, 24), generator=torch.Generator().manual_seed(0))
    # an edge, true neighbours, rows of a manifest
    windows = torch.tensor([[0, 0, 0, 1, 2], [1, 2, 3, 4, 5], [3, 3, 3, 3, 4]])
    prompts = ["liver", "right adrenal gland", "spleen"]
    centre, prompt = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 2])
    logits, gate = ours(Windows(slices, windows, centre, prompt, torch.zeros(0), torch.ones(4)), prompts)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = (slices[:, None] / 255 - mean) / std
    text = byte_tokenizer()([prompts[place] for place in prompt], padding=True, return_tensors="pt")
    expected = released(pixels[windows[centre]], text["input_ids"], text["attention_mask"])
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert expected.std(0).min() > 1e-3 * expected.std() > 0 and gate.std() > 0.01, "no constant"


def test_wrapped_and_older_checkpoints_load_too(
    released: Released, ours: TextPromptedSegmenter, tmp_path: Path
) -> None:
    weights = {f"module.{name}": tensor for name, tensor in released.state_dict().items()}  # of DataParallel
    weights["module.base_model.clip.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    load_weights(ours, written(weights, tmp_path / "wrapped.pt"))
    torch.save(released.state_dict(), tmp_path / "bare.pt")
    load_weights(again := hub_model(tiny_settings("adapter", seed=4, **RELEASED)), tmp_path / "bare.pt")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def refusal(model: nn.Module, path: Path) -> str:
    """The one sentence with which the file is refused."""
    with pytest.raises(InputError) as caught:
        load_weights(model, path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and text.endswith(".") and len(text) < 400
    return text


@pytest.mark.parametrize(
    "key", ["gate_proj.bias", "mlp_head.4.weight", "base_model.decoder.film_mul.weight", "temporal_pos_emb"]
)
def test_a_missing_weight_is_named(
    released: Released, ours: TextPromptedSegmenter, key: str, tmp_path: Path
) -> None:
    weights = {name: tensor for name, tensor in released.state_dict().items() if name != key}
    assert key in refusal(ours, written(weights, tmp_path / "part.pt"))


def test_a_surplus_weight_and_one_of_another_shape_are_named(
    released: Released, ours: TextPromptedSegmenter, tmp_path: Path
) -> None:
    for key in ("classifier.weight", "proj_out.weight"):
        weights = released.state_dict() | {key: torch.zeros(2, 2)}
        assert key in refusal(ours, written(weights, tmp_path / "other.pt"))
    smaller = hub_model(tiny_settings("adapter", spatial_block=False, gate_first=True))
    assert "spatial" in refusal(smaller, written(released.state_dict(), tmp_path / "whole.pt"))


OTHER_FILES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("weights will follow\n"),
    "nothing": lambda path: path.touch(),
    "cut short": lambda path: path.write_bytes(path.with_name("whole.pt").read_bytes()[:20_000]),
    "a zip of something else": lambda path: np.savez(path.open("wb"), weights=np.zeros(3)),
    "a list": lambda path: torch.save([torch.zeros(2)], path),
    "a tensor": lambda path: torch.save(torch.zeros(2), path),
    "a whole model": lambda path: torch.save(nn.Linear(2, 2), path),
    "no tensors": lambda path: torch.save({"model_state_dict": {"gate_proj.bias": 3}}, path),
    "no weights": lambda path: torch.save({"epoch": 3, "dice": 0.5}, path),
    "weights that are none": lambda path: torch.save({"model_state_dict": None}, path),
    "numbered names": lambda path: torch.save({"model_state_dict": {3: torch.zeros(2)}}, path),
    "a date": lambda path: torch.save({"model_state_dict": {}, "when": datetime.date(2025, 1, 1)}, path),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", list(OTHER_FILES))
def test_what_is_no_checkpoint_is_refused(
    released: Released, ours: TextPromptedSegmenter, kind: str, tmp_path: Path
) -> None:
    written(released.state_dict(), tmp_path / "whole.pt")
    OTHER_FILES[kind](tmp_path / "file.pt")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    text = refusal(ours, tmp_path / "file.pt")
    assert "does not fit" in text and "http" not in text and ("datetime.date" in text) == (kind == "a date")
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


class Surprise:
    """What a hostile file may hold: unpickled, it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "among", "alone"])
def test_a_forbidden_object_is_never_unpickled(
    released: Released, ours: TextPromptedSegmenter, place: str, zipped: bool, tmp_path: Path
) -> None:
    mark, path, weights = tmp_path / "mark", tmp_path / "hostile.pt", released.state_dict()
    saved = {
        "beside": {"model_state_dict": weights, "arguments": Surprise(mark)},
        "among": {"model_state_dict": {**weights, "gate_proj.bias": Surprise(mark)}},
        "alone": Surprise(mark),
    }[place]
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert "mkdir" in refusal(ours, path) and not mark.exists()
    pickle.loads(pickle.dumps(Surprise(mark)))
    assert mark.exists(), "the trap works"


def shapes(prefix: str, width: int, wide: int, attention: str, mlp: str) -> dict[str, tuple[int, ...]]:
    """The released weights of a block of attention and MLP."""
    linear = {f"{attention}.in_proj_": (3 * width, width), f"{attention}.out_proj.": (width, width)}
    linear |= {f"{mlp}.0.": (wide * width, width), f"{mlp}.3.": (width, wide * width)}
    linear |= {"norm1.": (width,), "norm2.": (width,)}
    found = {f"{prefix}{name}weight": shape for name, shape in linear.items()}
    return found | {f"{prefix}{name}bias": shape[:1] for name, shape in linear.items()}


def test_at_full_size_names_and_shapes_are_the_released_ones() -> None:
    config = CLIPSegConfig(
        vision_config={"image_size": 352, "patch_size": 16}, use_complex_transposed_convolution=True)
    with torch.device("meta"):  # which has shapes and no numbers
        base_model = CLIPSegForImageSegmentation(config)
    settings = settings_of("adapter", "full", **RELEASED)
    model = TextPromptedSegmenter(base_model, byte_tokenizer(), settings)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    base = {name: shape for name, shape in found.items() if name.startswith("base_model.")}
    adapter = {name: shape for name, shape in found.items() if name not in base}
    expected: dict[str, tuple[int, ...]] = {
        "proj_in.0.weight": (256, 768), "proj_in.1.weight": (256,), "proj_in.1.bias": (256,),
        "temporal_pos_emb": (1, 5, 256), "transformer_norm.weight": (256,), "transformer_norm.bias": (256,),
        "proj_out.weight": (768, 256), "gate_proj.weight": (768, 768), "gate_proj.bias": (768,),
        "mlp_head.0.weight": (768, 768), "mlp_head.0.bias": (768,), "mlp_head.1.weight": (768,),
        "mlp_head.1.bias": (768,), "mlp_head.4.weight": (768, 768), "mlp_head.4.bias": (768,),
    } | shapes("spatial_context.", 768, 2, "attn", "mlp")
    for layer in range(4):
        expected |= shapes(f"temporal_layers.{layer}.", 256, 4, "self_attn", "ff")
    assert adapter == {f"adapter.{name}": shape for name, shape in expected.items()}
    assert {*base} == {f"base_model.{name}" for name in base_model.state_dict()}
    for name, shape in {
        "clip.vision_model.embeddings.position_embedding.weight": (485, 768),
        "clip.vision_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "clip.text_model.embeddings.token_embedding.weight": (49408, 512),
        "clip.text_projection.weight": (512, 512),
        "clip.visual_projection.weight": (512, 768),
        "decoder.film_mul.weight": (64, 512),
        "decoder.reduces.2.weight": (64, 768),
        "decoder.layers.2.mlp.fc1.weight": (2048, 64),
        "decoder.transposed_convolution.4.weight": (32, 1, 4, 4),
    }.items():
        assert base[f"base_model.{name}"] == shape, name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert model.levels == [11] and settings.adapter_heads == 8 and "adapter.temporal_pos_emb" in frozen


# the hub's format


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def in_hub_format(folder: Path, seed: int = 0) -> Path:
    """A small CLIPSeg of random weights, as `hf download` leaves one."""
    made: Any = hub_model(tiny_settings(seed=seed))
    made.base_model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_counts_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = in_hub_format(tmp_path / "first"), in_hub_format(tmp_path / "other", seed=1)
    hashes = []
    for folder in (first, other, shutil.copytree(first, tmp_path / "moved")):
        monkeypatch.setenv("WEIGHTS", str(folder))
        settings = settings_of("adapter", "full")
        assert settings.weights == str(folder)
        assert weights_file(str(folder)) == folder / "model.safetensors"
        hashes.append(settings.hash())
    plain = settings_of("adapter", "full", weights=HUB_WEIGHTS).hash()
    assert hashes[0] == hashes[2] != hashes[1] and plain not in hashes
    monkeypatch.setattr("lib.config.HUB_SHA256", file_hash(first / "model.safetensors"))
    same = settings_of("adapter", "full", weights=str(first)).hash()
    assert same == plain, "a download of the hub's own is the hub's"
    assert [weights_file(name) for name in ("", HUB_WEIGHTS, str(tmp_path))] == [None, None, None]


def test_a_segmenter_on_sam_reads_its_neck_s_tokens(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "output_channels": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"image_size": 48, "patch_size": 4, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 32}
    torch.manual_seed(0)
    config = SamConfig(vision_config=SamVisionConfig(**sizes, initializer_range=0.1))
    SamModel(config).save_pretrained(tmp_path / "sam")
    names = {"sam": str(tmp_path / "sam"), "weights": str(in_hub_format(tmp_path / "clipseg"))}
    settings = tiny_settings("adapter", size=48, freeze_encoders=True, joint_width=32, **names)
    model = build(settings).train()
    batch = WindowSampler([fake_store(6, size=48)], settings)[0]
    level, = model.encode_slices(batch.slices)
    assert level.shape == (len(batch.slices), 1 + 12 * 12, 24)
    by_hub = SamVisionModel.from_pretrained(names["sam"])((batch.slices[:, None] - model.mean) / model.std)
    assert torch.allclose(level[:, 1:].mT.unflatten(2, (12, 12)), by_hub.last_hidden_state, atol=1e-5)
    losses(model, batch, settings, 0.0)["loss"].backward()
    for name, parameter in model.named_parameters():
        trains = ".neck." in name or not name.startswith("base_model.clip.")
        assert parameter.requires_grad == trains and (parameter.grad is not None) == trains, name
    written = tmp_path / "whole.safetensors"
    save_weights(model, written)
    load_weights(model, written)
    other = replace(settings, sam="small", weights="", joint_width=384, freeze_encoders=False)
    assert build(other)(batch, ["liver"] * 13)[0].shape == (len(batch.prompt), 48, 48)
    with pytest.raises(InputError, match="reads slices of 48 pixels: set size=48"):
        build(replace(settings, size=24))
    assert settings.hash() != replace(settings, sam="").hash()


def refused(weights: Path) -> str:
    """The one sentence with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        build(tiny_settings(weights=str(weights)))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(weights)) and text.endswith(".")
    return text


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def unreachable(_: Any, name: str, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr("lib.clipseg.HfApi.model_info", unreachable)
    assert "CLIPSeg cannot be loaded (no route): connect to the network once" in refused(Path(HUB_WEIGHTS))
    assert asked == [HUB_WEIGHTS]


def test_folders_that_hold_no_clipseg_are_refused(tmp_path: Path) -> None:
    way = f"`hf download {HUB_WEIGHTS} --revision {HUB_REVISION} --local-dir FOLDER` and set WEIGHTS=FOLDER"
    (tmp_path / "empty").mkdir()
    cut = in_hub_format(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    for folder in (tmp_path / "nothing", tmp_path / "empty", cut):
        assert way in refused(folder)
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(**narrow, vocab_size=50)).save_pretrained(tmp_path / "bert")
    told = refused(tmp_path / "bert")
    assert "CLIPSeg lacks" in told or "cannot be loaded" in told
    without = in_hub_format(tmp_path / "without")
    for path in without.glob("*token*"):
        path.unlink()
    assert "CLIPSeg's tokenizer" in refused(without)


def test_a_pretrained_folder_in_the_hub_s_format_gives_the_same_logits(tmp_path: Path) -> None:
    settings = tiny_settings(weights=str(in_hub_format(tmp_path)))
    samples = WindowSampler([fake_store(9)], settings)[0]
    with torch.no_grad():
        models = hub_model(tiny_settings()), build(settings)
        made, read = (model.eval()(samples, list(KEYS))[0] for model in models)
    assert torch.equal(made, read) and made.std() > 1e-3
    halved = CLIPSegForImageSegmentation.from_pretrained(tmp_path, dtype=torch.float16)
    halved.save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in build(settings).parameters()} == {torch.float32}


def test_a_released_checkpoint_is_no_start_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", "authors/best.pt")
    with pytest.raises(InputError, match=r"^WEIGHTS=authors/best.pt is a model trained whole, no start"):
        settings_of("baseline", "full")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    adapter, baseline = build(tiny_settings("adapter")), build(tiny_settings("baseline"))
    save_weights(adapter, tmp_path / "adapter.safetensors")
    save_weights(baseline, tmp_path / "baseline.safetensors")
    assert "another model" in refusal(baseline, tmp_path / "adapter.safetensors")
    assert "does not exist" in refusal(adapter, tmp_path / "nothing.safetensors")
    assert "adapter" in refusal(adapter, tmp_path / "baseline.safetensors")
    load_weights(adapter, tmp_path / "baseline.safetensors", strict=False)
