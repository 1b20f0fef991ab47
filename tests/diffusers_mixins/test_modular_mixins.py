"""diffusers' test mixin for modular pipelines, run on the blocks in a repository with their code.

Its mixins for loading and for workflows save and load without `trust_remote_code`, which suits classes of diffusers
only; tests/hub/test_pushed_repositories.py loads such repositories.
"""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers_source import VERSION

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.hub.modular import modular_card, write_modular_repository
from diffusers_lightningdit.pipelines.modular_lightningdit import LightningDiTBlocks

modular = pytest.importorskip(
    "tests.modular_pipelines.testing_utils", reason=f"diffusers {VERSION} has no such mixins for modular pipelines"
)


@pytest.fixture(scope="class", autouse=True)
def repository(request, nonzero_weights, tmp_path_factory) -> None:
    """Each class of tests gets a repository of its own."""
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "num_classes": 5}
    pipeline = LightningDiTPipeline(
        LightningDiTTransformer2DModel(sample_size=8, in_channels=4, **sizes),
        AutoencoderVAVAE(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4),
        FlowMatchEulerDiscreteScheduler(),
    )
    folder = str(tmp_path_factory.mktemp("modular") / "repository")
    write_modular_repository(folder, pipeline, folder, modular_card(pipeline, "user/repository"))
    request.cls.pretrained_model_name_or_path = folder


class ModularConfig(modular.BaseModularPipelineTesterConfig):
    pipeline_blocks_class = LightningDiTBlocks
    params = frozenset({"class_labels", "height", "width", "generator"})
    batch_params = frozenset({"class_labels"})
    pretrained_model_name_or_path = None  # that of `repository`

    def get_pipeline(self, components_manager=None, dtype=torch.float32):
        """As the mixin's, but for the code of the models, which lies in the repository."""
        blocks = self.pipeline_blocks_class()
        pipeline = blocks.init_pipeline(self.pretrained_model_name_or_path, components_manager=components_manager)
        pipeline.load_components(dtype=dtype, trust_remote_code=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def get_dummy_inputs(self, seed: int = 0):
        return {
            "class_labels": 1,
            "generator": self.get_generator(seed),
            "num_inference_steps": 2,
            "output_type": "pt",
        }


class TestModular(ModularConfig, modular.ModularPipelineTesterMixin):
    pass
