# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Settings of the page's drawings: their limits, and the link that restores them. Nothing here needs Gradio."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from diffusers import DiffusionPipeline

from diffusers_lightningdit.pipelines.lightningdit_sampling import DEFAULT_RECIPE, image_size, jumps_to_data
from diffusers_lightningdit.settings import setting

TABS = {"draw": "Draw", "interpolate": "Interpolate", "edit": "Image to image", "reconstruct": "Reconstruct"}
SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "FlowMatchHeunDiscreteScheduler": "Heun (two evaluations a step)",
    "DPMSolverMultistepScheduler": "DPM-Solver++",
    "UniPCMultistepScheduler": "UniPC",
    "FlowMatchAdamsBashforthScheduler": "Adams-Bashforth",
    "FlowMatchUCGMScheduler": "UCGM",
    "FlowMatchSDEScheduler": "SDE (new noise at each step)",
}
LABELS = {
    "classes": "Classes",
    "num_images": "Images of each class",
    "start": "From",
    "end": "To",
    "num_between": "Images, with both ends",
    "edit_classes": "Classes to draw it as",
    "strength": "Strength",
    "size": "Size",
    "num_inference_steps": "Steps",
    "scheduler": "Scheduler",
    "guidance_scale": "Guidance scale",
    "guidance_start": "Guidance from t",
    "guidance_end": "Guidance to t",
    "guidance_channels": "Guided channels",
    "seed": "Seed",
}
SIZES = {"training": "Its centre, in the size of the training", "own": "Its own size, as far as the page allows"}
MAX_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a visitor's request, and of what it leaves behind."""

    max_steps: int = setting(250, "The largest number of steps.", group="Sampling", minimum=1)
    max_images: int = setting(32, "The largest number of images of one request.", minimum=2)
    max_pixels: int = setting(2**22, "The largest number of pixels of all images of one request.", minimum=1)
    max_upload_megabytes: int = setting(10, "The largest size of an uploaded file, in MB.", minimum=1)
    max_upload_pixels: int = setting(2**25, "The largest number of pixels of an uploaded image.", minimum=1)
    max_waiting: int = setting(32, "The largest number of requests that wait.", minimum=1)
    max_seconds_of_files: int = setting(
        600, "The seconds after which files of pictures and uploads are removed, looked at as often.", minimum=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """Everything that a link restores.

    Attributes:
        tab: The tab of the page, one of `TABS`.
        classes: The ids of the classes that are drawn, `num_images` times each.
        start, end: The classes at the ends of an interpolation of `num_between` images.
        edit_classes: The classes that an uploaded image is drawn as, with `strength`.
        size: The size that an uploaded image is reconstructed in, one of `SIZES`.
        guidance_start, guidance_end: The interval of guidance, in t: 0 is noise, 1 the image.
        guidance_channels: The number of guided channels; that of the latents stands for all.
        scheduler: The name of the class.
    """

    tab: str
    classes: tuple[int, ...]
    num_images: int
    start: int
    end: int
    num_between: int
    edit_classes: tuple[int, ...]
    strength: float
    size: str
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    guidance_start: float
    guidance_end: float
    guidance_channels: int
    seed: int


def _recipe(pipeline: DiffusionPipeline) -> dict[str, Any]:
    return {**DEFAULT_RECIPE, **(pipeline.config.sampling_recipe or {})}


def recipe_settings(pipeline: DiffusionPipeline, limits: Limits) -> DrawingSettings:
    """The settings that the page starts with: the recipe of the checkpoint, within the limits."""
    recipe, most = _recipe(pipeline), most_images(pipeline, limits)
    num_classes = pipeline.transformer.config.num_classes
    start, end = recipe["guidance_interval"] or (0.0, 1.0)
    channels = pipeline.transformer.config.in_channels
    some_classes = tuple(dict.fromkeys(number * num_classes // 4 for number in range(4)))
    return DrawingSettings(
        tab="draw",
        classes=some_classes[:most],
        num_images=max(1, min(4, most // len(some_classes))),
        start=0,
        end=num_classes - 1,
        num_between=min(8, most),
        edit_classes=some_classes[-1:],
        strength=0.7,
        size="training",
        num_inference_steps=min(recipe["num_inference_steps"], limits.max_steps),
        scheduler=type(pipeline.scheduler).__name__,
        guidance_scale=max(1.0, recipe["guidance_scale"]),  # less than 1 is none, too
        guidance_start=float(start),
        guidance_end=float(end),
        guidance_channels=channels if recipe["guidance_channels"] is None else recipe["guidance_channels"],
        seed=0,
    )


def settings_of(tab: str, values: Sequence[Any], defaults: DrawingSettings) -> DrawingSettings:
    """The settings that the components of the page have, in the order of `LABELS`.

    An empty component has the value None, or an empty tuple in place of several classes.
    """
    converted = {}
    for name, value in zip(LABELS, values, strict=True):
        kind = type(getattr(defaults, name))
        converted[name] = tuple(value or ()) if kind is tuple else None if value is None else kind(value)
    return DrawingSettings(tab=tab, **converted)


# ---------------------------------------------------------------------------------------------------------------------
# Limits
# ---------------------------------------------------------------------------------------------------------------------


def most_images(pipeline: DiffusionPipeline, limits: Limits) -> int:
    """The largest number of images of one request.

    Raises:
        ValueError: If they are less than two, the ends of an interpolation.
    """
    height, width = image_size(pipeline.transformer, pipeline.vae, None, None)
    possible = limits.max_pixels // (height * width)
    if possible < 2:
        raise ValueError(
            f"`max_pixels` is {limits.max_pixels}; required: at least {2 * height * width}, two images of {width}x"
            f"{height} pixels."
        )
    return min(limits.max_images, possible)


def class_title(pipeline: DiffusionPipeline, class_id: int) -> str:
    """The first name of a class, or its id: "golden retriever", "class 207"."""
    return pipeline.id2label.get(class_id, "").partition(",")[0].strip() or f"class {class_id}"


def scheduler_names(pipeline: DiffusionPipeline) -> list[str]:
    """The schedulers that a visitor may choose: of a network for a few steps only its own."""
    own = type(pipeline.scheduler).__name__
    others = () if jumps_to_data(pipeline.scheduler) else SCHEDULERS
    return [own, *(name for name in others if name != own)]


def ranges(pipeline: DiffusionPipeline, limits: Limits) -> dict[str, tuple[float, float]]:
    """The least and the greatest value of each number."""
    classes, most = (0, pipeline.transformer.config.num_classes - 1), most_images(pipeline, limits)
    return {
        "classes": classes,
        "num_images": (1, most),
        "start": classes,
        "end": classes,
        "num_between": (2, most),
        "edit_classes": classes,
        "strength": (0.05, 1),
        "num_inference_steps": (1, limits.max_steps),
        "guidance_scale": (1, max(20, _recipe(pipeline)["guidance_scale"])),
        "guidance_start": (0, 1),
        "guidance_end": (0, 1),
        "guidance_channels": (1, pipeline.transformer.config.in_channels),
        "seed": (0, MAX_SEED),
    }


def check_drawing(settings: DrawingSettings, pipeline: DiffusionPipeline, limits: Limits) -> None:
    """Raise ValueError, in a sentence for visitors of the page, if these settings cannot be drawn here."""
    for name, (low, high) in ranges(pipeline, limits).items():
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is None or not low <= number <= high:
                given = "empty" if number is None else f"{number:g}"
                raise ValueError(f"“{LABELS[name]}” is {given}; it can be {low:g} to {high:g} here.")
    choices = {"tab": TABS, "size": SIZES, "scheduler": scheduler_names(pipeline)}
    for name, known in choices.items():
        if (value := getattr(settings, name)) not in known:
            raise ValueError(f"“{LABELS.get(name, 'Tab')}” is {value!r}; it can be {', '.join(known)} here.")
    if settings.guidance_start > settings.guidance_end:
        raise ValueError(
            f"Guidance cannot end (at t = {settings.guidance_end:g}) before it begins (at t = "
            f"{settings.guidance_start:g})."
        )
    num_images = {
        "draw": len(settings.classes) * settings.num_images,
        "interpolate": settings.num_between,
        "edit": len(settings.edit_classes),
        "reconstruct": 1,
    }[settings.tab]
    if num_images == 0:
        raise ValueError("Choose at least one class.")
    if num_images > (most := most_images(pipeline, limits)):
        raise ValueError(
            f"These are {num_images} images; this page draws at most {most} at a time. Choose fewer classes, or fewer "
            "images of each."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Link
# ---------------------------------------------------------------------------------------------------------------------


def to_query(settings: DrawingSettings) -> str:
    """The query of the link that restores the settings: "tab=draw&classes=3,8&num_images=4&..."."""
    values = dataclasses.asdict(settings)
    texts = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    return urlencode(texts, safe=",")


def read_query(query: Mapping[str, str], defaults: DrawingSettings) -> DrawingSettings:
    """The settings of a link's query, with the defaults for those that it does not have.

    Other keys are left alone: they belong to Gradio ("__theme"), or to sites that pass links on.

    Raises:
        ValueError: In a sentence for visitors of the page, if a value is not of the kind of the default.
    """
    values = {}
    for name, default in dataclasses.asdict(defaults).items():
        if name not in query:
            continue
        text = query[name]
        try:
            if isinstance(default, tuple):
                values[name] = tuple(int(part) for part in text.split(",")) if text else ()
            else:
                values[name] = type(default)(text)
        except ValueError:
            kind = {tuple: "numbers with commas", int: "a whole number", float: "a number"}[type(default)]
            raise ValueError(f"The link has {text[:40]!r} for “{LABELS[name]}”; it should be {kind}.") from None
    return dataclasses.replace(defaults, **values)
