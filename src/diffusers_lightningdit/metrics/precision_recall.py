# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, section 2).

The manifold of a set of features is estimated by balls around them, each reaching to the k-th nearest neighbour in the
set (equation 1). Precision is the fraction of generated images on the manifold of the real ones, recall the fraction of
real images on that of the generated ones (equation 2).

Letters in the shape comments: B features of a block, N and M images of a set, D features of an image.
"""

from collections.abc import Iterator

import torch

from .finite import check_finite

BLOCK_SIZE = 2048  # features compared with as many others at a time
# The rounding error of squared distances, relative to the squared norms. A feature on the edge of a ball counts as
# inside within this error, so that ties and copies do.
ROUNDING = 1e-12


def precision_and_recall(generated: torch.Tensor, real: torch.Tensor, num_neighbors: int = 3) -> tuple[float, float]:
    """Compute precision and recall, with distances in float64 of one pair of blocks at a time.

    Args:
        generated: Features of generated images, [N, D], on the device that computes.
        real: Features of real images, [M, D], on the same device.
        num_neighbors: The number k of neighbours.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or a set has no more than k images.
    """
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        shapes = f"{list(generated.shape)} and {list(real.shape)}"
        raise ValueError(f"`generated` and `real` have shapes {shapes}; required: [N, D] and [M, D].")
    for name, features in (("generated", generated), ("real", real)):
        if len(features) <= num_neighbors:
            raise ValueError(
                f"`{name}` holds {len(features)} images; required: more than the {num_neighbors} neighbours of "
                "`num_neighbors`."
            )
    check_finite(generated=generated, real=real)
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` is {num_neighbors}; required: at least 1.")
    centre = real.double().mean(0)  # the closer features are to 0, the less cancels in distances
    precision = _fraction_inside(generated, real, _squared_radii(real, num_neighbors, centre), centre)
    recall = _fraction_inside(real, generated, _squared_radii(generated, num_neighbors, centre), centre)
    return precision, recall


def _squared_distances(
    rows: torch.Tensor, columns: torch.Tensor, centre: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """Yield (rows, columns, squared distances [B, B], their rounding errors [B, B]) for each pair of blocks."""
    for start in range(0, len(rows), BLOCK_SIZE):
        x = rows[start : start + BLOCK_SIZE].double() - centre
        for other in range(0, len(columns), BLOCK_SIZE):
            y = columns[other : other + BLOCK_SIZE].double() - centre
            lengths = x.square().sum(1)[:, None] + y.square().sum(1)
            distances = (lengths - 2 * x @ y.T).clamp(min=0)
            yield slice(start, start + len(x)), slice(other, other + len(y)), distances, ROUNDING * lengths


def _squared_radii(features: torch.Tensor, num_neighbors: int, centre: torch.Tensor) -> torch.Tensor:
    """Return the squared distance [N] of each feature to its k-th nearest neighbour in the set, itself left out."""
    nearest = torch.full((len(features), num_neighbors), torch.inf, dtype=torch.float64, device=features.device)
    for rows, columns, distances, _ in _squared_distances(features, features, centre):
        if rows == columns:
            distances.fill_diagonal_(torch.inf)
        nearest[rows] = torch.cat([nearest[rows], distances], 1).topk(num_neighbors, largest=False).values
    return nearest[:, -1]


def _fraction_inside(
    features: torch.Tensor, centres: torch.Tensor, squared_radii: torch.Tensor, centre: torch.Tensor
) -> float:
    """Return the fraction of features [N, D] inside at least one of the balls around `centres` [M, D]."""
    is_inside = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for rows, columns, distances, rounding in _squared_distances(features, centres, centre):
        is_inside[rows] |= (distances <= squared_radii[columns] + rounding).any(1)
    return is_inside.double().mean().item()
