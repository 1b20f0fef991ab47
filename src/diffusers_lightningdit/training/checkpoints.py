# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Folders of checkpoints: written whole or not at all, checked before they are read, found again, the oldest removed.

`<output_dir>/checkpoint-<step>/` has a manifest of the sizes and SHA-256 sums of its files. It is written as
`.checkpoint-<step>.partial`, brought to the disk, and renamed: a process that is killed at any moment leaves every
checkpoint that has its name whole.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from ..files import file_sha256, make_readable, one_line, read_json, to_disk, write_json
from ..processes import on_main_process

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
UNFINISHED_NAME = re.compile(r"\.checkpoint-\d+\.(partial|removed)")
MANIFEST = "manifest.json"
STATE_FILE = "state.json"  # everything that is no tensor
STATE_ENTRIES = {
    "step": int,
    "position": int,
    "optimizers": dict,
    "optimizer_values": dict,
    "lr_schedulers": dict,
    "averages": dict,
    "guard": dict,
    "identity": dict,
    "architectures": dict,
    "settings": dict,
}


class DamagedCheckpoint(ValueError):
    """A checkpoint differs from its manifest; the message is one line naming file and cause."""


class CheckpointWriteError(RuntimeError):
    """A checkpoint could not be written; the message is one line. Earlier checkpoints are as they were."""


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return Path(output_dir) / f"checkpoint-{step}"


def list_checkpoints(output_dir: str | Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending; none where there is no folder."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    matches = [CHECKPOINT_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted(int(match[1]) for match in matches if match)


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_checkpoint(output_dir: str | Path, step: int, num_bytes: int = 0) -> Iterator[Path]:
    """A folder to write files into that becomes `checkpoint-<step>` when the block ends, and vanishes if it fails.

    Args:
        output_dir: The parent folder, made if need be.
        step: The step for the name, which must be free.
        num_bytes: The approximate size of the checkpoint, to refuse at once if the disk has less left.

    Raises:
        CheckpointWriteError: if the name is taken, or something cannot be written (disk full, no permission).
    """
    path = checkpoint_path(output_dir, step)
    partial = path.with_name(f".{path.name}.partial")
    try:
        if path.exists():
            raise CheckpointWriteError(f"{path} exists; required: a step without a checkpoint.")
        remove_unfinished(output_dir)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < num_bytes:
            raise CheckpointWriteError(
                f"{path} needs {num_bytes / 1e9:.3g} GB, the disk has {free / 1e9:.3g} GB left; {_kept(output_dir)}"
            )
        yield partial
        make_readable(partial)
        files = sorted(partial.iterdir())
        manifest = {file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)} for file in files}
        write_json(partial / MANIFEST, manifest)
        for file in (*files, partial / MANIFEST, partial):
            to_disk(file)
        partial.rename(path)
        to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointWriteError(f"{path} cannot be written: {one_line(error)}; {_kept(output_dir)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_old_checkpoints(output_dir: str | Path, total_limit: int | None) -> None:
    """Remove the oldest checkpoints until `total_limit` are left (None: keep all)."""
    steps = list_checkpoints(output_dir)
    for step in steps[: max(0, len(steps) - (total_limit or len(steps)))]:
        path = checkpoint_path(output_dir, step)
        removed = path.with_name(f".{path.name}.removed")
        path.rename(removed)  # a folder with the name of a checkpoint is always whole
        shutil.rmtree(removed, ignore_errors=True)


def remove_unfinished(output_dir: str | Path) -> None:
    """Remove the checkpoints that killed processes left half written or half removed."""
    if Path(output_dir).is_dir():
        for path in Path(output_dir).iterdir():
            if UNFINISHED_NAME.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def _kept(output_dir: str | Path) -> str:
    steps = list_checkpoints(output_dir)
    return f"the checkpoint of step {steps[-1]} is kept." if steps else "there is no earlier checkpoint."


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def check_checkpoint(path: str | Path) -> None:
    """Raise `DamagedCheckpoint` unless every file of the manifest is there with its size and SHA-256 sum."""
    path = Path(path)
    try:
        manifest = read_json(path / MANIFEST)
        entries = [(name, entry["size"], entry["sha256"]) for name, entry in manifest.items()]
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST} is missing or damaged; required: as it was written.") from error
    for name, size, sha256 in entries:
        file = path / name
        if not file.is_file():
            raise DamagedCheckpoint(f"{file} is missing; required by the manifest.")
        if file.stat().st_size != size:
            raise DamagedCheckpoint(f"{file} has {file.stat().st_size} bytes; required: {size}, as it was written.")
        if file_sha256(file) != sha256:
            raise DamagedCheckpoint(f"{file} is damaged: its SHA-256 sum is not the one it was written with.")


