"""The embedded autoencoder on real digits, against each measure computed on its own."""

import csv
import io
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.data.latent_encoding import load_frozen_vae
from diffusers_lightningdit.evaluate import main
from diffusers_lightningdit.evaluation.commands.reconstruction import (
    ReconstructionTotals,
)
from diffusers_lightningdit.metrics.frechet import FeatureStatistics, frechet_distance
from diffusers_lightningdit.metrics.image_similarity import structural_similarity
from diffusers_lightningdit.networks.lpips import LPIPS
from diffusers_lightningdit.networks.vision_features import VisionFeatures

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(LPIPS().state_dict(), file)
    return file


@pytest.fixture(scope="module")
def arguments(digits_pipeline, real_digits, vision_transformer, lpips_file) -> list[str]:
    return [
        *("reconstruction", "--vae", f"{digits_pipeline}/vae", "--data", real_digits, "--resolution", "32"),
        *("--features", vision_transformer, "--lpips", str(lpips_file), "--num_images", "20"),
        *("--lpips_sha256", sha256(lpips_file.read_bytes()).hexdigest()),
        *("--micro_batch_size", "8"),
    ]


@pytest.fixture(scope="module")
def folder(arguments, tmp_path_factory) -> Path:
    """The output folder of a run."""
    folder = tmp_path_factory.mktemp("reconstruction")
    main([*arguments, "--output_dir", str(folder)])
    AcceleratorState._reset_state(reset_partial_state=True)  # a test that forks must not inherit it
    return folder


