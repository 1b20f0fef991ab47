# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Settings of every script and command: a dataclass whose fields carry their help, read from recipe and command line.

    @dataclass(kw_only=True)
    class Config:
        data: str = required("Folder or Hub id of the images.", group="Data")
        learning_rate: float = setting(2e-4, "The peak learning rate.", group="Optimisation", above=0)
        transformer: dict = setting({}, "Arguments of the model.", group="Model")

    config = parse_config(Config, argv, __doc__)

reads `--config recipe.yaml key=value --key value --key=value`. A recipe is a YAML file that holds only what differs
from the defaults; the command line goes over it. `transformer.num_layers=12` sets one key of a dictionary and leaves
the others. `--help` prints every setting by group. A value that cannot be used is a ValueError of one line, which
`one_line_errors` prints.
"""

import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import math
import re
import shutil
import signal
import sys
import textwrap
import types
import typing
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import PartialState
from huggingface_hub.utils import HFValidationError, validate_repo_id

from .files import one_line
from .interruption import Interrupted, exit_status

Config = TypeVar("Config")


# ---------------------------------------------------------------------------------------------------------------------
# Fields
# ---------------------------------------------------------------------------------------------------------------------

# The headings of --help, in its order.
GROUPS = (
    "Input",
    "Data",
    "Model",
    "Loss",
    "Optimisation",
    "Averages of the weights",
    "Checkpoints",
    "Skipped steps",
    "Validation and samples",
    "Logging",
    "Sampling",
    "Reference",
    "Measures",
    "Computation",
    "Output",
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a config dataclass, with everything that its author says about it.

    Attributes:
        name: The name of the field.
        kind: The type of its values.
        default: The default value; `dataclasses.MISSING` if it has to be given.
        help: The meaning of the field, in whole phrases.
        group: The heading that it stands under, one of `GROUPS`.
        choices: The values that it may have; empty if any value of its type will do.
        minimum: The least value that it may have.
        above: The value that it has to be greater than.
        below: The value that it has to be less than.
    """

    name: str
    kind: Any
    default: Any
    help: str = ""
    group: str = GROUPS[0]
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def is_required(self) -> bool:
        """Whether the field has no default."""
        return self.default is dataclasses.MISSING

    @property
    def default_text(self) -> str:
        """The default as YAML writes it, or "required"."""
        if self.is_required:
            return "required"
        return _text(self.default)

    @property
    def requirement(self) -> str:
        """The values that the field may have: "a whole number, at least 1, or null"."""
        if self.choices:
            text = ", ".join(self.choices)
        else:
            text = " or ".join(_requirement(kind) for kind in _kinds(self.kind) if kind is not types.NoneType)
        if self.minimum is not None:
            text += f", at least {self.minimum:g}"
        if self.above is not None:
            text += f", above {self.above:g}"
        if self.below is not None:
            text += f", below {self.below:g}"
        if types.NoneType in _kinds(self.kind):
            text += ", or null" if "," in text else " or null"
        return text

    @property
    def requirement_matters(self) -> bool:
        """Whether the requirement says more than that the field is text, or true or false."""
        return bool(self.choices) or not {*_kinds(self.kind)} <= {str, bool, types.NoneType}


def setting(default: Any, help: str, *, group: str | None = None, **limits: Any) -> Any:
    """A dataclass field with its help.

    Args:
        default: The default value; a dictionary is copied for each object.
        help: The meaning of the field, in whole phrases, with its unit.
        group: The heading of this field and those after it in the class, one of `GROUPS`.
        limits: `choices`, `minimum`, `above` or `below`, as in `Setting`; `check_settings` looks after them.
    """
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata={"help": help, "group": group, **limits})
    return dataclasses.field(default=default, metadata={"help": help, "group": group, **limits})


def required(help: str, *, group: str | None = None, **limits: Any) -> Any:
    """A dataclass field that has to be given; the arguments are those of `setting`."""
    return setting(dataclasses.MISSING, help, group=group, **limits)


def argument_list(model_class: type, without: Sequence[str] = ()) -> str:
    """The arguments of a model with their defaults, "num_layers=28, ...", for the help of a dictionary field."""
    parameters = inspect.signature(model_class.__init__).parameters.values()
    return ", ".join(
        f"{parameter.name}={_text(parameter.default)}"
        for parameter in parameters
        if parameter.name not in ("self", *without)
    )


def _text(default: Any) -> str:
    return default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)


