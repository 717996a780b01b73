"""Med-VLM: frozen encoders with LoRA, a feature mixer between them, and a mask decoder; and its 2-D U-Net
(Med-VLM sections 2, 3.3).

Letters in shape comments: B slices, P prompts, N = B x 1 pairs of one prompt, L patches, T words, D token
width, C mask width, S pixels. What the paper leaves open is a setting: layers and MLP width of the mixer,
width and layers of the decoder, and LoRA's rank.
"""

from functools import cached_property
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase, ViTConfig, ViTModel
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from lib.clipseg import pretrained, soft_dice_loss
from lib.config import SliceSettings
from lib.files import InputError
from lib.organs import text_prompts
from lib.windows import Slices

DILATIONS = (1, 2, 4)
UPSAMPLING = 4  # the decoder's masks have 4 x 4 pixels a patch, and grow to the slice's size from there
LORA_TARGETS = ["q_proj", "v_proj", "query", "value"]  # as ViT and BERT call their projections
WORDS = 64  # of a prompt, the longest that is read


class MixerLayer(nn.Module):
    """Patches look at words and words at patches, then each at its own kind, then an MLP.

    Pre-norm, residual.
    """

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(width) for name in ("image", "text", "image_own", "text_own")}
        )
        self.cross = nn.ModuleDict(
            {name: nn.MultiheadAttention(width, heads, batch_first=True) for name in ("image", "text")}
        )
        self.own = nn.ModuleDict(
            {name: nn.MultiheadAttention(width, heads, batch_first=True) for name in ("image", "text")}
        )
        self.mlps = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.LayerNorm(width), nn.Linear(width, mlp * width), nn.GELU(),
                    nn.Linear(mlp * width, width),
                )
                for name in ("image", "text")
            }
        )

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
    """Dilated convolutions over the patches, SAM's transformer in both directions, and an MLP that asks
    every pixel for the organ."""

    def __init__(self, token_width: int, width: int, depth: int, side: int) -> None:
        super().__init__()
        self.reduce_image, self.reduce_text = nn.Linear(token_width, width), nn.Linear(token_width, width)
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=d, dilation=d), nn.GroupNorm(8, width), nn.GELU()
            )
            for d in DILATIONS
        )
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, width, side, side) * 0.02)
        sizes = SamMaskDecoderConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=width // 32, mlp_dim=4 * width
        )
        sizes._attn_implementation = "sdpa"
        self.two_way = SamTwoWayTransformer(sizes)
        fine = width // 4
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 2, 2), nn.GroupNorm(8, width // 2), nn.GELU(),
            nn.ConvTranspose2d(width // 2, fine, 2, 2),
        )
        self.ask = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, fine + 1))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(N, L, D) mixed patches and (N, T, D) mixed words -> (N, 4 side, 4 side) logits."""
        side = int(image.shape[1] ** 0.5)
        x = self.reduce_image(image).transpose(1, 2).unflatten(2, (side, side))  # (N, C, side, side)
        for convolution in self.convolutions:
            x = x + convolution(x)
        count = len(x)
        queries = torch.cat([self.mask_token.expand(count, -1, -1), self.reduce_text(text)], 1)[
            :, None
        ]  # (N, 1, 1 + T, C)
        place = self.position.expand(count, -1, -1, -1)
        queries, keys = self.two_way(queries, x, place, None)
        pixels = self.upscale(keys.squeeze(1).transpose(1, 2).unflatten(2, (side, side))).flatten(
            2
        )  # (N, C / 4, pixels)
        asked = self.ask(queries[:, 0, 0])  # (N, C / 4 + 1): a direction in the pixels' space, and an offset
        logits = (asked[:, None, :-1] @ pixels).squeeze(1) / pixels.shape[1] ** 0.5 + asked[:, -1:]
        return logits.unflatten(1, (UPSAMPLING * side, UPSAMPLING * side))


class MedVLM(nn.Module):
    """One slice and one description in, one organ's mask out.

    The encoders stay as they are; LoRA, mixer and decoder learn.
    """

    def __init__(
        self, image_encoder: nn.Module, text_encoder: nn.Module | None,
        tokenizer: PreTrainedTokenizerBase | None, settings: SliceSettings,
    ) -> None:
        super().__init__()
        lora = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_rank, target_modules=LORA_TARGETS)
        sizes: Any = image_encoder.config
        width, side = sizes.hidden_size, sizes.image_size // sizes.patch_size
        self.settings, self.tokenizer = settings, tokenizer
        self.image_encoder = inject_adapter_in_model(lora, image_encoder)
        self.text_encoder = None if text_encoder is None else inject_adapter_in_model(lora, text_encoder)
        if (
            text_encoder is None
        ):  # an embedding of the organ's place in place of a text: nothing but which organ it is
            self.one_hot = nn.Embedding(len(settings.organs), width)
        else:
            words: Any = text_encoder.config
            self.text_in = nn.Linear(words.hidden_size, width)
        self.mixer = nn.ModuleList(
            MixerLayer(width, sizes.num_attention_heads, settings.mixer_mlp)
            for _ in range(settings.mixer_depth)
        )
        self.decoder = MaskDecoder(width, settings.mask_width, settings.mask_depth, side)
        self.prompts = text_prompts(settings.text, settings.organs)
        self.register_state_dict_post_hook(_leave_out_hub_weights)
        self.register_load_state_dict_post_hook(_do_not_miss_hub_weights)

    @cached_property
    def from_hub(self) -> frozenset[str]:
        """Frozen parameters that came with pretrained weights: they are not saved with every run."""
        parts = {"image_encoder.": self.settings.vit, "text_encoder.": self.settings.bert}
        frozen = (name for name, parameter in self.named_parameters() if not parameter.requires_grad)
        return frozenset(
            name
            for name in frozen
            if any(weights and name.startswith(part) for part, weights in parts.items())
        )

    def encode_text(self, prompts: tuple[str, ...]) -> list[Tensor]:
        """Prompts -> for each the (1, T, D) states of its words, start and end included.

        Each by itself, so that none is padded.
        """
        device = self.decoder.mask_token.device
        if self.text_encoder is None or self.tokenizer is None:
            return list(self.one_hot(torch.arange(len(prompts), device=device))[:, None, None])
        words: list[BatchEncoding] = [
            self.tokenizer(p, truncation=True, max_length=WORDS, return_tensors="pt").to(device)
            for p in prompts
        ]
        return [self.text_in(self.text_encoder(**word).last_hidden_state) for word in words]

    def encode_slices(self, image: Tensor) -> Tensor:
        """(B, S, S), 0 to 1 -> (B, L, D) patches, without the class token."""
        pixels = (image[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.5  # as the hub's processor of ViT has it
        return self.image_encoder(pixels).last_hidden_state[:, 1:]

    def forward(self, image: Tensor, prompts: tuple[str, ...] | None = None) -> Tensor:
        """(B, S, S) -> logits (B, P, S, S), of the settings' own prompts or of others in their place."""
        patches = self.encode_slices(image)
        masks = []
        for words in self.encode_text(prompts or self.prompts):
            mixed, text = patches, words.expand(len(patches), -1, -1)
            for layer in self.mixer:
                mixed, text = layer(mixed, text)
            masks.append(self.decoder(mixed, text))
        return F.interpolate(torch.stack(masks, 1), image.shape[1:], mode="bilinear", align_corners=False)

    def probabilities(self, image: Tensor, prompts: tuple[str, ...] | None = None) -> Tensor:
        """(B, S, S) -> (B, P, S, S)."""
        return self(image, prompts).sigmoid()

    def start_image_encoder(self, weights: dict[str, Tensor]) -> None:
        """Gives the frozen image encoder the weights of a trained `PatchClassifier`."""
        for name, parameter in self.image_encoder.named_parameters():
            if "lora_" not in name:
                parameter.data.copy_(weights["image_encoder." + name.replace(".base_layer", "")])


