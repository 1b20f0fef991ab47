# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of the autoencoder's training; the defaults are the published recipe in its short form."""

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec

from ...losses import PatchGANDiscriminator
from ...losses.objective import VAELossSettings
from ...models import AutoencoderVAVAE
from ...networks.foundation_model import IMAGE_NORMALIZATIONS
from ...networks.inception import PUBLISHED_SHA256
from ...settings import argument_list, make_config, make_model_arguments, setting
from ..config import ImageTrainingConfig, OptionalAverageSettings

MIN_VALIDATION_SAMPLES = 3  # that have a plane of principal components
LOSS_SETTINGS = [entry.name for entry in dataclasses.fields(VAELossSettings)]


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one objective.

    Attributes:
        first_step: The steps before the stage.
        num_steps: The steps of the stage.
        losses: The weights and margins of the losses; `disc_start` counts from `first_step`.
    """

    first_step: int
    num_steps: int
    losses: VAELossSettings

    def local_step(self, step: int) -> int:
        """Steps of the stage before the one after `step` steps of the run."""
        return step - self.first_step

    def discriminator_trains(self, step: int) -> bool:
        """Whether the discriminator takes the step after `step` steps of the run."""
        return self.losses.disc_weight > 0 and self.local_step(step) >= self.losses.disc_start

    def is_judged(self, step: int) -> bool:
        """Whether the autoencoder is trained against the discriminator in that step: once that has taken one itself."""
        return self.losses.disc_weight > 0 and self.local_step(step) > self.losses.disc_start


@dataclass(kw_only=True)
class VAVAETrainingConfig(VAELossSettings, OptionalAverageSettings, ImageTrainingConfig):
    """Settings of train_vavae.py.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    label_column: str | None = setting(
        None, "The column of class labels, for the linear probe of the validation; null: no probe.", group="Data"
    )
    random_flip: bool = setting(False, "Mirror each image with probability 0.5 in each epoch.")

    vae: dict = setting(
        {},
        f"Arguments of the autoencoder, as vae.latent_channels=16: {argument_list(AutoencoderVAVAE)}.",
        group="Model",
    )
    weight_init: str | None = setting(
        None,
        "Folder of an AutoencoderVAVAE, or an original file, whose weights training begins with; without `vae`.",
    )
    gradient_checkpointing: bool = setting(False, "Compute activations anew in the backward pass, to save memory.")
    compile_vae: bool = setting(False, "Compile encoder and decoder by torch.compile.")

    foundation_model: str | None = setting(
        None,
        "Folder or Hub id of the vision foundation model, for `transformers`; needed where `vf_weight` is above 0.",
        group="Loss",
    )
    foundation_normalization: str = setting(
        "minus_one_to_one",
        "The input of the foundation model: pixels in [-1, 1], as the original's, or `model`, by the model's own "
        "preprocessor_config.json.",
        choices=IMAGE_NORMALIZATIONS,
    )
    reverse_proj: bool = setting(
        True, "Project latents to the foundation model's features; false: project features to the latents."
    )
    lpips: str | None = setting(
        None,
        "File of LPIPS's weights that convert_lpips_to_safetensors.py wrote, or user/name:file on the Hub; needed "
        "where `perceptual_weight` is above 0.",
    )
    lpips_sha256: str | None = setting(
        None, "The SHA-256 of the file `lpips`; null: the file has to name the published weights as its source."
    )
    discriminator: dict = setting(
        {},
        "Arguments of the discriminator, as discriminator.num_layers=4: " + argument_list(PatchGANDiscriminator) + ".",
    )
    disc_start: int = setting(
        2500,
        "Steps before the discriminator trains, counted from the beginning of the stage; the autoencoder is judged by "
        "it one step later.",
    )
    distmat_margin: float = 0.25
    cos_margin: float = 0.5
    stages: tuple[dict, ...] = setting(
        (),
        "Stretches of training in a row: each has `num_steps`, and those settings of the losses that it changes; "
        "empty: one stage.",
    )

    global_batch_size: int = 256
    max_train_steps: int | None = setting(
        None, "Optimiser steps of the whole training; null: 100,000, or the steps of all stages together.", minimum=1
    )
    learning_rate: float = 1e-4
    adam_betas: tuple[float, float] = setting(
        (0.5, 0.9),
        "AdamW's decay rates of the averages of gradients and of their squares.",
        group="Optimisation",
        minimum=0,
        below=1,
    )
    max_grad_norm: float | None = setting(
        None, "The norm that the autoencoder's gradients are clipped to; null: the norm is measured only.", above=0
    )

    validation_steps: int | None = setting(
        None,
        "Steps between two measurements of reconstruction and latents, of the weights that would be saved, which need "
        "scikit-learn; null: none.",
        group="Validation and samples",
        minimum=1,
    )
    validation_data: str | None = setting(
        None, "Folder or Hub id of the validation images; null: another split of `data`."
    )
    validation_split: str = setting("validation", "The split that is measured.")
    num_validation_samples: int = setting(
        512, "The images that are measured, spread over the split.", minimum=MIN_VALIDATION_SAMPLES
    )
    inception: str | None = setting(
        None, "File of torch-fidelity's Inception weights, for the rFID of the validation; null: no rFID."
    )
    inception_sha256: str = setting(PUBLISHED_SHA256, "The SHA-256 of the file `inception`, or how it begins.")
    sample_steps: int | None = setting(
        None, "Steps between two pictures of reconstructions in `output_dir`/samples; null: no pictures.", minimum=1
    )
    num_samples: int = setting(8, "The images of such a picture.", minimum=1)

    statistics_samples: int | None = setting(
        None,
        "The images whose latents give the saved mean and standard deviation; null: all of them, in one pass.",
        group="Output",
        minimum=1,
    )

    def __post_init__(self):
        ImageTrainingConfig.__post_init__(self)
        self.schedule = self._make_schedule()
        self.vae = make_model_arguments("vae", self.vae, AutoencoderVAVAE)
        self.discriminator = make_model_arguments("discriminator", self.discriminator, PatchGANDiscriminator)
        channels = self.vae.get("in_channels", 3)
        if channels not in (1, 3):
            raise ValueError(f"`vae.in_channels` is {channels}; required: 3, those of RGB images, or 1, of grey ones.")
        if self.vae.get("out_channels", 3) != channels:
            raise ValueError(
                f"`vae.out_channels` is {self.vae.get('out_channels', 3)}; required: {channels}, as `vae.in_channels`."
            )
        if self.weight_init is None and self.discriminator.get("in_channels", channels) != channels:
            raise ValueError(
                f"`discriminator.in_channels` is {self.discriminator['in_channels']}; required: {channels}, as "
                "`vae.in_channels`, from which it follows."
            )
        if self.weight_init is not None and self.vae:
            raise ValueError(
                f"`vae` is {self.vae} and `weight_init` {self.weight_init!r}; required: one of them, since the "
                "architecture follows from the weights."
            )
        if self.validation_steps is not None and find_spec("sklearn") is None:
            raise ValueError(
                f"`validation_steps` is {self.validation_steps}; required: scikit-learn (pip install "
                '"diffusers-lightningdit[evaluation]"), or null for no validation.'
            )
        self.check_average()

    def _make_schedule(self) -> list[Stage]:
        """The stages, and `max_train_steps`; raises ValueError naming the stage for what cannot be trained."""
        if not self.stages and self.max_train_steps is None:
            self.max_train_steps = 100_000
        common = {name: getattr(self, name) for name in LOSS_SETTINGS}
        schedule, first_step = [], 0
        for number, settings in enumerate(self.stages or [{"num_steps": self.max_train_steps}]):
            num_steps = settings.get("num_steps")
            try:
                if type(num_steps) is not int or num_steps < 1:
                    raise ValueError(f"`num_steps` is {num_steps!r}; required: a whole number, at least 1.")
                changes = {name: value for name, value in settings.items() if name != "num_steps"}
                losses = make_config(VAELossSettings, {**common, **changes})
                for weight, network in (("vf_weight", "foundation_model"), ("perceptual_weight", "lpips")):
                    if getattr(losses, weight) > 0 and getattr(self, network) is None:
                        raise ValueError(
                            f"`{weight}` is {getattr(losses, weight)} without `{network}`; required: both, or "
                            f"`{weight}` 0 for training without this loss."
                        )
                if losses.disc_weight > 0 and losses.disc_start >= num_steps:
                    raise ValueError(
                        f"`disc_start` is {losses.disc_start}; required: below the {num_steps} steps, or "
                        "`disc_weight` 0 for training without a discriminator."
                    )
            except ValueError as error:
                raise ValueError(f"`stages[{number}]`: {error}" if self.stages else str(error)) from error
            schedule.append(Stage(first_step, num_steps, losses))
            first_step += num_steps
        if self.max_train_steps not in (None, first_step):
            raise ValueError(
                f"`max_train_steps` is {self.max_train_steps}, but the stages have {first_step} steps; required: left "
                "out, it follows from the stages."
            )
        self.max_train_steps = first_step
        return schedule

    @property
    def has_discriminator(self) -> bool:
        """Whether any stage has one."""
        return any(stage.losses.disc_weight > 0 for stage in self.schedule)

    @property
    def has_projection(self) -> bool:
        """Whether any stage aligns the latents."""
        return any(stage.losses.vf_weight > 0 for stage in self.schedule)

    def stage_at(self, step: int) -> Stage:
        """The stage of the step after `step` steps."""
        return next(stage for stage in reversed(self.schedule) if stage.first_step <= step)
