# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Train the transformer (second stage) on the latents of a frozen autoencoder.

    accelerate launch training_scripts/train_lightningdit.py \
        --config training_scripts/recipes/digits_lightningdit.yaml \
        data=FOLDER_OR_HUB_ID vae=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

Keys are the fields of `LightningDiTTrainingConfig`; docs/training.md explains them. The result is a complete pipeline
folder with EMA weights, which `DiffusionPipeline.from_pretrained` loads.
"""

from dataclasses import asdict, dataclass, field
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.checkpoints import CheckpointWriteError
from diffusers_lightningdit.flow_matching import drop_labels, flow_matching_losses, logit_normal_times, uniform_times
from diffusers_lightningdit.keyed_random import KeyedRandom
from diffusers_lightningdit.latents import load_frozen_vae
from diffusers_lightningdit.moving_averages import MovingAverages
from diffusers_lightningdit.original import read_training_checkpoint
from diffusers_lightningdit.run_state import RunState
from diffusers_lightningdit.spike_guard import SpikeGuard, TrainingDiverged
from diffusers_lightningdit.training_config import (
    TrainingConfig,
    check_at_least,
    check_choice,
    check_model_arguments,
    check_positive,
    one_line_errors,
    parse_config,
)
from diffusers_lightningdit.training_data import (
    DATA_KINDS,
    RandomlyFlipped,
    TransformerData,
    encode_in_memory,
    load_images,
    load_latents,
    normalized_latents,
)
from diffusers_lightningdit.training_loop import (
    accumulating,
    clip_gradients,
    due,
    global_mean,
    make_accelerator,
    make_batch_sampler,
    make_lr_scheduler,
    skip_step,
    train_steps,
    write_result,
)
from diffusers_lightningdit.training_progress import TrainingProgress, forward_flops
from diffusers_lightningdit.training_samples import check_share, draw_grid, save_grid, validation_losses
from diffusers_lightningdit.weight_init import initialize_weights, load_initial_transformer

NAME = "transformer"  # of the one model of the run, in checkpoints


@dataclass(kw_only=True)
class LightningDiTTrainingConfig(TrainingConfig):
    # Data
    data_kind: str = "images"  # or latents: what cache_latents.py wrote
    label_column: str = "label"  # of class labels, of images
    num_classes: int | None = None  # of latents without names of classes; by default the highest label plus 1
    vae: str  # folder or Hub id of the frozen autoencoder
    random_flip: bool = True  # mirror each image with probability 0.5 in each epoch
    latents_in_memory: bool = False  # encode images once, or read all latents at once
    # Model: arguments of LightningDiTTransformer2DModel, but those that follow from data and VAE
    transformer: dict = field(default_factory=dict)
    weight_init: str | None = None  # transformer or pipeline, or an original .pt, to take the first weights from
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
    global_batch_size: int = 1024
    max_train_steps: int = 80_000
    learning_rate: float = 2e-4
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
    # Sampling recipe of the saved pipeline: the published one of 64 epochs
    num_inference_steps: int = 249
    timestep_shift: float = 0.3
    guidance_scale: float = 10.0
    guidance_interval: tuple[float, float] = (0.10, 1.0)
    guidance_channels: int | None = 3
    save_dtype: str = "float32"  # of the saved weights
    push_to_hub: bool = False
    hub_model_id: str | None = None  # user/name, private until it is made public there

    def __post_init__(self):
        super().__post_init__()
        check_model_arguments("transformer", self.transformer, LightningDiTTransformer2DModel)
        for name in ("sample_size", "in_channels", "num_classes"):
            if name in self.transformer:
                raise ValueError(f"`transformer.{name}` is given; required: left out, it follows from data and VAE.")
        check_choice("data_kind", self.data_kind, DATA_KINDS)
        check_choice("time_sampling", self.time_sampling, ("logit_normal", "uniform"))
        check_choice("optimizer", self.optimizer, ("adamw", "adamw_fused", "adamw_8bit"))
        check_choice("save_dtype", self.save_dtype, ("float32", "bfloat16", "float16"))
        if self.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
            raise ValueError("`optimizer` is 'adamw_8bit'; required: the package bitsandbytes.")
        if self.data_kind == "images" and self.latents_in_memory and self.random_flip:
            raise ValueError(
                "`latents_in_memory` encodes each image once, but `random_flip` is true; required: false, or latents "
                "by cache_latents.py."
            )
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("`push_to_hub` is true, but `hub_model_id` is not given; required: user/name.")
        for name in ("num_inference_steps", "num_samples", "num_validation_samples"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("sample_steps", "validation_steps", "guidance_channels", "num_classes"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), 1)
        for name in ("guidance_scale", "adam_weight_decay"):
            check_at_least(name, getattr(self, name), 0)
        for name in ("max_grad_norm", "timestep_shift", "logit_normal_std"):
            check_positive(name, getattr(self, name))
        for decay in self.ema_decays:
            if not 0 <= decay < 1:
                raise ValueError(f"`ema_decay` is {decay}; required: at least 0 and below 1.")
        if len(set(self.ema_decays)) < len(self.ema_decays):
            raise ValueError(f"`extra_ema_decays` is {list(self.extra_ema_decays)}; required: each decay once.")
        for name in ("guidance_interval", "time_range"):
            start, end = getattr(self, name)
            if not 0 <= start <= end <= 1 or (name == "time_range" and start == end):
                raise ValueError(f"`{name}` is {[start, end]}; required: [start, end], 0 <= start <= end <= 1.")

    @property
    def ema_decays(self) -> tuple[float, ...]:
        return (self.ema_decay, *self.extra_ema_decays)


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
# Parts of a run
# ---------------------------------------------------------------------------------------------------------------------


def load_data(config: LightningDiTTrainingConfig, vae: AutoencoderVAVAE, data: str, split: str, train: bool):
    """The training data, or validation data, which is never mirrored."""
    if config.data_kind == "latents":
        flip, in_memory = train and config.random_flip, train and config.latents_in_memory
        return load_latents(data, vae, split, flip, config.seed, in_memory, config.num_classes)
    return load_images(data, vae, config.resolution, split, config.image_column, config.label_column)


def make_transformer(
    config: LightningDiTTrainingConfig, vae: AutoencoderVAVAE, data: TransformerData
) -> LightningDiTTransformer2DModel:
    torch.manual_seed(config.seed)  # the same first weights on every process
    return LightningDiTTransformer2DModel(
        sample_size=data.sample_size,
        in_channels=vae.config.latent_channels,
        num_classes=data.num_classes,
        **config.transformer,
    )


def make_optimizer(config: LightningDiTTrainingConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    settings = {"lr": config.learning_rate, "betas": config.adam_betas, "weight_decay": config.adam_weight_decay}
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(model.parameters(), **settings)
    return torch.optim.AdamW(model.parameters(), fused=config.optimizer == "adamw_fused" or None, **settings)


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


def prepare_run(
    config: LightningDiTTrainingConfig, accelerator: Accelerator, transformer: LightningDiTTransformer2DModel, identity
) -> RunState:
    """Model, optimiser, schedule, averages and guard, new or as in the checkpoint to resume from."""
    if config.weight_init is not None and config.resume_from_checkpoint is None:
        for remark in initialize_weights(transformer, load_initial_transformer(config.weight_init).state_dict()):
            accelerator.print(remark)
    architecture = dict(transformer.config)
    if config.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.compile_blocks:
        transformer.compile_repeated_blocks()
    transformer.train()
    transformer.class_embedder.eval()  # labels are dropped in `training_loss`: the same on any number of processes
    model, optimizer = accelerator.prepare(transformer, make_optimizer(config, transformer))
    state = RunState(
        accelerator,
        config.output_dir,
        models={NAME: model},
        optimizers={NAME: optimizer},
        lr_schedulers={NAME: make_lr_scheduler(config, getattr(optimizer, "optimizer", optimizer))},
        averages={NAME: MovingAverages(model.parameters(), config.ema_decays, config.ema_warmup)},
        guard=SpikeGuard(config.loss_spike_factor, config.grad_norm_spike_factor, patience=config.spike_patience),
        identity=identity,
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


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(LightningDiTTrainingConfig, argv, __doc__)
        accelerator = make_accelerator(config)
        vae = load_frozen_vae(config.vae)
        data = load_data(config, vae, config.data, config.split, train=True)
        if (config.guidance_channels or 0) > vae.config.latent_channels:
            raise ValueError(
                f"`guidance_channels` is {config.guidance_channels}; required: at most the VAE's `latent_channels`, "
                f"{vae.config.latent_channels}."
            )
        sampler = make_batch_sampler(config, len(data.dataset), accelerator)
        validation = None
        if config.validation_steps is not None:
            validation_data = config.validation_data or config.data
            validation = load_data(config, vae, validation_data, config.validation_split, train=False)
            check_share(
                "num_validation_samples", config.num_validation_samples, validation.dataset, accelerator.num_processes
            )
        vae.to(accelerator.device)
        transformer = make_transformer(config, vae, data)
        state = prepare_run(config, accelerator, transformer, sampler.identity())
        if state.step >= config.max_train_steps and state.step > 0:
            accelerator.print(f"step {state.step} of {config.max_train_steps}: only the result remains to be written")
    with one_line_errors((CheckpointWriteError, TrainingDiverged, OSError), status=1):
        train(config, accelerator, vae, data, validation, sampler, state)


def train(config, accelerator, vae, data, validation, sampler, state) -> None:
    """Steps until `max_train_steps`, then the result."""
    model, optimizer, averages = state.models[NAME], state.optimizers[NAME], state.averages[NAME]
    architecture = state.architectures[NAME]
    micro_batch_size = config.global_batch_size // accelerator.num_processes // config.gradient_accumulation_steps
    dataset = data.dataset
    if config.data_kind == "images" and config.latents_in_memory:
        dataset = encode_in_memory(dataset, vae, micro_batch_size, config.num_workers, accelerator.is_main_process)
    elif config.data_kind == "images" and config.random_flip:
        dataset = RandomlyFlipped(dataset, config.seed)
    progress = TrainingProgress(config, accelerator, state.step, 3 * image_flops(architecture))
    state.report = progress.report
    steps = train_steps(config, dataset, sampler, state.position, accelerator)
    checkpoint_is_due = False

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
            state.lr_schedulers[NAME].step()
            state.step, state.position = state.step + 1, state.position + 1
            learning_rate = state.lr_schedulers[NAME].get_last_lr()[0]
            metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
            progress.update(state.step, {**metrics, "skipped": state.guard.num_skipped})

            if state.guard.must_roll_back:
                state.roll_back()
                continue
            checkpoint_is_due |= due(state.step, config.checkpointing_steps, config.max_train_steps)
            if checkpoint_is_due and state.guard.num_bad_in_a_row == 0:  # weights that may be bad are not kept
                state.save()
                checkpoint_is_due = False
            if due(state.step, config.validation_steps, config.max_train_steps):
                progress.record(
                    state.step,
                    validation_losses(
                        model,
                        validation,
                        vae,
                        config.num_validation_samples,
                        micro_batch_size,
                        config.seed,
                        accelerator,
                    ),
                )
            if due(state.step, config.sample_steps, config.max_train_steps):
                pipeline = make_pipeline(config, state, vae, data.id2label).to(accelerator.device)
                if accelerator.is_main_process:
                    grid = draw_grid(pipeline, config.num_samples, config.seed, micro_batch_size)
                    save_grid(grid, config.output_dir, state.step, accelerator)
                accelerator.wait_for_everyone()

    pipeline = make_pipeline(config, state, vae, data.id2label)
    if accelerator.is_main_process:
        pipeline.to(getattr(torch, config.save_dtype))
        write_result(config.output_dir, pipeline.save_pretrained)
        print(f"wrote {config.output_dir}")
        if config.push_to_hub:
            pipeline.push_to_hub(config.hub_model_id, private=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def image_flops(architecture: dict) -> int:
    """Floating-point operations of a forward pass of one image."""
    with torch.device("meta"):
        model = LightningDiTTransformer2DModel.from_config(architecture)
        inputs = torch.empty(1, model.config.in_channels, *[model.config.sample_size] * 2)
        return forward_flops(model, inputs, torch.empty(1), torch.empty(1, dtype=torch.long))


if __name__ == "__main__":
    main()
