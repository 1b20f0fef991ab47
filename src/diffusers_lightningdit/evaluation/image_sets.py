# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Sets of 8-bit images to measure: a folder of files, an `.npz` file, or a data set of Hugging Face `datasets`.

All images of a set have the same size. They are read in blocks, a few blocks ahead, by background threads.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..data.images import UnusableImage, center_crop, image_name
from ..data.rows import ImageRows, check_labels
from .image_archive import ImageArchive
from .image_files import decode_rgb, numbered_name
from .ordered_batches import read_ahead

DEFAULT_SPLIT = "train"
BLOCKS_AHEAD = 4
SETTING = re.compile("`(image_column|label_column|allow_left_out)`")  # in messages about `data`


class ImageBlocks(Protocol):
    """A set of images that is read in blocks of consecutive images.

    Attributes:
        num_images: The number N of images.
    """

    num_images: int

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """Yield the images of each block of indices, uint8 [B, height, width, 3]; blocks are in ascending order."""


def cut(num_images: int, block_size: int) -> list[range]:
    """Split the indices 0 to N - 1 into blocks, of which the last may be shorter."""
    return [range(start, min(start + block_size, num_images)) for start in range(0, num_images, block_size)]


class ImageSet:
    """A set whose images can be read in any order.

    Attributes:
        name: The name of the set, for messages.
        num_images: The number N of images.
        size: The (height, width) of all images; by default that of the first image.
    """

    def __init__(
        self, name: str, num_images: int, crop: int | None, num_threads: int, size: tuple[int, int] | None = None
    ):
        if num_images == 0:
            raise ValueError(f"{name} holds no image; required: images.")
        self.name, self.num_images = name, num_images
        self.crop, self.num_threads = crop, num_threads
        self.size = self._read(0).shape[:2] if size is None else tuple(size)

    def image_name(self, index: int) -> str:
        """The name of an image, for messages."""
        raise NotImplementedError

    def encoded(self, index: int) -> dict | Path:
        """An image, as `data.images.open_image` takes it."""
        raise NotImplementedError

    def _read(self, index: int) -> np.ndarray:
        image = decode_rgb(self.image_name(index), self.encoded(index))
        if self.crop is None:
            return np.array(image)
        try:
            return np.array(center_crop(image, self.crop))
        except UnusableImage as error:
            raise ValueError(f"{self.image_name(index)}: {error}") from error

    def __getitem__(self, index: int) -> np.ndarray:
        """Read image `index`, uint8 [height, width, 3].

        Raises:
            ValueError: If the image is damaged or has another size; the message names it.
        """
        array = self._read(index)
        if array.shape[:2] != self.size:
            raise ValueError(
                f"{self.image_name(index)} has {array.shape[1]}x{array.shape[0]} pixels; required: "
                f"{self.size[1]}x{self.size[0]}, as {self.image_name(0)}."
            )
        return array

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """Yield the images of each block of indices, uint8 [B, height, width, 3]."""

        def read_block(block: range) -> np.ndarray:
            return np.stack([self[index] for index in block])

        yield from read_ahead(read_block, blocks, self.num_threads, max(BLOCKS_AHEAD, self.num_threads))


class NumberedImages(ImageSet):
    """The first `num_images` of 000000.png, 000001.png, ... in a folder."""

    def __init__(self, folder: str | Path, num_images: int, num_threads: int = 4, size: tuple[int, int] | None = None):
        self.folder = Path(folder)
        super().__init__(str(folder), num_images, None, num_threads, size)

    def image_name(self, index: int) -> str:
        """The name of an image for messages: its file."""
        return str(self.encoded(index))

    def encoded(self, index: int) -> Path:
        """The file of an image, for `decode_rgb`."""
        return self.folder / numbered_name(index)


class DatasetImages(ImageSet):
    """The images of a folder, or a column of images of a data set, as `ImageRows` reads them.

    Attributes:
        source: The `ImageRows`.
        labels: The labels of the images, int64 [N], if a `label_column` is given.
        num_classes: The number of classes of the label column.

    Raises:
        ValueError: As `ImageRows`, and if labels have no names or are missing.
    """

    def __init__(
        self,
        data: str,
        split: str = DEFAULT_SPLIT,
        column: str = "image",
        crop: int | None = None,
        num_threads: int = 4,
        label_column: str | None = None,
        allow_left_out: bool = False,
    ):
        try:
            self.source = ImageRows(data, split, column, label_column, allow_left_out=allow_left_out)
            if label_column is not None:
                check_labels(self.source, None)
        except ValueError as error:
            raise ValueError(SETTING.sub(r"`reference_\1`", str(error)).replace("`data`", "`reference`")) from error
        self.column, self.rows = column, self.source.rows
        if label_column is not None:
            if self.source.id2label is None:
                raise ValueError(
                    f"`reference_label_column` is {label_column!r}, with numbers; required: labels with names."
                )
            self.labels, self.num_classes = torch.tensor(self.rows[label_column][:]), len(self.source.id2label)
        super().__init__(f"{data}, split {split!r}", len(self.rows), crop, num_threads)

    def image_name(self, index: int) -> str:
        """The name of an image for messages: its file, or data set and row."""
        if self.source.source.has_image_files:
            return self.encoded(index)["path"]
        return f"{self.name}, {image_name(self.encoded(index))} (row {index})"

    def encoded(self, index: int) -> dict:
        """The bytes and path of an image, as `datasets` keeps them undecoded."""
        return self.rows[index][self.column]


class ArchiveImages(ImageArchive):
    """The images of an `.npz` file, which can be read in blocks only. They are never cropped."""

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """Yield the images of each block, as `ImageSet.read_blocks`; blocks must be in ascending order."""

        def read() -> Iterator[np.ndarray]:
            images, next_index = iter(self), 0
            for block in blocks:
                num_skipped = block.start - next_index
                yield np.stack(list(itertools.islice(images, num_skipped, num_skipped + len(block))))
                next_index = block.stop

        yield from read_ahead(lambda block: block, read(), 1, 1)


def open_images(
    name: str,
    split: str = DEFAULT_SPLIT,
    column: str = "image",
    crop: int | None = None,
    num_threads: int = 4,
    label_column: str | None = None,
    allow_left_out: bool = False,
) -> DatasetImages | ArchiveImages:
    """Open a set of images.

    Args:
        name: An `.npz` file, a folder of images, or a folder or Hub id that `datasets.load_dataset` reads.
        split: The split of the data.
        column: The column of images of a data set.
        crop: The side in pixels of the squares that images are cropped to by `center_crop`; None leaves images as they
            are. The images of an `.npz` file are never cropped.
        num_threads: The number of threads that read.
        label_column: The column of labels; with it, the name must not be that of an `.npz` file.
        allow_left_out: Accept that files of a local folder are left out.

    Raises:
        ValueError: In one line, if the set cannot be read.
    """
    if label_column is None and Path(name).suffix == ".npz":
        return ArchiveImages(name)
    return DatasetImages(name, split, column, crop, num_threads, label_column, allow_left_out)
