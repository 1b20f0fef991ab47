# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The batches of each training step, in an order that does not depend on the number of processes."""

import itertools
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from ..data.global_batches import GlobalBatchSampler
from ..data.images import ImageDataset
from ..data.row_stream import RowStream
from ..data.rows import UnusableData
from ..data.streamed_rows import StreamedRows
from ..keyed_random import KeyedRandom, is_flipped, seed_process
from .config import TrainingConfig

Sampler = GlobalBatchSampler | RowStream  # the order of the training data, and a process's share
DATA_ERRORS = (UnusableData, OSError)  # while training, on any one process


class RandomlyFlipped(Dataset):
    """A data set of images, each mirrored with probability 0.5 in each epoch of its `EpochIndex`."""

    def __init__(self, images: ImageDataset, seed: int):
        self.images = images
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        item = self.images[index]
        if is_flipped(self.seed, getattr(index, "epoch", 0), int(index)):
            item["pixel_values"] = item["pixel_values"].flip(-1)
        return item


def make_batch_sampler(config: TrainingConfig, dataset: Dataset | StreamedRows, accelerator: Accelerator) -> Sampler:
    """The order of the samples, and this process's share; raises ValueError if it cannot be cut into equal parts."""
    share = (accelerator.process_index, accelerator.num_processes, config.gradient_accumulation_steps)
    if isinstance(dataset, StreamedRows):
        order = (config.seed, config.shuffle_block_size, config.num_open_files)
        return RowStream(dataset, config.global_batch_size, *order, *share)
    return GlobalBatchSampler(len(dataset), config.global_batch_size, config.seed, *share, dataset.data_sha256())


def train_steps(
    config: TrainingConfig,
    dataset: Dataset | StreamedRows,
    sampler: Sampler,
    batch_index: int,
    accelerator: Accelerator,
) -> Iterator[list[tuple[dict, KeyedRandom]]]:
    """Without end: this process's batches of the next global batch, each with its random numbers.

    Args:
        config: The settings.
        dataset: The data whose order `sampler` knows.
        sampler: The order; a stream goes on where it is, which is at `batch_index` if it was restored.
        batch_index: The global batches that were consumed before.
        accelerator: The accelerator of the run.
    """
    if isinstance(sampler, RowStream):
        global_batches = iter(sampler)
    else:
        sampler.set_position(batch_index)
        dataloader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=config.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=config.num_workers > 0,
        )
        batches = iter(dataloader)
        global_batches = ([next(batches) for _ in sampler.parts] for _ in itertools.count())
    while True:
        seed_process(config.seed, batch_index, accelerator.process_index)
        step = []
        for batch, part in zip(next(global_batches), sampler.parts, strict=True):
            draws = KeyedRandom(config.seed, batch_index, part, accelerator.device)
            step.append((send_to_device(batch, accelerator.device, non_blocking=True), draws))
        yield step
        batch_index += 1
