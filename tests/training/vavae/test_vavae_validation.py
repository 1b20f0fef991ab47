import math

import pytest
import torch
from accelerate import Accelerator

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.metrics.frechet import FeatureStatistics
from diffusers_lightningdit.pixels import to_8_bits
from diffusers_lightningdit.settings import make_config
from diffusers_lightningdit.training.vavae.config import VAVAETrainingConfig
from diffusers_lightningdit.training.vavae.networks import Teachers
from diffusers_lightningdit.training.vavae.validation import AutoencoderValidation


@pytest.fixture
def vae() -> AutoencoderVAVAE:
    return AutoencoderVAVAE(block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4, latent_channels=4).eval()


@pytest.fixture
def foundation_model(tmp_path) -> str:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=8, patch_size=2
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    return str(tmp_path / "dinov2")


def example_images(labels: list[int], same: bool = False) -> list[dict]:
    noise = [torch.randn(3, 8, 8).clamp(-1, 1) for _ in labels]
    return [
        {"pixel_values": noise[0 if same else number], "class_labels": label} for number, label in enumerate(labels)
    ]


def validation(tmp_path, images: list[dict], num_images: int, **settings) -> tuple[AutoencoderValidation, list[str]]:
    """(validation, lines that it reports)."""
    needed = {"data": "x", "output_dir": str(tmp_path / "new"), "perceptual_weight": 0, "disc_weight": 0}
    settings = {"vf_weight": 0, "num_validation_samples": num_images, **settings}
    config = make_config(VAVAETrainingConfig, {**needed, **settings})
    teachers, lines = Teachers(config, torch.device("cpu")), []
    return AutoencoderValidation(config, images, teachers, Accelerator(cpu=True), lines.append), lines


def test_images_from_all_over_a_sorted_data_set(tmp_path, vae):
    """The first 16 would be of one class; 16 of 64 are of all four."""
    measure, lines = validation(tmp_path, example_images([number // 16 for number in range(64)]), 16)
    assert 0 <= measure(vae)["latents_linear_probe_accuracy"] <= 1
    assert not lines


def test_the_smallest_number_of_images_that_is_allowed(tmp_path, vae):
    measure, lines = validation(tmp_path, example_images([0, 1, 2]), 3)
    measures = measure(vae)
    assert {"validation_psnr_db", "latents_effective_channels", "latents_gini_coefficient"} <= measures.keys()
    assert "latents_linear_probe_accuracy" not in measures
    assert len(lines) == 1 and lines[0].startswith("validation leaves out `latents_linear_probe_accuracy`: `labels`")
    measure(vae)
    assert len(lines) == 1  # once for all validations


def test_images_that_are_all_the_same(tmp_path, vae, foundation_model):
    images = example_images([0, 1] * 4, same=True)
    measure, lines = validation(tmp_path, images, 8, foundation_model=foundation_model, validation_steps=1)
    measures = measure(vae)
    assert "latents_density_cv" not in measures and "validation_psnr_db" in measures
    assert any("`latents_uniformity`: `points` lie on a line" in line for line in lines)


def test_weights_that_have_gone_bad(tmp_path, vae, foundation_model):
    torch.nn.init.constant_(vae.quant_conv.weight, math.nan)
    images = example_images([0, 1] * 4)
    measure, lines = validation(tmp_path, images, 8, foundation_model=foundation_model, validation_steps=1)
    assert measure(vae) == {}
    assert lines == ["validation is left out: `reconstructions` holds NaN or infinity; required: finite values."]
    measure(vae)
    assert len(lines) == 1  # once for all validations


def test_distance_in_the_features_of_inception(tmp_path, vae, inception_weights):
    """Of 8-bit images, the real ones and their reconstructions; weights are random, in torch-fidelity's layout."""
    path, sha256 = inception_weights
    images = example_images([0] * 4)
    settings = {"inception": str(path), "inception_sha256": sha256, "validation_steps": 1}
    measure, _ = validation(tmp_path, images, 4, **settings)
    pixels = torch.stack([image["pixel_values"] for image in images])
    with torch.no_grad():
        reconstructions = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    real, fake = (
        FeatureStatistics.of(measure.teachers.inception(to_8_bits(part))["features"])
        for part in (pixels, reconstructions)
    )
    assert measure(vae)["validation_rfid"] == pytest.approx(real.distance_to(fake), rel=1e-3)


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    import hashlib

    pytest.importorskip("torch_fidelity", exc_type=ImportError)
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
