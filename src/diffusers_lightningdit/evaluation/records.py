# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What a number depends on, to be stored beside it."""

import contextlib
import dataclasses
import math
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate import Accelerator

from ..files import one_line

PACKAGES = (
    "diffusers-lightningdit",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "scikit-learn",
    "pillow",
)


def measurement_record(
    command: str, results: dict[str, Any], config: Any, weights: dict[str, str], accelerator: Accelerator
) -> dict[str, Any]:
    """The content of the JSON file of a measurement.

    Args:
        command: of `diffusers_lightningdit.evaluate`.
        results: the numbers by name; those that are not finite, which JSON does not know, become None.
        config: dataclass of the command's settings, seeds among them.
        weights: sha256 of the weights of each network that took part.
        accelerator: says on what, and in how many processes.
    """
    return {
        "command": command,
        "results": _finite(results),
        "settings": dataclasses.asdict(config),
        "weights_sha256": weights,
        "num_processes": accelerator.num_processes,
        "device": device_name(accelerator.device),
        "num_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **installed_versions()},
    }


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Warnings within the context are printed at its end, once and in one line each, to stderr.

    Yields:
        A list that holds these lines after the context, in the order in which they came first, for the JSON file.
    """
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield messages
        finally:
            messages.extend(dict.fromkeys(one_line(warning.message) for warning in caught))
            for message in messages:
                print(f"warning: {message}", file=sys.stderr)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
