import pytest
import torch
from torch.utils.data import DataLoader

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.data.latent_encoding import (
    MomentsDataset,
    encode_moments,
    latents_size,
    load_frozen_vae,
)


def tiny_vae(**arguments):
    return AutoencoderVAVAE(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=8, **arguments
    ).eval()


def test_moments_in_memory_are_those_of_each_image():
    vae, pixels = tiny_vae(), torch.randn(5, 3, 8, 8)
    items = [{"pixel_values": image, "class_labels": label} for label, image in enumerate(pixels)]
    dataset = MomentsDataset(vae, DataLoader(items, batch_size=2), show_progress=False)
    assert len(dataset) == 5
    assert dataset[3]["class_labels"] == 3
    torch.testing.assert_close(dataset[3]["moments"], encode_moments(vae, pixels[3:4])[0], atol=1e-5, rtol=1e-5)


def test_load_frozen_vae(tmp_path):
    tiny_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4).save_pretrained(tmp_path)
    vae = load_frozen_vae(str(tmp_path))
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    expected = AutoencoderVAVAE.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in vae.state_dict().items())
    vae.save_pretrained(tmp_path / "again")
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()


def test_load_frozen_vae_refuses_what_is_none(tmp_path):
    with pytest.raises(ValueError, match=r"`vae` is '/no/such/folder'; required: a folder or Hub id"):
        load_frozen_vae("/no/such/folder")
    tiny_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="without `latents_mean` in its config"):
        load_frozen_vae(str(tmp_path / "vae"))
    load_frozen_vae(str(tmp_path / "vae"), with_statistics=False)
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=1, num_attention_heads=1, attention_head_dim=8
    )
    transformer.save_pretrained(tmp_path / "transformer")
    with pytest.raises(
        ValueError, match="a LightningDiTTransformer2DModel; required: a folder or Hub id of an undamaged Auto"
    ):
        load_frozen_vae(str(tmp_path / "transformer"))


def test_latents_size():
    assert latents_size(12, tiny_vae()) == (6, 6) and latents_size((12, 8), tiny_vae()) == (6, 4)
    with pytest.raises(ValueError, match="`resolution` is 9; required: a multiple of the VAE's factor, 2"):
        latents_size(9, tiny_vae())
