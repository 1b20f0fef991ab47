"""The features that diffusers offers for its own models work on LightningDiTTransformer2DModel, tested by their effect.

The caches are in tests/pipelines/test_features_pipeline.py, since they live on a whole run.
"""

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch._dynamo
import yaml
from diffusers import FasterCacheConfig, LayerSkipConfig
from diffusers.hooks import HookRegistry, apply_layer_skip
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry, attention_backend
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.original import transformer_to_original

NUM_LAYERS = 4
TINY = {
    "sample_size": 4,
    "in_channels": 4,
    "num_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "mlp_ratio": 6.0,
    "num_classes": 5,
}


# An output layer after an earlier block, and a second time
MORE = {"internal_guidance_layer": 2, "second_time_embedding": True}


def tiny(**changes) -> LightningDiTTransformer2DModel:
    """A model whose output depends on everything: nothing is left at its zero initialisation."""
    torch.manual_seed(0)
    model = LightningDiTTransformer2DModel(**TINY | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.1)
    return model.eval()


def inputs(height: int = 4, width: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, height, width, generator=generator), torch.tensor([0.1, 0.9]), torch.tensor([0, 4])


def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    """Evaluate a model with `MORE`: [velocity, internal velocity]."""
    return list(model(*inputs(), return_dict=False, second_timestep=1.0, return_internal=True))


