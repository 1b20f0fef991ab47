# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Class labels -> images with LightningDiT (arXiv 2501.01423).

The pipeline is loaded by its class, or as remote code from this file with `lightningdit_sampling.py` beside it:
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_lightningdit.py", trust_remote_code=True)`.
"""

import copy
import importlib.util
from collections.abc import Callable

import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    PyramidAttentionBroadcastConfig,
)
from diffusers.guiders import BaseGuidance

from .lightningdit_sampling import (
    RECIPE,
    SamplingMixin,
    check_arguments,
    guide,
    image_size,
    in_interval,
    initial_noise,
    internal_scale,
    jumps_to_data,
    latents_shape,
    predict_velocity,
    require,
    set_timesteps,
    solve_ode,
    velocity_of_guider,
)


class LightningDiTPipeline(SamplingMixin, DiffusionPipeline):
    """Class-conditional image generation with a LightningDiT transformer and an image autoencoder.

    Args:
        transformer: A `LightningDiTTransformer2DModel`.
        vae: An `AutoencoderVAVAE`, or another image autoencoder of diffusers with as many latent channels.
        scheduler: A flow-matching scheduler. Its shift is 1 / s for the timestep shift s of the original.
        id2label: The names of the classes, {0: "tench, Tinca tinca", ...}; commas separate synonyms.
        sampling_recipe: The defaults of `__call__` that belong to the checkpoint: any of `num_inference_steps`,
            `guidance_scale`, `guidance_interval`, `guidance_channels`, `internal_guidance_scale`,
            `internal_guidance_interval`, `ode_method`, `ode_atol`, `ode_rtol`.

    Raises:
        ValueError: For an unknown key of `sampling_recipe`, or a key of `id2label` that is not a class.

    Example:
        >>> import diffusers_lightningdit
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> image = pipe("seven").images[0]
    """

    _source_code = __spec__.loader.get_source(__name__)  # see `SHARED_CODE`
    _card_call = "image = pipe({label}).images[0]"

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor | None,
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
        check_finite: bool = True,
        internal_guidance_scale: float | str = RECIPE,
        internal_guidance_interval: tuple[float, float] | None | str = RECIPE,
    ) -> ImagePipelineOutput | tuple:
        """Draw `num_images_per_prompt` images for each label.

        An argument whose default is "recipe" takes the value that the authors of the checkpoint sampled with
        (`pipe.config.sampling_recipe`), or else of 50 steps with guidance 4.0 at all times and on all channels. The
        sampler is the checkpoint's scheduler; a network for a few steps has
        `FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)`, which draws new noise after each of them.

        Args:
            class_labels: A class id, a name of `id2label`, or a list of both. None: without a class (the null class).
            guidance_scale: The strength of classifier-free guidance. A value of 1 or less turns it off.
            guidance_interval: (start, end) in t, 0 = noise and 1 = image. Guidance is applied at start <= t <= end;
                elsewhere the unconditional half is not computed. None: at all times.
            guidance_channels: The number of leading latent channels that are guided. None: all.
            num_inference_steps: The number of steps of the scheduler. The "250 steps" of the original are 250 grid
                points, which are 249 steps here. More than a network for a few steps was distilled for are taken with a
                warning.
            height, width: The image size in pixels, multiples of the VAE's factor times the patch size; by default
                the size of the training.
            num_images_per_prompt: The number of images for each label.
            generator: One generator, or a list with one for each image, which makes an image independent of its batch.
            latents: The initial noise [B, C, height / factor, width / factor]. None: it is drawn in float32.
            output_type: "pil" (8 bits as in the original, by truncation of 127.5 x + 128), "np" [B, height, width, 3]
                or "pt" [B, 3, height, width] in [0, 1], or "latent": the normalised latents, float32.
            return_dict: Whether to return an `ImagePipelineOutput` instead of a tuple.
            callback_on_step_end: Called as callback(pipe, step, timestep, {"latents": ...}) after each step, where
                `pipe` has the state of this call alone. It returns nothing, or a dictionary whose "latents", if it has
                them, replace those of the loop.
            callback_on_step_end_tensor_inputs: The names of the tensors that the callback gets.
            attention_kwargs: {"scale": s} scales the active LoRA adapters.
            ode_method: "dopri5" or "heun2" solves the flow with torchdiffeq in place of the scheduler, as the original
                can: "heun2" steps on the scheduler's grid, "dopri5" chooses its own steps. None: the scheduler.
            ode_atol, ode_rtol: The tolerances of "dopri5".
            guider: A guider of `diffusers.guiders` (`ClassifierFreeGuidance`, `SkipLayerGuidance`, ...) in place of
                `guidance_*` and `internal_guidance_*`, which must not be given beside it.
            check_finite: Whether NaN or infinity in the result is an error. False: it is returned, or drawn as black.
            internal_guidance_scale: The strength of internal guidance (arXiv 2512.24176), away from the velocity of an
                earlier block, for a transformer with `internal_guidance_layer`. It costs no evaluation, is on all
                channels and goes together with `guidance_scale`, before it. 1: none.
            internal_guidance_interval: (start, end) in t for internal guidance. None: at all times.

        Returns:
            `images`: a list of PIL images, an array or a tensor.

        Raises:
            ValueError: For an argument or a component that does not fit, before anything is computed; for a result
                that is not finite.
            ImportError: If `ode_method` is given and torchdiffeq is not installed.
        """
        guidance = {
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "guidance_channels": guidance_channels,
            "internal_guidance_scale": internal_guidance_scale,
            "internal_guidance_interval": internal_guidance_interval,
        }
        check_arguments({"guider": guider})
        if guider is not None:
            for name, value in guidance.items():
                is_recipe = isinstance(value, str) and value == RECIPE
                require(is_recipe, name, value, "not given beside `guider`, which replaces it")
        guidance = self._from_recipe(**guidance)
        if guider is not None:
            guidance["internal_guidance_scale"] = 1.0
        ode = self._from_recipe(ode_method=ode_method, ode_atol=ode_atol, ode_rtol=ode_rtol)
        num_inference_steps = self._from_recipe(num_inference_steps=num_inference_steps)["num_inference_steps"]
        class_ids = self.get_label_ids(class_labels)
        height, width = image_size(self.transformer, self.vae, height, width)
        self.check_inputs(
            **guidance,
            num_inference_steps=num_inference_steps,
            num_labels=len(class_ids),
            num_images_per_prompt=num_images_per_prompt,
            height=height,
            width=width,
            generator=generator,
            latents=latents,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            attention_kwargs=attention_kwargs,
            **ode,
            check_finite=check_finite,
            return_dict=return_dict,
        )
        self.check_guider_and_ode(guider, guidance["guidance_scale"], callback_on_step_end, ode["ode_method"])

        # 1. Labels, time grid and initial noise
        device = self._execution_device
        guider = copy.deepcopy(guider)  # some keep a state, as momentum, from one step to the next
        call = self._own_call(guidance["guidance_scale"] if guider is None else getattr(guider, "guidance_scale", 1.0))
        class_ids = torch.tensor(class_ids, device=device).repeat_interleave(num_images_per_prompt)
        times = set_timesteps(call.scheduler, num_inference_steps, device)
        shape = latents_shape(self.transformer, self.vae, len(class_ids), height, width)
        latents = initial_noise(latents, shape, generator, device) * getattr(call.scheduler, "init_noise_sigma", 1.0)

        # 2. Solve the flow
        if ode["ode_method"] is not None:
            latents = call._integrate(latents, times, class_ids, **guidance, **ode, attention_kwargs=attention_kwargs)
        else:
            if guider is not None:
                velocity = call._velocity_of_guider(guider, class_ids, attention_kwargs)
            else:
                of_steps = {name: value for name, value in guidance.items() if name != "guidance_scale"}
                velocity = call._guided_velocity(class_ids, attention_kwargs, **of_steps)
            latents = call._denoise(
                latents, times, velocity, generator, callback_on_step_end, callback_on_step_end_tensor_inputs
            )

        # 3. Decode
        return call._output(call._to_images(latents, output_type, check_finite), return_dict)

    def check_guider_and_ode(
        self, guider: BaseGuidance | None, guidance_scale: float, callback_on_step_end, ode_method: str | None
    ) -> None:
        """Raise ValueError for a guider, a cache and a solver that do not go together."""
        cache = self.transformer._cache_config
        if isinstance(cache, FasterCacheConfig) and not cache.is_guidance_distilled:
            require(
                guider is None and guidance_scale > 1,
                "guidance_scale",
                guidance_scale if guider is None else "replaced by `guider`",
                "more than 1 with FasterCache, which replaces unconditional halves",
            )
        require(
            guider is None or not isinstance(cache, PyramidAttentionBroadcastConfig),
            "guider",
            type(guider).__name__,
            "None with PyramidAttentionBroadcast, which would mix its conditional and unconditional calls",
        )
        if ode_method is None:
            return

        require(guider is None, "guider", type(guider).__name__, f"None with `ode_method={ode_method!r}`")
        require(
            not self.transformer.is_cache_enabled,
            "ode_method",
            ode_method,
            f"None with {type(cache).__name__}, since caches count the scheduler's steps",
        )
        require(
            isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler),
            "scheduler",
            type(self.scheduler).__name__,
            f"FlowMatchEulerDiscreteScheduler (its shift places the grid of `ode_method={ode_method!r}`)",
        )
        require(
            self.transformer.config.get("second_time_embedding") or not jumps_to_data(self.scheduler),
            "ode_method",
            ode_method,
            "None for a network for a few steps without `second_time_embedding`, which predicts jumps and no velocity",
        )
        require(
            callback_on_step_end is None,
            "callback_on_step_end",
            callback_on_step_end,
            f"None, since `ode_method={ode_method!r}` has no steps to call it after",
        )
        if importlib.util.find_spec("torchdiffeq") is None:
            raise ImportError(f"`ode_method={ode_method!r}` needs torchdiffeq: pip install diffusers-lightningdit[ode]")

    def _velocity_of_guider(
        self, guider: BaseGuidance, class_ids: torch.Tensor, attention_kwargs: dict | None
    ) -> Callable[[torch.Tensor, float, int], torch.Tensor]:
        """Return the velocity as a guider combines it, as a function of (latents, t, step)."""
        null_ids = torch.full_like(class_ids, self.transformer.config.num_classes)
        jumps = jumps_to_data(self.scheduler)

        def velocity(latents: torch.Tensor, t: float, step: int) -> torch.Tensor:
            guider.set_state(step, num_inference_steps=self.num_timesteps, timestep=self.current_timestep)
            arguments = {"latents": latents, "t": t, "attention_kwargs": attention_kwargs, "jumps": jumps}
            return velocity_of_guider(guider, (class_ids, null_ids), self.transformer, **arguments)

        return velocity

    def _integrate(
        self,
        latents: torch.Tensor,
        times: torch.Tensor,
        class_ids: torch.Tensor,
        guidance_scale: float,
        guidance_interval: tuple[float, float] | None,
        guidance_channels: int | None,
        internal_guidance_scale: float,
        internal_guidance_interval: tuple[float, float] | None,
        ode_method: str,
        ode_atol: float,
        ode_rtol: float,
        attention_kwargs: dict | None,
    ) -> torch.Tensor:
        """Solve d latents / dt = velocity from t = 0 to 1 with torchdiffeq, on the state of the original.

        With guidance, the state of the original is doubled. The second half moves with the unconditional velocity in
        the unguided channels and is dropped at the end, but it takes part in the error norm that sets the step size.
        """
        batch_size = len(latents)
        both_ids = torch.cat([torch.full_like(class_ids, self.transformer.config.num_classes), class_ids])
        is_guided = guidance_scale > 1

        def derivative(t: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            t = float(t)
            within = min(t, 1.0)  # an adaptive step may evaluate the velocity beyond t = 1 and interpolate back
            scale = internal_scale(self.transformer, within, internal_guidance_scale, internal_guidance_interval)
            ids = both_ids if is_guided else class_ids
            both = predict_velocity(
                self.transformer, state[:batch_size], t, ids, attention_kwargs, internal_guidance_scale=scale
            )
            if not is_guided:
                return both
            unconditional, conditional = both.chunk(2)
            if in_interval(within, guidance_interval):
                first = guide(conditional, unconditional, guidance_scale, guidance_channels)
            else:
                first = conditional
            num_channels = guidance_channels or first.shape[1]
            return torch.cat([first, torch.cat([first[:, :num_channels], unconditional[:, num_channels:]], dim=1)])

        self._num_timesteps = len(times)
        times = torch.cat([times, times.new_ones(1)]).to(latents.device)
        if ode_method == "dopri5":
            times = times[[0, -1]]
        state = torch.cat([latents, latents]) if is_guided else latents
        return solve_ode(derivative, state, times, ode_method, ode_atol, ode_rtol)[-1][:batch_size]