def latest_checkpoint(output_dir: str | Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and one line on each newer one that isn't.

    Those are renamed, so that training can write their steps again; nothing is deleted.
    """
    remarks = []
    for step in reversed(list_checkpoints(output_dir)):
        path = checkpoint_path(output_dir, step)
        try:
            check_checkpoint(path)
        except DamagedCheckpoint as error:
            remarks.append(str(error))
            names = (path.with_name(f"{path.name}.damaged-{number}") for number in range(1, 1000))
            path.rename(next(name for name in names if not name.exists()))
        else:
            return path, remarks
    return None, remarks


def read_state(path: Path) -> dict:
    """The content of `state.json`; raises `DamagedCheckpoint`, also if its entries are of other kinds."""
    file = path / STATE_FILE
    try:
        state = read_json(file)
    except ValueError as error:
        raise DamagedCheckpoint(f"{file} is missing or damaged; required: as it was written.") from error
    for key, kind in STATE_ENTRIES.items():
        if type(state.get(key)) is not kind:
            raise DamagedCheckpoint(f"`{key}` in {file} is {state.get(key)!r}; required: as it was written.")
    return state


def open_checkpoint(folder: str | Path) -> tuple[Path, dict]:
    """A checkpoint to make a result of, and the content of its `state.json`.

    Args:
        folder: The checkpoint's folder, or that of a run, whose newest checkpoint is taken.

    Raises:
        ValueError: in one line, if there is none, or it is damaged.
    """
    path = Path(folder)
    steps = list_checkpoints(path)
    if steps:
        path = checkpoint_path(path, steps[-1])
    if not (path / MANIFEST).is_file():
        raise ValueError(f"`checkpoint` is {str(folder)!r}; required: a folder checkpoint-N, or one that holds some.")
    check_checkpoint(path)
    return path, read_state(path)


def settings_of_result(state: dict, changes: dict, output_dir: str) -> dict:
    """The settings of a run, for a result that is made of one of its checkpoints, in another folder.

    Args:
        state: The content of the checkpoint's `state.json`.
        changes: Settings that take the place of the run's.
        output_dir: The folder of the result.
    """
    settings = state["settings"]
    # nothing is resumed, logged or uploaded
    own = {"resume_from_checkpoint": None, "report_to": None, "output_dir": output_dir}
    if "push_to_hub" in settings:
        own["push_to_hub"] = False
    if "ema_decay" in changes and "extra_ema_decays" in settings:  # one of the further averages becomes the saved one
        decays = [settings["ema_decay"], *settings["extra_ema_decays"]]
        own["extra_ema_decays"] = [decay for decay in decays if decay != changes["ema_decay"]]
    return {**settings, **changes, **own}


# ---------------------------------------------------------------------------------------------------------------------
# Finding the checkpoint to resume from
# ---------------------------------------------------------------------------------------------------------------------


def find_checkpoint(accelerator: Accelerator, output_dir: str, checkpoint: str | None) -> Path | None:
    """The checkpoint to resume from, or None to begin anew; every process has to call it, and the main one prints.

    Args:
        accelerator: The accelerator of the run.
        output_dir: The folder of the run's checkpoints.
        checkpoint: "latest", the folder of a checkpoint, or None. "latest" is None where there is no checkpoint, and
            passes over damaged ones, which are renamed.

    Raises:
        ValueError: in one line, if there is no such checkpoint or it is damaged.
    """
    if checkpoint is None:
        return None
    if checkpoint == "latest":
        return on_main_process(accelerator, lambda: _find_latest(output_dir))
    return on_main_process(accelerator, lambda: _find_named(output_dir, checkpoint))


def _find_latest(output_dir: str) -> Path | None:
    remove_unfinished(output_dir)
    path, remarks = latest_checkpoint(output_dir)
    if remarks and path is None:
        raise ValueError(f"{remarks[-1]} There is no earlier checkpoint in {output_dir} to resume from.")
    for remark in remarks:
        print(f"{remark} The one before it is used.")
    if path is None:
        print(f"no checkpoint in {output_dir}: training begins anew")
    return path


def _find_named(output_dir: str, checkpoint: str) -> Path:
    path = Path(checkpoint)
    if not path.is_dir():
        raise ValueError(
            f"`resume_from_checkpoint` is {checkpoint!r}; required: latest, or the folder of a checkpoint."
        )
    check_checkpoint(path)
    later = [step for step in list_checkpoints(output_dir) if step > read_state(path)["step"]]
    if later:
        raise ValueError(
            f"`resume_from_checkpoint` is {checkpoint!r}, but {checkpoint_path(output_dir, later[-1])} is "
            "later; required: latest, or another `output_dir`."
        )
    return path
