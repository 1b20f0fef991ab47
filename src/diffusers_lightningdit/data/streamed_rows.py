# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Hugging Face data sets that stay where they are (the Hub), and the samples that their rows are decoded to.

The samples are those of `LatentsDataset` and `ImageDataset`. In which order they are taken: row_stream.py.
"""

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import torch
from datasets import ClassLabel
from torch.utils.data import Dataset

from ..files import one_line, read_json, weights_sha256
from ..models import AutoencoderVAVAE
from .images import UnusableImage, load_rows, read_pixels
from .latent_dataset import check_latent_features, require_finite
from .latent_shards import INFO_FILE

Row = dict | pyarrow.Table  # one row, undecoded


class StreamError(ValueError):
    """A stream that cannot be read on, or a row of it that cannot be used; the message is one line."""


@contextlib.contextmanager
def reading(data: str) -> Iterator[None]:
    """Whatever fails while rows are read becomes a `StreamError` that names the data."""
    try:
        yield
    except StreamError:
        raise
    except Exception as error:  # decompression, parsers and the network raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise StreamError(f"{data} cannot be read on ({reason}); required: sound files, within reach.") from error


class StreamedRows(ABC):
    """Rows that are read in a stream, and what they are decoded to.

    Args:
        data, split: for `datasets.load_dataset`.
        random_flip: whether samples are mirrored with probability 0.5 where they are taken in a random order.

    Attributes:
        rows: undecoded, with only the columns that are needed.
        id2label: names of the labels, or None.
        id_of_label: what to call the labels, if not by themselves; the label is None where the data has none.

    Raises:
        ValueError: in one line, for data that is missing, or has no such columns or no row.
    """

    rows: datasets.IterableDataset
    id2label: dict[int, str] | None
    id_of_label: dict[int | None, int] | None = None

    def __init__(self, data: str, split: str, random_flip: bool):
        self.data = data
        self.random_flip = random_flip
        self._load(load_rows(data, split, streaming=True))
        if not self.first(1):
            raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: at least one.")

    @abstractmethod
    def _load(self, rows: datasets.IterableDataset) -> None:
        """Check the columns, set the attributes."""

    @abstractmethod
    def _decode(self, row: Row, mirrored: bool) -> dict:
        """The sample without its label; raises ValueError if there is none."""

    @abstractmethod
    def _label(self, row: Row) -> tuple[int | None, int]:
        """The label of a row, if it has one, and what it has to be below."""

    def sample(self, row: Row, place: str, mirrored: bool = False) -> dict:
        """What a row is decoded to.

        Args:
            row: of `rows`.
            place: of the row, for messages.
            mirrored: of an image, the mirrored one.

        Raises:
            StreamError: naming the place, for an image or latents that cannot be used, and a label out of range.
        """
        label, limit = self._label(row)
        if limit and (label is None or not 0 <= label < limit):
            raise StreamError(f"{self.data}, {place}, has the label {label}; required: 0 to {limit - 1}.")
        try:
            sample = self._decode(row, mirrored)
        except ValueError as error:
            raise StreamError(f"{self.data}, {place}: {error}") from error
        if self.id_of_label is not None:
            label = self.id_of_label[None if None in self.id_of_label else label]
        return sample if label is None else {**sample, "class_labels": label}

    def first(self, num_rows: int) -> "FirstRows":
        """A data set of the first rows, or of all if there are fewer, which are kept in memory, undecoded."""
        with reading(self.data):
            return FirstRows(self, list(itertools.islice(self.rows, num_rows)))


class FirstRows(Dataset):
    """Rows at the beginning of a stream as a data set with a length; samples are not mirrored."""

    def __init__(self, source: StreamedRows, rows: Sequence[Row]):
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.source.sample(self.rows[index], f"row {index}")


class StreamedImages(StreamedRows):
    """Images: `{"pixel_values": float32 [3, resolution, resolution] in [-1, 1], "class_labels": int}`.

    Args:
        data, resolution, split, image_column, label_column: as of `ImageDataset`.
        random_flip: as of `StreamedRows`.

    Raises:
        ValueError: as `StreamedRows`.
    """

    def __init__(
        self,
        data: str,
        resolution: int,
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = "label",
        random_flip: bool = False,
    ):
        self.resolution = resolution
        self.image_column = image_column
        self.label_column = label_column
        super().__init__(data, split, random_flip)

    def _load(self, rows: datasets.IterableDataset) -> None:
        features = rows.features or {}
        columns = ", ".join(features) or "none that are known"
        if not isinstance(features.get(self.image_column), datasets.Image):
            raise ValueError(f"`image_column` is {self.image_column!r}; required: a column of images among {columns}.")
        self.id2label = None
        if self.label_column is not None:
            if not isinstance(features.get(self.label_column), ClassLabel):
                raise ValueError(
                    f"`label_column` is {self.label_column!r}; required: a ClassLabel column among {columns}."
                )
            self.id2label = dict(enumerate(features[self.label_column].names))
        needed = [column for column in (self.image_column, self.label_column) if column is not None]
        self.rows = rows.cast_column(self.image_column, datasets.Image(decode=False)).select_columns(needed)

    def _label(self, row: Row) -> tuple[int | None, int]:
        return (None, 0) if self.label_column is None else (row[self.label_column], len(self.id2label))

    def _decode(self, row: Row, mirrored: bool) -> dict:
        encoded = row[self.image_column]
        try:
            pixels = read_pixels(encoded, self.resolution)
        except UnusableImage as error:
            raise UnusableImage(f"{(encoded or {}).get('path') or 'its image'}: {error}") from error
        return {"pixel_values": pixels.flip(-1) if mirrored else pixels}


class StreamedLatents(StreamedRows):
    """Raw latents: `{"latents": float32 [C, height, width], "class_labels": int}`.

    Args:
        data, split: of a data set with the columns latents, latents_flip and label, as `cache_latents.py --format
            parquet` writes it.
        random_flip: as of `StreamedRows`; without it, no column `latents_flip` is needed.
        num_classes: labels have to be below it; by default the number of names that came with the data.

    Attributes:
        shape: (C, height, width) of the latents.
        num_classes: labels are below it.

    Raises:
        ValueError: as `StreamedRows`, and where nothing tells the number of classes.
    """

    def __init__(self, data: str, split: str = "train", random_flip: bool = True, num_classes: int | None = None):
        if any(Path(data).glob("*.safetensors")):
            raise ValueError(
                f"`data` is {data!r}, shards of latents; required: no streaming of them, or latents that "
                "cache_latents.py wrote with `--format parquet`."
            )
        self.num_classes = num_classes
        super().__init__(data, split, random_flip)

    def _load(self, rows: datasets.IterableDataset) -> None:
        self.shape, self.id2label = check_latent_features(self.data, rows.features, self.random_flip)
        self.num_classes = self.num_classes or len(self.id2label or ())
        if not self.num_classes:
            raise ValueError(
                f"`num_classes` is not given, and the labels of {self.data} have no names; required: one of them (the "
                "highest label of a stream is not known)."
            )
        needed = ["latents", "latents_flip", "label"] if self.random_flip else ["latents", "label"]
        self.rows = rows.select_columns(needed).with_format("arrow")  # numbers are made of a process's own rows only

    def _label(self, row: Row) -> tuple[int | None, int]:
        return row["label"][0].as_py(), self.num_classes

    def _decode(self, row: Row, mirrored: bool) -> dict:
        column = row["latents_flip" if mirrored else "latents"].combine_chunks()
        numbers = column.storage.flatten().flatten().flatten()  # of nested lists
        latents = torch.from_numpy(np.array(numbers, dtype=np.float32).reshape(self.shape))
        return {"latents": require_finite(latents, "the row")}

    # -- does it belong together? --

    def check_vae(self, vae: AutoencoderVAVAE) -> None:
        """Raise ValueError if the latents were made by another VAE, as `LatentsDataset.check_vae`."""
        if vae.config.latent_channels != self.shape[0]:
            raise ValueError(
                f"{self.data} holds latents of {self.shape[0]} channels; required: the VAE's "
                f"{vae.config.latent_channels}."
            )
        info = Path(self.data) / INFO_FILE  # beside the files of a folder; of a Hub id it isn't fetched
        recorded = read_json(info).get("vae_sha256") if info.exists() else None
        if recorded is not None and recorded != weights_sha256(vae):
            raise ValueError(f"{self.data} was made by a VAE with other weights; required: the VAE it was made by.")


def check_sampled_statistics(latents: torch.Tensor, mean: list[float], std: list[float], data: str) -> None:
    """Raise ValueError if statistics per channel are not those of latents of which these are some.

    Required is an agreement of the means and variances to 6 standard errors of the samples, plus 5 % of the standard
    deviation, since rows of a few files are no random sample of all.

    Args:
        latents: [M, C, height, width], raw, at least one.
        mean, std: [C] each, of the VAE's config.
        data: the name of the latents, for the message.
    """
    values = latents.flatten(2).double()  # [M, C, height width]
    mean, std = torch.tensor(mean).double(), torch.tensor(std).double()
    means, squares = values.mean(2), (values - mean[:, None]).square().mean(2)  # [M, C]
    for measured, expected, unit in ((means, mean, std), (squares, std.square(), 2 * std.square())):
        error = 6 * measured.std(0, unbiased=False) * len(values) ** -0.5 + 0.05 * unit
        distance = (measured.mean(0) - expected).abs()
        if not (distance <= error).all():
            channel = int((distance / error).nan_to_num(torch.inf).argmax())
            raise ValueError(
                f"the VAE's config has mean {mean[channel]:.4g}, std {std[channel]:.4g} for channel {channel}, the "
                f"latents in {data} have mean {means.mean(0)[channel]:.4g}, std {values[:, channel].std():.4g} "
                f"({len(values)} images measured); required: their own statistics."
            )
