# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Captions: vocabularies, ids of words, and the two file layouts in which the field keeps them.

A vocabulary is {word: id}. `<pad>` is 0, words have the ids from 1 on, and `<unk>`, `<start>` and `<end>` the last
three. A caption is a list of ids: `<start>`, words, `<end>`, then `<pad>` up to a fixed length.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..files import one_line, read_json
from .tasks import CAPTIONS

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
MIN_COUNT = 5  # a word of the vocabulary occurs more often
MAX_LENGTH = 52  # with `<start>` and `<end>`
HDF5_SPLITS = {"train": "TRAIN", "validation": "VAL", "test": "TEST"}


# ---------------------------------------------------------------------------------------------------------------------
# Vocabulary
# ---------------------------------------------------------------------------------------------------------------------


def build_vocabulary(captions: Iterable[Sequence[str]], min_count: int = MIN_COUNT) -> dict[str, int]:
    """The vocabulary of captions, with the words that occur more than `min_count` times, in the order of appearance.

    Raises:
        ValueError: If no word occurs so often.
    """
    counts: Counter = Counter()
    for words in captions:
        counts.update(words)
    words = [word for word, count in counts.items() if count > min_count and word not in (PAD, UNKNOWN, START, END)]
    if not words:
        most = max(counts.values(), default=0)
        raise ValueError(
            f"no word of the captions occurs more than {min_count} times (the most frequent one {most} times); "
            "required: such words, or a lower `min_word_count`."
        )
    return {PAD: 0} | {word: number for number, word in enumerate([*words, UNKNOWN, START, END], start=1)}


def check_vocabulary(vocabulary: dict, name: str) -> dict[str, int]:
    """The vocabulary itself; raises ValueError, naming the file, if it is empty or its ids are others."""
    ids = sorted(value for value in vocabulary.values() if type(value) is int)
    size = len(vocabulary)
    special = {PAD: 0, UNKNOWN: size - 3, START: size - 2, END: size - 1}
    if size < 5 or ids != list(range(size)) or any(vocabulary.get(word) != number for word, number in special.items()):
        raise ValueError(
            f"{name} has {size} words; required: {{word: id}} with {PAD} 0, at least one word from 1 on, and "
            f"{UNKNOWN}, {START} and {END} as the last three."
        )
    return vocabulary


def encode_caption(words: Sequence[str], vocabulary: dict[str, int], max_length: int = MAX_LENGTH) -> list[int]:
    """The ids of a caption; raises ValueError if it has no word, or more than `max_length` - 2."""
    if not 0 < len(words) <= max_length - 2:
        raise ValueError(f"a caption has {len(words)} words; required: 1 to {max_length - 2}.")
    ids = [vocabulary[START], *(vocabulary.get(word, vocabulary[UNKNOWN]) for word in words), vocabulary[END]]
    return ids + [vocabulary[PAD]] * (max_length - len(ids))


def check_caption(ids: Sequence[int], vocab_size: int, name: str) -> None:
    """Raise ValueError, naming its place, unless ids are `<start>`, words, `<end>`, then `<pad>` only."""
    start, end = vocab_size - 2, vocab_size - 1
    if not all(type(number) is int and 0 <= number < vocab_size for number in ids):
        raise ValueError(f"{name} has ids outside of 0 to {end}; required: those of the vocabulary.")
    if end not in ids:
        raise ValueError(f"{name} has no {END}; required: one, after its last word.")
    length = list(ids).index(end) + 1
    if ids[0] != start or any(ids[length:]) or start in ids[1:] or 0 in ids[:length]:
        raise ValueError(f"{name} is not {START}, words, {END}, then {PAD} only; required: so.")


def words_of(ids: Sequence[int], vocabulary: dict[str, int]) -> list[str]:
    """The words of ids, without `<start>`, `<end>` and `<pad>`."""
    names = {number: word for word, number in vocabulary.items()}
    return [names[number] for number in ids if names[number] not in (PAD, START, END)]


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


