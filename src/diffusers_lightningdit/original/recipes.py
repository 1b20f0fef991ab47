"""The original's YAML files as recipes of ours: what becomes of each key, and which keys are left.

`TRANSFORMER_KEYS` and `VAE_KEYS` are the whole mapping. docs/from_the_original.md shows them as tables.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .config import REQUIRED_SETTINGS, OriginalConfig
from .transformer import MODEL_TYPES

GRID_POINTS_NOTE = "the original counts the points of the time grid, here the steps between them are counted"
IMAGENET_IMAGES = 1_281_167


class Key(NamedTuple):
    """A key of the original, and its place here.

    Attributes:
        kind: The type of its values.
        ours: The setting or argument that takes its place, in Markdown.
        note: What differs, and why.
        recipe: The recipe that `settings` go into, "train" or "evaluate".
        settings: Makes our settings of a value; None for a key that is not taken over, and named.
    """

    kind: type
    ours: str
    note: str = ""
    settings: Callable[[Any], dict[str, Any]] | None = None
    recipe: str = "train"


@dataclass
class Recipes:
    """A translated YAML.

    Attributes:
        command: "transformer" or "vae", whose training the file describes.
        train: The recipe for `train COMMAND`.
        evaluate: The recipe for `evaluate generation`; empty for an autoencoder.
        taken: The keys that are in the recipes.
        left: The keys that are not, with the reason, or what to do in their place.
        unknown: The keys that the original is not known to have.
        remarks: What the original does where a key is missing, and other differences.
    """

    command: str
    train: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def _as(name: str) -> Callable[[Any], dict[str, Any]]:
    """The setting `name`, "transformer.use_rope" for a key of a dictionary, with the value as it is."""
    outer, dot, inner = name.partition(".")
    return lambda value: {outer: {inner: value}} if dot else {name: value}


def _renamed(kind: type, name: str, note: str = "") -> Key:
    """A key whose value is that of the setting `name` as it is."""
    return Key(kind, f"`{name}`", note, _as(name))


def _chosen(name: str, if_true: Any, if_false: Any) -> Callable[[bool], dict[str, Any]]:
    return lambda value: _as(name)(if_true if value else if_false)


def _size(model_type: str) -> dict[str, Any]:
    depth, width, heads, patch_size = MODEL_TYPES[model_type]
    sizes = {"num_layers": depth, "num_attention_heads": heads, "attention_head_dim": width // heads}
    return {"transformer": {"patch_size": patch_size, **sizes}}


def _own_size(size: dict[str, int]) -> dict[str, Any]:
    heads = size["num_heads"]
    sizes = {"num_layers": size["depth"], "num_attention_heads": heads}
    return {"transformer": {**sizes, "attention_head_dim": size["hidden_size"] // heads}}


TRANSFORMER_KEYS = {
    "ckpt_path": Key(str, "`--checkpoint` of `convert pipeline`", "a pipeline folder samples, not a checkpoint"),
    "data.data_path": Key(
        str,
        "`data`, with `data_kind: latents`",
        "the original's shards are read as they are",
        lambda path: {"data": path, "data_kind": "latents"},
    ),
    "data.valid_path": _renamed(str, "validation_data", "the loss is measured every `validation_steps`, which is null"),
    "data.fid_reference_file": Key(
        str, "`--reference` of `evaluate generation`", "", _as("reference"), recipe="evaluate"
    ),
    "data.image_size": _renamed(int, "resolution", "the size of latents follows from the data; this is of images"),
    "data.num_classes": _renamed(int, "num_classes", "names of classes in the data go before it"),
    "data.num_workers": _renamed(int, "num_workers"),
    "data.latent_norm": Key(
        bool,
        "`latents_mean`, `latents_std` in the VAE's config",
        "a VAE that has statistics applies them, in training and sampling alike",
    ),
    "data.latent_multiplier": Key(
        float,
        "`scaling_factor` in the VAE's config",
        "`convert pipeline` writes it, 0.18215 where the key is missing, as in the original",
    ),
    "vae.model_name": Key(str, "the folder or Hub id `vae`", "its config.json has the architecture"),
    "vae.downsample_ratio": Key(int, "the folder or Hub id `vae`", "its config.json has the architecture"),
    "model.model_type": Key(
        str, "`transformer.num_layers`, `num_attention_heads`, `attention_head_dim`, `patch_size`", "", _size
    ),
    "model.x_test_size": Key(dict, "the same", "no key of the original: of the recorded test data", _own_size),
    "model.use_qknorm": _renamed(bool, "transformer.use_qk_norm"),
    "model.use_swiglu": Key(
        bool,
        "`transformer.activation_fn`: swiglu or gelu-approximate",
        "",
        _chosen("transformer.activation_fn", "swiglu", "gelu-approximate"),
    ),
    "model.use_rope": _renamed(bool, "transformer.use_rope"),
    "model.use_rmsnorm": Key(
        bool,
        "`transformer.norm_type`: rms_norm or layer_norm",
        "",
        _chosen("transformer.norm_type", "rms_norm", "layer_norm"),
    ),
    "model.wo_shift": Key(
        bool, "`transformer.use_adaln_shift`, the opposite", "", _chosen("transformer.use_adaln_shift", False, True)
    ),
    "model.in_chans": Key(int, "the VAE's `latent_channels`", "the transformer takes the channels of its data"),
    "model.learn_sigma": _renamed(bool, "transformer.learn_sigma"),
    "model.use_checkpoint": _renamed(
        bool,
        "gradient_checkpointing",
        "off here unless it is asked for: it saves memory, and costs a second forward pass",
    ),
    "train.max_steps": _renamed(int, "max_train_steps"),
    "train.global_batch_size": _renamed(
        int,
        "global_batch_size",
        "over all processes and accumulation steps; `gradient_accumulation_steps` has no counterpart there",
    ),
    "train.global_seed": _renamed(int, "seed", "the random numbers are others"),
    "train.output_dir": Key(str, "`output_dir`", "together with `exp_name`: output_dir/exp_name"),
    "train.exp_name": Key(str, "`output_dir`", "together with `output_dir`: output_dir/exp_name"),
    "train.ckpt": _renamed(
        str, "resume_from_checkpoint", "a .pt of the original goes on with model, average and optimiser"
    ),
    "train.resume": Key(
        bool,
        "`resume_from_checkpoint: latest`",
        "the newest checkpoint by its number, exactly as it was",
        _chosen("resume_from_checkpoint", "latest", None),
    ),
    "train.log_every": _renamed(int, "logging_steps"),
    "train.ckpt_every": _renamed(
        int, "checkpointing_steps", "the newest 3 are kept; `checkpoints_total_limit: null` keeps all, as the original"
    ),
    "train.weight_init": _renamed(
        str,
        "weight_init",
        "takes `ema` where the original takes `model`, and copies all input channels where the original copies 16",
    ),
    "optimizer.lr": _renamed(float, "learning_rate"),
    "optimizer.beta2": Key(float, "`adam_betas`", "the first is 0.9", lambda beta2: {"adam_betas": [0.9, beta2]}),
    "optimizer.max_grad_norm": _renamed(
        float, "max_grad_norm", "missing there means no clipping; the default here is 1.0"
    ),
    "transport.path_type": Key(str, "nothing: Linear", "another value is refused"),
    "transport.prediction": Key(str, "nothing: velocity", "another value is refused"),
    "transport.loss_weight": Key(str, "nothing", "it weighs the losses of noise and score, which are not trained here"),
    "transport.train_eps": Key(float, "`time_range`", "null there is [0.0, 1.0], the default; a number is left to you"),
    "transport.sample_eps": Key(float, "nothing", "null there integrates from 0 to 1, as here; a number is left"),
    "transport.use_cosine_loss": _renamed(bool, "use_cosine_loss"),
    "transport.use_lognorm": Key(
        bool,
        "`time_sampling`: logit_normal or uniform",
        "the 800 epochs switch it off after 600,000 steps: `uniform_times_from_step`",
        _chosen("time_sampling", "logit_normal", "uniform"),
    ),
    "sample.mode": Key(str, "nothing: ODE", "SDE is refused: a pipeline with `FlowMatchSDEScheduler` draws so"),
    "sample.sampling_method": Key(
        str,
        "the call's `ode_method`: euler is the scheduler, dopri5 and heun2 are torchdiffeq's",
        "",
        lambda method: {"sampling": {} if method == "euler" else {"ode_method": method}},
        recipe="evaluate",
    ),
    "sample.atol": Key(
        float,
        "the call's `ode_atol`",
        "has no effect on euler",
        _as("sampling.ode_atol"),
        "evaluate",
    ),
    "sample.rtol": Key(
        float,
        "the call's `ode_rtol`",
        "has no effect on euler",
        _as("sampling.ode_rtol"),
        "evaluate",
    ),
    "sample.reverse": Key(bool, "nothing: false", "true is refused"),
    "sample.likelihood": Key(bool, "nothing: false", "true is refused: likelihoods have a pipeline of their own"),
    "sample.num_sampling_steps": Key(
        int, "`num_inference_steps`, one less", GRID_POINTS_NOTE, lambda points: {"num_inference_steps": points - 1}
    ),
    "sample.cfg_scale": Key(
        float,
        "`guidance_scale`, with `guidance_channels: 3`",
        "the original always guides the first three channels; here it is a setting",
        lambda scale: {"guidance_scale": scale, "guidance_channels": 3},
    ),
    "sample.cfg_interval_start": Key(
        float, "`guidance_interval`", "its start", lambda start: {"guidance_interval": [start, 1.0]}
    ),
    "sample.timestep_shift": Key(
        float, "`timestep_shift`", "0 is 1.0 here: no shift", lambda shift: {"timestep_shift": shift or 1.0}
    ),
    "sample.per_proc_batch_size": Key(
        int, "`--micro_batch_size` of `evaluate generation`", "", _as("micro_batch_size"), recipe="evaluate"
    ),
    "sample.fid_num": Key(
        int,
        "`--num_images` of `evaluate generation`, with `--labels random`",
        "exactly as many, where the original rounds up to whole batches; balanced labels are the default here",
        lambda number: {"num_images": number, "labels": "random"},
        recipe="evaluate",
    ),
}

LOSS, SHAPE = "model.params.lossconfig.params", "model.params.ddconfig"
FOUNDATION_MODELS = {"dinov2": "facebook/dinov2-large", "mae": "facebook/vit-mae-large"}
VAE_KEYS = {
    "ckpt_path": Key(str, "`--checkpoint` of `convert vae`", "an AutoencoderVAVAE folder encodes, not a checkpoint"),
    "weight_init": _renamed(str, "weight_init", "a checkpoint of the original, or a folder"),
    "model.base_learning_rate": _renamed(float, "learning_rate", "the rate itself, whatever the batch size"),
    "model.target": Key(str, "nothing", "`train vae` trains this class"),
    "model.params.monitor": Key(str, "nothing", "checkpoints are kept by age, not by a measure"),
    "model.params.embed_dim": _renamed(int, "vae.latent_channels"),
    "model.params.use_vf": Key(
        str,
        "`foundation_model`: dinov2 is facebook/dinov2-large, mae facebook/vit-mae-large",
        "missing or null there means `vf_weight: 0`",
        lambda name: {"foundation_model": FOUNDATION_MODELS[name]},
    ),
    "model.params.reverse_proj": _renamed(bool, "reverse_proj"),
    "model.params.ckpt_path": _renamed(str, "weight_init"),
    "model.params.lossconfig.target": Key(str, "nothing", "the losses follow from their weights"),
    f"{LOSS}.disc_start": Key(
        int,
        "`disc_start`, half of it",
        "the original counts two steps a batch: 5001 is 2500 here",
        lambda start: {"disc_start": start // 2},
    ),
    f"{LOSS}.kl_weight": _renamed(float, "kl_weight"),
    f"{LOSS}.disc_weight": _renamed(float, "disc_weight"),
    f"{LOSS}.perceptual_weight": _renamed(float, "perceptual_weight"),
    f"{LOSS}.vf_weight": _renamed(float, "vf_weight"),
    f"{LOSS}.adaptive_vf": _renamed(bool, "adaptive_vf"),
    f"{LOSS}.distmat_margin": _renamed(float, "distmat_margin", "missing there means 0; the default here is 0.25"),
    f"{LOSS}.cos_margin": _renamed(float, "cos_margin", "missing there means 0; the default here is 0.5"),
    f"{LOSS}.distmat_weight": _renamed(float, "distmat_weight"),
    f"{LOSS}.cos_weight": _renamed(float, "cos_weight"),
    f"{LOSS}.pp_style": Key(bool, "`reduction`: mean or sum", "", _chosen("reduction", "mean", "sum")),
    f"{LOSS}.disc_loss": _renamed(str, "disc_loss"),
    f"{LOSS}.disc_num_layers": _renamed(int, "discriminator.num_layers"),
    f"{SHAPE}.double_z": Key(bool, "nothing: true", "false is refused: the posterior has a variance"),
    f"{SHAPE}.z_channels": _renamed(int, "vae.latent_channels", "has to be `embed_dim`"),
    f"{SHAPE}.resolution": _renamed(int, "resolution"),
    f"{SHAPE}.in_channels": Key(int, "nothing: 3", "another number is refused"),
    f"{SHAPE}.out_ch": Key(int, "nothing: 3", "another number is refused"),
    f"{SHAPE}.ch": Key(int, "`vae.block_out_channels`", "`ch` times each of `ch_mult`"),
    f"{SHAPE}.ch_mult": Key(list, "`vae.block_out_channels`", "`ch` times each of `ch_mult`"),
    f"{SHAPE}.num_res_blocks": _renamed(int, "vae.layers_per_block"),
    f"{SHAPE}.attn_resolutions": Key(
        list, "`vae.down_block_types`, `vae.up_block_types`", "levels with attention, for images of `resolution`"
    ),
    f"{SHAPE}.dropout": Key(float, "nothing: 0", "another number is refused"),
    "data.params.batch_size": Key(
        int, "`global_batch_size`", "of all processes together: times devices, nodes and accumulation"
    ),
    "data.params.num_workers": _renamed(int, "num_workers", "of each training process"),
    "data.*": Key(object, "`data`, `validation_data`", "a folder or Hub id for `datasets`, in place of data classes"),
    "lightning.trainer.devices": Key(object, "`accelerate launch --quiet --num_processes`", ""),
    "lightning.trainer.gpus": Key(object, "`accelerate launch --quiet --num_processes`", ""),
    "lightning.trainer.num_nodes": Key(int, "`accelerate launch --quiet --num_machines`", ""),
    "lightning.trainer.accumulate_grad_batches": _renamed(int, "gradient_accumulation_steps"),
    "lightning.trainer.max_epochs": Key(
        int, "`max_train_steps`", "optimiser steps: epochs times images / `global_batch_size`"
    ),
    "lightning.*": Key(object, "settings of `accelerate launch` and of `train vae`", "PyTorch Lightning is not used"),
}
ONLY_VALUES = {
    **REQUIRED_SETTINGS,
    "sample.mode": "ODE",
    "sample.likelihood": False,
    f"{SHAPE}.double_z": True,
    f"{SHAPE}.in_channels": 3,
    f"{SHAPE}.out_ch": 3,
    f"{SHAPE}.dropout": 0.0,
}
ALTERNATIVES = {
    "sample.mode": "`FlowMatchSDEScheduler` draws by the SDE, and no recipe does",
    "sample.likelihood": "likelihoods are computed by `LightningDiTLikelihoodPipeline`, and no recipe does",
}


def translate_yaml(config: OriginalConfig) -> Recipes:
    """The training and sampling that a YAML of the original describes, as recipes of ours.

    The kind of the file follows from its content: `model.params` is an autoencoder's, everything else the
    transformer's. A YAML for sampling alone gives what it has.

    Raises:
        ValueError: naming file, key and value, for a value of another type, or one that cannot be trained or sampled
            with here.
    """
    is_vae = config.get("model.params", dict) is not None
    keys = VAE_KEYS if is_vae else TRANSFORMER_KEYS
    recipes = Recipes("vae" if is_vae else "transformer")
    for name in _names(config.values, keys):
        key = _find(name, keys)
        if key is None:
            recipes.unknown.append(name)
            continue
        value = config.get(name, key.kind)
        if value is None:
            continue
        _check(config, name, value)
        if name in ONLY_VALUES:  # which holds here without a setting
            recipes.taken.append(name)
            continue
        if key.settings is None:
            recipes.left[name] = f"{key.ours}" + (f" ({key.note})" if key.note else "")
            continue
        target = recipes.train if key.recipe == "train" else recipes.evaluate
        _merge(target, key.settings(value))
        recipes.taken.append(name)
    (_finish_vae if is_vae else _finish_transformer)(config, recipes)
    for name in recipes.taken:
        recipes.left.pop(name, None)
    return recipes


def _names(values: dict, keys: dict[str, Key], outer: str = "") -> Iterator[str]:
    """The dotted names of all values, and of the dictionaries that are the value of a key."""
    for inner, value in values.items():
        name = f"{outer}{inner}"
        if isinstance(value, dict) and name not in keys:
            yield from _names(value, keys, f"{name}.")
        else:
            yield name


def _find(name: str, keys: dict[str, Key]) -> Key | None:
    patterns = (key for key in keys if key.endswith("*") and name.startswith(key[:-1]))
    return keys.get(name) or keys.get(next(patterns, ""))


def _check(config: OriginalConfig, name: str, value: Any) -> None:
    """Raise ValueError for a value that cannot be used here."""
    if name in ONLY_VALUES and value != ONLY_VALUES[name]:
        remedy = ALTERNATIVES.get(name, "nothing else is trained or sampled here")
        raise config.error(name, value, f"{ONLY_VALUES[name]!r}, since {remedy}")
    choices = {"model.model_type": MODEL_TYPES, "model.params.use_vf": FOUNDATION_MODELS}.get(name)
    if choices is not None and value not in choices:
        raise config.error(name, value, f"one of {', '.join(choices)}")
    if name == "sample.num_sampling_steps" and value < 2:
        raise config.error(name, value, "at least 2, the points of the time grid")


def _merge(recipe: dict[str, Any], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        recipe[name] = {**recipe.get(name, {}), **value} if isinstance(value, dict) else value


def _finish_transformer(config: OriginalConfig, recipes: Recipes) -> None:
    """Settings that take several keys, and what the original does without a key."""
    train, evaluate = recipes.train, recipes.evaluate
    folders = [config.get(f"train.{name}", str) for name in ("output_dir", "exp_name")]
    if any(folders):
        train["output_dir"] = "/".join(folder.rstrip("/") for folder in folders if folder)
        recipes.taken += [name for name in ("train.output_dir", "train.exp_name") if name in recipes.left]
    if config.get("train", dict):
        if config.get("optimizer.max_grad_norm", float) is None:
            train["max_grad_norm"] = None
            recipes.remarks.append(
                "`optimizer.max_grad_norm` is missing: gradients are not clipped, as there; 1.0 is safer"
            )
        for name in ("transport.use_lognorm", "transport.use_cosine_loss"):
            if config.get(name, bool) is None:
                recipes.remarks.append(f"`{name}` is missing: true is taken, as in the published recipes")
        if config.get("model.use_checkpoint", bool) is None:
            recipes.remarks.append(
                "`model.use_checkpoint` is missing: `gradient_checkpointing` is off, where the original has it on"
            )
        train["mixed_precision"] = "bf16"
        recipes.remarks.append("`mixed_precision: bf16`, as the published recipes; the YAML has no key for it")
    if config.get("sample", dict):
        # the original takes these where the YAML has none
        for name, value in (("guidance_interval", [0.0, 1.0]), ("timestep_shift", 1.0)):
            train.setdefault(name, value)
        if "ode_method" not in evaluate.get("sampling", {}):
            evaluate.pop("sampling", None)  # tolerances, which Euler has not
            for name in ("sample.atol", "sample.rtol"):
                if name in recipes.taken:
                    recipes.taken.remove(name)
                    recipes.left[name] = "nothing (has no effect on euler)"


def _finish_vae(config: OriginalConfig, recipes: Recipes) -> None:
    train = recipes.train
    if config.get("model.params.use_vf", str) is None:
        train["vf_weight"] = 0.0
        recipes.remarks.append("`model.params.use_vf` is missing: no alignment, `vf_weight: 0`")
    for name in ("distmat_margin", "cos_margin"):
        train.setdefault(name, 0.0)
    widths = [config.get(f"{SHAPE}.ch", int), config.get(f"{SHAPE}.ch_mult", list)]
    if all(widths):
        train.setdefault("vae", {})["block_out_channels"] = [widths[0] * factor for factor in widths[1]]
        recipes.taken += [f"{SHAPE}.ch", f"{SHAPE}.ch_mult"]
    z_channels, embed_dim = (config.get(name, int) for name in (f"{SHAPE}.z_channels", "model.params.embed_dim"))
    if None not in (z_channels, embed_dim) and z_channels != embed_dim:
        raise config.error(f"{SHAPE}.z_channels", z_channels, f"{embed_dim}, `model.params.embed_dim`")
    _attention_levels(config, recipes)
    if "weight_init" in train and "vae" in train:
        recipes.remarks.append("`vae` is left out of the recipe: the architecture follows from `weight_init`")
        del train["vae"]
    batch_size = config.get("data.params.batch_size", int)
    devices = config.get("lightning.trainer.devices", object)
    if batch_size is not None and isinstance(devices, int):
        counts = [config.get(f"lightning.trainer.{name}", int, 1) for name in ("num_nodes", "accumulate_grad_batches")]
        train["global_batch_size"] = batch_size * devices * counts[0] * counts[1]
        recipes.taken.append("data.params.batch_size")
    epochs, global_batch_size = config.get("lightning.trainer.max_epochs", int), train.get("global_batch_size")
    if epochs is not None and global_batch_size is not None:
        steps = epochs * IMAGENET_IMAGES // global_batch_size
        recipes.left["lightning.trainer.max_epochs"] = f"`max_train_steps`; of ImageNet these epochs are {steps:,}"


def _attention_levels(config: OriginalConfig, recipes: Recipes) -> None:
    """Attention is at the lowest level by default; other levels are written as types of blocks."""
    name = f"{SHAPE}.attn_resolutions"
    attention, resolution = config.get(name, list), config.get(f"{SHAPE}.resolution", int)
    widths = recipes.train.get("vae", {}).get("block_out_channels")
    if attention is None or resolution is None or widths is None:
        return
    levels = [resolution // 2**level in attention for level in range(len(widths))]
    if levels != [False] * (len(widths) - 1) + [True]:
        down = ["AttnDownEncoderBlock2D" if level else "DownEncoderBlock2D" for level in levels]
        up = ["AttnUpDecoderBlock2D" if level else "UpDecoderBlock2D" for level in reversed(levels)]
        recipes.train["vae"] |= {"down_block_types": down, "up_block_types": up}
    recipes.taken.append(name)


def key_table(keys: dict[str, Key]) -> str:
    """The keys as a table in Markdown, for the documentation."""
    lines = ["| Original | Here | What differs, and why |", "|---|---|---|"]
    for name, key in keys.items():
        short = re.sub(r"^model\.params\.(lossconfig\.params|ddconfig)\.", r"... \1.", name)
        lines.append(f"| `{short}` | {key.ours} | {key.note} |")
    return "\n".join(lines) + "\n"
