"""Real parts, as small as they can be: the embedded pipeline, real digits, and a vision transformer."""

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits
from transformers import Dinov2Config, Dinov2Model


@pytest.fixture
def fresh_accelerate_state():
    """Every run of a command is a new one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def digits_pipeline(repository) -> str:
    return str(repository / "model_cards" / "lightningdit-digits")


@pytest.fixture(scope="session")
def real_digits(tmp_path_factory) -> str:
    """A data set of 60 digits as 32x32 RGB images with labels."""
    digits = load_digits()
    pictures = [
        Image.fromarray((digits.images[index] * 255 / 16).astype("uint8")).resize((32, 32)).convert("RGB")
        for index in range(60)
    ]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    folder = tmp_path_factory.mktemp("real_digits")
    rows = {"image": pictures, "label": digits.target[:60].tolist()}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture(scope="session")
def vision_transformer(tmp_path_factory) -> str:
    """A folder of a DINOv2 of random weights, patches of 8x8 pixels and 12 channels."""
    folder = str(tmp_path_factory.mktemp("vision") / "dinov2")
    config = Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    return folder
