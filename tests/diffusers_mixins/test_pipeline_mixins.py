"""diffusers' test mixins for pipelines, run on `LightningDiTPipeline`."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers_source import pipelines

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel


class PipelineConfig(pipelines.BasePipelineTesterConfig):
    pipeline_class = LightningDiTPipeline
    required_input_params_in_call_signature = frozenset({"class_labels", "guidance_scale", "height", "width"})
    batch_input_params = frozenset({"class_labels"})
    callback_cfg_params = frozenset()
    output_shape = (3, 16, 16)

    def get_dummy_components(self, num_layers: int = 2):
        torch.manual_seed(0)
        return {
            "transformer": LightningDiTTransformer2DModel(
                sample_size=8,
                in_channels=4,
                num_layers=num_layers,
                num_attention_heads=2,
                attention_head_dim=8,
                num_classes=5,
            ).eval(),
            "vae": AutoencoderVAVAE(
                block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
            ).eval(),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
        }

    def get_dummy_inputs(self, device: str | None = None, seed: int = 0):
        """Some versions of the mixins pass a device; the generator is on the CPU all the same, as in the others."""
        return {
            "class_labels": 1,
            "generator": self.get_generator(seed),
            "num_inference_steps": 2,
            "guidance_scale": 5.0,
            "output_type": "pt",
        }


class TestPipeline(PipelineConfig, pipelines.PipelineTesterMixin):
    pass


class TestPipelineMemory(PipelineConfig, pipelines.MemoryTesterMixin):
    pass


class TestPipelineLora(PipelineConfig, pipelines.LoraTesterMixin):
    pass


class TestPipelineLoraMemory(PipelineConfig, pipelines.LoraMemoryTesterMixin):
    pass


class TestPipelinePyramidAttentionBroadcast(PipelineConfig, pipelines.PyramidAttentionBroadcastTesterMixin):
    pass


class TestPipelineFasterCache(PipelineConfig, pipelines.FasterCacheTesterMixin):
    pass


class TestPipelineFirstBlockCache(PipelineConfig, pipelines.FirstBlockCacheTesterMixin):
    pass


class TestPipelineTaylorSeer(PipelineConfig, pipelines.TaylorSeerCacheTesterMixin):
    pass


class TestPipelineMagCache(PipelineConfig, pipelines.MagCacheTesterMixin):
    pass
