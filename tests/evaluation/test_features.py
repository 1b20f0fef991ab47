import pytest
import torch

from diffusers_lightningdit.evaluation.features import VisionFeatures
from diffusers_lightningdit.foundation_models import FoundationModel


def test_mean_of_the_patch_tokens(vision_transformer):
    network = VisionFeatures(vision_transformer)
    images = torch.randint(256, (2, 3, 32, 24), dtype=torch.uint8)
    network.check_size(32, 24)
    features = network(images)["features"]
    model = FoundationModel.from_pretrained(vision_transformer).model
    tokens = model(pixel_values=images / 127.5 - 1, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    assert tokens.shape == (2, 4 * 3, 12)
    assert torch.allclose(features, tokens.mean(1), atol=1e-5)


def test_resized(vision_transformer):
    network = VisionFeatures(vision_transformer, size=16)
    network.check_size(30, 50)
    images = torch.randint(256, (1, 3, 30, 50), dtype=torch.uint8)
    expected = FoundationModel.from_pretrained(vision_transformer)(images / 127.5 - 1, 2).mean((2, 3))
    assert torch.allclose(network(images)["features"], expected, atol=1e-5)


def test_sizes_that_are_no_multiple_of_the_patch(vision_transformer):
    with pytest.raises(ValueError, match="`feature_size` is 20x20; required: multiples of the patch of `features`, 8x"):
        VisionFeatures(vision_transformer, size=20)
    with pytest.raises(ValueError, match="`feature_size` is None and the images are 30x32; required: multiples"):
        VisionFeatures(vision_transformer).check_size(30, 32)
