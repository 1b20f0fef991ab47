# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Everything that a training run has to remember, saved and restored exactly, on any number of processes.

A checkpoint of `checkpoints.py` holds, for every model NAME of the run, `NAME.safetensors` (buffers, and weights but
for frozen ones), `NAME.ema-<decay>.safetensors` and `NAME.optimizer.safetensors` (tensors `<parameter>|<entry>`), all
of them whole also where training is sharded (FSDP2), and `state.json` with all that is no tensor. Random numbers need
no state: they are functions of the position (see `keyed_random.py`), and so is the order of the data, unless it is a
stream.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..data.row_stream import RowStream
from ..files import json_values, read_json, write_json
from .checkpoints import (
    CheckpointWriteError,
    DamagedCheckpoint,
    check_checkpoint,
    checkpoint_path,
    latest_checkpoint,
    list_checkpoints,
    new_checkpoint,
    remove_old_checkpoints,
    remove_unfinished,
)
from .moving_averages import MovingAverages
from .spike_guard import SpikeGuard, TrainingDiverged

STATE_FILE = "state.json"
OF_THIS_START = ("output_dir", "resume_from_checkpoint")  # settings whose change says nothing


# ---------------------------------------------------------------------------------------------------------------------
# Tensors that may be sharded
# ---------------------------------------------------------------------------------------------------------------------


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU, gathered from its shards; every process has to call it."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


