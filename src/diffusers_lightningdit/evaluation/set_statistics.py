# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Features and statistics of a set of images, computed in one pass by any number of processes.

The results do not depend on the number of processes, to the last bit: the network always takes the same images
together, in blocks of fixed size in the order of the set, and sums are formed in this order on the main process.
"""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..metrics.finite import check_finite
from ..metrics.frechet import FeatureStatistics
from ..metrics.inception_score import InceptionScore
from ..networks.inception import InceptionFeatures
from ..networks.vision_features import VisionFeatures
from .image_sets import ImageBlocks, cut
from .ordered_batches import results_in_order

ROWS_PER_UPDATE = 1024  # An update of the statistics takes about as long for a few images as for this many.


def make_network(config) -> InceptionFeatures | VisionFeatures | None:
    """Load the network whose features are compared; None if the settings name none.

    Args:
        config: The settings of a command, with `inception`, `inception_sha256`, `features`, `feature_normalization`,
            `feature_pooling` and `feature_size`.

    Raises:
        ValueError: As `InceptionFeatures` and `VisionFeatures`.
        ImportError: As `InceptionFeatures`.
    """
    if config.inception is not None:
        return InceptionFeatures(config.inception, config.inception_sha256)
    if config.features is not None:
        return VisionFeatures(
            config.features, config.feature_normalization, config.feature_size, config.feature_pooling
        )
    return None


@dataclass
class SetStatistics:
    """Statistics of a set of N images.

    Attributes:
        num_images: The number N of images.
        statistics: The mean and covariance of the "features" and, with Inception, of the "spatial" features.
        inception_score: The mean and the standard deviation over the splits, if the network returns probabilities.
        features: The features, float32 [N, D], if they were kept.
        pixels_sha256: The SHA-256 sum of the hashes of all images' pixels.
    """

    num_images: int
    statistics: dict[str, FeatureStatistics]
    inception_score: tuple[float, float] | None
    features: torch.Tensor | None
    pixels_sha256: str


class _Collector:
    """Collects features in the order of the images. Sums are formed in a thread while the network computes."""

    def __init__(self, num_images: int, num_splits: int, keep_features: bool):
        self.num_images, self.num_splits, self.keep_features = num_images, num_splits, keep_features
        self.statistics: dict[str, FeatureStatistics] = {}
        self.inception_score: InceptionScore | None = None
        self.features: torch.Tensor | None = None
        self.digest = hashlib.sha256()
        self.count = 0
        self._waiting: dict[str, list[torch.Tensor]] = {}
        self._num_waiting = 0
        self._thread = ThreadPoolExecutor(1)
        self._update: Future | None = None

    def add(self, outputs: dict[str, torch.Tensor], digests: list[bytes]) -> None:
        for digest in digests:
            self.digest.update(digest)
        for name, rows in outputs.items():
            self._waiting.setdefault(name, []).append(rows)
        self._num_waiting += len(digests)
        while self._num_waiting >= ROWS_PER_UPDATE:
            self._flush(ROWS_PER_UPDATE)

    def _flush(self, num_rows: int) -> None:
        rows = {}
        for name, blocks in self._waiting.items():
            rows[name], rest = torch.cat(blocks).split([num_rows, self._num_waiting - num_rows])
            self._waiting[name] = [rest]
        self._num_waiting -= num_rows
        if self._update is not None:
            self._update.result()
        self._update = self._thread.submit(self._add_to_sums, rows)

    def _add_to_sums(self, outputs: dict[str, torch.Tensor]) -> None:
        for name, rows in outputs.items():
            if name == "probabilities":
                self.inception_score = self.inception_score or InceptionScore(self.num_images, self.num_splits)
                self.inception_score.update(rows)
            else:
                self.statistics.setdefault(name, FeatureStatistics(rows.shape[1])).update(rows)
        if self.keep_features:
            rows = outputs["features"]
            if self.features is None:
                self.features = torch.empty(self.num_images, rows.shape[1])
            self.features[self.count : self.count + len(rows)] = rows
        self.count += len(outputs["features"])

    def finish(self) -> SetStatistics:
        self._flush(self._num_waiting)
        self._update.result()
        self._thread.shutdown()
        score = None if self.inception_score is None else self.inception_score.compute()
        return SetStatistics(self.count, self.statistics, score, self.features, self.digest.hexdigest())


def measure_images(
    images: ImageBlocks,
    network: nn.Module,
    accelerator: Accelerator,
    block_size: int = 16,
    batch_size: int = 64,
    num_splits: int = 10,
    keep_features: bool = False,
    title: str = "measuring",
) -> SetStatistics | None:
    """Compute the network's features of all images, and their statistics.

    Reading or drawing images, the network, and the sums run in threads of their own, at the same time.

    Args:
        images: The set. If its `read_blocks` computes images, it does so in the calling thread.
        network: A network as `make_network` returns, on the accelerator's device.
        accelerator: The accelerator whose processes share the images.
        block_size: The number of images that the network takes at a time; the last block is filled up with copies of
            its last image. Another block size changes features by rounding.
        batch_size: The number of images that a process handles in one turn, rounded up to whole blocks.
        num_splits: The number of splits of the Inception Score, at most one for each image.
        keep_features: Keep all features, for precision and recall. Otherwise memory does not grow with the set.
        title: The description of the progress bar.

    Returns:
        The statistics on the main process, None on the others.

    Raises:
        ValueError: On all processes, if an image cannot be read; the message names it.
        OSError: On all processes, if a drawn image cannot be written.
    """

    @torch.no_grad()
    def measure(pixels: np.ndarray) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Return the features of a block, and a hash of each image's pixels."""
        digests = [hashlib.sha256(image).digest() for image in pixels]
        filled = np.concatenate([pixels, pixels[-1:].repeat(block_size - len(pixels), axis=0)])
        outputs = network(torch.from_numpy(filled).to(accelerator.device).permute(0, 3, 1, 2))
        check_finite(**outputs)  # here, so that all processes get the error
        return {name: rows[: len(pixels)].float().cpu().numpy() for name, rows in outputs.items()}, digests

    collector = _Collector(images.num_images, min(num_splits, images.num_images), keep_features)
    blocks, per_turn = cut(images.num_images, block_size), -(-batch_size // block_size)
    for outputs, digests in results_in_order(blocks, images.read_blocks, measure, accelerator, per_turn, title):
        collector.add({name: torch.from_numpy(rows) for name, rows in outputs.items()}, digests)
    return collector.finish() if accelerator.is_main_process else None


def read_all(images: ImageBlocks, accelerator: Accelerator, block_size: int = 16, batch_size: int = 64) -> None:
    """Read all blocks as `measure_images` does, without measuring: for sets that are drawn while they are read."""
    blocks, per_turn = cut(images.num_images, block_size), -(-batch_size // block_size)
    no_results = results_in_order(blocks, images.read_blocks, lambda pixels: None, accelerator, per_turn, "drawing")
    deque(no_results, maxlen=0)
