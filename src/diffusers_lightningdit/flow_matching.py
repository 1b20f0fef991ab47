# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The flow that LightningDiT is trained on: straight lines from noise to data (arXiv 2501.01423, section 4).

Time convention, here and everywhere in the project: t in [0, 1], 0 = noise, 1 = data.

Letters in the shape comments: B batch, C latent channels.
"""

import torch
import torch.nn.functional as F

COSINE_EPS = 1e-8  # smallest product of norms in the cosine loss: torch's default, and the original's


# ---------------------------------------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------------------------------------


def sample_uniform_times(
    batch_size: int, device: torch.device | str | None = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """t ~ U[0, 1).

    Returns:
        float32 [B].
    """
    return torch.rand(batch_size, device=device, generator=generator)


def sample_logit_normal_times(
    batch_size: int,
    mean: float = 0.0,
    std: float = 1.0,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """t = 1 / (1 + exp(-s)), s ~ N(mean, std^2) (Stable Diffusion 3, arXiv 2403.03206, section 3.1).

    Args:
        mean: below 0 favours times near the noise, above 0 times near the data.
        std: greater than 0.

    Returns:
        float32 [B].

    Raises:
        ValueError: if `std` is not positive.
    """
    if not std > 0:
        raise ValueError(f"`std` is {std}; required: a positive number.")
    return torch.sigmoid(mean + std * torch.randn(batch_size, device=device, generator=generator))


# ---------------------------------------------------------------------------------------------------------------------
# Path and target
# ---------------------------------------------------------------------------------------------------------------------


def interpolate(noise: torch.Tensor, latents: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """x_t = t x + (1 - t) n, with data x and noise n.

    Args:
        noise, latents: [B, C, height, width], the latents normalised.
        times: [B].

    Returns:
        noisy latents [B, C, height, width].
    """
    times = times.view(-1, *[1] * (latents.ndim - 1))  # [B, 1, 1, 1]
    return times * latents + (1 - times) * noise


def velocity_target(noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """d x_t / dt = x - n, the same at every t: [B, C, height, width] each."""
    return latents - noise


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def velocity_mse_loss(velocity: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """mean over C, height, width of (v - u)^2 with prediction v and target u: [B, C, height, width] each -> [B]."""
    return (velocity - target).square().flatten(1).mean(1)


def velocity_cosine_loss(velocity: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """mean over height, width of 1 - cos(v, u), the cosine along C (FasterDiT, arXiv 2410.10356, section 3.3).

    Args:
        velocity, target: [B, C, height, width].

    Returns:
        [B].
    """
    cosine = F.cosine_similarity(velocity, target, dim=1, eps=COSINE_EPS)  # [B, height, width]
    return (1 - cosine).flatten(1).mean(1)
