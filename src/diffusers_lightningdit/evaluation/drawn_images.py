# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Draw a set of images from a pipeline: the same files whatever the number of processes and interruptions.

The label and the noise of image i depend only on the seed and i. Networks round differently in batches of another size,
so they always take the same `micro_batch_size` images together: the block of image i, which is filled up beyond the end
of the set. A smaller set is therefore the beginning of a larger one.
"""

import contextlib
import hashlib
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

from ..files import first_line, one_line
from ..keyed_random import image_generator, random_label
from .image_files import MARK, ImageWriter, decode_rgb, numbered_name
from .image_sets import NumberedImages

LABELS = ("balanced", "random")
MAX_REASON = 300  # characters of what a pipeline says
# Arguments of the pipeline's call that are no settings, since this module passes them or they are objects.
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
    """Load a class-conditional pipeline in float32 on the CPU.

    Raises:
        ValueError: In one line, if it cannot be loaded or is not class-conditional.
    """
    required = "required: a folder or Hub id of a pipeline that draws images of classes"
    try:
        pipeline = DiffusionPipeline.from_pretrained(name_or_path)
    except Exception as error:  # diffusers passes on whatever the components raise
        raise ValueError(f"`pipeline` is {name_or_path!r}; {required} ({first_line(error)}).") from error
    transformer = getattr(pipeline, "transformer", None)
    if transformer is None or "num_classes" not in transformer.config or not hasattr(pipeline, "get_label_ids"):
        raise ValueError(f"`pipeline` is {name_or_path!r}, a {type(pipeline).__name__}; {required}.")
    num_classes, recipe = transformer.config.num_classes, pipeline.config.get("sampling_recipe")
    if not isinstance(num_classes, int) or num_classes < 1 or not isinstance(recipe, dict | None):
        raise ValueError(
            f"`pipeline` is {name_or_path!r}, with {num_classes} classes and the sampling recipe {recipe!r}; required: "
            "a number of classes, and a dictionary or none."
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def set_scheduler(pipeline: DiffusionPipeline, name: str | None = None, shift: float | None = None) -> None:
    """Replace the scheduler of a pipeline, or its shift; None keeps the present one.

    diffusers' `from_config` loses the shift and the flags of flow matching between families of schedulers; here they
    are carried over. Whether the pipeline can use the scheduler is checked by `try_pipeline`.

    Args:
        pipeline: The pipeline.
        name: The name of a scheduler class of diffusers, or of this package.
        shift: The shift of the time grid as diffusers defines it, 1 / s for the original's shift s.

    Raises:
        ValueError: If there is no such scheduler, the shift is not positive, or the scheduler has none.
    """
    if shift is not None and not shift > 0:
        raise ValueError(f"`shift` is {shift}; required: a positive number.")
    if name is None and shift is None:
        return
    current = pipeline.scheduler
    name = type(current).__name__ if name is None else name
    scheduler_class = getattr(diffusers, name, None)  # those of this package are registered there
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise ValueError(f"`scheduler` is {name!r}; required: the name of a scheduler class of diffusers.")
    known = inspect.signature(scheduler_class.__init__).parameters
    name_of_shift = next((key for key in ("flow_shift", "shift") if key in known), None)
    if name_of_shift is None and shift is not None:
        raise ValueError(f"`shift` is {shift}; required: none for {name}, whose time grid has no shift.")
    settings = dict(current.config) if scheduler_class is type(current) else {}
    if "use_flow_sigmas" in known:
        settings |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    if name_of_shift is not None:
        current_shift = current.config.get("shift", current.config.get("flow_shift", 1.0))
        settings[name_of_shift] = current_shift if shift is None else shift
    pipeline.scheduler = scheduler_class.from_config(settings)


def check_sampling(pipeline: DiffusionPipeline, sampling: dict[str, Any]) -> None:
    """Raise ValueError if a key of `sampling` is no setting of the pipeline's call."""
    known = [name for name in inspect.signature(pipeline.__call__).parameters if name not in NO_SETTINGS]
    for key in sampling:
        if key not in known:
            raise ValueError(f"`sampling.{key}` is no setting of {type(pipeline).__name__}. Known: {', '.join(known)}.")