def count_calls(model: torch.nn.Module, pattern: str) -> Counter:
    """Count how often each module whose name matches is evaluated from now on."""
    calls = Counter()
    for name, module in model.named_modules():
        if re.fullmatch(pattern, name):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    return calls


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def needs(package: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed; it comes with the `test` extra")


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def math_backend_calls(monkeypatch):
    """Counts the calls of diffusers' `_native_math` backend; leaves the global choice of a backend as it was."""
    calls = []
    name = AttentionBackendName._NATIVE_MATH
    original = _AttentionBackendRegistry._backends[name]

    def spy(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, spy)
    active, _ = _AttentionBackendRegistry.get_active_backend()
    yield calls
    _AttentionBackendRegistry.set_active_backend(active)


@torch.no_grad()
def test_set_attention_backend(math_backend_calls):
    model = tiny()
    expected = model(*inputs()).sample
    model.set_attention_backend("_native_math")
    close(model(*inputs()).sample, expected)
    assert len(math_backend_calls) == NUM_LAYERS
    model.reset_attention_backend()
    with attention_backend("native"):
        model(*inputs())
    assert len(math_backend_calls) == NUM_LAYERS


@torch.no_grad()
def test_attention_backend_context_manager(math_backend_calls):
    model = tiny()
    expected = model(*inputs()).sample
    assert not math_backend_calls
    with attention_backend("_native_math"):
        close(model(*inputs()).sample, expected)
    assert len(math_backend_calls) == NUM_LAYERS


@torch.no_grad()
def test_attention_processors_can_be_replaced():
    """A processor of one's own takes over: here attention whose scores are the identity."""
    model = tiny()

    class IdentityScores:
        def __call__(self, attn, hidden_states, image_rotary_emb=None):
            return attn.to_out[0](attn.to_v(hidden_states))

    before = model(*inputs()).sample
    processors = model.attn_processors
    assert len(processors) == NUM_LAYERS
    model.set_attn_processor(IdentityScores())
    assert not torch.allclose(model(*inputs()).sample, before, atol=1e-2)
    model.set_attn_processor(processors)
    close(model(*inputs()).sample, before, 0)


@pytest.mark.parametrize("changes", [{}, {"use_qk_norm": True}])
@torch.no_grad()
def test_fused_qkv(changes):
    """Same numbers, one matrix product in place of three; undone without a trace."""
    model = tiny(**changes)
    expected, keys = model(*inputs()).sample, set(model.state_dict())
    model.fuse_qkv_projections()
    calls = count_calls(model, r".*\.attn\.to_[a-z]+")
    close(model(*inputs()).sample, expected)
    assert calls == {f"transformer_blocks.{i}.attn.to_qkv": 1 for i in range(NUM_LAYERS)}
    model.unfuse_qkv_projections()
    assert set(model.state_dict()) == keys
    close(model(*inputs()).sample, expected, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Skipping layers
# ---------------------------------------------------------------------------------------------------------------------


class ReturnInput(torch.nn.Module):
    def forward(self, hidden_states, *args):
        return hidden_states


def test_layer_skip():
    """Skipping equals a network in which the part returns what it was given."""
    for config, replaced in (
        (LayerSkipConfig(indices=[1]), {"": ReturnInput()}),
        (LayerSkipConfig(indices=[1], skip_ff=False), {"attn": ReturnInput()}),
        (LayerSkipConfig(indices=[1], skip_attention=False), {"ff": ReturnInput()}),
    ):
        model, reference = tiny(), tiny()
        plain = model(*inputs()).sample
        for name, module in replaced.items():
            reference.set_submodule(f"transformer_blocks.1.{name}".rstrip("."), module)
        apply_layer_skip(model, config)
        skipped = model(*inputs()).sample
        close(skipped, reference(*inputs()).sample, 0)
        assert not torch.allclose(skipped, plain, atol=1e-2)
        HookRegistry.check_if_exists_or_initialize(model).remove_hook("layer_skip_hook", recurse=True)
        close(model(*inputs()).sample, plain, 0)


@torch.no_grad()
def test_skipped_attention_scores():
    """The perturbation of PAG: every token attends to itself alone, so attention passes the values on."""
    model, reference = tiny(), tiny()

    class IdentityScores:
        def __call__(self, attn, hidden_states, image_rotary_emb=None):
            return attn.to_out[0](attn.to_v(hidden_states))

    reference.transformer_blocks[2].attn.set_processor(IdentityScores())
    apply_layer_skip(
        model, LayerSkipConfig(indices=[2], skip_attention=False, skip_attention_scores=True, skip_ff=False)
    )
    close(model(*inputs()).sample, reference(*inputs()).sample)
    assert not torch.allclose(model(*inputs()).sample, tiny()(*inputs()).sample, atol=1e-2)


def test_faster_cache_learns_the_names_of_the_model():
    """Its defaults are for video and text; a config of the user's is not changed."""
    config = FasterCacheConfig(current_timestep_callback=lambda: 500)
    model = tiny()
    model.enable_cache(config)
    assert model._cache_config.tensor_format == "BCHW"
    assert "class_labels" in model._cache_config._unconditional_conditional_input_kwargs_identifiers
    assert config.tensor_format == "BCFHW"
    model.disable_cache()
    assert not model.is_cache_enabled


# ---------------------------------------------------------------------------------------------------------------------
# Compilation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def graphs():
    """A compiler backend that keeps the graphs and runs them as they are; a recompilation is an error."""

    class Graphs(list):
        def __call__(self, graph, _):
            self.append(graph)
            return graph.forward

    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch.fx.experimental._config.patch(use_duck_shape=False),
    ):
        yield Graphs()
    torch._dynamo.reset()


@torch.no_grad()
def test_regional_compilation(graphs, regional_compilation):
    """All blocks share one graph without breaks."""
    model = tiny()
    expected = model(*inputs()).sample
    model.compile_repeated_blocks(fullgraph=True, backend=graphs)
    for _ in range(2):
        close(model(*inputs()).sample, expected)
    assert len(graphs) == 1


@torch.no_grad()
def test_compilation_of_the_whole_model(graphs):
    model = tiny()
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    for _ in range(2):
        close(compiled(*inputs()).sample, model(*inputs()).sample)
    assert len(graphs) == 1


@torch.no_grad()
def test_compilation_of_a_model_with_more(graphs):
    model = tiny(**MORE)
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    for _ in range(2):
        for value, expected in zip(outputs(compiled), outputs(model), strict=True):
            close(value, expected)
    assert len(graphs) == 1


@torch.no_grad()
def test_compilation_with_dynamic_sizes(graphs, dynamic_compilation):
    """One graph for all sizes but the trained one, whose position table is the stored one."""
    model = tiny()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for height, width in ((6, 6), (6, 8), (10, 8)):
        close(compiled(*inputs(height, width)).sample, model(*inputs(height, width)).sample)
    assert len(graphs) == 1


@torch.no_grad()
def test_compiled_code_gives_the_same_numbers():
    torch._dynamo.reset()
    model = tiny(num_layers=2)
    expected = model(*inputs()).sample
    model.compile_repeated_blocks(fullgraph=True)
    close(model(*inputs()).sample, expected, 1e-5)
    torch._dynamo.reset()


@torch.no_grad()
def test_export():
    names = ("hidden_states", "timestep", "class_labels")
    for changes, more in (({}, {}), (MORE, {"second_timestep": torch.ones(2), "return_internal": True})):
        model = tiny(num_layers=2, **changes)
        arguments = {**dict(zip(names, inputs(), strict=True)), **more}
        exported = torch.export.export(model, (), arguments).module()
        for value, expected in zip(exported(**arguments).values(), model(**arguments).values(), strict=True):
            close(value, expected)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_device_map_keeps_blocks_whole(tmp_path):
    """Blocks that do not fit are moved to the disk as a whole, and read again when they are needed."""
    model = tiny()
    expected = model(*inputs()).sample
    model.save_pretrained(tmp_path / "model")
    size = sum(parameter.nbytes for parameter in model.parameters())
    spread = LightningDiTTransformer2DModel.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": int(0.6 * size)}, offload_folder=tmp_path / "disk"
    )
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    assert all(re.fullmatch(r"[^.]+(\.\d+)?", name) for name in spread.hf_device_map)
    on_disk = [name for name, parameter in spread.named_parameters() if parameter.is_meta]
    assert any(name.startswith("transformer_blocks") for name in on_disk)
    close(spread(*inputs()).sample, expected, 0)
    assert [name for name, parameter in spread.named_parameters() if parameter.is_meta] == on_disk


