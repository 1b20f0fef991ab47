# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The loss of the Flow-Anchored Consistency Model (FACM, arXiv 2507.03738): a flow learns to jump to its end.

A network F that knows the velocity of a flow learns its average velocity as well, from (x_t, t) along the flow to the
data, so that x_t + (1 - t) F is the data after one evaluation. It is told apart from the velocity, the anchor, in one
of two ways (`TIMES`):

- "second": the second time r is the end of the jump: r = t, none, is the velocity, and r = 1 the average velocity;
- "expanded": the average velocity has the time t, and the velocity the time 2 - t, which FACM's training has.

The time convention is that of `flow_matching.py`: t = 0 noise, t = 1 data.

Letters in the shape comments: B batch, C latent channels. Latents, noise and velocities are [B, C, height, width].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .flow_matching import interpolate, velocity_cosine_loss, velocity_mse_loss, velocity_target

TIMES = ("second", "expanded")
DERIVATIVES = ("finite_difference", "forward_mode")
DIFFERENCE_STEP = 5e-3  # of t, as is usual; in float32 rounding and curvature cost less than a thousandth here
NORM_EPS = 1e-3  # below this mean square of the consistency error, its loss is no longer a norm

SECOND_TIME = "second_timestep"  # the transformer's argument

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x_t, t) -> F, of one or two batches


# ---------------------------------------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------------------------------------


