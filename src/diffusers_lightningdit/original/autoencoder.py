"""The autoencoder's checkpoints: VA-VAE, LDM and MAR-VAE; architecture from keys and shapes, names of both sides."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..files import read_checkpoint, resolve_file
from ..models import AutoencoderVAVAE
from .config import OriginalConfig
from .model_folder import load_model_folder
from .translation import (
    Row,
    check_values,
    naming,
    plain_state_dict,
    shape_of,
    tensor_rows,
    translate_from_original,
    translate_to_original,
)
from .vae_training import TRAINING_FOLDER, read_training_folder

# A training checkpoint also holds what is needed to train on, and networks that are published (LPIPS; DINOv2, MAE).
TRAINING_KEYS = ("linear_proj.", "loss.discriminator.", "loss.logvar")
FOREIGN_KEYS = ("loss.perceptual_loss.", "foundation_model.")
NUM_GROUPS = 32  # of every GroupNorm


@dataclass
class AutoencoderParts:
    """An original autoencoder checkpoint, translated.

    Attributes:
        config: The arguments of `AutoencoderVAVAE`.
        state_dict: The weights of the autoencoder.
        training: The weights that only training needs (`TRAINING_KEYS`), under the original's names.
        left_out: The keys that were left out (`FOREIGN_KEYS`).
    """

    config: dict
    state_dict: dict[str, torch.Tensor]
    training: dict[str, torch.Tensor] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def select_autoencoder_weights(checkpoint: dict) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint of any published layout: {"state_dict"} (VA-VAE, LDM), {"model"} (MAR), flat."""
    for name in ("state_dict", "model", "ema"):  # no autoencoder has `ema`, a transformer has: the keys will tell
        if isinstance(checkpoint.get(name), dict):
            return plain_state_dict(checkpoint[name], f"entry `{name}`")
    return plain_state_dict(checkpoint, "the file")


def autoencoder_config(state_dict: dict[str, torch.Tensor]) -> dict:
    """Read the architecture off an original state dict; `sample_size` is not in the shapes and stays at its default.

    Raises:
        ValueError: if it is not such an autoencoder.
    """
    if "x_embedder.proj.weight" in state_dict:
        raise ValueError("is a LightningDiT transformer (key `x_embedder.proj.weight`); required: an autoencoder.")

    def channels(key: str, axis: int) -> int:
        return shape_of(state_dict, key, 4)[axis]

    def count(prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)})

    num_levels = count("encoder.down.")
    widths = [channels(f"encoder.down.{i}.block.0.conv2.weight", 0) for i in range(num_levels)]
    for i, width in enumerate(widths):
        if width % NUM_GROUPS:
            raise ValueError(
                f"key `encoder.down.{i}.block.0.conv2.weight` has {width} channels; required: a multiple of "
                f"{NUM_GROUPS}, the groups of its norms."
            )

    def with_attention(half: str, level: int) -> bool:
        return any(key.startswith(f"{half}.{level}.attn.") for key in state_dict)

    return {
        "in_channels": channels("encoder.conv_in.weight", 1),
        "out_channels": channels("decoder.conv_out.weight", 0),
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if with_attention("encoder.down", i) else "DownEncoderBlock2D"
            for i in range(num_levels)
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if with_attention("decoder.up", i) else "UpDecoderBlock2D"
            for i in reversed(range(num_levels))
        ),
        "block_out_channels": tuple(widths),
        "layers_per_block": count("encoder.down.0.block."),
        "latent_channels": channels("post_quant_conv.weight", 1),
        "norm_num_groups": NUM_GROUPS,
    }


