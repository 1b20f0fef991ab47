# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Labelled images from Hugging Face `datasets`, decoded one by one, so that a bad one is known by name."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import datasets
import torch
from datasets import ClassLabel, Value

from .images import UnusableImage, image_name, load_rows, read_pixels


@dataclass
class Sample:
    """An image of the data set, read: `pixels` [3, height, width] in [-1, 1] and `label`, or the `error`."""

    index: int
    name: str
    pixels: torch.Tensor | None = None
    label: int = -1
    error: str | None = None

    def report(self) -> dict:
        return {"index": self.index, "name": self.name, "error": self.error}


class ImageRows:
    """The rows of a data set of labelled images, in its order.

    Args:
        data: folder or Hub id, for `datasets.load_dataset`.
        split: name of the split.
        image_column: name of the column of images.
        label_column: name of a column of class labels, whose names become `id2label`, or of whole numbers.
        resolution: side of the square images.
        streaming: read the data where it is, from its beginning to its end.

    Attributes:
        num_images: None of a stream, whose end is found by reading.
        id2label: names of the labels, or None.

    Raises:
        ValueError: if the data cannot be read, or a column is missing or of another kind.
    """

    def __init__(
        self, data: str, split: str, image_column: str, label_column: str, resolution: int, streaming: bool = False
    ):
        rows = load_rows(data, split, streaming)
        features = rows.features or {}
        columns = ", ".join(features) or "none that are known"
        if not isinstance(features.get(image_column), datasets.Image):
            raise ValueError(f"`image_column` is {image_column!r}; required: a column of images among {columns}.")
        label = features.get(label_column)
        if not isinstance(label, ClassLabel) and not (isinstance(label, Value) and "int" in label.dtype):
            raise ValueError(
                f"`label_column` is {label_column!r}; required: a column of class labels or whole numbers among "
                f"{columns}."
            )
        self.id2label = dict(enumerate(label.names)) if isinstance(label, ClassLabel) else None
        self.num_images = None if streaming else len(rows)
        if self.num_images == 0:
            raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: images.")
        self.image_column = image_column
        self.label_column = label_column
        self.resolution = resolution
        self._rows = rows.cast_column(image_column, datasets.Image(decode=False))

    def shards(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, Iterator[tuple[int, dict]]]]:
        """The wanted ones of the shards of `size` rows: number, and (index, row) of each row.

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
        """Decode, crop and scale the image of a row; whatever is wrong with it is told in the sample."""
        image, label = row[self.image_column], row[self.label_column]
        sample = Sample(index, image_name(image, index))
        if label is None or label < 0 or (self.id2label and label >= len(self.id2label)):
            sample.error = f"its label is {label}"
            return sample
        sample.label = label
        try:
            sample.pixels = read_pixels(image, self.resolution)
        except UnusableImage as error:
            sample.error = str(error)
        return sample
