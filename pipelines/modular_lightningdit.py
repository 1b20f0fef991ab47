# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Modular pipelines of diffusers: the steps of generation, image-to-image and inpainting as blocks.

    pipe = ModularPipeline.from_pretrained("user/modular-lightningdit", trust_remote_code=True)
    pipe.load_components(trust_remote_code=True)
    images = pipe(class_labels=["golden retriever", 88], output="images")

The mathematics is that of `lightningdit_sampling.py`, and the images are those of `LightningDiTPipeline` and
`LightningDiTImg2ImgPipeline` with the same noise. Guidance is a component, `guider`: `LightningDiTGuidance`, which has
the interval in t and the first channels that the released figures guide, or any guider of diffusers.

Letters in the shape comments: B images, C latent channels.
"""

import copy

import torch
import torch.nn.functional as F
from diffusers import ClassifierFreeGuidance
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines import (
    AutoPipelineBlocks,
    BlockState,
    ComponentSpec,
    ConfigSpec,
    InputParam,
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    OutputParam,
    PipelineState,
    SequentialPipelineBlocks,
)
from diffusers.utils import logging

from .lightningdit_sampling import (
    OUTPUT_TYPES,
    TIME_TOLERANCE,
    ClassLabelsMixin,
    check_arguments,
    check_components,
    check_internal_guidance,
    check_scheduler,
    check_start_from_image,
    decode,
    encode,
    image_size,
    in_interval,
    initial_noise,
    internal_scale,
    jumps_to_data,
    latents_shape,
    list_images,
    noise_arguments,
    one_run_of_a_cache,
    postprocess,
    preprocess,
    recipe_of,
    require,
    require_finite,
    set_timesteps,
    vae_geometry,
    velocity_of_guider,
    warn_of_too_many_steps,
)

# The blocks below state what they take and give as class attributes, where diffusers has properties. `inputs` are
# properties here, too: diffusers changes `required` of the `InputParam`s that it reads, which must be new each time.

logger = logging.get_logger(__name__)
MODEL_NAME = "lightningdit"
# Models are found by the repository's own code, and their classes are not known to this file.
TRANSFORMER, VAE, SCHEDULER = ComponentSpec("transformer"), ComponentSpec("vae"), ComponentSpec("scheduler")
RECIPE = ConfigSpec("sampling_recipe", default=None, description="The sampling that belongs to the checkpoint.")
GENERATOR = InputParam("generator", description="A torch.Generator, or a list with one for each image.")
ID2LABEL = ConfigSpec("id2label", default=None, description="The names of the classes, {id: name}.")


# ---------------------------------------------------------------------------------------------------------------------
# Guidance
# ---------------------------------------------------------------------------------------------------------------------


GUIDANCE_ARGUMENTS = (
    "guidance_scale",
    "guidance_interval",
    "guidance_channels",
    "internal_guidance_scale",
    "internal_guidance_interval",
)


class LightningDiTGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance (arXiv 2207.12598) in an interval of t (arXiv 2404.07724), on the first channels.

    Before it, internal guidance (arXiv 2512.24176) of a transformer with `internal_guidance_layer`.

    An argument that is None has the value of the checkpoint's recipe (`sampling_recipe` of the pipeline's config).

    Args:
        guidance_scale: The strength; 1 or less: no guidance.
        guidance_interval: (start, end) in t, 0 = noise and 1 = image; guidance acts at start <= t <= end.
        guidance_channels: The number of leading latent channels that are guided; 0: all.
        internal_guidance_scale: The strength of internal guidance, on all channels; 1: none.
        internal_guidance_interval: (start, end) in t for internal guidance.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_channels: int | None = None,
        internal_guidance_scale: float | None = None,
        internal_guidance_interval: tuple[float, float] | None = None,
    ):
        super().__init__(guidance_scale=guidance_scale)
        self.guidance_interval, self.guidance_channels = guidance_interval, guidance_channels
        self.internal_guidance_scale = 1.0 if internal_guidance_scale is None else internal_guidance_scale
        self.internal_guidance_interval = internal_guidance_interval
        self.time = 0.0

    def follow(self, recipe: dict) -> None:
        """Take the values of a recipe for the arguments that are None."""
        for name in GUIDANCE_ARGUMENTS:
            given = self.config[name]
            setattr(self, name, recipe[name] if given is None else given)

    def _is_cfg_enabled(self) -> bool:
        return self._enabled and self.guidance_scale > 1 and in_interval(self.time, self.guidance_interval)

    def forward(self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None):
        """The guided velocity [B, C, height, width] of the conditional and the unconditional one."""
        output = super().forward(pred_cond, pred_uncond)
        channels = self.guidance_channels or pred_cond.shape[1]
        output.pred = torch.cat([output.pred[:, :channels], pred_cond[:, channels:]], dim=1)
        return output


# ---------------------------------------------------------------------------------------------------------------------
# Before the loop
# ---------------------------------------------------------------------------------------------------------------------


class _Labels(ClassLabelsMixin):
    """The classes' names, without a pipeline around them."""

    def __init__(self, transformer, id2label: dict | None):
        self.transformer = transformer
        self._id2label = {int(key): name for key, name in (id2label or {}).items()}


