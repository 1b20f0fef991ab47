# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Sets of 8-bit images as one `.npz` file in the layout of ADM's evaluation (arXiv 2105.05233), packed and unpacked.

The file holds the array `arr_0`, uint8 [N, height, width, 3]. Reading and writing keep one image in memory at a time,
and pickled arrays are refused.
"""

import contextlib
import math
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ..files import HOLDER_FILE, LOCK_FILE, atomic_write, one_line
from ..locks import locked
from .image_files import NUMBERED, numbered_name, png_files, read_png, write_png

ARRAY = "arr_0"
MAX_COMPRESSION = 1040  # of deflate: https://www.zlib.net/zlib_tech.html tells of 1032
MAX_REASON = 200  # characters of what a library says about a damaged file
UNPACKING = "unpacking.partial"  # the folder that images are unpacked to before all of them are moved to the output


# ---------------------------------------------------------------------------------------------------------------------
# One file
# ---------------------------------------------------------------------------------------------------------------------


def write_npz(path: str | Path, images: Iterable[np.ndarray], num_images: int) -> None:
    """Write images to an `.npz` file, which has its final name only when it is complete.

    Args:
        path: The file.
        images: Images uint8 [height, width, 3], all of one size.
        num_images: The number of images.

    Raises:
        ValueError: If an image has another type or size than the first, or there are more or fewer of them. No file is
            left in this case.
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
        path: A file with the array `arr_0`, uint8 [N, height, width, 3], compressed or not.

    Attributes:
        num_images: The number N of images.
        size: Their (height, width).

    Raises:
        ValueError: If it is no such file. A file that was cut off is noticed when reading reaches its end.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        required = f"required: an .npz file with {ARRAY}, uint8 [N, height, width, 3]"
        with open_array(path, ARRAY, required) as (_, shape, is_fortran_order, dtype):
            pass
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or is_fortran_order:
            raise ValueError(f"{path} holds {ARRAY} of {dtype} and shape {list(shape)}; {required}.")
        self.num_images, self.size = shape[0], tuple(shape[1:3])

    def __iter__(self) -> Iterator[np.ndarray]:
        size = 3 * math.prod(self.size)
        with open_array(self.path, ARRAY, "required: a whole file") as (file, *_):
            for index in range(self.num_images):
                content = read_bytes(self.path, file, size)
                if len(content) < size:
                    raise ValueError(f"{self.path} ends in image {index}; required: {self.num_images} images.")
                yield np.frombuffer(content, np.uint8).reshape(*self.size, 3)


@contextlib.contextmanager
def open_array(
    path: str | Path, name: str, required: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
    """Open an array of an `.npz` file for reading, without unpickling anything.

    Yields:
        The file at the first value of the array, the array's shape, whether it is in Fortran order, and its type.

    Raises:
        ValueError: If the file cannot be read, has no such array, or an empty one, or the header tells of more or fewer
            values than the file can hold. Nothing is unpacked before.
    """
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            member = archive.getinfo(f"{name}.npy")
            file = stack.enter_context(archive.open(member))
            read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            shape, is_fortran_order, dtype = read_header(file)
        except KeyError as error:
            raise ValueError(f"{path} has no {name}; {required}.") from error
        except Exception as error:  # a file that is no archive, damaged, encrypted, nested by the thousand, ...
            raise ValueError(f"{path} cannot be read ({one_line(error)[:MAX_REASON]}); {required}.") from error
        size = math.prod(shape) * dtype.itemsize
        is_empty = not all(isinstance(side, int) and side > 0 for side in shape)
        packed = min(member.compress_size, Path(path).stat().st_size)
        if is_empty or not (dtype.hasobject or size == member.file_size - file.tell() <= MAX_COMPRESSION * packed):
            raise ValueError(
                f"{path} holds {name} of {dtype} and shape {list(shape)}, in {packed} bytes; {required}, not empty and "
                "of the size that it tells."
            )
        yield file, shape, is_fortran_order, dtype


def read_bytes(path: str | Path, file: IO[bytes], size: int) -> bytes:
    """Read from an open array, fewer bytes at its end; raises ValueError for a damaged file."""
    try:
        return file.read(size)
    except Exception as error:  # a wrong checksum is noticed only at the end of the file
        raise ValueError(f"{path} is damaged ({one_line(error)[:MAX_REASON]}); required: a whole file.") from error


def read_array(path: str | Path, name: str, required: str) -> np.ndarray:
    """Read a whole array of floating-point numbers as float64; raises ValueError as `open_array`, or for others."""
    with open_array(path, name, required) as (file, shape, is_fortran_order, dtype):
        if dtype.kind != "f":
            raise ValueError(f"{path} holds {name} of {dtype}; {required}.")
        values = np.frombuffer(read_bytes(path, file, -1), dtype).astype(np.float64)
    if values.size != math.prod(shape) or not np.isfinite(values).all():
        raise ValueError(f"{path} holds {name} with NaN or infinity, or ends in it; {required}.")
    return values.reshape(shape, order="F" if is_fortran_order else "C")


# ---------------------------------------------------------------------------------------------------------------------
# To and from a folder of PNG files
# ---------------------------------------------------------------------------------------------------------------------


def check_new_file(output: str | Path, suffix: str) -> None:
    """Raise ValueError if `output` exists, has another suffix, or lies in a folder that does not exist."""
    path = Path(output)
    if path.suffix != suffix or path.exists() or not path.parent.is_dir():
        raise ValueError(f"`output` is {str(output)!r}; required: a new {suffix} file in an existing folder.")


def pack_folder(folder: str | Path, path: str | Path) -> int:
    """Write the PNG files of a folder to one `.npz` file.

    Returns:
        The number of images.

    Raises:
        ValueError: As `png_files`, `read_png` and `write_npz`; the message names the file at fault.
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
    """Write the images of an `.npz` file as 000000.png, 000001.png, ... to a folder.

    Returns:
        The number of images.

    Raises:
        ValueError: If the file holds no images or is damaged, or if `folder` exists and is not empty. No file is left
            in this case. Files of a killed run in the folder `UNPACKING` are removed by the next run.
        OSError: If the images cannot be written.
    """
    archive, folder = ImageArchive(path), Path(folder)
    _check_unpacked(folder)
    partial = folder / UNPACKING
    with locked(folder):
        _check_unpacked(folder)
        for left in folder.glob("*.png"):
            left.unlink()
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for index, image in enumerate(archive):
                write_png(partial / numbered_name(index), image)
            for index in range(archive.num_images):
                (partial / numbered_name(index)).rename(folder / numbered_name(index))
        except BaseException:  # all images or none, also after an interruption
            for index in range(archive.num_images):
                (folder / numbered_name(index)).unlink(missing_ok=True)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return archive.num_images


def _check_unpacked(folder: Path) -> None:
    """Raise ValueError if a folder holds anything but what a killed run of `unpack_archive` has left there."""
    was_killed = (folder / UNPACKING).is_dir()
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    others = set(names) - {UNPACKING, LOCK_FILE, HOLDER_FILE}
    if (folder.exists() and not folder.is_dir()) or not all(was_killed and NUMBERED.fullmatch(name) for name in others):
        raise ValueError(f"`output` is {str(folder)!r}, which exists; required: a new or an empty folder.")
