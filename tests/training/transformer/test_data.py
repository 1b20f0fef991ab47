import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.keyed_random import KeyedRandom
from diffusers_lightningdit.training.transformer.data import normalized_latents


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
