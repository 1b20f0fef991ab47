# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The result of a training run, written so that a process that is killed meanwhile can be resumed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ..settings import RESULT_FILES


def current_umask() -> int:
    """The permissions that new files do not get; setting the mask is the only way to read it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_result(output_dir: str, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, then move its content to `output_dir`, which may hold checkpoints and logs already.

    The file that tells a finished result comes last, so that a process that is killed can be resumed.
    """
    partial = Path(output_dir) / ".result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    readable = 0o666 & ~current_umask()
    for path in partial.rglob("*"):
        if path.is_file():  # transformers and safetensors leave some that only their owner can read
            path.chmod(readable)
    for path in sorted(partial.iterdir(), key=lambda path: path.name in RESULT_FILES):
        target = Path(output_dir) / path.name
        if target.is_dir():  # left by a run that was killed between two of these lines
            shutil.rmtree(target)
        os.replace(path, target)
    partial.rmdir()