def _leave_out_hub_weights(model: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in model.from_hub:
        state.pop(prefix + name, None)


def _do_not_miss_hub_weights(model: Any, incompatible: Any) -> None:
    hub = tuple(
        model.from_hub
    )  # names in full, with what several processes wrap around the model before them
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if not name.endswith(hub)]


def med_vlm_losses(
    model: nn.Module, slices: Slices, settings: SliceSettings, done: float
) -> dict[str, Tensor]:
    """Loss of a step and its parts: the plain sum of binary cross-entropy and soft Dice, organ by organ
    (Med-VLM section 3.4)."""
    logits = model(slices.image).float()  # (B, P, S, S)
    place = torch.arange(1, logits.shape[1] + 1, device=logits.device)[:, None, None]
    masks = (slices.labels[:, None] == place).float()
    bce = F.binary_cross_entropy_with_logits(logits, masks)
    dice = soft_dice_loss(logits.flatten(0, 1), masks.flatten(0, 1)).mean()
    return {"bce": bce, "dice_loss": dice, "loss": bce + dice}


def _tokenizer(weights: str) -> Any:
    """The text encoder's tokenizer. InputError: as in `pretrained`, or it comes without its words."""
    tokenizer = pretrained(AutoTokenizer, weights, "the text encoder's tokenizer")
    if tokenizer.unk_token in tokenizer.tokenize(
        "liver"
    ):  # an empty one stands in, without a word, where its files are missing
        raise InputError(
            f"{weights}: its tokenizer knows no words: put its files (tokenizer.json or vocab.txt) beside "
            "the weights."
        )
    cased = any(
        word != word.lower() for word in set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    )
    if cased and tokenizer.tokenize("Liver") == tokenizer.tokenize(
        "liver"
    ):  # BioBERT's files do not say that it knows capitals
        tokenizer = pretrained(AutoTokenizer, weights, "the text encoder's tokenizer", do_lower_case=False)
    return tokenizer


