"""Sampling by the Adams-Bashforth method: exact solutions, jumps of the velocity, and the evaluations that it saves."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import FlowMatchAdamsBashforthScheduler, LightningDiTPipeline


def solve(scheduler, velocity, num_steps: int, start: float = 1.0) -> float:
    scheduler.set_timesteps(num_steps)
    sample = torch.tensor([[[[start]]]])
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        sample = scheduler.step(-velocity(sample, 1 - sigma), timestep, sample).prev_sample
    return sample.item()


@pytest.mark.parametrize("shift", [1.0, 1 / 0.3])
def test_a_velocity_that_is_linear_in_t_is_integrated_exactly_after_the_first_step(shift):
    """d x / d t = 2 t: only the first step, Euler's, has an error, the square of its length."""
    scheduler = FlowMatchAdamsBashforthScheduler(shift=shift)
    found = solve(scheduler, lambda sample, t: torch.full_like(sample, 2 * t), 10, start=0.0)
    first = 1 - scheduler.sigmas[1].item()
    assert found == pytest.approx(1 - first**2, abs=1e-6)


def test_the_order_is_2():
    """d x / d t = x: half the step, a quarter of the error."""
    errors = [
        abs(solve(FlowMatchAdamsBashforthScheduler(), lambda sample, t: sample, num_steps) - math.e)
        for num_steps in (20, 40, 80)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_a_jump_on_the_grid_does_not_cost_accuracy():
    """d x / d t = x, and 5 x from t = 0.3 on."""

    def velocity(sample, t):
        return sample * (1 if t < 0.3 - 1e-6 else 5)

    exact = math.exp(0.3 + 5 * 0.7)
    restarted = FlowMatchAdamsBashforthScheduler(restart_times=[0.3])
    errors = [
        abs(solve(scheduler, velocity, 64) / exact - 1) for scheduler in (restarted, FlowMatchAdamsBashforthScheduler())
    ]
    assert 1 - restarted.sigmas[19].item() == pytest.approx(0.3, abs=1e-6)
    assert errors[0] < 0.02 < errors[1]


def test_the_grid_has_its_restarts_and_no_further_points():
    scheduler = FlowMatchAdamsBashforthScheduler(restart_times=[0.13, 0.12, 0.99])
    scheduler.set_timesteps(4)
    times = (1 - scheduler.sigmas).tolist()
    assert times == pytest.approx([0, 0.12, 0.13, 0.99, 1])
    for number in (1.5, True, "3", None, 10**30):
        with pytest.raises(
            ValueError, match=f"`num_inference_steps` is {number!r}; required: an integer of at least 1"
        ):
            scheduler.set_timesteps(number)
    with pytest.raises(ValueError, match="`num_inference_steps` is 3; required: at least 4, with 3 `restart_times`"):
        scheduler.set_timesteps(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train_timesteps": "x"}, "`num_train_timesteps` is 'x'; required: an integer of at least 1"),
        ({"restart_times": 0.5}, "`restart_times` is 0.5; required: a list of times"),
        ({"shift": 0}, "`shift` is 0; required: a positive number"),
        ({"restart_times": [1.0]}, "`restart_times` has 1.0; required: times between 0 and 1, both excluded"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchAdamsBashforthScheduler(**arguments)


def test_a_step_too_many():
    scheduler = FlowMatchAdamsBashforthScheduler()
    with pytest.raises(ValueError, match="call `set_timesteps` first"):
        scheduler.step(torch.zeros(1), 0, torch.zeros(1))
    solve(scheduler, lambda sample, t: sample, 2)
    with pytest.raises(ValueError, match="`step` was called 3 times; the grid has 2 evaluations"):
        scheduler.step(torch.zeros(1), 0, torch.zeros(1))


def test_a_fifth_of_the_evaluations_of_the_published_recipe(digits_pipeline):
    """On the embedded model, with the published guidance: 48 evaluations are closer to 1,000 steps than Euler's 249."""
    pipe = LightningDiTPipeline.from_pretrained(digits_pipeline)
    pipe.set_progress_bar_config(disable=True)
    guidance = {"guidance_scale": 6.7, "guidance_interval": (0.125, 1.0), "guidance_channels": 3}
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))

    def draw(scheduler, num_steps):
        pipe.scheduler = scheduler
        return pipe(8, num_inference_steps=num_steps, latents=noise, output_type="latent", **guidance).images

    euler = FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)
    reference = draw(euler, 1000)
    published, fast = draw(euler, 249), draw(FlowMatchAdamsBashforthScheduler(restart_times=[0.125]), 48)
    assert 0 < (fast - reference).square().mean() < (published - reference).square().mean()