@functools.cache
def settings_of(config_class: type) -> dict[str, Setting]:
    """All fields by name, in the order of their groups.

    A field that a derived class declares again has the group of the first declaration, and its help and limits unless
    it brings its own.
    """
    metadata: dict[str, dict] = {}
    for base in reversed(config_class.__mro__):
        group = None
        for name in inspect.get_annotations(base) if dataclasses.is_dataclass(base) else ():
            given = {key: value for key, value in base.__dataclass_fields__[name].metadata.items() if value is not None}
            group = given.pop("group", group)
            known = metadata.get(name, {"group": group or GROUPS[0]})
            metadata[name] = {**known, **given}
    kinds = typing.get_type_hints(config_class)
    settings = []
    for field in dataclasses.fields(config_class):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        settings.append(Setting(field.name, kinds[field.name], default, **metadata[field.name]))
    return {entry.name: entry for entry in sorted(settings, key=lambda entry: GROUPS.index(entry.group))}


# ---------------------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------------------


REQUIREMENTS = {
    bool: "true or false",
    dict: "keys with values",
    float: "a number",
    int: "a whole number",
    str: "text",
    types.NoneType: "null",
}
PLURALS = {float: "numbers", int: "whole numbers", str: "texts"}
LARGEST_FLOAT, LARGEST_INTEGER = torch.finfo(torch.float32).max, torch.iinfo(torch.int64).max
BOOLEANS = ("true", "false", "yes", "no", "on", "off")  # of YAML 1.1
QUOTES = "text, in quotes where YAML reads it otherwise"


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-4 is a number, as everybody reads it; YAML 1.1 wants 1.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)


def _item_kind(kind: Any) -> Any:
    """The type of the items of a list, None if values are no lists."""
    return next((typing.get_args(member)[0] for member in _kinds(kind) if typing.get_args(member)), None)


def _requirement(kind: Any) -> str:
    items = typing.get_args(kind)
    if not items:
        return REQUIREMENTS.get(kind) or kind.__name__
    plural = " or ".join(PLURALS.get(item) or f"items, each {_requirement(item)}" for item in _kinds(items[0]))
    return f"a list of {plural}" if items[1:] in ((...,), ()) else f"a list of {len(items)} {plural}"


def _convert(name: str, value: Any, kind: Any) -> Any:
    """A value, as YAML read it, as the field's type."""
    _check_content(name, value)
    for candidate in _kinds(kind):
        items = typing.get_args(candidate)  # of a list or tuple
        if typing.get_origin(candidate) is list and isinstance(value, list):
            return [_convert(name, item, items[0]) for item in value]
        if items[1:] == (...,) and isinstance(value, list):
            return tuple(_convert(name, item, items[0]) for item in value)
        if items and isinstance(value, list) and len(value) == len(items):
            return tuple(_convert(name, *pair) for pair in zip(value, items, strict=True))
        if candidate is float and type(value) is int and abs(value) <= sys.float_info.max:
            return float(value)
        if not items and type(value) is candidate:
            return value
    words = " or ".join(QUOTES if candidate is str else _requirement(candidate) for candidate in _kinds(kind))
    raise ValueError(f"`{name}` is {value!r}; required: {words}.")


