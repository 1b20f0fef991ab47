# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Convert sets of images between a folder and one file, measure reference statistics, draw grids of classes and curves.

    python -m diffusers_lightningdit.evaluate tools pack --images FOLDER --output FILE.npz
    python -m diffusers_lightningdit.evaluate tools unpack --archive FILE.npz --output FOLDER
    python -m diffusers_lightningdit.evaluate tools statistics --data FOLDER --inception FILE --output FILE.npz
    python -m diffusers_lightningdit.evaluate tools grid --pipeline P --classes "[seven, 3]" --output FILE.png
    python -m diffusers_lightningdit.evaluate tools curves --run OUTPUT_DIR --output FILE.png

`python -m diffusers_lightningdit.evaluate tools TOOL --help` lists the settings of a tool.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from ...files import atomic_write
from ...grids import draw_labelled_grid
from ...interruption import interruptible
from ...networks.inception import PUBLISHED_SHA256, InceptionFeatures
from ...processes import patient_accelerator
from ...settings import check_settings, one_line_errors, parse_config, required, setting
from ..drawn_images import check_sampling, checked_decoding, load_pipeline, set_scheduler
from ..image_archive import check_new_file, pack_folder, unpack_archive
from ..image_sets import ArchiveImages, DatasetImages, open_images
from ..ordered_batches import exact_arithmetic
from ..plots import plot_panels
from ..records import BEGINS_ANEW, collected_warnings, measurement_record
from ..reference import statistics_arrays
from ..set_statistics import measure_images

METRICS_FILE, VALIDATION = "metrics.jsonl", "validation_"  # of training runs


@dataclasses.dataclass(kw_only=True)
class PackConfig:
    """Settings of `evaluate tools pack`."""

    images: str = required("Folder of PNG files and nothing else, which are packed in the order of their names.")
    output: str = required("The new .npz file, in an existing folder.", group="Output")


@dataclasses.dataclass(kw_only=True)
class UnpackConfig:
    """Settings of `evaluate tools unpack`."""

    archive: str = required("The .npz file with arr_0, uint8 [N, height, width, 3].")
    output: str = required("The new or empty folder of the PNG files.", group="Output")


@dataclasses.dataclass(kw_only=True)
class StatisticsConfig:
    """Settings of `evaluate tools statistics`.

    Raises:
        ValueError: If a value cannot be used, or the output exists.
    """

    data: str = required("Folder, Hub id or .npz file of the images.")
    split: str = setting("train", "The split of the data set.")
    image_column: str = setting("image", "The column of the images.")
    allow_left_out: bool = setting(False, "Accept that files in a local folder of `data` are left out; they are named.")
    resolution: int | None = setting(
        None,
        "The side in pixels of the centre squares that images are cropped to, as in ADM's evaluation; null: no crop, "
        "for images that all have one size.",
        minimum=1,
    )

    inception: str = required("File of torch-fidelity's Inception weights.", group="Measures")
    inception_sha256: str = setting(PUBLISHED_SHA256, "The SHA-256 of the file `inception`, or how it begins.")

    micro_batch_size: int = setting(
        16,
        "Images that the network takes at a time; another number changes the last digits.",
        group="Computation",
        minimum=1,
    )
    batch_size: int = setting(64, "Images that a process handles in one turn.", minimum=1)
    num_workers: int = setting(4, "Threads that read images, of each process.", minimum=1)
    num_threads: int = setting(
        1, "Threads of each process's network on a CPU; another number changes the last digits.", minimum=1
    )

    output: str = required("The new .npz file, in an existing folder; its array `record` says in JSON how it was made.")

    def __post_init__(self):
        check_settings(self)
        check_new_file(self.output, ".npz")


@dataclasses.dataclass(kw_only=True)
class GridConfig:
    """Settings of `evaluate tools grid`.

    Raises:
        ValueError: If a value cannot be used, or the output exists.
    """

    pipeline: str = required("Folder or Hub id of a class-conditional pipeline.")

    classes: tuple[int | str, ...] | None = setting(
        None, "Ids or names of classes, a row for each; null: the first ten.", group="Sampling"
    )
    num_columns: int = setting(8, "Images of each class.", minimum=1, below=1000)
    seed: int = setting(
        0, "The seed of a balanced set of `evaluate generation`, whose first images of each class are drawn.", minimum=0
    )
    sampling: dict = setting({}, "Arguments of the pipeline's call, as sampling.guidance_scale=2.0.")
    scheduler: str | None = setting(None, "A scheduler class of diffusers; null: the pipeline's own.")

    batch_size: int = setting(16, "Images that are drawn at a time.", group="Computation", minimum=1)

    output: str = required("The new .png file, in an existing folder.", group="Output")
    zoom: int = setting(1, "Pixels a side that each pixel becomes.", minimum=1, below=100)

    def __post_init__(self):
        check_settings(self)
        check_new_file(self.output, ".png")
        if self.classes is not None and not self.classes:
            raise ValueError("`classes` is empty; required: at least one class.")


@dataclasses.dataclass(kw_only=True)
class CurvesConfig:
    """Settings of `evaluate tools curves`.

    Raises:
        ValueError: If a value cannot be used, or the output exists.
    """

    run: str = required("Folder of a training run, finished or not, with metrics.jsonl in it.")
    names: tuple[str, ...] | None = setting(
        None, "Names of metrics, a panel for each, with validation_NAME in that of NAME; null: all."
    )

    output: str = required("The new .png file, in an existing folder.", group="Output")

    def __post_init__(self):
        check_settings(self)
        check_new_file(self.output, ".png")


