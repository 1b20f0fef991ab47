"""The checkpoint that lies in the repository: whole, small, and as good as its card says."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "model_cards" / "lightningdit-digits"
sys.path.insert(0, str(REPOSITORY / "examples" / "digits"))

import judge  # noqa: E402
import prepare  # noqa: E402

import diffusers_lightningdit  # noqa: E402, F401
from diffusers_lightningdit.files import weights_sha256  # noqa: E402
from diffusers_lightningdit.networks.foundation_model import FoundationModel  # noqa: E402


@pytest.fixture(scope="module")
def pipeline():
    return DiffusionPipeline.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("digits") / "data")
    prepare.main(["--output_dir", folder])
    pixels, labels, _ = judge.real_images(folder, 32)
    return pixels, labels


@pytest.fixture(scope="module")
def metrics():
    return json.loads((FOLDER / "metrics.json").read_text())


@pytest.fixture(scope="module")
def card():
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def test_drawn_digits_are_taken_for_those_asked_for(pipeline, real):
    classifier, _ = judge.fit_classifier(*real)
    labels = torch.arange(10).repeat(5)
    drawn = judge.generate(pipeline, labels, seed=12345, batch_size=50)
    taken_for = torch.from_numpy(classifier.predict(judge.classifier_features(drawn)))
    assert (taken_for == labels).double().mean() >= 0.9


def test_digits_are_reconstructed(pipeline, real):
    pixels = real[0][:200]
    reconstructions = judge.reconstruct(pipeline.vae, pixels, 100)
    psnr = judge.peak_signal_to_noise_ratio(pixels, reconstructions, value_range=1)
    assert psnr.mean() >= 28


def test_names_are_understood(pipeline):
    arguments = {"num_inference_steps": 2, "output_type": "pt"}
    by_name = pipeline("seven", generator=torch.Generator().manual_seed(0), **arguments).images
    by_id = pipeline(7, generator=torch.Generator().manual_seed(0), **arguments).images
    assert torch.equal(by_name, by_id)


def test_weights_are_loaded_in_float32(pipeline):
    assert pipeline.transformer.dtype == pipeline.vae.dtype == torch.float32


def test_recorded_numbers_pass_the_bars(metrics, pipeline):
    assert metrics["num_images"] == 1000
    assert metrics["accuracy"] >= 0.97
    assert min(metrics["variance_ratio"].values()) == metrics["variance_ratio_worst"] >= 0.8
    assert metrics["psnr_db"] >= 28
    assert metrics["sampling_recipe"] == pipeline.config.sampling_recipe
    assert metrics["shift"] == pipeline.scheduler.config.shift


def test_card_quotes_the_recorded_numbers(card, metrics):
    for number in (
        f"{metrics['accuracy']:.1%}",
        f"{metrics['variance_ratio_worst']:.1%}",
        f"{metrics['psnr_db']:.1f} dB",
        f"{metrics['classifier_held_out_accuracy']:.1%}",
        f"{metrics['nearest_distance_ratio']:.2f}",
    ):
        assert number.replace("%", " %") in card, number


def test_the_recipe_file_is_the_one_embedded(pipeline):
    recipe = yaml.safe_load((REPOSITORY / "examples/digits/recipes/lightningdit.yaml").read_text())
    for name, value in pipeline.config.sampling_recipe.items():
        assert recipe[name] == value, name
    assert 1 / recipe["timestep_shift"] == pipeline.scheduler.config.shift


@pytest.mark.parametrize("command", ["generation", "reconstruction"])
def test_the_card_has_what_the_evaluator_wrote(command, card, pipeline):
    """Of these weights: its figures, with everything they depend on, lie beside the card."""
    record = json.loads((FOLDER / "evaluation" / f"{command}.json").read_text())
    assert record["weights_sha256"]["vae"] == weights_sha256(pipeline.vae)
    if command == "generation":
        assert record["weights_sha256"]["transformer"] == weights_sha256(pipeline.transformer)
    encoder = FoundationModel.from_pretrained(str(FOLDER.parent / "dinov2-digits"))
    if "encoder.layer.0.attention.k_proj.bias" in encoder.model.state_dict():  # transformers 5.0 has another name
        assert record["weights_sha256"]["features"] == weights_sha256(encoder.model)
    names = {"generation": ["frechet_distance", "precision", "recall", "accuracy"]}
    for name in names.get(command, ["psnr_db", "ssim", "rfd"]):
        assert str(record["results"][name]) in card, name
