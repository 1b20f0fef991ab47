# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""How evenly points fill the plane (VA-VAE, arXiv 2501.01423: even latents are learnt more easily).

The paper measures it on a t-SNE of the latents. The plane of the first two principal components, here, costs next to
nothing and is the same at each call, but flattens more: compare numbers only within one way of projecting.

Letters in the shape comments: N points.
"""

import math

import torch


def uniformity(points: torch.Tensor) -> dict[str, float]:
    """Four measures of the density r_i at the points themselves, estimated with Gaussian kernels.

    The bandwidth is Scott's, the kernels have the covariance of all points. p_i = r_i / sum r.

    Args:
        points: [N, 2], not all on a line.

    Returns:
        `density_std`: population standard deviation of r, at least 0; it depends on the scale of the points;
        `density_cv`: the same, divided by the mean of r;
        `normalized_entropy`: -sum p log2(p + 1e-10) / log2(N), at most 1, which means even;
        `gini_coefficient`: sum_i (2 i - N - 1) r_(i) / (N sum r), r rising, in [0, 1], where 0 means even.

    Raises:
        ValueError, ImportError: as `point_density`.
    """
    density = point_density(points)
    num_points = len(points)
    part = density / density.sum()
    ranks = torch.arange(1, num_points + 1, dtype=torch.float64)
    spread = ((2 * ranks - num_points - 1) * density.sort().values).sum()
    std = density.std(correction=0)
    return {
        "density_std": std.item(),
        "density_cv": (std / density.mean()).item(),
        "normalized_entropy": -(part * (part + 1e-10).log2()).sum().item() / math.log2(num_points),
        "gini_coefficient": (spread / (num_points * density.sum())).item(),
    }


def point_density(points: torch.Tensor) -> torch.Tensor:
    """Density at each of the points, [N, 2] -> float64 [N]; by Gaussian kernels, as `uniformity` says.

    Raises:
        ValueError: for another shape, fewer than 3 points, values that are not finite, or points on a line.
        ImportError: without scipy.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError(f"`points` has shape {list(points.shape)}; required: [N, 2], N at least 3.")
    if not points.isfinite().all():
        raise ValueError("`points` holds NaN or infinity; required: finite values.")
    try:
        from scipy.stats import gaussian_kde
    except ImportError as error:
        raise ImportError('uniformity needs scipy: pip install "diffusers-lightningdit[evaluation]".') from error
    columns = points.detach().double().cpu().numpy().T  # [2, N]
    try:
        return torch.from_numpy(gaussian_kde(columns)(columns))
    except ValueError as error:  # numpy's LinAlgError
        raise ValueError("`points` lie on a line; required: points that spread over the plane.") from error


def principal_plane(latents: torch.Tensor) -> torch.Tensor:
    """Coordinates of latents in the plane of their first two principal components: [N, ...] -> float64 [N, 2].

    Of the two directions of an axis, the one in which the largest coordinate is positive.

    Raises:
        ValueError: for fewer than 3 latents, or of fewer than 2 values each.
    """
    values = latents.detach().double().flatten(1)
    if min(len(values) - 1, values.shape[1]) < 2:
        raise ValueError(f"`latents` has shape {list(latents.shape)}; required: 3 latents of 2 values, at least.")
    left, sizes, _ = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    plane = left[:, :2] * sizes[:2]
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    return plane * torch.where(largest < 0, -1.0, 1.0)
