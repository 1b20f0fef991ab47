# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What shows how far the training of a transformer is: losses at fixed times, and images from fixed noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
    """Mean square loss at each of `VALIDATION_TIMES`, without dropped labels, and their mean.

    Over `num_samples` samples, spread over the data, which the processes share in equal parts; always with the same
    noise.
    """
    share = num_samples // accelerator.num_processes
    first = accelerator.process_index * share
    indices = spread(len(data.dataset), num_samples)[first : first + share]
    losses = torch.zeros(len(VALIDATION_TIMES), device=accelerator.device)
    dataloader = DataLoader(Subset(data.dataset, indices), batch_size=batch_size)
    for batch in dataloader:
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        labels = batch["class_labels"]
        draws = KeyedRandom(seed, -1, range(first, first + len(labels)), accelerator.device)  # of no training batch
        first += len(labels)
        latents = normalized_latents(batch, vae, draws)
        noise = draws.normal("noise", latents.shape[1:])
        for number, time in enumerate(VALIDATION_TIMES):
            times = torch.full((len(labels),), time, device=latents.device)
            losses[number] += flow_matching_losses(model, noise, latents, times, labels)[0].sum()
    means = global_mean(accelerator, losses / share)
    named = {f"validation_loss/t={time}": mean for time, mean in zip(VALIDATION_TIMES, means, strict=True)}
    return {"validation_loss": sum(means) / len(means), **named}


def draw_grid(
    pipeline: DiffusionPipeline, num_images: int, seed: int, batch_size: int, class_ids: Sequence[int] | None = None
) -> Image.Image:
    """Images of classes spread evenly, those that `evaluate generation` draws with this seed, in an about square grid.

    Args:
        pipeline: draws them, by its own recipe.
        num_images: how many.
        seed: of the noise.
        batch_size: images drawn at a time.
        class_ids: classes to draw; all by default.
    """
    class_ids = class_ids or range(pipeline.transformer.config.num_classes)
    num_classes = len(class_ids)
    labels = [class_ids[number * num_classes // num_images if num_images < num_classes else number % num_classes]
              for number in range(num_images)]  # fmt: skip
    images = list(draw_class_images(pipeline, labels, seed, batch_size))
    columns = next(count for count in range(int(num_images**0.5), num_images + 1) if num_images % count == 0)
    return make_image_grid(images, rows=num_images // columns, cols=columns)


def save_grid(image: Image.Image, output_dir: str, step: int, accelerator: Accelerator) -> Path:
    """Write `samples/step-<step>.png`, and show it in those trackers that show images."""
    path = Path(output_dir) / "samples" / f"step-{step}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        if hasattr(tracker, "log_images"):
            tracker.log_images({"samples": np.asarray(image)[None]}, step=step, **layout)
    return path


def spread(length: int, count: int) -> list[int]:
    """`count` of the numbers below `length`, rising: one at random out of each of as many equal stretches.

    Of data that is sorted by class these are of all classes, and of data in which classes take turns, too. They are the
    same in every run.
    """
    edges = [number * length // count for number in range(count + 1)]
    return np.random.default_rng(0).integers(edges[:-1], edges[1:]).tolist()


def check_share(num_samples: int, available: int, num_processes: int) -> None:
    """Raise ValueError if the samples to validate with are not there, or cannot be shared equally."""
    if num_samples > available or num_samples % num_processes:
        raise ValueError(
            f"`num_validation_samples` is {num_samples}; required: a multiple of the {num_processes} processes, at "
            f"most the {available} samples of the validation data."
        )
