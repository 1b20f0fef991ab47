# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Raw latents of a data set: the moments of their posteriors, and the statistics that normalise them.

Letters in the shape comments: B batch, C latent channels.
"""

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from .models import AutoencoderVAVAE

# ---------------------------------------------------------------------------------------------------------------------
# The autoencoder
# ---------------------------------------------------------------------------------------------------------------------


def load_frozen_vae(name: str) -> AutoencoderVAVAE:
    """An `AutoencoderVAVAE` from a folder or Hub id, for encoding only.

    Raises:
        ValueError: if there is none, if it is another model, or if its config has no statistics of its latents.
    """
    try:
        model_class = AutoencoderVAVAE.load_config(name).get("_class_name")
    except (OSError, ValueError) as error:
        raise ValueError(f"`vae` is {name!r}; required: a folder or Hub id with a VAE's config.json.") from error
    if model_class != AutoencoderVAVAE.__name__:
        raise ValueError(f"`vae` is {name!r}, a {model_class}; required: an {AutoencoderVAVAE.__name__}.")
    vae = AutoencoderVAVAE.from_pretrained(name).requires_grad_(False).eval()
    if vae.config.latents_mean is None:
        raise ValueError(f"`vae` is {name!r}, without `latents_mean` in its config; required: a VAE with statistics.")
    return vae


def latents_size(resolution: int, vae: AutoencoderVAVAE) -> int:
    """Side of the latents of square images; raises ValueError if `resolution` is no multiple of the VAE's factor."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if resolution < factor or resolution % factor:
        raise ValueError(f"`resolution` is {resolution}; required: a multiple of the VAE's factor, {factor}.")
    return resolution // factor


# ---------------------------------------------------------------------------------------------------------------------
# Encoding
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_moments(vae: AutoencoderVAVAE, pixels: torch.Tensor) -> torch.Tensor:
    """Mean and log-variance of the raw latents' posterior: [B, 3, height, width] -> [B, 2 C, height/f, width/f]."""
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.parameters


def sample_latents(moments: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """m + exp(l / 2) e, e ~ N(0, 1): a draw of raw latents, [B, 2 C, height, width] -> [B, C, height, width]."""
    return DiagonalGaussianDistribution(moments).sample(generator)


class MomentsDataset(TensorDataset):
    """A labelled data set of images, encoded once and held in memory.

    Items are `{"moments": float32 [2 C, height, width], "class_labels": int}`.
    """

    def __init__(self, vae: AutoencoderVAVAE, images: DataLoader, show_progress: bool = True):
        moments, class_labels = [], []
        for batch in tqdm(images, desc="encoding", disable=not show_progress):
            moments.append(encode_moments(vae, batch["pixel_values"]).float().cpu())
            class_labels.append(batch["class_labels"])
        super().__init__(torch.cat(moments), torch.cat(class_labels))

    def __getitem__(self, index: int) -> dict:
        moments, class_label = super().__getitem__(index)
        return {"moments": moments, "class_labels": class_label}


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


class LatentsStatistics:
    """Mean and unbiased standard deviation per channel, over images and positions, of latents seen batch by batch.

    Counts, means and squared deviations are merged in float64 (Chan, Golub, LeVeque 1979), which stays exact where
    a sum of squares cancels.
    """

    def __init__(self, latent_channels: int):
        self.count = 0
        self._mean = torch.zeros(latent_channels, dtype=torch.float64)
        self._squared_deviations = torch.zeros(latent_channels, dtype=torch.float64)

    def update(self, latents: torch.Tensor) -> None:
        """Take in raw latents [B, C, height, width]."""
        values = latents.detach().cpu().double().transpose(0, 1).flatten(1)  # [C, B height width]
        count, mean = values.shape[1], values.mean(1)
        delta, total = mean - self._mean, self.count + count
        self._squared_deviations += (values - mean[:, None]).square().sum(
            1
        ) + delta.square() * self.count * count / total
        self._mean += delta * count / total
        self.count = total

    @property
    def mean(self) -> list[float]:
        return self._mean.tolist()

    @property
    def std(self) -> list[float]:
        return (self._squared_deviations / (self.count - 1)).sqrt().tolist()
