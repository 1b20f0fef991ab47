# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The networks of the first stage: those that are trained, as one folder, and those that teach them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...data.latents import latents_size, load_frozen_vae
from ...losses import FoundationProjection, PatchGANDiscriminator
from ...models import AutoencoderVAVAE
from ...networks.foundation_model import FoundationModel
from ...networks.inception import InceptionFeatures
from ...networks.lpips import LPIPS, SMALLEST
from ...original import build_autoencoder, read_autoencoder
from ...original.vae_training import LOGVAR, LOSS_FILE, PREFIXES, TRAINING_FOLDER, training_models
from .config import VAVAETrainingConfig

CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


@dataclass
class VAVAEParts:
    """Autoencoder, projection between latents and features, discriminator; those that are not used are None.

    `logvar`, the log of the likelihood's scale, weighs reconstruction against the other losses. It is not trained; an
    original checkpoint may bring another one than 0.
    """

    vae: AutoencoderVAVAE
    projection: FoundationProjection | None = None
    discriminator: PatchGANDiscriminator | None = None
    logvar: float = 0.0

    def copy(self) -> "VAVAEParts":
        """With weights of its own, on the CPU, for evaluation."""
        models = (model and _copy(model) for model in (self.vae, self.projection, self.discriminator))
        return VAVAEParts(*models, self.logvar)


def _copy(model):
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    duplicate = type(model).from_config(copy.deepcopy(dict(model.config)))
    duplicate.load_state_dict(weights)
    return duplicate.requires_grad_(False).eval()


def initial_parts(
    config: VAVAETrainingConfig, foundation: FoundationModel | None, report: Callable[[str], None] = print
) -> VAVAEParts:
    """The parts that `config` asks for: those of `weight_init` where it has them, else new ones, which is reported.

    The random numbers of new weights are torch's global ones.

    Raises:
        ValueError: in one line, if `weight_init` cannot be read or has a part of another architecture, or if the
            resolution doesn't suit one of the networks.
    """
    if config.weight_init is None:
        parts = VAVAEParts(AutoencoderVAVAE(**{"sample_size": config.resolution, **config.vae}))
    else:
        parts = load_parts(config.weight_init)
        for name, is_needed in (("projection", config.has_projection), ("discriminator", config.has_discriminator)):
            if is_needed and getattr(parts, name) is None:
                report(f"{config.weight_init} has no complete {name}: a new one is trained")
        if parts.logvar:
            report(f"{config.weight_init} has `{LOGVAR}` {parts.logvar:g}: it is kept")
    if not config.has_projection:
        parts.projection = None
    elif parts.projection is None:
        parts.projection = FoundationProjection(
            latent_channels=parts.vae.config.latent_channels,
            feature_channels=foundation.num_channels,
            reverse=config.reverse_proj,
        )
    else:
        _check(
            parts.projection, "feature_channels", foundation.num_channels, config.weight_init, "the foundation model"
        )
        _check(parts.projection, "reverse", config.reverse_proj, config.weight_init, "`reverse_proj`")
    if not config.has_discriminator:
        parts.discriminator = None
    elif parts.discriminator is None:
        parts.discriminator = PatchGANDiscriminator(**config.discriminator)
    for name, value in config.discriminator.items():
        if parts.discriminator is not None:
            _check(parts.discriminator, name, value, config.weight_init, f"`discriminator.{name}`")
    latents_size(config.resolution, parts.vae)  # an error where the resolution does not fit
    for network, smallest in (
        ("the discriminator", parts.discriminator.smallest_size if parts.discriminator else 0),
        ("LPIPS", SMALLEST if config.lpips else 0),
    ):
        if config.resolution < smallest:
            raise ValueError(f"`resolution` is {config.resolution}; required: at least {smallest}, for {network}.")
    return parts


def _check(model, name: str, value, source: str | None, wanted: str) -> None:
    if model.config[name] != value:
        raise ValueError(
            f"`weight_init` is {source!r}, whose {type(model).__name__} has `{name}` {model.config[name]!r}; "
            f"required: {value!r}, as {wanted}."
        )


def load_parts(name: str) -> VAVAEParts:
    """A folder that `save_parts` or a conversion wrote, the VAE of a Hub id, or an original checkpoint file.

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
    return VAVAEParts(vae.float().requires_grad_(True), **models, logvar=logvar.item())


def save_parts(parts: VAVAEParts, folder: str | Path) -> None:
    """The autoencoder as a model folder of diffusers, what only training needs in `training/` within it.

    It has the layout of convert_vavae_to_diffusers.py.
    """
    training = Path(folder) / TRAINING_FOLDER
    for name in PREFIXES:
        model = getattr(parts, name)
        if model is not None:
            model.save_pretrained(training / name)
    if parts.logvar:
        training.mkdir(parents=True, exist_ok=True)
        save_file({LOGVAR: torch.tensor(parts.logvar)}, training / LOSS_FILE)
    parts.vae.save_pretrained(folder)


class Teachers:
    """The frozen networks that losses and validation look through.

    Args:
        config: says which there are.
        device: to compute on.

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

    def features(self, pixels: torch.Tensor, grid_size: int) -> torch.Tensor | None:
        return None if self.foundation is None else self.foundation(pixels, grid_size)

    def distances(self, pixels: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor | None:
        return None if self.lpips is None else self.lpips(pixels, reconstructions)
