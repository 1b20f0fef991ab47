# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What `--help` of an evaluation command prints: its settings, one line each."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TypeVar

from ...settings import parse_config

Config = TypeVar("Config")


def parse_command(
    config_class: type[Config], argv: Sequence[str] | None, description: str, help_of: dict[str, str]
) -> Config:
    """`parse_config`, or, with -h or --help among the arguments, print the settings with their defaults and exit."""
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(description.strip() + "\n\nSettings, as --key value or key=value (or in a YAML file, --config FILE):\n")
        for field in dataclasses.fields(config_class):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            note = (
                "required" if default is dataclasses.MISSING else f"default: {'none' if default is None else default}"
            )
            print(f"  {field.name:<24}{help_of[field.name]} ({note})")
        raise SystemExit(0)
    return parse_config(config_class, argv)
