# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Train the transformer (second stage) on the latents of a frozen autoencoder.

    accelerate launch training_scripts/train_lightningdit.py \
        --config training_scripts/recipes/digits_lightningdit.yaml \
        data=FOLDER_OR_HUB_ID vae=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

Keys are the fields of `LightningDiTTrainingConfig`; docs/training.md explains them. The result is a complete pipeline
folder with EMA weights, which `DiffusionPipeline.from_pretrained` loads.
"""

from dataclasses import asdict

import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler
from huggingface_hub import create_repo

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.data.global_batches import GlobalBatchSampler
from diffusers_lightningdit.data.images import UnusableImage
from diffusers_lightningdit.data.latents import load_frozen_vae
from diffusers_lightningdit.flow_matching import drop_labels, flow_matching_losses, logit_normal_times, uniform_times
from diffusers_lightningdit.keyed_random import KeyedRandom
from diffusers_lightningdit.original import read_training_checkpoint
from diffusers_lightningdit.settings import one_line_errors, parse_config
from diffusers_lightningdit.training.checkpoints import CheckpointWriteError
from diffusers_lightningdit.training.data import TransformerData, dataset_to_train_on, load_data, normalized_latents
from diffusers_lightningdit.training.lightningdit_config import LightningDiTTrainingConfig
from diffusers_lightningdit.training.loop import (
    accumulating,
    clip_gradients,
    due,
    global_mean,
    make_accelerator,
    make_adamw,
    make_batch_sampler,
    make_lr_scheduler,
    skip_step,
    train_steps,
    write_result,
)
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.progress import TrainingProgress, forward_flops
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.samples import check_share, draw_grid, save_grid, validation_losses
from diffusers_lightningdit.training.spike_guard import SpikeGuard, TrainingDiverged
from diffusers_lightningdit.training.weight_init import initialize_weights, load_initial_transformer

NAME = "transformer"  # of the one model of the run, in checkpoints


# ---------------------------------------------------------------------------------------------------------------------
# The algorithm
# ---------------------------------------------------------------------------------------------------------------------


def training_loss(
    config: LightningDiTTrainingConfig,
    model: torch.nn.Module,
    latents: torch.Tensor,
    class_labels: torch.Tensor,
    draws: KeyedRandom,
    step: int,
    architecture: dict,
) -> torch.Tensor:
    """Mean loss of a batch: normalised latents [B, C, height, width], class_labels [B]."""
    noise = draws.normal("noise", latents.shape[1:])
    uniform = draws.uniform("times")
    if config.time_sampling == "uniform" or step >= (config.uniform_times_from_step or step + 1):
        times = uniform_times(uniform, config.time_range)
    else:
        times = logit_normal_times(uniform, config.logit_normal_mean, config.logit_normal_std, config.time_range)
    labels = drop_labels(
        class_labels, draws.uniform("labels"), architecture["class_dropout_prob"], architecture["num_classes"]
    )
    mse, cosine = flow_matching_losses(model, noise, latents, times, labels)
    return mse.mean() + cosine.mean() if config.use_cosine_loss else mse.mean()


# ---------------------------------------------------------------------------------------------------------------------
# Beginning
# ---------------------------------------------------------------------------------------------------------------------


def make_transformer(
    config: LightningDiTTrainingConfig, vae: AutoencoderVAVAE, data: TransformerData, accelerator: Accelerator
) -> LightningDiTTransformer2DModel:
    torch.manual_seed(config.seed)  # the same first weights on every process
    transformer = LightningDiTTransformer2DModel(
        sample_size=data.sample_size,
        in_channels=vae.config.latent_channels,
        num_classes=data.num_classes,
        **config.transformer,
    )
    if config.weight_init is not None and config.resume_from_checkpoint is None:
        for remark in initialize_weights(transformer, load_initial_transformer(config.weight_init).state_dict()):
            accelerator.print(remark)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile_blocks:
        transformer.compile_repeated_blocks()
    transformer.train()
    transformer.class_embedder.eval()  # labels are dropped in `training_loss`: the same on any number of processes
    return transformer


def make_run(
    config: LightningDiTTrainingConfig,
    accelerator: Accelerator,
    transformer: LightningDiTTransformer2DModel,
    sampler: GlobalBatchSampler,
) -> RunState:
    """Model, optimiser, schedule, averages and guard: new, or as in the checkpoint to resume from."""
    architecture = dict(transformer.config)
    model, optimizer = accelerator.prepare(
        transformer,
        make_adamw(
            config.optimizer,
            transformer.parameters(),
            config.learning_rate,
            config.adam_betas,
            config.adam_weight_decay,
        ),
    )
    state = RunState(
        accelerator,
        config.output_dir,
        models={NAME: model},
        optimizers={NAME: optimizer},
        lr_schedulers={NAME: make_lr_scheduler(config, optimizer.optimizer)},
        averages={NAME: MovingAverages(model.parameters(), config.ema_decays, config.ema_warmup)},
        guard=SpikeGuard(config.loss_spike_factor, config.grad_norm_spike_factor, patience=config.spike_patience),
        identity=sampler.identity(),
        architectures={NAME: architecture},
        settings=asdict(config),
        total_limit=config.checkpoints_total_limit,
        report=accelerator.print,
    )
    if config.resume_from_checkpoint is not None and config.resume_from_checkpoint.endswith(".pt"):
        original = read_training_checkpoint(config.resume_from_checkpoint)
        state.adopt(NAME, original.weights, original.average, original.moments, original.num_steps)
    elif config.resume_from_checkpoint is not None:
        state.resume(config.resume_from_checkpoint)
    return state


def image_flops(architecture: dict) -> int:
    """Floating-point operations of training on one image: a backward pass costs two forward passes."""
    with torch.device("meta"):
        model = LightningDiTTransformer2DModel.from_config(architecture)
        latents = torch.empty(1, model.config.in_channels, *[model.config.sample_size] * 2)
        return 3 * forward_flops(model, latents, torch.empty(1), torch.empty(1, dtype=torch.long))


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(LightningDiTTrainingConfig, argv, __doc__)
        accelerator = make_accelerator(config)
        vae = load_frozen_vae(config.vae)
        data = load_data(config, vae, config.data, config.split, for_training=True)
        if (config.guidance_channels or 0) > vae.config.latent_channels:
            raise ValueError(
                f"`guidance_channels` is {config.guidance_channels}; required: at most the VAE's `latent_channels`, "
                f"{vae.config.latent_channels}."
            )
        sampler = make_batch_sampler(config, len(data.dataset), accelerator)
        validation = None
        if config.validation_steps is not None:
            name = config.validation_data or config.data
            try:
                validation = load_data(config, vae, name, config.validation_split, for_training=False)
            except ValueError as error:
                raise ValueError(f"validation data: {error}") from error
            check_share(config.num_validation_samples, len(validation.dataset), accelerator.num_processes)
        vae.to(accelerator.device)
        state = make_run(config, accelerator, make_transformer(config, vae, data, accelerator), sampler)
    with one_line_errors((CheckpointWriteError, TrainingDiverged, UnusableImage, OSError), status=1):
        if config.push_to_hub and accelerator.is_main_process:
            create_repo(config.hub_model_id, private=True, exist_ok=True)  # now, not after days of training
        train(config, accelerator, vae, data, validation, sampler, state)
        save(config, accelerator, vae, data, state)


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def train(
    config: LightningDiTTrainingConfig,
    accelerator: Accelerator,
    vae: AutoencoderVAVAE,
    data: TransformerData,
    validation: TransformerData | None,
    sampler: GlobalBatchSampler,
    state: RunState,
) -> None:
    model, optimizer, averages = state.models[NAME], state.optimizers[NAME], state.averages[NAME]
    architecture = state.architectures[NAME]
    micro_batch_size = config.global_batch_size // accelerator.num_processes // config.gradient_accumulation_steps
    dataset = dataset_to_train_on(config, data, vae, show_progress=accelerator.is_main_process)
    progress = TrainingProgress(config, accelerator, state.step, image_flops(architecture))
    state.report = progress.report
    steps = train_steps(config, dataset, sampler, state.position, accelerator)

    with progress:
        while state.step < config.max_train_steps:
            losses = []
            micro_batches = next(steps)
            for number, (batch, draws) in enumerate(micro_batches, start=1):
                latents = normalized_latents(batch, vae, draws)
                with accumulating(accelerator, model, is_last=number == len(micro_batches)):
                    with accelerator.autocast():
                        loss = training_loss(
                            config, model, latents, batch["class_labels"], draws, state.step, architecture
                        )
                    accelerator.backward(loss / len(micro_batches))
                losses.append(loss.detach())
            grad_norm = clip_gradients(accelerator, model, config.max_grad_norm)
            loss, grad_norm = global_mean(accelerator, torch.stack([torch.stack(losses).mean(), grad_norm]))

            spike = state.guard.check(loss, grad_norm, may_overflow=accelerator.scaler is not None)
            if spike is None:
                optimizer.step()
                optimizer.zero_grad()
                if not accelerator.optimizer_step_was_skipped:  # by the loss scaler of fp16
                    averages.step(model.parameters())
            else:
                skip_step(accelerator, optimizer)
                progress.report(f"step {state.step + 1} skipped: {spike} ({state.guard.num_skipped} skipped in all)")
            learning_rate = state.lr_schedulers[NAME].get_last_lr()[0]
            state.advance()
            metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
            progress.update(state.step, {**metrics, "skipped": state.guard.num_skipped})

            if state.secure(config.checkpointing_steps, config.max_train_steps):
                continue  # back at an earlier step
            if due(state.step, config.validation_steps, config.max_train_steps):
                num_samples = config.num_validation_samples
                progress.record(
                    state.step,
                    validation_losses(model, validation, vae, num_samples, micro_batch_size, config.seed, accelerator),
                )
            if due(state.step, config.sample_steps, config.max_train_steps):
                pipeline = make_pipeline(config, state, vae, data.id2label).to(accelerator.device)
                if accelerator.is_main_process:
                    grid = draw_grid(pipeline, config.num_samples, config.seed, micro_batch_size)
                    save_grid(grid, config.output_dir, state.step, accelerator)
                accelerator.wait_for_everyone()


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------


def make_pipeline(
    config: LightningDiTTrainingConfig, state: RunState, vae: AutoencoderVAVAE, id2label: dict[int, str] | None
) -> LightningDiTPipeline:
    """The pipeline with averaged weights, on the CPU; every process has to call it."""
    weights = state.average(NAME, config.ema_decay)
    with torch.device("meta"):
        transformer = LightningDiTTransformer2DModel.from_config(state.model(NAME).config)
    transformer.load_state_dict(weights, assign=True)
    # the original's shift s is diffusers' 1 / s
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / config.timestep_shift)
    recipe = {
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "guidance_interval": list(config.guidance_interval),
        "guidance_channels": config.guidance_channels,
    }
    return LightningDiTPipeline(transformer.eval(), vae, scheduler, id2label=id2label, sampling_recipe=recipe)


def save(
    config: LightningDiTTrainingConfig,
    accelerator: Accelerator,
    vae: AutoencoderVAVAE,
    data: TransformerData,
    state: RunState,
) -> None:
    pipeline = make_pipeline(config, state, vae, data.id2label)
    if accelerator.is_main_process:
        pipeline.to(getattr(torch, config.save_dtype))
        write_result(config.output_dir, pipeline.save_pretrained)
        print(f"wrote {config.output_dir}")
        if config.push_to_hub:
            pipeline.push_to_hub(config.hub_model_id)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
