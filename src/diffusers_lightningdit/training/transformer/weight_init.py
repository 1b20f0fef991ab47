# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The weights of another model to begin a training run with, also where shapes have changed."""

import unicodedata
from pathlib import Path

import torch

from ...files import one_line, read_model
from ...models import LightningDiTTransformer2DModel
from ...original.transformer import load_transformer
from ...pipelines.pipeline_lightningdit import LightningDiTPipeline

CLASS_TABLE = "class_embedder.embedding_table.weight"  # [K + 1, D]
# Weights are useless to a network that takes them in another way, and most of these leave no trace in their shapes.
SWITCHES = ("num_attention_heads", "attention_head_dim", "activation_fn", "norm_type", "use_qk_norm", "use_rope",
            "use_adaln_shift")  # fmt: skip


def load_initial_transformer(
    name: str, argument: str = "weight_init"
) -> tuple[LightningDiTTransformer2DModel, dict[int, str] | None]:
    """(transformer, names of its classes or None) of a diffusers folder or Hub id, or of an original checkpoint file.

    Of a checkpoint file, `ema` is taken where it has it. Only a pipeline knows names. `argument` is the setting that
    gives it, for messages.

    Raises:
        ValueError: in one line, if it is none of these, or damaged.
    """
    if name.endswith((".pt", ".pth", ".ckpt")):
        return load_transformer(name), None
    try:
        pipeline = LightningDiTPipeline.load_config(name)
        names = {int(class_id): names for class_id, names in (pipeline.get("id2label") or {}).items()}
    except Exception as error:
        if Path(name, "model_index.json").exists():  # without it the classes would have no names
            raise ValueError(
                f"`{argument}` is {name!r}, whose model_index.json cannot be read ({one_line(error)}); required: a "
                "sound file."
            ) from error
        pipeline = names = None  # a transformer alone, or nothing: the next error says what is wrong
    required = "folder or Hub id of a LightningDiT transformer or pipeline, or an original checkpoint (.pt)"
    is_part = pipeline is not None or Path(name, "transformer", "config.json").is_file()
    subfolder = "transformer" if is_part else None
    model = read_model(LightningDiTTransformer2DModel, name, argument, required, subfolder=subfolder)
    return model, names or None


def check_switches(model: LightningDiTTransformer2DModel, source: dict, argument: str, keys: tuple[str, ...]) -> None:
    """Raise ValueError where a model's architecture differs from that of the weights it is to have.

    Args:
        model: The model.
        source: The config of the weights' model.
        argument: The setting that gives the weights, and its value, for the message.
        keys: The arguments of the config that have to be the same.
    """
    for key in keys:
        if model.config[key] != source[key]:
            raise ValueError(
                f"{argument}, whose transformer has `{key}` {source[key]!r}; required: {model.config[key]!r}, as "
                "`transformer` and the data have it."
            )


@torch.no_grad()
def initialize_weights(
    model: LightningDiTTransformer2DModel,
    source: dict[str, torch.Tensor],
    names: dict[int, str] | None = None,
    source_names: dict[int, str] | None = None,
) -> list[str]:
    """Copy the weights that fit, as the original does with changed shapes.

    Tensors of the same name and shape are copied; the rows of the class table by the names of classes, if both models
    have names, and else by number. The input convolution of a model with more latent channels takes the
    source's first channels, and zeros for the others, so that these are ignored until they are learnt. All others keep
    their own initialisation.

    Args:
        model: The model, which is changed in place.
        source: The state dict of a `LightningDiTTransformer2DModel`.
        names: The names of the model's classes by id; synonyms are separated by commas.
        source_names: The names of the source's classes.

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
        elif name == CLASS_TABLE and names and source_names and value.shape[1:] == target.shape[1:]:
            remarks += _copy_class_rows(target, value, names, source_names)
        elif value.shape == target.shape:
            if name == CLASS_TABLE and names:
                remarks.append(f"`{name}`: rows by number, since `weight_init` has no names of classes")
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


def _copy_class_rows(
    target: torch.Tensor, source: torch.Tensor, names: dict[int, str], source_names: dict[int, str]
) -> list[str]:
    """Copy the row of each class from the class of that name, and the last row, the null class's."""
    target[-1] = source[-1]
    by_name: dict[str, list[int]] = {}
    for class_id, entry in source_names.items():
        for name in _names_of(entry):
            by_name.setdefault(name, []).append(class_id)
    origin, without = {}, []
    for class_id, entry in names.items():
        found = next((by_name[name] for name in _names_of(entry) if len(by_name.get(name, ())) == 1), None)
        if found is None:
            without.append(entry)
        else:
            origin[class_id] = found[0]
            target[class_id] = source[found[0]]
    remarks = []
    if any(class_id != found for class_id, found in origin.items()) or without:
        remarks.append(f"`{CLASS_TABLE}`: rows by the names of classes, of which {len(origin)} are in `weight_init`")
    if without:
        shown = ", ".join(map(repr, without[:5])) + (", ..." if len(without) > 5 else "")
        remarks.append(f"classes that are new or ambiguous, and keep their own initialisation: {shown}")
    return remarks


def _names_of(entry: str) -> list[str]:
    """The whole entry, then its synonyms, in Unicode's form NFC."""
    entry = unicodedata.normalize("NFC", entry)
    return list(dict.fromkeys(name.strip() for name in (entry, *entry.split(","))))


def _has_fewer_channels(source: torch.Size, target: torch.Size) -> bool:  # [D, C, p, p] each
    return source[1] < target[1] and (source[0], *source[2:]) == (target[0], *target[2:])
