"""`from_single_file` for files of the original implementation: what diffusers calls with the checkpoint it has read.

diffusers asks twice: for the arguments of the model (only without `config=`), then for the state dict under our names.
"""

import torch

from ..models import AutoencoderVAVAE, LightningDiTTransformer2DModel
from .autoencoder import (
    autoencoder_from_original,
    check_autoencoder_yaml,
    empty_autoencoder,
    select_autoencoder_weights,
)
from .config import OriginalConfig
from .transformer import embedded_config, empty_transformer, select_transformer_weights, transformer_from_original
from .translation import check_complete


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
    check_complete(state_dict, model)
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
    check_complete(state_dict, empty_autoencoder(config))
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
}
