"""What a call does to itself, to other calls and to numbers that are not finite."""

import threading

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.guiders import AdaptiveProjectedGuidance
from PIL import Image

from diffusers_lightningdit import FlowMatchSDEScheduler
from diffusers_lightningdit.pipelines import (
    LightningDiTImg2ImgPipeline,
    LightningDiTInterpolationPipeline,
    LightningDiTLikelihoodPipeline,
    VAVAEReconstructionPipeline,
)

IMAGE = Image.effect_noise((8, 8), 40).convert("RGB")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ---------------------------------------------------------------------------------------------------------------------
# Two calls at once
# ---------------------------------------------------------------------------------------------------------------------


def in_threads(draw, number: int) -> list:
    """The results of draw(0), draw(1), ... each in its own thread, all started together."""
    results, start = [None] * number, threading.Barrier(number)

    def work(index: int) -> None:
        start.wait()
        try:
            results[index] = draw(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("scheduler", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_calls_in_threads_draw_what_they_draw_alone(scheduler, make_pipeline):
    """With other numbers of steps, scales and kinds of guidance."""
    pipe = make_pipeline(scheduler=scheduler())

    def draw(index: int):
        guidance = {"guidance_scale": 1.0 + index}
        if index == 2:
            guidance = {"guider": AdaptiveProjectedGuidance(guidance_scale=3.0)}
        steps = {"num_inference_steps": 6 + index}
        return pipe(index, generator=seeded(index), output_type="latent", **steps, **guidance).images

    alone = [draw(index) for index in range(4)]
    for got, expected in zip(in_threads(draw, 4), alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_an_interpolation_leaves_the_labels_of_another_call_alone(make_pipeline):
    pipe = make_pipeline()
    between = quiet(LightningDiTInterpolationPipeline.from_pipe(pipe))

    def draw(index: int):
        settings = {"generator": seeded(index), "num_inference_steps": 12, "output_type": "latent"}
        if index == 0:
            return between([0, 3], num_images=3, **settings).images
        return pipe([1, 2, 3], **settings).images

    alone = [draw(index) for index in range(2)]
    for got, expected in zip(in_threads(draw, 2), alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_a_preview_in_a_callback(pipe):
    """The outer call is unchanged, and what it has set is not seen in the inner one."""
    settings = {"generator": None, "num_inference_steps": 6, "output_type": "latent"}
    previews = []

    def preview(call, step, timestep, tensors):
        if step == 3:
            call._guidance_scale = 1.0
            previews.append(pipe(2, **settings | {"generator": seeded(7), "num_inference_steps": 3}).images)
            assert call.num_timesteps == 6 and call.guidance_scale == 1.0

    def cut_off(call, step, timestep, tensors):
        if step == 3:
            call._guidance_scale = 1.0

    expected = pipe(1, **settings | {"generator": seeded(1)}, callback_on_step_end=cut_off).images
    got = pipe(1, **settings | {"generator": seeded(1)}, callback_on_step_end=preview).images
    assert torch.equal(got, expected)
    alone = pipe(2, **settings | {"generator": seeded(7), "num_inference_steps": 3}).images
    assert torch.equal(previews[0], alone)


def test_another_thread_can_interrupt(pipe):
    steps = []

    def callback(call, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1  # as a button of a user interface does

    pipe(0, num_inference_steps=5, callback_on_step_end=callback)
    assert steps == [0, 1]
    pipe(0, num_inference_steps=3, callback_on_step_end=callback)  # the next call is not interrupted from its start
    assert steps == [0, 1, 0, 1]


def test_a_cache_belongs_to_one_call(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))

    def preview(call, step, timestep, tensors):
        pipe(1, num_inference_steps=2)

    with pytest.raises(ValueError, match="`transformer` has a cache, whose states belong to one call; required: no"):
        pipe(0, num_inference_steps=3, callback_on_step_end=preview)
    pipe(0, num_inference_steps=2)  # the refusal leaves nothing behind


def test_a_call_leaves_the_scheduler_as_it_was(pipe):
    before = vars(pipe.scheduler).copy()
    pipe(0, num_inference_steps=3)
    assert all(vars(pipe.scheduler)[name] is value for name, value in before.items())


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that are not finite
# ---------------------------------------------------------------------------------------------------------------------


def fill(weight: torch.nn.Parameter, value: float) -> None:
    with torch.no_grad():
        weight.view(-1)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_weights_that_are_not_finite(value, output_type, pipe):
    fill(pipe.transformer.proj_out.weight, value)
    with pytest.raises(
        ValueError, match=r"^`transformer` computed NaN or infinity for 2 of 2 .*; its weight `proj_out"
    ):
        pipe([0, 1], num_inference_steps=2, output_type=output_type)
    images = pipe(0, num_inference_steps=2, output_type=output_type, check_finite=False).images
    assert not np.asarray(images[0]).any() if output_type == "pil" else not images.isfinite().all()


def test_a_vae_that_is_not_finite(pipe):
    fill(pipe.vae.decoder.conv_out.weight, float("nan"))
    with pytest.raises(ValueError, match=r"^`vae` computed NaN or infinity .*; its weight `decoder\.conv_out\.weight`"):
        pipe(0, num_inference_steps=2)
    pipe(0, num_inference_steps=2, output_type="latent")
    reconstruct = quiet(VAVAEReconstructionPipeline(pipe.vae))
    with pytest.raises(ValueError, match=r"^`vae` computed NaN"):
        reconstruct(IMAGE)
    assert not np.asarray(reconstruct(IMAGE, check_finite=False).images[0])[..., 0].any()  # that weight draws red


def test_an_encoder_that_is_not_finite(pipe):
    fill(pipe.vae.encoder.conv_in.weight, float("nan"))
    edit = quiet(LightningDiTImg2ImgPipeline.from_pipe(pipe))
    with pytest.raises(ValueError, match=r"^`vae` computed NaN"):
        edit(0, image=IMAGE, num_inference_steps=2)


@pytest.mark.parametrize("method", ["heun2", "dopri5"])
def test_solvers_with_weights_that_are_not_finite(method, pipe):
    pytest.importorskip("torchdiffeq")
    fill(pipe.transformer.proj_out.weight, float("nan"))
    with pytest.raises(ValueError, match="finite"):
        pipe(0, num_inference_steps=3, ode_method=method)


def test_a_likelihood_with_weights_that_are_not_finite(pipe):
    pytest.importorskip("torchdiffeq")
    fill(pipe.transformer.proj_out.weight, float("nan"))
    with pytest.raises(ValueError, match="finite"):
        quiet(LightningDiTLikelihoodPipeline(pipe.transformer, pipe.vae))(IMAGE, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Settings of the VAE, 16 bits
# ---------------------------------------------------------------------------------------------------------------------


def overflowing_vae(**config) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=1.0,
        **config,
    )
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(3e5)  # at most 50,000
    return vae


def test_force_upcast_is_obeyed(make_pipeline):
    """A VAE that overflows in float16 draws the image of float32, and is in float16 again afterwards."""
    latents = torch.randn(1, 4, 4, 4, generator=seeded())
    settings = {"num_inference_steps": 2, "latents": latents, "output_type": "pt"}
    pipe = make_pipeline(vae=overflowing_vae(force_upcast=True))
    expected = pipe(0, **settings).images
    pipe.to(torch.float16)
    assert (pipe(0, **settings).images - expected).abs().max() < 0.02
    assert pipe.vae.dtype == torch.float16
    without = make_pipeline(vae=overflowing_vae(force_upcast=False)).to(torch.float16)
    with pytest.raises(ValueError, match=r"^`vae` computed NaN or infinity .*; its weights are finite"):
        without(0, **settings)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused(mode, pipe):
    for call in (
        lambda image: LightningDiTImg2ImgPipeline.from_pipe(pipe)(0, image=image),
        lambda image: LightningDiTImg2ImgPipeline.from_pipe(pipe)(0, image=IMAGE, mask_image=image),
        lambda image: LightningDiTLikelihoodPipeline(pipe.transformer, pipe.vae)(image, 0),
        lambda image: VAVAEReconstructionPipeline(pipe.vae)(image),
    ):
        with pytest.raises(ValueError, match=f"image` holds an image of mode '{mode}'; required: PIL images of 8 bits"):
            call(Image.new(mode, (8, 8)))


def test_turned_photos_are_turned_back(pipe):
    photo = Image.effect_noise((12, 8), 40).convert("RGB")
    exif = photo.transpose(Image.Transpose.ROTATE_90)
    exif.getexif()[0x0112] = 6  # to be turned by 90 degrees clockwise
    reconstruct = quiet(VAVAEReconstructionPipeline(pipe.vae))
    assert np.array_equal(reconstruct(exif).images[0], reconstruct(photo).images[0])


# ---------------------------------------------------------------------------------------------------------------------
# Without a class, callbacks, strength
# ---------------------------------------------------------------------------------------------------------------------


def test_drawing_without_a_class(pipe):
    """It follows the null class, at the cost of one evaluation a step whatever the guidance."""
    batches = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    settings = {"num_inference_steps": 3, "output_type": "latent"}
    images = [pipe(None, generator=seeded(), guidance_scale=scale, **settings).images for scale in (1.0, 4.0)]
    assert batches == [[5]] * 6 and torch.equal(*images)
    assert not torch.allclose(images[0], pipe(0, generator=seeded(), **settings).images, atol=1e-3)
    assert len(pipe(None, num_images_per_prompt=3, **settings).images) == 3
    edit = quiet(LightningDiTImg2ImgPipeline.from_pipe(pipe))
    assert edit(None, image=IMAGE, num_inference_steps=2).images[0].size == (8, 8)


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        (3, "returned 3; required: a dictionary"),
        ({"latents": None}, 'returned the "latents" None; required: a tensor of the shape \\(1, 4, 4, 4\\)'),
        ({"latents": torch.zeros(4)}, 'returned the "latents" \\(4,\\); required: a tensor'),
    ],
)
def test_callbacks_that_return_something_else(returned, problem, pipe):
    with pytest.raises(ValueError, match=f"`callback_on_step_end` {problem}"):
        pipe(0, num_inference_steps=2, callback_on_step_end=lambda *arguments: returned)


def test_a_callback_that_returns_nothing(pipe):
    settings = {"num_inference_steps": 3, "output_type": "latent"}
    seen = []
    got = pipe(0, generator=seeded(), callback_on_step_end=lambda *arguments: seen.append(1), **settings).images
    assert len(seen) == 3 and torch.equal(got, pipe(0, generator=seeded(), **settings).images)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        FlowMatchSDEScheduler(),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_strength_1_keeps_no_trace_of_the_image(scheduler, make_pipeline):
    """Also with DPM-Solver, whose grid begins at sigma 0.999: the result is that of noise alone."""
    pipe = make_pipeline(scheduler=scheduler)
    edit = quiet(LightningDiTImg2ImgPipeline.from_pipe(pipe))
    settings = {"latents": torch.randn(1, 4, 4, 4, generator=seeded()), "num_inference_steps": 4, "output_type": "pt"}
    expected = pipe(1, generator=seeded(1), **settings).images
    for image in (IMAGE, Image.new("RGB", (8, 8), "white")):
        assert torch.equal(edit(1, image=image, strength=1.0, generator=seeded(1), **settings).images, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Names, layerwise casting
# ---------------------------------------------------------------------------------------------------------------------


def test_a_whole_name_goes_before_a_synonym(make_pipeline):
    pipe = make_pipeline(id2label={0: "cat, black", 1: "cat", 2: "dog", 3: "dog"})
    assert pipe.get_label_ids(["cat", "CAT", "black", "cat, black"]) == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"'dog' of several classes; use one of the ids \[2, 3\]"):
        pipe.get_label_ids("dog")


def test_names_compare_in_nfc(make_pipeline):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for name, other in ((composed, decomposed), (decomposed, composed)):
        pipe = make_pipeline(id2label={0: "tea", 1: name})
        assert pipe.get_label_ids([name, other, other.upper()]) == [1, 1, 1]


@pytest.mark.parametrize("id2label", [{0: None}, {"a": "cat"}, {0: 3}, ["cat"], {10**30: "cat"}, {True: "cat"}])
def test_id2label_of_another_kind(id2label, make_pipeline):
    with pytest.raises(ValueError, match=r"^`id2label` "):
        make_pipeline(id2label=id2label)


def test_layerwise_casting_of_a_float32_pipeline(pipe):
    """The call of docs/features.md."""
    settings = {"generator": None, "num_inference_steps": 3, "output_type": "latent"}
    expected = pipe(0, **settings | {"generator": seeded()}).images
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    images = pipe(0, **settings | {"generator": seeded()}).images
    assert 0 < (images - expected).pow(2).mean().sqrt() < 0.5 * expected.std()


def test_shift_factor_beside_statistics_is_refused(make_pipeline, make_vae):
    with pytest.raises(ValueError, match=r"`shift_factor` is 0.5 beside `latents_mean`; required: one of the two"):
        make_vae(shift_factor=0.5)
    vae = overflowing_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4, shift_factor=0.5)
    with pytest.raises(ValueError, match=r"`vae` has the `shift_factor` 0.5 beside `latents_mean`"):
        make_pipeline(vae=vae)(0)


def test_statistics_take_the_place_of_the_scaling_factor(make_vae):
    """Those of Stable Diffusion's VAE, cached: latents of deviation 1, not 0.18."""
    vae = make_vae(latents_mean=None, latents_std=None, scaling_factor=0.18215, shift_factor=0.5)
    latents = 3 + torch.randn(64, 4, 8, 8, generator=seeded()) / 0.18215
    assert torch.equal(vae.normalize_latents(latents), (latents - 0.5) * 0.18215)
    torch.testing.assert_close(vae.denormalize_latents(vae.normalize_latents(latents)), latents)
    mean, std = (latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True))  # [1, C, 1, 1]
    vae.set_latents_statistics(mean, std)
    assert vae.config.latents_mean == mean.flatten().tolist()
    assert vae.normalize_latents(latents).std().item() == pytest.approx(1, abs=0.01)
    vae.register_to_config(scaling_factor=0.18215)  # the original's latent_multiplier, beside statistics
    vae.set_latents_statistics(mean, std)
    assert vae.normalize_latents(latents).std().item() == pytest.approx(0.18215, abs=0.01)
    for broken in ([float("inf")] * 4, [float("nan")] * 4):
        with pytest.raises(ValueError, match=r"`latents_mean` is .*; required: finite numbers"):
            vae.set_latents_statistics(broken, std)


@pytest.mark.parametrize(
    "content", [b"", b"\xf5" * 600, b"version https://git-lfs.github.com/spec/v1\n", b"\x08" + 7 * b"\0" + b'{"a": -4}']
)
def test_a_damaged_lora_is_named(content, pipe, tmp_path):
    file = tmp_path / "pytorch_lora_weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{file} cannot be read as a LoRA") as caught:
        pipe.load_lora_weights(tmp_path, weight_name=file.name)
    assert "\n" not in str(caught.value)
