# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The samples to validate with: spread over the data, the same in every run, shared equally by the processes."""

import numpy as np


def spread(length: int, count: int) -> list[int]:
    """`count` of the numbers below `length`, rising: one at random out of each of as many equal stretches.

    They cover all classes of data that is sorted by class, and of data in which classes take turns, too. They are the
    same in every run.
    """
    edges = [number * length // count for number in range(count + 1)]
    return np.random.default_rng(0).integers(edges[:-1], edges[1:]).tolist()


def check_share(num_samples: int, available: int, num_processes: int) -> None:
    """Raise ValueError if the samples to validate with are not there, or cannot be shared equally."""
    if num_samples > available or num_samples % num_processes:
        raise ValueError(
            f"`num_validation_samples` is {num_samples}; required: a multiple of the {num_processes} processes, at "
            f"most the {available} samples of the validation data."
        )


def own_share(length: int, num_samples: int, rank: int, num_processes: int) -> tuple[int, list[int]]:
    """One process's part of `num_samples` spread over `length` samples: (number of its first one, their indices)."""
    size = num_samples // num_processes
    first = rank * size
    return first, spread(length, num_samples)[first : first + size]
