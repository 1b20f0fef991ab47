# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The order of training samples: the same whatever the number of processes, and found again from a step count alone.

Every epoch is a permutation of all samples, cut into global batches: what one step of the optimiser sees, over all
processes and accumulation steps. What an epoch leaves beyond its last whole batch is dropped; another permutation
leaves other samples.
"""

from collections.abc import Iterator

from torch.utils.data import Sampler

from ..keyed_random import keyed_permutation


class EpochIndex(int):
    """The index of a sample that also knows its epoch; a data set that does not ask sees a plain int."""

    epoch: int

    def __new__(cls, index: int, epoch: int):
        self = super().__new__(cls, index)
        self.epoch = epoch
        return self

    def __getnewargs__(self):  # for worker processes
        return int(self), self.epoch


def own_parts(global_batch_size: int, rank: int, world_size: int, gradient_accumulation_steps: int) -> list[range]:
    """The samples of a global batch that each batch of a process has, by their indices in it.

    Raises:
        ValueError: if a global batch cannot be cut into equal parts.
    """
    for name, value in (
        ("global_batch_size", global_batch_size),
        ("world_size", world_size),
        ("gradient_accumulation_steps", gradient_accumulation_steps),
    ):
        if value < 1:
            raise ValueError(f"`{name}` is {value}; required: at least 1.")
    if not 0 <= rank < world_size:
        raise ValueError(f"`rank` is {rank}; required: at least 0 and below `world_size`, {world_size}.")
    num_parts = world_size * gradient_accumulation_steps
    if global_batch_size % num_parts:
        raise ValueError(
            f"`global_batch_size` is {global_batch_size}; required: a multiple of {num_parts}, the {world_size} "
            f"processes times the {gradient_accumulation_steps} accumulation steps."
        )
    size = global_batch_size // num_parts
    return [range(first, first + size) for first in range(rank * size, global_batch_size, world_size * size)]


class GlobalBatchSampler(Sampler):
    """Batches of indices for one process's `DataLoader(dataset, batch_sampler=...)`, without end.

    Global batch b of an epoch is the same set of samples for every `world_size` and `gradient_accumulation_steps`. Each
    is yielded as `gradient_accumulation_steps` batches of global_batch_size / (steps * world_size) `EpochIndex`. The
    data loader must not be sharded again (by `accelerator.prepare`).

    A data loader with workers draws batches ahead of the training loop, so the loop's own count of optimiser steps is
    the position: `set_position(num_steps)` before iterating.

    Args:
        num_samples: The number of samples in the data set.
        global_batch_size: The number of samples in one optimiser step.
        seed: The seed of the permutations.
        rank, world_size: The index of this process, and the number of processes.
        gradient_accumulation_steps: The number of batches that this process has in one optimiser step.
        data_sha256: The hash of the data that the indices are of, for `identity`.

    Attributes:
        parts: The samples of a global batch that each batch of this process has.

    Raises:
        ValueError: if a global batch cannot be cut into equal parts, or the data set has less than one.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        data_sha256: str | None = None,
    ):
        if seed < 0:
            raise ValueError(f"`seed` is {seed}; required: at least 0.")
        self.parts = own_parts(global_batch_size, rank, world_size, gradient_accumulation_steps)
        if num_samples < global_batch_size:
            raise ValueError(
                f"`global_batch_size` is {global_batch_size}; required: at most the {num_samples} samples of the data "
                "set (training_scripts/recipes/small_*.yaml are for a few hundred images)."
            )
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.data_sha256 = data_sha256
        self.start = 0  # global batches since the beginning of training, where iterating begins

    def set_position(self, num_steps: int) -> None:
        """Begin the next iteration after `num_steps` optimiser steps."""
        if num_steps < 0:
            raise ValueError(f"`num_steps` is {num_steps}; required: at least 0.")
        self.start = num_steps

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        num_batches = self.num_samples // self.global_batch_size  # in an epoch
        epoch, first_batch = divmod(self.start, num_batches)
        while True:
            order = keyed_permutation(self.num_samples, self.seed, epoch)
            for batch in range(first_batch, num_batches):
                global_batch = order[batch * self.global_batch_size :]
                for part in self.parts:
                    yield [EpochIndex(index, epoch) for index in global_batch[part.start : part.stop]]
            epoch, first_batch = epoch + 1, 0

    def identity(self) -> dict:
        """Everything that determines the order; a resumed run compares it."""
        return {
            "num_samples": self.num_samples,
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "data_sha256": self.data_sha256,
        }