def read_curves(run: str, names: Sequence[str] | None = None) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Read the metrics of a training run by panels, and in each by name: points (step, value).

    Steps that a resumed run did again count as they were at last.

    Args:
        run: The folder of the run.
        names: The panels; None for all.

    Raises:
        ValueError: If there are no metrics, or none of such a name.
    """
    file = Path(run) / METRICS_FILE
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"`run` is {run!r}; required: the folder of a training run, with {METRICS_FILE}.") from error
    found: dict[str, dict[float, float]] = {}
    for line in lines:
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, TypeError, KeyError):  # the end of a line is missing: the disk was full, or it is written
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[step] = value
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, points in found.items():
        plain = name.removeprefix(VALIDATION)
        panels.setdefault(plain if plain in found else name, {})[name] = sorted(points.items())
    for name in names or ():
        if name not in panels:
            raise ValueError(f"`names` has {name!r}; required: of {', '.join(panels) or 'none: there are no metrics'}.")
    if not panels:
        raise ValueError(f"{file} has no metrics; required: at least one line.")
    return {name: panels[name] for name in names or panels}


def draw_curves(output: str | Path, run: str, names: Sequence[str] | None = None) -> int:
    """Plot the metrics of a training run over its steps to a PNG file, and return the number of panels.

    Raises:
        ValueError: As `read_curves`.
        ImportError: If matplotlib is not installed.
    """
    panels = read_curves(run, names)
    plot_panels(output, panels, "step")
    return len(panels)


def draw_class_grid(config: GridConfig) -> int:
    """Draw a grid with a titled row for each class, and return the number of rows.

    The images are the first `num_columns` of each class in a balanced set of `evaluate generation` with this seed.

    Raises:
        ValueError: If the pipeline cannot be used, or has no such class or setting.
    """
    pipeline = load_pipeline(config.pipeline)
    check_sampling(pipeline, config.sampling)
    set_scheduler(pipeline, config.scheduler)
    num_classes = pipeline.transformer.config.num_classes
    chosen = list(range(min(10, num_classes)) if config.classes is None else config.classes)
    class_ids = pipeline.get_label_ids(chosen)
    pipeline.to(Accelerator().device)
    with checked_decoding(pipeline):
        grid = draw_labelled_grid(
            pipeline, class_ids, config.num_columns, config.seed, config.batch_size, config.zoom, **config.sampling
        )
    with atomic_write(config.output) as partial:
        grid.save(partial, format="PNG")
    return len(class_ids)


def measure_statistics(config: StatisticsConfig) -> int:
    """Write the statistics that FID and sFID compare, for `reference` of `evaluate generation`.

    Returns:
        The number of images.

    Raises:
        ValueError: If data or network cannot be used, there are fewer than 2 images, or one cannot be read.
        ImportError: If torch-fidelity is not installed.
    """
    network = InceptionFeatures(config.inception, config.inception_sha256)
    images = open_images(
        config.data,
        config.split,
        config.image_column,
        config.resolution,
        config.num_workers,
        allow_left_out=config.allow_left_out,
    )
    if isinstance(images, ArchiveImages) and config.resolution not in (None, *images.size):
        raise ValueError(f"`resolution` is {config.resolution}; required: null for an .npz file, which is not cropped.")
    if images.num_images < 2:
        raise ValueError(f"`data` is {config.data!r}, with 1 image; required: at least 2, for a covariance.")
    network.check_size(*images.size)
    accelerator = patient_accelerator()
    if isinstance(images, DatasetImages):
        accelerator.print(images.source.summary())
    with exact_arithmetic(config.num_threads, accelerator.device), collected_warnings() as messages:
        network.to(accelerator.device)
        sizes = (config.micro_batch_size, config.batch_size)
        measured = measure_images(images, network, accelerator, *sizes, title="measuring")
        arrays = {} if measured is None else statistics_arrays(measured)
    if measured is not None:
        results = {"num_images": measured.num_images, "height": images.size[0], "width": images.size[1]}
        weights = {"features": network.description["sha256"]}
        record = measurement_record("tools statistics", results, config, weights, accelerator)
        record |= {"warnings": messages, "pixels_sha256": measured.pixels_sha256}
        with atomic_write(config.output) as partial, open(partial, "wb") as file:
            np.savez(file, record=json.dumps(record), **arrays)
    accelerator.wait_for_everyone()
    return images.num_images


# The settings of each tool, and the function that runs it and says what it wrote.
TOOLS: dict[str, tuple[type, Callable]] = {
    "pack": (PackConfig, lambda config: f"{pack_folder(config.images, config.output)} images"),
    "unpack": (UnpackConfig, lambda config: f"{unpack_archive(config.archive, config.output)} images"),
    "statistics": (StatisticsConfig, lambda config: f"mu and sigma of {measure_statistics(config)} images"),
    "grid": (GridConfig, lambda config: f"{draw_class_grid(config)} rows of {config.num_columns} images"),
    "curves": (CurvesConfig, lambda config: f"{draw_curves(config.output, config.run, config.names)} curves"),
}


def main(argv: list[str] | None = None) -> dict[str, str]:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        raise SystemExit(0)
    with one_line_errors((ValueError, ImportError, OSError)), interruptible(BEGINS_ANEW):
        if argv[0] not in TOOLS:
            raise ValueError(f"the tool is {argv[0]!r}; required: one of {', '.join(TOOLS)}.")
        config_class, tool = TOOLS[argv[0]]
        config = parse_config(config_class, argv[1:], __doc__)
        print(f"wrote {config.output}: {tool(config)}")
    return {"output": config.output}
