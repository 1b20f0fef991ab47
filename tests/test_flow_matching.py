import json

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.flow_matching import (
    arctan_times,
    flow_matching_losses,
    interpolate,
    logit_normal_times,
    uniform_times,
    velocity_cosine_loss,
    velocity_mse_loss,
    velocity_target,
)
from diffusers_lightningdit.original import OriginalConfig, load_transformer
from diffusers_lightningdit.original.transformer import transformer_rows

TOLERANCE = 1e-5  # the same formulas in float32


@pytest.fixture(scope="module")
def losses(golden):
    return load_file(golden("train/losses.safetensors"))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_path_and_target_are_the_originals(losses):
    assert_close(interpolate(losses["x0"], losses["x1"], losses["t"]), losses["xt"])
    assert_close(velocity_target(losses["x0"], losses["x1"]), losses["ut"])


def test_losses_are_the_originals(losses):
    mse = velocity_mse_loss(losses["pred"], losses["ut"])
    cosine = velocity_cosine_loss(losses["pred"], losses["ut"])
    assert_close(mse, losses["loss"])
    assert_close(cosine, losses["cos_loss"])
    assert_close(mse.mean() + cosine.mean(), losses["total"].reshape(()))


def test_other_paths_of_the_original_agree_where_they_are_this_one(golden):
    variants = load_file(golden("train/transport_variants.safetensors"))
    key = "Linear_velocity_none"
    noise, latents = variants[f"{key}.x0"], variants["x1"]
    target = velocity_target(noise, latents)
    assert_close(interpolate(noise, latents, variants[f"{key}.t"]), variants[f"{key}.xt"])
    assert_close(velocity_mse_loss(variants["net_output"], target), variants[f"{key}.loss"])
    assert_close(velocity_cosine_loss(variants["net_output"], target), variants[f"{key}.cos_loss"])


def test_ends_of_the_path():
    noise, latents = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(interpolate(noise, latents, torch.zeros(2)), noise)
    assert torch.equal(interpolate(noise, latents, torch.ones(2)), latents)


@pytest.mark.parametrize(("case", "arguments"), [("", (0.8, 1.6)), ("_other", (-0.3, 1.0))])
def test_times_are_those_of_facm(golden_frontier, case, arguments):
    """The original draws 1 - t of normal numbers n; t is that of the numbers -n, u = Phi(-n)."""
    recorded = load_file(golden_frontier("facm/time_sampling.safetensors"))
    uniform = torch.special.ndtr(-recorded["n"].double())
    for name, sample in (("default", arctan_times), ("log", logit_normal_times)):
        times = sample(uniform, *arguments)
        assert times.dtype == torch.float32
        torch.testing.assert_close(times, recorded[f"{name}{case}.t"], atol=1e-6, rtol=0)


def test_arctan_times_in_a_range_are_what_drawing_again_gives():
    torch.manual_seed(0)
    all_times = arctan_times(torch.rand(400_000), 0.3, 1.2)
    kept = all_times[(all_times >= 0.2) & (all_times < 0.6)]
    quantiles = torch.linspace(0.05, 0.95, 19)
    times = arctan_times(quantiles, 0.3, 1.2, (0.2, 0.6))
    torch.testing.assert_close(times, kept.quantile(quantiles), atol=2e-3, rtol=0)


def test_arctan_times_refuse_a_std_that_is_not_positive():
    with pytest.raises(ValueError, match=r"`std` is 0; required: a positive number"):
        arctan_times(torch.rand(4), std=0)


def test_logit_normal_is_the_originals(golden):
    """t = F^-1(u) of numbers u = Phi(s) is the t that the original makes of the normal numbers s."""
    recorded = json.loads(golden("train/logit_normal.json").read_text())
    uniform = torch.special.ndtr(torch.tensor(recorded["standard_normals_16"], dtype=torch.float64))
    assert_close(logit_normal_times(uniform), torch.tensor(recorded["t_16"]))
    assert_close(logit_normal_times(uniform, mean=-0.5), torch.tensor(recorded["t_16_mu_-0.5"]))


def test_logit_normal_quantiles(golden):
    exact = json.loads(golden("train/logit_normal.json").read_text())["exact_quantiles"]
    quantiles, values = torch.tensor([[float(key), value] for key, value in exact.items()]).T
    assert_close(logit_normal_times(quantiles), values)


def test_logit_normal_in_a_range_is_what_drawing_again_gives(golden):
    recorded = json.loads(golden("train/logit_normal.json").read_text())
    all_times = torch.sigmoid(torch.randn(400_000))
    kept = all_times[(all_times >= 0.2) & (all_times < 0.6)]
    quantiles = torch.linspace(0.05, 0.95, 19)
    times = logit_normal_times(quantiles, time_range=(0.2, 0.6))
    torch.testing.assert_close(times, kept.quantile(quantiles), atol=2e-3, rtol=0)
    # the recorded draws are such: 16 or so of them cannot be far from the distribution (Kolmogorov-Smirnov, 1 %)
    draws = torch.tensor(recorded["t_16_in_range_0.2_0.6"]).sort().values
    grid = logit_normal_times(torch.linspace(0, 1, 10_001), time_range=(0.2, 0.6))
    distribution = torch.searchsorted(grid, draws) / 10_000
    steps = torch.arange(1, len(draws) + 1) / len(draws)
    assert (distribution - steps).abs().max() < 1.63 / len(draws) ** 0.5


