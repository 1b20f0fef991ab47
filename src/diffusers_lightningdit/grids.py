# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images of given classes from fixed noise, and grids of images with titles."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from .keyed_random import image_generator

GAP = 2  # pixels between two images
MARGIN = 5  # pixels around a title
MAX_PIXELS = 178_956_970  # of a grid, 0.5 GB: the largest picture that Pillow opens again
CAPTION_WIDTH = 24  # pixels of an image that is wide enough for a caption
FONT_SIZES = (10, 16)  # smallest and largest, in pixels; a quarter of the height of an image in between


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def draw_images(
    pipeline: DiffusionPipeline,
    class_labels: Sequence[int | str],
    generators: Sequence[torch.Generator],
    batch_size: int,
    output_type: str = "pil",
    **arguments,
) -> Iterator[Image.Image | torch.Tensor]:
    """Draw one image for each label, from noise that does not depend on the batch.

    Args:
        pipeline: The pipeline, which samples by its own recipe.
        class_labels: The id or name of each image's class.
        generators: The generator of each image's noise.
        batch_size: The number of images that are drawn at a time.
        output_type: "pil", or "pt" for tensors [3, height, width] in [0, 1].
        arguments: Arguments of the pipeline's call, in place of those of its recipe.
    """
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(class_labels), batch_size):
        block = slice(start, start + batch_size)
        labels, noise = list(class_labels[block]), list(generators[block])
        yield from pipeline(labels, generator=noise, output_type=output_type, **arguments).images


