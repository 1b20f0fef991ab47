"""Settings, and which terms take part; the values of all terms: test_golden_runs.py."""

import dataclasses

import pytest
import torch

from diffusers_lightningdit.losses import VAELossSettings, autoencoder_losses, discriminator_losses


@pytest.fixture
def tensors():
    """What a tiny linear autoencoder of one weight each way gives."""
    encoder, decoder = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    pixels = torch.rand(2, 3, 4, 4)
    mean = pixels[:, :, :1, :1] * encoder[0] + encoder[1]
    reconstructions = pixels * decoder[0] * mean.mean() + decoder[1]
    return {
        "pixels": pixels,
        "reconstructions": reconstructions,
        "mean": mean,
        "logvar": 0 * mean - 1,
        "step": 10,
        "last_decoder_weight": decoder,
        "last_encoder_weight": encoder,
        "logits_fake": reconstructions.mean((1, 2, 3)),
        "features": torch.randn(2, 3, 1, 1),
        "latents_for_vf": mean,
        "perceptual": reconstructions.square().mean((1, 2, 3), keepdim=True),
    }


ALWAYS = {"total_loss", "logvar", "kl_loss", "nll_loss", "rec_loss"}
ADVERSARIAL = {"d_weight", "disc_factor", "g_loss"}
ALIGNMENT = {"vf_loss", "vf_weight", "vf_distmat_part", "vf_cos_part"}


def test_total_is_the_sum_of_the_terms_that_take_part(tensors):
    settings = VAELossSettings(kl_weight=0.1, disc_start=10, perceptual_weight=2.0)
    total, scalars = autoencoder_losses(settings, **tensors)
    assert scalars.keys() == ALWAYS | ADVERSARIAL | ALIGNMENT
    assert scalars["d_weight"] > 0 and scalars["vf_weight"] > 0
    expected = (
        scalars["nll_loss"]
        + 0.1 * scalars["kl_loss"]
        + scalars["d_weight"] * scalars["g_loss"]
        + scalars["vf_weight"] * scalars["vf_loss"]
    )
    torch.testing.assert_close(total.detach(), expected)
    assert total.requires_grad
    assert not any(value.requires_grad for value in scalars.values())
    assert torch.stack(list(scalars.values())).shape == (12,)

    _, without = autoencoder_losses(settings, **tensors | {"logits_fake": None, "perceptual": None})
    assert without.keys() == ALWAYS | ALIGNMENT
    assert without["nll_loss"] < scalars["nll_loss"]
    _, without = autoencoder_losses(settings, **tensors | {"features": None, "latents_for_vf": None})
    assert without.keys() == ALWAYS | ADVERSARIAL


def test_discriminator_start(tensors):
    settings = VAELossSettings(disc_start=11)
    total, scalars = autoencoder_losses(settings, **tensors)
    assert scalars["disc_factor"] == 0
    assert scalars["d_weight"] > 0  # computed all the same, as in the original
    later, _ = autoencoder_losses(settings, **tensors | {"step": 11})
    torch.testing.assert_close(later - total, scalars["d_weight"] * scalars["g_loss"])
    real, fake = torch.ones(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    assert discriminator_losses(settings, real, fake, step=10)[0] == 0
    loss, scalars = discriminator_losses(settings, real, fake, step=11)
    assert loss.requires_grad
    assert {name: value.item() for name, value in scalars.items()} == {
        "disc_loss": 0.5,
        "logits_real": 1.0,
        "logits_fake": 0.0,
    }


def test_fixed_weight_of_the_vf_loss_needs_no_encoder_weight(tensors):
    settings = VAELossSettings(adaptive_vf=False, vf_weight=0.3)
    _, scalars = autoencoder_losses(settings, **tensors | {"last_encoder_weight": None})
    assert scalars["vf_weight"].item() == pytest.approx(0.3)


def test_features_without_latents(tensors):
    with pytest.raises(ValueError, match="`latents_for_vf` and `features`: one is None; required: both"):
        autoencoder_losses(VAELossSettings(), **tensors | {"latents_for_vf": None})


NUMBERS = [field.name for field in dataclasses.fields(VAELossSettings) if field.type in ("float", "int", float, int)]


@pytest.mark.parametrize("name", NUMBERS)
def test_no_setting_is_negative(name):
    assert len(NUMBERS) == 9
    with pytest.raises(ValueError, match=f"`{name}` is -1; required: at least 0"):
        VAELossSettings(**{name: -1})


def test_choices():
    with pytest.raises(ValueError, match="`reduction` is 'max'; required: one of sum, mean"):
        VAELossSettings(reduction="max")
    with pytest.raises(ValueError, match="`disc_loss` is 'wgan'; required: one of hinge, vanilla"):
        VAELossSettings(disc_loss="wgan")
