import math

import judge
import pytest
import torch


def test_variance_is_over_the_images_of_a_class():
    labels = torch.tensor([0, 0, 1, 1])
    pixels = torch.zeros(4, 3, 2, 2)
    pixels[1] = 1  # class 0: every pixel has the values 0 and 1
    pixels[2:] = 0.7  # class 1: two equal images
    assert judge.within_class_variance(pixels, labels, 2) == pytest.approx([0.5, 0])


def test_nearest_distance_ratio():
    real = torch.rand(20, 3, 4, 4)
    assert judge.nearest_distance_ratio(real[:5], real) == pytest.approx(0, abs=1e-3)
    assert judge.nearest_distance_ratio(torch.rand(200, 3, 4, 4), real) == pytest.approx(1, abs=0.15)


def test_classifier_tells_bright_from_dark():
    labels = torch.arange(2).repeat(20)
    pixels = (labels.view(-1, 1, 1, 1) * 0.8 + 0.1 * torch.rand(40, 3, 4, 4)).float()
    classifier, held_out_accuracy = judge.fit_classifier(pixels, labels)
    assert held_out_accuracy == 1
    assert classifier.predict(judge.classifier_features(pixels[:4])).tolist() == [0, 1, 0, 1]


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory, data, trained_vae, transformer_recipe) -> str:
    import train_lightningdit

    folder = str(tmp_path_factory.mktemp("judged") / "pipeline")
    arguments = ["--config", transformer_recipe, f"data={data}", f"vae={trained_vae}", f"output_dir={folder}"]
    train_lightningdit.main(arguments)
    return folder


def test_the_whole_judgement_does_not_depend_on_the_batch(pipeline_folder, data, tmp_path):
    arguments = ["--pipeline", pipeline_folder, "--data", data, "--num_images", "8"]
    output = ["--metrics", str(tmp_path / "metrics.json"), "--picture", str(tmp_path / "picture.png")]
    metrics = judge.main([*arguments, *output])
    again = judge.main([*arguments, "--batch_size", "3"])
    assert 0 <= metrics["accuracy"] <= 1
    assert math.isfinite(metrics["psnr_db"])
    assert set(metrics["variance_ratio"]) == {"cat", "dog"}
    assert metrics["variance_ratio_worst"] == min(metrics["variance_ratio"].values())
    assert metrics["accuracy"] == again["accuracy"]
    assert metrics["variance_ratio"] == pytest.approx(again["variance_ratio"], abs=1e-3)
    assert (tmp_path / "metrics.json").exists() and (tmp_path / "picture.png").exists()


def test_a_number_of_images_that_classes_cannot_share(pipeline_folder, data, capsys):
    with pytest.raises(SystemExit):
        judge.main(["--pipeline", pipeline_folder, "--data", data, "--num_images", "7"])
    assert "`num_images` is 7; required: a multiple of the 2 classes" in capsys.readouterr().err
