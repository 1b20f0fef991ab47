# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Validation of an autoencoder in training: its reconstructions, and how well its latents are organised.

The second is a cheap proxy of the quality of the images that a transformer will generate from such latents: without
training one, it tells apart latents that reconstruct equally well (VA-VAE, arXiv 2501.01423, section 4).
"""

from collections.abc import Callable
from functools import partial

import torch
from accelerate import Accelerator
from diffusers.utils import make_image_grid
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from ...files import one_line
from ...metrics.alignment import distance_matrix_gap, linear_cka
from ...metrics.channel_statistics import channel_statistics
from ...metrics.frechet import FeatureStatistics
from ...metrics.image_similarity import WINDOW_SIZE, peak_signal_to_noise_ratio, structural_similarity
from ...metrics.interpolation_distance import interpolation_distance
from ...metrics.linear_classifier import linear_probe_accuracy
from ...metrics.uniformity import principal_plane, uniformity
from ...models import AutoencoderVAVAE
from ...pixels import as_rgb, to_8_bits
from ..validation_samples import own_share, spread
from .config import VAVAETrainingConfig
from .networks import Teachers

Measure = Callable[[], float | dict[str, float]]


class AutoencoderValidation:
    """Measures of an autoencoder on `num_validation_samples` images, spread over the data, which the processes share.

    Args:
        config: The settings, of which `num_validation_samples` counts.
        dataset: The images, with labels for the linear probe.
        teachers: LPIPS, the foundation model and the Inception network, if there are any.
        accelerator: The accelerator of the run.
        report: A function that shows a line to the user.
    """

    def __init__(
        self,
        config: VAVAETrainingConfig,
        dataset: Dataset,
        teachers: Teachers,
        accelerator: Accelerator,
        report: Callable[[str], None] = print,
    ):
        num_samples, num_processes = config.num_validation_samples, accelerator.num_processes
        _, indices = own_share(len(dataset), num_samples, accelerator.process_index, num_processes)
        self.batches = DataLoader(Subset(dataset, indices), batch_size=min(len(indices), 32))
        self.teachers = teachers
        self.accelerator = accelerator
        self.report = report
        self.left_out: set[str] = set()  # measures that are left out, once that has been reported

    @torch.no_grad()
    def __call__(self, vae: AutoencoderVAVAE) -> dict[str, float]:
        """The measures by name, on the main process; every process has to call it.

        `validation_psnr_db`, `validation_ssim` (of images of at least 11 pixels), `validation_lpips`: means over the
        images of the reconstructions from the means of the posteriors. `validation_rfid`, `validation_rfd`: Fréchet
        distance of real and reconstructed images, in the features of Inception (of 8-bit images), and in the
        foundation model's averaged over positions; `latents_interpolation_fd`: in these, that of real images and those
        between two latents (arXiv 2603.05630). `latents_*`: measures of the posteriors' means.

        A measure that cannot be computed of these images or these weights is left out, which is reported once.
        """
        vae = vae.to(self.accelerator.device)
        gathered: dict[str, list[torch.Tensor]] = {}
        for batch in self.batches:
            try:
                measured, error = self._measure(vae, batch), None
            except ValueError as bad:  # weights that have gone bad
                measured, error = {}, one_line(bad)
            if self.accelerator.reduce(torch.tensor(float(error is not None), device=self.accelerator.device)) > 0:
                if "validation" not in self.left_out:
                    self.report(f"validation is left out: {error or 'numbers of another process are not finite'}")
                self.left_out.add("validation")
                return {}
            for name, values in measured.items():
                values = self.accelerator.gather(values.contiguous())
                if self.accelerator.is_main_process:
                    gathered.setdefault(name, []).append(values.cpu())
        if not self.accelerator.is_main_process:
            return {}
        values = {name: torch.cat(parts) for name, parts in gathered.items()}
        measures = {
            f"validation_{name}": values[name].mean().item() for name in ("psnr_db", "ssim", "lpips") if name in values
        }
        for name, measure in self._measures_of_all(vae, values).items():
            try:
                value = measure()
            except (ValueError, torch.linalg.LinAlgError) as error:
                if name not in self.left_out:
                    self.report(f"validation leaves out `{name}`: {one_line(error)}")
                self.left_out.add(name)
            else:
                measures |= value if isinstance(value, dict) else {name: value}
        return measures

    def _measures_of_all(self, vae: AutoencoderVAVAE, values: dict[str, torch.Tensor]) -> dict[str, Measure]:
        """The measures of all images together, by name, from the tensors that `_measure` returned for each image."""
        latents, features = values["latents"], values.get("features")
        measures: dict[str, Measure] = {
            "latents_effective_channels": lambda: channel_statistics(latents)["effective_channels"],
            "latents_uniformity": lambda: {
                f"latents_{name}": value for name, value in uniformity(principal_plane(latents)).items()
            },
        }
        if "labels" in values:
            measures["latents_linear_probe_accuracy"] = lambda: linear_probe_accuracy(latents, values["labels"])
        if "inception" in values:
            measures["validation_rfid"] = partial(distance, values["inception"], values["reconstructed_inception"])
        if features is not None:
            pooled = features.mean((2, 3))
            measures["validation_rfd"] = partial(distance, pooled, values["reconstructed_features"])
            measures["latents_interpolation_fd"] = lambda: interpolation_distance(
                latents, pooled, lambda between: self._features_of_decoded(vae, between)
            )
            measures["latents_linear_cka"] = lambda: linear_cka(latents, features)
            measures["latents_distance_matrix_gap"] = lambda: distance_matrix_gap(latents, features)
        return measures

    def _features_of_decoded(self, vae: AutoencoderVAVAE, latents: torch.Tensor) -> torch.Tensor:
        images = vae.decode(latents.to(self.accelerator.device)).sample.clamp(-1, 1)
        return self.teachers.features(images, latents.shape[2:]).mean((2, 3)).cpu()

    def _measure(self, vae: AutoencoderVAVAE, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors that the measures need of each image of a batch, on the device: names -> [B, ...]."""
        pixels = batch["pixel_values"].to(self.accelerator.device)
        latents = vae.encode(pixels).latent_dist.mode()
        reconstructions = vae.decode(latents).sample.clamp(-1, 1)
        values = {"latents": latents, "psnr_db": peak_signal_to_noise_ratio(pixels, reconstructions).float()}
        if min(pixels.shape[-2:]) >= WINDOW_SIZE:
            values["ssim"] = structural_similarity(pixels / 2 + 0.5, reconstructions / 2 + 0.5).float()
        if self.teachers.lpips is not None:
            values["lpips"] = self.teachers.distances(pixels, reconstructions).flatten()
        if self.teachers.foundation is not None:
            values["features"] = self.teachers.features(pixels, latents.shape[2:])
            values["reconstructed_features"] = self.teachers.features(reconstructions, latents.shape[2:]).mean((2, 3))
        if self.teachers.inception is not None:
            values["inception"] = self.teachers.inception_features(pixels)
            values["reconstructed_inception"] = self.teachers.inception_features(reconstructions)
        if "class_labels" in batch:
            values["labels"] = batch["class_labels"].to(self.accelerator.device)
        return values


def distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """Fréchet distance of two sets of features, [N, D] each."""
    return FeatureStatistics.of(features).distance_to(FeatureStatistics.of(others))


@torch.no_grad()
def reconstructions_grid(vae: AutoencoderVAVAE, dataset: Dataset, num_images: int) -> Image.Image:
    """Two rows: images from all over the data set, and their reconstructions from the means of the posteriors."""
    indices = spread(len(dataset), min(num_images, len(dataset)))
    pixels = torch.stack([dataset[index]["pixel_values"] for index in indices])
    latents = vae.encode(pixels.to(vae.device)).latent_dist.mode()
    rows = as_rgb(torch.cat([pixels, vae.decode(latents).sample.cpu()]))
    array = to_8_bits(rows).permute(0, 2, 3, 1).numpy()
    return make_image_grid([Image.fromarray(image) for image in array], rows=2, cols=len(pixels))
