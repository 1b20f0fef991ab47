"""Models are read from folders with exactly the weights that their configs ask for."""

import pytest
import torch
from safetensors.torch import save_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.original.model_folder import load_model_folder


def test_model_folder_is_read_strictly(tmp_path):
    def load():
        return load_model_folder(AutoencoderVAVAE, tmp_path, ("AutoencoderVAVAE",))

    model = AutoencoderVAVAE(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    model.to(torch.float16).save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    assert load().dtype == torch.float16  # as stored
    state = {key: value.clone() for key, value in load().state_dict().items()}

    for changed, message in (
        ({k: v for k, v in state.items() if k != "quant_conv.bias"}, "lack 1 tensors .*`quant_conv.bias`"),
        (state | {"extra": torch.zeros(1).half()}, "key `extra` is unexpected"),
        (state | {"quant_conv.bias": torch.zeros(8)}, "has type F"),
        (state | {"quant_conv.bias": torch.zeros(9).half()}, "quant_conv.bias"),
    ):
        save_file(changed, weights)
        with pytest.raises(ValueError, match=message) as error:
            load()
        assert "\n" not in str(error.value)
    weights.write_bytes(b"123")
    with pytest.raises(ValueError, match="is damaged"):
        load()
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="holds a UNet2DModel; required: AutoencoderVAVAE"):
        load()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is missing or no JSON file"):
        load()
