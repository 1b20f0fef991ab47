# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Alignment: how similar latents are to the features of a foundation model, without a learnt projection.

Letters in the shape comments: B images, C latent channels, F feature channels, (h, w) grid, N = h w positions.
"""

import torch
import torch.nn.functional as F

from .finite import check_finite
from .frechet import FeatureStatistics

BATCH_SIZE = 64  # images that are converted to float64 at a time


def linear_cka(latents: torch.Tensor, features: torch.Tensor) -> float:
    """Compute the centred kernel alignment with linear kernels (CKA: Kornblith et al. 2019, arXiv 1905.00414).

    It is |Y^T X|^2 / (|X^T X| |Y^T Y|) with Frobenius norms. The rows of X and Y are the latents and the features at
    all positions of all images, with their means subtracted. Rotating or scaling either leaves it unchanged.

    Args:
        latents: Latents [B, C, h, w].
        features: Features [B, F, h, w].

    Returns:
        A number in [0, 1]; 1 if one is a rotated and scaled copy of the other. Two random sets of n rows have about
        sqrt(C F) / n where that is small, so n should be much larger than the numbers of channels.

    Raises:
        ValueError: If batch sizes or grids differ, if a value is not finite, or if either is constant over all
            positions.
    """
    _check(latents, features)
    num_latents, num_features = latents.shape[1], features.shape[1]
    statistics = FeatureStatistics(num_latents + num_features)
    for grids in zip(latents.split(BATCH_SIZE), features.split(BATCH_SIZE), strict=True):
        rows = [grid.detach().double().cpu().movedim(1, -1).flatten(0, -2) for grid in grids]  # [B N, C], [B N, F]
        statistics.update(torch.cat(rows, 1))
    within_latents, across = statistics.scatter[:num_latents].split([num_latents, num_features], dim=1)
    within_features = statistics.scatter[num_latents:, num_latents:]
    norms = torch.linalg.norm(within_latents) * torch.linalg.norm(within_features)
    if norms == 0:
        raise ValueError("latents or features are the same at all positions; required: values that vary.")
    return (across.square().sum() / norms).item()


def distance_matrix_gap(latents: torch.Tensor, features: torch.Tensor) -> float:
    """Compare the cosine similarities between positions in latents and in features (VA-VAE, arXiv 2501.01423).

    This is the marginal distance matrix similarity loss of VA-VAE's section 3 with margin 0: for each image
    |cos(z_i, z_j) - cos(f_i, f_j)|, averaged over all pairs of positions i, j and over the images.

    Args:
        latents: The latents z, [B, C, h, w].
        features: The features f, [B, F, h, w].

    Returns:
        A number in [0, 2]; 0 if the positions of each image have the same similarities in both.

    Raises:
        ValueError: If batch sizes or grids differ, or a value is not finite.
    """
    _check(latents, features)
    total = 0.0
    for grids in zip(latents.split(BATCH_SIZE), features.split(BATCH_SIZE), strict=True):
        z, f = (F.normalize(grid.detach().double().flatten(2), dim=1) for grid in grids)  # [B, C, N], [B, F, N]
        total += (z.transpose(1, 2) @ z - f.transpose(1, 2) @ f).abs().mean((1, 2)).sum().item()
    return total / len(latents)


def _check(latents: torch.Tensor, features: torch.Tensor) -> None:
    fits = latents.ndim == features.ndim == 4 and latents.shape[0] == features.shape[0]
    if not (fits and latents.shape[2:] == features.shape[2:]):
        raise ValueError(
            f"latents and features have shapes {list(latents.shape)} and {list(features.shape)}; required: "
            "[B, C, h, w] and [B, F, h, w]."
        )
    check_finite(latents=latents, features=features)
