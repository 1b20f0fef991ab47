"""AutoencoderVAVAE against numbers recorded from the original."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from golden.small_set import draw, recorded_part
from safetensors.torch import load_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.original import load_autoencoder, read_latents_statistics
from diffusers_lightningdit.original.autoencoder import autoencoder_rows, empty_autoencoder

TOLERANCE = 1e-4
MAR = {"up_block_types": ("UpDecoderBlock2D",) * 5, "latent_channels": 16}
TINY = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def tiny(**changes) -> AutoencoderVAVAE:
    torch.manual_seed(0)
    return AutoencoderVAVAE(**TINY | changes).eval()


def draw_weights(model: AutoencoderVAVAE, seed: int, std: float) -> dict[str, torch.Tensor]:
    """Weights by the rule of the recording, under the original's keys; loads them into the model, too."""
    meta = model.state_dict()
    rows = {row.original: row for row in autoencoder_rows(model)}
    drawn = dict(draw({key: row.to_original(meta).shape for key, row in rows.items()}, seed, std))
    state = {}
    for key, value in drawn.items():
        state |= rows[key].to_ours(value)
    model.load_state_dict(state, assign=True)
    model.eval()
    return drawn


def close_where_recorded(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    close(recorded_part(actual, expected), expected, tolerance)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """As the original makes them: truncated, [B, height, width, channel]."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def check_uint8(images: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (recorded_part(to_uint8(images), expected).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Numbers of the original
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["vavae", "marvae", "recipe_nrb2"])
def case(request, golden):
    """(model, recorded tensors)"""
    folder = golden(f"vae/{request.param}/io.safetensors").parent
    if request.param != "recipe_nrb2":
        model = load_autoencoder(next(folder.glob("*.ckpt")))
    else:
        recipe = json.loads((folder / "weights_recipe.json").read_text())
        model = empty_autoencoder({"block_out_channels": (32, 32, 64, 64, 128), "latent_channels": 16})
        drawn = draw_weights(model, recipe["seed"], recipe["std"])
        assert drawn.keys() == recipe["checksums"].keys()
        for key, value in drawn.items():
            assert value.double().sum().item() == pytest.approx(recipe["checksums"][key]["sum"], abs=1e-3)
    return model, load_file(folder / "io.safetensors")


@pytest.mark.parametrize("tag", ["a", "b"])  # b is not square
@torch.no_grad()
def test_encode_and_decode(case, tag):
    model, tensors = case
    posterior = model.encode(tensors[f"{tag}_x"]).latent_dist
    close(posterior.mean, tensors[f"{tag}_mean"])
    close(posterior.logvar, tensors[f"{tag}_logvar"])
    torch.testing.assert_close(posterior.kl(), tensors[f"{tag}_kl"], rtol=1e-5, atol=1e-3)  # a sum over all latents
    close(posterior.mean + posterior.std * tensors[f"{tag}_noise"], tensors[f"{tag}_sample"])
    decoded = model.decode(posterior.mode()).sample
    close_where_recorded(decoded, tensors[f"{tag}_decode_mode"])
    check_uint8(decoded, tensors[f"{tag}_decode_mode_u8_nhwc"])


@torch.no_grad()
def test_decode(case):
    model, tensors = case
    decoded = model.decode(tensors["z"]).sample
    close_where_recorded(decoded, tensors["z_decode"])
    check_uint8(decoded, tensors["z_decode_u8_nhwc"])


def test_posterior_clamp(case):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    _, tensors = case
    posterior = DiagonalGaussianDistribution(tensors["clamp_moments"])
    close(posterior.mean, tensors["clamp_mean"], 0)
    close(posterior.logvar, tensors["clamp_logvar"], 0)
    torch.testing.assert_close(posterior.std, tensors["clamp_std"])
    torch.testing.assert_close(posterior.kl(), tensors["clamp_kl"])


@torch.no_grad()
def test_sample_follows_the_generator(case):
    model, tensors = case
    posterior = model.encode(tensors["a_x"]).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    close(posterior.sample(torch.Generator().manual_seed(3)), posterior.mean + posterior.std * noise, 0)


@torch.no_grad()
def test_image_of_256(golden):
    folder = golden("vae/vavae/io.safetensors").parent
    model, tensors = load_autoencoder(folder / "vavae.ckpt"), load_file(folder / "io.safetensors")
    posterior = model.encode(tensors["c_x_u8_nhwc"].permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    close_where_recorded(posterior.mean, tensors["c_mean"])
    close_where_recorded(posterior.logvar, tensors["c_logvar"])
    close_where_recorded(model.decode(posterior.mode()).sample, tensors["c_decode_mode_stride4"], 5e-4)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vavae_f16d16", {"latent_channels": 16}),
        ("vavae_f16d32", {}),
        ("vavae_f16d64", {"latent_channels": 64}),
        ("marvae_f16d16", MAR),
    ],
)
def test_structure(golden, name, config):
    recorded = json.loads(golden("structure/vae.json").read_text())[name]
    model = empty_autoencoder(config)
    state = model.state_dict()
    shapes = {row.original: list(row.to_original(state).shape) for row in autoencoder_rows(model)}
    assert shapes == {key: shape for key, (shape, *_) in recorded["state_dict"].items()}
    assert model.num_parameters() == recorded["n_parameters"]
    if "encoder_parameters" in recorded:
        for half in ("encoder", "decoder"):
            assert sum(p.numel() for p in getattr(model, half).parameters()) == recorded[f"{half}_parameters"]


@pytest.mark.parametrize(("name", "config"), [("vavae_f16d32", {}), ("marvae_f16d16", MAR)])
@torch.no_grad()
def test_full_size(golden, name, config):
    recipe = json.loads(golden("fullsize/recipe.json").read_text())[name]
    checksums = json.loads(golden(f"fullsize/{name}_checksums.json").read_text())
    tensors = load_file(golden(f"fullsize/{name}.safetensors"))
    model = empty_autoencoder(config)
    for key, value in draw_weights(model, recipe["seed_weights"], recipe["std"]).items():
        assert value.flatten()[0].item() == pytest.approx(checksums[key][1], abs=1e-6)
    posterior = model.encode(tensors["x"]).latent_dist
    close(posterior.mean, tensors["mean"])
    close(posterior.logvar, tensors["logvar"])
    close_where_recorded(model.decode(posterior.mode()).sample, tensors["decode_mode"])
    close_where_recorded(model.decode(tensors["z"]).sample, tensors["decode_z"])


# ---------------------------------------------------------------------------------------------------------------------
# Latents' statistics
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling_factor", [1.0, 0.18215])
def test_normalisation_is_invertible(scaling_factor):
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 3.0]
    model = tiny(latents_mean=mean, latents_std=std, scaling_factor=scaling_factor)
    raw = torch.randn(2, 4, 3, 5) * torch.tensor(std).view(1, -1, 1, 1) + torch.tensor(mean).view(1, -1, 1, 1)
    normal = model.normalize_latents(raw)
    for channel in range(4):
        close(normal[:, channel], (raw[:, channel] - mean[channel]) / std[channel] * scaling_factor, 1e-6)
    close(model.denormalize_latents(normal), raw, 1e-5)


def test_without_statistics_only_the_factor_counts():
    model = tiny(scaling_factor=0.5)
    latents = torch.randn(1, 4, 2, 2)
    close(model.normalize_latents(latents), latents * 0.5, 0)
    close(model.denormalize_latents(latents), latents / 0.5, 0)


def test_denormalisation_of_the_original(golden):
    run = load_file(golden("sampling/euler10_shift0.3_cfg6.7.safetensors"))
    mean, std = read_latents_statistics(golden("sampling/latents_stats.pt"))
    model = tiny(latent_channels=32, latents_mean=mean, latents_std=std)
    close(model.denormalize_latents(run["batch0_latents_final"]), run["batch0_latents_denorm"], 1e-6)


def test_set_statistics(tmp_path):
    model = tiny()
    model.set_latents_statistics([0.0] * 4, [2.0] * 4)
    model.save_pretrained(tmp_path)
    loaded = AutoencoderVAVAE.from_pretrained(tmp_path)
    assert loaded.config.latents_std == [2.0] * 4
    close(loaded.normalize_latents(torch.ones(1, 4, 1, 1)), torch.full((1, 4, 1, 1), 0.5), 0)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"latents_mean": [0.0] * 4}, "`latents_std` has None values; required: one for each of the 4"),
        ({"latents_std": [1.0] * 4}, "`latents_mean` has None values"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "`latents_mean` has 3 values"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "`latents_std` has the value 0.0"),
    ],
)
def test_wrong_statistics(statistics, message):
    with pytest.raises(ValueError, match=message):
        tiny(**statistics)
    model = tiny()
    with pytest.raises(ValueError, match=message):
        model.set_latents_statistics(statistics.get("latents_mean"), statistics.get("latents_std"))


# ---------------------------------------------------------------------------------------------------------------------
# Features shared with AutoencoderKL
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_slicing():
    model, images = tiny(), torch.randn(3, 3, 16, 16)
    expected = model(images).sample
    model.enable_slicing()
    close(model(images).sample, expected, 1e-5)


@torch.no_grad()
def test_tiling():
    """Tiles see less context than the whole image: one tile is exact, several are alike."""
    model, images, latents = tiny(sample_size=32), torch.rand(1, 3, 64, 64), torch.randn(1, 4, 16, 16)
    whole, one_tile = model.encode(images).latent_dist.mean, model.decode(latents[..., :8, :8]).sample
    model.enable_tiling()
    close(model.decode(latents[..., :8, :8]).sample, one_tile, 0)
    tiled = model.decode(latents).sample
    assert tiled.shape == images.shape
    close(tiled[..., :24, :24], one_tile[..., :24, :24], 1e-6)  # the last quarter is blended with the next tile
    tiled = model.encode(images).latent_dist.mean
    assert torch.corrcoef(torch.stack([tiled.flatten(), whole.flatten()]))[0, 1] > 0.9


@torch.no_grad()
def test_plain_autoencoder_reads_our_folder_and_we_read_its(tmp_path):
    model, images = tiny(latents_mean=[0.1] * 4, latents_std=[2.0] * 4), torch.randn(1, 3, 16, 16)
    model.save_pretrained(tmp_path / "ours")
    plain = AutoencoderKL.from_pretrained(tmp_path / "ours")
    close(plain(images).sample, model(images).sample, 0)
    assert plain.config.latents_mean == [0.1] * 4
    plain.save_pretrained(tmp_path / "plain")
    again = AutoencoderVAVAE.from_pretrained(tmp_path / "plain")
    close(again(images).sample, model(images).sample, 0)
    assert type(again) is AutoencoderVAVAE


def test_derived_blocks():
    model = tiny()
    assert model.config.down_block_types is None or model.config.down_block_types[-1] == "AttnDownEncoderBlock2D"
    assert [hasattr(block, "attentions") for block in model.encoder.down_blocks] == [False, False, True]
    assert [hasattr(block, "attentions") for block in model.decoder.up_blocks] == [True, False, False]
    model = tiny(up_block_types=("UpDecoderBlock2D",) * 3)
    assert not any(hasattr(block, "attentions") for block in model.decoder.up_blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_weights(dtype):
    model, images = tiny(), torch.rand(1, 3, 16, 16) * 2 - 1
    expected = model(images).sample
    actual = model.to(dtype)(images.to(dtype)).sample
    assert actual.dtype == dtype
    assert (actual.float() - expected).pow(2).mean().sqrt() < 0.05 * expected.std()
