# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of `evaluate generation`."""

from dataclasses import dataclass

from ..metrics.inception_score import MIN_IMAGES_PER_SPLIT
from ..networks.foundation_model import IMAGE_NORMALIZATIONS
from ..networks.inception import PUBLISHED_SHA256
from ..networks.vision_features import POOLINGS
from ..settings import check_at_least, check_settings, required, setting
from .drawn_images import LABELS

FORMATS = ("png", "npz", "both")
CROPS = ("none", "center")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(kw_only=True)
class GenerationConfig:
    """Settings of `evaluate generation`.

    Raises:
        ValueError: For a value that cannot be used.
    """

    pipeline: str = required("Folder or Hub id of a class-conditional pipeline.", group="Input")

    num_images: int = setting(
        50_000, "Images to draw; those of a smaller set are the first of a larger one.", group="Sampling"
    )
    labels: str = setting(
        "balanced",
        "The labels of the images: balanced is 0, 1, ..., the last class, 0, ..., random is uniform.",
        choices=LABELS,
    )
    seed: int = setting(0, "The seed of labels and noise.", minimum=0)
    sampling: dict = setting(
        {},
        "Arguments of the pipeline's call, as sampling.guidance_scale=2.0; the others are those of its recipe.",
    )
    scheduler: str | None = setting(
        None,
        "A scheduler class of diffusers, which takes over shift and flags of the pipeline's; null: the pipeline's own.",
    )
    shift: float | None = setting(
        None, "The shift of the time grid (1 / s for the original's shift s); null: the pipeline's."
    )

    reference: str | None = setting(
        None,
        "The .npz file (statistics mu, sigma, ..., or images arr_0), folder of images or data set that the images are "
        "compared with; null: images are only drawn, and the Inception Score is computed.",
        group="Reference",
    )
    reference_split: str = setting("train", "The split of a reference that is a data set.")
    reference_image_column: str = setting("image", "The column of the images of a reference that is a data set.")
    reference_label_column: str | None = setting(
        None,
        "The column of the labels of a reference that is a data set; with it, the accuracy is measured: whether images "
        "are of the class that was asked for.",
    )
    reference_allow_left_out: bool = setting(
        False, "Accept that files in a local folder are left out of the reference; they are named."
    )
    reference_crop: str = setting(
        "none",
        "The crop of the reference's images: none where they have the size of those drawn, center for the centre "
        "square, as in the original.",
        choices=CROPS,
    )

    features: str | None = setting(
        None, "Folder or Hub id of a vision transformer whose features are compared.", group="Measures"
    )
    feature_normalization: str = setting(
        "minus_one_to_one",
        "The input of the vision transformer: pixels in [-1, 1], or `model`, by its preprocessor_config.json.",
        choices=IMAGE_NORMALIZATIONS,
    )
    feature_pooling: str = setting(
        "patch_mean",
        "The pooling of its tokens; pooler is for networks without patches.",
        choices=tuple(POOLINGS),
    )
    feature_size: int | None = setting(
        None, "The side in pixels that its input is resized to; null: the input is not resized."
    )
    inception: str | None = setting(
        None, "File of torch-fidelity's Inception weights, for FID, sFID and the Inception Score."
    )
    inception_sha256: str = setting(PUBLISHED_SHA256, "The SHA-256 of the file `inception`, or how it begins.")
    precision_recall: bool = setting(
        True, "Measure precision and recall, which need the features of all images in memory."
    )
    num_neighbors: int = setting(3, "The k of precision and recall.", minimum=1)
    num_splits: int = setting(10, "The splits of the Inception Score.", minimum=1)

    dtype: str = setting("float32", "The type that the pipeline computes in.", group="Computation", choices=DTYPES)
    micro_batch_size: int = setting(
        16,
        "Images that the networks take at a time: a lower number saves memory, and changes pixels by rounding.",
        minimum=1,
    )
    batch_size: int = setting(64, "Images that a process takes in hand at a time; this changes no number.", minimum=1)
    num_threads: int = setting(
        1, "Threads of each process's networks on a CPU; another number changes the last digits.", minimum=1
    )
    num_workers: int = setting(4, "Threads that read and write images, of each process.", minimum=1)

    output_dir: str = required(
        "Folder of images and numbers: new, empty, or that of an interrupted run with the same settings.",
        group="Output",
    )
    format: str = setting(
        "png", "The form that images are kept in: png, npz (the layout of ADM's evaluation) or both.", choices=FORMATS
    )

    def __post_init__(self):
        check_settings(self)
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
        """The least number of images that can be compared: 2 for a covariance, more than k for precision and recall."""
        return max(2, self.num_neighbors + 1 if self.precision_recall else 0)

    @property
    def has_inception_score(self) -> bool:
        """Whether there are enough images for the splits of the Inception Score."""
        return self.inception is not None and self.num_images >= MIN_IMAGES_PER_SPLIT * self.num_splits
