# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of the autoencoder's training; the defaults are the published recipe in its short form."""

import dataclasses
from dataclasses import dataclass, field
from importlib.util import find_spec

from ...losses import PatchGANDiscriminator
from ...losses.objective import VAELossSettings
from ...models import AutoencoderVAVAE
from ...networks.foundation_model import IMAGE_NORMALIZATIONS
from ...networks.inception import PUBLISHED_SHA256
from ...settings import check_at_least, check_choice, check_positive, make_config, make_model_arguments
from ..config import TrainingConfig

MIN_VALIDATION_SAMPLES = 3  # that have a plane of principal components
LOSS_SETTINGS = [entry.name for entry in dataclasses.fields(VAELossSettings)]


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one objective.

    Attributes:
        first_step: steps before it.
        num_steps: of it.
        losses: its weights and margins; `disc_start` counts from `first_step`.
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
class VAVAETrainingConfig(VAELossSettings, TrainingConfig):
    # Data
    label_column: str | None = None  # of class labels, for the linear probe of the validation
    random_flip: bool = False  # mirror each image with probability 0.5 in each epoch
    # Model: arguments of AutoencoderVAVAE
    vae: dict = field(default_factory=dict)
    weight_init: str | None = None  # folder of an AutoencoderVAVAE, or an original file, to begin with
    gradient_checkpointing: bool = False
    compile_vae: bool = False  # torch.compile of encoder and decoder
    # Losses: those of VAELossSettings, and their networks, which a loss with a weight above 0 needs
    foundation_model: str | None = None  # folder or Hub id, for transformers
    foundation_normalization: str = "minus_one_to_one"  # of its input, as the original; or model: its own
    reverse_proj: bool = True  # latents are projected to the features; false: features to the latents
    lpips: str | None = None  # file by convert_lpips_to_safetensors.py, or user/name:file on the Hub
    lpips_sha256: str | None = None  # of that file
    discriminator: dict = field(default_factory=dict)  # arguments of PatchGANDiscriminator
    disc_start: int = 2500  # steps before the discriminator trains; the autoencoder is judged one step later
    distmat_margin: float = 0.25
    cos_margin: float = 0.5
    # Stages in a row: each has `num_steps`, and the settings of the losses that it changes. By default there is one.
    stages: tuple[dict, ...] = ()
    # Optimisation
    global_batch_size: int = 256
    max_train_steps: int | None = None  # by default 100,000, or what the stages have together
    learning_rate: float = 1e-4
    adam_betas: tuple[float, float] = (0.5, 0.9)
    max_grad_norm: float | None = None
    ema_decay: float | None = None  # of the weights that are saved; null: the weights themselves
    ema_warmup: bool = False
    # While training
    validation_steps: int | None = None  # reconstruction and latents measured every so many steps
    validation_data: str | None = None  # by default another split of `data`
    validation_split: str = "validation"
    num_validation_samples: int = 512
    inception: str | None = None  # file of torch-fidelity's Inception weights, for the rFID of the validation
    inception_sha256: str = PUBLISHED_SHA256  # of that file, or how it begins
    sample_steps: int | None = None  # a picture of reconstructions every so many steps
    num_samples: int = 8
    # Result
    statistics_samples: int | None = None  # whose latents give the saved statistics; null: all images, one pass

    def __post_init__(self):
        VAELossSettings.__post_init__(self)
        self.schedule = self._make_schedule()
        TrainingConfig.__post_init__(self)
        self.vae = make_model_arguments("vae", self.vae, AutoencoderVAVAE)
        self.discriminator = make_model_arguments("discriminator", self.discriminator, PatchGANDiscriminator)
        for name, channels in (
            ("vae.in_channels", self.vae.get("in_channels", 3)),
            ("vae.out_channels", self.vae.get("out_channels", 3)),
            ("discriminator.in_channels", self.discriminator.get("in_channels", 3)),
        ):
            if channels != 3:
                raise ValueError(f"`{name}` is {channels}; required: 3, those of RGB images.")
        if self.weight_init is not None and self.vae:
            raise ValueError(
                f"`vae` is {self.vae} and `weight_init` {self.weight_init!r}; required: one of them, since the "
                "architecture follows from the weights."
            )
        check_choice("foundation_normalization", self.foundation_normalization, IMAGE_NORMALIZATIONS)
        if self.validation_steps is not None and find_spec("sklearn") is None:
            raise ValueError(
                f"`validation_steps` is {self.validation_steps}; required: the package scikit-learn, or null for no "
                "validation."
            )
        for name in ("validation_steps", "sample_steps", "statistics_samples"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        check_at_least("num_validation_samples", self.num_validation_samples, MIN_VALIDATION_SAMPLES)
        check_at_least("num_samples", self.num_samples, 1)
        if self.max_grad_norm is not None:
            check_positive("max_grad_norm", self.max_grad_norm)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is {self.ema_decay}; required: at least 0 and below 1, or null.")

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
                    name = "num_steps" if self.stages else "max_train_steps"
                    raise ValueError(f"`{name}` is {num_steps!r}; required: a whole number, at least 1.")
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
