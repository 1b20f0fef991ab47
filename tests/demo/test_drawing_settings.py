import dataclasses
from urllib.parse import parse_qsl

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import LightningDiTPipeline
from diffusers_lightningdit.demo.drawing_settings import (
    LABELS,
    DrawingSettings,
    Limits,
    check_drawing,
    class_title,
    read_query,
    recipe_settings,
    scheduler_names,
    settings_of,
    to_query,
)


@pytest.fixture
def defaults(pipeline, limits) -> DrawingSettings:
    return recipe_settings(pipeline, limits)


def test_the_page_begins_with_the_recipe_and_within_its_limits(pipeline, defaults, limits):
    recipe = pipeline.config.sampling_recipe
    assert defaults.num_inference_steps == recipe["num_inference_steps"]
    assert defaults.guidance_scale == recipe["guidance_scale"]
    assert defaults.guidance_channels == pipeline.transformer.config.in_channels  # the recipe's null: all
    for bounds in (limits, Limits(max_steps=5, max_images=2), Limits(max_pixels=3 * 32 * 32)):
        settings = recipe_settings(pipeline, bounds)
        for tab in ("draw", "interpolate", "edit", "reconstruct"):
            check_drawing(dataclasses.replace(settings, tab=tab), pipeline, bounds)


def test_every_setting_has_a_label():
    assert {field.name for field in dataclasses.fields(DrawingSettings)} == {"tab", *LABELS}


OTHERS = {
    "tab": "edit",
    "classes": (3, 8),
    "num_images": 2,
    "start": 4,
    "end": 4,
    "num_between": 5,
    "edit_classes": (),
    "strength": 0.35,
    "size": "own",
    "num_inference_steps": 7,
    "scheduler": "UniPCMultistepScheduler",
    "guidance_scale": 6.7,
    "guidance_start": 0.125,
    "guidance_end": 0.9,
    "guidance_channels": 3,
    "seed": 2**31 - 1,
}


def test_a_link_restores_every_setting(defaults):
    settings = DrawingSettings(**OTHERS)
    assert all(getattr(defaults, name) != value for name, value in OTHERS.items())
    query = dict(parse_qsl(to_query(settings), keep_blank_values=True))
    assert read_query(query, defaults) == settings
    assert read_query({"seed": "5", "__theme": "dark", "utm_source": "x"}, defaults) == dataclasses.replace(
        defaults, seed=5
    )


def test_components_become_settings(defaults):
    values = [None if name == "seed" else OTHERS[name] for name in LABELS]
    values[list(LABELS).index("classes")] = [3, 8]
    values[list(LABELS).index("edit_classes")] = None
    values[list(LABELS).index("guidance_scale")] = 6  # of JSON, where 6.0 is 6
    settings = settings_of("draw", values, defaults)
    assert settings == dataclasses.replace(DrawingSettings(**OTHERS), tab="draw", seed=None, guidance_scale=6.0)
    assert isinstance(settings.guidance_scale, float)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"seed": "x"}, "The link has 'x' for “Seed”; it should be a whole number."),
        ({"seed": "1.5"}, "The link has '1.5' for “Seed”; it should be a whole number."),
        ({"guidance_scale": "much"}, "The link has 'much' for “Guidance scale”; it should be a number."),
        ({"classes": "1,two"}, "The link has '1,two' for “Classes”; it should be numbers with commas."),
        ({"seed": "9" * 9999}, f"The link has '{'9' * 40}' for “Seed”"),
    ],
)
def test_links_that_cannot_be_read(query, message, defaults):
    with pytest.raises(ValueError) as error:
        read_query(query, defaults)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "Choose at least one class."),
        ({"tab": "edit", "edit_classes": ()}, "Choose at least one class."),
        ({"classes": (10,)}, "“Classes” is 10; it can be 0 to 9 here."),
        ({"seed": None}, "“Seed” is empty; it can be 0 to"),
        ({"seed": -1}, "“Seed” is -1; it can be 0 to"),
        ({"num_inference_steps": 251}, "“Steps” is 251; it can be 1 to 250 here."),
        ({"guidance_scale": float("nan")}, "“Guidance scale” is nan; it can be 1 to 20 here."),
        ({"guidance_channels": 17}, "“Guided channels” is 17; it can be 1 to 16 here."),
        (
            {"guidance_start": 0.6, "guidance_end": 0.5},
            "Guidance cannot end (at t = 0.5) before it begins (at t = 0.6)",
        ),
        ({"strength": 0.0}, "“Strength” is 0; it can be 0.05 to 1 here."),
        ({"num_between": 1}, "“Images, with both ends” is 1; it can be 2 to 32 here."),
        ({"scheduler": "DDIMScheduler"}, "“Scheduler” is 'DDIMScheduler'; it can be FlowMatchEulerDiscreteScheduler,"),
        ({"size": "huge"}, "“Size” is 'huge'; it can be training, own here."),
        ({"tab": "home"}, "“Tab” is 'home'; it can be draw, interpolate, edit, reconstruct here."),
        ({"num_images": 32, "classes": (1, 2)}, "These are 64 images; this page draws at most 32 at a time."),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_sentence(changes, message, defaults, pipeline, limits):
    with pytest.raises(ValueError) as error:
        check_drawing(dataclasses.replace(defaults, **changes), pipeline, limits)
    assert str(error.value).startswith(message)


def test_pixels_are_limited(defaults, pipeline):
    check_drawing(defaults, pipeline, Limits(max_pixels=16 * 32 * 32))
    with pytest.raises(ValueError, match="These are 16 images; this page draws at most 15 at a time"):
        check_drawing(defaults, pipeline, Limits(max_pixels=16 * 32 * 32 - 1))
    with pytest.raises(ValueError, match="`max_pixels` is 2047; required: at least 2048, two images of 32x32 pixels"):
        recipe_settings(pipeline, Limits(max_pixels=2047))


def test_a_network_for_few_steps_keeps_its_scheduler(pipeline):
    assert len(scheduler_names(pipeline)) == 7
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    few_step = LightningDiTPipeline.from_pipe(pipeline, scheduler=scheduler)
    assert scheduler_names(few_step) == ["FlowMatchEulerDiscreteScheduler"]


def test_classes_without_names_are_numbers(pipeline):
    unnamed = LightningDiTPipeline(pipeline.transformer, pipeline.vae, pipeline.scheduler, id2label={1: "tench, Tinca"})
    assert [class_title(unnamed, class_id) for class_id in (0, 1)] == ["class 0", "tench"]
