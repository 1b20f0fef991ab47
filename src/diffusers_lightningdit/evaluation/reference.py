# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What generated images are compared with: published statistics, or a set of images, or both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .generation_config import GenerationConfig
from .image_archive import ARRAY
from .image_sets import ArchiveImages, ImageBlocks, ImageSet, open_images
from .inception import InceptionFeatures
from .reference_statistics import archive_names, read_statistics
from .set_statistics import SetStatistics, measure_images

# Settings that a measured reference depends on, beside the size of the images.
REFERENCE_SETTINGS = (
    "reference",
    "reference_split",
    "reference_image_column",
    "reference_label_column",
    "reference_crop",
    "features",
    "feature_normalization",
    "feature_size",
    "inception",
    "inception_sha256",
    "precision_recall",
    "micro_batch_size",
    "num_threads",
)


@dataclass
class Reference:
    """What the images are compared with.

    Attributes:
        published: (mean [D], covariance [D, D]) by the name of the features, from a file; they go over `measured`.
        measured: of the reference's images, on the main process.
        labels: of these images, int64 [M], if they were asked for.
        description: for the JSON file.
    """

    published: dict[str, tuple[torch.Tensor, torch.Tensor]]
    measured: SetStatistics | None
    labels: torch.Tensor | None
    description: dict[str, Any]

    def moments(self, kind: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean and covariance of the features of this name; None where only others were published."""
        if self.published:
            return self.published.get(kind)
        statistics = self.measured.statistics[kind]
        return statistics.mean, statistics.covariance


def open_reference(
    config: GenerationConfig, network: nn.Module, size: tuple[int, int], num_classes: int
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], ImageSet | ArchiveImages | None]:
    """(published statistics, set of images or None): looked at before anything is drawn.

    Raises:
        ValueError: if there is no such thing, or it cannot be compared with images of this size by this network.
    """
    statistics, images = {}, None
    name = f"`reference` is {config.reference!r}"
    is_archive = Path(config.reference).suffix == ".npz"
    if is_archive and config.reference_label_column is not None:
        raise ValueError(f"{name}; required with `reference_label_column`: a data set, whose labels these are.")
    arrays = archive_names(config.reference) if is_archive else [ARRAY]
    if is_archive and isinstance(network, InceptionFeatures):
        statistics = read_statistics(config.reference)
        for kind, (mean, _) in statistics.items():
            if len(mean) != network.num_features[kind]:
                raise ValueError(
                    f"{name}, with statistics of {len(mean)} {kind}; required: {network.num_features[kind]}."
                )
    if ARRAY in arrays:
        crop = size[0] if config.reference_crop == "center" else None
        images = open_images(
            config.reference,
            config.reference_split,
            config.reference_image_column,
            crop,
            config.num_workers,
            config.reference_label_column,
        )
        if config.reference_label_column is not None and images.num_classes != num_classes:
            raise ValueError(f"{name}, with {images.num_classes} classes; required: {num_classes}, as the pipeline's.")
        if tuple(images.size) != tuple(size):
            raise ValueError(
                f"{name}, with images of {images.size[1]}x{images.size[0]} pixels; required: {size[1]}x{size[0]}, as "
                "the pipeline draws."
            )
        if images.num_images < config.least_images:
            raise ValueError(f"{name}, with {images.num_images} images; required: at least {config.least_images}.")
    elif "features" not in statistics:
        found = ", ".join(arrays) or "nothing"
        required = f"images ({ARRAY})" + (" or mu and sigma" if isinstance(network, InceptionFeatures) else "")
        raise ValueError(f"{name}, which holds {found}; required: {required}.")
    return statistics, images


def measure_reference(
    config: GenerationConfig,
    network: nn.Module,
    size: tuple[int, int],
    num_classes: int,
    accelerator: Accelerator,
    known: dict[tuple, Reference] | None = None,
) -> Reference:
    """Open the reference, and measure its images, unless the statistics are all that is needed.

    Args:
        known: what earlier runs measured, which spares measuring it again; this one is added.

    Raises:
        ValueError: as `open_reference`, or for an image that cannot be read.
    """
    statistics, images = open_reference(config, network, size, num_classes)
    key = (tuple(size), *(getattr(config, name) for name in REFERENCE_SETTINGS))
    known = {} if known is None else known
    if key not in known:
        description: dict[str, Any] = {"reference": config.reference, "published_statistics": sorted(statistics)}
        measured = None
        if images is not None and (config.precision_recall or not statistics):
            measured = measure_set(config, network, images, accelerator, "reference")
        if measured is not None:
            description |= {"num_images": measured.num_images, "pixels_sha256": measured.pixels_sha256}
        known[key] = Reference(statistics, measured, getattr(images, "labels", None), description)
    return known[key]


def measure_set(
    config: GenerationConfig, network: nn.Module, images: ImageBlocks, accelerator: Accelerator, title: str
) -> SetStatistics | None:
    keep, block_size = config.precision_recall and config.reference is not None, config.micro_batch_size
    return measure_images(images, network, accelerator, block_size, config.batch_size, config.num_splits, keep, title)
