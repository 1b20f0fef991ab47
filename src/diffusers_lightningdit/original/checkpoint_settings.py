# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings that say which files of the original a pipeline is made of, and how its transformer is read."""

import dataclasses
from typing import Any

from ..files import read_checkpoint
from ..models import LightningDiTTransformer2DModel
from ..settings import setting
from .config import OriginalConfig
from .transformer import embedded_config, load_transformer


@dataclasses.dataclass(kw_only=True)
class OriginalCheckpointSettings:
    """Fields of the commands that make a pipeline of files of the original."""

    checkpoint: str | None = setting(
        None, "The original's file of a LightningDiT: a path, or user/repo:file of the Hub; with `vae`."
    )
    config: str | None = setting(
        None, "The original's YAML of the checkpoint; null: the one that the checkpoint holds, if any."
    )
    weights: str | None = setting(
        None,
        "The weights that are taken; null: ema_models.1, the average of FACM's training files, or ema where the "
        "checkpoint has it.",
        choices=("ema", "model", "ema_models.0", "ema_models.1"),
    )
    vae: str | None = setting(None, "The original's file of the autoencoder, or a folder of diffusers.")
    latents_stats: str | None = setting(None, "The original's latents_stats.pt, which goes into the VAE's config.")
    num_attention_heads: int | None = setting(
        None, "The number of attention heads of sizes that were never published.", minimum=1
    )
    internal_guidance_layer: int | None = setting(
        None,
        "The block, counted from 1, before the output layer of internal guidance, of sizes that were never published.",
        minimum=1,
    )

    def load_transformer(
        self,
    ) -> tuple[LightningDiTTransformer2DModel, OriginalConfig | None, dict[str, Any]]:
        """Return the transformer, the original's YAML if there is one, and the content of the checkpoint.

        Raises:
            ValueError: In one line, for files that cannot be used or contradict each other.
        """
        checkpoint = read_checkpoint(self.checkpoint)
        original = OriginalConfig.read(self.config) if self.config else embedded_config(checkpoint)
        transformer = load_transformer(
            self.checkpoint,
            self.weights,
            config=original,
            num_attention_heads=self.num_attention_heads,
            internal_guidance_layer=self.internal_guidance_layer,
        )
        return transformer, original, checkpoint
