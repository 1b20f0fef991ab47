# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Measure a data set in batches by several processes, with the same results whatever their number.

What a network computes for an item depends on the size of its batch, since float32 rounding differs in the last bits,
which changes single pixels of an 8-bit image by one. So batch k always holds the same items, whichever process computes
it, results are returned in the order of the data, and no item is left out or measured twice.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCHES_AHEAD = 2  # batches that `measure` works on, or that wait for it, while the next ones are read
SHARED_ERRORS = (ValueError, OSError)  # a damaged image, a file that cannot be written


@contextlib.contextmanager
def exact_arithmetic(num_threads: int, device: torch.device) -> Iterator[None]:
    """Let networks compute the same sums at every run: float32 without TF32, and fixed algorithms.

    Args:
        num_threads: The number of threads of networks on a CPU, whose sums depend on it. It is left as it is if the
            networks run on a GPU: only the statistics are then computed on the CPU, in float64, and the number of
            threads does not change the digits that are written.
        device: The device of the networks.
    """
    num_threads_before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(num_threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(num_threads_before)


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int, num_ahead: int
) -> Iterator[Result]:
    """Apply a function to items, as `map`, in threads that work up to `num_ahead` items ahead.

    Items are taken from their iterator in the calling thread.
    """
    items = iter(items)
    with ThreadPoolExecutor(num_threads) as threads:
        waiting = deque(threads.submit(function, item) for item in itertools.islice(items, num_ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(threads.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def results_in_order(
    batches: Sequence[Sequence[int]],
    read: Callable[[list[Sequence[int]]], Iterable[Item]],
    measure: Callable[[Item], Result],
    accelerator: Accelerator,
    batches_per_turn: int = 1,
    description: str = "measuring",
) -> Iterator[Result]:
    """Yield the result of `measure` for each batch, in order, on the main process, and nothing on the others.

    Every process has to exhaust the iterator. The processes take turns in the order of the batches, and results are
    gathered after one turn of each, so that memory does not grow with the data. `measure` runs in a thread of its own
    while the calling thread reads batches and uses results.

    Args:
        batches: The indices of each batch, in ascending order.
        read: A function from the batches of this process to the input of `measure` for each of them, in the same order.
            It runs in the calling thread.
        measure: A function from what was read to an object that can be pickled.
        accelerator: The accelerator whose processes share the batches.
        batches_per_turn: The number of batches in one turn of a process.
        description: The description of the progress bar, which shows this process's share.

    Raises:
        ValueError, OSError: On all processes, if `read` or `measure` raises it on any of them.
    """
    turns = [batches[first : first + batches_per_turn] for first in range(0, len(batches), batches_per_turn)]
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    own_turns = turns[rank::num_processes]
    own_batches = list(itertools.chain(*own_turns))
    is_silent = not accelerator.is_local_main_process
    with tqdm(total=sum(map(len, own_batches)), desc=description, unit=" images", disable=is_silent) as bar:

        def measured() -> Iterator[Result]:
            results = read_ahead(measure, read(own_batches), 1, BATCHES_AHEAD)
            for result, batch in zip(results, own_batches, strict=True):
                bar.update(len(batch))
                yield result

        results = measured()
        # In one additional round all iterators come to their end, where reading may still wait for files, and fail.
        for number in range(-(-len(turns) // num_processes) + 1):
            try:
                share = list(itertools.islice(results, len(own_turns[number]) if number < len(own_turns) else None))
            except SHARED_ERRORS as error:
                share = error
            for gathered in gather_object([share]):  # the shares of the processes in order
                if isinstance(gathered, Exception):
                    raise gathered
                if accelerator.is_main_process:
                    yield from gathered


def ordered_batches(
    dataset: Dataset,
    measure: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
    indices: Sequence[int] | None = None,
    description: str = "measuring",
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the results of `measure` for the batches of a torch data set, as `results_in_order`.

    Args:
        dataset: A data set of dictionaries, from which torch's default collation makes batches.
        measure: A function from a batch to tensors [B, ...] by name.
        accelerator: The accelerator whose processes share the batches.
        batch_size: The number of items of a batch.
        num_workers: The number of workers that read, for each process.
        indices: The indices of the items, in the order in which they are taken; by default all.
        description: The description of the progress bar.

    Raises:
        ValueError, OSError: On all processes, if the data set or `measure` raises it on any of them.
    """
    indices = range(len(dataset)) if indices is None else indices
    batches = [list(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]

    def read(own_batches: list[list[int]]) -> DataLoader:
        return DataLoader(dataset, batch_sampler=own_batches, num_workers=num_workers)

    def measure_to_cpu(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: tensor.cpu() for name, tensor in measure(batch).items()}

    return results_in_order(batches, read, measure_to_cpu, accelerator, description=description)
