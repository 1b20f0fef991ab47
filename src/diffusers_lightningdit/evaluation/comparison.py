# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The numbers of `evaluate generation`: which there are, what they are, and why one is missing."""

from pathlib import Path

import torch

from ..metrics.frechet import frechet_distance
from ..metrics.inception_score import MIN_IMAGES_PER_SPLIT
from ..metrics.linear_classifier import can_be_split, class_accuracy, linear_probe_accuracy
from ..metrics.precision_recall import precision_and_recall
from .commands.generation_config import GenerationConfig
from .drawn_images import class_label
from .image_archive import ARRAY
from .reference import Reference
from .reference_statistics import archive_names
from .set_statistics import SetStatistics

SIGNIFICANT_DIGITS = 6


def compare(
    config: GenerationConfig,
    samples: SetStatistics,
    reference: Reference | None,
    num_classes: int,
    device: torch.device,
) -> dict[str, float]:
    """The numbers by name, in significant digits that reproduce.

    "fid" and "sfid" are of Inception; of other features it is the "frechet_distance". "accuracy" comes with
    "accuracy_on_held_out_reference", where there are enough images of each class to hold some out.
    """
    results = {}
    if reference is not None:
        names = {"features": "fid", "spatial": "sfid"} if config.inception else {"features": "frechet_distance"}
        for kind, name in names.items():
            if reference.has(kind):
                own = samples.statistics[kind]
                results[name] = frechet_distance(own.mean, own.covariance, *reference.moments(kind))
    if samples.inception_score is not None and config.has_inception_score:
        results["inception_score"], results["inception_score_std"] = samples.inception_score
    if config.precision_recall and reference is not None and reference.measured is not None:
        generated, real = samples.features.to(device), reference.measured.features.to(device)
        results["precision"], results["recall"] = precision_and_recall(generated, real, config.num_neighbors)
        if reference.labels is not None:
            indices = range(config.num_images)
            labels = [class_label(config.labels, index, num_classes, config.seed) for index in indices]
            results["accuracy"] = class_accuracy(generated, torch.tensor(labels), real, reference.labels)
            if can_be_split(reference.labels):
                held_out_accuracy = linear_probe_accuracy(real, reference.labels)
                results["accuracy_on_held_out_reference"] = held_out_accuracy
    return {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in results.items()}


def result_names(config: GenerationConfig) -> list[str]:
    """Names of the numbers that these settings ask for, in the order of `compare`, as far as the reference has them."""
    arrays = [ARRAY]
    if config.reference is not None and Path(config.reference).suffix == ".npz":
        arrays = archive_names(config.reference)
    names = []
    if config.reference is not None:
        names += ["frechet_distance"] if config.inception is None else ["fid"]
        if config.inception is not None and ("mu" not in arrays or "mu_s" in arrays):
            names.append("sfid")
    if config.has_inception_score:
        names += ["inception_score", "inception_score_std"]
    if config.reference is not None and config.precision_recall and ARRAY in arrays:
        names += ["precision", "recall"]
        if config.reference_label_column is not None:
            names += ["accuracy", "accuracy_on_held_out_reference"]
    return names


def not_computed(config: GenerationConfig, reference: Reference | None) -> list[str]:
    """A line for each number that the reference, or the number of images, does not allow."""
    lines = []
    if reference is not None and config.precision_recall and reference.measured is None:
        lines.append(f"precision and recall are not computed: {config.reference} holds no images ({ARRAY}).")
    if reference is not None and config.inception is not None and not reference.has("spatial"):
        lines.append(f"sfid is not computed: {config.reference} holds no mu_s and sigma_s.")
    if config.inception is not None and not config.has_inception_score:
        lines.append(
            f"inception_score is not computed: {config.num_images} images are too few for {config.num_splits} splits; "
            f"required: {MIN_IMAGES_PER_SPLIT} for each, at least, or another `num_splits`."
        )
    return lines
