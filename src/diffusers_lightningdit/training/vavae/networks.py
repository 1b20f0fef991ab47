# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The networks of the first stage: those that are trained, in folders and as modules to train, and their teachers."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ...data.latent_encoding import load_frozen_vae, resolution_for
from ...losses import FoundationProjection, PatchGANDiscriminator
from ...models import AutoencoderVAVAE
from ...networks.foundation_model import FoundationModel
from ...networks.inception import InceptionFeatures
from ...networks.lpips import LPIPS, SMALLEST
from ...original import build_autoencoder, read_autoencoder
from ...original.vae_training import LOGVAR, LOSS_FILE, PREFIXES, TRAINING_FOLDER, training_models
from ...pixels import as_rgb, height_and_width, to_8_bits
from ..state_io import model_arguments, read_trained
from .config import VAVAETrainingConfig

CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


@dataclass
class VAVAENetworks:
    """Autoencoder, projection between latents and features, discriminator; those that are not used are None.

    `logvar`, the log of the likelihood's scale, weighs reconstruction against the other losses. It is not trained; an
    original checkpoint may bring another one than 0.
    """

    vae: AutoencoderVAVAE
    projection: FoundationProjection | None = None
    discriminator: PatchGANDiscriminator | None = None
    logvar: float = 0.0

    def copy(self) -> "VAVAENetworks":
        """Copies with weights of their own, on the CPU, for evaluation."""
        models = (model and _copy(model) for model in (self.vae, self.projection, self.discriminator))
        return VAVAENetworks(*models, self.logvar)


def _copy(model):
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    duplicate = type(model).from_config(copy.deepcopy(dict(model.config)))
    duplicate.load_state_dict(weights)
    return duplicate.requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------------------------------
# Beginning and result
# ---------------------------------------------------------------------------------------------------------------------


def initial_networks(
    config: VAVAETrainingConfig, foundation: FoundationModel | None, report: Callable[[str], None] = print
) -> VAVAENetworks:
    """The networks that `config` asks for: those of `weight_init` where it has them, else new ones, which is reported.

    The random numbers of new weights are torch's global ones.

    Raises:
        ValueError: in one line, if `weight_init` cannot be read or has a part of another architecture, or if the
            resolution doesn't suit one of the networks.
    """
    if config.weight_init is None:
        size = {} if config.resolution is None else {"sample_size": config.resolution}
        networks = VAVAENetworks(AutoencoderVAVAE(**{**size, **config.vae}))
    else:
        networks = load_networks(config.weight_init)
        for name, is_needed in (("projection", config.has_projection), ("discriminator", config.has_discriminator)):
            if is_needed and getattr(networks, name) is None:
                report(f"{config.weight_init} has no complete {name}: a new one is trained")
        if networks.logvar:
            report(f"{config.weight_init} has `{LOGVAR}` {networks.logvar:g}: it is kept")
    if not config.has_projection:
        networks.projection = None
    elif networks.projection is None:
        networks.projection = FoundationProjection(
            latent_channels=networks.vae.config.latent_channels,
            feature_channels=foundation.num_channels,
            reverse=config.reverse_proj,
        )
    else:
        _check(
            networks.projection, "feature_channels", foundation.num_channels, config.weight_init, "the foundation model"
        )
        _check(networks.projection, "reverse", config.reverse_proj, config.weight_init, "`reverse_proj`")
    if not config.has_discriminator:
        networks.discriminator = None
    elif networks.discriminator is None:
        networks.discriminator = PatchGANDiscriminator(
            **{"in_channels": networks.vae.config.out_channels, **config.discriminator}
        )
    for name, value in config.discriminator.items():
        if networks.discriminator is not None:
            _check(networks.discriminator, name, value, config.weight_init, f"`discriminator.{name}`")
    resolution = resolution_for(networks.vae, config.resolution)
    networks.vae.register_to_config(sample_size=resolution)  # the size that data and loop follow
    smaller_side = min(height_and_width(resolution))
    for network, smallest in (
        ("the discriminator", networks.discriminator.smallest_size if networks.discriminator else 0),
        ("LPIPS", SMALLEST if config.lpips else 0),
    ):
        if smaller_side < smallest:
            raise ValueError(f"`resolution` is {smaller_side}; required: at least {smallest}, for {network}.")
    return networks


def _check(model, name: str, value, source: str | None, wanted: str) -> None:
    if model.config[name] != value:
        raise ValueError(
            f"`weight_init` is {source!r}, whose {type(model).__name__} has `{name}` {model.config[name]!r}; "
            f"required: {value!r}, as {wanted}."
        )


def load_networks(name: str) -> VAVAENetworks:
    """A folder that `save_networks` or a conversion wrote, the VAE of a Hub id, or an original checkpoint file.

    Raises:
        ValueError: in one line, if it is none of these or damaged.
    """
    try:
        if Path(name).suffix in CHECKPOINT_SUFFIXES or Path(name).is_dir():
            original = read_autoencoder(name)
            vae, training = build_autoencoder(original), original.training
        else:
            vae, training = load_frozen_vae(name, with_statistics=False), {}
        models, left_over = training_models(training)
        logvar = left_over.get(LOGVAR, torch.zeros(()))
        if logvar.numel() != 1 or not logvar.isfinite().all():
            raise ValueError(f"`{LOGVAR}` is {logvar.tolist()}; required: one finite number.")
    except ValueError as error:
        raise ValueError(f"`weight_init` is {name!r}: {error}") from error
    models = {part: model.float().train() for part, model in models.items()}
    return VAVAENetworks(vae.float().requires_grad_(True), **models, logvar=logvar.item())


