"""Draw every class of a checkpoint a few times, as one labelled grid: the picture of the README.

python demo/generate_grid.py --pipeline FOLDER_OR_HUB_ID --output outputs/digits.png
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

import diffusers_lightningdit  # noqa: F401  (makes the pipeline's classes known to diffusers)
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, setting

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True)
class GridConfig:
    """Settings of generate_grid.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    pipeline: str = setting(
        str(REPOSITORY / "model_cards" / "lightningdit-digits"), "Folder or Hub id of a class-conditional pipeline."
    )

    classes: tuple[int | str, ...] | None = setting(
        None, "Names or ids of the classes to draw; null: all.", group="Sampling"
    )
    num_images_per_class: int = setting(8, "Images of each class.", minimum=1)
    seed: int = setting(0, "The seed of the images.")

    output: str = setting("outputs/digits.png", "The file of the picture.", group="Output")
    scale: int = setting(2, "The whole factor that images are enlarged by.", minimum=1)

    def __post_init__(self):
        check_settings(self)


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


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(GridConfig, argv, __doc__)

    pipe = DiffusionPipeline.from_pretrained(config.pipeline)
    if torch.cuda.is_available():
        pipe.to("cuda")
    if config.classes is None:
        classes = list(pipe.id2label) or list(range(pipe.transformer.config.num_classes))
    else:
        classes = pipe.get_label_ids(list(config.classes))

    generator = torch.Generator("cpu").manual_seed(config.seed)
    images = pipe(classes, num_images_per_prompt=config.num_images_per_class, generator=generator).images
    rows = {}
    for i, class_id in enumerate(classes):
        label = pipe.id2label.get(class_id, str(class_id)).partition(",")[0]
        rows[label] = images[i * config.num_images_per_class : (i + 1) * config.num_images_per_class]

    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    labelled_grid(rows, config.scale).save(output)
    print(output.resolve())


if __name__ == "__main__":
    main()
