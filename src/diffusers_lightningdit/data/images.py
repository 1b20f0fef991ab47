# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images with class labels from Hugging Face `datasets`: the columns, decoding, cropping, and a data set for torch."""

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow.compute
import torch
from datasets import ClassLabel, Value, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image
from torch.utils.data import Dataset

from ..files import first_line, one_line
from ..pixels import from_8_bits
from ..settings import check_choice

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_SIDES_RATIO = 100  # of the longer side to the shorter: resizing comes before cropping, and would make a huge image


class UnusableImage(ValueError):
    """An image of a data set that cannot be decoded or used; the message is one line."""


# ---------------------------------------------------------------------------------------------------------------------
# One image
# ---------------------------------------------------------------------------------------------------------------------


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale and crop an image to its centre square, [size, size] (the pre-processing of ADM, arXiv 2105.05233).

    Halving with a box filter while the shorter side is at least twice `size` keeps the bicubic step from aliasing.
    Smaller images are enlarged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return plain_center_crop(image, size)


def plain_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale and crop in one bicubic step; Pillow widens the filter where it makes an image smaller."""
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


PREPROCESSINGS = {"original": center_crop, "plain": plain_center_crop}


def to_rgb(image: Image.Image, modes: Sequence[str] = EIGHT_BIT_MODES, name: str = "an image") -> Image.Image:
    """Convert an image of one of the `modes` to RGB; Pillow's conversion would clip more than 8 bits a channel.

    Raises:
        UnusableImage: for an image of another mode.
    """
    if image.mode not in modes:
        raise UnusableImage(f"{name} has mode {image.mode!r}; required: one of {', '.join(modes)}.")
    return image.convert("RGB")


def image_to_pixels(image: Image.Image, size: int, preprocessing: str = "original") -> torch.Tensor:
    """Crop an image to its centre square: float32 [3, size, size], RGB in [-1, 1].

    Args:
        image: An image of one of `EIGHT_BIT_MODES`.
        preprocessing: One of `PREPROCESSINGS`.

    Raises:
        UnusableImage: for an image of another mode, and for one that is a mere line.
    """
    if max(image.size) > MAX_SIDES_RATIO * min(image.size):
        raise UnusableImage(
            f"an image has {image.width}x{image.height} pixels; required: sides that differ by a factor of at most "
            f"{MAX_SIDES_RATIO}."
        )
    square = np.array(PREPROCESSINGS[preprocessing](to_rgb(image), size))  # uint8 [size, size, 3]
    return from_8_bits(torch.from_numpy(square).permute(2, 0, 1))


def read_pixels(encoded: dict | None, size: int, preprocessing: str = "original") -> torch.Tensor:
    """Decode an image as `datasets` keeps it, `{"bytes": ..., "path": ...}`, and crop it as `image_to_pixels` does.

    Raises:
        UnusableImage: if it is missing, damaged, or refused by `image_to_pixels`.
    """
    try:
        return image_to_pixels(datasets.Image().decode_example(encoded), size, preprocessing)
    except UnusableImage:
        raise
    except Exception as error:  # Pillow's decoders raise anything
        raise UnusableImage(f"{type(error).__name__}: {one_line(error)}") from error


def image_name(encoded: dict | None) -> str:
    """The name of an image for messages: that of its file, if it is known."""
    return (encoded or {}).get("path") or "an image"


# ---------------------------------------------------------------------------------------------------------------------
# The rows of a data set
# ---------------------------------------------------------------------------------------------------------------------


def load_rows(data: str, split: str, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """Call `datasets.load_dataset` for a local folder (imagefolder, parquet, webdataset, ...) or a Hub id.

    Raises:
        ValueError: in one line, if it is not found, not reachable, damaged, or has no such split.
    """
    try:
        return load_dataset(data, split=split, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:  # `datasets` says what is wrong
        raise ValueError(
            f"`data` is {data!r}, split {split!r}; required: a folder or Hub id that `datasets` reads "
            f"({first_line(error)})."
        ) from error


def load_image_rows(
    data: str,
    split: str,
    image_column: str,
    label_column: str | None,
    streaming: bool = False,
    numbers_as_labels: bool = False,
) -> tuple[datasets.Dataset | datasets.IterableDataset, dict[int, str] | None]:
    """Load a data set of images, and check its columns.

    Args:
        data, split, streaming: As for `load_rows`.
        image_column: The name of the column of images.
        label_column: The name of the `ClassLabel` column; None for images without labels.
        numbers_as_labels: Accept a column of whole numbers as labels, too.

    Returns:
        (rows, id2label): the rows with these columns only and images undecoded; the names of the labels, None where
        they have no names.

    Raises:
        ValueError: if the data cannot be read or has no row, or a column is missing or of another kind. (Whether a
            stream has a row is known only when it is read.)
    """
    rows = load_rows(data, split, streaming)
    features = rows.features or {}
    columns = ", ".join(features) or "none that are known"
    if not isinstance(features.get(image_column), datasets.Image):
        raise ValueError(f"`image_column` is {image_column!r}; required: a column of images among {columns}.")
    id2label = None
    if label_column is not None:
        label = features.get(label_column)
        if isinstance(label, ClassLabel):
            id2label = dict(enumerate(label.names))
        elif not (numbers_as_labels and isinstance(label, Value) and "int" in label.dtype):
            kinds = "column of class labels or whole numbers" if numbers_as_labels else "ClassLabel column"
            raise ValueError(f"`label_column` is {label_column!r}; required: a {kinds} among {columns}.")
    if not streaming and len(rows) == 0:
        raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: images.")
    needed = [column for column in (image_column, label_column) if column is not None]
    return rows.select_columns(needed).cast_column(image_column, datasets.Image(decode=False)), id2label


def check_labels(rows: datasets.Dataset, label_column: str, num_classes: int) -> None:
    """Raise ValueError if a row has no label, or one that is not below `num_classes`."""
    labels = rows.data.column(label_column)
    smallest, largest = pyarrow.compute.min_max(labels).as_py().values()
    if labels.null_count or not 0 <= smallest <= largest < num_classes:
        raise ValueError(
            f"`label_column` {label_column!r} has {labels.null_count} rows without a label and labels from {smallest} "
            f"to {largest}; required: 0 to {num_classes - 1} in every row."
        )


class ImageDataset(Dataset):
    """A data set of images that `datasets.load_dataset` reads: a local folder (imagefolder, parquet, ...) or a Hub id.

    Items are `{"pixel_values": float32 [3, resolution, resolution] in [-1, 1], "class_labels": int}`.

    Args:
        data, split, image_column, label_column: As for `load_image_rows`.
        resolution: The side of the square images, in pixels.
        preprocessing: One of `PREPROCESSINGS`.

    Raises:
        ValueError: as `load_image_rows`; when an item is taken, `UnusableImage` naming the image.
    """

    def __init__(
        self,
        data: str,
        resolution: int,
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = "label",
        preprocessing: str = "original",
    ):
        check_choice("preprocessing", preprocessing, PREPROCESSINGS)
        self.rows, self.id2label = load_image_rows(data, split, image_column, label_column)
        if label_column is not None:
            check_labels(self.rows, label_column, len(self.id2label))
        self.data = data
        self.resolution = resolution
        self.image_column = image_column
        self.label_column = label_column
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        encoded = row[self.image_column]
        try:
            item = {"pixel_values": read_pixels(encoded, self.resolution, self.preprocessing)}
        except UnusableImage as error:
            raise UnusableImage(f"{self.data}, {image_name(encoded)} (row {index}): {error}") from error
        if self.label_column is not None:
            item["class_labels"] = row[self.label_column]
        return item
