# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The parts of a training loop that know nothing of the model."""

from collections.abc import Iterator

from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .training_config import TrainingConfig


def check_batch_size(config: TrainingConfig, num_images: int, accelerator: Accelerator) -> None:
    """Raise ValueError if an epoch would have no whole batch."""
    if num_images < config.train_batch_size * accelerator.num_processes:
        raise ValueError(
            f"`train_batch_size` is {config.train_batch_size} on {accelerator.num_processes} processes; required: at "
            f"most the {num_images} images of the data set in all."
        )


def make_train_dataloader(config: TrainingConfig, dataset: Dataset) -> DataLoader:
    """Shuffled batches, the last incomplete one of an epoch dropped."""
    return DataLoader(
        dataset, batch_size=config.train_batch_size, shuffle=True, drop_last=True, num_workers=config.num_workers
    )


def make_lr_scheduler(config: TrainingConfig, optimizer: Optimizer, accelerator: Accelerator) -> LRScheduler:
    """The schedule of diffusers over `max_train_steps`; Accelerate moves it once a process at each step."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=config.max_train_steps * accelerator.num_processes,
    )


def train_batches(config: TrainingConfig, dataloader: DataLoader, progress_bar: tqdm) -> Iterator[dict]:
    """Epoch after epoch of batches, `max_train_steps` in all; each moves the progress bar when it is done with."""
    num_steps = 0
    while True:
        for batch in dataloader:
            yield batch
            num_steps += 1
            progress_bar.update()
            if num_steps == config.max_train_steps:
                return
