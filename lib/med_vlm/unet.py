"""The 2-D U-Net that Med-VLM is measured against (Med-VLM section 3.3)."""

import torch
from torch import Tensor, nn

from lib.profiles import Settings
from lib.windows import Slices

FEATURES = (32, 64, 128, 256, 512)  # of the 2-D U-Net, level by level: 7.8 M parameters, where the paper has 7.7 M


class UNet2D(nn.Module):
    """MONAI's BasicUNet over all organs at once, background included (Med-VLM section 3.3)."""

    def __init__(self, classes: int, features: tuple[int, ...] = FEATURES) -> None:
        from monai.networks.nets import BasicUNet

        super().__init__()
        self.network = BasicUNet(spatial_dims=2, in_channels=1, out_channels=classes, features=(*features, features[0]))

    def forward(self, image: Tensor) -> Tensor:
        """(B, S, S) -> logits (B, 1 + P, S, S)."""
        return self.network(image[:, None])

    def probabilities(self, image: Tensor) -> Tensor:
        """(B, S, S) -> (B, P, S, S)."""
        return self(image).softmax(1)[:, 1:]


def build_unet(settings: Settings) -> UNet2D:
    """The 2-D U-Net with weights of `settings.seed`; `filters` are the features of its levels."""
    torch.manual_seed(settings.seed)
    return UNet2D(len(settings.organs) + 1, settings.filters)


def unet_losses(model: nn.Module, slices: Slices, settings: Settings, done: float) -> dict[str, Tensor]:
    """{"loss"}: the sum of cross-entropy and soft Dice over organs and background (Med-VLM section 3.4)."""
    from monai.losses import DiceCELoss

    measure = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    return {"loss": measure(model(slices.image).float(), slices.labels[:, None])}
