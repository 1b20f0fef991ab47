import math

import pytest
import torch
from diffusers import DiffusionPipeline, MagCacheConfig, UniPCMultistepScheduler

from diffusers_lightningdit import FlowMatchSDEScheduler
from diffusers_lightningdit.pipelines import LightningDiTInterpolationPipeline
from diffusers_lightningdit.pipelines.pipeline_lightningdit_interpolation import slerp


@pytest.fixture
def interpolate(pipe):
    interpolate = LightningDiTInterpolationPipeline.from_pipe(pipe)
    interpolate.set_progress_bar_config(disable=True)
    return interpolate


def record_embeddings(transformer) -> list[torch.Tensor]:
    """Record the sum of time and label embedding of each call, which the first block receives."""
    embeddings = []
    transformer.transformer_blocks[0].register_forward_pre_hook(lambda module, args: embeddings.append(args[1]))
    return embeddings


# ---------------------------------------------------------------------------------------------------------------------
# slerp
# ---------------------------------------------------------------------------------------------------------------------


def test_slerp_moves_in_equal_angles_at_constant_length():
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    points = slerp(start, end, torch.linspace(0, 1, 4))
    angles = torch.atan2(points[:, 1], points[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 4))
    torch.testing.assert_close(points.norm(dim=1), torch.full((4,), 2.0))


def test_slerp_of_noises_has_the_variance_of_noise():
    noise = torch.randn(2, 32, 16, 16)
    middle = slerp(noise[0], noise[1], torch.tensor([0.5]))
    assert abs(middle.std() - 1) < 0.03
    assert (noise.mean(0)).std() < 0.75  # the straight mean


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_slerp_of_parallel_vectors_is_straight(factor):
    vector = torch.randn(5)
    points = slerp(vector, factor * vector, torch.tensor([0.0, 0.5, 1.0]))
    expected = torch.stack([vector, (1 + factor) / 2 * vector, factor * vector])
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_ends_are_generated_images(interpolate, pipe, guidance_scale):
    settings = {"latents": torch.randn(2, 4, 4, 4), "num_inference_steps": 4, "output_type": "pt"}
    settings |= {"guidance_scale": guidance_scale, "guidance_interval": (0.3, 0.8), "guidance_channels": 3}
    images = interpolate([1, 3], num_images=5, **settings).images
    assert images.shape == (5, 3, 8, 8)
    torch.testing.assert_close(images[[0, -1]], pipe([1, 3], **settings).images, rtol=0, atol=1e-5)
    steps = (images[1:] - images[:-1]).flatten(1).norm(dim=1)
    assert (steps > 1e-3).all()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_label_embeddings_lie_between(interpolate, guidance_scale):
    embeddings = record_embeddings(interpolate.transformer)
    interpolate([1, 3], num_images=5, num_inference_steps=1, guidance_scale=guidance_scale, output_type="latent")
    with torch.no_grad():
        table = interpolate.transformer.class_embedder(torch.tensor([1, 3, 5]))
        start, end, null = table
        time = interpolate.transformer.timestep_embedder(interpolate.transformer.time_proj(torch.zeros(1)))
    expected = slerp(start, end, torch.linspace(0, 1, 5))
    if guidance_scale > 1:
        expected = torch.cat([null.expand(5, -1), expected])
    torch.testing.assert_close(embeddings[0], expected + time, rtol=0, atol=1e-5)


