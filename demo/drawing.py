# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Drawings of the page, with previews of the denoising. Nothing here needs Gradio.

Each drawing is an iterator of frames, of which the last one is the finished picture. It has a pipeline of its own
around the shared models, so that visitors do not meet; an iterator that is closed early stops its drawing after the
step that it is at.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageChops

from diffusers_lightningdit.data.images import center_crop, open_image, to_rgb
from diffusers_lightningdit.demo.drawing_settings import SCHEDULERS, DrawingSettings, class_title, to_query
from diffusers_lightningdit.evaluation.drawn_images import set_scheduler
from diffusers_lightningdit.files import one_line
from diffusers_lightningdit.grids import draw_class_images, labelled_grid
from diffusers_lightningdit.keyed_random import image_generator
from diffusers_lightningdit.pipelines import (
    LightningDiTImg2ImgPipeline,
    LightningDiTInterpolationPipeline,
    LightningDiTPipeline,
    VAVAEReconstructionPipeline,
)
from diffusers_lightningdit.pipelines.lightningdit_sampling import decode, image_size, postprocess, vae_geometry

NUM_PREVIEWS = 15  # of a drawing: each decodes all images once more
SECONDS_OF_SILENCE = 0.5  # the longest time that a visitor waits for a drawing to be stopped
MAX_COLUMNS = 8
MIN_SIDE = 128  # pixels of an image in a grid; smaller ones are enlarged by a whole factor
MAX_SIDE = 1024  # pixels of an image that is enlarged
MAX_LATENTS = 4096  # of a reconstruction, height times width: the autoencoder's attention has their square
DIFFERENCE_FACTOR = 4
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class Frame:
    """A picture of a drawing.

    Attributes:
        picture: The picture; the finished one has the query of its link in `info["settings"]`, which PNG files keep.
            None: the one before still holds.
        text: How far it is, or how long it took.
    """

    picture: Image.Image | None
    text: str


# ---------------------------------------------------------------------------------------------------------------------
# Denoising
# ---------------------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """Nobody wants the drawing any more."""


