# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""How much latents resemble the features of a foundation model, without a projection that has to be learnt.

Letters in the shape comments: B images, C latent channels, F feature channels, (h, w) grid, N = h w positions.
"""

import torch
import torch.nn.functional as F


def linear_cka(latents: torch.Tensor, features: torch.Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, arXiv 1905.00414, eq. 3 with linear kernels).

    |Y^T X|^2 / (|X^T X| |Y^T Y|), Frobenius norms, X and Y the latents and features of all positions of all images as
    rows, less their means. Rotating or scaling either changes nothing.

    Args:
        latents: [B, C, h, w].
        features: [B, F, h, w].

    Returns:
        In [0, 1]; 1 if one is a rotated and scaled copy of the other. Two random sets of n rows have about
        sqrt(C F) / n where that is small: take many more rows than channels.

    Raises:
        ValueError: for grids or batches that differ, or if either is the same at all positions.
    """
    _check(latents, features)
    x, y = (grid.double().movedim(1, -1).flatten(0, -2) for grid in (latents, features))  # [B N, C], [B N, F]
    x, y = x - x.mean(0), y - y.mean(0)
    norms = torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)
    if norms == 0:
        raise ValueError("latents or features are the same at all positions; required: values that vary.")
    return ((y.T @ x).square().sum() / norms).item()


def distance_matrix_gap(latents: torch.Tensor, features: torch.Tensor) -> float:
    """Mean difference of the cosines between positions (VA-VAE, arXiv 2501.01423, eq. 6, with margin 0).

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
    z, a = (F.normalize(grid.double().flatten(2), dim=1) for grid in (latents, features))  # [B, C, N], [B, F, N]
    return (z.transpose(1, 2) @ z - a.transpose(1, 2) @ a).abs().mean().item()


def _check(latents: torch.Tensor, features: torch.Tensor) -> None:
    fits = latents.ndim == features.ndim == 4 and latents.shape[0] == features.shape[0]
    if not (fits and latents.shape[2:] == features.shape[2:]):
        raise ValueError(
            f"latents and features have shapes {list(latents.shape)} and {list(features.shape)}; required: "
            "[B, C, h, w] and [B, F, h, w]."
        )
