# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Losses of the autoencoder (LDM, arXiv 2112.10752, appendix G; VA-VAE, arXiv 2501.01423, section 3).

Normalisation, as in the original: sums over pixels and latents, divided by the number of images. A weight of the KL
term therefore weighs a sum over latents against a sum over pixels, and depends on the resolution of neither mean.

Letters in the shape comments: B images, C latent channels.
"""

import torch


def reconstruction_loss(pixels: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """(1 / B) sum |x - x'|, the sum over all elements of the batch: [B, 3, height, width] each -> scalar."""
    return (pixels - reconstructions).abs().sum() / pixels.shape[0]


def kl_loss(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """(1 / B) sum 1/2 (m^2 + exp(l) - 1 - l): divergence of N(m, exp(l)) from N(0, 1).

    Args:
        mean, logvar: moments of the posterior, [B, C, height, width] each.

    Returns:
        scalar.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / mean.shape[0]
