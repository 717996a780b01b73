"""Weights in the hub's format and in the released code's: what loads, and how the rest is refused."""

import datetime
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import RELEASED, fake_store, hub_model, tiny_settings
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPSegConfig, CLIPSegForImageSegmentation

from lib.clipseg import (
    TextPromptedSegmenter,
    build,
    load_weights,
    save_weights,
)
from lib.config import HUB_REVISION, HUB_WEIGHTS, settings_of, weights_file
from lib.files import InputError, file_hash
from lib.organs import KEYS
from lib.windows import Windows, WindowSampler
from tools.bench import byte_tokenizer


class ReleasedLayer(nn.Module):
    """Pre-norm transformer layer across the slices of a window."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ff = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * width, width)
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attn(y, y, y)[0]
        return x + self.ff(self.norm2(x))


class ReleasedBlock(nn.Module):
    """Self-attention within the centre slice."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.mlp(self.norm2(x))


class Released(nn.Module):
    """The released model: the names of its weights, and the order of its forward pass."""

    def __init__(self, config: CLIPSegConfig, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.base_model = CLIPSegForImageSegmentation(config)
        tokens = config.vision_config.hidden_size
        self.proj_in = nn.Sequential(nn.Linear(tokens, width, bias=False), nn.LayerNorm(width))
        self.temporal_pos_emb = nn.Parameter(torch.randn(1, 5, width))
        self.temporal_layers = nn.ModuleList(ReleasedLayer(width, heads) for _ in range(depth))
        self.transformer_norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, tokens, bias=False)
        self.gate_proj = nn.Linear(tokens, tokens)
        self.spatial_context = ReleasedBlock(tokens, heads)
        head = (
            nn.Linear(tokens, tokens),
            nn.LayerNorm(tokens),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(tokens, tokens),
        )
        self.mlp_head = nn.Sequential(*head)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, 5, 3, S, S) pixels and B prompts -> (B, S, S) logits."""
        clip = self.base_model.clip
        tokens = clip.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state.unflatten(
            0, (-1, 5)
        )  # (B, 5, L, D)
        places = tokens.shape[2]
        x = self.proj_in(tokens).transpose(1, 2).flatten(0, 1) + self.temporal_pos_emb  # (B L, 5, d)
        for layer in self.temporal_layers:
            x = layer(x)
        temporal = self.proj_out(self.transformer_norm(x)).unflatten(0, (-1, places))[:, :, 2]  # (B, L, D)
        gate = torch.sigmoid(self.gate_proj(temporal))
        mixed = gate * temporal + (1 - gate) * tokens[:, 2]
        adapted = self.mlp_head(self.spatial_context(mixed))
        text = clip.text_projection(
            clip.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        )
        return self.base_model.decoder([adapted], text).logits


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
    torch.save(
        {
            "epoch": 1,
            "model_state_dict": weights,
            "optimizer_state_dict": {"state": {}, "param_groups": []},
            "dice": 0.7,
        },
        path,
    )
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@torch.no_grad()
def test_a_released_checkpoint_loads_whole_and_gives_the_same_logits(
    released: Released, ours: TextPromptedSegmenter, suffix: str, tmp_path: Path
) -> None:
    path = written(released.state_dict(), tmp_path / f"best_model{suffix}")
    load_weights(ours.eval(), path)
    theirs, names = (
        released.state_dict(),
        {name.removeprefix("adapter."): tensor for name, tensor in ours.state_dict().items()},
    )
    assert set(names) == set(theirs) and all(torch.equal(names[name], theirs[name]) for name in theirs)
    slices = torch.randint(0, 256, (6, 24, 24), generator=torch.Generator().manual_seed(0))
    windows = torch.tensor(
        [[0, 0, 0, 1, 2], [1, 2, 3, 4, 5], [3, 3, 3, 3, 4]]
    )  # an edge, true neighbours, rows of a manifest
    prompts = ["liver", "right adrenal gland", "spleen"]
    centre, prompt = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 1, 2, 2])
    logits, gate = ours(Windows(slices, windows, centre, prompt, torch.zeros(0), torch.ones(4)), prompts)
    pixels = (slices[:, None] / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    text = byte_tokenizer()([prompts[place] for place in prompt], padding=True, return_tensors="pt")
    expected = released(pixels[windows[centre]], text["input_ids"], text["attention_mask"])
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert expected.std(0).min() > 1e-3 * expected.std() > 0 and gate.std() > 0.01, (
        "a constant would equal anything"
    )


def test_wrapped_and_older_checkpoints_load_too(
    released: Released, ours: TextPromptedSegmenter, tmp_path: Path
) -> None:
    """Names of a model in DataParallel begin with module..

    Older versions of transformers save position_ids.
    """
    weights = {f"module.{name}": tensor for name, tensor in released.state_dict().items()}
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
    weights = released.state_dict()
    assert "classifier.weight" in refusal(
        ours, written(weights | {"classifier.weight": torch.zeros(2)}, tmp_path / "more.pt")
    )
    assert "proj_out.weight" in refusal(
        ours, written(weights | {"proj_out.weight": torch.zeros(2, 2)}, tmp_path / "shape.pt")
    )
    assert "spatial" in refusal(
        hub_model(tiny_settings("adapter", spatial_block=False, gate_first=True)),
        written(weights, tmp_path / "whole.pt"),
    )


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
    assert "does not fit" in text and "http" not in text
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


def test_a_harmless_object_that_torch_does_not_know_is_refused_as_well(
    released: Released, ours: TextPromptedSegmenter, tmp_path: Path
) -> None:
    torch.save(
        {"model_state_dict": released.state_dict(), "when": datetime.date(2025, 1, 1)}, tmp_path / "dated.pt"
    )
    assert "datetime.date" in refusal(ours, tmp_path / "dated.pt")


LAYERS, WIDTH, TOKENS = 4, 256, 768
LIST = {  # the released adapter's weights at full size, beside base_model.*
    "proj_in.0.weight": (WIDTH, TOKENS),
    "proj_in.1.weight": (WIDTH,),
    "proj_in.1.bias": (WIDTH,),
    "temporal_pos_emb": (1, 5, WIDTH),
    "transformer_norm.weight": (WIDTH,),
    "transformer_norm.bias": (WIDTH,),
    "proj_out.weight": (TOKENS, WIDTH),
    "gate_proj.weight": (TOKENS, TOKENS),
    "gate_proj.bias": (TOKENS,),
    "spatial_context.norm1.weight": (TOKENS,),
    "spatial_context.norm1.bias": (TOKENS,),
    "spatial_context.attn.in_proj_weight": (3 * TOKENS, TOKENS),
    "spatial_context.attn.in_proj_bias": (3 * TOKENS,),
    "spatial_context.attn.out_proj.weight": (TOKENS, TOKENS),
    "spatial_context.attn.out_proj.bias": (TOKENS,),
    "spatial_context.norm2.weight": (TOKENS,),
    "spatial_context.norm2.bias": (TOKENS,),
    "spatial_context.mlp.0.weight": (2 * TOKENS, TOKENS),
    "spatial_context.mlp.0.bias": (2 * TOKENS,),
    "spatial_context.mlp.3.weight": (TOKENS, 2 * TOKENS),
    "spatial_context.mlp.3.bias": (TOKENS,),
    "mlp_head.0.weight": (TOKENS, TOKENS),
    "mlp_head.0.bias": (TOKENS,),
    "mlp_head.1.weight": (TOKENS,),
    "mlp_head.1.bias": (TOKENS,),
    "mlp_head.4.weight": (TOKENS, TOKENS),
    "mlp_head.4.bias": (TOKENS,),
}
for layer in range(LAYERS):
    LIST |= {
        f"temporal_layers.{layer}.self_attn.in_proj_weight": (3 * WIDTH, WIDTH),
        f"temporal_layers.{layer}.self_attn.in_proj_bias": (3 * WIDTH,),
        f"temporal_layers.{layer}.self_attn.out_proj.weight": (WIDTH, WIDTH),
        f"temporal_layers.{layer}.self_attn.out_proj.bias": (WIDTH,),
        f"temporal_layers.{layer}.ff.0.weight": (4 * WIDTH, WIDTH),
        f"temporal_layers.{layer}.ff.0.bias": (4 * WIDTH,),
        f"temporal_layers.{layer}.ff.3.weight": (WIDTH, 4 * WIDTH),
        f"temporal_layers.{layer}.ff.3.bias": (WIDTH,),
        f"temporal_layers.{layer}.norm1.weight": (WIDTH,),
        f"temporal_layers.{layer}.norm1.bias": (WIDTH,),
        f"temporal_layers.{layer}.norm2.weight": (WIDTH,),
        f"temporal_layers.{layer}.norm2.bias": (WIDTH,),
    }


def test_at_full_size_names_and_shapes_are_the_released_ones() -> None:
    """CLIPSeg on the meta device, which has shapes and no numbers."""
    config = CLIPSegConfig(
        text_config={
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
        },
        vision_config={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 352, "patch_size": 16},
        projection_dim=512,
        reduce_dim=64,
        extract_layers=[3, 6, 9],
        use_complex_transposed_convolution=True,
    )
    with torch.device("meta"):
        base_model = CLIPSegForImageSegmentation(config)
    settings = settings_of("adapter", "full", **RELEASED)
    model = TextPromptedSegmenter(base_model, byte_tokenizer(), settings)
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    adapter = {
        name.removeprefix("adapter."): shape
        for name, shape in found.items()
        if not name.startswith("base_model.")
    }
    assert adapter == LIST and all(name.startswith(("adapter.", "base_model.")) for name in found)
    assert {name for name in found if name.startswith("base_model.")} == {
        f"base_model.{name}" for name in base_model.state_dict()
    }
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
        assert found[f"base_model.{name}"] == shape, name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert model.levels == [11] and settings.adapter_heads == 8 and "adapter.temporal_pos_emb" in frozen


# the hub's format


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def in_hub_format(folder: Path, seed: int = 0) -> Path:
    """A small CLIPSeg of random weights, as `hf download` leaves one."""
    made = hub_model(tiny_settings(seed=seed))
    made.base_model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def test_the_hub_s_weights_are_pinned_to_a_commit() -> None:
    settings = settings_of("adapter", "full")
    assert settings.weights == HUB_WEIGHTS and settings.revision == HUB_REVISION and len(HUB_REVISION) == 40


def test_a_folder_counts_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = in_hub_format(tmp_path / "first"), in_hub_format(tmp_path / "other", seed=1)
    hashes = {}
    for name, folder in {
        "first": first,
        "other": other,
        "moved": shutil.copytree(first, tmp_path / "moved"),
    }.items():
        monkeypatch.setenv("WEIGHTS", str(folder))
        hashes[name] = settings_of("adapter", "full").hash()
        assert (
            settings_of("adapter", "full").weights == str(folder)
            and weights_file(str(folder)) == folder / "model.safetensors"
        )
    plain = settings_of("adapter", "full", weights=HUB_WEIGHTS).hash()
    assert hashes["first"] == hashes["moved"] != hashes["other"] and plain not in hashes.values()
    monkeypatch.setattr("lib.config.HUB_SHA256", file_hash(first / "model.safetensors"))
    same = settings_of("adapter", "full", weights=str(first))
    assert same.hash() == plain, "a download of the hub's own is the hub's"
    assert (
        weights_file("") is None and weights_file(HUB_WEIGHTS) is None and weights_file(str(tmp_path)) is None
    )


def refused(weights: Path) -> str:
    """The one sentence with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        build(tiny_settings(weights=str(weights)))
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(weights)) and text.endswith(".")
    return text


