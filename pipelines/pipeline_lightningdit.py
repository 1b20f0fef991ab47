# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Class labels -> images with LightningDiT (arXiv 2501.01423).

Self-contained (torch and diffusers only): this file is uploaded to the Hub as it is, and loadable by
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_lightningdit.py")`.

Time: the transformer speaks t (0 = noise, 1 = data) and velocity = data - noise; diffusers' flow schedulers speak
sigma = 1 - t and d latents / d sigma = -velocity. This file is the only place that translates.
"""

import difflib
import importlib.util
import inspect
import math
import os
import re
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path

import torch
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
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import SanaLoraLoaderMixin
from diffusers.utils.torch_utils import randn_tensor

# What a pipeline without a recipe of its own samples with (diffusers' defaults for class-conditional transformers).
DEFAULT_RECIPE = {
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
    "guidance_interval": None,
    "guidance_channels": None,
    "ode_method": None,
    "ode_atol": 1e-6,
    "ode_rtol": 1e-3,
}
RECIPE = "recipe"  # the argument's default where None has a meaning of its own

# torchdiffeq's methods that the original offers beside Euler; the fixed-step one visits every point of the time grid.
ODE_METHODS = ("dopri5", "heun2")

# Caches that count or keep states over all calls of the network, whatever their `cache_context`: every call of a run
# must have the same batch.
SINGLE_BATCH_CACHES = (FasterCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig)

# A weight of a LoRA: (module, which of the two matrices), in PEFT's or the older names.
LORA_WEIGHT = re.compile(r"(?P<module>.+)\.(?P<matrix>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)\.weight")

# The library of our classes in model_index.json, and the name of the file with their code beside the weights: diffusers
# takes the installed package if it is imported, else, with `trust_remote_code=True`, the file.
PACKAGE = "diffusers_lightningdit"

# By this sentence diffusers' generic model card, mostly blanks to fill in, is recognised on its way to the Hub.
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
image = pipe({label}).images[0]
```

This runs the Python files of this repository. With the package diffusers-lightningdit, which holds the same files,
nothing from here is run:

```python
import diffusers_lightningdit  # makes its classes known to diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{repository}")
image = pipe({label}).images[0]
```

Images of {size}x{size} pixels of {num_classes} classes, drawn by a flow-matching transformer (LightningDiT,
[arXiv 2501.01423](https://arxiv.org/abs/2501.01423), {transformer_parameters:,} parameters) in the latents of an
autoencoder (`{vae}`, {vae_parameters:,} parameters). The argument is a class id{or_name}, or a list of them{names}.

Unless given to the call, sampling takes: {recipe}.
"""

# A grid point that should coincide with an end of the guidance interval may miss it by float32 rounding.
TIME_TOLERANCE = 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Guidance
# ---------------------------------------------------------------------------------------------------------------------


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


def in_interval(t: float, interval: tuple[float, float] | None) -> bool:
    """Whether guidance acts at time t (arXiv 2404.07724); None stands for everywhere."""
    return interval is None or interval[0] - TIME_TOLERANCE <= t <= interval[1] + TIME_TOLERANCE


# ---------------------------------------------------------------------------------------------------------------------
# Schedulers
# ---------------------------------------------------------------------------------------------------------------------

FLOW_SETTINGS = "use_flow_sigmas=True, prediction_type='flow_prediction', flow_shift=<shift>"
REFUSED_SCHEDULERS = {
    "DEISMultistepScheduler": "it repeats the last sigma instead of ending at 0, which leaves noise in the image",
    "SASolverScheduler": "it repeats the last sigma instead of ending at 0, which leaves noise in the image",
    "FlowMatchLCMScheduler": "it adds noise at every step, for distilled models only",
}


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


def require(condition: bool, name: str, value, requirement: str) -> None:
    if not condition:
        raise ValueError(f"`{name}` is {value!r}; required: {requirement}.")