def test_nothing_is_left_behind(interpolate, pipe):
    settings = {"latents": torch.randn(2, 4, 4, 4), "num_inference_steps": 2, "output_type": "latent"}
    before = pipe([1, 3], **settings).images
    interpolate([1, 3], **settings)
    assert torch.equal(pipe([1, 3], **settings).images, before)

    def fail(pipe, step, timestep, tensors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpolate([1, 3], callback_on_step_end=fail, **settings)
    assert torch.equal(pipe([1, 3], **settings).images, before)


def test_generators_of_the_ends(interpolate):
    def draw(labels, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return interpolate(labels, num_images=3, generator=generators, num_inference_steps=3, output_type="pt").images

    moved = draw([0, 1], [0, 1])
    assert torch.equal(draw([0, 1], [0, 1]), moved)
    torch.testing.assert_close(draw([1, 0], [1, 0]), moved.flip(0), rtol=0, atol=1e-5)
    same = draw([2, 2], [4, 4])  # neither moves
    torch.testing.assert_close(same, same[:1].expand(3, -1, -1, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0),
        FlowMatchSDEScheduler(solver_type="heun"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_other_schedulers(interpolate, scheduler):
    interpolate.scheduler = scheduler
    for generator in (torch.Generator(), [torch.Generator(), torch.Generator()]):
        latents = interpolate([0, 1], num_images=3, num_inference_steps=4, generator=generator, output_type="latent")
        assert latents.images.isfinite().all()


def test_with_a_cache_and_a_guidance_interval(interpolate):
    settings = {"latents": torch.randn(2, 4, 4, 4), "num_inference_steps": 4, "output_type": "latent"}
    settings |= {"guidance_scale": 2.0, "guidance_interval": (0.5, 1.0), "num_images": 3}
    expected = interpolate([0, 1], **settings).images
    config = {"num_inference_steps": 4, "mag_ratios": [1.0] * 4, "max_skip_steps": 0}
    interpolate.transformer.enable_cache(MagCacheConfig(**config))
    torch.testing.assert_close(interpolate([0, 1], **settings).images, expected, rtol=0, atol=1e-5)


def test_output_types_and_labels(interpolate):
    assert len(interpolate(["tench", "golden retriever"], num_inference_steps=1).images) == 8
    (images,) = interpolate([0, 1], num_images=2, num_inference_steps=1, height=12, return_dict=False)
    assert [image.size for image in images] == [(8, 12)] * 2


def test_from_a_folder(interpolate, pipe, tmp_path, repository):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path,
        custom_pipeline=str(repository / "pipelines/pipeline_lightningdit_interpolation.py"),
        trust_remote_code=True,
    )
    settings = {"latents": torch.randn(2, 4, 4, 4), "num_inference_steps": 2, "output_type": "pt"}
    expected = interpolate([0, 1], **settings).images
    torch.testing.assert_close(loaded([0, 1], **settings).images, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 1}, "`class_labels` is 1; required: two classes"),
        ({"class_labels": [1, 2, 3]}, r"`class_labels` is \[1, 2, 3\]; required: two classes"),
        ({"class_labels": [1, 7]}, "`class_labels` has the id 7"),
        ({"num_images": 1}, "`num_images` is 1; required: an integer of at least 2"),
        ({"num_images": 2.5}, "`num_images` is 2.5"),
        ({"latents": torch.zeros(8, 4, 4, 4)}, r"`latents` has the shape .*; required: \(2, 4, 4, 4\)"),
        ({"generator": [torch.Generator()] * 8}, "`generator` is a list of 8; required: 2"),
        ({"guidance_scale": -1}, "`guidance_scale` is -1"),
        ({"output_type": "gif"}, "`output_type` is 'gif'"),
    ],
)
def test_wrong_arguments(interpolate, arguments, message):
    embeddings = record_embeddings(interpolate.transformer)
    with pytest.raises(ValueError, match=message):
        interpolate(**{"class_labels": [0, 1], **arguments})
    assert not embeddings


def test_refuses_a_compiled_transformer(interpolate):
    interpolate.transformer.compile(backend="eager")
    with pytest.raises(ValueError, match="`transformer` is compiled as a whole"):
        interpolate([0, 1])


@pytest.mark.gpu
def test_on_a_gpu_equals_cpu(make_pipeline):
    settings = {"latents": torch.randn(2, 4, 4, 4), "num_inference_steps": 4, "output_type": "pt"}
    expected = LightningDiTInterpolationPipeline.from_pipe(make_pipeline())([0, 1], **settings).images
    interpolate = LightningDiTInterpolationPipeline.from_pipe(make_pipeline()).to("cuda")
    torch.testing.assert_close(interpolate([0, 1], **settings).images.cpu(), expected, rtol=0, atol=1e-3)
