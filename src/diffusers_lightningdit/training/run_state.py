# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""A training run: its state between two steps, saved to checkpoints and restored exactly, on any number of processes.

A checkpoint (see `checkpoints.py`) holds, for every model NAME of the run, `NAME.safetensors` (buffers, and all weights
that are not frozen), `NAME.ema-<decay>.safetensors` and `NAME.optimizer.safetensors` (tensors `<parameter>|<entry>`),
written by `state_io.py`, and `state.json` with everything that is no tensor. Random numbers need no state, because they
are functions of the seed and the index of the global batch (see `keyed_random.py`). So is the order of the data, unless
the data is a stream, whose place is saved.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..data.row_stream import RowStream
from ..files import json_values, write_json
from ..interruption import Interrupted, Interruption
from ..processes import on_main_process
from .batches import Sampler
from .checkpoints import (
    STATE_FILE,
    DamagedCheckpoint,
    latest_checkpoint,
    list_checkpoints,
    new_checkpoint,
    read_state,
    remove_old_checkpoints,
)
from .config import TrainingConfig
from .moving_averages import MovingAverages
from .optimizers import make_lr_scheduler, set_schedule
from .spike_guard import SpikeGuard, TrainingDiverged
from .state_io import (
    TensorFile,
    check_shapes,
    copy_tensors,
    gather,
    gather_model,
    gather_optimizer,
    load_optimizer,
    model_arguments,
    trained_parameters,
    trained_state,
    write_tensors,
)

# Settings that may differ between launches of one run, without a word.
MAY_DIFFER = ("output_dir", "resume_from_checkpoint")


