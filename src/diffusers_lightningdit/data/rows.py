# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The rows of a data set: of a local folder, of files that Hugging Face `datasets` reads, or of the Hub.

Every command and script that reads images or latents opens them here.
"""

import dataclasses
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable
from glob import has_magic

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets import ClassLabel, ReadInstruction, Value, load_dataset_builder
from datasets.exceptions import DatasetsError

from ..files import first_line
from .folders import File, FolderContent, first_names, nfc, read_metadata, walk

NUM_STREAM_PARTS = 1024  # that the images of a folder are streamed in
PREVIEW = "an image beside files of rows"
ALL_ROWS = slice(None)


class UnusableData(ValueError):
    """An item of a data set that cannot be used; the message is one line."""


@dataclasses.dataclass
class Source:
    """The rows of a split of the data, and the files that they come from.

    Attributes:
        rows: The rows.
        files: The files, in a fixed order.
        left_out: Why other files of the folder are left out, by their names.
        details: What the rows of files of images hold beside the images, such as labels; None of files of rows. Each of
            these rows is an image's file, in the order of `files`.
    """

    rows: datasets.Dataset | datasets.IterableDataset
    files: list[File]
    left_out: dict[str, str]
    details: pyarrow.Table | None = None

    @property
    def has_image_files(self) -> bool:
        """Whether the images are files of a local folder."""
        return self.details is not None

    def sha256(self, rows: slice = ALL_ROWS, with_times: bool = False) -> str:
        """The hash of what `rows` are known by: names, sizes (of files that are not local: versions), and details.

        Args:
            rows: The rows, where each is an image's file; of files of rows, all files count for any row.
            with_times: Whether the times of the last changes count, too, which copies of the data may not have.
        """
        digest = hashlib.sha256()
        numbers = range(len(self.files))[rows if self.has_image_files else ALL_ROWS]
        for start in range(0, len(numbers), 10_000):  # for data sets of millions of files
            part = list(numbers[start : start + 10_000])
            files = [self.files[number] for number in part]
            known = [(file.name, file.size, file.time if with_times or file.size is None else None) for file in files]
            details = None if self.details is None else self.details.take(part).to_pylist()
            digest.update(repr((known, details)).encode())
        return digest.hexdigest()


def open_source(data: str, split: str = "train", streaming: bool = False, allow_left_out: bool = False) -> Source:
    """Open a local folder (of images, parquet files, webdataset archives, ...) or a data set of the Hub.

    The images of a local folder are found by `walk`. They have the columns `image`, those of metadata files beside
    them, and `label`, the class folder, unless the metadata have one. `datasets` reads everything else.

    Args:
        data: The folder or Hub id.
        split: The split, as for `datasets.load_dataset`: also `train[:100]`, but not of a stream.
        streaming: Whether to read the rows from the beginning to the end.
        allow_left_out: Accept that files of a local folder are left out.

    Raises:
        ValueError: in one line, if it is not found, not reachable, damaged, or has no such split, or if files would be
            left out.
    """
    name = f"`data` is {data!r}, split {split!r}"
    try:
        content = walk(data) if os.path.isdir(data) else FolderContent()
        if len(content.images) > len(content.row_files):
            source = _source_of_images(data, split, content)
            if streaming:
                num_shards = max(min(len(source.rows), NUM_STREAM_PARTS), 1)
                source.rows = source.rows.to_iterable_dataset(num_shards=num_shards)
        else:
            source = _source_of_rows(data, split, streaming, content)
    except (OSError, ValueError, DatasetsError) as error:  # which say what is wrong
        raise ValueError(
            f"{name}; required: a folder or Hub id that `datasets` reads ({first_line(error)})."
        ) from error
    reasons = [f"{file} ({reason})" for file, reason in source.left_out.items() if reason != PREVIEW]
    if reasons and not allow_left_out:
        raise ValueError(
            f"{name}, where {len(reasons)} files or folders would be left out: {first_names(reasons)}; required: only "
            "what can be used, or `allow_left_out`."
        )
    return source


def _source_of_images(data: str, split: str, content: FolderContent) -> Source:
    splits, left_out = content.splits(), dict(content.left_out)
    left_out.update(dict.fromkeys((file.name for file in content.row_files), "rows beside files of images"))
    parts = ReadInstruction.from_spec(split).to_absolute({name: len(images) for name, images in splits.items()})
    chosen = {
        image: name
        for part in parts
        for image, name in itertools.islice(splits[part.splitname].items(), part.from_, part.to)
    }
    metadata = read_metadata(data, content)
    if metadata is not None:
        without = [image for image in chosen if image.path not in metadata.index]
        left_out.update(dict.fromkeys((image.name for image in without), "no row in the metadata"))
        chosen = {image: name for image, name in chosen.items() if image.path in metadata.index}
    folder = os.path.abspath(data)
    paths = pyarrow.array([os.path.join(folder, image.path) for image in chosen], "string")
    columns = {"image": datasets.Image().cast_storage(paths)}
    if metadata is not None:
        rows = metadata.loc[[image.path for image in chosen]]
        columns |= {str(name): pyarrow.array(values.to_numpy(), from_pandas=True) for name, values in rows.items()}
    labels = columns.get("label")
    if labels is None and any(chosen.values()):
        labels = pyarrow.array(list(chosen.values()), "string")
    names = None
    if labels is not None and (pyarrow.types.is_string(labels.type) or pyarrow.types.is_large_string(labels.type)):
        labels = [label if label is None else nfc(label) for label in labels.to_pylist()]
        in_split = (
            {name for part in parts for name in splits[part.splitname].values()} if "label" not in columns else ()
        )
        names = sorted({*labels, *in_split} - {None})  # a part of a split has the classes of all
        columns["label"] = pyarrow.array([label if label is None else names.index(label) for label in labels], "int64")
    table = pyarrow.table(columns)
    features = datasets.Features.from_arrow_schema(table.schema) | {"image": datasets.Image(decode=False)}
    if names:
        features["label"] = ClassLabel(names=names)
    rows = datasets.Dataset(table, info=datasets.DatasetInfo(features=datasets.Features(features)))
    return Source(rows, list(chosen), left_out, details=table.drop_columns("image"))


def _source_of_rows(data: str, split: str, streaming: bool, content: FolderContent) -> Source:
    if content.row_files and has_magic(data):
        raise ValueError("files of rows can only be read from a path without *, ? and [")
    builder = load_dataset_builder(data)
    if streaming:
        rows = builder.as_streaming_dataset(split=split)
    else:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
    found = builder.config.data_files or {}
    files, folder = [], os.path.abspath(data)
    for name in re.findall(r"[A-Za-z_]\w*", split):
        paths = found.get(name, ())
        for path, origin in zip(paths, getattr(paths, "origin_metadata", ()), strict=False):
            if os.path.exists(path):
                status = os.stat(path)
                files.append(File(os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
            else:
                files.append(File(path, None, " ".join(origin)))
    used = {os.path.relpath(path, folder) for paths in found.values() for path in paths}
    left_out = {file.name: "no row is read from it" for file in content.row_files if file.path not in used}
    left_out.update((file.name, PREVIEW) for file in content.images if file.path not in used)
    return Source(rows, files, left_out)


class ImageRows:
    """The rows of a data set of images, with their columns checked.

    Args:
        data, split, streaming, allow_left_out: As for `open_source`.
        image_column: The name of a column of images, which may be encoded images without more, as other tools write.
        label_column: The name of a column of class labels or of whole numbers; None for images without labels.

    Attributes:
        rows: The rows with these columns only, and images undecoded.
        source: The `Source` of the rows.
        num_images: The number of rows; None of a stream of files of rows, whose end is found by reading.
        id2label: The names of the labels in NFC; None where they have no names.

    Raises:
        ValueError: as `open_source`, and if there is no row, or a column is missing or of another kind. (Whether a
            stream has a row is known only when it is read.)
    """

    def __init__(
        self,
        data: str,
        split: str,
        image_column: str,
        label_column: str | None,
        streaming: bool = False,
        allow_left_out: bool = False,
    ):
        self.data, self.image_column, self.label_column = data, image_column, label_column
        self.source = open_source(data, split, streaming, allow_left_out)
        rows, self.id2label = self.source.rows, None
        features = rows.features or {}
        columns = ", ".join(features) or "none that are known"
        if not _holds_images(features.get(image_column)):
            raise ValueError(f"`image_column` is {image_column!r}; required: a column of images among {columns}.")
        if label_column is not None:
            label = features.get(label_column)
            if isinstance(label, ClassLabel):
                self.id2label = dict(enumerate(map(nfc, label.names)))
                if len(set(self.id2label.values())) < len(self.id2label):
                    raise ValueError(
                        f"`label_column` is {label_column!r}, with a name twice; required: each name once."
                    )
            elif not (isinstance(label, Value) and "int" in label.dtype):
                required = "a column of class labels or whole numbers"
                if label is None and self.source.has_image_files:
                    required += ", as a folder for each class makes it,"
                raise ValueError(f"`label_column` is {label_column!r}; required: {required} among {columns}.")
        self.num_images = len(self.source.files) if self.source.has_image_files else None
        if not streaming:
            self.num_images = len(rows)
        if self.num_images == 0:
            raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: images.")
        needed = [column for column in (image_column, label_column) if column is not None]
        self.rows = rows.select_columns(needed).cast_column(image_column, datasets.Image(decode=False))

    def summary(self) -> str:
        """One line: the number of images, the classes, the images of each class, and what is left out."""
        images = f"images of {len(self.source.files)} files" if self.num_images is None else f"{self.num_images} images"
        if self.label_column is None:
            classes = "without labels"
        elif isinstance(self.rows, datasets.IterableDataset):
            classes = describe_classes(None, self.id2label)
        else:
            classes = describe_classes(self.rows.data.column(self.label_column).to_pylist(), self.id2label)
        left_out = f"; left out: {first_names(self.source.left_out)}" if self.source.left_out else ""
        return f"{self.data}: {images}, {classes}{left_out}"

    def data_sha256(self) -> str:
        """The hash of what the rows are known by, without times, so that a resumed run can go on with a copy."""
        return self.source.sha256()


def describe_classes(labels: Iterable[int | None] | None, id2label: dict[int, str] | None) -> str:
    """The number of classes, and their names with the number of labels of each, as far as they are known."""
    names = id2label or {}
    if labels is None:
        return f"{len(names)} classes: {first_names(names.values(), 20)}" if names else "numbers as labels"
    counts = {**dict.fromkeys(names, 0), **Counter(labels)}
    listed = first_names((f"{names.get(label, label)} {count}" for label, count in counts.items()), 20)
    return f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())} images: {listed}"


def _holds_images(feature: object) -> bool:
    if isinstance(feature, dict):  # {"bytes": ..., "path": ...} of other tools
        return isinstance(feature.get("bytes"), Value) and set(feature) <= {"bytes", "path"}
    return isinstance(feature, datasets.Image) or (isinstance(feature, Value) and "binary" in feature.dtype)


def known_num_classes(num_classes: int | None, data: str) -> int:
    """The number of classes itself; raises ValueError if neither the names of the labels nor a setting told it."""
    if not num_classes:
        raise ValueError(
            f"`num_classes` is not given, and the labels of {data} have no names; required: one of them (the highest "
            "label need not be that of the last class)."
        )
    return num_classes


def check_labels(rows: ImageRows, num_classes: int | None) -> None:
    """Raise ValueError if a row has no label, a negative one, or one that is not below a given `num_classes`."""
    labels = rows.rows.data.column(rows.label_column)
    smallest, largest = pyarrow.compute.min_max(labels).as_py().values()
    if labels.null_count or smallest < 0 or (num_classes is not None and largest >= num_classes):
        names = []
        if labels.null_count and rows.source.has_image_files:
            nulls = np.flatnonzero(labels.is_null().to_numpy())
            names = [rows.source.files[index].name for index in nulls]
        raise ValueError(
            f"`label_column` {rows.label_column!r} has {labels.null_count} rows without a label"
            f"{' (' + first_names(names) + ')' if names else ''} and labels from {smallest} to {largest}; required: "
            f"{'at least 0' if num_classes is None else f'0 to {num_classes - 1}'} in every row."
        )
