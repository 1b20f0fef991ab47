# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""How much latents resemble the features of a foundation model, without a projection that has to be learnt.

Letters in the shape comments: B images, C latent channels, F feature channels, (h, w) grid, N = h w positions.
"""

import torch
import torch.nn.functional as F

from .frechet import FeatureStatistics

BATCH_SIZE = 64  # images taken in float64 at a time


def linear_cka(latents: torch.Tensor, features: torch.Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414, CKA with linear kernels).

    |Y^T X|^2 / (|X^T X| |Y^T Y|), Frobenius norms, X and Y the latents and features of all positions of all images as
    rows, less their means. Rotating or scaling either changes nothing.

    Args:
        latents: [B, C, h, w].
        features: [B, F, h, w].

    Returns:
        In [0, 1]; 1 if one is a rotated and scaled copy of the other. Two random sets of n rows have about
        sqrt(C F) / n where that is small: take many more rows than channels.

    Raises:
        ValueError: for grids or batches that differ, values that are not finite, or if either is the same at all
            positions.
    """
    _check(latents, features)
    num_latents, num_features = latents.shape[1], features.shape[1]
    both = FeatureStatistics(num_latents + num_features)
    for grids in zip(latents.split(BATCH_SIZE), features.split(BATCH_SIZE), strict=True):
        rows = [grid.detach().double().cpu().movedim(1, -1).flatten(0, -2) for grid in grids]  # [B N, C], [B N, F]
        both.update(torch.cat(rows, 1))
    of_latents, of_both = both.scatter[:num_latents].split([num_latents, num_features], dim=1)
    of_features = both.scatter[num_latents:, num_latents:]
    norms = torch.linalg.norm(of_latents) * torch.linalg.norm(of_features)
    if norms == 0:
        raise ValueError("latents or features are the same at all positions; required: values that vary.")
    return (of_both.square().sum() / norms).item()


def distance_matrix_gap(latents: torch.Tensor, features: torch.Tensor) -> float:
    """Mean difference of the cosines between positions (VA-VAE, arXiv 2501.01423, section 3: the distance-matrix part
    of the VF loss, with margin 0).

    For each image, |cos(z_i, z_j) - cos(a_i, a_j)|, averaged over all pairs of positions i, j and over the images.

    Args:
        latents: z, [B, C, h, w]; of the VF loss, where it is the features that are projected, or latents before.
        features: a, [B, F, h, w].

    Returns:
        In [0, 2]; 0 if the positions of an image resemble each other alike in both.

    Raises:
        ValueError: for grids or batches that differ.
    """
    _check(latents, features)
    total = 0.0
    for grids in zip(latents.split(BATCH_SIZE), features.split(BATCH_SIZE), strict=True):
        z, a = (F.normalize(grid.detach().double().flatten(2), dim=1) for grid in grids)  # [B, C, N], [B, F, N]
        total += (z.transpose(1, 2) @ z - a.transpose(1, 2) @ a).abs().mean((1, 2)).sum().item()
    return total / len(latents)


def _check(latents: torch.Tensor, features: torch.Tensor) -> None:
    fits = latents.ndim == features.ndim == 4 and latents.shape[0] == features.shape[0]
    if not (fits and latents.shape[2:] == features.shape[2:]):
        raise ValueError(
            f"latents and features have shapes {list(latents.shape)} and {list(features.shape)}; required: "
            "[B, C, h, w] and [B, F, h, w]."
        )
