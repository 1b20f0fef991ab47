# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The reconstruction loss: absolute error and perceptual distance under a Laplace-like likelihood.

Source: LDM, arXiv 2112.10752, appendix G.

Letters in the shape comments: B images.
"""

import torch

from ..settings import check_choice

REDUCTIONS = ("sum", "mean")


def reconstruction_nll(
    pixels: torch.Tensor,
    reconstructions: torch.Tensor,
    logvar: torch.Tensor | float = 0.0,
    perceptual: torch.Tensor | None = None,
    perceptual_weight: float = 0.0,
    reduction: str = "sum",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of the images, up to a constant.

    r = |x - x'| + w p, with p broadcast over the elements of its image, and
        "sum":  nll = (1 / B) sum (r / exp(L) + L), over all elements of the batch (the original's normalisation);
        "mean": nll = mean r (the original's `pp_style`, which has no L).

    Args:
        pixels, reconstructions: The images x and x', [B, 3, height, width] in [-1, 1].
        logvar: The log-variance L, a scalar.
        perceptual: The perceptual distance p, [B, 1, 1, 1], as `LPIPS` returns it; None leaves it out.
        perceptual_weight: The weight w.
        reduction: The normalisation, "sum" or "mean".

    Returns:
        (nll, mean r), scalars.

    Raises:
        ValueError: if `reduction` is neither.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    error = (pixels - reconstructions).abs()
    if perceptual is not None:
        error = error + perceptual_weight * perceptual
    rec_loss = error.mean()
    if reduction == "mean":
        return rec_loss, rec_loss
    logvar = logvar.to(error) if isinstance(logvar, torch.Tensor) else error.new_full((), logvar)
    return (error / logvar.exp() + logvar).sum() / pixels.shape[0], rec_loss


def reconstruction_loss(pixels: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """(1 / B) sum |x - x'|, the sum over all elements of the batch: [B, 3, height, width] each -> scalar."""
    return reconstruction_nll(pixels, reconstructions)[0]
