# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The Kullback-Leibler divergence of the posterior from N(0, 1) (VAE, arXiv 1312.6114, equation 10).

LDM (arXiv 2112.10752, appendix G) gives it a small weight.

Letters in the shape comments: B images, C latent channels.
"""

import torch

from ..settings import check_choice
from .reconstruction import REDUCTIONS


def kl_loss(mean: torch.Tensor, logvar: torch.Tensor, reduction: str = "sum") -> torch.Tensor:
    """Divergence of N(m, exp(l)) from N(0, 1), up to its normalisation:

    "sum":  (1 / B) sum 1/2 (m^2 + exp(l) - 1 - l), over all elements of the batch (the original's normalisation);
    "mean": mean (m^2 + exp(l) - 1 - l), without the half (the original's `pp_style`).

    Args:
        mean, logvar: The moments m, l of the posterior, [B, C, height, width] each.
        reduction: The normalisation, "sum" or "mean".

    Returns:
        scalar.

    Raises:
        ValueError: if `reduction` is neither.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    divergence = mean.square() + logvar.exp() - 1 - logvar
    return divergence.mean() if reduction == "mean" else 0.5 * divergence.sum() / mean.shape[0]
