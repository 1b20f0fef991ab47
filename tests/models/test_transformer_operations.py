"""How many operations the transformer launches: what a call costs where arithmetic is nothing, on any machine."""

import copy

import pytest
import torch
import torch._dynamo.testing
from accelerate.utils import is_torch_version
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lightningdit import LightningDiTTransformer2DModel

TINY = {
    "sample_size": 4,
    "in_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_classes": 5,
    "norm_type": "layer_norm",  # one operation; the other norm is several on a CPU
}


def tiny(num_layers: int = 2, **changes) -> LightningDiTTransformer2DModel:
    torch.manual_seed(0)
    model = LightningDiTTransformer2DModel(**TINY | {"num_layers": num_layers} | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def inputs(batch_size: int = 2, side: int = 4):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch_size, 4, side, side, generator=generator)
    return latents, torch.linspace(0.1, 0.9, batch_size), torch.arange(batch_size) % 5


class Operations(TorchDispatchMode):
    """Lists the operations that compute something: views are none."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not any(value.alias_info is not None for value in function._schema.returns):
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def operations(model: LightningDiTTransformer2DModel, *arguments) -> list[str]:
    with torch.no_grad(), Operations() as found:
        model(*arguments)
    return found.names


def nodes(model: LightningDiTTransformer2DModel) -> int:
    """The number of nodes of the graph of the backward pass, without those that collect gradients."""
    found, waiting = set(), [model(*inputs()).sample.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and "AccumulateGrad" not in node.name():
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return len(found)


def of_a_block(count, **changes) -> int:
    model, deeper = tiny(2, **changes), tiny(3, **changes)
    count(model), count(deeper)  # the first call makes the rotary tables
    return count(deeper) - count(model)


@pytest.mark.parametrize("dtype, most", [(torch.float32, 29), (torch.bfloat16, 30)])
def test_operations_of_a_block(dtype, most):
    def count(model):
        latents, *others = inputs()
        return len(operations(model.to(dtype), latents.to(dtype), *others))

    # 2 norms, 6 to modulate, 4 for gates and sums, 2 for the condition, 5 linear layers, 6 to rotate, 1 more to round,
    # attention, 2 for the gated activation
    assert of_a_block(count) <= most


def test_matrix_products_of_a_block():
    def count(model):
        return sum(name in ("aten::addmm", "aten::mm", "aten::linear") for name in operations(model, *inputs()))

    assert of_a_block(count) == 7  # query, key, value, out, two of the feed-forward layers, the modulation

    def count_fused(model):
        model.fuse_qkv_projections()
        return count(model)

    assert of_a_block(count_fused) == 5


def test_nodes_of_the_backward_pass_of_a_block():
    assert of_a_block(nodes) <= 63


def test_rotary_tables_are_made_once():
    model = tiny()
    first, second, third = (operations(model, *inputs(batch_size)) for batch_size in (2, 2, 3))
    assert "aten::cos" in second and first.count("aten::cos") == 1 + 2 * second.count("aten::cos")
    assert second == third
    with torch.no_grad():
        small, large = model(*inputs()).sample, model(*inputs(side=6)).sample
        assert torch.equal(model(*inputs()).sample, small)
        assert torch.equal(tiny()(*inputs(side=6)).sample, large)


def test_kept_tables_stay_float32_and_take_part_in_training():
    model = tiny()
    with torch.inference_mode():
        model(*inputs())
    model(*inputs()).sample.sum().backward()  # with the tables that were made in inference mode
    latents, *others = inputs()
    half, anew = copy.deepcopy(model).to(torch.bfloat16), tiny().to(torch.bfloat16)
    with torch.no_grad():
        expected = anew(latents.bfloat16(), *others).sample
        assert torch.equal(half(latents.bfloat16(), *others).sample, expected)


@torch.no_grad()
def test_recompilations_when_batch_size_and_time_change():
    """Two graphs serve all batches, and no graph breaks."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    model = tiny()
    expected = [model(*inputs(batch_size)).sample for batch_size in (1, 2, 3, 8)]
    model.compile_repeated_blocks(fullgraph=True, backend=counter)
    for value, batch_size in zip(expected, (1, 2, 3, 8), strict=True):
        latents, t, labels = inputs(batch_size)
        torch.testing.assert_close(model(latents, t, labels).sample, value)
        model(latents, 1 - t, labels)
    assert counter.frame_count <= (4 if is_torch_version("<", "2.7") else 3)  # torch 2.6 compiles once more
    torch._dynamo.reset()
