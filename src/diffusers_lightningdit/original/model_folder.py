"""Reading a model from a folder of diffusers, strictly."""

from pathlib import Path

import torch
from diffusers import ModelMixin
from safetensors import safe_open

from ..files import first_line, read_json
from .translation import COUNTER


def load_model_folder(model_class: type[ModelMixin], folder: Path, class_names: tuple[str, ...]) -> ModelMixin:
    """`from_pretrained`, strictly: of one of these classes, with every weight, in the type in which they are stored.

    Raises:
        ValueError: naming the folder, file or key that is at fault.
    """
    class_name = read_json(folder / "config.json").get("_class_name")
    if class_name not in class_names:
        raise ValueError(f"{folder}: holds a {class_name}; required: {' or '.join(class_names)}.")
    dtype = _stored_dtype(folder)
    try:
        model, info = model_class.from_pretrained(folder, dtype=dtype, output_loading_info=True, local_files_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    for fault in ("missing", "unexpected", "mismatched"):
        for key in info[f"{fault}_keys"]:
            raise ValueError(f"{folder}: key `{key}` is {fault}; required: exactly the keys of its config.json.")
    return model.eval()


def _stored_dtype(folder: Path) -> torch.dtype:
    """The type of the stored weights, which are all of one floating-point type; float32 where there are none."""
    first = None
    # whole or in shards, but not the variants beside them, such as diffusion_pytorch_model.fp16.safetensors
    files = [*folder.glob("diffusion_pytorch_model.safetensors"), *folder.glob("diffusion_pytorch_model-*.safetensors")]
    for file in sorted(files):
        try:
            with safe_open(file, "pt") as tensors:
                keys = [key for key in tensors.keys() if not key.endswith(COUNTER)]  # noqa: SIM118
                dtypes = {key: tensors.get_slice(key).get_dtype() for key in keys}
        except Exception as error:
            raise ValueError(f"{file}: is damaged or no safetensors file ({type(error).__name__}).") from error
        for key, dtype in dtypes.items():
            first = first or (key, dtype)
            if dtype != first[1]:
                raise ValueError(f"{file}: key `{key}` has type {dtype}; required: {first[1]}, as `{first[0]}` has.")
    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if first is not None and first[1] not in types:
        raise ValueError(f"{folder}: key `{first[0]}` has type {first[1]}; required: a floating-point type.")
    return torch.float32 if first is None else types[first[1]]
