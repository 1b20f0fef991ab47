# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Print the completion script of a shell: commands, settings and the values that they choose from.

    source <(diffusers-lightningdit completion --shell bash)
    diffusers-lightningdit completion --shell zsh > "${fpath[1]}/_diffusers-lightningdit"

The script is made by the package shtab (`pip install diffusers-lightningdit[completion]`) from the settings, as
`--key value`. It is static: pressing Tab starts no Python.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from ..settings import check_settings, one_line_errors, parse_config, setting, settings_of
from . import COMMANDS, JSON_FLAG, NAME, PACKAGE, Command

SHELLS = ("bash", "zsh")
PATH_WORDS = ("File", "Folder")  # the first words of the help of settings that are paths


@dataclasses.dataclass(kw_only=True)
class CompletionConfig:
    """Settings of `diffusers-lightningdit completion`.

    Raises:
        ValueError: For a shell that is none of `SHELLS`.
    """

    shell: str = setting("bash", "The shell.", choices=SHELLS)

    def __post_init__(self):
        check_settings(self)


def settings_class(command: Command) -> type:
    """The dataclass of a command's settings."""
    return getattr(importlib.import_module(f"{PACKAGE}.{command.module}"), command.settings)


def argument_parser() -> argparse.ArgumentParser:
    """The tree of commands as a parser of argparse, which completes lines and parses none."""
    parser = argparse.ArgumentParser(prog=NAME)
    parser.add_argument(JSON_FLAG, action="store_true", help="Print one JSON object.")
    _add_commands(parser, COMMANDS)
    return parser


def _add_commands(parser: argparse.ArgumentParser, commands: dict[str, Command]) -> None:
    import shtab

    subparsers = parser.add_subparsers()
    for name, command in commands.items():
        inner = subparsers.add_parser(name, help=command.about)
        if command.commands:
            _add_commands(inner, command.commands)
            continue
        fields = settings_of(settings_class(command))
        if "config" not in fields:
            inner.add_argument("--config", help="A YAML file of settings.").complete = shtab.FILE
        for field in fields.values():
            about = field.help.partition(". ")[0].replace("%", "%%")
            choices = field.choices or (("true", "false") if field.kind is bool else None)
            argument = inner.add_argument(f"--{field.name}", help=about, choices=choices)
            if field.help.startswith(PATH_WORDS):
                argument.complete = shtab.FILE


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, ImportError)):
        config = parse_config(CompletionConfig, argv, __doc__)
        try:
            import shtab
        except ImportError as error:
            raise ImportError(
                "completion needs shtab; required: pip install diffusers-lightningdit[completion]"
            ) from error
        script = shtab.complete(argument_parser(), shell=config.shell)
    print(script)
    return {"shell": config.shell, "script": script}
