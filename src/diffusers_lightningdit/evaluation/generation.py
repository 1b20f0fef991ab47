# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Draw images from a pipeline and compare them with a reference.

    python -m diffusers_lightningdit.evaluate generation --pipeline P --reference REF --inception FILE --output_dir DIR
    accelerate launch -m diffusers_lightningdit.evaluate generation ... (several processes)

`output_dir` gets images/000000.png, ... (or images.npz), samples.json with what determines them, and generation.json
with the numbers and everything they depend on. Run again after an interruption, it goes on where it was.
"""

import json
import re
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

from ..data.latent_shards import partial_name, weights_sha256, write_json
from ..settings import one_line_errors
from .class_accuracy import class_accuracy
from .command_help import parse_command
from .frechet import frechet_distance
from .generation_config import HELP, GenerationConfig
from .image_archive import ARRAY, write_npz
from .image_sets import ArchiveImages
from .linear_probe import can_be_split, linear_probe_accuracy
from .networks import exact_arithmetic, make_network
from .ordered_batches import patient_accelerator
from .precision_recall import precision_and_recall
from .records import collected_warnings, measurement_record
from .reference import Reference, measure_reference, measure_set
from .sample_drawing import DrawnImages, check_sampling, class_label, load_pipeline, set_scheduler, try_pipeline
from .set_statistics import SetStatistics, read_all

SAMPLES_FILE, RESULTS_FILE = "samples.json", "generation.json"
IMAGES, ARCHIVE = "images", "images.npz"
OWN_FILES = re.compile(r"\d{6,}\.png(\.partial)?")
SIGNIFICANT_DIGITS = 6


# ---------------------------------------------------------------------------------------------------------------------
# The set of images
# ---------------------------------------------------------------------------------------------------------------------


def samples_identity(config: GenerationConfig, pipeline: DiffusionPipeline, device: torch.device) -> dict[str, Any]:
    """Everything that the pixels depend on, but for versions and the make of the device."""
    recipe = {**(pipeline.config.get("sampling_recipe") or {}), **config.sampling}
    scheduler = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    identity = {
        "labels": config.labels,
        "seed": config.seed,
        "sampling": recipe,
        "scheduler": {"class": type(pipeline.scheduler).__name__, **scheduler},
        "weights_sha256": {
            name: weights_sha256(component)
            for name, component in sorted(pipeline.components.items())
            if isinstance(component, nn.Module)
        },
        "dtype": config.dtype,
        "micro_batch_size": config.micro_batch_size,
        "device": device.type,
        "num_threads": config.num_threads if device.type == "cpu" else None,
    }
    return json.loads(json.dumps(identity, default=str))  # as it comes back from the file


def check_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Raise ValueError if the folder holds anything but the beginning of this set."""
    name = f"`output_dir` is {str(folder)!r}"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{name}, a file; required: a folder.")
    file = folder / SAMPLES_FILE
    if not file.is_file():
        if any(path != partial_name(file) for path in folder.iterdir()):  # which a run that was ended may have left
            raise ValueError(f"{name}, which exists without {SAMPLES_FILE}; required: a new or an empty folder.")
        return
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged; required: another `output_dir`, or that it be removed.") from error
    for key in identity:
        if begun.get(key) != identity[key]:
            raise ValueError(
                f"{name}, whose images were drawn with {key} = {begun.get(key)}; required: the same, not "
                f"{identity[key]}, or another folder."
            )
    for path in (folder / IMAGES).iterdir() if (folder / IMAGES).is_dir() else ():
        if not OWN_FILES.fullmatch(path.name):
            raise ValueError(f"{name}, where {IMAGES}/{path.name} was not drawn; required: only its own images.")


