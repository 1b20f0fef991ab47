# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Train the autoencoder (first stage), aligned to a vision foundation model.

    accelerate launch --quiet training_scripts/train_vavae.py --config examples/digits/recipes/vavae.yaml \
        data=FOLDER_OR_HUB_ID foundation_model=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

The result is a diffusers folder of an `AutoencoderVAVAE` whose config holds the statistics of its latents over the
data; `training/` in it has projection and discriminator, for training on. docs/vavae.md tells more.
"""

import contextlib
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn

from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.data.latent_encoding import latents_size
from diffusers_lightningdit.data.streamed_rows import FirstRows, StreamedImages
from diffusers_lightningdit.files import write_result
from diffusers_lightningdit.hub.trained_pipeline import write_autoencoder_card
from diffusers_lightningdit.locks import locked_by_run
from diffusers_lightningdit.losses import VAELossSettings, autoencoder_losses, discriminator_losses
from diffusers_lightningdit.settings import one_line_errors, parse_config
from diffusers_lightningdit.training.accelerator import make_accelerator
from diffusers_lightningdit.training.batches import DATA_ERRORS, RandomlyFlipped, Sampler, train_steps
from diffusers_lightningdit.training.checkpoints import CheckpointWriteError, find_checkpoint
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.optimizer_step import accumulating, due, finish_step, mean_of_parts
from diffusers_lightningdit.training.progress import TrainingProgress
from diffusers_lightningdit.training.run_state import RunState, make_run_state
from diffusers_lightningdit.training.spike_guard import TrainingDiverged
from diffusers_lightningdit.training.validation_samples import sampler_and_validation
from diffusers_lightningdit.training.vavae.config import Stage, VAVAETrainingConfig
from diffusers_lightningdit.training.vavae.data import load_training_images, load_validation_images
from diffusers_lightningdit.training.vavae.latents_statistics import measure_latents
from diffusers_lightningdit.training.vavae.networks import (
    AlignedAutoencoder,
    Judgement,
    Teachers,
    VAVAENetworks,
    frozen,
    initial_networks,
    save_networks,
)
from diffusers_lightningdit.training.vavae.validation import AutoencoderValidation, reconstructions_grid

SCRIPT = "train_vavae.py"
VAE, DISCRIMINATOR = "vae", "discriminator"  # the models of the run, in checkpoints
SHOWN = ("rec_loss", "kl_loss", "vf_loss", "g_loss", "disc_loss", "skipped")  # beside the progress bar


# ---------------------------------------------------------------------------------------------------------------------
# Beginning
# ---------------------------------------------------------------------------------------------------------------------


def make_run(
    config: VAVAETrainingConfig, accelerator: Accelerator, networks: VAVAENetworks, sampler: Sampler
) -> RunState:
    """Models, optimisers, schedules, average and spike guard: new, or as in the checkpoint to resume from."""
    vae = networks.vae
    if config.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    if config.compile_vae:
        vae.encoder.compile()
        vae.decoder.compile()
    models: dict[str, nn.Module] = {VAE: AlignedAutoencoder(networks)}
    architectures = {
        VAE: {**vae.config, "projection": dict(networks.projection.config) if networks.projection else None}
    }
    if networks.logvar:
        architectures[VAE]["logvar"] = networks.logvar
    if networks.discriminator is not None:
        models[DISCRIMINATOR] = Judgement(networks.discriminator)
        architectures[DISCRIMINATOR] = dict(networks.discriminator.config)
    optimizers = {}
    for name, model in models.items():
        optimizer = torch.optim.Adam(model.train().parameters(), lr=config.learning_rate, betas=config.adam_betas)
        models[name], optimizers[name] = accelerator.prepare(model, optimizer)
    averages = {}
    if config.ema_decay is not None:
        averages[VAE] = MovingAverages(models[VAE].parameters(), (config.ema_decay,), config.ema_warmup)
    state = make_run_state(config, accelerator, sampler, models, optimizers, averages, architectures)
    state.resume(find_checkpoint(accelerator, config.output_dir, config.resume_from_checkpoint))
    return state


def main(argv: list[str] | None = None) -> dict[str, str]:
    with contextlib.ExitStack() as until_the_end:
        with one_line_errors():
            config = parse_config(VAVAETrainingConfig, argv, __doc__)
            accelerator = make_accelerator(config)
            if accelerator.is_fsdp2:
                raise ValueError(
                    "the autoencoder's weights cannot be sharded (FSDP2); required: data-parallel training."
                )
            torch.manual_seed(config.seed)  # the same first weights on every process
            teachers = Teachers(config, accelerator.device)
            networks = initial_networks(config, teachers.foundation, accelerator.print)
            dataset = load_training_images(config, networks.vae)
            accelerator.print(dataset.summary())
            load_validation = partial(load_validation_images, config, networks.vae)
            sampler, validation = sampler_and_validation(config, dataset, load_validation, accelerator)
            until_the_end.enter_context(locked_by_run(accelerator, config.output_dir))
            state = make_run(config, accelerator, networks, sampler)
        with one_line_errors((CheckpointWriteError, TrainingDiverged), status=1, of_one_process=DATA_ERRORS):
            train(config, accelerator, dataset, validation, sampler, teachers, state)
            save(config, accelerator, dataset, sampler, state)
    return {"output_dir": config.output_dir}


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def train(
    config: VAVAETrainingConfig,
    accelerator: Accelerator,
    dataset: ImageDataset | StreamedImages,
    validation: ImageDataset | FirstRows | None,
    sampler: Sampler,
    teachers: Teachers,
    state: RunState,
) -> None:
    trained = state.model(VAE).vae
    latents_shape = (trained.config.latent_channels, *latents_size(trained.config.sample_size, trained))
    progress = TrainingProgress(config, accelerator, state.step, shown=SHOWN)
    state.report = progress.report
    images, shown = dataset, validation or dataset
    if config.streaming:
        shown = validation or dataset.first(config.num_samples)
    elif config.random_flip:
        images = RandomlyFlipped(dataset, config.seed)
    steps = train_steps(config, images, sampler, state.batch_index, accelerator)
    measure = validation and AutoencoderValidation(config, validation, teachers, accelerator, progress.report)

    def observe(only_missing: bool = False) -> None:
        """Measure and draw after this step what is due, or only what a run that was killed after it did not come to."""
        step, last = state.step, config.max_train_steps
        if due(step, config.validation_steps, last) and not (only_missing and progress.has_validation(step)):
            progress.record(step, measure(trained_networks(config, state).vae))
        if step and due(step, config.sample_steps, last) and not (only_missing and progress.has_image(step)):
            if accelerator.is_main_process:
                vae = trained_networks(config, state).vae.to(accelerator.device)
                progress.record_image(step, reconstructions_grid(vae, shown, config.num_samples))
            accelerator.wait_for_everyone()

    with progress, state.interruption:
        observe(only_missing=True)
        while state.step < config.max_train_steps:
            stage = config.stage_at(state.step)
            if stage.local_step(state.step) == 0:
                state.spike_guard.forget_history()
            taking_part = [VAE, DISCRIMINATOR] if stage.discriminator_trains(state.step) else [VAE]
            scalars_of_batches, micro_batches = [], next(steps)
            for number, (batch, draws) in enumerate(micro_batches, start=1):
                pixels, noise = batch["pixel_values"], draws.normal("posterior", latents_shape)
                is_last = number == len(micro_batches)
                with accumulating(accelerator, state.models[VAE], is_last):
                    loss, reconstructions, values = autoencoder_step(state, stage, teachers, pixels, noise)
                    accelerator.backward(loss / len(micro_batches))
                if DISCRIMINATOR in taking_part:
                    with accumulating(accelerator, state.models[DISCRIMINATOR], is_last):
                        loss, judged = discriminator_step(state, stage, pixels, reconstructions.detach())
                        accelerator.backward(loss / len(micro_batches))
                    values |= judged
                scalars_of_batches.append(values)
            loss_of = partial(loss_of_fixed_weights, stage.losses)
            scalars = mean_of_parts(scalars_of_batches)
            metrics = finish_step(state, scalars, loss_of, config.max_grad_norm, taking_part)
            progress.update(state.step, metrics)

            if state.secure(config.checkpointing_steps, config.max_train_steps):
                continue  # back at an earlier step
            observe()
    state.check_result()


def autoencoder_step(
    state: RunState, stage: Stage, teachers: Teachers, pixels: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, reconstructions, scalars) of a batch: pixels [B, 1 or 3, height, width], noise of its posteriors."""
    accelerator, vae = state.accelerator, state.model(VAE).vae
    with accelerator.autocast():
        aligns = state.model(VAE).projection is not None
        features = teachers.features(pixels, noise.shape[2:]) if aligns else None
        reconstructions, mean, logvar, features, latents = state.models[VAE](pixels, noise, features)
        perceptual = teachers.distances(pixels, reconstructions)
        logits = None
        if stage.is_judged(state.step):
            discriminator = state.model(DISCRIMINATOR).discriminator
            with frozen(discriminator):
                logits = discriminator(reconstructions).float()
    loss, scalars = autoencoder_losses(
        stage.losses,
        pixels,
        reconstructions,
        mean,
        logvar,
        step=stage.local_step(state.step),
        last_decoder_weight=vae.decoder.conv_out.weight,
        last_encoder_weight=vae.encoder.conv_out.weight,
        logits_fake=logits,
        latents_for_vf=latents,
        features=features,
        perceptual=perceptual,
        logvar_scalar=state.model(VAE).logvar,
    )
    return loss, reconstructions, scalars


