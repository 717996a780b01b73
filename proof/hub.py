"""Stand-ins for the hub's weights: random numbers in the sizes and files of the models that the full profile names, laid out as its cache.

`python -m proof.hub HF_HOME/hub` writes them; with --narrow such of few channels, which take seconds.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    BertForPreTraining,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    PretrainedConfig,
    ViTConfig,
    ViTForImageClassification,
)

from lib.med_vlm.encoders import ENCODER_SIZES
from lib.organs import ORGANS
from lib.paths import InputError
from lib.profiles import HUB_REVISION, HUB_WEIGHTS, settings_of

LARGE = settings_of("med-vlm large", "full")
COMMIT = "0" * 40  # of models that are asked for by their main branch
CLIP_WORDS = 49_408
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def clipseg_sizes(text: int = 512, vision: int = 768, layers: int = 12) -> CLIPSegConfig:
    """CIDAS/clipseg-rd64-refined, or a narrower one; its configuration is of an age that gave the end of a text a wrong number."""
    return CLIPSegConfig(
        text_config={"hidden_size": text, "intermediate_size": 4 * text, "num_hidden_layers": layers, "eos_token_id": 2, "bos_token_id": 0},
        vision_config={"hidden_size": vision, "intermediate_size": 4 * vision, "patch_size": 16},
        use_complex_transposed_convolution=True,
    )


SIZES: dict[str, PretrainedConfig] = {HUB_WEIGHTS: clipseg_sizes(), **{name: ENCODER_SIZES[name] for name in (LARGE.vit, LARGE.bert)}}
NARROW: dict[str, PretrainedConfig] = {
    HUB_WEIGHTS: clipseg_sizes(64, 48, 2),
    LARGE.vit: ViTConfig(hidden_size=48, intermediate_size=96),
    LARGE.bert: BertConfig(vocab_size=28_996, hidden_size=48, intermediate_size=96),
}


def _of_model(hub: Path, name: str) -> Path:
    return hub / f"models--{name.replace('/', '--')}"


def in_cache(hub: Path, name: str, commit: str) -> Path:
    """The folder of a model's commit in the hub's cache; its main branch points there."""
    home = _of_model(hub, name)
    for folder in (home / "refs", snapshot := home / "snapshots" / commit):
        folder.mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(commit)
    return snapshot


def write_clip_words(folder: Path) -> None:
    """CLIP's tokenizer in its own files: each byte, made-up merges up to CLIP's number of words, and start and end of a text."""
    letters = sorted(ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in letters]
    merges = list(islice(product(letters, letters + ends), CLIP_WORDS - 2 * len(letters) - 2))
    words = [*letters, *ends, *(first + second for first, second in merges), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}))


def write_bert_words(folder: Path, count: int) -> None:
    """BERT's vocab.txt alone, as BioBERT's folder has it: single letters, and the organs' names with and without capitals."""
    letters = [chr(code) for code in range(33, 127)]
    names = sorted({word for organ in ORGANS for word in organ.prompt.split()})
    words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *names, *map(str.capitalize, names)]
    words += [f"[unused{place}]" for place in range(count - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")


def write_hub(hub: Path, sizes: Mapping[str, PretrainedConfig] = SIZES) -> None:
    """Writes {model's name: its sizes} with random weights into the hub's cache `hub`, each in the kind of files that its page lists.

    Raises:
        InputError: the cache holds one of the models already, which may be the real one: nothing is written.
    """
    if (there := next((home for name in sizes if os.path.lexists(home := _of_model(hub, name))), None)) is not None:
        raise InputError(f"{there} exists and is left as it is, for random weights would take its place: name an empty folder.")
    torch.manual_seed(0)
    for name, config in sizes.items():
        folder = in_cache(hub, name, HUB_REVISION if name == HUB_WEIGHTS else COMMIT)
        if isinstance(config, CLIPSegConfig):
            model = CLIPSegForImageSegmentation(config)
            last: Any = model.decoder.transposed_convolution[-1]
            last.weight.data *= 1e-3  # else half of all voxels were marked, one here and one there, and distances
            last.bias.data.fill_(-3)  # between such masks take longer than all the rest
            model.save_pretrained(folder)
            write_clip_words(folder)
        elif isinstance(config, ViTConfig):
            ViTForImageClassification(config).save_pretrained(folder)
        else:
            assert isinstance(config, BertConfig)
            torch.save(BertForPreTraining(config).state_dict(), folder / "pytorch_model.bin")
            config.save_pretrained(folder)
            write_bert_words(folder, config.vocab_size)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write random weights in the sizes and files of the hub's models into a cache of the hub.")
    parser.add_argument("hub", type=Path)
    parser.add_argument("--narrow", action="store_true", help="narrow models, to try something out")
    arguments = parser.parse_args()
    try:
        write_hub(arguments.hub, NARROW if arguments.narrow else SIZES)
    except InputError as error:
        sys.exit(str(error))
