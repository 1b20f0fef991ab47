"""The small form of the recorded set: how its checkpoints are made again, and how a cut tensor is compared.

The recorded weights are random numbers, drawn by a rule that the recording states. From one seeded generator on the
CPU, r = randn(shape) is drawn for each parameter, in the sorted order of their names. The value is 1 + std * r for a
vector whose name ends in `.weight`, otherwise std * r. So a checkpoint travels as a recipe. NAME.recipe.json holds its
layout, with seeds and shapes in place of the drawn values; NAME.recipe.safetensors holds the tensors that were not
drawn.
"""

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RECIPE = ".recipe.json"
TENSORS = ".recipe.safetensors"


def draw(shapes: dict[str, Sequence[int]], seed: int, std: float) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, value) of parameters of these names and shapes, drawn one by one by the recording's rule."""
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(shapes):
        value = torch.randn(shapes[name], generator=generator).mul_(std)
        yield name, value.add_(1) if value.ndim == 1 and name.endswith(".weight") else value


def total(tensors) -> float:
    return math.fsum(tensor.double().sum().item() for tensor in tensors)


def draw_of(name: str, draws: list[dict]) -> dict | None:
    """Return the draw that a tensor of this name comes from; None, where it was not drawn."""
    return next((one for one in draws if re.match(one["names"], name)), None)


def write_recipe(content: dict, file: Path, draws: dict[str, list[dict]]) -> None:
    """Write the recipe of a checkpoint.

    Args:
        content: The content of the checkpoint.
        file: The path under which the checkpoint is to be restored.
        draws: For each state dict of `content`, the draws it comes from: the pattern that fits the beginning of their
            `names`, their `seed` and their `std`. Entries that are not named are plain data.

    Raises:
        ValueError: If the recipe does not restore every tensor of the checkpoint bit for bit.
    """
    recorded: dict[str, torch.Tensor] = {}
    recipe = {"state_dicts": {}, "plain": {key: value for key, value in content.items() if key not in draws}}
    for entry, of_entry in draws.items():
        layout = {}
        for name, value in content[entry].items():
            if draw_of(name, of_entry):
                layout[name] = "x".join(map(str, value.shape))
            else:  # equal tables of two state dicts are stored once
                equal = (key for key, other in recorded.items() if torch.equal(other, value))
                layout[name] = next(equal, f"{entry}/{name}")
                recorded[layout[name]] = value
        drawn = [value for name, value in content[entry].items() if draw_of(name, of_entry)]
        recipe["state_dicts"][entry] = {"draws": of_entry, "sum_of_drawn": total(drawn), "tensors": layout}
    file.with_name(file.name + RECIPE).write_text(json.dumps(recipe, indent=1) + "\n")
    if recorded:
        save_file(recorded, file.with_name(file.name + TENSORS))

    restored = read_recipe(file)
    for entry in draws:
        before, after = content[entry], restored[entry]
        if list(before) != list(after) or not all(torch.equal(before[name], after[name]) for name in before):
            raise ValueError(f"the recipe of {file} does not restore its entry `{entry}`; required: all its draws")


def read_recipe(file: Path) -> dict:
    """Return the content of the checkpoint `file`, drawn again from the recipe beside it.

    Raises:
        ValueError: If torch.randn draws other numbers here than in the recording.
    """
    recipe = json.loads(file.with_name(file.name + RECIPE).read_text())
    tensors = file.with_name(file.name + TENSORS)
    recorded = load_file(tensors) if tensors.exists() else {}
    content = {}
    for entry, state_dict in recipe["state_dicts"].items():
        drawn = {}
        for one in state_dict["draws"]:
            names = [name for name in state_dict["tensors"] if draw_of(name, state_dict["draws"]) is one]
            shapes = {name: [int(side) for side in state_dict["tensors"][name].split("x")] for name in names}
            drawn.update(draw(shapes, one["seed"], one["std"]))
        if not math.isclose(total(drawn.values()), state_dict["sum_of_drawn"], abs_tol=1e-2):
            raise ValueError(
                f"{file.name}: the drawn values of `{entry}` sum to {total(drawn.values())}; required: "
                f"{state_dict['sum_of_drawn']}, as recorded (torch.randn draws other numbers here)"
            )
        # in the order of the file
        content[entry] = {
            name: drawn[name] if name in drawn else recorded[value] for name, value in state_dict["tensors"].items()
        }
    return content | recipe["plain"]


def restore(small: Path, folder: Path) -> Path:
    """Make `folder` a copy of the small set with its checkpoints made again, and return it."""
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.py", "*.md", "*.recipe.*", "__pycache__"))
    for recipe in small.rglob(f"*{RECIPE}"):
        file = recipe.with_name(recipe.name.removesuffix(RECIPE))
        content, target = read_recipe(file), folder / file.relative_to(small)
        if file.suffix == ".safetensors":
            save_file(content["tensors"], target)
        else:
            torch.save(content, target)
    return folder


def recorded_part(values, recorded):
    """Return the entries of `values` that `recorded` holds: all, or every n-th along each side that was cut.

    Args:
        values: A tensor or an array, whole.
        recorded: The recorded one. Each side of `values` is a multiple of its side.
    """
    steps = [size // kept for size, kept in zip(values.shape, recorded.shape, strict=True)]
    return values[tuple(slice(None, None, step) for step in steps)]
