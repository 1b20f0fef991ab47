# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of the transformer's training: what full training and LoRA share, and those of full training.

The defaults of full training are the published recipe of 64 epochs.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec

from ...models import LightningDiTTransformer2DModel
from ...settings import check_at_least, check_choice, check_positive, make_model_arguments
from ..config import TrainingConfig

DATA_KINDS = ("images", "latents")
OPTIMIZERS = ("adamw", "adamw_fused", "adamw_8bit")
TIME_SAMPLERS = ("logit_normal", "uniform")


@dataclass(kw_only=True)
class FlowTrainingConfig(TrainingConfig):
    """Fields of every training of the transformer.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    # Data
    data_kind: str = "images"  # or latents: what cache_latents.py wrote
    label_column: str = "label"  # of class labels, of images
    num_classes: int | None = None  # of latents without names of classes; by default the highest label plus 1
    check_statistics: bool = True  # that latents have the statistics of the VAE, which normalise them
    random_flip: bool = True  # mirror each image with probability 0.5 in each epoch
    latents_in_memory: bool = False  # encode images once, or read all latents at once
    # Model
    gradient_checkpointing: bool = False
    compile_blocks: bool = False  # torch.compile of the repeated block
    # Loss
    time_sampling: str = "logit_normal"
    logit_normal_mean: float = 0.0
    logit_normal_std: float = 1.0
    time_range: tuple[float, float] = (0.0, 1.0)
    uniform_times_from_step: int | None = None  # 600,000 in the published recipe of 800 epochs
    use_cosine_loss: bool = True
    # Optimisation
    optimizer: str = "adamw"
    adam_betas: tuple[float, float] = (0.9, 0.95)
    adam_weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999  # of the weights that are saved and sampled
    extra_ema_decays: tuple[float, ...] = ()  # kept in the checkpoints
    ema_warmup: bool = False
    # While training
    sample_steps: int | None = None  # a grid of images every so many steps
    num_samples: int = 16
    validation_steps: int | None = None  # losses at fixed times every so many steps
    validation_data: str | None = None  # of the same kind as `data`; by default another split of it
    validation_split: str = "validation"
    num_validation_samples: int = 256
    # Result
    save_dtype: str = "float32"  # of the saved weights
    push_to_hub: bool = False
    hub_model_id: str | None = None  # user/name, private until it is made public there

    def __post_init__(self):
        super().__post_init__()
        check_choice("data_kind", self.data_kind, DATA_KINDS)
        check_choice("time_sampling", self.time_sampling, TIME_SAMPLERS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("save_dtype", self.save_dtype, ("float32", "bfloat16", "float16"))
        if self.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
            raise ValueError("`optimizer` is 'adamw_8bit'; required: the package bitsandbytes.")
        if self.data_kind == "images" and self.latents_in_memory and self.random_flip:
            raise ValueError(
                "`latents_in_memory` encodes each image once, but `random_flip` is true; required: false, or latents "
                "by cache_latents.py."
            )
        if self.streaming and self.latents_in_memory:
            raise ValueError("`latents_in_memory` is true; required: false with `streaming`, which has no end.")
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("`push_to_hub` is true, but `hub_model_id` is not given; required: user/name.")
        for name in ("num_samples", "num_validation_samples"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("sample_steps", "validation_steps", "num_classes"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        check_at_least("adam_weight_decay", self.adam_weight_decay, 0)
        for name in ("max_grad_norm", "logit_normal_std"):
            check_positive(name, getattr(self, name))
        for decay in self.ema_decays:
            if not 0 <= decay < 1:
                raise ValueError(f"`ema_decay` is {decay}; required: at least 0 and below 1.")
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"`extra_ema_decays` is {list(self.extra_ema_decays)}; required: each decay once.")
        check_interval("time_range", self.time_range)
        if self.time_range[0] == self.time_range[1]:
            raise ValueError(f"`time_range` is {list(self.time_range)}; required: [start, end], 0 <= start < end <= 1.")

    @property
    def ema_decays(self) -> tuple[float, ...]:
        return (self.ema_decay, *self.extra_ema_decays)


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

    vae: str  # folder or Hub id of the frozen autoencoder
    # Model: arguments of LightningDiTTransformer2DModel, but those that follow from data and VAE
    transformer: dict = field(default_factory=dict)
    weight_init: str | None = None  # transformer or pipeline, or an original .pt, to take the first weights from
    # Optimisation
    global_batch_size: int = 1024
    max_train_steps: int = 80_000
    learning_rate: float = 2e-4
    # Sampling recipe of the saved pipeline: the published one of 64 epochs
    num_inference_steps: int = 249
    timestep_shift: float = 0.3
    guidance_scale: float = 10.0
    guidance_interval: tuple[float, float] = (0.10, 1.0)
    guidance_channels: int | None = 3

    def __post_init__(self):
        super().__post_init__()
        for name in ("sample_size", "in_channels", "num_classes"):
            if name in self.transformer:
                raise ValueError(f"`transformer.{name}` is given; required: left out, it follows from data and VAE.")
        # the data is not known yet: of a size that suits any patches
        follow = {"sample_size": self.transformer.get("patch_size", 1)}
        self.transformer = make_model_arguments("transformer", self.transformer, LightningDiTTransformer2DModel, follow)
        check_at_least("num_inference_steps", self.num_inference_steps, 1)
        if self.guidance_channels is not None:
            check_at_least("guidance_channels", self.guidance_channels, 1)
        check_at_least("guidance_scale", self.guidance_scale, 0)
        check_positive("timestep_shift", self.timestep_shift)
        check_interval("guidance_interval", self.guidance_interval)
