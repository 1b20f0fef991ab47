# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""From one class to another with LightningDiT (arXiv 2501.01423): spherical interpolation of noise and label.

Self-contained (torch and diffusers only): loadable by
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_lightningdit_interpolation.py")`.

Time: t in [0, 1], 0 = noise, 1 = data; diffusers' flow schedulers speak sigma = 1 - t and d latents / d sigma =
-velocity.
"""

import contextlib
import difflib
import inspect
import math
import os
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderRAE,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FasterCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    ImagePipelineOutput,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    UniPCMultistepScheduler,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import SanaLoraLoaderMixin
from diffusers.utils.torch_utils import randn_tensor

# What a pipeline without a recipe of its own samples with.
# The library of our classes in model_index.json, and the name of the file with their code beside the weights: diffusers
# takes the installed package if it is imported, else, with `trust_remote_code=True`, the file.
# Copied from pipeline_lightningdit.PACKAGE
PACKAGE = "diffusers_lightningdit"

# Copied from pipeline_lightningdit.DEFAULT_RECIPE
DEFAULT_RECIPE = {
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
    "guidance_interval": None,
    "guidance_channels": None,
    "ode_method": None,
    "ode_atol": 1e-6,
    "ode_rtol": 1e-3,
}

# Copied from pipeline_lightningdit.RECIPE
RECIPE = "recipe"  # the argument's default where None has a meaning of its own

# Copied from pipeline_lightningdit.SINGLE_BATCH_CACHES
SINGLE_BATCH_CACHES = (FasterCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig)

# Copied from pipeline_lightningdit.TIME_TOLERANCE
TIME_TOLERANCE = 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Guidance
# ---------------------------------------------------------------------------------------------------------------------


# Copied from pipeline_lightningdit.guide
def guide(
    conditional: torch.Tensor, unconditional: torch.Tensor, scale: float, num_channels: int | None
) -> torch.Tensor:
    """Classifier-free guidance (arXiv 2207.12598) on the first channels: uncond + scale (cond - uncond).

    Args:
        conditional, unconditional: velocities [B, C, height, width].
        scale: 1 returns `conditional`.
        num_channels: how many leading channels are guided, None for all; the rest is `conditional`. The released
            LightningDiT figures guide 3 of 32.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if num_channels is None:
        return guided
    return torch.cat([guided[:, :num_channels], conditional[:, num_channels:]], dim=1)


# Copied from pipeline_lightningdit.in_interval
def in_interval(t: float, interval: tuple[float, float] | None) -> bool:
    """Whether guidance acts at time t (arXiv 2404.07724); None stands for everywhere."""
    return interval is None or interval[0] - TIME_TOLERANCE <= t <= interval[1] + TIME_TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Schedulers
# ---------------------------------------------------------------------------------------------------------------------

# Copied from pipeline_lightningdit.FLOW_SETTINGS
FLOW_SETTINGS = "use_flow_sigmas=True, prediction_type='flow_prediction', flow_shift=<shift>"

# Copied from pipeline_lightningdit.REFUSED_SCHEDULERS
REFUSED_SCHEDULERS = {
    "DEISMultistepScheduler": "it repeats the last sigma instead of ending at 0, which leaves noise in the image",
    "SASolverScheduler": "it repeats the last sigma instead of ending at 0, which leaves noise in the image",
    "FlowMatchLCMScheduler": "it adds noise at every step, for distilled models only",
}


# Copied from pipeline_lightningdit.check_scheduler
def check_scheduler(scheduler) -> None:
    """Raises ValueError, with the reason, for a scheduler that cannot integrate this flow."""
    name = type(scheduler).__name__
    remedy = "Use FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, or DPMSolver / UniPC with "
    remedy += f"{FLOW_SETTINGS}."
    if name in REFUSED_SCHEDULERS:
        raise ValueError(f"`scheduler` is {name}: {REFUSED_SCHEDULERS[name]}. {remedy}")
    if name == "FlowMatchSDEScheduler":  # of diffusers_lightningdit, which this file must not import
        required = {}
    elif isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)):
        required = {"use_dynamic_shifting": False, "invert_sigmas": False}
    elif isinstance(scheduler, (DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler)):
        required = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "zero"}
        required |= {"use_dynamic_shifting": False}
    else:
        raise ValueError(f"`scheduler` is {name}: it does not integrate a flow with sigma = 1 - t. {remedy}")
    for flag, value in required.items():
        if scheduler.config.get(flag, value) != value:
            raise ValueError(
                f"`scheduler` is {name} with {flag}={scheduler.config[flag]!r}; required: {flag}={value!r}. {remedy}"
            )