def denoising(draw: Callable[[Callable], list[Image.Image]]) -> Generator[tuple[list[Image.Image] | None, float]]:
    """Draw in a thread, and yield the images on their way: pairs of the images and the part of the steps that is done.

    The images are None where nothing has changed for a while: only between its values an iterator can be closed.

    Args:
        draw: Draws the images, with the callback that it is given as the pipeline's `callback_on_step_end`.

    Raises:
        Exception: Whatever `draw` raises.
    """
    updates: queue.Queue = queue.Queue()
    stopped = threading.Event()

    def preview(pipeline: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> None:
        if stopped.is_set():
            raise Stopped  # at once, where `pipeline._interrupt` would decode the images
        number, total = step + 1, pipeline.num_timesteps
        if number < total and number * NUM_PREVIEWS // total > step * NUM_PREVIEWS // total:
            pixels = decode(pipeline.vae, tensors["latents"]).nan_to_num()
            updates.put((postprocess(pipeline.image_processor, pixels, "pil"), number / total))

    def run() -> None:
        try:
            updates.put((draw(preview), 1.0))
        except BaseException as error:  # of the other thread
            updates.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        done = 0.0
        while done < 1.0:
            try:
                update = updates.get(timeout=SECONDS_OF_SILENCE)
            except queue.Empty:
                update = None, done
            if isinstance(update, BaseException):
                raise update
            yield update
            done = update[1]
    finally:
        # The thread is not waited for: Gradio closes iterators in its event loop, where all visitors would wait.
        stopped.set()


def own_pipeline(
    pipeline: DiffusionPipeline, pipeline_class: type[DiffusionPipeline], settings: DrawingSettings
) -> DiffusionPipeline:
    """A pipeline around the same models, with the scheduler of the settings."""
    own = pipeline_class.from_pipe(pipeline)
    if settings.scheduler != type(pipeline.scheduler).__name__:
        set_scheduler(own, settings.scheduler)
    own.set_progress_bar_config(disable=True)
    return own


def sampling(settings: DrawingSettings) -> dict:
    """The arguments of the pipelines' calls."""
    return {
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_interval": (settings.guidance_start, settings.guidance_end),
        "guidance_channels": settings.guidance_channels,
    }


def noise_of(pipeline: DiffusionPipeline, seed: int, class_id: int, number: int = 0) -> torch.Generator:
    """The generator of image `number` of a class, that of `draw_class_images`."""
    return image_generator(seed, number * pipeline.transformer.config.num_classes + class_id)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def described(pipeline: DiffusionPipeline, settings: DrawingSettings) -> str:
    """The settings of a drawing as a caption."""
    parts = [
        Path(str(pipeline.name_or_path)).name,
        f"{settings.num_inference_steps} steps of {SCHEDULERS.get(settings.scheduler, settings.scheduler)}",
    ]
    if settings.guidance_scale > 1:
        interval = f"t = {settings.guidance_start:g} to {settings.guidance_end:g}"
        channels = "all" if settings.guidance_channels == pipeline.transformer.config.in_channels else "first"
        number = "" if channels == "all" else f" {settings.guidance_channels}"
        parts.append(f"guidance {settings.guidance_scale:g} at {interval} on {channels}{number} channels")
    else:
        parts.append("no guidance")
    return ", ".join([*parts, f"seed {settings.seed}"])


def zoom_of(image: Image.Image) -> int:
    """The whole factor that makes the shorter side at least `MIN_SIDE` pixels, the longer at most `MAX_SIDE`."""
    return max(1, min(-(-MIN_SIDE // min(image.size)), MAX_SIDE // max(image.size)))


def frames(
    updates: Generator[tuple[list[Image.Image] | None, float]],
    rows_of: Callable[[list[Image.Image]], list[tuple[str, Sequence[Image.Image]]]],
    settings: DrawingSettings,
    caption: str,
) -> Iterator[Frame]:
    """The frames of a drawing, as labelled grids with a caption."""
    start = time.perf_counter()
    with contextlib.closing(updates):
        for images, done in updates:
            picture = images and labelled_grid(rows_of(images), zoom=zoom_of(images[0]), caption=caption)
            if done < 1:
                yield Frame(picture, f"Drawing: {done:.0%} of the steps")
            else:
                picture.info["settings"] = to_query(settings)
                yield Frame(picture, f"Drawn in {time.perf_counter() - start:.1f} s.")


def draw_classes(pipeline: DiffusionPipeline, settings: DrawingSettings) -> Iterator[Frame]:
    """Draw each class `num_images` times, a row for each class: the images of `diffusers-lightningdit sample`."""
    own = own_pipeline(pipeline, LightningDiTPipeline, settings)
    drawn = [class_id for class_id in settings.classes for _ in range(settings.num_images)]
    arguments = sampling(settings) | {"ode_method": None}  # of a recipe: it has no steps to show

    def draw(callback: Callable) -> list[Image.Image]:
        return list(
            draw_class_images(own, drawn, settings.seed, len(drawn), callback_on_step_end=callback, **arguments)
        )

    def rows_of(images: list[Image.Image]) -> list[tuple[str, Sequence[Image.Image]]]:
        rows = []
        for number, class_id in enumerate(settings.classes):
            of_class = images[number * settings.num_images :][: settings.num_images]
            for start in range(0, settings.num_images, MAX_COLUMNS):
                rows.append(("" if start else class_title(own, class_id), of_class[start : start + MAX_COLUMNS]))
        return rows

    return frames(denoising(draw), rows_of, settings, described(pipeline, settings))


def interpolate(pipeline: DiffusionPipeline, settings: DrawingSettings) -> Iterator[Frame]:
    """Draw a strip from one class to another, whose ends are the first images of their classes.

    Between a class and itself it leads to the second image.
    """
    own = own_pipeline(pipeline, LightningDiTInterpolationPipeline, settings)
    ends = [settings.start, settings.end]
    generators = [
        noise_of(own, settings.seed, settings.start),
        noise_of(own, settings.seed, settings.end, number=int(settings.start == settings.end)),
    ]

    def draw(callback: Callable) -> list[Image.Image]:
        return own(
            ends, settings.num_between, generator=generators, callback_on_step_end=callback, **sampling(settings)
        ).images

    def rows_of(images: list[Image.Image]) -> list[tuple[str, Sequence[Image.Image]]]:
        return [("", images[start : start + MAX_COLUMNS]) for start in range(0, len(images), MAX_COLUMNS)]

    names = " to ".join(class_title(own, class_id) for class_id in ends)
    return frames(denoising(draw), rows_of, settings, f"{described(pipeline, settings)}: {names}")


def edit(pipeline: DiffusionPipeline, settings: DrawingSettings, image: Image.Image) -> Iterator[Frame]:
    """Draw an uploaded image as each of some classes: a row for each, with the image and the drawn one.

    Args:
        image: An RGB image, of which the centre is taken.
    """
    own = own_pipeline(pipeline, LightningDiTImg2ImgPipeline, settings)
    image = center_crop(image, image_size(own.transformer, own.vae, None, None))
    classes = list(settings.edit_classes)
    generators = [noise_of(own, settings.seed, class_id) for class_id in classes]

    def draw(callback: Callable) -> list[Image.Image]:
        return own(
            classes,
            image=image,
            strength=settings.strength,
            generator=generators,
            callback_on_step_end=callback,
            **sampling(settings),
        ).images

    def rows_of(images: list[Image.Image]) -> list[tuple[str, Sequence[Image.Image]]]:
        titles = [class_title(own, class_id) for class_id in classes]
        return [(title, [image, drawn]) for title, drawn in zip(titles, images, strict=True)]

    caption = f"{described(pipeline, settings)}, strength {settings.strength:g}"
    return frames(denoising(draw), rows_of, settings, caption)


def reconstruct(pipeline: DiffusionPipeline, settings: DrawingSettings, image: Image.Image) -> Iterator[Frame]:
    """Encode and decode an uploaded image: itself, the reconstruction, and their difference, in one frame.

    Args:
        image: An RGB image. Its sides become multiples of the autoencoder's factor.
    """
    height, width = image_size(pipeline.transformer, pipeline.vae, None, None)
    if settings.size == "own":
        factor = vae_geometry(pipeline.vae)[1]
        scale = min(1.0, (MAX_LATENTS * factor**2 / (image.width * image.height)) ** 0.5)
        height, width = (max(factor, int(side * scale) // factor * factor) for side in (image.height, image.width))
    image = center_crop(image, (height, width))
    output = VAVAEReconstructionPipeline(vae=pipeline.vae)(image)
    reconstruction, text = output.images[0], f"{width}x{height} pixels, PSNR {float(output.psnr[0]):.2f} dB"
    difference = ImageChops.difference(image, reconstruction).point(lambda value: min(255, value * DIFFERENCE_FACTOR))
    picture = labelled_grid(
        [("", [image, reconstruction, difference])],
        ["image", "reconstruction", f"difference x {DIFFERENCE_FACTOR}"],
        zoom_of(image),
        f"{Path(str(pipeline.name_or_path)).name}, {text}",
    )
    picture.info["settings"] = to_query(settings)
    yield Frame(picture, f"{text}.")


DRAWINGS = {"draw": draw_classes, "interpolate": interpolate, "edit": edit, "reconstruct": reconstruct}
OF_UPLOADS = ("edit", "reconstruct")  # take an image


def open_upload(path: str | None, max_pixels: int) -> Image.Image:
    """Open an uploaded image as RGB.

    Raises:
        ValueError: In a sentence for visitors of the page, if there is none, it cannot be decoded or is too large.
    """
    if path is None:
        raise ValueError("Choose an image first.")
    formats = ", ".join(UPLOAD_FORMATS)
    try:
        with Image.open(path, formats=UPLOAD_FORMATS) as header:
            width, height = header.size
    except Exception as error:  # Pillow's decoders raise nearly anything
        raise ValueError(f"This file is no image that can be read; possible are {formats}.") from error
    if width * height > max_pixels:
        raise ValueError(f"This image has {width}×{height} pixels; at most {max_pixels:,} are possible here.")
    try:
        return to_rgb(open_image(path, UPLOAD_FORMATS))
    except ValueError as error:
        raise ValueError(f"This image cannot be read: {one_line(error)}") from error
