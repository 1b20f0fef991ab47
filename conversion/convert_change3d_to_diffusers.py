r"""Convert a checkpoint of Change3D to a pipeline folder of diffusers, or with --to_original such a folder back.

    python conversion/convert_change3d_to_diffusers.py --checkpoint levir_cd.pth --output_dir change3d-levir-cd
    python conversion/convert_change3d_to_diffusers.py --checkpoint change3d-levir-cd --to_original true \
        --output_dir original
    python conversion/convert_change3d_to_diffusers.py --checkpoint X3D_L.pyth --task binary --output_dir initialised

The task, the size of images and the numbers of classes and words are read off a checkpoint. X3D_L.pyth of PyTorchVideo,
trained on Kinetics-400, becomes a model of any task to begin training with. What no forward pass of a task uses lies in
original_unused.safetensors beside the model's weights, so that the way back returns every tensor bit by bit.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from diffusers_lightningdit.files import check_output_dir, new_folder, read_checkpoint, read_json, resolve_file
from diffusers_lightningdit.original.change3d import (
    change3d_from_original,
    change3d_to_original,
    change3d_with_x3d,
    read_change3d_folder,
    save_change3d,
)
from diffusers_lightningdit.original.translation import naming
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

ORIGINAL_FILE = "change3d.pth"


@dataclass(kw_only=True)
class ConversionConfig:
    """Settings of convert_change3d_to_diffusers.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    checkpoint: str = required(
        "File of Change3D or of X3D-L (a path, or user/repo:file of the Hub); with `to_original` a folder of diffusers."
    )
    to_original: bool = setting(False, "Whether to convert a folder of diffusers to a file of the original.")
    wordmap: str | None = setting(
        None, "The WORDMAP file of captions; null: a captioning model is saved without a pipeline."
    )

    task: str | None = setting(
        None,
        "The task that X3D-L is to be trained for; null for Change3D.",
        choices=("binary", "semantic", "damage", "captioning"),
        group="Model",
    )
    sample_size: int = setting(256, "The side of its images in pixels.", minimum=8)
    num_classes: int | None = setting(None, "Its number of classes, for semantic and damage.", minimum=2)

    output_dir: str = required("Folder of the pipeline, or of the original's file, new or empty.", group="Output")

    def __post_init__(self):
        check_settings(self)
        if self.to_original and (self.wordmap or self.task):
            raise ValueError("`wordmap` or `task` is given with `to_original`; required: neither, the folder has them.")


def convert(config: ConversionConfig) -> None:
    check_output_dir(config.output_dir)
    if config.to_original:
        write_original(config)
        return
    if resolve_file(config.checkpoint).is_dir():
        raise ValueError(f"{config.checkpoint}: is a folder; required: a file, or `to_original=true`.")
    vocabulary = None if config.wordmap is None else read_json(config.wordmap, "{word: id}, the WORDMAP of captions")
    content = read_checkpoint(config.checkpoint)
    with naming(config.checkpoint):
        if "model_state" in content:
            if config.task is None:
                raise ValueError("is X3D-L; required: `task`, which a model is to be trained for on it.")
            vocab_size = None if vocabulary is None else len(vocabulary)
            parts = change3d_with_x3d(
                content, config.task, config.sample_size, num_classes=config.num_classes, vocab_size=vocab_size
            )
        else:
            if config.task is not None:
                raise ValueError(f"is Change3D, with `task` {config.task!r} given; required: null, the file says it.")
            parts = change3d_from_original(content)
    if vocabulary is not None and parts.config["task"] != "captioning":
        raise ValueError(f"`wordmap` is given for the task {parts.config['task']!r}; required: null, or captioning.")
    with new_folder(config.output_dir) as folder:
        save_change3d(parts, folder, vocabulary, Path(config.output_dir).name)
    settings = ", ".join(f"{name} {value}" for name, value in parts.config.items())
    number = sum(value.numel() for value in parts.unused.values())
    print(f"{config.output_dir}: {settings}")
    print(f"kept for the way back: {len(parts.unused)} tensors ({number:,} values) that no forward pass uses")
    if parts.config["task"] == "captioning" and vocabulary is None:
        print("a model without a pipeline: no WORDMAP file is given")


def write_original(config: ConversionConfig) -> None:
    folder = Path(config.checkpoint)
    if not folder.is_dir():
        raise ValueError(f"{config.checkpoint}: is no folder; required: a model or pipeline folder of diffusers.")
    parts = read_change3d_folder(folder)
    with naming(folder):
        content = change3d_to_original(parts)
    with new_folder(config.output_dir) as output:
        torch.save(content, output / ORIGINAL_FILE)
    print(f"{config.output_dir}: {ORIGINAL_FILE}, in the layout {parts.layout}")
    if not parts.unused:
        print("weights that no forward pass uses are drawn at random: the folder does not hold them")


def main(arguments: list[str] | None = None) -> dict[str, str]:
    with one_line_errors((ValueError, OSError)):
        config = parse_config(ConversionConfig, arguments, __doc__)
        convert(config)
    return {"output_dir": config.output_dir}


if __name__ == "__main__":
    main()
