# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Pairs of images and their labels as the networks take them: normalised, resized, and varied in training.

Equal to the original's to the last bit, in the draws as well. Its resampling is OpenCV's, for float32: bilinear with
pixels' centres at half coordinates and without a low-pass filter, and nearest by rounding down. At the edges OpenCV
moves the weight to the outermost column, but weighs the outermost row twice, which rounds differently.

Letters in the shape comments: H and W the sides of an image in pixels, C channels.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch

# Mean and deviation of ImageNet's images, in which captions are trained
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_AT_224 = 7  # pixels that a crop may cut away at 224; in proportion at other sizes
SWAP_PROB_OF_CAPTIONS = 0.3


# ---------------------------------------------------------------------------------------------------------------------
# Resampling
# ---------------------------------------------------------------------------------------------------------------------


def _bilinear_places(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray]:
    """The lower of the two source positions of each target position, and the weight of the upper one, float32."""
    scale = 1.0 / (new_length / length)
    places = ((np.arange(new_length) + 0.5) * scale - 0.5).astype(np.float32)
    lower = np.floor(places)
    return lower.astype(np.int64), places - lower


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a float32 image [H, W, C] to [height, width, C]."""
    if image.shape[:2] == (height, width):
        return image
    last_row, last_column = image.shape[0] - 1, image.shape[1] - 1
    lower, weight = _bilinear_places(image.shape[1], width)
    weight = np.where((lower < 0) | (lower >= last_column), np.float32(0), weight)[:, None]
    lower = lower.clip(0, last_column)
    rows = image[:, lower] * (1 - weight) + image[:, (lower + 1).clip(max=last_column)] * weight
    lower, weight = _bilinear_places(image.shape[0], height)
    weight = weight[:, None, None]
    return rows[lower.clip(0, last_row)] * (1 - weight) + rows[(lower + 1).clip(0, last_row)] * weight


def resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize labels [H, W, ...] of any type to [height, width, ...]."""
    if labels.shape[:2] == (height, width):
        return labels
    places = [
        np.floor(np.arange(new) * (1.0 / (new / old))).astype(np.int64).clip(max=old - 1)
        for new, old in zip((height, width), labels.shape[:2], strict=True)
    ]
    return labels[places[0]][:, places[1]]


# ---------------------------------------------------------------------------------------------------------------------
# Maps
# ---------------------------------------------------------------------------------------------------------------------


def normalize(images: np.ndarray) -> np.ndarray:
    """Turn uint8 into float32 in [-1, 1]."""
    return (images.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)


def prepare_pair(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    rng: random.Random | None = None,
    swapped_labels: Sequence[int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prepare a pair of images and the maps that belong to it.

    Args:
        before, after: uint8 [H, W, 3].
        labels: [H, W, L], or [H, W] of one map.
        size: (height, width) to resize to.
        rng: The random numbers of training; None prepares for evaluation. Each with probability 0.5, and in this order:
            an equal strip is cut off from opposite sides and the rest resized back, rows are flipped, columns are
            flipped, both images are swapped.
        swapped_labels: The order of the maps once the images are swapped; None leaves them as they are.

    Returns:
        The images, float32 [3, height, width] in [-1, 1], and the labels [L, height, width], of their type.
    """
    height, width = size
    images = normalize(np.concatenate([before, after], axis=2))  # [H, W, 6]
    labels = labels[..., None] if labels.ndim == 2 else labels
    images, labels = resize_bilinear(images, height, width), resize_nearest(labels, height, width)
    if rng is not None:
        if rng.random() < 0.5:
            most = int(CROP_AT_224 / 224 * width)
            x, y = rng.randint(0, most), rng.randint(0, most)
            rows, columns = slice(y, height - y), slice(x, width - x)
            images = resize_bilinear(images[rows, columns], height, width)
            labels = resize_nearest(labels[rows, columns], height, width)
        if rng.random() < 0.5:
            images, labels = images[::-1], labels[::-1]
        if rng.random() < 0.5:
            images, labels = images[:, ::-1], labels[:, ::-1]
        if rng.random() < 0.5:
            images = images[..., [3, 4, 5, 0, 1, 2]]
            labels = labels if swapped_labels is None else labels[..., list(swapped_labels)]
    images, labels = (torch.from_numpy(np.ascontiguousarray(maps.transpose(2, 0, 1))) for maps in (images, labels))
    return images[:3].clone(), images[3:].clone(), labels


# ---------------------------------------------------------------------------------------------------------------------
# Captions
# ---------------------------------------------------------------------------------------------------------------------


def normalize_for_captions(image: np.ndarray) -> torch.Tensor:
    """Turn uint8 [H, W, 3] into float32 [3, H, W] by the mean and deviation of ImageNet's images."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
