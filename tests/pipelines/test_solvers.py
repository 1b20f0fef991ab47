"""A solver of third order needs a fifth of the network evaluations of Euler's method (docs/performance.md)."""

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

import diffusers_lightningdit  # noqa: F401 (makes its classes known)


@pytest.fixture
def pipe(digits_pipeline):
    pipe = DiffusionPipeline.from_pretrained(digits_pipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, scheduler, num_inference_steps) -> tuple[torch.Tensor, int]:
    """Latents, and the number of network evaluations."""
    pipe.scheduler, calls = scheduler, []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    generator = torch.Generator().manual_seed(0)
    steps = {"num_inference_steps": num_inference_steps}
    latents = pipe(3, generator=generator, guidance_scale=1.0, output_type="latent", **steps).images
    hook.remove()
    return latents, len(calls)


def test_a_fifth_of_the_evaluations(pipe):
    shift = pipe.scheduler.config.shift
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    exact, _ = drawn(pipe, FlowMatchHeunDiscreteScheduler(shift=shift), 150)
    euler, many = drawn(pipe, FlowMatchEulerDiscreteScheduler(shift=shift), 249)
    unipc, few = drawn(pipe, UniPCMultistepScheduler(solver_order=3, **settings), 49)
    assert (many, few) == (249, 49)
    assert (unipc - exact).norm() < (euler - exact).norm()
