# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The networks of the first stage, each as one forward call, which Accelerate can wrap for several processes."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from .networks import VAVAEParts


class AlignedAutoencoder(nn.Module):
    """The autoencoder, and the projection between its latents and the features of the foundation model."""

    def __init__(self, parts: VAVAEParts):
        super().__init__()
        self.vae = parts.vae
        self.projection = parts.projection
        self.logvar = parts.logvar

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor, features: torch.Tensor | None) -> tuple:
        """(reconstructions, mean, logvar, features and latents as the projection makes them comparable, or None)."""
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        aligned = (None, None) if features is None else self.projection(features, latents)
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar, *aligned


class Judgement(nn.Module):
    """The discriminator on images, then on their reconstructions: data-parallel training has one call a step."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, pixels: torch.Tensor, reconstructions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.discriminator(pixels), self.discriminator(reconstructions)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the weights; those of the input pass through."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)
