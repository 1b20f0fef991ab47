# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The result of a training: a pipeline with its card in the output folder, and on the Hub where that is wanted."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..files import write_result
from .cards import autoencoder_card, pipeline_card, training_section, with_section
from .repository import CARD, repository_patterns, upload_repository, write_repository


def write_autoencoder_card(
    folder: str | Path, vae: torch.nn.Module, config: Any, script: str, step: int | None = None
) -> None:
    """Write the card of an autoencoder, which says how it was trained, into the folder that it is saved to.

    Args:
        folder: The folder.
        vae: The autoencoder, with the statistics of its latents if it has any.
        config: The settings of the training.
        script, step: As in `save_trained_pipeline`.
    """
    card = autoencoder_card(vae, f"user/{Path(config.output_dir).name}")
    card = with_section(card, "Training", training_section(config, script, step))
    (Path(folder) / CARD).write_text(card, encoding="utf-8", newline="\n")


def save_trained_pipeline(config: Any, pipeline: DiffusionPipeline, script: str, step: int | None = None) -> None:
    """Write a pipeline to `config.output_dir`, with a card that says how it was trained; for one process.

    Args:
        config: The settings of the training, of which `save_dtype`, `output_dir`, `push_to_hub` and `hub_model_id`
            say where the pipeline goes.
        pipeline: The pipeline, on the CPU.
        script: The name of the training script.
        step: The step whose checkpoint it is made of; None for the result of the whole training.

    Raises:
        HubError: If the Hub refuses it, or cannot be reached; the folder is whole then.
    """
    pipeline.to(getattr(torch, config.save_dtype))
    repository = config.hub_model_id or f"user/{Path(config.output_dir).name}"
    card = with_section(pipeline_card(pipeline, repository), "Training", training_section(config, script, step))
    with write_result(config.output_dir) as folder:
        write_repository(folder, pipeline, card)
    print(f"wrote {config.output_dir}")
    if config.push_to_hub:
        upload_repository(config.output_dir, config.hub_model_id, repository_patterns(pipeline), keep_card=True)
