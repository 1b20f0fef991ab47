# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Where pairs of images come from: folders in the original's layouts, files of captions, columns of any data set."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ..data.folders import File, first_names, nfc, walk
from ..data.rows import Source, open_source
from ..files import read_json
from .captions import CaptionFiles, check_vocabulary, read_raw_captions
from .tasks import CAPTIONS, IMAGES, TASKS

# The names of a split's folder, in any case; "hold" is xBD's.
SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation", "hold"), "test": ("test",)}
ALL_ROWS = slice(None)


@dataclass
class PairSource:
    """Rows of pairs.

    Attributes:
        rows: Rows with images (paths, encoded bytes, or arrays), label maps and captions, by the names of `tasks.py`.
        kind: "folders", "caption files", "raw captions" or "columns".
        sha256: The hash of names and sizes of the files.
        vocabulary: Of captions, where it comes with the data.
        remark: A line on what follows from other data; empty if nothing does.
        all_captions: The captions of all splits, of which a vocabulary is built.
    """

    rows: Sequence[dict] | datasets.IterableDataset
    kind: str
    sha256: str
    vocabulary: dict[str, int] | None = None
    remark: str = ""
    all_captions: list[list[str]] = field(default_factory=list)
    source: Source | None = None

    def __post_init__(self):
        self.remark = f" ({self.remark})" if self.remark else ""


def split_of(name: str) -> str:
    """ "validation" for val, Val, hold, ...: the one name of a split."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), name)


def open_pairs(
    task: str,
    data: str,
    split: str = "train",
    columns: dict[str, str] | None = None,
    streaming: bool = False,
    allow_left_out: bool = False,
) -> PairSource:
    """Open the pairs of a task.

    Args:
        task: One of `TASKS`.
        data: A folder with `<split>/t1`, `t2` and the folders of labels; for captions a folder of the files of
            `CaptionFiles`, or a JSON file as `read_raw_captions` reads it; or a folder or Hub id that `datasets` reads.
        split: "train", "validation" or "test"; folders may also have the original's names.
        columns: Other names of columns, by the names of `tasks.py`.
        streaming: Whether to read rows from the beginning to the end; of columns only.
        allow_left_out: Accept that files are left out.

    Raises:
        ValueError: In one line, naming the file, for data that is missing or damaged, and for names that do not pair.
        ImportError: If h5py is needed and not installed.
    """
    of_split, is_folder = split_of(split), os.path.isdir(data)
    source = None
    if task == "captioning" and is_folder and any(Path(data).glob("*_IMAGES_*.hdf5")):
        source = _caption_files(data, _known(of_split, data))
    elif task == "captioning" and os.path.isfile(data):
        source = _raw_captions(data, split)
    elif task != "captioning" and is_folder and _split_folders(data):
        source = _folders(task, data, split, allow_left_out)
    if source is None:
        return _columns(task, data, split, columns or {}, streaming, allow_left_out)
    if columns:
        raise ValueError(f"`columns` is {columns}, and `data` {data!r} has {source.kind}; required: none, or columns.")
    if streaming:
        raise ValueError(f"`streaming` is true, and `data` {data!r} has {source.kind}; required: false, or columns.")
    return source


def _known(split: str, data: str) -> str:
    if split not in SPLIT_FOLDERS:
        raise ValueError(f"`split` is {split!r}; required of {data}: one of {', '.join(SPLIT_FOLDERS)}.")
    return split


def _hash(files: Sequence[tuple[str, int]]) -> str:
    return hashlib.sha256(repr(sorted(files)).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------------------


def _split_folders(data: str) -> list[Path]:
    """The folders of splits in the original's layouts."""
    names = {name for names in SPLIT_FOLDERS.values() for name in names}
    folders = [path for path in sorted(Path(data).iterdir()) if path.is_dir() and path.name.lower() in names]
    return [path for path in folders if any(inner.name.lower() in ("t1", "t2") for inner in path.iterdir())]


def _folders(task: str, data: str, split: str, allow_left_out: bool) -> PairSource:
    """A row for each pair, whose files have the same name in every folder."""
    folders = _split_folders(data)
    wanted = [path for path in folders if split_of(path.name) == split_of(split)]
    if len(wanted) > 1 and allow_left_out:
        wanted = [path for path in wanted if path.name == split] or wanted
    if len(wanted) != 1:
        found = ", ".join(path.name for path in (wanted or folders))
        hint = ", or `allow_left_out` with the exact name of one" if wanted and not allow_left_out else ""
        raise ValueError(f"`split` is {split!r}, and {data} has the splits {found}; required: one of them{hint}.")
    folder, inner = wanted[0], {}
    for path in sorted(wanted[0].iterdir()):
        if path.is_dir():
            if path.name.lower() in inner:
                raise ValueError(
                    f"{folder} has {inner[path.name.lower()].name} and {path.name}; required: one of them."
                )
            inner[path.name.lower()] = path
    kind, remarks, files, left_out = TASKS[task], [], {}, {}
    optional = kind.optional[0] if kind.optional else None
    for column, name in kind.folders.items():
        if name in inner:
            files[column] = _images_of(inner[name], column, left_out)
        elif column == optional:
            remarks += [f"no folder {name}: changed is where the class in {kind.folders[kind.optional[1]]} is above 0"]
        else:
            raise ValueError(f"{folder} has no folder {name}; required: {', '.join(kind.folders.values())}.")
    unused = sorted(File(path.name).name for name, path in inner.items() if name not in kind.folders.values())
    if unused and not allow_left_out:
        raise ValueError(
            f"{folder} has the folders {first_names(unused)}, which the task {task!r} does not use; required: only "
            f"{', '.join(kind.folders.values())}, or `allow_left_out`."
        )
    if left_out and not allow_left_out:
        reasons = first_names(f"{name} ({reason})" for name, reason in left_out.items())
        raise ValueError(
            f"{folder}, where {len(left_out)} files or folders would be left out: {reasons}; required: only images, or "
            "`allow_left_out`."
        )
    if unused or left_out:
        remarks += [f"left out: {first_names([*unused, *left_out])}"]
    names = sorted(files["image_before"])
    for column, paths in files.items():
        for name in sorted(set(names) ^ set(paths)):
            there, missing = (paths[name], "t1") if name in paths else (files["image_before"][name], column)
            where = kind.folders.get(missing, missing)
            raise ValueError(
                f"{File(str(there)).name} has no partner in {folder / where}; required: the same names in all folders."
            )
    if not names:
        raise ValueError(f"{folder / 't1'} has no image; required: at least one.")
    rows = [{column: str(paths[name]) for column, paths in files.items()} for name in names]
    sizes = [(os.path.relpath(path, data), os.path.getsize(path)) for row in rows for path in row.values()]
    return PairSource(rows, "folders", _hash(sizes), remark="; ".join(remarks))


