# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""VA-VAE and LightningDiT for diffusers: images of classes, from a checkpoint or one that you train yourself.

    diffusers-lightningdit demo
    diffusers-lightningdit page
    diffusers-lightningdit sample --pipeline FOLDER_OR_HUB_ID --classes seven 3 --output_dir images
    diffusers-lightningdit convert pipeline --checkpoint original.pt --config lightningdit_xl_800ep --vae vavae.pt \
        --latents_stats latents_stats.pt --output_dir pipeline
    accelerate launch --quiet -m diffusers_lightningdit train transformer --config imagenet256_b1 data=latents ...

Each command has settings, which `diffusers-lightningdit COMMAND --help` explains. `--json` anywhere in the line puts
one JSON object on the standard output, with the command's result or its error; all else goes to the standard error.
`python -m diffusers_lightningdit` is the same command, which `accelerate launch -m` starts on several GPUs.
"""

import contextlib
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluate import COMMANDS as EVALUATIONS
from ..evaluation.commands.tools import TOOLS
from ..files import json_values, one_line
from ..settings import is_main_process, one_line_errors, wrapped

PACKAGE = __name__.partition(".")[0]
NAME = "diffusers-lightningdit"
JSON_FLAG = "--json"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command, or a group of them.

    Attributes:
        about: What the command does, in a phrase.
        module: The module with `main(argv)`, within the package; of a group None.
        settings: The dataclass of its settings, by its name in `module`.
        configs: The folder of the package with the YAML files that `--config` may name without folder and ending.
        first: The words that `main` gets before those of the command line.
        commands: The commands of a group by name.
    """

    about: str
    module: str | None = None
    settings: str | None = None
    configs: str | None = None
    first: tuple[str, ...] = ()
    commands: dict[str, "Command"] = dataclasses.field(default_factory=dict)


def _evaluation(name: str, about: str) -> Command:
    module = f"evaluation.commands.{name}"
    if name != "tools":
        return Command(about, module, f"{name.capitalize()}Config")
    tools = {
        tool: Command(TOOL_PHRASES[tool], module, config_class.__name__, first=(tool,))
        for tool, (config_class, _) in TOOLS.items()
    }
    return Command(about, commands=tools)


def _conversion(about: str, script: str, configs: str | None = None) -> Command:
    return Command(about, f"conversion.{script}", "ConversionConfig", configs)


def _training(about: str, script: str, settings: str) -> Command:
    return Command(about, f"training_scripts.{script}", settings, "training_scripts/recipes")


