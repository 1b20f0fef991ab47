import types

import pytest
import torch
from PIL import Image

from diffusers_lightningdit.grids import captioned_grid, draw_class_images, draw_grid, labelled_grid
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


def test_a_caption_is_wrapped_below_the_images():
    plain = labelled_grid([("", [image(RED, (60, 60))])])
    heights = []
    for caption in ("one", "one two three four five", "one two three four five " * 2):
        grid = labelled_grid([("", [image(RED, (60, 60))])], caption=caption)
        assert grid.width == plain.width
        assert grid.crop((0, 0, *plain.size)).tobytes() == plain.tobytes()
        below = grid.crop((0, plain.height, *grid.size)).convert("L")
        assert min(below.getextrema()) < 128
        right_edge = grid.crop((grid.width - 3, plain.height, *grid.size)).convert("L")
        assert min(right_edge.getextrema()) == 255, "the text ends before the edge"
        heights.append(grid.height)
    assert plain.height < heights[0] < heights[1] < heights[2]


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


def test_captions_are_below_their_images():
    images = [image(color, (32, 20)) for color in (RED, BLACK, RED)]
    grid = captioned_grid(images, ["seven", "", "a name that is much too long for it"], 2)
    assert grid.size == (64, 2 * (20 + 12))
    assert [grid.getpixel((32 * x, 32 * y)) for x, y in ((0, 0), (1, 0), (0, 1))] == [RED, BLACK, RED]

    def darkest(x: int, y: int) -> int:
        return min(sum(grid.getpixel((x + i, y + 20 + j))) for i in range(32) for j in range(12))

    assert darkest(0, 0) < 300 and darkest(0, 32) < 300  # words
    assert darkest(32, 0) == darkest(32, 32) == 3 * 255  # none, and no fourth image
    small = [image(RED)] * 2
    assert captioned_grid(small, ["seven", "two"], 2).size == (16, 6)
    assert captioned_grid(images, [""] * 3, 3).size == (96, 20)
