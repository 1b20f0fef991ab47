"""The original's YAML files as recipes: every key is accounted for, and training accepts what comes out."""

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.original import OriginalConfig
from diffusers_lightningdit.original.recipes import TRANSFORMER_KEYS, VAE_KEYS, key_table, translate_yaml
from diffusers_lightningdit.settings import make_config, settings_of
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig
from diffusers_lightningdit.training.vavae.config import VAVAETrainingConfig

REPOSITORY = Path(__file__).parents[2]
TRANSFORMERS = [
    "dit/released/config.yaml",
    "dit/qknorm_layernorm/config.yaml",
    "dit/qknorm_rms_woshift/config.yaml",
    "dit/learn_sigma_p2/config.yaml",
    "dit/plain/config.yaml",
    "sampling/euler10_nocfg_mult_default.yaml",
    "sampling/dopri5_shift0.3_cfg6.7.yaml",
    "train/step_plain.yaml",
    "train/step_clip.yaml",
]
VAE = "vae/vavae/config.yaml"
PUBLISHED = {
    "ckpt_path": "lightningdit.pt",
    "data": {"data_path": "latents", "image_size": 256, "num_classes": 1000, "num_workers": 8, "latent_norm": True},
    "train": {
        "max_steps": 80000,
        "global_batch_size": 1024,
        "global_seed": 0,
        "output_dir": "output",
        "exp_name": "xl",
    },
    "optimizer": {"lr": 2e-4, "beta2": 0.95, "max_grad_norm": 1.0},
    "transport": {"use_cosine_loss": True, "use_lognorm": True},
}


def released(epochs: str = "64ep") -> dict:
    """The published YAML, of the part for sampling that lies in conversion/configs."""
    sampling = yaml.safe_load((REPOSITORY / f"conversion/configs/lightningdit_xl_{epochs}.yaml").read_text())
    values = copy.deepcopy(PUBLISHED)
    for name, section in sampling.items():
        values[name] = {**values.get(name, {}), **section}
    return values


def translated(values: dict):
    return translate_yaml(OriginalConfig(values, "original.yaml"))


def changed(values: dict, key: str, value) -> dict:
    values = copy.deepcopy(values)
    *sections, last = key.split(".")
    section = values
    for name in sections:
        section = section.setdefault(name, {})
    section[last] = value
    return values


@pytest.mark.parametrize("file", [*TRANSFORMERS, VAE])
def test_every_key_of_the_recorded_files_is_accounted_for(file, golden):
    recipes = translate_yaml(OriginalConfig.read(golden(file)))
    assert recipes.unknown == []
    assert not set(recipes.taken) & recipes.left.keys()
    assert len(recipes.taken) == len(set(recipes.taken)) > 15


@pytest.mark.parametrize("file", TRANSFORMERS)
def test_training_and_evaluation_accept_the_recipes(file, golden, tmp_path):
    recipes = translate_yaml(OriginalConfig.read(golden(file)))
    train = make_config(LightningDiTTrainingConfig, {**recipes.train, "vae": "vae", "output_dir": str(tmp_path / "a")})
    model = yaml.safe_load(golden(file).read_text())["model"]
    assert train.transformer["num_layers"] == model["x_test_size"]["depth"]
    assert train.transformer["use_qk_norm"] is model["use_qknorm"]
    assert train.transformer["norm_type"] == ("rms_norm" if model["use_rmsnorm"] else "layer_norm")
    assert set(recipes.evaluate) <= set(settings_of(GenerationConfig))
    make_config(
        GenerationConfig,
        {**recipes.evaluate, "reference": None, "pipeline": "p", "output_dir": str(tmp_path / "b")},
    )


