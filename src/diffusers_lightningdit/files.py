# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Files and folders: writing them whole or not at all, JSON, hashes, and reading that never runs what a file contains.

Everything that is wrong with a file is a ValueError of one line, which names the file and what is required.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[^:]+)")
LOCK_FILE, HOLDER_FILE = ".lock", ".lock.json"  # of a folder that is being written, or that a killed run wrote into
# A folder that has one of these holds a finished result: a pipeline, a model, a LoRA.
RESULT_FILES = ("model_index.json", "config.json", "pytorch_lora_weights.safetensors")


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


def one_line(error: BaseException) -> str:
    """The message of an exception as one line, or the name of its class where there is no message."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's message: for libraries whose messages go on with lists and advice."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).strip()


# ---------------------------------------------------------------------------------------------------------------------
# Writing a file
# ---------------------------------------------------------------------------------------------------------------------


def partial_name(path: str | Path) -> Path:
    """The name under which a file is written before it is whole; no pattern such as `*.parquet` finds it."""
    path = Path(path)
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def atomic_write(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields the path to write to, which is renamed to `path` when the block ends, and removed if the block fails. A file
    that has the name already is replaced. The new one gets the permissions that the umask gives to new files, whatever
    the library that wrote it gave it.

    Args:
        path: The file.
        sync: Bring the bytes to the disk before the file is renamed, so that it is whole after a power failure, too.

    Raises:
        OSError: that names the file, if it cannot be written.
    """
    partial = partial_name(path)
    partial.unlink(missing_ok=True)  # a killed process may have left it
    try:
        partial.touch()
        mode = partial.stat().st_mode  # asking for the umask would mean to change it, in all threads
        with _full_disks_are_os_errors(path):
            yield partial
        partial.chmod(mode)
        if sync:
            to_disk(partial)
        os.replace(partial, path)
    except OSError as error:  # of a full disk, which names no file where it is met in writing
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or one_line(error), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _full_disks_are_os_errors(path: str | Path) -> Iterator[None]:
    """Turn the error of safetensors, which names no file where it cannot write one, into an OSError that does."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, one_line(error), str(path)) from error


def to_disk(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: dict | list) -> None:
    """Write a JSON file whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def append_json(path: str | Path, content: dict) -> None:
    """Append a line of JSON to a file, in place of a last line that a full disk left without its end."""
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(content) + "\n").encode())


def json_values(content: Any) -> Any:
    """The content as it would be read back from a JSON file: tuples as lists, keys and unknown objects as text."""
    return json.loads(json.dumps(content, default=str))


# ---------------------------------------------------------------------------------------------------------------------
# Writing a folder
# ---------------------------------------------------------------------------------------------------------------------


def check_output_dir(output_dir: str | Path, resuming: bool = False, leftovers: Sequence[str] = ()) -> None:
    """Raise ValueError if results in `output_dir` would overwrite something.

    Args:
        output_dir: The folder, which need not exist.
        resuming: Allow checkpoints, logs and samples of the run that is resumed, but no finished result.
        leftovers: The names of files that a killed run may have left half written.
    """
    path, name = Path(output_dir), f"`output_dir` is {str(output_dir)!r}"
    leftovers = (*leftovers, LOCK_FILE, HOLDER_FILE)
    if resuming and (path.is_dir() or not path.exists()):
        if any((path / file).exists() for file in RESULT_FILES):
            raise ValueError(
                f"{name}, which holds a finished result; required: another folder, with `resume_from_checkpoint` one "
                f"of {output_dir}/checkpoint-*."
            )
    elif path.exists() and (not path.is_dir() or any(file.name not in leftovers for file in path.iterdir())):
        remedy = ""
        if path.is_dir() and any(path.glob("checkpoint-*")):
            remedy = ", or `resume_from_checkpoint=latest` to go on with the run that began there"
        raise ValueError(f"{name}, which exists; required: a new or an empty folder{remedy}.")


