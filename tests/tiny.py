"""A model and scans small enough for a test of a second."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from lib import clipseg, med_vlm
from lib.baselines import PatchSampler, build_dynunet, build_unetr, volume_losses
from lib.config import SliceSettings, settings_of
from lib.data import Store
from lib.phantoms import SITES, Site
from lib.volumes import Grid
from lib.windows import SliceSampler, WindowSampler
from tools.bench import byte_tokenizer

CLIPSEG = (clipseg.build, WindowSampler, clipseg.losses)
# build, sampler and losses of each run, as the notebooks give them
PARTS: dict[str, tuple[Any, Any, Any]] = {
    **dict.fromkeys(("baseline", "adapter", "centre only", "clipseg on BTCV", "adapter on BTCV"), CLIPSEG),
    "dynunet": (build_dynunet, PatchSampler, volume_losses),
    "unetr": (build_unetr, PatchSampler, volume_losses),
    "unet": (med_vlm.build_unet, SliceSampler, med_vlm.unet_losses),
    "med-vlm small": (med_vlm.build_med_vlm, SliceSampler, med_vlm.med_vlm_losses),
    "med-vlm large": (med_vlm.build_med_vlm, SliceSampler, med_vlm.med_vlm_losses),
}
RELEASED: dict[str, Any] = {  # the adapter with every departure of the released code, as notebook 04 has it
    "neighbours": "manifest", "decoder_inputs": "last", "gate_first": True, "frozen_embeddings": True,
    "penalty_on": "bias", "clip_norm": 0.5, "negatives": "empty", "negatives_per_positive": 0.04,
    "balance": "released", "validation": "augmented slices", "mirror": "front-back",
}  # fmt: skip


def tiny_settings(run: str = "baseline", **changes: Any) -> Any:
    """Two-layer models of the smoke profile."""
    return settings_of(run, "smoke", **changes)


def hub_model(settings: Any) -> clipseg.TextPromptedSegmenter:
    """A model as the hub's are, with CLIP's text encoder, of the settings' sizes and seed."""
    torch.manual_seed(settings.seed)
    s, words = settings, byte_tokenizer()
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": s.width, "intermediate_size": 4 * s.width, "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads, "image_size": s.size, "patch_size": s.patch,
    }  # fmt: skip
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=32, reduce_dim=s.reduce_dim,
        extract_layers=list(s.extract_layers), decoder_num_attention_heads=s.decoder_heads,
        decoder_intermediate_size=s.decoder_mlp,
    )  # fmt: skip
    return clipseg.TextPromptedSegmenter(CLIPSegForImageSegmentation(config), words, settings)


def fixed_site(name: str, pixels: int, slices: int, **changes: Any) -> Site:
    """A site whose scans all show 41 cm across and the same 21 cm in height: their shape is known."""
    heights = {"bottom_mm": (5, 5), "top_mm": (215, 215), "ends_mm": 0, "slice_mm": (210 / slices,) * 2}
    return replace(SITES[name], **{"pixels": pixels, "pixel_mm": 410 / pixels} | heights | changes)


def fake_store(slices: int, size: int = 24, seed: int = 0) -> Store:
    """A store in memory: noise, and each organ in a band of slices of its own."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((slices, size, size), np.uint8)
    for label in range(1, 14):
        z = label % slices
        labels[z : z + 3, label : label + 3, 2:9] = label
    presence = np.stack([np.bincount(picture.ravel(), minlength=14) for picture in labels])
    image = rng.integers(0, 256, labels.shape, dtype=np.uint8)
    grid = Grid((size, size, slices), np.diag([-1.0, -1.0, 1.0, 1.0]))
    # type: ignore[arg-type]
    return Store("fake", Path(), image, labels, grid, "CT", presence, "FLARE22", None)


def slice_settings(**changes: Any) -> SliceSettings:
    """Slices of 24 pixels for the spleen and the liver, as they are stored."""
    return tiny_settings("unet", **{"size": 24, "turns": False, "intensity": False} | changes)


class Fixed(nn.Module):
    """Gives the same output whatever it sees."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, image: Tensor) -> Tensor:
        return self.output


def labels_of_shape(*shape: int) -> np.ndarray:
    """An asymmetrical map of ids 0..13."""
    return (np.arange(np.prod(shape)).reshape(shape) * 5 % 14).astype(np.uint8)


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, by its path from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
