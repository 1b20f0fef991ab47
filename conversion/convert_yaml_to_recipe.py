r"""Convert a YAML of the original, for training, sampling or VA-VAE, to recipes of this package.

    python conversion/convert_yaml_to_recipe.py --yaml lightningdit_xl_vavae_f16d32.yaml --output_dir recipes

Writes train.yaml for `train transformer` or `train vae`, and evaluate.yaml for `evaluate generation` if the file says
how images are drawn. Every key is accounted for: those that are not taken over are named with what takes their place,
unknown ones are named, and a value that cannot be trained or sampled with here is an error. docs/from_the_original.md
has the whole mapping.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffusers_lightningdit.files import check_output_dir, new_folder
from diffusers_lightningdit.original import OriginalConfig
from diffusers_lightningdit.original.recipes import Recipes, translate_yaml
from diffusers_lightningdit.settings import one_line_errors, parse_config, required

USES = {
    "train": "diffusers-lightningdit train {command} --config",
    "evaluate": "diffusers-lightningdit evaluate generation --config",
}


@dataclass(kw_only=True)
class ConversionConfig:
    """Settings of convert_yaml_to_recipe.py."""

    yaml: str = required("The original's YAML: a path, or user/repo:file of the Hub.")
    output_dir: str = required("Folder of the recipes, new or empty.", group="Output")


def recipe_text(recipes: Recipes, name: str, source: str) -> str:
    """The content of a recipe's file, with its source and what is left of it as comments."""
    use = USES[name].format(command=recipes.command)
    lines = [f"# Made of {Path(source).name} of the original, for `{use} {name}.yaml`."]
    if name == "train":
        lines += [f"# Left: {key}: {reason}" for key, reason in recipes.left.items()]
        lines += [f"# Unknown: {key}" for key in recipes.unknown]
        lines += [f"# {remark}" for remark in recipes.remarks]
    content = yaml.safe_dump(getattr(recipes, name), sort_keys=False, default_flow_style=None, width=120)
    return "\n".join(lines) + "\n" + content


def convert(config: ConversionConfig) -> dict[str, Any]:
    check_output_dir(config.output_dir)
    recipes = translate_yaml(OriginalConfig.read(config.yaml))
    names = [name for name in USES if getattr(recipes, name)]
    if not names:
        raise ValueError(f"{config.yaml}: has no key that a recipe can take; required: a YAML of the original.")
    with new_folder(config.output_dir) as folder:
        for name in names:
            (folder / f"{name}.yaml").write_text(recipe_text(recipes, name, config.yaml), encoding="utf-8")
    print(f"{config.output_dir}: {', '.join(f'{name}.yaml' for name in names)}; {len(recipes.taken)} keys taken over")
    for key, reason in recipes.left.items():
        print(f"left: {key}: {reason}")
    for key in recipes.unknown:
        print(f"unknown: {key}")
    for remark in recipes.remarks:
        print(remark)
    report = {name: getattr(recipes, name) for name in ("command", "taken", "left", "unknown", "remarks")}
    return {"output_dir": config.output_dir, "files": [f"{name}.yaml" for name in names], **report}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, OSError)):
        return convert(parse_config(ConversionConfig, arguments, __doc__))


if __name__ == "__main__":
    main()
