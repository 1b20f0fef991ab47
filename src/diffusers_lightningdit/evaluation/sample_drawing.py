# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Drawing a set of images from a pipeline: the same files whatever the number of processes, batches or interruptions.

Image i has a label and noise of its own, which depend on the seed and i alone. Networks round differently in batches of
another size, so they always take the same `micro_batch_size` images together: the block of image i, filled up beyond
the end of the set. A set of fewer images is thus the beginning of a larger one.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, SchedulerMixin
from tqdm.auto import tqdm

from ..keyed_random import random_key
from .image_sets import cut, numbered_name
from .image_writer import ImageWriter

LABELS = ("balanced", "random")
# Arguments of the pipeline's call that are not settings: this module's own, or objects.
NO_SETTINGS = (
    "self",
    "class_labels",
    "num_images_per_prompt",
    "generator",
    "latents",
    "output_type",
    "return_dict",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "attention_kwargs",
    "guider",
)


# ---------------------------------------------------------------------------------------------------------------------
# Pipeline
# ---------------------------------------------------------------------------------------------------------------------


def load_pipeline(name_or_path: str) -> DiffusionPipeline:
    """A class-conditional pipeline, in float32 on the CPU.

    Raises:
        ValueError: in one line, if it cannot be loaded or draws no classes.
    """
    required = "required: a folder or Hub id of a pipeline that draws images of classes"
    try:
        pipeline = DiffusionPipeline.from_pretrained(name_or_path)
    except Exception as error:  # diffusers lets through whatever its parts raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"`pipeline` is {name_or_path!r}; {required} ({reason}).") from error
    transformer = getattr(pipeline, "transformer", None)
    if transformer is None or "num_classes" not in transformer.config or not hasattr(pipeline, "get_label_ids"):
        raise ValueError(f"`pipeline` is {name_or_path!r}, a {type(pipeline).__name__}; {required}.")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def set_scheduler(pipeline: DiffusionPipeline, name: str | None = None, shift: float | None = None) -> None:
    """Give the pipeline another scheduler, or another shift; None keeps what it has.

    `from_config` of diffusers drops the shift and the flags of flow matching between families of schedulers; here they
    are carried over.

    Args:
        name: class of diffusers, or FlowMatchSDEScheduler.
        shift: of the time grid, in diffusers' words: 1 / s for the original's s.

    Raises:
        ValueError: if there is no such scheduler, or for a shift that is not positive or that it does not have. Whether
            the pipeline can use it, `try_pipeline` tells.
    """
    if shift is not None and not shift > 0:
        raise ValueError(f"`shift` is {shift}; required: a positive number.")
    if name is None and shift is None:
        return
    now = pipeline.scheduler
    name = type(now).__name__ if name is None else name
    scheduler_class = getattr(diffusers, name, None)  # our own is registered there
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise ValueError(f"`scheduler` is {name!r}; required: the name of a scheduler class of diffusers.")
    known = inspect.signature(scheduler_class.__init__).parameters
    name_of_shift = next((key for key in ("flow_shift", "shift") if key in known), None)
    if name_of_shift is None and shift is not None:
        raise ValueError(f"`shift` is {shift}; required: none for {name}, whose time grid has no shift.")
    settings = dict(now.config) if scheduler_class is type(now) else {}
    if "use_flow_sigmas" in known:
        settings |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if name_of_shift is not None:
        settings[name_of_shift] = now.config.get("shift", now.config.get("flow_shift", 1.0)) if shift is None else shift
    pipeline.scheduler = scheduler_class.from_config(settings)


def check_sampling(pipeline: DiffusionPipeline, sampling: dict[str, Any]) -> None:
    """Raise ValueError if `sampling` has a key that is no setting of the pipeline's call."""
    known = [name for name in inspect.signature(pipeline.__call__).parameters if name not in NO_SETTINGS]
    for key in sampling:
        if key not in known:
            raise ValueError(f"`sampling.{key}` is no setting of {type(pipeline).__name__}. Known: {', '.join(known)}.")


