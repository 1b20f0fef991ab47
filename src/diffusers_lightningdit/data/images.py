# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images with class labels: decoding and cropping, the same for every command, and a data set for torch."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..files import one_line
from ..pixels import from_8_bits
from ..settings import check_choice
from .folders import File
from .rows import ImageRows, UnusableData, check_labels, known_num_classes

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_SIDES_RATIO = 100  # of the longer side to the shorter: resizing comes before cropping, and would make a huge image
MAX_PIXELS = 178_956_970  # of an image, 0.7 GB: Pillow's own limit


class UnusableImage(UnusableData):
    """An image of a data set that cannot be decoded or used; the message is one line."""


# ---------------------------------------------------------------------------------------------------------------------
# One image
# ---------------------------------------------------------------------------------------------------------------------


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale and crop an image to its centre square, [size, size] (the pre-processing of ADM, arXiv 2105.05233).

    Halving with a box filter while the shorter side is at least twice `size` keeps the bicubic step from aliasing.
    Smaller images are enlarged.

    Raises:
        UnusableImage: for an image that is a mere line.
    """
    _check_sides(image)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return plain_center_crop(image, size)


def plain_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale and crop in one bicubic step; Pillow widens the filter where it makes an image smaller."""
    _check_sides(image)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _check_sides(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDES_RATIO * min(image.size):
        raise UnusableImage(
            f"an image has {image.width}x{image.height} pixels; required: sides that differ by a factor of at most "
            f"{MAX_SIDES_RATIO}."
        )


PREPROCESSINGS = {"original": center_crop, "plain": plain_center_crop}


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever Pillow's decoders raise into an `UnusableImage`."""
    try:
        yield
    except UnusableImage:
        raise
    except Exception as error:
        raise UnusableImage(f"{type(error).__name__}: {one_line(error)}") from error


def open_image(image: dict | str | os.PathLike | None, formats: Sequence[str] | None = None) -> Image.Image:
    """Decode an image and turn it upright, as its EXIF data tell: the one way in which images are read.

    Args:
        image: The path of a file; or an image as `datasets` keeps it, `{"bytes": ..., "path": ...}`.
        formats: The formats of Pillow that are accepted; by default all.

    Raises:
        UnusableImage: if it is missing or damaged, or has more than `MAX_PIXELS`.
    """
    with decoding():
        if not isinstance(image, dict):
            image = {"bytes": None, "path": None if image is None else os.fspath(image)}
        path, content = image.get("path"), image.get("bytes")
        if content is None and path is None:
            raise UnusableImage("it is missing")
        if content is None and not os.path.lexists(path) and "://" in path:
            return datasets.Image().decode_example(image)  # streamed from a server
        with Image.open(path if content is None else io.BytesIO(content), formats=formats) as decoded:
            if decoded.width * decoded.height > MAX_PIXELS:
                raise UnusableImage(f"it has {decoded.width}x{decoded.height} pixels; required: at most {MAX_PIXELS}")
            decoded.load()
            return ImageOps.exif_transpose(decoded)


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
    square = np.array(PREPROCESSINGS[preprocessing](to_rgb(image), size))  # uint8 [size, size, 3]
    return from_8_bits(torch.from_numpy(square).permute(2, 0, 1))


def read_pixels(encoded: dict | None, size: int, preprocessing: str = "original") -> torch.Tensor:
    """Decode an image as `open_image` does, and crop it as `image_to_pixels` does."""
    with decoding():
        return image_to_pixels(open_image(encoded), size, preprocessing)


def image_name(encoded: dict | None) -> str:
    """The name of an image for messages: that of its file, if it is known."""
    return File((encoded or {}).get("path") or "an image").name


# ---------------------------------------------------------------------------------------------------------------------
# A data set
# ---------------------------------------------------------------------------------------------------------------------


class ImageDataset(Dataset):
    """A data set of images with a length.

    Items are `{"pixel_values": float32 [3, resolution, resolution] in [-1, 1], "class_labels": int}`.

    Args:
        data, split, image_column, label_column, allow_left_out: As for `ImageRows`.
        resolution: The side of the square images, in pixels.
        preprocessing: One of `PREPROCESSINGS`.
        num_classes: The number that labels without names have to be below.

    Raises:
        ValueError: as `ImageRows`, and for a row without a label; when an item is taken, `UnusableImage` naming the
            image.
    """

    def __init__(
        self,
        data: str,
        resolution: int,
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = "label",
        preprocessing: str = "original",
        num_classes: int | None = None,
        allow_left_out: bool = False,
    ):
        check_choice("preprocessing", preprocessing, PREPROCESSINGS)
        self.images = ImageRows(data, split, image_column, label_column, allow_left_out=allow_left_out)
        self.rows, self.id2label = self.images.rows, self.images.id2label
        self.summary, self.identity = self.images.summary, self.images.identity
        self._num_classes = len(self.id2label) if self.id2label else num_classes
        if label_column is not None:
            check_labels(self.images, self._num_classes)
        self.data = data
        self.resolution = resolution
        self.image_column = image_column
        self.label_column = label_column
        self.preprocessing = preprocessing

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 without labels; raises ValueError if nothing tells it."""
        return 0 if self.label_column is None else known_num_classes(self._num_classes, self.data)

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
