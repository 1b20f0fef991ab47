"""What the tests of measures share."""

import pytest
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture
def fresh_accelerate_state():
    """Every run of a command is a new one."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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
