# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Data sets of pairs of images for torch, with a length or as a stream: decoded, checked, and varied in training.

Letters in the shape comments: H and W the sides of the network's images, L the label maps of the task or the ids of a
caption.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.images import UnusableImage, decoding, open_image, to_rgb, upright_size
from ..data.rows import UnusableData
from ..data.streamed_rows import StreamedRows
from ..keyed_random import python_random
from .captions import MAX_LENGTH, build_vocabulary, encode_caption, tokenize, words_of
from .sources import PairSource, open_pairs, read_vocabulary, row_name
from .tasks import CAPTIONS, IMAGES, TASKS, ZERO_OR_ONE
from .transforms import SWAP_PROB_OF_CAPTIONS, normalize_for_captions, prepare_pair

CLASS_MODES = ("1", "L", "P", "I", "I;16")  # in which a pixel is one number
MASK_MODES = (*CLASS_MODES, "RGB")
NUM_THREADS = 4  # that check files


class UnusablePair(UnusableData):
    """A pair whose images or labels cannot be used; the message is one line, which names the file."""


@dataclass(frozen=True)
class PairFormat:
    """The form in which a network needs pairs.

    Attributes:
        task: One of `TASKS`.
        size: (height, width) of its images, in pixels.
        num_classes: The number that labels of classes are below; None for tasks without classes.
        palette: The colour [red, green, blue] of each class in label maps that are pictures; None if they are numbers.
        resize: Whether images of another size are resized, as the original does; otherwise they are refused.
        vocabulary: The vocabulary of captions.
        max_caption_length: The number of ids of a caption, with `<start>`, `<end>` and `<pad>`.

    Raises:
        ValueError: For a palette that is not a colour for each class.
    """

    task: str
    size: tuple[int, int]
    num_classes: int | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    resize: bool = False
    vocabulary: dict[str, int] | None = None
    max_caption_length: int = MAX_LENGTH

    def __post_init__(self):
        if self.palette is None:
            return
        if len(self.palette) != self.num_classes:
            raise ValueError(
                f"`label_palette` has {len(self.palette)} colours; required: {self.num_classes or 'none'}, one for "
                "each class."
            )
        for number, color in enumerate(self.palette):
            if not all(0 <= part <= 255 for part in color) or color in self.palette[:number]:
                raise ValueError(
                    f"`label_palette` has {list(color)}; required: numbers from 0 to 255, no colour twice."
                )


# ---------------------------------------------------------------------------------------------------------------------
# One pair
# ---------------------------------------------------------------------------------------------------------------------


def read_rgb(encoded) -> np.ndarray:
    """An image as uint8 [H, W, 3], in the order red, green, blue; raises `UnusableImage`, also for other bands."""
    if isinstance(encoded, np.ndarray):
        return encoded
    with decoding():
        return np.array(to_rgb(open_image(encoded), ("RGB",)))


def read_label_map(encoded, column: str, form: PairFormat) -> np.ndarray:
    """A label map as int64 [H, W]; raises `UnusableImage` for another kind of image, colour or number.

    A mask ("label") is 1 wherever a pixel is not 0, as the original's ceil(v / 255).
    """
    with decoding():
        image = open_image(encoded)
        is_class, is_mask = column not in ZERO_OR_ONE, column == "label"
        if is_class and form.palette is not None:
            return _classes_of_colors(np.array(to_rgb(image, ("RGB", "P"))), form.palette)
        modes = MASK_MODES if is_mask else CLASS_MODES
        if image.mode not in modes:
            hint = ", or a `label_palette` for colours" if is_class and image.mode == "RGB" else ""
            raise UnusableImage(f"it has mode {image.mode!r}; required: one of {', '.join(modes)}{hint}")
        if is_mask:
            values = np.array(image.convert("RGB") if image.mode == "P" else image)
            return (values.reshape(*values.shape[:2], -1) != 0).any(-1).astype(np.int64)
        values = np.array(image).astype(np.int64)
    num_classes = form.num_classes if is_class else 2
    if values.min() < 0 or values.max() >= num_classes:
        bad = int(values.max() if values.max() >= num_classes else values.min())
        raise UnusableImage(f"it has the label {bad}; required: 0 to {num_classes - 1}")
    return values


