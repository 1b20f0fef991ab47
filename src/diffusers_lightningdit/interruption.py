# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Ctrl-C and SIGTERM, answered between two steps of the work."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

import torch

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_REQUEST = 2.0  # seconds; a launcher passes on the signal that a terminal has sent to all processes already


class Interrupted(Exception):
    """The work ends early because a signal asked for it; the message is one line.

    Attributes:
        number: The signal.
    """

    def __init__(self, message: str, number: signal.Signals):
        super().__init__(message)
        self.number = number


class Interruption:
    """While the context lasts, the first SIGINT or SIGTERM is only noted; a second one ends the process at once.

    Signals within two seconds of the first are the same request. Outside the main thread nothing changes, since only
    the main thread can handle signals.

    Attributes:
        requested: The signal that this process was sent, or None.
        of_any_process: The signal that any process of the run was sent by the last `agree`, the same on all of them.
    """

    def __init__(self):
        self.requested: signal.Signals | None = None
        self.of_any_process: signal.Signals | None = None
        self._pid, self._time, self._handlers = os.getpid(), 0.0, {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a data loader's worker, which the main process ends
        if self.requested is None:
            self.requested, self._time = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._time > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._pid, number)

    def requests(self, device: torch.device) -> torch.Tensor:
        """float32 [2], for each of `SIGNALS` 1 if this process was sent it, else 0."""
        return torch.stack([torch.full((), float(self.requested == number), device=device) for number in SIGNALS])

    def agree(self, means: Sequence[float]) -> None:
        """Set `of_any_process` by the means of all processes' `requests`.

        A step of training takes them along with the means of its losses: asking on its own would be a second wait.
        """
        self.of_any_process = next((number for number, mean in zip(SIGNALS, means, strict=True) if mean > 0), None)


class _StoppingSignals(Interruption):
    """The first signal raises KeyboardInterrupt where the program stands; a later one ends the process at once."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        was_requested = self.requested
        super()._note(number, frame)
        if was_requested is None and self.requested is not None:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the work within, which removes half-written files and unlocks folders on its way out.

    For work that has nothing to save between its steps; `Interruption` is for work that has.

    Args:
        message: The line that says what happens when the program is run again.

    Raises:
        Interrupted: with this message, after such a signal.
    """
    with _StoppingSignals() as signals:
        try:
            yield
        except BaseException as error:
            if signals.requested is None and not isinstance(error, KeyboardInterrupt):
                raise
            # whatever was raised: communication with a process that ends may fail before this one's signal is answered
            raise Interrupted(message, signals.requested or signal.SIGINT) from error


def exit_status(number: signal.Signals) -> int:
    """The exit status of a process that a signal has ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number
