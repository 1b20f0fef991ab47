"""`diffusers-lightningdit sample`: the images of classes as files."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_lightningdit import commands
from diffusers_lightningdit.grids import draw_class_images

FEW_STEPS = "--sampling.num_inference_steps=2"


@pytest.fixture(scope="module")
def drawn(digits_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "images"
    words = [
        "--classes",
        "seven",
        "3",
        "--num_images_per_class",
        "2",
        "--seed",
        "5",
        "--batch_size",
        "4",
        "--zoom",
        "2",
    ]
    commands.main(["sample", "--pipeline", digits_pipeline, *words, FEW_STEPS, "--output_dir", str(folder)])
    return folder


def test_files_have_the_names_of_their_classes(drawn):
    names = {path.name for path in drawn.iterdir()}
    assert names == {"7-seven-0.png", "7-seven-1.png", "3-three-0.png", "3-three-1.png", "grid.png", "sample.json"}
    record = json.loads((drawn / "sample.json").read_text())
    assert record["images"]["3-three-1.png"] == 3
    assert record["sampling"]["num_inference_steps"] == 2 and record["sampling"]["guidance_scale"] == 1.0
    assert record["settings"]["seed"] == 5


def test_images_are_those_of_the_evaluation(drawn, digits_pipeline):
    pipeline = DiffusionPipeline.from_pretrained(digits_pipeline)
    expected = list(draw_class_images(pipeline, [7, 7, 3, 3], 5, 4, num_inference_steps=2))
    files = ["7-seven-0.png", "7-seven-1.png", "3-three-0.png", "3-three-1.png"]
    assert [Image.open(drawn / name).tobytes() for name in files] == [image.tobytes() for image in expected]


def test_the_grid_shows_all_of_them(drawn):
    width, height = Image.open(drawn / "grid.png").size
    assert height == 2 * (64 + 2) and width > 2 * 64


def test_half_precision_and_another_scheduler(digits_pipeline, tmp_path):
    words = [
        "--classes",
        "[0]",
        "--dtype",
        "bfloat16",
        "--scheduler",
        "FlowMatchHeunDiscreteScheduler",
        "--shift",
        "1",
        FEW_STEPS,
    ]
    commands.main(["sample", "--pipeline", digits_pipeline, *words, "--output_dir", str(tmp_path / "out")])
    assert Image.open(tmp_path / "out" / "0-zero-0.png").size == (32, 32)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--classes", "dog"], "error: `class_labels` has the unknown name 'dog'"),
        (["--classes", "[]"], "error: `classes` is empty; required: at least one class."),
        (["--classes", "1", "--dtype", "int8"], "error: `dtype` is 'int8'; required: one of float32, float16"),
        (["--classes", "1", "--sampling.steps=3"], "error: `sampling.steps`"),
        (
            ["--classes", "1", "--shift", "1e30", FEW_STEPS],
            "error: `scheduler` has 2 steps whose times coincide, with the shift",
        ),
        (["--classes", "1", "--num_images_per_class", "99999999999"], "error: `num_images_per_class` is 99999999999;"),
        (["--classes", "1", "--zoom", "100000"], "error: `zoom` is 100000; required: below 100"),
        (["--classes", "1", "--num_images_per_class", "0"], "error: `num_images_per_class` is 0; required: at least 1"),
    ],
)
def test_bad_settings_are_one_line_and_leave_no_folder(words, error, digits_pipeline, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        commands.main(["sample", "--pipeline", digits_pipeline, *words, "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(error), message
    assert not (tmp_path / "out").exists()


def test_existing_images_are_kept(drawn, digits_pipeline, capsys):
    before = {path: path.read_bytes() for path in drawn.iterdir()}
    with pytest.raises(SystemExit):
        commands.main(["sample", "--pipeline", digits_pipeline, "--classes", "1", "--output_dir", str(drawn)])
    assert "required: a new or an empty folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in drawn.iterdir()} == before


@pytest.mark.gpu
def test_a_device_is_used(digits_pipeline, tmp_path):
    torch.cuda.reset_peak_memory_stats()
    words = ["--classes", "1", FEW_STEPS, "--output_dir", str(tmp_path / "out")]
    commands.main(["sample", "--pipeline", digits_pipeline, *words])
    assert torch.cuda.max_memory_allocated() > 0