def is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTPipeline(DiffusionPipeline, SanaLoraLoaderMixin):
    """Class-conditional image generation with a LightningDiT transformer and an image autoencoder.

    Args:
        transformer: `LightningDiTTransformer2DModel`.
        vae: `AutoencoderVAVAE`, or another diffusers image autoencoder with as many latent channels.
        scheduler: flow-matching scheduler; its shift is 1 / s for the original's timestep shift s.
        id2label: names of the classes, {0: "tench, Tinca tinca", ...}; synonyms are separated by commas.
        sampling_recipe: defaults of `__call__` that belong to the checkpoint; any of `num_inference_steps`,
            `guidance_scale`, `guidance_interval`, `guidance_channels`, `ode_method`, `ode_atol`, `ode_rtol`.

    Raises:
        ValueError: for an unknown key in `sampling_recipe` or a key of `id2label` that is no class.

    Example:
        >>> import diffusers_lightningdit
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> image = pipe("seven").images[0]
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents"]
    # Read with the class, not when it is saved: as remote code, the next repository's file may lie in this one's place.
    _source_code = __spec__.loader.get_source(__name__)

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

    @classmethod
    def load_lora_into_transformer(cls, state_dict: dict[str, torch.Tensor], transformer, *args, **kwargs) -> None:
        """As in diffusers, which would drop the weights of another architecture with a warning, or fail inside PEFT.

        Raises:
            ValueError: naming the first weight that has no place in this transformer.
        """
        modules = {f"{cls.transformer_name}.{name}": module for name, module in transformer.named_modules()}
        for key, weight in state_dict.items():
            match = LORA_WEIGHT.fullmatch(key)
            if match is None:
                continue  # alphas and the like: diffusers' business
            is_input = match["matrix"] in ("lora_A", "lora_down", "lora.down")
            # absent for a convolution; a layer that already has an adapter passes it on from the linear one
            width = getattr(modules.get(match["module"]), "in_features" if is_input else "out_features", None)
            problem = None
            if match["module"] not in modules:
                problem = f"no module `{match['module']}`"
            elif width is not None and weight.ndim == 2 and weight.shape[is_input] != width:
                problem = f"{'in' if is_input else 'out'}put width {width} there, not {weight.shape[is_input]}"
            if problem is not None:
                raise ValueError(
                    f"LoRA weight `{key}`: {type(transformer).__name__} has {problem}; required: a LoRA trained for "
                    "this architecture, with keys `transformer.<module>.lora_A.weight`."
                )
        super().load_lora_into_transformer(state_dict, transformer, *args, **kwargs)

    # -- Hub ------------------------------------------------------------------------------------------------------

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

    def _upload_folder(self, working_dir: str | os.PathLike, repo_id: str, **kwargs):
        """The last step of each push. A model card that the repository already has is kept."""
        card = Path(working_dir) / "README.md"
        if card.is_file() and GENERIC_CARD in card.read_text(encoding="utf-8"):
            card.write_text(self._model_card(repo_id), encoding="utf-8", newline="\n")
        return super()._upload_folder(working_dir, repo_id, **kwargs)

    def _model_card(self, repository: str) -> str:
        names = [name.split(",")[0].strip() for _, name in sorted(self.id2label.items())]
        recipe = {**DEFAULT_RECIPE, **(self.config.sampling_recipe or {})}
        if recipe["ode_method"] is None:
            recipe |= {"ode_atol": None, "ode_rtol": None}
        return MODEL_CARD.format(
            title=repository.rpartition("/")[2],
            repository=repository,
            label=next((repr(name) for name in names if len(self.labels[name]) == 1), 0),
            size=self.transformer.config.sample_size * vae_geometry(self.vae)[1],
            num_classes=self.transformer.config.num_classes,
            transformer_parameters=self.transformer.num_parameters(),
            vae=type(self.vae).__name__,
            vae_parameters=self.vae.num_parameters(),
            or_name=" or name" if names else "",
            names=f"; the names are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "",
            recipe=", ".join(f"`{key}={value!r}`" for key, value in recipe.items() if value is not None),
        )

    # -- labels ---------------------------------------------------------------------------------------------------

    @property
    def id2label(self) -> dict[int, str]:
        """Names of the classes: those of the checkpoint, and of the LoRAs that are loaded."""
        return {**self._id2label, **getattr(self.transformer, "new_class_names", {})}

    @property
    def labels(self) -> dict[str, list[int]]:
        """Every name and synonym with the ids that bear it (ImageNet has two classes called "crane")."""
        labels: dict[str, list[int]] = {}
        for class_id, names in self.id2label.items():
            # the whole entry counts as a name, too
            for name in dict.fromkeys([names.strip(), *map(str.strip, names.split(","))]):
                labels.setdefault(name, []).append(class_id)
        return labels

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

    def _from_recipe(self, **arguments) -> dict:
        """Arguments as given; those left to the recipe from the checkpoint's, then from the defaults."""
        recipe = {**DEFAULT_RECIPE, **(self.config.sampling_recipe or {})}
        return {
            name: recipe[name] if isinstance(value, str) and value == RECIPE else value
            for name, value in arguments.items()
        }

    def check_inputs(
        self,
        num_inference_steps,
        guidance_scale,
        guidance_interval,
        guidance_channels,
        ode_method,
        ode_atol,
        ode_rtol,
        height,
        width,
        num_images_per_prompt,
        num_labels,
        generator,
        latents,
        output_type,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
        guider=None,
    ) -> None:
        """Raises ValueError naming argument, value and requirement, before anything is computed."""
        self._check_sampling_inputs(
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
        )

        # Caches of the transformer, and guiders
        cache = self.transformer._cache_config
        if isinstance(cache, FasterCacheConfig) and not cache.is_guidance_distilled:
            require(
                guider is None and guidance_scale > 1,
                "guidance_scale",
                guidance_scale if guider is None else "replaced by `guider`",
                "more than 1 with FasterCache, which replaces unconditional halves",
            )
        is_guider = guider is None or isinstance(guider, BaseGuidance)
        require(is_guider, "guider", guider, "a guider of diffusers.guiders or None")
        require(
            guider is None or not isinstance(cache, PyramidAttentionBroadcastConfig),
            "guider",
            type(guider).__name__,
            "None with PyramidAttentionBroadcast, which would mix its conditional and unconditional calls",
        )

        # torchdiffeq
        if ode_method is None:
            return
        require(guider is None, "guider", type(guider).__name__, f"None with `ode_method={ode_method!r}`")
        require(
            not self.transformer.is_cache_enabled,
            "ode_method",
            ode_method,
            f"None with {type(cache).__name__}, since caches count the scheduler's steps",
        )
        require(ode_method in ODE_METHODS, "ode_method", ode_method, f"None or one of {ODE_METHODS}")
        for name, value in (("ode_atol", ode_atol), ("ode_rtol", ode_rtol)):
            require(isinstance(value, Real) and 0 < value < math.inf, name, value, "a positive number")
        require(
            isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler),
            "scheduler",
            type(self.scheduler).__name__,
            f"FlowMatchEulerDiscreteScheduler (its shift places the grid of `ode_method={ode_method!r}`)",
        )
        require(
            callback_on_step_end is None,
            "callback_on_step_end",
            callback_on_step_end,
            f"None, since `ode_method={ode_method!r}` has no steps to call it after",
        )
        if importlib.util.find_spec("torchdiffeq") is None:
            raise ImportError(f"`ode_method={ode_method!r}` needs torchdiffeq: pip install diffusers-lightningdit[ode]")

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

    # -- state read by callbacks and caches -----------------------------------------------------------------------

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self):
        """The scheduler's timestep, on its scale from 1000 (noise) to 0; None outside the loop."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to skip the remaining steps."""
        return self._interrupt

    # -- velocity -------------------------------------------------------------------------------------------------

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

    def _velocity_by_guider(
        self,
        guider: BaseGuidance,
        step: int,
        timestep: torch.Tensor,
        latents: torch.Tensor,
        t: float,
        class_ids: torch.Tensor,
        null_ids: torch.Tensor,
        attention_kwargs: dict | None,
    ) -> torch.Tensor:
        """The guider says which calls it needs, may change the network for some of them, and combines the results."""
        guider.set_state(step=step, num_inference_steps=self.num_timesteps, timestep=timestep)
        calls = guider.prepare_inputs({"class_ids": (class_ids, null_ids)})
        for call in calls:
            guider.prepare_models(self.transformer)
            name = getattr(call, guider._identifier_key)
            call.noise_pred = self._velocity(latents, t, call.class_ids, attention_kwargs, context=name)
            guider.cleanup_models(self.transformer)
        return guider(calls)[0]

    def _integrate(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        class_ids: torch.Tensor,
        null_ids: torch.Tensor,
        guided: bool,
        guidance_scale: float,
        guidance_interval: tuple[float, float] | None,
        guidance_channels: int | None,
        method: str,
        atol: float,
        rtol: float,
        attention_kwargs: dict | None,
    ) -> torch.Tensor:
        """Solve d latents / dt = velocity from t = 0 to 1 with torchdiffeq, on the original's state.

        With guidance the original's state is doubled: the second half moves with the unconditional velocity in the
        unguided channels and is dropped at the end, but takes part in the error norm that sets the step size.
        """
        from torchdiffeq import odeint

        batch_size = len(latents)

        def derivative(t: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            if not guided:
                return self._velocity(state, float(t), class_ids, attention_kwargs)
            velocity = self._velocity(state[:batch_size], float(t), torch.cat([null_ids, class_ids]), attention_kwargs)
            unconditional, conditional = velocity.chunk(2)
            # an adaptive step may look beyond t = 1 and interpolate back
            if not in_interval(min(float(t), 1.0), guidance_interval):
                first = conditional
            else:
                first = guide(conditional, unconditional, guidance_scale, guidance_channels)
            num_channels = guidance_channels or first.shape[1]
            return torch.cat([first, torch.cat([first[:, :num_channels], unconditional[:, num_channels:]], dim=1)])

        state = torch.cat([latents, latents]) if guided else latents
        if method == "dopri5":  # an adaptive method chooses its own steps
            times = times[[0, -1]]
        return odeint(derivative, state, times.to(latents.device), method=method, atol=atol, rtol=rtol)[-1][:batch_size]

    # -- call -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor,
        guidance_scale: float | str = RECIPE,
        guidance_interval: tuple[float, float] | None | str = RECIPE,
        guidance_channels: int | None | str = RECIPE,
        num_inference_steps: int | str = RECIPE,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["LightningDiTPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        attention_kwargs: dict | None = None,
        ode_method: str | None = RECIPE,
        ode_atol: float | str = RECIPE,
        ode_rtol: float | str = RECIPE,
        guider: BaseGuidance | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Draw one image for each label and `num_images_per_prompt`.

        The arguments with the default "recipe" take the value that the checkpoint's authors sampled with
        (`pipe.config.sampling_recipe`), or 50 steps with guidance 4.0 at all times and on all channels.

        Args:
            class_labels: a class id, a name of `id2label`, or a list of both.
            guidance_scale: strength of classifier-free guidance; 1 or less is no guidance.
            guidance_interval: (start, end) in t, 0 = noise and 1 = image; guidance acts at start <= t <= end, outside
                the unconditional half is not computed. None: at all times.
            guidance_channels: guide only so many leading latent channels; None: all.
            num_inference_steps: steps of the scheduler. The original's "250 steps" are 250 grid points: 249 here.
            height, width: image size in pixels, multiples of the VAE's factor times the patch size; default: the
                trained one.
            num_images_per_prompt: images for each label.
            generator: one, or a list with one for each image, which makes an image independent of its batch.
            latents: the initial noise [B, C, height / factor, width / factor]; drawn in float32 if None.
            output_type: "pil" (uint8 as the original: truncation of 127.5 x + 128), "np" [B, height, width, 3] or "pt"
                [B, 3, height, width] in [0, 1], or "latent": the transformer's normalised latents, float32.
            return_dict: return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: called as callback(pipe, step, timestep, {"latents": ...}) after each step; a returned
                {"latents": ...} replaces them.
            callback_on_step_end_tensor_inputs: which tensors it gets.
            attention_kwargs: {"scale": s} scales the active LoRA adapters.
            ode_method: "dopri5" or "heun2": solve with torchdiffeq in place of the scheduler, as the original can
                ("heun2" steps on the scheduler's grid, "dopri5" chooses its own steps). None: the scheduler.
            ode_atol, ode_rtol: tolerances of "dopri5".
            guider: one of `diffusers.guiders` (`ClassifierFreeGuidance`, `SkipLayerGuidance`, ...) in place of
                `guidance_scale`, `guidance_interval` and `guidance_channels`, which are then not to be given.

        Returns:
            `images`: list of PIL images, array or tensor.

        Raises:
            ValueError: for any argument or component that doesn't fit, before anything is computed.
        """
        if guider is not None:
            for name, value in (
                ("guidance_scale", guidance_scale),
                ("guidance_interval", guidance_interval),
                ("guidance_channels", guidance_channels),
            ):
                if not (isinstance(value, str) and value == RECIPE):
                    raise ValueError(f"`{name}` is {value!r}; required: not given beside `guider`, which replaces it.")
        settings = self._from_recipe(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_channels=guidance_channels,
            ode_method=ode_method,
            ode_atol=ode_atol,
            ode_rtol=ode_rtol,
        )
        class_ids = self.get_label_ids(class_labels)
        _, factor = vae_geometry(self.vae)
        height = self.transformer.config.sample_size * factor if height is None else height
        width = self.transformer.config.sample_size * factor if width is None else width
        self.check_inputs(
            **settings,
            height=height,
            width=width,
            num_images_per_prompt=num_images_per_prompt,
            num_labels=len(class_ids),
            generator=generator,
            latents=latents,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            guider=guider,
        )
        guidance_scale, guidance_interval, guidance_channels = (
            settings[name] for name in ("guidance_scale", "guidance_interval", "guidance_channels")
        )

        device = self._execution_device
        self._guidance_scale = guidance_scale if guider is None else getattr(guider, "guidance_scale", 1.0)
        self._interrupt = False
        self._current_timestep = None

        # 1. Labels, initial noise and time grid
        class_ids = torch.tensor(class_ids, device=device).repeat_interleave(num_images_per_prompt)
        null_ids = torch.full_like(class_ids, self.transformer.config.num_classes)
        guided = guidance_scale > 1
        if latents is None:
            shape = (len(class_ids), self.transformer.config.in_channels, height // factor, width // factor)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        else:
            latents = latents.to(device, torch.float32)
        times = set_timesteps(self.scheduler, settings["num_inference_steps"], device)
        latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
        self._num_timesteps = len(times)

        # 2. Solve the flow, its state in float32 whatever the network's dtype
        if settings["ode_method"] is not None:
            latents = self._integrate(
                latents,
                torch.cat([times, times.new_ones(1)]),
                class_ids,
                null_ids,
                guided,
                guidance_scale,
                guidance_interval,
                guidance_channels,
                settings["ode_method"],
                settings["ode_atol"],
                settings["ode_rtol"],
                attention_kwargs,
            )
        else:
            step_kwargs = {}
            if "generator" in inspect.signature(self.scheduler.step).parameters:
                step_kwargs["generator"] = generator
            both_halves = guided and isinstance(self.transformer._cache_config, SINGLE_BATCH_CACHES)
            with self.progress_bar(total=len(times)) as progress_bar:
                for i, (t, timestep) in enumerate(zip(times.tolist(), self.scheduler.timesteps, strict=True)):
                    if self.interrupt:
                        continue
                    self._current_timestep = timestep
                    if guider is not None:
                        velocity = self._velocity_by_guider(
                            guider, i, timestep, latents, t, class_ids, null_ids, attention_kwargs
                        )
                    else:
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

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents -> images [B, 3, height, width], within about [-1, 1], in float32."""
        latents = denormalize_latents(self.vae, latents)
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0].float()

    def _postprocess(self, images: torch.Tensor, output_type: str):
        if output_type == "pil":
            # uint8 by truncation, as the original; then values k / 255, which diffusers' own conversion keeps exactly
            pixels = (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
            return self.image_processor.numpy_to_pil(pixels.permute(0, 2, 3, 1).cpu().numpy() / 255)
        return self.image_processor.postprocess(images, output_type=output_type)
