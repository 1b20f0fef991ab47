# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The training loop of the transformer, and its loss, for full training and LoRA."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from ...flow_anchored_consistency import expand_times
from ...flow_matching import arctan_times, flow_matching_losses, logit_normal_times, uniform_times
from ...grids import draw_grid
from ...keyed_random import KeyedRandom
from ...models import AutoencoderVAVAE, LightningDiTTransformer2DModel
from ...pixels import height_and_width
from ..batches import Sampler, train_steps
from ..moving_averages import MovingAverages
from ..muon import Muon, stacked_projections
from ..optimizer_step import accumulating, due, finish_step, mean_of_parts
from ..optimizers import make_adamw
from ..progress import TrainingProgress, forward_flops
from ..run_state import RunState, make_run_state
from ..state_io import model_arguments, trained_parameters
from .alignment import Alignment
from .config import FlowTrainingConfig
from .data import TransformerData, dataset_to_train_on, normalized_latents
from .validation import validation_losses

NAME = "transformer"  # the one model of the run, in checkpoints


# ---------------------------------------------------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------------------------------------------------


def draw_times(config: FlowTrainingConfig, draws: KeyedRandom, step: int) -> torch.Tensor:
    """The times t of a batch, [B], of the distribution that the settings ask for at this step."""
    uniform = draws.uniform("times")
    uniform_from = math.inf if config.uniform_times_from_step is None else config.uniform_times_from_step
    if config.time_sampling == "uniform" or config.expanded_times or step >= uniform_from:
        return uniform_times(uniform, config.time_range)
    sample = {"logit_normal": logit_normal_times, "arctan": arctan_times}[config.time_sampling]
    return sample(uniform, config.logit_normal_mean, config.logit_normal_std, config.time_range)


