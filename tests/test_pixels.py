"""Pixels become 8 bits as the original makes them."""

import torch

from diffusers_lightningdit.pixels import from_8_bits, to_8_bits


def test_8_bits_and_back():
    images = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_8_bits(from_8_bits(images)), images)
    assert to_8_bits(torch.tensor([-3.0, -1, 0, 1, 3])).tolist() == [0, 0, 128, 255, 255]