def own_components(components):
    """A copy of the pipeline for one call, with a scheduler and a guider of its own, and the same models.

    Calls of other threads then leave this one alone.
    """
    own = copy.copy(components)
    for name in ("scheduler", "guider"):
        if getattr(components, name, None) is not None:
            vars(own)[name] = copy.deepcopy(getattr(components, name))  # not registered anew
    return own


class LightningDiTInputStep(ModularPipelineBlocks):
    """Checks the arguments and components, and makes ids of class labels, one for each image.

    The blocks that follow get components of their own; see `own_components`.
    """

    model_name = MODEL_NAME
    description = "Turns names and ids of classes into one id for each image, and settles the size of the images."
    expected_components = [TRANSFORMER, VAE, SCHEDULER]
    expected_configs = [ID2LABEL]
    intermediate_outputs = [
        OutputParam("class_ids", type_hint=torch.Tensor, description="The id of each image's class, [B]."),
        OutputParam("null_ids", type_hint=torch.Tensor, description="The null class for each image, [B]."),
        OutputParam("num_labels", type_hint=int, description="The number of class labels."),
    ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("class_labels", required=True, description="A class id, a name, or a list of both."),
            InputParam("num_images_per_prompt", default=1, type_hint=int, description="Images for each label."),
            InputParam("height", type_hint=int, description="The height in pixels; by default that of the training."),
            InputParam("width", type_hint=int, description="The width in pixels; by default that of the training."),
            # of the blocks that follow, and checked before anything is computed
            InputParam("num_inference_steps", type_hint=int, description="Steps; by default the recipe's."),
            GENERATOR,
            InputParam("latents", type_hint=torch.Tensor, description="The noise, instead of drawing it."),
            InputParam("attention_kwargs", description='{"scale": s} scales the active LoRA adapters.'),
            InputParam("output_type", default="pil", type_hint=str, description='"pil", "np", "pt" or "latent".'),
        ]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState) -> tuple:
        block = self.get_block_state(state)
        check_scheduler(components.scheduler)
        check_components(components.transformer, components.vae)
        components = own_components(components)
        check_arguments({"num_images_per_prompt": block.num_images_per_prompt})
        ids = _Labels(components.transformer, components.config.get("id2label")).get_label_ids(block.class_labels)
        block.num_labels = len(ids)
        block.class_ids = torch.tensor(ids, device=components._execution_device).repeat_interleave(
            block.num_images_per_prompt
        )
        block.null_ids = torch.full_like(block.class_ids, components.transformer.config.num_classes)
        block.height, block.width = image_size(components.transformer, components.vae, block.height, block.width)
        multiple = vae_geometry(components.vae)[1] * components.transformer.config.patch_size
        check_arguments({"height": block.height, "width": block.width}, multiple=multiple)
        if block.num_inference_steps is None:
            block.num_inference_steps = recipe_of(components)["num_inference_steps"]
        names = ("num_inference_steps", "generator", "latents", "attention_kwargs", "output_type")
        number = len(block.class_ids)
        check_arguments(
            {name: getattr(block, name) for name in names},
            number=number,
            shape=latents_shape(components.transformer, components.vae, number, block.height, block.width),
            output_types=OUTPUT_TYPES,
        )
        self.set_block_state(state, block)
        return components, state


