"""Files that lack weights are refused alike by every model of the package."""

import re

import pytest
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel
from diffusers_lightningdit.losses import FoundationProjection, PatchGANDiscriminator

TRANSFORMER = {"sample_size": 4, "in_channels": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
MODELS = {
    LightningDiTTransformer2DModel: TRANSFORMER,
    AutoencoderVAVAE: {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4},
    FoundationProjection: {"latent_channels": 4, "feature_channels": 6},
    PatchGANDiscriminator: {"base_channels": 4, "num_layers": 1},
}
FILE = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_missing_weights(cls, tmp_path):
    cls(**MODELS[cls]).save_pretrained(tmp_path)
    loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is cls and info["missing_keys"] == []
    assert type(cls.from_pretrained(tmp_path)) is cls

    weights = load_file(tmp_path / FILE)
    missing = min(name for name in weights if name.endswith("weight"))
    del weights[missing]
    save_file(weights, tmp_path / FILE)
    message = f"The weights in {tmp_path} lack 1 tensors of {cls.__name__}, first `{missing}`; required: all. "
    message += "A file is damaged, or config.json is another model's."
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        cls.from_pretrained(tmp_path)
