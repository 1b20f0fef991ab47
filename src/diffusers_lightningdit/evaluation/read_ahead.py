# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Work that goes on in the background while its results are used."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int, num_ahead: int
) -> Iterator[Result]:
    """`map`, by threads that are up to `num_ahead` items ahead; the items are taken in the calling thread."""
    items = iter(items)
    with ThreadPoolExecutor(num_threads) as threads:
        waiting = deque(threads.submit(function, item) for item in itertools.islice(items, num_ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(threads.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
