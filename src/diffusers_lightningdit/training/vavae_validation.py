# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What shows how far the training of an autoencoder is: reconstructions, and how well the latents are organised.

The second is a cheap proxy of the quality of the images that a transformer will generate from such latents: without
training one, it tells apart latents that reconstruct equally well (VA-VAE, arXiv 2501.01423, section 4).
"""

import torch
from accelerate import Accelerator
from diffusers.utils import make_image_grid
from PIL import Image
from torch.utils.data import DataLoader, Subset

from ..data.images import ImageDataset, to_8_bits
from ..evaluation.frechet import FeatureStatistics
from ..evaluation.image_similarity import WINDOW_SIZE, peak_signal_to_noise_ratio, structural_similarity
from ..evaluation.interpolation import interpolation_distance
from ..evaluation.latent_quality import latent_quality
from ..models import AutoencoderVAVAE
from .vavae_config import VAVAETrainingConfig
from .vavae_parts import Teachers


class AutoencoderValidation:
    """Measures an autoencoder on the first `num_validation_samples` images, which the processes share.

    Args:
        config: says how many images, and in which batches.
        dataset: of images, with labels for the linear probe.
        teachers: LPIPS and the foundation model, if there are any.
        accelerator: of the run.
    """

    def __init__(
        self, config: VAVAETrainingConfig, dataset: ImageDataset, teachers: Teachers, accelerator: Accelerator
    ):
        share = config.num_validation_samples // accelerator.num_processes
        first = accelerator.process_index * share
        self.batches = DataLoader(Subset(dataset, range(first, first + share)), batch_size=min(share, 32))
        self.teachers = teachers
        self.accelerator = accelerator

    @torch.no_grad()
    def __call__(self, vae: AutoencoderVAVAE) -> dict[str, float]:
        """The measures by name, on the main process; every process has to call it.

        `validation_psnr_db`, `validation_ssim` (of images of at least 11 pixels), `validation_lpips`: means over the
        images of the reconstructions from the means of the posteriors. `validation_rfd`: Fréchet distance of real and
        reconstructed images, in the foundation model's features averaged over positions;
        `latents_interpolation_fd`: that of real images and those between two latents (arXiv 2603.05630). `latents_*`:
        the measures of `latent_quality`, of the posteriors' means.
        """
        vae = vae.to(self.accelerator.device)
        gathered: dict[str, list[torch.Tensor]] = {}
        for batch in self.batches:
            for name, values in self._measure(vae, batch).items():
                gathered.setdefault(name, []).append(self.accelerator.gather(values.contiguous()))
        if not self.accelerator.is_main_process:
            return {}
        values = {name: torch.cat(parts).cpu() for name, parts in gathered.items()}
        measures = {
            f"validation_{name}": values[name].mean().item() for name in ("psnr_db", "ssim", "lpips") if name in values
        }
        if "features" in values:
            real, fake = values["features"].mean((2, 3)), values["reconstructed_features"].mean((2, 3))
            measures["validation_rfd"] = FeatureStatistics.of(real).distance_to(FeatureStatistics.of(fake))
            measures["latents_interpolation_fd"] = interpolation_distance(
                values["latents"], real, lambda latents: self._features_between(vae, latents)
            )
        quality = latent_quality(values["latents"], values.get("labels"), values.get("features"))
        return measures | {f"latents_{name}": value for name, value in quality.items()}

    def _features_between(self, vae: AutoencoderVAVAE, latents: torch.Tensor) -> torch.Tensor:
        images = vae.decode(latents.to(self.accelerator.device)).sample.clamp(-1, 1)
        return self.teachers.features(images, latents.shape[-1]).mean((2, 3)).cpu()

    def _measure(self, vae: AutoencoderVAVAE, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What is needed of each image of a batch, on the device: names -> [B, ...]."""
        pixels = batch["pixel_values"].to(self.accelerator.device)
        latents = vae.encode(pixels).latent_dist.mode()
        reconstructions = vae.decode(latents).sample.clamp(-1, 1)
        values = {"latents": latents, "psnr_db": peak_signal_to_noise_ratio(pixels, reconstructions).float()}
        if min(pixels.shape[-2:]) >= WINDOW_SIZE:
            values["ssim"] = structural_similarity(pixels / 2 + 0.5, reconstructions / 2 + 0.5).float()
        if self.teachers.lpips is not None:
            values["lpips"] = self.teachers.distances(pixels, reconstructions).flatten()
        if self.teachers.foundation is not None:
            values["features"] = self.teachers.features(pixels, latents.shape[-1])
            values["reconstructed_features"] = self.teachers.features(reconstructions, latents.shape[-1])
        if "class_labels" in batch:
            values["labels"] = batch["class_labels"].to(self.accelerator.device)
        return values


@torch.no_grad()
def reconstructions_grid(vae: AutoencoderVAVAE, dataset: ImageDataset, num_images: int) -> Image.Image:
    """Two rows: the first images of the data set, and what the autoencoder makes of the means of their posteriors."""
    pixels = torch.stack([dataset[index]["pixel_values"] for index in range(min(num_images, len(dataset)))])
    latents = vae.encode(pixels.to(vae.device)).latent_dist.mode()
    rows = torch.cat([pixels, vae.decode(latents).sample.cpu()])
    array = to_8_bits(rows).permute(0, 2, 3, 1).numpy()
    return make_image_grid([Image.fromarray(image) for image in array], rows=2, cols=len(pixels))
