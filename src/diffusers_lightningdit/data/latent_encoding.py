# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images as raw latents: the frozen autoencoder, the moments of the posteriors, and draws from them.

Letters in the shape comments: B batch, C latent channels.
"""

import json

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from ..files import read_model
from ..models import AutoencoderVAVAE
from ..pixels import height_and_width, square_or_pair


def load_frozen_vae(name: str, with_statistics: bool = True) -> AutoencoderVAVAE:
    """Load an `AutoencoderVAVAE` from a folder or Hub id, for encoding only.

    Raises:
        ValueError: if there is none, if it is another model, or if its config lacks required statistics.
    """
    loaded = read_model(AutoencoderVAVAE, name, "vae", "a folder or Hub id of an undamaged AutoencoderVAVAE")
    if with_statistics and loaded.config.latents_mean is None:
        raise ValueError(
            f"`vae` is {name!r}, without `latents_mean` in its config; required: a VAE with statistics of its latents, "
            "as train_vavae.py writes it, and cache_latents.py to `vae` in its `output_dir`."
        )
    return frozen_copy(loaded)


def frozen_copy(vae: AutoencoderVAVAE) -> AutoencoderVAVAE:
    """A VAE for encoding only, that may be saved with a pipeline which is trained on it.

    Its config does not tell where it was loaded from, as a local folder.
    """
    copy = AutoencoderVAVAE.from_config({k: v for k, v in vae.config.items() if k != "_name_or_path"})
    copy.load_state_dict(vae.state_dict())
    return copy.requires_grad_(False).eval()


def resolution_for(vae: AutoencoderVAVAE, resolution: int | tuple[int, int] | None) -> int | tuple[int, int]:
    """The size of the images in pixels, (height, width) or the side of squares.

    It is as given, or by default that of the images that the VAE was trained on.

    Raises:
        ValueError: if the VAE cannot halve it often enough, or takes images that are neither RGB nor grey.
    """
    size = square_or_pair(*height_and_width(vae.config.sample_size if resolution is None else resolution))
    latents_size(size, vae)
    if vae.config.in_channels not in (1, 3):
        raise ValueError(f"the VAE's `in_channels` is {vae.config.in_channels}; required: 3 (RGB) or 1 (grey).")
    return size


def latents_size(resolution: int | tuple[int, int], vae: AutoencoderVAVAE) -> tuple[int, int]:
    """The height and width of the latents; raises ValueError if the VAE cannot halve `resolution` often enough."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    height, width = height_and_width(resolution)
    if min(height, width) < factor or height % factor or width % factor:
        raise ValueError(
            f"`resolution` is {json.dumps(resolution)}; required: a multiple of the VAE's factor, {factor}."
        )
    return height // factor, width // factor


@torch.no_grad()
def encode_moments(vae: AutoencoderVAVAE, pixels: torch.Tensor) -> torch.Tensor:
    """Mean and log-variance of the raw latents' posterior: pixels [B, C_in, H, W] -> [B, 2 C, H / f, W / f]."""
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.parameters


def draw_latents(moments: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Draw raw latents m + exp(l / 2) e from the posterior N(m, exp(l)) (arXiv 1312.6114, equation 10).

    Args:
        moments: Means m and log-variances l, [B, 2 C, height, width].
        noise: Numbers e from N(0, 1), [B, C, height, width].

    Returns:
        float32 [B, C, height, width], on the device of the moments.
    """
    posterior = DiagonalGaussianDistribution(moments.float())
    return posterior.mean + posterior.std * noise.to(moments.device)


class MomentsDataset(TensorDataset):
    """A data set of images and labels, encoded once and held in memory.

    Items are `{"moments": float32 [2 C, height, width], "class_labels": int}`, of batches of
    `{"pixel_values": [B, C_in, H, W], "class_labels": int64 [B]}`.
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
