# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of LoRA training."""

from dataclasses import dataclass

from ...settings import required, setting
from .config import FlowTrainingConfig


@dataclass(kw_only=True)
class LoraTrainingConfig(FlowTrainingConfig):
    """Settings of train_lightningdit_lora.py.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    new_classes: dict = setting(
        {},
        "Names of classes that the pipeline does not know, each with the name or id of the class whose embedding it "
        "begins with (null: the mean of all); the other classes of the data are the pipeline's of the same names.",
        group="Data",
    )
    class_name: str | None = setting(
        None, "The class of all images, for a folder of images of one class, which has no labels."
    )
    check_statistics: bool = setting(
        False,
        "Check that latents have the statistics of the VAE; they normalise the latents, whatever those of other data "
        "are.",
    )

    pipeline: str = required("Folder or Hub id of the pipeline that learns.", group="Model")
    rank: int = setting(16, "The LoRA rank.", minimum=1)
    alpha: float | None = setting(
        None, "The LoRA's product is scaled by `alpha` / `rank`; null: `alpha` is `rank`.", above=0
    )
    target_modules: tuple[str, ...] = setting(
        ("to_q", "to_k", "to_v", "to_out.0"),
        "The names of the linear layers that get a LoRA; ff.net.0.proj and ff.net.2 are those of the MLP.",
    )

    global_batch_size: int = 32
    max_train_steps: int = 1000
    learning_rate: float = 5e-4
    ema_decay: float = 0.99
    checkpointing_steps: int | None = 250

    def __post_init__(self):
        super().__post_init__()
        if not self.target_modules:
            raise ValueError("`target_modules` is []; required: at least one name of a linear layer.")
        for name, start in self.new_classes.items():
            if not isinstance(name, str) or not isinstance(start, str | int | None) or isinstance(start, bool):
                raise ValueError(f"`new_classes.{name}` is {start!r}; required: name or id of a class, or null.")
