# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What a set of images follows from: whoever goes on with one, or takes numbers from one, compares this first."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..files import json_values, partial_name, read_json, weights_sha256
from .commands.generation_config import GenerationConfig

SAMPLES_FILE = "samples.json"
IMAGES = "images"
OWN_FILES = re.compile(r"\d{6,}\.png(\.partial)?")
# Those whose code computes pixels.
PIXEL_PACKAGES = ("diffusers-lightningdit", "diffusers", "torch")
LONGEST_VALUE = 80  # characters of a value in a message


# ---------------------------------------------------------------------------------------------------------------------
# What it is
# ---------------------------------------------------------------------------------------------------------------------


def pipeline_identity(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """The part that costs time, since all weights are hashed: the networks, and what the pipeline itself is.

    The scheduler is left out, since runs may take another, and so is the pipeline's recipe, over which their settings
    go: `samples_identity` has both.
    """
    networks = {name: part for name, part in sorted(pipeline.components.items()) if isinstance(part, nn.Module)}
    own = {name: value for name, value in pipeline.config.items() if name not in pipeline.components}
    own.pop("sampling_recipe", None)
    return {
        "weights_sha256": {name: weights_sha256(network) for name, network in networks.items()},
        "configs": {name: _described(network, network.config) for name, network in networks.items()},
        "pipeline": _described(pipeline, own),
    }


def samples_identity(
    config: GenerationConfig, pipeline: DiffusionPipeline, device: torch.device, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that the pixels depend on, but for the make of the device, as it comes back from a JSON file.

    Args:
        config: of the command.
        pipeline: with the scheduler that draws.
        device: that it will draw on.
        known: `pipeline_identity` of it, for several runs.
    """
    recipe = {**(pipeline.config.get("sampling_recipe") or {}), **config.sampling}
    identity = {
        "labels": config.labels,
        "seed": config.seed,
        "sampling": recipe,
        "scheduler": _described(pipeline.scheduler, pipeline.scheduler.config),
        **(pipeline_identity(pipeline) if known is None else known),
        "dtype": config.dtype,
        "micro_batch_size": config.micro_batch_size,
        "device": device.type,
        "num_threads": config.num_threads if device.type == "cpu" else None,
        "versions": {name: version(name) for name in PIXEL_PACKAGES},
    }
    return json_values(identity)


def _described(part: object, config: dict[str, Any]) -> dict[str, Any]:
    """Class and settings, without what diffusers notes about where they came from."""
    return {"class": type(part).__name__, **{key: value for key, value in config.items() if not key.startswith("_")}}


# ---------------------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------------------


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, str, str] | None:
    """(name, what it was, what it is) of the first value that differs, or None.

    Both are of the kinds that JSON knows. Inner values are named like configs.vae.latents_std[3].
    """
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{name}.{key}" if name else key, before.get(key), now.get(key)) for key in {**now, **before}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{name}[{index}]", *values) for index, values in enumerate(zip(before, now, strict=True))]
    elif before == now:
        return None
    else:
        return name, _short(before), _short(now)
    return next((found for key, *values in pairs if (found := first_difference(*values, key)) is not None), None)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def check_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds anything but the beginning of this set."""
    name = f"`output_dir` is {str(folder)!r}"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{name}, a file; required: a folder.")
    file = folder / SAMPLES_FILE
    if not file.is_file():
        if any(path != partial_name(file) for path in folder.iterdir()):  # which a run that was ended may have left
            raise ValueError(f"{name}, which exists without {SAMPLES_FILE}; required: a new or an empty folder.")
        return
    begun = read_json(file, "another `output_dir`, or that the file be removed")
    difference = first_difference(begun, identity)
    if difference is not None:
        key, before, now = difference
        raise ValueError(
            f"{name}, whose images were drawn with {key} = {before}; required: the same, not {now}, or another folder."
        )
    for path in (folder / IMAGES).iterdir() if (folder / IMAGES).is_dir() else ():
        if not OWN_FILES.fullmatch(path.name):
            raise ValueError(f"{name}, where {IMAGES}/{path.name} was not drawn; required: only its own images.")
