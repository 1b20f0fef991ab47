# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Progress of a transformer's training: losses at fixed times, and images from fixed noise."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image
from torch.utils.data import DataLoader, Subset

from ...flow_matching import flow_matching_losses
from ...grids import draw_class_images
from ...keyed_random import KeyedRandom
from ...models import AutoencoderVAVAE
from ..loop import global_mean
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
    """
    first, indices = own_share(len(data.dataset), num_samples, accelerator.process_index, accelerator.num_processes)
    losses = torch.zeros(len(VALIDATION_TIMES), device=accelerator.device)
    dataloader = DataLoader(Subset(data.dataset, indices), batch_size=batch_size)
    for batch in dataloader:
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        labels = batch["class_labels"]
        draws = KeyedRandom(
            seed, -1, range(first, first + len(labels)), accelerator.device
        )  # -1: no training batch has it
        first += len(labels)
        latents = normalized_latents(batch, vae, draws)
        noise = draws.normal("noise", latents.shape[1:])
        for number, time in enumerate(VALIDATION_TIMES):
            times = torch.full((len(labels),), time, device=latents.device)
            losses[number] += flow_matching_losses(model, noise, latents, times, labels)[0].sum()
    means = global_mean(accelerator, losses / len(indices))
    named = {f"validation_loss/t={time}": mean for time, mean in zip(VALIDATION_TIMES, means, strict=True)}
    return {"validation_loss": sum(means) / len(means), **named}


def draw_grid(
    pipeline: DiffusionPipeline, num_images: int, seed: int, batch_size: int, class_ids: Sequence[int] | None = None
) -> Image.Image:
    """Images of classes spread evenly, those that `evaluate generation` draws with this seed, in an about square grid.

    Args:
        pipeline: The pipeline that draws them, by its own recipe.
        num_images: The number of images.
        seed: The seed of the images' noise.
        batch_size: Images drawn at a time.
        class_ids: The classes to draw; all by default.
    """
    class_ids = class_ids or range(pipeline.transformer.config.num_classes)
    num_classes = len(class_ids)
    labels = [class_ids[number * num_classes // num_images if num_images < num_classes else number % num_classes]
              for number in range(num_images)]  # fmt: skip
    images = list(draw_class_images(pipeline, labels, seed, batch_size))
    columns = next(count for count in range(int(num_images**0.5), num_images + 1) if num_images % count == 0)
    return make_image_grid(images, rows=num_images // columns, cols=columns)