def lines(folder: Path) -> list[dict[str, str]]:
    with open(folder / "images.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def test_every_number_by_another_way(folder, arguments, real_digits, vision_transformer, lpips_file):
    dataset = ImageDataset(real_digits, 32)
    pixels = torch.stack([dataset[index]["pixel_values"] for index in range(20)])
    vae = load_frozen_vae(arguments[2])
    reconstructions = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    images, others = ((127.5 * x + 128).clamp(0, 255).byte() for x in (pixels, reconstructions))

    squares = (images.numpy().astype(float) - others.numpy()) ** 2
    psnr = 10 * np.log10(255**2 / squares.mean((1, 2, 3)))
    ssim = structural_similarity(images.double(), others.double(), value_range=255).numpy()
    lpips = (
        LPIPS.from_file(lpips_file, sha256(lpips_file.read_bytes()).hexdigest())(images / 127.5 - 1, others / 127.5 - 1)
        .flatten()
        .numpy()
    )
    record = json.loads((folder / "metrics.json").read_text())
    for name, values, tolerance in (("psnr_db", psnr, 1e-2), ("ssim", ssim, 1e-5), ("lpips", lpips, 1e-5)):
        written = [float(line[name]) for line in lines(folder)]
        np.testing.assert_allclose(written, values, atol=tolerance)
        assert record["results"][name] == pytest.approx(np.mean(written), abs=1e-4)

    network, moments = VisionFeatures(vision_transformer), []
    for each in (images, others):
        statistics = FeatureStatistics(12)
        statistics.update(network(each)["features"])
        moments += [statistics.mean, statistics.covariance]
    assert record["results"]["rfd"] == pytest.approx(frechet_distance(*moments), rel=1e-2)
    assert record["results"]["num_images"] == 20


def test_everything_is_recorded_that_the_numbers_depend_on(folder):
    record = json.loads((folder / "metrics.json").read_text())
    assert record["settings"]["preprocessing"] == "original"
    assert set(record["weights_sha256"]) == {"vae", "features", "lpips"}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert record["warnings"] == []
    assert record["features"]["pooling"] == "mean of the patch tokens"
    assert [line["index"] for line in lines(folder)] == [str(index) for index in range(20)]


def test_the_sheet_shows_the_worst_and_the_median(folder, arguments, tmp_path):
    distances = {int(line["index"]): float(line["lpips"]) for line in lines(folder)}
    order = sorted(distances, key=distances.get, reverse=True)
    totals = ReconstructionTotals(io.StringIO())
    columns = {
        name: torch.tensor([float(line[name]) for line in lines(folder)]) for name in ("psnr_db", "ssim", "lpips")
    }
    totals.update(columns)
    shown = totals.shown(3)
    assert [index for index, _ in shown["worst"]] == order[:3]
    assert [index for index, _ in shown["median"]] == order[8:11]
    with Image.open(folder / "sheet.png") as sheet:  # 4 columns of 32 pixels, times 4; two bands of three rows
        assert sheet.width > 4 * 128 and sheet.height > 6 * 128
    main([*arguments[:7], "--num_images", "2", "--num_shown", "0", "--output_dir", str(tmp_path)])
    assert not (tmp_path / "sheet.png").exists()


def test_two_processes_write_the_same_numbers(arguments, folder, tmp_path):
    # by fork, which spares the second process all imports
    debug_launcher(main, ([*arguments, "--output_dir", str(tmp_path)],), num_processes=2)
    assert (tmp_path / "images.csv").read_bytes() == (folder / "images.csv").read_bytes()
    one, two = (json.loads((path / "metrics.json").read_text()) for path in (folder, tmp_path))
    assert (one["num_processes"], two["num_processes"]) == (1, 2)
    assert one["results"] == two["results"]


def test_without_networks_and_with_few_images(arguments, tmp_path, capsys):
    (tmp_path / "images.csv.partial").write_text("index,psnr")  # of a run that was killed
    main([*arguments[:7], "--num_images", "3", "--output_dir", str(tmp_path)])
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert set(record["results"]) == {"num_images", "psnr_db", "ssim"}
    assert record["features"] is None
    assert "wrote" in capsys.readouterr().out


def test_an_image_that_is_given_back_exactly(tmp_path):
    with open(tmp_path / "images.csv", "w", encoding="utf-8") as file:
        totals = ReconstructionTotals(file)
        totals.update({"psnr_db": torch.tensor([torch.inf, 30]).double(), "ssim": torch.tensor([1, 0.5]).double()})
    assert totals.results() == {"num_images": 2, "psnr_db": torch.inf, "ssim": 0.75}
    assert lines(tmp_path)[0] == {"index": "0", "psnr_db": "inf", "ssim": "1.000000"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["preprocessing=other"], "`preprocessing` is 'other'; required: one of original, plain."),
        (["num_images=61"], "`num_images` is 61; required: at most 60, which `data` has."),
        (["num_images=1"], "there is 1 image; required: at least 2 for a Fréchet distance."),
        (["resolution=30"], "`resolution` is 30; required: a multiple of the VAE's factor, 8."),
        (["resolution=8", "lpips=null"], "the images are 8x8; required: at least 11x11, the window of SSIM."),
        (["feature_size=20"], "`feature_size` is 20x20; required: multiples of the patch of `features`, 8x8."),
        (["inception=weights.pth"], "`features` and `inception` are both given; required: one of them, or neither."),
        (["vae=nowhere"], "`vae` is 'nowhere'; required: a folder or Hub id with a VAE's config.json."),
        (
            ["vae={transformer}"],
            "`vae` is '{transformer}', a LightningDiTTransformer2DModel; required: an autoencoder of",
        ),
        (["lpips=nowhere"], "nowhere: no such file; required: a local path, or user/repo:file of the Hub."),
        (["batch=3"], "`batch` is no key of ReconstructionConfig"),
    ],
)
def test_bad_input_is_one_line(error_line, arguments, digits_pipeline, tmp_path, settings, message):
    transformer = f"{digits_pipeline}/transformer"
    settings, message = (
        [word.format(transformer=transformer) for word in settings],
        message.format(transformer=transformer),
    )
    assert error_line(*arguments, f"output_dir={tmp_path / 'new'}", *settings).startswith(message)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it(error_line, arguments, folder):
    error = error_line(*arguments, "--output_dir", str(folder))
    assert "which exists; required: a new or an empty folder" in error
