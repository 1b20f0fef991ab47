# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The code that the pipelines of LightningDiT (arXiv 2501.01423) share.

First comes the sampling loop, `DenoisingMixin._denoise`; then velocity and guidance, the time grid, latents and images;
last what calls share, the checks of arguments, the names of classes, and files and the Hub.

A pipeline imports this file relatively, `from .lightningdit_sampling import ...`. diffusers' loader of custom pipelines
follows that import: it copies or downloads this file together with the pipeline's, and `save_pretrained` writes both.
For this to work, this file imports nothing but torch, diffusers, numpy and PIL, and defines no `DiffusionPipeline`, of
which diffusers accepts only one beside its own.

Time: the transformer uses t, with t = 0 for noise and t = 1 for data, and predicts the velocity, data - noise. The
schedulers of diffusers use sigma = 1 - t, so that d latents / d sigma = -velocity. Only this file converts one into the
other: `set_timesteps` computes t from sigma, and `_denoise` negates the velocity.

Letters in the shape comments: B batch, C latent channels. `height` and `width` of latents are those of the images
divided by the downsampling factor of the autoencoder.
"""

import contextlib
import copy
import difflib
import inspect
import math
import os
import sys
import threading
import unicodedata
import weakref
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from diffusers import (
    AutoencoderRAE,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    ImagePipelineOutput,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    UniPCMultistepScheduler,
)
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.lora_pipeline import SanaLoraLoaderMixin  # in diffusers.loaders with transformers alone
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

logger = logging.get_logger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


class DenoisingMixin:
    """The loop of the pipelines that draw images, the velocity that it follows, and the state of a call."""

    _callback_tensor_inputs = ["latents"]
    _guidance_scale = None
    _num_timesteps = None
    _interrupt = False
    _current_timestep = None

    def _denoise(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        velocity: Callable[[torch.Tensor, float, int], torch.Tensor],
        generator: torch.Generator | list[torch.Generator] | None,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...],
        after_step: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Integrate the flow d latents / d sigma = -velocity along the grid of the scheduler.

        Args:
            latents: The state at times[0], float32 [B, C, height, width]. It stays in float32 whatever the network's
                type is.
            times: t of each network evaluation, the last ones of the grid of `set_timesteps`.
            velocity: A function of (latents, t, step).
            generator: Passed to schedulers that draw noise.
            after_step: A function of (latents, t) that changes the latents after the step that ends at t.

        Returns:
            The state at t = 1.
        """
        timesteps = self.scheduler.timesteps[-len(times) :]
        drawing = noise_arguments(self.scheduler, generator)
        times = [*times.tolist(), 1.0]
        self._num_timesteps = len(timesteps)

        with one_run_of_a_cache(self.transformer), self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = self._pipeline._current_timestep = timestep
                derivative = -velocity(latents, times[i], i)
                latents = self.scheduler.step(derivative, timestep, latents, **drawing, return_dict=False)[0]
                if after_step is not None:
                    latents = after_step(latents, times[i + 1])
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    latents = replaced_latents(callback_on_step_end(self, i, timestep, tensors), latents)
                progress_bar.update()
        self._current_timestep = self._pipeline._current_timestep = None
        return latents

    def _guided_velocity(
        self,
        class_ids: torch.Tensor,
        attention_kwargs: dict | None,
        *,
        guidance_interval: tuple[float, float] | None,
        guidance_channels: int | None,
        internal_guidance_scale: float,
        internal_guidance_interval: tuple[float, float] | None,
    ) -> Callable[[torch.Tensor, float, int], torch.Tensor]:
        """Return the velocity with internal and classifier-free guidance as a function of (latents, t, step).

        Internal guidance is applied to each half. The unconditional half is computed only where guidance is applied, or
        at every t for a cache that needs it. The function reads `self.guidance_scale` at each step, because callbacks
        may change it.
        """
        null_ids = torch.full_like(class_ids, self.transformer.config.num_classes)
        both_ids = torch.cat([null_ids, class_ids])
        has_classes = not torch.equal(class_ids, null_ids)  # without, guidance would change nothing
        needs_both = self.guidance_scale > 1 and isinstance(self.transformer._cache_config, SINGLE_BATCH_CACHES)
        jumps = jumps_to_data(self.scheduler)

        def predict(latents: torch.Tensor, t: float, ids: torch.Tensor) -> torch.Tensor:
            scale = internal_scale(self.transformer, t, internal_guidance_scale, internal_guidance_interval)
            return predict_velocity(
                self.transformer, latents, t, ids, attention_kwargs, jumps=jumps, internal_guidance_scale=scale
            )

        def velocity(latents: torch.Tensor, t: float, step: int) -> torch.Tensor:
            is_guided = has_classes and self.guidance_scale > 1 and in_interval(t, guidance_interval)
            if not (is_guided or needs_both):
                return predict(latents, t, class_ids)
            both = predict(latents, t, both_ids)
            unconditional, conditional = both.chunk(2)
            if not is_guided:
                return conditional
            return guide(conditional, unconditional, self.guidance_scale, guidance_channels)

        return velocity

    # -- state, which callbacks, guiders and caches read -----------------------------------------------------------

    def _own_call(self, guidance_scale: float) -> "DenoisingMixin":
        """Return a copy of the pipeline for one call: it has its own state and scheduler, and the same models.

        Calls of other threads, and a call from within a callback, then leave this one alone. Callbacks get the copy.
        `_pipeline` shows the timestep, which some caches read there, and after a call its other state.
        """
        self._interrupt = False
        call = copy.copy(self)
        call._pipeline = self
        call._guidance_scale = guidance_scale
        vars(call)["scheduler"] = copy.deepcopy(self.scheduler)  # not registered anew
        return call

    @property
    def guidance_scale(self) -> float | None:
        """The scale of the next step, or after a call of its last one; a callback sets `pipe._guidance_scale`."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int | None:
        """The number of network evaluations along the time grid."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """The timestep of the scheduler, from 1000 (noise) to 0; None outside the loop."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps are skipped; a callback sets `pipe._interrupt = True`, or another thread does."""
        return self._interrupt or getattr(self, "_pipeline", self)._interrupt


