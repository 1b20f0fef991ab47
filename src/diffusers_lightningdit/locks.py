# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Folders that one run at a time writes into."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from .files import HOLDER_FILE, LOCK_FILE, read_json, write_json
from .processes import on_main_process

ORPHAN_PATIENCE = 30.0  # seconds; torch's data loader workers end within 5 seconds of the process they work for


class FolderInUse(ValueError):
    """Another run writes into the folder; the message is one line."""


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Make a folder where there is none, and keep other runs from writing into it.

    A folder that was made and is empty in the end goes again.

    The lock is the operating system's (`flock`), so that it ends with the process, however that ends; on NFS it holds
    on all machines. A killed process's data loader workers may outlive it by some seconds: they are waited for. Only
    the main process of a run takes the lock.

    Args:
        folder: The folder. While it is locked, it holds the files `.lock` and `.lock.json`.

    Raises:
        FolderInUse: naming the process that holds the lock, its machine, and since when.
        OSError: if the folder cannot be made or written into.
    """
    folder = Path(folder)
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK_FILE), folder / HOLDER_FILE
    try:
        lock.acquire(timeout=ORPHAN_PATIENCE if _has_ended(_read(holder)) else 0)
    except Timeout as error:
        raise FolderInUse(
            f"{folder} is being written by {_description(_read(holder))}; required: a folder of its own for each run, "
            "or to wait until that one has ended."
        ) from error
    try:
        write_json(
            holder,
            {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "since": datetime.now().astimezone().isoformat(timespec="seconds"),
                "command": sys.argv,
            },
        )
        yield
    finally:
        holder.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows removes no open file
            (folder / LOCK_FILE).unlink()
        lock.release()
        if not was_there:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


@contextlib.contextmanager
def locked_by_run(accelerator: Accelerator, folder: str | Path) -> Iterator[None]:
    """As `locked`, for a run of several processes, all of which call this and raise its error."""
    with contextlib.ExitStack() as stack:
        on_main_process(accelerator, lambda: stack.enter_context(locked(folder)))
        yield


def _read(holder: Path) -> dict:
    """The description of the process that holds a lock, empty where it has written none yet."""
    try:
        return read_json(holder)
    except ValueError:
        return {}


def _has_ended(holder: dict) -> bool:
    """Whether the process is known to have ended: only its own machine can tell."""
    pid = holder.get("pid")
    if os.name != "posix" or holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):  # the latter of a number that no process has
        return True
    except OSError:
        pass  # it belongs to somebody else
    return False


def _description(holder: dict) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
