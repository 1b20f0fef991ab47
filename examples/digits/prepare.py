# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Write the 1,797 handwritten digits that come with scikit-learn as a data set of 32x32 RGB images.

    python examples/digits/prepare.py --output_dir outputs/digits/data

`datasets.load_dataset("outputs/digits/data")` then has the columns `image` and `label` ("zero" to "nine"). With
`--max_shift 1` each digit is there nine times, moved by up to one pixel in each direction: more to learn from than 180
images of a class, which a transformer soon knows by heart.

    python examples/digits/prepare.py --turned seven --output_dir sevens

writes the digits of one class, turned by 180 degrees, as PNG files, for the LoRA of docs/training.md.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_lightningdit.files import check_output_dir, new_folder
from diffusers_lightningdit.settings import (
    check_choice,
    check_settings,
    one_line_errors,
    parse_config,
    required,
    setting,
)

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RESOLUTION = 32


@dataclass(kw_only=True)
class DigitsConfig:
    """Settings of prepare.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    output_dir: str = required("Folder of the data set, new or empty.", group="Output")
    max_shift: int = setting(0, "Pixels that images are moved by in each direction, from 0 to 31.", minimum=0)
    turned: str | None = setting(
        None, "The class whose digits are turned, and written as PNG files without labels; null: all classes, upright."
    )

    def __post_init__(self):
        check_settings(self)
        if self.max_shift >= RESOLUTION:
            raise ValueError(f"`max_shift` is {self.max_shift}; required: below {RESOLUTION}.")
        if self.turned is not None:
            check_choice("turned", self.turned, CLASS_NAMES)
        check_output_dir(self.output_dir)


def digit_to_image(digit: np.ndarray) -> Image.Image:
    """A digit of 8x8 numbers from 0 to 16 -> 32x32 RGB, white on black; Pillow keeps bicubic values in [0, 255]."""
    image = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    return image.resize((RESOLUTION, RESOLUTION), resample=Image.Resampling.BICUBIC).convert("RGB")


def shifted(image: Image.Image, x: int, y: int) -> Image.Image:
    """An image moved by whole pixels to the right and down; its border is repeated where nothing comes in."""
    margin = max(abs(x), abs(y))
    padded = np.pad(np.array(image), [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    left, top = margin - x, margin - y
    return Image.fromarray(padded[top : top + image.height, left : left + image.width])


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(DigitsConfig, argv, __doc__)
    from sklearn.datasets import load_digits  # optional, and not needed for --help

    digits = load_digits()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASS_NAMES)})
    images = [digit_to_image(digit) for digit in digits.images]
    shifts = range(-config.max_shift, config.max_shift + 1)
    columns = {
        "image": [shifted(image, x, y) for y in shifts for x in shifts for image in images],
        "label": digits.target.tolist() * len(shifts) ** 2,
    }
    if config.turned is not None:
        class_id = CLASS_NAMES.index(config.turned)
        turned = [
            image.transpose(Image.Transpose.ROTATE_180)
            for image, label in zip(columns["image"], columns["label"], strict=True)
            if label == class_id
        ]
        with new_folder(config.output_dir) as folder:
            for number, image in enumerate(turned):
                image.save(folder / f"{number:04d}.png")
        print(f"wrote {len(turned)} images to {config.output_dir}")
        return
    path = Path(config.output_dir) / "train.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(path)
    print(f"wrote {len(columns['image'])} images to {path}")


if __name__ == "__main__":
    main()