@dataclass
class RunState:
    """A training run between two steps.

    Args:
        accelerator: The accelerator that prepared the models and optimisers.
        output_dir: The folder of the checkpoints.
        models: The prepared models, by name.
        optimizers: The prepared optimisers, by the names of their models.
        lr_schedulers: The optimisers' schedules, by the same names, not prepared.
        averages: The moving averages of some of the models, by the same names.
        spike_guard: The judge of the steps.
        must_match: Plain values that must be the same in a resumed run, such as the seed.
        architectures: The arguments of each model, for a clear error where they differ.
        settings: The run's configuration, for the record.
        stream: The data, if its order does not follow from the index of the global batch alone.
        total_limit: The number of checkpoints that are kept (None: all).
        report: A function that shows one line to the user, once however many processes there are.

    Attributes:
        step: Optimiser steps done, those that were skipped included.
        batch_index: Global batches consumed. It is ahead of `step` after a return to a checkpoint, so that the data and
            noise that went wrong do not come again.
        interruption: A context of the steps, within which a signal ends the run after a step and a checkpoint.
    """

    accelerator: Accelerator
    output_dir: str
    models: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    lr_schedulers: dict[str, LambdaLR]
    averages: dict[str, MovingAverages]
    spike_guard: SpikeGuard
    must_match: dict[str, Any]
    architectures: dict[str, dict]
    settings: dict[str, Any]
    stream: RowStream | None = None
    total_limit: int | None = None
    report: Callable[[str], None] = print
    step: int = field(default=0, init=False)
    batch_index: int = field(default=0, init=False)
    interruption: Interruption = field(default_factory=Interruption, init=False)
    _checkpoint_is_due: bool = field(default=False, init=False)

    def __post_init__(self):
        # as JSON gives them back: tuples are lists there
        for name in ("must_match", "architectures", "settings"):
            setattr(self, name, json_values(getattr(self, name)))

    def model(self, name: str) -> nn.Module:
        """A model without Accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.models[name])

    def averaged_state(self, name: str, decay: float) -> dict[str, torch.Tensor]:
        """This process's state dict with averaged weights, sharded where the model is, without frozen weights."""
        model = self.model(name)
        return {**trained_state(model), **self._shadows(name)[decay]}

    def average(self, name: str, decay: float) -> dict[str, torch.Tensor]:
        """`averaged_state` as whole tensors on the CPU of the main process, {} on others; every process calls it."""
        return gather(self.averaged_state(name, decay), self.accelerator.is_main_process)

    def _shadows(self, name: str) -> dict[float, dict[str, torch.Tensor]]:
        """Decay -> averaged weights by the names of the parameters; none for a model without averages."""
        names = trained_parameters(self.model(name))
        return {decay: dict(zip(names, shadows, strict=True)) for decay, shadows in self.averages.get(name, ())}

    def _plain_optimizer(self, name: str) -> Optimizer:
        return getattr(self.optimizers[name], "optimizer", self.optimizers[name])

    # -- saving ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write `checkpoint-<step>`, then remove the oldest beyond `total_limit`; every process has to call it.

        Raises:
            CheckpointWriteError: on every process if it could not be written; nothing else has changed then.
        """
        files, optimizer_values = self._gather()
        on_main_process(self.accelerator, lambda: self._write(files, self._plain_state(optimizer_values)))

    def _gather(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict[str, Any]]]:
        """The tensors of each file, empty but on the main process, and the plain values of the optimisers."""
        files: dict[str, dict[str, torch.Tensor]] = {}
        optimizer_values = {}
        for name in self.models:
            files[f"{name}.safetensors"] = gather_model(self.model(name))
            for decay, shadows in self._shadows(name).items():
                files[f"{name}.ema-{decay:g}.safetensors"] = gather(shadows, self.accelerator.is_main_process)
            tensors, optimizer_values[name] = gather_optimizer(self.model(name), self._plain_optimizer(name))
            files[f"{name}.optimizer.safetensors"] = tensors
        return files, optimizer_values

    def _write(self, files: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
        num_bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
        with new_checkpoint(self.output_dir, self.step, num_bytes) as folder:
            for name, tensors in files.items():
                write_tensors(tensors, folder / name)
            write_json(folder / STATE_FILE, state)
        remove_old_checkpoints(self.output_dir, self.total_limit)

    def _plain_state(self, optimizer_values: dict[str, dict[str, Any]]) -> dict:
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "position": self.batch_index,
            "stream": None if self.stream is None else self.stream.state_dict(),
            "optimizers": self._optimizer_classes(),
            "optimizer_values": optimizer_values,
            "lr_schedulers": {name: scheduler.last_epoch for name, scheduler in self.lr_schedulers.items()},
            "averages": {name: averages.num_steps for name, averages in self.averages.items()},
            "guard": self.spike_guard.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "identity": self.must_match,
            "architectures": self.architectures,
            "settings": self.settings,
            "num_processes": self.accelerator.num_processes,
            "torch": torch.__version__,
        }

    def _optimizer_classes(self) -> dict[str, str]:
        return {name: type(self._plain_optimizer(name)).__name__ for name in self.optimizers}

    # -- restoring ------------------------------------------------------------------------------------------------

    def resume(self, path: Path | None) -> None:
        """Go on from the checkpoint that `find_checkpoint` found, if it found one; every process has to call it.

        Raises:
            ValueError: in one line, if it is of another run; nothing has changed then.
        """
        if path is not None:
            self._restore(path, read_state(path))
            self.report(f"resumed from {path}, step {self.step}")

    def _restore(self, path: Path, state: dict, with_place_in_data: bool = True) -> None:
        self._check_same_run(path, state)
        for name in self.models:
            model = self.model(name)
            copy_tensors(TensorFile(path / f"{name}.safetensors"), trained_state(model))
            moments = TensorFile(path / f"{name}.optimizer.safetensors")
            values = state["optimizer_values"][name]
            load_optimizer(self._plain_optimizer(name), trained_parameters(model), moments, values)
            for decay, shadows in self._shadows(name).items():
                copy_tensors(TensorFile(path / f"{name}.ema-{decay:g}.safetensors"), shadows)
            set_schedule(self.lr_schedulers[name], state["lr_schedulers"][name])
        for name, averages in self.averages.items():
            averages.num_steps = state["averages"][name]
        self.spike_guard.load_state_dict(state["guard"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._checkpoint_is_due = False  # one that was due belonged to the steps that are forgotten now
        if with_place_in_data:
            self.batch_index = state["position"]
            if self.stream is not None:
                self.stream.load_state_dict(state["stream"])

    def _check_same_run(self, path: Path, state: dict) -> None:
        """Raise ValueError, before anything is loaded, for the first thing in which the checkpoint's run differs."""
        self._check_models(path, state)
        is_stream, was_stream = self.stream is not None, state.get("stream") is not None
        if is_stream != was_stream:
            raise ValueError(
                f"`streaming` is {str(is_stream).lower()}; required: {str(was_stream).lower()}, as in the checkpoint "
                f"{path}."
            )
        for key, value in self.must_match.items():
            saved = state["identity"].get(key)
            if key == "data_sha256" and value != saved:
                raise ValueError(
                    f"`data` is {self.settings.get('data')!r}, whose files, or their names, sizes or labels, are not "
                    f"those of the checkpoint {path}; required: the same data (`weight_init` begins a new run)."
                )
            difference = first_difference(key, value, saved)
            if difference is not None:
                raise ValueError("`{}` is {!r}; required: {!r}, as in the checkpoint {}.".format(*difference, path))
        for name in self.models:
            self._check_tensors(path, name)
        self._check_entries(path / STATE_FILE, state)
        for key, value in self.settings.items():
            if key not in MAY_DIFFER and key in state["settings"] and state["settings"][key] != value:
                self.report(f"`{key}` is now {value!r}; the checkpoint was trained with {state['settings'][key]!r}")

    def _check_models(self, path: Path, state: dict) -> None:
        saved_architectures = state["architectures"]
        if saved_architectures.keys() != self.architectures.keys():
            raise ValueError(
                f"{path} has the models {', '.join(sorted(saved_architectures))}, this run "
                f"{', '.join(sorted(self.architectures))}; required: the same models (`weight_init` begins a new run "
                "with others)."
            )
        for name, architecture in self.architectures.items():
            arguments, saved = model_arguments(architecture), model_arguments(saved_architectures[name])
            for key in sorted({*arguments, *saved}):
                if arguments.get(key) != saved.get(key):
                    raise ValueError(
                        f"{path} has `{name}.{key}` {saved.get(key)!r}, this run {arguments.get(key)!r}; required: the "
                        "same architecture (`weight_init` begins a new run with another one)."
                    )
        for name, optimizer in self._optimizer_classes().items():
            saved_optimizer = state["optimizers"].get(name)
            if saved_optimizer != optimizer:
                raise ValueError(
                    f"the optimiser of `{name}` is {optimizer}; required: {saved_optimizer}, whose state is in the "
                    f"checkpoint {path}."
                )

    def _check_tensors(self, path: Path, name: str) -> None:
        model = self.model(name)
        file = path / f"{name}.safetensors"
        check_shapes(TensorFile(file).shapes(), trained_state(model), str(file))
        for decay, shadows in self._shadows(name).items():
            file = path / f"{name}.ema-{decay:g}.safetensors"
            if not file.is_file():
                raise ValueError(f"the EMA decay {decay:g} is not in the checkpoint {path}; required: one that is.")
            check_shapes(TensorFile(file).shapes(), shadows, str(file))
        file, parameters = path / f"{name}.optimizer.safetensors", trained_parameters(model)
        for key, shape in TensorFile(file).shapes().items():
            parameter = parameters.get(key.rpartition("|")[0])
            if parameter is None or shape not in ([], [1], list(parameter.shape)):
                raise ValueError(f"{file} has `{key}` of shape {shape}; required: the state of this run's optimiser.")

    def _check_entries(self, file: Path, state: dict) -> None:
        """Raise `DamagedCheckpoint` for entries of `state.json` that cannot be restored."""
        try:
            for name in self.models:
                dict(state["optimizer_values"][name]), int(state["lr_schedulers"][name])
            for name in self.averages:
                int(state["averages"][name])
            SpikeGuard().load_state_dict(state["guard"])
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedCheckpoint(f"{file} is damaged ({error!r}); required: as it was written.") from error

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
            name: The model.
            weights: Its state dict.
            average: A state dict with averaged weights, taken for every decay.
            moments: For each entry of the optimiser's state, the tensor of each parameter.
            num_steps: The steps that it has trained.

        Raises:
            ValueError: if a weight is missing, unknown or of another shape; nothing has changed then.
        """
        model = self.model(name)
        parameters = trained_parameters(model)
        check_shapes({key: list(value.shape) for key, value in weights.items()}, trained_state(model), "the checkpoint")
        copy_tensors(weights, trained_state(model))
        for shadows in self._shadows(name).values():
            copy_tensors(average, shadows)
        self.averages[name].num_steps = num_steps
        tensors = {f"{key}|{entry}": value for entry, values in moments.items() for key, value in values.items()}
        tensors |= {f"{key}|step": torch.tensor(float(num_steps)) for key in parameters}
        load_optimizer(self._plain_optimizer(name), parameters, tensors, {})
        set_schedule(self.lr_schedulers[name], num_steps)
        self.step = self.batch_index = num_steps

    # -- between steps --------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Count a step, whether the optimisers took it or not, and move the schedules."""
        for scheduler in self.lr_schedulers.values():
            # not by `scheduler.step()`, which warns of an optimiser whose first steps were skipped, or come later
            set_schedule(scheduler, scheduler.last_epoch + 1)
        self.step, self.batch_index = self.step + 1, self.batch_index + 1

    def secure(self, checkpointing_steps: int | None, last_step: int) -> bool:
        """After each step: save a checkpoint where one is due, or return to one after too many bad steps.

        The run ends, after a checkpoint, if a signal asks for it.

        No checkpoint is saved while steps are bad, because the weights may be: it is saved after the next good step.

        Args:
            checkpointing_steps: The steps between two checkpoints; None for none at all.
            last_step: The last step of the run.

        Returns:
            Whether the run went back to an earlier step.

        Raises:
            CheckpointWriteError, TrainingDiverged: as `save` and `roll_back` raise them.
            Interrupted: if there was a signal.
        """
        if self.spike_guard.must_roll_back:
            self.roll_back()
            return True
        stop = self.interruption.of_any_process
        if self.accelerator.num_processes == 1:  # no need to wait for the next step's means
            stop = self.interruption.requested
        if checkpointing_steps is not None:
            is_due = self.step % checkpointing_steps == 0 or self.step == last_step or stop is not None
            self._checkpoint_is_due |= is_due
        if self._checkpoint_is_due and self.spike_guard.num_bad_in_a_row == 0:
            self.save()
            self._checkpoint_is_due = False
        if stop is not None:
            steps = on_main_process(self.accelerator, lambda: list_checkpoints(self.output_dir))
            then = "there is no checkpoint"
            if steps:
                then = f"`resume_from_checkpoint=latest` goes on from step {steps[-1]}"
            raise Interrupted(f"interrupted by {stop.name} after step {self.step}; {then}.", stop)
        return False

    def check_result(self) -> None:
        """Refuse to make a result of a run that has not learnt anything, or whose weights are not finite.

        Raises:
            TrainingDiverged: on every process.
        """
        if self.step and self.spike_guard.num_skipped >= self.step:
            raise TrainingDiverged(
                f"all {self.step} steps were bad and skipped; required: finite data and weights, or "
                f"{self.spike_guard.advice}. No result is written."
            )
        for name in self.models:
            states = [self.averaged_state(name, decay) for decay in self._shadows(name)]
            tensors = [value for state in states or [trained_state(self.model(name))] for value in state.values()]
            shards = [value.to_local() if isinstance(value, DTensor) else value for value in tensors]
            num_bad = torch.stack([(~shard.isfinite().all()).float() for shard in shards]).sum()
            if self.accelerator.reduce(num_bad) > 0:
                raise TrainingDiverged(
                    f"weights of the {name} are not finite after step {self.step}; required: an earlier checkpoint in "
                    f"`resume_from_checkpoint`, and {self.spike_guard.advice}. No result is written."
                )

    def roll_back(self) -> None:
        """Return to the newest checkpoint that is whole, and go on with the data after the current batch.

        Raises:
            TrainingDiverged: on every process, if there is no checkpoint, or if returning has not helped several times.
        """
        path = on_main_process(self.accelerator, lambda: latest_checkpoint(self.output_dir)[0])
        num_bad, step = self.spike_guard.num_bad_in_a_row, self.step
        if path is None:
            raise TrainingDiverged(
                f"{num_bad} steps in a row were bad at step {step}, and {self.output_dir} has no checkpoint to return "
                "to; required: a lower `learning_rate`, or a smaller `checkpointing_steps`."
            )
        state = read_state(path)
        state["guard"] = self.spike_guard.state_after_rollback(state["step"], state["guard"])
        self._restore(path, state, with_place_in_data=False)
        self.report(
            f"{num_bad} steps in a row were bad at step {step}: back to {path}, step {self.step}, with later data"
        )


