import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from diffusers_lightningdit import FlowMatchAdamsBashforthScheduler, FlowMatchSDEScheduler, LightningDiTPipeline
from diffusers_lightningdit.pipelines import LightningDiTImg2ImgPipeline

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.fixture
def edit(pipe):
    edit = LightningDiTImg2ImgPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    return edit


@pytest.fixture
def image():
    """Values k / 255, as images have them."""
    return torch.randint(0, 256, (3, 8, 8)).float() / 255


@pytest.fixture
def mask():
    """The left half of an 8x8 image."""
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    return mask


def encode(pipe, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return pipe.vae.normalize_latents(pipe.vae.encode(2 * image[None] - 1).latent_dist.mode())


def record_times(transformer) -> list[float]:
    times = []
    transformer.register_forward_pre_hook(
        lambda module, args, kwargs: times.append(float(kwargs["timestep"][0])), with_kwargs=True
    )
    return times


# ---------------------------------------------------------------------------------------------------------------------
# Image-to-image
# ---------------------------------------------------------------------------------------------------------------------


def test_follows_the_flow_from_the_noised_image(edit, image):
    """Euler by hand on the straight path from t = 1 - strength."""
    noise = torch.randn(1, 4, 4, 4)
    settings = {"guidance_scale": 1.0, "num_inference_steps": 4, "latents": noise, "output_type": "latent"}
    latents = edit(1, image, strength=0.5, **settings).images
    expected = 0.5 * encode(edit, image) + 0.5 * noise
    for t in (0.5, 0.75):
        with torch.no_grad():
            expected = expected + 0.25 * edit.transformer(expected, t, torch.tensor([1])).sample
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-5)
    assert edit.num_timesteps == 2


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=2.0),
        FlowMatchHeunDiscreteScheduler(shift=2.0),
        DPMSolverMultistepScheduler(**FLOW, flow_shift=2.0),
        UniPCMultistepScheduler(**FLOW, flow_shift=2.0),
        FlowMatchSDEScheduler(diffusion_norm=0.0, last_step="euler"),
        FlowMatchAdamsBashforthScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_schedulers_start_in_the_middle_of_their_grid(edit, image, scheduler, make_transformer):
    """All agree with fine Euler steps from the same time, since the rest of the flow is the same."""
    settings = {"strength": 0.7, "latents": torch.randn(1, 4, 4, 4), "guidance_scale": 2.0, "output_type": "latent"}
    edit.scheduler = scheduler
    times = record_times(edit.transformer)
    latents = edit(1, image, num_inference_steps=60, **settings).images
    begin = times[0]
    assert 0.3 - 1e-6 <= begin < 0.35

    x = begin * encode(edit, image) + (1 - begin) * settings["latents"]
    transformer, labels = make_transformer(), torch.tensor([5, 1])
    steps = 400
    with torch.no_grad():
        for i in range(steps):
            t = begin + (1 - begin) * i / steps
            unconditional, conditional = transformer(x.repeat(2, 1, 1, 1), t, labels).sample.chunk(2)
            x = x + (1 - begin) / steps * (2 * conditional - unconditional)
    assert (latents - x).abs().max() < 2e-2 * x.abs().max()


@pytest.mark.parametrize(("strength", "evaluations"), [(1.0, 10), (0.7, 7), (0.3, 3), (0.35, 3), (0.1, 1)])
def test_strength_counts_the_remaining_steps(edit, image, strength, evaluations):
    times = record_times(edit.transformer)
    edit(0, image, strength=strength, num_inference_steps=10, guidance_scale=1.0)
    assert len(times) == evaluations
    assert times[0] == pytest.approx(1 - evaluations / 10)


def test_full_strength_is_generation(edit, pipe, image):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "guidance_interval": (0.3, 0.8), "output_type": "pt"}
    settings |= {"latents": torch.randn(2, 4, 4, 4), "guidance_channels": 3}
    torch.testing.assert_close(edit([1, 3], image, strength=1.0, **settings).images, pipe([1, 3], **settings).images)


def test_less_strength_stays_nearer_to_the_image(edit, image):
    settings = {"num_inference_steps": 20, "latents": torch.randn(1, 4, 4, 4), "output_type": "latent"}
    data = encode(edit, image)
    distances = [(edit(0, image, strength=s, **settings).images - data).norm() for s in (0.1, 0.5, 1.0)]
    assert distances == sorted(distances)


