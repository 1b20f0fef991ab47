# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The images that an autoencoder is trained on, and those that it is validated with."""

from ...data.images import ImageDataset
from ...data.streamed_rows import FirstRows, StreamedImages
from ...models import AutoencoderVAVAE
from .config import VAVAETrainingConfig


def load_training_images(config: VAVAETrainingConfig, vae: AutoencoderVAVAE) -> ImageDataset | StreamedImages:
    """The training data for an autoencoder, without labels; raises ValueError of one line if it cannot be read."""
    # Only the validation needs labels. Without a validation their column is looked up here, to report a wrong name.
    label_column = config.label_column if config.validation_steps is None else None
    return _load(config, vae, config.data, config.split, label_column)


def load_validation_images(
    config: VAVAETrainingConfig, vae: AutoencoderVAVAE, data: str, split: str
) -> ImageDataset | FirstRows:
    """The validation data, the first images of a stream; raises ValueError of one line if it cannot be read."""
    images = _load(config, vae, data, split, config.label_column)
    return images.first(config.num_validation_samples) if isinstance(images, StreamedImages) else images


def _load(
    config: VAVAETrainingConfig, vae: AutoencoderVAVAE, data: str, split: str, label_column: str | None
) -> ImageDataset | StreamedImages:
    arguments = (data, vae.config.sample_size, split, config.image_column, label_column)
    others = {"allow_left_out": config.allow_left_out, "channels": vae.config.in_channels}
    if config.streaming:
        return StreamedImages(*arguments, config.random_flip, **others)
    return ImageDataset(*arguments, **others)
