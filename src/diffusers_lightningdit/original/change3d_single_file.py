"""`from_single_file` for checkpoints of Change3D: what diffusers calls with the checkpoint it has read."""

import torch

from ..models import Change3DModel
from .change3d import change3d_from_original, empty_change3d
from .translation import check_complete


def change3d_arguments(original_config: dict, checkpoint: dict) -> dict:
    """Arguments of `Change3DModel`, read off the weights: its original has no configuration file."""
    if original_config:
        raise ValueError(f"`original_config` has {len(original_config)} keys; required: None for Change3D.")
    return change3d_from_original(checkpoint).config


def change3d_weights(config: dict, checkpoint: dict) -> dict[str, torch.Tensor]:
    """The state dict under our names, complete for a model of `config`."""
    state_dict = change3d_from_original(checkpoint).state_dict
    check_complete(state_dict, empty_change3d(config))
    return state_dict


CHANGE3D_SINGLE_FILE_CLASSES = {
    Change3DModel.__name__: {
        "checkpoint_mapping_fn": change3d_weights,
        "config_mapping_fn": change3d_arguments,
        "default_subfolder": "model",
    },
}
