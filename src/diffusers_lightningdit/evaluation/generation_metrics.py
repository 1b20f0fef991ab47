# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The metrics of `evaluate generation`: their names, their values, and the reasons why some cannot be computed."""

from pathlib import Path

import torch

from ..metrics.frechet import frechet_distance
from ..metrics.inception_score import MIN_IMAGES_PER_SPLIT
from ..metrics.linear_classifier import can_be_split, class_accuracy, linear_probe_accuracy
from ..metrics.precision_recall import precision_and_recall
from .drawn_images import class_label
from .generation_config import GenerationConfig
from .image_archive import ARRAY
from .records import significant
from .reference import Reference, archive_names
from .set_statistics import SetStatistics


def compute_metrics(
    config: GenerationConfig,
    samples: SetStatistics,
    reference: Reference | None,
    num_classes: int,
    device: torch.device,
) -> dict[str, float]:
    """Compute the metrics, rounded to the digits that reproduce.

    Args:
        config: The settings of `evaluate generation`.
        samples: The statistics of the generated images.
        reference: The reference, or None.
        num_classes: The number of the pipeline's classes.
        device: The device that computes precision and recall.

    Returns:
        The metrics by name. "fid" and "sfid" are computed from Inception's features, "frechet_distance" from others.
        "accuracy" comes with "accuracy_on_held_out_reference" if there are enough reference images of each class to
        hold some out.
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
    return significant(results)


def metric_names(config: GenerationConfig) -> list[str]:
    """List the metrics that these settings ask for and the reference allows, in the order of `compute_metrics`."""
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
    """List the metrics that the reference or the number of images does not allow, with the reason, one line each."""
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
