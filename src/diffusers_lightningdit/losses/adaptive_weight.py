# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Weights that balance two losses by their gradients.

VQGAN (arXiv 2012.09841, equation 7) has one for its discriminator, VA-VAE (arXiv 2501.01423, section 3) also for the VF
loss.
"""

import torch
import torch.distributed as dist

EPS = 1e-4  # added to the norm in the denominator


def gradient_norm(loss: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """|| d loss / d parameter ||, of the gradient's mean over the processes, so that all of them get the same.

    The graph is kept for the backward pass that follows.
    """
    (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    gradient = gradient.float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(gradient)  # a sum; not every backend has the mean
        gradient /= dist.get_world_size()
    return gradient.norm()


def gradient_norm_ratio(
    reference_loss: torch.Tensor, loss: torch.Tensor, parameter: torch.Tensor, maximum: float
) -> torch.Tensor:
    """clamp(|| d reference_loss / d w || / (|| d loss / d w || + EPS), 0, maximum), a constant scalar.

    Several processes: the norms are those of the gradients' mean over the processes, hence (as the losses are means
    over images) of the whole batch; every process has to call this at the same time. Gradient accumulation: each
    micro-batch has a ratio of its own.

    Args:
        reference_loss, loss: The two losses, scalars.
        parameter: The weight w, on which both depend.
        maximum: The largest ratio.

    Returns:
        scalar without gradient; 0 where no gradients are recorded, as in evaluation.

    Raises:
        ValueError: if `parameter` is frozen.
    """
    if not (torch.is_grad_enabled() and reference_loss.requires_grad and loss.requires_grad):
        return loss.new_zeros(())
    if not parameter.requires_grad:
        raise ValueError("`parameter` does not require gradients; required: one that is trained, or a fixed weight.")
    ratio = gradient_norm(reference_loss, parameter) / (gradient_norm(loss, parameter) + EPS)
    return ratio.clamp(0, maximum).detach()


def adaptive_weight(
    reference_loss: torch.Tensor, loss: torch.Tensor, parameter: torch.Tensor, weight: float, maximum: float
) -> torch.Tensor:
    """weight * ratio: with it, `loss` pulls at `parameter` `weight` times as strongly as `reference_loss` does.

    Arguments, result and errors as in `gradient_norm_ratio`.
    """
    return weight * gradient_norm_ratio(reference_loss, loss, parameter, maximum)