@torch.no_grad()
def test_device_map_of_one_device(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = LightningDiTTransformer2DModel.from_pretrained(tmp_path, device_map="cpu")
    assert loaded.hf_device_map == {"": torch.device("cpu")} or loaded.hf_device_map == {"": "cpu"}
    close(loaded(*inputs()).sample, model(*inputs()).sample, 0)


@pytest.mark.parametrize(
    "settings", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
@torch.no_grad()
def test_group_offload(tmp_path, settings):
    """On the CPU the groups can only go to files; each call reads them, so a changed file changes the output."""
    model = tiny()
    expected = model(*inputs()).sample
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_to_disk_path=str(tmp_path), **settings)
    for _ in range(2):
        close(model(*inputs()).sample, expected, 0)
    files = list(tmp_path.glob("*.safetensors"))
    assert len(files) >= NUM_LAYERS
    for file in files:
        save_file({key: torch.zeros_like(value) for key, value in load_file(file).items()}, file)
    assert not torch.allclose(model(*inputs()).sample, expected, atol=1e-2)


@pytest.mark.gpu
@torch.no_grad()
def test_group_offload_to_the_cpu():
    model = tiny()
    expected = model(*inputs()).sample
    model.enable_group_offload(onload_device=torch.device("cuda"), offload_type="leaf_level", use_stream=True)
    output = model(*(value.cuda() for value in inputs())).sample
    close(output.cpu(), expected, 1e-3)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
@torch.no_grad()
def test_layerwise_casting(storage):
    """Weights are kept in the small type, but for norms, embeddings and the outputs; computing is in float32."""
    model = tiny(**MORE)
    expected = outputs(model)
    model.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    for _ in range(2):
        found = outputs(model)
    assert model.dtype == torch.float32  # what pipelines convert their latents to
    for output, before in zip(found, expected, strict=True):
        assert output.dtype == torch.float32
        assert 0 < (output - before).abs().max() < 0.3 * before.std()
    small = {name for name, parameter in model.named_parameters() if parameter.dtype == storage}
    projections = {
        f"{name}.{kind}"
        for name, module in model.transformer_blocks.named_modules(prefix="transformer_blocks")
        if isinstance(module, torch.nn.Linear)
        for kind in ("weight", "bias")
    }
    embedders = ("timestep_embedder", "second_timestep_embedder")
    assert small == projections | {
        f"{name}.linear_{i}.{kind}" for name in embedders for i in (1, 2) for kind in ("weight", "bias")
    }


@torch.no_grad()
def test_lora_on_the_internal_output_layer(tmp_path):
    model = tiny(**MORE)
    before = outputs(model)
    save_file(
        {
            "transformer.internal_proj_out.lora_A.weight": torch.ones(1, 32),
            "transformer.internal_proj_out.lora_B.weight": torch.ones(4, 1),
        },
        tmp_path / "lora.safetensors",
    )
    model.load_lora_adapter(tmp_path / "lora.safetensors")
    after = outputs(model)
    close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 0.1
    model.unload_lora()
    close(outputs(model)[1], before[1])


@pytest.mark.parametrize("changes", [{}, MORE])
def test_gradient_checkpointing(changes):
    """The same gradients from far fewer saved activations."""

    def train_step(model) -> int:
        num_saved = 0

        def pack(tensor):
            nonlocal num_saved
            num_saved += tensor.numel() * (tensor.dtype.is_floating_point and not tensor.is_leaf)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            predictions = outputs(model) if changes else [model(*inputs()).sample]
            loss = sum(prediction.pow(2).mean() for prediction in predictions)
        loss.backward()
        return num_saved

    plain, checkpointed = (tiny(class_dropout_prob=0.0, **changes).train() for _ in range(2))
    checkpointed.enable_gradient_checkpointing()
    assert train_step(checkpointed) < train_step(plain) / 5
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        close(other.grad, parameter.grad, 0)
        assert parameter.grad.abs().max() > 0, name


def test_ema_of_diffusers_keeps_the_class(tmp_path):
    model = tiny()
    ema = EMAModel(model.parameters(), decay=0.5, model_cls=type(model), model_config=model.config)
    with torch.no_grad():
        model.proj_out.bias += 1
    ema.step(model.parameters())
    ema.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, type(model))
    for shadow, again in zip(ema.shadow_params, loaded.shadow_params, strict=True):
        close(again, shadow, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_context_parallel(tmp_path):
    """Two processes, each with half the tokens, give exactly what one gives."""
    worker = Path(__file__).with_name("context_parallel_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, worker, str(rank), "2", tmp_path / "store", tmp_path / "results.pt"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-2000:]
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for changes, result in zip([{}, {"use_rope": False, "use_qk_norm": True}, MORE], results, strict=True):
        expected = outputs(tiny(**changes)) if changes == MORE else [tiny(**changes)(*inputs()).sample]
        for value, of_one in zip(result["outputs"], expected, strict=True):
            close(value, of_one)
        assert result["num_tokens"] == [8]  # of 16


# ---------------------------------------------------------------------------------------------------------------------
# Quantisation
# ---------------------------------------------------------------------------------------------------------------------


def check_quantised(model: LightningDiTTransformer2DModel) -> None:
    with torch.no_grad():
        expected, output = tiny()(*inputs()).sample, model(*inputs()).sample
    assert 0 < (output - expected).abs().max() < 0.2 * expected.std()


def test_quanto(tmp_path):
    needs("optimum-quanto")
    from diffusers import QuantoConfig
    from optimum.quanto import QLinear

    tiny().save_pretrained(tmp_path)
    model = LightningDiTTransformer2DModel.from_pretrained(
        tmp_path, quantization_config=QuantoConfig(weights_dtype="int8"), dtype=torch.float32
    )
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) > 7 * NUM_LAYERS
    assert all(isinstance(module, QLinear) for module in linear)
    assert model.transformer_blocks[0].attn.to_q.weight._data.dtype == torch.int8
    check_quantised(model)


def test_torchao(tmp_path):
    needs("torchao")
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig
    from torchao.utils import TorchAOBaseTensor

    tiny().save_pretrained(tmp_path)
    model = LightningDiTTransformer2DModel.from_pretrained(
        tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()), dtype=torch.float32
    )
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert all(isinstance(weight, TorchAOBaseTensor) for weight in weights)
    check_quantised(model)


