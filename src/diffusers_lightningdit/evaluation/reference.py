# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The reference that generated images are compared with: published statistics, a set of images, or both.

Statistics of Inception's features are published as `.npz` files in the layout of ADM's evaluation (arXiv 2105.05233):
`mu` [D] and `sigma` [D, D] of the pooled features, and mostly `mu_s` and `sigma_s` of the spatial ones. Such a file may
hold images as well (`arr_0`), fewer than the statistics were computed from.
"""

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import nn

from ..data.folders import nfc
from ..files import file_sha256, one_line
from ..networks.inception import InceptionFeatures
from ..settings import settings_of
from .generation_config import GenerationConfig
from .image_archive import ARRAY, read_array
from .image_sets import ArchiveImages, DatasetImages, ImageBlocks, open_images
from .set_statistics import SetStatistics, measure_images

# Settings that a measured reference depends on, beside the size of the images.
REFERENCE_SETTINGS = [
    *(name for name, field in settings_of(GenerationConfig).items() if field.group in ("Reference", "Measures")),
    *("micro_batch_size", "num_threads"),
]
STATISTICS_ARRAYS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
# The rounding error of covariances, relative to the largest value, that `frechet_distance` tolerates as well.
TOLERANCE = 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Published statistics
# ---------------------------------------------------------------------------------------------------------------------


def archive_names(path: str | Path) -> list[str]:
    """List the names of the arrays in an `.npz` file; raises ValueError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:  # a damaged archive can raise almost anything
        raise ValueError(f"{path} cannot be read ({one_line(error)}); required: an .npz file.") from error


