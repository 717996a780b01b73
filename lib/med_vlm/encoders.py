"""Med-VLM's encoders: pretrained ones from the hub or a folder, and the stand-in where there are none; and the models built of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, BertConfig, PretrainedConfig, ViTConfig, ViTModel

from lib.med_vlm.model import MedVLM
from lib.paths import InputError
from lib.profiles import Settings
from lib.profiles.pretrained import pretrained, whole
from lib.training.weights import load_weights
from lib.windows import Slices


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


def _tokenizer(weights: str) -> Any:
    """The text encoder's tokenizer. InputError: as in `pretrained`, or it comes without its words."""
    tokenizer = pretrained(AutoTokenizer, weights, "the text encoder's tokenizer")
    if tokenizer.unk_token in tokenizer.tokenize("liver"):  # an empty one stands in, without a word, where its files are missing
        raise InputError(f"{weights}: its tokenizer knows no words: put its files (tokenizer.json or vocab.txt) beside the weights.")
    cased = any(word != word.lower() for word in set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens))
    if cased and tokenizer.tokenize("Liver") == tokenizer.tokenize("liver"):  # BioBERT's files do not say that it knows capitals
        tokenizer = pretrained(AutoTokenizer, weights, "the text encoder's tokenizer", do_lower_case=False)
    return tokenizer


def small_vit(settings: Settings) -> ViTModel:
    """A ViT of the settings' sizes with random weights."""
    sizes = ViTConfig(
        hidden_size=settings.width,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        image_size=settings.size,
        patch_size=settings.patch,
    )
    return ViTModel(sizes, add_pooling_layer=False)


def build_med_vlm(settings: Settings) -> MedVLM:
    """The model of a run with weights of `settings.seed` where none are pretrained. InputError: pretrained ones cannot be loaded."""
    torch.manual_seed(settings.seed)
    vit = whole(AutoModel, settings.vit, "the image encoder", add_pooling_layer=False) if settings.vit else small_vit(settings)
    if settings.text == "one-hot":
        return MedVLM(vit, None, None, settings)
    bert = whole(AutoModel, settings.bert, "the text encoder", add_pooling_layer=False)
    return MedVLM(vit, bert, _tokenizer(settings.bert), settings)


def build_patch_classifier(settings: Settings) -> PatchClassifier:
    """The image encoder of `build_med_vlm` with a head for each organ and the background."""
    torch.manual_seed(settings.seed)
    return PatchClassifier(small_vit(settings), len(settings.organs) + 1)


def start_image_encoder(model: MedVLM, settings: Settings, path: Path) -> None:
    """Gives Med-VLM's frozen image encoder the weights of a trained `PatchClassifier`. InputError: as in `load_weights`."""
    classifier = build_patch_classifier(settings)
    load_weights(classifier, path)
    weights = classifier.image_encoder.state_dict()
    for name, parameter in model.image_encoder.named_parameters():
        if "lora_" not in name:
            parameter.data.copy_(weights[name.replace(".base_layer", "")])


def patch_losses(model: nn.Module, slices: Slices, settings: Settings, done: float) -> dict[str, Tensor]:
    """{"loss"}: cross-entropy of each patch against the shares of the tissues that it shows."""
    logits = model(slices.image).float()  # (B, classes, side, side)
    shares = F.one_hot(slices.labels.long(), logits.shape[1]).movedim(-1, 1).float()
    return {"loss": F.cross_entropy(logits, F.adaptive_avg_pool2d(shares, (logits.shape[2], logits.shape[3])))}


# Sizes of the hub's encoders, from which a model can be built without their weights
ENCODER_SIZES: dict[str, PretrainedConfig] = {
    "google/vit-base-patch16-224": ViTConfig(),
    "WinKawaks/vit-tiny-patch16-224": ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768),
    "dmis-lab/biobert-base-cased-v1.1": BertConfig(vocab_size=28996),
    "sentence-transformers/all-MiniLM-L6-v2": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
}


def without_weights(settings: Settings) -> MedVLM:
    """Med-VLM at full size on the meta device: every name and shape, no number, no download and no memory."""
    with torch.device("meta"):
        vit, bert = (AutoModel.from_config(ENCODER_SIZES[name], add_pooling_layer=False) for name in (settings.vit, settings.bert))
        return MedVLM(vit, bert, None, settings)


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Trainable and frozen parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, learns in sizes if not learns)
