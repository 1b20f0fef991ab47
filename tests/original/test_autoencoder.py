"""Architecture and names of the autoencoder's checkpoints, and the statistics of latents."""

import json

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.original import (
    OriginalConfig,
    autoencoder_from_original,
    autoencoder_to_original,
    load_autoencoder,
    read_autoencoder,
    read_latents_statistics,
)

TINY = {"block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 4}
CHECKPOINTS = {"vae/vavae/vavae.ckpt": "state_dict", "vae/marvae/marvae.ckpt": "model"}


def original(**changes) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = AutoencoderVAVAE(**TINY | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return autoencoder_to_original(dict(model.config), model.state_dict())


def identical(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


# ---------------------------------------------------------------------------------------------------------------------
# There and back
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "entry"), CHECKPOINTS.items())
def test_golden_round_trip(golden, file, entry):
    before = read_checkpoint(golden(file))[entry]
    parts = read_autoencoder(golden(file))
    after = autoencoder_to_original(parts.config, parts.state_dict) | parts.training
    assert identical(after, {key: value for key, value in before.items() if key not in parts.left_out})
    assert all(key.startswith(("foundation_model.", "loss.perceptual_loss.")) for key in parts.left_out)
    if entry == "state_dict":
        assert {"linear_proj.weight", "loss.logvar", "loss.discriminator.main.0.weight"} <= parts.training.keys()
        assert len(parts.left_out) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"block_out_channels": (32, 64, 64), "layers_per_block": 2},
        {"up_block_types": ("UpDecoderBlock2D",) * 2},  # MAR-VAE
        {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},  # LDM, f8
        {"latent_channels": 16, "in_channels": 1, "out_channels": 1},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(changes, dtype):
    before = {key: value.to(dtype) for key, value in original(**changes).items()}
    parts = autoencoder_from_original(before)
    for name, value in (TINY | changes).items():
        assert parts.config[name] == value
    assert identical(autoencoder_to_original(parts.config, parts.state_dict), before)


@pytest.mark.parametrize("reverse_proj", ["true", "false"])
def test_structure_of_the_training_module(golden, reverse_proj):
    """Every key of a real training checkpoint finds its place (on the meta device, hence without values)."""
    recorded = json.loads(golden("structure/vae.json").read_text())
    state = recorded[f"training_module_f16d32_vfdinov2_reverse_proj_{reverse_proj}"]["state_dict"]
    weights = {key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype, _) in state.items()}
    parts = autoencoder_from_original(weights)
    assert parts.config["block_out_channels"] == (128, 128, 256, 256, 512)
    assert len(parts.training) + len(autoencoder_to_original(parts.config, parts.state_dict)) == len(state)
    assert parts.left_out == []
    yaml = OriginalConfig({"model": {"params": {"reverse_proj": reverse_proj != "true"}}}, "my.yaml")
    with pytest.raises(ValueError, match=r"my\.yaml: `model\.params\.reverse_proj` is"):
        read_autoencoder({"state_dict": weights}, yaml)


def test_layouts():
    weights = original()
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    for checkpoint in ({"state_dict": weights, "epoch": 3}, {"model": weights}, weights, prefixed, {"model": prefixed}):
        model = load_autoencoder(checkpoint, latent_multiplier=0.5)
        assert identical(autoencoder_to_original(dict(model.config), model.state_dict()), weights)
        assert model.config.scaling_factor == 0.5


# ---------------------------------------------------------------------------------------------------------------------
# Strictness
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(original()))
def test_every_missing_key_is_named(key):
    weights = original()
    del weights[key]
    with pytest.raises(ValueError, match=f"key `{key}` is missing"):
        autoencoder_from_original(weights)


