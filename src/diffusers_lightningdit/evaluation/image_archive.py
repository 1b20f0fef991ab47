# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Sets of 8-bit images as one `.npz` file in the layout of ADM's evaluation (arXiv 2105.05233), or a folder of PNGs.

The file holds the array `arr_0`, uint8 [N, height, width, 3]. Both ways one image is in memory at a time, and nothing
that was pickled is read.
"""

import lzma
import math
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from ..files import atomic_write, one_line
from .image_decoding import decode_rgb

ARRAY = "arr_0"
# of a file that is none or is damaged, encrypted, or compressed in an unknown way
READ_ERRORS = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
UNPACKING = "unpacking.partial"  # folder in the output, while not all images are there


# ---------------------------------------------------------------------------------------------------------------------
# .npz
# ---------------------------------------------------------------------------------------------------------------------


def write_npz(path: str | Path, images: Iterable[np.ndarray], num_images: int) -> None:
    """Write `num_images` images, uint8 [height, width, 3] each, under the final name only when all are there.

    Raises:
        ValueError: if an image is of another type or size than the first, or there are more or fewer of them; no file
            is left then.
    """
    shape, count = None, 0
    with (
        atomic_write(path) as partial,
        zipfile.ZipFile(partial, "w") as archive,
        archive.open(f"{ARRAY}.npy", "w", force_zip64=True) as file,
    ):
        for image in images:
            if shape is None:
                shape = image.shape
                header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *shape)}
                npy.write_array_header_1_0(file, header)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != shape:
                raise ValueError(
                    f"image {count} is {image.dtype} of shape {list(image.shape)}, the first of {list(shape)}; "
                    "required: uint8 [height, width, 3], all of one size."
                )
            file.write(np.ascontiguousarray(image).tobytes())
            count += 1
        if count != num_images or count == 0:
            raise ValueError(f"`num_images` is {num_images}, but {count} came; required: as many, at least one.")


class ImageArchive:
    """The images of an `.npz` file, read one after the other.

    Args:
        path: file with `arr_0`, uint8 [N, height, width, 3], compressed or not.

    Attributes:
        num_images: N.
        image_shape: (height, width, 3).

    Raises:
        ValueError: if it is no such file. What was cut off is noticed when it is reached.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        required = f"required: an .npz file with {ARRAY}, uint8 [N, height, width, 3]"
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARRAY}.npy") as file:
                shape, in_columns, dtype = _read_header(file)
        except KeyError as error:
            raise ValueError(f"{path} has no {ARRAY}; {required}.") from error
        except READ_ERRORS as error:
            raise ValueError(f"{path} cannot be read ({one_line(error)}); {required}.") from error
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape or in_columns:
            raise ValueError(f"{path} holds {ARRAY} of {dtype} and shape {list(shape)}; {required}.")
        self.num_images, self.image_shape = shape[0], shape[1:]

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[np.ndarray]:
        size = math.prod(self.image_shape)
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{ARRAY}.npy") as file:
            _read_header(file)
            for index in range(self.num_images):
                try:
                    content = file.read(size)
                except READ_ERRORS as error:  # a checksum fails only at the end
                    raise ValueError(f"{self.path} is damaged ({one_line(error)}); required: a whole file.") from error
                if len(content) < size:
                    raise ValueError(f"{self.path} ends in image {index}; required: {self.num_images} images.")
                yield np.frombuffer(content, np.uint8).reshape(self.image_shape)


def _read_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array; reads nothing that was pickled."""
    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    return read(file)


# ---------------------------------------------------------------------------------------------------------------------
# Folders of PNGs
# ---------------------------------------------------------------------------------------------------------------------


def png_files(folder: str | Path) -> list[Path]:
    """The PNG files of a folder in the order of their names, numbers in names by their value.

    Raises:
        ValueError: if there is no such folder, it is empty, or holds anything else.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"`images` is {str(folder)!r}; required: a folder of PNG files.")
    files = sorted(folder.iterdir(), key=lambda path: [part.zfill(20) for part in re.split(r"(\d+)", path.name)])
    for path in files:
        if path.suffix.lower() != ".png" or not path.is_file():
            raise ValueError(f"`images` is {str(folder)!r}, which holds {path.name}; required: PNG files only.")
    if not files:
        raise ValueError(f"`images` is {str(folder)!r}, which is empty; required: a folder of PNG files.")
    return files


def numbered_name(index: int) -> str:
    """000000.png, 000001.png, ..."""
    return f"{index:06d}.png"


def read_png(path: Path) -> np.ndarray:
    """An RGB or gray PNG file of 8 bits as uint8 [height, width, 3].

    Others would not come back from the archive as they were: conversion to RGB drops transparency.

    Raises:
        ValueError: naming the file, if it is damaged or of another kind.
    """
    return np.asarray(decode_rgb(str(path), lambda: Image.open(path, formats=["PNG"]), ("L", "RGB"), "a PNG file"))


def check_new_file(output: str | Path, suffix: str) -> None:
    """Raise ValueError if `output` exists, cannot exist, or has another suffix."""
    path = Path(output)
    if path.suffix != suffix or path.exists() or not path.parent.is_dir():
        raise ValueError(f"`output` is {str(output)!r}; required: a new {suffix} file in an existing folder.")


def pack_folder(folder: str | Path, path: str | Path) -> int:
    """Write the PNG files of a folder to one `.npz` file; returns their number.

    Raises:
        ValueError: as `png_files`, `read_png` and `write_npz`, naming the file that is to blame.
    """
    check_new_file(path, ".npz")
    files, size = png_files(folder), None

    def read() -> Iterator[np.ndarray]:
        nonlocal size
        for file in files:
            image = read_png(file)
            size = size or image.shape
            if image.shape != size:
                raise ValueError(
                    f"{file} has {image.shape[1]}x{image.shape[0]} pixels, {files[0].name} {size[1]}x{size[0]}; "
                    "required: images of one size."
                )
            yield image

    write_npz(path, read(), len(files))
    return len(files)


def unpack_archive(path: str | Path, folder: str | Path) -> int:
    """Write the images of an `.npz` file as 000000.png, 000001.png, ...; returns their number.

    Raises:
        ValueError: if the file is none of images, or damaged, or `folder` exists and is not empty; no file is left
            then. The next run clears away what a killed one leaves in `UNPACKING`.
        OSError: if they cannot be written.
    """
    archive, folder = ImageArchive(path), Path(folder)
    is_new, partial = not folder.exists(), folder / UNPACKING
    if not is_new and (not folder.is_dir() or any(inside != partial for inside in folder.iterdir())):
        raise ValueError(f"`output` is {str(folder)!r}, which exists; required: a new or an empty folder.")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for index, image in enumerate(archive):
            Image.fromarray(image).save(partial / numbered_name(index))
        for index in range(len(archive)):
            (partial / numbered_name(index)).rename(folder / numbered_name(index))
    except BaseException:  # also of an interruption: all images, or none
        for index in range(len(archive)):
            (folder / numbered_name(index)).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
    return len(archive)
