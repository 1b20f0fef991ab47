# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""One training step, whatever the model: accumulated gradients, judgement, optimiser step, averages."""

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.tensor import DTensor

from .run_state import RunState


def accumulating(accelerator: Accelerator, model: nn.Module, is_last: bool) -> contextlib.AbstractContextManager:
    """The context of the backward pass of a part of a global batch: only the last one exchanges gradients."""
    return contextlib.nullcontext() if is_last else accelerator.no_sync(model)


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale the gradients to a norm of at most `max_norm`; returns the norm before, a scalar, also of shards.

    With a loss scaler (fp16), the gradients of all models are unscaled first.
    """
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def gradient_norm(model: nn.Module) -> torch.Tensor:
    """The norm of the gradients as they are, a scalar."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def mean_of_parts(parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean over the parts of a global batch of each scalar, by the names that the parts have in common."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def global_mean(accelerator: Accelerator, values: torch.Tensor) -> list[float]:
    """The mean over the processes of each number of a vector; waits until the device has computed them."""
    return accelerator.reduce(values.detach().float(), reduction="mean").tolist()


def step_optimizers(accelerator: Accelerator, optimizers: Sequence[AcceleratedOptimizer], skip: bool = False) -> None:
    """Let the optimisers take a step with the gradients that `clip_gradients` unscaled, and forget the gradients.

    With a loss scaler (fp16), an optimiser whose gradients overflowed stays where it is, and the scale changes once,
    after all of them: the optimisers' own `step` would change it after each, and unscale the next one's gradients a
    second time.

    Args:
        accelerator: The accelerator that prepared the optimisers.
        optimizers: Those that take part in this step.
        skip: Forget the gradients only.
    """
    for optimizer in optimizers:
        if not skip and accelerator.scaler is None:
            optimizer.step()
        elif not skip:
            accelerator.scaler.step(optimizer.optimizer)
        optimizer.zero_grad()
    if accelerator.scaler is not None:
        accelerator.scaler.update()


def finish_step(
    state: RunState,
    scalars: dict[str, torch.Tensor],
    loss_of: Callable[[dict[str, float]], float],
    max_grad_norm: float | None,
    names: Sequence[str],
    max_grad_value: float | None = None,
) -> dict[str, float]:
    """Take the step that the gradients are there for, or skip it if it is bad, and count it.

    The host waits for the device once a step, in `global_mean`. This has to stay: a bad step must be known before the
    optimisers take it, since judging it one step later would leave its gradients in the weights, the moments and the
    averages. (In fp16 the loss scaler waits once more for each optimiser, for the same reason.) The processes also tell
    each other there whether one of them was sent a signal to end.

    Args:
        state: The run.
        scalars: Scalars of this process's part of the global batch; a NaN among them makes the step a bad one.
        loss_of: A function of their means over the processes that gives the loss by which spikes are seen.
        max_grad_norm: The norm to clip the gradients of the first model to; None only measures it.
        names: The models that take part. The gradient norm of the first one is judged by its history. Those of the
            others only have to be finite: a discriminator's rightly vanishes while it wins, and comes back by orders
            of magnitude.
        max_grad_value: The size to clip each element of these models' gradients to; None leaves them.

    Returns:
        The means of the scalars over the processes, `grad_norm` before clipping, `<name>_grad_norm` of the other
        models, `learning_rate`, and `skipped`, the number of steps skipped so far.
    """
    accelerator, guard, (first, *others) = state.accelerator, state.spike_guard, names
    norm = clip_gradients(accelerator, state.models[first], math.inf if max_grad_norm is None else max_grad_norm)
    other_norms = {f"{name}_grad_norm": gradient_norm(state.models[name]) for name in others}
    measured = {**scalars, "grad_norm": norm, **other_norms}
    values = torch.stack(list(measured.values())).float()
    means = global_mean(accelerator, torch.cat([values, state.interruption.requests(values.device)]))
    metrics = dict(zip(measured, means[: len(measured)], strict=True))
    state.interruption.agree(means[len(measured) :])
    grad_norm, has_scaler = metrics["grad_norm"], accelerator.scaler is not None
    # gradients that overflow are the loss scaler's business
    finite = {name: metrics[name] for name in (scalars if has_scaler else {**scalars, **other_norms})}
    spike = guard.check(loss_of(metrics), grad_norm, has_scaler, finite)
    if max_grad_value is not None:
        for name in names:
            nn.utils.clip_grad_value_(state.models[name].parameters(), max_grad_value)
    step_optimizers(accelerator, [state.optimizers[name] for name in names], skip=spike is not None)
    if spike is not None:
        state.report(f"step {state.step + 1} skipped: {spike} ({guard.num_skipped} skipped in all)")
    elif math.isfinite(grad_norm):  # else it overflowed, and the loss scaler kept the weights
        for name in names:
            if name in state.averages:
                state.averages[name].step(state.models[name].parameters())
    metrics["learning_rate"] = state.lr_schedulers[first].get_last_lr()[0]
    state.advance()
    return metrics | {"skipped": guard.num_skipped}


def due(step: int, interval: int | None, last: int) -> bool:
    """Whether something that is done every `interval` steps, and after the last, is due after this one."""
    return interval is not None and (step % interval == 0 or step == last)
