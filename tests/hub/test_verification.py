"""The second implementation, on the original's keys: it is the original, and it finds mistakes of a conversion."""

import pytest
import torch
from golden.small_set import recorded_part
from safetensors.torch import load_file

from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.hub.verification import (
    check_autoencoder,
    check_transformer,
    original_decode,
    original_encode,
    original_velocity,
)
from diffusers_lightningdit.original import (
    autoencoder_to_original,
    load_autoencoder,
    load_transformer,
    select_transformer_weights,
    transformer_to_original,
)
from diffusers_lightningdit.original.autoencoder import select_autoencoder_weights

TRANSFORMERS = ["released", "qknorm_layernorm", "qknorm_rms_woshift", "learn_sigma_p2", "plain"]


@pytest.fixture(scope="module")
def released(golden):
    checkpoint = golden("dit/released/ckpt_train.pt")
    return load_transformer(checkpoint), select_transformer_weights(read_checkpoint(checkpoint))


@pytest.fixture(scope="module")
def vavae(golden):
    checkpoint = golden("vae/vavae/vavae.ckpt")
    return load_autoencoder(checkpoint), select_autoencoder_weights(read_checkpoint(checkpoint))


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_the_transformer_is_the_original(name, golden):
    checkpoint = golden(f"dit/{name}/ckpt_train.pt")
    recorded = load_file(checkpoint.parent / "io.safetensors")
    weights = select_transformer_weights(read_checkpoint(checkpoint), "ema")
    num_heads = load_transformer(checkpoint).config.num_attention_heads
    velocity = original_velocity(weights, num_heads, recorded["x"], recorded["t"], recorded["y"])
    torch.testing.assert_close(velocity, recorded["out_ema"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", ["vae/vavae/vavae.ckpt", "vae/marvae/marvae.ckpt"])
@torch.no_grad()
def test_the_autoencoder_is_the_original(file, golden):
    checkpoint = golden(file)
    recorded = load_file(checkpoint.parent / "io.safetensors")
    weights = select_autoencoder_weights(read_checkpoint(checkpoint))
    for tag in ("a", "b"):  # square and not
        mean = original_encode(weights, recorded[f"{tag}_x"])
        for found, name in ((mean, "mean"), (original_decode(weights, mean), "decode_mode")):
            expected = recorded[f"{tag}_{name}"]
            torch.testing.assert_close(recorded_part(found, expected), expected, rtol=0, atol=1e-4)


SECOND_TIME, INTERNAL = "facm/r_embedder", "internal_guidance"


def of_another_project(golden_frontier, folder):
    """(model, weights) of a network with a second time, or with the output layer of internal guidance."""
    checkpoint = golden_frontier(f"{folder}/ckpt_ema_only.pt")
    settings = {"config": checkpoint.parent / "config.yaml"} if folder == INTERNAL else {}
    return load_transformer(checkpoint, **settings), select_transformer_weights(read_checkpoint(checkpoint))


@torch.no_grad()
def test_a_second_time_is_the_originals(golden_frontier):
    model, weights = of_another_project(golden_frontier, SECOND_TIME)
    recorded = load_file(golden_frontier(f"{SECOND_TIME}/io.safetensors"))
    x, t, y, r = (recorded[name] for name in "xtyr")
    for end, name in ((r, "out"), (t, "out_r_equals_t")):
        velocity = original_velocity(weights, model.config.num_attention_heads, x, t, y, second_timestep=end)
        torch.testing.assert_close(velocity, recorded[name], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_layer_of_internal_guidance_is_the_originals(golden_frontier):
    model, weights = of_another_project(golden_frontier, INTERNAL)
    recorded = load_file(golden_frontier(f"{INTERNAL}/io.safetensors"))
    for layer, name in ((None, "v"), (model.config.internal_guidance_layer, "z")):
        velocity = original_velocity(
            weights,
            model.config.num_attention_heads,
            *(recorded[name] for name in "xty"),
            internal_guidance_layer=layer,
        )
        torch.testing.assert_close(velocity, recorded[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("folder", "key", "part"),
    [
        (SECOND_TIME, "second_timestep_embedder.linear_1.weight", "transformer"),
        (INTERNAL, "internal_norm_out.linear.weight", "output layer of internal guidance"),
        (INTERNAL, "transformer_blocks.2.adaln.weight", "transformer"),
    ],
)
def test_networks_of_other_projects_are_compared(folder, key, part, golden_frontier):
    model, weights = of_another_project(golden_frontier, folder)
    assert check_transformer(model, weights) < 1e-5
    with torch.no_grad():
        model.get_parameter(key).copy_(model.get_parameter(key).flip(0))
    with pytest.raises(ValueError, match=f"the converted {part} differs from the original's equations by"):
        check_transformer(model, weights)


def test_a_good_conversion_passes(released, vavae):
    assert check_transformer(*released) < 1e-5
    assert check_autoencoder(*vavae) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_in_half_precision_it_is_compared_in_float32(dtype, released):
    model, weights = released
    half = type(model).from_config(model.config).to(dtype)
    half.load_state_dict({key: value.to(dtype) for key, value in model.state_dict().items()})
    assert check_transformer(half, {key: value.to(dtype) for key, value in weights.items()}) < 2e-3
    assert half.dtype == dtype


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_each_architecture_passes(name, golden):
    checkpoint = golden(f"dit/{name}/ckpt_train.pt")
    weights = select_transformer_weights(read_checkpoint(checkpoint))
    assert check_transformer(load_transformer(checkpoint), weights) < 1e-5


@pytest.mark.parametrize(
    "key",
    ["transformer_blocks.0.ff.net.0.proj.weight", "norm_out.linear.bias", "transformer_blocks.1.adaln.weight"],
)
def test_a_mistake_in_the_transformer_is_found(key, released):
    model, weights = released
    wrong = type(model).from_config(model.config).eval()
    state_dict = dict(model.state_dict())
    state_dict[key] = torch.cat(state_dict[key].chunk(2)[::-1])  # halves swapped
    wrong.load_state_dict(state_dict)
    with pytest.raises(ValueError, match=r"the converted transformer differs from the original's equations by"):
        check_transformer(wrong, weights)


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("encoder.mid_block.attentions.0.to_q.weight", "encoder"),
        ("decoder.up_blocks.1.resnets.0.conv1.weight", "decoder"),
    ],
)
def test_a_mistake_in_the_autoencoder_is_found(key, part, vavae):
    model, weights = vavae
    wrong = type(model).from_config(model.config).eval()
    state_dict = dict(model.state_dict())
    state_dict[key] = state_dict[key].flip(0)
    wrong.load_state_dict(state_dict)
    with pytest.raises(ValueError, match=f"the converted {part} differs from the original's equations by"):
        check_autoencoder(wrong, weights)


def test_nan_is_found(released):
    model, weights = released
    weights = {**weights, "final_layer.linear.bias": torch.full_like(weights["final_layer.linear.bias"], torch.nan)}
    with pytest.raises(ValueError, match="by nan of the largest value"):
        check_transformer(model, weights)


def test_the_way_back_passes_too(released, vavae):
    (transformer, _), (vae, _) = released, vavae
    assert check_transformer(transformer, transformer_to_original(dict(transformer.config), transformer.state_dict()))
    back = autoencoder_to_original(dict(vae.config), vae.state_dict())
    assert check_autoencoder(vae, back) < 1e-4
