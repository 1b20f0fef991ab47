# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Pixels in [-1, 1], as models take and return them, and the 8 bits of image files; sizes of images."""

from collections.abc import Sequence

import torch

RESOLUTION_HELP = (  # of the settings of that name, for an autoencoder
    "The size in pixels that images are cropped to, the side of squares or [height, width]; null: the autoencoder's "
    "`sample_size`, the size of the images that it was trained on."
)


def from_8_bits(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 into pixels in [-1, 1], float32, as the original's data sets do."""
    return (images.float() / 255 - 0.5) / 0.5


def to_8_bits(pixels: torch.Tensor) -> torch.Tensor:
    """Turn pixels in [-1, 1] into uint8, by truncation of clamp(127.5 x + 128, 0, 255), as the original does."""
    return (127.5 * pixels.float() + 128).clamp(0, 255).to(torch.uint8)


def as_rgb(pixels: torch.Tensor) -> torch.Tensor:
    """Repeat the channel of grey images for networks that take three: [B, 1 or 3, height, width] -> [B, 3, ...]."""
    return pixels.expand(-1, 3, -1, -1)


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    """The height and width of a size that is one number for squares, or a pair."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def square_or_pair(height: int, width: int) -> int | tuple[int, int]:
    """The inverse of `height_and_width`: one number for squares, as configs keep sizes."""
    return height if height == width else (height, width)
