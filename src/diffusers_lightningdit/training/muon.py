# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Muon: momentum whose matrices are orthogonalised (github.com/KellerJordan/Muon), and Adam for what is no matrix.

torch's own `Muon`, from 2.9 on, takes matrices alone, and scales a step by either of the two factors that the training
of internal guidance (arXiv 2512.24176) multiplies.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

NUM_ITERATIONS = 5
# Of the quintic iteration, chosen for speed: singular values end near 1, not at it.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NORM_EPS = 1e-7
ADAM_EPS = 1e-8
STEP_RMS = 0.2  # of an entry of a square matrix in a step of learning rate 1: that of AdamW


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Set the singular values of a matrix [m, n] near 1 by Newton-Schulz iterations in bfloat16.

    X <- a X + (b A + c A A) X with A = X X^T, on the side that is shorter.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16()
    x = x.T if is_tall else x
    x = x / (x.norm() + NORM_EPS)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if is_tall else x


class Muon(Optimizer):
    """Muon for parameters of two dimensions or more, Adam without decay for the others.

    With momentum buffer B <- 0.95 B + 0.05 g and M = 0.95 B + 0.05 g, flattened to [rows, rest],
    W <- (1 - lr decay) W - lr 0.2 sqrt(max of the first two sizes) sqrt(max(1, rows / rest)) orthogonalize(M).

    Args:
        parameters: The parameters, whole: a shard of a matrix cannot be orthogonalised.
        lr: The learning rate of both.
        betas: Adam's decay rates.
        weight_decay: The decay of parameters of two dimensions or more.
        momentum: The decay rate of the momentum.
        stacked: Tuples of them that are one matrix, the rows of one below those of another, as query, key and value.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        stacked: Iterable[tuple[nn.Parameter, ...]] = (),
    ):
        stacked = [list(parts) for parts in stacked]
        in_stacks = {id(part) for parts in stacked for part in parts}
        groups = [{"params": [parameter for parameter in parameters if id(parameter) not in in_stacks]}]
        groups += [{"params": parts, "is_stack": True} for parts in stacked]
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "momentum": momentum, "is_stack": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """Take a step along the gradients; parameters without one are left as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["is_stack"] and parameters:
                self._step_of_matrix(parameters, group)
                continue
            for parameter in parameters:
                if parameter.ndim >= 2:
                    self._step_of_matrix([parameter], group)
                else:
                    self._step_of_vector(parameter, group)
        return loss

    def _step_of_matrix(self, parts: list[nn.Parameter], group: dict) -> None:
        """The step of parameters that are one matrix, or the only one."""
        lr, momentum, averages = group["lr"], group["momentum"], []
        for part in parts:
            if not self.state[part]:
                self.state[part]["momentum_buffer"] = torch.zeros_like(part)
            buffer = self.state[part]["momentum_buffer"].lerp_(part.grad, 1 - momentum)
            averages.append(part.grad.lerp(buffer, momentum).flatten(1))
        update = orthogonalize(torch.cat(averages))
        rows, rest = update.shape
        size = STEP_RMS * math.sqrt(max(rows, parts[0].shape[1])) * math.sqrt(max(1, rows / rest))
        for part, of_part in zip(parts, update.split([len(part) for part in parts]), strict=True):
            part.mul_(1 - lr * group["weight_decay"])
            part.sub_(of_part.to(part.dtype).reshape(part.shape), alpha=lr * size)

    def _step_of_vector(self, parameter: nn.Parameter, group: dict) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        number = state["step"].item()
        mean = state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        denominator = (square / (1 - beta2**number)).sqrt() + ADAM_EPS
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**number))


def stacked_projections(model: nn.Module) -> list[tuple[nn.Parameter, ...]]:
    """The matrices of query, key and value of each attention that trains them, which the original has as one."""
    attentions = [module for module in model.modules() if all(hasattr(module, f"to_{name}") for name in "qkv")]
    stacks = [tuple(getattr(attention, f"to_{name}").weight for name in "qkv") for attention in attentions]
    return [weights for weights in stacks if all(weight.requires_grad for weight in weights)]