def replaced_latents(returned: dict | None, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents that a callback has returned, or those of the loop if it has returned none."""
    required = 'a dictionary, whose "latents" replace those of the loop, or nothing'
    if returned is not None and not isinstance(returned, dict):
        raise ValueError(f"`callback_on_step_end` returned {shown(returned)}; required: {required}.")
    replacement = (returned or {}).get("latents", latents)
    if not isinstance(replacement, torch.Tensor) or replacement.shape != latents.shape:
        found = tuple(replacement.shape) if isinstance(replacement, torch.Tensor) else shown(replacement)
        raise ValueError(
            f'`callback_on_step_end` returned the "latents" {found}; required: a tensor of the shape '
            f"{tuple(latents.shape)}."
        )
    return replacement.to(latents)


# ---------------------------------------------------------------------------------------------------------------------
# Velocity and guidance
# ---------------------------------------------------------------------------------------------------------------------


def predict_velocity(
    transformer,
    latents: torch.Tensor,
    t: float,
    class_ids: torch.Tensor,
    attention_kwargs: dict | None = None,
    cache_context: str | None = None,
    jumps: bool = False,
    internal_guidance_scale: float | None = None,
) -> torch.Tensor:
    """Evaluate the network at time t, for all ids or for several ids of each latent.

    Args:
        latents: [B, C, height, width].
        class_ids: [k B]; the latents are repeated k times.
        cache_context: The name under which caches keep the states of this call, whose batch size must not change. By
            default there is one context for unguided and one for guided calls.
        jumps: Whether the average velocity from t to 1 is wanted of a network that has a second time for it.
        internal_guidance_scale: The scale w of internal guidance, v + (w - 1) (v - z) with the velocity z of an earlier
            block (arXiv 2512.24176); None: z is not computed.

    Returns:
        Velocity, float32 [k B, C, height, width].
    """
    repeats = len(class_ids) // len(latents)
    cache_context = cache_context or ("cond" if repeats == 1 else "cond_uncond")
    # For `transformer.dtype`, diffusers looks through all modules. The first weights keep the type of the computation
    # under layerwise casting, too (`_skip_layerwise_casting_patterns`).
    dtype = next(transformer.parameters()).dtype
    more = {}
    if jumps and transformer.config.get("second_time_embedding"):
        more["second_timestep"] = torch.ones(len(class_ids), device=latents.device)
    if internal_guidance_scale is not None:
        more["return_internal"] = True
    with exclusive(transformer), transformer.cache_context(cache_context):
        velocity, *internal = transformer(
            hidden_states=latents.repeat(repeats, 1, 1, 1).to(dtype),
            timestep=torch.full((len(class_ids),), t, dtype=torch.float32, device=latents.device),
            class_labels=class_ids,
            attention_kwargs=attention_kwargs,
            return_dict=False,
            **more,
        )
    velocity = velocity.to(torch.float32, copy=True)  # the next run of a CUDA graph writes over its output
    if internal_guidance_scale is None:
        return velocity
    return velocity + (internal_guidance_scale - 1) * (velocity - internal[0].float())


def guide(
    conditional: torch.Tensor, unconditional: torch.Tensor, scale: float, num_channels: int | None
) -> torch.Tensor:
    """Classifier-free guidance (arXiv 2207.12598): unconditional + scale (conditional - unconditional).

    Args:
        conditional, unconditional: Velocities [B, C, height, width].
        scale: The strength of guidance; 1 returns `conditional`.
        num_channels: The number of leading channels that are guided, None for all. The other channels are those of
            `conditional`. The released LightningDiT figures guide 3 of 32 channels.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if num_channels is None:
        return guided
    return torch.cat([guided[:, :num_channels], conditional[:, num_channels:]], dim=1)


# A point of the time grid that should coincide with an end of the guidance interval may miss it by float32 rounding.
TIME_TOLERANCE = 1e-6


def in_interval(t: float, interval: tuple[float, float] | None) -> bool:
    """Return whether guidance is applied at time t (arXiv 2404.07724); None stands for all times."""
    return interval is None or interval[0] - TIME_TOLERANCE <= t <= interval[1] + TIME_TOLERANCE


def internal_scale(transformer, t: float, scale: float, interval: tuple[float, float] | None) -> float | None:
    """Return the scale of internal guidance at t, and None where the velocity of the earlier block is not computed.

    A cache that predicts it needs it at every t.
    """
    if scale != 1 and in_interval(t, interval):
        return scale
    return 1.0 if scale != 1 and transformer.is_cache_enabled else None


def velocity_of_guider(
    guider: BaseGuidance, ids: tuple[torch.Tensor, torch.Tensor], transformer, **arguments
) -> torch.Tensor:
    """Evaluate the network as a guider wants it, and return the velocity [B, C, height, width] that it makes of it.

    Args:
        guider: Its `set_state` has been called. It says which calls of the network it needs, and may change the network
            for some of them.
        ids: The class and the null class of each image, [B] each.
        arguments: Those of `predict_velocity` beside `class_ids` and `cache_context`.
    """
    calls = guider.prepare_inputs({"class_ids": ids})
    for call in calls:
        arguments |= {"class_ids": call.class_ids, "cache_context": getattr(call, guider._identifier_key)}
        with exclusive(transformer):
            guider.prepare_models(transformer)
            try:
                call.noise_pred = predict_velocity(transformer, **arguments)
            finally:
                guider.cleanup_models(transformer)
    return guider(calls)[0]


def solve_ode(derivative: Callable, state, times: torch.Tensor, method: str, atol: float, rtol: float):
    """Solve d state / dt = derivative(t, state) with torchdiffeq and return the states at `times`.

    Raises:
        ValueError: If the steps of "dopri5" became smaller than float32 can tell apart.
    """
    from torchdiffeq import odeint

    try:
        return odeint(derivative, state, times, method=method, atol=atol, rtol=rtol)
    except AssertionError as error:
        raise ValueError(
            f"`ode_atol` is {atol} and `ode_rtol` is {rtol}, for which no step is small enough ({shown(error)}); "
            "required: greater ones, and a transformer of finite weights."
        ) from error


# These caches count calls or keep states over all calls of the network, whatever their `cache_context`. Every call of
# a run must therefore have the same batch size.
SINGLE_BATCH_CACHES = (FasterCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig)
# These have no velocity of an earlier block where they skip computing.
CACHES_OF_ONE_OUTPUT = (FasterCacheConfig, FirstBlockCacheConfig, MagCacheConfig)


def check_internal_guidance(transformer, scale: float) -> None:
    """Raise ValueError for internal guidance of a transformer that has no velocity of an earlier block."""
    if scale == 1:
        return
    has_layer = transformer.config.get("internal_guidance_layer") is not None
    require(has_layer, "internal_guidance_scale", scale, "1 for a transformer without `internal_guidance_layer`")
    cache = transformer._cache_config
    require(
        not isinstance(cache, CACHES_OF_ONE_OUTPUT),
        "internal_guidance_scale",
        scale,
        f"1 with {type(cache).__name__}, which has no velocity of an earlier block where it skips computing",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Schedulers and their time grid
# ---------------------------------------------------------------------------------------------------------------------


def check_start_from_image(scheduler) -> None:
    """Raise ValueError if a scheduler, whose grid is set, cannot begin with a noised image."""
    if getattr(scheduler, "init_noise_sigma", 1.0) != 1.0:
        raise ValueError(
            f"`scheduler` is {type(scheduler).__name__}, whose first step's noise is part of pure noise; "
            "required: one that can start from a noised image (for the SDE: solver_type='euler')."
        )


def set_timesteps(scheduler, num_inference_steps: int, device: torch.device) -> torch.Tensor:
    """Set the grid of a scheduler and return t = 1 - sigma of each network evaluation, float32, on the CPU.

    A scheduler that accepts sigmas gets the grid of the original implementation, N + 1 equally spaced points for N
    steps, before the shift; its own default would shift the smallest sigma twice. t is computed from `sigmas`, because
    several schedulers round their `timesteps` to integers.

    Raises:
        ValueError: If its shift is so large or small that points of the grid coincide in float32.
    """
    has_own_grid = isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler))
    if has_own_grid:
        sigmas = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)[:-1]
        scheduler.set_timesteps(sigmas=sigmas.numpy(), device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    times = 1.0 - scheduler.sigmas[: len(scheduler.timesteps)].to("cpu", torch.float32)
    steps = times.diff()  # of schedulers that evaluate a point twice, some are 0
    if not times.isfinite().all() or (len(times) > 1 and not (steps.min() if has_own_grid else steps.max()) > 0):
        raise ValueError(
            f"`scheduler` has {num_inference_steps} steps whose times coincide, with the shift "
            f"{scheduler.config.get('shift', scheduler.config.get('flow_shift'))}; required: a shift nearer to 1."
        )
    return times


def jumps_to_data(scheduler) -> bool:
    """Whether each step goes on from the estimated data with new noise, as networks for a few steps are sampled.

    Such a network predicts the average velocity from t to 1 (FACM, arXiv 2507.03738).
    """
    return bool(scheduler.config.get("stochastic_sampling")) or scheduler.config.get("stochastic_ratio") == 1


def noise_arguments(scheduler, generator: torch.Generator | list[torch.Generator] | None) -> dict:
    """Return the arguments of `step` by which a scheduler draws noise, none for one that draws none."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}


def warn_of_too_many_steps(pipeline, num_inference_steps: int) -> None:
    """Say that a network for a few steps was distilled for fewer than these, which its recipe has."""
    distilled_for = (pipeline.config.get("sampling_recipe") or {}).get("num_inference_steps")
    if jumps_to_data(pipeline.scheduler) and distilled_for is not None and num_inference_steps > distilled_for:
        logger.warning(
            f"`num_inference_steps` is {num_inference_steps}, and the transformer was distilled for "
            f"{distilled_for}: more steps cost more, and may make images worse."
        )


SUPPORTED_SCHEDULERS = (
    "Use FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, or DPMSolver / UniPC with "
    "use_flow_sigmas=True, prediction_type='flow_prediction', flow_shift=<shift>."
)
REFUSED_SCHEDULERS = {
    "DEISMultistepScheduler": "it repeats the last sigma instead of ending at 0, which leaves noise in the image",
    "SASolverScheduler": "it repeats the last sigma instead of ending at 0, which leaves noise in the image",
    "FlowMatchLCMScheduler": "it adds noise at every step, for distilled models only",
}
# By name, since this file must not import the package that defines them.
OUR_SCHEDULERS = ("FlowMatchAdamsBashforthScheduler", "FlowMatchSDEScheduler", "FlowMatchUCGMScheduler")


def check_scheduler(scheduler) -> None:
    """Raise ValueError, with the reason, if a scheduler cannot integrate a flow with sigma = 1 - t."""
    name = type(scheduler).__name__
    if name in REFUSED_SCHEDULERS:
        raise ValueError(f"`scheduler` is {name}: {REFUSED_SCHEDULERS[name]}. {SUPPORTED_SCHEDULERS}")
    if name in OUR_SCHEDULERS:
        required = {}
    elif isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)):
        required = {"use_dynamic_shifting": False, "invert_sigmas": False}
    elif isinstance(scheduler, (DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler)):
        required = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "zero"}
        required |= {"use_dynamic_shifting": False}
    else:
        raise ValueError(
            f"`scheduler` is {name}: it does not integrate a flow with sigma = 1 - t. {SUPPORTED_SCHEDULERS}"
        )
    for flag, value in required.items():
        if scheduler.config.get(flag, value) != value:
            raise ValueError(
                f"`scheduler` is {name} with {flag}={scheduler.config[flag]!r}; required: {flag}={value!r}. "
                f"{SUPPORTED_SCHEDULERS}"
            )


def described_scheduler(scheduler) -> str:
    """Return the call that makes a scheduler, with the arguments that are not its defaults."""
    defaults = {name: given.default for name, given in inspect.signature(type(scheduler).__init__).parameters.items()}
    given = {name: scheduler.config[name] for name in defaults if name in scheduler.config}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}  # as a file has them
    arguments = [f"{name}={value!r}" for name, value in given.items() if value != defaults[name]]
    return f"{type(scheduler).__name__}({', '.join(arguments)})"


# ---------------------------------------------------------------------------------------------------------------------
# Latents of the autoencoder
# ---------------------------------------------------------------------------------------------------------------------


def vae_geometry(vae) -> tuple[int, int]:
    """Return (latent channels, downsampling factor) of an image autoencoder of diffusers.

    Raises:
        ValueError: If neither its class nor its config states them.
    """
    if isinstance(vae, AutoencoderRAE):
        return vae.config.encoder_hidden_size, vae.config.patch_size
    latent_channels = vae.config.get("latent_channels")
    if "block_out_channels" in vae.config:
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
    else:
        factor = getattr(vae, "spatial_compression_ratio", None)
    if latent_channels is None or factor is None:
        raise ValueError(
            f"`vae` is {type(vae).__name__}; required: an image autoencoder with `latent_channels` and "
            "`block_out_channels` in its config."
        )
    return latent_channels, factor


def image_size(transformer, vae, height: int | None, width: int | None) -> tuple[int, int]:
    """Return the height and width of images in pixels, with the size of the training in place of None."""
    size, factor = transformer.config.sample_size, vae_geometry(vae)[1]
    trained_height, trained_width = [size * factor] * 2 if isinstance(size, int) else [side * factor for side in size]
    return trained_height if height is None else height, trained_width if width is None else width


def latents_shape(transformer, vae, batch_size: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the shape of the latents of images of a height and width in pixels."""
    factor = vae_geometry(vae)[1]
    return batch_size, transformer.config.in_channels, height // factor, width // factor


def initial_noise(
    latents: torch.Tensor | None, shape: tuple[int, ...], generator, device: torch.device
) -> torch.Tensor:
    """Return the noise that the user gave as `latents`, or draw it from N(0, I), in float32."""
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    return latents.to(device, torch.float32)


def latents_statistics(vae, latents: torch.Tensor) -> tuple:
    """Return (mean, std, scaling_factor) of normalised = (raw - mean) / std * scaling_factor, from the VAE's config."""
    if isinstance(vae, AutoencoderRAE):  # normalises inside encode and decode
        return 0.0, 1.0, 1.0
    scaling_factor = vae.config.get("scaling_factor") or 1.0
    if vae.config.get("latents_mean") is None:
        return vae.config.get("shift_factor") or 0.0, 1.0, scaling_factor
    mean = latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    std = latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
    return mean, std, scaling_factor


def normalize_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Convert raw latents of `vae.encode` into the normalised latents of the transformer."""
    if hasattr(vae, "normalize_latents"):
        return vae.normalize_latents(latents)
    mean, std, scaling_factor = latents_statistics(vae, latents)
    return (latents - mean) / std * scaling_factor


def denormalize_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """Convert normalised latents of the transformer into raw latents for `vae.decode`."""
    if hasattr(vae, "denormalize_latents"):
        return vae.denormalize_latents(latents)
    mean, std, scaling_factor = latents_statistics(vae, latents)
    return latents * std / scaling_factor + mean


def encode(vae, images: torch.Tensor) -> torch.Tensor:
    """Encode images [B, 3, height, width] in [-1, 1] as the normalised mode of the posterior, float32."""
    with upcast(vae):
        encoded = vae.encode(images.to(vae.dtype))
    latents = encoded.latent if isinstance(vae, AutoencoderRAE) else encoded.latent_dist.mode()
    return normalize_latents(vae, latents.float())


def decode(vae, latents: torch.Tensor) -> torch.Tensor:
    """Decode normalised latents to images [B, 3, height, width], within about [-1, 1], float32."""
    latents = denormalize_latents(vae, latents)
    with upcast(vae):
        return vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()


@contextlib.contextmanager
def upcast(vae) -> Iterator[None]:
    """Hold a VAE in float32 if it is in float16 and its config has `force_upcast`: it would overflow (as SDXL's)."""
    with exclusive(vae):
        is_cast = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
        if is_cast:
            vae.to(torch.float32)
        try:
            yield
        finally:
            if is_cast:
                vae.to(torch.float16)


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------

# The modes of Pillow with at most 8 bits a channel; it would clip the others to white.
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def list_images(image, name: str = "image", is_mask: bool = False) -> list:
    """Return the images of an argument as a list.

    Args:
        image: A PIL image, an array [height, width, 3] or a tensor [3, height, width] within [0, 1], or a batch or list
            of them. A mask has no channels.
        name: The name of the argument, for the error.
        is_mask: Whether the images are masks.

    Raises:
        ValueError: For anything else.
    """
    ndim = 2 if is_mask else 3
    is_several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == ndim + 1
    images = list(image) if is_several else [image]

    def problem(one) -> str | None:
        if isinstance(one, PIL.Image.Image):
            if one.mode not in EIGHT_BIT_MODES:
                return f"an image of mode {one.mode!r}"
            if max(one.size) > MAX_SIDE:
                return f"an image of {one.width}x{one.height} pixels"
            try:
                one.load()
            except (OSError, SyntaxError) as error:
                return f"an image that cannot be read ({shown(error)})"
            return None
        if not isinstance(one, (np.ndarray, torch.Tensor)):
            return f"a {type(one).__name__}"
        channel_axis = 2 if isinstance(one, np.ndarray) else 0
        has_channels = one.ndim == ndim and (is_mask or one.shape[channel_axis] == 3)
        if not has_channels or 0 in one.shape or max(one.shape) > MAX_SIDE:
            return f"the shape {tuple(one.shape)}"
        if one.is_complex() if isinstance(one, torch.Tensor) else one.dtype.kind not in "fiub":
            return f"the type {one.dtype}"
        if not (one.min() >= 0 and one.max() <= 1):
            return f"values from {float(one.min()):g} to {float(one.max()):g}"
        return None

    kinds = (
        "arrays or tensors [height, width]" if is_mask else "arrays [height, width, 3] or tensors [3, height, width]"
    )
    for found in [problem(one) for one in images] or ["nothing"]:
        if found is not None:
            raise ValueError(
                f"`{name}` holds {found}; required: PIL images of 8 bits a channel, or {kinds} with values within "
                f"[0, 1], or several; no side above {MAX_SIDE}."
            )
    # a photo that was taken upright says so in its EXIF part
    return [PIL.ImageOps.exif_transpose(one) if isinstance(one, PIL.Image.Image) else one for one in images]


def preprocess(images: list, height: int, width: int, vae, is_mask: bool = False) -> torch.Tensor:
    """Resize images of `list_images` to a height and width that are multiples of the VAE's factor, and stack them.

    Returns:
        Images [B, C, height, width] in [-1, 1], C = 3, or 1 (luma of ITU-R BT.601) for a VAE of grey images; masks
        [B, 1, height, width] of zeros and ones.
    """
    if is_mask:
        settings = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    else:
        settings = {"do_convert_rgb": True}
    processor = VaeImageProcessor(vae_scale_factor=vae_geometry(vae)[1], **settings)

    def as_float(image):  # diffusers cannot resize half precision, integers or booleans
        if isinstance(image, np.ndarray):
            return image.astype("float32")
        return image.float() if isinstance(image, torch.Tensor) else image

    images = torch.cat([processor.preprocess(as_float(image), height, width) for image in images])
    if not is_mask and vae.config.get("in_channels") == 1:
        images = torch.einsum("bchw,c->bhw", images, images.new_tensor([0.299, 0.587, 0.114])).unsqueeze(1)
    return images


def postprocess(processor: VaeImageProcessor, images: torch.Tensor, output_type: str):
    """Convert images [B, 3 or 1, height, width] in [-1, 1] to the output type "pil", "np" or "pt"."""
    if output_type == "pil":
        # 8 bits by truncation, as in the original; then k / 255, which the conversion of diffusers keeps exactly
        pixels = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
        return processor.numpy_to_pil(pixels.permute(0, 2, 3, 1).cpu().numpy() / 255)
    return processor.postprocess(images, output_type=output_type)


# ---------------------------------------------------------------------------------------------------------------------
# Models that several calls share
# ---------------------------------------------------------------------------------------------------------------------

# One lock for each model: what a call changes on a model for a while must not meet another thread's call.
LOCKS: weakref.WeakKeyDictionary[torch.nn.Module, threading.RLock] = weakref.WeakKeyDictionary()


def exclusive(model: torch.nn.Module) -> threading.RLock:
    """Return the lock to be held while a model is evaluated."""
    return LOCKS.setdefault(model, threading.RLock())


# The transformers with a cache that a run uses at the moment.
CACHES_IN_USE: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


@contextlib.contextmanager
def one_run_of_a_cache(transformer: torch.nn.Module) -> Iterator[None]:
    """Keep a cache of the transformer, whose states belong to one run, from a second run at the same time."""
    if not transformer.is_cache_enabled:
        yield
        return
    with exclusive(transformer):
        if transformer in CACHES_IN_USE:
            raise ValueError(
                "`transformer` has a cache, whose states belong to one call; required: no other call before that one "
                "has ended, or `transformer.disable_cache()`."
            )
        CACHES_IN_USE.add(transformer)
    try:
        yield
    finally:
        CACHES_IN_USE.discard(transformer)


# ---------------------------------------------------------------------------------------------------------------------
# Recipe
# ---------------------------------------------------------------------------------------------------------------------

# The values that replace those of a missing `sampling_recipe`: the defaults of diffusers for class-conditional
# transformers.
DEFAULT_RECIPE = {
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
    "guidance_interval": None,
    "guidance_channels": None,
    "internal_guidance_scale": 1.0,
    "internal_guidance_interval": None,
    "ode_method": None,
    "ode_atol": 1e-6,
    "ode_rtol": 1e-3,
}
# The solvers of torchdiffeq that the original offers beside Euler: "dopri5" chooses its own steps, "heun2" visits every
# point of the time grid.
ODE_METHODS = ("dopri5", "heun2")
# The default of arguments that the recipe replaces. It is not None, because None is a value of some of them.
RECIPE = "recipe"


def recipe_of(pipeline) -> dict:
    """The sampling recipe of a pipeline's checkpoint, with defaults for what it leaves out."""
    return {**DEFAULT_RECIPE, **(pipeline.config.get("sampling_recipe") or {})}


# ---------------------------------------------------------------------------------------------------------------------
# Arguments and components
# ---------------------------------------------------------------------------------------------------------------------

MAX_COUNT, MAX_SIDE, MAX_SCALE = 100_000, 16_384, 1e6
OUTPUT_TYPES = ("pil", "np", "pt", "latent")  # of what draws images


def is_integer(value) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value, low: float = -MAX_SCALE, high: float = MAX_SCALE) -> bool:
    """Whether a value is a finite number from `low` to `high`."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(low <= value <= high)


def is_interval(value) -> bool:
    """Whether a value is a pair of times, 0 <= start <= end <= 1."""
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(is_real, value))
    return is_pair and 0 <= value[0] <= value[1] <= 1


def is_latents(value) -> bool:
    """Whether a value is a floating-point tensor of finite values."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and bool(value.isfinite().all())


def is_generator(value, number: int) -> bool:
    """Whether a value is a torch.Generator, or a list of as many as there are images."""
    several = value if isinstance(value, list) else [value] * number
    return len(several) == number and all(isinstance(one, torch.Generator) for one in several)


def is_callback(value) -> bool:
    """Return whether a callback can be called with (pipe, step, timestep, tensors)."""
    try:
        inspect.signature(value).bind(None, 0, None, {})
    except (TypeError, ValueError):
        return False
    return True


def is_attention_kwargs(value) -> bool:
    """Whether a value is a dictionary that has nothing but the LoRA's `scale`."""
    return isinstance(value, dict) and set(value) <= {"scale"} and all(map(is_real, value.values()))


def any_of(names: str) -> tuple:
    """The check of an argument that has to be one of the names in `s[names]`, and its words."""
    return lambda v, s: isinstance(v, str) and v in s[names], f"one of {{{names}}}"


def count_from(low: int) -> tuple:
    """The check of an argument that has to be a whole number of at least `low`, and its words."""
    return lambda v, s: is_integer(v) and low <= v <= MAX_COUNT, f"an integer of at least {low} and at most {MAX_COUNT}"


# Shared by arguments of the same kind
SCALE = (lambda v, s: is_real(v, low=0), f"a finite number of at least 0 and at most {MAX_SCALE:g}")
INTERVAL = (
    lambda v, s: v is None or is_interval(v),
    "(start, end) with 0 <= start <= end <= 1, or None for all times",
)
FLAG = (lambda v, s: isinstance(v, bool), "True or False")
TOLERANCE = (lambda v, s: is_real(v, high=1) and v > 0, "a positive number, at most 1")
SIDE = (
    lambda v, s: is_integer(v) and 0 < v <= MAX_SIDE and v % s["multiple"] == 0,
    f"a positive multiple of {{multiple}} pixels, at most {MAX_SIDE}",
)
# For each argument: the condition on its value v, and the requirement in words. Both may use the sizes s, the keyword
# arguments of `check_arguments`, which follow from the components and from other arguments.
REQUIREMENTS: dict[str, tuple[Callable[..., bool], str]] = {
    "num_inference_steps": count_from(1),
    "num_images_per_prompt": count_from(1),
    "num_images": count_from(2),
    "num_probes": count_from(1),
    "guidance_scale": SCALE,
    "guidance_interval": INTERVAL,
    "internal_guidance_scale": SCALE,
    "internal_guidance_interval": INTERVAL,
    "guidance_channels": (
        lambda v, s: v is None or (is_integer(v) and 1 <= v <= s["in_channels"]),
        "an integer from 1 to {in_channels}, or None for all",
    ),
    "guider": (lambda v, s: v is None or isinstance(v, BaseGuidance), "a guider of diffusers.guiders or None"),
    "strength": (lambda v, s: is_real(v, high=1) and v > 0, "a number above 0 and at most 1"),
    "divergence": any_of("divergences"),
    "ode_method": (
        lambda v, s: v is None or (isinstance(v, str) and v in ODE_METHODS),
        f"None or one of {ODE_METHODS}",
    ),
    "ode_atol": TOLERANCE,
    "ode_rtol": TOLERANCE,
    "height": SIDE,
    "width": SIDE,
    "latents": (
        lambda v, s: v is None or (is_latents(v) and tuple(v.shape) == s["shape"]),
        "{shape}, finite floating-point numbers",
    ),
    "generator": (
        lambda v, s: v is None or is_generator(v, s["number"]),
        "{number}, one for each image, or a torch.Generator or None",
    ),
    "output_type": any_of("output_types"),
    "callback_on_step_end": (
        lambda v, s: v is None or is_callback(v),
        "a function of (pipe, step, timestep, tensors) or None",
    ),
    "callback_on_step_end_tensor_inputs": (
        lambda v, s: isinstance(v, (list, tuple)) and all(isinstance(n, str) and n in s["tensor_inputs"] for n in v),
        "any of {tensor_inputs}",
    ),
    "attention_kwargs": (
        lambda v, s: v is None or is_attention_kwargs(v),
        '{{"scale": a finite number}}, the scale of LoRAs, or None',
    ),
    "sample_posterior": FLAG,
    "check_finite": FLAG,
    "return_dict": FLAG,
}


def check_arguments(arguments: dict, **sizes) -> None:
    """Raise ValueError for the first of the arguments whose value does not meet `REQUIREMENTS`."""
    for name, value in arguments.items():
        condition, requirement = REQUIREMENTS[name]
        require(condition(value, sizes), name, value, requirement.format(**sizes))


def require(condition: bool, name: str, value, requirement: str) -> None:
    """Raise ValueError with the name of an argument, its value and the requirement, unless the condition holds."""
    if condition:
        return
    if isinstance(value, torch.Tensor):
        found = f"has the shape {tuple(value.shape)}"
        if not value.is_floating_point():
            found += f" and the type {value.dtype}"
        elif not value.isfinite().all():
            found += " and numbers that are not finite"
    elif isinstance(value, list) and value and isinstance(value[0], torch.Generator):
        found = f"is a list of {len(value)}"
    else:
        found = f"is {shown(value)}"
    raise ValueError(f"`{name}` {found}; required: {requirement}.")


def shown(value) -> str:
    """Return a value as it stands in a message: one line of at most 100 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more than 4,300 digits
        return f"a {type(value).__name__} of great length"
    return text if len(text) <= 100 else text[:97] + "..."


def check_components(transformer, vae) -> None:
    """Raise ValueError unless the autoencoder has the latent channels of the transformer.

    This is checked in every call, because the components of a pipeline can be replaced.
    """
    latent_channels, in_channels = vae_geometry(vae)[0], transformer.config.in_channels
    if latent_channels != in_channels:
        raise ValueError(
            f"`vae` has {latent_channels} latent channels; required: the transformer's `in_channels` {in_channels}."
        )
    if vae.config.get("latents_mean") is not None and vae.config.get("shift_factor"):
        raise ValueError(
            f"`vae` has the `shift_factor` {vae.config.shift_factor} beside `latents_mean`; required: one of the two, "
            "which are subtracted."
        )


def require_finite(component: str, model: torch.nn.Module, values: torch.Tensor) -> None:
    """Raise ValueError if a component of a pipeline has computed numbers that are not finite.

    Args:
        component: The name of the component.
        model: The component.
        values: What it has computed, [B, ...].
    """
    is_finite = values.isfinite().flatten(1).all(1)  # [B]
    if is_finite.all():
        return
    weights = next((name for name, weight in model.named_parameters() if not weight.float().isfinite().all()), None)
    reason = "its weights are finite" if weights is None else f"its weight `{weights}` is not finite, either"
    raise ValueError(
        f"`{component}` computed NaN or infinity for {int((~is_finite).sum())} of {len(values)} images; {reason}. "
        "Required: finite weights, and a type, LoRAs, `guidance_scale`, `attention_kwargs` and `latents` that keep "
        "numbers finite, or `check_finite=False`, which goes on."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Class labels
# ---------------------------------------------------------------------------------------------------------------------


def normal_name(name: str) -> str:
    """The name of a class without spaces around it, in Unicode's form NFC."""
    return unicodedata.normalize("NFC", name.strip())


class ClassLabelsMixin:
    """Lets a pipeline with a transformer accept the names of classes in place of their ids."""

    def _register_id2label(self, id2label: dict | None) -> None:
        require(id2label is None or isinstance(id2label, dict), "id2label", id2label, "{class id: name} or None")
        self._id2label = {}
        for key, name in (id2label or {}).items():
            # After loading, JSON has made the key 207 the string "207".
            is_id = is_integer(key) or (isinstance(key, str) and key.isdecimal() and len(key) < 10)
            if not is_id or not isinstance(name, str):
                raise ValueError(f"`id2label` has {shown(key)}: {shown(name)}; required: {{class id: name}}.")
            self._id2label[int(key)] = name
        num_classes = self.transformer.config.num_classes if self.transformer is not None else math.inf
        for class_id in self._id2label:
            if not 0 <= class_id < num_classes:
                raise ValueError(
                    f"`id2label` has the key {class_id}; the transformer's classes are 0 to {num_classes - 1}."
                )
        self.register_to_config(id2label=self._id2label or None)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save the names of all classes that the transformer has now, including those of loaded LoRAs."""
        before = self.config.id2label
        self.register_to_config(id2label=self.id2label or None)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.register_to_config(id2label=before)

    @property
    def id2label(self) -> dict[int, str]:
        """The names of the classes of the checkpoint and of the loaded LoRAs, by id."""
        return {**self._id2label, **getattr(self.transformer, "new_class_names", {})}

    @property
    def labels(self) -> dict[str, list[int]]:
        """The ids of each name and synonym, in Unicode's form NFC.

        A whole entry goes before a synonym: beside "cat, black", "cat" is the class of that name. A name may have
        several ids: ImageNet has two classes called "crane".
        """
        entries: dict[str, list[int]] = {}
        synonyms: dict[str, list[int]] = {}
        for class_id, entry in self.id2label.items():
            entry = normal_name(entry)
            entries.setdefault(entry, []).append(class_id)
            for name in dict.fromkeys(map(str.strip, entry.split(","))):
                synonyms.setdefault(name, []).append(class_id)
        return {**synonyms, **entries}

    def get_label_ids(self, class_labels: int | str | list[int | str] | torch.Tensor | None) -> list[int]:
        """Return the ids of classes that are given by id or name; None alone is the null class.

        A name is looked up as it is written and, if it is not found, regardless of upper and lower case. Different
        ways to write an accented letter in Unicode are the same.

        Raises:
            ValueError: For an unknown name (the error lists the nearest ones), a name of several classes, or an id out
                of range.
        """
        if class_labels is None:
            return [self.transformer.config.num_classes]
        if hasattr(class_labels, "tolist"):  # a tensor or an array of ids
            class_labels = class_labels.tolist()
        if not isinstance(class_labels, (list, tuple)):
            class_labels = [class_labels]
        if not class_labels:
            raise ValueError("`class_labels` is empty; required: at least one class id or name.")
        labels = self.labels
        ids = []
        for label in class_labels:  # nested lists, for instance from a tensor [B, 1], are flattened
            if isinstance(label, (list, tuple)) or hasattr(label, "tolist"):
                ids += self.get_label_ids(label)
            elif isinstance(label, str):
                ids.append(self._id_of_name(label, labels))
            else:
                ids.append(self._checked_id(label))
        return ids

    def _id_of_name(self, name: str, labels: dict[str, list[int]]) -> int:
        if not labels:
            raise ValueError(f"`class_labels` has the name {name!r}; this pipeline has no `id2label`, use ids.")
        ids = labels.get(normal_name(name))
        if ids is None:
            wanted = normal_name(name).lower()
            ids = sorted({i for known, known_ids in labels.items() if known.lower() == wanted for i in known_ids})
        if not ids:
            by_lower_case = {known.lower(): known for known in labels}
            nearest = difflib.get_close_matches(wanted, by_lower_case, n=3, cutoff=0.5)
            hint = "`pipe.labels` lists the names"
            if nearest:
                hint = f"nearest: {', '.join(repr(by_lower_case[match]) for match in nearest)}"
            raise ValueError(f"`class_labels` has the unknown name {shown(name)}; {hint}.")
        if len(ids) > 1:
            raise ValueError(f"`class_labels` has the name {name!r} of several classes; use one of the ids {ids}.")
        return ids[0]

    def _checked_id(self, class_id: int) -> int:
        if not is_integer(class_id):
            raise ValueError(f"`class_labels` has {shown(class_id)}; required: class ids (int) or names (str).")
        num_classes = self.transformer.config.num_classes
        if not 0 <= class_id < num_classes:
            raise ValueError(f"`class_labels` has the id {shown(class_id)}; required: 0 to {num_classes - 1}.")
        return int(class_id)


# ---------------------------------------------------------------------------------------------------------------------
# Hub
# ---------------------------------------------------------------------------------------------------------------------

# The library of our classes in model_index.json, and the name of the file with their code beside the weights. diffusers
# uses the installed package if it is imported, and otherwise, with `trust_remote_code=True`, the file.
PACKAGE = "diffusers_lightningdit"
# This file, as it is saved beside `pipeline.py`. It is read on import and not when a pipeline is saved, because as
# remote code it may by then have been overwritten by the file of another repository.
SHARED_FILE = __name__.rpartition(".")[2] + ".py"
SHARED_CODE = __spec__.loader.get_source(__name__)
# The generic model card of diffusers consists of blanks to fill in. It is recognised by this sentence.
GENERIC_CARD = "This model card has been automatically generated."
MODEL_CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- lightningdit
- class-conditional
---

# {title}

```python
from diffusers import DiffusionPipeline

repository = "{repository}"
pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
{call}
```

This runs the Python files of this repository. With the package diffusers-lightningdit, which holds the same files,
nothing from here is run:

```python
import diffusers_lightningdit  # makes its classes known to diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repository}")
{call}
```

Images of {size} pixels of {num_classes} classes, drawn by a flow-matching transformer (LightningDiT,
[arXiv 2501.01423](https://arxiv.org/abs/2501.01423), {transformer_parameters:,} parameters) in the latents of an
autoencoder (`{vae}`, {vae_parameters:,} parameters). The argument is a class id{or_name}, or a list of them{names}.

Unless given to the call, sampling takes: {recipe}. The scheduler is `{scheduler}`.
"""


class HubMixin:
    """Saves pipelines to folders and repositories that load with the package and, as remote code, without it.

    A pipeline has its own source code in `_source_code`.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Folders may hold different versions of the code. diffusers runs the pipeline's file of each folder anew; this
        # makes Python import the shared file of each folder anew, too.
        if __name__.startswith("diffusers_modules.") and cls.__module__ != __name__:
            sys.modules.pop(__name__, None)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Save as diffusers does, but refuse a component that cannot be saved before any of them is written."""
        for name, component in self.components.items():
            component = getattr(component, "_orig_mod", component)  # a compiled model is a wrapper
            if hasattr(component, "check_saving"):
                component.check_saving(Path(save_directory, name))
        super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json, the code of this pipeline, and the code of its components beside their weights.

        `save_pretrained` and `push_to_hub` of diffusers end with this call. Of a pipeline that was loaded as remote
        code, diffusers alone would drop the code and write names that cannot be loaded again.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, component in self.components.items():
            cls = type(getattr(component, "_orig_mod", component))  # a compiled model is a wrapper
            code = vars(cls).get("_source_code")  # not inherited: a user's subclass is defined in another file
            if code is not None:
                self.register_to_config(**{name: (PACKAGE, cls.__name__)})
                if (folder / name).is_dir():
                    (folder / name / f"{PACKAGE}.py").write_text(code, encoding="utf-8", newline="\n")
        code = vars(type(self)).get("_source_code")
        if code is not None:
            (folder / "pipeline.py").write_text(code, encoding="utf-8", newline="\n")
            (folder / SHARED_FILE).write_text(SHARED_CODE, encoding="utf-8", newline="\n")
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> DiffusionPipeline:
        """Create a pipeline from the components of another one, taken over by name.

        diffusers alone would compare the classes of the components with the annotations of the constructor. These
        files cannot import the class of the transformer, and any image autoencoder with the right latents will do.
        """
        for name in ("transformer", "vae"):
            if name in pipeline.components and name in inspect.signature(cls.__init__).parameters:
                kwargs.setdefault(name, pipeline.components[name])
        return super().from_pipe(pipeline, **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# The pipelines that draw images
# ---------------------------------------------------------------------------------------------------------------------


class SamplingMixin(DenoisingMixin, ClassLabelsMixin, SanaLoraLoaderMixin, HubMixin):
    """The part that the pipelines that draw images have in common; each adds its `__call__`.

    Attributes:
        _card_call: The line of the model card that calls the pipeline.
    """

    model_cpu_offload_seq = "transformer->vae"

    def __init__(self, transformer, vae, scheduler, id2label: dict | None = None, sampling_recipe: dict | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        is_recipe = sampling_recipe is None or isinstance(sampling_recipe, dict)
        require(is_recipe, "sampling_recipe", sampling_recipe, "a dictionary or None")
        for key in sampling_recipe or {}:
            if key not in DEFAULT_RECIPE:
                raise ValueError(f"`sampling_recipe` has the key {key!r}; known are {', '.join(DEFAULT_RECIPE)}.")
        self._register_id2label(id2label)
        self.register_to_config(sampling_recipe=sampling_recipe)
        self.image_processor = VaeImageProcessor()

    # -- arguments -------------------------------------------------------------------------------------------------

    def _from_recipe(self, **arguments) -> dict:
        """Replace arguments that are `RECIPE` by the values of the checkpoint's recipe, or else the defaults."""
        recipe = recipe_of(self)
        return {
            name: recipe[name] if isinstance(value, str) and value == RECIPE else value
            for name, value in arguments.items()
        }

    def check_inputs(
        self, *, num_labels: int, height, width, generator, latents, num_images_per_prompt=1, **arguments
    ) -> None:
        """Raise ValueError for a component or an argument that does not fit, before anything is computed.

        Args:
            num_labels: The number of class labels.
            arguments: Further arguments of the call, by name.
        """
        check_scheduler(self.scheduler)
        check_components(self.transformer, self.vae)
        arguments |= {"num_images_per_prompt": num_images_per_prompt, "height": height, "width": width}
        check_arguments(
            arguments,
            in_channels=self.transformer.config.in_channels,
            multiple=vae_geometry(self.vae)[1] * self.transformer.config.patch_size,
            output_types=OUTPUT_TYPES,
            tensor_inputs=self._callback_tensor_inputs,
        )
        check_internal_guidance(self.transformer, arguments["internal_guidance_scale"])
        warn_of_too_many_steps(self, arguments["num_inference_steps"])
        batch_size = num_labels * num_images_per_prompt
        shape = latents_shape(self.transformer, self.vae, batch_size, height, width)
        check_arguments({"latents": latents, "generator": generator}, number=batch_size, shape=shape)

    # -- images ------------------------------------------------------------------------------------------------------

    def _decode(self, latents: torch.Tensor, check_finite: bool) -> torch.Tensor:
        """Decode normalised latents [B, C, height, width] to images [B, 3, height, width]; see `require_finite`."""
        images = decode(self.vae, latents)
        if check_finite and not images.isfinite().all():
            require_finite("transformer", self.transformer, latents)
            require_finite("vae", self.vae, images)
        return images

    def _to_images(self, latents: torch.Tensor, output_type: str, check_finite: bool):
        """Decode normalised latents [B, C, height, width], unless the output type is "latent"."""
        if output_type != "latent":
            return postprocess(self.image_processor, self._decode(latents, check_finite), output_type)
        if check_finite:
            require_finite("transformer", self.transformer, latents)
        return latents

    def _output(self, images, return_dict: bool) -> ImagePipelineOutput | tuple:
        """End the call of `_own_call`."""
        self._pipeline._guidance_scale, self._pipeline._num_timesteps = self._guidance_scale, self._num_timesteps
        self._pipeline.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    # -- compilation -------------------------------------------------------------------------------------------------

    def compile(self, mode: str = "reduce-overhead", **kwargs) -> None:
        """Compile the transformer and the autoencoder, each as a whole, when they are first called.

        Two graphs serve all batch sizes, guidance intervals and steps. A LoRA, another strength of one and a fused one
        take two more each; after eight, torch goes on without compiling (`torch._dynamo.config.recompile_limit`).

        Args:
            mode: "reduce-overhead" runs the transformer on a GPU as one CUDA graph for each batch size, which takes
                memory and has to be called by one thread; "default" does not; others are those of `torch.compile`. The
                autoencoder has the default, since it is called once for an image, and its channels last in memory.
            kwargs: Further arguments of `torch.compile`, such as `fullgraph`.

        Raises:
            ValueError: For a transformer with a cache, which is made of hooks.
        """
        cache = type(self.transformer._cache_config).__name__
        require(not self.transformer.is_cache_enabled, "transformer", cache, "one without a cache to be compiled")
        self.transformer.compile(mode=mode, **kwargs)
        self.vae.to(memory_format=torch.channels_last)
        for module in (self.vae.encoder, self.vae.decoder):
            module.compile(**kwargs)

    # -- LoRA --------------------------------------------------------------------------------------------------------

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict, **kwargs):
        """Read the file of a LoRA as diffusers does, but name it if it is damaged.

        Raises:
            ValueError: For a file that cannot be read.
        """
        place = Path(str(pretrained_model_name_or_path_or_dict)[:4096], str(kwargs.get("weight_name") or ""))
        try:
            return super().lora_state_dict(pretrained_model_name_or_path_or_dict, **kwargs)
        except Exception as error:  # a damaged file raises nearly anything
            # diffusers says well that a file is missing, here or on the Hub
            is_clear = isinstance(error, ValueError) or not os.path.lexists(place)
            if is_clear and not isinstance(error, UnicodeError):
                raise
            raise ValueError(f"{place} cannot be read as a LoRA ({shown(error)}); required: a sound file.") from error

    # -- model card ------------------------------------------------------------------------------------------------

    def _upload_folder(self, working_dir: str | os.PathLike, repo_id: str, **kwargs):
        """Replace the generic model card in the last step of a push; a card of the repository's own is kept."""
        card = Path(working_dir) / "README.md"
        if card.is_file() and GENERIC_CARD in card.read_text(encoding="utf-8"):
            card.write_text(self._model_card(repo_id), encoding="utf-8", newline="\n")
        return super()._upload_folder(working_dir, repo_id, **kwargs)

    def _model_card(self, repository: str) -> str:
        names = [name.split(",")[0].strip() for _, name in sorted(self.id2label.items())]
        label = next((repr(name) for name in names if len(self.labels[name]) == 1), "0")
        recipe = recipe_of(self)
        if recipe["ode_method"] is None:
            recipe |= {"ode_atol": None, "ode_rtol": None}
        if recipe["internal_guidance_scale"] == 1:
            recipe |= {"internal_guidance_scale": None, "internal_guidance_interval": None}
        return MODEL_CARD.format(
            title=repository.rpartition("/")[2],
            repository=repository,
            call=self._card_call.format(label=label),
            size="{1}x{0}".format(*image_size(self.transformer, self.vae, None, None)),
            num_classes=self.transformer.config.num_classes,
            transformer_parameters=self.transformer.num_parameters(),
            vae=type(self.vae).__name__,
            vae_parameters=self.vae.num_parameters(),
            or_name=" or name" if names else "",
            names=f"; the names are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "",
            recipe=", ".join(f"`{key}={value!r}`" for key, value in recipe.items() if value is not None),
            scheduler=described_scheduler(self.scheduler),
        )
