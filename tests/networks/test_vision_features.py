import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from diffusers_lightningdit.networks.foundation_model import FoundationModel
from diffusers_lightningdit.networks.vision_features import VisionFeatures


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


def test_class_token_as_fd_dinov2_takes_it(vision_transformer, tmp_path):
    """Resized by Pillow's bicubic filter, and normalised as the model wants it."""
    transformers.Dinov2Model.from_pretrained(vision_transformer).save_pretrained(tmp_path)
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    network = VisionFeatures(str(tmp_path), "model", size=16, pooling="class_token")
    pictures = [Image.effect_noise((40, 24), 60).convert("RGB") for _ in range(2)]
    images = torch.from_numpy(np.stack([np.array(picture) for picture in pictures])).permute(0, 3, 1, 2)
    resized = np.stack([np.array(picture.resize((16, 16), Image.Resampling.BICUBIC)) for picture in pictures])
    pixels = (resized / 255 - np.array(statistics["image_mean"])) / np.array(statistics["image_std"])
    model = FoundationModel.from_pretrained(vision_transformer).model
    output = model(pixel_values=torch.from_numpy(pixels).float().permute(0, 3, 1, 2), interpolate_pos_encoding=True)
    assert network.description["pooling"] == "class token"
    assert torch.allclose(network(images)["features"], output.last_hidden_state[:, 0], atol=0.02)  # Pillow rounds


@pytest.mark.parametrize("size", [None, 16])
def test_a_convolutional_network(size, tmp_path):
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetModel(config).eval()
    model.save_pretrained(tmp_path)
    network = VisionFeatures(str(tmp_path), size=size, pooling="pooler")
    network.check_size(30, 50)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = model(pixel_values=images / 127.5 - 1).pooler_output[:, :, 0, 0]
    assert torch.allclose(network(images)["features"], expected, atol=1e-5)


def test_poolings_that_are_not_there(vision_transformer, tmp_path):
    with pytest.raises(
        ValueError, match="`feature_pooling` is 'max'; required: one of patch_mean, class_token, pooler"
    ):
        VisionFeatures(vision_transformer, pooling="max")
    config = transformers.SiglipVisionConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"`features` is .* gives its class_token for images of 16x16 pixels \(the fou"
    ):
        VisionFeatures(str(tmp_path), pooling="class_token").check_size(16, 16)
