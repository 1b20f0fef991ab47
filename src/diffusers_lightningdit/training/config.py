# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings that every training stage has."""

import dataclasses

from accelerate.tracking import get_available_trackers
from diffusers.optimization import SchedulerType

from ..files import check_output_dir
from ..pixels import RESOLUTION_HELP
from ..settings import check_repository, check_settings, required, setting


@dataclasses.dataclass(kw_only=True)
class TrainingConfig:
    """Fields that the training scripts share; a script's own dataclass inherits them and adds its own.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    data: str = required("Folder or Hub id of the training data, for `datasets.load_dataset`.", group="Data")
    allow_left_out: bool = setting(False, "Accept that files in a local folder of images are left out; they are named.")
    split: str = setting("train", "The split of the data set that is trained on.")
    num_workers: int = setting(
        0, "Processes that load images, beside each training process; 0 with `streaming`.", minimum=0
    )
    streaming: bool = setting(False, "Leave the data where it is, and read it again in each epoch.")
    shuffle_block_size: int = setting(
        8192, "Rows of a stream that are shuffled at a time, and kept in memory undecoded.", minimum=1
    )
    num_open_files: int = setting(64, "Files of a stream that are open at a time and read in turns.", minimum=1)

    global_batch_size: int = required(
        "Samples of one optimiser step, over all processes and accumulation steps.", group="Optimisation", minimum=1
    )
    gradient_accumulation_steps: int = setting(
        1, "Parts that a process computes its share of a global batch in, one after another.", minimum=1
    )
    max_train_steps: int = required("Optimiser steps of the whole training.", minimum=1)
    learning_rate: float = required("The peak learning rate of AdamW.", above=0)
    lr_scheduler: str = setting(
        "constant",
        "The learning rate's schedule, by its name in diffusers.",
        choices=tuple(name.value for name in SchedulerType),
    )
    lr_warmup_steps: int = setting(
        0, "Steps in which the learning rate rises linearly from 0; the plain `constant` schedule has none.", minimum=0
    )
    lr_num_cycles: int = setting(1, "Cycles of the schedule cosine_with_restarts.", minimum=1)
    lr_power: float = setting(1.0, "The exponent of the schedule polynomial.", above=0)
    lr_step_rules: str | None = setting(
        None,
        "The rules of the schedule piecewise_constant: 0.1:1000,0.01 is a tenth of `learning_rate` for 1000 steps, "
        "then a hundredth.",
    )
    mixed_precision: str = setting(
        "no",
        "The type that Accelerate computes in; fp16 needs a GPU, fp8 torchao or TransformerEngine.",
        choices=("no", "fp16", "bf16", "fp8"),
    )
    seed: int = setting(0, "The seed of first weights, order of the data, noise and times.", minimum=0)

    checkpointing_steps: int | None = setting(
        5000,
        "Steps between two checkpoints; one more is written after the last step. null: none at all.",
        group="Checkpoints",
        minimum=1,
    )
    checkpoints_total_limit: int | None = setting(
        3, "Checkpoints that are kept, the newest ones; null: all.", minimum=1
    )
    resume_from_checkpoint: str | None = setting(
        None,
        "The checkpoint to go on from: `latest` for the newest in `output_dir`, if there is one, or a checkpoint's "
        "folder.",
    )

    loss_spike_factor: float = setting(
        3.0,
        "A step is skipped whose loss is greater than this multiple of the median over recent good steps.",
        group="Skipped steps",
        above=1,
    )
    grad_norm_spike_factor: float = setting(
        10.0,
        "A step is skipped whose gradient norm is greater than this multiple of the median over recent good steps.",
        above=1,
    )
    spike_patience: int = setting(
        10, "Skipped steps in a row, after which training goes back to the last good checkpoint.", minimum=1
    )

    logging_steps: int = setting(
        10, "Steps between two lines of metrics.jsonl, which the trackers get as well.", group="Logging", minimum=1
    )
    report_to: str | None = setting(
        None, "Accelerate's trackers that metrics are sent to: tensorboard, wandb, ..., with commas between."
    )

    output_dir: str = required("Folder of the result: new or empty, unless training is resumed.", group="Output")

    def __post_init__(self):
        check_settings(self)
        if self.streaming and self.num_workers:
            raise ValueError(
                f"`num_workers` is {self.num_workers}; required: 0 with `streaming`, where threads read ahead."
            )
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise ValueError(
                f"`lr_step_rules` is {self.lr_step_rules!r}; required: given if `lr_scheduler` is piecewise_constant, "
                f"and only then (it is {self.lr_scheduler})."
            )
        for tracker in self.trackers:
            available = [str(name) for name in get_available_trackers()]
            if tracker not in available:
                raise ValueError(
                    f"`report_to` is {self.report_to!r}; required: of the trackers that are installed, "
                    f"{', '.join(available) or 'none'}."
                )
        check_output_dir(self.output_dir, resuming=self.resume_from_checkpoint is not None)

    @property
    def trackers(self) -> list[str]:
        """The names of Accelerate's trackers in `report_to`."""
        return self.report_to.split(",") if self.report_to else []


@dataclasses.dataclass(kw_only=True)
class ImageTrainingConfig(TrainingConfig):
    """Fields of the trainings whose data are single images."""

    image_column: str = setting("image", "The column of the images.", group="Data")
    resolution: int | tuple[int, int] | None = setting(None, RESOLUTION_HELP, minimum=1)


@dataclasses.dataclass(kw_only=True)
class TrainedPipelineSettings:
    """Fields of the trainings that write a pipeline or LoRA, and upload it where that is wanted."""

    save_dtype: str = setting(
        "float32", "The type of the saved weights.", group="Output", choices=("float32", "bfloat16", "float16")
    )
    push_to_hub: bool = setting(
        False, "Upload the result to `hub_model_id`, which is made, private, before training begins."
    )
    hub_model_id: str | None = setting(None, "The Hub repository of the result: user/name.")

    def check_hub(self) -> None:
        """Raise ValueError if the result is to be uploaded, but not said where to, or not to a repository."""
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("`push_to_hub` is true, but `hub_model_id` is not given; required: user/name.")
        if self.hub_model_id is not None:
            check_repository("hub_model_id", self.hub_model_id)


@dataclasses.dataclass(kw_only=True)
class OptionalAverageSettings:
    """Fields of the trainings whose result has averages of the weights, or the weights themselves."""

    ema_decay: float | None = setting(
        None,
        "The decay, at least 0 and below 1, of the average of the weights that is saved; null: the weights themselves "
        "are saved.",
        group="Averages of the weights",
    )
    ema_warmup: bool = setting(False, "Let the decay rise from 0 to its value in the first steps.")

    def check_average(self) -> None:
        """Raise ValueError for a decay that is none."""
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` is {self.ema_decay}; required: at least 0 and below 1, or null.")
