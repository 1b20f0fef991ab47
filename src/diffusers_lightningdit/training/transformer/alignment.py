# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Alignment of the transformer's tokens with those of a vision foundation model, while it trains.

REPA (arXiv 2410.06940): the state of the tokens after an early block, through a small projector, is drawn to the
directions of the patch tokens of the clean image. iREPA (arXiv 2512.10794): the projector is a convolution, and a part
of their mean over the image is taken from the features, which leaves their differences in space.

Letters in the shape comments: B batch, N tokens (row-major), D width of the transformer, F channels of a feature.
"""

import torch
import torch.nn.functional as F
from torch import nn

PROJECTORS = ("mlp", "conv")
STD_EPS = 1e-6  # beside the standard deviation of the features


def normalize_features(features: torch.Tensor, mean_weight: float) -> torch.Tensor:
    """(f - a mean f) / (std f + 1e-6), mean and unbiased std of each channel over the tokens of an image.

    Args:
        features: [B, N, F], N at least 2.
        mean_weight: The weight a of the mean, in [0, 1].
    """
    mean, std = features.mean(1, keepdim=True), features.std(1, keepdim=True)
    return (features - mean_weight * mean) / (std + STD_EPS)


def alignment_loss(projected: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Minus the mean over the tokens of the cosine of the angle to the features: [B, N, F] each -> [B], in [-1, 1]."""
    cosine = (F.normalize(projected, dim=-1) * F.normalize(features, dim=-1)).sum(-1)  # [B, N]
    return -cosine.mean(1)


class AlignmentProjector(nn.Module):
    """From the states of the tokens to features, [B, N, D] -> [B, N, F].

    Args:
        dim: The width D.
        num_channels: The channels F of the features.
        kind: "mlp", three layers with SiLU between (REPA), or "conv", a convolution of 3x3 tokens (iREPA).
        hidden_dim: The width of the MLP's hidden layers.
    """

    def __init__(self, dim: int, num_channels: int, kind: str = "mlp", hidden_dim: int = 2048):
        super().__init__()
        self.kind = kind
        if kind == "conv":
            self.layers = nn.Conv2d(dim, num_channels, kernel_size=3, padding=1)
        else:
            self.layers = nn.Sequential(
                nn.Linear(dim, hidden_dim),
                nn.SiLU(),
                nn.Linear(hidden_dim, hidden_dim),
                nn.SiLU(),
                nn.Linear(hidden_dim, num_channels),
            )

    def forward(self, tokens: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        if self.kind == "mlp":
            return self.layers(tokens)
        grid = tokens.transpose(1, 2).unflatten(2, grid_size)  # [B, D, height, width]
        return self.layers(grid).flatten(2).transpose(1, 2)
