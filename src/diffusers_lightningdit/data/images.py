# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images with class labels: decoding and cropping, the same for every command, and a data set for torch."""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets.utils.file_utils import xopen
from PIL import ExifTags, Image, ImageOps
from torch.utils.data import Dataset

from ..files import one_line
from ..pixels import from_8_bits, height_and_width
from ..settings import check_choice
from .folders import File
from .rows import ImageRows, UnusableData, check_labels, known_num_classes

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MAX_SIDES_RATIO = 100  # from that of the crop: resizing comes before cropping, and would make a huge image
MAX_PIXELS = 178_956_970  # of an image, 0.7 GB: Pillow's own limit
LYING = (5, 6, 7, 8)  # EXIF's orientations in which width and height are exchanged


class UnusableImage(UnusableData):
    """An image of a data set that cannot be decoded or used; the message is one line."""


# ---------------------------------------------------------------------------------------------------------------------
# One image
# ---------------------------------------------------------------------------------------------------------------------


def center_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Scale and crop an image to its centre (the pre-processing of ADM, arXiv 2105.05233).

    Halving with a box filter while both sides are at least twice those of the crop keeps the bicubic step from
    aliasing. Smaller images are enlarged.

    Args:
        image: The image.
        size: The size of the crop in pixels, (height, width) or one number for both.

    Raises:
        UnusableImage: for an image that is a mere line.
    """
    height, width = height_and_width(size)
    _check_sides(image, height, width)
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    return plain_center_crop(image, size)


def plain_center_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Scale and crop in one bicubic step; Pillow widens the filter where it makes an image smaller."""
    height, width = height_and_width(size)
    _check_sides(image, height, width)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _check_sides(image: Image.Image, height: int, width: int) -> None:
    shorter, longer = sorted((image.width * height, image.height * width))
    if longer > MAX_SIDES_RATIO * shorter:
        raise UnusableImage(
            f"an image has {image.width}x{image.height} pixels; required: sides that differ by a factor of at most "
            f"{MAX_SIDES_RATIO}{'' if height == width else f' from {width}:{height}'}."
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
            with xopen(path, "rb") as streamed:  # from a server
                content = streamed.read()
        with Image.open(path if content is None else io.BytesIO(content), formats=formats) as decoded:
            if decoded.width * decoded.height > MAX_PIXELS:
                raise UnusableImage(f"it has {decoded.width}x{decoded.height} pixels; required: at most {MAX_PIXELS}")
            decoded.load()
            return ImageOps.exif_transpose(decoded)


def upright_size(path: str | os.PathLike, modes: Sequence[str] = EIGHT_BIT_MODES) -> tuple[int, int]:
    """The (width, height) that `open_image` finds, of a file's header alone where that tells them.

    Raises:
        UnusableImage: as `open_image`, and for an image of another mode than one of `modes`.
    """
    with decoding(), Image.open(path) as image:
        if image.mode not in modes:
            raise UnusableImage(f"an image has mode {image.mode!r}; required: one of {', '.join(modes)}.")
        width, height = image.size
        # Of a PNG file the EXIF data may come after the pixels.
        is_turned = width != height and image.getexif().get(ExifTags.Base.Orientation, 1) in LYING
    return (height, width) if is_turned else (width, height)


def to_rgb(image: Image.Image, modes: Sequence[str] = EIGHT_BIT_MODES, name: str = "an image") -> Image.Image:
    """Convert an image of one of the `modes` to RGB; Pillow's conversion would clip more than 8 bits a channel.

    Raises:
        UnusableImage: for an image of another mode.
    """
    if image.mode not in modes:
        raise UnusableImage(f"{name} has mode {image.mode!r}; required: one of {', '.join(modes)}.")
    return image.convert("RGB")


def image_to_pixels(
    image: Image.Image, size: int | tuple[int, int], preprocessing: str = "original", channels: int = 3
) -> torch.Tensor:
    """Crop an image to its centre: float32 [channels, height, width] in [-1, 1].

    Args:
        image: An image of one of `EIGHT_BIT_MODES`.
        size: The size of the crop in pixels, (height, width) or one number for both.
        preprocessing: One of `PREPROCESSINGS`.
        channels: 3 for RGB, or 1 for the luma of ITU-R BT.601.

    Raises:
        UnusableImage: for an image of another mode, and for one that is a mere line.
    """
    image = to_rgb(image)
    cropped = np.array(PREPROCESSINGS[preprocessing](image if channels == 3 else image.convert("L"), size))
    return from_8_bits(torch.from_numpy(cropped).view(*cropped.shape[:2], channels).permute(2, 0, 1))


def read_pixels(
    encoded: dict | None, size: int | tuple[int, int], preprocessing: str = "original", channels: int = 3
) -> torch.Tensor:
    """Decode an image as `open_image` does, and crop it as `image_to_pixels` does."""
    with decoding():
        return image_to_pixels(open_image(encoded), size, preprocessing, channels)


def image_name(encoded: dict | None) -> str:
    """The name of an image for messages: that of its file, if it is known."""
    return File((encoded or {}).get("path") or "an image").name


# ---------------------------------------------------------------------------------------------------------------------
# A data set
# ---------------------------------------------------------------------------------------------------------------------


class ImageDataset(ImageRows, Dataset):
    """A data set of images with a length.

    Items are `{"pixel_values": float32 [channels, height, width] in [-1, 1], "class_labels": int}`.

    Args:
        data, split, image_column, label_column, allow_left_out: As for `ImageRows`.
        resolution: The size of the images in pixels, (height, width) or one number for both.
        preprocessing: One of `PREPROCESSINGS`.
        num_classes: The number that labels without names have to be below.
        channels: 3 for RGB, 1 for grey.

    Raises:
        ValueError: as `ImageRows`, and for a row without a label; when an item is taken, `UnusableImage` naming the
            image.
    """

    def __init__(
        self,
        data: str,
        resolution: int | tuple[int, int],
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = "label",
        preprocessing: str = "original",
        num_classes: int | None = None,
        allow_left_out: bool = False,
        channels: int = 3,
    ):
        check_choice("preprocessing", preprocessing, PREPROCESSINGS)
        super().__init__(data, split, image_column, label_column, allow_left_out=allow_left_out)
        self._num_classes = len(self.id2label) if self.id2label else num_classes
        if label_column is not None:
            check_labels(self, self._num_classes)
        self.resolution = resolution
        self.channels = channels
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
            item = {"pixel_values": read_pixels(encoded, self.resolution, self.preprocessing, self.channels)}
        except UnusableImage as error:
            raise UnusableImage(f"{self.data}, {image_name(encoded)} (row {index}): {error}") from error
        if self.label_column is not None:
            item["class_labels"] = row[self.label_column]
        return item
