# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The order of training samples from a stream: the same whatever the number of processes, and found again from a state.

In each epoch the files come in another order, some of them at a time are read in turns, and blocks of rows are shuffled
in memory; all of it follows from the seed. The samples, epoch after epoch without end, are cut into global batches, and
these into the same parts as `GlobalBatchSampler` cuts them.
"""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from torch.utils.data import default_collate

from ..keyed_random import keyed_permutation
from .global_batches import own_parts
from .streamed_rows import Row, StreamedRows, StreamError, reading

NUM_THREADS = 4  # that decode images, in each process
# where a block is: its place in the files, its number in the epoch, the samples before it
BEGINNING = {"epoch": 0, "group": 0, "files": None, "number": 0, "num_before": 0}
MAX_PARTS = 1024  # that the files are gathered to: opening one of very many takes a look at all


class RowStream:
    """The samples of a stream in global batches, epoch after epoch without end.

    Iterating yields this process's part of the next one: a list of `gradient_accumulation_steps` batches.

    Every process reads all rows, and decodes its own samples. One global batch is read ahead by a thread.

    `state_dict()` is the place after the global batch that was yielded last, and enough to go on from there on any
    number of processes: at most a block is read again.

    Args:
        source: The stream of samples.
        global_batch_size, seed, rank, world_size, gradient_accumulation_steps: As for `GlobalBatchSampler`.
        shuffle_block_size: The number of rows that are shuffled at a time, and kept in memory.
        num_open_files: The number of files that a block is mixed from; data that is sorted by label needs many.

    Attributes:
        parts: As of `GlobalBatchSampler`.

    Raises:
        ValueError: if a global batch cannot be cut into equal parts; while iterating, `StreamError` for a stream that
            breaks off and rows that cannot be used.
    """

    def __init__(
        self,
        source: StreamedRows,
        global_batch_size: int,
        seed: int = 0,
        shuffle_block_size: int = 8192,
        num_open_files: int = 64,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
    ):
        for name, value in (("shuffle_block_size", shuffle_block_size), ("num_open_files", num_open_files)):
            if value < 1:
                raise ValueError(f"`{name}` is {value}; required: at least 1.")
        self.parts = own_parts(global_batch_size, rank, world_size, gradient_accumulation_steps)
        self.source = source
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle_block_size = shuffle_block_size
        self.num_open_files = num_open_files
        self._num_files = source.rows.num_shards
        self._num_parts = min(self._num_files, MAX_PARTS)
        self._state = {"num_yielded": 0, "block": BEGINNING}

    # -- batches --

    def __iter__(self) -> Iterator[list[dict]]:
        batches = self._global_batches()
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(next, batches)
            while True:
                parts, state = ahead.result()
                ahead = thread.submit(next, batches)
                self._state = state
                yield parts

    def _global_batches(self) -> Iterator[tuple[list[dict], dict]]:
        """This process's parts of each global batch, and the state after it."""
        num_yielded = self._state["num_yielded"]
        block = self._state["block"]
        places = self._places(block, num_yielded, itertools.count(block["epoch"]))
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            while True:
                global_batch = list(itertools.islice(places, self.global_batch_size))
                parts = []
                for part in self.parts:
                    mine = global_batch[part.start : part.stop]
                    parts.append(default_collate(list(threads.map(self._sample, mine))))
                num_yielded += self.global_batch_size
                block, _, _ = global_batch[-1]
                yield parts, {"num_yielded": num_yielded, "block": block}

    def _sample(self, place: tuple[dict, int, Row], may_vary: bool = True) -> dict:
        block, index, row = place
        variation = self.source.variation(self.seed, block["epoch"], index) if may_vary else None
        return self.source.sample(row, f"sample {index} of epoch {block['epoch']} of the stream", variation)

    def first_epoch(
        self, batch_size: int, num_samples: int | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict]:
        """Batches of the first samples, or of all, each once, in the order of the first epoch and not varied.

        Of these batches only every `world_size`-th from the `rank`-th on, which is decoded; all rows are read.
        """
        chosen = itertools.islice(self._places(BEGINNING, 0, [0]), num_samples)
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            for number in itertools.count():
                places = list(itertools.islice(chosen, batch_size))
                if not places:
                    return
                if number % world_size == rank:
                    yield default_collate(list(threads.map(partial(self._sample, may_vary=False), places)))

    # -- order --

    def _places(self, start: dict, first: int, epochs: Iterable[int]) -> Iterator[tuple[dict, int, Row]]:
        """Block, index in the epoch and row of the samples from the `first` on, which is in block `start` or later."""
        num_before = start["num_before"]
        for block, rows in self._blocks(start, epochs):
            block["num_before"] = num_before
            order = keyed_permutation(len(rows), self.seed, block["epoch"], block["number"])
            for place in order[max(first - num_before, 0) :].tolist():
                yield block, block["number"] * self.shuffle_block_size + place, rows[place]
            num_before += len(rows)

    def _blocks(self, start: dict, epochs: Iterable[int]) -> Iterator[tuple[dict, list[Row]]]:
        """Blocks of rows as they lie in the files, each with its place; `datasets` keeps the place within a file."""
        rows, first_group, states, number = self.source.rows, start["group"], start["files"], start["number"]
        for epoch in epochs:
            order = keyed_permutation(self._num_parts, self.seed, epoch).tolist()
            groups = [order[i : i + self.num_open_files] for i in range(0, len(order), self.num_open_files)]
            for group in range(first_group, len(groups)):
                files = [rows.shard(self._num_parts, index) for index in groups[group]]
                if states is not None:
                    for file, state in zip(files, states, strict=True):
                        file.load_state_dict(state)
                iterators = [iter(file) for file in files]
                while True:
                    block = {"epoch": epoch, "group": group, "number": number}
                    block["files"] = [file.state_dict() for file in files]
                    with reading(self.source.data):
                        block_rows = _take_in_turns(iterators, self.shuffle_block_size)
                    if not block_rows:
                        break
                    yield block, block_rows
                    number += 1
                states = None
            if number == 0:
                raise StreamError(f"{self.source.data} has no row in epoch {epoch}; required: at least one.")
            first_group, number = 0, 0

    # -- saved with a checkpoint --

    def state_dict(self) -> dict:
        """The place after what was yielded, with what the order depends on."""
        return {**self._state, **self.identity()}

    def load_state_dict(self, state: dict) -> None:
        """Begin the next iteration where `state` was taken, on any number of processes.

        Raises:
            ValueError: if it was taken with another order.
        """
        for name, value in self.identity().items():
            if state.get(name) != value:
                raise ValueError(f"`{name}` is {value}; required: {state.get(name)}, as in the state to resume from.")
        self._state = {"num_yielded": state["num_yielded"], "block": dict(state["block"])}

    def identity(self) -> dict:
        """Everything that determines the order; a resumed run compares it."""
        return {
            "global_batch_size": self.global_batch_size,
            "seed": self.seed,
            "shuffle_block_size": self.shuffle_block_size,
            "num_open_files": self.num_open_files,
            "num_files": self._num_files,
            "data_sha256": self.source.data_sha256(),
        }


def _take_in_turns(iterators: list[Iterator[Row]], num_rows: int) -> list[Row]:
    """A row of each iterator, beginning with the first, until there are `num_rows` or no more."""
    rows: list[Row] = []
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