def expand_times(times: torch.Tensor, samples: range, batch_size: int) -> torch.Tensor:
    """Show 2 - t instead of t to the second half of a batch: training with it teaches a flow expanded times.

    Args:
        times: [B], t in [0, 1].
        samples: The B indices of the samples in the global batch.
        batch_size: The samples of the global batch, of which those from floor(batch_size / 2) on are the second half.

    Returns:
        [B], in [0, 2]. The noisy latents and the target remain those of t.
    """
    numbers = torch.arange(samples.start, samples.stop, device=times.device)
    return torch.where(numbers >= batch_size // 2, 2 - times, times)


# ---------------------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------------------


def guided_velocity(base: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
    """v = b + w (c - b): classifier-free guidance of scale w (arXiv 2207.12598) on all channels."""
    return base + scale * (conditional - base)


def finite_difference(
    network: Velocity, noisy: torch.Tensor, times: torch.Tensor, velocity: torch.Tensor, step: float = DIFFERENCE_STEP
) -> torch.Tensor:
    """dF/dt along the flow by central differences, (F(x + d v, t + d) - F(x - d v, t - d)) / (2 d), in one evaluation.

    It needs no derivative of any part of the network: it may be compiled, sharded, or have fused attention. Evaluations
    that are rounded to 16 bits leave little of the difference: it wants float32.
    """
    there = torch.cat([noisy + step * velocity, noisy - step * velocity])
    after, before = network(there, torch.cat([times + step, times - step])).chunk(2)
    return (after - before) / (2 * step)


def forward_mode(network: Velocity, noisy: torch.Tensor, times: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
    """dF/dt along the flow, exactly: the product of F's Jacobian with (v, 1), by forward-mode differentiation.

    Fused attention has no such derivative: plain attention is used. The network must be neither compiled nor wrapped.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(network, (noisy, times), (velocity, torch.ones_like(times)))[1]


def consistency_target(
    average: torch.Tensor,
    derivative: torch.Tensor,
    velocity: torch.Tensor,
    times: torch.Tensor,
    exponent: float = 0.5,
) -> torch.Tensor:
    """u - (1 - t^p) clip(g, -1, 1), g = u - (v + (1 - t) dF/dt) (FACM).

    g vanishes where the average velocity u of the jump from t to 1 satisfies d/dt [(1 - t) u] = -v along the flow.

    Args:
        average: u, the network's own prediction.
        derivative: dF/dt along the flow.
        velocity: v, the velocity of the flow.
        times: [B].
        exponent: p, greater than 0.
    """
    times = times.view(-1, *[1] * (average.ndim - 1))
    gap = average - (velocity + (1 - times) * derivative)
    return average - (1 - times**exponent) * gap.clamp(-1, 1)


def _flow(network: nn.Module, noisy: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The velocity at plain times, which is that of the second time r = t."""
    return network(noisy, times, labels).sample.to(noisy.dtype)  # of the type of the state, also under autocast


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def consistency_loss(average: torch.Tensor, target: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """cos(pi t / 2) e / sqrt(e + 0.001), the denominator without gradient; e the mean square of u - target: [B]."""
    error = velocity_mse_loss(average, target)
    return torch.cos(math.pi / 2 * times) * error / (error.detach() + NORM_EPS).sqrt()


class FewStepLosses(NamedTuple):
    """The losses of a batch, [B] each."""

    consistency: torch.Tensor
    anchor_mse: torch.Tensor
    anchor_cosine: torch.Tensor


@dataclass(frozen=True)
class FlowAnchoredConsistency:
    """FACM's losses of a student.

    Args:
        null_class: The index of the null class.
        times: How the velocity and the average velocity are told apart, one of `TIMES`.
        derivative: How dF/dt is computed, one of `DERIVATIVES`.
        guidance_scale: The scale w of the guidance that the student learns; at most 1: none.
        guidance_interval: The times t in [0, 1] of guidance, both ends included.
        exponent: p of `consistency_target`.
    """

    null_class: int
    times: str = "second"
    derivative: str = "finite_difference"
    guidance_scale: float = 1.75
    guidance_interval: tuple[float, float] = (0.125, 1.0)
    exponent: float = 0.5

    def target_velocity(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        noise: torch.Tensor,
        latents: torch.Tensor,
        times: torch.Tensor,
        class_labels: torch.Tensor,
    ) -> torch.Tensor:
        """The guided velocity v that both losses aim at, without gradient.

        In the interval it is guided away from the null class, outside it is the teacher's for the class. Without a
        teacher, x - n stands in place of the teacher's velocity for the class, and the student's prediction in place of
        the other one: outside the interval for the class, so that there is guidance of another kind, too.
        """
        guided = (self.guidance_interval[0] <= times) & (times <= self.guidance_interval[1])
        base_labels = torch.where(guided, self.null_class, class_labels)
        noisy = interpolate(noise, latents, times)
        straight = velocity_target(noise, latents)
        with torch.no_grad():
            if self.guidance_scale <= 1:
                return straight if teacher is None else _flow(teacher, noisy, times, class_labels)
            if teacher is None:
                return guided_velocity(_flow(student, noisy, times, base_labels), straight, self.guidance_scale)
            labels = torch.cat([base_labels, class_labels])
            both = _flow(teacher, torch.cat([noisy] * 2), torch.cat([times] * 2), labels)
            return guided_velocity(*both.chunk(2), self.guidance_scale)

    def along_flow(
        self,
        network: Callable,
        noisy: torch.Tensor,
        times: torch.Tensor,
        velocity: torch.Tensor,
        class_labels: torch.Tensor,
    ) -> torch.Tensor:
        """dF/dt of the average velocity along the flow, at a fixed end of the jump, without gradient."""

        def average(noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            labels = class_labels.repeat(len(times) // len(class_labels))
            second = {SECOND_TIME: torch.ones_like(times)} if self.times == "second" else {}
            return network(noisy, times, labels, **second).sample

        derivative = {"finite_difference": finite_difference, "forward_mode": forward_mode}[self.derivative]
        with torch.no_grad():
            return derivative(average, noisy, times, velocity)

    def losses(
        self,
        student: nn.Module,
        network: Callable,
        teacher: nn.Module | None,
        noise: torch.Tensor,
        latents: torch.Tensor,
        times: torch.Tensor,
        class_labels: torch.Tensor,
    ) -> FewStepLosses:
        """The losses at given draws.

        Args:
            student: The student, as the gradient is to pass it: one evaluation, of both kinds of velocity at once.
            network: The student as the derivative is to be taken of it; for forward-mode differentiation without
                wrappers. It must not drop labels, which would be others in each evaluation.
            teacher: The frozen network of the flow, or None.
            noise, latents: [B, C, height, width], the latents normalised.
            times, class_labels: [B].
        """
        velocity = self.target_velocity(student, teacher, noise, latents, times, class_labels)
        noisy = interpolate(noise, latents, times)
        derivative = self.along_flow(network, noisy, times, velocity, class_labels)

        labels, twice = torch.cat([class_labels] * 2), torch.cat([noisy] * 2)
        if self.times == "second":
            ends = torch.cat([times, torch.ones_like(times)])
            both = student(twice, torch.cat([times] * 2), labels, **{SECOND_TIME: ends}).sample
        else:
            both = student(twice, torch.cat([2 - times, times]), labels).sample
        anchor, average = both.chunk(2)
        target = consistency_target(average.detach(), derivative, velocity, times, self.exponent)
        return FewStepLosses(
            consistency=consistency_loss(average, target, times),
            anchor_mse=velocity_mse_loss(anchor, velocity),
            anchor_cosine=velocity_cosine_loss(anchor, velocity),
        )