def discriminator_step(
    state: RunState, stage: Stage, pixels: torch.Tensor, reconstructions: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, scalars) of a batch of images and of their reconstructions by the weights before this step."""
    with state.accelerator.autocast():
        real, fake = state.models[DISCRIMINATOR](pixels, reconstructions)
    return discriminator_losses(stage.losses, real.float(), fake.float(), step=stage.local_step(state.step))


def loss_of_fixed_weights(settings: VAELossSettings, metrics: dict[str, float]) -> float:
    """The part of the loss whose weights are fixed; spikes are judged by it."""
    return metrics["nll_loss"] + settings.kl_weight * metrics["kl_loss"]


# ---------------------------------------------------------------------------------------------------------------------
# Result
# ---------------------------------------------------------------------------------------------------------------------


def trained_networks(config: VAVAETrainingConfig, state: RunState) -> VAVAENetworks:
    """Copies of the models as they are to be saved, on the CPU, with averaged weights where there are any."""
    discriminator = state.model(DISCRIMINATOR).discriminator if DISCRIMINATOR in state.models else None
    model = state.model(VAE)
    networks = VAVAENetworks(model.vae, model.projection, discriminator, model.logvar).copy()
    if config.ema_decay is not None:
        AlignedAutoencoder(networks).load_state_dict(state.averaged_state(VAE, config.ema_decay))
    return networks


def save(
    config: VAVAETrainingConfig,
    accelerator: Accelerator,
    dataset: ImageDataset | StreamedImages,
    sampler: Sampler,
    state: RunState,
) -> None:
    """The result, with the statistics of its latents over the data."""
    networks = trained_networks(config, state)
    statistics = measure_latents(config, networks.vae.to(accelerator.device), dataset, sampler, accelerator)
    if accelerator.is_main_process:
        networks.vae.set_latents_statistics(statistics.mean, statistics.std)
        with write_result(config.output_dir) as folder:
            save_networks(networks, folder)
            write_autoencoder_card(folder, networks.vae, config, SCRIPT)
        print(f"wrote {config.output_dir}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
