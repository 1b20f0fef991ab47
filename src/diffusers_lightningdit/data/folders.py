# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The files of a local folder of images: which there are, of which split and class, and which cannot be used.

`datasets` looks for words such as "train" in all names, takes the lowest folder for the class, and leaves out what it
does not expect, without a word. Here every file is either used or named.
"""

import contextlib
import dataclasses
import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import pandas
from PIL import Image

with contextlib.suppress(ImportError):  # HEIC, the format of many phones
    import pillow_heif

    pillow_heif.register_heif_opener()

Image.init()
NOT_PICTURES = ("BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF")
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NOT_PICTURES
)
REMEDIES = {
    ".avif": "Pillow 11.3 or newer",
    ".heic": "the package pillow-heif",
    ".heif": "the package pillow-heif",
    ".jxl": "the package pillow-jxl-plugin",
}
ROW_SUFFIXES = (".parquet", ".arrow", ".tar", ".zip")  # files of many images, which `datasets` reads
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# What systems and people leave in any folder; nobody takes it for data.
NO_DATA = ("thumbs.db", "desktop.ini", "__macosx", ".git", ".cache", ".ipynb_checkpoints")
DOCUMENTS = ("readme", "license", "licence", "notice", "citation")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def nfc(name: str) -> str:
    """A name in the one spelling of Unicode that names are compared in."""
    return unicodedata.normalize("NFC", name)


@dataclasses.dataclass(frozen=True, order=True)
class File:
    """A file of the data: its path from the folder on, its size in bytes, and the time of its last change.

    `time` is in nanoseconds; of a file that is not local, it is what its server tells of its version.
    """

    path: str
    size: int | None = None
    time: int | str | None = None

    @property
    def name(self) -> str:
        """The path for messages and comparisons: in NFC and on one line."""
        return nfc(self.path).replace("\n", "\\n").replace("\r", "\\r")


@dataclasses.dataclass
class FolderContent:
    """The files of a folder and the folders in it, sorted by their names.

    Attributes:
        images: The files that Pillow can open, by their suffixes.
        row_files: The files of many images.
        metadata: The files that describe images, by the names that `datasets` gives them.
        left_out: Why any other file or folder is left out, by its name.
    """

    images: list[File] = dataclasses.field(default_factory=list)
    row_files: list[File] = dataclasses.field(default_factory=list)
    metadata: list[File] = dataclasses.field(default_factory=list)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def splits(self) -> dict[str, dict[File, str | None]]:
        """The images of each split with the names of their classes, None for an image without one.

        The folders at the top are the splits if all are named so, as `train/cat/1.png`; otherwise there is the split
        "train". The uppermost folder (in the split's) is the class, whatever lies below it.
        """
        parts = {image: image.path.split("/") for image in self.images}
        named = parts and all(len(part) > 1 and part[0].lower() in SPLITS for part in parts.values())
        splits: dict[str, dict[File, str | None]] = {}
        spelling: dict[tuple[str, str], str] = {}
        for image, part in parts.items():
            split, inner = (SPLITS[part[0].lower()], part[1:]) if named else ("train", part)
            name = nfc(inner[0]) if len(inner) > 1 else None
            if name and spelling.setdefault((split, name), inner[0]) != inner[0]:
                raise ValueError(f"the name {name!r} is there twice, in two spellings of Unicode")
            splits.setdefault(split, {})[image] = name
        return splits


def walk(folder: str | Path) -> FolderContent:
    """Find all files of a folder, also through links; a link to a folder that it lies in is noticed."""
    content = FolderContent()
    _walk(os.path.abspath(folder), "", (), content)
    for files in (content.images, content.row_files, content.metadata):
        files.sort(key=lambda file: (nfc(file.path), file.path))
    content.left_out = dict(sorted(content.left_out.items()))
    return content


def _walk(folder: str, prefix: str, above: tuple[tuple[int, int], ...], content: FolderContent) -> None:
    here = os.stat(folder)
    above = (*above, (here.st_dev, here.st_ino))
    for entry in os.scandir(folder):
        path, lower = prefix + entry.name, entry.name.lower()
        if lower in NO_DATA or entry.name.startswith("._"):
            continue
        try:
            path.encode()
            status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) in above:
                    reason = "a link to a folder that it lies in"
                elif entry.name.startswith("."):
                    reason = "hidden"
                else:
                    _walk(entry.path, path + "/", above, content)
                    continue
            else:
                reason = _sort_file(File(path, status.st_size, status.st_mtime_ns), lower, status.st_mode, content)
        except UnicodeEncodeError:
            path, reason = os.fsencode(path).decode("utf-8", "backslashreplace"), "a name that is not UTF-8"
        except FileNotFoundError:
            reason = "a link to nothing"
        except OSError as error:
            reason = error.strerror or type(error).__name__
        if reason is not None:
            content.left_out[File(path).name] = reason


def _sort_file(file: File, name: str, mode: int, content: FolderContent) -> str | None:
    """Enter a file where it belongs; or return why it is left out."""
    stem, suffix = os.path.splitext(name)
    if not stat.S_ISREG(mode):
        return "neither a file nor a folder"
    if suffix in IMAGE_SUFFIXES and not name.startswith("."):
        content.images.append(file)
    elif name in METADATA_FILES:
        content.metadata.append(file)
    elif suffix in ROW_SUFFIXES and not name.startswith("."):
        content.row_files.append(file)
    elif suffix in REMEDIES:
        return f"Pillow cannot read {suffix} here; {REMEDIES[suffix]} can"
    elif suffix in IMAGE_SUFFIXES:
        return "hidden"
    elif not (name.startswith(".") or suffix == ".md" or stem in DOCUMENTS):
        return "no image"
    return None


def read_metadata(folder: str | Path, content: FolderContent) -> pandas.DataFrame | None:
    """The rows of the metadata files about the images, by the images' paths; None where there is no such file.

    Raises:
        ValueError: naming the file, if it cannot be read, names no files, or files that are not there.
    """
    tables = []
    for file in content.metadata:
        path = Path(folder, file.path)
        try:
            table = {".csv": pandas.read_csv, ".jsonl": _read_jsonl, ".parquet": pandas.read_parquet}[path.suffix](path)
        except Exception as error:  # parsers raise anything
            reason = "it is empty" if file.size == 0 else " ".join(str(error).split())
            raise ValueError(f"{path} cannot be read ({reason}); required: rows with the column file_name.") from error
        if "file_name" not in table or table.empty:
            found = ", ".join(map(str, table.columns)) or "none"
            raise ValueError(
                f"{path} has {len(table)} rows and the columns {found}; required: rows with the column file_name."
            )
        base = file.path[: -len(path.name)]
        table.index = [os.path.normpath(base + str(name)).replace(os.sep, "/") for name in table.pop("file_name")]
        missing = table.index.difference([image.path for image in content.images])
        if len(missing) or table.index.has_duplicates:
            wrong = missing[0] if len(missing) else table.index[table.index.duplicated()][0]
            raise ValueError(
                f"{path} names {wrong}, which is {'not there' if len(missing) else 'there twice'}; required: each "
                "image of the folder once."
            )
        tables.append(table)
    return pandas.concat(tables) if tables else None


def _read_jsonl(path: Path) -> pandas.DataFrame:
    return pandas.read_json(path, lines=True)


def first_names(names: Iterable[str], most: int = 5) -> str:
    """Some names in a row, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
