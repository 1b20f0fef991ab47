"""Guards each use of diffusers' private registries: a diffusers that moves one of them fails here, by name."""

import logging
import subprocess
import sys

import diffusers
import pytest
import torch
from diffusers.hooks._helpers import AttentionProcessorRegistry, TransformerBlockRegistry
from diffusers.loaders import single_file_model
from diffusers.pipelines import pipeline_loading_utils

import diffusers_lightningdit
from diffusers_lightningdit.losses import PatchGANDiscriminator
from diffusers_lightningdit.models.transformer_lightningdit import (
    LightningDiTAttnProcessor,
    LightningDiTTransformerBlock,
)
from diffusers_lightningdit.registration import register_with_diffusers

PUBLIC_CLASSES = [
    *("Change3DModel", "FlowMatchAdamsBashforthScheduler"),
    *("AutoencoderVAVAE", "FlowMatchSDEScheduler", "FlowMatchUCGMScheduler", "InternalGuidance", "IntervalGuidance"),
    *("LightningDiTPipeline", "LightningDiTTransformer2DModel"),
]


@pytest.mark.parametrize("name", PUBLIC_CLASSES)
def test_public_classes_are_attributes_of_diffusers(name):
    assert getattr(diffusers, name) is getattr(diffusers_lightningdit, name)


@pytest.mark.parametrize("name", diffusers_lightningdit.pipelines.__all__)
def test_pipelines_are_attributes_of_diffusers(name):
    assert getattr(diffusers, name) is getattr(diffusers_lightningdit.pipelines, name)


def test_the_package_is_a_loadable_library():
    methods = pipeline_loading_utils.LOADABLE_CLASSES["diffusers_lightningdit"]
    assert set(methods) == {"ModelMixin", "SchedulerMixin", "BaseGuidance"}
    for base, names in methods.items():
        assert names == pipeline_loading_utils.LOADABLE_CLASSES["diffusers"][base]
    # diffusers looks the key up in the package's own namespace
    assert issubclass(diffusers_lightningdit.LightningDiTTransformer2DModel, diffusers_lightningdit.ModelMixin)
    assert issubclass(diffusers_lightningdit.FlowMatchSDEScheduler, diffusers_lightningdit.SchedulerMixin)
    assert issubclass(diffusers_lightningdit.InternalGuidance, diffusers_lightningdit.BaseGuidance)


def test_repositories_that_carry_the_code_use_the_installed_package():
    assert diffusers.pipelines.diffusers_lightningdit is diffusers_lightningdit


def test_caches_know_the_blocks():
    metadata = TransformerBlockRegistry.get(LightningDiTTransformerBlock)
    assert metadata.return_hidden_states_index == 0


def test_first_block_cache_takes_effect():
    """The registration's purpose: with the cache on, later blocks are skipped when the first one hardly changes."""
    from diffusers import FirstBlockCacheConfig

    model = diffusers_lightningdit.LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=3, num_attention_heads=2, attention_head_dim=8, num_classes=3
    ).eval()
    calls = []
    model.transformer_blocks[2].attn.register_forward_hook(lambda *_: calls.append(1))
    model.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    latents, labels = torch.randn(1, 4, 4, 4), torch.tensor([1])
    with torch.no_grad():
        for t in (0.1, 0.2, 0.3):
            with model.cache_context("cond"):
                model(latents, t, labels)
    assert len(calls) == 1


def test_layer_skipping_knows_the_attention():
    """What a skipped attention returns: the hidden states it was given, by position or by name."""
    skip = AttentionProcessorRegistry.get(LightningDiTAttnProcessor).skip_processor_output_fn
    assert skip(None, 1, 2) == skip(None, hidden_states=1) == 1


def test_single_files_are_read_by_our_functions():
    """Ours come first, since AutoencoderVAVAE is also an AutoencoderKL; diffusers' own are all still there."""
    classes = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
    assert list(classes)[:3] == ["LightningDiTTransformer2DModel", "AutoencoderVAVAE", "Change3DModel"]
    assert {"AutoencoderKL", "UNet2DConditionModel", "FluxTransformer2DModel"} < set(classes)
    for name in list(classes)[:3]:
        assert set(classes["AutoencoderKL"]) == set(classes[name])
        chosen = single_file_model._get_single_file_loadable_mapping_class(getattr(diffusers_lightningdit, name))
        assert chosen == name


@pytest.fixture
def warnings_of_diffusers(caplog):
    logger = logging.getLogger("diffusers")  # does not propagate to the root, where caplog listens
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def make_transformer(cls=diffusers_lightningdit.LightningDiTTransformer2DModel):
    config = {"sample_size": 4, "in_channels": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}
    return cls(**config, num_classes=3)


def test_casting_prints_no_empty_warning(warnings_of_diffusers):
    vae = diffusers_lightningdit.AutoencoderVAVAE(
        block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4
    )
    pipe = diffusers_lightningdit.LightningDiTPipeline(
        make_transformer(), vae, diffusers_lightningdit.FlowMatchSDEScheduler()
    )
    pipe.to(dtype=torch.bfloat16)
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.bfloat16)
    PatchGANDiscriminator(base_channels=4, num_layers=1).to(torch.float16)
    assert not warnings_of_diffusers.records


def test_casting_still_warns_of_modules_that_are_named(warnings_of_diffusers):
    class InFloat32(diffusers_lightningdit.LightningDiTTransformer2DModel):
        _keep_in_fp32_modules = ["proj_out"]

    make_transformer(InFloat32).to(torch.bfloat16)
    assert "should be kept in float32: ['proj_out']" in warnings_of_diffusers.text


def test_registering_again_changes_nothing():
    def registries():
        filters = list(logging.getLogger("diffusers.models.modeling_utils").filters)
        classes = list(single_file_model.SINGLE_FILE_LOADABLE_CLASSES)
        return dict(pipeline_loading_utils.LOADABLE_CLASSES), classes, filters

    before = registries()
    register_with_diffusers()
    assert before == registries()


def test_private_names_of_diffusers_are_used_in_one_module(repository):
    private = ("LOADABLE_CLASSES", "hooks._helpers", "TransformerBlockRegistry", "AttentionProcessorRegistry")
    private += ("single_file_model", "diffusers.pipelines,")
    sources = [*(repository / "src").rglob("*.py"), *(repository / "pipelines").glob("*.py")]
    users = {path.name for path in sources if any(name in path.read_text(encoding="utf-8") for name in private)}
    assert users == {"registration.py"}


def test_import_is_quiet_and_touches_nothing():
    """No download, no output, no change of torch's global state on import."""
    code = (
        "import torch; before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed());"
        "import diffusers_lightningdit;"
        "assert before == (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == ""