def training_loss(
    config: FlowTrainingConfig,
    model: torch.nn.Module,
    latents: torch.Tensor,
    class_labels: torch.Tensor,
    draws: KeyedRandom,
    step: int,
    transformer: LightningDiTTransformer2DModel,
    batch: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Mean loss of a batch, under the name `loss`.

    Args:
        config: The settings.
        model: The network, which wraps `transformer`.
        latents: [B, C, height, width], normalised.
        class_labels: [B].
        draws: The random numbers of the batch.
        step: The optimiser steps before this one.
        transformer: The same without wrappers.
        batch: All that the data has of the batch.
    """
    noise = draws.normal("noise", latents.shape[1:])
    times = draw_times(config, draws, step)
    labels = transformer.class_embedder.drop_labels(class_labels, draws.uniform("labels"))
    seen_times = expand_times(times, draws.samples, config.global_batch_size) if config.expanded_times else None
    has_internal = transformer.config.internal_guidance_layer is not None
    losses = flow_matching_losses(model, noise, latents, times, labels, seen_times, has_internal)
    loss = losses.mse.mean()
    if config.use_cosine_loss:
        loss = loss + losses.cosine.mean()
    if not has_internal:
        return {"loss": loss}
    internal = losses.internal_mse.mean()
    return {"loss": loss + config.internal_guidance_weight * internal, "internal_guidance_loss": internal}


def aligned_loss(
    alignment: Alignment, projector: torch.nn.Module, config: FlowTrainingConfig, *arguments
) -> dict[str, torch.Tensor]:
    """`training_loss` with that of an alignment, while it is active; `projector` wraps the alignment's."""
    losses, (*_, step, _, batch) = training_loss(config, *arguments), arguments
    if not alignment.settings.is_active(step):
        return losses
    flow, aligned = losses["loss"], alignment.loss(projector, batch)
    return {"loss": flow + alignment.settings.weight * aligned, "flow_loss": flow, "alignment_loss": aligned}


# ---------------------------------------------------------------------------------------------------------------------
# Beginning
# ---------------------------------------------------------------------------------------------------------------------


def make_transformer_run(
    config: FlowTrainingConfig,
    accelerator: Accelerator,
    transformer: LightningDiTTransformer2DModel,
    sampler: Sampler,
    others: dict[str, tuple[torch.nn.Module, dict]] | None = None,
    **arguments,
) -> RunState:
    """The run of a transformer before its first step: training mode, optimiser, schedule, averages and spike guard.

    Args:
        config: The settings.
        accelerator: The accelerator of the run.
        transformer: The transformer with its first weights; those that are frozen stay as they are.
        sampler: The order of the training data.
        others: Modules that train with it, by name, each with its arguments; there are no averages of them.
        arguments: `advice` and further values for `make_run_state`.

    Raises:
        ValueError: for an optimiser that sharded weights do not have.
    """
    if config.optimizer == "muon" and accelerator.is_fsdp2:
        raise ValueError(
            "`optimizer` is 'muon'; required: another one where weights are sharded, since it needs whole matrices."
        )
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile_blocks:
        transformer.compile_repeated_blocks()
    transformer.train()
    transformer.class_embedder.eval()  # labels are dropped in `training_loss`: the same on any number of processes
    modules = {NAME: (transformer, dict(transformer.config)), **(others or {})}
    models, optimizers = {}, {}
    for name, (module, _) in modules.items():
        models[name], optimizers[name] = accelerator.prepare(module, make_optimizer(config, module))
    profile = (config.ema_decays, config.ema_warmup, config.ema_relative_width)
    averages = {NAME: MovingAverages(models[NAME].parameters(), *profile)}
    architectures = {name: architecture for name, (_, architecture) in modules.items()}
    return make_run_state(config, accelerator, sampler, models, optimizers, averages, architectures, **arguments)


def make_optimizer(config: FlowTrainingConfig, module: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the parameters of a module that train."""
    parameters = trained_parameters(module).values()
    settings = (config.learning_rate, config.adam_betas, config.adam_weight_decay)
    if config.optimizer == "muon":
        return Muon(parameters, *settings, stacked=stacked_projections(module))
    return make_adamw(config.optimizer, parameters, *settings)


def averaged_pipeline(
    config: FlowTrainingConfig,
    state: RunState,
    pipeline_of: Callable[[LightningDiTTransformer2DModel], DiffusionPipeline],
) -> DiffusionPipeline | None:
    """The pipeline with averaged weights, on the CPU of the main process, None on others; every process calls it."""
    weights = state.average(NAME, config.ema_decay)
    if not state.accelerator.is_main_process:
        return None
    return pipeline_of(transformer_of(state.model(NAME).config, weights))


def transformer_of(
    architecture: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> LightningDiTTransformer2DModel:
    """A transformer for sampling, which takes the tensors of a state dict as they are."""
    with torch.device("meta"):
        transformer = LightningDiTTransformer2DModel.from_config(model_arguments(architecture))
    transformer.load_state_dict(weights, assign=True)
    return transformer.eval()


def image_flops(architecture: dict, num_passes: int) -> int:
    """Floating-point operations of training on one image, which costs as much as `num_passes` forward passes."""
    with torch.device("meta"):
        model = LightningDiTTransformer2DModel.from_config(architecture)
        latents = torch.empty(1, model.config.in_channels, *height_and_width(model.config.sample_size))
        return num_passes * forward_flops(model, latents, torch.empty(1), torch.empty(1, dtype=torch.long))


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def train(
    config: FlowTrainingConfig,
    accelerator: Accelerator,
    vae: AutoencoderVAVAE,
    data: TransformerData,
    validation: TransformerData | None,
    sampler: Sampler,
    state: RunState,
    make_pipeline: Callable[[], DiffusionPipeline | None],
    num_passes: int = 3,
    sample_class_ids: Sequence[int] | None = None,
    loss: Callable[..., dict[str, torch.Tensor]] | None = None,
    trained_at: Callable[[int], Sequence[str]] = lambda step: [NAME],
) -> None:
    """Take the steps that are left.

    Args:
        config: The settings.
        accelerator: The accelerator of the run.
        vae: The frozen autoencoder.
        data: The training data.
        validation: The data to measure losses on, or None.
        sampler: The order of the training data.
        state: The run, with the model under the name `NAME`.
        make_pipeline: A function that every process calls, and that returns the pipeline to draw with, on the CPU, on
            the main process, and None on the others.
        num_passes: The forward passes that a step costs as much as; a backward pass for all weights costs two.
        sample_class_ids: The classes to draw; all by default.
        loss: A function as `training_loss`, the default; what it returns beside `loss` is recorded.
        trained_at: A function of the steps taken, that gives the names of the models that take the next one, the
            transformer's first. The losses of its steps are judged anew where the names change.
    """
    loss = training_loss if loss is None else loss
    model, transformer = state.models[NAME], accelerator.unwrap_model(state.models[NAME])
    micro_batch_size = config.global_batch_size // accelerator.num_processes // config.gradient_accumulation_steps
    dataset = dataset_to_train_on(config, data, vae, show_progress=accelerator.is_main_process)
    progress = TrainingProgress(config, accelerator, state.step, image_flops(state.architectures[NAME], num_passes))
    state.report = progress.report
    steps = train_steps(config, dataset, sampler, state.batch_index, accelerator)

    def observe(only_missing: bool = False) -> None:
        """Measure and draw after this step what is due, or only what a run that was killed after it did not come to."""
        step, last = state.step, config.max_train_steps
        if due(step, config.validation_steps, last) and not (only_missing and progress.has_validation(step)):
            drawn = (config.num_validation_samples, micro_batch_size, config.seed)
            expanded = config.has_velocity_at_expanded_times
            progress.record(step, validation_losses(model, validation, vae, *drawn, accelerator, expanded))
        if due(step, config.sample_steps, last) and not (only_missing and progress.has_image(step)):
            pipeline = make_pipeline()
            if pipeline is not None:
                pipeline.to(accelerator.device)
                grid = draw_grid(pipeline, config.num_samples, config.seed, micro_batch_size, sample_class_ids)
                progress.record_image(step, grid)
            accelerator.wait_for_everyone()

    with progress, state.interruption:
        if state.step > 0:
            observe(only_missing=True)
        while state.step < config.max_train_steps:
            parts, names = [], trained_at(state.step)
            if state.step > 0 and names != trained_at(state.step - 1):
                state.spike_guard.forget_history()
            micro_batches = next(steps)
            for number, (batch, draws) in enumerate(micro_batches, start=1):
                latents = normalized_latents(batch, vae, draws)
                with contextlib.ExitStack() as exchange:
                    for name in names:
                        is_last = number == len(micro_batches)
                        exchange.enter_context(accumulating(accelerator, state.models[name], is_last))
                    with accelerator.autocast():
                        labels = batch["class_labels"]
                        losses = loss(config, model, latents, labels, draws, state.step, transformer, batch)
                    accelerator.backward(losses["loss"] / len(micro_batches))
                parts.append({name: value.detach() for name, value in losses.items()})
            metrics = finish_step(state, mean_of_parts(parts), lambda means: means["loss"], config.max_grad_norm, names)
            progress.update(state.step, metrics)

            if state.secure(config.checkpointing_steps, config.max_train_steps):
                continue  # back at an earlier step
            observe()
    state.check_result()