def _images_of(folder: Path, column: str, left_out: dict[str, str]) -> dict[str, Path]:
    """The images of a folder by the names of their pairs, in NFC; enters in `left_out` why any other file is."""
    content, images = walk(folder), {}
    reasons = {
        **content.left_out,
        **dict.fromkeys((file.name for file in [*content.row_files, *content.metadata]), "no image"),
    }
    left_out.update({f"{folder.name}/{name}": reason for name, reason in reasons.items()})
    for file in content.images:
        name = _pair_name(nfc(file.path), column)
        if name in images:
            raise ValueError(f"{folder / file.name} is there twice, in two spellings; required: once.")
        images[name] = folder / file.path
    return images


def _pair_name(name: str, column: str) -> str:
    """The name of the pair that a file is of: xBD's labels are called "..._disaster_target..."."""
    return name.replace("disaster_target", "disaster") if column in TASKS["damage"].labels else name


# ---------------------------------------------------------------------------------------------------------------------
# Captions
# ---------------------------------------------------------------------------------------------------------------------


def _caption_files(data: str, split: str) -> PairSource:
    files = CaptionFiles(data, split)
    sizes = [(path.name, path.stat().st_size) for path in files.files]
    return PairSource(files, "caption files", _hash(sizes), files.vocabulary)


def _raw_captions(data: str, split: str) -> PairSource:
    splits = read_raw_captions(data)
    wanted = [name for name in splits if name == split] or [
        name for name in splits if split_of(name) == split_of(split)
    ]
    if len(wanted) != 1:
        raise ValueError(f"`split` is {split!r}, and {data} has the splits {', '.join(splits)}; required: one of them.")
    rows = splits[wanted[0]]
    sizes = [(row[column], os.path.getsize(row[column])) for row in rows for column in IMAGES]
    folder = os.path.dirname(os.path.abspath(data))
    sizes = [(os.path.relpath(path, folder), size) for path, size in sizes] + [("captions", os.path.getsize(data))]
    captions = [words for of_split in splits.values() for row in of_split for words in row[CAPTIONS]]
    return PairSource(rows, "raw captions", _hash(sizes), all_captions=captions)


def read_vocabulary(file: str) -> dict[str, int]:
    """The vocabulary of a WORDMAP file; raises ValueError naming it."""
    return check_vocabulary(read_json(file, "{word: id}"), file)


# ---------------------------------------------------------------------------------------------------------------------
# Columns
# ---------------------------------------------------------------------------------------------------------------------


def _columns(
    task: str, data: str, split: str, columns: dict[str, str], streaming: bool, allow_left_out: bool
) -> PairSource:
    kind = TASKS[task]
    names = [*IMAGES, *kind.labels, *([CAPTIONS] if task == "captioning" else [])]
    unknown = sorted(set(columns) - set(names))
    if unknown:
        raise ValueError(f"`columns` has {unknown[0]!r}; required for the task {task!r}: of {', '.join(names)}.")
    source = open_source(data, split, streaming, allow_left_out)
    rows, features = source.rows, source.rows.features or {}
    used, remark = {}, ""
    for name in names:
        column = columns.get(name, name)
        feature: Any = features.get(column)
        if feature is None and kind.optional and name == kind.optional[0] and name not in columns:
            remark = f"no column {name}: changed is where the class in {kind.optional[1]} is above 0"
            continue
        is_image = isinstance(feature, datasets.Image)
        is_text = str(getattr(getattr(feature, "feature", feature), "dtype", "")) in ("string", "large_string")
        if not (is_text if name == CAPTIONS else is_image):
            wanted = "texts" if name == CAPTIONS else "images"
            raise ValueError(
                f"`data` is {data!r}, where `{name}` is the column {column!r}; required: a column of {wanted} among "
                f"{', '.join(features) or 'none that are known'} (`columns` gives other names)."
            )
        used[name] = column
    rows = rows.select_columns(list(used.values()))
    rows = rows.rename_columns({column: name for name, column in used.items() if column != name})
    for name in used:
        if name != CAPTIONS:
            rows = rows.cast_column(name, datasets.Image(decode=False))
    if not streaming and len(rows) == 0:
        raise ValueError(f"`data` is {data!r}, split {split!r}, without a row; required: at least one.")
    return PairSource(rows, "columns", source.sha256(), remark=remark, source=source)


def row_name(row: dict, column: str, number: int | str) -> str:
    """The name of an image for messages: its file, or its column and row."""
    value = row.get(column)
    path = value if isinstance(value, str) else value.get("path") if isinstance(value, dict) else None
    return File(path).name if path else f"`{column}` of row {number}"