def like(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the target's device, sharded as the target is."""
    value = value.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict without the frozen weights, which training leaves as they are."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


@torch.no_grad()
def copy_state(targets: dict[str, torch.Tensor], values: dict[str, torch.Tensor], place: str) -> None:
    """Copy whole tensors into those of the same names, sharded or not.

    Raises:
        ValueError: naming the first tensor that is missing, unknown or of another shape; nothing is copied then.
    """
    for name in targets:
        if name not in values:
            raise ValueError(f"{place} has no tensor `{name}`; required: the same architecture.")
    for name, value in values.items():
        if name not in targets:
            raise ValueError(f"{place} has an unknown tensor `{name}`; required: the same architecture.")
        if value.shape != targets[name].shape:
            raise ValueError(
                f"{place} has `{name}` of shape {list(value.shape)}; required: {list(targets[name].shape)}, the same "
                "architecture."
            )
    for name, target in targets.items():
        target.copy_(like(values[name], target))


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers
# ---------------------------------------------------------------------------------------------------------------------


def optimizer_state(optimizer: Optimizer, names: dict[nn.Parameter, str]) -> tuple[dict, dict]:
    """What an optimiser knows of each parameter: whole tensors, and plain values, by "<parameter>|<entry>"."""
    tensors, values = {}, {}
    for parameter, entries in optimizer.state.items():
        for entry, value in entries.items():
            key = f"{names[parameter]}|{entry}"
            if isinstance(value, torch.Tensor):
                tensors[key] = whole(value)
            else:
                values[key] = value
    return tensors, values


def load_optimizer_state(
    optimizer: Optimizer, names: dict[nn.Parameter, str], tensors: dict[str, torch.Tensor], values: dict[str, Any]
) -> None:
    """Give back what `optimizer_state` returned; learning rate and other settings stay the optimiser's own."""
    entries_of: dict[str, dict] = {}
    for key, value in {**tensors, **values}.items():
        name, _, entry = key.rpartition("|")
        entries_of.setdefault(name, {})[entry] = value
    state, groups, number = {}, [], 0
    for group in optimizer.param_groups:  # numbers for parameters, as in Optimizer.state_dict()
        for parameter in group["params"]:
            entries = entries_of.get(names[parameter], {})
            if entries:
                state[number] = {
                    entry: like(value, parameter)
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                    else value
                    for entry, value in entries.items()
                }
            number += 1
        first = number - len(group["params"])
        groups.append({**group, "params": list(range(first, number))})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class RunState:
    """A training run between two steps.

    Args:
        accelerator: which prepared the models and optimisers.
        output_dir: folder of the checkpoints.
        models: by name, prepared.
        optimizers: of these models, by the same names, prepared.
        lr_schedulers: of these optimisers, by the same names, not prepared.
        averages: of some of these models, by the same names.
        guard: judges the steps.
        identity: plain values that have to be the same in a run that is resumed, such as the seed.
        architectures: arguments of each model, for a clear error where they differ.
        settings: the run's configuration, for the record.
        stream: the data, if its order is not found by the position alone.
        total_limit: checkpoints that are kept (None: all).
        report: shows one line to the user, once however many processes there are.

    Attributes:
        step: optimiser steps done, those that were skipped included.
        position: global batches consumed. It is ahead of `step` after a return to a checkpoint, so that the bad
            stretch of data and noise isn't met again.
    """

    accelerator: Accelerator
    output_dir: str
    models: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    lr_schedulers: dict[str, LambdaLR]
    averages: dict[str, MovingAverages]
    guard: SpikeGuard
    identity: dict[str, Any]
    architectures: dict[str, dict]
    settings: dict[str, Any]
    stream: RowStream | None = None
    total_limit: int | None = None
    report: Callable[[str], None] = print
    step: int = field(default=0, init=False)
    position: int = field(default=0, init=False)
    _is_due: bool = field(default=False, init=False)  # a checkpoint

    def __post_init__(self):
        # as JSON gives them back: tuples are lists there
        for name in ("identity", "architectures", "settings"):
            setattr(self, name, json_values(getattr(self, name)))

    def model(self, name: str) -> nn.Module:
        """A model without Accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.models[name])

    def average(self, name: str, decay: float) -> dict[str, torch.Tensor]:
        """Whole state dict with averaged weights, without frozen ones, on the CPU; every process has to call it."""
        weights = self._parameter_names(name).values()
        shadows = dict(zip(weights, dict(iter(self.averages[name]))[decay], strict=True))
        return {key: whole(shadows.get(key, tensor)) for key, tensor in trained_state(self.model(name)).items()}

    def _parameter_names(self, name: str) -> dict[nn.Parameter, str]:
        return {parameter: key for key, parameter in self.model(name).named_parameters() if parameter.requires_grad}

    def _plain_optimizer(self, name: str) -> Optimizer:
        return getattr(self.optimizers[name], "optimizer", self.optimizers[name])

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write `checkpoint-<step>`, then remove the oldest beyond `total_limit`; every process has to call it.

        Raises:
            CheckpointWriteError: on every process if it could not be written; nothing else has changed then.
        """
        files, state = self._content()
        message = None
        if self.accelerator.is_main_process:
            num_bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
            try:
                with new_checkpoint(self.output_dir, self.step, num_bytes) as folder:
                    for name, tensors in files.items():
                        self._write_tensors(tensors, folder / name)
                    write_json(folder / STATE_FILE, state)
                remove_old_checkpoints(self.output_dir, self.total_limit)
            except CheckpointWriteError as error:
                message = str(error)
        if self.accelerator.num_processes > 1:
            (message,) = broadcast_object_list([message])
        if message is not None:
            raise CheckpointWriteError(message)

    @staticmethod
    def _write_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
        try:
            save_file(tensors, file)
        except SafetensorError as error:  # it doesn't say which file
            raise OSError(f"{file.name}: {error}") from error

    def _content(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict]:
        files: dict[str, dict[str, torch.Tensor]] = {}
        optimizer_values = {}
        for name in self.models:
            state_dict = trained_state(self.model(name))
            files[f"{name}.safetensors"] = {key: whole(tensor) for key, tensor in state_dict.items()}
            names = self._parameter_names(name)
            if name in self.averages:
                for decay, shadows in self.averages[name]:
                    tensors = {key: whole(shadow) for key, shadow in zip(names.values(), shadows, strict=True)}
                    files[f"{name}.ema-{decay:g}.safetensors"] = tensors
            tensors, optimizer_values[name] = optimizer_state(self._plain_optimizer(name), names)
            files[f"{name}.optimizer.safetensors"] = tensors
        scaler = self.accelerator.scaler
        state = {
            "step": self.step,
            "position": self.position,
            "stream": None if self.stream is None else self.stream.state_dict(),
            "optimizer_values": optimizer_values,
            "lr_schedulers": {name: scheduler.last_epoch for name, scheduler in self.lr_schedulers.items()},
            "averages": {name: averages.num_steps for name, averages in self.averages.items()},
            "guard": self.guard.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "identity": self.identity,
            "architectures": self.architectures,
            "settings": self.settings,
            "num_processes": self.accelerator.num_processes,
            "torch": torch.__version__,
        }
        return files, state

    # -- restoring ------------------------------------------------------------------------------------------------

    def resume(self, checkpoint: str) -> None:
        """Restore "latest" in `output_dir`, or a checkpoint's folder; says what it found.

        "latest" begins anew where there is no checkpoint, and passes over damaged ones, which are renamed.

        Raises:
            ValueError: in one line, if the checkpoint is damaged or of another run.
        """
        self.accelerator.wait_for_everyone()
        choice: list = [None, [], None]
        if self.accelerator.is_main_process:
            try:
                choice[:2] = self._find(checkpoint)
            except ValueError as error:
                choice[2] = str(error)
        if self.accelerator.num_processes > 1:
            broadcast_object_list(choice)
        path, remarks, message = choice
        for remark in remarks:
            self.report(remark)
        if message is not None:
            raise ValueError(message)
        if path is None:
            self.report(f"no checkpoint in {self.output_dir}: training begins anew")
            return
        self.load(path)
        self.report(f"resumed from {path}, step {self.step}")

    def _find(self, checkpoint: str) -> tuple[Path | None, list[str]]:
        if checkpoint == "latest":
            remove_unfinished(self.output_dir)
            path, remarks = latest_checkpoint(self.output_dir, set_aside=True)
            if remarks and path is None:
                raise ValueError(f"{remarks[-1]} There is no earlier checkpoint in {self.output_dir} to resume from.")
            return path, [f"{remark} The one before it is used." for remark in remarks]
        path = Path(checkpoint)
        if not path.is_dir():
            raise ValueError(
                f"`resume_from_checkpoint` is {checkpoint!r}; required: latest, or the folder of a checkpoint."
            )
        check_checkpoint(path)
        later = [step for step in list_checkpoints(self.output_dir) if step > self._read_state(path)["step"]]
        if later:
            raise ValueError(
                f"`resume_from_checkpoint` is {checkpoint!r}, but {checkpoint_path(self.output_dir, later[-1])} is "
                "later; required: latest, or another `output_dir`."
            )
        return path, []

    @staticmethod
    def _read_state(path: Path) -> dict:
        try:
            return read_json(path / STATE_FILE)
        except ValueError as error:
            file = path / STATE_FILE
            raise DamagedCheckpoint(f"{file} is missing or damaged; required: as it was written.") from error

    def load(self, path: str | Path, with_place: bool = True) -> None:
        """Restore a checkpoint that has been checked.

        Args:
            path: its folder.
            with_place: also the place in the data.

        Raises:
            ValueError: in one line, if it is of another run; nothing has changed then.
        """
        path = Path(path)
        state = self._read_state(path)
        self._check_same_run(path, state)
        tensors = {name: self._load_tensors(path / f"{name}.safetensors") for name in self.models}
        for name, values in tensors.items():
            copy_state(trained_state(self.model(name)), values, f"{path / name}.safetensors")
            names = self._parameter_names(name)
            file = path / f"{name}.optimizer.safetensors"
            load_optimizer_state(
                self._plain_optimizer(name), names, self._load_tensors(file), state["optimizer_values"][name]
            )
        for name, averages in self.averages.items():
            names = list(self._parameter_names(name).values())
            for decay, shadows in averages:
                file = path / f"{name}.ema-{decay:g}.safetensors"
                copy_state(dict(zip(names, shadows, strict=True)), self._load_tensors(file), str(file))
            averages.num_steps = state["averages"][name]
        for name, num_steps in state["lr_schedulers"].items():
            set_schedule(self.lr_schedulers[name], num_steps)
        self.guard.load_state_dict(state["guard"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        if with_place:
            self.position = state["position"]
            if self.stream is not None:
                self.stream.load_state_dict(state["stream"])

    @staticmethod
    def _load_tensors(file: Path) -> dict[str, torch.Tensor]:
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{file} is missing or damaged; required: as it was written.") from error

    def _check_same_run(self, path: Path, state: dict) -> None:
        for name, arguments in self.architectures.items():
            saved = state["architectures"].get(name)
            if saved is None:
                raise ValueError(f"{path} has no model `{name}`; required: a checkpoint of this script.")
            for key in sorted({*arguments, *saved}):
                if arguments.get(key) != saved.get(key) and not key.startswith("_"):
                    raise ValueError(
                        f"{path} has `{name}.{key}` {saved.get(key)!r}, this run {arguments.get(key)!r}; required: the "
                        "same architecture (`weight_init` begins a new run with another one)."
                    )
        is_stream, was_stream = self.stream is not None, state.get("stream") is not None
        if is_stream != was_stream:
            raise ValueError(
                f"`streaming` is {str(is_stream).lower()}; required: {str(was_stream).lower()}, as in the checkpoint "
                f"{path}."
            )
        for key, value in self.identity.items():
            if state["identity"].get(key) != value:
                raise ValueError(
                    f"`{key}` is {value!r}; required: {state['identity'].get(key)!r}, as in the checkpoint {path}."
                )
        for name, averages in self.averages.items():
            for decay, _ in averages:
                if not (path / f"{name}.ema-{decay:g}.safetensors").is_file():
                    raise ValueError(f"the EMA decay {decay:g} is not in the checkpoint {path}; required: one that is.")
        for name, model in self.models.items():
            file = path / f"{name}.safetensors"
            with safe_open(file, "pt") as tensors:
                shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
            for key, tensor in trained_state(self.accelerator.unwrap_model(model)).items():
                if shapes.get(key) != list(tensor.shape):
                    raise ValueError(
                        f"{file} has `{key}` of shape {shapes.get(key)}; required: {list(tensor.shape)}, the same "
                        "architecture."
                    )
        for key, value in self.settings.items():
            if key not in OF_THIS_START and key in state["settings"] and state["settings"][key] != value:
                self.report(f"`{key}` is now {value!r}; the checkpoint was trained with {state['settings'][key]!r}")

    def adopt(
        self,
        name: str,
        weights: dict[str, torch.Tensor],
        average: dict[str, torch.Tensor],
        moments: dict[str, dict[str, torch.Tensor]],
        num_steps: int,
    ) -> None:
        """Go on from another program's training.

        Args:
            name: of the model.
            weights: state dict.
            average: state dict with averaged weights, taken for every decay.
            moments: by entry of the optimiser's state, the tensor of each parameter.
            num_steps: that it has trained.

        Raises:
            ValueError: if a tensor is missing or of another shape.
        """
        copy_state(trained_state(self.model(name)), weights, "the checkpoint")
        parameters = self._parameter_names(name)
        for _, shadows in self.averages[name]:
            copy_state(
                dict(zip(parameters.values(), shadows, strict=True)),
                {key: average[key] for key in parameters.values()},
                "the checkpoint's average",
            )
        self.averages[name].num_steps = num_steps
        tensors = {f"{key}|{entry}": value for entry, values in moments.items() for key, value in values.items()}
        tensors |= {f"{key}|step": torch.tensor(float(num_steps)) for key in parameters.values()}
        load_optimizer_state(self._plain_optimizer(name), parameters, tensors, {})
        set_schedule(self.lr_schedulers[name], num_steps)
        self.step = self.position = num_steps

    # -- between steps --------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Count a step, whether the optimisers took it or not, and move the schedules."""
        for scheduler in self.lr_schedulers.values():
            # not by `scheduler.step()`, which warns of an optimiser whose first steps were skipped, or come later
            set_schedule(scheduler, scheduler.last_epoch + 1)
        self.step, self.position = self.step + 1, self.position + 1

    def secure(self, checkpointing_steps: int | None, last_step: int) -> bool:
        """After each step: save a checkpoint where one is due, or return to one after too many bad steps.

        None is saved while steps are bad, since the weights may be: it is made up for after the next good step.

        Returns:
            whether it went back to an earlier step.

        Raises:
            CheckpointWriteError, TrainingDiverged: as `save` and `roll_back`.
        """
        if self.guard.must_roll_back:
            self.roll_back()
            return True
        if checkpointing_steps is not None:
            self._is_due |= self.step % checkpointing_steps == 0 or self.step == last_step
        if self._is_due and self.guard.num_bad_in_a_row == 0:
            self.save()
            self._is_due = False
        return False

    # -- after a spike --------------------------------------------------------------------------------------------

    def roll_back(self) -> None:
        """Return to the newest checkpoint that is whole, and go on with the data after the current batch.

        Raises:
            TrainingDiverged: on every process, if there is none, or if that has not helped several times.
        """
        choice: list = [None]
        if self.accelerator.is_main_process:
            choice = [latest_checkpoint(self.output_dir, set_aside=True)[0]]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(choice)
        (path,) = choice
        bad = self.guard.num_bad_in_a_row
        if path is None:
            raise TrainingDiverged(
                f"{bad} steps in a row were bad at step {self.step}, and {self.output_dir} has no checkpoint to return "
                "to; required: a lower `learning_rate`, or a smaller `checkpointing_steps`."
            )
        state = self._read_state(path)
        guard_state = self.guard.state_after_rollback(state["step"], state["guard"])
        step = self.step
        self.load(path, with_place=False)
        self.guard.load_state_dict(guard_state)
        self.report(f"{bad} steps in a row were bad at step {step}: back to {path}, step {self.step}, with later data")


def set_schedule(scheduler: LambdaLR, num_steps: int) -> None:
    """Put a schedule, with its own settings, where it is after `num_steps` steps."""
    scheduler.last_epoch = num_steps
    for group, base_lr, factor in zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base_lr * factor(num_steps)
    scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
