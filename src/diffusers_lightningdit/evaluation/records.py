# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The JSON record of a measurement: its results, and everything that they depend on."""

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
SIGNIFICANT_DIGITS = 6  # the digits that reproduce on the same kind of device


def measurement_record(
    command: str, results: dict[str, Any], config: Any, weights: dict[str, str], accelerator: Accelerator
) -> dict[str, Any]:
    """Compose the content of a measurement's JSON file.

    Args:
        command: The name of the command of `diffusers_lightningdit.evaluate`.
        results: The results by name. Values that are not finite become None, since JSON has none.
        config: The dataclass of the command's settings, which include the seeds.
        weights: The SHA-256 sum of the weights of each network that took part.
        accelerator: The accelerator, for the device and the number of processes.
    """
    device = accelerator.device
    return {
        "command": command,
        "results": _with_finite_floats(results),
        "settings": dataclasses.asdict(config),
        "weights_sha256": weights,
        "num_processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_installed_versions()},
    }


def significant(value: Any) -> Any:
    """Round floats to 6 significant digits for JSON, also within lists and dictionaries."""
    if isinstance(value, dict):
        return {name: significant(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [significant(inner) for inner in value]
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _with_finite_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_finite_floats(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_finite_floats(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect warnings, and print each of them once and in one line to stderr at the end.

    Yields:
        A list, which holds these lines after the context, in the order of their first occurrence.
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


def _installed_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
