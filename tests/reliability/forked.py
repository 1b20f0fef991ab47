"""A program in a copy of this process, within bounds, that is killed or finds the disk full at a file operation."""

import contextlib
import errno
import math
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# What Python tells of before it happens (https://docs.python.org/3/library/audit_events.html).
FILE_OPERATIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "shutil.rmtree")
NEED_SPACE = ("open", "os.mkdir", "os.rename")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass
class Ended:
    """How a program ended.

    Attributes:
        status: Its exit status; minus the number of the signal that ended it.
        output: What it printed to both streams.
        num_operations: The file operations that it did below its folder, as far as it came.
    """

    status: int
    output: str
    num_operations: int

    @property
    def errors(self) -> list[str]:
        """The lines that say what was wrong."""
        return [line for line in self.output.replace("\r", "\n").splitlines() if line.startswith("error: ")]


def run_forked(
    program: Callable[[], object],
    folder: Path,
    kill_at: int | None = None,
    full_at: int | None = None,
    memory: int | None = None,
    seconds: int = 120,
) -> Ended:
    """Run `program` in a copy of this process, in the working directory `folder`.

    Args:
        program: The program; an exception that it raises is printed with its traceback, and the status is 1.
        folder: The working directory, and where file operations are counted.
        kill_at: The number of the file operation before which the program is killed (SIGKILL); None for never.
        full_at: The number of the file operation from which on the disk is full; None for never.
        memory: The bytes that it may take beyond what this process has.
        seconds: The time after which it is ended by SIGALRM.
    """
    output, count = folder.with_name(folder.name + ".output"), folder.with_name(folder.name + ".count")
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(seconds)
            if memory is not None:
                _limit_memory(memory)
            os.chdir(folder)
            _watch_operations(folder, count, kill_at or math.inf, full_at or math.inf)
            program()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    _, wait_status = os.waitpid(pid, 0)
    num_operations = int(count.read_text() or 0) if count.exists() else 0
    return Ended(os.waitstatus_to_exitcode(wait_status), output.read_text(errors="replace"), num_operations)


def _limit_memory(memory: int) -> None:
    in_use = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    limit = int(in_use.split()[1]) * 1024 + memory
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _watch_operations(folder: Path, count: Path, kill_at: float, full_at: float) -> None:
    """Count file operations below `folder` in a file that outlives this process, and let the wanted one go wrong."""
    file, root, process, number = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(folder), os.getpid(), 0
    lock = threading.Lock()

    def concerns(event: str, arguments: tuple) -> bool:
        if event not in FILE_OPERATIONS or not isinstance(arguments[0], str | bytes | os.PathLike):
            return False
        if event == "open" and not (arguments[2] or 0) & WRITING:
            return False
        return os.path.abspath(os.fsdecode(arguments[0])).startswith(root)

    def on_event(event: str, arguments: tuple) -> None:
        nonlocal number
        if os.getpid() != process or not concerns(event, arguments):
            return
        with lock:
            number += 1
            os.pwrite(file, str(number).encode(), 0)
            if number == kill_at:
                os.kill(process, signal.SIGKILL)
            is_full = number >= full_at
        if is_full and event in NEED_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))

    sys.addaudithook(on_event)
