"""The latents of the embedded autoencoder on real digits."""

import csv
import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image

from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.data.latent_caching import CachingConfig, cache_latents
from diffusers_lightningdit.data.latent_dataset import LatentsDataset
from diffusers_lightningdit.data.latent_encoding import load_frozen_vae
from diffusers_lightningdit.evaluate import main
from diffusers_lightningdit.evaluation.commands.latents import chosen_images
from diffusers_lightningdit.metrics.alignment import distance_matrix_gap, linear_cka
from diffusers_lightningdit.metrics.frechet import FeatureStatistics, frechet_distance
from diffusers_lightningdit.metrics.uniformity import uniformity
from diffusers_lightningdit.networks.foundation_model import FoundationModel
from diffusers_lightningdit.settings import make_config

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def arguments(digits_pipeline, real_digits, vision_transformer) -> list[str]:
    return [
        *("latents", "--vae", f"{digits_pipeline}/vae", "--data", real_digits, "--resolution", "32"),
        *("--features", vision_transformer, "--perplexity", "5", "--num_images", "57", "--seed", "3"),
    ]


@pytest.fixture(scope="module")
def folder(arguments, tmp_path_factory) -> Path:
    """The output folder of a run."""
    folder = tmp_path_factory.mktemp("latents")
    main([*arguments, "--output_dir", str(folder)])
    AcceleratorState._reset_state(reset_partial_state=True)  # a test that forks must not inherit it
    return folder


def points(folder: Path) -> list[dict[str, str]]:
    with open(folder / "tsne.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def test_every_number_by_another_way(folder, arguments, real_digits, vision_transformer):
    dataset = ImageDataset(real_digits, 32)
    lines = points(folder)
    items = [dataset[int(line["index"])] for line in lines]
    assert [int(line["label"]) for line in lines] == [item["class_labels"] for item in items]
    pixels = torch.stack([item["pixel_values"] for item in items])
    vae = load_frozen_vae(arguments[2])
    latents = vae.encode(pixels).latent_dist.mode()
    model = FoundationModel.from_pretrained(vision_transformer)
    features = model(pixels, 4)

    results = json.loads((folder / "metrics.json").read_text())["results"]
    assert results["num_images"] == len(latents) == 57
    assert results["latents_shape"] == list(latents.shape[1:])
    assert results["channels"]["mean"] == pytest.approx(latents.mean((0, 2, 3)).tolist(), rel=1e-3, abs=1e-5)
    assert results["channels"]["largest"] == pytest.approx(latents.amax((0, 2, 3)).tolist(), rel=1e-4)
    assert results["linear_cka"] == pytest.approx(linear_cka(latents, features), rel=1e-4)
    assert results["distance_matrix_gap"] == pytest.approx(distance_matrix_gap(latents, features), rel=1e-4)
    plane = torch.tensor([[float(line["x"]), float(line["y"])] for line in lines])
    assert results["uniformity"]["tsne"] == pytest.approx(uniformity(plane), rel=1e-3)

    moments = []
    decoded = (127.5 * vae.decode(latents).sample + 128).clamp(0, 255).byte()
    for images in (pixels, decoded / 127.5 - 1):
        statistics = FeatureStatistics(12)
        statistics.update(model(images, 4).mean((2, 3)))
        moments += [statistics.mean, statistics.covariance]
    assert results["reconstruction_fd"] == pytest.approx(frechet_distance(*moments), rel=1e-3)
    assert results["interpolation_fd"] > results["reconstruction_fd"]
    assert 0 <= results["linear_probe_accuracy"] <= 1
    assert results["linear_probe_num_images"] == 57


def test_the_reconstructions_are_those_of_the_other_command(arguments, tmp_path):
    """Both commands compute the same Fréchet distance of the reconstructions."""
    shared = [*arguments[1:9], "--micro_batch_size", "8"]
    main(["latents", *shared, "--perplexity", "5", "--output_dir", str(tmp_path / "latents")])
    main(["reconstruction", *shared, "--output_dir", str(tmp_path / "reconstruction")])
    one, other = (json.loads((path / "metrics.json").read_text())["results"] for path in sorted(tmp_path.iterdir()))
    assert one["reconstruction_fd"] == pytest.approx(other["rfd"], rel=2e-6)


def test_the_picture_shows_as_many_colours_as_densities(folder):
    with Image.open(folder / "tsne.png") as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**24)) > 100
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "tsne.png", "tsne.csv"}


