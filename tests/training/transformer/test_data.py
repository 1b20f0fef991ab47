import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data.global_batches import EpochIndex
from diffusers_lightningdit.keyed_random import KeyedRandom, is_flipped
from diffusers_lightningdit.training.transformer.data import RandomlyFlipped, normalized_latents


class Images:
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"pixel_values": torch.arange(6.0).view(1, 2, 3) + index}


def test_flips_depend_on_seed_epoch_and_index():
    images = Images()
    flipped = RandomlyFlipped(images, seed=3)
    assert len(flipped) == 20
    for epoch in range(3):
        for number in range(20):
            pixels = flipped[EpochIndex(number, epoch)]["pixel_values"]
            expected = images[number]["pixel_values"]
            assert torch.equal(pixels, expected.flip(-1) if is_flipped(3, epoch, number) else expected)


def test_latents_of_every_kind_are_normalised():
    vae = AutoencoderVAVAE(
        block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=8
    ).eval()
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 0.5, 4.0]
    vae.set_latents_statistics(mean, std)
    draws = KeyedRandom(0, 7, range(2, 4))
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        posterior: DiagonalGaussianDistribution = vae.encode(pixels).latent_dist
    sampled = posterior.mean + posterior.std * draws.normal("posterior", (4, 4, 4))
    expected = (sampled - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
    for batch in ({"pixel_values": pixels}, {"moments": posterior.parameters}, {"latents": sampled}):
        torch.testing.assert_close(normalized_latents(batch, vae, draws), expected, atol=1e-6, rtol=1e-5)
