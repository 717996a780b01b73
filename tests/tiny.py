"""A model and scans small enough for a test of a second."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from lib.clipseg import TextPromptedSegmenter
from lib.config import SliceSettings, settings_of
from lib.data import Case, Store, prepare
from lib.phantoms import SITES, Site
from lib.volumes import Grid
from tools import train
from tools.bench import byte_tokenizer

FORK = multiprocessing.get_context("fork")
PARTS = train.PARTS
RELEASED: dict[str, Any] = {  # the adapter with every departure of the released code, as notebook 04 has it
    "neighbours": "manifest", "decoder_inputs": "last", "gate_first": True, "frozen_embeddings": True,
    "penalty_on": "bias", "clip_norm": 0.5, "dropout": 0.1, "spatial_drop_path": 0.05, "negatives": "empty",
    "negatives_per_positive": 0.1, "negative_weight": 0.4, "balance": "released", "loss": "sum",
    "dice_smoothing": 1e-5, "schedule": "restarts by epoch", "lr_least": 1e-7, "resampling": "lanczos",
    "presence": "native", "orientation": "stored", "corner_grey": 114.5, "validation": "augmented slices",
    "mirror": "front-back",
}  # fmt: skip


def tiny_settings(run: str = "baseline", **changes: Any) -> Any:
    """Two-layer models of the smoke profile."""
    return settings_of(run, "smoke", **changes)


def hub_model(settings: Any) -> TextPromptedSegmenter:
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
    return TextPromptedSegmenter(CLIPSegForImageSegmentation(config), words, settings)


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


# affines: canonical axes; thick and anisotropic voxels; a tilted gantry; axes back, head, right
LPS, THICK = np.diag([-1.0, -1.0, 1.0, 1.0]), np.diag([-2.0, -2.0, 5.0, 1.0])
OBLIQUE = np.array([[-1.9, 0.5, 0, 3], [-0.5, -1.9, 0.2, 5], [0.1, 0.1, 4, -7], [0, 0, 0, 1]])
PSR = np.array([[0.0, 0, -2, 50], [-1.5, 0, 0, 20], [0, 4, 0, -30], [0, 0, 0, 1]])


def written_store(
    folder: Path, settings: Any, hu: np.ndarray, labels: np.ndarray | None = None,
    affine: np.ndarray = LPS, name: str = "a",
) -> Store:
    """The prepared store of a scan that is written as NIfTI files, with labels where they are given."""
    image, truth = folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz"
    nib.save(nib.Nifti1Image(hu.astype(np.int16), affine), image)
    if labels is not None:
        nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), truth)
    case = Case(name, image, truth if labels is not None else None)
    return prepare([case], settings, folder / "stores")[0]


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


def at_once(*works: Callable[[Any], None]) -> None:
    """Calls functions of one barrier in processes of their own, which end well."""
    start = FORK.Barrier(len(works))
    workers = [FORK.Process(target=work, args=(start,)) for work in works]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0] * len(works)
