# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What lies between the latents: the interpolation distance (iFID, arXiv 2603.05630).

Each latent is interpolated with its nearest neighbour, half way; the Fréchet distance of what the decoder makes of
that from the images correlates with the quality of generated images, which that of reconstructions does not.

Here: one nearest neighbour, by the angle, and spherical interpolation. The authors' program draws one among the ten
nearest, and searches the training set for neighbours of validation images: their figures are not comparable with those
of another choice, of another set of features, or of another number of images.

Letters in the shape comments: B latents, M candidates, D features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .frechet import FeatureStatistics


def nearest_by_angle(
    latents: torch.Tensor, candidates: torch.Tensor | None = None, batch_size: int = 1024
) -> torch.Tensor:
    """Of each latent, the index of the candidate at the smallest angle.

    Args:
        latents: [B, ...].
        candidates: [M, ...], of other images; None: the other latents.
        batch_size: latents compared at a time.

    Returns:
        int64 [B].

    Raises:
        ValueError: for shapes that do not fit, or if a latent has no other.
    """
    others = latents if candidates is None else candidates
    if others.shape[1:] != latents.shape[1:] or len(others) < (2 if candidates is None else 1):
        raise ValueError(
            f"latents and candidates have shapes {list(latents.shape)} and {list(others.shape)}; required: the same "
            "but for the first number, and at least one candidate that is not the latent itself."
        )
    directions = F.normalize(others.float().flatten(1), dim=1)
    nearest = []
    for start in range(0, len(latents), batch_size):
        cosines = F.normalize(latents[start : start + batch_size].float().flatten(1), dim=1) @ directions.T
        if candidates is None:
            cosines.diagonal(start).fill_(-torch.inf)
        nearest.append(cosines.argmax(1))
    return torch.cat(nearest)


def spherical_interpolation(first: torch.Tensor, second: torch.Tensor, weight: float = 0.5) -> torch.Tensor:
    """(sin((1 - w) a) x + sin(w a) y) / sin(a), a the angle between x and y (Shoemake 1985): [B, ...] each.

    Linear where the angle is so small, or so near to a half turn, that the quotient is not defined. The result lies in
    memory as x does, by which convolutions round: with w = 0 it is decoded as x is, to the last bit.
    """
    x, y = first.double().flatten(1), second.double().flatten(1)
    angle = F.cosine_similarity(x, y, dim=1).clamp(-1, 1).arccos()[:, None]
    is_straight = angle.sin() < 1e-6
    sine = torch.where(is_straight, 1.0, angle.sin())
    part_x = torch.where(is_straight, 1 - weight, ((1 - weight) * angle).sin() / sine)
    part_y = torch.where(is_straight, weight, (weight * angle).sin() / sine)
    return torch.empty_like(first).copy_((part_x * x + part_y * y).view_as(first))


@torch.no_grad()
def interpolation_distance(
    latents: torch.Tensor,
    image_features: torch.Tensor,
    features_of: Callable[[torch.Tensor], torch.Tensor],
    candidates: torch.Tensor | None = None,
    weight: float = 0.5,
    batch_size: int = 32,
) -> float:
    """Fréchet distance of the images from what is decoded between each latent and its nearest neighbour, at least 0.

    With `weight` 0 it is that of the reconstructions (rFID, in features of Inception).

    Args:
        latents: of the images, [B, ...].
        image_features: of the images, [B, D].
        features_of: latents [b, ...] -> features [b, D] of the images that are decoded from them.
        candidates: latents of other images, [M, ...], to find neighbours in; None: the other latents.
        weight: of the neighbour, in [0, 1].
        batch_size: latents decoded at a time.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"`weight` is {weight}; required: a number from 0 to 1.")
    others = latents if candidates is None else candidates
    neighbours = nearest_by_angle(latents, candidates)
    between = FeatureStatistics(image_features.shape[1])
    for part, indices in zip(latents.split(batch_size), neighbours.split(batch_size), strict=True):
        between.update(features_of(spherical_interpolation(part, others[indices], weight)))
    return FeatureStatistics.of(image_features).distance_to(between)
