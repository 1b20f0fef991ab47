# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""PatchGAN discriminator (pix2pix, arXiv 1611.07004, section 3.2.2) and the losses of both sides.

Letters in the shape comments: B images.
"""

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from ..models.model_mixin import LightningDiTModelMixin
from ..settings import check_choice

KINDS = ("hinge", "vanilla")
INIT_STD = 0.02  # of pix2pix's weights


class PatchGANDiscriminator(LightningDiTModelMixin, ModelMixin, ConfigMixin):
    """Judges overlapping patches of an image (70x70 with 3 layers) by convolutions, batch norms and leaky ReLUs.

    Args:
        in_channels: The number of channels of the images.
        base_channels: The width of the first layer; each further one has twice as many channels, up to 8 times.
        num_layers: The number of convolutions with stride 2; two with stride 1 follow.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, base_channels: int = 64, num_layers: int = 3):
        super().__init__()
        layers = [nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = base_channels
        for i in range(1, num_layers + 1):
            previous, width = width, base_channels * min(2**i, 8)
            layers += [
                # a batch norm follows: no bias
                nn.Conv2d(previous, width, 4, stride=2 if i < num_layers else 1, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        layers += [nn.Conv2d(width, 1, 4, padding=1)]
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, INIT_STD)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, INIT_STD)

    @property
    def smallest_size(self) -> int:
        """The smallest height and width of an image, in pixels."""
        return 3 * 2**self.config.num_layers

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, height, width] in [-1, 1] -> logits [B, 1, height', width'], above 0 for a real patch.

        Raises:
            ValueError: if the image is smaller than `smallest_size`.
        """
        if min(pixels.shape[-2:]) < self.smallest_size:
            raise ValueError(
                f"`pixels` is {pixels.shape[-2]} x {pixels.shape[-1]}; required: at least {self.smallest_size} each "
                f"way, for a discriminator with `num_layers` {self.config.num_layers}."
            )
        return self.layers(pixels)


def discriminator_loss(logits_real: torch.Tensor, logits_fake: torch.Tensor, kind: str = "hinge") -> torch.Tensor:
    """The discriminator's loss, with logits d of real images and d' of reconstructions.

    "hinge":   1/2 (mean relu(1 - d) + mean relu(1 + d')) (geometric GAN, arXiv 1705.02894);
    "vanilla": 1/2 (mean softplus(-d) + mean softplus(d')), the cross-entropy (arXiv 1406.2661).

    Args:
        logits_real, logits_fake: The logits d and d', of any shape.
        kind: The form of the loss, "hinge" or "vanilla".

    Returns:
        scalar.

    Raises:
        ValueError: if `kind` is neither.
    """
    check_choice("kind", kind, KINDS)
    if kind == "hinge":
        return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def generator_loss(logits_fake: torch.Tensor) -> torch.Tensor:
    """-mean d', with the logits d' of reconstructions: any shape -> scalar."""
    return -logits_fake.mean()
