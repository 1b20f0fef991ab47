# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Internal guidance (arXiv 2512.24176) as a guider of diffusers."""

import inspect

import torch
from diffusers.configuration_utils import register_to_config

from .interval_guidance import IntervalGuidance, check_interval, check_scale


class InternalGuidance(IntervalGuidance):
    """Guides a prediction away from that of an earlier block of the same network, in the same evaluation.

    prediction + (scale - 1) (prediction - internal prediction) at start <= t <= end, for the conditional and for the
    unconditional prediction; then classifier-free guidance as `IntervalGuidance`, which is off by default.

    A model of any kind can be guided so if its `forward` has an argument that makes it return a second prediction of
    the same shape behind the first, as `return_internal` of `LightningDiTTransformer2DModel`. Since both are guided
    alike, it does not matter whether they are velocities, noise or data.

    Args:
        internal_guidance_scale: The scale, at least 0. 1: no internal guidance.
        internal_guidance_interval: (start, end) in t; None: all times.
        internal_argument: The name of the argument of the model's `forward`, which is set to True.
        guidance_scale, guidance_interval, guidance_channels, num_train_timesteps, enabled: As in `IntervalGuidance`.

    Raises:
        ValueError: For a value outside these; in sampling, for a model without the argument, or without the layer.

    Example:
        >>> from diffusers_lightningdit import InternalGuidance
        >>> guider = InternalGuidance(internal_guidance_scale=1.4, guidance_scale=1.45, guidance_interval=(0.19, 1.0))
    """

    @register_to_config
    def __init__(
        self,
        internal_guidance_scale: float = 1.4,
        internal_guidance_interval: tuple[float, float] | None = None,
        internal_argument: str = "return_internal",
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        num_train_timesteps: int = 1000,
        enabled: bool = True,
    ):
        super().__init__(guidance_scale, guidance_interval, guidance_channels, num_train_timesteps, enabled)
        check_scale("internal_guidance_scale", internal_guidance_scale)
        check_interval("internal_guidance_interval", internal_guidance_interval)
        if not isinstance(internal_argument, str):
            raise ValueError(f"`internal_argument` is {internal_argument!r}; required: the name of an argument.")
        self.internal_guidance_scale = internal_guidance_scale
        self.internal_guidance_interval = internal_guidance_interval
        self.internal_argument = internal_argument
        self._hooks: list = []

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Let the next call of the model ask for both predictions, and return the guided one in their place.

        Hooks do it, so that the pipeline calls the model as it does without this guider.
        """
        super().prepare_models(denoiser)
        model = getattr(denoiser, "_orig_mod", denoiser)  # a compiled model is a wrapper
        is_guided = self.is_within(self.internal_guidance_interval)
        # A cache that predicts the internal prediction has to see all of them.
        is_asked = is_guided or getattr(model, "is_cache_enabled", False)
        if not self._enabled or self.internal_guidance_scale == 1 or not is_asked:
            return
        if self.internal_argument not in inspect.signature(model.forward).parameters:
            raise ValueError(
                f"`internal_argument` is {self.internal_argument!r}, which is no argument of {type(model).__name__}; "
                "required: the one with which the model returns a second prediction."
            )
        if denoiser._compiled_call_impl is not None:
            raise ValueError(
                f"{type(model).__name__} is compiled as a whole, which ignores hooks; required: one that is not, or "
                "with `compile_repeated_blocks()`, or the result of `torch.compile(model)`."
            )

        def ask(module, args, kwargs):
            return args, {**kwargs, self.internal_argument: True}

        def guide(module, args, kwargs, output):
            prediction, internal = output[0], output[1]
            guided = prediction
            if is_guided:
                guided = prediction + (self.internal_guidance_scale - 1) * (prediction - internal)
            if isinstance(output, tuple):
                return (guided,)
            name = next(iter(output))
            return type(output)(**{name: guided})

        self._hooks = [
            denoiser.register_forward_pre_hook(ask, with_kwargs=True),
            denoiser.register_forward_hook(guide, with_kwargs=True),
        ]

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Take back the changes of `prepare_models`."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
