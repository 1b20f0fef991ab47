import collections
import json
import shutil
import types

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler
from PIL import Image

from diffusers_lightningdit import FlowMatchSDEScheduler
from diffusers_lightningdit.evaluation.drawn_images import (
    DrawnImages,
    check_sampling,
    checked_decoding,
    class_label,
    draw_block,
    load_pipeline,
    set_scheduler,
    try_pipeline,
)
from diffusers_lightningdit.evaluation.image_files import write_png
from diffusers_lightningdit.evaluation.image_sets import cut, numbered_name
from diffusers_lightningdit.keyed_random import image_generator

TWO_STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def loaded(digits_pipeline):
    return load_pipeline(digits_pipeline)


@pytest.fixture
def pipeline(loaded):
    scheduler = loaded.scheduler
    yield loaded
    loaded.scheduler = scheduler


def test_labels():
    assert [class_label("balanced", index, 3, 0) for index in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    drawn = [class_label("random", index, 4, 0) for index in range(4000)]
    assert all(900 < count < 1100 for count in collections.Counter(drawn).values())
    assert drawn != [class_label("random", index, 4, 1) for index in range(4000)]


def test_an_image_is_that_of_the_pipeline_with_its_label_and_noise(pipeline):
    drawn = draw_block(pipeline, range(4, 7), "balanced", 3, TWO_STEPS, 4)  # the last image of the block is not wanted
    generators = [image_generator(3, index) for index in range(4, 8)]
    images = pipeline([4, 5, 6, 7], generator=generators, **TWO_STEPS).images
    assert np.array_equal(drawn, np.stack([np.asarray(image) for image in images[:3]]))


def test_a_vae_whose_pixels_are_not_finite(pipeline):
    """Images that only fill up the block are not checked."""
    weight = pipeline.vae.decoder.conv_out.bias.data
    before = weight.clone()
    try:
        weight[1] = float("nan")
        with pytest.raises(
            ValueError, match=r"image 4 has pixels with NaN or infinity, decoded from latents of at most \d"
        ):
            draw_block(pipeline, range(4, 7), "balanced", 3, TWO_STEPS, 4)
    finally:
        weight.copy_(before)
    assert "decode" not in vars(pipeline.vae)
    pixels = torch.zeros(4, 3, 32, 32)
    pixels[3] = float("inf")
    decoder = types.SimpleNamespace(vae=types.SimpleNamespace(decode=lambda latents: (pixels,)))
    with checked_decoding(decoder, range(4, 7)):
        decoder.vae.decode(torch.zeros(4, 1))
    decoder.vae.decode = lambda latents: (pixels,)
    with checked_decoding(decoder, range(4, 8)), pytest.raises(ValueError, match="image 7 has pixels"):
        decoder.vae.decode(torch.zeros(4, 1))


def test_only_what_is_missing_is_drawn(pipeline, tmp_path):
    """Existing files are read, even if the pipeline would draw something else."""
    images = DrawnImages(pipeline, tmp_path, 11, (32, 32), "balanced", 3, TWO_STEPS, 4)
    blocks = cut(11, 4)
    drawn = np.concatenate(list(images.read_blocks(blocks)))
    assert images.num_drawn == 11 and images.seconds_drawing > 0
    assert np.array_equal(drawn, [np.array(Image.open(tmp_path / numbered_name(index))) for index in range(11)])
    gray = np.full((32, 32, 3), 128, np.uint8)
    for index in (4, 9):
        write_png(tmp_path / numbered_name(index), gray, images.mark(index, gray))
    for index in (5, 10):
        (tmp_path / numbered_name(index)).unlink()
    again = DrawnImages(pipeline, tmp_path, 11, (32, 32), "balanced", 3, TWO_STEPS, 4)
    assert np.array_equal(
        np.concatenate(list(again.read_blocks(blocks))),
        np.where(np.isin(np.arange(11), (4, 9))[:, None, None, None], gray, drawn),
    )
    assert again.num_drawn == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [numbered_name(index) for index in range(11)]


def test_files_that_the_pipeline_cannot_have_drawn(pipeline, tmp_path):
    Image.new("RGB", (16, 32)).save(tmp_path / numbered_name(0))
    images = DrawnImages(pipeline, tmp_path, 2, (32, 32), "balanced", 3, TWO_STEPS, 4)
    with pytest.raises(ValueError, match=r"000000\.png is not the image that was drawn there; required: images as"):
        list(images.read_blocks([range(2)]))


@pytest.mark.parametrize(
    ("name", "shift", "kind", "settings"),
    [
        (None, 3.5, None, {"shift": 3.5, "num_train_timesteps": 1000}),
        ("FlowMatchHeunDiscreteScheduler", None, FlowMatchHeunDiscreteScheduler, {"shift": 2.0}),
        ("FlowMatchSDEScheduler", None, FlowMatchSDEScheduler, {"last_step_size": 0.04}),
        (
            "DPMSolverMultistepScheduler",
            None,
            DPMSolverMultistepScheduler,
            {"flow_shift": 2.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        ),
    ],
)
def test_another_scheduler_keeps_the_shift(pipeline, name, shift, kind, settings):
    kind = kind or type(pipeline.scheduler)
    set_scheduler(pipeline, name, shift)
    assert type(pipeline.scheduler) is kind
    assert {key: pipeline.scheduler.config[key] for key in settings} == settings
    assert try_pipeline(pipeline, TWO_STEPS) == (32, 32)


def test_schedulers_that_cannot_be_used(pipeline):
    for name in ("NoScheduler", "AutoencoderKL", "DiffusionPipeline"):
        with pytest.raises(ValueError, match=f"`scheduler` is '{name}'; required: the name of a scheduler class"):
            set_scheduler(pipeline, name)
    with pytest.raises(ValueError, match=r"`shift` is 1\.5; required: none for FlowMatchSDEScheduler"):
        set_scheduler(pipeline, "FlowMatchSDEScheduler", 1.5)
    with pytest.raises(ValueError, match="`shift` is 0; required: a positive number"):
        set_scheduler(pipeline, None, 0)
    for name in ("DEISMultistepScheduler", "DDIMScheduler"):
        set_scheduler(pipeline, name)
        with pytest.raises(ValueError, match=f"`scheduler` is {name}: it "):
            try_pipeline(pipeline, TWO_STEPS)


def test_settings_that_the_pipeline_refuses(pipeline):
    for key in ("guidance", "generator", "class_labels"):
        with pytest.raises(
            ValueError, match=f"`sampling.{key}` is no setting of LightningDiTPipeline. Known: guidance_s"
        ):
            check_sampling(pipeline, {key: 1})
    check_sampling(pipeline, {"guidance_scale": -1})
    with pytest.raises(ValueError, match="`guidance_scale` is -1; required"):
        try_pipeline(pipeline, {"guidance_scale": -1})


def test_a_pipeline_that_cannot_be_loaded(tmp_path):
    with pytest.raises(ValueError, match=r"`pipeline` is .*; required: a folder or Hub id of a pipeline"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize("recipe", ["text", 3, [], {"guidance_interval": [{}, 1.0]}, {"num_inference_steps": "two"}])
def test_a_pipeline_whose_recipe_is_damaged(digits_pipeline, recipe, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(digits_pipeline, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"sampling_recipe": recipe}))
    with pytest.raises(ValueError, match=r"`pipeline` is '.*pipeline'.*required: ") as error:
        try_pipeline(load_pipeline(str(folder)), {})
    assert "\n" not in str(error.value)
