# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Write pairs of images in which buildings appear and vanish, drawn onto photographs that packages ship.

    python examples/change3d_buildings/draw_pairs.py --output_dir outputs/change3d_buildings/data

The ground is cut out of photographs of scikit-image and scikit-learn, other ones for each split. Roads, trees and
buildings are drawn onto it. Some buildings are there at one date only: that is the change, and the label. Light,
clouds' shadows, the trees' size and colour, shadows of buildings, blur, a shift of less than a pixel and noise differ
between the dates, and are none.

The data set has the splits train, validation and test with the columns `image_before`, `image_after` and `label`. The
same settings write the same pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFilter

from diffusers_lightningdit.files import check_output_dir
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

# Files of scikit-image, and of scikit-learn (china, flower); grey ones get a tone. No photograph is in two splits.
PHOTOGRAPHS = {
    "train": (
        *("grass.png", "gravel.png", "coffee.png", "china.jpg", "camera.png", "rocket.jpg", "motorcycle_left.png"),
        *("moon.png", "ihc.png", "page.png"),
    ),
    "validation": ("chelsea.png", "coins.png"),
    "test": ("brick.png", "astronaut.png", "flower.jpg", "retina.jpg"),
}
SCALE = 4  # of the drawing, to the pixels of an image
ROOFS = ((176, 70, 52), (150, 84, 60), (120, 120, 128), (196, 190, 180), (84, 92, 110), (210, 160, 90), (60, 60, 64))
TREES = ((52, 92, 40), (76, 110, 50), (122, 118, 52), (150, 96, 44))  # through the seasons
Polygon = list[tuple[float, float]]


@dataclass(kw_only=True)
class BuildingsConfig:
    """Settings of draw_pairs.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    output_dir: str = required("Folder of the data set, new or empty.", group="Output")
    num_train: int = setting(4000, "Pairs of the split train.", minimum=1)
    num_validation: int = setting(200, "Pairs of the split validation.", minimum=1)
    num_test: int = setting(400, "Pairs of the split test.", minimum=1)
    size: int = setting(64, "The side of an image in pixels, a multiple of 8.", minimum=32)
    seed: int = setting(0, "The seed of everything that is drawn.", minimum=0)

    def __post_init__(self):
        check_settings(self)
        if self.size % 8:
            raise ValueError(f"`size` is {self.size}; required: a multiple of 8.")
        check_output_dir(self.output_dir)


def load_photograph(name: str) -> Image.Image:
    """A photograph in RGB, of the files that either package installs."""
    import skimage.data  # optional, and not needed for --help
    import sklearn.datasets

    folders = (Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images")
    return Image.open(next(path for path in (folder / name for folder in folders) if path.exists())).convert("RGB")


# ---------------------------------------------------------------------------------------------------------------------
# A scene
# ---------------------------------------------------------------------------------------------------------------------


def cut_ground(photograph: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A square of a photograph, of `size` times `SCALE` pixels."""
    side = int(rng.integers(size, min(photograph.size)))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    ground = photograph.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return toned(ground, rng)


def toned(ground: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A photograph with the tone and contrast of a ground seen from above, enlarged by `SCALE`."""
    pixels = np.asarray(ground, dtype=np.float64)
    tone, contrast = rng.uniform((70, 75, 50), (160, 150, 120)), rng.uniform(0.35, 0.7)
    pixels = tone + contrast * (pixels - pixels.mean((0, 1)))
    ground = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return ground.resize((ground.width * SCALE, ground.height * SCALE), Image.Resampling.BICUBIC)


def rectangle(center: np.ndarray, sides: np.ndarray, angle: float) -> Polygon:
    """The corners of a turned rectangle."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * sides / 2
    return [tuple(corner) for corner in corners @ turn.T + center]


def place_buildings(size: int, rng: np.random.Generator) -> list[tuple[Polygon, int]]:
    """Corners and roofs of buildings that do not overlap, in pixels of the image."""
    buildings, taken = [], []
    angle = rng.uniform(0, np.pi / 2)
    for _ in range(int(rng.integers(3, 8)) * 4):
        sides = rng.uniform(0.14, 0.32, 2) * size
        center, radius = rng.uniform(0.08, 0.92, 2) * size, float(np.hypot(*sides)) / 2
        if all(np.hypot(*(center - other)) > radius + other_radius + 1 for other, other_radius in taken):
            taken.append((center, radius))
            corners = rectangle(center, sides, angle + rng.choice([0, np.pi / 2]) + rng.normal(0, 0.05))
            buildings.append((corners, int(rng.integers(len(ROOFS)))))
    return buildings


def scaled(polygon: Polygon, offset: np.ndarray | tuple[float, float] = (0, 0)) -> Polygon:
    return [((x + offset[0]) * SCALE, (y + offset[1]) * SCALE) for x, y in polygon]


def draw_pair(photographs: list[Image.Image], size: int, rng: np.random.Generator) -> dict[str, Image.Image]:
    """A pair of images, [size, size] in RGB, and its label, 255 where a building is there at one date only."""
    ground = cut_ground(photographs[int(rng.integers(len(photographs)))], size, rng)
    draw = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(0, 3))):
        ends = rng.uniform(0, size, (2, 2)) + np.array([[-size, 0], [size, 0]])[:: rng.choice([-1, 1])]
        grey = int(rng.integers(90, 150))
        ends = ends if rng.random() < 0.5 else ends[:, ::-1]
        width = int(rng.uniform(0.04, 0.09) * size * SCALE)
        draw.line([tuple(end * SCALE) for end in ends], (grey, grey, grey - 4), width)
    buildings = place_buildings(size, rng)
    trees = [(rng.uniform(0, size, 2), rng.uniform(0.02, 0.06) * size) for _ in range(int(rng.integers(4, 20)))]
    return draw_dates(ground, buildings, trees, size, rng)