def image_set(
    config: GenerationConfig,
    pipeline: DiffusionPipeline,
    size: tuple[int, int],
    identity: dict[str, Any],
    accelerator: Accelerator,
) -> DrawnImages | ArchiveImages:
    """The set: what isn't there of it is drawn when it is read. Clears away what an ended run was writing."""
    folder = Path(config.output_dir)
    archive = folder / ARCHIVE
    if config.format == "npz" and archive.is_file():  # images/ may be left, in part, of a run that was ended
        images = ArchiveImages(archive)
        if images.num_images == config.num_images:
            return images
        if not (folder / IMAGES).is_dir():
            raise ValueError(
                f"`num_images` is {config.num_images}; required: {images.num_images}, as in {archive}, or another "
                "`output_dir`."
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
    if config.format != "png" and accelerator.is_main_process and isinstance(images, DrawnImages):
        blocks = images.read_blocks([range(index, index + 1) for index in range(config.num_images)])
        write_npz(Path(config.output_dir) / ARCHIVE, (block[0] for block in blocks), config.num_images)
    names = ("num_drawn", "seconds_drawing", "seconds_held_up")
    return samples, {"seconds": seconds, **{name: getattr(images, name, 0) for name in names}}


# ---------------------------------------------------------------------------------------------------------------------
# The numbers
# ---------------------------------------------------------------------------------------------------------------------


def compare(
    config: GenerationConfig,
    samples: SetStatistics,
    reference: Reference | None,
    num_classes: int,
    device: torch.device,
) -> dict[str, float]:
    """The numbers by name, in significant digits that reproduce.

    "fid" and "sfid" are of Inception; of other features it is the "frechet_distance". "accuracy" comes with
    "accuracy_on_held_out_reference", where there are enough images of each class to hold some out.
    """
    results = {}
    if reference is not None:
        names = {"features": "fid", "spatial": "sfid"} if config.inception else {"features": "frechet_distance"}
        for kind, name in names.items():
            moments, own = reference.moments(kind), samples.statistics[kind]
            if moments is not None:
                results[name] = frechet_distance(own.mean, own.covariance, *moments)
    if samples.inception_score is not None:
        results["inception_score"], results["inception_score_std"] = samples.inception_score
    if config.precision_recall and reference is not None and reference.measured is not None:
        generated, real = samples.features.to(device), reference.measured.features.to(device)
        results["precision"], results["recall"] = precision_and_recall(generated, real, config.num_neighbors)
        if reference.labels is not None:
            indices = range(config.num_images)
            labels = [class_label(config.labels, index, num_classes, config.seed) for index in indices]
            results["accuracy"] = class_accuracy(generated, torch.tensor(labels), real, reference.labels)
            if can_be_split(reference.labels):
                held_out_accuracy = linear_probe_accuracy(real, reference.labels)
                results["accuracy_on_held_out_reference"] = held_out_accuracy
    return {name: float(f"{value:.{SIGNIFICANT_DIGITS}g}") for name, value in results.items()}


def not_computed(config: GenerationConfig, reference: Reference) -> list[str]:
    """A line for each number that a published reference does not allow."""
    lines = []
    if config.precision_recall and reference.measured is None:
        lines.append(f"precision and recall are not computed: {config.reference} holds no images ({ARRAY}).")
    if config.inception is not None and reference.moments("spatial") is None:
        lines.append(f"sfid is not computed: {config.reference} holds no mu_s and sigma_s.")
    return lines


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
        ValueError: in one line, for whatever cannot be used, before anything is drawn where that can be known.
        ImportError: for `inception` without torch-fidelity.
    """
    accelerator = patient_accelerator() if accelerator is None else accelerator
    with exact_arithmetic(config.num_threads):
        record = _evaluate(config, accelerator, known_references)
    if accelerator.is_main_process:
        write_json(Path(config.output_dir) / RESULTS_FILE, record)
    return broadcast_object_list([record])[0]


def _evaluate(
    config: GenerationConfig, accelerator: Accelerator, known_references: dict[tuple, Reference] | None
) -> dict[str, Any] | None:
    device = accelerator.device
    network = make_network(config)
    pipeline = load_pipeline(config.pipeline)
    check_sampling(pipeline, config.sampling)
    set_scheduler(pipeline, config.scheduler, config.shift)
    identity = samples_identity(config, pipeline, device)
    check_folder(Path(config.output_dir), identity)
    pipeline.to(device)
    if config.dtype != "float32":
        pipeline.to(getattr(torch, config.dtype))
    size = try_pipeline(pipeline, config.sampling)
    reference = None
    if network is not None:
        network.check_size(*size)
        network.to(device)
    if config.reference is not None:
        num_classes = pipeline.transformer.config.num_classes
        reference = measure_reference(config, network, size, num_classes, accelerator, known_references)

    images = image_set(config, pipeline, size, identity, accelerator)
    samples, speed = draw_and_measure(config, images, network, accelerator)
    if config.format == "npz" and accelerator.is_main_process:
        shutil.rmtree(Path(config.output_dir) / IMAGES, ignore_errors=True)
    if not accelerator.is_main_process:
        return None
    num_classes = pipeline.transformer.config.num_classes
    with collected_warnings() as messages:
        if reference is not None:
            for line in not_computed(config, reference):
                warnings.warn(line, stacklevel=1)
        results = {} if samples is None else compare(config, samples, reference, num_classes, device)
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
            **({} if samples is None else {"pixels_sha256": samples.pixels_sha256}),
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
