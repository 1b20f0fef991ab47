"""diffusers' test mixins for models, run on `LightningDiTTransformer2DModel`."""

import torch
from diffusers_source import models, torch_device

from diffusers_lightningdit import LightningDiTTransformer2DModel


class TransformerConfig(models.BaseModelTesterConfig):
    model_class = LightningDiTTransformer2DModel
    main_input_name = "hidden_states"
    output_shape = (4, 8, 8)

    def get_init_dict(self):
        return {
            "sample_size": 8,
            "in_channels": 4,
            "num_layers": 4,  # enough to be split between devices
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_classes": 5,
            "class_dropout_prob": 0.0,  # without chance: some tests compare two passes in training mode
        }

    def get_dummy_inputs(self, height: int = 8, width: int = 8):
        generator = torch.Generator().manual_seed(0)
        return {
            "hidden_states": torch.randn(2, 4, height, width, generator=generator).to(torch_device),
            "timestep": torch.tensor([0.25, 0.75], device=torch_device),
            "class_labels": torch.tensor([1, 4], device=torch_device),
        }


class TestTransformer(TransformerConfig, models.ModelTesterMixin):
    pass


class TestTransformerTraining(TransformerConfig, models.TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"LightningDiTTransformer2DModel"})


class TestTransformerAttention(TransformerConfig, models.AttentionTesterMixin):
    pass


class TestTransformerAttentionBackends(TransformerConfig, models.AttentionBackendTesterMixin):
    pass


class TestTransformerMemory(TransformerConfig, models.MemoryTesterMixin):
    pass


class TestTransformerCompile(TransformerConfig, models.TorchCompileTesterMixin):
    # not the trained 8x8, whose position table is the stored one: a graph of its own
    different_shapes_for_compilation = [(4, 4), (4, 6), (6, 10)]


class TestTransformerLora(TransformerConfig, models.LoraTesterMixin):
    pass


class TestTransformerLoraHotswap(TransformerConfig, models.LoraHotSwappingForModelTesterMixin):
    pass


class TestTransformerLokr(TransformerConfig, models.LoKrTesterMixin):
    pass


class TestTransformerPyramidAttentionBroadcast(TransformerConfig, models.PyramidAttentionBroadcastTesterMixin):
    pass


class TestTransformerFirstBlockCache(TransformerConfig, models.FirstBlockCacheTesterMixin):
    pass


class TestTransformerFasterCache(TransformerConfig, models.FasterCacheTesterMixin):
    pass


class TestTransformerMagCache(TransformerConfig, models.MagCacheTesterMixin):
    pass


class TestTransformerTaylorSeer(TransformerConfig, models.TaylorSeerCacheTesterMixin):
    pass