def test_gguf(tmp_path):
    """A GGUF file holds the weights under our names, and not the architecture, which comes from `config`."""
    needs("gguf")
    import gguf
    from diffusers import GGUFQuantizationConfig

    original = tiny()
    original.save_config(tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "lightningdit")
    small = gguf.GGMLQuantizationType.Q8_0
    for name, value in original.state_dict().items():
        if name.startswith("transformer_blocks") and value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value.numpy(), small), raw_dtype=small)
        else:
            writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    model = LightningDiTTransformer2DModel.from_single_file(
        str(tmp_path / "model.gguf"),
        config=str(tmp_path),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )
    weights = [block.attn.to_q.weight for block in model.transformer_blocks]
    assert all(weight.dtype == torch.uint8 for weight in weights)
    check_quantised(model)


# ---------------------------------------------------------------------------------------------------------------------
# Single files of the original
# ---------------------------------------------------------------------------------------------------------------------


def same_weights(model: LightningDiTTransformer2DModel, expected: LightningDiTTransformer2DModel) -> None:
    assert model.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.fixture
def original() -> dict[str, torch.Tensor]:
    """A state dict as the original implementation saves it."""
    model = tiny()
    return transformer_to_original(dict(model.config), model.state_dict())


def test_from_single_file(original, tmp_path):
    """Every layout, without a word about the architecture."""
    other = {key: value if "rope" in key else value + 1 for key, value in original.items()}
    torch.save({"ema": original}, tmp_path / "published.pt")
    torch.save({"model": other, "ema": original, "opt": {}}, tmp_path / "training.pt")
    torch.save({f"module.{key}": value for key, value in original.items()}, tmp_path / "parallel.pt")
    save_file(original, tmp_path / "flat.safetensors")
    for name in ("published.pt", "training.pt", "parallel.pt", "flat.safetensors"):
        model = LightningDiTTransformer2DModel.from_single_file(str(tmp_path / name))
        same_weights(model, tiny())
        close(model(*inputs()).sample, tiny()(*inputs()).sample, 0)
        assert not model.training
    model = LightningDiTTransformer2DModel.from_single_file(
        str(tmp_path / "training.pt"), weights="model", dtype=torch.bfloat16
    )
    expected = (tiny().proj_out.weight + 1).to(torch.bfloat16)
    assert torch.equal(model.proj_out.weight, expected)
    same_weights(LightningDiTTransformer2DModel.from_single_file(dict(original)), tiny())