@pytest.mark.parametrize("key", sorted(original()))
def test_every_wrong_shape_is_named(key):
    weights = original()
    weights[key] = torch.cat([weights[key], weights[key][:1]])
    with pytest.raises(ValueError) as error:
        autoencoder_from_original(weights)
    # these give the architecture: all others are wrong then
    related = {"encoder.down.0.block.0.conv2.weight": "33", "encoder.down.1.block.0.conv2.weight": "33"}
    assert related.get(key, key) in str(error.value) or key == "decoder.conv_out.weight"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": torch.zeros(1)}, "key `extra` is unknown"),
        ({"loss.other": torch.zeros(1)}, "key `loss.other` is unknown"),
        ({"loss.logvar": torch.tensor(torch.nan)}, "key `loss.logvar` has values that are NaN"),
        ({"quant_conv.bias": torch.full((8,), torch.inf)}, "key `quant_conv.bias` has values that are NaN or infinite"),
        ({"quant_conv.bias": torch.zeros(8).half()}, "key `quant_conv.bias` has type torch.float16"),
        ({"encoder.conv_in.weight": torch.zeros(3)}, "key `encoder.conv_in.weight` has shape .3.; required: 4 dim"),
        ({"x_embedder.proj.weight": torch.zeros(1)}, "is a LightningDiT transformer"),
    ],
)
def test_wrong_contents(change, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_from_original(original() | change)


def test_only_training_weights():
    with pytest.raises(ValueError, match=r"`encoder\.conv_in\.weight` is missing"):
        autoencoder_from_original({"loss.logvar": torch.zeros(())})


def test_transformer_is_refused(golden):
    file = golden("dit/learn_sigma_p2/ckpt_train.pt")
    with pytest.raises(ValueError, match="is a LightningDiT transformer"):
        load_autoencoder(file)
    with pytest.raises(ValueError, match="is a LightningDiT transformer"):
        load_autoencoder({"ema": read_checkpoint(file)["ema"]})


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_num_groups": 16},
        {"use_quant_conv": False},
        {"mid_block_add_attention": False},
        {"act_fn": "gelu"},
    ],
)
def test_what_the_original_cannot_express(changes):
    model = AutoencoderVAVAE(**TINY | changes)
    with pytest.raises(ValueError, match=f"config `{next(iter(changes))}` is"):
        autoencoder_to_original(dict(model.config), model.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# Folders of diffusers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [AutoencoderVAVAE, AutoencoderKL])
def test_folder(tmp_path, model_class):
    ours = load_autoencoder(original())
    saved = model_class(**{key: value for key, value in ours.config.items() if not key.startswith("_")})
    saved.load_state_dict(ours.state_dict())
    saved.register_to_config(scaling_factor=0.18215)
    saved.save_pretrained(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert identical(loaded.state_dict(), ours.state_dict())
    assert loaded.config.scaling_factor == 0.18215


def test_folder_with_training_weights(tmp_path):
    load_autoencoder(original()).save_pretrained(tmp_path)
    (tmp_path / "training").mkdir()
    save_file({"linear_proj.weight": torch.ones(8, 4, 1, 1)}, tmp_path / "training/linear_proj.safetensors")
    assert read_autoencoder(tmp_path).training.keys() == {"linear_proj.weight"}
    save_file({"other": torch.ones(1)}, tmp_path / "training/other.safetensors")
    with pytest.raises(ValueError, match="key `other` is unknown"):
        read_autoencoder(tmp_path)


def test_folder_with_a_variant_beside_and_in_shards(tmp_path):
    model = load_autoencoder(original())
    model.save_pretrained(tmp_path / "variants")
    model.half().save_pretrained(tmp_path / "variants", variant="fp16")
    assert load_autoencoder(tmp_path / "variants").dtype == torch.float32
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert identical(load_autoencoder(tmp_path / "shards").state_dict(), model.state_dict())


def test_folder_with_a_shift(tmp_path):
    load_autoencoder(original()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"shift_factor": 0.1}))
    with pytest.raises(ValueError, match=r"config `shift_factor` is 0\.1"):
        load_autoencoder(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics, YAML
# ---------------------------------------------------------------------------------------------------------------------


def test_statistics(golden):
    stored = read_checkpoint(golden("sampling/latents_stats.pt"))
    mean, std = read_latents_statistics(golden("sampling/latents_stats.pt"), 32)
    assert torch.equal(torch.tensor(mean).view(1, -1, 1, 1), stored["mean"])
    assert torch.equal(torch.tensor(std).view(1, -1, 1, 1), stored["std"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, "has no tensor `mean`"),
        ({"std": torch.ones(1, 3, 1, 1)}, "`std` has shape .1, 3, 1, 1.; required: .1, 4, 1, 1."),
        ({"std": torch.ones(4)}, "`std` has shape .4.; required"),
        (
            {"mean": torch.zeros(1, 4, 1, 1, dtype=torch.complex64)},
            "`mean` has type torch.complex64; required: a float",
        ),
        ({"std": torch.ones(1, 4, 1, 1, dtype=torch.bool)}, "`std` has type torch.bool; required: a floating-point"),
        ({"std": torch.zeros(1, 4, 1, 1)}, "`std` has values out of range"),
        ({"mean": torch.full((1, 4, 1, 1), torch.nan)}, "`mean` has values out of range"),
    ],
)
def test_wrong_statistics(change, message):
    statistics = {"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}
    with pytest.raises(ValueError, match=message):
        load_autoencoder(original(), statistics | change)


def test_golden_yaml_fits(golden):
    folder = golden("vae/vavae/vavae.ckpt").parent
    parts = read_autoencoder(folder / "vavae.ckpt", folder / "config.yaml")
    assert parts.config["sample_size"] == 256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embed_dim", 16),
        ("reverse_proj", False),
        ("ddconfig.z_channels", 16),
        ("ddconfig.double_z", False),
        ("ddconfig.in_channels", 1),
        ("ddconfig.out_ch", 1),
        ("ddconfig.ch", 128),
        ("ddconfig.ch_mult", [1, 1, 2, 4]),
        ("ddconfig.num_res_blocks", 2),
        ("ddconfig.attn_resolutions", [16, 32]),
        ("ddconfig.attn_resolutions", []),
        ("ddconfig.resolution", "big"),
    ],
)
def test_contradictions(golden, key, value):
    folder = golden("vae/vavae/vavae.ckpt").parent
    values = OriginalConfig.read(folder / "config.yaml").values
    section = values["model"]["params"]
    *sections, name = key.split(".")
    for part in sections:
        section = section[part]
    section[name] = value
    with pytest.raises(ValueError, match=r"my\.yaml: `model\.params\.") as error:
        read_autoencoder(folder / "vavae.ckpt", OriginalConfig(values, "my.yaml"))
    assert str(value) in str(error.value)
    assert "\n" not in str(error.value)
