# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The images that an autoencoder is trained on, and those that it is validated with."""

from ...data.images import ImageDataset
from ...data.streamed_rows import FirstRows, StreamedImages
from ..validation_samples import check_share
from .config import VAVAETrainingConfig


def load_training_images(config: VAVAETrainingConfig) -> ImageDataset | StreamedImages:
    """The training data, without labels; raises ValueError of one line if it cannot be read."""
    # Only the validation needs labels. Without a validation their column is looked up here, to report a wrong name.
    return _load(config, config.data, config.split, config.label_column if config.validation_steps is None else None)


def load_validation_images(config: VAVAETrainingConfig, num_processes: int) -> ImageDataset | FirstRows | None:
    """The validation data, the first images of a stream; None if `validation_steps` is not set.

    Raises:
        ValueError: in one line, if it cannot be read, or shared by the processes.
    """
    if config.validation_steps is None:
        return None
    try:
        images = _load(config, config.validation_data or config.data, config.validation_split, config.label_column)
        if isinstance(images, StreamedImages):
            images = images.first(config.num_validation_samples)
    except ValueError as error:
        raise ValueError(f"validation data: {error}") from error
    check_share(config.num_validation_samples, len(images), num_processes)
    return images


def _load(
    config: VAVAETrainingConfig, data: str, split: str, label_column: str | None
) -> ImageDataset | StreamedImages:
    arguments = (data, config.resolution, split, config.image_column, label_column)
    if config.streaming:
        return StreamedImages(*arguments, config.random_flip, config.allow_left_out)
    return ImageDataset(*arguments, allow_left_out=config.allow_left_out)
