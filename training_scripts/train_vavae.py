# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Train the autoencoder (first stage) by reconstruction and KL divergence.

    accelerate launch training_scripts/train_vavae.py --config training_scripts/recipes/digits_vavae.yaml \
        data=FOLDER_OR_HUB_ID output_dir=FOLDER key=value ...

Keys are the fields of `VAVAETrainingConfig`. The result is a diffusers folder of an `AutoencoderVAVAE` whose config
holds the statistics of its latents over the data.
"""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.image_data import ImageDataset
from diffusers_lightningdit.latents import LatentsStatistics, encode_moments, latents_size, sample_latents
from diffusers_lightningdit.training_config import (
    TrainingConfig,
    check_at_least,
    check_model_arguments,
    one_line_errors,
    parse_config,
)
from diffusers_lightningdit.training_loop import (
    check_batch_size,
    make_lr_scheduler,
    make_train_dataloader,
    train_batches,
)
from diffusers_lightningdit.vae_losses import kl_loss, reconstruction_loss


@dataclass(kw_only=True)
class VAVAETrainingConfig(TrainingConfig):
    vae: dict = field(default_factory=dict)  # arguments of AutoencoderVAVAE
    kl_weight: float = 1e-6
    train_batch_size: int = 8
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

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        return self.vae.decode(posterior.sample()).sample, posterior.mean, posterior.logvar


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(VAVAETrainingConfig, argv, __doc__)
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
        set_seed(config.seed)
        vae = AutoencoderVAVAE(**{"sample_size": config.resolution, **config.vae})
        latents_size(config.resolution, vae)  # an error where the resolution does not fit
        dataset = ImageDataset(config.data, config.resolution, config.split, config.image_column, label_column=None)
        check_batch_size(config, len(dataset), accelerator)

    optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate, betas=config.adam_betas)
    lr_scheduler = make_lr_scheduler(config, optimizer, accelerator)
    model, optimizer, dataloader, lr_scheduler = accelerator.prepare(
        Reconstruction(vae), optimizer, make_train_dataloader(config, dataset), lr_scheduler
    )
    set_seed(config.seed, device_specific=True)  # from here on every process draws its own noise

    progress_bar = tqdm(total=config.max_train_steps, desc="train", disable=not accelerator.is_main_process)
    for batch in train_batches(config, dataloader, progress_bar):
        pixels = batch["pixel_values"]
        reconstructions, mean, logvar = model(pixels)
        rec_loss, kl = reconstruction_loss(pixels, reconstructions), kl_loss(mean, logvar)
        accelerator.backward(rec_loss + config.kl_weight * kl)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        mean_l1 = rec_loss.item() / pixels[0].numel()
        progress_bar.set_postfix(l1=f"{mean_l1:.4f}", kl=f"{kl.item():.1f}", refresh=False)
    progress_bar.close()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        vae.eval()
        statistics = LatentsStatistics(vae.config.latent_channels)
        images = DataLoader(dataset, batch_size=config.train_batch_size, num_workers=config.num_workers)
        for batch in tqdm(images, desc="latents statistics"):
            # of samples, not of means: what the transformer is trained on
            statistics.update(sample_latents(encode_moments(vae, batch["pixel_values"])))
        vae.set_latents_statistics(statistics.mean, statistics.std)
        vae.save_pretrained(config.output_dir)
        print(f"wrote {config.output_dir}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
