# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Hugging Face data sets that are read where they are (on the Hub, say), and the samples that their rows decode to.

The samples are those of a data set with a length, such as `ImageDataset`. row_stream.py decides in which order they are
taken.
"""

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow
from torch.utils.data import Dataset

from ..files import one_line
from ..keyed_random import is_flipped
from .images import UnusableImage, image_name, read_pixels
from .rows import ImageRows, Source, UnusableData, describe_classes

Row = dict | pyarrow.Table  # one row, undecoded


class StreamError(UnusableData):
    """A stream that cannot be read on, or a row of it that cannot be used; the message is one line."""


@contextlib.contextmanager
def reading(data: str) -> Iterator[None]:
    """Turn whatever fails while rows are read into a `StreamError` that names the data."""
    try:
        yield
    except StreamError:
        raise
    except Exception as error:  # decompression, parsers and the network raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise StreamError(f"{data} cannot be read on ({reason}); required: sound files, within reach.") from error


class StreamedRows(ABC):
    """Rows that are read in a stream, and the samples that they decode to.

    Args:
        data, split: As for `open_source`.
        random_flip: Whether samples are mirrored with probability 0.5 where they are taken in a random order.

    Attributes:
        rows: The undecoded rows, with only the columns that are needed.
        source: The files that they come from.
        id2label: The names of the labels, or None.
        id_of_label: Other numbers for the labels, by label; the label is None where the data has none.

    Raises:
        ValueError: in one line, for data that is missing, or has no such columns or no row.
    """

    rows: datasets.IterableDataset
    source: Source
    id2label: dict[int, str] | None
    id_of_label: dict[int | None, int] | None = None

    def __init__(self, data: str, split: str, random_flip: bool):
        self.data = data
        self.random_flip = random_flip
        self._load(data, split)
        if not self.first(1):
            raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: at least one.")

    @abstractmethod
    def _load(self, data: str, split: str) -> None:
        """Open the stream, check its columns, and set the attributes."""

    def summary(self) -> str:
        """One line: the files and the classes."""
        return f"{self.data}: rows of {len(self.source.files)} files, {describe_classes(None, self.id2label)}"

    def data_sha256(self) -> str:
        """The hash of what the rows are known by, without times, so that a resumed run can go on with a copy."""
        return self.source.sha256()

    def variation(self, seed: int, epoch: int, index: int) -> Any:
        """The argument of `sample` that varies a sample of an epoch in training, a function of these numbers alone."""
        return self.random_flip and is_flipped(seed, epoch, index)

    @abstractmethod
    def _decode(self, row: Row, variation: Any) -> dict:
        """Decode a row to a sample without its label; raises ValueError if that cannot be done."""

    @abstractmethod
    def _label(self, row: Row) -> tuple[int | None, int]:
        """The label of a row, if it has one, and the number that it has to be below."""

    def sample(self, row: Row, place: str, variation: Any = None) -> dict:
        """Decode a row of `rows`.

        Args:
            row: The row.
            place: Where it stands, for messages.
            variation: What `variation` returned; None leaves the sample as it is.

        Raises:
            StreamError: naming the row's `place`, for an image or latents that cannot be used, or a label out of range.
        """
        label, limit = self._label(row)
        if limit and (label is None or not 0 <= label < limit):
            raise StreamError(f"{self.data}, {place}, has the label {label}; required: 0 to {limit - 1}.")
        try:
            sample = self._decode(row, variation)
        except ValueError as error:
            raise StreamError(f"{self.data}, {place}: {error}") from error
        if self.id_of_label is not None:
            label = self.id_of_label[None if None in self.id_of_label else label]
        return sample if label is None else {**sample, "class_labels": label}

    def first(self, num_rows: int) -> "FirstRows":
        """The first rows, or all if there are fewer, as a data set that keeps them in memory, undecoded."""
        with reading(self.data):
            return FirstRows(self, list(itertools.islice(self.rows, num_rows)))


class FirstRows(Dataset):
    """Rows at the beginning of a stream as a data set with a length; samples are not varied."""

    def __init__(self, source: StreamedRows, rows: Sequence[Row]):
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.source.sample(self.rows[index], f"row {index}")


class StreamedImages(StreamedRows):
    """Images, with the items and arguments of `ImageDataset`; `random_flip` as for `StreamedRows`."""

    def __init__(
        self,
        data: str,
        resolution: int | tuple[int, int],
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = "label",
        random_flip: bool = False,
        allow_left_out: bool = False,
        channels: int = 3,
    ):
        self.allow_left_out = allow_left_out
        self.resolution = resolution
        self.channels = channels
        self.image_column = image_column
        self.label_column = label_column
        super().__init__(data, split, random_flip)

    def _load(self, data: str, split: str) -> None:
        images = ImageRows(data, split, self.image_column, self.label_column, True, self.allow_left_out)
        self.rows, self.id2label, self.source = images.rows, images.id2label, images.source
        if self.label_column is not None and self.id2label is None:
            raise ValueError(
                f"`label_column` is {self.label_column!r}, whose labels have no names; required of a stream: a "
                f"ClassLabel column among {', '.join(images.source.rows.features)}."
            )
        self.summary = images.summary

    def _label(self, row: Row) -> tuple[int | None, int]:
        return (None, 0) if self.label_column is None else (row[self.label_column], len(self.id2label))

    def _decode(self, row: Row, mirrored: bool | None) -> dict:
        encoded = row[self.image_column]
        try:
            pixels = read_pixels(encoded, self.resolution, channels=self.channels)
        except UnusableImage as error:
            raise UnusableImage(f"{image_name(encoded)}: {error}") from error
        return {"pixel_values": pixels.flip(-1) if mirrored else pixels}
