# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Labelled images that are read shard by shard from a data set or a stream; unusable ones are reported by name."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from .images import UnusableImage, image_name, load_image_rows, read_pixels


@dataclass
class Sample:
    """An image of the data set: `pixels` [3, height, width] in [-1, 1] and `label`, or the `error` that it has."""

    index: int
    name: str
    pixels: torch.Tensor | None = None
    label: int = -1
    error: str | None = None

    def report(self) -> dict:
        """The entry of an unusable image in the list of skipped ones."""
        return {"index": self.index, "name": self.name, "error": self.error}


class ImageRows:
    """The rows of a data set of labelled images, in its order.

    Args:
        data: The folder or Hub id, for `datasets.load_dataset`.
        split: The name of the split.
        image_column: The name of the column of images.
        label_column: The name of a column of class labels, whose names become `id2label`, or of whole numbers.
        resolution: The side of the square images, in pixels.
        streaming: Whether to read the data where it is, from its beginning to its end.

    Attributes:
        num_images: The number of rows; None of a stream, whose end is found by reading.
        id2label: The names of the labels, or None.

    Raises:
        ValueError: if the data cannot be read, or a column is missing or of another kind.
    """

    def __init__(
        self, data: str, split: str, image_column: str, label_column: str, resolution: int, streaming: bool = False
    ):
        self._rows, self.id2label = load_image_rows(
            data, split, image_column, label_column, streaming, numbers_as_labels=True
        )
        self.num_images = None if streaming else len(self._rows)
        self.image_column = image_column
        self.label_column = label_column
        self.resolution = resolution

    def shards(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[tuple[int, dict]]]]:
        """Yield the wanted ones of the shards of `size` rows: the shard's number, and (index, row) of each row.

        A stream is read to its end even where the rest is not wanted.
        """
        if self.num_images is None:
            for shard, rows in itertools.groupby(enumerate(self._rows), key=lambda pair: pair[0] // size):
                if wanted(shard):
                    yield shard, rows
            return
        for shard in filter(wanted, range(-(-self.num_images // size))):
            indices = range(shard * size, min((shard + 1) * size, self.num_images))
            yield shard, ((index, self._rows[index]) for index in indices)

    def read(self, index: int, row: dict) -> Sample:
        """Decode, crop and scale the image of a row; nothing is raised for an unusable one."""
        image, label = row[self.image_column], row[self.label_column]
        sample = Sample(index, f"{image_name(image)} (row {index})")
        if label is None or label < 0 or (self.id2label and label >= len(self.id2label)):
            sample.error = f"its label is {label}"
            return sample
        sample.label = label
        try:
            sample.pixels = read_pixels(image, self.resolution)
        except UnusableImage as error:
            sample.error = str(error)
        return sample
