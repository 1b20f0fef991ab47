"""`from_single_file` for files of the original implementation: what diffusers calls with the checkpoint it has read.

diffusers asks twice: for the arguments of the model (only without `config=`), then for the state dict under our names.
"""

import torch

from ..models import AutoencoderVAVAE, Change3DModel, LightningDiTTransformer2DModel
from .autoencoder import (
    autoencoder_from_original,
    check_autoencoder_yaml,
    empty_autoencoder,
    select_autoencoder_weights,
)
from .change3d import change3d_from_original, empty_change3d
from .config import OriginalConfig
from .transformer import embedded_config, empty_transformer, select_transformer_weights, transformer_from_original


def transformer_arguments(
    original_config: dict,
    checkpoint: dict,
    num_attention_heads: int | None = None,
    weights: str | None = None,
    internal_guidance_layer: int | None = None,
) -> dict:
    """Arguments of `LightningDiTTransformer2DModel`; see `load_transformer`, and an empty YAML stands for none."""
    yaml = OriginalConfig(original_config, "original_config") if original_config else embedded_config(checkpoint)
    original = select_transformer_weights(checkpoint, weights)
    return transformer_from_original(original, num_attention_heads, yaml, internal_guidance_layer)[0]


def transformer_weights(config: dict, checkpoint: dict, weights: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict under our names, complete for a model of `config`."""
    model = empty_transformer(config)
    found, state_dict = transformer_from_original(
        select_transformer_weights(checkpoint, weights),
        model.config.num_attention_heads,
        internal_guidance_layer=model.config.internal_guidance_layer,
    )
    # These leave no weights that could contradict them.
    for name in ("use_rope", "activation_fn", "patch_size"):
        if model.config[name] != found[name]:
            raise ValueError(
                f"`config` has {name}={model.config[name]!r}; required: {found[name]!r}, as the file has it."
            )
    _check_complete(state_dict, model)
    return state_dict


def autoencoder_arguments(
    original_config: dict,
    checkpoint: dict,
    latents_mean: list[float] | None = None,
    latents_std: list[float] | None = None,
    scaling_factor: float = 1.0,
) -> dict:
    """Arguments of `AutoencoderVAVAE`, read off the weights; what only the caller knows is taken over."""
    parts = autoencoder_from_original(select_autoencoder_weights(checkpoint))
    if original_config:
        check_autoencoder_yaml(parts, OriginalConfig(original_config, "original_config"))
    return parts.config | {"latents_mean": latents_mean, "latents_std": latents_std, "scaling_factor": scaling_factor}


def autoencoder_weights(config: dict, checkpoint: dict) -> dict[str, torch.Tensor]:
    """The state dict under our names, complete for a model of `config`."""
    state_dict = autoencoder_from_original(select_autoencoder_weights(checkpoint)).state_dict
    _check_complete(state_dict, empty_autoencoder(config))
    return state_dict


def change3d_arguments(original_config: dict, checkpoint: dict) -> dict:
    """Arguments of `Change3DModel`, read off the weights: its original has no configuration file."""
    if original_config:
        raise ValueError(f"`original_config` has {len(original_config)} keys; required: None for Change3D.")
    return change3d_from_original(checkpoint).config


def change3d_weights(config: dict, checkpoint: dict) -> dict[str, torch.Tensor]:
    """The state dict under our names, complete for a model of `config`."""
    state_dict = change3d_from_original(checkpoint).state_dict
    _check_complete(state_dict, empty_change3d(config))
    return state_dict


SINGLE_FILE_CLASSES = {
    LightningDiTTransformer2DModel.__name__: {
        "checkpoint_mapping_fn": transformer_weights,
        "config_mapping_fn": transformer_arguments,
        "default_subfolder": "transformer",
    },
    AutoencoderVAVAE.__name__: {
        "checkpoint_mapping_fn": autoencoder_weights,
        "config_mapping_fn": autoencoder_arguments,
        "default_subfolder": "vae",
    },
    Change3DModel.__name__: {
        "checkpoint_mapping_fn": change3d_weights,
        "config_mapping_fn": change3d_arguments,
        "default_subfolder": "model",
    },
}


def _check_complete(state_dict: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """diffusers itself would leave missing weights empty."""
    expected = {key: list(value.shape) for key, value in model.state_dict().items()}
    found = {key: list(value.shape) for key, value in state_dict.items()}
    for key in sorted(expected | found):
        if expected.get(key) != found.get(key):
            raise ValueError(
                f"key `{key}` has shape {found.get(key)} in the file; required: {expected.get(key)}, by the `config`."
            )
