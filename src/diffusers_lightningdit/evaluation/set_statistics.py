# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""What is measured of a set of images, in one pass, by any number of processes.

The numbers are the same to the last bit whatever the number of processes: the network always takes the same images
together, blocks of fixed size in the order of the set, and sums are formed in that order on the main process.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from .frechet import FeatureStatistics
from .image_sets import ArchiveImages, ImageSet, cut
from .inception_score import InceptionScore

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


@torch.no_grad()
def measure_images(
    images: ImageSet | ArchiveImages,
    network: nn.Module,
    accelerator: Accelerator,
    block_size: int = 16,
    num_splits: int = 10,
    keep_features: bool = False,
    title: str = "measuring",
) -> SetStatistics | None:
    """Run the network over all images.

    Args:
        images: the set.
        network: of `features.py` or `inception.py`, on the accelerator's device.
        accelerator: processes that share the work.
        block_size: images that the network takes at a time; the last block is filled up with its last image. Another
            block size changes features by rounding.
        num_splits: of the Inception Score; there are at most as many as images.
        keep_features: for precision and recall; otherwise memory does not grow with the set.
        title: of the progress bar.

    Returns:
        On the main process; None on the others.

    Raises:
        ValueError: on all processes, naming the image that cannot be read.
    """
    blocks = cut(images.num_images, block_size)
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    own = _outputs(images, blocks[rank::num_processes], network, accelerator.device, block_size)
    collector = None
    if accelerator.is_main_process:
        collector = _Collector(images.num_images, min(num_splits, images.num_images), keep_features)
    with tqdm(total=images.num_images, desc=title, disable=not accelerator.is_local_main_process) as bar:
        for start in range(0, len(blocks), num_processes):
            try:
                result = next(own, None)
            except ValueError as error:
                result = error
            # the same round of blocks from all processes, in the order of the set
            for output in gather_object([result]):
                if isinstance(output, ValueError):
                    raise output
                if output is not None and collector is not None:
                    collector.add({name: torch.from_numpy(rows) for name, rows in output[0].items()}, output[1])
            bar.update(sum(len(block) for block in blocks[start : start + num_processes]))
    return None if collector is None else collector.finish()


def _outputs(
    images: ImageSet | ArchiveImages, blocks: list[range], network: nn.Module, device: torch.device, block_size: int
) -> Iterator[tuple[dict[str, np.ndarray], list[bytes]]]:
    """Features of each block, and a hash of each image's pixels."""
    for pixels in images.read_blocks(blocks):
        digests = [hashlib.sha256(image).digest() for image in pixels]
        filled = np.concatenate([pixels, pixels[-1:].repeat(block_size - len(pixels), axis=0)])
        outputs = network(torch.from_numpy(filled).to(device).permute(0, 3, 1, 2))
        yield {name: rows[: len(pixels)].float().cpu().numpy() for name, rows in outputs.items()}, digests
