# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of the transformer's training: what full training and LoRA share, and those of full training.

The defaults of full training are the published recipe of 64 epochs.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from ...models import LightningDiTTransformer2DModel
from ...settings import argument_list, make_config, make_model_arguments, required, setting
from ..config import ImageTrainingConfig, TrainedPipelineSettings
from .alignment import AlignmentSettings

DATA_KINDS = ("images", "latents")
OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit", "muon")
TIME_SAMPLERS = ("logit_normal", "arctan", "uniform")
FROM_DATA_AND_VAE = ("sample_size", "in_channels", "num_classes")  # arguments of the transformer that are not given


@dataclass(kw_only=True)
class FlowTrainingConfig(TrainedPipelineSettings, ImageTrainingConfig):
    """Fields of every training of the transformer.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    data_kind: str = setting(
        "images",
        "The kind of the data: images, which are encoded while training, or latents, which cache_latents.py wrote.",
        group="Data",
        choices=DATA_KINDS,
    )
    label_column: str | None = setting(
        "label", "The column of the class labels of images; null for images without classes, which become one class."
    )
    num_classes: int | None = setting(
        None,
        "The number of classes of data that come without names of classes; required then.",
        minimum=1,
    )
    check_statistics: bool = setting(
        True,
        "Check that latents have the statistics of the VAE, which normalise them; false to fine-tune on other data, "
        "normalised by the VAE's.",
    )
    random_flip: bool = setting(
        True, "Mirror each image, or take its mirrored latent, with probability 0.5 in each epoch."
    )
    latents_in_memory: bool = setting(
        False, "Encode images once and keep their latents (needs `random_flip=false`), or read all latents at once."
    )

    gradient_checkpointing: bool = setting(
        False, "Compute activations anew in the backward pass, to save memory.", group="Model"
    )
    compile_blocks: bool = setting(False, "Compile the repeated transformer block by torch.compile.")

    time_sampling: str = setting(
        "logit_normal", "The distribution that training times t are drawn from.", group="Loss", choices=TIME_SAMPLERS
    )
    logit_normal_mean: float = setting(
        0.0, "The mean of logit(t) of the logit-normal distribution, or of log(tan(pi t / 2)) of arctan."
    )
    logit_normal_std: float = setting(1.0, "The standard deviation of either.", above=0)
    time_range: tuple[float, float] = setting(
        (0.0, 1.0), "The start and end of the interval in [0, 1] that times are drawn from."
    )
    uniform_times_from_step: int | None = setting(
        None,
        "Optimiser steps after which times are uniform, whatever `time_sampling` is; 0: from the first step on, null: "
        "never. The published recipe of 800 epochs has 600000.",
        minimum=0,
    )
    expanded_times: bool = setting(
        False,
        "Show times 2 - t to the second half of each batch, and uniform times to all: a flow that few-step training "
        "can distil with `student_times` expanded.",
    )
    use_cosine_loss: bool = setting(
        True, "Add the cosine distance of predicted and true velocity to their mean squared error."
    )

    internal_guidance_weight: float = setting(
        0.5,
        "The weight of the mean squared error of the velocity after block `internal_guidance_layer`, of a transformer "
        "that has it.",
        above=0,
    )

    optimizer: str = setting(
        "adamw",
        "The optimiser; adamw_8bit needs the package bitsandbytes. muon orthogonalises the steps of matrices, and is "
        "Adam without decay for vectors.",
        group="Optimisation",
        choices=OPTIMIZERS,
    )
    adam_betas: tuple[float, float] = setting(
        (0.9, 0.95), "AdamW's decay rates of the averages of gradients and of their squares.", minimum=0, below=1
    )
    adam_weight_decay: float = setting(0.0, "AdamW's weight decay; of muon that of the matrices.", minimum=0)
    max_grad_norm: float | None = setting(
        1.0,
        "The norm that gradients are clipped to; null: the norm is measured only, as in the original.",
        above=0,
    )

    ema_decay: float = setting(
        0.9999,
        "The decay, at least 0 and below 1, of the average of the weights that is saved and sampled.",
        group="Averages of the weights",
    )
    extra_ema_decays: tuple[float, ...] = setting(
        (), "The decays of further averages, which are kept in the checkpoints."
    )
    ema_warmup: bool = setting(False, "Let the decays rise from 0 to their values in the first steps.")
    ema_relative_width: float | None = setting(
        None,
        "The part of the training that the averages remember, up to 0.28 (the relative width of EDM2; FACM's is 0.2, "
        "with `ema_decay` 0.999999): decays rise with the steps, up to their values. null: they do not.",
        above=0,
    )

    sample_steps: int | None = setting(
        None,
        "Steps between two grids of images in `output_dir`/samples, always from the same noise; null: no grids.",
        group="Validation and samples",
        minimum=1,
    )
    num_samples: int = setting(16, "The images of a grid.", minimum=1)
    validation_steps: int | None = setting(
        None,
        "Steps between two measurements of the loss at t = 0.1, ..., 0.9, always with the same noise and the trained "
        "weights, not their averages; null: none.",
        minimum=1,
    )
    validation_data: str | None = setting(
        None, "Folder or Hub id of validation data of the same kind as `data`; null: another split of `data`."
    )
    validation_split: str = setting("validation", "The split that the validation loss is measured on.")
    num_validation_samples: int = setting(256, "The samples that the validation loss is measured on.", minimum=1)

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
            raise ValueError("`optimizer` is 'adamw_8bit'; required: bitsandbytes (pip install bitsandbytes).")
        if self.data_kind == "images" and self.latents_in_memory and self.random_flip:
            raise ValueError(
                "`latents_in_memory` encodes each image once, but `random_flip` is true; required: false, or latents "
                "by cache_latents.py."
            )
        if self.streaming and self.latents_in_memory:
            raise ValueError("`latents_in_memory` is true; required: false with `streaming`, which has no end.")
        self.check_hub()
        for decay in self.ema_decays:
            if not 0 <= decay < 1:
                raise ValueError(f"`ema_decay` is {decay}; required: at least 0 and below 1.")
        if self.ema_relative_width is not None and self.ema_relative_width > 0.28:
            raise ValueError(f"`ema_relative_width` is {self.ema_relative_width}; required: at most 0.28.")
        if self.ema_warmup and self.ema_relative_width is not None:
            raise ValueError(
                f"`ema_warmup` is true, and `ema_relative_width` {self.ema_relative_width}; required: one of them."
            )
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"`extra_ema_decays` is {list(self.extra_ema_decays)}; required: each decay once.")
        check_interval("time_range", self.time_range)
        if self.time_range[0] == self.time_range[1]:
            raise ValueError(f"`time_range` is {list(self.time_range)}; required: [start, end], 0 <= start < end <= 1.")

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """The decays of all averages, that of the saved one first."""
        return (self.ema_decay, *self.extra_ema_decays)

    @property
    def has_velocity_at_expanded_times(self) -> bool:
        """Whether the network that comes out has the velocity of t at 2 - t, and something else at t."""
        return False


def check_interval(name: str, interval: tuple[float, float]) -> None:
    """Raise ValueError if a pair of times is no interval in [0, 1]."""
    start, end = interval
    if not 0 <= start <= end <= 1:
        raise ValueError(f"`{name}` is {[start, end]}; required: [start, end], 0 <= start <= end <= 1.")


@dataclass(kw_only=True)
class LightningDiTTrainingConfig(FlowTrainingConfig):
    """Settings of train_lightningdit.py.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    vae: str = required("Folder or Hub id of the frozen autoencoder.", group="Model")
    transformer: dict = setting(
        {},
        "Arguments of the transformer, as transformer.num_layers=12; its defaults are XL/1: "
        f"{argument_list(LightningDiTTransformer2DModel, without=FROM_DATA_AND_VAE)}.",
    )
    weight_init: str | None = setting(
        None,
        "Folder or Hub id of a transformer or pipeline, or an original .pt file, whose weights training begins with; "
        "what does not fit is listed. A run that goes on from a checkpoint does not read it.",
    )

    alignment: dict = setting(
        {},
        "Alignment of a block's tokens with a vision foundation model, as alignment.weight=0.5; empty: none. Its keys: "
        f"{argument_list(AlignmentSettings)}.",
        group="Loss",
    )

    global_batch_size: int = 1024
    max_train_steps: int = 80_000
    learning_rate: float = 2e-4
    resume_from_checkpoint: str | None = setting(
        None,
        "The checkpoint to go on from: `latest` for the newest in `output_dir`, if there is one, a checkpoint's "
        "folder, or an original training checkpoint (.pt with model, ema and opt).",
    )

    num_inference_steps: int = setting(
        249,
        "Sampling steps of the saved pipeline; its recipe's defaults are those published for 64 epochs.",
        group="Sampling",
        minimum=1,
    )
    timestep_shift: float = setting(0.3, "The shift of the saved pipeline's time grid.", above=0)
    guidance_scale: float = setting(10.0, "The scale of classifier-free guidance; 1: no guidance.", minimum=0)
    guidance_interval: tuple[float, float] = setting(
        (0.10, 1.0), "The times t from which and up to which guidance acts, in [0, 1]."
    )
    guidance_channels: int | None = setting(
        3, "The first channels of the latents that guidance acts on; null: all.", minimum=1
    )

    def __post_init__(self):
        super().__post_init__()
        for name in FROM_DATA_AND_VAE:
            if name in self.transformer:
                raise ValueError(f"`transformer.{name}` is given; required: left out, it follows from data and VAE.")
        # the data is not known yet: of a size that suits any patches
        follow = {"sample_size": self.transformer.get("patch_size", 1)}
        self.transformer = make_model_arguments("transformer", self.transformer, LightningDiTTransformer2DModel, follow)
        check_interval("guidance_interval", self.guidance_interval)
        self._check_alignment()

    @property
    def alignment_settings(self) -> AlignmentSettings | None:
        """The settings of the alignment, or None without one."""
        return make_config(AlignmentSettings, self.alignment) if self.alignment else None

    def _check_alignment(self) -> None:
        try:
            settings = self.alignment_settings
        except ValueError as error:
            raise ValueError(f"`alignment`: {error}") from error
        if settings is None:
            return
        if self.data_kind == "latents" and settings.model is not None:
            raise ValueError(
                f"`alignment.model` is {settings.model!r}; required with latents: left out, features lie beside them "
                "(cache_latents.py with `foundation_model`)."
            )
        if self.data_kind == "images" and (settings.model is None or self.latents_in_memory):
            raise ValueError(
                "`alignment` is given for images; required: `alignment.model`, and `latents_in_memory` false."
            )
        if self.data_kind == "latents" and self.streaming:
            raise ValueError("`alignment` is given, and `streaming` is true; required: shards of latents, or images.")