# Copied from pipeline_lightningdit.set_timesteps
def set_timesteps(scheduler, num_inference_steps: int, device: torch.device) -> torch.Tensor:
    """Set the scheduler's grid and return the times t [number of network evaluations], float32, on the CPU.

    Where the scheduler takes sigmas it gets the original's grid, N + 1 equally spaced points for N steps before the
    shift; its own default would shift the smallest sigma twice. Times are read from `sigmas`, since several schedulers
    round their `timesteps` to integers.
    """
    if isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler)):
        sigmas = torch.linspace(1, 0, num_inference_steps + 1, dtype=torch.float64)[:-1]
        scheduler.set_timesteps(sigmas=sigmas.numpy(), device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
    return 1.0 - scheduler.sigmas[: len(scheduler.timesteps)].to("cpu", torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Autoencoders
# ---------------------------------------------------------------------------------------------------------------------


# Copied from pipeline_lightningdit.vae_geometry
def vae_geometry(vae) -> tuple[int, int]:
    """(latent channels, downsampling factor) of a diffusers image autoencoder; ValueError if it shows neither."""
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


# Copied from pipeline_lightningdit.denormalize_latents
def denormalize_latents(vae, latents: torch.Tensor) -> torch.Tensor:
    """What the transformer produces -> what `vae.decode` expects, by the VAE's own method or its config."""
    if hasattr(vae, "denormalize_latents"):
        return vae.denormalize_latents(latents)
    if isinstance(vae, AutoencoderRAE):  # normalises inside encode and decode
        return latents
    scaling_factor = vae.config.get("scaling_factor") or 1.0
    if vae.config.get("latents_mean") is not None:
        mean = latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        std = latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
        return latents * std / scaling_factor + mean
    return latents / scaling_factor + (vae.config.get("shift_factor") or 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


# Copied from pipeline_lightningdit.require
def require(condition: bool, name: str, value, requirement: str) -> None:
    if not condition:
        raise ValueError(f"`{name}` is {value!r}; required: {requirement}.")


# Copied from pipeline_lightningdit.is_integer
def is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# Interpolation
# ---------------------------------------------------------------------------------------------------------------------


def slerp(start: torch.Tensor, end: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation (Shoemake 1985): sin((1 - w) a) / sin(a) start + sin(w a) / sin(a) end, a their angle.

    It keeps the norm of equally long vectors, which a mixture of two noises needs to look like noise. Where the angle
    vanishes it is (1 - w) start + w end.

    Args:
        start, end: tensors of the same shape [...], each taken for one vector.
        weights: [N] within [0, 1].

    Returns:
        [N, ...].
    """
    weights = weights.to(start).view(-1, *[1] * start.ndim)
    angle = torch.acos(F.cosine_similarity(start.flatten(), end.flatten(), dim=0).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return (1 - weights) * start + weights * end
    return (torch.sin((1 - weights) * angle) * start + torch.sin(weights * angle) * end) / angle.sin()


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTInterpolationPipeline(DiffusionPipeline, SanaLoraLoaderMixin):
    """Images on the way from one class to another with a LightningDiT transformer and an image autoencoder.

    Args:
        transformer, vae, scheduler, id2label, sampling_recipe: as of `LightningDiTPipeline`, whose folders load here.

    Raises:
        ValueError: for an unknown key in `sampling_recipe` or a key of `id2label` that is no class.

    Example:
        >>> import torch
        >>> import diffusers_lightningdit
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained(
        ...     "model_cards/lightningdit-digits",
        ...     custom_pipeline="pipelines/pipeline_lightningdit_interpolation.py",
        ...     trust_remote_code=True,
        ... )
        >>> images = pipe(["three", "eight"], num_images=8, generator=torch.Generator().manual_seed(0)).images
        >>> len(images)
        8
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents"]
    # Read with the class, not when it is saved: as remote code, the next repository's file may lie in this one's place.
    # Copied from pipeline_lightningdit.LightningDiTPipeline._source_code
    _source_code = __spec__.loader.get_source(__name__)

    # Copied from pipeline_lightningdit.LightningDiTPipeline.__init__
    def __init__(self, transformer, vae, scheduler, id2label: dict | None = None, sampling_recipe: dict | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        for key in sampling_recipe or {}:
            if key not in DEFAULT_RECIPE:
                raise ValueError(f"`sampling_recipe` has the key {key!r}; known are {', '.join(DEFAULT_RECIPE)}.")
        # JSON knows only strings as keys: after loading, "207" is class 207 again.
        self._id2label = {int(key): name for key, name in (id2label or {}).items()}
        num_classes = transformer.config.num_classes if transformer is not None else math.inf
        for class_id in self._id2label:
            if not 0 <= class_id < num_classes:
                raise ValueError(
                    f"`id2label` has the key {class_id}; the transformer's classes are 0 to {num_classes - 1}."
                )
        self.register_to_config(id2label=self._id2label or None, sampling_recipe=sampling_recipe)
        self.image_processor = VaeImageProcessor()

    # Copied from pipeline_lightningdit.LightningDiTPipeline.save_config
    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write model_index.json and the code of the classes that are not diffusers' own, each beside its weights.

        diffusers' `save_pretrained` and `push_to_hub` end with this call: each folder they write loads both with the
        package and, as remote code, without it. Also if this pipeline was itself loaded as remote code, for which
        diffusers would drop the code and write names that cannot be loaded.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name, component in self.components.items():
            cls = type(getattr(component, "_orig_mod", component))  # a compiled model is a wrapper
            code = vars(cls).get("_source_code")  # its own: a subclass is defined in another file
            if code is not None:
                self.register_to_config(**{name: (PACKAGE, cls.__name__)})
                if (folder / name).is_dir():
                    (folder / name / f"{PACKAGE}.py").write_text(code, encoding="utf-8", newline="\n")
        code = vars(type(self)).get("_source_code")
        if code is not None:
            (folder / "pipeline.py").write_text(code, encoding="utf-8", newline="\n")
        names = {key: value for key, value in self.config.items() if key == "id2label"}
        if names:  # of as many classes as the transformer beside it has, those of LoRAs too
            self.register_to_config(id2label=self.id2label or None)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.register_to_config(**names)

    # Copied from pipeline_lightningdit.LightningDiTPipeline.from_pipe
    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> DiffusionPipeline:
        """As in diffusers; components are taken over by name.

        diffusers itself compares their classes with the constructor's annotations, which a self-contained file cannot
        give for the transformer, and must not narrow for the autoencoder.
        """
        for name in ("transformer", "vae"):
            if name in pipeline.components:
                kwargs.setdefault(name, pipeline.components[name])
        return super().from_pipe(pipeline, **kwargs)

    # -- labels ---------------------------------------------------------------------------------------------------

    # Copied from pipeline_lightningdit.LightningDiTPipeline.id2label
    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes: those of the checkpoint, and of the LoRAs that are loaded."""
        return {**self._id2label, **getattr(self.transformer, "new_class_names", {})}

    # Copied from pipeline_lightningdit.LightningDiTPipeline.labels
    @property
    def labels(self) -> dict[str, list[int]]:
        """Every name and synonym with the ids that bear it (ImageNet has two classes called "crane")."""
        labels: dict[str, list[int]] = {}
        for class_id, names in self.id2label.items():
            # the whole entry counts as a name, too
            for name in dict.fromkeys([names.strip(), *map(str.strip, names.split(","))]):
                labels.setdefault(name, []).append(class_id)
        return labels

    # Copied from pipeline_lightningdit.LightningDiTPipeline.get_label_ids
    def get_label_ids(self, class_labels: int | str | list[int | str] | torch.Tensor) -> list[int]:
        """Class ids of ids and names; a name counts as written, otherwise with upper and lower case ignored.

        Raises:
            ValueError: for an unknown name (with the nearest ones), a name of several classes, or an id out of range.
        """
        if hasattr(class_labels, "tolist"):  # a tensor or an array of ids
            class_labels = class_labels.tolist()
        if not isinstance(class_labels, (list, tuple)):
            class_labels = [class_labels]
        if not class_labels:
            raise ValueError("`class_labels` is empty; required: at least one class id or name.")
        labels = self.labels
        ids = []
        for label in class_labels:  # lists of lists, as from a tensor [B, 1], count as one list
            ids += self.get_label_ids(label) if isinstance(label, (list, tuple)) else [self._label_id(label, labels)]
        return ids

    # Copied from pipeline_lightningdit.LightningDiTPipeline._label_id
    def _label_id(self, label: int | str, labels: dict[str, list[int]]) -> int:
        if isinstance(label, str):
            ids = labels.get(label.strip())
            if ids is None:
                wanted = label.strip().lower()
                ids = sorted({i for name, name_ids in labels.items() if name.lower() == wanted for i in name_ids})
            if not ids:
                if not labels:
                    raise ValueError(
                        f"`class_labels` has the name {label!r}; this pipeline has no `id2label`, use ids."
                    )
                by_lower_case = {name.lower(): name for name in labels}
                near = [
                    by_lower_case[m] for m in difflib.get_close_matches(label.lower(), by_lower_case, n=3, cutoff=0.5)
                ]
                hint = f"nearest: {', '.join(map(repr, near))}" if near else "`pipe.labels` lists the names"
                raise ValueError(f"`class_labels` has the unknown name {label!r}; {hint}.")
            if len(ids) > 1:
                raise ValueError(f"`class_labels` has the name {label!r} of several classes; use one of the ids {ids}.")
            return ids[0]
        if not isinstance(label, Integral) or isinstance(label, bool):
            raise ValueError(f"`class_labels` has {label!r}; required: class ids (int) or names (str).")
        num_classes = self.transformer.config.num_classes
        if not 0 <= label < num_classes:
            raise ValueError(f"`class_labels` has the id {label}; required: 0 to {num_classes - 1}.")
        return int(label)

    # -- arguments ------------------------------------------------------------------------------------------------

    # Copied from pipeline_lightningdit.LightningDiTPipeline._from_recipe
    def _from_recipe(self, **arguments) -> dict:
        """Arguments as given; those left to the recipe from the checkpoint's, then from the defaults."""
        recipe = {**DEFAULT_RECIPE, **(self.config.sampling_recipe or {})}
        return {
            name: recipe[name] if isinstance(value, str) and value == RECIPE else value
            for name, value in arguments.items()
        }

    # Copied from pipeline_lightningdit.LightningDiTPipeline._check_sampling_inputs
    def _check_sampling_inputs(
        self,
        num_inference_steps,
        guidance_scale,
        guidance_interval,
        guidance_channels,
        height,
        width,
        num_images_per_prompt,
        num_labels,
        generator,
        latents,
        output_type,
        callback_on_step_end_tensor_inputs,
    ) -> None:
        """The part of `check_inputs` that every pipeline with this transformer shares."""
        # Components: checked here, since they can be replaced after construction.
        check_scheduler(self.scheduler)
        latent_channels, factor = vae_geometry(self.vae)
        in_channels = self.transformer.config.in_channels
        if latent_channels != in_channels:
            raise ValueError(
                f"`vae` has {latent_channels} latent channels; required: the transformer's `in_channels` {in_channels}."
            )

        # Sampling
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("num_images_per_prompt", num_images_per_prompt),
        ):
            require(is_integer(value) and value >= 1, name, value, "an integer of at least 1")
        require(
            isinstance(guidance_scale, Real) and 0 <= guidance_scale < math.inf,
            "guidance_scale",
            guidance_scale,
            "a finite number of at least 0",
        )
        require(
            guidance_interval is None
            or (
                isinstance(guidance_interval, (tuple, list))
                and len(guidance_interval) == 2
                and 0 <= guidance_interval[0] <= guidance_interval[1] <= 1
            ),
            "guidance_interval",
            guidance_interval,
            "(start, end) with 0 <= start <= end <= 1, or None for all times",
        )
        require(
            guidance_channels is None or (is_integer(guidance_channels) and 1 <= guidance_channels <= in_channels),
            "guidance_channels",
            guidance_channels,
            f"an integer from 1 to {in_channels}, or None for all",
        )

        # Shapes
        multiple = factor * self.transformer.config.patch_size
        for name, value in (("height", height), ("width", width)):
            require(
                is_integer(value) and value >= multiple and value % multiple == 0,
                name,
                value,
                f"a positive multiple of {multiple} pixels",
            )
        batch_size = num_labels * num_images_per_prompt
        shape = (batch_size, in_channels, height // factor, width // factor)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` has the shape {tuple(latents.shape)}; required: {shape}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` is a list of {len(generator)}; required: {batch_size}, one for each image.")

        # Output
        require(
            output_type in ("pil", "np", "pt", "latent"), "output_type", output_type, "'pil', 'np', 'pt' or 'latent'"
        )
        for name in callback_on_step_end_tensor_inputs:
            require(
                name in self._callback_tensor_inputs,
                "callback_on_step_end_tensor_inputs",
                callback_on_step_end_tensor_inputs,
                f"any of {self._callback_tensor_inputs}",
            )

    def check_inputs(self, class_labels, num_images, **sampling_inputs) -> None:
        """Raises ValueError naming argument, value and requirement, before anything is computed."""
        if sampling_inputs["num_labels"] != 2:
            raise ValueError(f"`class_labels` is {class_labels!r}; required: two classes, the first and the last.")
        self._check_sampling_inputs(num_images_per_prompt=1, **sampling_inputs)
        require(is_integer(num_images) and num_images >= 2, "num_images", num_images, "an integer of at least 2")
        is_compiled = hasattr(self.transformer, "_orig_mod") or self.transformer._compiled_call_impl is not None
        if is_compiled:
            raise ValueError(
                "`transformer` is compiled as a whole, which ignores the hook that interpolates labels; required: one "
                "that is not, or with `compile_repeated_blocks()`."
            )

    # -- state read by callbacks and caches -----------------------------------------------------------------------

    # Copied from pipeline_lightningdit.LightningDiTPipeline.guidance_scale
    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    # Copied from pipeline_lightningdit.LightningDiTPipeline.num_timesteps
    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    # Copied from pipeline_lightningdit.LightningDiTPipeline.current_timestep
    @property
    def current_timestep(self):
        """The scheduler's timestep, on its scale from 1000 (noise) to 0; None outside the loop."""
        return self._current_timestep

    # Copied from pipeline_lightningdit.LightningDiTPipeline.interrupt
    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to skip the remaining steps."""
        return self._interrupt

    # -- velocity -------------------------------------------------------------------------------------------------

    # Copied from pipeline_lightningdit.LightningDiTPipeline._velocity
    def _velocity(
        self,
        latents: torch.Tensor,
        t: float,
        class_ids: torch.Tensor,
        attention_kwargs: dict | None,
        context: str | None = None,
    ) -> torch.Tensor:
        """The network's velocity at time t, in float32. The null class comes first in `class_ids` if it is there."""
        # A cache keeps the states of guided and unguided calls apart: their batches differ.
        with self.transformer.cache_context(context or ("cond" if len(class_ids) == len(latents) else "cond_uncond")):
            repeats = len(class_ids) // len(latents)
            velocity = self.transformer(
                hidden_states=latents.repeat(repeats, 1, 1, 1).to(self.transformer.dtype),
                timestep=torch.full((len(class_ids),), t, dtype=torch.float32, device=latents.device),
                class_labels=class_ids,
                attention_kwargs=attention_kwargs,
                return_dict=False,
            )[0]
        return velocity.float()

    # Copied from pipeline_lightningdit.LightningDiTPipeline._guided_velocity
    def _guided_velocity(
        self,
        latents: torch.Tensor,
        t: float,
        class_ids: torch.Tensor,
        guidance_interval: tuple[float, float] | None,
        guidance_channels: int | None,
        both_halves: bool,
        attention_kwargs: dict | None,
    ) -> torch.Tensor:
        """The velocity under guidance of `self.guidance_scale`, a property since callbacks may change it on the way.

        The unconditional half is computed where guidance acts; with `both_halves` at every t.
        """
        is_guided = self.guidance_scale > 1 and in_interval(t, guidance_interval)
        if not (is_guided or both_halves):
            return self._velocity(latents, t, class_ids, attention_kwargs)
        null_ids = torch.full_like(class_ids, self.transformer.config.num_classes)
        velocity = self._velocity(latents, t, torch.cat([null_ids, class_ids]), attention_kwargs)
        unconditional, conditional = velocity.chunk(2)
        return guide(conditional, unconditional, self.guidance_scale, guidance_channels) if is_guided else conditional

    @contextlib.contextmanager
    def _interpolated_labels(self, weights: torch.Tensor):
        """Within it, the last len(weights) label embeddings lie between the first and the last of them."""

        def hook(module, args, embeddings: torch.Tensor) -> torch.Tensor:  # [B, D]
            others, between = embeddings[: -len(weights)], embeddings[-len(weights) :]
            return torch.cat([others, slerp(between[0], between[-1], weights)])

        handle = self.transformer.class_embedder.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    # -- call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int | str] | torch.Tensor,
        num_images: int = 8,
        guidance_scale: float | str = RECIPE,
        guidance_interval: tuple[float, float] | None | str = RECIPE,
        guidance_channels: int | None | str = RECIPE,
        num_inference_steps: int | str = RECIPE,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["LightningDiTInterpolationPipeline", int, torch.Tensor, dict], dict]
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        attention_kwargs: dict | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw images whose noise and label embedding move in equal angles from one end to the other.

        The arguments that are not listed here are those of `LightningDiTPipeline`, with the same defaults.

        Args:
            class_labels: two class ids or names of `id2label`, the ends. Twice the same class moves in the noise alone.
            num_images: both ends included, at least 2.
            generator: one, or a list of two that draw the noise of the ends; two in the same state move in the label
                alone.
            latents: the noise of both ends [2, C, height / factor, width / factor]; drawn in float32 if None.

        Returns:
            `images`: list of PIL images, array or tensor; the first and last are what `LightningDiTPipeline` draws for
            the ends' labels and noise.

        Raises:
            ValueError: for any argument or component that doesn't fit, before anything is computed.
        """
        settings = self._from_recipe(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_channels=guidance_channels,
        )
        class_ids = self.get_label_ids(class_labels)
        _, factor = vae_geometry(self.vae)
        height = self.transformer.config.sample_size * factor if height is None else height
        width = self.transformer.config.sample_size * factor if width is None else width
        self.check_inputs(
            class_labels,
            num_images,
            **settings,
            height=height,
            width=width,
            num_labels=len(class_ids),
            generator=generator,
            latents=latents,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

        device = self._execution_device
        guidance_interval, guidance_channels = settings["guidance_interval"], settings["guidance_channels"]
        self._guidance_scale = settings["guidance_scale"]
        self._interrupt = False
        self._current_timestep = None

        # 1. Labels and noise between the ends; time grid
        weights = torch.linspace(0, 1, num_images, device=device)
        class_ids = torch.tensor([class_ids[0]] * (num_images - 1) + [class_ids[1]], device=device)
        if latents is None:
            shape = (2, self.transformer.config.in_channels, height // factor, width // factor)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        else:
            latents = latents.to(device, torch.float32)
        times = set_timesteps(self.scheduler, settings["num_inference_steps"], device)
        latents = slerp(latents[0], latents[1], weights) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        self._num_timesteps = len(times)

        # 2. Solve the flow, its state in float32 whatever the network's dtype
        both_halves = self.guidance_scale > 1 and isinstance(self.transformer._cache_config, SINGLE_BATCH_CACHES)
        step_kwargs = {}
        if "generator" in inspect.signature(self.scheduler.step).parameters:
            step_kwargs["generator"] = generator[0] if isinstance(generator, list) else generator
        with self._interpolated_labels(weights), self.progress_bar(total=len(times)) as progress_bar:
            for i, (t, timestep) in enumerate(zip(times.tolist(), self.scheduler.timesteps, strict=True)):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                velocity = self._guided_velocity(
                    latents, t, class_ids, guidance_interval, guidance_channels, both_halves, attention_kwargs
                )
                latents = self.scheduler.step(-velocity, timestep, latents, **step_kwargs, return_dict=False)[0]

                if callback_on_step_end is not None:
                    # a loop: in a comprehension `locals()` would be the comprehension's own
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, timestep, callback_kwargs)
                    latents = callback_outputs.pop("latents", latents)
                progress_bar.update()
        self._current_timestep = None

        # 3. Decode
        images = latents if output_type == "latent" else self._postprocess(self._decode(latents), output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)

    # Copied from pipeline_lightningdit.LightningDiTPipeline._decode
    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents -> images [B, 3, height, width], within about [-1, 1], in float32."""
        latents = denormalize_latents(self.vae, latents)
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    # Copied from pipeline_lightningdit.LightningDiTPipeline._postprocess
    def _postprocess(self, images: torch.Tensor, output_type: str):
        if output_type == "pil":
            # uint8 by truncation, as the original; then values k / 255, which diffusers' own conversion keeps exactly
            pixels = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
            return self.image_processor.numpy_to_pil(pixels.permute(0, 2, 3, 1).cpu().numpy() / 255)
        return self.image_processor.postprocess(images, output_type=output_type)
