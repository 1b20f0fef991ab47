"""Modular blocks: the numbers of the pipelines, and the shape of diffusers' own modular pipelines."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

from diffusers_lightningdit import FlowMatchSDEScheduler, InternalGuidance
from diffusers_lightningdit.pipelines import LightningDiTImg2ImgPipeline, modular_lightningdit
from diffusers_lightningdit.pipelines.modular_lightningdit import (
    LightningDiTBlocks,
    LightningDiTGenerationBlocks,
    LightningDiTGuidance,
    LightningDiTImg2ImgBlocks,
    LightningDiTInpaintBlocks,
)

BLOCKS = [LightningDiTGenerationBlocks, LightningDiTImg2ImgBlocks, LightningDiTInpaintBlocks, LightningDiTBlocks]
RECIPE = {
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "guidance_interval": [0.3, 1.0],
    "guidance_channels": 3,
}
CALL = {"class_labels": [1, 3], "output_type": "pt"}


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def modular(pipe, blocks=LightningDiTBlocks, guider=None):
    pipeline = blocks().init_pipeline()
    pipeline.update_components(transformer=pipe.transformer, vae=pipe.vae, scheduler=pipe.scheduler)
    if guider is not None:
        pipeline.update_components(guider=guider)
    pipeline.register_to_config(id2label=pipe.id2label, sampling_recipe=pipe.config.sampling_recipe)
    return pipeline


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline(sampling_recipe=RECIPE)


def same(images: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_images_per_prompt", [1, 2])
def test_generation_is_the_pipeline(pipe, num_images_per_prompt):
    given = {**CALL, "num_images_per_prompt": num_images_per_prompt}
    same(modular(pipe)(**given, generator=noise(), output="images"), pipe(**given, generator=noise()).images)


def test_the_latents_are_those_of_the_pipeline(pipe):
    given = {**CALL, "output_type": "latent", "latents": torch.randn(2, 4, 4, 4, generator=noise())}
    same(modular(pipe)(**given, output="images"), pipe(**given).images)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_and_inpainting_are_the_pipeline(pipe, strength):
    edit = LightningDiTImg2ImgPipeline.from_pipe(pipe)
    image = torch.rand(1, 3, 8, 8, generator=noise())
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    for more in ({}, {"mask_image": mask}):
        given = {**CALL, "image": image, "strength": strength, **more}
        same(modular(pipe)(**given, generator=noise(), output="images"), edit(**given, generator=noise()).images)


def test_heun_evaluates_twice_a_step(pipe):
    pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=2.0)
    same(modular(pipe)(**CALL, generator=noise(), output="images"), pipe(**CALL, generator=noise()).images)


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), FlowMatchSDEScheduler()]
)
def test_steps_that_draw_noise_are_those_of_the_pipeline(pipe, make_transformer, scheduler):
    """Also of a network for a few steps, which is asked for the average velocity."""
    pipe.register_modules(transformer=make_transformer(second_time_embedding=True), scheduler=scheduler)
    given = {**CALL, "output_type": "latent"}
    same(modular(pipe)(**given, generator=noise(), output="images"), pipe(**given, generator=noise()).images)


@pytest.mark.parametrize("guider", [None, InternalGuidance(1.4, (0.2, 0.8), guidance_scale=2.0)])
def test_calls_in_threads_draw_what_they_draw_alone(pipe, make_transformer, guider):
    pipe.register_modules(transformer=make_transformer(internal_guidance_layer=1))
    pipeline, start = modular(pipe, guider=guider), threading.Barrier(4)

    def draw(index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        given = {"class_labels": [index], "num_inference_steps": 5 + index, "output_type": "latent"}
        return pipeline(**given, generator=generator, output="images")

    def draw_with_others(index: int) -> torch.Tensor:
        start.wait()
        return draw(index)

    alone = [draw(index) for index in range(4)]
    with ThreadPoolExecutor(4) as threads:
        for images, expected in zip(threads.map(draw_with_others, range(4)), alone, strict=True):
            torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)


def test_the_guider_goes_before_the_recipe(pipe):
    guider = LightningDiTGuidance(guidance_scale=2.0, guidance_interval=(0.0, 0.5), guidance_channels=0)
    images = modular(pipe, guider=guider)(**CALL, generator=noise(), output="images")
    given = {"guidance_scale": 2.0, "guidance_interval": (0.0, 0.5), "guidance_channels": None}
    same(images, pipe(**CALL, **given, generator=noise()).images)


@pytest.mark.parametrize("more", [{}, {"image": torch.full((1, 3, 8, 8), 0.5), "strength": 0.5}])
def test_a_network_for_a_few_steps(make_pipeline, make_transformer, more):
    """The end of the jumps is told, and the noise between them is that of the given generators."""
    pipe = make_pipeline(
        transformer=make_transformer(second_time_embedding=True),
        scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        sampling_recipe={"num_inference_steps": 2, "guidance_scale": 1.0},
    )
    given = {**CALL, **more}
    pipeline = LightningDiTImg2ImgPipeline.from_pipe(pipe) if more else pipe
    generators = [[torch.Generator().manual_seed(seed) for seed in (5, 6)] for _ in range(2)]
    same(
        modular(pipe)(**given, generator=generators[0], output="images"),
        pipeline(**given, generator=generators[1]).images,
    )


def test_a_recipe_for_another_solver_is_said(make_pipeline, monkeypatch):
    said = []
    monkeypatch.setattr(modular_lightningdit.logger, "warning", said.append)
    for method in (None, "dopri5"):
        pipe = make_pipeline(sampling_recipe=RECIPE | {"ode_method": method})
        modular(pipe)(**CALL, output="images")
    scheduler = "the FlowMatchEulerDiscreteScheduler samples."
    assert said == [f"The recipe has `ode_method` 'dopri5', which modular pipelines do not have: {scheduler}"]


def test_internal_guidance(make_pipeline, make_transformer):
    recipe = RECIPE | {"internal_guidance_scale": 1.8, "internal_guidance_interval": [0.3, 0.7]}
    transformer = make_transformer(internal_guidance_layer=1)
    pipe = make_pipeline(transformer=transformer, sampling_recipe=recipe)
    images = modular(pipe)(**CALL, generator=noise(), output="images")
    same(images, pipe(**CALL, generator=noise()).images)
    guider = LightningDiTGuidance(internal_guidance_scale=1.0)
    of_package = InternalGuidance(
        1.8, (0.3, 0.7), guidance_scale=3.0, guidance_interval=(0.3, 1.0), guidance_channels=3
    )
    same(modular(pipe, guider=of_package)(**CALL, generator=noise(), output="images"), images)
    without = modular(pipe, guider=guider)(**CALL, generator=noise(), output="images")
    same(without, pipe(**CALL, internal_guidance_scale=1.0, generator=noise()).images)
    assert not torch.allclose(images, without, atol=1e-2)
    guider = LightningDiTGuidance(internal_guidance_scale=1.8)
    with pytest.raises(ValueError, match=r"`internal_guidance_scale` is 1\.8; required: 1 for a transformer without"):
        modular(make_pipeline(), guider=guider)(**CALL, output="images")


def test_a_guider_of_diffusers(pipe):
    guider = ClassifierFreeGuidance(guidance_scale=2.0)
    images = modular(pipe, guider=guider)(**CALL, generator=noise(), output="images")
    same(images, pipe(**CALL, guider=ClassifierFreeGuidance(guidance_scale=2.0), generator=noise()).images)


def test_a_call_leaves_the_guider_as_it_was(pipe):
    pipeline = modular(pipe)
    pipeline(**CALL, output="images")
    assert pipeline.guider.config.guidance_scale is None


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"class_labels": "poodle"}, "unknown name 'poodle'"),
        ({"class_labels": 1, "num_inference_steps": 0}, "`num_inference_steps` is 0"),
        ({"class_labels": 1, "height": 9}, "`height` is 9"),
        ({"class_labels": 1, "height": 10**30}, "`height` is 1000"),
        ({"class_labels": 1, "output_type": "jpg"}, "`output_type` is 'jpg'"),
        ({"class_labels": 1, "generator": 5}, "`generator` is 5; required: 1, one for each image"),
        ({"class_labels": 1, "latents": 5}, "`latents` is 5; required"),
        ({"class_labels": 1, "attention_kwargs": 5}, "`attention_kwargs` is 5; required"),
        ({"class_labels": 1, "num_images_per_prompt": "x"}, "`num_images_per_prompt` is 'x'; required: an integer"),
        ({"class_labels": 1, "image": torch.zeros(3, 8, 8), "strength": "x"}, "`strength` is 'x'; required: a number"),
        ({"class_labels": 1, "latents": torch.zeros(1, 4, 2, 2)}, "`latents`"),
        ({"class_labels": 1, "image": torch.zeros(3, 3, 8, 8)}, "`image`"),
        ({"class_labels": 1, "image": torch.zeros(3, 8, 8), "strength": 0}, "`strength` is 0"),
        ({"class_labels": 1, "image": torch.zeros(3, 8, 8), "strength": 1e-4}, "`strength`"),
    ],
)
def test_bad_inputs_are_one_line(pipe, given, error):
    with pytest.raises(ValueError, match=error) as refused:
        modular(pipe)(**given, output="images")
    assert "\n" not in str(refused.value)


def test_a_scheduler_that_cannot_begin_with_an_image(pipe):
    """The SDE's first step by Heun has noise that pure noise contains already, and a noised image does not."""
    blocks = modular(pipe)
    blocks.update_components(scheduler=FlowMatchSDEScheduler(solver_type="heun"))
    with pytest.raises(ValueError, match="`scheduler` is FlowMatchSDEScheduler, whose first step's noise"):
        blocks(class_labels=1, image=torch.zeros(3, 8, 8), output="images")


