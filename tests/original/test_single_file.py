"""Keys, shapes and types follow from tensors without values, as diffusers' own tests of single files give them."""

import pytest
import torch

from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.original.single_file import (
    autoencoder_arguments,
    autoencoder_weights,
    transformer_arguments,
    transformer_weights,
)


def without_values(checkpoint: dict) -> dict:
    return {
        key: without_values(value) if isinstance(value, dict) else value.to("meta")
        for key, value in checkpoint.items()
        if isinstance(value, dict | torch.Tensor)
    }


@pytest.mark.parametrize(
    ("file", "arguments", "weights"),
    [
        ("dit/released/ckpt_train.pt", transformer_arguments, transformer_weights),
        ("vae/vavae/vavae.ckpt", autoencoder_arguments, autoencoder_weights),
        ("vae/marvae/marvae.ckpt", autoencoder_arguments, autoencoder_weights),
    ],
)
def test_tensors_without_values(golden, file, arguments, weights):
    checkpoint = read_checkpoint(golden(file))
    checkpoint = {"ema": checkpoint["ema"]} if "ema" in checkpoint else checkpoint
    others = [4] if arguments is transformer_arguments else []  # the number of heads, which no shape tells
    config = arguments({}, dict(checkpoint), *others)
    assert arguments({}, without_values(checkpoint), *others) == config
    expected, found = weights(config, dict(checkpoint)), weights(config, without_values(checkpoint))
    assert [(key, value.shape, value.dtype) for key, value in found.items()] == [
        (key, value.shape, value.dtype) for key, value in expected.items()
    ]
    assert all(value.is_meta for value in found.values())
