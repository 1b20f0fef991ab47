# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Cheap proxies of generation quality: how well the latents of an autoencoder are organised, before any transformer.

Letters in the shape comments: B images, C latent channels, F feature channels, (h, w) grid.
"""

import torch

from .alignment import distance_matrix_gap, linear_cka
from .linear_classifier import can_be_split, linear_probe_accuracy
from .uniformity import principal_plane, uniformity


def channel_statistics(latents: torch.Tensor) -> dict[str, list[float] | float]:
    """What each channel of the latents holds, over images and positions.

    Args:
        latents: [B, C, h, w], at least two values of a channel.

    Returns:
        `mean`, `std` (unbiased), `smallest`, `largest`: lists of C numbers;
        `effective_channels`: (sum l)^2 / sum l^2 of the eigenvalues l of the channels' covariance (the participation
        ratio), in [1, C]: C if all channels vary alike and independently, 1 if all follow one. 0 if nothing varies.
    """
    if latents.ndim != 4 or latents.numel() < 2 * latents.shape[1]:
        raise ValueError(f"`latents` has shape {list(latents.shape)}; required: [B, C, h, w] of at least 2 positions.")
    values = latents.detach().double().transpose(0, 1).flatten(1)  # [C, B h w]
    covariance = values.cov().reshape(len(values), len(values))
    squares = covariance.square().sum()  # the sum of the squared eigenvalues
    return {
        "mean": values.mean(1).tolist(),
        "std": values.std(1).tolist(),
        "smallest": values.amin(1).tolist(),
        "largest": values.amax(1).tolist(),
        "effective_channels": (covariance.trace().square() / squares).item() if squares > 0 else 0.0,
    }


def latent_quality(
    latents: torch.Tensor, labels: torch.Tensor | None = None, features: torch.Tensor | None = None
) -> dict[str, float]:
    """All proxies that can be had from what is given, by the names they are logged under.

    Args:
        latents: [B, C, h, w], raw or normalised.
        labels: int [B], for `linear_probe_accuracy`, which is left out where a class has too few images to hold any
            out.
        features: of the foundation model, [B, F, h, w], for `linear_cka` and `distance_matrix_gap`.

    Returns:
        `effective_channels`, the four numbers of `uniformity` on the plane of the first two principal components, and
        those of the arguments above.

    Raises:
        ValueError: as the single measures.
        ImportError: without scipy, or scikit-learn if there are labels.
    """
    measures = {"effective_channels": channel_statistics(latents)["effective_channels"]}
    measures |= uniformity(principal_plane(latents))
    if labels is not None and can_be_split(labels):
        measures["linear_probe_accuracy"] = linear_probe_accuracy(latents, labels)
    if features is not None:
        measures["linear_cka"] = linear_cka(latents, features)
        measures["distance_matrix_gap"] = distance_matrix_gap(latents, features)
    return measures
