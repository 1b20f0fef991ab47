# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The statistics of an autoencoder's latents over its data, in one pass that the processes share."""

import itertools
from collections.abc import Iterator

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...data.latent_encoding import draw_latents, encode_moments
from ...data.latent_statistics import LatentsStatistics
from ...data.row_stream import RowStream
from ...keyed_random import KeyedRandom
from ...models import AutoencoderVAVAE
from ..batches import Sampler
from ..validation_samples import spread
from .config import VAVAETrainingConfig

BATCH_SIZE = 64  # for any number of processes: rounding depends on it


def measure_latents(
    config: VAVAETrainingConfig,
    vae: AutoencoderVAVAE,
    dataset: Dataset,
    sampler: Sampler,
    accelerator: Accelerator,
) -> LatentsStatistics:
    """Statistics of draws of the latents of all images, or of `statistics_samples` of them.

    These are spread over the data, or the first ones of a stream's order. Every process has to call it. All get the
    same statistics as a single process would, to the last bit where they compute alike.

    Args:
        config: The settings, of which `statistics_samples`, `seed` and `num_workers` count.
        vae: The autoencoder, on the accelerator's device.
        dataset: The training data.
        sampler: The order of the training data.
        accelerator: The accelerator of the run.
    """
    measured = {}
    batches = own_batches(config, dataset, sampler, accelerator.process_index, accelerator.num_processes)
    for first, batch in tqdm(batches, desc="latents statistics", disable=not accelerator.is_main_process):
        moments = encode_moments(vae, batch["pixel_values"])
        images = range(first, first + len(moments))
        draws = KeyedRandom(config.seed, 0, images, vae.device)
        # of draws, not of means, since the transformer is trained on draws
        noise = draws.normal("statistics", (vae.config.latent_channels, *moments.shape[2:]))
        measured[first] = LatentsStatistics.of(draw_latents(moments, noise))
    measured = dict(itertools.chain.from_iterable(part.items() for part in gather_object([measured])))
    return LatentsStatistics.combine(measured[first] for first in sorted(measured))


def own_batches(
    config: VAVAETrainingConfig,
    dataset: Dataset,
    sampler: Sampler,
    rank: int,
    num_processes: int,
) -> Iterator[tuple[int, dict]]:
    """This process's batches of the images to measure, in turns, each with the number of its first image."""
    if isinstance(sampler, RowStream):
        batches = sampler.first_epoch(BATCH_SIZE, config.statistics_samples, rank, num_processes)
    else:
        indices = spread(len(dataset), min(config.statistics_samples or len(dataset), len(dataset)))
        parts = [indices[first : first + BATCH_SIZE] for first in range(0, len(indices), BATCH_SIZE)]
        batches = DataLoader(dataset, batch_sampler=parts[rank::num_processes], num_workers=config.num_workers)
    for number, batch in enumerate(batches):
        yield (number * num_processes + rank) * BATCH_SIZE, batch
