# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The two losses of a step of VA-VAE's training, put together of their parts (arXiv 2501.01423, section 3).

    total     = nll + kl_weight kl + d_weight disc_factor g_loss + vf_weight vf_loss
    disc_loss = disc_factor (discriminator's loss)

d_weight balances the gradients of nll and g_loss at the decoder's last weight, vf_weight (where `adaptive_vf`) those of
nll and vf_loss at the encoder's. Networks are run by the caller; these functions only see what came out.

Letters in the shape comments: B images, C latent channels, D channels in which latents and features are compared.
"""

from dataclasses import dataclass

import torch

from ..settings import check_settings, setting
from .adaptive_weight import adaptive_weight
from .adversarial import KINDS, discriminator_loss, generator_loss
from .kl import kl_loss
from .reconstruction import REDUCTIONS, reconstruction_nll
from .vision_foundation import vf_loss

MAX_DISC_RATIO = 1e4  # of gradient norms, in the adaptive weights
MAX_VF_RATIO = 1e8


@dataclass(kw_only=True)
class VAELossSettings:
    """Weights and margins; the defaults without VF loss are LDM's, those of the VF loss have no margin.

    Raises:
        ValueError: for a value out of range.
    """

    reduction: str = setting(
        "sum",
        "The reduction of the pixel loss and the KL divergence: a sum over pixels or latents divided by the number of "
        "images, or a mean (`pp_style` of the original).",
        group="Loss",
        choices=REDUCTIONS,
    )
    kl_weight: float = setting(1e-6, "The weight of the KL divergence.", minimum=0)
    perceptual_weight: float = setting(1.0, "The weight of LPIPS; 0: no LPIPS.", minimum=0)
    disc_start: int = setting(
        5001, "The first step at which the discriminator counts; the original counts two steps a batch.", minimum=0
    )
    disc_weight: float = setting(
        0.5, "The weight of the discriminator's loss, times the adaptive ratio; 0: no discriminator.", minimum=0
    )
    disc_loss: str = setting("hinge", "The loss of the discriminator.", choices=KINDS)
    vf_weight: float = setting(
        0.1,
        "The weight of the VF loss, times the adaptive ratio if `adaptive_vf`; 0: no alignment to a foundation model.",
        minimum=0,
    )
    adaptive_vf: bool = setting(
        True, "Balance the VF loss with the reconstruction by their gradients at the encoder's last layer."
    )
    distmat_margin: float = setting(0.0, "The margin of the distance-matrix part of the VF loss.", minimum=0)
    cos_margin: float = setting(0.0, "The margin of the cosine part of the VF loss.", minimum=0)
    distmat_weight: float = setting(1.0, "The weight of the distance-matrix part within the VF loss.", minimum=0)
    cos_weight: float = setting(1.0, "The weight of the cosine part within the VF loss.", minimum=0)

    def __post_init__(self):
        check_settings(self)

    def disc_factor(self, step: int) -> float:
        """0 before step `disc_start`, then 1."""
        return float(step >= self.disc_start)


def autoencoder_losses(
    settings: VAELossSettings,
    pixels: torch.Tensor,
    reconstructions: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    *,
    step: int,
    last_decoder_weight: torch.Tensor,
    last_encoder_weight: torch.Tensor | None = None,
    logits_fake: torch.Tensor | None = None,
    latents_for_vf: torch.Tensor | None = None,
    features: torch.Tensor | None = None,
    perceptual: torch.Tensor | None = None,
    logvar_scalar: torch.Tensor | float = 0.0,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of encoder, decoder and projection.

    Args:
        settings: The weights and margins.
        pixels, reconstructions: The images and their reconstructions, [B, 3, height, width] in [-1, 1].
        mean, logvar: The moments of the posterior, [B, C, height, width].
        step: The number of optimiser steps so far, for `disc_start`.
        last_decoder_weight: The parameter `decoder.conv_out.weight`, for the adaptive weight of the discriminator.
        last_encoder_weight: The parameter `encoder.conv_out.weight`, for the adaptive weight of the VF loss.
        logits_fake: The discriminator's logits of `reconstructions`; None leaves out its term.
        latents_for_vf, features: The result of `FoundationProjection`, [B, D, height, width]; None leaves out the VF
            loss.
        perceptual: The distance `LPIPS` of pixels and reconstructions, [B, 1, 1, 1]; None leaves it out.
        logvar_scalar: The log of the likelihood's scale, `loss.logvar` of the original, which never trains it.

    Returns:
        (total, scalars): a scalar with gradient; and under the original's names, detached, total_loss, logvar, kl_loss,
        nll_loss, rec_loss, with `logits_fake` d_weight, disc_factor, g_loss, with `features` vf_loss, vf_weight,
        vf_distmat_part, vf_cos_part. Where no gradients are recorded, adaptive weights are 0.

    Raises:
        ValueError: if only one of `latents_for_vf` and `features` is given, or their shapes differ.
    """
    if (latents_for_vf is None) != (features is None):
        raise ValueError("`latents_for_vf` and `features`: one is None; required: both, or none for no VF loss.")
    nll, rec_loss = reconstruction_nll(
        pixels, reconstructions, logvar_scalar, perceptual, settings.perceptual_weight, settings.reduction
    )
    kl = kl_loss(mean, logvar, settings.reduction)
    total = nll + settings.kl_weight * kl
    scalars = {"logvar": logvar_scalar, "kl_loss": kl, "nll_loss": nll, "rec_loss": rec_loss}

    if logits_fake is not None:
        g_loss = generator_loss(logits_fake)
        d_weight = adaptive_weight(nll, g_loss, last_decoder_weight, settings.disc_weight, MAX_DISC_RATIO)
        disc_factor = settings.disc_factor(step)
        total = total + d_weight * disc_factor * g_loss
        scalars |= {"d_weight": d_weight, "disc_factor": disc_factor, "g_loss": g_loss}

    if features is not None:
        loss, distmat_part, cos_part = vf_loss(
            features,
            latents_for_vf,
            settings.distmat_margin,
            settings.cos_margin,
            settings.distmat_weight,
            settings.cos_weight,
        )
        vf_weight = settings.vf_weight
        if settings.adaptive_vf:
            vf_weight = adaptive_weight(nll, loss, last_encoder_weight, settings.vf_weight, MAX_VF_RATIO)
        total = total + vf_weight * loss
        scalars |= {"vf_loss": loss, "vf_weight": vf_weight, "vf_distmat_part": distmat_part, "vf_cos_part": cos_part}

    return total, _detached({"total_loss": total} | scalars, total)


def discriminator_losses(
    settings: VAELossSettings, logits_real: torch.Tensor, logits_fake: torch.Tensor, *, step: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of the discriminator.

    Args:
        settings: The settings, of which `disc_start` and `disc_loss` matter.
        logits_real, logits_fake: The discriminator's logits of the images and of the detached reconstructions that the
            autoencoder's loss has seen (it is run on the images first, which matters to its batch norms).
        step: The number of optimiser steps so far, for `disc_start`; the original counts the autoencoder's step
            of the same batch.

    Returns:
        (loss, scalars): a scalar with gradient; and disc_loss, logits_real, logits_fake (means), detached.
    """
    loss = settings.disc_factor(step) * discriminator_loss(logits_real, logits_fake, settings.disc_loss)
    scalars = {"disc_loss": loss, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
    return loss, _detached(scalars, loss)


def _detached(scalars: dict[str, torch.Tensor | float], like: torch.Tensor) -> dict[str, torch.Tensor]:
    """All as tensors on one device, so that they can be stacked and averaged over processes at once.

    Numbers are filled in there: a copy would wait until a GPU has done all before it.
    """
    return {
        name: value.detach().to(like) if isinstance(value, torch.Tensor) else like.new_full((), value)
        for name, value in scalars.items()
    }
