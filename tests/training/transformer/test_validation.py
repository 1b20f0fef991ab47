import pytest
import torch
from accelerate import Accelerator

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.training.transformer.data import TransformerData
from diffusers_lightningdit.training.transformer.validation import VALIDATION_TIMES, validation_losses


class Latents:
    latents = torch.randn(8, 4, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"latents": self.latents[index], "class_labels": index % 3}


@pytest.fixture
def vae():
    vae = AutoencoderVAVAE(block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4, latent_channels=4)
    vae.set_latents_statistics([0.0] * 4, [1.0] * 4)
    return vae


def test_losses_at_fixed_times_are_the_same_in_any_batches(vae):
    model = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_classes=3
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    data = TransformerData(Latents(), 4, 3, None)
    results = [
        validation_losses(model.eval(), data, vae, 8, batch_size, 0, Accelerator(cpu=True)) for batch_size in (8, 3)
    ]
    assert results[0].keys() == {"validation_loss", *(f"validation_loss/t={time}" for time in VALIDATION_TIMES)}
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[0]["validation_loss"] == pytest.approx(sum(list(results[0].values())[1:]) / 9)


def test_a_network_that_says_nothing_has_the_loss_of_the_target(vae):
    model = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_classes=3
    )  # its output begins at zero
    losses = validation_losses(model, TransformerData(Latents(), 4, 3, None), vae, 8, 8, 0, Accelerator(cpu=True))
    assert len(set(losses.values())) == 1
    assert losses["validation_loss"] == pytest.approx(2, abs=0.3)  # variance of data plus that of noise
