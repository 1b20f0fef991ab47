# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Adam and the schedules of its learning rate as in the original."""

from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..optimizers import make_lr_scheduler
from .config import SCHEDULES, Change3DTrainingConfig

WARMUP_START = 0.1  # of the learning rate


def make_adam(config: Change3DTrainingConfig, model: nn.Module) -> Adam:
    """Adam over all parameters, with L2 added to the gradients.

    The original has two for captions, of encoder and decoder, with the same settings: Adam treats each parameter for
    itself, so that one is the same.
    """
    return Adam(
        model.parameters(), lr=config.learning_rate, betas=config.adam_betas, weight_decay=config.adam_weight_decay
    )


def make_schedule(config: Change3DTrainingConfig, optimizer: Optimizer, steps_per_epoch: int | None = None) -> LambdaLR:
    """The schedule of the learning rate.

    Args:
        config: The settings.
        optimizer: The optimiser.
        steps_per_epoch: None of a stream, for which no schedule depends on epochs.
    """
    if config.lr_scheduler not in SCHEDULES:
        return make_lr_scheduler(config, optimizer)
    num_warmup_steps = config.lr_warmup_steps
    if steps_per_epoch is not None:
        num_warmup_steps = min(num_warmup_steps, steps_per_epoch)

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return WARMUP_START + (1 - WARMUP_START) * (step + 1) / config.lr_warmup_steps
        if config.lr_scheduler == "poly":
            return (1 - min(step / config.max_train_steps, 1.0)) ** config.lr_power
        return config.lr_step_factor ** (step // (steps_per_epoch * config.lr_step_epochs))

    return LambdaLR(optimizer, factor)