TOOL_PHRASES = {
    "pack": "a folder of PNG files as one .npz file",
    "unpack": "an .npz file as a folder of PNG files",
    "statistics": "the statistics of a reference, for FID and sFID",
    "grid": "a grid of images with a titled row for each class",
    "curves": "the metrics of a training run over its steps",
}
COMMANDS = {
    "sample": Command("draw images of classes into a folder", "commands.sample", "SampleConfig"),
    "convert": Command(
        "original checkpoints and YAML files to diffusers, and back",
        commands={
            "pipeline": _conversion(
                "an original LightningDiT to a transformer, or with --vae to a pipeline",
                "convert_lightningdit_to_diffusers",
                "conversion/configs",
            ),
            "vae": _conversion("an original VA-VAE, LDM or MAR-VAE to AutoencoderVAVAE", "convert_vavae_to_diffusers"),
            "original": _conversion(
                "a folder of diffusers to files that the original loads", "convert_diffusers_to_lightningdit"
            ),
            "yaml": _conversion(
                "a YAML of the original to recipes for training and evaluation", "convert_yaml_to_recipe"
            ),
            "change3d": _conversion(
                "an original Change3D to a model or pipeline, X3D-L to one to train, and back",
                "convert_change3d_to_diffusers",
            ),
            "checkpoint": _conversion(
                "a checkpoint of a training run to the pipeline, autoencoder or LoRA that the run would leave",
                "convert_checkpoint_to_diffusers",
            ),
            "change3d_checkpoint": _conversion(
                "a checkpoint of a training run of Change3D to a pipeline", "convert_change3d_checkpoint"
            ),
            "lpips": _conversion(
                "the published weights of LPIPS to the file that VA-VAE's training reads",
                "convert_lpips_to_safetensors",
            ),
        },
    ),
    "evaluate": Command(
        "measure pipelines, autoencoders and latents",
        commands={name: _evaluation(name, about) for name, about in EVALUATIONS.items()},
    ),
    "train": Command(
        "cache latents; train autoencoder, transformer, LoRA, few-step student or Change3D",
        commands={
            "latents": _training(
                "encode the images of a data set once, for training on them", "cache_latents", "CachingConfig"
            ),
            "vae": _training("the autoencoder, the first stage", "train_vavae", "VAVAETrainingConfig"),
            "transformer": _training(
                "the transformer, the second stage", "train_lightningdit", "LightningDiTTrainingConfig"
            ),
            "lora": _training(
                "low-rank additions to a pipeline, also for new classes",
                "train_lightningdit_lora",
                "LoraTrainingConfig",
            ),
            "few_step": _training(
                "a student of a pipeline that draws in a few steps",
                "train_lightningdit_few_step",
                "FewStepTrainingConfig",
            ),
            "change3d": _training(
                "a model of changes between two images of one place", "train_change3d", "Change3DTrainingConfig"
            ),
        },
    ),
    "demo": Command("draw every class of the embedded checkpoint", "demo.generate_grid", "GridConfig"),
    "page": Command("serve a page to draw on, interpolate, and try the autoencoder", "demo.app", "PageConfig"),
    "push": Command(
        "a complete repository on the Hub of a checkpoint or pipeline",
        "commands.push",
        "PushConfig",
        "conversion/configs",
    ),
    "completion": Command("print the completion script of a shell", "commands.completion", "CompletionConfig"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `diffusers-lightningdit ARGV`; an error is one line, and the exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    if JSON_FLAG not in words:
        _run(words)
        return
    # Whatever prints, a library's progress bar too, is no part of the object.
    with contextlib.redirect_stdout(sys.stderr):
        outcome, status = _outcome([word for word in words if word != JSON_FLAG])
    if is_main_process():
        print(json.dumps(outcome, indent=2))
    if status:
        raise SystemExit(status)


def _outcome(words: list[str]) -> tuple[dict[str, Any], int]:
    """The object that --json prints, and the exit status."""
    outcome: dict[str, Any] = {"command": " ".join(words[: len(find(words))])}
    try:
        outcome["result"] = json_values(_run(words))
    except SystemExit as stop:
        if not stop.code:
            return outcome, 0
        outcome["error"] = one_line(stop.__cause__ or stop)
        return outcome, stop.code if isinstance(stop.code, int) else 1
    return outcome, 0


def find(words: Sequence[str]) -> list[Command]:
    """The commands that the first words name, outermost first."""
    commands, found = COMMANDS, []
    for word in words:
        if word not in commands:
            break
        found.append(commands[word])
        commands = commands[word].commands
    return found


def _run(words: list[str]) -> Any:
    """Run a command, and return what its `main` returns."""
    found = find(words)
    names, rest = words[: len(found)], words[len(found) :]
    command = found[-1] if found else Command("", commands=COMMANDS)
    if command.module is None:
        if not rest or rest[0] in ("-h", "--help"):
            print(_group_help(names, command))
            return None
        with one_line_errors():
            title = " ".join(["the command of", NAME, *names])
            raise ValueError(f"{title} is {rest[0]!r}; required: one of {', '.join(command.commands)}.")
    with one_line_errors():
        rest = with_installed_config(rest, command.configs)
        module = importlib.import_module(f"{PACKAGE}.{command.module}")
    return module.main([*command.first, *rest])


def _group_help(names: Sequence[str], group: Command) -> str:
    text = __doc__.strip() if not names else f"{' '.join([NAME, *names])}: {group.about}"
    width = max(map(len, group.commands)) + 2
    listed = [f"  {name:<{width}}{command.about}" for name, command in group.commands.items()]
    paragraphs = [wrapped(text), "Commands:\n" + "\n".join(listed)]
    if names:
        configs = {command.configs for command in group.commands.values()} - {None}
        for folder in sorted(configs):
            named = ", ".join(sorted(path.stem for path in installed_folder(folder).glob("*.yaml")))
            paragraphs.append(wrapped(f"`--config` takes a YAML file, or the name of one in {folder}: {named}."))
        paragraphs.append(f"`{' '.join([NAME, *names])} COMMAND --help` explains its settings.")
    return "\n\n".join(paragraphs)


# ---------------------------------------------------------------------------------------------------------------------
# Files that are installed with the package
# ---------------------------------------------------------------------------------------------------------------------


def installed_folder(name: str) -> Path:
    """A folder of the repository's top level, where it lies: in a checkout there, installed within the package."""
    first, _, rest = name.partition("/")
    return Path(importlib.import_module(f"{PACKAGE}.{first}").__path__[0]) / rest


def with_installed_config(words: list[str], folder: str | None) -> list[str]:
    """The words with the path of an installed file in place of its name after `--config`; a path stays as it is."""
    if folder is None:
        return words
    found = {path.stem: str(path) for path in installed_folder(folder).glob("*.yaml")}
    changed, previous = [], ""
    for word in words:
        key, equals, value = word.partition("=")
        if previous == "--config" and word in found and not Path(word).exists():
            word = found[word]
        elif key in ("--config", "config") and equals and value in found and not Path(value).exists():
            word = f"{key}={found[value]}"
        changed.append(word)
        previous = word
    return changed
