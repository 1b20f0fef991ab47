# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Pixels in [-1, 1], as models take and return them, and the 8 bits of image files."""

import torch


def from_8_bits(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 into pixels in [-1, 1], float32, as the original's data sets do."""
    return (images.float() / 255 - 0.5) / 0.5


def to_8_bits(pixels: torch.Tensor) -> torch.Tensor:
    """Turn pixels in [-1, 1] into uint8, by truncation of clamp(127.5 x + 128, 0, 255), as the original does."""
    return (127.5 * pixels.float() + 128).clamp(0, 255).to(torch.uint8)
