# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Write the tables of settings in docs/*.md, from the help beside the fields of the config dataclasses.

    python docs/option_tables.py

A table stands between the lines `<!-- settings: MODULE.CLASS -->` and `<!-- end of settings -->`; after
`MODULE.CLASS beyond MODULE.BASE` it has only the settings that are not, or not so, in the base class.
The table of the original's YAML keys `original.recipes.NAME` stands between `<!-- original keys: NAME -->` and
`<!-- end of keys -->`. tests/test_docs.py checks that the tables are up to date.
"""

import itertools
import re
from importlib import import_module
from pathlib import Path

from diffusers_lightningdit.original import recipes
from diffusers_lightningdit.settings import settings_of

PAGES = sorted(Path(__file__).parent.glob("*.md"))
TABLE = re.compile(r"(<!-- settings: (\S+)(?: beyond (\S+))? -->\n).*?(<!-- end of settings -->)", re.DOTALL)
KEYS = re.compile(r"(<!-- original keys: (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)


def find_class(name: str) -> type:
    module, _, class_name = name.rpartition(".")
    return getattr(import_module(f"diffusers_lightningdit.{module}"), class_name)


def table(config_class: type, base_class: type | None) -> str:
    """The settings of a dataclass in Markdown, with a row for the name of each group."""
    known = settings_of(base_class) if base_class is not None else {}
    settings = [entry for name, entry in settings_of(config_class).items() if known.get(name) != entry]
    lines = ["| Setting | Default | Meaning |", "|---|---|---|"]
    for group, members in itertools.groupby(settings, key=lambda entry: entry.group):
        lines.append(f"| **{group}** | | |")
        for entry in members:
            default = "required" if entry.is_required else f"`{entry.default_text}`"
            meaning = entry.help + (f" ({entry.requirement})" if entry.requirement_matters else "")
            lines.append(f"| `{entry.name}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def updated(text: str) -> str:
    """The text of a page with its tables as the dataclasses have them now."""

    def replaced(match: re.Match) -> str:
        base = None if match[3] is None else find_class(match[3])
        return match[1] + table(find_class(match[2]), base) + match[4]

    def keys(match: re.Match) -> str:
        return match[1] + recipes.key_table(getattr(recipes, match[2])) + match[3]

    return KEYS.sub(keys, TABLE.sub(replaced, text))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(updated(page.read_text(encoding="utf-8")), encoding="utf-8")