def try_pipeline(pipeline: DiffusionPipeline, sampling: dict[str, Any]) -> tuple[int, int]:
    """(height, width) of the images: draws one, stopped after the first step, which checks all settings."""

    def stop(pipeline: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipeline._interrupt = True
        return tensors

    recipe = {**(pipeline.config.get("sampling_recipe") or {}), **sampling}
    callback = {} if recipe.get("ode_method") is not None else {"callback_on_step_end": stop}
    (image,) = pipeline([0], **sampling, **callback, generator=[torch.Generator().manual_seed(0)]).images
    return image.height, image.width


# ---------------------------------------------------------------------------------------------------------------------
# Labels and noise
# ---------------------------------------------------------------------------------------------------------------------


def class_label(kind: str, index: int, num_classes: int, seed: int) -> int:
    """Label of image `index`: "balanced" is 0, 1, ..., num_classes - 1, 0, ...; "random" is uniform."""
    return index % num_classes if kind == "balanced" else random_key(seed, index, "label") % num_classes


def noise_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image `index`, on the CPU, for the same noise on every device.

    Neighbouring indices have neighbouring seeds: of a hash of each, the 32 bits that count would coincide for a pair
    of 50,000.
    """
    return torch.Generator().manual_seed((random_key(seed, "noise") + index) % 2**63)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


def missing_blocks(folder: Path, num_images: int, block_size: int) -> list[range]:
    """Blocks of indices of which an image isn't there yet."""
    present = {path.name for path in folder.iterdir()}
    blocks = cut(num_images, block_size)
    return [block for block in blocks if not all(numbered_name(index) in present for index in block)]


def draw_blocks(
    pipeline: DiffusionPipeline,
    blocks: list[range],
    labels: str,
    seed: int,
    sampling: dict[str, Any],
    block_size: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, uint8 [height, width, 3]) of each image of the blocks, which begin at multiples of `block_size`."""
    num_classes = pipeline.transformer.config.num_classes
    for block in blocks:
        indices = range(block.start, block.start + block_size)
        images = pipeline(
            [class_label(labels, index, num_classes, seed) for index in indices],
            generator=[noise_generator(seed, index) for index in indices],
            **sampling,
        ).images
        for index in block:
            yield index, np.asarray(images[index - block.start])


def draw_images(
    pipeline: DiffusionPipeline,
    folder: Path,
    num_images: int,
    labels: str,
    seed: int,
    sampling: dict[str, Any],
    block_size: int,
    batch_size: int,
    num_threads: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Write the images that `folder` lacks of 000000.png, ..., sharing the work among the processes.

    Args:
        block_size: images that the networks take at a time.
        batch_size: images that a process takes in hand at a time, made up of whole blocks.
        num_threads: that write.

    Returns:
        Of this process: how many images it drew, seconds that took, and seconds that writing held it up.
    """
    missing = missing_blocks(folder, num_images, block_size)
    accelerator.wait_for_everyone()  # all have looked before one writes
    per_batch = -(-batch_size // block_size)
    batches = [missing[start : start + per_batch] for start in range(0, len(missing), per_batch)]
    own = [block for batch in batches[accelerator.process_index :: accelerator.num_processes] for block in batch]
    total = sum(map(len, own))
    with (
        ImageWriter(num_threads, max_waiting=4 * batch_size) as writer,
        tqdm(total=total, desc="drawing", disable=not accelerator.is_local_main_process) as bar,
    ):
        for index, image in draw_blocks(pipeline, own, labels, seed, sampling, block_size):
            writer.write(folder / numbered_name(index), image)
            bar.update()
    accelerator.wait_for_everyone()
    return {"num_drawn": total, "seconds": bar.format_dict["elapsed"], "seconds_held_up": writer.seconds_waited}
