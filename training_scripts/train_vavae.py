# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Train the autoencoder (first stage) by reconstruction and KL divergence.

    accelerate launch training_scripts/train_vavae.py --config training_scripts/recipes/digits_vavae.yaml \
        data=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

Keys are the fields of `VAVAETrainingConfig`. The result is a diffusers folder of an `AutoencoderVAVAE` whose config
holds the statistics of its latents over the data.
"""

from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.data.latents import LatentsStatistics, encode_moments, latents_size, sample_latents
from diffusers_lightningdit.settings import check_at_least, check_model_arguments, one_line_errors, parse_config
from diffusers_lightningdit.training.checkpoints import CheckpointWriteError
from diffusers_lightningdit.training.config import TrainingConfig
from diffusers_lightningdit.training.loop import (
    accumulating,
    clip_gradients,
    global_mean,
    make_accelerator,
    make_batch_sampler,
    make_lr_scheduler,
    skip_step,
    train_steps,
    write_result,
)
from diffusers_lightningdit.training.progress import TrainingProgress
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import SpikeGuard, TrainingDiverged
from diffusers_lightningdit.vae_losses import kl_loss, reconstruction_loss

NAME = "vae"  # of the one model of the run, in checkpoints


@dataclass(kw_only=True)
class VAVAETrainingConfig(TrainingConfig):
    vae: dict = field(default_factory=dict)  # arguments of AutoencoderVAVAE
    kl_weight: float = 1e-6
    global_batch_size: int = 256
    max_train_steps: int = 100_000
    learning_rate: float = 1e-4
    adam_betas: tuple[float, float] = (0.5, 0.9)

    def __post_init__(self):
        super().__post_init__()
        check_model_arguments("vae", self.vae, AutoencoderVAVAE)
        check_at_least("kl_weight", self.kl_weight, 0)


class Reconstruction(nn.Module):
    """The autoencoder as one forward call, which Accelerate can wrap for several processes and mixed precision."""

    def __init__(self, vae: AutoencoderVAVAE):
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        return self.vae.decode(posterior.mean + posterior.std * noise).sample, posterior.mean, posterior.logvar


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(VAVAETrainingConfig, argv, __doc__)
        accelerator = make_accelerator(config)
        torch.manual_seed(config.seed)  # the same first weights on every process
        vae = AutoencoderVAVAE(**{"sample_size": config.resolution, **config.vae})
        latents_size(config.resolution, vae)  # an error where the resolution does not fit
        dataset = ImageDataset(config.data, config.resolution, config.split, config.image_column, label_column=None)
        sampler = make_batch_sampler(config, len(dataset), accelerator)
        architecture = dict(vae.config)
        model, optimizer = accelerator.prepare(
            Reconstruction(vae),
            torch.optim.Adam(vae.parameters(), lr=config.learning_rate, betas=config.adam_betas),
        )
        state = RunState(
            accelerator,
            config.output_dir,
            models={NAME: model},
            optimizers={NAME: optimizer},
            lr_schedulers={NAME: make_lr_scheduler(config, optimizer.optimizer)},
            averages={},
            guard=SpikeGuard(config.loss_spike_factor, config.grad_norm_spike_factor, patience=config.spike_patience),
            identity=sampler.identity(),
            architectures={NAME: architecture},
            settings=asdict(config),
            total_limit=config.checkpoints_total_limit,
            report=accelerator.print,
        )
        if config.resume_from_checkpoint is not None:
            state.resume(config.resume_from_checkpoint)
    with one_line_errors((CheckpointWriteError, TrainingDiverged, OSError), status=1):
        train(config, accelerator, dataset, sampler, state)


def train(config, accelerator, dataset, sampler, state) -> None:
    """Steps until `max_train_steps`, then the statistics of the latents and the result."""
    model, optimizer, vae = state.models[NAME], state.optimizers[NAME], state.model(NAME).vae
    latents_shape = (vae.config.latent_channels, *[latents_size(config.resolution, vae)] * 2)
    progress = TrainingProgress(config, accelerator, state.step)
    state.report = progress.report
    steps = train_steps(config, dataset, sampler, state.position, accelerator)

    with progress:
        while state.step < config.max_train_steps:
            losses = []
            micro_batches = next(steps)
            for number, (batch, draws) in enumerate(micro_batches, start=1):
                pixels = batch["pixel_values"]
                with accumulating(accelerator, model, is_last=number == len(micro_batches)):
                    reconstructions, mean, logvar = model(pixels, draws.normal("posterior", latents_shape))
                    rec_loss, kl = reconstruction_loss(pixels, reconstructions), kl_loss(mean, logvar)
                    accelerator.backward((rec_loss + config.kl_weight * kl) / len(micro_batches))
                losses.append(torch.stack([rec_loss, kl]).detach())
            grad_norm = clip_gradients(accelerator, model, float("inf"))  # measured only
            rec_loss, kl, grad_norm = global_mean(
                accelerator, torch.cat([torch.stack(losses).mean(0), grad_norm[None]])
            )

            spike = state.guard.check(rec_loss + config.kl_weight * kl, grad_norm, accelerator.scaler is not None)
            if spike is None:
                optimizer.step()
                optimizer.zero_grad()
            else:
                skip_step(accelerator, optimizer)
                progress.report(f"step {state.step + 1} skipped: {spike} ({state.guard.num_skipped} skipped in all)")
            state.advance()
            mean_l1 = rec_loss / pixels[0].numel()
            progress.update(state.step, {"l1": mean_l1, "kl": kl, "skipped": state.guard.num_skipped})
            state.secure(config.checkpointing_steps, config.max_train_steps)

    if accelerator.is_main_process:
        vae.eval()
        statistics = LatentsStatistics(vae.config.latent_channels)
        images = DataLoader(dataset, batch_size=64, num_workers=config.num_workers)
        generator = torch.Generator(accelerator.device).manual_seed(config.seed)
        for batch in tqdm(images, desc="latents statistics"):
            # of samples, not of means: what the transformer is trained on
            statistics.update(sample_latents(encode_moments(vae, batch["pixel_values"]), generator))
        vae.set_latents_statistics(statistics.mean, statistics.std)
        write_result(config.output_dir, vae.save_pretrained)
        print(f"wrote {config.output_dir}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