def draw_class_images(
    pipeline: DiffusionPipeline, class_ids: Sequence[int], seed: int, batch_size: int, **arguments
) -> Iterator[Image.Image]:
    """Draw one image for each class id: the images that `evaluate generation` draws with this seed.

    Its balanced set has the classes 0, 1, ..., K - 1, 0, ...: the n-th image of class k, from n = 0 on, is image
    n K + k of that set, and has its noise.

    Args:
        pipeline: The pipeline, which samples by its own recipe.
        class_ids: The class of each image, in any order.
        seed: The seed of the set.
        batch_size: The number of images that are drawn at a time. Networks round differently in batches of another
            size, which changes single pixels by one step of 8 bits.
        arguments: Arguments of the pipeline's call, in place of those of its recipe.
    """
    num_classes = pipeline.transformer.config.num_classes
    num_drawn: Counter[int] = Counter()
    generators = []
    for class_id in class_ids:
        generators.append(image_generator(seed, num_drawn[class_id] * num_classes + class_id))
        num_drawn[class_id] += 1
    return draw_images(pipeline, class_ids, generators, batch_size, **arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Grids
# ---------------------------------------------------------------------------------------------------------------------


def labelled_grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    columns: Sequence[str] = (),
    zoom: int = 1,
    caption: str = "",
    title_width: int | None = None,
) -> Image.Image:
    """Arrange images in rows, with a title at the left of each row, a name above each column and a caption below.

    Args:
        rows: The title and the images of each row; all images have the same size, rows may differ in length.
        columns: The names of the columns, one for each image of the longest row; or no names.
        zoom: The factor by which images are enlarged, a whole number; each pixel becomes a square.
        caption: The text below the images, which is wrapped to their width.
        title_width: The width in pixels that titles are wrapped to; None: each is one line.

    Raises:
        ValueError: If there are no images, their sizes differ, the number of names is another one, or the grid would
            have more than `MAX_PIXELS`.
    """
    sizes = {image.size for _, images in rows for image in images}
    length = max((len(images) for _, images in rows), default=0)
    if len(sizes) != 1:
        found = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "none"
        raise ValueError(f"the sizes of the images are {found}; required: images of one size, at least one.")
    if columns and len(columns) != length:
        raise ValueError(f"`columns` has {len(columns)} names; required: {length}, one for each column, or none.")
    width, height = (side * zoom for side in sizes.pop())
    font_size = min(max(height // 4, FONT_SIZES[0]), FONT_SIZES[1])
    font = ImageFont.load_default(font_size)
    titles = [[title] if title_width is None else _wrapped(title, font, title_width) for title, _ in rows]
    widest = max((font.getlength(line) for lines in titles for line in lines), default=0)
    left = round(widest) + 2 * MARGIN if widest else 0
    top = 2 * MARGIN + font_size if columns else 0
    total_width, bottom = left + (width + GAP) * length, top + (height + GAP) * len(rows)
    lines = _wrapped(caption, font, total_width - 2 * MARGIN)
    line_height = font_size + MARGIN
    caption_height = line_height * len(lines) + MARGIN if lines else 0
    size = (total_width, bottom + caption_height)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"the grid would have {size[0]}x{size[1]} pixels; required: at most {MAX_PIXELS}.")
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for number, line in enumerate(lines):
        draw.text((MARGIN, bottom + MARGIN + number * line_height), line, fill="black", anchor="la", font=font)
    for column, name in enumerate(columns):
        draw.text((left + column * (width + GAP) + width // 2, top // 2), name, fill="black", anchor="mm", font=font)
    for row, (lines, (_, images)) in enumerate(zip(titles, rows, strict=True)):
        y = top + row * (height + GAP)
        for number, line in enumerate(lines):
            offset = line_height * (2 * number + 1 - len(lines)) // 2  # around the middle of the row
            draw.text((MARGIN, y + height // 2 + offset), line, fill="black", anchor="lm", font=font)
        for column, image in enumerate(images):
            tile = image.convert("RGB").resize((width, height), resample=Image.Resampling.NEAREST)
            grid.paste(tile, (left + column * (width + GAP), y))
    return grid


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a text of at most `width` pixels, but for words that are longer."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def draw_labelled_grid(
    pipeline: DiffusionPipeline,
    class_ids: Sequence[int],
    num_columns: int,
    seed: int,
    batch_size: int,
    zoom: int = 1,
    **arguments,
) -> Image.Image:
    """Draw a grid with a row of images for each class, titled by its id and its name.

    Args:
        pipeline: The pipeline, which samples by its own recipe.
        class_ids: The class of each row.
        num_columns: The number of images of each class.
        seed: The seed of the set that the images belong to, as in `draw_class_images`.
        batch_size: The number of images that are drawn at a time.
        zoom: The factor by which images are enlarged.
        arguments: Arguments of the pipeline's call, in place of those of its recipe.
    """
    repeated = [class_id for class_id in class_ids for _ in range(num_columns)]
    images = list(draw_class_images(pipeline, repeated, seed, batch_size, **arguments))
    names = getattr(pipeline, "id2label", {})
    titles = [f"{class_id} {names.get(class_id, '').partition(',')[0]}".strip() for class_id in class_ids]
    rows = [images[start : start + num_columns] for start in range(0, len(images), num_columns)]
    return labelled_grid(list(zip(titles, rows, strict=True)), zoom=zoom)


def captioned_grid(images: Sequence[Image.Image], captions: Sequence[str], num_columns: int) -> Image.Image:
    """Arrange images in rows, with a caption below each, which is cut where it is wider than the image.

    Args:
        images: The images, all of one size.
        captions: The caption of each image. Images below `CAPTION_WIDTH` have none, nor where all are empty.
        num_columns: The number of images in a row.
    """
    width, height = images[0].size
    font_size = min(max(height // 8, FONT_SIZES[0]), FONT_SIZES[1])
    font = ImageFont.load_default(font_size)
    room = font_size + GAP if any(captions) and width >= CAPTION_WIDTH else 0
    num_rows = -(-len(images) // num_columns)
    grid = Image.new("RGB", (width * num_columns, (height + room) * num_rows), "white")
    draw = ImageDraw.Draw(grid)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = number % num_columns * width, number // num_columns * (height + room)
        grid.paste(image.convert("RGB"), (x, y))
        while room and caption and font.getlength(caption) > width:
            caption = caption[:-1]
        if room:
            draw.text((x + width // 2, y + height + room // 2), caption, fill="black", anchor="mm", font=font)
    return grid


def draw_grid(
    pipeline: DiffusionPipeline, num_images: int, seed: int, batch_size: int, class_ids: Sequence[int] | None = None
) -> Image.Image:
    """Draw images of evenly spread classes, with their names, in a grid that is nearly square.

    Args:
        pipeline: The pipeline, which samples by its own recipe.
        num_images: The number of images.
        seed: The seed of the set that the images belong to, as in `draw_class_images`.
        batch_size: The number of images that are drawn at a time.
        class_ids: The classes to draw; by default all.
    """
    class_ids = class_ids or range(pipeline.transformer.config.num_classes)
    num_classes = len(class_ids)
    if num_images < num_classes:
        drawn = [class_ids[number * num_classes // num_images] for number in range(num_images)]
    else:
        drawn = [class_ids[number % num_classes] for number in range(num_images)]
    images = list(draw_class_images(pipeline, drawn, seed, batch_size))
    num_columns = next(count for count in range(int(num_images**0.5), num_images + 1) if num_images % count == 0)
    names = getattr(pipeline, "id2label", {})
    return captioned_grid(images, [names.get(class_id, "").partition(",")[0] for class_id in drawn], num_columns)
