# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What is measured of a set of images, in one pass, by any number of processes.

The numbers are the same to the last bit whatever the number of processes: the network always takes the same images
together, blocks of fixed size in the order of the set, and sums are formed in that order on the main process.
"""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..metrics.frechet import FeatureStatistics
from ..metrics.inception_score import InceptionScore
from .image_sets import ImageBlocks, cut
from .ordered_batches import results_in_order

ROWS_OF_AN_UPDATE = 1024  # of the statistics, which cost as much for a few images as for these


@dataclass
class SetStatistics:
    """Of a set of N images.

    Attributes:
        num_images: N.
        statistics: of "features" and, with Inception, of "spatial".
        inception_score: mean and standard deviation over the splits, if the network gives probabilities.
        features: float32 [N, D], if they were to be kept.
        pixels_sha256: of all pixels, image by image.
    """

    num_images: int
    statistics: dict[str, FeatureStatistics]
    inception_score: tuple[float, float] | None
    features: torch.Tensor | None
    pixels_sha256: str


class _Collector:
    """Takes features in the order of the images; sums are formed in a thread while the network goes on."""

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
        while self._num_waiting >= ROWS_OF_AN_UPDATE:
            self._flush(ROWS_OF_AN_UPDATE)

    def _flush(self, num_rows: int) -> None:
        rows = {}
        for name, parts in self._waiting.items():
            rows[name], rest = torch.cat(parts).split([num_rows, self._num_waiting - num_rows])
            self._waiting[name] = [rest]
        self._num_waiting -= num_rows
        if self._update is not None:
            self._update.result()
        self._update = self._thread.submit(self._take, rows)

    def _take(self, outputs: dict[str, torch.Tensor]) -> None:
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
    """Run the network over all images.

    Four things go on at once: the network is given a block by a thread of its own while the next ones are read, or
    drawn, and sums are formed by another.

    Args:
        images: the set. Where `read_blocks` computes, it does so in the calling thread.
        network: of `features.py` or `inception.py`, on the accelerator's device.
        accelerator: processes that share the work.
        block_size: images that the network takes at a time; the last block is filled up with its last image. Another
            block size changes features by rounding.
        batch_size: images that a process takes in hand at a time, made up of whole blocks.
        num_splits: of the Inception Score; there are at most as many as images.
        keep_features: for precision and recall; otherwise memory does not grow with the set.
        title: of the progress bar.

    Returns:
        On the main process; None on the others.

    Raises:
        ValueError: on all processes, naming the image that cannot be read.
        OSError: on all processes, if an image that is drawn cannot be written.
    """

    @torch.no_grad()
    def measure(pixels: np.ndarray) -> tuple[dict[str, np.ndarray], list[bytes]]:
        """Features of a block, and a hash of each image's pixels."""
        digests = [hashlib.sha256(image).digest() for image in pixels]
        filled = np.concatenate([pixels, pixels[-1:].repeat(block_size - len(pixels), axis=0)])
        outputs = network(torch.from_numpy(filled).to(accelerator.device).permute(0, 3, 1, 2))
        return {name: rows[: len(pixels)].float().cpu().numpy() for name, rows in outputs.items()}, digests

    collector = _Collector(images.num_images, min(num_splits, images.num_images), keep_features)
    blocks, per_turn = cut(images.num_images, block_size), -(-batch_size // block_size)
    for outputs, digests in results_in_order(blocks, images.read_blocks, measure, accelerator, per_turn, title):
        collector.add({name: torch.from_numpy(rows) for name, rows in outputs.items()}, digests)
    return collector.finish() if accelerator.is_main_process else None


def read_all(images: ImageBlocks, accelerator: Accelerator, block_size: int = 16, batch_size: int = 64) -> None:
    """Read the blocks of each process, as `measure_images` does, for sets that are made by being read."""
    blocks, per_turn = cut(images.num_images, block_size), -(-batch_size // block_size)
    nothing = results_in_order(blocks, images.read_blocks, lambda pixels: None, accelerator, per_turn, "drawing")
    deque(nothing, maxlen=0)
