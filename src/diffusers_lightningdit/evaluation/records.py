# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Run a measurement, and compose its JSON record: the results, and everything that they depend on."""

import contextlib
import dataclasses
import json
import math
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import datasets
import torch
from accelerate import Accelerator

from ..files import one_line, read_json
from ..interruption import interruptible
from ..processes import patient_accelerator
from ..settings import one_line_errors, parse_config

Config = TypeVar("Config")

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
RESUMES = "interrupted; run again, the command resumes."
BEGINS_ANEW = "interrupted; run again, the command starts from the beginning."
SIZES = ("num_images", "height", "width")  # of the samples, in the record of `evaluate generation`
SIGNIFICANT_DIGITS = 6  # the digits that reproduce on the same kind of device


def run_command(
    config_class: type[Config],
    evaluate: Callable[[Config, Accelerator], dict[str, Any]],
    record_file: str,
    argv: Sequence[str] | None,
    description: str,
    interrupted: str = BEGINS_ANEW,
) -> dict[str, Any]:
    """Run a command that writes a record, print its results and return it. An error becomes one line and the status 2.

    Args:
        config_class: The dataclass of the command's settings, among them `output_dir`.
        evaluate: The function that measures, writes the record and returns it.
        record_file: The name of the record's file in `output_dir`.
        argv: The words of the command line; by default those of this process.
        description: The text that --help prints above the settings.
        interrupted: The line that Ctrl-C and SIGTERM end the command with.
    """
    with one_line_errors((ValueError, ImportError, OSError)), interruptible(interrupted):
        config = parse_config(config_class, argv, description)
        datasets.disable_progress_bars()
        accelerator = patient_accelerator()
        record = evaluate(config, accelerator)
        if accelerator.is_main_process:
            print(json.dumps(record["results"], indent=2))
            print(f"wrote {Path(config.output_dir) / record_file}")
    accelerator.end_training()
    return record


def measurement_record(
    command: str, results: dict[str, Any], config: Any, weights: dict[str, str], accelerator: Accelerator
) -> dict[str, Any]:
    """Compose the content of a measurement's JSON file.

    Args:
        command: The name of the command of `diffusers_lightningdit.evaluate`.
        results: The results by name. Infinity, the PSNR of equal images, becomes None, since JSON has none.
        config: The dataclass of the command's settings, which include the seeds.
        weights: The SHA-256 sum of the weights of each network that took part.
        accelerator: The accelerator, for the device and the number of processes.

    Raises:
        ValueError: If a result is NaN.
    """
    device = accelerator.device
    return {
        "command": command,
        "results": _without_infinity(results),
        "settings": dataclasses.asdict(config),
        "weights_sha256": weights,
        "num_processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "num_threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **_installed_versions()},
    }


def read_record(path: str | Path) -> dict[str, Any]:
    """Read the record of `evaluate generation`; raises ValueError, in one line, if it is damaged or another file."""
    record = read_json(path, "the record that `evaluate generation` wrote, or that the file be removed")
    sizes = [record["samples"].get(name) for name in SIZES] if isinstance(record.get("samples"), dict) else [None]
    parts = [record.get(name) for name in ("results", "settings")]
    parts += [record.get(name) or {} for name in ("reference", "features")]
    if not (all(isinstance(part, dict) for part in parts) and all(isinstance(size, int) for size in sizes)):
        raise ValueError(f"{path} is no record that `evaluate generation` wrote; required: one, or that it be removed.")
    return record


def significant(value: Any) -> Any:
    """Round floats to 6 significant digits for JSON, also within lists and dictionaries."""
    if isinstance(value, dict):
        return {name: significant(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [significant(inner) for inner in value]
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


def _without_infinity(value: Any, name: str = "results") -> Any:
    if isinstance(value, dict):
        return {key: _without_infinity(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_infinity(inner, name) for inner in value]
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"`{name}` is NaN; required: networks and images of which it is a number.")
    return None if value == math.inf else value


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