@pytest.mark.parametrize("sample", [uniform_times, logit_normal_times])
def test_times_lie_in_their_range(sample):
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    for start, end in ((0.0, 1.0), (0.25, 0.75)):
        times = sample(uniform, time_range=(start, end))
        assert times.dtype == torch.float32
        assert start <= times[0] < times[1] < times[2] <= end
        assert times[1] == pytest.approx(0.5)


def test_uniform_range_is_that_of_the_originals_validation(losses):
    times = losses["sp_t"]
    assert ((times >= 0.25) & (times < 0.75)).all()
    assert_close(uniform_times((times - 0.25) / 0.5, (0.25, 0.75)), times)


def test_logit_normal_refuses_a_std_that_is_not_positive():
    with pytest.raises(ValueError, match=r"`std` is 0; required: a positive number"):
        logit_normal_times(torch.rand(4), std=0)


# ---------------------------------------------------------------------------------------------------------------------
# The original's training, with its weights and its draws
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(golden):
    yaml = OriginalConfig.read(golden("train/step_plain.yaml"))
    return load_transformer(golden("train/weight_init.pt"), config=yaml)


@pytest.mark.parametrize(("prefix", "labels"), [("", "y"), ("drop_", "drop_y_after"), ("sp_", "y"), ("uniform_", "y")])
def test_losses_of_the_network_are_the_originals(losses, model, prefix, labels):
    def recorded(name):
        return losses.get(prefix + name, losses.get(name))

    noise, latents, times = recorded("x0"), recorded("x1"), recorded("t")
    labels = losses.get(prefix + "y", losses[labels]) if prefix != "drop_" else losses[labels]
    with torch.no_grad():
        mse, cosine, _ = flow_matching_losses(model, noise, latents, times, labels)
    assert_close(mse, recorded("loss"))
    if prefix in ("", "drop_"):
        assert_close(cosine, recorded("cos_loss"))


def test_gradients_are_the_originals(losses, model, golden):
    recorded = json.loads(golden("train/losses.json").read_text())
    model.train()
    model.class_embedder.eval()  # as in training: labels are dropped outside
    mse, cosine, _ = flow_matching_losses(model, losses["x0"], losses["x1"], losses["t"], losses["y"])
    (mse.mean() + cosine.mean()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    state = model.state_dict()
    assert set(state) - set(gradients) == {"pos_embed"}  # a buffer here, a frozen parameter there
    assert recorded["params_without_grad"] == ["pos_embed"]
    for row in transformer_rows(model):
        if row.original != "pos_embed":
            gradient = row.to_original(gradients)
            assert gradient.norm().item() == pytest.approx(recorded["grad_norms_total_loss"][row.original], rel=1e-3)
            if f"grad.{row.original}" in losses:
                torch.testing.assert_close(gradient, losses[f"grad.{row.original}"], atol=1e-4, rtol=1e-4)
    norm = torch.nn.utils.get_total_norm(gradients.values())
    assert norm.item() == pytest.approx(recorded["global_grad_norm"], rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# Internal guidance
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def internal_model(golden_frontier) -> LightningDiTTransformer2DModel:
    yaml = OriginalConfig.read(golden_frontier("internal_guidance/config.yaml"))
    return load_transformer(golden_frontier("internal_guidance/ckpt_ema_only.pt"), config=yaml)


@pytest.mark.parametrize("case", ["a", "b"])
def test_losses_of_internal_guidance_are_the_originals(golden_frontier, internal_model, case):
    recorded = load_file(golden_frontier("internal_guidance/loss.safetensors"))
    facts = json.loads(golden_frontier("internal_guidance/loss.json").read_text())[case]
    draws = [recorded[f"{case}.{name}"] for name in ("x0", "x1", "t", "y")]
    internal_model.zero_grad()
    losses = flow_matching_losses(internal_model, *draws, with_internal=True)
    for loss, name in zip(losses, ("mse_v", "cos_loss", "mse_z"), strict=True):
        torch.testing.assert_close(loss, recorded[f"{case}.{name}"], atol=1e-4, rtol=0)
    total = losses.mse.mean() + 0.5 * losses.internal_mse.mean() + losses.cosine.mean()
    torch.testing.assert_close(total, recorded[f"{case}.total"], atol=1e-4, rtol=0)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in internal_model.named_parameters()}
    for row in transformer_rows(internal_model):
        if row.original == "pos_embed":
            continue
        gradient = row.to_original(gradients)
        assert gradient.norm().item() == pytest.approx(facts["grad_norms"][row.original], rel=1e-3), row.original
        expected = recorded.get(f"{case}.grad.{row.original}")
        if expected is not None:
            torch.testing.assert_close(gradient, expected, atol=1e-3 * expected.abs().max().item(), rtol=0)
