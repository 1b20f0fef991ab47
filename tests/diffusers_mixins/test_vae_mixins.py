"""diffusers' test mixins for models and autoencoders, run on `AutoencoderVAVAE`."""

import pytest
import torch
from diffusers_source import autoencoders, models, torch_device

from diffusers_lightningdit import AutoencoderVAVAE


class AutoencoderConfig(models.BaseModelTesterConfig):
    model_class = AutoencoderVAVAE
    main_input_name = "sample"
    output_shape = (3, 16, 16)

    def get_init_dict(self):
        return {
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "latents_mean": [0.1, -0.2, 0.3, 0.0],
            "latents_std": [1.0, 2.0, 0.5, 1.5],
        }

    def get_dummy_inputs(self):
        generator = torch.Generator().manual_seed(0)
        return {"sample": torch.randn(2, 3, 16, 16, generator=generator).to(torch_device)}


class TestAutoencoder(AutoencoderConfig, models.ModelTesterMixin):
    @pytest.mark.skip("diffusers skips it for AutoencoderKL: `encode` and `decode` forget the device of their input")
    def test_model_parallelism(self):
        pass


class TestAutoencoderTraining(AutoencoderConfig, models.TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"Encoder", "Decoder", "UNetMidBlock2D"})


class TestAutoencoderAttention(AutoencoderConfig, models.AttentionTesterMixin):
    pass


class TestAutoencoderMemory(AutoencoderConfig, models.MemoryTesterMixin):
    pass


class TestAutoencoderCompile(AutoencoderConfig, models.TorchCompileTesterMixin):
    @pytest.mark.skip("AutoencoderKL, whose network this is, names no repeated blocks")
    def test_torch_compile_repeated_blocks(self):
        pass


class TestAutoencoderLora(AutoencoderConfig, models.LoraTesterMixin):
    pass


class TestAutoencoderSlicingTiling(AutoencoderConfig, autoencoders.AutoencoderTesterMixin):
    pass
