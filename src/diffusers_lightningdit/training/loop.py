# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The parts of a training loop that know nothing of the model."""

import contextlib
import datetime
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import (
    AORecipeKwargs,
    DistributedDataParallelKwargs,
    KwargsHandler,
    is_torchao_available,
    send_to_device,
)
from diffusers.optimization import get_scheduler
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from ..data.global_batches import GlobalBatchSampler, part_size
from ..data.row_stream import RowStream
from ..data.streamed_rows import StreamedRows
from ..files import one_line
from ..keyed_random import KeyedRandom, seed_process
from ..processes import SeparateProcesses, patient_accelerator
from .config import TrainingConfig
from .run_state import RunState

# What the main process does alone (a checkpoint, pictures, a linear probe, an upload) may take its time; but a process
# that hangs should not keep the others' GPUs for longer.
PATIENCE = datetime.timedelta(hours=3)

# ---------------------------------------------------------------------------------------------------------------------
# Set-up
# ---------------------------------------------------------------------------------------------------------------------


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """The accelerator of a run.

    Raises:
        ValueError: in one line, where it cannot compute in `mixed_precision`, or several processes were started which
            do not know of each other.
    """
    handlers: list[KwargsHandler] = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if config.mixed_precision == "fp8" and is_torchao_available():
        from torchao.float8 import Float8LinearConfig

        # weights stay plain tensors, which Accelerate's default, made for FSDP, wraps
        handlers.append(AORecipeKwargs(config=Float8LinearConfig(pad_inner_dim=True)))
    try:
        accelerator = patient_accelerator(
            PATIENCE,
            handlers,
            mixed_precision=config.mixed_precision,
            log_with=config.trackers or None,
            project_dir=config.output_dir,
        )
    except SeparateProcesses:
        raise
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"`mixed_precision` is {config.mixed_precision!r}; required: what this machine computes in "
            f"({one_line(error)})."
        ) from error
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # where Accelerate would use float32
        raise ValueError("`mixed_precision` is 'fp16'; required on a CPU: no or bf16.")
    if accelerator.is_fsdp2 and config.mixed_precision != "no":
        # Weights are gathered in 16 bits. Inputs stay float32, as under autocast alone: the policy of Accelerate would
        # round t, the noisy latents and the residual stream as well, and sum gradients in 16 bits.
        dtype = torch.float16 if config.mixed_precision == "fp16" else torch.bfloat16
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return accelerator


def make_batch_sampler(
    config: TrainingConfig, dataset: Dataset | StreamedRows, accelerator: Accelerator
) -> GlobalBatchSampler | RowStream:
    """The order of the samples, and this process's share; raises ValueError if it cannot be cut into equal parts."""
    share = (accelerator.process_index, accelerator.num_processes, config.gradient_accumulation_steps)
    if isinstance(dataset, StreamedRows):
        order = (config.seed, config.shuffle_block_size, config.num_open_files)
        return RowStream(dataset, config.global_batch_size, *order, *share)
    return GlobalBatchSampler(len(dataset), config.global_batch_size, config.seed, *share)


def make_lr_scheduler(config: TrainingConfig, optimizer: Optimizer) -> LambdaLR:
    """The schedule of diffusers over `max_train_steps`; not for `accelerator.prepare`, which would step it n times."""
    return get_scheduler(
        config.lr_scheduler,
        optimizer,
        step_rules=config.lr_step_rules,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )


def make_adamw(
    kind: str, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimizer:
    """AdamW: "adamw" is torch's, "adamw_fused" its single kernel, "adamw_8bit" bitsandbytes' with moments of 8 bits."""
    settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    if kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, fused=kind == "adamw_fused" or None, **settings)


# ---------------------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------------------


