"""FlowMatchUCGMScheduler against the authors' numbers, and against closed forms."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from diffusers_lightningdit import FlowMatchUCGMScheduler
from diffusers_lightningdit.original import load_transformer
from diffusers_lightningdit.pipelines.lightningdit_sampling import guide, in_interval


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# The authors' numbers
# ---------------------------------------------------------------------------------------------------------------------

RUNS = [
    *("field5", "field10", "field20", "field50", "field10_order2", "field5_stoch1", "field6_stoch03_extra"),
    *("field6_auto", "field6_gap0", "net5", "net10", "net20", "net50", "net9_order2", "net2_stoch1", "net4_stoch1"),
    *("net6_stoch03_extra_cfg", "net6_nocfg", "net6_gap0", "net6_cfg3_mid_interval", "net6_nowarp", "net6_noextra"),
]


def make_scheduler(recorded: dict) -> FlowMatchUCGMScheduler:
    start_gap, end_gap = recorded["rfba_gap_steps"]
    ratio = recorded["stochast_ratio"]
    return FlowMatchUCGMScheduler(
        time_warp=tuple(recorded["time_dist_ctrl"]),
        extrapolation_ratio=recorded["extrapol_ratio"],
        stochastic_ratio=ratio.lower() if isinstance(ratio, str) else ratio,
        solver_order=recorded["sampling_order"],
        start_gap=start_gap,
        end_gap=end_gap,
    )


@pytest.mark.parametrize("name", RUNS)
@torch.no_grad()
def test_the_runs_are_the_authors(name, golden_frontier):
    recorded = json.loads(golden_frontier("ucgm_sampler/runs.json").read_text())[name]
    runs = load_file(golden_frontier("ucgm_sampler/runs.safetensors"))
    scheduler = make_scheduler(recorded)
    scheduler.set_timesteps(recorded["sampling_steps"])
    times = 1 - scheduler.sigmas[:-1]
    close(times, runs[f"{name}.times"], 1e-6)
    assert len(times) == recorded["evaluations"]

    y, mu, sigma = runs["y"], runs["mu"].view(1, -1, 1, 1), runs["sigma"].view(1, -1, 1, 1)
    transformer = load_transformer(golden_frontier("ucgm_sampler/ckpt_ema_only.pt"))

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        if recorded["function"] == "field":
            return mu + (t * sigma**2 - (1 - t)) / (t**2 * sigma**2 + (1 - t) ** 2) * (x - t * mu)
        conditional = transformer(x, t, y).sample
        if not recorded["cfg_scale"] or not in_interval(t, recorded["cfg_interval"]):
            return conditional
        unconditional = transformer(x, t, torch.full_like(y, transformer.config.num_classes)).sample
        return guide(conditional, unconditional, recorded["cfg_scale"], 3)

    noise = runs.get(f"{name}.eps")
    sample, num_drawn, estimates = runs["z"], 0, []
    for i, timestep in enumerate(scheduler.timesteps):
        expected = runs.get(f"{name}.net_in")
        if expected is not None:
            close(sample, expected[i])
        v = velocity(sample, float(times[i]))
        is_step = scheduler.order == 1 or i % 2 == 0
        if is_step:
            estimates.append(sample + (1 - times[i]) * v)
        eps = noise[num_drawn] if noise is not None and is_step and num_drawn < len(noise) else None
        num_drawn += is_step
        sample = scheduler.step(-v, timestep, sample, variance_noise=eps).prev_sample
    close(torch.stack(estimates)[:: recorded.get("x_hat_every", 1)], runs[f"{name}.x_hat"])
    close(sample, runs[f"{name}.final"])


def test_extrapolation_halves_the_distance_from_the_exact_flow_map(golden_frontier):
    """On the field of a Gaussian, whose flow takes noise z to mu + sigma z."""
    runs = load_file(golden_frontier("ucgm_sampler/runs.safetensors"))
    mu, sigma = (runs[name].view(1, -1, 1, 1) for name in ("mu", "sigma"))
    close(mu + sigma * runs["z"], runs["exact_flow_map"], 1e-6)
    errors = []
    for ratio in (0.0, 0.5):
        scheduler = FlowMatchUCGMScheduler(extrapolation_ratio=ratio)
        scheduler.set_timesteps(10)
        sample = runs["z"]
        for timestep, sigma_of_time in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
            t = float(1 - sigma_of_time)
            v = mu + (t * sigma**2 - (1 - t)) / (t**2 * sigma**2 + (1 - t) ** 2) * (sample - t * mu)
            sample = scheduler.step(-v, timestep, sample).prev_sample
        errors.append((sample - runs["exact_flow_map"]).abs().max())
    assert errors[1] < 0.5 * errors[0]


def test_all_runs_are_tested(golden_frontier):
    assert set(json.loads(golden_frontier("ucgm_sampler/runs.json").read_text())) == set(RUNS)


def test_the_grids_are_the_authors(golden_frontier):
    grids = load_file(golden_frontier("ucgm_sampler/time_grids.safetensors"))
    for number in (2, 5, 10, 20, 50):
        close(FlowMatchUCGMScheduler().time_grid(number), grids[f"warped_f64_{number}"], 1e-12)
        close(FlowMatchUCGMScheduler().time_grid(number), grids[f"warped_f32_{number}"], 5e-7)
    for warp in ((0.7, 1.3, 0.9), (1.0, 1.0, 1.0), (1.17, 0.8, 1.1), (2.0, 0.5, 1.0)):
        scheduler = FlowMatchUCGMScheduler(time_warp=warp, start_gap=float(grids["u"][0]), end_gap=0.0)
        a, b, c = scheduler.config.time_warp
        close((1 - (1 - grids["u"] ** a) ** b) ** c, grids[f"warp_{a}_{b}_{c}"], 1e-12)


@pytest.mark.parametrize("name", [f"g{i}" for i in range(6)])
@torch.no_grad()
def test_guidance_is_that_of_the_pipelines(name, golden_frontier):
    recorded = json.loads(golden_frontier("ucgm_sampler/guided.json").read_text())[name]
    tensors = load_file(golden_frontier("ucgm_sampler/guided.safetensors"))
    transformer = load_transformer(golden_frontier("ucgm_sampler/ckpt_ema_only.pt"))
    x, y, t = tensors["x"][:2].repeat(2, 1, 1, 1), tensors["y"], recorded["t"]  # classes, then the null class
    conditional, unconditional = transformer(x, t, y).sample.chunk(2)
    if in_interval(t, recorded["cfg_interval"]):
        conditional = guide(conditional, unconditional, recorded["cfg_scale"], 3)
    close(conditional, tensors[f"{name}.out"][:2])


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms
# ---------------------------------------------------------------------------------------------------------------------

MEAN, STD = 0.5, 0.3


def gaussian_velocity(sample: torch.Tensor, t: float) -> torch.Tensor:
    """E[data - noise | x_t] for data ~ N(MEAN, STD^2): the velocity that a perfect network would have learnt."""
    variance = t**2 * STD**2 + (1 - t) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (sample - t * MEAN)


def jump_velocity(sample: torch.Tensor, t: float) -> torch.Tensor:
    """The average velocity from t to 1, which a perfect few-step network would have learnt."""
    scale = (t**2 * STD**2 + (1 - t) ** 2) ** 0.5
    data = MEAN + STD * (sample - t * MEAN) / scale
    return (data - sample) / (1 - t)


def integrate(scheduler, num_inference_steps: int, noise: torch.Tensor, velocity=gaussian_velocity) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(num_inference_steps)
    sample = noise
    for sigma, timestep in zip(scheduler.sigmas[:-1].tolist(), scheduler.timesteps, strict=True):
        model_output = -velocity(sample, 1 - sigma)
        sample = scheduler.step(model_output, timestep, sample, generator=generator).prev_sample
    return sample


def test_extrapolation_lowers_the_error_of_few_evaluations():
    noise = torch.linspace(-2, 2, 9)[:, None]
    exact = MEAN + STD * noise

    def error(ratio: float, number: int) -> float:
        drawn = integrate(FlowMatchUCGMScheduler(extrapolation_ratio=ratio), number, noise)
        return (drawn - exact).abs().max().item()

    for number in (5, 10):
        assert error(0.5, number) < 0.8 * error(0.0, number)


def test_without_ratios_it_is_eulers_method():
    noise = torch.linspace(-2, 2, 9)[:, None]
    plain = {"time_warp": (1, 1, 1), "extrapolation_ratio": 0, "start_gap": 0, "end_gap": 0}
    euler = FlowMatchEulerDiscreteScheduler()
    set_timesteps = euler.set_timesteps
    euler.set_timesteps = lambda number: set_timesteps(sigmas=[1 - i / number for i in range(number)])
    close(integrate(FlowMatchUCGMScheduler(**plain), 8, noise), integrate(euler, 8, noise), 1e-6)


@pytest.mark.parametrize(
    ("settings", "number", "velocity"),
    [({"stochastic_ratio": 1.0}, 3, jump_velocity), ({"solver_order": 2}, 61, gaussian_velocity)],
)
def test_the_distribution_is_kept(settings, number, velocity):
    noise = torch.randn(20000, generator=torch.Generator().manual_seed(1))
    drawn = integrate(FlowMatchUCGMScheduler(extrapolation_ratio=0, **settings), number, noise, velocity)
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert drawn.std().item() == pytest.approx(STD, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------------
# The form of a scheduler of diffusers
# ---------------------------------------------------------------------------------------------------------------------


def test_one_generator_for_each_image():
    velocity = torch.zeros(2, 1, 2, 2)
    scheduler = FlowMatchUCGMScheduler(stochastic_ratio=1.0)

    def first_step(generators, sample):
        scheduler.set_timesteps(3)
        return scheduler.step(velocity[: len(sample)], scheduler.timesteps[0], sample, generators).prev_sample

    together = first_step([torch.Generator().manual_seed(i) for i in range(2)], velocity)
    for i in range(2):
        alone = first_step([torch.Generator().manual_seed(i)], velocity[:1])
        assert torch.equal(together[i : i + 1], alone)
    assert not torch.equal(together[0], together[1])


def test_a_changed_sample_counts():
    """As a callback may do: the state that the scheduler remembers must not replace it."""
    scheduler = FlowMatchUCGMScheduler()
    scheduler.set_timesteps(4)
    sample = torch.ones(1, 1)
    sample = scheduler.step(-sample, scheduler.timesteps[0], sample).prev_sample
    zero = torch.zeros(1, 1)
    assert scheduler.step(zero, scheduler.timesteps[1], zero).prev_sample.abs().max() == 0


def test_saved_and_loaded(tmp_path):
    scheduler = FlowMatchUCGMScheduler(time_warp=(1, 1, 1), stochastic_ratio="auto", end_gap=0.6)
    scheduler.save_pretrained(tmp_path)
    loaded = FlowMatchUCGMScheduler.from_pretrained(tmp_path)
    assert list(loaded.config.time_warp) == [1, 1, 1]
    assert (loaded.config.stochastic_ratio, loaded.config.end_gap) == ("auto", 0.6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_warp": (1, 1)}, r"`time_warp` is \(1, 1\); required: three positive numbers"),
        ({"time_warp": (1, 0, 1)}, r"`time_warp` is \(1, 0, 1\)"),
        ({"extrapolation_ratio": 2}, "`extrapolation_ratio` is 2; required: within"),
        ({"stochastic_ratio": "half"}, "`stochastic_ratio` is 'half'; required: within .*, or 'auto'"),
        ({"num_train_timesteps": True}, "`num_train_timesteps` is True; required: an integer of at least 1"),
        ({"stochastic_ratio": torch.zeros(2)}, "`stochastic_ratio` is tensor.*; required: within"),
        ({"solver_order": 3}, "`solver_order` is 3; required: 1 or 2"),
        ({"start_gap": 1}, "`start_gap` is 1; required: within"),
        ({"start_gap": 0, "solver_order": 2}, "`start_gap` is 0; required: .* divides by the first t"),
        ({"end_gap": 0.9995}, "`end_gap` is 0.9995; required: within"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchUCGMScheduler(**settings)


def test_wrong_calls():
    scheduler = FlowMatchUCGMScheduler()
    with pytest.raises(ValueError, match="call `set_timesteps` first"):
        scheduler.step(torch.zeros(1), 1000, torch.zeros(1))
    for number in (0, 1.5, True, "3", None, 10**30):
        with pytest.raises(
            ValueError, match=f"`num_inference_steps` is {number!r}; required: an integer of at least 1"
        ):
            scheduler.set_timesteps(number)
    scheduler.set_timesteps(1)
    scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.zeros(1))
    with pytest.raises(ValueError, match="`step` was called 2 times; the grid has 1 evaluations"):
        scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.zeros(1))
