# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The parts of a training loop that know nothing of the model."""

from collections.abc import Iterator

from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm


def make_train_dataloader(dataset: Dataset, batch_size: int, accelerator: Accelerator, num_workers: int) -> DataLoader:
    """Shuffled batches of `batch_size` a process, the last incomplete one of an epoch dropped.

    Raises:
        ValueError: if an epoch would have no batch at all.
    """
    global_batch_size = batch_size * accelerator.num_processes
    if len(dataset) < global_batch_size:
        raise ValueError(
            f"`train_batch_size` is {batch_size} on {accelerator.num_processes} processes; required: at most the "
            f"{len(dataset)} images of the data set in all."
        )
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers)


def train_batches(dataloader: DataLoader, max_train_steps: int, progress_bar: tqdm) -> Iterator[dict]:
    """Epoch after epoch of batches, `max_train_steps` in all; each moves the progress bar when it is done with."""
    num_steps = 0
    while True:
        for batch in dataloader:
            if num_steps == max_train_steps:
                return
            yield batch
            num_steps += 1
            progress_bar.update()
