"""Med-VLM (sections 2, 3.3): frozen encoders with LoRA, a feature mixer, a mask decoder; and its 2-D U-Net.

Letters in shape comments: B slices, P prompts, N slices with one prompt, L patches, T words, D token width,
C mask width, S pixels. Sizes of mixer, decoder and LoRA, which the paper leaves open, are settings.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from lib.clipseg import MEAN, STD, pretrained, soft_dice_loss
from lib.config import STAND_IN, START, SliceSettings
from lib.organs import text_prompts
from lib.windows import Slices

LORA_TARGETS = ["q_proj", "v_proj", "query", "value"]  # as ViT and BERT call their projections
WORDS = 64  # of a prompt, the longest that is read
KINDS = ("image", "text")


class MixerLayer(nn.Module):
    """Patches look at words and words at patches, then each at its own kind; then an MLP; each pre-norm."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({k: nn.LayerNorm(width) for k in (*KINDS, "image_own", "text_own")})
        self.cross = nn.ModuleDict({k: nn.MultiheadAttention(width, heads, batch_first=True) for k in KINDS})
        self.own = nn.ModuleDict({k: nn.MultiheadAttention(width, heads, batch_first=True) for k in KINDS})
        self.mlps = nn.ModuleDict()
        for name in KINDS:
            wide = nn.LayerNorm(width), nn.Linear(width, mlp * width), nn.GELU()
            self.mlps[name] = nn.Sequential(*wide, nn.Linear(mlp * width, width))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, D) patches and (N, T, D) words -> the same, mixed."""
        seen = {"image": self.norms["image"](image), "text": self.norms["text"](text)}
        mixed = {}
        for name, tokens, other in (("image", image, "text"), ("text", text, "image")):
            tokens = tokens + self.cross[name](seen[name], seen[other], seen[other], need_weights=False)[0]
            own = self.norms[f"{name}_own"](tokens)
            tokens = tokens + self.own[name](own, own, own, need_weights=False)[0]
            mixed[name] = tokens + self.mlps[name](tokens)
        return mixed["image"], mixed["text"]


class MaskDecoder(nn.Module):
    """Dilated convolutions, SAM's two-way transformer, and an MLP that asks every pixel for the organ."""

    def __init__(self, token_width: int, width: int, depth: int, side: int) -> None:
        super().__init__()
        self.reduce_image, self.reduce_text = nn.Linear(token_width, width), nn.Linear(token_width, width)
        self.convolutions = nn.ModuleList()
        for d in (1, 2, 4):
            convolution = nn.Conv2d(width, width, 3, padding=d, dilation=d)
            self.convolutions.append(nn.Sequential(convolution, nn.GroupNorm(8, width), nn.GELU()))
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, width, side, side) * 0.02)
        self.two_way = SamTwoWayTransformer(SamMaskDecoderConfig(
            num_hidden_layers=depth, num_attention_heads=width // 32, hidden_size=width, mlp_dim=4 * width,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        ))
        up = nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GroupNorm(8, width // 2), nn.GELU()
        self.upscale = nn.Sequential(*up, nn.ConvTranspose2d(width // 2, width // 4, 2, 2))
        self.ask = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width // 4 + 1))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(N, L, D) mixed patches and (N, T, D) mixed words -> (N, 4 side, 4 side) logits."""
        side = int(image.shape[1] ** 0.5)
        x = self.reduce_image(image).transpose(1, 2).unflatten(2, (side, side))  # (N, C, side, side)
        for convolution in self.convolutions:
            x = x + convolution(x)
        token, place = self.mask_token.expand(len(x), -1, -1), self.position.expand(len(x), -1, -1, -1)
        queries = torch.cat([token, self.reduce_text(text)], 1)[:, None]  # (N, 1, 1 + T, C)
        queries, keys = self.two_way(queries, x, place, None)
        pixels = self.upscale(keys[:, 0].transpose(1, 2).unflatten(2, (side, side)))  # 4 x 4 a patch
        asked = self.ask(queries[:, 0, 0])  # (N, C / 4 + 1): a direction in the pixels' space, and an offset
        along = (asked[:, None, :-1] @ pixels.flatten(2)).squeeze(1) / pixels.shape[1] ** 0.5
        return (along + asked[:, -1:]).unflatten(1, pixels.shape[2:])


class MedVLM(nn.Module):
    """One slice and one description in, one organ's mask out; of the encoders, LoRA alone learns.

    The text encoder trains without BERT's dropout of 0.1: its weights are frozen and an organ's words never
    change, so that dropout would be noise on a constant. The paper says nothing of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: Any, bert: Any, tokenizer: Any, settings: SliceSettings) -> None:
        super().__init__()
        lora = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_rank, target_modules=LORA_TARGETS)
        width, side = vit.config.hidden_size, vit.config.image_size // vit.config.patch_size
        self.tokenizer, self.prompts = tokenizer, text_prompts(settings.text, settings.organs)
        self.read: dict[Any, list[Tensor]] = {}
        self.image_encoder, self.text_encoder = inject_adapter_in_model(lora, vit), None
        if bert is None:  # an embedding in place of a text: nothing but which organ it is
            self.one_hot = nn.Embedding(len(settings.organs), width)
        else:
            self.text_encoder = inject_adapter_in_model(lora, bert)
            self.text_in = nn.Linear(bert.config.hidden_size, width)
        mixer = (width, vit.config.num_attention_heads, settings.mixer_mlp)
        self.mixer = nn.ModuleList(MixerLayer(*mixer) for _ in range(settings.mixer_depth))
        self.decoder = MaskDecoder(width, settings.mask_width, settings.mask_depth, side)
        small = settings.vit in ("", STAND_IN)  # grey values as the small CLIPSeg has them; else as the hub's
        hub_s = (getattr(vit.config, f"image_{what}", (0.5,)) for what in ("mean", "std"))
        mean, std = (MEAN, STD) if small else hub_s
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        hub = {"image_encoder": settings.vit, "text_encoder": settings.bert}
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        self.from_hub = tuple(name for name in frozen if hub.get(name.split(".")[0]))  # no run saves it
        self.register_state_dict_post_hook(MedVLM._leave_out)
        self.register_load_state_dict_post_hook(MedVLM._do_not_miss)

    def _leave_out(self, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        for name in self.from_hub:
            state.pop(prefix + name, None)

    def _do_not_miss(self, keys: Any) -> None:  # whose names may have a prefix
        keys.missing_keys[:] = [name for name in keys.missing_keys if not name.endswith(self.from_hub)]

    def encode_text(self, prompts: tuple[str, ...]) -> list[Tensor]:
        """Prompts -> (1, T, D) states of each one's words, start and end included; none is padded."""
        if self.text_encoder is None:
            return list(self.one_hot.weight[: len(prompts), None, None])
        device = self.decoder.mask_token.device
        if (key := (*prompts, device)) not in self.read:  # on the device: a step waits for none
            rows = self.tokenizer(list(prompts), truncation=True, max_length=WORDS)["input_ids"]
            with torch.inference_mode(False):  # or a training could not use what was read while scoring
                self.read[key] = [torch.tensor([row], device=device) for row in rows]
        return [self.text_in(self.text_encoder(row).last_hidden_state) for row in self.read[key]]

    def encode_slices(self, image: Tensor) -> Tensor:
        """(B, S, S), 0 to 1 -> (B, L, D) patches, without the class token."""
        pixels = (image[:, None].expand(-1, 3, -1, -1) - self.mean) / self.std
        return self.image_encoder(pixels).last_hidden_state[:, 1:]

    def forward(self, image: Tensor, prompts: tuple[str, ...] | None = None) -> Tensor:
        """(B, S, S) -> logits (B, P, S, S), of the settings' own prompts or of others in their place."""
        patches, masks = self.encode_slices(image), []
        for words in self.encode_text(prompts or self.prompts):
            mixed, text = patches, words.expand(len(patches), -1, -1)
            for layer in self.mixer:
                mixed, text = layer(mixed, text)
            masks.append(self.decoder(mixed, text))
        return F.interpolate(torch.stack(masks, 1), image.shape[1:], mode="bilinear", align_corners=False)


def build_med_vlm(settings: SliceSettings) -> MedVLM:
    """The model of a run, of its seed where no weights are named. InputError: as in `pretrained`."""
    torch.manual_seed(settings.seed)
    encoder = partial(pretrained, AutoModel, add_pooling_layer=False)
    small = settings.vit in ("", STAND_IN)
    vit = small_vit(settings) if small else encoder(settings.vit, "the image encoder")
    if settings.text == "one-hot":
        return MedVLM(vit, None, None, settings)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = encoder(settings.bert, "the text encoder", **still)
    tokenizer = pretrained(AutoTokenizer, settings.bert, "the text tokenizer")
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if any(word != word.lower() for word in words):  # BioBERT's files do not say that it knows capitals
        tokenizer = pretrained(AutoTokenizer, settings.bert, "the text tokenizer", do_lower_case=False)
    return MedVLM(vit, bert, tokenizer, settings)


def med_vlm_losses(model: nn.Module, slices: Slices, *_: Any) -> dict[str, Tensor]:
    """Loss of a step and its parts: binary cross-entropy plus soft Dice, organ by organ (section 3.4)."""
    logits = model(slices.image).float()  # (B, P, S, S)
    place = torch.arange(1, logits.shape[1] + 1, device=logits.device)[:, None, None]
    masks = (slices.labels[:, None] == place).float()
    bce = F.binary_cross_entropy_with_logits(logits, masks)
    dice = soft_dice_loss(logits.flatten(0, 1), masks.flatten(0, 1)).mean()
    return {"bce": bce, "dice_loss": dice, "loss": bce + dice}


def small_vit(settings: SliceSettings) -> CLIPVisionModel:
    """A CLIP's vision encoder of the settings' sizes: the stand-in's first layers, or random numbers."""
    sizes: dict[str, Any] = {"image_size": settings.size, "patch_size": settings.patch}
    sizes |= {"hidden_size": settings.width, "intermediate_size": 4 * settings.width}
    sizes |= {"num_hidden_layers": settings.depth, "num_attention_heads": settings.heads}
    vit = CLIPVisionModel(CLIPVisionConfig(**sizes))
    if settings.vit:
        saved, names = load_file(START), vit.state_dict()
        vit.load_state_dict({name: saved["base_model.clip.vision_model." + name] for name in names})
    return vit


def build_unet(settings: SliceSettings) -> nn.Module:
    """Med-VLM's 2-D U-Net (section 3.3), MONAI's: (B, S, S) -> logits (B, 1 + P, S, S), background first."""
    from monai.networks.nets import BasicUNet
    torch.manual_seed(settings.seed)
    classes, widths = len(settings.organs) + 1, (*settings.features, settings.features[0])
    network = BasicUNet(spatial_dims=2, in_channels=1, out_channels=classes, features=widths)
    one_channel = nn.Unflatten(1, (1, settings.size))  # (B, S, S) -> (B, 1, S, S)
    return nn.Sequential(OrderedDict(one_channel=one_channel, network=network))


def unet_losses(model: nn.Module, slices: Slices, *_: Any) -> dict[str, Tensor]:
    """{"loss"}: the sum of cross-entropy and soft Dice over organs and background (Med-VLM section 3.4)."""
    from monai.losses import DiceCELoss
    measure = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    return {"loss": measure(model(slices.image).float(), slices.labels[:, None])}
