"""Autoencoders of diffusers, of random weights."""

import diffusers
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, UNet2DModel

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.evaluate import main
from diffusers_lightningdit.evaluation.autoencoders import decode, load_autoencoder, mean_latents

AUTOENCODERS = (AutoencoderKL, AutoencoderTiny, AutoencoderDC)
SMALL = {
    AutoencoderKL: {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
        "norm_num_groups": 2,
    },
    AutoencoderTiny: {
        "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [1, 1],
        "num_decoder_blocks": [1, 1],
    },
    AutoencoderDC: {
        "latent_channels": 4,
        "attention_head_dim": 2,
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8],
        "encoder_qkv_multiscales": [[], []],
        "decoder_qkv_multiscales": [[], []],
        "encoder_layers_per_block": [1, 1],
        "decoder_layers_per_block": [1, 1],
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    },
    UNet2DModel: {"block_out_channels": [4] * 4, "norm_num_groups": 2, "attention_head_dim": 2},
}


@pytest.fixture
def saved(request, tmp_path) -> str:
    model_class = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(**SMALL[model_class]).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@torch.no_grad()
@pytest.mark.parametrize("saved", AUTOENCODERS, indirect=True)
def test_images_are_encoded_to_the_mean_and_given_back(saved):
    model_class = getattr(diffusers, AutoencoderKL.load_config(saved)["_class_name"])
    expected = model_class.from_pretrained(saved)
    vae, _ = load_autoencoder(saved, 16)
    assert type(vae) is model_class and not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    encoded = expected.encode(pixels)
    latents = encoded.latent_dist.mean if model_class is AutoencoderKL else encoded[0]
    torch.testing.assert_close(mean_latents(vae, pixels), latents)
    torch.testing.assert_close(decode(vae, latents), expected.decode(latents).sample)


@pytest.mark.usefixtures("fresh_accelerate_state")
@pytest.mark.parametrize("saved", [AutoencoderKL], indirect=True)
@pytest.mark.parametrize("command", ["reconstruction", "latents"])
def test_the_commands_measure_it(saved, command, real_digits, tmp_path, capsys):
    extra = ["--perplexity", "3"] if command == "latents" else []
    arguments = [command, "--vae", saved, "--data", real_digits, "--resolution", "16", "--num_images", "8", *extra]
    main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert ("latents_shape" if command == "latents" else "psnr_db") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("saved", "resolution", "message"),
    [
        (AutoencoderKL, 15, "`resolution` is 15; required: one that AutoencoderKL reconstructs, not as "),
        (UNet2DModel, 16, "`vae` is .*, a UNet2DModel; required: an autoencoder of diffusers for images "),
    ],
    indirect=["saved"],
)
def test_models_that_cannot_be_used(saved, resolution, message):
    with pytest.raises(ValueError, match=message):
        load_autoencoder(saved, resolution)


def test_weights_that_do_not_fit(tmp_path):
    AutoencoderKL(**SMALL[AutoencoderKL]).save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"`vae` is .*; required: a folder or Hub id with an undamaged AutoencoderKL \("
    ):
        load_autoencoder(str(tmp_path), 16)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("command", ["reconstruction", "latents"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_vae_of_numbers_that_are_not_finite(
    digits_pipeline, real_digits, error_line, tmp_path, command, part, number
):
    """It had a PSNR of 8.2 dB, since 8 bits hide NaN."""
    vae = AutoencoderVAVAE.from_pretrained(f"{digits_pipeline}/vae")
    getattr(vae, part).conv_out.bias.data[0] = float(number)
    vae.save_pretrained(tmp_path / "vae")
    words = [f"vae={tmp_path / 'vae'}", f"data={real_digits}", "resolution=32", f"output_dir={tmp_path / 'out'}"]
    error = error_line(command, *words)
    assert str(tmp_path / "vae") in error or "`vae`" in error
    assert f"whose weight `{part}.conv_out.bias` has values that are NaN or infinite" in error
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_type_that_is_too_small_for_the_pixels(digits_pipeline):
    vae, resolution = load_autoencoder(f"{digits_pipeline}/vae")
    assert resolution == 32
    vae.to(torch.float16)
    vae.decoder.conv_out.weight.mul_(1e5)
    latents = torch.ones(3, vae.config.latent_channels, 4, 4, dtype=torch.float16)
    with pytest.raises(ValueError, match="`vae` gives pixels with NaN or infinity for 3 of 3 images; required: a VAE"):
        decode(vae, latents)
