"""The encoder that the digits are aligned to and measured with."""

import sys
from pathlib import Path

import pytest
import torch

from diffusers_lightningdit.metrics.linear_classifier import linear_probe_accuracy
from diffusers_lightningdit.networks.foundation_model import FoundationModel

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "model_cards" / "dinov2-digits"
sys.path.insert(0, str(REPOSITORY / "examples" / "digits"))

import judge  # noqa: E402
import prepare  # noqa: E402


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits") / "data")
    prepare.main(["--output_dir", folder])
    pixels, labels, _ = judge.real_images(folder, 32)
    return pixels, labels


def test_its_features_tell_the_digits(real):
    encoder = FoundationModel.from_pretrained(str(FOLDER), image_normalization="model")
    assert sum(parameter.numel() for parameter in encoder.model.parameters()) == 468_576
    pixels, labels = real[0][:600], real[1][:600]
    features = torch.cat([encoder(2 * batch - 1).mean((2, 3)) for batch in pixels.split(100)])
    assert linear_probe_accuracy(features, labels) >= 0.98


def test_files_are_small_and_safe():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2e6
    assert {path.suffix for path in files} == {".json", ".safetensors", ".md"}
