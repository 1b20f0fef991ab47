"""FACM's loss: numbers of the original, derivatives, and a flow map in closed form."""

import json
from itertools import pairwise

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from safetensors.torch import load_file

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.flow_anchored_consistency import (
    FlowAnchoredConsistency,
    consistency_loss,
    consistency_target,
    expand_times,
    finite_difference,
    forward_mode,
)
from diffusers_lightningdit.flow_matching import (
    arctan_times,
    flow_matching_losses,
    interpolate,
    logit_normal_times,
    velocity_cosine_loss,
    velocity_mse_loss,
)
from diffusers_lightningdit.original import load_transformer
from diffusers_lightningdit.original.transformer import transformer_rows

TOLERANCE = 1e-4  # of the recorded numbers, in float32
NETWORKS = ("ema_only", "stage1_teacher")  # student and teacher
CASES = ("released", "cfgw1", "no_teacher", "log_time_interval")


def assert_close(actual, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Times
# ---------------------------------------------------------------------------------------------------------------------


def test_halves_of_a_batch_do_not_depend_on_its_parts():
    times = torch.rand(5)
    expanded = expand_times(times, range(5), 5)
    assert torch.equal(expanded, torch.cat([times[:2], 2 - times[2:]]))
    parts = [expand_times(times[i : i + 1], range(i, i + 1), 5) for i in range(5)]
    assert torch.equal(torch.cat(parts), expanded)


# ---------------------------------------------------------------------------------------------------------------------
# The original's training
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["even", "odd"])
def test_the_teacher_learns_expanded_times_as_in_the_original(golden_frontier, case):
    recorded = load_file(golden_frontier("facm/loss_stage1.safetensors"))
    facts = json.loads(golden_frontier("facm/loss_stage1.json").read_text())[case]
    noise, latents, times, labels = (recorded[f"{case}.{name}"] for name in ("x0", "x1", "t", "y"))
    seen = expand_times(times, range(len(times)), len(times))
    assert torch.equal(seen, recorded[f"{case}.t_seen"])
    model = load_transformer(golden_frontier("facm/ckpt_stage1_teacher.pt"))
    mse, cosine, _ = flow_matching_losses(model, noise, latents, times, labels, seen_times=seen)
    assert_close(mse, recorded[f"{case}.loss"])
    assert_close(cosine, recorded[f"{case}.cos_loss"])
    total = mse.mean() + cosine.mean()
    assert_close(total, recorded[f"{case}.total"])
    total.backward()
    check_gradients(model, recorded, case, facts)


def check_gradients(model, recorded, case, facts):
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    num_compared = 0
    for row in transformer_rows(model):
        if row.original == "pos_embed":
            continue
        gradient = row.to_original(gradients)
        assert gradient.norm().item() == pytest.approx(facts["grad_norms"][row.original], rel=1e-3), row.original
        expected = recorded.get(f"{case}.grad.{row.original}")
        if expected is not None:
            num_compared += 1
            assert_close(gradient, expected, tolerance=1e-3 * expected.abs().max().item())
    assert num_compared >= 5


