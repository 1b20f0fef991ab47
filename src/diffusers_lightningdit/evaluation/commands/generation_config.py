# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of `evaluate generation`."""

import re
from dataclasses import dataclass, field
from typing import Any

from ...metrics.inception_score import MIN_IMAGES_PER_SPLIT
from ...networks.inception import PUBLISHED_SHA256
from ...settings import check_at_least, check_choice
from ..drawn_images import LABELS

FORMATS = ("png", "npz", "both")
CROPS = ("none", "center")
DTYPES = ("float32", "bfloat16", "float16")
# A number to everybody but YAML 1.1, which wants a point and a sign: 1.0e+3.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+", re.IGNORECASE)

HELP = {
    "pipeline": "folder or Hub id of a class-conditional pipeline",
    "output_dir": "new, empty, or that of an interrupted run with the same settings",
    "reference": "an .npz file (statistics mu, sigma, ..., or images arr_0), a folder of images, or a data set; "
    "without one, images are only drawn, and the Inception Score computed",
    "num_images": "images to draw; the first ones of a larger set are the same",
    "labels": "balanced: 0, 1, ..., the last class, 0, ...; random: uniform",
    "seed": "of labels and noise",
    "sampling": "sampling.NAME=VALUE are arguments of the pipeline's call, as sampling.guidance_scale=2.0; the others "
    "are those of the pipeline's recipe",
    "scheduler": "class of diffusers, in place of the pipeline's",
    "shift": "of the time grid (1 / s for the original's s), in place of the pipeline's",
    "dtype": "that the pipeline computes in: float32, bfloat16, float16",
    "batch_size": "images that a process takes in hand at a time; changes no number",
    "micro_batch_size": "images that the networks take at a time: lower it to save memory; another one changes pixels "
    "by rounding",
    "format": "png, npz (the layout of ADM's evaluation) or both",
    "reference_split": "of a data set",
    "reference_image_column": "of a data set",
    "reference_label_column": "of a data set: its labels judge whether images are of the class that was asked for",
    "reference_crop": "none: the images have the size of those drawn; center: the centre square, as the original crops",
    "features": "folder or Hub id of a vision transformer whose features are compared",
    "feature_normalization": "minus_one_to_one, or model: by its preprocessor_config.json",
    "feature_pooling": "patch_mean, class_token, or pooler (of networks without patches)",
    "feature_size": "side in pixels that its input is resized to; without one, as it is",
    "inception": "file of torch-fidelity's Inception weights, for FID, sFID and the Inception Score",
    "inception_sha256": "of that file, or how it begins",
    "num_neighbors": "k of precision and recall",
    "precision_recall": "needs the features of all images in memory",
    "num_splits": "of the Inception Score",
    "num_workers": "threads that read and write images, of each process",
    "num_threads": "of each process's networks on a CPU; another number changes the last digits",
}


def with_numbers(value: Any) -> Any:
    """A value as YAML read it, with texts like 1e3 as numbers, also within lists.

    Fields of a dataclass are converted by their types; a dictionary has none.
    """
    if isinstance(value, (list, tuple)):
        return [with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


@dataclass(kw_only=True)
class GenerationConfig:
    """Settings of `evaluate generation`; `HELP` says what each is.

    Raises:
        ValueError: for a value that cannot be used.
    """

    pipeline: str
    output_dir: str
    reference: str | None = None
    # What is drawn
    num_images: int = 50_000
    labels: str = "balanced"
    seed: int = 0
    sampling: dict = field(default_factory=dict)
    scheduler: str | None = None
    shift: float | None = None
    dtype: str = "float32"
    micro_batch_size: int = 16
    num_threads: int = 1
    # How
    batch_size: int = 64
    num_workers: int = 4
    format: str = "png"
    # Reference
    reference_split: str = "train"
    reference_image_column: str = "image"
    reference_label_column: str | None = None
    reference_crop: str = "none"
    # Measures
    features: str | None = None
    feature_normalization: str = "minus_one_to_one"
    feature_pooling: str = "patch_mean"
    feature_size: int | None = None
    inception: str | None = None
    inception_sha256: str = PUBLISHED_SHA256
    precision_recall: bool = True
    num_neighbors: int = 3
    num_splits: int = 10

    def __post_init__(self):
        self.sampling = {name: with_numbers(value) for name, value in self.sampling.items()}
        check_choice("labels", self.labels, LABELS)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("format", self.format, FORMATS)
        check_choice("reference_crop", self.reference_crop, CROPS)
        for name in ("micro_batch_size", "num_threads", "batch_size", "num_workers", "num_neighbors", "num_splits"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("seed", self.seed, 0)
        check_at_least("num_images", self.num_images, 1 if self.reference is None else self.least_images)
        if self.features is not None and self.inception is not None:
            raise ValueError("`features` and `inception` are both given; required: one of them.")
        if self.reference is not None and self.features is None and self.inception is None:
            raise ValueError(
                "`features` and `inception` are not given; required with `reference`: one of them, a vision "
                "transformer or the file of torch-fidelity's Inception weights."
            )

        if self.reference_label_column is not None and (self.reference is None or not self.precision_recall):
            raise ValueError(
                f"`reference_label_column` is {self.reference_label_column!r}; required with it: `reference`, and "
                "`precision_recall` true, since the features are kept for both."
            )

    @property
    def least_images(self) -> int:
        """That a set must have: 2 for a covariance, more than k for precision and recall."""
        return max(2, self.num_neighbors + 1 if self.precision_recall else 0)

    @property
    def has_inception_score(self) -> bool:
        """Whether there are images enough for its splits."""
        return self.inception is not None and self.num_images >= MIN_IMAGES_PER_SPLIT * self.num_splits
