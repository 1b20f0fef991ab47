# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Uniformity of latents: two projections to the plane (principal components, t-SNE) and the evenness of the points.

VA-VAE (arXiv 2501.01423) measures uniformity on a t-SNE of the latents, since evenly distributed latents are easier to
learn. The plane of the first two principal components is much cheaper, but flattens more: compare numbers
only within one projection.

Letters in the shape comments: N latents or points, D values of a latent.
"""

import importlib.util
import math

import numpy as np
import torch

from .finite import check_finite

# The total variance of latents that scikit-learn's t-SNE computes with in float32: it crashes on equal latents.
SMALLEST_VARIANCE, LARGEST_VARIANCE = 1e-30, 1e30

# ---------------------------------------------------------------------------------------------------------------------
# Projections
# ---------------------------------------------------------------------------------------------------------------------


def principal_plane(latents: torch.Tensor) -> torch.Tensor:
    """Project latents to their first two principal components: [N, ...] -> float64 [N, 2].

    The components come from the smaller of the two Gram matrices, X X^T [N, N] or X^T X [D, D] of the centred latents
    X, since a singular value decomposition of X would compute min(N, D) components for the sake of two. The sign of
    each component is chosen so that its largest coordinate in absolute value is positive.

    Raises:
        ValueError: If there are fewer than 3 latents, fewer than 2 values in each, or a value is not finite.
    """
    values = latents.detach().double().flatten(1)
    num_latents, num_values = values.shape
    if min(num_latents - 1, num_values) < 2:
        raise ValueError(f"`latents` has shape {list(latents.shape)}; required: 3 latents of 2 values, at least.")
    check_finite(latents=latents)
    values = values - values.mean(0)
    if num_latents <= num_values:
        eigenvalues, vectors = torch.linalg.eigh(values @ values.T)  # in ascending order
        plane = vectors[:, -2:] * eigenvalues[-2:].clamp(min=0).sqrt()
    else:
        plane = values @ torch.linalg.eigh(values.T @ values).eigenvectors[:, -2:]
    plane = plane.flip(1)
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    return plane * torch.where(largest < 0, -1.0, 1.0)


def check_scikit_learn() -> None:
    """Raise ImportError, in one line, if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError('a t-SNE needs scikit-learn: pip install "diffusers-lightningdit[evaluation]".')


def tsne_plane(latents: torch.Tensor, perplexity: float = 30.0, seed: int = 0, num_threads: int = 1) -> torch.Tensor:
    """Project latents by t-SNE (van der Maaten, Hinton 2008), computed by scikit-learn: [N, ...] -> float64 [N, 2].

    The same arguments give the same points.

    Args:
        latents: Latents [N, ...], flattened for each.
        perplexity: The effective number of neighbours, above 0 and below N.
        seed: The seed of scikit-learn's solver; the points start from the principal components.
        num_threads: The number of threads. Another number may change the points.

    Raises:
        ValueError: If the perplexity is out of range, a value is not finite, or the latents are all the same.
        ImportError: If scikit-learn is not installed.
    """
    if not 0 < perplexity < len(latents):
        raise ValueError(f"`perplexity` is {perplexity:g}; required: above 0 and below the {len(latents)} latents.")
    check_finite(latents=latents)
    check_scikit_learn()
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    values = latents.detach().float().cpu().flatten(1).numpy()
    variance = values.astype(np.float64).var(0).sum()
    if not SMALLEST_VARIANCE < variance < LARGEST_VARIANCE:
        raise ValueError(
            f"`latents` have the variance {variance:.3g}; required: {SMALLEST_VARIANCE:g} to {LARGEST_VARIANCE:g}, "
            "of an autoencoder that has not collapsed."
        )
    with threadpool_limits(num_threads):
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)
    return torch.from_numpy(plane).double()


# ---------------------------------------------------------------------------------------------------------------------
# Evenness
# ---------------------------------------------------------------------------------------------------------------------


def uniformity(points: torch.Tensor) -> dict[str, float]:
    """Compute four measures of how evenly points are distributed, from their kernel density estimate.

    Below, r_i is the density at point i (see `point_density`) and p_i = r_i / sum r.

    Args:
        points: Points [N, 2], not all on a line.

    Returns:
        `density_std`: the population standard deviation of r, at least 0. It depends on the scale of the points.
        `density_cv`: the coefficient of variation, that is, the same divided by the mean of r.
        `normalized_entropy`: -sum p log2(p + 1e-10) / log2(N), at most 1, which means even.
        `gini_coefficient`: sum_i (2 i - N - 1) r_(i) / (N sum r) with r in ascending order, in [0, 1]; 0 means even.

    Raises:
        ValueError: As `point_density`.
        ImportError: If scipy is not installed.
    """
    density = point_density(points)
    num_points = len(points)
    probability = density / density.sum()
    ranks = torch.arange(1, num_points + 1, dtype=torch.float64)
    spread = ((2 * ranks - num_points - 1) * density.sort().values).sum()
    std = density.std(correction=0)
    return {
        "density_std": std.item(),
        "density_cv": (std / density.mean()).item(),
        "normalized_entropy": -(probability * (probability + 1e-10).log2()).sum().item() / math.log2(num_points),
        "gini_coefficient": (spread / (num_points * density.sum())).item(),
    }


def point_density(points: torch.Tensor) -> torch.Tensor:
    """Estimate the density at each of the points with Gaussian kernels: [N, 2] -> float64 [N].

    The kernels have the covariance of all points and the bandwidth of Scott's rule (scipy's `gaussian_kde`).

    Raises:
        ValueError: For another shape, fewer than 3 points, values that are not finite, or points on a line.
        ImportError: If scipy is not installed.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError(f"`points` has shape {list(points.shape)}; required: [N, 2], N at least 3.")
    check_finite(points=points)
    try:
        from scipy.stats import gaussian_kde
    except ImportError as error:
        raise ImportError('uniformity needs scipy: pip install "diffusers-lightningdit[evaluation]".') from error
    columns = points.detach().double().cpu().numpy().T  # [2, N]
    try:
        return torch.from_numpy(gaussian_kde(columns)(columns))
    except ValueError as error:  # includes numpy's LinAlgError
        raise ValueError("`points` lie on a line; required: points that spread over the plane.") from error
