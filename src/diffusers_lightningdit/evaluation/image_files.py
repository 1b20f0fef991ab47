# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Files of 8-bit images: decoding to RGB, numbered names, and writing PNG files in the background."""

import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..data.images import EIGHT_BIT_MODES, UnusableImage, open_image, to_rgb
from ..files import atomic_write

MARK = "drawn_as"
NUMBERED = re.compile(r"\d{6,}\.png")  # what `numbered_name` gives


def numbered_name(index: int) -> str:
    """The file name of image `index` of a set: 000000.png, 000001.png, ..."""
    return f"{index:06d}.png"


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def decode_rgb(
    name: str,
    image: dict | str | os.PathLike | None,
    modes: Sequence[str] = EIGHT_BIT_MODES,
    formats: Sequence[str] | None = None,
    kind: str = "an undamaged image",
) -> Image.Image:
    """Decode an image and convert it to RGB.

    Args:
        name: The name of the image, for messages.
        image: The path of a file, or an image as `datasets` keeps it.
        modes: The modes of Pillow that are accepted. An image of another mode, for example of more than 8 bits a
            channel, would be clipped by Pillow's conversion to RGB.
        formats: The formats of Pillow that are accepted; by default all.
        kind: The kind of file that is required, for messages.

    Raises:
        ValueError: If the image is damaged or has another mode; the message names it.
    """
    try:
        opened = open_image(image, formats)
    except UnusableImage as error:
        raise ValueError(f"{name} cannot be read ({error}); required: {kind}.") from error
    return to_rgb(opened, modes, name)


def read_png(path: Path) -> np.ndarray:
    """Read an RGB or grey PNG file of 8 bits as uint8 [height, width, 3].

    Other modes are refused, since conversion to RGB would lose information, such as transparency.

    Raises:
        ValueError: If the file is damaged or of another kind; the message names it.
    """
    return np.asarray(decode_rgb(str(path), path, ("L", "RGB"), ["PNG"], "a PNG file"))


def png_files(folder: str | Path) -> list[Path]:
    """List the PNG files of a folder in the order of their names, with numbers in names compared by value.

    Raises:
        ValueError: If there is no such folder, it is empty, or it holds anything else.
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


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


class ImageWriter:
    """Writes PNG files in background threads. Each file has its final name only when it is complete.

    Used as a context manager, it waits at the end until all files are written.

    Args:
        num_threads: The number of threads that compress and write.
        max_waiting: The largest number of images in memory; `write` waits while there are more.

    Attributes:
        seconds_waited: The time that `write` has waited in all, that is, how long writing has delayed computing.
    """

    def __init__(self, num_threads: int = 4, max_waiting: int = 256):
        self.seconds_waited = 0.0
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="png")
        self._room = Semaphore(max_waiting)
        self._error: BaseException | None = None

    def write(self, path: Path, image: np.ndarray, mark: str | None = None) -> None:
        """Start to write an image, uint8 [height, width, 3], as `write_png`.

        Raises:
            OSError: If an earlier image could not be written.
        """
        if self._error is not None:
            raise self._error
        if not self._room.acquire(blocking=False):
            start = time.perf_counter()
            self._room.acquire()
            self.seconds_waited += time.perf_counter() - start
        self._threads.submit(write_png, path, image, mark).add_done_callback(self._done)

    def _done(self, future: Future) -> None:
        self._error = self._error or future.exception()
        self._room.release()

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._threads.shutdown(wait=True)
        if self._error is not None and exception[0] is None:
            raise self._error


def write_png(path: Path, image: np.ndarray, mark: str | None = None) -> None:
    """Write an image, uint8 [height, width, 3]; the file has its name only when it is complete.

    Args:
        path: The file.
        image: The image.
        mark: A text for the file's header, under the keyword `MARK`.
    """
    header = PngInfo()
    if mark is not None:
        header.add_text(MARK, mark)
    with atomic_write(path, sync=False) as partial:
        # The fastest compression level; photographs would be 7 to 12 % smaller at the default level.
        Image.fromarray(image).save(partial, format="PNG", compress_level=1, pnginfo=header)
