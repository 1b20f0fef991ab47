# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Raw latents with labels, streamed from a Hugging Face data set in an order that can be found again.

Items are those of `LatentsDataset`: `{"latents": float32 [C, height, width], "class_labels": int}`.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from .global_batches import is_flipped
from .images import load_rows
from .latent_dataset import check_latent_features, require_finite


class StreamingLatentsDataset(IterableDataset):
    """Latents of a Hugging Face data set that stays where it is (the Hub), epoch after epoch without end.

    In each epoch the files come in another order, `num_open_files` of them at a time are read in turns, and blocks of
    rows are shuffled in memory; all of it follows from the seed. Process r of n yields every n-th sample from r on, so
    that batches of b samples in each of n processes are together the same n b samples for every n. Every process
    reads the whole stream.

    `state_dict()` after a whole number of such batches is enough to go on from there, on any number of processes: at
    most a block is read again. It counts what was yielded, so nothing may read ahead: `DataLoader(num_workers=0)`.

    Args:
        data, split, random_flip, seed: as of `LatentsDataset`; `seed` is also of the order.
        shuffle_block_size: rows that are shuffled at a time, and kept in memory.
        num_open_files: among which a block is mixed; data that is sorted by label needs many.
        rank, world_size: of this process.

    Raises:
        ValueError: for data that is missing, or has no such columns; while reading, for labels out of range and latents
            that aren't finite.
    """

    def __init__(
        self,
        data: str,
        split: str = "train",
        random_flip: bool = True,
        seed: int = 0,
        shuffle_block_size: int = 8192,
        num_open_files: int = 64,
        rank: int = 0,
        world_size: int = 1,
    ):
        for name, value in (("shuffle_block_size", shuffle_block_size), ("num_open_files", num_open_files)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}; required: at least 1.")
        if not 0 <= rank < world_size:
            raise ValueError(f"`rank` is {rank}; required: at least 0 and below `world_size`, {world_size}.")
        self._rows = load_rows(data, split, streaming=True)
        self.shape, self.id2label = check_latent_features(data, self._rows.features, random_flip)
        self.data = data
        self.random_flip = random_flip
        self.seed = seed
        self.shuffle_block_size = shuffle_block_size
        self.num_open_files = num_open_files
        self.rank = rank
        self.world_size = world_size
        self._num_yielded = 0  # by all processes
        # the block that the next sample is in: its place in the files, its number in the epoch, the samples before it
        self._block = {"epoch": 0, "group": 0, "files": None, "number": 0, "num_before": 0}

    def __iter__(self) -> Iterator[dict]:
        if get_worker_info() is not None:
            raise ValueError("`num_workers` is above 0; required: 0, for a stream whose place can be saved.")
        first = self._num_yielded  # what comes before it in its block was yielded already
        position = self._block["num_before"]
        for block, rows in self._blocks(dict(self._block)):
            block["num_before"] = position
            for place in np.random.default_rng([self.seed, block["epoch"], block["number"]]).permutation(len(rows)):
                if position >= first and position % self.world_size == self.rank:
                    self._block = block
                    self._num_yielded = position - self.rank + self.world_size
                    index = block["number"] * self.shuffle_block_size + int(place)  # one of its own in the epoch
                    yield self._item(rows[place], block["epoch"], index)
                position += 1

    def _blocks(self, start: dict) -> Iterator[tuple[dict, list[dict]]]:
        """Blocks of rows as they lie in the files, each with its place; `datasets` keeps the place within a file."""
        first_group, states, number = start["group"], start["files"], start["number"]
        for epoch in itertools.count(start["epoch"]):
            order = np.random.default_rng([self.seed, epoch]).permutation(self._rows.num_shards).tolist()
            groups = [order[i : i + self.num_open_files] for i in range(0, len(order), self.num_open_files)]
            for group in range(first_group, len(groups)):
                files = [self._rows.shard(self._rows.num_shards, index).with_format("numpy") for index in groups[group]]
                if states is not None:
                    for file, state in zip(files, states, strict=True):
                        file.load_state_dict(state)
                iterators = [iter(file) for file in files]
                while True:
                    block = {"epoch": epoch, "group": group, "number": number}
                    block["files"] = [file.state_dict() for file in files]
                    rows = _take_in_turns(iterators, self.shuffle_block_size)
                    if not rows:
                        break
                    yield block, rows
                    number += 1
                states = None
            if number == 0:
                raise ValueError(f"`data` is {self.data!r}, without a row; required: at least one.")
            first_group, number = 0, 0

    def _item(self, row: dict, epoch: int, index: int) -> dict:
        flip = self.random_flip and is_flipped(self.seed, epoch, index)
        latents = torch.from_numpy(np.array(row["latents_flip" if flip else "latents"], dtype=np.float32))
        place = f"{self.data}, sample {index} of epoch {epoch}"
        label, limit = int(row["label"]), len(self.id2label) if self.id2label else 2**31
        if not 0 <= label < limit:
            raise ValueError(f"{place} has label {label}; required: 0 to {limit - 1}.")
        return {"latents": require_finite(latents, place), "class_labels": label}

    def state_dict(self) -> dict:
        """The place after what was yielded, with what the order depends on."""
        return {"num_yielded": self._num_yielded, "block": dict(self._block), **self._identity()}

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken; raises ValueError if its order was another one."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(f"`{name}` is {value}; required: {state.get(name)}, as in the state to resume from.")
        if state["num_yielded"] % self.world_size:
            raise ValueError(
                f"the state was taken after {state['num_yielded']} samples; required: a multiple of `world_size`, "
                f"{self.world_size}."
            )
        self._num_yielded = state["num_yielded"]
        self._block = dict(state["block"])

    def _identity(self) -> dict:
        return {
            "seed": self.seed,
            "shuffle_block_size": self.shuffle_block_size,
            "num_open_files": self.num_open_files,
        }


def _take_in_turns(iterators: list[Iterator[dict]], num_rows: int) -> list[dict]:
    """A row of each iterator, beginning with the first, until there are `num_rows` or no more."""
    rows: list[dict] = []
    iterators = list(iterators)
    while iterators and len(rows) < num_rows:
        for iterator in list(iterators):
            row = next(iterator, None)
            if row is None:
                iterators.remove(iterator)
            else:
                rows.append(row)
            if len(rows) == num_rows:
                break
    return rows
