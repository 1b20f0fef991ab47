# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Compare the digits that a pipeline draws with the real handwritten digits.

    python examples/digits/judge.py --pipeline model_cards/lightningdit-digits --data outputs/digits/data

The images are drawn with the pipeline's own sampling recipe. Image i has its own generator with the seed `--seed` + i.

- accuracy: the fraction of images that a support-vector classifier, fitted on the real digits, assigns to the requested
  digit;
- variance ratio of a class: the variance over its images at each pixel and channel, averaged over these, divided by
  that of the real digits of the class;
- nearest_distance_ratio: the median distance of an image to the nearest real digit, divided by the median distance of a
  real digit to the nearest other one. It is 0 for a model that copies its training data, and 1 for a model whose images
  are as far from the data as the data are from each other;
- psnr_db: the PSNR of decode(mean of the posterior) in decibels, averaged over the real digits.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from tqdm.auto import tqdm

import diffusers_lightningdit  # noqa: F401  (makes the pipeline's classes loadable)
from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.files import write_json
from diffusers_lightningdit.grids import draw_images, labelled_grid
from diffusers_lightningdit.metrics.image_similarity import peak_signal_to_noise_ratio
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

if TYPE_CHECKING:
    from sklearn.svm import SVC


@dataclass(kw_only=True)
class JudgeConfig:
    """Settings of judge.py.

    Raises:
        ValueError: If a value cannot be used.
    """

    pipeline: str = required("Folder or Hub id of the pipeline.")
    data: str = required("Folder of the real digits, as prepare.py writes them.")

    num_images: int = setting(1000, "Images to draw, the same number of each class.", group="Sampling")
    seed: int = setting(0, "The seed of the first image; image i has `seed` + i.", minimum=0)

    batch_size: int = setting(100, "Images that are drawn at a time.", group="Computation", minimum=1)

    metrics: str | None = setting(None, "JSON file that the numbers are written to; null: none.", group="Output")
    picture: str | None = setting(None, "PNG file in which generated digits are drawn next to real ones; null: none.")

    def __post_init__(self):
        check_settings(self)


# Letters in the shape comments: B images. Pixels are [B, 3, height, width] in [0, 1].

# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def classifier_features(pixels: torch.Tensor) -> np.ndarray:
    """Return the brightness of each pixel, [B, height width]."""
    return pixels.mean(1).flatten(1).numpy()


def fit_classifier(pixels: torch.Tensor, labels: torch.Tensor) -> "tuple[SVC, float]":
    """Fit a support-vector classifier on all images, and measure the accuracy of one on a held-out quarter."""
    from sklearn.model_selection import train_test_split  # optional, and not needed for --help
    from sklearn.svm import SVC

    features, classes = classifier_features(pixels), labels.numpy()
    train, held_out, train_classes, held_out_classes = train_test_split(
        features, classes, test_size=0.25, stratify=classes, random_state=0
    )
    accuracy = SVC(C=10).fit(train, train_classes).score(held_out, held_out_classes)
    return SVC(C=10).fit(features, classes), accuracy


def within_class_variance(pixels: torch.Tensor, labels: torch.Tensor, num_classes: int) -> list[float]:
    """Compute for each class the unbiased variance over its images at each pixel and channel, averaged over these."""
    return [pixels[labels == label].double().var(0).mean().item() for label in range(num_classes)]


def nearest_distance_ratio(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Compute median_i min_j |g_i - r_j| / median_i min_(j != i) |r_i - r_j| for generated g and real r."""
    generated, real = generated.flatten(1), real.flatten(1)
    among_real = torch.cdist(real, real).fill_diagonal_(torch.inf)
    return (torch.cdist(generated, real).amin(1).median() / among_real.amin(1).median()).item()


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def real_images(data: str, resolution: int) -> tuple[torch.Tensor, torch.Tensor, dict[int, str]]:
    """Read all images; return pixels, labels [B] and the names of the labels."""
    dataset = ImageDataset(data, resolution)
    items = [dataset[index] for index in range(len(dataset))]
    pixels = torch.stack([item["pixel_values"] for item in items]) / 2 + 0.5
    return pixels, torch.tensor([item["class_labels"] for item in items]), dataset.id2label


def generate(pipeline: DiffusionPipeline, labels: torch.Tensor, seed: int, batch_size: int) -> torch.Tensor:
    """Draw one image for each label. Image i depends on `seed` + i, but not on its batch."""
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(labels))]
    images = draw_images(pipeline, labels.tolist(), generators, batch_size, output_type="pt")
    return torch.stack([image.float().cpu() for image in tqdm(images, desc="generating", total=len(labels))])


@torch.no_grad()
def reconstruct(vae, pixels: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Decode the means of the posteriors to pixels, clamped to [0, 1]."""
    batches = [vae.decode(vae.encode(2 * batch - 1).latent_dist.mode()).sample for batch in pixels.split(batch_size)]
    return (torch.cat(batches) / 2 + 0.5).clamp(0, 1)


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    return VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> dict:
    with one_line_errors():
        config = parse_config(JudgeConfig, argv, __doc__)
        pipeline = DiffusionPipeline.from_pretrained(config.pipeline)
        real, real_labels, id2label = real_images(config.data, pipeline.vae.config.sample_size)
        num_classes = len(id2label)
        if config.num_images < 2 * num_classes or config.num_images % num_classes:
            raise ValueError(
                f"`num_images` is {config.num_images}; required: a multiple of the {num_classes} classes, at least "
                "two images each."
            )

    classifier, held_out_accuracy = fit_classifier(real, real_labels)
    labels = torch.arange(num_classes).repeat(config.num_images // num_classes)
    generated = generate(pipeline, labels, config.seed, config.batch_size)
    taken_for = torch.from_numpy(classifier.predict(classifier_features(generated)))
    ratios = [
        drawn / true
        for drawn, true in zip(
            within_class_variance(generated, labels, num_classes),
            within_class_variance(real, real_labels, num_classes),
            strict=True,
        )
    ]
    psnr = peak_signal_to_noise_ratio(real, reconstruct(pipeline.vae, real, config.batch_size), value_range=1)
    metrics = {
        "num_images": config.num_images,
        "seed": config.seed,
        "sampling_recipe": dict(pipeline.config.sampling_recipe),
        "shift": pipeline.scheduler.config.shift,
        "classifier_held_out_accuracy": round(held_out_accuracy, 4),
        "accuracy": round((taken_for == labels).double().mean().item(), 4),
        "variance_ratio": {id2label[label]: round(ratio, 4) for label, ratio in enumerate(ratios)},
        "variance_ratio_worst": round(min(ratios), 4),
        "nearest_distance_ratio": round(nearest_distance_ratio(generated, real), 4),
        "psnr_db": round(psnr.mean().item(), 2),
    }
    print(json.dumps(metrics, indent=2))
    if config.metrics is not None:
        write_json(config.metrics, metrics)
    if config.picture is not None:
        first_real = [torch.stack([real[real_labels == c][n] for c in range(num_classes)]) for n in range(3)]
        rows = [("real", to_images(row)) for row in first_real]
        rows += [("generated", to_images(row)) for row in generated[: 5 * num_classes].split(num_classes)]
        labelled_grid(rows, [id2label[c] for c in range(num_classes)], zoom=2).save(config.picture)
    return metrics


if __name__ == "__main__":
    main()
