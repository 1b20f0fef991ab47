"""Fixtures: a data set, an autoencoder and recipes so small that a whole training stage runs in seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

REPOSITORY = Path(__file__).parents[1]
TRAINING_SCRIPTS = REPOSITORY / "training_scripts"
sys.path.insert(0, str(TRAINING_SCRIPTS))

TINY_VAE = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
TINY_TRANSFORMER = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps mixed precision and more for the life of a process; every run of a script is a new one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def run_and_be_killed():
    """run_and_be_killed("vavae", "checkpoint-2", "optimizer", ...): ends by SIGKILL while it writes that checkpoint."""

    def run(script: str, checkpoint: str, file: str, *arguments: str, launch=(), **environment) -> str:
        command = [sys.executable, *launch, str(REPOSITORY / "tests" / "training_scripts" / "run_and_be_killed.py")]
        killed = subprocess.run(
            [*command, script, checkpoint, file, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert killed.returncode != 0
        return killed.stderr

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """Eight images of two classes, 20x16 pixels."""
    folder = tmp_path_factory.mktemp("data")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    images = [Image.effect_noise((20, 16), 40 + number).convert("RGB") for number in range(8)]
    Dataset.from_dict({"image": images, "label": [0, 1] * 4}, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture(scope="session")
def foundation_model(tmp_path_factory) -> str:
    """A vision transformer with patches of 2x2 pixels, and so the grid of the tiny autoencoder's latents."""
    folder = str(tmp_path_factory.mktemp("foundation") / "dinov2")
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=8, patch_size=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vae_recipe(tmp_path_factory, foundation_model) -> str:
    recipe = {
        "resolution": 8,
        "vae": TINY_VAE,
        "foundation_model": foundation_model,
        "discriminator": {"base_channels": 4, "num_layers": 1},
        "disc_start": 1,
        "perceptual_weight": 0,
        "global_batch_size": 4,
        "max_train_steps": 3,
    }
    return write_recipe(tmp_path_factory.mktemp("recipe") / "vae.yaml", recipe)


@pytest.fixture(scope="session")
def transformer_recipe(tmp_path_factory) -> str:
    recipe = {
        "resolution": 8,
        "transformer": TINY_TRANSFORMER,
        "global_batch_size": 4,
        "max_train_steps": 3,
        "learning_rate": 1e-2,
        "ema_decay": 0.5,
        "random_flip": False,
        "num_inference_steps": 3,
        "timestep_shift": 0.5,
        "guidance_scale": 1.5,
        "guidance_interval": [0.25, 1.0],
        "guidance_channels": None,
    }
    return write_recipe(tmp_path_factory.mktemp("recipe") / "transformer.yaml", recipe)


@pytest.fixture(scope="session")
def tiny_vae_arguments() -> dict:
    return TINY_VAE


@pytest.fixture(scope="session")
def tiny_transformer_arguments() -> dict:
    return TINY_TRANSFORMER


def write_recipe(path: Path, recipe: dict) -> str:
    path.write_text(yaml.safe_dump(recipe))
    return str(path)


@pytest.fixture(scope="session")
def trained_vae(tmp_path_factory, data, vae_recipe) -> str:
    """The folder that a run of train_vavae.py leaves."""
    import train_vavae

    folder = str(tmp_path_factory.mktemp("trained") / "vae")
    train_vavae.main(["--config", vae_recipe, f"data={data}", f"output_dir={folder}"])
    return folder
