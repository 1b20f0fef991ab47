import pytest
import torch
from accelerate import Accelerator

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data.global_batches import GlobalBatchSampler
from diffusers_lightningdit.settings import make_config
from diffusers_lightningdit.training.vavae import latents_statistics
from diffusers_lightningdit.training.vavae.config import VAVAETrainingConfig
from diffusers_lightningdit.training.vavae.latents_statistics import measure_latents, own_batches

IMAGES = [{"pixel_values": image} for image in torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(0))]
SAMPLER = GlobalBatchSampler(len(IMAGES), 4, 0)


def config(tmp_path, **settings) -> VAVAETrainingConfig:
    without_networks = {"vf_weight": 0, "perceptual_weight": 0, "disc_weight": 0}
    needed = {"data": "x", "output_dir": str(tmp_path / "new"), **without_networks}
    return make_config(VAVAETrainingConfig, {**needed, **settings})


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(latents_statistics, "BATCH_SIZE", 2)


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("count", [None, 5])
def test_each_image_is_measured_by_one_process(tmp_path, num_processes, count):
    found = {}
    for rank in range(num_processes):
        for first, batch in own_batches(
            config(tmp_path, statistics_samples=count), IMAGES, SAMPLER, rank, num_processes
        ):
            found |= {first + place: image for place, image in enumerate(batch["pixel_values"])}
    assert sorted(found) == list(range(count or 11))
    if count is None:
        assert all(torch.equal(found[number], item["pixel_values"]) for number, item in enumerate(IMAGES))


def test_statistics_of_draws_from_the_posteriors(tmp_path):
    """Of a mean that is 0 everywhere and a variance of e^2: 4 channels, 11 images of 4x4 positions."""
    vae = AutoencoderVAVAE(block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4, latent_channels=4).eval()
    torch.nn.init.zeros_(vae.quant_conv.weight)
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.tensor([0.0] * 4 + [2.0] * 4))
    statistics, others = (
        measure_latents(config(tmp_path, seed=seed), vae, IMAGES, SAMPLER, Accelerator(cpu=True)) for seed in (0, 1)
    )
    assert statistics.count == 11 * 16
    assert statistics.mean == pytest.approx([0.0] * 4, abs=4 * 2.718 * (11 * 16) ** -0.5)
    assert statistics.std == pytest.approx([2.718] * 4, rel=0.2)
    assert statistics.mean != others.mean