@pytest.fixture(scope="module", params=["second", "expanded"])
def recorded_loss(request, golden_frontier):
    """(numbers, facts, how times are told apart, student, teacher) of the two variants."""
    folder = {"second": "facm/r_embedder", "expanded": "facm"}[request.param]
    name = {"second": "ckpt_teacher.pt", "expanded": "ckpt_stage1_teacher.pt"}[request.param]
    student = load_transformer(golden_frontier(f"{folder}/ckpt_ema_only.pt"))
    teacher = load_transformer(golden_frontier(f"{folder}/{name}"))
    recorded = load_file(golden_frontier(f"{folder}/loss_stage2.safetensors"))
    facts = json.loads(golden_frontier(f"{folder}/loss_stage2.json").read_text())
    return recorded, facts, request.param, student, teacher


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_originals(recorded_loss, case):
    recorded, facts, times_kind, student, teacher = recorded_loss
    numbers = {name.removeprefix(f"{case}."): value for name, value in recorded.items() if name.startswith(f"{case}.")}
    settings, facts = facts[case]["settings"], facts[case]
    noise, latents, times, labels = (numbers[name] for name in ("noise", "x", "t", "y"))
    objective = FlowAnchoredConsistency(
        null_class=student.config.num_classes,
        times=times_kind,
        derivative="forward_mode",
        guidance_scale=settings["cfgw"],
        guidance_interval=(settings["glow"], settings["ghigh"]),
        exponent=settings["p"],
    )
    teacher = teacher if settings["distill"] else None
    sample = {"default": arctan_times, "log": logit_normal_times}[settings["t_type"]]
    drawn = sample(torch.special.ndtr(-numbers["n"].double()), settings["mean"], settings["std"])
    assert_close(drawn, times, tolerance=1e-6)
    velocity = objective.target_velocity(student, teacher, noise, latents, times, labels)
    assert_close(velocity, numbers["v"])
    noisy = interpolate(noise, latents, times)
    assert_close(noisy, numbers["x_t"])
    derivative = objective.along_flow(student, noisy, times, velocity, labels)
    assert_close(derivative, numbers["D"])
    ends = {"second_timestep": torch.ones_like(times)} if times_kind == "second" else {}
    with torch.no_grad():
        assert_close(student(noisy, times, labels, **ends).sample, numbers["u"])
        anchor_times = times if times_kind == "second" else 2 - times
        assert_close(student(noisy, anchor_times, labels).sample, numbers["F_anchor"])
    target = consistency_target(numbers["u"], derivative, velocity, times, settings["p"])
    assert_close(target, numbers["target"])
    assert_close(velocity_mse_loss(numbers["u"], target), numbers["e"])
    assert_close(consistency_loss(numbers["u"], target, times), numbers["cm_loss"])
    assert_close(velocity_mse_loss(numbers["F_anchor"], velocity), numbers["fm_mse"])
    assert_close(velocity_cosine_loss(numbers["F_anchor"], velocity), numbers["fm_cos"])

    student.zero_grad()
    losses = objective.losses(student, student, teacher, noise, latents, times, labels)
    assert_close(losses.consistency, numbers["cm_loss"])
    assert_close(losses.anchor_mse + losses.anchor_cosine, numbers["fm_loss"])
    total = sum(loss.mean() for loss in losses)
    assert_close(total, numbers["total"])
    total.backward()
    check_gradients(student, recorded, case, facts)


