# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Processes that work together: how long they wait for each other, and work that only the main one does."""

import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, KwargsHandler, broadcast_object_list

Result = TypeVar("Result")

# the slowest process of a measurement, or what the main one does alone with all that was measured
MEASURING = datetime.timedelta(days=7)


class SeparateProcesses(ValueError):
    """Several processes were started, each of which takes itself for the only one; the message is one line."""


def patient_accelerator(
    patience: datetime.timedelta = MEASURING, handlers: Sequence[KwargsHandler] = (), **arguments
) -> Accelerator:
    """An accelerator whose processes wait for the slowest of them, or for what the main process does alone.

    Args:
        patience: The time after which a process that waits for another one fails; torch's default is 10 or 30 minutes.
        handlers, arguments: Arguments of `Accelerator`.

    Raises:
        SeparateProcesses: if several processes were started which do not know of each other.
        ValueError, ImportError: as `Accelerator` raises them.
    """
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=patience), *handlers], **arguments)
    num_started = int(os.environ.get("WORLD_SIZE", "1"))
    if num_started != accelerator.num_processes:
        raise SeparateProcesses(
            f"{num_started} processes were started which do not know of each other; required on CPUs: the environment "
            "variable ACCELERATE_USE_CPU=true."
        )
    return accelerator


def on_main_process(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Call a function on the main process alone; every process returns its result, or raises its error.

    Every process has to call this, and waits until the main process is done. The result is pickled. Errors of other
    kinds than ValueError, RuntimeError, ImportError and OSError are raised on the main process only.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except (ValueError, RuntimeError, ImportError, OSError) as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    result, error = outcome
    if error is not None:
        raise error
    return result
