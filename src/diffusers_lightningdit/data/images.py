# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images with class labels from Hugging Face `datasets`, as pixels that the models take."""

import datasets
import numpy as np
import pyarrow.compute
import torch
from datasets import ClassLabel, load_dataset
from datasets.exceptions import DatasetsError
from PIL import Image
from torch.utils.data import Dataset

from ..files import first_line, one_line
from ..settings import check_choice

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_SIDES_RATIO = 100  # of the longer to the shorter: what is cut away of such an image is made first


class UnusableImage(ValueError):
    """An image of a data set that cannot be decoded or used; the message is one line."""


# ---------------------------------------------------------------------------------------------------------------------
# One image
# ---------------------------------------------------------------------------------------------------------------------


def from_8_bits(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> pixels in [-1, 1], float32, as the original's data sets do."""
    return (images.float() / 255 - 0.5) / 0.5


def to_8_bits(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1] -> uint8, by truncation of clamp(127.5 x + 128, 0, 255), as the original does."""
    return (127.5 * pixels.float() + 128).clamp(0, 255).to(torch.uint8)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The centre square of an image, as [size, size] (the pre-processing of ADM, arXiv 2105.05233).

    Halving with a box filter while the shorter side is at least twice `size` keeps the bicubic step from aliasing.
    Smaller images are enlarged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return plain_center_crop(image, size)


def plain_center_crop(image: Image.Image, size: int) -> Image.Image:
    """The same in one bicubic step; Pillow widens the filter where it makes an image smaller."""
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


PREPROCESSINGS = {"original": center_crop, "plain": plain_center_crop}


def image_to_pixels(image: Image.Image, size: int, preprocessing: str = "original") -> torch.Tensor:
    """An image of any 8-bit mode -> centre square in RGB, float32 [3, size, size] in [-1, 1].

    Args:
        image: any of `EIGHT_BIT_MODES`.
        size: side of the square.
        preprocessing: one of `PREPROCESSINGS`.

    Raises:
        UnusableImage: for an image of more than 8 bits a channel, which Pillow's conversion to RGB would clip, and for
            one that is a mere line.
    """
    if image.mode not in EIGHT_BIT_MODES:
        raise UnusableImage(f"an image has mode {image.mode!r}; required: one of {', '.join(EIGHT_BIT_MODES)}.")
    if max(image.size) > MAX_SIDES_RATIO * min(image.size):
        raise UnusableImage(
            f"an image has {image.width}x{image.height} pixels; required: sides that differ by a factor of at most "
            f"{MAX_SIDES_RATIO}."
        )
    square = PREPROCESSINGS[preprocessing](image.convert("RGB"), size)
    pixels = torch.from_numpy(np.array(square))  # uint8 [size, size, 3]
    return from_8_bits(pixels.permute(2, 0, 1))


def read_pixels(encoded: dict | None, size: int, preprocessing: str = "original") -> torch.Tensor:
    """An image as `datasets` keeps it, `{"bytes": ..., "path": ...}` -> as `image_to_pixels`.

    Raises:
        UnusableImage: if it is missing, damaged, or of a kind that `image_to_pixels` refuses.
    """
    try:
        return image_to_pixels(datasets.Image().decode_example(encoded), size, preprocessing)
    except UnusableImage:
        raise
    except Exception as error:  # Pillow's decoders raise anything
        raise UnusableImage(f"{type(error).__name__}: {one_line(error)}") from error


def image_name(encoded: dict | None, index: int) -> str:
    """What to call an image in a message: its file, where that is known, and its row."""
    return f"{(encoded or {}).get('path') or 'an image'} (row {index})"


# ---------------------------------------------------------------------------------------------------------------------
# A data set of images
# ---------------------------------------------------------------------------------------------------------------------


def load_rows(data: str, split: str, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
    """`datasets.load_dataset` of a local folder (imagefolder, parquet, webdataset, ...) or a Hub id.

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


class ImageDataset(Dataset):
    """A data set of images that `datasets.load_dataset` reads: a local folder (imagefolder, parquet, ...) or a Hub id.

    Items are `{"pixel_values": float32 [3, resolution, resolution] in [-1, 1], "class_labels": int}`.

    Args:
        data: local folder or Hub id.
        resolution: side of the square images.
        split: name of the split.
        image_column: name of the column of images.
        label_column: name of a `ClassLabel` column, whose names become `id2label`; None for images without labels.
        preprocessing: one of `PREPROCESSINGS`.

    Raises:
        ValueError: if the data cannot be read, or a column is missing or of another kind; when an item is taken,
            `UnusableImage` naming the image.
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
        rows = load_rows(data, split)
        columns = ", ".join(rows.column_names)
        if not isinstance(rows.features.get(image_column), datasets.Image):
            raise ValueError(f"`image_column` is {image_column!r}; required: a column of images among {columns}.")
        if len(rows) == 0:
            raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: images.")
        self.id2label = None
        if label_column is not None:
            if not isinstance(rows.features.get(label_column), ClassLabel):
                raise ValueError(f"`label_column` is {label_column!r}; required: a ClassLabel column among {columns}.")
            self.id2label = dict(enumerate(rows.features[label_column].names))
            labels = rows.data.column(label_column)
            smallest, largest = pyarrow.compute.min_max(labels).as_py().values()
            if labels.null_count or not 0 <= smallest <= largest < len(self.id2label):
                raise ValueError(
                    f"`label_column` {label_column!r} has {labels.null_count} rows without a label and labels from "
                    f"{smallest} to {largest}; required: 0 to {len(self.id2label) - 1} in every row."
                )
        self.data = data
        self.rows = rows.cast_column(image_column, datasets.Image(decode=False))
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
            raise UnusableImage(f"{self.data}, {image_name(encoded, index)}: {error}") from error
        if self.label_column is not None:
            item["class_labels"] = row[self.label_column]
        return item
