# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The seconds that a call takes, also on a device that computes while Python goes on."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

clock = time.perf_counter  # what tells the time; `time.thread_time` for the processor time of this thread


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Call a function, wait until the device has done with it, and return the seconds from its beginning."""
    return timed(function, device)[0]


def timed(function: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """The seconds of `seconds_of`, and what the function returned."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start, result
