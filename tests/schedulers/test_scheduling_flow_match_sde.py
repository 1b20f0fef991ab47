import json
import math

import pytest
import torch
from golden.small_set import recorded_part
from safetensors.torch import load_file

from diffusers_lightningdit import FlowMatchSDEScheduler
from diffusers_lightningdit.original import load_transformer

# ---------------------------------------------------------------------------------------------------------------------
# The original's numbers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [0, 1])
def test_reproduces_the_original_sde_sampler(run, golden):
    """Every state of every recorded run, with the recorded noise."""
    recorded = json.loads(golden("sampling/sde.json").read_text())["runs"][run]
    tensors = load_file(golden("sampling/sde.safetensors"))
    transformer = load_transformer(golden("sampling/ckpt_published_ema_only.pt"))
    noise = tensors[f"{recorded['key']}.noise"]  # [steps, B, C, height, width]
    scheduler = FlowMatchSDEScheduler(
        solver_type=recorded["sampling_method"].lower(),
        diffusion_form=recorded["diffusion_form"],
        diffusion_norm=recorded["diffusion_norm"],
        last_step=recorded["last_step"].lower(),
        last_step_size=recorded["last_step_size"],
    )
    scheduler.set_timesteps(recorded["num_steps"])

    # The scheduler hands out samples that hold the next step's noise already; the original's states don't.
    is_heun = scheduler.order == 2
    steps = [i for i in range(len(scheduler.timesteps)) if i % scheduler.order == 0]
    noise_scales = [scheduler._noise_scale(i) for i in steps]
    sample, states = tensors["init"], []
    if is_heun:
        sample = sample + noise_scales[0] * noise[0]
    for i, timestep in enumerate(scheduler.timesteps):
        step, is_end_of_step = i // scheduler.order, i % scheduler.order == scheduler.order - 1
        drawn = step + 1 if is_heun else step
        with torch.no_grad():
            velocity = transformer(sample, float(1 - scheduler.sigmas[i]), tensors["y"]).sample
        variance_noise = noise[drawn] if drawn < len(noise) else None
        sample = scheduler.step(-velocity, timestep, sample, variance_noise=variance_noise).prev_sample
        if is_end_of_step or i == len(scheduler.timesteps) - 1:
            has_noise = is_heun and drawn < len(noise)
            states.append(sample - noise_scales[drawn] * noise[drawn] if has_noise else sample)

    assert len(states) == recorded["states_returned"]
    trajectory = torch.stack([state[:1] for state in states])
    expected = tensors[f"{recorded['key']}.trajectory"]
    torch.testing.assert_close(recorded_part(trajectory, expected), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(states[-1], tensors[f"{recorded['key']}.final"], rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms
# ---------------------------------------------------------------------------------------------------------------------

MEAN, STD = 0.5, 0.3


def gaussian_velocity(sample: torch.Tensor, t: float) -> torch.Tensor:
    """E[data - noise | x_t] for data ~ N(MEAN, STD^2): the velocity that a perfect network would have learnt."""
    variance = t**2 * STD**2 + (1 - t) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (sample - t * MEAN)


def integrate(scheduler, num_inference_steps: int, num_samples: int = 20000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(num_inference_steps)
    sample = torch.randn(num_samples, generator=generator) * scheduler.init_noise_sigma
    for sigma, timestep in zip(scheduler.sigmas[:-1].tolist(), scheduler.timesteps, strict=True):
        velocity = gaussian_velocity(sample, 1 - sigma)
        sample = scheduler.step(-velocity, timestep, sample, generator=generator).prev_sample
    return sample


FORMS = [
    (solver_type, form, last_step)
    for solver_type in ("euler", "heun")
    for form in ("sigma", "linear", "decreasing")
    for last_step in ("mean", "euler", None)
    if (solver_type, form, last_step) != ("heun", "decreasing", None)  # refused: its drift diverges
]


@pytest.mark.parametrize(("solver_type", "form", "last_step"), FORMS)
def test_samples_have_the_distribution_of_the_data(solver_type, form, last_step):
    scheduler = FlowMatchSDEScheduler(
        solver_type=solver_type, diffusion_form=form, last_step=last_step, last_step_size=0.01
    )
    sample = integrate(scheduler, 200)
    assert abs(sample.mean() - MEAN) < 0.01
    assert abs(sample.std() - STD) < 0.015
    standardised = (sample - sample.mean()) / sample.std()
    assert abs(standardised.pow(4).mean() - 3) < 0.2


@pytest.mark.parametrize("form", ["sigma", "linear"])
def test_without_diffusion_it_is_the_deterministic_flow(form):
    """Norm 0: the flow of a Gaussian maps noise n to MEAN + STD n."""
    scheduler = FlowMatchSDEScheduler(solver_type="heun", diffusion_form=form, diffusion_norm=0.0, last_step=None)
    sample = integrate(scheduler, 200, num_samples=100)
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample, MEAN + STD * noise, rtol=0, atol=1e-4)


def test_initial_noise_of_heun_holds_the_first_step_s_noise():
    scheduler = FlowMatchSDEScheduler(solver_type="heun", diffusion_norm=0.5, last_step_size=0.04)
    scheduler.set_timesteps(6)
    step = (1 - 0.04) / 5
    assert scheduler.init_noise_sigma == pytest.approx(math.sqrt(1 + 2 * 0.5 * step))
    euler = FlowMatchSDEScheduler(diffusion_norm=0.5)
    euler.set_timesteps(6)
    assert euler.init_noise_sigma == 1.0


@pytest.mark.parametrize(
    ("solver_type", "last_step", "expected"),
    [
        ("euler", "mean", [1, 0.7, 0.4, 0.1, 0]),
        ("heun", "mean", [1, 0.7, 0.7, 0.4, 0.4, 0.1, 0.1, 0]),
        ("euler", None, [1, 0.75, 0.5, 0.25, 0]),
        ("heun", None, [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0, 0]),
    ],
)
def test_grid(solver_type, last_step, expected):
    scheduler = FlowMatchSDEScheduler(solver_type=solver_type, last_step=last_step, last_step_size=0.1)
    scheduler.set_timesteps(4)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected).float())
    torch.testing.assert_close(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train_timesteps": float("nan")}, "`num_train_timesteps` is nan; required: an integer of at least 1"),
        ({"solver_type": ["euler"]}, r"`solver_type` is \['euler'\]; required: one of"),
        ({"solver_type": "rk4"}, "`solver_type` is 'rk4'; required: one of"),
        ({"diffusion_form": "constant"}, "`diffusion_form` is 'constant'; required: one of"),
        ({"last_step": "Mean"}, "`last_step` is 'Mean'; required: one of"),
        ({"last_step_size": 0}, "`last_step_size` is 0; required: between 0 and 1"),
        ({"diffusion_norm": -1}, "`diffusion_norm` is -1; required: a finite number of at least 0"),
        ({"solver_type": "heun", "diffusion_form": "decreasing", "last_step": None}, "`last_step` is None with"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchSDEScheduler(**arguments)


def test_wrong_order_of_calls():
    scheduler = FlowMatchSDEScheduler()
    with pytest.raises(ValueError, match="call `set_timesteps` first"):
        scheduler.step(torch.zeros(1), 1000.0, torch.zeros(1))
    for number in (0, 1.5, True, "3", None, 10**30):
        with pytest.raises(
            ValueError, match=f"`num_inference_steps` is {number!r}; required: an integer of at least 1"
        ):
            scheduler.set_timesteps(number)
    scheduler.set_timesteps(1)
    scheduler.step(torch.zeros(1), 1000.0, torch.zeros(1))
    with pytest.raises(ValueError, match="the grid has 1 evaluations"):
        scheduler.step(torch.zeros(1), 1000.0, torch.zeros(1))
