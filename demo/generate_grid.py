"""Draw every class of a checkpoint a few times, as one labelled grid: the picture of the README.

    python demo/generate_grid.py [--pipeline FOLDER_OR_HUB_ID] [--output outputs/digits.png]
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw, ImageFont

import diffusers_lightningdit  # noqa: F401  (makes the pipeline's classes known to diffusers)

REPOSITORY = Path(__file__).resolve().parent.parent


def labelled_grid(rows: dict[str, list[Image.Image]], scale: int) -> Image.Image:
    """One row of images for each label, the label to its left; images are enlarged `scale` times."""
    font = ImageFont.load_default(size=16)
    margin = 16 + int(max(font.getlength(label) for label in rows))
    images = [image.resize((image.width * scale, image.height * scale)) for row in rows.values() for image in row]
    grid = make_image_grid(images, rows=len(rows), cols=len(images) // len(rows))
    page = Image.new("RGB", (margin + grid.width, grid.height), "white")
    page.paste(grid, (margin, 0))
    draw = ImageDraw.Draw(page)
    row_height = grid.height // len(rows)
    for i, label in enumerate(rows):
        draw.text((8, (i + 0.5) * row_height), label, fill="black", font=font, anchor="lm")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=str(REPOSITORY / "model_cards" / "lightningdit-digits"))
    parser.add_argument("--classes", nargs="+", help="names or ids of the classes to draw; all by default")
    parser.add_argument("--num_images_per_class", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=2, help="enlarges the images by a whole factor")
    parser.add_argument("--output", type=Path, default=Path("outputs/digits.png"))
    arguments = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(arguments.pipeline)
    if torch.cuda.is_available():
        pipe.to("cuda")
    if arguments.classes is None:
        classes = list(pipe.id2label) or list(range(pipe.transformer.config.num_classes))
    else:
        classes = pipe.get_label_ids([int(c) if c.isdecimal() else c for c in arguments.classes])

    generator = torch.Generator("cpu").manual_seed(arguments.seed)
    images = pipe(classes, num_images_per_prompt=arguments.num_images_per_class, generator=generator).images
    rows = {}
    for i, class_id in enumerate(classes):
        label = pipe.id2label.get(class_id, str(class_id)).partition(",")[0]
        rows[label] = images[i * arguments.num_images_per_class : (i + 1) * arguments.num_images_per_class]

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(rows, arguments.scale).save(arguments.output)
    print(arguments.output.resolve())


if __name__ == "__main__":
    main()
