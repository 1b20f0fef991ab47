# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""From one class to another with LightningDiT (arXiv 2501.01423): spherical interpolation of noise and label.

The pipeline is loaded by its class, or as remote code from this file with `lightningdit_sampling.py` beside it:
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_lightningdit_interpolation.py")`.
"""

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput

from .lightningdit_sampling import (
    RECIPE,
    SamplingMixin,
    exclusive,
    image_size,
    initial_noise,
    latents_shape,
    set_timesteps,
    shown,
)


def slerp(start: torch.Tensor, end: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation (Shoemake 1985): sin((1 - w) a) / sin(a) start + sin(w a) / sin(a) end, a their angle.

    It keeps the norm of equally long vectors, which a mixture of two noises needs to look like noise. Where the angle
    vanishes, the interpolation is (1 - w) start + w end.

    Args:
        start, end: Tensors of the same shape [...], each treated as one vector.
        weights: [N] within [0, 1].

    Returns:
        [N, ...].
    """
    weights = weights.to(start).view(-1, *[1] * start.ndim)
    angle = torch.acos(F.cosine_similarity(start.flatten(), end.flatten(), dim=0).clamp(-1, 1))
    if angle.sin() < 1e-4:
        return (1 - weights) * start + weights * end
    return (torch.sin((1 - weights) * angle) * start + torch.sin(weights * angle) * end) / angle.sin()


class LightningDiTInterpolationPipeline(SamplingMixin, DiffusionPipeline):
    """Images on the way from one class to another with a LightningDiT transformer and an image autoencoder.

    Args:
        transformer, vae, scheduler, id2label, sampling_recipe: Those of `LightningDiTPipeline`, whose folders this
            pipeline loads.

    Raises:
        ValueError: For an unknown key of `sampling_recipe`, or a key of `id2label` that is not a class.

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

    _source_code = __spec__.loader.get_source(__name__)  # see `SHARED_CODE`
    _card_call = "images = pipe([{label}, 1], num_images=8).images"

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
        check_finite: bool = True,
        internal_guidance_scale: float | str = RECIPE,
        internal_guidance_interval: tuple[float, float] | None | str = RECIPE,
    ) -> ImagePipelineOutput | tuple:
        """Draw images whose noise and label embedding move in equal angles from one end to the other.

        The arguments that are not described here are those of `LightningDiTPipeline`, with the same defaults.

        Args:
            class_labels: Two class ids or names of `id2label`, the ends. If both are the same class, only the noise
                moves.
            num_images: The number of images, at least 2, with both ends included.
            generator: One generator, or a list of two that draw the noise of the ends. With two in the same state, only
                the label moves.
            latents: The noise of both ends [2, C, height / factor, width / factor]. None: it is drawn in float32.

        Returns:
            `images`: a list of PIL images, an array or a tensor. The first and the last image are those that
            `LightningDiTPipeline` draws for the labels and the noise of the ends.

        Raises:
            ValueError: For an argument or a component that does not fit, before anything is computed; for a result
                that is not finite.
        """
        recipe = self._from_recipe(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_channels=guidance_channels,
            internal_guidance_scale=internal_guidance_scale,
            internal_guidance_interval=internal_guidance_interval,
        )
        class_ids = self.get_label_ids(class_labels)
        if len(class_ids) != 2:
            raise ValueError(f"`class_labels` is {shown(class_labels)}; required: two classes, the first and the last.")
        height, width = image_size(self.transformer, self.vae, height, width)
        self.check_inputs(
            **recipe,
            num_images=num_images,
            num_labels=len(class_ids),
            height=height,
            width=width,
            generator=generator,
            latents=latents,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            attention_kwargs=attention_kwargs,
            check_finite=check_finite,
            return_dict=return_dict,
        )
        if hasattr(self.transformer, "_orig_mod") or self.transformer._compiled_call_impl is not None:
            raise ValueError(
                "`transformer` is compiled as a whole, which ignores the hook that interpolates labels; required: one "
                "that is not, or with `compile_repeated_blocks()`."
            )

        # 1. Time grid; labels and noise between the ends
        device = self._execution_device
        num_inference_steps, guidance_scale = (recipe.pop(name) for name in ("num_inference_steps", "guidance_scale"))
        call = self._own_call(guidance_scale)
        times = set_timesteps(call.scheduler, num_inference_steps, device)
        weights = torch.linspace(0, 1, num_images, device=device)
        class_ids = torch.tensor([class_ids[0]] * (num_images - 1) + [class_ids[1]], device=device)
        shape = latents_shape(self.transformer, self.vae, 2, height, width)
        first, last = initial_noise(latents, shape, generator, device)
        latents = slerp(first, last, weights) * getattr(call.scheduler, "init_noise_sigma", 1.0)

        # 2. Solve the flow
        velocity = call._guided_velocity(class_ids, attention_kwargs, **recipe)

        def velocity_between(latents: torch.Tensor, t: float, step: int) -> torch.Tensor:
            with self._interpolated_labels(weights):
                return velocity(latents, t, step)

        latents = call._denoise(
            latents,
            times,
            velocity_between,
            generator[0] if isinstance(generator, list) else generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )

        # 3. Decode
        return call._output(call._to_images(latents, output_type, check_finite), return_dict)

    @contextlib.contextmanager
    def _interpolated_labels(self, weights: torch.Tensor):
        """Let the last len(weights) label embeddings of each batch lie between the first and the last of them."""

        def hook(module, args, embeddings: torch.Tensor) -> torch.Tensor:  # [B, D]
            others, between = embeddings[: -len(weights)], embeddings[-len(weights) :]
            return torch.cat([others, slerp(between[0], between[-1], weights)])

        with exclusive(self.transformer):
            handle = self.transformer.class_embedder.register_forward_hook(hook)
            try:
                yield
            finally:
                handle.remove()
