"""Projection and discriminator of an original checkpoint: taken over as models, and given back bit for bit."""

import json

import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import save_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.losses import FoundationProjection, PatchGANDiscriminator
from diffusers_lightningdit.original import (
    read_autoencoder,
    training_models,
)
from diffusers_lightningdit.original.export import original_files


def identical(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def random_values(model: ModelMixin, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {
        key: torch.randn(value.shape).to(dtype) if value.is_floating_point() else torch.tensor(7)
        for key, value in model.state_dict().items()
    }


def training_weights(reverse: bool, dtype: torch.dtype = torch.float32, **arguments) -> dict[str, torch.Tensor]:
    """What an original checkpoint has beside its autoencoder."""
    projection = random_values(FoundationProjection(4, 12, reverse), dtype)
    discriminator = random_values(PatchGANDiscriminator(base_channels=4, **arguments), dtype)
    return {
        "loss.logvar": torch.tensor(0.25, dtype=dtype),
        **{key.replace("proj", "linear_proj", 1): value for key, value in projection.items()},
        **{key.replace("layers", "loss.discriminator.main", 1): value for key, value in discriminator.items()},
    }


@pytest.mark.parametrize("reverse", ["true", "false"])
def test_structure_of_the_training_module(golden, reverse):
    """The published sizes: the architectures are read off the shapes, and only the scale is left over."""
    recorded = json.loads(golden("structure/vae.json").read_text())
    state = recorded[f"training_module_f16d32_vfdinov2_reverse_proj_{reverse}"]["state_dict"]
    weights = {
        key: torch.zeros(shape, dtype=getattr(torch, dtype))
        for key, (shape, dtype, _) in state.items()
        if key.startswith(("linear_proj.", "loss."))
    }
    models, left_over = training_models(weights)
    assert left_over.keys() == {"loss.logvar"}
    projection, discriminator = models["projection"].config, models["discriminator"].config
    assert (projection.latent_channels, projection.feature_channels) == (32, 1024)
    assert projection.reverse == (reverse == "true")
    assert (discriminator.in_channels, discriminator.base_channels, discriminator.num_layers) == (3, 64, 3)


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize(("dtype", "num_layers"), [(torch.float32, 3), (torch.bfloat16, 1)])
def test_there_and_back(tmp_path, reverse, dtype, num_layers):
    before = training_weights(reverse, dtype, num_layers=num_layers)
    models, left_over = training_models(before)
    assert left_over.keys() == {"loss.logvar"}
    AutoencoderVAVAE(block_out_channels=(32, 32), layers_per_block=1, latent_channels=4).save_pretrained(tmp_path)
    for name, model in models.items():
        model.save_pretrained(tmp_path / "training" / name)
        loaded = type(model).from_pretrained(tmp_path / "training" / name, dtype=dtype)
        assert identical(loaded.state_dict(), model.state_dict())
        assert type(model).from_config(dict(model.config)).config == model.config
    after = original_files(tmp_path)[0]["vavae.ckpt"]["state_dict"]
    assert identical(
        {key: value for key, value in after.items() if key in before},
        {key: value for key, value in before.items() if key not in left_over},
    )


def test_the_models_compute_with_the_weights(golden):
    weights = training_weights(True)
    models, _ = training_models(weights)
    latents, features = torch.randn(2, 4, 3, 3), torch.randn(2, 12, 3, 3)
    expected = torch.einsum("oi,bihw->bohw", weights["linear_proj.weight"][:, :, 0, 0], latents)
    torch.testing.assert_close(models["projection"](features, latents)[1], expected, atol=1e-5, rtol=1e-5)
    assert models["discriminator"](torch.randn(1, 3, 32, 32)).shape == (1, 1, 2, 2)


def test_what_makes_no_model_is_left_over(golden):
    """The recorded checkpoint has only the first layer of its discriminator."""
    training = read_autoencoder(golden("vae/vavae/vavae.ckpt")).training
    models, left_over = training_models(training)
    assert models.keys() == {"projection"}
    assert torch.equal(
        models["projection"].proj.weight,
        read_checkpoint(golden("vae/vavae/vavae.ckpt"))["state_dict"]["linear_proj.weight"],
    )
    assert left_over.keys() == training.keys() - {"linear_proj.weight"}


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("loss.discriminator.main.9.weight"),
        lambda weights: weights.update({"loss.discriminator.main.3.scale": torch.ones(1)}),
        lambda weights: weights.update({"loss.discriminator.main.2.weight": torch.ones(8, 4, 3, 3)}),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_another_discriminator_is_left_over(change):
    weights = training_weights(True)
    change(weights)
    models, left_over = training_models(weights)
    assert models.keys() == {"projection"}
    assert left_over.keys() == {key for key in weights if key.startswith("loss.")}


def test_damaged_folder(tmp_path):
    AutoencoderVAVAE(block_out_channels=(32, 32), layers_per_block=1, latent_channels=4).save_pretrained(tmp_path)
    PatchGANDiscriminator(base_channels=4).save_pretrained(tmp_path / "training/discriminator")
    assert len(read_autoencoder(tmp_path).training) == 22
    file = tmp_path / "training/discriminator/diffusion_pytorch_model.safetensors"
    save_file({"proj.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"discriminator: key `proj\.weight` is unknown; required: only `layers"):
        read_autoencoder(tmp_path)
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: is damaged"):
        read_autoencoder(tmp_path)
