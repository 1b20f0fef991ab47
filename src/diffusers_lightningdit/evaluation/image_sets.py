# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Sets of 8-bit images to measure: a folder of files, an `.npz` file, or a data set of Hugging Face `datasets`.

All images of a set have the same size. They are read in blocks, a few blocks ahead, by background threads.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import pyarrow.compute
import torch
from PIL import Image

from ..data.images import UnusableImage, center_crop, image_name
from ..data.rows import load_rows
from .image_archive import ImageArchive
from .image_files import decode_rgb, numbered_name
from .ordered_batches import read_ahead

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DEFAULT_SPLIT = "train"
# `datasets` recognises a data set by these: names of files, names of folders that are splits, files of many images.
DATA_SET_FILES = ("README.md", "metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_FOLDERS = ("train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation")
DATA_SUFFIXES = (".parquet", ".arrow", ".tar", ".zip")
BLOCKS_AHEAD = 4


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

    def open_image(self, index: int) -> Image.Image:
        """Open an image; may raise anything."""
        raise NotImplementedError

    def _read(self, index: int) -> np.ndarray:
        image = decode_rgb(self.image_name(index), lambda: self.open_image(index))
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


class FolderImages(ImageSet):
    """The image files of a folder and its subfolders, in the order of their paths.

    Raises:
        ValueError: If the folder holds other files, or its first image cannot be read.
    """

    def __init__(self, folder: str | Path, crop: int | None = None, num_threads: int = 4):
        self.files = sorted(path for path in Path(folder).rglob("*") if not path.is_dir())
        for file in self.files:
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise ValueError(
                    f"{folder} holds {file.relative_to(folder)}; required: images only ({', '.join(IMAGE_SUFFIXES)})."
                )
        super().__init__(str(folder), len(self.files), crop, num_threads)

    def image_name(self, index: int) -> str:
        return str(self.files[index])

    def open_image(self, index: int) -> Image.Image:
        return Image.open(self.files[index])


class NumberedImages(ImageSet):
    """The first `num_images` of 000000.png, 000001.png, ... in a folder."""

    def __init__(self, folder: str | Path, num_images: int, num_threads: int = 4, size: tuple[int, int] | None = None):
        self.folder = Path(folder)
        super().__init__(str(folder), num_images, None, num_threads, size)

    def image_name(self, index: int) -> str:
        return str(self.folder / numbered_name(index))

    def open_image(self, index: int) -> Image.Image:
        return Image.open(self.image_name(index))


class DatasetImages(ImageSet):
    """A column of images of a data set.

    Attributes:
        labels: The labels of the images, int64 [N], if a `label_column` is given.
        num_classes: The number of classes of the label column.

    Raises:
        ValueError: As `load_rows`, or if there is no such column.
    """

    def __init__(
        self,
        data: str,
        split: str = "train",
        column: str = "image",
        crop: int | None = None,
        num_threads: int = 4,
        label_column: str | None = None,
    ):
        try:
            rows = load_rows(data, split)
        except ValueError as error:
            raise ValueError(str(error).replace("`data` is", "`reference` is", 1)) from error
        if not isinstance(rows.features.get(column), datasets.Image):
            names = ", ".join(rows.column_names)
            raise ValueError(f"`reference_image_column` is {column!r}; required: a column of images among {names}.")
        if label_column is not None:
            self.labels, self.num_classes = _labels(rows, label_column)
        self.column = column
        self.rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        super().__init__(f"{data}, split {split!r}", len(rows), crop, num_threads)

    def image_name(self, index: int) -> str:
        return f"{self.name}, {image_name(self.rows[index][self.column])} (row {index})"

    def open_image(self, index: int) -> Image.Image:
        return datasets.Image().decode_example(self.rows[index][self.column])


def _labels(rows: datasets.Dataset, column: str) -> tuple[torch.Tensor, int]:
    feature, name = rows.features.get(column), f"`reference_label_column` is {column!r}"
    if not isinstance(feature, datasets.ClassLabel):
        raise ValueError(f"{name}; required: a ClassLabel column among {', '.join(rows.column_names)}.")
    labels = rows.data.column(column)
    smallest = pyarrow.compute.min(labels).as_py()
    if labels.null_count or smallest < 0:
        raise ValueError(f"{name}, with rows without a label; required: a label in every row.")
    return torch.tensor(rows[column][:]), feature.num_classes


class ArchiveImages:
    """The images of an `.npz` file (see `ImageArchive`), which can be read in blocks only. They are never cropped.

    Raises:
        ValueError: As `ImageArchive`.
    """

    def __init__(self, path: str | Path):
        self.archive = ImageArchive(path)
        self.name, self.num_images, self.size = str(path), len(self.archive), tuple(self.archive.image_shape[:2])

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """Yield the images of each block, as `ImageSet.read_blocks`; blocks must be in ascending order."""

        def read() -> Iterator[np.ndarray]:
            images, next_index = iter(self.archive), 0
            for block in blocks:
                num_skipped = block.start - next_index
                yield np.stack(list(itertools.islice(images, num_skipped, num_skipped + len(block))))
                next_index = block.stop

        yield from read_ahead(lambda block: block, read(), 1, 1)


def is_folder_of_images(folder: Path) -> bool:
    """Whether a folder is read file by file, and not by `datasets`, as a data set with splits is.

    Such a folder holds images, no folder named as a split, and no metadata or card of a data set. It has more images
    than data files, since `datasets` reads whichever kind is more frequent and ignores the other.
    """
    files = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    num_images = sum(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
    num_data = sum(file.suffix.lower() in DATA_SUFFIXES for file in files)
    has_metadata = any(file.name in DATA_SET_FILES for file in files)
    has_splits = any(part in SPLIT_FOLDERS for file in files for part in file.parts[:-1])
    return num_images > num_data and not has_metadata and not has_splits


def open_images(
    name: str,
    split: str = DEFAULT_SPLIT,
    column: str = "image",
    crop: int | None = None,
    num_threads: int = 4,
    label_column: str | None = None,
) -> ImageSet | ArchiveImages:
    """Open a set of images.

    Args:
        name: An `.npz` file, a folder of images (see `is_folder_of_images`), or a folder or Hub id that
            `datasets.load_dataset` reads. Every file of a folder of images has to be an image.
        split: The split of a data set. Another one than the default means that a folder is a data set.
        column: The column of images of a data set.
        crop: The side in pixels of the squares that images are cropped to by `center_crop`; None leaves images as they
            are. The images of an `.npz` file are never cropped.
        num_threads: The number of threads that read.
        label_column: The column of labels; with it, the name must be that of a data set.

    Raises:
        ValueError: In one line, if the set cannot be read.
    """
    path = Path(name)
    if label_column is not None:
        return DatasetImages(name, split, column, crop, num_threads, label_column)
    if path.suffix == ".npz":
        return ArchiveImages(path)
    if split == DEFAULT_SPLIT and path.is_dir() and is_folder_of_images(path):
        return FolderImages(path, crop, num_threads)
    return DatasetImages(name, split, column, crop, num_threads)
