"""Draw every class of a checkpoint a few times, as one labelled grid: the picture of the README.

python demo/generate_grid.py [--pipeline FOLDER_OR_HUB_ID] [--output outputs/digits.png]
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

import diffusers_lightningdit  # noqa: F401  (makes the pipeline's classes known to diffusers)

REPOSITORY = Path(__file__).resolve().parent.parent


def labelled_grid(rows: dict[str, list[Image.Image]], scale: int, gap: int = 4) -> Image.Image:
    """One row of images for each label, the label to its left; images are enlarged `scale` times."""
    font = ImageFont.load_default(size=16)
    margin = 16 + int(max(font.getlength(label) for label in rows))
    first = next(iter(rows.values()))[0]
    width, height = scale * first.width, scale * first.height
    num_columns = max(len(row) for row in rows.values())
    page = Image.new("RGB", (margin + num_columns * (width + gap), gap + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(page)
    for i, (label, row) in enumerate(rows.items()):
        top = gap + i * (height + gap)
        draw.text((8, top + height / 2), label, fill="black", font=font, anchor="lm")
        for j, image in enumerate(row):
            page.paste(image.resize((width, height)), (margin + j * (width + gap), top))
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
