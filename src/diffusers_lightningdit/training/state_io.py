# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""States of models, optimisers and averages <-> whole tensors in safetensors files.

Training may be sharded (FSDP2): the files hold whole tensors by the names of the parameters, so that any number of
processes can go on from them. Saving gathers one tensor at a time and keeps it on the main process only. Loading reads
one tensor at a time on every process, which keeps its own shard.

torch's `set_model_state_dict` and `set_optimizer_state_dict` are not used for loading: an optimiser that has not
stepped yet takes a step in them, which shifts Adam's bias correction, and they need `param_groups`, which a checkpoint
does not hold because a resumed run has its own.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from .checkpoints import DamagedCheckpoint

WHOLE_ON_MAIN_PROCESS = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


# ---------------------------------------------------------------------------------------------------------------------
# Gathering: every process has to call these functions; the main process gets the tensors, the others get none
# ---------------------------------------------------------------------------------------------------------------------


def gather_model(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without frozen weights: whole tensors on the CPU of the main process, {} on the others."""
    return get_model_state_dict(model, options=WHOLE_ON_MAIN_PROCESS)


def gather_optimizer(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimiser's state by "<parameter>|<entry>": (whole tensors, plain values), ({}, {}) on other processes.

    Args:
        model: The model without Accelerate's wrapper.
        optimizer: Its optimiser without Accelerate's wrapper.
    """
    if not optimizer.state:  # such as a discriminator's that has not begun; torch's function would take a step with it
        return {}, {}
    gathered = get_optimizer_state_dict(model, optimizer, options=WHOLE_ON_MAIN_PROCESS).get("state", {})
    entries = {f"{name}|{entry}": value for name, state in gathered.items() for entry, value in state.items()}
    tensors = {key: value for key, value in entries.items() if isinstance(value, torch.Tensor)}
    return tensors, {key: value for key, value in entries.items() if key not in tensors}


def gather(tensors: Mapping[str, torch.Tensor], is_main_process: bool) -> dict[str, torch.Tensor]:
    """Any named tensors, for which torch has no function: whole, on the CPU of the main process, {} on the others."""
    gathered = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # every process takes part
        if is_main_process:
            gathered[name] = tensor.cpu()
    return gathered


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """This process's state dict, sharded where the model is, without the frozen weights."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model in its config, without diffusers' own, such as a list of values that it forgets."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def write_tensors(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Write a safetensors file; raises OSError naming the file."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:  # its message does not name the file
        raise OSError(f"{file.name}: {error}") from error


class TensorFile(Mapping):
    """The tensors of a safetensors file by name; each is read when it is asked for.

    Raises:
        DamagedCheckpoint: if the file cannot be opened.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            self.tensors = safe_open(file, "pt")
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{file} is missing or damaged; required: as it was written.") from error

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors.keys())

    def __len__(self) -> int:
        return len(self.tensors.keys())

    def shapes(self) -> dict[str, list[int]]:
        """The shape of each tensor by name, read without its values."""
        return {name: self.tensors.get_slice(name).get_shape() for name in self}


def read_trained(path: Path, name: str, decay: float | None = None) -> dict[str, torch.Tensor]:
    """The buffers and all trained weights of a model in a checkpoint.

    Args:
        path: The checkpoint's folder.
        name: The name of the model in it.
        decay: The decay of the average that is taken; None: the weights themselves.

    Raises:
        ValueError: in one line, if a file is missing or damaged, or there is no average of this decay.
    """
    tensors = dict(TensorFile(path / f"{name}.safetensors"))
    if decay is not None:
        file = path / f"{name}.ema-{decay:g}.safetensors"
        if not file.is_file():
            known = [other.name.split("ema-")[1].removesuffix(".safetensors") for other in path.glob(f"{name}.ema-*")]
            raise ValueError(
                f"`ema_decay` is {decay:g}; required: one that {path} has, {', '.join(sorted(known)) or 'null'}."
            )
        tensors |= dict(TensorFile(file))
    return tensors


def check_shapes(shapes: Mapping[str, list[int]], targets: Mapping[str, torch.Tensor], place: str) -> None:
    """Raise ValueError, naming the first tensor that is missing, unknown or of another shape than its target."""
    required = {name: list(target.shape) for name, target in targets.items()}
    for name in {**required, **shapes}:
        if name not in shapes:
            raise ValueError(f"{place} has no tensor `{name}`; required: the same architecture.")
        if name not in required:
            raise ValueError(f"{place} has an unknown tensor `{name}`; required: the same architecture.")
        if list(shapes[name]) != required[name]:
            raise ValueError(
                f"{place} has `{name}` of shape {list(shapes[name])}; required: {required[name]}, the same "
                "architecture."
            )


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def like(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the target's device, sharded as the target is."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


@torch.no_grad()
def copy_tensors(values: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors into those of the same names and shapes, sharded or not."""
    for name, target in targets.items():
        target.copy_(like(values[name], target))


def load_optimizer(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
) -> None:
    """Restore what `gather_optimizer` returned; learning rate and other settings stay the optimiser's own."""
    names = {parameter: name for name, parameter in parameters.items()}
    saved: dict[str, dict[str, str]] = {}  # name of a parameter -> its entries and their keys
    for key in (*tensors, *values):
        name, _, entry = key.rpartition("|")
        saved.setdefault(name, {})[entry] = key
    state, groups = {}, optimizer.state_dict()["param_groups"]  # where parameters are numbered
    for group, numbered in zip(optimizer.param_groups, groups, strict=True):
        for parameter, number in zip(group["params"], numbered["params"], strict=True):
            if names[parameter] in saved:
                state[number] = {
                    entry: values[key] if key in values else _moment(tensors[key], parameter)
                    for entry, key in saved[names[parameter]].items()
                }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _moment(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """An entry of an optimiser's state: sharded as the parameter if it has its shape, unlike a step count."""
    return like(value, parameter) if value.shape == parameter.shape else value
