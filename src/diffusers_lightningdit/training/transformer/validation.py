# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Validation losses of a transformer at fixed times, with the same noise at every call."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset

from ...flow_matching import flow_matching_losses
from ...keyed_random import KeyedRandom
from ...models import AutoencoderVAVAE
from ..optimizer_step import global_mean
from ..validation_samples import own_share
from .data import TransformerData, normalized_latents

VALIDATION_TIMES = tuple(round(0.1 * number, 1) for number in range(1, 10))


@torch.no_grad()
def validation_losses(
    model: torch.nn.Module,
    data: TransformerData,
    vae: AutoencoderVAVAE,
    num_samples: int,
    batch_size: int,
    seed: int,
    accelerator: Accelerator,
    expanded_times: bool = False,
) -> dict[str, float]:
    """Mean square loss at each of `VALIDATION_TIMES`, without dropped labels, and the mean over these times.

    Args:
        model: The trained weights themselves. Their loss follows training at once, where the averages that are saved
            and sampled lag behind by thousands of steps.
        data: The data to validate with.
        vae: The frozen autoencoder, for data that is not encoded.
        num_samples: The number of samples, spread over the data, which the processes share in equal parts.
        batch_size: Samples of a forward pass.
        seed: The seed of the noise, which is the same at every call.
        accelerator: The accelerator of the run.
        expanded_times: Whether the network has the velocity of t at the time 2 - t.
    """
    first, indices = own_share(len(data.dataset), num_samples, accelerator.process_index, accelerator.num_processes)
    losses = torch.zeros(len(VALIDATION_TIMES), device=accelerator.device)
    dataloader = DataLoader(Subset(data.dataset, indices), batch_size=batch_size)
    for batch in dataloader:
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        labels = batch["class_labels"]
        # -1: no training batch has it
        draws = KeyedRandom(seed, -1, range(first, first + len(labels)), accelerator.device)
        first += len(labels)
        latents = normalized_latents(batch, vae, draws)
        noise = draws.normal("noise", latents.shape[1:])
        for number, time in enumerate(VALIDATION_TIMES):
            times = torch.full((len(labels),), time, device=latents.device)
            seen = 2 - times if expanded_times else times
            losses[number] += flow_matching_losses(model, noise, latents, times, labels, seen).mse.sum()
    means = global_mean(accelerator, losses / len(indices))
    named = {f"validation_loss/t={time}": mean for time, mean in zip(VALIDATION_TIMES, means, strict=True)}
    return {"validation_loss": sum(means) / len(means), **named}
