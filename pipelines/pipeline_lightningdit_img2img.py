# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Image-to-image and inpainting by class with LightningDiT (arXiv 2501.01423).

The pipeline is loaded by its class, or as remote code from this file with `lightningdit_sampling.py` beside it:
`DiffusionPipeline.from_pretrained(..., custom_pipeline="pipelines/pipeline_lightningdit_img2img.py")`.

Both tasks are one pipeline, because they differ in one line of the loop: SDEdit (arXiv 2108.01073) starts the flow from
a noised image, t data + (1 - t) noise, in place of noise; with a mask, everything outside it is set back to the noised
image after each step.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput

from .lightningdit_sampling import (
    RECIPE,
    TIME_TOLERANCE,
    SamplingMixin,
    check_start_from_image,
    encode,
    image_size,
    initial_noise,
    list_images,
    postprocess,
    preprocess,
    require_finite,
    set_timesteps,
    vae_geometry,
)


class LightningDiTImg2ImgPipeline(SamplingMixin, DiffusionPipeline):
    """Image-to-image and inpainting by class with a LightningDiT transformer and an image autoencoder.

    Args:
        transformer, vae, scheduler, id2label, sampling_recipe: Those of `LightningDiTPipeline`, whose folders this
            pipeline loads.

    Raises:
        ValueError: For an unknown key of `sampling_recipe`, or a key of `id2label` that is not a class.

    Example:
        >>> import torch
        >>> import diffusers_lightningdit
        >>> from diffusers import DiffusionPipeline
        >>> pipe = DiffusionPipeline.from_pretrained("model_cards/lightningdit-digits")
        >>> three = pipe("three", generator=torch.Generator().manual_seed(0)).images[0]

        Image-to-image: an eight in the manner of that three.

        >>> edit = DiffusionPipeline.from_pretrained(
        ...     "model_cards/lightningdit-digits",
        ...     custom_pipeline="pipelines/pipeline_lightningdit_img2img.py",
        ...     trust_remote_code=True,
        ... )
        >>> image = edit("eight", image=three, strength=0.7).images[0]

        Inpainting: the left half is drawn anew, the right half stays as it is.

        >>> mask = torch.zeros(three.height, three.width)
        >>> mask[:, : three.width // 2] = 1
        >>> image = edit("eight", image=three, mask_image=mask, strength=1.0).images[0]
    """

    _source_code = __spec__.loader.get_source(__name__)  # see `SHARED_CODE`
    _card_call = "image = pipe({label}, image=image).images[0]"

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | list[int | str] | torch.Tensor,
        image,
        mask_image=None,
        strength: float = 0.8,
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
        callback_on_step_end: Callable[["LightningDiTImg2ImgPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | tuple[str, ...] = ("latents",),
        attention_kwargs: dict | None = None,
        check_finite: bool = True,
        internal_guidance_scale: float | str = RECIPE,
        internal_guidance_interval: tuple[float, float] | None | str = RECIPE,
    ) -> ImagePipelineOutput | tuple:
        """Draw images of the classes that start from given images, only within a mask if there is one.

        The arguments that are not described here are those of `LightningDiTPipeline`, with the same defaults.

        Args:
            class_labels: A class id, a name of `id2label`, or a list of both.
            image: The images to start from, one or as many as `class_labels`: PIL images, arrays [height, width, 3] or
                tensors [3, height, width] within [0, 1], or a batch or list of them. They are resized to `height` and
                `width`.
            mask_image: The masks, one or as many as `class_labels`: PIL images, arrays or tensors [height, width].
                Values above 0.5 (white) are drawn anew, the other pixels are kept. A latent that covers a drawn pixel
                is drawn.
            strength: How far to go back to noise, above 0 and at most 1. Drawing starts at the first point of the
                scheduler's grid with t >= 1 - strength; 1 starts from noise alone.
            num_inference_steps: The number of steps of the whole grid, of which those from t = 1 - strength on are
                taken.
            latents: The noise [B, C, height / factor, width / factor]. None: it is drawn in float32.

        Returns:
            `images`: a list of PIL images, an array or a tensor, with `num_images_per_prompt` images for each label.

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
        height, width = image_size(self.transformer, self.vae, height, width)
        images = list_images(image)
        masks = None if mask_image is None else list_images(mask_image, "mask_image", is_mask=True)
        self.check_inputs(
            **recipe,
            strength=strength,
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
            check_finite=check_finite,
            return_dict=return_dict,
        )
        for name, values in (("image", images), ("mask_image", masks)):
            if values is not None and len(values) not in (1, len(class_ids)):
                raise ValueError(
                    f"`{name}` holds {len(values)}; required: 1, or as many as `class_labels`, {len(class_ids)}."
                )

        # 1. Labels and time grid
        device = self._execution_device
        num_inference_steps, guidance_scale = (recipe.pop(name) for name in ("num_inference_steps", "guidance_scale"))
        call = self._own_call(guidance_scale)
        class_ids = torch.tensor(class_ids, device=device).repeat_interleave(num_images_per_prompt)
        batch_size = len(class_ids)
        times = call._set_timesteps_from(strength, num_inference_steps, device)

        # 2. Images, masks and noise
        factor = vae_geometry(self.vae)[1]
        pixels = preprocess(images, height, width, self.vae).to(device)  # [1 or labels, 3, height, width]
        data = encode(self.vae, pixels)
        if check_finite:
            require_finite("vae", self.vae, data)
        data = data.repeat_interleave(batch_size // len(data), dim=0)  # [B, C, height / factor, width / factor]
        noise = initial_noise(latents, data.shape, generator, device)

        def noised(t: float) -> torch.Tensor:
            return t * data + (1 - t) * noise

        keep_outside_masks = None
        if masks is not None:
            masks = preprocess(masks, height, width, self.vae, is_mask=True).to(device)  # [1 or labels, 1, H, W]
            latent_masks = F.max_pool2d(masks, factor).repeat_interleave(batch_size // len(masks), dim=0)

            def keep_outside_masks(latents: torch.Tensor, t: float) -> torch.Tensor:
                return latent_masks * latents + (1 - latent_masks) * noised(t)

        # 3. Solve the flow
        latents = call._denoise(
            # DPM-Solver's first sigma is 0.999, also for noise alone
            noise if strength == 1 else noised(float(times[0])),
            times,
            call._guided_velocity(class_ids, attention_kwargs, **recipe),
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
            after_step=keep_outside_masks,
        )

        # 4. Decode; outside the masks the pixels stay what they were
        if masks is None or output_type == "latent":
            return call._output(call._to_images(latents, output_type, check_finite), return_dict)
        masks = masks.repeat_interleave(batch_size // len(masks), dim=0)
        pixels = pixels.repeat_interleave(batch_size // len(pixels), dim=0)
        images = masks * call._decode(latents, check_finite) + (1 - masks) * pixels
        return call._output(postprocess(self.image_processor, images, output_type), return_dict)

    def _set_timesteps_from(self, strength: float, num_inference_steps: int, device: torch.device) -> torch.Tensor:
        """Let the scheduler begin at the first point with t >= 1 - strength, and return t from there on.

        Raises:
            ValueError: If the scheduler cannot begin there, or no step does.
        """
        times = set_timesteps(self.scheduler, num_inference_steps, device)
        check_start_from_image(self.scheduler)
        # A scheduler of second order evaluates the network twice a step.
        starts = range(0, len(times), getattr(self.scheduler, "order", 1))
        begin = next((i for i in starts if times[i] >= 1 - strength - TIME_TOLERANCE), None)
        if begin is None:
            raise ValueError(
                f"`strength` is {strength} with {num_inference_steps} steps, of which none starts at "
                f"t >= {float(1 - strength):g}; required: a greater strength or more steps."
            )
        self.scheduler.set_begin_index(begin)
        return times[begin:]