def test_two_processes_write_the_same_numbers(arguments, folder, tmp_path):
    debug_launcher(main, ([*arguments, "--output_dir", str(tmp_path)],), num_processes=2)
    assert points(tmp_path) == points(folder)
    one, two = (json.loads((path / "metrics.json").read_text()) for path in (folder, tmp_path))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert one["results"] == two["results"]


def test_without_labels_and_features(arguments, tmp_path):
    (tmp_path / "tsne.csv.partial").write_text("x")  # of a run that was killed
    main([*arguments[:7], "label_column=null", "perplexity=5", f"output_dir={tmp_path}", "num_images=9"])
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert set(results) == {"num_images", "latents_shape", "channels", "uniformity"}
    assert "label" not in points(tmp_path)[0]


@pytest.fixture(scope="module")
def shards(arguments, vision_transformer, tmp_path_factory) -> str:
    """Latents and features of the digits, as training reads them."""
    folder = str(tmp_path_factory.mktemp("shards") / "latents")
    settings = {"vae": arguments[2], "data": arguments[4], "output_dir": folder, "resolution": 32, "dtype": "float32"}
    settings |= {"foundation_model": vision_transformer, "foundation_normalization": "minus_one_to_one"}
    cache_latents(make_config(CachingConfig, settings), Accelerator())
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def test_latents_that_are_cached(arguments, folder, shards, tmp_path):
    words = [*arguments[:3], f"data={shards}", "data_kind=latents", "perplexity=5", "num_images=57", "seed=3"]
    main([*words, f"output_dir={tmp_path}"])
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    of_images = json.loads((folder / "metrics.json").read_text())["results"]
    assert of_images.keys() - results.keys() == {"reconstruction_fd", "interpolation_fd"}
    dataset = LatentsDataset(shards, random_flip=False, with_features=True)
    items = dataset.__getitems__([int(line["index"]) for line in points(tmp_path)])
    latents, features = (torch.stack([item[name] for item in items]) for name in ("latents", "features"))
    assert [int(line["label"]) for line in points(tmp_path)] == [item["class_labels"] for item in items]
    assert results["channels"]["mean"] == pytest.approx(latents.mean((0, 2, 3)).tolist(), rel=1e-3, abs=1e-5)
    assert results["linear_cka"] == pytest.approx(linear_cka(latents, features), rel=1e-4)
    # draws of the posteriors stand where their means stand, nearly
    assert results["linear_cka"] == pytest.approx(of_images["linear_cka"], rel=0.05)


def test_latents_that_cannot_be_measured(arguments, shards, error_line, tmp_path):
    words = [*arguments[:3], f"data={shards}", "data_kind=latents", f"output_dir={tmp_path / 'new'}"]
    assert error_line(*words, f"features={arguments[8]}").endswith("whose features lie beside them.")
    assert error_line(*words, "num_images=61") == "`num_images` is 61; required: at most 60, which `data` has."
    assert not (tmp_path / "new").exists()


def test_too_few_images_for_a_probe(arguments, tmp_path, capsys):
    main([*arguments[:7], "perplexity=5", f"output_dir={tmp_path}", "num_images=9"])
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert not any(name.startswith("linear_probe") for name in record["results"])
    (warning,) = record["warnings"]
    assert warning.startswith("there is no linear probe: ") and f"warning: {warning}" in capsys.readouterr().err


def test_images_are_drawn_by_the_seed():
    drawn = chosen_images(10, 50, seed=0)
    assert drawn == sorted(set(drawn)) == chosen_images(10, 50, seed=0)
    assert drawn != chosen_images(10, 50, seed=1)
    assert chosen_images(None, 4, seed=0) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["num_images=61"], "`num_images` is 61; required: at most 60, which `data` has."),
        (["num_images=5"], "`perplexity` is 5; required: above 0, below the 5 images."),
        (
            ["label_column=digit"],
            "`label_column` is 'digit'; required: a column of class labels or",
        ),
        (["feature_normalization=other"], "`feature_normalization` is 'other'; required: one of minus_one_to_one,"),
        (["resolution=30"], "`resolution` is 30; required: a multiple of the VAE's factor, 8."),
    ],
)
def test_bad_input_is_one_line(error_line, arguments, tmp_path, settings, message):
    assert error_line(*arguments, f"output_dir={tmp_path / 'new'}", *settings).startswith(message)
    assert not (tmp_path / "new").exists()