def first_difference(key: str, value: Any, saved: Any) -> tuple[str, Any, Any] | None:
    """None if two values are the same, or (key, value, saved): of long lists the first items that differ."""
    if value == saved:
        return None
    if not isinstance(value, list) or not isinstance(saved, list):
        return key, value, saved
    if len(value) != len(saved):
        return f"number of {key}", len(value), len(saved)
    return next((f"{key}[{n}]", *pair) for n, pair in enumerate(zip(value, saved, strict=True)) if pair[0] != pair[1])


def make_run_state(
    config: TrainingConfig,
    accelerator: Accelerator,
    sampler: Sampler,
    models: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    averages: dict[str, MovingAverages],
    architectures: dict[str, dict],
    advice: str = "a lower `learning_rate` or `max_grad_norm`",
    make_schedule: Callable[[TrainingConfig, Optimizer], LambdaLR] = make_lr_scheduler,
    **must_match,
) -> RunState:
    """A run at its first step, with the schedules and the spike guard that `config` asks for.

    Args:
        config: The settings.
        accelerator: The accelerator that prepared models and optimisers.
        sampler: The order of the data.
        models, optimizers, averages, architectures: As in `RunState`.
        advice: Settings that may help if training diverges, for the error message.
        make_schedule: A function that makes the schedule of an optimiser; by default that of diffusers.
        must_match: Further plain values that must be the same in a resumed run.
    """
    return RunState(
        accelerator,
        config.output_dir,
        models=models,
        optimizers=optimizers,
        lr_schedulers={name: make_schedule(config, optimizer.optimizer) for name, optimizer in optimizers.items()},
        averages=averages,
        spike_guard=SpikeGuard(
            config.loss_spike_factor, config.grad_norm_spike_factor, patience=config.spike_patience, advice=advice
        ),
        must_match={**must_match, **sampler.identity()},  # other names of classes tell more than another hash
        architectures=architectures,
        settings=dataclasses.asdict(config),
        stream=sampler if isinstance(sampler, RowStream) else None,
        total_limit=config.checkpoints_total_limit,
        report=accelerator.print,
    )
