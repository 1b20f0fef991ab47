"""The transformer's checkpoints: architecture from keys and shapes, and the names of both sides."""

import math
import re
from functools import partial
from pathlib import Path

import torch

from ..files import read_checkpoint
from ..models import LightningDiTTransformer2DModel
from .config import OriginalConfig
from .translation import (
    Row,
    check_shape,
    check_values,
    naming,
    plain_state_dict,
    shape_of,
    tensor_rows,
    translate_from_original,
    translate_to_original,
)

# The published models: (depth, width, heads, patch size)
MODEL_TYPES = {
    "LightningDiT-B/1": (12, 768, 12, 1),
    "LightningDiT-B/2": (12, 768, 12, 2),
    "LightningDiT-L/2": (24, 1024, 16, 2),
    "LightningDiT-XL/1": (28, 1152, 16, 1),
    "LightningDiT-XL/2": (28, 1152, 16, 2),
    "LightningDiT-1p0B/1": (24, 1536, 24, 1),
    "LightningDiT-1p0B/2": (24, 1536, 24, 2),
    "LightningDiT-1p6B/1": (28, 1792, 28, 1),
    "LightningDiT-1p6B/2": (28, 1792, 28, 2),
}

# The block, counted from 1, before the output layer of internal guidance, by the number of blocks: it is in no shape,
# and this one is the published model's (arXiv 2512.24176).
INTERNAL_GUIDANCE_LAYERS = {28: 8}

# FACM's training files (arXiv 2507.03738) hold two averages of the weights, of which the results are drawn from the
# second, with the relative width 0.2; the first has 0.05.
AVERAGE = "ema_models.1"

