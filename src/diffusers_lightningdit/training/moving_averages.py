# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Exponential moving averages of weights (EMA) at one or several decays, by diffusers' `EMAModel`."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def power_exponent(relative_width: float) -> float:
    """The exponent gamma of an average whose profile is a power of the time, of this relative width.

    The width is the standard deviation of the profile divided by the length of the training so far:
    sigma = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) (EDM2, arXiv 2312.02696).

    Args:
        relative_width: sigma, above 0 and at most 0.28; at most 1 / sqrt(12), gamma = 0, the mean of all steps.
    """
    square = relative_width**2
    # (gamma + 1) = sigma^2 (gamma + 2)^2 (gamma + 3)
    roots = np.roots([square, 7 * square, 16 * square - 1, 12 * square - 1])
    return float(max(root.real for root in roots))


class MovingAverages:
    """One average for each decay d: a <- d a + (1 - d) w after every step, beginning at a = w.

    Args:
        parameters: The weights w, also sharded ones (`DTensor`); frozen ones are left out.
        decays: The decays d, from 0 (the weights themselves) to below 1, each once.
        use_warmup: Whether step n averages with the smaller of d and (1 + n) / (10 + n), so that short runs forget
            their first weights. Otherwise d is the same from the first step on, as in the original.
        relative_width: In place of that, step n averages with the smaller of d and (1 - 1 / (n + 1))^(1 + gamma), gamma
            by `power_exponent`, and the first step with 0: the averages remember the same part of any training.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        decays: Sequence[float],
        use_warmup: bool = False,
        relative_width: float | None = None,
    ):
        self.exponent = None if relative_width is None else 1 + power_exponent(relative_width)
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.models = {
            decay: EMAModel(
                parameters,
                decay=decay,
                # EMAModel warms up, and overwrites the average in its first step, unless told otherwise by these two
                min_decay=0.0 if use_warmup else decay,
                update_after_step=-1,
                foreach=True,
            )
            for decay in decays
        }

    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Update every average after an optimiser step."""
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        for model in self.models.values():
            # as `model.step` does, with each value read and written once, and without a copy of all weights for a while
            model.optimization_step += 1
            model.cur_decay_value = model.get_decay(model.optimization_step)
            if self.exponent is not None:
                step = model.optimization_step
                decay = (1 - 1 / (step + 1)) ** self.exponent if step > 1 else 0.0
                model.cur_decay_value = min(model.cur_decay_value, decay)
            get_ema_multi_avg_fn(model.cur_decay_value)(model.shadow_params, parameters, model.optimization_step)

    def __iter__(self) -> Iterator[tuple[float, list[torch.Tensor]]]:
        """Pairs of a decay and its average, in the order of the parameters that are not frozen."""
        for decay, model in self.models.items():
            yield decay, model.shadow_params

    # -- saved with a checkpoint, beside the tensors --

    @property
    def num_steps(self) -> int:
        """The updates so far, the same for every average."""
        return next(iter(self.models.values())).optimization_step

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        for model in self.models.values():
            model.optimization_step = value
