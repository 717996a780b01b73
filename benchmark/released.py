"""The released way, written anew from its description: every (window, prompt) by itself, and a file for each slice and organ."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.adapter import TemporalAdapter
from lib.clipseg import TextPromptedSegmenter, segmentation_loss
from lib.datasets import Case
from lib.organs import ORGANS
from lib.profiles import Settings
from lib.windows import Terms


def temporal(adapter: TemporalAdapter, tokens: Tensor) -> Tensor:
    """(W, L, D) tokens of a window -> (L, D) of its centre: all layers compute all slices, of which the centre is taken at the end."""
    x = adapter.proj_in(tokens).transpose(0, 1)[None] + adapter.temporal_pos_emb  # (1, L, W, d)
    for layer in adapter.temporal_layers:
        x = layer(x)
    return adapter.proj_out(adapter.transformer_norm(x))[0, :, len(tokens) // 2]


def logits_of(model: TextPromptedSegmenter, window: Tensor, prompt: str) -> Tensor:
    """(W, S, S) uint8 slices and one prompt -> (1, S, S): both encoders run for this term alone, the vision encoder to its last block.

    model: built as released (`settings_of("adapter, as released")`), for which the gate comes before the spatial block.
    """
    adapter, base = model.adapter, model.base_model
    assert adapter is not None and adapter.gate_first
    text = model.encode_text([prompt])
    pixels = (window[:, None].to(model.mean.dtype) - model.mean) / model.std  # (W, 3, S, S)
    tokens = base.clip.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state  # (W, L, D)
    mixed, _ = adapter.mix(temporal(adapter, tokens)[None], tokens[len(tokens) // 2][None])
    spatial = adapter.spatial_context(mixed) if adapter.spatial_context is not None else mixed
    return base.decoder([adapter.mlp_head(spatial)], text).logits.view(1, *window.shape[1:])


def train_term(model: TextPromptedSegmenter, terms: Terms, prompt: str) -> None:
    """Forward and backward pass of a term: its window is all of `terms.slices`."""
    logits = logits_of(model, terms.slices, prompt)
    bce, dice = segmentation_loss(logits, terms, 1.0)
    ((bce + dice) / 2).backward()


def prepare(case: Case, settings: Settings, folder: Path) -> int:
    """Writes an 8-bit picture for each slice, and a mask for each slice and organ that it shows; returns the number of files.

    Slice by slice from what nibabel gives, 64-bit floats on the file's own axes. The label ids are FLARE22's.
    """
    assert case.labels is not None
    (low, high), edges = settings.ct_window_hu, (settings.size, settings.size)
    voxels, labels = (nib.Nifti1Image.from_filename(path).get_fdata() for path in (case.image, case.labels))
    grey, count = np.rint((np.clip(voxels, low, high) - low) / (high - low) * 255).astype(np.uint8), 0
    folder.mkdir(parents=True, exist_ok=True)
    for z in range(voxels.shape[2]):
        Image.fromarray(grey[:, :, z].T).resize(edges, Image.Resampling.BILINEAR).save(folder / f"slice_{z:03d}.png")
        masks = {organ.label: (labels[:, :, z] == organ.label).T for organ in ORGANS}
        shown = {label: mask for label, mask in masks.items() if mask.any()}
        for label, mask in shown.items():
            white = Image.fromarray(mask.astype(np.uint8) * 255)
            white.resize(edges, Image.Resampling.NEAREST).save(folder / f"slice_{z:03d}_{label:02d}.png")
        count += 1 + len(shown)
    return count


def read_window(folder: Path, z: list[int], organ: int) -> tuple[Tensor, Tensor]:
    """(W, S, S) slices and the centre's (S, S) mask, as a term reads them from their files."""
    window = [np.asarray(Image.open(folder / f"slice_{row:03d}.png")) for row in z]
    mask = folder / f"slice_{z[len(z) // 2]:03d}_{organ:02d}.png"
    truth = np.asarray(Image.open(mask)) if mask.is_file() else np.zeros_like(window[0])
    return torch.from_numpy(np.stack(window)), torch.from_numpy(truth.copy())
