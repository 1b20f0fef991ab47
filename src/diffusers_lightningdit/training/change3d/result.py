# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The pipeline that a training of Change3D leaves: at the end of a run, or of a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch

from ...models import Change3DModel
from ...pipelines import Change3DPipeline
from ..state_io import model_arguments
from .config import Change3DTrainingConfig


def model_of(architecture: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Change3DModel:
    """A model for evaluation, on the CPU, with copies of the tensors of a state dict."""
    model = Change3DModel.from_config(model_arguments(architecture))
    model.load_state_dict({name: tensor.detach().cpu() for name, tensor in weights.items()})
    return model.requires_grad_(False).eval()


def trained_pipeline(
    config: Change3DTrainingConfig, model: Change3DModel, vocabulary: dict[str, int] | list[str] | None
) -> Change3DPipeline:
    """The pipeline of a trained model, with the classes and colours that the settings name.

    Args:
        config: The settings of the training.
        model: The model.
        vocabulary: The words of captions with their ids, or in the order of these; None without captions.
    """
    return Change3DPipeline(
        model,
        id2label=None if config.class_names is None else dict(enumerate(config.class_names)),
        palette=None if config.label_palette is None else [list(color) for color in config.label_palette],
        vocabulary=vocabulary,
    )