def try_pipeline(pipeline: DiffusionPipeline, sampling: dict[str, Any]) -> tuple[int, int]:
    """Draw an image with a single step, which checks all settings, and return its height and width.

    Raises:
        ValueError: In one line, if the pipeline raises anything.
    """

    def stop(pipeline: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipeline._interrupt = True
        return tensors

    recipe = {**(pipeline.config.get("sampling_recipe") or {}), **sampling}
    callback = {} if recipe.get("ode_method") is not None else {"callback_on_step_end": stop}
    try:
        (image,) = pipeline([0], **sampling, **callback, generator=[torch.Generator().manual_seed(0)]).images
    except Exception as error:  # of configs that fit no weights or no code, anything
        if isinstance(error, ValueError) and any(f"`{name}`" in str(error) for name in sampling):
            raise
        raise ValueError(
            f"`pipeline` is {pipeline.name_or_path!r}; required: one that draws images by its own recipe and "
            f"`sampling`, `scheduler` and `dtype` ({one_line(error)[:MAX_REASON]})."
        ) from error
    return image.height, image.width


# ---------------------------------------------------------------------------------------------------------------------
# Labels
# ---------------------------------------------------------------------------------------------------------------------


def class_label(kind: str, index: int, num_classes: int, seed: int) -> int:
    """Return the label of image `index`: 0, 1, ..., num_classes - 1, 0, ... if "balanced", uniform if "random"."""
    return index % num_classes if kind == "balanced" else random_label(seed, index, num_classes)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def checked_decoding(pipeline: DiffusionPipeline, block: range | None = None) -> Iterator[None]:
    """Within the context, check the latents and the decoded pixels of a block for values that are not finite.

    Without a block, all images are checked that the pipeline draws, and the message names none of them.

    Rounding to 8 bits would hide such values.

    Raises:
        ValueError: From the call of the pipeline. The message names the first image with such a value, and tells
            whether it comes from the latents or from the VAE.
    """
    decode = pipeline.vae.decode

    def first_not_finite(values: torch.Tensor) -> int | None:
        is_finite = values[: len(values) if block is None else len(block)].isfinite().flatten(1).all(1).tolist()  # [B]
        return None if all(is_finite) else is_finite.index(False)

    def name_of(row: int) -> str:
        return "an image" if block is None else f"image {block[row]}"

    def decode_and_check(latents: torch.Tensor, *arguments, **keywords):
        if (row := first_not_finite(latents)) is not None:
            raise ValueError(
                f"{name_of(row)} has latents with NaN or infinity; required: a transformer of finite weights, and "
                "`sampling`, `scheduler` and `dtype` that keep numbers finite."
            )
        decoded = decode(latents, *arguments, **keywords)
        if (row := first_not_finite(decoded[0])) is not None:
            largest = latents[row].abs().max().item()
            raise ValueError(
                f"{name_of(row)} has pixels with NaN or infinity, decoded from latents of at most {largest:.2g}; "
                "required: a VAE of finite weights, and `sampling`, `scheduler` and `dtype` that keep numbers finite."
            )
        return decoded

    pipeline.vae.decode = decode_and_check
    try:
        yield
    finally:
        del pipeline.vae.decode  # the method of the class is visible again


def draw_block(
    pipeline: DiffusionPipeline, block: range, labels: str, seed: int, sampling: dict[str, Any], block_size: int
) -> np.ndarray:
    """Draw the images of a block of indices, uint8 [B, height, width, 3].

    Args:
        pipeline: The pipeline.
        block: The indices, from a multiple of `block_size` on.
        labels: The kind of labels, one of `LABELS`.
        seed: The seed of the set.
        sampling: Arguments of the pipeline's call, in place of those of its recipe.
        block_size: The number of images that are drawn together, at least the length of the block.

    Raises:
        ValueError: As `checked_decoding`.
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
    """The images of a pipeline as a set. Reading a block draws those of its images that are not in the folder yet.

    Files that are in the folder are kept, and read instead of drawn. Each carries a mark, a hash of its pixels, its
    number and the identity of the set, so that a set that continues or grows knows its images. Several processes may
    share a folder if each of them reads other blocks.

    Args:
        pipeline: The pipeline.
        folder: The folder of 000000.png, ..., which must exist.
        num_images: The number N of images.
        size: The (height, width) of the images that the pipeline draws.
        labels, seed, sampling: The arguments of `draw_block`.
        block_size: The number of images that the networks take at a time.
        num_threads: The number of threads that write files, and of threads that read them.
        max_waiting: The largest number of images that are drawn and not yet written.
        identity: Everything that the pixels depend on, as text.

    Attributes:
        num_drawn: The number of images drawn so far.
        seconds_drawing: The time spent on drawing them.
        seconds_held_up: The time that drawing had to wait for writing.
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
        identity: str = "",
    ):
        super().__init__(folder, num_images, num_threads, size)
        self.pipeline, self.labels, self.seed, self.sampling = pipeline, labels, seed, sampling
        self.block_size, self.max_waiting, self.identity = block_size, max_waiting, identity
        self.num_drawn, self.seconds_drawing, self.seconds_held_up = 0, 0.0, 0.0

    def mark(self, index: int, pixels: np.ndarray) -> str:
        """The mark in the file of an image, uint8 [height, width, 3]: a hash in hexadecimal digits."""
        return hashlib.sha256(f"{self.identity} {index} ".encode() + pixels.tobytes()).hexdigest()

    def _read(self, index: int) -> np.ndarray:
        image = decode_rgb(self.image_name(index), self.encoded(index))
        pixels = np.array(image)
        if image.info.get(MARK) != self.mark(index, pixels):
            raise ValueError(
                f"{self.image_name(index)} is not the image that was drawn there; required: images as they were drawn. "
                "Those that are removed are drawn again."
            )
        return pixels

    def read_blocks(self, blocks: Sequence[range]) -> Iterator[np.ndarray]:
        """Yield the images of each block, as `ImageSet.read_blocks`. All files are complete when the iterator ends.

        Raises:
            ValueError: If a file cannot be read or was not drawn for this set; the message names it.
            OSError: If a file cannot be written.
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
                        pixels = drawn[index - block.start]
                        writer.write(self.folder / numbered_name(index), pixels, self.mark(index, pixels))
                    self.seconds_held_up = writer.seconds_waited
                    yield np.stack([drawn[i - block.start] if i in missing else self[i] for i in block])

    def _draw(self, block: range, num_missing: int) -> np.ndarray:
        start = time.perf_counter()
        drawn = draw_block(self.pipeline, block, self.labels, self.seed, self.sampling, self.block_size)
        self.seconds_drawing += time.perf_counter() - start
        self.num_drawn += num_missing
        return drawn
