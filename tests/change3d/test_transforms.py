"""Against the recorded transforms, to the last bit."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.change3d.transforms import (
    normalize_for_captions,
    prepare_pair,
    resize_bilinear,
    resize_nearest,
)

SWAPPED = {"bcd": None, "scd": (1, 0, 2), "bda": None}


@pytest.fixture(scope="module")
def recorded(golden_change3d):
    return load_file(golden_change3d("transforms.safetensors"))


def inputs(recorded, task):
    images, labels = recorded["image_u8"].numpy(), recorded[f"{task}_label_u8"].numpy()
    if task == "bcd":
        labels = (labels > 0).astype(np.int64)
    return images[..., :3], images[..., 3:], labels


@pytest.mark.parametrize("task", SWAPPED)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_every_bit_is_the_originals(recorded, task, seed):
    name, size, rng = ("val", 32, None) if seed is None else (f"train_seed{seed}", 64, random.Random(seed))
    before, after, labels = prepare_pair(*inputs(recorded, task), (size, size), rng, SWAPPED[task])
    assert torch.equal(torch.cat([before, after]), recorded[f"{task}_{name}_image"])
    assert labels.dtype == recorded[f"{task}_{name}_label"].dtype
    assert torch.equal(labels, recorded[f"{task}_{name}_label"])


def test_the_seeds_make_every_decision_both_ways(golden_change3d):
    decisions = json.loads(golden_change3d("transforms.json").read_text())["decisions"].values()
    for name in ("crop", "flip_rows", "flip_cols", "swap"):
        assert len({decision[name] for decision in decisions}) == 2, name


def test_an_image_of_the_right_size_is_only_normalised():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    before, _, labels = prepare_pair(image, image, np.zeros((8, 8), np.uint8), (8, 8))
    assert torch.equal(before, (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - 0.5) / 0.5)
    assert labels.shape == (1, 8, 8)


def test_resampling_agrees_with_torch():
    """torch computes the same resampling with other roundings."""
    image = np.random.default_rng(0).random((11, 7, 3), dtype=np.float32)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, (16, 20), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.from_numpy(resize_bilinear(image, 16, 20)).permute(2, 0, 1), expected)
    expected = torch.nn.functional.interpolate(tensor, (5, 20), mode="nearest")[0]
    assert torch.equal(torch.from_numpy(resize_nearest(image, 5, 20)).permute(2, 0, 1), expected)


def test_captions_have_the_normalisation_of_imagenet():
    image = np.full((4, 4, 3), 255, np.uint8)
    pixels = normalize_for_captions(image)
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor([2.2489, 2.4286, 2.64]), atol=1e-4, rtol=0)