@pytest.mark.parametrize(
    ("mistake", "settings"),
    [
        ("base_minus_recorded", {}),
        ("p_is_1", {"exponent": 1.0}),
        ("no_guidance", {"guidance_scale": 1.0}),
        ("guidance_at_every_t", {"guidance_interval": (0.0, 1.0)}),
    ],
)
def test_mistakes_would_show(golden_frontier, mistake, settings):
    """Another setting moves the loss by as much as was recorded, which is more than the tolerance."""
    recorded = load_file(golden_frontier("facm/loss_stage2.safetensors"))
    moved = json.loads(golden_frontier("facm/sensitivity_of_total_released.json").read_text())[mistake]
    student, teacher = (load_transformer(golden_frontier(f"facm/ckpt_{name}.pt")) for name in NETWORKS)
    objective = FlowAnchoredConsistency(10, times="expanded", derivative="forward_mode", **settings)
    draws = (recorded[f"released.{name}"] for name in ("noise", "x", "t", "y"))
    with torch.no_grad():
        total = sum(loss.mean() for loss in objective.losses(student, student, teacher, *draws))
    assert (total - recorded["released.total"]).item() == pytest.approx(moved, rel=5e-3, abs=2e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Derivatives
# ---------------------------------------------------------------------------------------------------------------------


class DoubleTimes(torch.nn.Module):
    """The sines and cosines of diffusers' `Timesteps`, which computes in float32, in the type of t."""

    def forward(self, timestep):
        frequencies = torch.exp(-torch.arange(128, dtype=timestep.dtype) / 128 * torch.log(torch.tensor(10_000.0)))
        angles = timestep[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def test_finite_difference_and_forward_mode_agree():
    """In float64 to 1e-5 of the derivative; in float32, with the default step, to 1e-3.

    Without rotary embedding and RMSNorm, which diffusers computes in float32, too.
    """
    student = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=3, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_classes=3,
        use_qk_norm=True, use_rope=False, norm_type="layer_norm",
    ).eval()  # fmt: skip
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    noisy, velocity = torch.randn(2, 5, 3, 4, 4)
    times, labels = torch.rand(5), torch.tensor([0, 1, 2, 3, 0])
    torch.testing.assert_close(DoubleTimes()(times), student.time_proj(times))

    def network(noisy, times):
        return student(noisy, times, labels.repeat(len(times) // len(labels))).sample

    with torch.no_grad():
        exact = forward_mode(network, noisy, times, velocity)
        assert (finite_difference(network, noisy, times, velocity) - exact).norm() < 1e-3 * exact.norm()
        student.double().time_proj = DoubleTimes()
        noisy, times, velocity = noisy.double(), times.double(), velocity.double()
        exact = forward_mode(network, noisy, times, velocity)
        difference = finite_difference(network, noisy, times, velocity, step=1e-4)
    assert exact.dtype == torch.float64 and exact.norm() > 1
    assert (difference - exact).norm() < 1e-5 * exact.norm()


def test_both_derivatives_give_one_loss(golden_frontier):
    student = load_transformer(golden_frontier("facm/ckpt_ema_only.pt"))
    recorded = load_file(golden_frontier("facm/loss_stage2.safetensors"))
    draws = [recorded[f"released.{name}"] for name in ("noise", "x", "t", "y")]
    values = []
    for derivative in ("finite_difference", "forward_mode"):
        objective = FlowAnchoredConsistency(10, times="expanded", derivative=derivative)
        values.append(objective.losses(student, student, student, *draws).consistency)
    torch.testing.assert_close(*values, atol=1e-4, rtol=1e-3)
    assert not torch.equal(*values)


def test_the_target_is_the_fixed_point_of_an_exact_average_velocity():
    """On x' = a x, the jump from t is x exp(a (1 - t)): its gap vanishes, so the target is the prediction itself."""
    rate, times = -1.3, torch.linspace(0, 0.95, 5, dtype=torch.float64)
    noisy = torch.randn(5, 2, 3, 3, dtype=torch.float64)

    def average(noisy, times):
        rest = (1 - times).view(-1, 1, 1, 1)
        return noisy * (torch.exp(rate * rest) - 1) / rest

    velocity = rate * noisy
    derivative = forward_mode(average, noisy, times, velocity)
    target = consistency_target(average(noisy, times), derivative, velocity, times)
    torch.testing.assert_close(target, average(noisy, times))
    assert not torch.allclose(consistency_target(average(noisy, times), 0 * derivative, velocity, times), target)


# ---------------------------------------------------------------------------------------------------------------------
# A flow map in closed form
# ---------------------------------------------------------------------------------------------------------------------

MEANS, STD = torch.tensor([[-1.5], [1.0]]), 0.5  # of a mixture of two Gaussians of equal weights


class MixtureFlow(torch.nn.Module):
    """The exact velocity E[x - n | x_t] of data that is the mixture, one number a sample: [B, 1, 1, 1]."""

    def forward(self, noisy, times, class_labels):
        means, variance = MEANS * times, (STD * times) ** 2 + (1 - times) ** 2
        distance = noisy.flatten() - means  # [2, B]
        weights = torch.softmax(-(distance**2) / (2 * variance), dim=0)
        velocity = MEANS + (times * STD**2 - (1 - times)) / variance * distance
        return Transformer2DModelOutput((weights * velocity).sum(0).view(-1, 1, 1, 1))


class TinyStudent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        widths = (3, 64, 64, 64, 1)
        layers = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
        self.layers = torch.nn.Sequential(*[module for layer in layers for module in (layer, torch.nn.SiLU())][:-1])

    def forward(self, noisy, times, class_labels, **second):
        (ends,) = second.values()
        inputs = torch.stack([noisy.flatten(), 2 * times - 1, 2 * ends - 1], dim=1)
        return Transformer2DModelOutput(self.layers(inputs).view(-1, 1, 1, 1))


def test_a_tiny_network_learns_the_flow_map_of_a_mixture():
    """In one dimension the flow carries quantiles to quantiles: the map of z is F^-1(Phi(z)), F that of the mixture.

    On average over z ~ N(0, 1), one evaluation is 0.06 from it, where one Euler step of the exact flow is 1.25
    from it.
    """
    student, flow = TinyStudent(), MixtureFlow()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    objective = FlowAnchoredConsistency(null_class=0, guidance_scale=1)
    for _ in range(1000):
        latents = MEANS[torch.randint(2, (256,))].view(-1, 1, 1, 1) + STD * torch.randn(256, 1, 1, 1)
        times, labels = arctan_times(torch.rand(256)), torch.zeros(256, dtype=torch.long)
        losses = objective.losses(student, student, flow, torch.randn_like(latents), latents, times, labels)
        optimizer.zero_grad()
        (losses.consistency.mean() + losses.anchor_mse.mean()).backward()
        optimizer.step()
        schedule.step()

    quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    grid = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    exact = grid[torch.searchsorted(torch.special.ndtr((grid - MEANS) / STD).mean(0), quantiles)].float()
    noise, zeros = torch.special.ndtri(quantiles).float().view(-1, 1, 1, 1), torch.zeros(1000)
    with torch.no_grad():
        jump = student(noise, zeros, labels, ends=torch.ones(1000)).sample
        euler = flow(noise, zeros, labels).sample
    assert ((noise + jump).flatten() - exact).abs().mean() < 0.08
    assert ((noise + euler).flatten() - exact).abs().mean() > 1
