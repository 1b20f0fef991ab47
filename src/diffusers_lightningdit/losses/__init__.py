# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Losses of the autoencoder (LDM, arXiv 2112.10752; VA-VAE, arXiv 2501.01423, section 3), one idea a module.

`objective` puts them together to the two losses of a training step.
"""

from .adaptive_weight import adaptive_weight, gradient_norm_ratio
from .adversarial import PatchGANDiscriminator, discriminator_loss, generator_loss
from .kl import kl_loss
from .objective import VAELossSettings, autoencoder_losses, discriminator_losses
from .reconstruction import reconstruction_loss, reconstruction_nll
from .vision_foundation import FoundationProjection, vf_loss

__all__ = [
    "FoundationProjection",
    "PatchGANDiscriminator",
    "VAELossSettings",
    "adaptive_weight",
    "autoencoder_losses",
    "discriminator_loss",
    "discriminator_losses",
    "generator_loss",
    "gradient_norm_ratio",
    "kl_loss",
    "reconstruction_loss",
    "reconstruction_nll",
    "vf_loss",
]
