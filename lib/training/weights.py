"""Weights on disk: safetensors whole or not at all, and the released code's checkpoints."""

import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lib.paths import InputError, replacing


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's weights as safetensors, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or the released code's checkpoint (its `model_state_dict`, by our names), which is never unpickled."""
    if path.suffix not in (".pt", ".pth"):
        return load_file(path)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    names = {name.removeprefix("module."): tensor for name, tensor in saved.get("model_state_dict", saved).items()}
    ours = {name if name.startswith("base_model.") else f"adapter.{name}": tensor for name, tensor in names.items()}
    return {name: tensor for name, tensor in ours.items() if not name.endswith("position_ids")}  # a buffer of older versions


def load_weights(model: nn.Module, path: Path, strict: bool = True) -> None:
    """Loads safetensors, or a released checkpoint (.pt, .pth) into a model that is built as released.

    Not strict: a model with an adapter may start from one without, and every other name must agree.

    Raises:
        InputError: there is no such file, or it belongs to another model.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: train the run first (`make paper`), or name another checkpoint.")
    try:
        missing, unexpected = model.load_state_dict(_read_weights(path), strict=False)
        wrong = [name for name in missing if strict or not name.startswith("adapter.")] + unexpected
    except (RuntimeError, SafetensorError, UnpicklingError, AttributeError, EOFError, OSError) as error:  # other shapes, or no weights
        named = re.search(r'(?:size mismatch for|named|GLOBAL) "?([\w.]+)', str(error))
        wrong = [named[1] if named else "its content"]
    if wrong:
        raise InputError(f"{path} belongs to another model ({wrong[0]} does not fit): use the settings in the config.json beside it.")