def save_networks(networks: VAVAENetworks, folder: str | Path) -> None:
    """The autoencoder as a model folder of diffusers, what only training needs in `training/` within it.

    It has the layout of convert_vavae_to_diffusers.py.
    """
    training = Path(folder) / TRAINING_FOLDER
    for name in PREFIXES:
        model = getattr(networks, name)
        if model is not None:
            model.save_pretrained(training / name)
    if networks.logvar:
        training.mkdir(parents=True, exist_ok=True)
        save_file({LOGVAR: torch.tensor(networks.logvar)}, training / LOSS_FILE)
    networks.vae.save_pretrained(folder)


# ---------------------------------------------------------------------------------------------------------------------
# One forward call each, which Accelerate can wrap for several processes
# ---------------------------------------------------------------------------------------------------------------------


class AlignedAutoencoder(nn.Module):
    """The autoencoder, and the projection between its latents and the features of the foundation model."""

    def __init__(self, networks: VAVAENetworks):
        super().__init__()
        self.vae = networks.vae
        self.projection = networks.projection
        self.logvar = networks.logvar

    def forward(self, pixels: torch.Tensor, noise: torch.Tensor, features: torch.Tensor | None) -> tuple:
        """Encode and decode images [B, 1 or 3, height, width].

        Args:
            pixels: The images, in [-1, 1].
            noise: The noise of the posteriors, of the latents' shape.
            features: The foundation model's features of the images, or None.

        Returns:
            (reconstructions, mean, logvar, features, latents), the last two as the projection makes them comparable,
            or None.
        """
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * noise
        aligned = (None, None) if features is None else self.projection(features, latents)
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar, *aligned


class Judgement(nn.Module):
    """The discriminator on images, then on their reconstructions: data-parallel training has one call a step."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, pixels: torch.Tensor, reconstructions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The discriminator's logits of both batches, pixels [B, 3, height, width] in [-1, 1]."""
        return self.discriminator(pixels), self.discriminator(reconstructions)


def networks_of(path: Path, architectures: Mapping[str, Mapping[str, Any]], ema_decay: float | None) -> VAVAENetworks:
    """The networks of a checkpoint of train_vavae.py, for evaluation.

    Args:
        path: The checkpoint's folder.
        architectures: The arguments of the checkpoint's models, by name, as its `state.json` has them.
        ema_decay: The decay of the averages that are taken; None: the weights themselves.
    """
    autoencoder = model_arguments(architectures["vae"])
    projection, logvar = autoencoder.pop("projection"), autoencoder.pop("logvar", 0.0)
    networks = VAVAENetworks(AutoencoderVAVAE.from_config(autoencoder), logvar=logvar)
    if projection is not None:
        networks.projection = FoundationProjection.from_config(model_arguments(projection))
    AlignedAutoencoder(networks).load_state_dict(read_trained(path, "vae", ema_decay))
    if "discriminator" in architectures:
        networks.discriminator = PatchGANDiscriminator.from_config(model_arguments(architectures["discriminator"]))
        Judgement(networks.discriminator).load_state_dict(read_trained(path, "discriminator"))
    return networks.copy()


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for the weights; those of the input pass through."""
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)


# ---------------------------------------------------------------------------------------------------------------------
# Teachers
# ---------------------------------------------------------------------------------------------------------------------


class Teachers:
    """The frozen networks that losses and validation look through.

    Args:
        config: The settings, which name the networks.
        device: The device to compute on.

    Raises:
        ValueError: in one line, if one of them cannot be loaded.
    """

    def __init__(self, config: VAVAETrainingConfig, device: torch.device):
        self.foundation, self.lpips, self.inception = None, None, None
        if config.foundation_model is not None:
            self.foundation = FoundationModel.from_pretrained(config.foundation_model, config.foundation_normalization)
            self.foundation.to(device)
        if config.lpips is not None:
            self.lpips = LPIPS.from_file(config.lpips, config.lpips_sha256).to(device)
        if config.inception is not None and config.validation_steps is not None:
            try:
                self.inception = InceptionFeatures(config.inception, config.inception_sha256).to(device)
            except ImportError as error:
                raise ValueError(str(error)) from error

    def features(self, pixels: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor | None:
        """The features of pixels [B, 1 or 3, H, W] on a grid (h, w), [B, D, h, w]; None without a model."""
        return None if self.foundation is None else self.foundation(as_rgb(pixels), grid_size)

    def distances(self, pixels: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor | None:
        """The distances by LPIPS, [B, 1, 1, 1]; None without LPIPS."""
        return None if self.lpips is None else self.lpips(as_rgb(pixels), as_rgb(reconstructions))

    def inception_features(self, pixels: torch.Tensor) -> torch.Tensor | None:
        """Features of the images that 8 bits make of pixels in [-1, 1]: [B, 2048]."""
        return None if self.inception is None else self.inception(to_8_bits(as_rgb(pixels)))["features"]
