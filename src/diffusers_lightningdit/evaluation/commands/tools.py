# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Convert sets of images between a folder and one file, and draw grids of classes.

    python -m diffusers_lightningdit.evaluate tools pack --images FOLDER --output FILE.npz
    python -m diffusers_lightningdit.evaluate tools unpack --archive FILE.npz --output FOLDER
    python -m diffusers_lightningdit.evaluate tools grid --pipeline P --classes "[seven, 3]" --output FILE.png

`python -m diffusers_lightningdit.evaluate tools TOOL --help` lists the settings of a tool.
"""

import dataclasses
import sys
from collections.abc import Callable

from accelerate import Accelerator

from ...files import atomic_write
from ...grids import draw_labelled_grid
from ...settings import check_settings, one_line_errors, parse_config, required, setting
from ..drawn_images import check_sampling, checked_decoding, load_pipeline, set_scheduler
from ..image_archive import check_new_file, pack_folder, unpack_archive
from ..records import BEGINS_ANEW


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
class GridConfig:
    """Settings of `evaluate tools grid`.

    Raises:
        ValueError: If a value cannot be used, or the output exists.
    """

    pipeline: str = required("Folder or Hub id of a class-conditional pipeline.")

    classes: tuple[int | str, ...] | None = setting(
        None, "Ids or names of classes, a row for each; null: the first ten.", group="Sampling"
    )
    num_columns: int = setting(8, "Images of each class.", minimum=1)
    seed: int = setting(
        0, "The seed of a balanced set of `evaluate generation`, whose first images of each class are drawn.", minimum=0
    )
    sampling: dict = setting({}, "Arguments of the pipeline's call, as sampling.guidance_scale=2.0.")
    scheduler: str | None = setting(None, "A scheduler class of diffusers; null: the pipeline's own.")

    batch_size: int = setting(16, "Images that are drawn at a time.", group="Computation", minimum=1)

    output: str = required("The new .png file, in an existing folder.", group="Output")
    zoom: int = setting(1, "Pixels a side that each pixel becomes.", minimum=1)

    def __post_init__(self):
        check_settings(self)
        check_new_file(self.output, ".png")
        if self.classes is not None and not self.classes:
            raise ValueError("`classes` is empty; required: at least one class.")


def draw_class_grid(config: GridConfig) -> tuple[int, int]:
    """Draw a grid with a titled row for each class, and return its numbers of rows and columns.

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
    return len(class_ids), config.num_columns


def _pack(config: PackConfig) -> str:
    return f"{pack_folder(config.images, config.output)} images"


def _unpack(config: UnpackConfig) -> str:
    return f"{unpack_archive(config.archive, config.output)} images"


def _grid(config: GridConfig) -> str:
    num_rows, num_columns = draw_class_grid(config)
    return f"{num_rows} rows of {num_columns} images"


TOOLS: dict[str, tuple[type, Callable]] = {
    "pack": (PackConfig, _pack),
    "unpack": (UnpackConfig, _unpack),
    "grid": (GridConfig, _grid),
}


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        raise SystemExit(0)
    with one_line_errors((ValueError, OSError), interrupted=BEGINS_ANEW):
        if argv[0] not in TOOLS:
            raise ValueError(f"the tool is {argv[0]!r}; required: one of {', '.join(TOOLS)}.")
        config_class, tool = TOOLS[argv[0]]
        config = parse_config(config_class, argv[1:], __doc__)
        print(f"wrote {config.output}: {tool(config)}")