def test_images_and_labels_are_paired(edit):
    images = torch.rand(2, 3, 8, 8)

    def draw(labels, images, seeds, **settings):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        settings |= {"num_inference_steps": 4, "output_type": "pt"}
        return edit(labels, images, generator=generators, **settings).images

    pair = draw([0, 3], images, [0, 1])
    torch.testing.assert_close(draw([3], images[1:], [1]), pair[1:], rtol=0, atol=1e-5)
    repeated = draw([0, 3], images, [0, 0, 1, 1], num_images_per_prompt=2)
    torch.testing.assert_close(repeated, pair.repeat_interleave(2, dim=0), rtol=0, atol=1e-5)
    one_image = draw([0, 3], images[:1], [0, 1])
    torch.testing.assert_close(one_image[:1], pair[:1], rtol=0, atol=1e-5)
    assert not torch.allclose(one_image[1:], pair[1:], atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Inpainting
# ---------------------------------------------------------------------------------------------------------------------


def test_pixels_outside_the_mask_stay(edit, image, mask):
    settings = {"mask_image": mask, "strength": 1.0, "num_inference_steps": 4}
    output = edit(1, image, output_type="pt", **settings).images[0]
    torch.testing.assert_close(output[:, :, 4:], image[:, :, 4:], rtol=0, atol=1e-6)
    assert not torch.allclose(output[:, :, :4], image[:, :, :4], atol=1e-2)
    # as 8-bit images exactly
    pixels = np.asarray(edit(1, image, **settings).images[0])
    expected = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(pixels[:, 4:], expected[:, 4:])


def test_known_latents_follow_the_straight_path(edit, image, mask):
    """After each step, what lies outside the mask is the image noised to that step's time."""
    noise, data, states = torch.randn(1, 4, 4, 4), encode(edit, image), []

    def callback(pipe, step, timestep, tensors):
        states.append(tensors["latents"])
        return {}

    settings = {"latents": noise, "num_inference_steps": 4, "callback_on_step_end": callback}
    edit(1, image, mask_image=mask, strength=1.0, output_type="latent", **settings)
    for t, state in zip((0.25, 0.5, 0.75, 1.0), states, strict=True):
        torch.testing.assert_close(state[..., 2:], (t * data + (1 - t) * noise)[..., 2:], rtol=0, atol=1e-5)
        assert not torch.allclose(state[..., :2], (t * data + (1 - t) * noise)[..., :2], atol=1e-2)


def test_full_mask_is_image_to_image(edit, image):
    settings = {"latents": torch.randn(1, 4, 4, 4), "num_inference_steps": 4, "output_type": "pt"}
    masked = edit(2, image, mask_image=torch.ones(8, 8), **settings).images
    torch.testing.assert_close(masked, edit(2, image, **settings).images)


def test_empty_mask_returns_the_image(edit, image):
    output = edit(2, image, mask_image=torch.zeros(8, 8), num_inference_steps=4, output_type="pt").images[0]
    torch.testing.assert_close(output, image, rtol=0, atol=1e-6)


def test_a_latent_that_covers_one_pixel_of_the_mask_is_drawn(edit, image):
    mask = torch.zeros(8, 8)
    mask[3, 5] = 1  # in the latent of rows 2 and 3, columns 4 and 5
    latents = edit(1, image, mask_image=mask, strength=1.0, num_inference_steps=4, output_type="latent").images
    changed = (latents - encode(edit, image)).abs().amax(1)[0] > 1e-4
    assert changed.nonzero().tolist() == [[1, 2]]


def test_kinds_of_masks(edit, image, mask):
    settings = {"latents": torch.randn(1, 4, 4, 4), "num_inference_steps": 2, "output_type": "pt"}
    expected = edit(1, image, mask_image=mask, **settings).images
    picture = Image.fromarray((mask * 255).numpy().astype("uint8"))
    for given in (
        mask.numpy(),
        mask.bool(),
        mask[None].half(),
        picture,
        picture.convert("RGB"),
        [mask],
        picture.resize((16, 16), Image.NEAREST),
    ):
        torch.testing.assert_close(edit(1, image, mask_image=given, **settings).images, expected)
    several = edit([1, 1], image, mask_image=[mask, 1 - mask], **settings | {"latents": torch.randn(2, 4, 4, 4)}).images
    torch.testing.assert_close(several[0, :, :, 4:], image[:, :, 4:], rtol=0, atol=1e-6)
    torch.testing.assert_close(several[1, :, :, :4], image[:, :, :4], rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# As any pipeline
# ---------------------------------------------------------------------------------------------------------------------


def test_output_types_and_sizes(edit, image):
    settings = {"num_inference_steps": 2, "height": 12, "width": 20}
    assert edit(0, image, **settings).images[0].size == (20, 12)
    assert edit(0, image, output_type="np", **settings).images.shape == (1, 12, 20, 3)
    (latents,) = edit(0, image, output_type="latent", return_dict=False, **settings)
    assert latents.shape == (1, 4, 6, 10) and latents.dtype == torch.float32


def test_recipe_gives_the_defaults(make_pipeline, image):
    recipe = {"num_inference_steps": 4, "guidance_scale": 3.0, "guidance_interval": [0.5, 1.0], "guidance_channels": 3}
    edit = LightningDiTImg2ImgPipeline.from_pipe(make_pipeline(sampling_recipe=recipe))
    plain = LightningDiTImg2ImgPipeline.from_pipe(make_pipeline())
    settings = {"latents": torch.randn(1, 4, 4, 4), "output_type": "latent"}
    by_recipe = edit("tench", image, **settings).images
    assert torch.equal(by_recipe, plain("tench", image, **settings, **recipe).images)
    assert not torch.equal(by_recipe, edit("tench", image, **settings, guidance_scale=1.0).images)


def test_callback_interrupts_and_replaces(edit, image):
    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    times = record_times(edit.transformer)
    settings = {"num_inference_steps": 10, "strength": 0.5, "guidance_scale": 1.0, "output_type": "latent"}
    assert not edit(0, image, callback_on_step_end=callback, **settings).images.any()
    assert times == pytest.approx([0.5, 0.6])


def test_other_autoencoders(make_pipeline, image):
    """AutoencoderKL's own convention: (latents - shift_factor) * scaling_factor."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    ).eval()
    edit = LightningDiTImg2ImgPipeline.from_pipe(make_pipeline(vae=vae))
    settings = {"mask_image": torch.zeros(8, 8), "num_inference_steps": 1, "output_type": "latent"}
    with torch.no_grad():
        expected = (vae.encode(2 * image[None] - 1).latent_dist.mode() - 0.25) * 0.5
    torch.testing.assert_close(edit(0, image, strength=1.0, **settings).images, expected)


def test_from_a_folder(edit, pipe, image, tmp_path, repository):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(repository / "pipelines/pipeline_lightningdit_img2img.py"), trust_remote_code=True
    )
    settings = {"latents": torch.randn(1, 4, 4, 4), "num_inference_steps": 4, "output_type": "pt"}
    expected = edit("golden retriever", image, **settings).images
    torch.testing.assert_close(loaded("golden retriever", image, **settings).images, expected, rtol=0, atol=1e-6)


def test_saved_again_it_loads_by_its_name_and_as_generation(edit, image, tmp_path):
    edit.save_pretrained(tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is LightningDiTImg2ImgPipeline
    assert LightningDiTPipeline.from_pretrained(tmp_path).id2label == edit.id2label


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0}, "`strength` is 0; required: a number above 0 and at most 1"),
        ({"strength": 1.2}, "`strength` is 1.2"),
        ({"strength": None}, "`strength` is None"),
        ({"strength": 0.05, "num_inference_steps": 10}, "`strength` is 0.05 with 10 steps"),
        ({"image": torch.zeros(2, 3, 8, 8)}, "`image` holds 2; required: 1, or as many as `class_labels`, 1"),
        ({"image": None}, "`image` holds a NoneType; required: PIL images"),
        ({"mask_image": torch.zeros(1, 3, 8, 8)}, r"`mask_image` holds the shape \(1, 3, 8, 8\); required: PIL images"),
        ({"mask_image": torch.full((8, 8), 255)}, "`mask_image` holds values from 255 to 255"),
        ({"mask_image": [torch.zeros(8, 8)] * 3}, "`mask_image` holds 3"),
        ({"class_labels": "tnech"}, "unknown name 'tnech'; nearest: 'tench'"),
        ({"guidance_interval": (0.5, 0.2)}, "`guidance_interval` is"),
        ({"height": 9}, "`height` is 9; required: a positive multiple of 2 pixels"),
        ({"latents": torch.zeros(1, 4, 4, 5)}, "`latents` has the shape"),
        ({"generator": [torch.Generator()] * 2}, "`generator` is a list of 2; required: 1"),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` is 0"),
    ],
)
def test_wrong_arguments(edit, arguments, message):
    edit.vae.encode = None  # nothing may be computed
    times = record_times(edit.transformer)
    with pytest.raises(ValueError, match=message):
        edit(**{"class_labels": 0, "image": torch.zeros(3, 8, 8), **arguments})
    assert not times


def test_wrong_scheduler(edit, image):
    edit.scheduler = FlowMatchSDEScheduler(solver_type="heun")
    with pytest.raises(ValueError, match="`scheduler` is FlowMatchSDEScheduler, whose first step's noise"):
        edit(0, image)


@pytest.mark.gpu
def test_on_a_gpu_equals_cpu(make_pipeline, image, mask):
    settings = {"mask_image": mask, "latents": torch.randn(1, 4, 4, 4), "num_inference_steps": 4, "output_type": "pt"}
    expected = LightningDiTImg2ImgPipeline.from_pipe(make_pipeline())(1, image, **settings).images
    edit = LightningDiTImg2ImgPipeline.from_pipe(make_pipeline()).to("cuda")
    torch.testing.assert_close(edit(1, image, **settings).images.cpu(), expected, rtol=0, atol=1e-3)
