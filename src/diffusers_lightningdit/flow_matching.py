# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The flow that LightningDiT is trained on: straight lines from noise to data (arXiv 2501.01423, section 4).

Time convention, here and everywhere in the project: t in [0, 1], 0 = noise, 1 = data. The schedulers of diffusers count
sigma = 1 - t; `pipelines/lightningdit_sampling.py` translates.

Letters in the shape comments: B batch, C latent channels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

COSINE_EPS = 1e-8  # smallest product of norms in the cosine loss: torch's default, and the original's


# ---------------------------------------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------------------------------------


def uniform_times(uniform: torch.Tensor, time_range: tuple[float, float] = (0.0, 1.0)) -> torch.Tensor:
    """t ~ U[start, end) of numbers u ~ U[0, 1): float32 [B] -> float32 [B]."""
    start, end = time_range
    return start + (end - start) * uniform


def logit_normal_times(
    uniform: torch.Tensor, mean: float = 0.0, std: float = 1.0, time_range: tuple[float, float] = (0.0, 1.0)
) -> torch.Tensor:
    """t = 1 / (1 + exp(-s)), s ~ N(mean, std^2) (Stable Diffusion 3, arXiv 2403.03206, section 3.1).

    By inversion of the distribution function F(t) = Phi((logit t - mean) / std): t = F^-1(F(start) + (F(end) -
    F(start)) u), the distribution under the condition that t lies in the range, as drawing again until it does gives.

    Args:
        uniform: u ~ U[0, 1), float32 [B].
        mean: below 0 favours times near the noise, above 0 times near the data ("shifted" logit-normal).
        std: greater than 0.
        time_range: start and end of the times.

    Returns:
        float32 [B].

    Raises:
        ValueError: if `std` is not positive.
    """
    range_ends = torch.tensor(time_range, dtype=torch.float64)
    return torch.sigmoid(_normal_between(uniform, mean, std, range_ends.logit())).float()


def arctan_times(
    uniform: torch.Tensor, mean: float = 0.8, std: float = 1.6, time_range: tuple[float, float] = (0.0, 1.0)
) -> torch.Tensor:
    """t = (2 / pi) arctan(exp(s)), s ~ N(mean, std^2) (FACM, arXiv 2507.03738).

    By inversion, with arguments, result and errors as in `logit_normal_times`.
    """
    range_ends = torch.tensor(time_range, dtype=torch.float64)
    odds = torch.tan(math.pi / 2 * range_ends)  # exp(s)
    odds[range_ends == 1] = math.inf  # which rounding makes a large number
    return (2 / math.pi * torch.atan(torch.exp(_normal_between(uniform, mean, std, odds.log())))).float()


def _normal_between(uniform: torch.Tensor, mean: float, std: float, range_ends: torch.Tensor) -> torch.Tensor:
    """s ~ N(mean, std^2) under the condition that it lies between two ends, of numbers u ~ U[0, 1): float64 [B].

    The two ends are on the CPU whatever the device of the numbers is: copied to a GPU, they would wait for it.
    """
    if not std > 0:
        raise ValueError(f"`std` is {std}; required: a positive number.")
    first, last = torch.special.ndtr((range_ends - mean) / std)  # F(start), F(end)
    return mean + std * torch.special.ndtri(first + (last - first) * uniform.double())


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


class FlowMatchingLosses(NamedTuple):
    """The losses of a batch, [B] each.

    Attributes:
        mse: The mean square error of the velocity.
        cosine: Its cosine loss.
        internal_mse: The mean square error of the velocity after an earlier block, if it was asked for.
    """

    mse: torch.Tensor
    cosine: torch.Tensor
    internal_mse: torch.Tensor | None = None


def flow_matching_losses(
    model: torch.nn.Module,
    noise: torch.Tensor,
    latents: torch.Tensor,
    times: torch.Tensor,
    class_labels: torch.Tensor,
    seen_times: torch.Tensor | None = None,
    with_internal: bool = False,
) -> FlowMatchingLosses:
    """The losses of a network at given draws.

    Args:
        model: v = model(x_t, t, class_labels).sample.
        noise, latents: [B, C, height, width], the latents normalised.
        times, class_labels: [B].
        seen_times: [B], the times that the network is given instead of t.
        with_internal: Whether the network's velocity after an earlier block has a loss, too (internal guidance,
            arXiv 2512.24176).
    """
    seen_times = times if seen_times is None else seen_times
    arguments = {"return_internal": True} if with_internal else {}
    output = model(interpolate(noise, latents, times), seen_times, class_labels, **arguments)
    target = velocity_target(noise, latents)
    return FlowMatchingLosses(
        mse=velocity_mse_loss(output.sample, target),
        cosine=velocity_cosine_loss(output.sample, target),
        internal_mse=velocity_mse_loss(output.internal_sample, target) if with_internal else None,
    )
