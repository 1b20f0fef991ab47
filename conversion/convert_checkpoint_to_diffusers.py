r"""Make the result of a training's checkpoint, as the end of the run would: a pipeline, an autoencoder or a LoRA.

    python conversion/convert_checkpoint_to_diffusers.py --checkpoint OUTPUT/checkpoint-5000 --output_dir pipeline
    python conversion/convert_checkpoint_to_diffusers.py --checkpoint OUTPUT --settings.ema_decay=0.999 \
        --settings.vae=latents/vae --output_dir pipeline

Takes checkpoints of train_lightningdit.py, train_lightningdit_few_step.py, train_lightningdit_lora.py and
train_vavae.py. Architecture, weights and settings are read off the checkpoint; the frozen autoencoder or the pipeline
of the run must be there, and be the same. Data are read for train_vavae.py alone, for the statistics of the latents.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffusers_lightningdit.data.latent_encoding import load_frozen_vae
from diffusers_lightningdit.files import check_output_dir, new_folder, weights_sha256
from diffusers_lightningdit.hub.trained_pipeline import save_trained_pipeline, write_autoencoder_card
from diffusers_lightningdit.settings import make_config, one_line_errors, parse_config, required, setting
from diffusers_lightningdit.training.batches import make_batch_sampler
from diffusers_lightningdit.training.checkpoints import open_checkpoint, settings_of_result
from diffusers_lightningdit.training.state_io import read_trained
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig
from diffusers_lightningdit.training.transformer.few_step import FewStepTrainingConfig, load_teacher
from diffusers_lightningdit.training.transformer.loop import NAME, transformer_of
from diffusers_lightningdit.training.transformer.lora import LoraTrainingConfig, add_lora, save_lora
from diffusers_lightningdit.training.transformer.pipeline_data import find_classes, load_pipeline
from diffusers_lightningdit.training.transformer.results import few_step_pipeline, flow_pipeline
from diffusers_lightningdit.training.vavae.config import VAVAETrainingConfig
from diffusers_lightningdit.training.vavae.data import load_training_images
from diffusers_lightningdit.training.vavae.latents_statistics import measure_latents
from diffusers_lightningdit.training.vavae.networks import networks_of, save_networks

VAE = "vae"  # the autoencoder in checkpoints
SCRIPTS = {
    LightningDiTTrainingConfig: "train_lightningdit.py",
    FewStepTrainingConfig: "train_lightningdit_few_step.py",
    LoraTrainingConfig: "train_lightningdit_lora.py",
    VAVAETrainingConfig: "train_vavae.py",
}


@dataclass(kw_only=True)
class ConversionConfig:
    """Settings of convert_checkpoint_to_diffusers.py."""

    checkpoint: str = required("Folder of a checkpoint, or of a run, whose newest checkpoint is taken.")
    settings: dict = setting(
        {},
        "Settings of the run that take the place of its own, as settings.vae=FOLDER where that was moved, "
        "settings.ema_decay=0.999 for another average of the checkpoint, or settings.save_dtype=bfloat16.",
    )
    measure_latents: bool = setting(
        True, "Measure the latents of an autoencoder over the data of the run; false: save none of their statistics."
    )

    output_dir: str = required("Folder of the result, new or empty.", group="Output")


def training_of(path: Path, state: dict) -> type:
    """The dataclass of the settings of the training that wrote a checkpoint; raises ValueError for others."""
    models, settings = state["architectures"], state["settings"]
    if VAE in models:
        return VAVAETrainingConfig
    if NAME not in models:
        raise ValueError(
            f"{path} has the models {', '.join(models)}; required: a checkpoint of {', '.join(SCRIPTS.values())} "
            "(convert_change3d_checkpoint.py takes those of train_change3d.py)."
        )
    if "rank" in settings:
        return LoraTrainingConfig
    return FewStepTrainingConfig if "student_times" in settings else LightningDiTTrainingConfig


def check_same(name: str, value: str, model: Any, expected: str) -> None:
    """Raise ValueError unless a frozen model of the run has the weights of the checkpoint's."""
    if weights_sha256(model) != expected:
        raise ValueError(
            f"`{name}` is {value!r}, whose weights are not those that the checkpoint was trained with; required: the "
            f"same (`settings.{name}` names it where it is now)."
        )


