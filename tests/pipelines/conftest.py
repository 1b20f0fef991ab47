"""Tiny real components with random, non-zero weights (a freshly initialised transformer is zero everywhere)."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel

ID2LABEL = {0: "tench, Tinca tinca", 1: "golden retriever", 2: "crane", 3: "Cardigan, Welsh corgi", 4: "crane"}


def redraw(model: torch.nn.Module, std: float = 0.15) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = std * torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith(".weight")
            parameter.copy_(1 + values if is_norm else values)
    return model.eval()


@pytest.fixture
def make_transformer():
    def make(**changes) -> LightningDiTTransformer2DModel:
        config = {"sample_size": 4, "in_channels": 4, "num_layers": 2, "num_attention_heads": 2}
        config |= {"attention_head_dim": 8, "num_classes": 5}
        return redraw(LightningDiTTransformer2DModel(**config | changes))

    return make


@pytest.fixture
def make_vae():
    def make(**changes) -> AutoencoderVAVAE:
        config = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
        config |= {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}
        return redraw(AutoencoderVAVAE(**config | changes))

    return make


@pytest.fixture
def make_pipeline(make_transformer, make_vae):
    def make(**components) -> LightningDiTPipeline:
        defaults = {
            "transformer": make_transformer,
            "vae": make_vae,
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "id2label": lambda: ID2LABEL,
        }
        for name, default in defaults.items():
            if name not in components:
                components[name] = default()
        pipe = LightningDiTPipeline(**components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline()