def _check_content(name: str, value: Any) -> None:
    """Raise ValueError for a number without a place or a key that is no text, at any depth of what YAML read."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{name}` is {value}; required: a finite number.")
    if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
        raise ValueError(f"`{name}` is {value}; required: a number that float32 holds.")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"`{name}` is a whole number of {value.bit_length()} bits; required: a number of at most 63.")
    if isinstance(value, list | tuple):
        for item in value:
            _check_content(name, item)
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"`{name}` has the key {key!r}; required: {QUOTES}.")
            _check_content(f"{name}.{key}", item)


def _unknown_key(name: str, known: Sequence[str], of: str) -> ValueError:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(sorted(known))}."
    return ValueError(f"`{name}` is no key of {of}.{hint}")


def nested(settings: Iterable[tuple[str, Any]], of: str = "") -> dict[str, Any]:
    """("sampling.guidance_scale", 2) as {"sampling": {"guidance_scale": 2}}, merged with what `sampling` holds.

    Args:
        settings: Pairs of a key and its value, from which the later go over the earlier.
        of: The name of the field that holds the settings, with a point, for errors.

    Raises:
        ValueError: if `sampling` is given, and is no dictionary.
    """
    result: dict[str, Any] = {}
    for name, value in settings:
        field, dot, key = name.partition(".")
        if dot:
            outer = result.get(field, {})
            if not isinstance(outer, dict):
                raise ValueError(f"`{of}{name}` is given, but `{of}{field}` is {outer!r}; required: keys with values.")
            value = {**outer, key: value}
        result[field] = value
    return result


def make_config(config_class: type[Config], settings: dict[str, Any]) -> Config:
    """Check `settings` against the dataclass's fields and their types; raises ValueError as `parse_config`."""
    fields = settings_of(config_class)
    values = {}
    for name, value in settings.items():
        if name not in fields:
            raise _unknown_key(name, list(fields), config_class.__name__)
        values[name] = _convert(name, value, fields[name].kind)
    recipe = "" if "config" in fields else " or a line of the recipe"
    for name, field in fields.items():
        if name not in values and field.is_required:
            raise ValueError(f"`{name}` is not given; required: {name}=...{recipe} (see --help).")
    return config_class(**values)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def parse_config(config_class: type[Config], argv: Sequence[str] | None = None, description: str = "") -> Config:
    """Read `--config recipe.yaml key=value --key value ...` into the dataclass `config_class`.

    `--flag` alone is true, and `--list 1 2` is the list [1, 2]. A class with a field `config` takes no recipe.

    Args:
        config_class: The dataclass whose fields are the settings.
        argv: The words of the command line; by default those of this process.
        description: The text that --help prints above the settings, where this function prints it and ends the process.

    Raises:
        ValueError: for a recipe that is missing or no mapping, an unknown key, a value of another type, or a field
            without a default that is given nowhere.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(help_text(config_class, description, terminal_width()))
        raise SystemExit(0)
    return make_config(config_class, read_settings(config_class, argv))


def read_settings(config_class: type, argv: Sequence[str]) -> dict[str, Any]:
    """The recipe and what goes over it, before any check of a value; raises ValueError as `parse_config`."""
    kinds = {name: field.kind for name, field in settings_of(config_class).items()}
    takes_recipe = "config" not in kinds
    if takes_recipe:
        kinds["config"] = str
    words, given, recipe = deque(argv), [], {}
    while words:
        name, value = _take_setting(words, kinds, config_class.__name__)
        if name == "config" and takes_recipe:
            recipe = _read_recipe(value)
        else:
            given.append((name, value))
    return nested([*recipe.items(), *given])


def _read_recipe(file: str) -> dict[str, Any]:
    if not Path(file).is_file():
        raise ValueError(f"`--config` is {file!r}; required: an existing YAML file.")
    try:
        recipe = yaml.load(Path(file).read_text(encoding="utf-8"), _Loader)
        json.dumps(recipe, default=str, skipkeys=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two of values that hold themselves
        raise ValueError(f"{file} is no YAML file that can be used: {one_line(error)}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{file} holds a {type(recipe).__name__}; required: keys with values.")
    for key in recipe:
        if not isinstance(key, str):
            raise ValueError(f"{file} has the key {key!r}; required: {QUOTES}.")
    return recipe


def _take_setting(words: deque[str], kinds: dict[str, Any], of: str) -> tuple[str, Any]:
    """Take the next setting from the words: `key=value`, `--key=value`, `--key value ...` or `--flag`."""
    word = words.popleft()
    is_flag = word.startswith("--")
    name, equals, text = word.removeprefix("--").partition("=")
    if not equals and not is_flag:
        raise ValueError(f"the argument is {word!r}; required: key=value or --key value.")
    field, dot, _ = name.partition(".")
    if field not in kinds:
        raise _unknown_key(name, list(kinds), of)
    kind = Any if dot else kinds[field]  # the keys of a dictionary have types of their own
    if equals:
        return name, _read_value(name, text, kind)
    if kind is bool and not (words and words[0].lower() in BOOLEANS):
        return name, True
    if not words or words[0].startswith("--"):
        raise ValueError(f"`--{name}` has no value; required: --{name} VALUE or {name}=VALUE.")
    texts = [words.popleft()]
    item_kind = _item_kind(kind)
    if item_kind is None:
        return name, _read_value(name, texts[0], kind)
    while words and not words[0].startswith("--") and "=" not in words[0]:
        texts.append(words.popleft())
    value = _read_value(name, texts[0], kind)  # a whole list, "[1, 2]", or the first of several values
    if len(texts) == 1 and (isinstance(value, list) or type(value) in (types.NoneType, *_kinds(kind))):
        return name, value
    return name, [_read_value(name, text, item_kind) for text in texts]


def _read_value(name: str, text: str, kind: Any) -> Any:
    """Read a word of the command line as YAML; where text is wanted, what YAML reads as another type stays text."""
    kinds = _kinds(kind)
    if kinds == (str,):
        return text
    try:
        value = yaml.load(text, _Loader)
        json.dumps(value, default=str, skipkeys=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two of values that hold themselves
        if str in kinds:
            return text
        raise ValueError(f"`{name}` is {text!r}; required: a YAML value.") from error
    return text if str in kinds and type(value) not in kinds else value


def terminal_width() -> int:
    """The columns that text is wrapped to, at most 120."""
    return min(shutil.get_terminal_size().columns, 120)


def wrapped(text: str, width: int | None = None) -> str:
    """Text with its paragraphs and lists wrapped to `width` columns, by default the terminal's; indented ones stay."""
    fill = functools.partial(textwrap.fill, width=width or terminal_width(), break_on_hyphens=False)
    paragraphs = []
    for paragraph in text.strip("\n").split("\n\n"):
        if paragraph.startswith("- "):  # a list, whose lines go on indented
            items = [" ".join(item.split()) for item in re.split(r"\n(?=- )", paragraph)]
            paragraph = "\n".join(fill(item, subsequent_indent="  ") for item in items)
        elif not paragraph.startswith(" "):  # no command line
            paragraph = fill(paragraph)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def help_text(config_class: type, description: str, width: int) -> str:
    """The text of --help: the description, then every setting by group, wrapped to `width` columns."""
    fields = settings_of(config_class)
    fill = functools.partial(textwrap.fill, width=width, break_on_hyphens=False)
    usage = "Settings are given as key=value, --key value or --key=value; a list as [1, 2], nothing as null."
    if "config" not in fields:
        usage += " `--config FILE` reads settings from a YAML file; the command line goes over it."
    paragraphs = [wrapped(description, width), wrapped(usage, width)]
    margin = max(len(name) for name in fields) + 4
    for group, members in itertools.groupby(fields.values(), key=lambda field: field.group):
        lines = [f"{group}:"]
        for field in members:
            remarks = ["required" if field.is_required else f"default: {field.default_text}"]
            if field.requirement_matters:
                remarks.insert(0, field.requirement)
            text = f"{field.help} ({'; '.join(remarks)})"
            first = f"  {field.name:<{margin - 4}}  "
            lines.append(fill(text, initial_indent=first, subsequent_indent=" " * margin))
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def make_model_arguments(
    name: str, arguments: dict[str, Any], model_class: type, follow: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The dictionary field `name`, with values of the types that `model_class` has for its arguments.

    Args:
        name: The name of the field.
        arguments: The keys and values of the field, as they were read.
        model_class: The class of the model.
        follow: Examples of the arguments that will follow from the data.

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


def check_settings(config: Any) -> None:
    """Raise ValueError for a field whose value, unless it is None, is outside the limits that it was declared with."""
    for field in settings_of(type(config)).values():
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple | list) else (value,):
            if item is None:
                continue
            if field.choices:
                check_choice(field.name, item, field.choices)
            if field.minimum is not None:
                check_at_least(field.name, item, field.minimum)
            if field.above is not None:
                check_above(field.name, item, field.above)
            if field.below is not None and not item < field.below:
                raise ValueError(f"`{field.name}` is {item}; required: below {field.below:g}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError if `value` is not among `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; required: one of {', '.join(choices)}.")


