# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Statistics of the channels of latents, and how many channels are used effectively.

Letters in the shape comments: B images, C latent channels, (h, w) grid.
"""

import torch

from .finite import check_finite


def channel_statistics(latents: torch.Tensor) -> dict[str, list[float] | float]:
    """Compute statistics of each latent channel over all images and positions.

    Args:
        latents: Latents [B, C, h, w], with at least two values in each channel.

    Returns:
        `mean`, `std` (unbiased), `smallest` and `largest`: lists of C numbers.
        `effective_channels`: the participation ratio (sum l)^2 / sum l^2 of the eigenvalues l of the channels'
        covariance, in [1, C]. It is C if all channels have the same variance and are uncorrelated, 1 if all channels
        are multiples of one, and 0 if nothing varies.

    Raises:
        ValueError: For another shape, fewer than two values in a channel, or a value that is not finite.
    """
    if latents.ndim != 4 or latents.numel() < 2 * latents.shape[1]:
        raise ValueError(f"`latents` has shape {list(latents.shape)}; required: [B, C, h, w] of at least 2 positions.")
    check_finite(latents=latents)
    values = latents.detach().double().transpose(0, 1).flatten(1)  # [C, B h w]
    covariance = values.cov().reshape(len(values), len(values))
    sum_of_squares = covariance.square().sum()  # equals the sum of the squared eigenvalues
    return {
        "mean": values.mean(1).tolist(),
        "std": values.std(1).tolist(),
        "smallest": values.amin(1).tolist(),
        "largest": values.amax(1).tolist(),
        "effective_channels": (covariance.trace().square() / sum_of_squares).item() if sum_of_squares > 0 else 0.0,
    }
