# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The network that a command compares images by, and the arithmetic that every network of a command runs in."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ..networks.inception import InceptionFeatures
from ..networks.vision_features import VisionFeatures


def make_network(config) -> nn.Module | None:
    """The network whose features are compared; None where nothing is.

    Args:
        config: of a command, with the settings `inception`, `inception_sha256`, `features`, `feature_normalization`,
            `feature_pooling` and `feature_size`.

    Raises:
        ValueError: as `InceptionFeatures` and `VisionFeatures`.
        ImportError: as `InceptionFeatures`.
    """
    if config.inception is not None:
        return InceptionFeatures(config.inception, config.inception_sha256)
    if config.features is not None:
        return VisionFeatures(
            config.features, config.feature_normalization, config.feature_size, config.feature_pooling
        )
    return None


@contextlib.contextmanager
def exact_arithmetic(num_threads: int) -> Iterator[None]:
    """The same sums every time: full float32 and fixed algorithms on a GPU, a fixed number of threads on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)
