# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Distillation of a flow into a few steps (FACM, arXiv 2507.03738): the settings, the networks, and the training loss.

The defaults are the published recipe for two steps, but for the second time embedding, with which the student begins as
the teacher, unchanged, and which suits flows that have not seen expanded times.
"""

import contextlib
import copy
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from ...data.latent_encoding import frozen_copy
from ...flow_anchored_consistency import DERIVATIVES, TIMES, FlowAnchoredConsistency
from ...keyed_random import KeyedRandom
from ...models import LightningDiTTransformer2DModel
from ...pipelines.lightningdit_sampling import check_scheduler, jumps_to_data
from ...pipelines.pipeline_lightningdit import LightningDiTPipeline
from ...settings import required, setting
from ..state_io import model_arguments
from .config import FlowTrainingConfig, check_interval
from .loop import draw_times
from .pipeline_data import load_pipeline
from .weight_init import load_initial_transformer

DERIVATIVE_DTYPES = ("float32", "mixed")
NUM_PASSES = 10  # forward passes that a step costs: the teacher's 2, the student's 2 and back, 2 for the derivative


# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class FewStepTrainingConfig(FlowTrainingConfig):
    """Settings of train_lightningdit_few_step.py.

    Raises:
        ValueError: for a value that cannot be trained with.
    """

    data_kind: str = "latents"

    pipeline: str = required(
        "Folder or Hub id of the pipeline whose flow is distilled: the teacher, as which the student begins.",
        group="Model",
    )
    student: str | None = setting(
        None,
        "Folder or Hub id of a transformer or pipeline whose weights the student begins with instead, as those of an "
        "earlier distillation. A run that goes on from a checkpoint does not read it.",
    )
    student_times: str = setting(
        "second",
        "The way in which the student's velocity and its jumps to the data are told apart: by a second time, or by "
        "expanded times 2 - t of the velocity, which need a teacher that was trained with `expanded_times`.",
        choices=TIMES,
    )

    use_teacher: bool = setting(
        True, "Aim at the velocity of the teacher; false: at that of the data, and guide by the student.", group="Loss"
    )
    derivative: str = setting(
        "finite_difference",
        "The derivative along the flow: finite_difference costs two evaluations without gradient; forward_mode is "
        "exact, needs plain attention, and can be neither compiled nor sharded.",
        choices=DERIVATIVES,
    )
    derivative_dtype: str = setting(
        "float32",
        "The type that the derivative is computed in: float32, or that of `mixed_precision`, in which the difference "
        "of two evaluations is mostly rounding error, and forward_mode loses little.",
        choices=DERIVATIVE_DTYPES,
    )
    target_guidance_scale: float = setting(
        1.75, "The scale of the classifier-free guidance that the student learns; at most 1: none.", minimum=0
    )
    target_guidance_interval: tuple[float, float] = setting(
        (0.125, 1.0), "The times t from which and up to which the student learns guidance, in [0, 1]."
    )
    target_exponent: float = setting(
        0.5, "The exponent p: the average velocity goes 1 - t^p of the way to its target.", above=0
    )
    time_sampling: str = "arctan"
    logit_normal_mean: float = 0.8
    logit_normal_std: float = 1.6

    global_batch_size: int = 1024
    max_train_steps: int = 125_000
    learning_rate: float = 1e-4
    adam_betas: tuple[float, float] = (0.9, 0.999)

    num_inference_steps: int = setting(2, "Sampling steps of the saved pipeline.", group="Sampling", minimum=1)

    def __post_init__(self):
        super().__post_init__()
        check_interval("target_guidance_interval", self.target_guidance_interval)
        if self.expanded_times:
            raise ValueError("`expanded_times` is true; required: false, `student_times` says what a student sees.")
        if self.derivative == "forward_mode" and self.compile_blocks:
            raise ValueError(
                "`derivative` is 'forward_mode', and `compile_blocks` is true; required: finite_difference, or blocks "
                "that are not compiled."
            )
        if self.mixed_precision == "fp8" and self.derivative_dtype == "float32":
            raise ValueError("`derivative_dtype` is 'float32'; required: mixed with `mixed_precision` fp8.")

    @property
    def has_velocity_at_expanded_times(self) -> bool:
        """Whether the student's velocity is that at t in [1, 2]."""
        return self.student_times == "expanded"


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def load_teacher(name: str) -> LightningDiTPipeline:
    """The pipeline of the flow, all of it frozen.

    Raises:
        ValueError: in one line, if there is none, or its transformer is not the velocity of a flow.
    """
    pipeline = load_pipeline(name)
    try:
        check_scheduler(pipeline.scheduler)
    except ValueError as error:
        raise ValueError(f"`pipeline` is {name!r}; required: one that was trained as a flow ({error})") from error
    if jumps_to_data(pipeline.scheduler):
        raise ValueError(
            f"`pipeline` is {name!r}, which samples in a few steps; required: one that was trained as a flow, of which "
            "`student` is this one, to go on with."
        )
    pipeline.transformer.requires_grad_(False).eval()
    pipeline.register_modules(vae=frozen_copy(pipeline.vae))
    return pipeline


