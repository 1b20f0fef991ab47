# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Write pairs of images in which buildings appear and vanish, drawn onto photographs that packages ship.

    python examples/change3d_buildings/draw_pairs.py --output_dir outputs/change3d_buildings/data

The ground is cut out of photographs of scikit-image and scikit-learn, other ones for each split. Roads, trees and
buildings are drawn onto it. Some buildings are there at one date only: that is the change, and the label. Light,
clouds' shadows, the trees' size and colour, shadows of buildings, blur, a shift of less than a pixel and noise differ
between the dates, and are none.

The data set has the splits train, validation and test with the columns `image_before`, `image_after`, `label`, and
`captions`, five sentences that say which buildings have appeared and vanished. The same settings write the same pixels
and words.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw, ImageFilter

from diffusers_lightningdit.change3d.caption_metrics import NO_CHANGE_CAPTIONS
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
    change_probability: float = setting(
        0.5, "The probability with which a building is there at one date only.", minimum=0
    )
    seed: int = setting(0, "The seed of everything that is drawn.", minimum=0)

    def __post_init__(self):
        check_settings(self)
        if self.size % 8:
            raise ValueError(f"`size` is {self.size}; required: a multiple of 8.")
        if self.change_probability > 1:
            raise ValueError(f"`change_probability` is {self.change_probability}; required: at most 1.")
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


def draw_presence(number: int, change_probability: float, rng: np.random.Generator) -> list[tuple[bool, bool]]:
    """Of each building: whether it is there before, and after; it appears more often than it vanishes."""
    shares = (1 - change_probability, 0.4 * change_probability, 0.6 * change_probability)
    return [((True, True), (True, False), (False, True))[rng.choice(3, p=shares)] for _ in range(number)]


def draw_pair(
    photographs: list[Image.Image], size: int, rng: np.random.Generator, change_probability: float = 0.5
) -> dict[str, Image.Image | list[str]]:
    """A pair of images, [size, size] in RGB, its label, 255 where a building is at one date only, and captions."""
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
    presence = draw_presence(len(buildings), change_probability, rng)
    pair = draw_dates(ground, buildings, presence, trees, size, rng)
    return {**pair, "captions": describe([corners for corners, _ in buildings], presence, size)}


def draw_dates(
    ground: Image.Image,
    buildings: list[tuple[Polygon, int]],
    presence: list[tuple[bool, bool]],
    trees: list[tuple[np.ndarray, float]],
    unit: int,
    rng: np.random.Generator,
) -> dict[str, Image.Image]:
    """Both images and the label of a scene.

    Args:
        ground: The ground with its roads, `SCALE` times as large as the images.
        buildings: Corners in pixels of the images, and numbers of `ROOFS`.
        presence: Of each building, whether it is there before, and after.
        trees: Centres and radii in pixels of the images.
        unit: The number of pixels that lengths of shadows and clouds are parts of.
        rng: Draws light, season and camera.
    """
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


# ---------------------------------------------------------------------------------------------------------------------
# Its captions
# ---------------------------------------------------------------------------------------------------------------------

NUMBERS = {1: "a building", 2: "two buildings", 3: "three buildings"}  # more are "many buildings"
# What has happened to one building, or to several ones.
APPEARED = (
    "{} has appeared|{} have appeared",
    "{} has been built|{} have been built",
    "{} is new|{} are new",
    "someone has built {}|someone has built {}",
    "there is now {}|there are now {}",
)
VANISHED = (
    "{} has vanished|{} have vanished",
    "{} has been removed|{} have been removed",
    "{} is gone|{} are gone",
    "someone has removed {}|someone has removed {}",
    "there is no longer {}|there are no longer {}",
)


def place_name(polygon: Polygon, size: int) -> str:
    """The place of a building, by the third of the image that its middle is in."""
    x, y = (np.mean(polygon, axis=0) / size * 3).astype(int).clip(0, 2)
    words = [word for word in (("top", "", "bottom")[y], ("left", "", "right")[x]) if word]
    return f"at the {' '.join(words)}" if words else "in the middle"


def describe(buildings: list[Polygon], presence: list[tuple[bool, bool]], size: int) -> list[str]:
    """Five captions of a pair: how many buildings have appeared and vanished; of a single one also where."""
    sentences = []
    for way, verbs in (((False, True), APPEARED), ((True, False), VANISHED)):
        changed = [corners for corners, dates in zip(buildings, presence, strict=True) if dates == way]
        if changed:
            subject = NUMBERS.get(len(changed), "many buildings")
            place = f" {place_name(changed[0], size)}" if len(changed) == 1 else ""
            sentences.append([verb.split("|")[len(changed) > 1].format(subject) + place for verb in verbs])
    return [" and ".join(parts) for parts in zip(*sentences, strict=True)] or list(NO_CHANGE_CAPTIONS)


def draw_pairs(
    split: str, number: int, size: int, seed: int, change_probability: float = 0.5
) -> Iterator[dict[str, Image.Image | list[str]]]:
    """All pairs of a split; each is a function of the seed, the split and its number alone."""
    photographs = [load_photograph(name) for name in PHOTOGRAPHS[split]]
    for index in range(number):
        rng = np.random.default_rng([seed, list(PHOTOGRAPHS).index(split), index])
        yield draw_pair(photographs, size, rng, change_probability)


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(BuildingsConfig, argv, __doc__)
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    features = Features(dict.fromkeys(("image_before", "image_after", "label"), ImageFeature()))
    features["captions"] = List(Value("string"))
    for split in PHOTOGRAPHS:
        number = getattr(config, f"num_{split}")
        rows = list(draw_pairs(split, number, config.size, config.seed, config.change_probability))
        columns = {name: [row[name] for row in rows] for name in features}
        path = Path(config.output_dir) / f"{split}.parquet"
        Dataset.from_dict(columns, features=features).to_parquet(path)
        print(f"wrote {len(rows)} pairs to {path}")


if __name__ == "__main__":
    main()
