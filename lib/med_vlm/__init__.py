"""The models of the Med-VLM paper: Med-VLM itself in two sizes, its encoders, and the 2-D U-Net beside it."""

from lib.med_vlm.encoders import (
    PatchClassifier,
    build_med_vlm,
    build_patch_classifier,
    parameter_counts,
    patch_losses,
    small_vit,
    start_image_encoder,
    without_weights,
)
from lib.med_vlm.model import MaskDecoder, MedVLM, MixerLayer, med_vlm_losses
from lib.med_vlm.unet import UNet2D, build_unet, unet_losses

__all__ = [
    "MaskDecoder",
    "MedVLM",
    "MixerLayer",
    "PatchClassifier",
    "UNet2D",
    "build_med_vlm",
    "build_patch_classifier",
    "build_unet",
    "med_vlm_losses",
    "parameter_counts",
    "patch_losses",
    "small_vit",
    "start_image_encoder",
    "unet_losses",
    "without_weights",
]
