# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Alignment of the transformer's tokens with those of a vision foundation model, while it trains.

REPA (arXiv 2410.06940): the state of the tokens after an early block, through a small projector, is drawn to the
directions of the patch tokens of the clean image. iREPA (arXiv 2512.10794): the projector is a convolution, and a part
of their mean over the image is taken from the features, which leaves their differences in space.

Letters in the shape comments: B batch, N tokens (row-major), D width of the transformer, F channels of a feature.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ...models import LightningDiTTransformer2DModel
from ...networks.foundation_model import IMAGE_NORMALIZATIONS, FoundationModel
from ...pixels import as_rgb, height_and_width
from ...settings import check_settings, setting

PROJECTOR = "projector"  # its name in checkpoints
PROJECTORS = ("mlp", "linear", "conv")
STD_EPS = 1e-6  # beside the standard deviation of the features


@dataclass(kw_only=True)
class AlignmentSettings:
    """The keys of the setting `alignment`.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    model: str | None = setting(
        None,
        "Folder or Hub id of the vision foundation model of images; null for latents, whose features cache_latents.py "
        "wrote with them.",
        group="Model",
    )
    foundation_normalization: str = setting(
        "model",
        "The input of the foundation model: by its own preprocessor_config.json, or pixels in [-1, 1].",
        choices=IMAGE_NORMALIZATIONS,
    )
    layer: int = setting(8, "The block, counted from 1, whose tokens are aligned.", group="Loss", minimum=1)
    weight: float = setting(0.5, "The weight of the loss.", above=0)
    projector: str = setting("mlp", "The projector: mlp (REPA), conv (iREPA), or linear.", choices=PROJECTORS)
    hidden_dim: int = setting(2048, "The width of the MLP.", minimum=1)
    feature_mean_weight: float | None = setting(
        None,
        "The part of their mean over an image that is taken from the features, before their standard deviation becomes "
        "1 (iREPA: 1); null: features as they are (REPA).",
        minimum=0,
    )
    until_step: int | None = setting(
        None, "Optimiser steps after which there is no alignment any more; null: never.", minimum=1
    )

    def __post_init__(self):
        check_settings(self)
        if self.feature_mean_weight is not None and self.feature_mean_weight > 1:
            raise ValueError(f"`feature_mean_weight` is {self.feature_mean_weight}; required: at most 1.")

    def is_active(self, step: int) -> bool:
        """Whether the step after `step` steps aligns."""
        return self.until_step is None or step < self.until_step


# ---------------------------------------------------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------------------------------------------------


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
        kind: "mlp", three layers with SiLU between (REPA), "conv", a convolution of 3x3 tokens (iREPA), or "linear".
        hidden_dim: The width of the MLP's hidden layers.
    """

    def __init__(self, dim: int, num_channels: int, kind: str = "mlp", hidden_dim: int = 2048):
        super().__init__()
        self.kind = kind
        if kind == "conv":
            self.layers = nn.Conv2d(dim, num_channels, kernel_size=3, padding=1)
        elif kind == "linear":
            self.layers = nn.Linear(dim, num_channels)
        else:
            self.layers = nn.Sequential(
                nn.Linear(dim, hidden_dim),
                nn.SiLU(),
                nn.Linear(hidden_dim, hidden_dim),
                nn.SiLU(),
                nn.Linear(hidden_dim, num_channels),
            )

    def forward(self, tokens: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """Project tokens [B, N, D] of a grid (h, w) to [B, N, F]."""
        if self.kind != "conv":
            return self.layers(tokens)
        grid = tokens.transpose(1, 2).unflatten(2, grid_size)  # [B, D, height, width]
        return self.layers(grid).flatten(2).transpose(1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# In training
# ---------------------------------------------------------------------------------------------------------------------


class Alignment:
    """The alignment of a transformer that trains.

    Args:
        settings: The settings.
        transformer: The transformer, whose tokens are remembered whenever it is called.
        num_channels: The channels F of cached features; None for those of `foundation_model`.
        foundation_model: The foundation model, on the device of the run; None for cached features.

    Attributes:
        projector: The projector, which trains with the transformer.

    Raises:
        ValueError: if the transformer has no such layer.
    """

    def __init__(
        self,
        settings: AlignmentSettings,
        transformer: LightningDiTTransformer2DModel,
        num_channels: int | None = None,
        foundation_model: FoundationModel | None = None,
    ):
        num_layers = len(transformer.transformer_blocks)
        if settings.layer > num_layers:
            raise ValueError(
                f"`alignment.layer` is {settings.layer}; required: at most the transformer's {num_layers} blocks."
            )
        self.settings = settings
        self.foundation_model = foundation_model
        height, width = height_and_width(transformer.config.sample_size)
        self.grid_size = (height // transformer.config.patch_size, width // transformer.config.patch_size)
        self._tokens: torch.Tensor | None = None
        transformer.transformer_blocks[settings.layer - 1].register_forward_hook(self._remember)
        channels = num_channels if foundation_model is None else foundation_model.num_channels
        self.projector_arguments = {
            "dim": transformer.inner_dim,
            "num_channels": channels,
            "kind": settings.projector,
            "hidden_dim": settings.hidden_dim,
        }
        self.projector = AlignmentProjector(**self.projector_arguments)

    def _remember(self, module: nn.Module, arguments: tuple, output: torch.Tensor) -> None:
        self._tokens = output

    def loss(self, projector: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The mean loss of a batch that the transformer was just called with; `projector` may be wrapped."""
        tokens, self._tokens = self._tokens, None
        features = batch.get("features")
        if features is None:
            features = self.foundation_model(as_rgb(batch["pixel_values"]), self.grid_size)
        features = features.float().flatten(2).transpose(1, 2)  # [B, N, F]
        if self.settings.feature_mean_weight is not None:
            features = normalize_features(features, self.settings.feature_mean_weight)
        return alignment_loss(projector(tokens, self.grid_size).float(), features).mean()
