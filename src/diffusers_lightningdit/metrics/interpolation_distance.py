# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The interpolation distance (iFID, arXiv 2603.05630): the Fréchet distance of images decoded between latents.

Each latent is interpolated half way to its nearest neighbour, and the results are decoded. The Fréchet distance of
these images from the real ones correlates with the quality of generated images, which that of reconstructions does not.

This implementation takes the one nearest neighbour by angle and interpolates spherically. The authors' program draws
one among the ten nearest, and searches the training set for neighbours of validation images. Numbers are comparable
only for the same choice of neighbours, the same features and the same number of images.

Letters in the shape comments: N latents, B latents of a batch, D features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .finite import check_finite
from .frechet import FeatureStatistics


def nearest_by_angle(latents: torch.Tensor, batch_size: int = 1024) -> torch.Tensor:
    """Find for each latent the other latent at the smallest angle.

    Args:
        latents: Latents [N, ...], at least two.
        batch_size: The number of latents that are compared at a time.

    Returns:
        Indices of the neighbours, int64 [N].

    Raises:
        ValueError: If there are fewer than two latents, or a value is not finite.
    """
    if len(latents) < 2:
        raise ValueError(f"`latents` has shape {list(latents.shape)}; required: at least 2 latents.")
    check_finite(latents=latents)
    directions = F.normalize(latents.float().flatten(1), dim=1)
    nearest = []
    for start in range(0, len(latents), batch_size):
        cosines = directions[start : start + batch_size] @ directions.T
        cosines.diagonal(start).fill_(-torch.inf)
        nearest.append(cosines.argmax(1))
    return torch.cat(nearest)


def spherical_interpolation(first: torch.Tensor, second: torch.Tensor, weight: float = 0.5) -> torch.Tensor:
    """Interpolate (sin((1 - w) a) x + sin(w a) y) / sin(a), where a is the angle between x and y (Shoemake 1985).

    The interpolation is linear where the angle is so close to 0 or 180 degrees that the quotient is not defined. The
    result has the memory layout of x, which the rounding of convolutions depends on: with w = 0 it is decoded to the
    same bits as x.

    Args:
        first: The latents x, [B, ...].
        second: The latents y, [B, ...].
        weight: The weight w of y, in [0, 1].

    Returns:
        Latents [B, ...] of the type of x.
    """
    x, y = first.double().flatten(1), second.double().flatten(1)
    angle = F.cosine_similarity(x, y, dim=1).clamp(-1, 1).arccos()[:, None]
    is_linear = angle.sin() < 1e-6
    sine = torch.where(is_linear, 1.0, angle.sin())
    weight_x = torch.where(is_linear, 1 - weight, ((1 - weight) * angle).sin() / sine)
    weight_y = torch.where(is_linear, weight, (weight * angle).sin() / sine)
    return torch.empty_like(first).copy_((weight_x * x + weight_y * y).view_as(first))


@torch.no_grad()
def interpolation_distance(
    latents: torch.Tensor,
    image_features: torch.Tensor,
    features_of: Callable[[torch.Tensor], torch.Tensor],
    weight: float = 0.5,
    batch_size: int = 32,
) -> float:
    """Compute the Fréchet distance between real images and images decoded between each latent and its neighbour.

    With `weight` 0 this is the distance of the reconstructions (rFID, with Inception's features).

    Args:
        latents: Latents of the images, [N, ...].
        image_features: Features of the images, [N, D].
        features_of: A function that decodes latents [B, ...] and returns the features [B, D] of the decoded images.
        weight: The weight of the neighbour, in [0, 1].
        batch_size: The number of latents that are decoded at a time.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: For a weight out of range, and as `nearest_by_angle` and `FeatureStatistics`.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` is {weight}; required: a number from 0 to 1.")
    neighbours = nearest_by_angle(latents)
    decoded = FeatureStatistics(image_features.shape[1])
    for batch, indices in zip(latents.split(batch_size), neighbours.split(batch_size), strict=True):
        decoded.update(features_of(spherical_interpolation(batch, latents[indices], weight)))
    return FeatureStatistics.of(image_features).distance_to(decoded)
