import json
import math

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.losses import kl_loss, reconstruction_loss, reconstruction_nll

RELATIVE = 1e-5


def test_reconstruction_and_kl_are_the_originals(golden):
    inputs = load_file(golden("vae_train/inputs.safetensors"))["inputs"]
    forward = load_file(golden("vae_train/forward.safetensors"))
    # logvar 0 and no perceptual loss: nll is the plain sum
    scalars = json.loads(golden("vae_train/runs.json").read_text())["reverse_margin_adaptive"]["scalars"]

    nll = reconstruction_loss(inputs, forward["reconstructions"]).item()
    kl = kl_loss(forward["moments_mean"], forward["moments_logvar"]).item()
    assert nll == pytest.approx(scalars["nll_loss"], rel=RELATIVE)
    assert nll / inputs[0].numel() == pytest.approx(scalars["rec_loss"], rel=RELATIVE)
    assert kl == pytest.approx(scalars["kl_loss"], rel=RELATIVE)


def test_kl_is_the_autoencoders(golden):
    recorded = load_file(golden("vae/vavae/io.safetensors"))
    kl = kl_loss(recorded["a_mean"], recorded["a_logvar"])
    torch.testing.assert_close(kl, recorded["a_kl"].mean(), atol=0, rtol=RELATIVE)


def test_losses_of_a_perfect_autoencoder_are_zero():
    pixels, zeros = torch.randn(2, 3, 4, 4), torch.zeros(2, 8, 1, 1)
    assert reconstruction_loss(pixels, pixels).item() == 0
    assert kl_loss(zeros, zeros).item() == 0


def test_scale_and_perceptual_distance_by_definition():
    pixels, reconstructions = torch.rand(2, 2, 3, 4, 4).unbind()
    perceptual, logvar = torch.rand(2, 1, 1, 1), torch.tensor(0.3)
    error = [
        [abs(x - y) + 0.5 * p.item() for x, y in zip(image.flatten(), other.flatten(), strict=True)]
        for image, other, p in zip(pixels, reconstructions, perceptual, strict=True)
    ]
    per_image = [sum(e / math.exp(0.3) + 0.3 for e in of_image) for of_image in error]
    nll, rec_loss = reconstruction_nll(pixels, reconstructions, logvar, perceptual, 0.5)
    assert nll.item() == pytest.approx(sum(per_image).item() / 2, rel=RELATIVE)
    assert rec_loss.item() == pytest.approx(sum(map(sum, error)).item() / 96, rel=RELATIVE)
    assert reconstruction_nll(pixels, reconstructions, logvar, perceptual, 0.5, "mean") == (rec_loss, rec_loss)


def test_mean_of_the_kl_has_no_half():
    mean, logvar = torch.randn(2, 2, 8, 3, 3).unbind()
    torch.testing.assert_close(kl_loss(mean, logvar, "mean"), 2 * kl_loss(mean, logvar) / mean[0].numel())


@pytest.mark.parametrize("function", [reconstruction_nll, kl_loss])
def test_reductions(function):
    with pytest.raises(ValueError, match="`reduction` is 'none'; required: one of sum, mean"):
        function(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), reduction="none")
