import json

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.flow_matching import (
    interpolate,
    sample_logit_normal_times,
    sample_uniform_times,
    velocity_cosine_loss,
    velocity_mse_loss,
    velocity_target,
)

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


def test_logit_normal_quantiles(golden):
    exact = json.loads(golden("train/logit_normal.json").read_text())["exact_quantiles"]
    times = sample_logit_normal_times(200_000, generator=torch.Generator().manual_seed(0))
    for quantile, value in exact.items():
        assert times.quantile(float(quantile)).item() == pytest.approx(value, abs=4e-3)


def test_shifted_logit_normal_is_the_same_draw_moved(golden):
    recorded = json.loads(golden("train/logit_normal.json").read_text())
    generator = torch.Generator().manual_seed(3)
    plain = sample_logit_normal_times(1000, generator=generator)
    shifted = sample_logit_normal_times(1000, mean=-0.5, generator=generator.manual_seed(3))
    torch.testing.assert_close(shifted.logit(), plain.logit() - 0.5, atol=1e-4, rtol=1e-4)
    # the recorded pair obeys the same relation
    recorded_plain, recorded_shifted = torch.tensor(recorded["t_16"]), torch.tensor(recorded["t_16_mu_-0.5"])
    torch.testing.assert_close(recorded_shifted.logit(), recorded_plain.logit() - 0.5, atol=1e-4, rtol=1e-4)


def test_uniform_times():
    times = sample_uniform_times(100_000, generator=torch.Generator().manual_seed(0))
    assert times.min() >= 0 and times.max() < 1
    assert times.mean().item() == pytest.approx(0.5, abs=5e-3)
    assert times.std().item() == pytest.approx(12**-0.5, abs=5e-3)


def test_logit_normal_refuses_a_std_that_is_not_positive():
    with pytest.raises(ValueError, match=r"`std` is 0; required: a positive number"):
        sample_logit_normal_times(4, std=0)