def train_steps(
    config: TrainingConfig,
    dataset: Dataset | StreamedRows,
    sampler: GlobalBatchSampler | RowStream,
    position: int,
    accelerator: Accelerator,
) -> Iterator[list[tuple[dict, KeyedRandom]]]:
    """Without end: this process's batches of the next global batch, each with its random numbers.

    Args:
        dataset: what `sampler` has the order of.
        sampler: a stream goes on where it is, at `position` if it was restored.
        position: global batches that have been consumed before.
    """
    num_batches = config.gradient_accumulation_steps
    if isinstance(sampler, RowStream):
        global_batches = iter(sampler)
    else:
        sampler.set_position(position)
        dataloader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=config.num_workers,
            pin_memory=accelerator.device.type == "cuda",
            persistent_workers=config.num_workers > 0,
        )
        batches = iter(dataloader)
        global_batches = ([next(batches) for _ in range(num_batches)] for _ in itertools.count())
    size = part_size(config.global_batch_size, accelerator.num_processes, num_batches)
    while True:
        seed_process(config.seed, position, accelerator.process_index)
        step = []
        for number, batch in enumerate(next(global_batches)):
            first = (number * accelerator.num_processes + accelerator.process_index) * size
            draws = KeyedRandom(config.seed, position, range(first, first + size), accelerator.device)
            step.append((send_to_device(batch, accelerator.device, non_blocking=True), draws))
        yield step
        position += 1


@contextlib.contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module, is_last: bool) -> Iterator[None]:
    """Around the backward pass of a part of a global batch: only the last one exchanges gradients."""
    with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
        yield


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> torch.Tensor:
    """Scale the gradients to a norm of at most `max_norm`; returns the norm before, a scalar, also of shards.

    With a loss scaler (fp16), the gradients of all models are unscaled first.
    """
    norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def global_mean(accelerator: Accelerator, values: torch.Tensor) -> list[float]:
    """The mean over the processes of each number of a vector."""
    return accelerator.reduce(values.detach().float(), reduction="mean").tolist()


def step_optimizers(accelerator: Accelerator, optimizers: Sequence[AcceleratedOptimizer], skip: bool = False) -> None:
    """Let the optimisers take a step with the gradients, which `clip_gradients` unscaled, and forget these.

    With a loss scaler (fp16), one whose gradients overflowed stays where it is, and the scale changes once, after all:
    the optimisers' own `step` would change it after each, and unscale the next one's gradients a second time.

    Args:
        accelerator: of the run, which prepared the optimisers.
        optimizers: those that take part in this step.
        skip: forget the gradients only.
    """
    for optimizer in optimizers:
        if not skip and accelerator.scaler is None:
            optimizer.step()
        elif not skip:
            accelerator.scaler.step(optimizer.optimizer)
        optimizer.zero_grad()
    if accelerator.scaler is not None:
        accelerator.scaler.update()


def finish_step(
    state: RunState,
    scalars: dict[str, torch.Tensor],
    loss_of: Callable[[dict[str, float]], float],
    max_grad_norm: float | None,
    names: Sequence[str],
) -> dict[str, float]:
    """Take the step that the gradients are there for, or skip it if it is bad, and count it.

    Args:
        state: of the run.
        scalars: of this process's part of the global batch; a NaN among them makes the step a bad one.
        loss_of: their means over the processes -> the loss that spikes are seen by.
        max_grad_norm: to clip the gradients of the first model to; None only measures their norm, which is judged.
        names: of the models that take part.

    Returns:
        means of the scalars over the processes, `grad_norm` before clipping, `learning_rate`, and `skipped`, how many
        steps were so far.
    """
    accelerator, guard, first = state.accelerator, state.guard, names[0]
    norm = clip_gradients(accelerator, state.models[first], math.inf if max_grad_norm is None else max_grad_norm)
    *means, grad_norm = global_mean(accelerator, torch.stack([*scalars.values(), norm]))
    metrics = dict(zip(scalars, means, strict=True))
    spike = guard.check(loss_of(metrics), grad_norm, accelerator.scaler is not None, metrics)
    step_optimizers(accelerator, [state.optimizers[name] for name in names], skip=spike is not None)
    if spike is not None:
        state.report(f"step {state.step + 1} skipped: {spike} ({guard.num_skipped} skipped in all)")
    elif math.isfinite(grad_norm):  # else it overflowed, and the loss scaler kept the weights
        for name in names:
            if name in state.averages:
                state.averages[name].step(state.models[name].parameters())
    metrics |= {"grad_norm": grad_norm, "learning_rate": state.lr_schedulers[first].get_last_lr()[0]}
    state.advance()
    return metrics | {"skipped": guard.num_skipped}


def due(step: int, interval: int | None, last: int) -> bool:
    """Whether something that is done every `interval` steps, and after the last, is due after this one."""
    return interval is not None and (step % interval == 0 or step == last)
