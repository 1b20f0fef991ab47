"""Files of the original implementation: finding, reading and writing them, without ever running code they contain."""

import contextlib
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import safe_open
from safetensors.torch import load_file

HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[^:]+)")


class CheckpointError(ValueError):
    """A checkpoint, YAML file or folder cannot be used; the message is one line naming what and why."""


@contextlib.contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Put the file's name in front of the errors raised inside."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for errors of one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def resolve_file(file: str | Path) -> Path:
    """A local path, or `user/repo:path/in/repo` on the Hugging Face Hub, as a local path.

    Raises:
        CheckpointError: if there is no such file.
    """
    path = Path(file)
    if path.exists():
        return path
    on_hub = HUB_FILE.fullmatch(str(file))
    if on_hub is None:
        raise CheckpointError(f"{file}: no such file; required: a local path, or user/repo:file of the Hub.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(on_hub["repo"], on_hub["file"]))
    except Exception as error:  # a dozen classes: no network, no repository, no file, no permission
        raise CheckpointError(f"{file}: cannot be fetched from the Hub: {first_line(error)}") from error


def read_checkpoint(file: str | Path) -> dict:
    """Read a .pt, .pth, .ckpt or .safetensors file (see `resolve_file` for names on the Hub) onto the CPU.

    Only tensors and plain Python values are read: a pickle that names any other class or function is refused.

    Raises:
        CheckpointError: if the file cannot be read so, or does not hold a dictionary.
    """
    path = resolve_file(file)
    if path.is_dir():
        raise CheckpointError(f"{file}: is a folder; required: a checkpoint file.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{file}: is empty; required: a checkpoint file.")
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
            raise CheckpointError(
                f"{file}: contains the Python object {code[1]}; required: tensors and plain values only, because "
                "loading anything else can run code."
            ) from error
        raise CheckpointError(f"{file}: is damaged or no checkpoint ({type(error).__name__}).") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{file}: holds a {type(checkpoint).__name__}; required: a dictionary of weights.")
    return checkpoint


def plain_state_dict(entry: object, name: str) -> dict[str, torch.Tensor]:
    """Check that an entry of a checkpoint is a state dict, and take off the `module.` of data-parallel training."""
    if not isinstance(entry, dict) or not entry:
        raise CheckpointError(f"{name} holds no weights; required: a dictionary of tensors.")
    for key, value in entry.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{name} has the entry `{key}` of type {type(value).__name__}; required: a tensor.")
    if all(key.startswith("module.") for key in entry):
        return {key.removeprefix("module."): value for key, value in entry.items()}
    return entry


def read_json(file: Path) -> dict:
    """A configuration file of diffusers; raises CheckpointError if it is missing or no JSON dictionary."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: is missing or no JSON file; required in a folder of diffusers.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds a {type(values).__name__}; required: a dictionary.")
    return values


def load_model_folder(model_class: type[ModelMixin], folder: Path, class_names: tuple[str, ...]) -> ModelMixin:
    """`from_pretrained`, strictly: of one of these classes, with every weight, in the type in which they are stored.

    Raises:
        CheckpointError: naming the folder, file or key that is at fault.
    """
    class_name = read_json(folder / "config.json").get("_class_name")
    if class_name not in class_names:
        raise CheckpointError(f"{folder}: holds a {class_name}; required: {' or '.join(class_names)}.")
    try:
        model, info = model_class.from_pretrained(
            folder, torch_dtype=_stored_dtype(folder), output_loading_info=True, local_files_only=True
        )
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    for fault in ("missing", "unexpected", "mismatched"):
        for key in info[f"{fault}_keys"]:
            raise CheckpointError(f"{folder}: key `{key}` is {fault}; required: exactly the keys of its config.json.")
    return model.eval()


def _stored_dtype(folder: Path) -> torch.dtype:
    first = None
    # whole or in shards, but not the variants beside them, such as diffusion_pytorch_model.fp16.safetensors
    files = [*folder.glob("diffusion_pytorch_model.safetensors"), *folder.glob("diffusion_pytorch_model-*.safetensors")]
    for file in sorted(files):
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (no dictionary)
                    dtype = tensors.get_slice(key).get_dtype()
                    first = first or (key, dtype)
                    if dtype != first[1]:
                        raise CheckpointError(
                            f"{file}: key `{key}` has type {dtype}; required: {first[1]}, as `{first[0]}` has."
                        )
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{file}: is damaged or no safetensors file ({type(error).__name__}).") from error
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if first is not None and first[1] not in types:
        raise CheckpointError(f"{folder}: key `{first[0]}` has type {first[1]}; required: a floating-point type.")
    return torch.float32 if first is None else types[first[1]]


def check_new_folder(folder: str | Path) -> None:
    """Raise `CheckpointError` if `folder` could not be written without overwriting something."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"output_dir {folder} is a file; required: a new or empty folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"output_dir {folder} is not empty; required: a new or empty folder.")


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends, and vanishes if it fails.

    Raises:
        CheckpointError: if `folder` exists and is not an empty folder; nothing is ever overwritten.
    """
    folder = Path(folder).absolute()
    check_new_folder(folder)
    created = [parent for parent in folder.parents if not parent.exists()]  # innermost first
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: a rename within one file system is all or nothing.
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        partial.rename(folder)  # replaces an empty folder
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty any more: somebody else uses it
            for parent in created:
                parent.rmdir()
        raise
