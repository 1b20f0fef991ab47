"""Translating a state dict, in both directions, by one table of rows."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

# ---------------------------------------------------------------------------------------------------------------------
# How the values of one original tensor are arranged in ours: (original -> ours, ours -> original)
# ---------------------------------------------------------------------------------------------------------------------


def _swap_halves(value: torch.Tensor) -> torch.Tensor:
    return torch.cat(value.chunk(2)[::-1])


CHANGES = {
    "same": (lambda value: [value], lambda values: values[0]),
    # diffusers gates with the second half of SwiGLU, and has (scale, shift) where the original has (shift, scale)
    "halves swapped": (lambda value: [_swap_halves(value)], lambda values: _swap_halves(values[0])),
    # one matrix for query, key and value
    "three in one": (lambda value: value.chunk(3), torch.cat),
    # a linear layer written as a 1x1 convolution
    "1x1 convolution": (
        lambda value: [value[:, :, 0, 0] if value.ndim == 4 else value],
        lambda values: values[0][:, :, None, None] if values[0].ndim == 2 else values[0],
    ),
    # a kernel [out, in, 1, height, width] over time and space, of one frame
    "kernel of one frame": (lambda value: [value[:, :, 0]], lambda values: values[0][:, :, None]),
}


COUNTER = ".num_batches_tracked"  # of a batch norm, the one tensor of integers


@dataclass(frozen=True)
class Row:
    """One tensor of the original: its key, the keys it has in our model, and the change of `CHANGES` between them."""

    original: str
    ours: tuple[str, ...]
    change: str = "same"

    def to_ours(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of our model, by their keys, of the original's tensor."""
        # Cloned: the parts of one tensor must not share memory, and a mapped file may go away.
        return {key: part.clone() for key, part in zip(self.ours, CHANGES[self.change][0](value), strict=True)}

    def to_original(self, state_dict: dict[str, torch.Tensor]) -> torch.Tensor:
        """The original's tensor, of those of our model."""
        return CHANGES[self.change][1]([state_dict[key] for key in self.ours]).contiguous()


def tensor_rows(module_rows: Iterable[tuple], model_state: dict[str, torch.Tensor]) -> list[Row]:
    """Rows of modules (original, ours or a tuple of ours[, change]) -> rows of tensors, for what our model has."""
    rows = []
    for original, ours, *change in module_rows:
        ours = (ours,) if isinstance(ours, str) else ours
        for name in (".weight", ".bias", ""):
            if f"{ours[0]}{name}" in model_state:
                rows.append(Row(original + name, tuple(key + name for key in ours), *change))
    assert sorted(key for row in rows for key in row.ours) == sorted(model_state), "the table misses a tensor"
    return rows


def translate_from_original(
    rows: list[Row], original: dict[str, torch.Tensor], model_state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Original state dict -> ours.

    Args:
        rows: The table of rows.
        original: The state dict; it has to have exactly the rows' keys, with finite values of one floating-point type.
        model_state: Our model's state dict (on the meta device), for the shapes.

    Raises:
        ValueError: naming the first key that is missing, unknown, wrongly shaped or not finite.
    """
    check_keys(original, [row.original for row in rows])
    for row in rows:
        check_shape(row.original, original[row.original], row.to_original(model_state).shape)
    check_values(original)
    return {key: value for row in rows for key, value in row.to_ours(original[row.original]).items()}


def translate_to_original(
    rows: list[Row], ours: dict[str, torch.Tensor], model_state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Our state dict -> the original; arguments and errors as in `translate_from_original`."""
    check_keys(ours, list(model_state))
    for key, value in model_state.items():
        check_shape(key, ours[key], value.shape)
    check_values(ours)
    return {row.original: row.to_original(ours) for row in rows}


def check_keys(state_dict: dict, required: list[str]) -> None:
    """Raise ValueError naming the first key of `required` that is missing, or the first that is not among them."""
    for key in required:
        if key not in state_dict:
            raise ValueError(f"key `{key}` is missing; required for an architecture with these other keys.")
    known = set(required)
    for key in state_dict:
        if key not in known:
            raise ValueError(f"key `{key}` is unknown; required: only keys that an architecture with these has.")


def shape_of(state_dict: dict[str, torch.Tensor], key: str, num_dims: int) -> torch.Size:
    """The shape of the tensor `key`; raises ValueError if it is missing or has another number of dimensions."""
    if key not in state_dict:
        raise ValueError(f"key `{key}` is missing; required in every checkpoint of this kind.")
    if state_dict[key].ndim != num_dims:
        raise ValueError(f"key `{key}` has shape {list(state_dict[key].shape)}; required: {num_dims} dimensions.")
    return state_dict[key].shape


def check_shape(key: str, value: torch.Tensor, required: torch.Size) -> None:
    """Raise ValueError if a tensor has another shape than `required`."""
    if value.shape != required:
        raise ValueError(f"key `{key}` has shape {list(value.shape)}; required: {list(required)}.")


def check_complete(state_dict: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Raise ValueError unless a translated state dict has all weights of a model of the caller's config.

    Of `from_single_file`: diffusers itself would leave missing weights empty.
    """
    expected = {key: list(value.shape) for key, value in model.state_dict().items()}
    found = {key: list(value.shape) for key, value in state_dict.items()}
    for key in sorted(expected | found):
        if expected.get(key) != found.get(key):
            raise ValueError(
                f"key `{key}` has shape {found.get(key)} in the file; required: {expected.get(key)}, by the `config`."
            )


def check_values(state_dict: dict[str, torch.Tensor]) -> None:
    """Raise ValueError for the first tensor that is of another type than the first one, or not finite."""
    first = next((key for key in state_dict if not key.endswith(COUNTER)), next(iter(state_dict)))
    dtype = state_dict[first].dtype
    for key, value in state_dict.items():
        if key.endswith(COUNTER) and value.dtype == torch.int64:
            continue
        if not value.is_floating_point():
            raise ValueError(f"key `{key}` has type {value.dtype}; required: a floating-point type.")
        if value.dtype != dtype:
            raise ValueError(f"key `{key}` has type {value.dtype}; required: {dtype}, as `{first}` has.")
        if not value.is_meta and not torch.isfinite(value).all():  # diffusers' tests give tensors without values
            raise ValueError(f"key `{key}` has values that are NaN or infinite; required: finite values.")


def plain_state_dict(entry: object, name: str) -> dict[str, torch.Tensor]:
    """Check that an entry of a checkpoint is a state dict, and take off the `module.` of data-parallel training."""
    if not isinstance(entry, dict) or not entry:
        raise ValueError(f"{name} holds no weights; required: a dictionary of tensors.")
    for key, value in entry.items():
        if not isinstance(key, str):
            raise ValueError(f"{name} has the key {key!r}; required: names of weights.")
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{name} has the entry `{key}` of type {type(value).__name__}; required: a tensor.")
    if all(key.startswith("module.") for key in entry):
        return {key.removeprefix("module."): value for key, value in entry.items()}
    return entry


@contextlib.contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Put the file's name in front of the errors raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