def test_folders_that_hold_no_clipseg_are_refused(tmp_path: Path) -> None:
    advice = (
        f"`hf download {HUB_WEIGHTS} --revision {HUB_REVISION} --local-dir FOLDER` and set WEIGHTS=FOLDER"
    )
    assert advice in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert advice in refused(tmp_path / "empty")
    cut = in_hub_format(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    assert advice in refused(cut)
    sizes = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50
    )
    BertModel(sizes).save_pretrained(tmp_path / "bert")
    assert "CLIPSeg lacks" in refused(tmp_path / "bert") or "cannot be loaded" in refused(tmp_path / "bert")
    without = in_hub_format(tmp_path / "without")
    for path in without.glob("*token*"):
        path.unlink()
    assert "CLIPSeg's tokenizer" in refused(without)


def test_a_pretrained_folder_in_the_hub_s_format_gives_the_same_logits(tmp_path: Path) -> None:
    """Full-size weights come this way; the folder is what `save_pretrained` and the hub hold."""
    settings = tiny_settings(weights=str(in_hub_format(tmp_path)))
    samples = WindowSampler([fake_store(9)], settings)[0]
    with torch.no_grad():
        models = hub_model(tiny_settings()), build(settings)
        made, read = (model.eval()(samples, list(KEYS))[0] for model in models)
    assert torch.equal(made, read) and made.std() > 1e-3


def test_a_released_checkpoint_is_no_start_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", "authors/best.pt")
    with pytest.raises(InputError, match=r"^WEIGHTS=authors/best.pt is a model trained whole, no start"):
        settings_of("baseline", "full")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    adapter = build(tiny_settings("adapter"))
    save_weights(adapter, tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match="another model"):
        load_weights(build(tiny_settings("baseline")), tmp_path / "adapter.safetensors")
    with pytest.raises(InputError, match="does not exist"):
        load_weights(adapter, tmp_path / "nothing.safetensors")
    save_weights(build(tiny_settings("baseline")), tmp_path / "baseline.safetensors")
    load_weights(adapter, tmp_path / "baseline.safetensors", strict=False)
    with pytest.raises(InputError, match="adapter"):
        load_weights(adapter, tmp_path / "baseline.safetensors")
