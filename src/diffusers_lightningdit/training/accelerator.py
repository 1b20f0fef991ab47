# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The accelerator of a training run: processes and precision."""

import datetime

import torch
from accelerate import Accelerator
from accelerate.utils import (
    AORecipeKwargs,
    DistributedDataParallelKwargs,
    KwargsHandler,
    check_cuda_fp8_capability,
    is_torch_version,
    is_torchao_available,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..files import one_line
from ..processes import SeparateProcesses, patient_accelerator
from .config import TrainingConfig

# The main process may take its time for its own work (a checkpoint, pictures, a linear probe, an upload); but a process
# that hangs should not keep the others' GPUs for longer.
PATIENCE = datetime.timedelta(hours=3)


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
    if config.mixed_precision == "fp8" and accelerator.device.type == "cpu" and is_torch_version("<", "2.8"):
        raise ValueError("`mixed_precision` is 'fp8'; required on a CPU: torch 2.8 or above, or bf16.")
    if config.mixed_precision == "fp8" and accelerator.device.type == "cuda" and not check_cuda_fp8_capability():
        raise ValueError("`mixed_precision` is 'fp8'; required: a GPU of compute capability 8.9 or above, or bf16.")
    if accelerator.is_fsdp2 and config.mixed_precision != "no":
        # Weights are gathered in 16 bits. Inputs stay float32, as under autocast alone: the policy of Accelerate would
        # round t, the noisy latents and the residual stream as well, and sum gradients in 16 bits.
        dtype = torch.float16 if config.mixed_precision == "fp16" else torch.bfloat16
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    return accelerator
