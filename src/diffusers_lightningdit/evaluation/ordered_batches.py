# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A data set measured in batches by several processes, with results that come in the order of the data.

Batch k always holds the same items, whoever computes it. For what a network makes of an item depends on the size of its
batch, by float32 rounding in the last bits, which moves single pixels of an 8-bit image by one. No item is left out or
measured twice.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .read_ahead import read_ahead

Read = TypeVar("Read")
Result = TypeVar("Result")

BATCHES_IN_HAND = 2  # that `measure` has, or that wait for it, while the next are read
SHARED_ERRORS = (ValueError, OSError)  # of an image that is damaged, a file that cannot be written


def results_in_order(
    batches: Sequence[Sequence[int]],
    read: Callable[[list[Sequence[int]]], Iterable[Read]],
    measure: Callable[[Read], Result],
    accelerator: Accelerator,
    batches_per_turn: int = 1,
    description: str = "measuring",
) -> Iterator[Result]:
    """What `measure` returns for each batch, in order, on the main process; the others get nothing.

    Every process has to exhaust the iterator. The processes take turns in the order of the batches; a round of one turn
    of each is gathered at a time, so that memory does not grow with the data. A thread measures while the calling one
    reads, and uses what was measured.

    Args:
        batches: of indices, rising.
        read: the batches of this process -> what `measure` takes of each, in the same order, in the calling thread.
        measure: what was read -> an object that can be pickled.
        accelerator: of the run.
        batches_per_turn: that a process takes in hand at a time.
        description: of the progress bar, which shows the part of the process.

    Raises:
        ValueError, OSError: of `read` or `measure`, on all processes if one meets with it.
    """
    turns = [batches[first : first + batches_per_turn] for first in range(0, len(batches), batches_per_turn)]
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    own_turns = turns[rank::num_processes]
    own = list(itertools.chain(*own_turns))
    is_silent = not accelerator.is_local_main_process
    with tqdm(total=sum(map(len, own)), desc=description, unit=" images", disable=is_silent) as bar:

        def measured() -> Iterator[Result]:
            for result, batch in zip(read_ahead(measure, read(own), 1, BATCHES_IN_HAND), own, strict=True):
                bar.update(len(batch))
                yield result

        results = measured()
        # One round more, in which each comes to the end: reading may end with work of its own, as waiting for files.
        for number in range(-(-len(turns) // num_processes) + 1):
            try:
                share = list(itertools.islice(results, len(own_turns[number]) if number < len(own_turns) else None))
            except SHARED_ERRORS as error:
                share = error
            for part in gather_object([share]):  # of the processes in order
                if isinstance(part, Exception):
                    raise part
                if accelerator.is_main_process:
                    yield from part


def ordered_batches(
    dataset: Dataset,
    measure: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
    indices: Sequence[int] | None = None,
    description: str = "measuring",
) -> Iterator[dict[str, torch.Tensor]]:
    """`results_in_order` for a data set of torch.

    Args:
        dataset: of dictionaries, which torch's default collation makes batches of.
        measure: batch -> tensors by name, [B, ...] each.
        accelerator: of the run.
        batch_size: items of a batch.
        num_workers: processes that read, for each of these.
        indices: items to take, in this order; all by default.
        description: of the progress bar.

    Raises:
        ValueError, OSError: of an item, or of `measure`, on all processes.
    """
    indices = range(len(dataset)) if indices is None else indices
    batches = [list(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]

    def read(own: list[list[int]]) -> DataLoader:
        return DataLoader(dataset, batch_sampler=own, num_workers=num_workers)

    def on_the_cpu(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: tensor.cpu() for name, tensor in measure(batch).items()}

    return results_in_order(batches, read, on_the_cpu, accelerator, description=description)
