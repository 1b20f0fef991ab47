# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The VF loss aligns latents with the features of a vision foundation model (VA-VAE, arXiv 2501.01423, section 3).

Letters in the shape comments: B images, C latent channels, F feature channels, D either, N = height * width positions.
"""

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from ..models.model_mixin import LightningDiTModelMixin


def vf_loss(
    features: torch.Tensor,
    latents: torch.Tensor,
    distmat_margin: float = 0.0,
    cos_margin: float = 0.0,
    distmat_weight: float = 1.0,
    cos_weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Marginal distance-matrix similarity and marginal cosine similarity, weighted and added.

    With a and z of length 1 along the channels, and i, j positions of one image,
        distmat part = mean over B, i, j of relu(|z_i . z_j - a_i . a_j| - distmat_margin),
        cosine part  = mean over B, i of relu(1 - cos_margin - a_i . z_i).

    Args:
        features, latents: The features a and latents z, [B, D, height, width] each, one of them projected by
            `FoundationProjection`.
        distmat_margin, cos_margin: The differences up to which the two parts are 0.
        distmat_weight, cos_weight: The weights of the two parts in the loss.

    Returns:
        (distmat_weight * distmat part + cos_weight * cosine part, distmat part, cosine part), scalars in float32.

    Raises:
        ValueError: if the shapes differ.
    """
    if features.ndim != 4 or features.shape != latents.shape:
        raise ValueError(
            f"`features` has shape {list(features.shape)}, `latents` {list(latents.shape)}; required: the same, "
            "[batch, channels, height, width]."
        )
    # Differences of cosines near the margin: half precision would round most of them away.
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features.float().flatten(2), dim=1)  # [B, D, N]
        latents = F.normalize(latents.float().flatten(2), dim=1)  # [B, D, N]
        distances = (latents.mT @ latents - features.mT @ features).abs()  # [B, N, N]
        distmat_part = F.relu(distances - distmat_margin).mean()
        cos_part = F.relu(1 - cos_margin - (features * latents).sum(1)).mean()
    return distmat_weight * distmat_part + cos_weight * cos_part, distmat_part, cos_part


class FoundationProjection(LightningDiTModelMixin, ModelMixin, ConfigMixin):
    """A 1x1 convolution between latents and features, so that both have the same channels.

    Args:
        latent_channels: The number of latent channels, C.
        feature_channels: The width of the foundation model, F.
        reverse: True projects latents onto the features, without bias; False features onto the latents, with bias.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 32, feature_channels: int = 1024, reverse: bool = True):
        super().__init__()
        channels = (latent_channels, feature_channels) if reverse else (feature_channels, latent_channels)
        self.proj = nn.Conv2d(*channels, kernel_size=1, bias=not reverse)

    def forward(self, features: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project the one of the two that is to be projected.

        Args:
            features: Features of the foundation model, [B, F, height, width].
            latents: Latents, [B, C, height, width].

        Returns:
            (features, latents), [B, D, height, width] each: D = F where `reverse`, else C.
        """
        if self.config.reverse:
            return features, self.proj(latents)
        return self.proj(features), latents
