# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of Change3D's training; the defaults are the published recipe of binary change detection."""

from dataclasses import dataclass

from diffusers.optimization import SchedulerType

from ...change3d.captions import MIN_COUNT
from ...change3d.sources import split_of
from ...change3d.tasks import TASKS
from ...models import Change3DModel
from ...settings import argument_list, make_model_arguments, required, setting
from ..config import OptionalAverageSettings, TrainedPipelineSettings, TrainingConfig

SCHEDULES = ("poly", "step")
NOT_GIVEN = ("task", "vocab_size")  # arguments of the model that are settings, or follow from the data


@dataclass(kw_only=True)
class Change3DTrainingConfig(OptionalAverageSettings, TrainedPipelineSettings, TrainingConfig):
    """Settings of train_change3d.py.

    Raises:
        ValueError: For a value that cannot be trained with.
    """

    data: str = required(
        "Folder with SPLIT/t1, t2 and labels, folder or JSON file of captions, or folder or Hub id for "
        "`datasets.load_dataset`.",
        group="Data",
    )
    columns: dict = setting({}, "Names of columns that are not image_before, label, ..., as columns.label=mask.")
    label_palette: tuple[tuple[int, int, int], ...] | None = setting(
        None, "The colour [red, green, blue] of each class in label maps that are pictures; null: labels are numbers."
    )
    resize: bool = setting(
        False, "Resize images and labels to the model's size, as the original does; else they must have it."
    )
    check_data: bool = setting(True, "Read all label maps of folders before the first step.")
    vocabulary: str | None = setting(
        None, "The WORDMAP file of captions, {word: id}; null: that of the data, or one that is built of its captions."
    )
    min_word_count: int = setting(
        MIN_COUNT, "A word of a vocabulary that is built occurs more often than this.", minimum=0
    )
    random_variation: bool = setting(
        True, "Crop, flip and swap pairs at random, or for captions only swap them, as the original does."
    )

    task: str = required("The task of the model.", group="Model", choices=tuple(TASKS))
    model: dict = setting(
        {},
        "Arguments of the model, as model.num_classes=7: " + argument_list(Change3DModel, without=NOT_GIVEN) + ".",
    )
    class_names: tuple[str, ...] | None = setting(None, "The names of the classes, for the pipeline that is saved.")
    pretrained_encoder: str | None = setting(
        None,
        "File X3D_L.pyth of Kinetics-400, or user/name:file on the Hub, that the encoder begins with, as the paper's; "
        "or folder or Hub id of a Change3D of any task, whose encoder it begins with; null: random weights.",
    )
    pretrained_channel_order: str = setting(
        "as_read",
        "The channels that the pretrained encoder sees of damage images, which are read as BGR: as they are read, as "
        "in the original, or rgb, in which it was trained. The model takes BGR either way.",
        choices=("as_read", "rgb"),
    )
    weight_init: str | None = setting(
        None, "Folder or Hub id of a Change3DModel or -Pipeline, whose weights training begins with; without `model`."
    )
    gradient_checkpointing: bool = setting(False, "Compute activations anew in the backward pass, to save memory.")
    compile_model: bool = setting(False, "Compile the model by torch.compile.")
    channels_last: bool = setting(False, "Keep channels last in memory, for GPUs.")

    global_batch_size: int = 16
    max_train_steps: int = 80_000
    learning_rate: float = setting(2e-4, "The peak learning rate of Adam.")
    lr_scheduler: str = setting(
        "poly",
        "The learning rate's schedule: poly, (1 - step / steps) to the power `lr_power`, and step, both after a linear "
        "warm-up from a tenth within the first epoch, or by its name in diffusers.",
        choices=(*SCHEDULES, *(name.value for name in SchedulerType)),
    )
    lr_warmup_steps: int = setting(
        200, "Steps in which the learning rate rises linearly; of poly and step those of the first epoch only."
    )
    lr_power: float = 0.9
    lr_step_epochs: int = setting(
        100, "Epochs between two reductions of the schedule step.", group="Optimisation", minimum=1
    )
    lr_step_factor: float = setting(0.1, "The factor of each reduction of the schedule step.", above=0)
    adam_betas: tuple[float, float] = setting(
        (0.9, 0.99), "Adam's decay rates of the averages of gradients and of their squares.", minimum=0, below=1
    )
    adam_weight_decay: float = setting(
        1e-4, "The share of each weight that is added to its gradient (L2, not decoupled).", minimum=0
    )
    max_grad_norm: float | None = setting(
        None, "The norm that gradients are clipped to; null: the norm is measured only.", above=0
    )
    max_grad_value: float | None = setting(
        None, "The size that each element of the gradients is clipped to; null: none is.", above=0
    )

    # Dice makes the loss of a batch without a change many times that of others: only what is no number is a bad step.
    loss_spike_factor: float = 1000.0
    grad_norm_spike_factor: float = 1000.0

    validation_steps: int | None = setting(
        None,
        "Steps between two validations; the weights of the best one are the result. null: no validation, and the last "
        "weights.",
        group="Validation and samples",
        minimum=1,
    )
    validation_data: str | None = setting(None, "Validation data in another place; null: another split of `data`.")
    validation_split: str = setting("validation", "The split that is validated with.")
    select_on_test_split: bool = setting(
        False,
        "Choose the best weights by the test split, as the original does: its scores are then no longer those of data "
        "that nothing was chosen by.",
    )
    keep_best: bool = setting(True, "Save the weights of the best validation, not the last ones.")
    num_validation_pairs: int | None = setting(
        None, "The pairs that are validated with, the first ones; null: all.", minimum=1
    )
    num_beams: int = setting(1, "The number of beams of captions in the validation.", minimum=1)

    def __post_init__(self):
        TrainingConfig.__post_init__(self)
        self.check_hub()
        for name in NOT_GIVEN:
            if name in self.model:
                instead = "`task`" if name == "task" else "nothing, it follows from the vocabulary"
                raise ValueError(f"`model.{name}` is given; required: {instead}.")
        if self.weight_init is not None and (self.model or self.pretrained_encoder):
            raise ValueError(
                f"`weight_init` is {self.weight_init!r} with `model` or `pretrained_encoder`; required: it alone."
            )
        if self.weight_init is None:
            if self.task == "damage":
                self.model = {"num_classes": 5, **self.model}
            follow = {"task": self.task, **({"vocab_size": 1000} if self.task == "captioning" else {})}
            self.model = make_model_arguments("model", self.model, Change3DModel, follow)
        if self.vocabulary is not None and self.task != "captioning":
            raise ValueError(f"`vocabulary` is {self.vocabulary!r}; required: null for the task {self.task!r}.")
        self.check_average()
        if self.streaming and self.lr_scheduler == "step":
            raise ValueError(
                "`lr_scheduler` is step with `streaming`, whose epochs have no known length; required: another one."
            )
        if self.pretrained_channel_order == "rgb" and (self.task != "damage" or self.pretrained_encoder is None):
            raise ValueError(
                "`pretrained_channel_order` is rgb; required: as_read, or the task damage with `pretrained_encoder`."
            )
        self._check_validation()

    def _check_validation(self) -> None:
        if self.select_on_test_split:
            if self.validation_split not in ("validation", "test"):
                raise ValueError(
                    f"`validation_split` is {self.validation_split!r} with `select_on_test_split`; required: test."
                )
            self.validation_split = "test"
        elif split_of(self.validation_split) == "test":
            raise ValueError(
                f"`validation_split` is {self.validation_split!r}; required: a split that no result is reported of, or "
                "`select_on_test_split`."
            )
        if self.select_on_test_split and self.validation_steps is None:
            raise ValueError("`select_on_test_split` is true without `validation_steps`; required: both.")
        same_place = self.validation_data in (None, self.data)
        if self.validation_steps is not None and same_place and split_of(self.validation_split) == split_of(self.split):
            raise ValueError(
                f"`validation_split` is {self.validation_split!r}, that of the training; required: another."
            )
