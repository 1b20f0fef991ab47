# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Draw images from a pipeline and compare them with a reference.

    python -m diffusers_lightningdit.evaluate generation --pipeline P --reference REF --inception FILE --output_dir DIR
    accelerate launch --quiet -m diffusers_lightningdit.evaluate generation ...

The command writes images/000000.png, ... (or images.npz) to `output_dir`, samples.json with everything that determines
them, and generation.json with the metrics and everything that these depend on. Run again after an interruption, it
resumes.
"""

import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import nn

from ...files import write_json
from ...locks import locked_by_run
from ...processes import on_main_process
from ..drawn_images import DrawnImages, check_sampling, load_pipeline, set_scheduler, try_pipeline
from ..generation_config import GenerationConfig
from ..generation_metrics import compute_metrics, not_computed
from ..image_archive import write_npz
from ..image_sets import ArchiveImages
from ..ordered_batches import exact_arithmetic
from ..provenance import IMAGES, SAMPLES_FILE, check_folder, samples_provenance
from ..records import RESUMES, collected_warnings, measurement_record, read_record, run_command
from ..reference import Reference, measure_reference, measure_set
from ..set_statistics import SetStatistics, make_network, read_all

RESULTS_FILE = "generation.json"
ARCHIVE = "images.npz"


# ---------------------------------------------------------------------------------------------------------------------
# The set of images
# ---------------------------------------------------------------------------------------------------------------------


def image_set(
    config: GenerationConfig,
    pipeline: DiffusionPipeline,
    size: tuple[int, int],
    provenance: dict[str, Any],
    accelerator: Accelerator,
) -> DrawnImages | ArchiveImages:
    """Open the set, whose missing images are drawn when they are read, and remove partial files of a killed run.

    Raises:
        ValueError: If an images.npz with another number of images would be left beside the set. ("both" writes it anew,
            and so does a run whose images/ is still there.)
    """
    folder = Path(config.output_dir)
    archive = folder / ARCHIVE
    if config.format != "both" and archive.is_file():
        images = ArchiveImages(archive)
        if images.num_images == config.num_images and config.format == "npz":
            return images  # a killed run may have left some images/ beside it
        if images.num_images != config.num_images and (config.format == "png" or not (folder / IMAGES).is_dir()):
            advice = "`format` both, which writes it anew, " if (folder / IMAGES).is_dir() else ""
            raise ValueError(
                f"`num_images` is {config.num_images}; required: {images.num_images}, as in {archive}, {advice}or "
                "another `output_dir`."
            )
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SAMPLES_FILE, provenance)
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
        identity=json.dumps(provenance, sort_keys=True),
    )


def draw_and_measure(
    config: GenerationConfig, images: DrawnImages | ArchiveImages, network: nn.Module | None, accelerator: Accelerator
) -> tuple[SetStatistics | None, dict[str, float]]:
    """Draw and measure the set; return its statistics on the main process, and the times of this process."""
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
    """Write images.npz if the format includes it, and remove images/ if the format does not include them."""
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
    """Raise ValueError if an earlier run of this set has measured other pixels of the same number of images."""
    file = folder / RESULTS_FILE
    before = read_record(file)["samples"] if file.is_file() else {}
    hash_before = before.get("pixels_sha256", pixels_sha256)
    if before.get("num_images") == num_images and hash_before != pixels_sha256:
        raise ValueError(
            f"`output_dir` is {str(folder)!r}, whose images are not those that {RESULTS_FILE} tells of (pixels_sha256 "
            f"{pixels_sha256[:12]}..., there {hash_before[:12]}...); required: images as they were drawn, or another "
            "folder."
        )


def evaluate_generation(
    config: GenerationConfig,
    accelerator: Accelerator,
    known_references: dict[tuple, Reference] | None = None,
) -> dict[str, Any]:
    """Draw and measure a set of images, and write generation.json.

    Args:
        config: The settings of the command.
        accelerator: The accelerator whose processes share the work.
        known_references: The references that earlier runs of a sweep have measured (see `measure_reference`).

    Returns:
        The content of generation.json, on every process.

    Raises:
        ValueError: In one line. If settings, pipeline, network or reference cannot be used, it is raised before
            anything is drawn, where possible; later, if an image is not finite or was replaced.
        ImportError: If `inception` is set and torch-fidelity is not installed.
    """
    with exact_arithmetic(config.num_threads, accelerator.device):
        return _evaluate(config, accelerator, known_references)


def _evaluate(
    config: GenerationConfig, accelerator: Accelerator, known_references: dict[tuple, Reference] | None
) -> dict[str, Any]:
    device, folder = accelerator.device, Path(config.output_dir)
    network = make_network(config)
    pipeline = load_pipeline(config.pipeline)
    check_sampling(pipeline, config.sampling)
    set_scheduler(pipeline, config.scheduler, config.shift)
    provenance = samples_provenance(config, pipeline, device)
    check_folder(folder, provenance)
    pipeline.to(device)
    if config.dtype != "float32":
        pipeline.to(getattr(torch, config.dtype))
    size = try_pipeline(pipeline, config.sampling)
    if network is not None:
        network.check_size(*size)
        network.to(device)
    with locked_by_run(accelerator, folder):
        check_folder(folder, provenance)  # another run may have begun there in the meantime
        reference = None
        if config.reference is not None:
            reference = measure_reference(config, network, size, pipeline, accelerator, known_references)
        images = image_set(config, pipeline, size, provenance, accelerator)
        samples, speed = draw_and_measure(config, images, network, accelerator)

        def finish() -> dict[str, Any]:
            if samples is not None:
                check_pixels(folder, config.num_images, samples.pixels_sha256)
            pack(config, images)
            num_classes = pipeline.transformer.config.num_classes
            record = _record(config, provenance, samples, reference, network, num_classes, size, speed, accelerator)
            write_json(folder / RESULTS_FILE, record)
            return record

        return on_main_process(accelerator, finish)


def _record(
    config: GenerationConfig,
    provenance: dict[str, Any],
    samples: SetStatistics | None,
    reference: Reference | None,
    network: nn.Module | None,
    num_classes: int,
    size: tuple[int, int],
    speed: dict[str, float],
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Compose the content of generation.json."""
    pixels = {} if samples is None else {"pixels_sha256": samples.pixels_sha256}
    with collected_warnings() as messages:
        for line in [*([] if reference is None else reference.warnings), *not_computed(config, reference)]:
            warnings.warn(line, stacklevel=1)
        results = (
            {} if samples is None else compute_metrics(config, samples, reference, num_classes, accelerator.device)
        )
    weights = {**provenance["weights_sha256"]} | (
        {} if network is None else {"features": network.description["sha256"]}
    )
    return {
        **measurement_record("generation", results, config, weights, accelerator),
        "warnings": messages,
        "samples": {
            **provenance,
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


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return run_command(GenerationConfig, evaluate_generation, RESULTS_FILE, argv, __doc__, RESUMES)