def autoencoder_rows(model: AutoencoderVAVAE) -> list[Row]:
    """The table: every tensor of the original and where it is in our model (only its shapes are used)."""

    def resnet(theirs: str, ours: str) -> list[tuple]:
        return [(f"{theirs}.{name}", f"{ours}.{name}") for name in ("norm1", "conv1", "norm2", "conv2")] + [
            (f"{theirs}.nin_shortcut", f"{ours}.conv_shortcut")
        ]

    def attention(theirs: str, ours: str) -> list[tuple]:
        return [(f"{theirs}.norm", f"{ours}.group_norm")] + [
            (f"{theirs}.{their_name}", f"{ours}.{our_name}", "1x1 convolution")
            for their_name, our_name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
        ]

    def middle(half: str) -> list[tuple]:
        return (
            resnet(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0")
            + attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
            + resnet(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1")
        )

    num_levels = len(model.config.block_out_channels)
    num_resnets = model.config.layers_per_block
    rows = [("encoder.conv_in", "encoder.conv_in")]
    for i in range(num_levels):
        theirs, ours = f"encoder.down.{i}", f"encoder.down_blocks.{i}"
        for j in range(num_resnets):
            rows += resnet(f"{theirs}.block.{j}", f"{ours}.resnets.{j}")
            rows += attention(f"{theirs}.attn.{j}", f"{ours}.attentions.{j}")
        rows += [(f"{theirs}.downsample.conv", f"{ours}.downsamplers.0.conv")]
    rows += middle("encoder")
    rows += [("encoder.norm_out", "encoder.conv_norm_out"), ("encoder.conv_out", "encoder.conv_out")]
    rows += [("decoder.conv_in", "decoder.conv_in")]
    rows += middle("decoder")
    for i in range(num_levels):
        # The original numbers the decoder's levels by resolution, diffusers in the order of use.
        theirs, ours = f"decoder.up.{i}", f"decoder.up_blocks.{num_levels - 1 - i}"
        for j in range(num_resnets + 1):
            rows += resnet(f"{theirs}.block.{j}", f"{ours}.resnets.{j}")
            rows += attention(f"{theirs}.attn.{j}", f"{ours}.attentions.{j}")
        rows += [(f"{theirs}.upsample.conv", f"{ours}.upsamplers.0.conv")]
    rows += [("decoder.norm_out", "decoder.conv_norm_out"), ("decoder.conv_out", "decoder.conv_out")]
    rows += [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    return tensor_rows(rows, model.state_dict())


def empty_autoencoder(config: dict) -> AutoencoderVAVAE:
    """The model of a config without memory for its weights (on the meta device)."""
    with torch.device("meta"):
        return AutoencoderVAVAE.from_config(config)


def autoencoder_from_original(state_dict: dict[str, torch.Tensor]) -> AutoencoderParts:
    """Original state dict -> config and state dict of `AutoencoderVAVAE`, and what else was there; types are kept.

    Raises:
        ValueError: naming the first key that is missing, unknown, wrongly shaped or not finite.
    """
    training = {key: value.clone() for key, value in state_dict.items() if key.startswith(TRAINING_KEYS)}
    left_out = [key for key in state_dict if key.startswith(FOREIGN_KEYS)]
    weights = {key: value for key, value in state_dict.items() if key not in training and key not in set(left_out)}
    config = autoencoder_config(weights)
    for key, value in training.items():
        if value.is_floating_point():  # batch norms also count their batches
            check_values({key: value})
    model = empty_autoencoder(config)
    translated = translate_from_original(autoencoder_rows(model), weights, model.state_dict())
    return AutoencoderParts(config, translated, training, left_out)


def autoencoder_to_original(config: dict, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(config, state dict) of `AutoencoderVAVAE` -> the original's state dict.

    Raises:
        ValueError: naming the first key that is missing, unknown, wrongly shaped or not finite, or an argument of
            the config that the original cannot express.
    """
    model = empty_autoencoder(config)
    for name, value in (
        ("norm_num_groups", NUM_GROUPS),
        ("act_fn", "silu"),
        ("use_quant_conv", True),
        ("use_post_quant_conv", True),
        ("mid_block_add_attention", True),
    ):
        if model.config[name] != value:
            raise ValueError(f"config `{name}` is {model.config[name]}; required by the original: {value}.")
    return translate_to_original(autoencoder_rows(model), state_dict, model.state_dict())


def read_latents_statistics(file: str | Path | dict, latent_channels: int | None = None) -> tuple[list, list]:
    """The original's latents_stats.pt, {"mean": [1, C, 1, 1], "std": [1, C, 1, 1]}, as two lists.

    Raises:
        ValueError: if it is not such a file, or not for `latent_channels` channels.
    """
    statistics = file if isinstance(file, dict) else read_checkpoint(file)
    with naming("latents_stats" if isinstance(file, dict) else file):
        lists = []
        for name in ("mean", "std"):
            value = statistics.get(name)
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"has no tensor `{name}`; required: the tensors `mean` and `std`.")
            required = [1, latent_channels or (value.shape[1] if value.ndim == 4 else "C"), 1, 1]
            if list(value.shape) != required:
                raise ValueError(f"`{name}` has shape {list(value.shape)}; required: {required}.")
            if not value.is_floating_point():
                raise ValueError(f"`{name}` has type {value.dtype}; required: a floating-point type.")
            if not torch.isfinite(value).all() or (name == "std" and not (value > 0).all()):
                raise ValueError(f"`{name}` has values out of range; required: finite, and `std` positive.")
            lists.append(value.flatten().tolist())
    return tuple(lists)


def check_autoencoder_yaml(parts: AutoencoderParts, yaml: OriginalConfig) -> None:
    """Raise ValueError where the original's YAML contradicts the architecture; note its `resolution`."""
    config, dimensions = parts.config, "model.params.ddconfig"
    yaml.check("model.params.embed_dim", int, config["latent_channels"])
    yaml.check(f"{dimensions}.double_z", bool, True)
    for theirs, ours in (
        ("z_channels", "latent_channels"),
        ("in_channels", "in_channels"),
        ("out_ch", "out_channels"),
        ("num_res_blocks", "layers_per_block"),
    ):
        yaml.check(f"{dimensions}.{theirs}", int, config[ours])
    widths = list(config["block_out_channels"])
    width, multipliers = yaml.get(f"{dimensions}.ch", int), yaml.get(f"{dimensions}.ch_mult", list)
    if width and multipliers and multipliers != [level_width / width for level_width in widths]:
        raise yaml.error(
            f"{dimensions}.ch_mult", multipliers, f"times `ch`, {width}, the widths {widths} that the weights have"
        )
    resolution, attention = yaml.get(f"{dimensions}.resolution", int), yaml.get(f"{dimensions}.attn_resolutions", list)
    if resolution is not None:
        resolutions = [resolution // 2**i for i in range(len(widths))]
        of_weights = [
            level for level, block in zip(resolutions, config["down_block_types"], strict=True) if "Attn" in block
        ]
        if attention is not None and [level for level in resolutions if level in attention] != of_weights:
            raise yaml.error(f"{dimensions}.attn_resolutions", attention, f"{of_weights}, as the encoder has them")
        config["sample_size"] = resolution
    if "linear_proj.weight" in parts.training:
        yaml.check("model.params.reverse_proj", bool, "linear_proj.bias" not in parts.training)


def read_autoencoder(
    checkpoint: str | Path | dict, config: str | Path | OriginalConfig | None = None
) -> AutoencoderParts:
    """All parts of an original checkpoint, or of an `AutoencoderVAVAE` or plain `AutoencoderKL` folder of diffusers.

    Args:
        checkpoint: a file in any published layout (or `user/repo:file` of the Hub), a folder, or what `read_checkpoint`
            returned.
        config: The original's YAML of the autoencoder; it must not contradict the weights.

    Raises:
        ValueError: if it is not a complete autoencoder.
    """
    is_folder = not isinstance(checkpoint, dict) and resolve_file(checkpoint).is_dir()
    if is_folder:
        parts = _read_autoencoder_folder(Path(checkpoint))
    else:
        loaded = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(checkpoint)
        with naming("checkpoint" if isinstance(checkpoint, dict) else checkpoint):
            parts = autoencoder_from_original(select_autoencoder_weights(loaded))
    if config is not None:
        config = config if isinstance(config, OriginalConfig) else OriginalConfig.read(config)
        check_autoencoder_yaml(parts, config)
    return parts


def _read_autoencoder_folder(folder: Path) -> AutoencoderParts:
    """A folder that diffusers saved, with the training weights that `convert_vavae_to_diffusers.py` put beside."""
    model = load_model_folder(AutoencoderVAVAE, folder, ("AutoencoderVAVAE", "AutoencoderKL"))
    if model.config.shift_factor:
        raise ValueError(
            f"{folder}: config `shift_factor` is {model.config.shift_factor}; required: none, since latents are "
            "normalised by `latents_mean` and `latents_std` here."
        )
    state_dict = model.state_dict()
    with naming(folder):
        check_values(state_dict)
    training = read_training_folder(folder)
    for key in training:
        if not key.startswith(TRAINING_KEYS):
            raise ValueError(f"{folder / TRAINING_FOLDER}: key `{key}` is unknown; required: {TRAINING_KEYS}.")
    # the arguments only, without diffusers' own entries such as the version
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    return AutoencoderParts(config, state_dict, training)


def load_autoencoder(
    checkpoint: str | Path | dict,
    latents_stats: str | Path | dict | None = None,
    *,
    latent_multiplier: float | None = None,
    config: str | Path | OriginalConfig | None = None,
) -> AutoencoderVAVAE:
    """An original VA-VAE, LDM or MAR-VAE checkpoint, or a folder of diffusers, as a model in evaluation mode.

    Args:
        checkpoint, config: As in `read_autoencoder`, also the errors.
        latents_stats: The original's latents_stats.pt, or its dictionary.
        latent_multiplier: The original's factor, our `scaling_factor`; None keeps that of a folder, and is 1 for a
            checkpoint.
    """
    model = build_autoencoder(read_autoencoder(checkpoint, config), latents_stats)
    if latent_multiplier is not None:
        model.register_to_config(scaling_factor=latent_multiplier)
    return model


def build_autoencoder(parts: AutoencoderParts, latents_stats: str | Path | dict | None = None) -> AutoencoderVAVAE:
    """The model of translated parts, with the statistics of its latents if given."""
    model = empty_autoencoder(dict(parts.config))
    if latents_stats is not None:
        model.set_latents_statistics(*read_latents_statistics(latents_stats, model.config.latent_channels))
    model.load_state_dict(parts.state_dict, assign=True)
    return model.eval()