class LightningDiTSetTimestepsStep(ModularPipelineBlocks):
    """Sets the time grid, from noise on or, with `strength`, from a noised image."""

    model_name = MODEL_NAME
    description = "Sets the time grid of the scheduler, and the t of each evaluation of the network."
    expected_components = [SCHEDULER]
    expected_configs = [RECIPE]
    intermediate_outputs = [
        OutputParam("times", description="t of each evaluation and of the end, 0 = noise and 1 = image."),
        OutputParam("timesteps", type_hint=torch.Tensor, description="The timesteps of the scheduler."),
    ]

    @property
    def inputs(self) -> list[InputParam]:
        return [InputParam("num_inference_steps", type_hint=int, description="Steps; by default the recipe's.")]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState) -> tuple:
        block = self.get_block_state(state)
        if block.num_inference_steps is None:
            block.num_inference_steps = recipe_of(components)["num_inference_steps"]
        check_arguments({"num_inference_steps": block.num_inference_steps})
        warn_of_too_many_steps(components, block.num_inference_steps)
        ode_method = recipe_of(components)["ode_method"]
        if ode_method is not None:
            logger.warning(
                f"The recipe has `ode_method` {ode_method!r}, which modular pipelines do not have: the "
                f"{type(components.scheduler).__name__} samples."
            )
        times = set_timesteps(components.scheduler, block.num_inference_steps, components._execution_device).tolist()
        begin = self.first_step(components, block, times)
        block.times = [*times[begin:], 1.0]
        block.timesteps = components.scheduler.timesteps[begin:]
        self.set_block_state(state, block)
        return components, state

    def first_step(self, components, block: BlockState, times: list[float]) -> int:
        """The index of the first evaluation."""
        return 0


class LightningDiTSetTimestepsWithStrengthStep(LightningDiTSetTimestepsStep):
    """The time grid from t = 1 - strength on."""

    @property
    def inputs(self) -> list[InputParam]:
        about = "How far to go back to noise, above 0 and at most 1."
        return [*super().inputs, InputParam("strength", default=0.8, type_hint=float, description=about)]

    def first_step(self, components, block: BlockState, times: list[float]) -> int:
        """The index of the first point with t >= 1 - strength, where the scheduler begins.

        Raises:
            ValueError: For a strength out of range, or one that leaves no step; or a scheduler that cannot begin there.
        """
        check_arguments({"strength": block.strength})
        check_start_from_image(components.scheduler)
        starts = range(0, len(times), getattr(components.scheduler, "order", 1))
        begin = next((i for i in starts if times[i] >= 1 - block.strength - TIME_TOLERANCE), None)
        require(begin is not None, "strength", block.strength, "a greater strength or more steps, for one to start at")
        components.scheduler.set_begin_index(begin)
        return begin


class LightningDiTPrepareLatentsStep(ModularPipelineBlocks):
    """Draws the noise that generation starts from."""

    model_name = MODEL_NAME
    description = "Draws the initial noise in float32, by one generator or by one for each image."
    expected_components = [TRANSFORMER, VAE, SCHEDULER]
    intermediate_outputs = [
        OutputParam("latents", type_hint=torch.Tensor, description="The state of the flow, float32."),
        OutputParam("noise", type_hint=torch.Tensor, description="The initial noise, float32."),
    ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("class_ids", required=True, type_hint=torch.Tensor, description="Ids of classes, [B]."),
            InputParam("height", required=True, type_hint=int, description="The height in pixels."),
            InputParam("width", required=True, type_hint=int, description="The width in pixels."),
            GENERATOR,
            InputParam("latents", type_hint=torch.Tensor, description="The noise, instead of drawing it."),
        ]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState) -> tuple:
        block = self.get_block_state(state)
        shape = latents_shape(components.transformer, components.vae, len(block.class_ids), block.height, block.width)
        check_arguments({"latents": block.latents}, shape=shape)
        block.noise = initial_noise(block.latents, shape, block.generator, components._execution_device)
        block.latents = block.noise * getattr(components.scheduler, "init_noise_sigma", 1.0)
        self.set_block_state(state, block)
        return components, state