def read_statistics(path: str | Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Read the statistics of an `.npz` file.

    Returns:
        {"features": (mean [D], covariance [D, D]), "spatial": ...} in float64, with those that the file has.

    Raises:
        ValueError: If an array is pickled, damaged or of another shape, or if `sigma` is no covariance. The message
            names the file and the array.
    """
    names, statistics = archive_names(path), {}
    for kind, (mean_name, covariance_name) in STATISTICS_ARRAYS.items():
        if mean_name in names or covariance_name in names:
            required = "required: mean and covariance, finite floating-point numbers, not pickled"
            arrays = (read_array(path, name, required) for name in (mean_name, covariance_name))
            mean, covariance = (torch.from_numpy(array) for array in arrays)
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                shapes = f"{list(mean.shape)} and {list(covariance.shape)}"
                raise ValueError(f"{path} holds {mean_name}, {covariance_name} of {shapes}; required: [D], [D, D].")
            _check_covariance(f"{covariance_name} of {path}", covariance)
            statistics[kind] = mean, covariance
    return statistics


def statistics_arrays(measured: SetStatistics) -> dict[str, np.ndarray]:
    """The statistics of a set by the names of these arrays, float64."""
    arrays = {}
    for kind, statistics in measured.statistics.items():
        mean_name, covariance_name = STATISTICS_ARRAYS[kind]
        arrays |= {mean_name: statistics.mean.numpy(), covariance_name: statistics.covariance.numpy()}
    return arrays


def _check_covariance(name: str, covariance: torch.Tensor) -> None:
    largest, size = covariance.abs().max().item(), len(covariance)
    asymmetry = (covariance - covariance.T).abs().max().item()
    if asymmetry > TOLERANCE * largest:
        raise ValueError(f"{name} differs from its transpose by {asymmetry:g}; required: a symmetric matrix.")
    allowed = TOLERANCE * largest * size
    # The Cholesky decomposition, which costs a tenth of the eigenvalues, exists if all of them are positive.
    raised = (covariance + covariance.T) / 2 + allowed * torch.eye(size, dtype=covariance.dtype)
    if torch.linalg.cholesky_ex(raised).info > 0:
        smallest = torch.linalg.eigvalsh(covariance)[0].item()
        if smallest < -allowed:
            raise ValueError(f"{name} has the eigenvalue {smallest:g}; required: a covariance, with none below 0.")


# ---------------------------------------------------------------------------------------------------------------------
# The reference
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """The statistics that generated images are compared with.

    Attributes:
        published: The mean [D] and covariance [D, D] by the name of the features, from a file. They take precedence
            over `measured`.
        measured: The statistics of the reference's images, on the main process.
        labels: The labels of these images, int64 [M], if `reference_label_column` is set.
        description: The description of the reference in the JSON file.
        warnings: Warnings about comparing with this reference, one line each.
    """

    published: dict[str, tuple[torch.Tensor, torch.Tensor]]
    measured: SetStatistics | None
    labels: torch.Tensor | None
    description: dict[str, Any]
    warnings: list[str] = field(default_factory=list)

    def has(self, kind: str) -> bool:
        """Whether there are a mean and a covariance of the features of this name."""
        return kind in self.published if self.published else kind in self.measured.statistics

    def moments(self, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and the covariance of the features of this name."""
        if self.published:
            return self.published[kind]
        statistics = self.measured.statistics[kind]
        return statistics.mean, statistics.covariance


def open_reference(
    config: GenerationConfig, network: nn.Module, size: tuple[int, int], pipeline: DiffusionPipeline
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], DatasetImages | ArchiveImages | None]:
    """Open the reference and check it, before anything is drawn.

    Args:
        config: The settings of `evaluate generation`.
        network: The network whose features are compared.
        size: The height and width of the images that the pipeline draws.
        pipeline: The pipeline, for its classes.

    Returns:
        The published statistics, and the set of images or None.

    Raises:
        ValueError: If the reference cannot be read, or cannot be compared with images of this size by this network.
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
            config.reference_allow_left_out,
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
    """Raise ValueError if the reference's labels are not those of the pipeline's classes, or are all the same."""
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


def compare_class_names(config: GenerationConfig, images: DatasetImages, pipeline: DiffusionPipeline) -> list[str]:
    """Compare the names of the classes of the reference's images and the pipeline.

    Returns:
        A warning, if the names differ, so that only the numbers tell which classes are the same; otherwise nothing.

    Raises:
        ValueError: If both have the same names in another order.
    """
    names = list(images.source.id2label.values())
    id2label = pipeline.config.get("id2label") or {}
    own = [nfc(name) for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    if names == own:
        return []
    # The first name that differs; 0 if the pipeline has no names.
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


def content_sha256(config: GenerationConfig, images: DatasetImages | ArchiveImages | None) -> str:
    """Hash the files or rows of the reference in their order. This is cheap, since no image is decoded."""
    if Path(config.reference).suffix == ".npz":
        return file_sha256(config.reference)
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
    """Open the reference, and measure its images unless published statistics are all that is needed.

    Args:
        config: The settings of `evaluate generation`.
        network: The network whose features are compared.
        size: The height and width of the images that the pipeline draws.
        pipeline: The pipeline, for its classes.
        accelerator: The accelerator whose processes share the images.
        known: The references that earlier runs of a sweep have measured, by their settings; this one is added.

    Raises:
        ValueError: As `open_reference` and `compare_class_names`, or for an image that cannot be read.
    """
    statistics, images = open_reference(config, network, size, pipeline)
    key = (tuple(size), *(getattr(config, name) for name in REFERENCE_SETTINGS))
    known = {} if known is None else known
    if key not in known:
        warnings = [] if config.reference_label_column is None else compare_class_names(config, images, pipeline)
        if isinstance(images, DatasetImages):
            accelerator.print(f"reference: {images.source.summary()}")
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
        known[key] = Reference(statistics, measured, getattr(images, "labels", None), description, warnings)
    return known[key]


def measure_set(
    config: GenerationConfig, network: nn.Module, images: ImageBlocks, accelerator: Accelerator, title: str
) -> SetStatistics | None:
    """Measure a set of images with the settings of `evaluate generation`; see `measure_images`."""
    keep, block_size = config.precision_recall and config.reference is not None, config.micro_batch_size
    return measure_images(images, network, accelerator, block_size, config.batch_size, config.num_splits, keep, title)
