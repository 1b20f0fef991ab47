"""The parts of the shared file that no single pipeline shows; the rest is tested with the pipelines."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

import diffusers_lightningdit.pipelines as pipelines
from diffusers_lightningdit import FlowMatchUCGMScheduler
from diffusers_lightningdit.pipelines.lightningdit_sampling import (
    REQUIREMENTS,
    check_arguments,
    denormalize_latents,
    described_scheduler,
    normalize_latents,
    preprocess,
    require,
)


def test_each_requirement_belongs_to_an_argument_of_a_pipeline():
    names = {
        name
        for cls in (getattr(pipelines, name) for name in pipelines.__all__)
        for name in inspect.signature(cls.__call__).parameters
    }
    assert set(REQUIREMENTS) <= names


def test_an_argument_without_a_requirement_is_not_passed_over():
    with pytest.raises(KeyError, match="num_steps"):
        check_arguments({"num_steps": 3})


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0.5, "is 0.5"),
        ("x", "is 'x'"),
        (torch.zeros(2, 3), r"has the shape \(2, 3\)"),
        ([torch.Generator()] * 3, "is a list of 3"),
    ],
)
def test_an_error_states_the_value(value, found):
    require(True, "name", value, "another")
    with pytest.raises(ValueError, match=f"^`name` {found}; required: another.$"):
        require(False, "name", value, "another")


@pytest.mark.parametrize(
    ("scheduler", "described"),
    [
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler()"),
        (
            FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True),
            "FlowMatchEulerDiscreteScheduler(shift=2.0, stochastic_sampling=True)",
        ),
        (FlowMatchUCGMScheduler(end_gap=0.6), "FlowMatchUCGMScheduler(end_gap=0.6)"),
    ],
)
def test_a_scheduler_is_described_by_what_is_not_its_default(scheduler, described, tmp_path):
    """Also after loading, when tuples are lists."""
    assert described_scheduler(scheduler) == described
    scheduler.save_pretrained(tmp_path)
    assert described_scheduler(type(scheduler).from_pretrained(tmp_path)) == described


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5, "shift_factor": 0.25},
        {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5], "scaling_factor": 0.5},
    ],
)
def test_normalising_an_autoencoder_of_diffusers(config):
    """By the numbers of its config, and back."""
    vae, latents = AutoencoderKL(norm_num_groups=4, block_out_channels=(4,), **config), torch.randn(2, 4, 3, 3)
    mean = torch.tensor(config.get("latents_mean", [0.25] * 4)).view(1, 4, 1, 1)
    std = torch.tensor(config.get("latents_std", [1.0] * 4)).view(1, 4, 1, 1)
    torch.testing.assert_close(normalize_latents(vae, latents), (latents - mean) / std * 0.5)
    torch.testing.assert_close(denormalize_latents(vae, normalize_latents(vae, latents)), latents)


def test_preprocess():
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=1, **blocks)
    images = preprocess([torch.full((3, 4, 4), 0.5), torch.ones(3, 8, 8)], height=8, width=4, vae=vae)
    assert images.shape == (2, 3, 8, 4)
    assert [float(image.mean()) for image in images] == [0.0, 1.0]
    masks = preprocess([torch.tensor([[0.4, 0.6]]).expand(4, 2)], height=4, width=2, vae=vae, is_mask=True)
    assert masks.tolist() == [[[[0.0, 1.0]] * 4]]
