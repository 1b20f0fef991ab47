import json

import pytest
import torch
from torch.utils.data import DataLoader

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.data.latents import (
    LatentsStatistics,
    MomentsDataset,
    encode_moments,
    latents_size,
    load_frozen_vae,
)


def tiny_vae(**arguments):
    return AutoencoderVAVAE(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=8, **arguments
    ).eval()


def test_statistics_are_those_of_all_latents_at_once():
    latents = torch.randn(10, 3, 4, 5, dtype=torch.float64) * torch.tensor([0.1, 1.0, 7.0]).view(1, 3, 1, 1)
    statistics = LatentsStatistics(3)
    for batch in latents.split([1, 4, 2, 3]):
        statistics.update(batch)
    values = latents.transpose(0, 1).flatten(1)
    assert statistics.count == 200
    assert statistics.mean == pytest.approx(values.mean(1).tolist(), abs=1e-12)
    assert statistics.std == pytest.approx(values.std(1).tolist(), rel=1e-12)


def test_statistics_survive_a_mean_far_from_zero():
    latents = 1e4 + torch.randn(64, 1, 8, 8, dtype=torch.float64)
    statistics = LatentsStatistics(1)
    for batch in latents.split(16):
        statistics.update(batch)
    assert statistics.std == pytest.approx([latents.std().item()], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_have_the_same_bits_in_any_order(dtype):
    latents = (torch.randn(30, 3, 5, 4) * torch.tensor([1e-3, 1.0, 300.0]).view(1, 3, 1, 1)).to(dtype)
    at_once, shuffled = LatentsStatistics(3), LatentsStatistics(3)
    at_once.update(latents)
    for part in latents[torch.randperm(30)].split([7, 1, 22]):
        other = LatentsStatistics(3)
        other.update(part)
        shuffled.merge(json.loads(json.dumps(other.state_dict())))
    assert shuffled.mean == at_once.mean
    assert shuffled.std == at_once.std
    assert at_once.std == pytest.approx(latents.double().transpose(0, 1).flatten(1).std(1).tolist(), rel=1e-12)


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "NaN"), (-float("inf"), "the value -inf"), (7e4, "70000")])
def test_statistics_refuse_what_is_no_latent(value, shown):
    statistics = LatentsStatistics(1)
    with pytest.raises(ValueError, match=f"latents hold .*{shown}; required: finite values below 65536"):
        statistics.update(torch.tensor([0.0, value]).view(2, 1, 1, 1))
    assert statistics.count == 0


def test_statistics_are_the_originals(golden):
    from safetensors.torch import load_file

    folder = golden("latent_dataset/imagenet_train_64")
    expected = torch.load(folder / "latents_stats.pt", weights_only=True)
    statistics = LatentsStatistics(expected["mean"].numel())
    for shard in sorted(folder.glob("*.safetensors")):
        statistics.update(load_file(shard)["latents"])
    assert statistics.mean == pytest.approx(expected["mean"].flatten().tolist(), abs=1e-5)
    assert statistics.std == pytest.approx(expected["std"].flatten().tolist(), rel=1e-5)


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
    with pytest.raises(ValueError, match="a LightningDiTTransformer2DModel; required: an AutoencoderVAVAE"):
        load_frozen_vae(str(tmp_path / "transformer"))


def test_latents_size():
    assert latents_size(12, tiny_vae()) == 6
    with pytest.raises(ValueError, match="`resolution` is 9; required: a multiple of the VAE's factor, 2"):
        latents_size(9, tiny_vae())
