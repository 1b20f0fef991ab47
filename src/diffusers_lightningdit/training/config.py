# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings that every training stage has."""

import dataclasses

from accelerate.tracking import get_available_trackers
from diffusers.optimization import SchedulerType

from ..files import check_output_dir
from ..settings import check_at_least, check_choice, check_positive


@dataclasses.dataclass(kw_only=True)
class TrainingConfig:
    """Fields that the training scripts share; a script's own dataclass inherits them and adds its own.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    # Data
    data: str  # folder or Hub id, for `datasets.load_dataset`
    split: str = "train"
    image_column: str = "image"
    resolution: int = 256
    num_workers: int = 0  # processes that load images, beside each training process
    streaming: bool = False  # leave the data where it is, and read it again in each epoch
    shuffle_block_size: int = 8192  # rows of a stream that are shuffled at a time, and kept in memory undecoded
    num_open_files: int = 64  # of a stream, that are read in turns
    # Optimisation
    global_batch_size: int  # of one optimiser step, over all processes and accumulation steps
    gradient_accumulation_steps: int = 1
    max_train_steps: int
    learning_rate: float
    lr_scheduler: str = "constant"  # of diffusers' get_scheduler
    lr_warmup_steps: int = 0
    lr_num_cycles: int = 1  # of cosine_with_restarts
    lr_power: float = 1.0  # of polynomial
    lr_step_rules: str | None = None  # of piecewise_constant: "0.1:1000,0.01" is a tenth for 1000 steps, then a 100th
    mixed_precision: str = "no"
    seed: int = 0
    # Checkpoints
    checkpointing_steps: int | None = 5000  # every so many steps and after the last; null: none
    checkpoints_total_limit: int | None = 3  # older ones are removed; null: all are kept
    resume_from_checkpoint: str | None = None  # "latest" in output_dir, or the folder of a checkpoint
    # Steps that are not taken: see SpikeGuard
    loss_spike_factor: float = 3.0
    grad_norm_spike_factor: float = 10.0
    spike_patience: int = 10  # bad steps in a row, after which the last good checkpoint is taken up again
    # Logging
    logging_steps: int = 10  # a line of metrics.jsonl, and to the trackers, every so many steps
    report_to: str | None = None  # tensorboard, wandb, ...: names of Accelerate's trackers, with commas between
    # Result
    output_dir: str  # new or empty, unless training is resumed

    def __post_init__(self):
        for name in (
            "resolution",
            "global_batch_size",
            "gradient_accumulation_steps",
            "max_train_steps",
            "lr_num_cycles",
            "spike_patience",
            "logging_steps",
            "shuffle_block_size",
            "num_open_files",
        ):
            check_at_least(name, getattr(self, name), 1)
        for name in ("num_workers", "lr_warmup_steps", "seed"):
            check_at_least(name, getattr(self, name), 0)
        if self.streaming and self.num_workers:
            raise ValueError(
                f"`num_workers` is {self.num_workers}; required: 0 with `streaming`, where threads read ahead."
            )
        for name in ("checkpointing_steps", "checkpoints_total_limit"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        for name in ("learning_rate", "lr_power"):
            check_positive(name, getattr(self, name))
        for name in ("loss_spike_factor", "grad_norm_spike_factor"):
            if not getattr(self, name) > 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; required: above 1.")
        check_choice("lr_scheduler", self.lr_scheduler, [name.value for name in SchedulerType])
        if (self.lr_scheduler == "piecewise_constant") != (self.lr_step_rules is not None):
            raise ValueError(
                f"`lr_step_rules` is {self.lr_step_rules!r}; required: given if `lr_scheduler` is piecewise_constant, "
                f"and only then (it is {self.lr_scheduler})."
            )
        check_choice("mixed_precision", self.mixed_precision, ("no", "fp16", "bf16", "fp8"))
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
        return self.report_to.split(",") if self.report_to else []