class CaptionFiles:
    """The files of RSICCformer's preparation, of one split: images in HDF5, ids of captions and the WORDMAP in JSON.

    Rows have `image_before` and `image_after`, uint8 [H, W, 3], and `captions`, lists of ids.

    Args:
        folder: The folder of {SPLIT}_IMAGES_NAME.hdf5, {SPLIT}_CAPTIONS_NAME.json, {SPLIT}_CAPLENS_NAME.json and
            WORDMAP_NAME.json.
        split: "train", "validation" or "test".

    Attributes:
        vocabulary: Of the WORDMAP file.
        files: The paths of the files.

    Raises:
        ValueError: Naming the file, if one is missing or damaged, they do not belong together, or a caption has no
            `<end>`.
        ImportError: If the package h5py is not installed.
    """

    def __init__(self, folder: str | Path, split: str):
        prefix = HDF5_SPLITS[split]
        self.images_file = _one_file(folder, f"{prefix}_IMAGES_*.hdf5")
        captions_file = _one_file(folder, f"{prefix}_CAPTIONS_*.json")
        lengths_file = _one_file(folder, f"{prefix}_CAPLENS_*.json")
        wordmap = _one_file(folder, "WORDMAP_*.json")
        self.files = [self.images_file, captions_file, lengths_file, wordmap]
        self.vocabulary = check_vocabulary(read_json(wordmap, "{word: id}"), str(wordmap))
        self.captions = _read_list(captions_file)
        lengths = _read_list(lengths_file)
        self._opened: tuple[int, object] | None = None
        images = self._images()
        self.num_images = len(images)
        if images.ndim != 5 or images.shape[1:3] != (2, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"{self.images_file} has `images` {images.dtype} {list(images.shape)}; required: uint8 [N, 2, 3, H, W]."
            )
        self.per_image = int(images.file.attrs.get("captions_per_image", 0))
        if self.per_image < 1 or not len(self.captions) == len(lengths) == self.per_image * self.num_images:
            raise ValueError(
                f"{captions_file} has {len(self.captions)} captions and {lengths_file} {len(lengths)} lengths; "
                f"required: {self.per_image} for each of the {self.num_images} images of {self.images_file}."
            )
        for number, (ids, length) in enumerate(zip(self.captions, lengths, strict=True)):
            name = f"caption {number} (image {number // self.per_image}) of {captions_file}"
            if not isinstance(ids, list) or not ids:
                raise ValueError(f"{name} is no list of ids; required: one.")
            check_caption(ids, len(self.vocabulary), name)
            num_words = sum(1 for each in ids if each)
            if length != num_words:
                raise ValueError(f"{name} has {num_words} words; required: {length}, as in {lengths_file}.")

    def _images(self):
        """The data set `images`; the file is opened once in each process."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                import h5py
            except ImportError as error:
                raise ImportError(
                    f"{self.images_file} is an HDF5 file; required: `pip install diffusers-lightningdit[captions]`."
                ) from error
            try:
                self._opened = (os.getpid(), h5py.File(self.images_file, "r")["images"])
            except (OSError, KeyError) as error:
                raise ValueError(
                    f"{self.images_file} is damaged ({one_line(error)}); required: an HDF5 file with `images`."
                ) from error
        return self._opened[1]

    def __getstate__(self) -> dict:  # for worker processes
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> dict:
        before, after = self._images()[index].transpose(0, 2, 3, 1)
        first = index * self.per_image
        return {"image_before": before, "image_after": after, CAPTIONS: self.captions[first : first + self.per_image]}


def _one_file(folder: str | Path, pattern: str) -> Path:
    found = sorted(Path(folder).glob(pattern))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise ValueError(f"{folder} has {names} for {pattern}; required: one such file.")
    return found[0]


def _read_list(file: Path) -> list:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({one_line(error)}); required: a list in JSON.") from error
    if not isinstance(content, list):
        raise ValueError(f"{file} holds a {type(content).__name__}; required: a list.")
    return content


def read_raw_captions(file: str | Path) -> dict[str, list[dict]]:
    """The rows of each split of a JSON file as LEVIR-CC and DUBAI-CC are published.

    It has `images`, each with `filename`, `split` and `sentences`, each of which has `tokens` or `raw`. The images are
    `images/<filepath or split>/A/<filename>` and `.../B/<filename>` beside the file.

    Returns:
        {split: rows}, with the paths `image_before` and `image_after`, and `captions`, lists of words.

    Raises:
        ValueError: Naming the file and the entry, for what is missing.
    """
    folder = Path(file).parent / "images"
    entries = read_json(file, "captions of images").get("images")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} has no `images`; required: a list with at least one.")
    splits: dict[str, list[dict]] = {}
    for number, entry in enumerate(entries):
        name = f"image {number} of {file}"
        try:
            split, filename, place = str(entry["split"]), str(entry["filename"]), str(entry.get("filepath") or "")
            captions = [_tokens(sentence) for sentence in entry["sentences"]]
            (split + filename + place).encode()  # JSON may hold halves of characters, which no file is called by
        except (AttributeError, KeyError, TypeError, UnicodeEncodeError) as error:
            raise ValueError(
                f"{name} is of another form ({type(error).__name__}: {one_line(error)}); required: filename, split and "
                "sentences, each with tokens or raw."
            ) from error
        if not captions or not all(captions):
            raise ValueError(f"{name}, {filename}, has no caption, or an empty one; required: captions of words.")
        images = folder / (place or split)
        row = {"image_before": str(images / "A" / filename), "image_after": str(images / "B" / filename)}
        for path in row.values():
            if not os.path.isfile(path):
                raise ValueError(f"{name} is {path}, which is missing; required: both images.")
        splits.setdefault(split, []).append({**row, CAPTIONS: captions})
    return splits


def _tokens(sentence: dict) -> list[str]:
    tokens = sentence.get("tokens")
    return list(map(str, tokens)) if tokens else tokenize(str(sentence["raw"]))


def tokenize(text: str) -> list[str]:
    """The words of a caption, in small letters and without the signs that end sentences."""
    return text.lower().replace(".", " ").replace(",", " ").split()
