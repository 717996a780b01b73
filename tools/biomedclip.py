"""BiomedCLIP's towers as Med-VLM's encoders: a ViT and a BERT in the hub's format.

FOLDER=folder python -m tools.biomedclip writes folder/vit and folder/bert, of what
`hf download microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 --local-dir folder` has brought.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, ViTConfig

from lib.clipseg import pretrained
from lib.files import InputError

FILE = "open_clip_pytorch_model.bin"
RENAMED = {  # timm's names of a vision transformer's parts, and the hub's
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection", "^cls_token": "embeddings.cls_token",
    "^pos_embed": "embeddings.position_embeddings", "^blocks": "encoder.layer", "^norm": "layernorm",
    "norm1": "layernorm_before", "norm2": "layernorm_after", r"attn\.proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense", r"mlp\.fc2": "output.dense"}
SIZES: dict[str, dict[str, Any]] = {"vit": {"layer_norm_eps": 1e-6}, "bert": {}}  # beside transformers' own


def towers(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """OpenCLIP's weights -> {"vit", "bert"}: those of the two towers, under the hub's names."""
    found: dict[str, dict[str, Tensor]] = {"vit": {}, "bert": {}}
    for name, tensor in weights.items():
        if name.startswith("text.transformer.") and not name.endswith("position_ids"):
            found["bert"][name.removeprefix("text.transformer.")] = tensor
        elif name.startswith("visual.trunk."):
            name = name.removeprefix("visual.trunk.")
            for theirs, ours in RENAMED.items():
                name = re.sub(theirs, ours, name)
            parts = {name: tensor}
            if ".attn.qkv." in name:  # one matrix for three
                three = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
                parts = {name.replace("attn.qkv", f"attention.attention.{own}"): part for own, part in three}
            found["vit"] |= parts
    return found


def convert(folder: Path) -> None:
    """Writes folder/vit and folder/bert. InputError: `folder` holds no BiomedCLIP, or one of the two."""
    if there := [name for name in SIZES if (folder / name).exists()]:
        raise InputError(f"{folder / there[0]} exists: move it away, then try again.")
    try:  # never unpickled: the file may hold tensors alone
        found = towers(torch.load(folder / FILE, map_location="cpu", weights_only=True))
        grey = json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]
        seen = {"image_mean": grey["mean"], "image_std": grey["std"]}
    except (OSError, RuntimeError, UnpicklingError, KeyError, AttributeError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder} holds no BiomedCLIP ({why}): download it into this folder.") from error
    configs = {"vit": ViTConfig(**SIZES["vit"], **seen), "bert": BertConfig(**SIZES["bert"])}
    with TemporaryDirectory(dir=folder) as part:  # both towers, or none
        for tower, tensors in found.items():
            configs[tower].save_pretrained(home := Path(part, tower))
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(whole, home / "model.safetensors", {"format": "pt"})
            pretrained(AutoModel, str(home), f"BiomedCLIP's {tower}", add_pooling_layer=False)
        for file in [*folder.glob("*token*.json"), *folder.glob("vocab.txt")]:
            shutil.copy(file, home)
        pretrained(AutoTokenizer, str(home), "BiomedCLIP's tokenizer")
        for tower in found:
            Path(part, tower).rename(folder / tower)


if __name__ == "__main__":
    try:
        convert(home := Path(os.environ.get("FOLDER") or ".").expanduser())
        print(f"biomedclip: {home / 'vit'} and {home / 'bert'} are written")
    except InputError as error:
        sys.exit(f"biomedclip: {error}")
