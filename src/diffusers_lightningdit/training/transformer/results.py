# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The pipelines that the trainings of the transformer leave: at the end of a run, or of a checkpoint."""

from diffusers import FlowMatchEulerDiscreteScheduler

from ...models import AutoencoderVAVAE, LightningDiTTransformer2DModel
from ...pipelines.pipeline_lightningdit import LightningDiTPipeline
from .config import LightningDiTTrainingConfig
from .few_step import FewStepTrainingConfig


def flow_pipeline(
    config: LightningDiTTrainingConfig,
    transformer: LightningDiTTransformer2DModel,
    vae: AutoencoderVAVAE,
    id2label: dict[int, str] | None,
) -> LightningDiTPipeline:
    """The pipeline of a transformer that `train_lightningdit.py` trained, with the recipe that its settings name."""
    # the original's shift s is diffusers' 1 / s
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / config.timestep_shift)
    recipe = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "guidance_interval": list(config.guidance_interval),
        "guidance_channels": config.guidance_channels,
    }
    return LightningDiTPipeline(transformer, vae, scheduler, id2label=id2label, sampling_recipe=recipe)


def few_step_pipeline(
    config: FewStepTrainingConfig, student: LightningDiTTransformer2DModel, teacher: LightningDiTPipeline
) -> LightningDiTPipeline:
    """The pipeline of a student that `train_lightningdit_few_step.py` trained, with the autoencoder of its teacher."""
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    recipe = {"num_inference_steps": config.num_inference_steps, "guidance_scale": 1.0}
    id2label = teacher.config.id2label
    return LightningDiTPipeline(student, teacher.vae, scheduler, id2label=id2label, sampling_recipe=recipe)