def test_from_single_file_of_other_projects(original, tmp_path):
    """FACM's average and not the raw weights; a layer that no shape tells; 64 channels."""
    average = {f"ema_models.1.ema_model.{key}": value for key, value in original.items()}
    average |= {"ema_models.1.step": torch.tensor(3), "ema_models.1.initted": torch.tensor(True)}
    raw = {key: value if "rope" in key else value + 1 for key, value in original.items()}
    torch.save({"model": raw, "emas": average}, tmp_path / "facm.pt")
    torch.save({"ema": original, "_extracted_from": "PostHocEMA"}, tmp_path / "extracted.pt")
    for name in ("facm.pt", "extracted.pt"):
        same_weights(LightningDiTTransformer2DModel.from_single_file(str(tmp_path / name)), tiny())
    for changes, settings in ((MORE, {"internal_guidance_layer": 2}), ({"in_channels": 64, "use_qk_norm": True}, {})):
        model = tiny(**changes)
        content = {"ema": transformer_to_original(dict(model.config), model.state_dict())}
        loaded = LightningDiTTransformer2DModel.from_single_file(content, **settings)
        same_weights(loaded, model)
        assert loaded.config.internal_guidance_layer == model.config.internal_guidance_layer


def test_from_single_file_refuses_python_objects(original, tmp_path):
    torch.save({"ema": original, "args": argparse.Namespace(lr=1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: contains the Python object argparse\.Namespace; required: tens"):
        LightningDiTTransformer2DModel.from_single_file(str(tmp_path / "model.pt"))
    (tmp_path / "broken.pt").write_bytes(b"\xff" * 100)
    with pytest.raises(OSError, match=r"broken\.pt"):
        LightningDiTTransformer2DModel.from_single_file(str(tmp_path / "broken.pt"))


def test_from_single_file_with_a_config(original, tmp_path):
    save_file(original, tmp_path / "model.safetensors")
    model = tiny()
    model.save_config(tmp_path / "transformer")
    for place in ({"config": str(tmp_path / "transformer")}, {"config": str(tmp_path), "subfolder": "transformer"}):
        same_weights(
            LightningDiTTransformer2DModel.from_single_file(str(tmp_path / "model.safetensors"), **place), model
        )


def test_from_single_file_with_the_original_yaml(tmp_path):
    """Without RoPE and qk-norm nothing in the weights tells the number of heads."""
    model = tiny(use_rope=False)
    file = tmp_path / "model.pt"
    torch.save({"ema": transformer_to_original(dict(model.config), model.state_dict())}, file)
    with pytest.raises(ValueError, match="num_attention_heads"):
        LightningDiTTransformer2DModel.from_single_file(str(file))
    size = {"depth": NUM_LAYERS, "hidden_size": 32, "num_heads": 2}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"x_test_size": size}}))
    for settings in ({"original_config": str(tmp_path / "model.yaml")}, {"num_attention_heads": 2}):
        loaded = LightningDiTTransformer2DModel.from_single_file(str(file), **settings)
        same_weights(loaded, model)
        assert loaded.config.num_attention_heads == 2