@contextlib.contextmanager
def new_folder(output_dir: str | Path) -> Iterator[Path]:
    """Write a folder whole or not at all.

    Yields the folder to write into, which is renamed to `output_dir` when the block ends, and removed if it fails.

    Raises:
        ValueError: if `output_dir` exists and is not an empty folder.
    """
    check_output_dir(output_dir)
    folder = Path(output_dir).absolute()
    created = [parent for parent in folder.parents if not parent.exists()]  # innermost first
    # Beside the target, since a rename within one file system is all or nothing.
    partial = folder.with_name(f".{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        with _full_disks_are_os_errors(folder):
            yield partial
        make_readable(partial)
        os.replace(partial, folder)  # which may be an empty folder
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # a parent is not empty any more: somebody else uses it
            for parent in created:
                parent.rmdir()
        raise


@contextlib.contextmanager
def write_result(output_dir: str | Path) -> Iterator[Path]:
    """Write a result into `output_dir`, which may hold checkpoints and logs already.

    Yields the folder to write into, whose content is moved there when the block ends. The file that marks a finished
    result comes last, so that a process that is killed before can be resumed.
    """
    partial = Path(output_dir) / ".result.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with _full_disks_are_os_errors(output_dir):
        yield partial
    make_readable(partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.name in RESULT_FILES):
        target = Path(output_dir) / path.name
        if target.is_dir():  # a run was killed between two of these lines
            shutil.rmtree(target)
        os.replace(path, target)
    partial.rmdir()


def make_readable(folder: Path) -> None:
    """Give all files in a folder the permissions of new files; transformers and safetensors leave some private."""
    probe = folder / f".{uuid.uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


# ---------------------------------------------------------------------------------------------------------------------
# Hashes
# ---------------------------------------------------------------------------------------------------------------------


def file_sha256(path: str | Path) -> str:
    """The SHA-256 sum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: str | Path, digits: str, argument: str) -> str:
    """Require a file to have a certain SHA-256 sum, and return that sum.

    Args:
        path: The file.
        digits: The sum in hexadecimal, or at least its first 8 digits.
        argument: The name of the setting that gives these digits, for the message.

    Raises:
        ValueError: if the file has another sum, or fewer digits are given.
    """
    found = file_sha256(path)
    if len(digits) < 8 or not found.startswith(digits.lower()):
        raise ValueError(
            f"{path} has the sha256 {found}; required: the one that `{argument}` gives, {digits!r} (at least 8 digits)."
        )
    return found


def weights_sha256(model: torch.nn.Module) -> str:
    """The SHA-256 sum of a model's weights, their names and types, whatever the device, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_json(path: str | Path, required: str = "a JSON file, as it was written") -> dict:
    """The content of a JSON file.

    Args:
        path: The file.
        required: What the error asks for.

    Raises:
        ValueError: if the file is missing or damaged, or does not hold a dictionary.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets nested by the thousand
        raise ValueError(f"{path} is missing or no JSON file ({one_line(error)}); required: {required}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; required: {required}, with a dictionary.")
    return content


def read_model(model_class: type, name: str | Path, argument: str, required: str, subfolder: str | None = None) -> Any:
    """Load a model or pipeline of diffusers from a folder or the Hub, whatever is wrong with its files.

    Args:
        model_class: The class, with `load_config` and `from_pretrained`.
        name: The folder or Hub id.
        argument: The name of the setting that gives it, for messages.
        required: What the error asks for.
        subfolder: The folder within the repository.

    Raises:
        ValueError: in one line, if there is none, it is of another class or damaged, or it has weights that are NaN or
            infinite.
    """
    place = f"`{argument}` is {str(name)!r}"
    try:
        found = model_class.load_config(name, subfolder=subfolder).get("_class_name")
        if found == model_class.__name__:
            loaded = model_class.from_pretrained(name, **({"subfolder": subfolder} if subfolder else {}))
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(f"{place}; required: {required} ({first_line(error)[:300]}).") from error
    if found != model_class.__name__:
        raise ValueError(f"{place}, a {str(found)[:100]}; required: {required}.")
    for part in getattr(loaded, "components", {"": loaded}).values():
        for key, value in part.state_dict().items() if isinstance(part, torch.nn.Module) else ():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(
                    f"{place}, whose weight `{key}` has values that are NaN or infinite; required: {required}."
                )
    return loaded


def resolve_file(file: str | Path) -> Path:
    """A local path, or `user/repo:path/in/repo` on the Hugging Face Hub, as a local path.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(file)
    if path.exists():
        return path
    on_hub = HUB_FILE.fullmatch(str(file))
    if on_hub is None:
        raise ValueError(f"{file}: no such file; required: a local path, or user/repo:file of the Hub.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(on_hub["repo"], on_hub["file"]))
    except Exception as error:  # a dozen classes: no network, no repository, no file, no permission
        raise ValueError(f"{file}: cannot be fetched from the Hub: {first_line(error)}") from error


def read_checkpoint(file: str | Path) -> dict:
    """Read a .pt, .pth, .ckpt or .safetensors file (see `resolve_file` for names on the Hub) onto the CPU.

    Only tensors and plain Python values are read: a pickle that names any other class or function is refused.

    Raises:
        ValueError: if the file cannot be read so, or does not hold a dictionary.
    """
    path = resolve_file(file)
    if path.is_dir():
        raise ValueError(f"{file}: is a folder; required: a checkpoint file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{file}: is empty; required: a checkpoint file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocols of old files
            # Mapped, so that the optimiser state of a training checkpoint is never read.
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file can raise nearly anything
        code = re.search(r"unsupported global:? (?:GLOBAL )?([\w.]+)", str(error), re.IGNORECASE)
        if code is not None:
            raise ValueError(
                f"{file}: contains the Python object {code[1]}; required: tensors and plain values only, because "
                "loading anything else can run code."
            ) from error
        raise ValueError(f"{file}: is damaged or no checkpoint ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{file}: holds a {type(checkpoint).__name__}; required: a dictionary of weights.")
    for key, value in _nested_items(checkpoint):
        if isinstance(value, torch.Tensor) and not _has_own_values(value):
            raise ValueError(f"{file}: `{key}` is a tensor without values of its own; required: plain tensors.")
    return checkpoint


def _nested_items(values: dict) -> Iterator[tuple[Any, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _nested_items(value)
        else:
            yield key, value


def _has_own_values(tensor: torch.Tensor) -> bool:
    """Whether each value is stored; a few bytes of a file can stand for an expanded or a sparse tensor of any size."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
