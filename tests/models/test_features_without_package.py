"""The features of the transformer's file as remote code, and those that only the package adds (see docs/hub.md)."""

import json
import os
import subprocess
import sys

import pytest
import torch

from diffusers_lightningdit import LightningDiTTransformer2DModel

NUM_LAYERS, NUM_CALLS = 3, 4

LOAD = """
import torch
from diffusers import (
    AutoModel, FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
)
from diffusers.hooks import LayerSkipConfig, apply_layer_skip

model = AutoModel.from_pretrained("transformer", trust_remote_code=True).eval()
assert origin(model) == "diffusers_modules"
inputs = torch.ones(2, 4, 4, 4), torch.tensor(0.5), torch.tensor([0, 1])
"""
REGISTER = """
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

block = type(model.transformer_blocks[0])
TransformerBlockRegistry.register(block, TransformerBlockMetadata(return_hidden_states_index=0))
"""
# `result` is how often the last block's attention was computed
COUNT = f"""
calls = []
model.transformer_blocks[-1].attn.to_q.register_forward_hook(lambda *_: calls.append(1))
with torch.no_grad():
    for _ in range({NUM_CALLS}):
        with model.cache_context("cond"):
            model(*inputs)
result = len(calls)
"""
CACHES = {
    "FirstBlockCache": "FirstBlockCacheConfig(threshold=10.0)",
    "MagCache": f"MagCacheConfig(num_inference_steps={NUM_CALLS}, mag_ratios=[1.0] * {NUM_CALLS}, retention_ratio=0.2)",
    "TaylorSeer": "TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1)",
    "PyramidAttentionBroadcast": (
        "PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500)"
    ),
}
LORA = """
from peft import LoraConfig

with torch.no_grad():
    before = model(*inputs).sample
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "to_out.0"], init_lora_weights=False))
    adapted = model(*inputs).sample
    model.disable_adapters()
    disabled = model(*inputs).sample
    result = [torch.allclose(adapted, before, atol=1e-2), torch.allclose(disabled, before, atol=1e-5)]
"""
COMPILE = """
with torch.no_grad():
    before = model(*inputs).sample
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    result = [model.transformer_blocks[0]._compiled_call_impl is not None, torch.equal(model(*inputs).sample, before)]
"""
BLOCKS = {
    "no cache": LOAD + COUNT,
    **{name: f"{LOAD}model.enable_cache({config}){COUNT}" for name, config in CACHES.items()},
    "LoRA": f"{LOAD}{LORA}",
    "compiled": f"{LOAD}{COMPILE}",
    "layer skip": f"{LOAD}apply_layer_skip(model, LayerSkipConfig(indices=[{NUM_LAYERS - 1}])){COUNT}",
    "from_single_file": f"{LOAD}type(model).from_single_file('original.pt')",
    # last: the registration is for the whole process
    **{
        f"{name}, registered": f"{LOAD}{REGISTER}model.enable_cache({CACHES[name]}){COUNT}"
        for name in ("FirstBlockCache", "MagCache")
    },
    "layer skip, registered": (
        f"{LOAD}{REGISTER}apply_layer_skip(model, LayerSkipConfig(indices=[{NUM_LAYERS - 1}])){COUNT}"
    ),
}


@pytest.fixture(scope="module")
def outcomes(repository, tmp_path_factory) -> dict[str, dict]:
    """Run each of BLOCKS in a process that cannot import the package, and return its outcome."""
    folder = tmp_path_factory.mktemp("without_package")
    torch.manual_seed(0)
    model = LightningDiTTransformer2DModel(
        sample_size=4,
        in_channels=4,
        num_layers=NUM_LAYERS,
        num_attention_heads=2,
        attention_head_dim=8,
        num_classes=3,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.register_to_config(auto_map={"AutoModel": "transformer_lightningdit.LightningDiTTransformer2DModel"})
    model.save_pretrained(folder / "transformer")
    torch.save({"model": {}}, folder / "original.pt")
    process = subprocess.run(
        [sys.executable, repository / "tests" / "hub" / "run_blocks.py", "--without-package"],
        input=json.dumps(BLOCKS),
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules")},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


@pytest.mark.parametrize("name", ["TaylorSeer", "PyramidAttentionBroadcast"])
def test_caches_of_the_attention_take_effect(outcomes, name):
    assert outcomes["no cache"] == {"result": NUM_CALLS}
    assert 0 < outcomes[name]["result"] < NUM_CALLS


def test_lora_takes_effect(outcomes):
    assert outcomes["LoRA"] == {"result": [False, True]}


def test_blocks_compile_in_one_graph(outcomes):
    assert outcomes["compiled"] == {"result": [True, True]}


@pytest.mark.parametrize("name", ["FirstBlockCache", "MagCache", "layer skip"])
def test_what_skips_blocks_asks_for_their_registration(outcomes, name):
    """A model file cannot register them: the registry of diffusers is private, and only registration.py uses it."""
    assert "LightningDiTTransformerBlock'> not registered" in outcomes[name]["error"]
    assert outcomes[f"{name}, registered"]["result"] < NUM_CALLS


def test_original_checkpoints_need_the_package(outcomes):
    assert "FromOriginalModelMixin is currently only compatible with" in outcomes["from_single_file"]["error"]
