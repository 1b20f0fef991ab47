# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Everything that determines a generated set; compared before resuming or reusing it."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from ..files import HOLDER_FILE, LOCK_FILE, json_values, partial_name, read_json, weights_sha256
from .generation_config import GenerationConfig

SAMPLES_FILE = "samples.json"
IMAGES = "images"
OWN_FILES = re.compile(r"\d{6,}\.png(\.partial)?")
# The packages whose code computes pixels.
PIXEL_PACKAGES = ("diffusers-lightningdit", "diffusers", "torch")
MAX_VALUE_LENGTH = 80  # characters of a value in a message


# ---------------------------------------------------------------------------------------------------------------------
# Provenance
# ---------------------------------------------------------------------------------------------------------------------


def pipeline_provenance(pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Describe the networks, with the hashes of their weights, and the pipeline itself.

    This is the part of `samples_provenance` that takes time. The scheduler and the sampling recipe are left out, since
    the settings of a run may replace them.
    """
    components = sorted(pipeline.components.items())
    networks = {name: component for name, component in components if isinstance(component, nn.Module)}
    own = {name: value for name, value in pipeline.config.items() if name not in pipeline.components}
    own.pop("sampling_recipe", None)
    return {
        "weights_sha256": {name: weights_sha256(network) for name, network in networks.items()},
        "configs": {name: _described(network, network.config) for name, network in networks.items()},
        "pipeline": _described(pipeline, own),
    }


def samples_provenance(
    config: GenerationConfig, pipeline: DiffusionPipeline, device: torch.device, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Describe everything that the pixels of a generated set depend on, except for the model of the device.

    Args:
        config: The settings of `evaluate generation`.
        pipeline: The pipeline, with the scheduler that is used.
        device: The device that the images are drawn on.
        known: The result of `pipeline_provenance`, which is computed once for all runs of a sweep.

    Returns:
        Values as JSON has them.
    """
    recipe = {**(pipeline.config.get("sampling_recipe") or {}), **config.sampling}
    provenance = {
        "labels": config.labels,
        "seed": config.seed,
        "sampling": recipe,
        "scheduler": _described(pipeline.scheduler, pipeline.scheduler.config),
        **(pipeline_provenance(pipeline) if known is None else known),
        "dtype": config.dtype,
        "micro_batch_size": config.micro_batch_size,
        "device": device.type,
        "num_threads": config.num_threads if device.type == "cpu" else None,
        "versions": {name: version(name) for name in PIXEL_PACKAGES},
    }
    return json_values(provenance)


def _described(component: object, config: dict[str, Any]) -> dict[str, Any]:
    """Return the class and the settings, without diffusers' notes about where they were loaded from."""
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    return {"class": type(component).__name__, **settings}


# ---------------------------------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------------------------------


def first_difference(before: Any, now: Any, name: str = "") -> tuple[str, str, str] | None:
    """Find the first value that differs between two JSON contents.

    Returns:
        The name of the value, such as configs.vae.latents_std[3], its value before and its value now, shortened; or
        None if there is no difference.
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
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[:MAX_VALUE_LENGTH]}..."


def check_folder(folder: Path, provenance: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds anything but images of the set with this provenance."""
    name = f"`output_dir` is {str(folder)!r}"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{name}, a file; required: a folder.")
    file = folder / SAMPLES_FILE
    if not file.is_file():
        ignored = (partial_name(file).name, LOCK_FILE, HOLDER_FILE)  # a killed run may have left them
        if any(path.name not in ignored for path in folder.iterdir()):
            raise ValueError(f"{name}, which exists without {SAMPLES_FILE}; required: a new or an empty folder.")
        return
    begun = read_json(file, "another `output_dir`, or that the file be removed")
    difference = first_difference(begun, provenance)
    if difference is not None:
        key, before, now = difference
        raise ValueError(
            f"{name}, whose images were drawn with {key} = {before}; required: the same, not {now}, or another folder."
        )
    for path in (folder / IMAGES).iterdir() if (folder / IMAGES).is_dir() else ():
        if not OWN_FILES.fullmatch(path.name):
            raise ValueError(f"{name}, where {IMAGES}/{path.name} was not drawn; required: only its own images.")
