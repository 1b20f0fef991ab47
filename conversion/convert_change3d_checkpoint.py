r"""Make the pipeline of a checkpoint that train_change3d.py wrote, as the end of its run would.

    python conversion/convert_change3d_checkpoint.py --checkpoint OUTPUT/checkpoint-5000 --output_dir pipeline

Weights (averaged, where the run has `ema_decay`), classes, colours and words are read off the checkpoint; the data need
not be there.
"""

from dataclasses import dataclass
from pathlib import Path

from diffusers_lightningdit.files import check_output_dir, new_folder
from diffusers_lightningdit.settings import make_config, one_line_errors, parse_config, required, setting
from diffusers_lightningdit.training.change3d.config import Change3DTrainingConfig
from diffusers_lightningdit.training.change3d.result import model_of, save_pipeline, trained_pipeline
from diffusers_lightningdit.training.checkpoints import open_checkpoint, settings_of_result
from diffusers_lightningdit.training.state_io import read_trained

MODEL = "model"  # in checkpoints


@dataclass(kw_only=True)
class ConversionConfig:
    """Settings of convert_change3d_checkpoint.py."""

    checkpoint: str = required("Folder of a checkpoint, or of a run, whose newest checkpoint is taken.")
    settings: dict = setting(
        {}, "Settings of the run that take the place of its own, as settings.class_names=[unchanged, changed]."
    )

    output_dir: str = required("Folder of the pipeline, new or empty.", group="Output")


def convert(config: ConversionConfig) -> dict[str, str | int]:
    check_output_dir(config.output_dir)
    path, state = open_checkpoint(config.checkpoint)
    if MODEL not in state["architectures"]:
        raise ValueError(f"{path} is of another training; required: a checkpoint of train_change3d.py.")
    settings = settings_of_result(state, config.settings, config.output_dir)
    run = make_config(Change3DTrainingConfig, settings)
    model = model_of(state["architectures"][MODEL], read_trained(path, MODEL, run.ema_decay))
    pipeline = trained_pipeline(run, model, state["identity"].get("vocabulary"))
    with new_folder(config.output_dir) as folder:
        save_pipeline(folder, pipeline, Path(config.output_dir).name)
    print(f"wrote {config.output_dir}, of step {state['step']}")
    return {"output_dir": config.output_dir, "step": state["step"]}


def main(arguments: list[str] | None = None) -> dict[str, str | int]:
    with one_line_errors():
        return convert(parse_config(ConversionConfig, arguments, __doc__))


if __name__ == "__main__":
    main()
