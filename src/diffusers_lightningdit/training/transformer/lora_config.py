# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of LoRA training."""

from dataclasses import dataclass, field

from ...settings import check_at_least, check_positive
from .config import FlowTrainingConfig


@dataclass(kw_only=True)
class LoraTrainingConfig(FlowTrainingConfig):
    """Settings of train_lightningdit_lora.py.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    pipeline: str  # folder or Hub id of the pipeline that learns
    # Data: the classes of the data are the pipeline's of the same names, but those in `new_classes`
    new_classes: dict = field(default_factory=dict)  # name: class whose row it begins with (null: the mean of all)
    class_name: str | None = None  # of all images: a folder of images of one class has no labels
    check_statistics: bool = False  # the pipeline was trained with the VAE's, whatever those of other data are
    # LoRA
    rank: int = 16
    alpha: float | None = None  # the product is scaled by alpha / rank; by default by 1
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # ff.net.0.proj and ff.net.2: the MLP
    # Optimisation
    global_batch_size: int = 32
    max_train_steps: int = 1000
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    checkpointing_steps: int | None = 250

    def __post_init__(self):
        super().__post_init__()
        check_at_least("rank", self.rank, 1)
        if self.alpha is not None:
            check_positive("alpha", self.alpha)
        if not self.target_modules:
            raise ValueError("`target_modules` is []; required: at least one name of a linear layer.")
        for name, start in self.new_classes.items():
            if not isinstance(name, str) or not isinstance(start, str | int | None) or isinstance(start, bool):
                raise ValueError(f"`new_classes.{name}` is {start!r}; required: name or id of a class, or null.")