def draw_dates(
    ground: Image.Image,
    buildings: list[tuple[Polygon, int]],
    trees: list[tuple[np.ndarray, float]],
    unit: int,
    rng: np.random.Generator,
) -> dict[str, Image.Image]:
    """Both images and the label of a scene.

    Args:
        ground: The ground with its roads, `SCALE` times as large as the images.
        buildings: Corners in pixels of the images, and numbers of `ROOFS`.
        trees: Centres and radii in pixels of the images.
        unit: The number of pixels that lengths of shadows and clouds are parts of.
        rng: Draws which buildings are there, light, season and camera.
    """
    # of each building: is it there before, and after
    presence = [((True, True), (True, False), (False, True))[rng.choice(3, p=(0.5, 0.2, 0.3))] for _ in buildings]
    images = [
        see(draw_date(ground, buildings, [there[date] for there in presence], trees, unit, rng), unit, rng)
        for date in (0, 1)
    ]
    label = Image.new("L", ground.size)
    for (corners, _), there in zip(buildings, presence, strict=True):
        if there[0] != there[1]:
            ImageDraw.Draw(label).polygon(scaled(corners), 255)
    label = label.resize(images[0].size, Image.Resampling.BOX).point(lambda value: 255 * (value > 127))
    return {"image_before": images[0], "image_after": images[1], "label": label}


def draw_date(
    ground: Image.Image,
    buildings: list[tuple[Polygon, int]],
    is_there: list[bool],
    trees: list[tuple[np.ndarray, float]],
    unit: int,
    rng: np.random.Generator,
) -> Image.Image:
    """The scene at one date, with its season and its sun; see `draw_dates`."""
    image = ground.copy()
    length = rng.uniform(0.01, 0.05) * unit
    sun = rng.uniform(0, 2 * np.pi)
    shadow = length * np.array([np.cos(sun), np.sin(sun)])
    dark = Image.new("L", image.size, 255)
    for (corners, _), there in zip(buildings, is_there, strict=True):
        if there:
            ImageDraw.Draw(dark).polygon(scaled(corners, shadow), 120)
    image = Image.composite(image, Image.new("RGB", image.size), dark)
    draw, foliage = ImageDraw.Draw(image), TREES[int(rng.integers(len(TREES)))]
    season = rng.uniform(0.6, 1.4)
    for center, radius in trees:
        radius = radius * season
        box = [*((center - radius) * SCALE), *((center + radius) * SCALE)]
        draw.ellipse(box, tuple(int(part + rng.integers(-8, 9)) for part in foliage))
    for (corners, roof), there in zip(buildings, is_there, strict=True):
        if there:
            lit = 1 + 0.12 * np.cos(sun)
            draw.polygon(scaled(corners), tuple(int(min(part * lit, 255)) for part in ROOFS[roof]))
            first, second = ((np.array(corners[i]) + corners[(i + 1) % 4]) / 2 * SCALE for i in (0, 2))
            ridge = tuple(int(part * 0.75) for part in ROOFS[roof])
            draw.line([tuple(first), tuple(second)], ridge, SCALE)
    return image


def see(image: Image.Image, unit: int, rng: np.random.Generator) -> Image.Image:
    """The image that a camera takes: light, clouds, colour, haze, blur, a shift of less than a pixel, and noise."""
    size = (image.width // SCALE, image.height // SCALE)
    x, y = rng.uniform(-0.4, 0.4, 2) * SCALE
    image = image.transform(image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8) * SCALE))
    pixels = np.asarray(image.resize(size, Image.Resampling.BOX), dtype=np.float64) / 255
    clouds = rng.uniform(0.6, 1.25, (4 * size[1] // unit, 4 * size[0] // unit)).astype(np.float32)
    clouds = Image.fromarray(clouds).resize(size, Image.Resampling.BICUBIC)
    pixels *= np.asarray(clouds, dtype=np.float64)[..., None]
    pixels = pixels ** rng.uniform(0.75, 1.35) * rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)
    pixels += rng.uniform(-0.06, 0.1) + rng.normal(0, rng.uniform(0.005, 0.025), pixels.shape)
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))


def draw_pairs(split: str, number: int, size: int, seed: int) -> Iterator[dict[str, Image.Image]]:
    """All pairs of a split; each is a function of the seed, the split and its number alone."""
    photographs = [load_photograph(name) for name in PHOTOGRAPHS[split]]
    for index in range(number):
        yield draw_pair(photographs, size, np.random.default_rng([seed, list(PHOTOGRAPHS).index(split), index]))


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(BuildingsConfig, argv, __doc__)
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    features = Features(dict.fromkeys(("image_before", "image_after", "label"), ImageFeature()))
    for split in PHOTOGRAPHS:
        rows = list(draw_pairs(split, getattr(config, f"num_{split}"), config.size, config.seed))
        columns = {name: [row[name] for row in rows] for name in features}
        path = Path(config.output_dir) / f"{split}.parquet"
        Dataset.from_dict(columns, features=features).to_parquet(path)
        print(f"wrote {len(rows)} pairs to {path}")


if __name__ == "__main__":
    main()