class LightningDiTVaeEncoderStep(ModularPipelineBlocks):
    """Encodes the images to start from."""

    model_name = MODEL_NAME
    description = "Encodes images to normalised latents, and with masks says which of the latents are drawn anew."
    expected_components = [VAE]
    intermediate_outputs = [
        OutputParam("image_latents", type_hint=torch.Tensor, description="Normalised latents of the images."),
        OutputParam("pixels", type_hint=torch.Tensor, description="The images, [B, 3, height, width] in [-1, 1]."),
        OutputParam("masks", description="1 where pixels are drawn anew, [B, 1, height, width]; or None."),
        OutputParam("latent_masks", description="1 where latents are drawn anew; or None."),
    ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("image", required=True, description="Images to start from, one or as many as labels."),
            InputParam("mask_image", description="Masks, one or as many as labels; white is drawn anew."),
            InputParam("class_ids", required=True, type_hint=torch.Tensor, description="Ids of classes, [B]."),
            InputParam("num_labels", required=True, type_hint=int, description="The number of class labels."),
            InputParam("height", required=True, type_hint=int, description="The height in pixels."),
            InputParam("width", required=True, type_hint=int, description="The width in pixels."),
        ]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState) -> tuple:
        block = self.get_block_state(state)
        device, factor = components._execution_device, vae_geometry(components.vae)[1]
        images = list_images(block.image)
        masks = None if block.mask_image is None else list_images(block.mask_image, "mask_image", is_mask=True)
        for name, values in (("image", images), ("mask_image", masks)):
            if values is not None:
                wanted = f"1, or as many as `class_labels`, {block.num_labels}"
                require(len(values) in (1, block.num_labels), name, f"a list of {len(values)}", wanted)

        def for_each_image(values: torch.Tensor) -> torch.Tensor:
            return values.repeat_interleave(len(block.class_ids) // len(values), dim=0)

        pixels = preprocess(images, block.height, block.width, components.vae).to(device)
        data = encode(components.vae, pixels)
        require_finite("vae", components.vae, data)
        block.pixels, block.image_latents = for_each_image(pixels), for_each_image(data)
        block.masks = block.latent_masks = None
        if masks is not None:
            masks = preprocess(masks, block.height, block.width, components.vae, is_mask=True).to(device)
            block.masks, block.latent_masks = for_each_image(masks), for_each_image(F.max_pool2d(masks, factor))
        self.set_block_state(state, block)
        return components, state


class LightningDiTNoiseImageStep(ModularPipelineBlocks):
    """Mixes the images' latents with noise, as the straight path from noise to data has them."""

    model_name = MODEL_NAME
    description = "Puts the latents of the images back to the first t: t data + (1 - t) noise."
    expected_components = [SCHEDULER]
    intermediate_outputs = [
        OutputParam("latents", type_hint=torch.Tensor, description="The state of the flow, float32.")
    ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("image_latents", required=True, type_hint=torch.Tensor, description="Latents of the images."),
            InputParam("noise", required=True, type_hint=torch.Tensor, description="The initial noise."),
            InputParam("times", required=True, description="t of each evaluation."),
            InputParam("strength", default=0.8, type_hint=float, description="How far to go back to noise."),
        ]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState) -> tuple:
        block = self.get_block_state(state)
        t = block.times[0]
        block.latents = block.noise if block.strength == 1 else t * block.image_latents + (1 - t) * block.noise
        self.set_block_state(state, block)
        return components, state


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTLoopDenoiser(ModularPipelineBlocks):
    """Within the loop: the velocity as the guider combines it."""

    model_name = MODEL_NAME
    description = "Within the loop: evaluates the network as often as the guider wants, and combines the velocities."
    expected_components = [
        TRANSFORMER,
        ComponentSpec("guider", LightningDiTGuidance, config=FrozenDict({}), default_creation_method="from_config"),
    ]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("class_ids", required=True, type_hint=torch.Tensor, description="Ids of classes, [B]."),
            InputParam("null_ids", required=True, type_hint=torch.Tensor, description="The null class, [B]."),
            InputParam("attention_kwargs", description='{"scale": s} scales the active LoRA adapters.'),
        ]

    @torch.no_grad()
    def __call__(self, components, block: BlockState, i: int, t: torch.Tensor) -> tuple:
        guider = components.guider
        guider.time = block.times[i]
        scale = None
        if isinstance(guider, LightningDiTGuidance):
            scale = internal_scale(
                components.transformer, guider.time, guider.internal_guidance_scale, guider.internal_guidance_interval
            )
        guider.set_state(step=i, num_inference_steps=len(block.timesteps), timestep=t)
        block.velocity = velocity_of_guider(
            guider,
            (block.class_ids, block.null_ids),
            components.transformer,
            latents=block.latents,
            t=block.times[i],
            attention_kwargs=block.attention_kwargs,
            jumps=jumps_to_data(components.scheduler),
            internal_guidance_scale=scale,
        )
        return components, block


