"""A tiny pipeline whose classes have names."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel


@pytest.fixture
def pipe() -> LightningDiTPipeline:
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_classes=3
    )
    for parameter in transformer.parameters():  # a new one is zero everywhere
        torch.nn.init.normal_(parameter, std=0.2)
    vae = AutoencoderVAVAE(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    names = {0: "cat, kitty", 1: "crane", 2: "crane"}
    return LightningDiTPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(), names)
