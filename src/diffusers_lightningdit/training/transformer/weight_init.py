# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The weights of another model to begin a training run with, also where shapes have changed."""

import torch

from ...models import LightningDiTTransformer2DModel
from ...original.transformer import load_transformer


def load_initial_transformer(name: str) -> LightningDiTTransformer2DModel:
    """The transformer of a diffusers folder or Hub id, or of an original checkpoint file (`ema` where it has it).

    Raises:
        ValueError: in one line, if it is none of these.
    """
    if name.endswith((".pt", ".pth", ".ckpt")):
        return load_transformer(name)
    for subfolder in (None, "transformer"):
        try:
            if LightningDiTTransformer2DModel.load_config(name, subfolder=subfolder).get("num_layers") is not None:
                return LightningDiTTransformer2DModel.from_pretrained(name, subfolder=subfolder)
        except (OSError, ValueError):
            continue
    raise ValueError(
        f"`weight_init` is {name!r}; required: folder or Hub id of a LightningDiT transformer or pipeline, or an "
        "original checkpoint (.pt)."
    )


@torch.no_grad()
def initialize_weights(model: LightningDiTTransformer2DModel, source: dict[str, torch.Tensor]) -> list[str]:
    """Copy the weights that fit, as the original does with changed shapes.

    Tensors of the same name and shape are copied. The input convolution of a model with more latent channels takes the
    source's first channels, and zeros for the others, so that these are ignored until they are learnt. All others keep
    their own initialisation.

    Args:
        model: The model, which is changed in place.
        source: The state dict of a `LightningDiTTransformer2DModel`.

    Returns:
        One line on each tensor that was not copied unchanged.

    Raises:
        ValueError: if no block fits, so that it is another architecture.
    """
    remarks, num_blocks = [], 0
    targets = model.state_dict()
    for name, target in targets.items():
        value = source.get(name)
        if value is None:
            remarks.append(f"`{name}` is not in `weight_init`: keeps its own initialisation")
        elif value.shape == target.shape:
            target.copy_(value)
            num_blocks += name.startswith("transformer_blocks.")
        elif name == "patch_embed.weight" and _has_fewer_channels(value.shape, target.shape):
            target.zero_()
            target[:, : value.shape[1]] = value
            remarks.append(f"`{name}`: channels 0 to {value.shape[1] - 1} of `weight_init`, zeros for the others")
        else:
            remarks.append(
                f"`{name}` has shape {list(value.shape)} in `weight_init`, {list(target.shape)} here: keeps its own "
                "initialisation"
            )
    remarks += [f"`{name}` of `weight_init` is not in the model: left out" for name in source if name not in targets]
    if not num_blocks:
        raise ValueError("no weight of the blocks of `weight_init` fits; required: blocks of the same width and kind.")
    return remarks


def _has_fewer_channels(source: torch.Size, target: torch.Size) -> bool:  # [D, C, p, p] each
    return source[1] < target[1] and (source[0], *source[2:]) == (target[0], *target[2:])