class LightningDiTLoopStep(ModularPipelineBlocks):
    """Within the loop: a step of the scheduler."""

    model_name = MODEL_NAME
    description = "Within the loop: a step of the scheduler along the velocity."
    expected_components = [SCHEDULER]

    @property
    def inputs(self) -> list[InputParam]:
        return [GENERATOR]

    @torch.no_grad()
    def __call__(self, components, block: BlockState, i: int, t: torch.Tensor) -> tuple:
        drawing = noise_arguments(components.scheduler, block.generator)
        block.latents = components.scheduler.step(-block.velocity, t, block.latents, **drawing, return_dict=False)[0]
        return components, block


class LightningDiTLoopKeep(ModularPipelineBlocks):
    """Within the loop of inpainting: what lies outside the masks stays on its own path."""

    model_name = MODEL_NAME
    description = "Within the loop: latents outside the masks are put back to the path of the image that is kept."

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("image_latents", required=True, type_hint=torch.Tensor, description="Latents of the images."),
            InputParam("latent_masks", required=True, type_hint=torch.Tensor, description="1 where drawn anew."),
            InputParam("noise", required=True, type_hint=torch.Tensor, description="The initial noise."),
        ]

    @torch.no_grad()
    def __call__(self, components, block: BlockState, i: int, t: torch.Tensor) -> tuple:
        end = block.times[i + 1]
        kept = end * block.image_latents + (1 - end) * block.noise
        block.latents = block.latent_masks * block.latents + (1 - block.latent_masks) * kept
        return components, block


class LightningDiTDenoiseStep(LoopSequentialPipelineBlocks):
    """Integrates the flow along the time grid."""

    model_name = MODEL_NAME
    description = "Integrates the flow from the first t to 1. The blocks within it are run once for each timestep."
    block_classes = [LightningDiTLoopDenoiser, LightningDiTLoopStep]
    block_names = ["denoiser", "step"]
    loop_expected_components = [SCHEDULER, TRANSFORMER]
    loop_expected_configs = [RECIPE]
    loop_intermediate_outputs = [
        OutputParam("latents", type_hint=torch.Tensor, description="Normalised latents of the images.")
    ]

    @property
    def loop_inputs(self) -> list[InputParam]:
        return [
            InputParam("latents", required=True, type_hint=torch.Tensor, description="The state at the first t."),
            InputParam("timesteps", required=True, type_hint=torch.Tensor, description="Timesteps of the scheduler."),
            InputParam("times", required=True, description="t of each evaluation and of the end."),
        ]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState) -> tuple:
        block = self.get_block_state(state)
        if isinstance(components.guider, LightningDiTGuidance):
            components.guider.follow(recipe_of(components))
            check_internal_guidance(components.transformer, components.guider.internal_guidance_scale)
        num_steps = len(block.timesteps)
        with one_run_of_a_cache(components.transformer), self.progress_bar(total=num_steps) as progress_bar:
            for i, timestep in enumerate(block.timesteps):
                components, block = self.loop_step(components, block, i=i, t=timestep)
                progress_bar.update()
        self.set_block_state(state, block)
        return components, state


class LightningDiTInpaintDenoiseStep(LightningDiTDenoiseStep):
    """The loop of inpainting."""

    block_classes = [LightningDiTLoopDenoiser, LightningDiTLoopStep, LightningDiTLoopKeep]
    block_names = ["denoiser", "step", "keep"]


