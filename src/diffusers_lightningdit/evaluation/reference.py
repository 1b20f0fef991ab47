# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What generated images are compared with: published statistics, or a set of images, or both."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import nn

from ..data.images import load_rows
from ..files import file_sha256
from ..networks.inception import InceptionFeatures
from .commands.generation_config import GenerationConfig
from .image_archive import ARRAY
from .image_sets import ArchiveImages, DatasetImages, FolderImages, ImageBlocks, ImageSet, open_images
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
    "feature_pooling",
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
        doubts: about comparing with it, a line each.
    """

    published: dict[str, tuple[torch.Tensor, torch.Tensor]]
    measured: SetStatistics | None
    labels: torch.Tensor | None
    description: dict[str, Any]
    doubts: list[str] = field(default_factory=list)

    def has(self, kind: str) -> bool:
        """Whether there are mean and covariance of the features of this name: not where only others were published."""
        return kind in self.published if self.published else kind in self.measured.statistics

    def moments(self, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and covariance of the features of this name."""
        if self.published:
            return self.published[kind]
        statistics = self.measured.statistics[kind]
        return statistics.mean, statistics.covariance


def open_reference(
    config: GenerationConfig, network: nn.Module, size: tuple[int, int], pipeline: DiffusionPipeline
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
        if config.reference_label_column is not None:
            check_labels(config, images, pipeline)
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


def check_labels(config: GenerationConfig, images: DatasetImages, pipeline: DiffusionPipeline) -> None:
    """Raise ValueError if the reference's labels are not among the pipeline's classes, or are all of one class."""
    name, num_classes = f"`reference` is {config.reference!r}", pipeline.transformer.config.num_classes
    if images.num_classes != num_classes:
        raise ValueError(f"{name}, with {images.num_classes} classes; required: {num_classes}, as the pipeline's.")
    if images.labels.max() >= num_classes:
        raise ValueError(f"{name}, with the label {images.labels.max()}; required: 0 to {num_classes - 1}.")
    if len(images.labels.unique()) < 2:
        raise ValueError(
            f"{name}, with images of class {images.labels[0]} only; required with `reference_label_column`: at least 2 "
            "classes."
        )


def doubts_about_classes(config: GenerationConfig, pipeline: DiffusionPipeline) -> list[str]:
    """A line, if names cannot tell whether a class is the same in the reference and in the pipeline.

    Raises:
        ValueError: if both have the same names in another order.
    """
    names = load_rows(config.reference, config.reference_split).features[config.reference_label_column].names
    id2label = pipeline.config.get("id2label") or {}
    own = [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    if names == own:
        return []
    # the first that differs; without names of the pipeline's there is none
    index = next((index for index, pair in enumerate(zip(names, own, strict=False)) if pair[0] != pair[1]), 0)
    if sorted(names) == sorted(own):
        raise ValueError(
            f"`reference_label_column` is {config.reference_label_column!r}, where class {index} is {names[index]!r}; "
            f"required: the pipeline's order, in which it is {own[index]!r}."
        )
    theirs = f"is {own[index]!r} there" if own else "has no name there"
    return [
        "accuracy takes the classes of the reference for those of the pipeline by their numbers, since their names "
        f"differ: class {index}, {names[index]!r}, {theirs}."
    ]


def content_sha256(config: GenerationConfig, images: ImageSet | ArchiveImages | None) -> str:
    """A hash of what the reference holds, in its order, as it lies there: cheap, since no image is decoded."""
    if Path(config.reference).suffix == ".npz":
        return file_sha256(config.reference)
    if isinstance(images, FolderImages):
        contents = (path.read_bytes() for path in images.files)
    else:
        encoded = (row[images.column] for row in images.rows)
        contents = (Path(each["path"]).read_bytes() if each["bytes"] is None else each["bytes"] for each in encoded)
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    if config.reference_label_column is not None:
        digest.update(images.labels.numpy())
    return digest.hexdigest()


def measure_reference(
    config: GenerationConfig,
    network: nn.Module,
    size: tuple[int, int],
    pipeline: DiffusionPipeline,
    accelerator: Accelerator,
    known: dict[tuple, Reference] | None = None,
) -> Reference:
    """Open the reference, and measure its images, unless the statistics are all that is needed.

    Args:
        known: what earlier runs measured, which spares measuring it again; this one is added.

    Raises:
        ValueError: as `open_reference` and `doubts_about_classes`, or for an image that cannot be read.
    """
    statistics, images = open_reference(config, network, size, pipeline)
    key = (tuple(size), *(getattr(config, name) for name in REFERENCE_SETTINGS))
    known = {} if known is None else known
    if key not in known:
        doubts = [] if config.reference_label_column is None else doubts_about_classes(config, pipeline)
        description: dict[str, Any] = {
            "reference": config.reference,
            "sha256": content_sha256(config, images),
            "published_statistics": sorted(statistics),
        }
        measured = None
        if images is not None and (config.precision_recall or not statistics):
            measured = measure_set(config, network, images, accelerator, "reference")
        if measured is not None:
            description |= {"num_images": measured.num_images, "pixels_sha256": measured.pixels_sha256}
        known[key] = Reference(statistics, measured, getattr(images, "labels", None), description, doubts)
    return known[key]


def measure_set(
    config: GenerationConfig, network: nn.Module, images: ImageBlocks, accelerator: Accelerator, title: str
) -> SetStatistics | None:
    keep, block_size = config.precision_recall and config.reference is not None, config.micro_batch_size
    return measure_images(images, network, accelerator, block_size, config.batch_size, config.num_splits, keep, title)
