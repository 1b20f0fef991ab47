# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Draw images from a pipeline and compare them with a reference.

    python -m diffusers_lightningdit.evaluate generation --pipeline P --reference REF --inception FILE --output_dir DIR
    accelerate launch -m diffusers_lightningdit.evaluate generation ... (several processes)

`output_dir` gets images/000000.png, ... (or images.npz), samples.json with what determines them, and generation.json
with the numbers and everything they depend on. Run again after an interruption, it goes on where it was.
"""

import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import DiffusionPipeline
from torch import nn

from ...files import read_json, write_json
from ...processes import patient_accelerator
from ...settings import one_line_errors
from ..comparison import compare, not_computed
from ..drawn_images import DrawnImages, check_sampling, load_pipeline, set_scheduler, try_pipeline
from ..identity import IMAGES, SAMPLES_FILE, check_folder, samples_identity
from ..image_archive import write_npz
from ..image_sets import ArchiveImages
from ..networks import exact_arithmetic, make_network
from ..records import collected_warnings, measurement_record
from ..reference import Reference, measure_reference, measure_set
from ..set_statistics import SetStatistics, read_all
from .command_help import parse_command
from .generation_config import HELP, GenerationConfig

RESULTS_FILE = "generation.json"
ARCHIVE = "images.npz"


# ---------------------------------------------------------------------------------------------------------------------
# The set of images
# ---------------------------------------------------------------------------------------------------------------------


def image_set(
    config: GenerationConfig,
    pipeline: DiffusionPipeline,
    size: tuple[int, int],
    identity: dict[str, Any],
    accelerator: Accelerator,
) -> DrawnImages | ArchiveImages:
    """The set: what isn't there of it is drawn when it is read. Clears away what an ended run was writing.

    Raises:
        ValueError: if images.npz, which "both" and a run that still has images/ write anew, would be left with another
            number of images.
    """
    folder = Path(config.output_dir)
    archive = folder / ARCHIVE
    if config.format != "both" and archive.is_file():
        images = ArchiveImages(archive)
        if images.num_images == config.num_images and config.format == "npz":
            return images  # images/ may be left, in part, of a run that was ended
        if images.num_images != config.num_images and (config.format == "png" or not (folder / IMAGES).is_dir()):
            advice = "`format` both, which writes it anew, " if (folder / IMAGES).is_dir() else ""
            raise ValueError(
                f"`num_images` is {config.num_images}; required: {images.num_images}, as in {archive}, {advice}or "
                "another `output_dir`."
            )
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SAMPLES_FILE, identity)
        (folder / IMAGES).mkdir(exist_ok=True)
        for path in (folder / IMAGES).glob("*.partial"):
            path.unlink()
    accelerator.wait_for_everyone()
    return DrawnImages(
        pipeline,
        folder / IMAGES,
        config.num_images,
        size,
        config.labels,
        config.seed,
        config.sampling,
        config.micro_batch_size,
        config.num_workers,
        max_waiting=4 * config.batch_size,
    )


def draw_and_measure(
    config: GenerationConfig, images: DrawnImages | ArchiveImages, network: nn.Module | None, accelerator: Accelerator
) -> tuple[SetStatistics | None, dict[str, float]]:
    """What is measured of the set, on the main process, and how fast this process was."""
    start = time.perf_counter()
    samples = None
    if network is not None:
        samples = measure_set(config, network, images, accelerator, "drawing and measuring")
    else:
        read_all(images, accelerator, config.micro_batch_size, config.batch_size)
    seconds = time.perf_counter() - start
    accelerator.wait_for_everyone()  # every process has written its files
    names = ("num_drawn", "seconds_drawing", "seconds_held_up")
    return samples, {"seconds": seconds, **{name: getattr(images, name, 0) for name in names}}


def pack(config: GenerationConfig, images: DrawnImages | ArchiveImages) -> None:
    """Write images.npz, if it is asked for, and remove images/ then if it is not."""
    folder = Path(config.output_dir)
    if config.format != "png" and isinstance(images, DrawnImages):
        blocks = images.read_blocks([range(index, index + 1) for index in range(config.num_images)])
        write_npz(folder / ARCHIVE, (block[0] for block in blocks), config.num_images)
    if config.format == "npz":
        shutil.rmtree(folder / IMAGES, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------------------------------------


def check_pixels(folder: Path, num_images: int, pixels_sha256: str) -> None:
    """Raise ValueError if an earlier run has measured other pixels of as many images of the same set."""
    file = folder / RESULTS_FILE
    before = read_json(file)["samples"] if file.is_file() else {}
    hash_before = before.get("pixels_sha256", pixels_sha256)
    if before.get("num_images") == num_images and hash_before != pixels_sha256:
        raise ValueError(
            f"`output_dir` is {str(folder)!r}, whose images are not those that {RESULTS_FILE} tells of (pixels_sha256 "
            f"{pixels_sha256[:12]}..., there {hash_before[:12]}...); required: images as they were drawn, or another "
            "folder."
        )


def evaluate_generation(
    config: GenerationConfig,
    accelerator: Accelerator | None = None,
    known_references: dict[tuple, Reference] | None = None,
) -> dict[str, Any]:
    """Draw, measure, write generation.json; returns its content, on every process.

    Args:
        config: of the command.
        accelerator: of the processes; by default a new one.
        known_references: for several runs, as `measure_reference` takes them.

    Raises:
        ValueError: in one line, for whatever cannot be used, before anything is drawn where that can be known; for an
            image that is not finite, or was replaced.
        ImportError: for `inception` without torch-fidelity.
    """
    accelerator = patient_accelerator() if accelerator is None else accelerator
    with exact_arithmetic(config.num_threads):
        return _evaluate(config, accelerator, known_references)


def _evaluate(
    config: GenerationConfig, accelerator: Accelerator, known_references: dict[tuple, Reference] | None
) -> dict[str, Any]:
    device, folder = accelerator.device, Path(config.output_dir)
    network = make_network(config)
    pipeline = load_pipeline(config.pipeline)
    check_sampling(pipeline, config.sampling)
    set_scheduler(pipeline, config.scheduler, config.shift)
    identity = samples_identity(config, pipeline, device)
    check_folder(folder, identity)
    pipeline.to(device)
    if config.dtype != "float32":
        pipeline.to(getattr(torch, config.dtype))
    size = try_pipeline(pipeline, config.sampling)
    reference = None
    if network is not None:
        network.check_size(*size)
        network.to(device)
    if config.reference is not None:
        reference = measure_reference(config, network, size, pipeline, accelerator, known_references)

    images = image_set(config, pipeline, size, identity, accelerator)
    samples, speed = draw_and_measure(config, images, network, accelerator)
    num_classes = pipeline.transformer.config.num_classes
    outcome: list[dict[str, Any] | Exception | None] = [None]
    if accelerator.is_main_process:
        try:
            if samples is not None:
                check_pixels(folder, config.num_images, samples.pixels_sha256)
            pack(config, images)
            outcome = [_record(config, identity, samples, reference, network, num_classes, size, speed, accelerator)]
        except (ValueError, ImportError, OSError) as error:  # the others, who wait for the record, must hear of it
            outcome = [error]
    (record,) = broadcast_object_list(outcome)
    if isinstance(record, Exception):
        raise record
    if accelerator.is_main_process:
        write_json(folder / RESULTS_FILE, record)
    return record


def _record(
    config: GenerationConfig,
    identity: dict[str, Any],
    samples: SetStatistics | None,
    reference: Reference | None,
    network: nn.Module | None,
    num_classes: int,
    size: tuple[int, int],
    speed: dict[str, float],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The content of generation.json."""
    pixels = {} if samples is None else {"pixels_sha256": samples.pixels_sha256}
    with collected_warnings() as messages:
        for line in [*([] if reference is None else reference.doubts), *not_computed(config, reference)]:
            warnings.warn(line, stacklevel=1)
        results = {} if samples is None else compare(config, samples, reference, num_classes, accelerator.device)
    weights = {**identity["weights_sha256"]} | ({} if network is None else {"features": network.description["sha256"]})
    return {
        **measurement_record("generation", results, config, weights, accelerator),
        "warnings": messages,
        "samples": {
            **identity,
            "num_images": config.num_images,
            "num_classes": num_classes,
            "height": size[0],
            "width": size[1],
            **pixels,
        },
        "reference": None if reference is None else reference.description,
        "features": None if network is None else network.description,
        "speed_of_main_process": speed,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    with one_line_errors((ValueError, ImportError, OSError)):
        config = parse_command(GenerationConfig, argv, __doc__, HELP)
        datasets.disable_progress_bars()
        accelerator = patient_accelerator()
        record = evaluate_generation(config, accelerator)
    if accelerator.is_main_process:
        print(json.dumps(record["results"], indent=2))
        print(f"wrote {Path(config.output_dir) / RESULTS_FILE}")
    accelerator.end_training()