def small_vit(settings: SliceSettings) -> ViTModel:
    """A ViT of the settings' sizes with random weights."""
    sizes = ViTConfig(
        hidden_size=settings.width, num_hidden_layers=settings.depth, num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width, image_size=settings.size, patch_size=settings.patch,
    )
    return ViTModel(sizes, add_pooling_layer=False)


def build_med_vlm(settings: SliceSettings) -> MedVLM:
    """The model of a run with weights of `settings.seed` where none are pretrained.

    InputError: pretrained ones cannot be loaded.
    """
    torch.manual_seed(settings.seed)
    vit = (
        pretrained(AutoModel, settings.vit, "the image encoder", add_pooling_layer=False)
        if settings.vit
        else small_vit(settings)
    )
    if settings.text == "one-hot":
        return MedVLM(vit, None, None, settings)
    bert = pretrained(AutoModel, settings.bert, "the text encoder", add_pooling_layer=False)
    return MedVLM(vit, bert, _tokenizer(settings.bert), settings)


class PatchClassifier(nn.Module):
    """The demo's stand-in for a ViT's pretraining: which tissues a patch shows, on phantoms of their own."""

    def __init__(self, image_encoder: nn.Module, classes: int) -> None:
        super().__init__()
        sizes: Any = image_encoder.config
        self.image_encoder, self.head = image_encoder, nn.Linear(sizes.hidden_size, classes)

    def forward(self, image: Tensor) -> Tensor:
        """(B, S, S) -> (B, classes, side, side) logits."""
        pixels = (image[:, None].expand(-1, 3, -1, -1) - 0.5) / 0.5
        patches = self.head(self.image_encoder(pixels).last_hidden_state[:, 1:])  # (B, L, classes)
        side = int(patches.shape[1] ** 0.5)
        return patches.transpose(1, 2).unflatten(2, (side, side))


def build_patch_classifier(settings: SliceSettings) -> PatchClassifier:
    """The image encoder of `build_med_vlm` with a head for each organ and the background."""
    torch.manual_seed(settings.seed)
    return PatchClassifier(small_vit(settings), len(settings.organs) + 1)


def patch_losses(model: nn.Module, slices: Slices, settings: SliceSettings, done: float) -> dict[str, Tensor]:
    """{"loss"}: cross-entropy of each patch against the shares of the tissues that it shows."""
    logits = model(slices.image).float()  # (B, classes, side, side)
    shares = F.one_hot(slices.labels.long(), logits.shape[1]).movedim(-1, 1).float()
    return {
        "loss": F.cross_entropy(logits, F.adaptive_avg_pool2d(shares, (logits.shape[2], logits.shape[3])))
    }


class UNet2D(nn.Module):
    """MONAI's BasicUNet over all organs at once, background included (Med-VLM section 3.3)."""

    def __init__(self, classes: int, features: tuple[int, ...]) -> None:
        from monai.networks.nets import BasicUNet

        super().__init__()
        self.network = BasicUNet(
            spatial_dims=2, in_channels=1, out_channels=classes, features=(*features, features[0])
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, S, S) -> logits (B, 1 + P, S, S)."""
        return self.network(image[:, None])

    def probabilities(self, image: Tensor) -> Tensor:
        """(B, S, S) -> (B, P, S, S)."""
        return self(image).softmax(1)[:, 1:]


def build_unet(settings: SliceSettings) -> UNet2D:
    """The 2-D U-Net with weights of `settings.seed`."""
    torch.manual_seed(settings.seed)
    return UNet2D(len(settings.organs) + 1, settings.features)


def unet_losses(model: nn.Module, slices: Slices, settings: SliceSettings, done: float) -> dict[str, Tensor]:
    """{"loss"}: the sum of cross-entropy and soft Dice over organs and background (Med-VLM section 3.4)."""
    from monai.losses import DiceCELoss

    measure = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    return {"loss": measure(model(slices.image).float(), slices.labels[:, None])}
