from pathlib import Path

import pytest
import torch
import train_vavae
import yaml

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.settings import parse_config
from diffusers_lightningdit.training.change3d.config import Change3DTrainingConfig
from diffusers_lightningdit.training.transformer.config import LightningDiTTrainingConfig
from diffusers_lightningdit.training.transformer.few_step import FewStepTrainingConfig
from diffusers_lightningdit.training.transformer.lora import LoraTrainingConfig

FOLDER = Path(train_vavae.__file__).parent
RECIPES = sorted([*FOLDER.glob("recipes/*.yaml"), *FOLDER.parent.glob("examples/*/recipes/*.yaml")])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_recipes_are_valid_and_hold_differences_only(recipe, tmp_path):
    config_class, needed = LightningDiTTrainingConfig, ["vae=x"]
    if "vavae" in recipe.stem:
        config_class, needed = train_vavae.VAVAETrainingConfig, ["lpips=x", "foundation_model=x"]
    elif "lora" in recipe.stem:
        config_class, needed = LoraTrainingConfig, ["pipeline=x"]
    elif "few_step" in recipe.stem:
        config_class, needed = FewStepTrainingConfig, ["pipeline=x"]
    elif "task" in yaml.safe_load(recipe.read_text()):
        config_class, needed = Change3DTrainingConfig, [f"task={yaml.safe_load(recipe.read_text())['task']}"]
    needed += ["data=x", f"output_dir={tmp_path / 'new'}"]
    classes = ["model.num_classes=2"] if "task=semantic" in needed else []  # which have no default
    defaults, config = (
        parse_config(config_class, [*needed, *classes]),
        parse_config(config_class, ["--config", str(recipe), *needed]),
    )
    for name in yaml.safe_load(recipe.read_text()):
        if name not in ("resolution", "foundation_model", "task"):
            assert getattr(config, name) != getattr(defaults, name), name


def test_published_recipes(tmp_path):
    config = parse_config(
        LightningDiTTrainingConfig,
        [
            "--config",
            str(FOLDER / "recipes" / "imagenet256_xl_800ep.yaml"),
            "data=x",
            "vae=x",
            f"output_dir={tmp_path}",
        ],
    )
    assert (config.max_train_steps, config.global_batch_size, config.learning_rate) == (1_000_000, 1024, 2e-4)
    assert (config.adam_betas, config.ema_decay, config.ema_warmup) == ((0.9, 0.95), 0.9999, False)
    assert (config.uniform_times_from_step, config.time_sampling) == (600_000, "logit_normal")
    assert (config.guidance_scale, config.guidance_interval, config.guidance_channels) == (6.7, (0.125, 1.0), 3)
    assert config.transformer == {}  # the model's own defaults are XL/1
    with torch.device("meta"):
        assert LightningDiTTransformer2DModel().inner_dim == 1152


def test_the_published_distillation(tmp_path):
    recipe = str(FOLDER / "recipes" / "imagenet256_xl_few_step.yaml")
    needed = ["data=x", "pipeline=x", f"output_dir={tmp_path}"]
    config = parse_config(FewStepTrainingConfig, ["--config", recipe, *needed])
    assert round(config.max_train_steps * config.global_batch_size / 1_281_167) == 100  # epochs
    assert (config.learning_rate, config.adam_betas, config.adam_weight_decay) == (1e-4, (0.9, 0.999), 0)
    assert (config.max_grad_norm, config.num_inference_steps, config.data_kind) == (1.0, 2, "latents")
    assert (config.target_guidance_scale, config.target_guidance_interval) == (1.75, (0.125, 1.0))
    times = (config.time_sampling, config.logit_normal_mean, config.logit_normal_std, config.target_exponent)
    assert times == ("arctan", 0.8, 1.6, 0.5)


def test_the_released_autoencoder(tmp_path):
    recipe = str(FOLDER / "recipes" / "imagenet256_vavae.yaml")
    config = parse_config(
        train_vavae.VAVAETrainingConfig, ["--config", recipe, "data=x", "lpips=x", f"output_dir={tmp_path}"]
    )
    # 100 + 15 + 15 epochs of 1,281,167 images
    epochs = [stage.num_steps * config.global_batch_size / 1_281_167 for stage in config.schedule]
    assert [round(number) for number in epochs] == [100, 15, 15]
    losses = [stage.losses for stage in config.schedule]
    assert [(part.vf_weight, part.distmat_margin, part.cos_margin) for part in losses] == [
        (0.5, 0.0, 0.0),
        (0.1, 0.0, 0.0),
        (0.1, 0.25, 0.5),
    ]
    assert [2 * part.disc_start + 1 for part in losses] == [5001, 1, 1]  # the original counts two steps a batch
    assert (config.learning_rate, config.adam_betas, config.global_batch_size) == (1e-4, (0.5, 0.9), 256)
    assert all((part.kl_weight, part.disc_weight, part.perceptual_weight) == (1e-6, 0.5, 1.0) for part in losses)


def test_published_change3d_recipes(tmp_path):
    """Section 6 of the specification."""
    rows = {
        "levir_cd": ("binary", 16, 80_000, 2e-4, (0.9, 0.99), 1e-4, None),
        "second": ("semantic", 8, 80_000, 2e-4, (0.9, 0.99), 1e-4, None),
        "hrscd": ("semantic", 8, 80_000, 2e-4, (0.9, 0.99), 1e-4, None),
        "xbd": ("damage", 12, 200_000, 2e-4, (0.9, 0.99), 1e-4, None),
        "levir_cc": ("captioning", 32, 212_800, 1e-4, (0.9, 0.999), 1e-5, 5.0),
    }
    for name, row in rows.items():
        recipe = str(FOLDER / "recipes" / f"change3d_{name}.yaml")
        config = parse_config(Change3DTrainingConfig, ["--config", recipe, "data=x", f"output_dir={tmp_path / 'new'}"])
        found = (config.task, config.global_batch_size, config.max_train_steps, config.learning_rate)
        assert (*found, config.adam_betas, config.adam_weight_decay, config.max_grad_value) == row
    assert config.max_train_steps == 200 * (6815 * 5 // config.global_batch_size)


@pytest.mark.parametrize(
    "path",
    sorted((FOLDER / "accelerate_configs").glob("*.yaml")),
    ids=lambda path: f"{path.parents[1].name}-{path.stem}",
)
def test_accelerate_reads_the_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"
    assert config.num_processes == {"1": 1, "8": 8, "2": 16}[path.stem[0]]
