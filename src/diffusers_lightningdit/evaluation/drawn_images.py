# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Drawing a set of images from a pipeline: the same files whatever the number of processes, batches or interruptions.

Image i has a label and noise of its own, which depend on the seed and i alone. Networks round differently in batches of
another size, so they always take the same `micro_batch_size` images together: the block of image i, filled up beyond
the end of the set. A set of fewer images is thus the beginning of a larger one.
"""

import contextlib
import inspect
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from ..files import first_line
from ..keyed_random import image_generator, random_key
from .image_sets import NumberedImages, numbered_name
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
        raise ValueError(f"`pipeline` is {name_or_path!r}; {required} ({first_line(error)}).") from error
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


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def checked_decoding(pipeline: DiffusionPipeline, block: range) -> Iterator[None]:
    """Within the context, look at what the pipeline's VAE decodes, which are images of a block, before it is rounded.

    Raises:
        ValueError: from the call of the pipeline, naming the first image of the block that has a value that is not
            finite, and whether the latents or the VAE brought it.
    """
    decode = pipeline.vae.decode

    def first_not_finite(values: torch.Tensor) -> int | None:
        is_finite = values[: len(block)].isfinite().flatten(1).all(1).tolist()  # [B]
        return None if all(is_finite) else is_finite.index(False)

    def decode_and_check(latents: torch.Tensor, *arguments, **keywords):
        if (row := first_not_finite(latents)) is not None:
            raise ValueError(
                f"image {block[row]} has latents with NaN or infinity; required: a transformer of finite weights, and "
                "`sampling`, `scheduler` and `dtype` that keep numbers finite."
            )
        decoded = decode(latents, *arguments, **keywords)
        if (row := first_not_finite(decoded[0])) is not None:
            largest = latents[row].abs().max().item()
            raise ValueError(
                f"image {block[row]} has pixels with NaN or infinity, decoded from latents of at most {largest:.2g}; "
                "required: a VAE of finite weights, and `sampling`, `scheduler` and `dtype` that keep numbers finite."
            )
        return decoded

    pipeline.vae.decode = decode_and_check
    try:
        yield
    finally:
        del pipeline.vae.decode  # which uncovers the method of its class


def draw_block(
    pipeline: DiffusionPipeline, block: range, labels: str, seed: int, sampling: dict[str, Any], block_size: int
) -> np.ndarray:
    """Images of a block of indices, which begins at a multiple of `block_size`: uint8 [B, height, width, 3].

    Raises:
        ValueError: naming the first image with a value that is not finite, which 8 bits would hide.
    """
    num_classes = pipeline.transformer.config.num_classes
    indices = range(block.start, block.start + block_size)
    with checked_decoding(pipeline, block):
        images = pipeline(
            [class_label(labels, index, num_classes, seed) for index in indices],
            generator=[image_generator(seed, index) for index in indices],
            **sampling,
        ).images
    return np.stack([np.asarray(image) for image in images[: len(block)]])


class DrawnImages(NumberedImages):
    """The images of a pipeline as a set: whatever of a block isn't in the folder yet is drawn when it is read.

    Files that are there stay as they are, and it is they that are read. Several processes may share a folder if each
    reads other blocks.

    Args:
        pipeline: that draws.
        folder: of 000000.png, ..., which exists.
        num_images: N.
        size: (height, width) that the pipeline draws.
        labels, seed, sampling: as in `evaluate generation`.
        block_size: images that the networks take at a time.
        num_threads: that write files, and that read them.
        max_waiting: images drawn and not yet written, at most.

    Attributes:
        num_drawn: images so far.
        seconds_drawing: that it took to draw them.
        seconds_held_up: that drawing had to wait for writing.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        folder: Path,
        num_images: int,
        size: tuple[int, int],
        labels: str,
        seed: int,
        sampling: dict[str, Any],
        block_size: int,
        num_threads: int = 4,
        max_waiting: int = 256,
    ):
        super().__init__(folder, num_images, num_threads, size)
        self.pipeline, self.labels, self.seed, self.sampling = pipeline, labels, seed, sampling
        self.block_size, self.max_waiting = block_size, max_waiting
        self.num_drawn, self.seconds_drawing, self.seconds_held_up = 0, 0.0, 0.0

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """As `ImageSet.read_blocks`; all files are whole when the iterator ends.

        Raises:
            ValueError: naming a file that cannot be read.
            OSError: if one cannot be written.
        """
        present = {path.name for path in self.folder.iterdir()}
        with ImageWriter(self.num_threads, self.max_waiting) as writer:
            is_complete = lambda block: all(numbered_name(index) in present for index in block)  # noqa: E731
            for are_complete, group in itertools.groupby(blocks, is_complete):
                if are_complete:
                    yield from super().read_blocks(list(group))
                    continue
                for block in group:
                    missing = {index for index in block if numbered_name(index) not in present}
                    drawn = self._draw(block, len(missing))
                    for index in missing:
                        writer.write(self.folder / numbered_name(index), drawn[index - block.start])
                    self.seconds_held_up = writer.seconds_waited
                    yield np.stack([drawn[i - block.start] if i in missing else self[i] for i in block])

    def _draw(self, block: range, num_missing: int) -> np.ndarray:
        start = time.perf_counter()
        drawn = draw_block(self.pipeline, block, self.labels, self.seed, self.sampling, self.block_size)
        self.seconds_drawing += time.perf_counter() - start
        self.num_drawn += num_missing
        return drawn