# ---------------------------------------------------------------------------------------------------------------------
# One function for each training
# ---------------------------------------------------------------------------------------------------------------------


def convert_flow(config: ConversionConfig, run: LightningDiTTrainingConfig, path: Path, state: dict) -> None:
    vae, classes = load_frozen_vae(run.vae), state["identity"]["classes"]
    check_same("vae", run.vae, vae, state["identity"]["vae_sha256"])
    transformer = transformer_of(state["architectures"][NAME], read_trained(path, NAME, run.ema_decay))
    pipeline = flow_pipeline(run, transformer, vae, None if classes is None else dict(enumerate(classes)))
    save_trained_pipeline(run, pipeline, SCRIPTS[type(run)], state["step"])


def convert_few_step(config: ConversionConfig, run: FewStepTrainingConfig, path: Path, state: dict) -> None:
    teacher = load_teacher(run.pipeline)
    check_same("pipeline", run.pipeline, teacher.transformer, state["identity"]["teacher_sha256"])
    student = transformer_of(state["architectures"][NAME], read_trained(path, NAME, run.ema_decay))
    save_trained_pipeline(run, few_step_pipeline(run, student, teacher), SCRIPTS[type(run)], state["step"])


def convert_lora(config: ConversionConfig, run: LoraTrainingConfig, path: Path, state: dict) -> None:
    pipeline = load_pipeline(run.pipeline)
    check_same("pipeline", run.pipeline, pipeline.transformer, state["identity"]["pipeline_sha256"])
    names = state["identity"]["classes"]
    names = {None: run.class_name} if run.class_name else None if names is None else dict(enumerate(names))
    num_labels = run.num_classes or pipeline.transformer.config.num_classes
    classes = find_classes(pipeline, names, run.new_classes, num_labels)
    id2label = dict(pipeline.id2label)
    add_lora(pipeline.transformer, run.rank, run.alpha, run.target_modules, classes, run.seed)
    weights = read_trained(path, NAME, run.ema_decay)
    arguments = (run, pipeline.transformer, weights, classes, id2label, state["step"])
    with new_folder(config.output_dir) as folder:
        save_lora(folder, *arguments)
    print(f"wrote {config.output_dir}")


def convert_vae(config: ConversionConfig, run: VAVAETrainingConfig, path: Path, state: dict) -> None:
    networks = networks_of(path, state["architectures"], run.ema_decay)
    if config.measure_latents:
        accelerator = Accelerator()
        images = load_training_images(run, networks.vae)
        sampler = make_batch_sampler(run, images, accelerator)
        vae = networks.vae.to(accelerator.device)
        statistics = measure_latents(run, vae, images, sampler, accelerator)
        networks.vae.to("cpu").set_latents_statistics(statistics.mean, statistics.std)
    with new_folder(config.output_dir) as folder:
        save_networks(networks, folder)
        write_autoencoder_card(folder, networks.vae, run, SCRIPTS[type(run)], state["step"])
    print(f"wrote {config.output_dir}")


CONVERSIONS = {
    LightningDiTTrainingConfig: convert_flow,
    FewStepTrainingConfig: convert_few_step,
    LoraTrainingConfig: convert_lora,
    VAVAETrainingConfig: convert_vae,
}


def convert(config: ConversionConfig) -> dict[str, str | int]:
    check_output_dir(config.output_dir)
    path, state = open_checkpoint(config.checkpoint)
    training = training_of(path, state)
    run = make_config(training, settings_of_result(state, config.settings, config.output_dir))
    CONVERSIONS[training](config, run, path, state)
    return {"output_dir": config.output_dir, "step": state["step"], "training": SCRIPTS[training]}


def main(arguments: list[str] | None = None) -> dict[str, str | int]:
    with one_line_errors():
        return convert(parse_config(ConversionConfig, arguments, __doc__))


if __name__ == "__main__":
    main()
