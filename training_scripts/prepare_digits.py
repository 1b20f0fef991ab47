# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Write the 1,797 handwritten digits that come with scikit-learn as a data set of 32x32 RGB images.

    python training_scripts/prepare_digits.py --output_dir outputs/digits/data

`datasets.load_dataset("outputs/digits/data")` then has the columns `image` and `label` ("zero" to "nine").
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from sklearn.datasets import load_digits

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RESOLUTION = 32


def digit_to_image(digit: np.ndarray) -> Image.Image:
    """A digit of 8x8 numbers from 0 to 16 -> 32x32 RGB, white on black; Pillow keeps bicubic values in [0, 255]."""
    image = Image.fromarray(np.round(digit * (255 / 16)).astype(np.uint8))
    return image.resize((RESOLUTION, RESOLUTION), resample=Image.Resampling.BICUBIC).convert("RGB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.output_dir.exists() and (not arguments.output_dir.is_dir() or any(arguments.output_dir.iterdir())):
        parser.error(f"--output_dir is {arguments.output_dir}, which exists; required: a new or an empty folder.")

    digits = load_digits()
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=CLASS_NAMES)})
    columns = {"image": [digit_to_image(digit) for digit in digits.images], "label": digits.target.tolist()}
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    path = arguments.output_dir / "train.parquet"
    Dataset.from_dict(columns, features=features).to_parquet(path)
    print(f"wrote {len(digits.target)} images to {path}")


if __name__ == "__main__":
    main()
