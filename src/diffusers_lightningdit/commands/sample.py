# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Draw images of classes with a pipeline, into a folder of PNG files.

    diffusers-lightningdit sample --pipeline FOLDER_OR_HUB_ID --classes seven 3 --output_dir images
    diffusers-lightningdit sample --pipeline FOLDER_OR_HUB_ID --classes "golden retriever" --num_images_per_class 4 \
        --sampling.guidance_scale=4.0 --sampling.guidance_channels=null --dtype bfloat16 --output_dir images

The pipeline samples by the recipe that its checkpoint carries, unless `sampling` says otherwise. An image depends on
seed, class and its number within the class, not on what is drawn with it: the images are those of `evaluate generation`
with this seed. `grid.png` shows all of them with the names of their classes, `sample.json` says how they were drawn.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..evaluation.drawn_images import check_sampling, checked_decoding, load_pipeline, set_scheduler
from ..files import check_output_dir, new_folder, write_json
from ..grids import draw_class_images, labelled_grid
from ..settings import check_settings, one_line_errors, parse_config, required, setting

DTYPES = ("float32", "float16", "bfloat16")
MAX_NAME = 60  # characters of a class's name in that of a file


@dataclasses.dataclass(kw_only=True)
class SampleConfig:
    """Settings of `diffusers-lightningdit sample`.

    Raises:
        ValueError: If a value cannot be used, or the output folder holds files.
    """

    pipeline: str = required("Folder or Hub id of a class-conditional pipeline.")

    classes: tuple[int | str, ...] = required("Ids or names of classes.", group="Sampling")
    num_images_per_class: int = setting(1, "Images of each class.", minimum=1, below=10_000)
    seed: int = setting(0, "The seed of the images.", minimum=0)
    sampling: dict = setting({}, "Arguments of the pipeline's call, as sampling.num_inference_steps=50.")
    scheduler: str | None = setting(None, "A scheduler class of diffusers; null: the pipeline's own.")
    shift: float | None = setting(
        None, "The shift of the time grid (1 / s for the original's shift s); null: the pipeline's.", above=0
    )

    dtype: str = setting("float32", "The type that is computed in.", group="Computation", choices=DTYPES)
    batch_size: int = setting(16, "Images that are drawn at a time.", minimum=1)

    output_dir: str = required("Folder of the images, new or empty.", group="Output")
    zoom: int = setting(1, "Pixels a side that each pixel becomes in the grid.", minimum=1, below=100)

    def __post_init__(self):
        check_settings(self)
        check_output_dir(self.output_dir)
        if not self.classes:
            raise ValueError("`classes` is empty; required: at least one class.")


def sample(config: SampleConfig) -> dict[str, Any]:
    """Draw the images, and write them, the grid and how they were drawn.

    Returns:
        `output_dir`, the names of the `images` with their class ids, and the `sampling` that the pipeline took.

    Raises:
        ValueError: If the pipeline cannot be used, or has no such class or setting.
    """
    pipeline = load_pipeline(config.pipeline)
    check_sampling(pipeline, config.sampling)
    set_scheduler(pipeline, config.scheduler, config.shift)
    class_ids = pipeline.get_label_ids(list(config.classes))
    pipeline.to(Accelerator().device, getattr(torch, config.dtype))
    drawn = [class_id for class_id in class_ids for _ in range(config.num_images_per_class)]
    with checked_decoding(pipeline):
        images = draw_class_images(pipeline, drawn, config.seed, config.batch_size, **config.sampling)
        images = list(tqdm(images, total=len(drawn), unit="image", desc="drawing"))
    names = [pipeline.id2label.get(class_id, str(class_id)).partition(",")[0] for class_id in class_ids]
    files, numbers = {}, Counter()
    with new_folder(config.output_dir) as folder:
        for class_id, image in zip(drawn, images, strict=True):
            name = _file_name(class_id, pipeline.id2label.get(class_id, ""), numbers[class_id])
            numbers[class_id] += 1
            image.save(folder / name)
            files[name] = class_id
        size = config.num_images_per_class
        rows = [(name, images[row * size : (row + 1) * size]) for row, name in enumerate(names)]
        labelled_grid(rows, zoom=config.zoom).save(folder / "grid.png")
        recipe = {**(pipeline.config.get("sampling_recipe") or {}), **config.sampling}
        write_json(
            folder / "sample.json", {"images": files, "sampling": recipe, "settings": dataclasses.asdict(config)}
        )
    return {"output_dir": config.output_dir, "images": files, "sampling": recipe}


def _file_name(class_id: int, entry: str, number: int) -> str:
    """The first image of "seven" as "7-seven-0.png"; of the name letters and digits stay, and the rest becomes "_"."""
    name = "".join(letter if letter.isalnum() else "_" for letter in entry.partition(",")[0].strip())[:MAX_NAME]
    return "-".join([str(class_id), *([name] if name else []), f"{number}.png"])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, ImportError, OSError)):
        result = sample(parse_config(SampleConfig, argv, __doc__))
    print(f"wrote {result['output_dir']}: {len(result['images'])} images, grid.png, sample.json")
    return result
