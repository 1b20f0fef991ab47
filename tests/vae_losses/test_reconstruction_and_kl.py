import json

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.vae_losses import kl_loss, reconstruction_loss

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
