"""The few-step checkpoint that lies in the repository: whole, small, and as good as its card says in two steps."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

REPOSITORY = Path(__file__).parents[2]
CARDS = REPOSITORY / "model_cards"
FOLDER, TEACHER = CARDS / "lightningdit-digits-few-step", CARDS / "lightningdit-digits"
sys.path.insert(0, str(REPOSITORY / "examples" / "digits"))

import judge  # noqa: E402
import prepare  # noqa: E402

import diffusers_lightningdit  # noqa: E402, F401
from diffusers_lightningdit.files import weights_sha256  # noqa: E402


@pytest.fixture(scope="module")
def pipeline():
    return DiffusionPipeline.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def metrics():
    return json.loads((FOLDER / "metrics.json").read_text())


@pytest.fixture(scope="module")
def card():
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def test_digits_in_two_evaluations(pipeline, tmp_path):
    """Fifty digits, by the pipeline's own recipe; the transformer is called twice."""
    prepare.main(["--output_dir", str(tmp_path / "data")])
    pixels, real_labels, _ = judge.real_images(str(tmp_path / "data"), 32)
    classifier, _ = judge.fit_classifier(pixels, real_labels)
    labels, calls = torch.arange(10).repeat(5), []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *arguments: calls.append(1))
    drawn = judge.generate(pipeline, labels, seed=12345, batch_size=50)
    hook.remove()
    taken_for = torch.from_numpy(classifier.predict(judge.classifier_features(drawn)))
    assert (taken_for == labels).double().mean() >= 0.9
    assert len(calls) == 2


def test_it_is_the_teachers_autoencoder_and_classes(pipeline):
    teacher = DiffusionPipeline.from_pretrained(TEACHER)
    assert weights_sha256(pipeline.vae) == weights_sha256(teacher.vae)
    assert pipeline.config.id2label == teacher.config.id2label
    assert pipeline.transformer.config.second_time_embedding


def test_recorded_numbers_pass_the_bars(metrics, pipeline):
    assert metrics["num_images"] == 1000
    assert metrics["sampling_recipe"] == pipeline.config.sampling_recipe
    assert metrics["sampling_recipe"]["num_inference_steps"] == 2
    assert metrics["accuracy"] >= 0.95
    assert min(metrics["variance_ratio"].values()) == metrics["variance_ratio_worst"] >= 0.75


def test_card_quotes_the_recorded_numbers(card, metrics):
    teacher = json.loads((TEACHER / "metrics.json").read_text())
    for recorded in (metrics, teacher):
        for number in (
            f"{recorded['accuracy']:.1%}",
            f"{recorded['variance_ratio_worst']:.1%}",
            f"{recorded['nearest_distance_ratio']:.2f}",
        ):
            assert number.replace("%", " %") in card, number


def test_the_recipe_file_is_the_one_embedded(card):
    recipe = yaml.safe_load((REPOSITORY / "examples/digits/recipes/few_step.yaml").read_text())
    assert f"{recipe['max_train_steps']} steps of {recipe['global_batch_size']} images" in card


def test_the_card_has_what_the_evaluator_wrote(card, pipeline):
    record = json.loads((FOLDER / "evaluation" / "generation.json").read_text())
    assert record["weights_sha256"]["transformer"] == weights_sha256(pipeline.transformer)
    assert record["weights_sha256"]["vae"] == weights_sha256(pipeline.vae)
    for name in ("frechet_distance", "precision", "recall", "accuracy"):
        assert str(record["results"][name]) in card, name
