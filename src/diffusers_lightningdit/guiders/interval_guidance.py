# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Classifier-free guidance within an interval of times and on some channels, as a guider of diffusers.

The pipelines take a guider as an argument; their own guidance is `guide` in `pipelines/lightningdit_sampling.py`.

Self-contained (torch and diffusers only), as the other files that diffusers takes.

Time: t = 1 - timestep / `num_train_timesteps` for the timesteps of a flow-matching scheduler; 0 = noise, 1 = data.
"""

from numbers import Integral, Real
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput

# A point of the time grid that should coincide with an end of an interval may miss it by float32 rounding.
TIME_TOLERANCE = 1e-6


def check_scale(name: str, value: Any) -> None:
    """Raise ValueError if a scale is no number from 0 to 1e6."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1e6:
        raise ValueError(f"`{name}` is {value!r}; required: a number from 0 to 1e6.")


def check_interval(name: str, value: Any) -> None:
    """Raise ValueError if a value is neither None nor an interval of t in [0, 1]."""
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(end, Real) for end in value)
    if value is not None and not (is_pair and 0 <= value[0] <= value[1] <= 1):
        raise ValueError(f"`{name}` is {value!r}; required: (start, end) with 0 <= start <= end <= 1, or None.")


class IntervalGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance (arXiv 2207.12598) at some times (arXiv 2404.07724) and on the first channels.

    unconditional + scale (conditional - unconditional) at start <= t <= end on the first `guidance_channels` channels;
    all else is that of the conditional prediction. Outside the interval the unconditional one is not computed. This is
    the guidance of `LightningDiTPipeline`, for pipelines and modular pipelines that take a guider. The ends of the
    interval are times and not shares of the steps, as `start` and `stop` of diffusers' guiders are: they mean the same
    on every grid. (Where a scheduler rounds its timesteps, as UniPC does, they may be off by one timestep.)

    Args:
        guidance_scale: The scale, at least 0. 1: no guidance.
        guidance_interval: (start, end) in t; None: all times.
        guidance_channels: The number of leading channels that are guided; None: all.
        num_train_timesteps: The timestep of noise, as in the scheduler's config.
        enabled: Whether there is guidance at all.

    Raises:
        ValueError: For a value outside these.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from diffusers_lightningdit import IntervalGuidance
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> guider = IntervalGuidance(guidance_scale=2.0, guidance_interval=(0.1, 1.0), guidance_channels=3)
        >>> image = pipe("seven", guider=guider, num_inference_steps=10).images[0]
    """

    guidance_rescale = 0.0  # this and the next are options of the base class that this one does not have
    use_original_formulation = False

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 4.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        num_train_timesteps: int = 1000,
        enabled: bool = True,
    ):
        if not isinstance(enabled, bool):
            raise ValueError(f"`enabled` is {enabled!r}; required: True or False.")
        BaseGuidance.__init__(self, enabled=enabled)  # that of the base class would add its options to the config
        check_scale("guidance_scale", guidance_scale)
        check_interval("guidance_interval", guidance_interval)
        is_number = isinstance(guidance_channels, int) and not isinstance(guidance_channels, bool)
        if guidance_channels is not None and not (is_number and guidance_channels >= 1):
            raise ValueError(f"`guidance_channels` is {guidance_channels!r}; required: an integer from 1 on, or None.")
        is_number = isinstance(num_train_timesteps, Integral) and not isinstance(num_train_timesteps, bool)
        if not (is_number and 1 <= num_train_timesteps <= 1_000_000):
            raise ValueError(
                f"`num_train_timesteps` is {num_train_timesteps!r}; required: an integer of at least 1 and at most "
                "1000000."
            )
        self.guidance_scale = guidance_scale
        self.guidance_interval = guidance_interval
        self.guidance_channels = guidance_channels
        self.num_train_timesteps = num_train_timesteps

    def is_within(self, interval: tuple[float, float] | None) -> bool:
        """Whether the time of `set_state` is in an interval; None: all times."""
        if interval is None or self._timestep is None:
            return True
        t = 1 - float(self._timestep) / self.num_train_timesteps
        return interval[0] - TIME_TOLERANCE <= t <= interval[1] + TIME_TOLERANCE

    @property
    def is_guided(self) -> bool:
        """Whether there is classifier-free guidance at the time of `set_state`."""
        return self._enabled and self.guidance_scale != 1 and self.is_within(self.guidance_interval)

    def _is_cfg_enabled(self) -> bool:
        return self.is_guided

    def forward(self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None) -> GuiderOutput:
        """Combine predictions [B, C, ...]."""
        output = super().forward(pred_cond, pred_uncond)
        num_channels = self.guidance_channels
        if num_channels is not None:
            output.pred = torch.cat([output.pred[:, :num_channels], pred_cond[:, num_channels:]], dim=1)
        return output