def check_at_least(name: str, value: float, minimum: float) -> None:
    """Raise ValueError if `value` is below `minimum`."""
    if not value >= minimum:
        raise ValueError(f"`{name}` is {value}; required: at least {minimum}.")


def check_above(name: str, value: float, bound: float) -> None:
    """Raise ValueError if `value` is not above `bound`."""
    if not value > bound:
        required = "a positive number" if bound == 0 else f"above {bound}"
        raise ValueError(f"`{name}` is {value}; required: {required}.")


def check_repository(name: str, value: str) -> None:
    """Raise ValueError unless `value` can be the name of a repository on the Hub, user/name."""
    try:
        validate_repo_id(value)
        is_name = value.count("/") == 1
    except HFValidationError:
        is_name = False
    if not is_name:
        raise ValueError(f"`{name}` is {value!r}; required: user/name.")


@contextlib.contextmanager
def one_line_errors(
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
    status: int = 2,
    of_one_process: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Exceptions of these `kinds` become one line on the main process, and the exit status.

    The defaults are for a script's checks of what the user gave. Those `of_one_process`, which only the process meets
    whose part of the data it is, become a line on any process. Ctrl-C and `Interrupted` become one with the status 130
    or 143.
    """
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        if is_main_process():
            print(stop if isinstance(stop, Interrupted) else "interrupted", file=sys.stderr)
        number = stop.number if isinstance(stop, Interrupted) else signal.SIGINT
        raise SystemExit(exit_status(number)) from stop
    except (*kinds, *of_one_process) as error:
        if is_main_process() or isinstance(error, of_one_process):
            message = one_line(error)
            if TRACEBACK in message:  # of a data loader's worker, which ends in "<module>.<class>: <message>"
                message = str(error).strip().splitlines()[-1].split(f"{type(error).__name__}: ", maxsplit=1)[-1]
            print(f"error: {message}", file=sys.stderr)
        raise SystemExit(status) from error


TRACEBACK = "Traceback (most recent call last)"


def is_main_process() -> bool:
    """Whether this is the main process, without starting process groups."""
    return PartialState._shared_state.get("process_index", 0) == 0