# ---------------------------------------------------------------------------------------------------------------------
# After the loop
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTDecodeStep(ModularPipelineBlocks):
    """Decodes latents to images."""

    model_name = MODEL_NAME
    description = "Decodes the latents to images."
    expected_components = [
        VAE,
        TRANSFORMER,
        ComponentSpec(
            "image_processor",
            VaeImageProcessor,
            config=FrozenDict({"vae_scale_factor": 1}),
            default_creation_method="from_config",
        ),
    ]
    intermediate_outputs = [OutputParam("images", description="A list of PIL images, an array or a tensor.")]

    @property
    def inputs(self) -> list[InputParam]:
        return [
            InputParam("latents", required=True, type_hint=torch.Tensor, description="Normalised latents."),
            InputParam("output_type", default="pil", type_hint=str, description='"pil", "np", "pt" or "latent".'),
        ]

    @torch.no_grad()
    def __call__(self, components, state: PipelineState) -> tuple:
        block = self.get_block_state(state)
        check_arguments({"output_type": block.output_type}, output_types=OUTPUT_TYPES)
        require_finite("transformer", components.transformer, block.latents)
        block.images = block.latents
        if block.output_type != "latent":
            pixels = decode(components.vae, block.latents)
            require_finite("vae", components.vae, pixels)
            block.images = postprocess(components.image_processor, self.composed(block, pixels), block.output_type)
        self.set_block_state(state, block)
        return components, state

    def composed(self, block: BlockState, pixels: torch.Tensor) -> torch.Tensor:
        """The pixels of the result, [B, 3, height, width] in [-1, 1]."""
        return pixels


class LightningDiTInpaintDecodeStep(LightningDiTDecodeStep):
    """Decodes latents, and keeps the pixels outside the masks."""

    @property
    def inputs(self) -> list[InputParam]:
        return [
            *super().inputs,
            InputParam("masks", required=True, type_hint=torch.Tensor, description="1 where drawn anew."),
            InputParam("pixels", required=True, type_hint=torch.Tensor, description="The images that are kept."),
        ]

    def composed(self, block: BlockState, pixels: torch.Tensor) -> torch.Tensor:
        """The pixels within the masks, and those of the images outside."""
        return block.masks * pixels + (1 - block.masks) * block.pixels


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTGenerationBlocks(SequentialPipelineBlocks):
    """Images of classes from noise."""

    model_name = MODEL_NAME
    description = "Draws images of classes from noise."
    block_classes = [
        LightningDiTInputStep,
        LightningDiTSetTimestepsStep,
        LightningDiTPrepareLatentsStep,
        LightningDiTDenoiseStep,
        LightningDiTDecodeStep,
    ]
    block_names = ["input", "set_timesteps", "prepare_latents", "denoise", "decode"]


class LightningDiTImg2ImgBlocks(SequentialPipelineBlocks):
    """Images of classes from given images."""

    model_name = MODEL_NAME
    description = "Draws images of classes that start from given images."
    block_classes = [
        LightningDiTInputStep,
        LightningDiTVaeEncoderStep,
        LightningDiTSetTimestepsWithStrengthStep,
        LightningDiTPrepareLatentsStep,
        LightningDiTNoiseImageStep,
        LightningDiTDenoiseStep,
        LightningDiTDecodeStep,
    ]
    block_names = ["input", "encode", "set_timesteps", "prepare_latents", "noise_image", "denoise", "decode"]


class LightningDiTInpaintBlocks(SequentialPipelineBlocks):
    """Images of classes within the masks of given images."""

    model_name = MODEL_NAME
    description = "Draws parts of given images anew, as images of classes."
    block_classes = [
        *LightningDiTImg2ImgBlocks.block_classes[:-2],
        LightningDiTInpaintDenoiseStep,
        LightningDiTInpaintDecodeStep,
    ]
    block_names = LightningDiTImg2ImgBlocks.block_names


class LightningDiTBlocks(AutoPipelineBlocks):
    """All three: inpainting if `mask_image` is given, image-to-image if `image` is, or else generation."""

    model_name = MODEL_NAME
    description = "Draws images of classes: from noise, from `image`, or within `mask_image`."
    block_classes = [LightningDiTInpaintBlocks, LightningDiTImg2ImgBlocks, LightningDiTGenerationBlocks]
    block_names = ["inpaint", "img2img", "generation"]
    block_trigger_inputs = ["mask_image", "image", None]