# ---------------------------------------------------------------------------------------------------------------------
# The shape of diffusers' own
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", BLOCKS, ids=lambda blocks: blocks.__name__)
def test_blocks_name_their_inputs_and_components(blocks):
    instance = blocks()
    assert {"transformer", "vae", "scheduler", "guider"} <= {spec.name for spec in instance.expected_components}
    assert "class_labels" in instance.input_names
    assert "images" in instance.intermediate_output_names
    assert instance.description and "class_labels" in instance.doc
    for parameter in instance.inputs:
        assert parameter.description, parameter.name


def test_the_trigger_inputs_choose_the_workflow():
    blocks = LightningDiTBlocks()
    assert blocks.select_block(image=None, mask_image=None) in (None, "generation")
    assert blocks.select_block(image=1, mask_image=None) == "img2img"
    assert blocks.select_block(image=1, mask_image=1) == "inpaint"


def test_single_blocks_can_be_replaced(pipe):
    """As diffusers' documentation does it: decoding is left out, and the state has the latents."""
    blocks = LightningDiTGenerationBlocks()
    blocks.sub_blocks.pop("decode")
    pipeline = blocks.init_pipeline()
    pipeline.update_components(transformer=pipe.transformer, vae=pipe.vae, scheduler=pipe.scheduler)
    pipeline.register_to_config(id2label=pipe.id2label, sampling_recipe=RECIPE)
    latents = pipeline(class_labels=[1, 3], generator=noise(), output="latents")
    same(latents, pipe(**{**CALL, "output_type": "latent"}, generator=noise()).images)


def test_half_precision(pipe):
    pipe.to(torch.bfloat16)
    images = modular(pipe)(**CALL, generator=noise(), output="images")
    assert images.isfinite().all()
