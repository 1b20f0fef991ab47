# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images of given classes from fixed noise, and grids of images with words beside them."""

from collections.abc import Iterator, Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

GAP = 2  # pixels between two images
MARGIN = 5  # pixels around a title


def draw_images(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str],
    seed: int,
    batch_size: int,
    output_type: str = "pil",
    **arguments,
) -> Iterator[Image.Image | torch.Tensor]:
    """One image for each label; image i comes from a generator of its own, seeded `seed` + i, whatever its batch.

    Args:
        pipeline: draws them, by its own recipe.
        class_labels: ids or names.
        seed: of the first image.
        batch_size: images drawn at a time.
        output_type: "pil", or "pt" for tensors [3, height, width] in [0, 1].
        arguments: of the pipeline's call, over its recipe.
    """
    pipeline.set_progress_bar_config(disable=True)
    for first in range(0, len(class_labels), batch_size):
        part = list(class_labels[first : first + batch_size])
        generators = [torch.Generator().manual_seed(seed + first + number) for number in range(len(part))]
        yield from pipeline(part, generator=generators, output_type=output_type, **arguments).images


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str] = (), zoom: int = 1
) -> Image.Image:
    """Rows of images, with a title each at the left, and a name above each column.

    Args:
        rows: (title, images); all images of the size of the first, any number in a row.
        columns: names, as many as there are images in the longest row, or none.
        zoom: pixels a side that each pixel becomes.

    Raises:
        ValueError: without images, for images of different sizes, or for another number of names.
    """
    sizes = {image.size for _, images in rows for image in images}
    length = max((len(images) for _, images in rows), default=0)
    if len(sizes) != 1:
        found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "none"
        raise ValueError(f"the sizes of the images are {found}; required: images of one size, at least one.")
    if columns and len(columns) != length:
        raise ValueError(f"`columns` has {len(columns)} names; required: {length}, one for each column, or none.")
    width, height = (side * zoom for side in sizes.pop())
    font = ImageFont.load_default()
    title_width = max(font.getlength(title) for title, _ in rows)
    left = round(title_width) + 2 * MARGIN if title_width else 0
    top = 2 * MARGIN + 10 if columns else 0
    grid = Image.new("RGB", (left + (width + GAP) * length, top + (height + GAP) * len(rows)), "white")
    draw = ImageDraw.Draw(grid)
    for column, name in enumerate(columns):
        draw.text((left + column * (width + GAP) + width // 2, top // 2), name, fill="black", anchor="mm", font=font)
    for row, (title, images) in enumerate(rows):
        y = top + row * (height + GAP)
        draw.text((MARGIN, y + height // 2), title, fill="black", anchor="lm", font=font)
        for column, image in enumerate(images):
            tile = image.convert("RGB").resize((width, height), resample=Image.Resampling.NEAREST)
            grid.paste(tile, (left + column * (width + GAP), y))
    return grid
