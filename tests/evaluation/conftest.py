"""Fixtures of the evaluation tests."""

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits

from diffusers_lightningdit import LightningDiTPipeline
from diffusers_lightningdit.evaluate import main


@pytest.fixture
def error_line(capsys):
    """Return a function that runs a command and returns its one-line error, without "error: "."""

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as exit:
            main(list(words))
        assert exit.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")

    return run


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
def broken_pipeline(digits_pipeline, tmp_path_factory) -> str:
    """The digits' pipeline with a weight that is NaN."""
    pipeline = LightningDiTPipeline.from_pretrained(digits_pipeline)
    pipeline.transformer.proj_out.bias.data[0] = float("nan")
    folder = str(tmp_path_factory.mktemp("broken"))
    pipeline.save_pretrained(folder)
    return folder
