"""diffusers' test mixins for models, run on `Change3DModel` of all tasks."""

import pytest
import torch
from diffusers_source import models, torch_device

from diffusers_lightningdit import Change3DModel

SIZE = {"sample_size": 32, "width_factor": 0.5, "depth_factor": 0.5}


class BinaryConfig(models.BaseModelTesterConfig):
    model_class = Change3DModel
    main_input_name = "image_before"
    output_shape = (1, 32, 32)

    def get_init_dict(self):
        return {"task": "binary", **SIZE}

    def get_dummy_inputs(self):
        generator = torch.Generator().manual_seed(0)
        before, after = torch.randn(2, 2, 3, 32, 32, generator=generator).to(torch_device)
        return {"image_before": before, "image_after": after}


class SemanticConfig(BinaryConfig):
    output_shape = (3, 32, 32)

    def get_init_dict(self):
        return {"task": "semantic", "num_classes": 3, **SIZE}


class DamageConfig(BinaryConfig):
    output_shape = (5, 32, 32)

    def get_init_dict(self):
        return {"task": "damage", "num_classes": 5, **SIZE}


class CaptioningConfig(BinaryConfig):
    output_shape = (6, 9)

    def get_init_dict(self):
        return {"task": "captioning", "vocab_size": 9, "dropout": 0.0, "num_attention_heads": 2, **SIZE}

    def get_dummy_inputs(self):
        words = torch.tensor([[7, 1, 2, 3, 8, 0], [7, 4, 8, 0, 0, 0]], device=torch_device)
        return {**super().get_dummy_inputs(), "captions": words}


class TestBinary(BinaryConfig, models.ModelTesterMixin):
    pass


class TestSemantic(SemanticConfig, models.ModelTesterMixin):
    pass


class TestDamage(DamageConfig, models.ModelTesterMixin):
    pass


class TestCaptioning(CaptioningConfig, models.ModelTesterMixin):
    pass


class TestBinaryTraining(BinaryConfig, models.TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"Change3DModel"})


class TestCaptioningTraining(CaptioningConfig, models.TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"Change3DModel"})


class TestBinaryMemory(BinaryConfig, models.MemoryTesterMixin):
    pass


class TestBinaryCompile(BinaryConfig, models.TorchCompileTesterMixin):
    @pytest.mark.skip("its blocks are of nine kinds, and not compiled alone")
    def test_torch_compile_repeated_blocks(self):
        pass
