"""The benchmark of samplers: a small run of it, what it keeps of an interrupted one, and its plot."""

import json

import pytest
from diffusers import DiffusionPipeline
from PIL import Image

SMALL = ["--num_images", "20", "--batch_size", "20", "--num_evaluations", "[2, 3]", "--student_evaluations", "[1, 2]"]


@pytest.fixture(scope="module")
def samplers(load_benchmark):
    return load_benchmark("samplers")


@pytest.fixture(scope="module")
def run(samplers, tmp_path_factory):
    """(folder, results) of a small run with two samplers and a student, which is the flow with its own sampler."""
    import prepare

    folder = tmp_path_factory.mktemp("samplers")
    prepare.main(["--output_dir", str(folder / "data")])
    student = folder / "in-few-steps"
    pipeline = DiffusionPipeline.from_pretrained(str(samplers.REPOSITORY / "model_cards" / "lightningdit-digits"))
    pipeline.scheduler = type(pipeline.scheduler)(stochastic_sampling=True)
    pipeline.save_pretrained(student)
    arguments = ["--data", str(folder / "data"), "--output_dir", str(folder / "out"), "--students", f'["{student}"]']
    arguments += ["--samplers", '["heun", "heun-equal", "ucgm"]', *SMALL]
    return folder, arguments, samplers.main(arguments)


def test_every_point_is_measured(samplers, run):
    folder, _, results = run
    assert json.loads((folder / "out" / "samplers.json").read_text())["results"] == results
    points = {(result["sampler"], result["asked_for"]): result["num_evaluations"] for result in results}
    assert points == {
        ("heun", 2): 1, ("heun", 3): 3, ("heun-equal", 2): 1, ("heun-equal", 3): 3, ("ucgm", 2): 2, ("ucgm", 3): 3,
        ("in-few-steps", 1): 1, ("in-few-steps", 2): 2,
    }  # fmt: skip
    for result in results:
        assert 0 <= result["accuracy"] <= 1
        assert result["frechet_distance"] > 0
        assert 0 < result["worst_variance_ratio"] <= result["variance_ratio"]
    by_point = {(result["sampler"], result["asked_for"]): result for result in results}
    assert by_point["heun", 3]["frechet_distance"] < by_point["heun", 2]["frechet_distance"]
    assert by_point["heun-equal", 2] == by_point["heun", 2] | {"sampler": "heun-equal"}  # one step of either grid
    assert by_point["heun-equal", 3]["frechet_distance"] < by_point["heun", 3]["frechet_distance"]


def test_the_real_digits_are_the_measure(samplers, run):
    folder, *_ = run
    judge = samplers.Judge(str(folder / "data"), str(samplers.REPOSITORY / "model_cards" / "dinov2-digits"), 32)
    measured = judge(judge.real, judge.real_labels)
    assert measured["accuracy"] > 0.99
    assert measured["variance_ratio"] == pytest.approx(1)
    assert measured["worst_variance_ratio"] == pytest.approx(1)
    assert measured["frechet_distance"] == pytest.approx(0, abs=1e-3)


def test_finished_points_are_kept(samplers, run, monkeypatch, capsys):
    _, arguments, results = run
    monkeypatch.setattr(samplers, "draw", lambda *_: pytest.fail("draws again"))
    assert samplers.main(arguments) == results
    with pytest.raises(SystemExit):
        samplers.main([*arguments, "--seed", "1"])
    assert "of a run with" in capsys.readouterr().err


def test_plot(samplers, run):
    folder, *_ = run
    with Image.open(folder / "out" / "samplers.png") as image:
        assert image.width > 2 * image.height


def test_wrong_settings(samplers, tmp_path, capsys):
    for arguments, message in (
        (["--samplers", '["rk4"]'], "`samplers` has 'rk4'; required: any of euler, heun"),
        (["--num_evaluations", "[0]"], "`num_evaluations`"),
    ):
        with pytest.raises(SystemExit):
            samplers.main(["--data", "x", "--output_dir", str(tmp_path / "new"), *arguments])
        assert message in capsys.readouterr().err
    (tmp_path / "other.txt").touch()
    with pytest.raises(SystemExit):
        samplers.main(["--data", "x", "--output_dir", str(tmp_path)])
    assert "which holds something else" in capsys.readouterr().err
