# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Sets of 8-bit images that are measured: a folder of files, an `.npz` file, or a data set of Hugging Face `datasets`.

All images of a set have the same size. They are read block by block, a few blocks ahead, in the background.
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

from ..data.images import center_crop, image_name, load_rows
from .image_archive import ImageArchive, numbered_name
from .image_decoding import decode_rgb
from .read_ahead import read_ahead

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DEFAULT_SPLIT = "train"
# What `datasets` goes by in a folder: names of files, names of folders that are splits, files that hold many images.
DATA_SET_FILES = ("README.md", "metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLIT_FOLDERS = ("train", "training", "validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation")
DATA_SUFFIXES = (".parquet", ".arrow", ".tar", ".zip")
BLOCKS_AHEAD = 4


class ImageBlocks(Protocol):
    """A set of images that is read in blocks of neighbours.

    Attributes:
        num_images: N.
    """

    num_images: int

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """The images of each block of indices, uint8 [B, height, width, 3]; the blocks rise."""


def cut(num_images: int, block_size: int) -> list[range]:
    """Indices 0 to N - 1 in blocks, of which the last may be shorter."""
    return [range(start, min(start + block_size, num_images)) for start in range(0, num_images, block_size)]


class ImageSet:
    """A set that is read image by image, in any order.

    Attributes:
        name: for messages.
        num_images: N.
        size: (height, width), by default of the first image.
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
        raise NotImplementedError

    def open_image(self, index: int) -> Image.Image:
        """May raise anything."""
        raise NotImplementedError

    def _read(self, index: int) -> np.ndarray:
        image = decode_rgb(self.image_name(index), lambda: self.open_image(index))
        return np.array(image if self.crop is None else center_crop(image, self.crop))

    def __getitem__(self, index: int) -> np.ndarray:
        """Image `index`, uint8 [height, width, 3]; raises ValueError naming it if it is damaged or of another size."""
        array = self._read(index)
        if array.shape[:2] != self.size:
            raise ValueError(
                f"{self.image_name(index)} has {array.shape[1]}x{array.shape[0]} pixels; required: "
                f"{self.size[1]}x{self.size[0]}, as {self.image_name(0)}."
            )
        return array

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """The images of each block of indices, uint8 [B, height, width, 3]."""

        def read_block(block: range) -> np.ndarray:
            return np.stack([self[index] for index in block])

        yield from read_ahead(read_block, blocks, self.num_threads, max(BLOCKS_AHEAD, self.num_threads))


class FolderImages(ImageSet):
    """The image files of a folder and its subfolders, in the order of their paths.

    Raises:
        ValueError: if it holds other files, or its first image cannot be read.
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
        labels: of the images, int64 [N], if a `label_column` is given.
        num_classes: that these are among.

    Raises:
        ValueError: as `load_rows`, or if there is no such column.
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
    """The images of an `.npz` file (see `ImageArchive`), with what `ImageSet` has for reading in blocks.

    Raises:
        ValueError: as `ImageArchive`; for another size than `crop`, since its images are never cropped.
    """

    def __init__(self, path: str | Path):
        self.archive = ImageArchive(path)
        self.name, self.num_images, self.size = str(path), len(self.archive), tuple(self.archive.image_shape[:2])

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """As `ImageSet.read_blocks`, for blocks in rising order: the file is read from its beginning."""

        def read() -> Iterator[np.ndarray]:
            images, position = iter(self.archive), 0
            for block in blocks:
                skipped = block.start - position
                yield np.stack(list(itertools.islice(images, skipped, skipped + len(block))))
                position = block.stop

        yield from read_ahead(lambda block: block, read(), 1, 1)


def is_folder_of_images(folder: Path) -> bool:
    """Whether the files of a folder are read as they are, and not by `datasets`, as a data set with splits is.

    It holds images, no folder named as a split, no metadata or card of a data set, and fewer files with data, for
    `datasets` reads those that are more frequent, and passes over the others.
    """
    files = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
    num_images = sum(file.suffix.lower() in IMAGE_SUFFIXES for file in files)
    num_data = sum(file.suffix.lower() in DATA_SUFFIXES for file in files)
    is_described = any(file.name in DATA_SET_FILES for file in files)
    has_splits = any(part in SPLIT_FOLDERS for file in files for part in file.parts[:-1])
    return num_images > num_data and not is_described and not has_splits


def open_images(
    name: str,
    split: str = DEFAULT_SPLIT,
    column: str = "image",
    crop: int | None = None,
    num_threads: int = 4,
    label_column: str | None = None,
) -> ImageSet | ArchiveImages:
    """A set of images by its name.

    Args:
        name: an `.npz` file; a folder as in `is_folder_of_images`, of which every file then has to be an image, unless
            another split is asked for; otherwise whatever `datasets.load_dataset` reads, a folder or a Hub id.
        split, column: of a data set.
        crop: side of the squares that images are cropped to by `center_crop`; None takes them as they are. An `.npz`
            file is never cropped.
        num_threads: that read.
        label_column: of a data set, which it then must be.

    Raises:
        ValueError: in one line, if it cannot be read.
    """
    path = Path(name)
    if label_column is not None:
        return DatasetImages(name, split, column, crop, num_threads, label_column)
    if path.suffix == ".npz":
        return ArchiveImages(path)
    if split == DEFAULT_SPLIT and path.is_dir() and is_folder_of_images(path):
        return FolderImages(path, crop, num_threads)
    return DatasetImages(name, split, column, crop, num_threads)
