# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Optimisers and the schedules of their learning rates."""

from collections.abc import Iterable

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .config import TrainingConfig


def make_adamw(
    kind: str, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimizer:
    """AdamW: "adamw" is torch's, "adamw_fused" its single kernel, "adamw_8bit" bitsandbytes' with moments of 8 bits."""
    settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    if kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, fused=kind == "adamw_fused" or None, **settings)


def make_lr_scheduler(config: TrainingConfig, optimizer: Optimizer) -> LambdaLR:
    """diffusers' schedule over `max_train_steps`, not for `accelerator.prepare`, which would step it once a process."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        step_rules=config.lr_step_rules,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


def set_schedule(scheduler: LambdaLR, num_steps: int) -> None:
    """Put a schedule, with its own settings, where it is after `num_steps` steps."""
    scheduler.last_epoch = num_steps
    for group, base_lr, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base_lr * factor(num_steps)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