def test_the_published_file_is_the_published_recipe(tmp_path):
    """But for what a run says of itself, it gives the settings of recipes/imagenet256_xl_64ep.yaml, the defaults."""
    given = {"data": "latents", "vae": "vae", "output_dir": str(tmp_path)}
    ours = yaml.safe_load((REPOSITORY / "training_scripts/recipes/imagenet256_xl_64ep.yaml").read_text())
    recipe = make_config(LightningDiTTrainingConfig, {**ours, **given})
    recipes = translated(released())
    converted = make_config(LightningDiTTrainingConfig, {**recipes.train, **given})
    differ = {
        name for name, value in dataclasses.asdict(recipe).items() if dataclasses.asdict(converted)[name] != value
    }
    assert differ == {"transformer", "num_classes", "compile_blocks", "resolution"}
    defaults = {"activation_fn": "swiglu", "norm_type": "rms_norm", "use_qk_norm": False, "use_rope": True}
    size = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "patch_size": 1}
    assert converted.transformer == {**size, **defaults, "use_adaln_shift": True}  # what the defaults are
    assert converted.resolution == AutoencoderVAVAE().config.sample_size  # which null stands for
    assert recipes.unknown == []


def test_the_sampling_of_800_epochs():
    recipes = translated(released("800ep"))
    assert recipes.train["guidance_scale"] == 6.7 and recipes.train["guidance_interval"] == [0.125, 1.0]
    assert recipes.train["num_inference_steps"] == 249 and recipes.train["timestep_shift"] == 0.3
    assert "sampling" not in recipes.evaluate and {"sample.atol", "sample.rtol"} <= recipes.left.keys()


def test_the_adaptive_solver_is_for_the_evaluation(golden):
    recipes = translate_yaml(OriginalConfig.read(golden("sampling/dopri5_shift0.3_cfg6.7.yaml")))
    assert recipes.evaluate["sampling"] == {"ode_method": "dopri5", "ode_atol": 1e-6, "ode_rtol": 1e-3}
    assert recipes.evaluate["labels"] == "random"


def test_missing_keys_are_what_the_original_does():
    values = released()
    del values["optimizer"]["max_grad_norm"], values["sample"]["timestep_shift"], values["sample"]["cfg_interval_start"]
    recipes = translated(values)
    assert recipes.train["max_grad_norm"] is None
    assert recipes.train["timestep_shift"] == 1.0 and recipes.train["guidance_interval"] == [0.0, 1.0]
    assert any("max_grad_norm" in remark for remark in recipes.remarks)


def test_unknown_keys_are_named():
    values = changed(changed(released(), "train.learning_rat", 1), "registers.number", 4)
    assert translated(values).unknown == ["train.learning_rat", "registers.number"]


@pytest.mark.parametrize(
    ("key", "value", "required"),
    [
        ("transport.path_type", "GVP", "'Linear', since nothing else is trained or sampled here"),
        ("transport.prediction", "noise", "'velocity', since"),
        ("sample.mode", "SDE", "'ODE', since `FlowMatchSDEScheduler` draws by the SDE"),
        ("sample.likelihood", True, "False, since likelihoods are computed by `LightningDiTLikelihoodPipeline`"),
        ("model.model_type", "LightningDiT-S/1", "one of LightningDiT-B/1"),
        ("sample.num_sampling_steps", 1, "at least 2"),
        ("train.max_steps", "many", "of type int"),
        ("optimizer.lr", "fast", "a number"),
    ],
)
def test_values_that_cannot_be_used_are_errors(key, value, required):
    with pytest.raises(ValueError) as error:
        translated(changed(released(), key, value))
    assert str(error.value).startswith(f"original.yaml: `{key}` is {value!r}; required: {required}"), error.value


# ---------------------------------------------------------------------------------------------------------------------
# Autoencoder
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def vae_yaml(golden) -> dict:
    return yaml.safe_load(golden(VAE).read_text())


def test_the_autoencoder(vae_yaml, tmp_path):
    recipes = translated(vae_yaml)
    assert recipes.command == "vae"
    given = {"data": "images", "lpips": "lpips.safetensors", "output_dir": str(tmp_path)}
    config = make_config(VAVAETrainingConfig, {**recipes.train, **given})
    assert config.vae == {"latent_channels": 32, "layers_per_block": 1, "block_out_channels": (32, 32, 64, 64, 128)}
    assert config.foundation_model == "facebook/vit-mae-large" and config.reverse_proj
    assert config.disc_start == 2500 and config.distmat_margin == 0.25 and config.cos_margin == 0.5


