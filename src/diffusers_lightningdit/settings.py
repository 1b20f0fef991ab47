# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Settings of a command: `--config recipe.yaml key=value ...` read into one dataclass, and checked in one line each.

A recipe holds only what differs from the dataclass's defaults; `key=value` goes over the recipe, and may be written
`--key value` or `--key=value` as well. A field that is a dictionary (the arguments of a model) is merged, and takes
`field.key=value`.
"""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import math
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import PartialState

from .files import one_line

Config = TypeVar("Config")


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


REQUIREMENTS = {dict: "keys with values", str: "text, in quotes where YAML reads it otherwise", type(None): "none"}


def _convert(name: str, value: Any, kind: Any) -> Any:
    """A value, as YAML read it, as the field's type."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for candidate in kinds:
        items = typing.get_args(candidate)  # of a tuple
        if typing.get_origin(candidate) is list and isinstance(value, list):
            return [_convert(name, item, items[0]) for item in value]
        if items[1:] == (...,) and isinstance(value, list):
            return tuple(_convert(name, item, items[0]) for item in value)
        if items and isinstance(value, list) and len(value) == len(items):
            return tuple(_convert(name, *pair) for pair in zip(value, items, strict=True))
        if candidate is float and type(value) in (int, float, str):  # YAML 1.1 reads 1e-4 as text
            with contextlib.suppress(ValueError):
                number = float(value)
                if math.isfinite(number):
                    return number
        if not items and type(value) is candidate:
            return value
    required = [_requirement(kind) for kind in kinds]
    raise ValueError(f"`{name}` is {value!r}; required: {' or '.join(required)}.")


def _requirement(kind: Any) -> str:
    items = typing.get_args(kind)
    if items:
        return "a list of numbers" if items[1:] in ((...,), ()) else f"{len(items)} numbers"
    return REQUIREMENTS.get(kind, kind.__name__)


def _unknown_key(name: str, known: Sequence[str], of: str) -> ValueError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(sorted(known))}."
    return ValueError(f"`{name}` is no key of {of}.{hint}")


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def parse_config(config_class: type[Config], argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read `--config recipe.yaml key=value --key value ...` into the dataclass `config_class`.

    Raises:
        ValueError: for a recipe that is missing or no mapping, an unknown key, a value of another type, or a field
            without a default that is given nowhere.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", type=Path, help="recipe: a YAML file of differences from the defaults")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that go over the recipe")
    kinds = typing.get_type_hints(config_class)
    arguments = parser.parse_intermixed_args(_flags_to_settings(sys.argv[1:] if argv is None else argv, kinds))

    settings: dict[str, Any] = {}
    if arguments.config is not None:
        if not arguments.config.is_file():
            raise ValueError(f"`--config` is {str(arguments.config)!r}; required: an existing YAML file.")
        try:
            recipe = yaml.safe_load(arguments.config.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{arguments.config} is no YAML file: {one_line(error)}") from error
        if not isinstance(recipe, dict):
            raise ValueError(f"{arguments.config} holds a {type(recipe).__name__}; required: keys with values.")
        settings.update(recipe)
    for setting in arguments.settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"the argument is {setting!r}; required: key=value.")
        try:
            # YAML would read text such as 2024 or no as a number or a truth value
            value = text if kinds.get(name) is str else yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"`{name}` is {text!r}; required: a YAML value.") from error
        name, dot, inner = name.partition(".")
        if dot and not isinstance(settings.setdefault(name, {}), dict):
            raise ValueError(
                f"`{name}.{inner}` is given, but `{name}` is {settings[name]!r}; required: keys with values."
            )
        settings[name] = {**settings[name], inner: value} if dot else value
    return make_config(config_class, settings)


def _flags_to_settings(argv: Sequence[str], known: Sequence[str]) -> list[str]:
    """`--key value` and `--key=value` of known keys as `key=value`; everything else as it is."""
    settings, words = [], iter(argv)
    for word in words:
        flag, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and flag.partition(".")[0] in known:
            if not equals:
                value = next(words, None)
                if value is None:
                    raise ValueError(f"`--{flag}` has no value; required: --{flag} VALUE or {flag}=VALUE.")
            word = f"{flag}={value}"
        settings.append(word)
    return settings


def make_config(config_class: type[Config], settings: dict[str, Any]) -> Config:
    """Check `settings` against the dataclass's fields and their types; raises ValueError as `parse_config`."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    kinds = typing.get_type_hints(config_class)
    values = {}
    for name, value in settings.items():
        if name not in fields:
            raise _unknown_key(name, list(fields), config_class.__name__)
        values[name] = _convert(name, value, kinds[name])
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"`{name}` is not given; required: {name}=... or a line of the recipe.")
    return config_class(**values)


def make_model_arguments(
    name: str, arguments: dict[str, Any], model_class: type, follow: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The dictionary field `name`, with values of the types that `model_class` has for its arguments.

    Args:
        name: of the field.
        arguments: its keys and values, as they were read.
        model_class: of the model.
        follow: examples of the arguments that will follow from the data.

    Raises:
        ValueError: in one line, for a key that is no argument, a value of another type, a whole number that is not
            positive, and what the class refuses when it is made, without weights.
    """
    parameters = [parameter for parameter in inspect.signature(model_class.__init__).parameters if parameter != "self"]
    kinds = typing.get_type_hints(model_class.__init__)
    values = {}
    for key, value in arguments.items():
        if key not in parameters:
            raise _unknown_key(f"{name}.{key}", [f"{name}.{argument}" for argument in parameters], model_class.__name__)
        values[key] = _convert(f"{name}.{key}", value, kinds[key])
        for number in values[key] if isinstance(values[key], tuple) else [values[key]]:
            if type(number) is int:
                check_at_least(f"{name}.{key}", number, 1)
    try:
        with torch.device("meta"):
            model_class(**values, **(follow or {}))
    except Exception as error:  # of whatever layer does not fit
        raise ValueError(
            f"`{name}` is {values}; required: what makes a model of its class ({one_line(error)})."
        ) from error
    return values


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError if `value` is not among `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; required: one of {', '.join(choices)}.")


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise ValueError if `value` is below `minimum`."""
    if not value >= minimum:
        raise ValueError(f"`{name}` is {value}; required: at least {minimum}.")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError if `value` is not above 0."""
    if not value > 0:
        raise ValueError(f"`{name}` is {value}; required: a positive number.")


@contextlib.contextmanager
def one_line_errors(
    kinds: tuple[type[Exception], ...] = (ValueError,),
    status: int = 2,
    of_one_process: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Exceptions of these `kinds` become one line on the main process, and the exit status.

    The defaults are for a script's checks of what the user gave. Those `of_one_process`, which only the process meets
    whose part of the data it is, become a line on any process.
    """
    try:
        yield
    except (*kinds, *of_one_process) as error:
        is_main_process = PartialState._shared_state.get("process_index", 0) == 0  # without starting process groups
        if is_main_process or isinstance(error, of_one_process):
            # one that a data loader's worker raised comes with a traceback, and ends in "<module>.<class>: <message>"
            message = str(error).strip().splitlines()[-1].split(f"{type(error).__name__}: ", maxsplit=1)[-1]
            print(f"error: {message}", file=sys.stderr)
        raise SystemExit(status) from error