# A stored rotary table may differ from the formula by the rounding of its type and no more.
ROPE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def select_transformer_weights(checkpoint: dict, weights: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint of any published layout.

    These are {"ema"}, {"model", "ema", "opt", ...}, {"model"}, a flat state dict, and FACM's {"model", "emas", ...},
    where `emas` is the state of several averages: those of number N under `ema_models.N.ema_model.`, or in entry N of a
    list `ema_models`.

    Args:
        checkpoint: The content of a file.
        weights: "ema", "model", or an average, "ema_models.N"; None takes `ema_models.1` of a file with `emas`, else
            `ema`, and `model` only of a file without averages.

    Raises:
        ValueError: if these weights are not there.
    """
    present = {name: checkpoint[name] for name in ("ema", "model") if isinstance(checkpoint.get(name), dict)}
    averages = _averages(checkpoint["emas"]) if "emas" in checkpoint else {}
    if weights is None:
        weights = AVERAGE if "emas" in checkpoint else next(iter(present), None)
    if weights is not None:
        present = averages | present
        if weights not in present:
            found = " and ".join(f"`{name}`" for name in present) or "no such entry"
            raise ValueError(f"has no `{weights}` weights; it has {found}.")
        return plain_state_dict(present[weights], f"entry `{weights}`")
    if isinstance(checkpoint.get("state_dict"), dict):  # how autoencoders are saved: the keys will tell
        return plain_state_dict(checkpoint["state_dict"], "entry `state_dict`")
    return plain_state_dict(checkpoint, "the file")


def _averages(emas: object) -> dict[str, dict]:
    """{"ema_models.0": state dict, ...} of FACM's entry `emas`, without counters."""
    if isinstance(emas, dict) and isinstance(emas.get("ema_models"), (list, tuple)):
        return {f"ema_models.{number}": average for number, average in enumerate(emas["ema_models"])}
    averages: dict[str, dict] = {}
    for key, value in emas.items() if isinstance(emas, dict) else [(type(emas).__name__, None)]:
        match = re.fullmatch(r"(ema_models\.\d+)\.(?:ema_model\.(.+)|initted|step)", key)
        if match is None:
            raise ValueError(f"entry `emas` has `{key}`; required: keys `ema_models.N.ema_model.KEY` of averages.")
        name, of_weight = match.groups()
        if of_weight is not None:
            averages.setdefault(name, {})[of_weight] = value
    return averages


def transformer_config(
    state_dict: dict[str, torch.Tensor],
    num_attention_heads: int | None = None,
    internal_guidance_layer: int | None = None,
) -> dict:
    """Read the architecture off an original state dict.

    The number of heads is in the shapes only with RoPE or qk-norm; otherwise the published sizes are looked up, as is
    the block before the output layer of internal guidance.

    Raises:
        ValueError: if it is not a LightningDiT, or a number that is given contradicts it.
    """
    if "encoder.conv_in.weight" in state_dict or "decoder.conv_in.weight" in state_dict:
        raise ValueError("is an autoencoder (key `decoder.conv_in.weight`); required: a LightningDiT transformer.")

    shape = partial(shape_of, state_dict)
    width, in_channels, patch_size, _ = shape("x_embedder.proj.weight", 4)
    num_tokens = shape("pos_embed", 3)[1]
    grid_size = math.isqrt(num_tokens)
    if grid_size**2 != num_tokens:
        raise ValueError(f"key `pos_embed` has {num_tokens} tokens; required: a square number.")
    block_names = {key.split(".")[1] for key in state_dict if key.startswith("blocks.")}
    depth = len(block_names)  # a gap in their numbers shows as a missing key
    adaln_rows = shape("blocks.0.adaLN_modulation.1.weight", 2)[0]
    use_adaln_shift = adaln_rows == 6 * width
    if adaln_rows not in (4 * width, 6 * width):
        raise ValueError(
            f"key `blocks.0.adaLN_modulation.1.weight` has {adaln_rows} rows; required: {6 * width}, or {4 * width} "
            "without shift."
        )
    output_rows = shape("final_layer.linear.weight", 2)[0]
    if output_rows not in (patch_size**2 * in_channels, 2 * patch_size**2 * in_channels):
        raise ValueError(
            f"key `final_layer.linear.weight` has {output_rows} rows; required: {patch_size**2 * in_channels}, or "
            f"twice that with learned sigma."
        )
    use_swiglu = "blocks.0.mlp.w12.weight" in state_dict
    use_rope = any(key.startswith("feat_rope.") for key in state_dict)
    use_qk_norm = "blocks.0.attn.q_norm.weight" in state_dict
    feed_forward_dim = shape(f"blocks.0.mlp.{'w3' if use_swiglu else 'fc2'}.weight", 2)[1]

    head_dims = {}
    if use_rope:
        head_dims["feat_rope.freqs_cos"] = shape("feat_rope.freqs_cos", 2)[1]
    if use_qk_norm:
        head_dims["blocks.0.attn.q_norm.weight"] = shape("blocks.0.attn.q_norm.weight", 1)[0]
    num_heads = _num_heads(width, depth, head_dims, num_attention_heads)
    return {
        "sample_size": grid_size * patch_size,
        "patch_size": patch_size,
        "in_channels": in_channels,
        "num_layers": depth,
        "num_attention_heads": num_heads,
        "attention_head_dim": width // num_heads,
        "mlp_ratio": _mlp_ratio(width, feed_forward_dim, use_swiglu),
        "num_classes": shape("y_embedder.embedding_table.weight", 2)[0] - 1,
        "activation_fn": "swiglu" if use_swiglu else "gelu-approximate",
        "norm_type": "rms_norm" if "blocks.0.norm1.weight" in state_dict else "layer_norm",
        "use_qk_norm": use_qk_norm,
        "use_rope": use_rope,
        "use_adaln_shift": use_adaln_shift,
        "learn_sigma": output_rows == 2 * patch_size**2 * in_channels,
        "second_time_embedding": any(key.startswith("r_embedder.") for key in state_dict),
        "internal_guidance_layer": _internal_guidance_layer(state_dict, depth, internal_guidance_layer),
    }


def _internal_guidance_layer(state_dict: dict[str, torch.Tensor], depth: int, given: int | None) -> int | None:
    if not any(key.startswith("final_layer_xr.") for key in state_dict):
        if given is not None:
            raise ValueError(
                f"internal_guidance_layer is {given}; required: none, since the weights have no `final_layer_xr`."
            )
        return None
    layer = INTERNAL_GUIDANCE_LAYERS.get(depth) if given is None else given
    if layer is None or not 1 <= layer <= depth:
        raise ValueError(
            f"internal_guidance_layer is {'not given' if given is None else given}, and the weights have "
            f"`final_layer_xr` and {depth} blocks; required: the number of the block before it, counted from 1, by "
            "--internal_guidance_layer or the YAML's model.encoder_depth."
        )
    return layer


def _mlp_ratio(width: int, feed_forward_dim: int, use_swiglu: bool) -> float:
    """The published models have 4; the smallest ratio that gives the width of the feed-forward layers otherwise."""

    def dim(hidden: int) -> int:
        return int(2 / 3 * hidden) if use_swiglu else hidden

    hidden = 4 * width
    if dim(hidden) != feed_forward_dim:
        hidden = feed_forward_dim
        while dim(hidden) < feed_forward_dim:
            hidden += 1
    ratio = hidden / width
    return ratio if int(ratio * width) == hidden else math.nextafter(ratio, math.inf)


def _num_heads(width: int, depth: int, head_dims: dict[str, int], given: int | None) -> int:
    """All sources have to agree: the argument, the shapes that know the head's width, the table of published sizes."""
    found = {}
    if given is not None:
        if given < 1 or width % given:
            raise ValueError(f"num_attention_heads is {given}; required: a divisor of the width, {width}.")
        found["num_attention_heads"] = given
    for key, head_dim in head_dims.items():
        if head_dim < 1 or width % head_dim:
            raise ValueError(f"key `{key}` has heads of {head_dim}; required: a divisor of the width, {width}.")
        found[f"key `{key}`"] = width // head_dim
    if not found:
        found = {name: heads for name, (*size, heads, _) in MODEL_TYPES.items() if size == [depth, width]}
    if not found:
        raise ValueError(
            f"num_attention_heads is not given, and depth {depth}, width {width} is no published size; required: the "
            "number of heads, by --num_attention_heads or the YAML's model.x_test_size.num_heads."
        )
    (first, num_heads), *others = found.items()
    for name, value in others:
        if value != num_heads:
            raise ValueError(f"{first} gives {num_heads} heads, but {name} gives {value}; required: the same.")
    return num_heads


def transformer_rows(model: LightningDiTTransformer2DModel) -> list[Row]:
    """The table: every tensor of the original and where it is in our model (only its shapes are used)."""
    swiglu = model.config.activation_fn == "swiglu"
    rows = [
        ("pos_embed", "pos_embed"),
        ("x_embedder.proj", "patch_embed"),
        ("t_embedder.mlp.0", "timestep_embedder.linear_1"),
        ("t_embedder.mlp.2", "timestep_embedder.linear_2"),
        ("r_embedder.mlp.0", "second_timestep_embedder.linear_1"),
        ("r_embedder.mlp.2", "second_timestep_embedder.linear_2"),
        ("y_embedder.embedding_table", "class_embedder.embedding_table"),
    ]
    for i in range(model.config.num_layers):
        theirs, ours = f"blocks.{i}", f"transformer_blocks.{i}"
        rows += [
            (f"{theirs}.norm1", f"{ours}.norm1"),
            (f"{theirs}.attn.qkv", tuple(f"{ours}.attn.to_{name}" for name in "qkv"), "three in one"),
            (f"{theirs}.attn.q_norm", f"{ours}.attn.norm_q"),
            (f"{theirs}.attn.k_norm", f"{ours}.attn.norm_k"),
            (f"{theirs}.attn.proj", f"{ours}.attn.to_out.0"),
            (f"{theirs}.norm2", f"{ours}.norm2"),
            (f"{theirs}.mlp.w12", f"{ours}.ff.net.0.proj", "halves swapped")
            if swiglu
            else (f"{theirs}.mlp.fc1", f"{ours}.ff.net.0.proj"),
            (f"{theirs}.mlp.{'w3' if swiglu else 'fc2'}", f"{ours}.ff.net.2"),
            (f"{theirs}.adaLN_modulation.1", f"{ours}.adaln"),
        ]
    for theirs, ours in (("final_layer", ""), ("final_layer_xr", "internal_")):
        rows += [
            (f"{theirs}.norm_final", f"{ours}norm_out.norm"),
            (f"{theirs}.adaLN_modulation.1", f"{ours}norm_out.linear", "halves swapped"),
            (f"{theirs}.linear", f"{ours}proj_out"),
        ]
    return tensor_rows(rows, model.state_dict())


def rope_tables(model: LightningDiTTransformer2DModel) -> dict[str, torch.Tensor]:
    """The tables that only the original stores, `feat_rope.freqs_cos` and `_sin`: float32 [tokens, head width]."""
    if not model.config.use_rope:
        return {}
    grid_size = model.config.sample_size // model.config.patch_size
    cos, sin = model.rope(grid_size, grid_size, torch.device("cpu"))
    return {"feat_rope.freqs_cos": cos, "feat_rope.freqs_sin": sin}


def empty_transformer(config: dict) -> LightningDiTTransformer2DModel:
    """The model of a config without memory for its weights (on the meta device)."""
    with torch.device("meta"):
        return LightningDiTTransformer2DModel.from_config(config)


def model_section(config: dict) -> dict[str, bool | int]:
    """The section `model` of the original's YAML, without the size."""
    return {
        "use_qknorm": config["use_qk_norm"],
        "use_swiglu": config["activation_fn"] == "swiglu",
        "use_rope": config["use_rope"],
        "use_rmsnorm": config["norm_type"] == "rms_norm",
        "wo_shift": not config["use_adaln_shift"],
        "in_chans": config["in_channels"],
        "learn_sigma": config["learn_sigma"],
        **({"encoder_depth": config["internal_guidance_layer"]} if config.get("internal_guidance_layer") else {}),
    }


def check_transformer_yaml(config: dict, yaml: OriginalConfig) -> None:
    """Raise ValueError where the original's YAML contradicts the architecture read off the weights."""
    depth, width = config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"]
    for key, of_weights in (
        ("model.x_test_size.depth", depth),
        ("model.x_test_size.hidden_size", width),
        ("model.x_test_size.num_heads", config["num_attention_heads"]),
        ("data.num_classes", config["num_classes"]),
        *((f"model.{name}", value) for name, value in model_section(config).items()),
    ):
        yaml.check(key, type(of_weights), of_weights)
    # FACM's YAML has the constructor's arguments in one section, of which `model_type` overrides the patch size.
    for name, of_weights in {
        **model_section(config),
        **{"in_channels": config["in_channels"], "num_classes": config["num_classes"]},
        **{"depth": depth, "hidden_size": width, "num_heads": config["num_attention_heads"]},
        **{"input_size": config["sample_size"], "auxiliary_time_cond": config["second_time_embedding"]},
    }.items():
        yaml.check(f"lightningdit.{name}", type(of_weights), of_weights)

    model_type = yaml.get("model.model_type", str)
    if model_type is not None:
        if model_type not in MODEL_TYPES:
            raise yaml.error("model.model_type", model_type, f"one of {', '.join(MODEL_TYPES)}")
        *size, patch_size = MODEL_TYPES[model_type]
        of_weights = [depth, width, config["num_attention_heads"]]
        if patch_size != config["patch_size"]:
            raise yaml.error(
                "model.model_type", model_type, f"patch size {config['patch_size']}, as the weights have it"
            )
        # `x_test_size` stands for models smaller than any of the types: only the patch size is of the type then.
        if yaml.get("model.x_test_size", dict) is None and size != of_weights:
            raise yaml.error(
                "model.model_type",
                model_type,
                f"depth {depth}, width {width}, {of_weights[2]} heads, as the weights have it "
                f"(this type: {size[0]}, {size[1]}, {size[2]})",
            )

    image_size, ratio = yaml.get("data.image_size", int), yaml.get("vae.downsample_ratio", int)
    if image_size is not None and ratio is not None and image_size != ratio * config["sample_size"]:
        raise yaml.error(
            "data.image_size",
            image_size,
            f"{ratio * config['sample_size']}, since `vae.downsample_ratio` is {ratio} and `pos_embed` of the weights "
            f"is for latents of {config['sample_size']}x{config['sample_size']}",
        )


def transformer_from_original(
    state_dict: dict[str, torch.Tensor],
    num_attention_heads: int | None = None,
    yaml: OriginalConfig | None = None,
    internal_guidance_layer: int | None = None,
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Original state dict -> (config, state dict) of `LightningDiTTransformer2DModel`; types are kept.

    Args:
        state_dict: The weights under the original's keys.
        num_attention_heads: The number of heads, where neither YAML nor shapes nor the published sizes tell.
        yaml: The original's configuration; it must not contradict the weights.
        internal_guidance_layer: The block, counted from 1, before the output layer of internal guidance, where neither
            YAML nor the published size tells.

    Raises:
        ValueError: naming the first key that is missing, unknown, wrongly shaped or not finite.
    """
    if yaml is not None and num_attention_heads is None:
        num_attention_heads = yaml.get("model.x_test_size.num_heads", int)
    if yaml is not None and internal_guidance_layer is None:
        internal_guidance_layer = yaml.get("model.encoder_depth", int)
    config = transformer_config(state_dict, num_attention_heads, internal_guidance_layer)
    if yaml is not None:
        check_transformer_yaml(config, yaml)
    model = empty_transformer(config)
    weights = dict(state_dict)
    for key, computed in rope_tables(model).items():
        if key not in weights:
            raise ValueError(f"key `{key}` is missing; required: both tables of `feat_rope`, or none.")
        stored = weights.pop(key)
        check_shape(key, stored, computed.shape)
        check_values({key: stored})
        if stored.is_meta:
            continue
        difference = (stored.float() - computed).abs().max().item()
        if difference > ROPE_TOLERANCE.get(stored.dtype, 1e-4):
            raise ValueError(
                f"key `{key}` differs from the formula of RoPE by up to {difference:.2g}; required: the original's "
                "table, since it is computed and not stored here."
            )
    return config, translate_from_original(transformer_rows(model), weights, model.state_dict())


def transformer_to_original(config: dict, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """(config, state dict) of `LightningDiTTransformer2DModel` -> the original's, complete for strict loading.

    Raises:
        ValueError: naming the first key that is missing, unknown, wrongly shaped or not finite; for latents that
            are not square, for which the original has no position table.
    """
    model = empty_transformer(config)
    if not isinstance(model.config.sample_size, int):
        raise ValueError(
            f"`sample_size` is {list(model.config.sample_size)}; required: one number, since the original knows square "
            "latents only."
        )
    original = translate_to_original(transformer_rows(model), state_dict, model.state_dict())
    dtype = original["pos_embed"].dtype
    return original | {key: table.to(dtype) for key, table in rope_tables(model).items()}


def embedded_config(checkpoint: dict) -> OriginalConfig | None:
    """The YAML that a training checkpoint carries, if it does."""
    values = checkpoint.get("config")
    return OriginalConfig(values, "the checkpoint's `config`") if isinstance(values, dict) else None


def load_transformer(
    checkpoint: str | Path | dict,
    weights: str | None = None,
    *,
    config: str | Path | OriginalConfig | None = None,
    num_attention_heads: int | None = None,
    internal_guidance_layer: int | None = None,
) -> LightningDiTTransformer2DModel:
    """An original LightningDiT checkpoint as a model, in evaluation mode and the weights' own type.

    Args:
        checkpoint: A file in any published layout (or `user/repo:file` of the Hub), or the result of `read_checkpoint`.
        weights: The weights to take, "ema", "model" or an average, "ema_models.N"; see `select_transformer_weights`.
        config: The original's YAML; None takes the one that a training checkpoint carries.
        num_attention_heads, internal_guidance_layer: As in `transformer_from_original`.

    Raises:
        ValueError: if it is not a complete LightningDiT checkpoint, or contradicts the YAML.
    """
    name = "checkpoint" if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(checkpoint, dict):
        checkpoint = read_checkpoint(checkpoint)
    if config is None:
        config = embedded_config(checkpoint)
    elif not isinstance(config, OriginalConfig):
        config = OriginalConfig.read(config)
    with naming(name):
        original = select_transformer_weights(checkpoint, weights)
        model_config, state_dict = transformer_from_original(
            original, num_attention_heads, config, internal_guidance_layer
        )
    model = empty_transformer(model_config)
    model.load_state_dict(state_dict, assign=True)
    return model.eval()
