# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, section 2).

Around each feature of a set lies a ball that reaches to its k-th nearest neighbour in the set. Precision is the part of
the generated images inside a ball of the real ones, recall the part of the real ones inside a ball of the generated.

Letters in the shape comments: B features in a block, N and M features of a set, D their size.
"""

from collections.abc import Iterator

import torch

BLOCK_SIZE = 2048  # features compared with as many others at a time
# Of squared distances, relative to the squared lengths: a tie, and a copy, counts as inside.
ROUNDING = 1e-12


def precision_and_recall(generated: torch.Tensor, real: torch.Tensor, num_neighbors: int = 3) -> tuple[float, float]:
    """Precision and recall in [0, 1], from distances in float64 of a block at a time.

    Args:
        generated: [N, D], on the device that computes.
        real: [M, D], on the same.
        num_neighbors: k.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or a set of k features or fewer.
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
        if not features.isfinite().all():
            raise ValueError(f"`{name}` holds NaN or infinity; required: finite values.")
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` is {num_neighbors}; required: at least 1.")
    centre = real.double().mean(0)  # squared distances cancel the less, the nearer the features are to 0
    precision = _part_inside(generated, real, _squared_radii(real, num_neighbors, centre), centre)
    recall = _part_inside(real, generated, _squared_radii(generated, num_neighbors, centre), centre)
    return precision, recall


def _squared_distances(
    rows: torch.Tensor, columns: torch.Tensor, centre: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor, torch.Tensor]]:
    """(rows, columns, squared distances, what rounding may have made of 0) of each pair of blocks: [B, B]."""
    for start in range(0, len(rows), BLOCK_SIZE):
        x = rows[start : start + BLOCK_SIZE].double() - centre
        for other in range(0, len(columns), BLOCK_SIZE):
            y = columns[other : other + BLOCK_SIZE].double() - centre
            lengths = x.square().sum(1)[:, None] + y.square().sum(1)
            distances = (lengths - 2 * x @ y.T).clamp(min=0)
            yield slice(start, start + len(x)), slice(other, other + len(y)), distances, ROUNDING * lengths


def _squared_radii(features: torch.Tensor, num_neighbors: int, centre: torch.Tensor) -> torch.Tensor:
    """Squared distance of each feature to its k-th nearest in the set, itself left out: [N]."""
    nearest = torch.full((len(features), num_neighbors), torch.inf, dtype=torch.float64, device=features.device)
    for rows, columns, distances, _ in _squared_distances(features, features, centre):
        if rows == columns:
            distances.fill_diagonal_(torch.inf)
        nearest[rows] = torch.cat([nearest[rows], distances], 1).topk(num_neighbors, largest=False).values
    return nearest[:, -1]


def _part_inside(
    features: torch.Tensor, centres: torch.Tensor, squared_radii: torch.Tensor, centre: torch.Tensor
) -> float:
    """Part of the features [N, D] inside at least one of the balls around `centres` [M, D]."""
    is_inside = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    for rows, columns, distances, rounding in _squared_distances(features, centres, centre):
        is_inside[rows] |= (distances <= squared_radii[columns] + rounding).any(1)
    return is_inside.double().mean().item()