def _classes_of_colors(image: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    packed = (image.astype(np.int64) * (65536, 256, 1)).sum(-1)
    colors = (np.array(palette, dtype=np.int64) * (65536, 256, 1)).sum(-1)
    order = np.argsort(colors)
    places = np.searchsorted(colors[order], packed).clip(max=len(colors) - 1)
    classes = order[places]
    wrong = colors[classes] != packed
    if wrong.any():
        color = image[wrong][0].tolist()
        raise UnusableImage(f"it has the colour {color} in {wrong.sum()} pixels; required: colours of `label_palette`")
    return classes


def read_pair(row: dict, number: int | str, form: PairFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both images, uint8 [h, w, 3] in the task's order of channels, and the label maps, [h, w, L].

    Raises:
        UnusablePair: Naming the file, for an image that cannot be used, or whose size is another one.
    """
    task = TASKS[form.task]
    images = [_named(row, column, number, read_rgb) for column in IMAGES]
    sizes = dict(zip(IMAGES, (image.shape[:2] for image in images), strict=True))
    maps = {}
    for column in task.labels:
        if column in row:
            maps[column] = _named(row, column, number, lambda value, name=column: read_label_map(value, name, form))
            sizes[column] = maps[column].shape
    _check_sizes(row, number, sizes, form)
    if task.optional and task.optional[0] not in maps:
        maps[task.optional[0]] = (maps[task.optional[1]] > 0).astype(np.int64)
    if task.channel_order == "bgr":
        images = [image[..., ::-1] for image in images]
    labels = np.stack([maps[column] for column in task.labels], axis=-1) if maps else np.empty((*sizes[IMAGES[0]], 0))
    return *images, labels.astype(np.int64 if form.task == "binary" else np.uint8)


def _named(row: dict, column: str, number: int | str, read: Callable) -> np.ndarray:
    try:
        return read(row[column])
    except UnusableImage as error:
        raise UnusablePair(f"{row_name(row, column, number)}: {error}") from error


def _check_sizes(row: dict, number: int | str, sizes: dict[str, tuple[int, int]], form: PairFormat) -> None:
    first = sizes[IMAGES[0]]
    for column, size in sizes.items():
        required = None
        if size != first:
            required = f"{first[0]}x{first[1]}, as {row_name(row, IMAGES[0], number)}"
        elif size != tuple(form.size) and not form.resize:
            required = f"{form.size[0]}x{form.size[1]}, or `resize`"
        if required is not None:
            raise UnusablePair(
                f"{row_name(row, column, number)} has {size[0]}x{size[1]} pixels (height x width); required: "
                f"{required}."
            )


def make_sample(
    row: dict, number: int | str, form: PairFormat, rng: random.Random | None, caption: int | None = None
) -> dict[str, torch.Tensor]:
    """A row as the network takes it.

    Args:
        row: The row.
        number: Its number, for messages.
        form: What the network needs.
        rng: The draws of training, or None.
        caption: The caption to take, of a captioning row.

    Returns:
        `image_before` and `image_after`, float32 [3, H, W], and `labels`, [L, H, W], or `captions`, int64 [L].
    """
    before, after, labels = read_pair(row, number, form)
    if form.task != "captioning":
        before, after, labels = prepare_pair(before, after, labels, form.size, rng, TASKS[form.task].swapped_labels)
        return {"image_before": before, "image_after": after, "labels": labels}
    if before.shape[:2] != tuple(form.size):
        raise UnusablePair(
            f"{row_name(row, IMAGES[0], number)} has {before.shape[0]}x{before.shape[1]} pixels; required: "
            f"{form.size[0]}x{form.size[1]}."
        )
    if rng is not None and rng.random() < SWAP_PROB_OF_CAPTIONS:  # the caption stays, as in the original
        before, after = after, before
    sample = {"image_before": normalize_for_captions(before), "image_after": normalize_for_captions(after)}
    if caption is not None:
        ids = encoded_captions(row, number, form)[caption]
        sample[CAPTIONS] = torch.tensor(ids)
    return sample


def listed_captions(row: dict) -> list:
    """The captions of a row: texts, lists of words, or lists of ids; none of a row without."""
    captions = row[CAPTIONS]
    if captions is None:
        return []
    return [captions] if isinstance(captions, str) else list(captions)


def words_of_caption(caption: str | list | None) -> list[str]:
    """The words of a caption, which may be text or a list of words; none of a null."""
    return tokenize(caption) if isinstance(caption, str) else caption or []


def encoded_captions(row: dict, number: int | str, form: PairFormat) -> list[list[int]]:
    """The ids of all captions of a row; raises `UnusablePair` for one of no words, or of too many."""
    encoded = []
    for caption in listed_captions(row):
        if isinstance(caption, list) and caption and isinstance(caption[0], int):
            if len(caption) > form.max_caption_length:
                raise UnusablePair(
                    f"{row_name(row, IMAGES[0], number)}: a caption has {len(caption)} ids; required: at most "
                    f"{form.max_caption_length}, the model's `max_caption_length`."
                )
            encoded.append(caption)
            continue
        try:
            encoded.append(encode_caption(words_of_caption(caption), form.vocabulary, form.max_caption_length))
        except ValueError as error:
            raise UnusablePair(f"{row_name(row, IMAGES[0], number)}: {error}") from error
    if not encoded:
        raise UnusablePair(f"{row_name(row, IMAGES[0], number)} has no caption; required: at least one.")
    return encoded


# ---------------------------------------------------------------------------------------------------------------------
# Data sets
# ---------------------------------------------------------------------------------------------------------------------


class PairDataset(Dataset):
    """Pairs with a length: the samples of `make_sample`.

    In training, each caption of a pair is a sample of its own, and an index that is an `EpochIndex` decides with the
    seed how a sample is varied.

    Args:
        source: The rows.
        form: What the network needs.
        data: The name of the data, for messages.
        seed: The seed of the variations of training; None for evaluation.
        is_varied: Whether samples of training are varied.

    Raises:
        UnusablePair: When an item is taken, naming the file.
    """

    def __init__(
        self, source: PairSource, form: PairFormat, data: str, seed: int | None = None, is_varied: bool = True
    ):
        self.source, self.rows, self.form, self.data = source, source.rows, form, data
        self.seed = seed if is_varied else None
        self.places: list[tuple[int, int | None]] = [(row, None) for row in range(len(self.rows))]
        if form.task == "captioning" and seed is not None:
            numbers = [len(listed_captions(self._captions_row(row))) for row in range(len(self.rows))]
            self.places = [(row, caption) for row, number in enumerate(numbers) for caption in range(number)]

    def _captions_row(self, index: int) -> dict:
        """A row without its images, where these would have to be read."""
        rows = self.rows
        if self.source.kind == "caption files":
            return {CAPTIONS: rows.captions[index * rows.per_image : (index + 1) * rows.per_image]}
        if self.source.kind == "columns":
            return {CAPTIONS: rows[CAPTIONS][index]}
        return rows[index]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row, caption = self.places[index]
        rng = None if self.seed is None else python_random(self.seed, getattr(index, "epoch", 0), int(index))
        return make_sample(self.rows[row], row, self.form, rng, caption)

    def references(self, index: int) -> list[list[int]]:
        """The ids of the words of all captions of a pair, without `<start>`, `<end>` and `<pad>`."""
        vocabulary = self.form.vocabulary
        special = {vocabulary[word] for word in ("<pad>", "<start>", "<end>")}
        encoded = encoded_captions(self._captions_row(index), index, self.form)
        return [[number for number in ids if number not in special] for ids in encoded]

    def reference_words(self, index: int) -> list[list[str]]:
        """The words of all captions of a pair, where unknown ones are `<unk>`."""
        encoded = encoded_captions(self._captions_row(index), index, self.form)
        return [words_of(ids, self.form.vocabulary) for ids in encoded]

    def name(self, index: int) -> str:
        """The name of a pair: the file of its first image, or its row."""
        row = self.places[index][0]
        if self.source.kind in ("folders", "raw captions"):
            return row_name(self.rows[row], IMAGES[0], row)
        return f"row {row}"

    def summary(self) -> str:
        """One line: the number of pairs."""
        number = len(self.rows)
        captions = f", {len(self)} captions" if len(self) != number else ""
        return f"{self.data}: {number} pairs of images{captions}{self.source.remark}"

    def data_sha256(self) -> str:
        """Everything that the rows are known by, for a resumed run to compare."""
        return self.source.sha256

    def check(self) -> None:
        """Read all captions; of folders the sizes and modes of all images, and all label maps.

        Raises:
            UnusablePair: Naming the first file that cannot be used.
        """
        for index in range(len(self.rows) if self.form.task == "captioning" else 0):
            encoded_captions(self._captions_row(index), index, self.form)
        if self.source.kind == "folders":
            with ThreadPoolExecutor(NUM_THREADS) as threads:
                for _ in threads.map(self._check_row, range(len(self.rows))):
                    pass

    def _check_row(self, number: int) -> None:
        row, sizes = self.rows[number], {}
        for column in row:
            if column in IMAGES:
                sizes[column] = _named(row, column, number, lambda path: upright_size(path, ("RGB",)))[::-1]
            else:
                found = _named(row, column, number, lambda value, name=column: read_label_map(value, name, self.form))
                sizes[column] = found.shape
        _check_sizes(row, number, sizes, self.form)


class StreamedPairs(StreamedRows):
    """Pairs that are read in a stream: the samples of `make_sample`, of captions one at random in each epoch.

    Args:
        form: What the network needs.
        data, split, columns, allow_left_out: As for `open_pairs`.
        is_varied: Whether samples are varied where they are taken in a random order.
    """

    id2label = None

    def __init__(
        self,
        form: PairFormat,
        data: str,
        split: str,
        columns: dict[str, str] | None = None,
        allow_left_out: bool = False,
        is_varied: bool = True,
    ):
        self.is_varied = is_varied
        self.form, self.columns, self.allow_left_out = form, columns, allow_left_out
        super().__init__(data, split, random_flip=False)

    def _load(self, data: str, split: str) -> None:
        pairs = open_pairs(self.form.task, data, split, self.columns, True, self.allow_left_out)
        self.rows, self.source, self.remark = pairs.rows, pairs.source, pairs.remark

    def summary(self) -> str:
        """One line: the number of files."""
        return f"{self.data}: pairs of images of {len(self.source.files)} files{self.remark}"

    def variation(self, seed: int, epoch: int, index: int) -> random.Random:
        """The generator of the draws of an epoch's sample, from these numbers alone."""
        return python_random(seed, epoch, index)

    def _label(self, row: dict) -> tuple[None, int]:
        return None, 0

    def _decode(self, row: dict, variation: random.Random | None) -> dict:
        caption = None
        if self.form.task == "captioning" and variation is not None:
            caption = variation.randrange(max(len(listed_captions(row)), 1))
        return make_sample(row, "of the stream", self.form, variation if self.is_varied else None, caption)


def known_vocabulary(source: PairSource, file: str | None, min_count: int) -> dict[str, int]:
    """The vocabulary of a file, else the one that comes with the data, else one that is built of its captions.

    Raises:
        ValueError: If there is none, or the one of the file is another one than the data's.
    """
    if file is not None:
        vocabulary = read_vocabulary(file)
        if source.vocabulary is not None and source.vocabulary != vocabulary:
            raise ValueError(f"`vocabulary` is {file!r}; required: the WORDMAP file of the data, whose ids it has.")
        return vocabulary
    if source.vocabulary is not None:
        return source.vocabulary
    if isinstance(source.rows, datasets.IterableDataset):
        raise ValueError("`vocabulary` is null with `streaming`; required: a WORDMAP file, {word: id}.")
    captions = source.all_captions or [
        words_of_caption(caption)
        for captions in source.rows[CAPTIONS]
        for caption in listed_captions({CAPTIONS: captions})
    ]
    return build_vocabulary(captions, min_count)
