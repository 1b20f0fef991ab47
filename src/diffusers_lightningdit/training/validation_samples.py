# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The samples to validate with: spread over the data, the same in every run, shared equally by the processes."""

from collections.abc import Callable, Sized

import numpy as np
from accelerate import Accelerator
from torch.utils.data import Dataset

from ..data.streamed_rows import StreamedRows
from .batches import Sampler, make_batch_sampler
from .config import ImageTrainingConfig


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


def sampler_and_validation(
    config: ImageTrainingConfig,
    dataset: Dataset | StreamedRows,
    load: Callable[[str, str], Sized],
    accelerator: Accelerator,
) -> tuple[Sampler, Sized | None]:
    """The order of the training data, and the validation data by `load(data, split)`, None without `validation_steps`.

    Raises:
        ValueError: in one line, which names what is wrong with either or both.
    """
    sampler, validation, errors = None, None, []
    try:
        sampler = make_batch_sampler(config, dataset, accelerator)
    except ValueError as error:
        errors.append(error)
    try:
        if config.validation_steps is not None:
            validation = _load_validation(config, load, accelerator.num_processes)
    except ValueError as error:
        errors.append(error)
    if errors:
        raise ValueError(" Also: ".join(map(str, errors))) from errors[0]
    return sampler, validation


def _load_validation(config: ImageTrainingConfig, load: Callable[[str, str], Sized], num_processes: int) -> Sized:
    try:
        validation = load(config.validation_data or config.data, config.validation_split)
    except ValueError as error:
        raise ValueError(f"validation data: {error}") from error
    check_share(config.num_validation_samples, len(validation), num_processes)
    return validation
