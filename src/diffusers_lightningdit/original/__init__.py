"""Checkpoints of the original implementation: reading, translating, writing."""

from .autoencoder import (
    AutoencoderParts,
    autoencoder_from_original,
    autoencoder_to_original,
    load_autoencoder,
    read_autoencoder,
    read_latents_statistics,
)
from .files import CheckpointError, read_checkpoint
from .transformer import (
    MODEL_TYPES,
    load_transformer,
    select_transformer_weights,
    transformer_from_original,
    transformer_to_original,
)

__all__ = [
    "MODEL_TYPES",
    "AutoencoderParts",
    "CheckpointError",
    "autoencoder_from_original",
    "autoencoder_to_original",
    "load_autoencoder",
    "load_transformer",
    "read_autoencoder",
    "read_checkpoint",
    "read_latents_statistics",
    "select_transformer_weights",
    "transformer_from_original",
    "transformer_to_original",
]
