import types

import pytest
import torch
from PIL import Image

from diffusers_lightningdit.grids import draw_class_images, draw_grid, labelled_grid
from diffusers_lightningdit.keyed_random import image_generator

WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def image(color, size=(8, 6)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_images_without_words_are_where_they_belong():
    grid = labelled_grid([("", [image(RED), image(BLACK)]), ("", [image(BLACK)])], zoom=2)
    assert grid.size == (2 * (16 + 2), 2 * (12 + 2))
    expected = {(0, 0): RED, (15, 11): RED, (16, 0): WHITE, (18, 0): BLACK, (0, 14): BLACK, (18, 14): WHITE}
    assert {place: grid.getpixel(place) for place in expected} == expected


def test_words_are_beside_the_images():
    plain = labelled_grid([("", [image(RED)])])
    titled = labelled_grid([("a title", [image(RED)])], columns=["name"])
    left, top = titled.width - plain.width, titled.height - plain.height
    assert left > 20 and top > 10
    assert titled.crop((left, top, *titled.size)).tobytes() == plain.tobytes()
    for place in ((0, top, left, titled.height), (left, 0, titled.width, top)):
        assert min(titled.crop(place).convert("L").getextrema()) < 128  # something is written there


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], [], "the sizes of the images are none"),
        ([("", [image(RED), image(RED, (6, 8))])], [], "the sizes of the images are 6x8, 8x6; required: images of one"),
        ([("", [image(RED, (100, 100))] * 20_000)], [], "the grid would have 2040000x102 pixels; required: at most"),
        ([("", [image(RED)])], ["a", "b"], "`columns` has 2 names; required: 1"),
    ],
)
def test_bad_input(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        labelled_grid(rows, columns)


class NoisePipeline:
    """A pipeline of 10 classes whose images are (label, first number of the noise)."""

    transformer = types.SimpleNamespace(config=types.SimpleNamespace(num_classes=10))

    def set_progress_bar_config(self, disable):
        pass

    def __call__(self, labels, generator, output_type):
        noise = [torch.randn((), generator=each).item() for each in generator]
        return types.SimpleNamespace(images=list(zip(labels, noise, strict=True)))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_noise_is_that_of_the_same_class_in_a_balanced_set(batch_size):
    images = list(draw_class_images(NoisePipeline(), [7, 3, 7, 7, 3], seed=2, batch_size=batch_size))
    indices = [7, 3, 17, 27, 13]
    assert images == [(index % 10, torch.randn((), generator=image_generator(2, index)).item()) for index in indices]


class ColorPipeline(NoisePipeline):
    """A pipeline of 10 classes whose images have their label as colour."""

    def __call__(self, labels, generator, output_type):
        return types.SimpleNamespace(images=[image((label, 0, 0)) for label in labels])


@pytest.mark.parametrize(
    ("num_images", "class_ids", "expected"),
    [
        (4, None, [[0, 2], [5, 7]]),  # fewer images than classes are spread over them
        (12, None, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 1]]),
        (5, [3, 8], [[3, 8, 3, 8, 3]]),
    ],
)
def test_a_grid_without_titles_has_evenly_spread_classes(num_images, class_ids, expected):
    grid = draw_grid(ColorPipeline(), num_images, seed=0, batch_size=4, class_ids=class_ids)
    assert grid.size == (8 * len(expected[0]), 6 * len(expected))
    found = [[grid.getpixel((8 * x, 6 * y))[0] for x in range(len(row))] for y, row in enumerate(expected)]
    assert found == expected
