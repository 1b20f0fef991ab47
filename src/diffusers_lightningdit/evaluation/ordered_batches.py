# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A data set measured in batches by several processes, with results that come in the order of the data.

Batch k always holds the same items, whoever computes it. For what a network makes of an item depends on the size of its
batch, by float32 rounding in the last bits, which moves single pixels of an 8-bit image by one. No item is left out or
measured twice.
"""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .read_ahead import read_ahead


def patient_accelerator() -> Accelerator:
    """One whose processes wait for the slowest of them, or for what the main process does alone.

    Raises:
        ValueError: if several processes were started, each of which takes itself for the only one.
    """
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(days=7))])
    num_started = int(os.environ.get("WORLD_SIZE", "1"))
    if num_started != accelerator.num_processes:
        raise ValueError(
            f"{num_started} processes were started which do not know of each other; required on CPUs: the environment "
            "variable ACCELERATE_USE_CPU=true."
        )
    return accelerator


def ordered_batches(
    dataset: Dataset,
    measure: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int = 0,
    indices: Sequence[int] | None = None,
    description: str = "measuring",
) -> Iterator[dict[str, torch.Tensor]]:
    """What `measure` returns for each batch, in order, on the main process; the others get nothing.

    Every process has to exhaust the iterator. A round of one batch for each process is gathered at a time, so that
    memory does not grow with the data. A thread measures while the calling one reads, and uses what was measured.

    Args:
        dataset: of dictionaries, which torch's default collation makes batches of.
        measure: batch -> tensors by name, [B, ...] each.
        accelerator: of the run.
        batch_size: items of a batch.
        num_workers: processes that read, for each of these.
        indices: items to take, in this order; all by default.
        description: of the progress bar.
    """
    indices = range(len(dataset)) if indices is None else indices
    batches = [list(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    mine = DataLoader(dataset, batch_sampler=batches[rank::num_processes], num_workers=num_workers)

    def on_the_cpu(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: tensor.cpu() for name, tensor in measure(batch).items()}

    own = read_ahead(on_the_cpu, mine, num_threads=1, num_ahead=2)
    with tqdm(total=len(indices), desc=description, unit=" images", disable=not accelerator.is_main_process) as bar:
        for first in range(0, len(batches), num_processes):
            measured = []
            if first + rank < len(batches):
                measured.append(next(own))
            gathered = gather_object(measured)  # of the processes in order
            if accelerator.is_main_process:
                yield from gathered
            bar.update(sum(map(len, batches[first : first + num_processes])))
