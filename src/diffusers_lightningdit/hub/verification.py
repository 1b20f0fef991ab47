# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A second implementation of both networks, on the original's keys, that a converted model is compared with.

It is written out from the equations (arXiv 2501.01423, 2410.10356, 2112.10752) and shares nothing with the models or
the tables that translate keys: halves that are swapped by mistake, or a key that went astray, show in its output.

Letters in the shape comments: B images, N tokens, D width, H heads, C channels, p patch size.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from ..models import AutoencoderVAVAE, LightningDiTTransformer2DModel

# Of the largest value of the output, in float32. The tables of RoPE are rounded in a checkpoint of half precision.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
NUM_FREQUENCIES = 128  # of the embedding of times
NUM_GROUPS = 32  # of every GroupNorm
LATENT_SIZE = 8  # of the latents that an autoencoder is compared on

Weights = dict[str, torch.Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_transformer(model: LightningDiTTransformer2DModel, weights: Weights) -> float:
    """Compare a converted transformer with the original's equations on the original's weights, in float32.

    A second time that the network has differs from the first; a second output layer is compared, too.

    Args:
        model: The converted transformer.
        weights: The state dict that it was converted from, under the original's keys.

    Returns:
        The largest difference between two velocities, as a part of the largest value.

    Raises:
        ValueError: If they differ by more than `TOLERANCES` has for the type of the weights.
    """
    generator, config = torch.Generator().manual_seed(0), model.config
    shape = (2, config.in_channels, config.sample_size, config.sample_size)
    latents = torch.randn(shape, generator=generator)
    timestep, class_labels = torch.tensor([0.3, 0.8]), torch.tensor([0, config.num_classes])  # the last: the null class
    ends = torch.tensor([1.0, 0.9]) if config.second_time_embedding else None
    layer, dtype = config.internal_guidance_layer, weights["pos_embed"].dtype
    expected = partial(
        original_velocity, _in_float32(weights), config.num_attention_heads, latents, timestep, class_labels, ends
    )
    found = _float32_copy(model)(
        latents, timestep, class_labels, second_timestep=ends, return_internal=layer is not None
    )
    difference = _compared("transformer", found.sample, expected(), dtype)
    if layer is None:
        return difference
    return max(
        difference, _compared("output layer of internal guidance", found.internal_sample, expected(layer), dtype)
    )


@torch.no_grad()
def check_autoencoder(model: AutoencoderVAVAE, weights: Weights) -> float:
    """Compare a converted autoencoder, encoder and decoder, as `check_transformer` does."""
    generator, config = torch.Generator().manual_seed(0), model.config
    side = LATENT_SIZE * 2 ** (len(config.block_out_channels) - 1)
    pixels = torch.rand((1, config.in_channels, side, side), generator=generator) * 2 - 1
    latents = torch.randn((1, config.latent_channels, LATENT_SIZE, LATENT_SIZE), generator=generator)
    weights, model = _in_float32(weights), _float32_copy(model)
    mean, decoded = model.encode(pixels).latent_dist.mean, model.decode(latents).sample
    encoder = _compared("encoder", mean, original_encode(weights, pixels))
    decoder = _compared("decoder", decoded, original_decode(weights, latents))
    return max(encoder, decoder)


def _in_float32(weights: Weights) -> Weights:
    return {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}


def _float32_copy(model: torch.nn.Module) -> torch.nn.Module:
    """The model with float32 weights; one that has them already is not copied."""
    copy = type(model).from_config(model.config) if next(model.parameters()).dtype != torch.float32 else model
    if copy is not model:
        copy.load_state_dict(model.state_dict())
    return copy.eval()


def _compared(part: str, output: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32) -> float:
    difference = ((output - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    if not difference <= TOLERANCES[dtype]:
        raise ValueError(
            f"the converted {part} differs from the original's equations by {difference:.2g} of the largest value; "
            f"required: at most {TOLERANCES[dtype]:g}."
        )
    return difference


def _layer(weights: Weights, function: Callable, name: str, value: torch.Tensor, **arguments) -> torch.Tensor:
    return function(value, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Transformer
# ---------------------------------------------------------------------------------------------------------------------


def original_velocity(
    weights: Weights,
    num_heads: int,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    class_labels: torch.Tensor,
    second_timestep: torch.Tensor | None = None,
    internal_guidance_layer: int | None = None,
) -> torch.Tensor:
    """The velocity of a LightningDiT, on the original's keys; its switches follow from the keys that are there.

    A second time r enters as the first, c = t + y + r (FACM, arXiv 2507.03738); the layers of internal guidance are
    those of the output, after an earlier block (arXiv 2512.24176).

    Args:
        weights: The state dict, float32.
        num_heads: The number of attention heads.
        latents: The noisy latents, [B, C, height, width], of the size that `pos_embed` is for.
        timestep: The times t in [0, 1], [B].
        class_labels: The ids of the classes, [B]; the number of classes is the null class.
        second_timestep: The second times r in [0, 1], [B], of weights with `r_embedder`.
        internal_guidance_layer: The block, counted from 1, whose velocity by `final_layer_xr` is returned; None: the
            velocity of the last block.
    """
    linear = partial(_layer, weights, F.linear)
    patch_size, channels = weights["x_embedder.proj.weight"].shape[-1], latents.shape[1]
    patches = _layer(weights, F.conv2d, "x_embedder.proj", latents, stride=patch_size)  # [B, D, height / p, width / p]
    grid, tokens = patches.shape[2:], patches.flatten(2).transpose(1, 2) + weights["pos_embed"]  # [B, N, D]

    condition = weights["y_embedder.embedding_table.weight"][class_labels]
    for name, time in (("t_embedder", timestep), ("r_embedder", second_timestep)):
        if time is not None:
            phase = time[:, None] * torch.exp(-math.log(10000) * torch.arange(NUM_FREQUENCIES) / NUM_FREQUENCIES)
            embedding = linear(f"{name}.mlp.0", torch.cat([phase.cos(), phase.sin()], -1))
            condition = condition + linear(f"{name}.mlp.2", F.silu(embedding))

    num_blocks = internal_guidance_layer
    if num_blocks is None:
        num_blocks = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    for block in (f"blocks.{index}" for index in range(num_blocks)):
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(weights, block, condition)
        attended = _attention(
            weights, block, num_heads, _norm(weights, f"{block}.norm1", tokens) * (1 + scale1) + shift1
        )
        tokens = tokens + gate1 * attended
        tokens = tokens + gate2 * _mlp(weights, block, _norm(weights, f"{block}.norm2", tokens) * (1 + scale2) + shift2)

    final = "final_layer" if internal_guidance_layer is None else "final_layer_xr"
    shift, scale = linear(f"{final}.adaLN_modulation.1", F.silu(condition))[:, None].chunk(2, -1)
    out = linear(f"{final}.linear", _norm(weights, f"{final}.norm_final", tokens) * (1 + scale) + shift)
    out = out.unflatten(1, tuple(grid)).unflatten(-1, (patch_size, patch_size, -1))  # [B, rows, columns, p, p, C]
    return out.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)[:, :channels]  # without a learned sigma


def _modulation(weights: Weights, block: str, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shift, scale and gate of attention and MLP, [B, 1, D] each; without shifts, they are 0."""
    values = _layer(weights, F.linear, f"{block}.adaLN_modulation.1", F.silu(condition))[:, None]
    if values.shape[-1] == 6 * condition.shape[-1]:
        return values.chunk(6, -1)
    scale1, gate1, scale2, gate2 = values.chunk(4, -1)
    nothing = torch.zeros_like(scale1)
    return nothing, scale1, gate1, nothing, scale2, gate2


def _norm(weights: Weights, name: str, value: torch.Tensor) -> torch.Tensor:
    """RMSNorm where there is a weight alone, LayerNorm with its affine part, or without where there is nothing."""
    weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
    if weight is not None and bias is None:
        return value * torch.rsqrt(value.square().mean(-1, keepdim=True) + 1e-6) * weight
    return F.layer_norm(value, value.shape[-1:], weight, bias, eps=1e-6 if weight is None else 1e-5)


def _attention(weights: Weights, block: str, num_heads: int, value: torch.Tensor) -> torch.Tensor:
    qkv = _layer(weights, F.linear, f"{block}.attn.qkv", value)
    query, key, value = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, D / H]
    if f"{block}.attn.q_norm.weight" in weights:
        query, key = (_norm(weights, f"{block}.attn.{name}_norm", part) for name, part in (("q", query), ("k", key)))
    if "feat_rope.freqs_cos" in weights:
        query, key = _rotated(weights, query), _rotated(weights, key)
    mixed = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1) @ value
    return _layer(weights, F.linear, f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))


def _rotated(weights: Weights, value: torch.Tensor) -> torch.Tensor:
    """Neighbouring pairs (a, b) rotated to (a cos - b sin, b cos + a sin), by the tables of the checkpoint."""
    a, b = value.unflatten(-1, (-1, 2)).unbind(-1)
    return (
        value * weights["feat_rope.freqs_cos"] + torch.stack([-b, a], -1).flatten(-2) * weights["feat_rope.freqs_sin"]
    )


def _mlp(weights: Weights, block: str, value: torch.Tensor) -> torch.Tensor:
    linear = partial(_layer, weights, F.linear)
    if f"{block}.mlp.w12.weight" in weights:  # SwiGLU
        a, b = linear(f"{block}.mlp.w12", value).chunk(2, -1)
        return linear(f"{block}.mlp.w3", F.silu(a) * b)
    return linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", value), approximate="tanh"))


# ---------------------------------------------------------------------------------------------------------------------
# Autoencoder
# ---------------------------------------------------------------------------------------------------------------------


def original_encode(weights: Weights, pixels: torch.Tensor) -> torch.Tensor:
    """The mean of the posterior, [B, C, height / f, width / f], of pixels [B, 3, height, width] in [-1, 1]."""
    conv = partial(_layer, weights, F.conv2d)
    value = conv("encoder.conv_in", pixels, padding=1)
    for level in _levels(weights, "encoder.down"):
        value = _residual_blocks(weights, level, value)
        if f"{level}.downsample.conv.weight" in weights:
            value = conv(f"{level}.downsample.conv", F.pad(value, (0, 1, 0, 1)), stride=2)
    value = _middle(weights, "encoder", value)
    value = conv("encoder.conv_out", F.silu(_group_norm(weights, "encoder.norm_out", value)), padding=1)
    return conv("quant_conv", value).chunk(2, 1)[0]


def original_decode(weights: Weights, latents: torch.Tensor) -> torch.Tensor:
    """The pixels, [B, 3, height, width], of latents [B, C, height / f, width / f]."""
    conv = partial(_layer, weights, F.conv2d)
    value = conv("decoder.conv_in", conv("post_quant_conv", latents), padding=1)
    value = _middle(weights, "decoder", value)
    for level in reversed(_levels(weights, "decoder.up")):  # they are numbered from the finest
        value = _residual_blocks(weights, level, value)
        if f"{level}.upsample.conv.weight" in weights:
            value = conv(f"{level}.upsample.conv", F.interpolate(value, scale_factor=2.0, mode="nearest"), padding=1)
    return conv("decoder.conv_out", F.silu(_group_norm(weights, "decoder.norm_out", value)), padding=1)


def _levels(weights: Weights, prefix: str) -> list[str]:
    numbers = {int(key.removeprefix(f"{prefix}.").split(".")[0]) for key in weights if key.startswith(f"{prefix}.")}
    return [f"{prefix}.{number}" for number in sorted(numbers)]


def _residual_blocks(weights: Weights, level: str, value: torch.Tensor) -> torch.Tensor:
    for index, block in enumerate(_levels(weights, f"{level}.block")):
        value = _residual_block(weights, block, value)
        if f"{level}.attn.{index}.q.weight" in weights:
            value = _spatial_attention(weights, f"{level}.attn.{index}", value)
    return value


def _middle(weights: Weights, half: str, value: torch.Tensor) -> torch.Tensor:
    value = _residual_block(weights, f"{half}.mid.block_1", value)
    value = _spatial_attention(weights, f"{half}.mid.attn_1", value)
    return _residual_block(weights, f"{half}.mid.block_2", value)


def _group_norm(weights: Weights, name: str, value: torch.Tensor) -> torch.Tensor:
    return F.group_norm(value, NUM_GROUPS, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def _residual_block(weights: Weights, name: str, value: torch.Tensor) -> torch.Tensor:
    conv = partial(_layer, weights, F.conv2d)
    change = value
    for number in (1, 2):
        change = F.silu(_group_norm(weights, f"{name}.norm{number}", change))
        change = conv(f"{name}.conv{number}", change, padding=1)
    return (conv(f"{name}.nin_shortcut", value) if f"{name}.nin_shortcut.weight" in weights else value) + change


def _spatial_attention(weights: Weights, name: str, value: torch.Tensor) -> torch.Tensor:
    """One head over all positions; query, key, value and output are 1x1 convolutions."""
    normed = _group_norm(weights, f"{name}.norm", value)
    query, key, mixed = (_one_by_one(weights, f"{name}.{part}", normed).flatten(2) for part in "qkv")  # [B, C, N]
    attention = (query.transpose(1, 2) @ key / math.sqrt(query.shape[1])).softmax(-1)  # [B, N, N]
    mixed = (mixed @ attention.transpose(1, 2)).view_as(value)
    return value + _one_by_one(weights, f"{name}.proj_out", mixed)


def _one_by_one(weights: Weights, name: str, value: torch.Tensor) -> torch.Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(value, weight.view(*weight.shape[:2], 1, 1), weights[f"{name}.bias"])