def make_student(
    config: FewStepTrainingConfig, teacher: LightningDiTTransformer2DModel, begins_anew: bool
) -> LightningDiTTransformer2DModel:
    """A student that begins as the teacher, or, where it begins anew, as `config.student`.

    Raises:
        ValueError: in one line, if that is of another architecture.
    """
    # an output layer for internal guidance has no part in the loss
    changes = {"second_time_embedding": config.student_times == "second", "internal_guidance_layer": None}
    torch.manual_seed(config.seed)  # the same first weights on every process
    student = LightningDiTTransformer2DModel.from_config({**model_arguments(teacher.config), **changes})
    initial = teacher
    if config.student is not None and begins_anew:
        initial, _ = load_initial_transformer(config.student, "student")
        for key, value in model_arguments(student.config).items():
            if initial.config[key] != value:
                raise ValueError(
                    f"`student` is {config.student!r}, whose transformer has `{key}` {initial.config[key]!r}; "
                    f"required: {value!r}, as the teacher and `student_times` have it."
                )
    weights = student.state_dict()
    weights |= {key: value for key, value in initial.state_dict().items() if key in weights}
    student.load_state_dict(weights)
    return student


def check_processes(config: FewStepTrainingConfig, accelerator: Accelerator) -> None:
    """Raise ValueError for a derivative that sharded weights do not have."""
    if not accelerator.is_fsdp2:
        return
    if config.derivative == "forward_mode":
        raise ValueError("`derivative` is 'forward_mode'; required: finite_difference where weights are sharded.")
    if config.derivative_dtype == "float32" and config.mixed_precision != "no":
        raise ValueError(
            f"`derivative_dtype` is 'float32'; required: mixed where weights are sharded, and gathered in "
            f"{config.mixed_precision}, or `mixed_precision` no."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------------------------------------------------


class Distillation:
    """The loss of the student, as `loop.training_loss`.

    It has to be made before the student is prepared for training: it keeps a second handle on the student's modules
    and weights, which neither Accelerate's autocast nor the wrapper of a process group covers, to take the derivative
    of. No gradient flows through the derivative, so none passes by the exchange of the processes.

    Args:
        config: The settings.
        accelerator: The accelerator of the run.
        student: The student.
        teacher: The frozen teacher, on the device of the run.
    """

    def __init__(
        self,
        config: FewStepTrainingConfig,
        accelerator: Accelerator,
        student: LightningDiTTransformer2DModel,
        teacher: LightningDiTTransformer2DModel,
    ):
        self.objective = FlowAnchoredConsistency(
            null_class=teacher.config.num_classes,
            times=config.student_times,
            derivative=config.derivative,
            guidance_scale=config.target_guidance_scale,
            guidance_interval=config.target_guidance_interval,
            exponent=config.target_exponent,
        )
        self.teacher = teacher if config.use_teacher else None
        self.plain = None if accelerator.is_fsdp2 else copy.copy(student)
        self.in_float32 = config.derivative_dtype == "float32"

    def __call__(
        self,
        config: FewStepTrainingConfig,
        model: nn.Module,
        latents: torch.Tensor,
        class_labels: torch.Tensor,
        draws: KeyedRandom,
        step: int,
        transformer: LightningDiTTransformer2DModel,
        batch: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Mean losses of a batch: their sum, `loss`, and each of them."""
        noise, times = draws.normal("noise", latents.shape[1:]), draw_times(config, draws, step)

        def network(*arguments, **second):
            with torch.autocast(latents.device.type, enabled=False) if self.in_float32 else contextlib.nullcontext():
                return (self.plain or model)(*arguments, **second)

        losses = self.objective.losses(model, network, self.teacher, noise, latents, times, class_labels)
        consistency, mse, cosine = (loss.mean() for loss in losses)
        anchor = mse + cosine if config.use_cosine_loss else mse
        return {"loss": consistency + anchor, "consistency_loss": consistency, "anchor_loss": anchor}
