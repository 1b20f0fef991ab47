"""Checkpoints of the original implementation: reading, translating, writing."""

from .autoencoder import (
    autoencoder_from_original,
    autoencoder_to_original,
    build_autoencoder,
    load_autoencoder,
    read_autoencoder,
    read_latents_statistics,
)
from .config import OriginalConfig
from .optimizer import read_training_checkpoint
from .pipeline import build_pipeline, imagenet_labels
from .transformer import (
    MODEL_TYPES,
    embedded_config,
    load_transformer,
    select_transformer_weights,
    transformer_from_original,
    transformer_to_original,
)
from .vae_training import training_models

__all__ = [
    "MODEL_TYPES",
    "OriginalConfig",
    "autoencoder_from_original",
    "autoencoder_to_original",
    "build_autoencoder",
    "build_pipeline",
    "embedded_config",
    "imagenet_labels",
    "load_autoencoder",
    "load_transformer",
    "read_autoencoder",
    "read_latents_statistics",
    "read_training_checkpoint",
    "select_transformer_weights",
    "training_models",
    "transformer_from_original",
    "transformer_to_original",
]