def test_without_alignment_and_margins(vae_yaml):
    del vae_yaml["model"]["params"]["use_vf"]
    loss = vae_yaml["model"]["params"]["lossconfig"]["params"]
    del loss["distmat_margin"], loss["cos_margin"]
    recipes = translated(vae_yaml)
    assert recipes.train["vf_weight"] == recipes.train["distmat_margin"] == recipes.train["cos_margin"] == 0.0
    assert "foundation_model" not in recipes.train


def test_the_batch_of_all_devices(vae_yaml):
    vae_yaml["data"] = {"target": "x", "params": {"batch_size": 8, "wrap": True, "train": {"target": "y"}}}
    vae_yaml["lightning"] = {"trainer": {"devices": 8, "num_nodes": 4, "max_epochs": 50, "benchmark": True}}
    recipes = translated(vae_yaml)
    assert recipes.train["global_batch_size"] == 256
    assert recipes.left["lightning.trainer.max_epochs"].endswith("250,227")  # 250,000 of the recipe, of whole batches
    assert {"data.params.wrap", "data.params.train.target", "lightning.trainer.benchmark"} <= recipes.left.keys()
    assert recipes.unknown == []


def test_attention_at_other_levels_is_written_as_blocks(vae_yaml):
    vae_yaml["model"]["params"]["ddconfig"]["attn_resolutions"] = [16, 32]
    vae = translated(vae_yaml).train["vae"]
    assert vae["down_block_types"] == ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"] * 2
    assert vae["up_block_types"] == ["AttnUpDecoderBlock2D"] * 2 + ["UpDecoderBlock2D"] * 3


def test_the_first_weights_decide_the_architecture(vae_yaml):
    recipes = translated({**vae_yaml, "weight_init": "vavae.ckpt"})
    assert "vae" not in recipes.train and recipes.train["weight_init"] == "vavae.ckpt"


@pytest.mark.parametrize(
    ("key", "value", "required"),
    [
        ("model.params.use_vf", "clip", "one of dinov2, mae"),
        ("model.params.ddconfig.z_channels", 16, "32, `model.params.embed_dim`"),
        ("model.params.ddconfig.dropout", 0.1, "0.0, since nothing else"),
        ("model.params.ddconfig.in_channels", 4, "3, since nothing else"),
    ],
)
def test_autoencoders_that_cannot_be_trained_are_errors(key, value, required, vae_yaml):
    with pytest.raises(ValueError) as error:
        translated(changed(vae_yaml, key, value))
    assert str(error.value).startswith(f"original.yaml: `{key}` is {value!r}; required: {required}"), error.value


# ---------------------------------------------------------------------------------------------------------------------
# The mapping
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "config_class"), [(TRANSFORMER_KEYS, LightningDiTTrainingConfig), (VAE_KEYS, VAVAETrainingConfig)]
)
def test_settings_of_the_mapping_exist(keys, config_class):
    """Also those of keys that no recorded file has."""
    examples = {int: 4, float: 0.5, bool: True, str: "x", dict: {"hidden_size": 8, "depth": 1, "num_heads": 2}}
    examples |= {"model.model_type": "LightningDiT-B/2", "model.params.use_vf": "mae"}
    num_settings = 0
    for name, key in keys.items():
        if key.settings is None:
            continue
        known = settings_of(config_class if key.recipe == "train" else GenerationConfig)
        for setting in key.settings(examples.get(name, examples.get(key.kind))):
            assert setting in known, f"{name} -> {setting}"
            num_settings += 1
    assert num_settings > 15


def test_the_table_has_a_row_for_each_key():
    table = key_table(TRANSFORMER_KEYS).splitlines()
    assert len(table) == 2 + len(TRANSFORMER_KEYS) and all(line.count("|") == 4 for line in table)
