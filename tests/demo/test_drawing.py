import dataclasses
import threading
import time

import numpy as np
import pytest
from PIL import Image

from diffusers_lightningdit import LightningDiTPipeline
from diffusers_lightningdit.data.images import center_crop
from diffusers_lightningdit.demo.drawing import (
    DRAWINGS,
    MAX_LATENTS,
    NUM_PREVIEWS,
    denoising,
    described,
    open_upload,
    zoom_of,
)
from diffusers_lightningdit.demo.drawing_settings import DrawingSettings, recipe_settings, scheduler_names, to_query
from diffusers_lightningdit.evaluation.drawn_images import set_scheduler
from diffusers_lightningdit.grids import draw_class_images, labelled_grid
from diffusers_lightningdit.pipelines import VAVAEReconstructionPipeline


@pytest.fixture
def settings(pipeline, limits) -> DrawingSettings:
    return dataclasses.replace(
        recipe_settings(pipeline, limits), classes=(7, 3), num_images=2, num_between=3, num_inference_steps=4, seed=5
    )


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    rows = np.linspace(0, 255, 90, dtype=np.uint8)
    return Image.fromarray(np.stack([np.add.outer(rows, rows[:60]) // 2] * 3, axis=-1).astype(np.uint8))


def pictures_of(frames) -> list:
    """The frames with pictures; those between them depend on how busy the machine is."""
    return [frame for frame in frames if frame.picture is not None]


def same(picture: Image.Image, other: Image.Image) -> bool:
    return picture.size == other.size and picture.tobytes() == other.tobytes()


def test_classes_are_drawn_as_by_the_command(pipeline, settings):
    frames = pictures_of(DRAWINGS["draw"](pipeline, settings))
    images = list(draw_class_images(pipeline, [7, 7, 3, 3], 5, 4, num_inference_steps=4))
    rows = [("seven", images[:2]), ("three", images[2:])]
    assert same(frames[-1].picture, labelled_grid(rows, zoom=4, caption=described(pipeline, settings)))
    assert frames[-1].picture.info["settings"] == to_query(settings)
    assert [frame.text for frame in frames[:-1]] == [f"Drawing: {share}% of the steps" for share in (25, 50, 75)]
    assert len({frame.picture.tobytes() for frame in frames}) == 4, "each step looks different"
    assert {frame.picture.size for frame in frames} == {frames[-1].picture.size}, "the page does not jump"


def test_long_rows_are_wrapped(pipeline, settings):
    frames = pictures_of(DRAWINGS["draw"](pipeline, dataclasses.replace(settings, num_images=9, num_inference_steps=1)))
    assert frames[-1].picture.height > 4 * 128


def test_every_scheduler_draws_by_its_own_steps_and_leaves_the_shared_pipeline_alone(pipeline, settings):
    before = pipeline.scheduler
    pictures = {}
    for name in scheduler_names(pipeline):
        changed = dataclasses.replace(settings, scheduler=name)
        *_, last = DRAWINGS["draw"](pipeline, changed)
        own = LightningDiTPipeline.from_pipe(pipeline)
        set_scheduler(own, name)
        images = list(draw_class_images(own, [7, 7, 3, 3], 5, 4, num_inference_steps=4))
        rows = [("seven", images[:2]), ("three", images[2:])]
        assert same(last.picture, labelled_grid(rows, zoom=4, caption=described(pipeline, changed)))
        pictures[name] = last.picture.tobytes()
    assert len(set(pictures.values())) == len(pictures) == 7
    assert pipeline.scheduler is before


def test_an_interpolation_leads_from_the_first_image_of_a_class_to_that_of_the_other(pipeline, settings):
    interpolated = dataclasses.replace(settings, tab="interpolate", start=3, end=8)
    *_, last = DRAWINGS["interpolate"](pipeline, interpolated)
    first, end = (next(draw_class_images(pipeline, [label], 5, 1, num_inference_steps=4)) for label in (3, 8))
    side = 4 * 32
    for left, image in ((0, first), (2 * (side + 2), end)):
        shown = np.asarray(last.picture.crop((left, 0, left + side, side)), dtype=float)[::4, ::4]
        assert np.abs(shown - np.asarray(image.convert("RGB"), dtype=float)).max() <= 1  # of another batch
    within = dataclasses.replace(interpolated, end=3)
    *_, last = DRAWINGS["interpolate"](pipeline, within)
    start, middle = (np.asarray(last.picture.crop((left, 0, left + side, side))) for left in (0, side + 2))
    assert (start != middle).any(), "between a class and itself the noise moves"


def test_images_are_drawn_anew(pipeline, settings, photo):
    edited = dataclasses.replace(settings, tab="edit", edit_classes=(7, 3), num_inference_steps=40)
    image = np.asarray(center_crop(photo, 32), dtype=float)
    distances, num_frames = [], []
    for strength in (0.05, 0.5, 1.0):
        drawn = pictures_of(DRAWINGS["edit"](pipeline, dataclasses.replace(edited, strength=strength), photo))
        last = drawn[-1].picture
        left, right = (
            np.asarray(last.crop((last.width - 130 * place, 0, last.width - 130 * place + 128, 128)))[::4, ::4]
            for place in (2, 1)
        )
        assert (left == image).all()
        distances.append(np.abs(right - image).mean())
        num_frames.append(len(drawn))
    assert distances[0] < distances[1] < distances[2]
    assert num_frames[0] < num_frames[1] < num_frames[2]


def test_reconstructions_have_their_difference_and_psnr(pipeline, settings, photo):
    (frame,) = DRAWINGS["reconstruct"](pipeline, dataclasses.replace(settings, tab="reconstruct"), photo)
    assert frame.text.startswith("32x32 pixels, PSNR ")
    own = dataclasses.replace(settings, tab="reconstruct", size="own")
    (frame,) = DRAWINGS["reconstruct"](pipeline, own, photo.crop((0, 0, 59, 90)))
    assert frame.text.startswith("56x88 pixels, PSNR ")
    cropped = photo.crop((0, 0, 56, 88))
    (frame,) = DRAWINGS["reconstruct"](pipeline, own, cropped)
    output = VAVAEReconstructionPipeline(vae=pipeline.vae)(cropped)
    assert frame.text == f"56x88 pixels, PSNR {float(output.psnr[0]):.2f} dB."
    zoomed = np.asarray(frame.picture)[26 : 26 + 3 * 88 : 3]  # below the names
    parts = [zoomed[:, left : left + 3 * 56 : 3].astype(int) for left in (0, 3 * 56 + 2, 2 * (3 * 56 + 2))]
    assert (parts[0] == np.asarray(cropped)).all()
    assert (parts[1] == np.asarray(output.images[0])).all()
    assert (parts[2] == np.minimum(255, 4 * np.abs(parts[0] - parts[1]))).all()


def test_large_images_are_reconstructed_within_the_autoencoders_memory(pipeline, settings):
    own = dataclasses.replace(settings, tab="reconstruct", size="own")
    (frame,) = DRAWINGS["reconstruct"](pipeline, own, Image.new("RGB", (1600, 400)))
    width, height = map(int, frame.text.partition(" ")[0].split("x"))
    assert (width, height) == (1024, 256) and width * height == 64 * MAX_LATENTS


@pytest.mark.parametrize(("size", "zoom"), [((32, 32), 4), ((128, 300), 1), ((1, 2000), 1), ((8, 512), 2)])
def test_small_images_are_enlarged(size, zoom):
    assert zoom_of(Image.new("L", size)) == zoom


# ---------------------------------------------------------------------------------------------------------------------
# Denoising
# ---------------------------------------------------------------------------------------------------------------------


def test_there_are_as_many_previews_as_promised(pipeline, settings):
    frames = pictures_of(
        DRAWINGS["draw"](pipeline, dataclasses.replace(settings, classes=(1,), num_inference_steps=100))
    )
    assert len(frames) == NUM_PREVIEWS  # the last of them is the picture


def test_a_drawing_that_is_closed_stops_after_its_step(pipeline):
    steps = []

    def draw(callback):
        def counted(*arguments):
            steps.append(arguments[1])
            return callback(*arguments)

        return pipeline([1], num_inference_steps=200, callback_on_step_end=counted).images

    before = threading.active_count()
    updates = denoising(draw)
    _, done = next(update for update in updates if update[0] is not None)
    updates.close()
    end = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert done < 0.1 and len(steps) < 100


def test_slow_steps_can_be_stopped_in_between():
    release = threading.Event()

    def draw(callback):
        release.wait(60)
        return []

    updates = denoising(draw)
    assert next(updates) == (None, 0.0) == next(updates)
    updates.close()
    release.set()


def test_errors_of_a_drawing_are_those_of_its_iterator():
    def draw(callback):
        raise KeyError("of the thread")

    with pytest.raises(KeyError, match="of the thread"):
        list(denoising(draw))


def test_visitors_do_not_meet(pipeline, settings):
    others = dataclasses.replace(
        settings, classes=(1,), num_inference_steps=6, scheduler="UniPCMultistepScheduler", guidance_scale=3.0
    )
    *_, alone = DRAWINGS["draw"](pipeline, settings)
    *_, other_alone = DRAWINGS["draw"](pipeline, others)
    drawings = [DRAWINGS["draw"](pipeline, each) for each in (settings, others)]
    firsts = [next(drawing) for drawing in drawings]
    lasts = [list(drawing)[-1] for drawing in drawings]
    assert all(first.text.startswith("Drawing") for first in firsts)
    assert same(lasts[0].picture, alone.picture) and same(lasts[1].picture, other_alone.picture)


# ---------------------------------------------------------------------------------------------------------------------
# Uploads
# ---------------------------------------------------------------------------------------------------------------------


def test_uploads_are_upright_and_rgb(tmp_path):
    image = Image.new("L", (6, 4), 9)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by a quarter
    image.save(tmp_path / "image.jpg", exif=exif)
    opened = open_upload(str(tmp_path / "image.jpg"), 24)
    assert opened.size == (4, 6) and opened.mode == "RGB"


def test_uploads_that_cannot_be_used(tmp_path):
    Image.effect_noise((40, 40), 50).save(tmp_path / "image.png")
    (tmp_path / "text.png").write_text("no image")
    content = (tmp_path / "image.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    Image.new("I;16", (5, 5)).save(tmp_path / "deep.png")
    for name, message in (
        (None, "Choose an image first."),
        ("image.png", "This image has 40×40 pixels; at most 1,599 are possible here."),
        ("text.png", "This file is no image that can be read; possible are PNG, JPEG,"),
        ("half.png", "This image cannot be read"),
        ("deep.png", "This image cannot be read: an image has mode 'I;16'"),
    ):
        with pytest.raises(ValueError) as error:
            open_upload(None if name is None else str(tmp_path / name), 1599 if name == "image.png" else 1600)
        assert str(error.value).startswith(message)
