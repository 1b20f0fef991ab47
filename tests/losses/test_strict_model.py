import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.losses import FoundationProjection, PatchGANDiscriminator


@pytest.mark.parametrize(
    "model", [FoundationProjection(4, 6, reverse=False), PatchGANDiscriminator(base_channels=4, num_layers=1)]
)
def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == []
    assert all(loaded.config[name] == value for name, value in model.config.items() if not name.startswith("_"))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_missing_weights_are_an_error(tmp_path):
    FoundationProjection(4, 6, reverse=False).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["proj.bias"]
    save_file(weights, file)
    with pytest.raises(OSError, match=r"lack 1 tensors of FoundationProjection, first `proj\.bias`; required: all"):
        FoundationProjection.from_pretrained(tmp_path)


def test_weights_of_the_folder_above_are_not_taken(tmp_path):
    AutoencoderVAVAE(block_out_channels=(32, 32), layers_per_block=1, latent_channels=4).save_pretrained(tmp_path)
    FoundationProjection(4, 6).save_pretrained(tmp_path / "projection")
    with pytest.raises(OSError, match=r"lack 1 tensors of FoundationProjection, first `proj\.weight`"):
        FoundationProjection.from_pretrained(tmp_path, subfolder="projection")