def test_from_single_file_refuses_what_does_not_fit(original, tmp_path):
    def load(checkpoint, **changes):
        if changes:
            tiny(**changes).save_config(tmp_path)
            return LightningDiTTransformer2DModel.from_single_file(checkpoint, config=str(tmp_path))
        return LightningDiTTransformer2DModel.from_single_file(checkpoint)

    with pytest.raises(ValueError, match="is an autoencoder"):
        load({"encoder.conv_in.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"key `blocks.3.mlp.w3.bias` is missing"):
        load({key: value for key, value in original.items() if key != "blocks.3.mlp.w3.bias"})
    with pytest.raises(ValueError, match=r"`transformer_blocks.4.adaln.bias` has shape None in the file"):
        load(original, num_layers=5)
    with pytest.raises(ValueError, match=r"`transformer_blocks.3.adaln.bias` has shape \[192\] in the file"):
        load(original, num_layers=3)
    with pytest.raises(ValueError, match="use_rope=False; required: True"):
        load(original, use_rope=False)


def test_config_of_a_saved_folder_is_readable(tmp_path):
    """`from_config` of a saved config gives the same architecture; the file names the class."""
    model = tiny(use_qk_norm=True)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["_class_name"] == "LightningDiTTransformer2DModel"
    again = LightningDiTTransformer2DModel.from_config(LightningDiTTransformer2DModel.load_config(tmp_path))
    assert {key: value.shape for key, value in again.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
