import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from diffusers_lightningdit.evaluate import main
from diffusers_lightningdit.evaluation.commands.tools import read_curves

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def test_a_set_goes_from_one_form_to_the_other(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images)
    main(["tools", "unpack", "--archive", str(tmp_path / "set.npz"), "--output", str(tmp_path / "set")])
    main(["tools", "pack", "--images", str(tmp_path / "set"), "--output", str(tmp_path / "again.npz")])
    np.testing.assert_array_equal(np.load(tmp_path / "again.npz")["arr_0"], images)
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'again.npz'}: 3 images"


def test_a_grid_shows_the_images_that_generation_draws(digits_pipeline, tmp_path):
    arguments = ["--pipeline", digits_pipeline, "sampling.num_inference_steps=2", "--seed", "5"]
    main(["generation", *arguments, "num_images=28", f"output_dir={tmp_path / 'set'}"])
    main(["tools", "grid", *arguments, "num_columns=3", "classes=[seven, 3]", f"output={tmp_path / 'a.png'}"])
    with Image.open(tmp_path / "a.png") as grid:
        left = grid.width - 3 * (32 + 2)
        assert left > 20  # titles
        for row, class_id in enumerate((7, 3)):
            for column in range(3):
                place = left + column * 34, row * 34
                tile = np.asarray(grid.crop((*place, place[0] + 32, place[1] + 32))).astype(int)
                with Image.open(tmp_path / "set" / "images" / f"{class_id + 10 * column:06d}.png") as image:
                    assert np.abs(tile - np.asarray(image)).max() <= 1  # drawn in a batch of another size


def test_curves_of_a_run(tmp_path, error_line):
    lines = [{"step": 1, "loss": 2.0, "grad_norm": 1.0}, {"step": 2, "loss": 1.5, "skipped": True}]
    lines += [{"step": 2, "validation_loss": 1.6}, {"step": 2, "loss": 1.4, "validation_psnr_db": 20.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo'  # it is being written
    (tmp_path / "metrics.jsonl").write_text(text)
    panels = read_curves(str(tmp_path))
    assert panels["loss"] == {"loss": [(1, 2.0), (2, 1.4)], "validation_loss": [(2, 1.6)]}  # the last of a step counts
    assert list(panels) == ["loss", "grad_norm", "skipped", "validation_psnr_db"]
    main(["tools", "curves", "--run", str(tmp_path), "--names", "[loss]", "--output", str(tmp_path / "a.png")])
    assert Image.open(tmp_path / "a.png").format == "PNG"
    words = ["tools", "curves", f"output={tmp_path / 'b.png'}"]
    assert error_line(*words, f"run={tmp_path}", "names=[lass]").startswith("`names` has 'lass'; required: of loss,")
    assert error_line(*words, f"run={tmp_path / 'none'}").endswith("a training run, with metrics.jsonl.")
    assert not (tmp_path / "b.png").exists()


@pytest.fixture
def inception(inception_file) -> list[str]:
    path, sha256 = inception_file
    return [f"inception={path}", f"inception_sha256={sha256}"]


def test_statistics_serve_as_the_reference(inception, digits_pipeline, tmp_path, capsys):
    """Of JPEG files of many sizes that are turned, cropped as is said: the same distance as from the images."""
    (tmp_path / "photos").mkdir()
    orientation = Image.Exif()
    orientation[ExifTags.Base.Orientation] = 6
    for index in range(5):
        noise = Image.effect_noise((40 + 9 * index, 36), 60 + 20 * index).convert("RGB")
        noise.save(tmp_path / "photos" / f"{index}.jpg", exif=orientation)
    file, photos = str(tmp_path / "reference.npz"), str(tmp_path / "photos")
    main(["tools", "statistics", f"data={photos}", "resolution=32", *inception, f"output={file}"])
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {file}: mu and sigma of 5 images"
    arrays = np.load(file)
    assert set(arrays) == {"mu", "sigma", "mu_s", "sigma_s", "record"}
    record = json.loads(str(arrays["record"]))
    assert record["results"] == {"num_images": 5, "height": 32, "width": 32}
    assert record["settings"]["resolution"] == 32
    assert len(record["warnings"]) == 2  # of so few images
    drawn = ["generation", f"pipeline={digits_pipeline}", *inception, "num_images=4", "sampling.num_inference_steps=1"]
    results = []
    for reference in ([f"reference={file}"], [f"reference={photos}", "reference_crop=center"]):
        folder = tmp_path / f"out{len(results)}"
        main([*drawn, "precision_recall=false", *reference, f"output_dir={folder}"])
        results.append(json.loads((folder / "generation.json").read_text())["results"])
    assert results[0] == results[1]
    assert {"fid", "sfid"} <= set(results[0])


def test_statistics_of_images_of_many_sizes(inception, error_line, tmp_path):
    for index in range(3):
        Image.new("RGB", (32 + index, 32)).save(tmp_path / f"{index}.png")
    error = error_line("tools", "statistics", f"data={tmp_path}", *inception, f"output={tmp_path}.npz")
    assert "1.png has 33x32 pixels; required: 32x32, as" in error
    assert not Path(f"{tmp_path}.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paint"], "the tool is 'paint'; required: one of pack, unpack, statistics, grid, curves."),
        (["pack", "--images", "nowhere", "--output", "new.npz"], "`images` is 'nowhere'; required: a folder of PNG"),
        (["unpack", "--archive", "nowhere.npz", "--output", "new"], "nowhere.npz cannot be read"),
        (
            ["grid", "--pipeline", "nowhere", "--output", "new.jpg"],
            "`output` is 'new.jpg'; required: a new .png file in",
        ),
        (["grid", "--pipeline", "nowhere", "--output", "no/new.png"], "`output` is 'no/new.png'; required: a new .png"),
        (["pack", "--images", "nowhere", "--output", "no/new.npz"], "`output` is 'no/new.npz'; required: a new .npz"),
        (["grid", "--pipeline", "nowhere", "--output", "new.png"], "`pipeline` is 'nowhere'; required: a folder or"),
        (["grid", "--pipeline", "nowhere", "--output", "new.png", "zoom=0"], "`zoom` is 0; required: at least 1."),
        (["grid", "--pipeline", "PIPELINE", "--output", "new.png", "classes=[eleven]"], "`class_labels` has the unk"),
        (["grid", "--pipeline", "PIPELINE", "--output", "new.png", "sampling.step=3"], "`sampling.step` is no setting"),
    ],
)
def test_bad_input_is_one_line(error_line, digits_pipeline, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = error_line("tools", *(digits_pipeline if word == "PIPELINE" else word for word in arguments))
    assert error.startswith(message), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tool", ["pack", "unpack", "statistics", "grid"])
def test_each_tool_has_help(tool, capsys):
    with pytest.raises(SystemExit):
        main(["tools", tool, "--help"])
    assert "\n  output" in capsys.readouterr().out


def test_no_grid_of_images_that_are_not_finite(broken_pipeline, tmp_path, error_line):
    error = error_line("tools", "grid", "--pipeline", broken_pipeline, f"output={tmp_path / 'a.png'}", "classes=[3]")
    assert error.startswith("an image has latents with NaN or infinity; required: a transformer of finite weights")
    assert not (tmp_path / "a.png").exists()
