"""LightningDiTTransformer2DModel against numbers recorded from the original, and against an independent formula."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import FirstBlockCacheConfig
from diffusers.models.embeddings import apply_rotary_emb
from golden.small_set import draw, recorded_part
from safetensors.torch import load_file

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.models.transformer_lightningdit import (
    LightningDiTClassEmbedding,
    LightningDiTRotaryEmbedding,
    sincos_position_table,
)
from diffusers_lightningdit.original import load_transformer, transformer_to_original
from diffusers_lightningdit.original.transformer import empty_transformer, rope_tables, transformer_rows

CASES = ["released", "qknorm_layernorm", "qknorm_rms_woshift", "learn_sigma_p2", "plain"]
TOLERANCE = 1e-4
TINY = {
    "sample_size": 4,
    "in_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_classes": 5,
}


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def close_where_recorded(actual: torch.Tensor, expected: torch.Tensor) -> None:
    close(recorded_part(actual, expected), expected)


def tiny(**changes) -> LightningDiTTransformer2DModel:
    """A model whose output depends on everything: nothing is left at its zero initialisation."""
    torch.manual_seed(0)
    model = LightningDiTTransformer2DModel(**TINY | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.1)
    return model.eval()


def public(config) -> dict:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def inputs(height: int = 4, width: int = 4, batch_size: int = 2, channels: int = 4):
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch_size, channels, height, width, generator=generator)
    return latents, torch.linspace(0.1, 0.9, batch_size), torch.arange(batch_size) % 5


# ---------------------------------------------------------------------------------------------------------------------
# Numbers of the original
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CASES)
def case(request, golden):
    """(folder of the case, its tensors)"""
    folder = golden(f"dit/{request.param}/io.safetensors").parent
    return folder, load_file(folder / "io.safetensors")


@pytest.mark.parametrize("weights", ["model", "ema"])
@torch.no_grad()
def test_output(case, weights):
    folder, tensors = case
    model = load_transformer(folder / "ckpt_train.pt", weights)
    close(model(tensors["x"], tensors["t"], tensors["y"]).sample, tensors[f"out_{weights}"])
    close(model(tensors["x"], tensors["t"], tensors["y"], return_dict=False)[0], tensors[f"out_{weights}"])


@torch.no_grad()
def test_intermediates(case):
    folder, tensors = case
    model = load_transformer(folder / "ckpt_train.pt", "ema")
    close(model.timestep_embedder(model.time_proj(tensors["t"])), tensors["ema_t_emb"])
    close(model.class_embedder(tensors["y"]), tensors["ema_y_emb"])

    seen = []
    first = model.transformer_blocks[0]
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    model(tensors["x"], tensors["t"], tensors["y"])
    close_where_recorded(seen[0], tensors["ema_tokens_in"])
    for i, output in enumerate(seen[1:]):
        close_where_recorded(output, tensors[f"ema_block{i}_out"])

    grid_size = model.config.sample_size // model.config.patch_size
    rotary = model.rope(grid_size, grid_size, torch.device("cpu")) if model.config.use_rope else None
    close_where_recorded(first.attn(tensors["attn_probe_in"], rotary), tensors["ema_block0_attn_probe_out"])
    close_where_recorded(first.ff(tensors["attn_probe_in"]), tensors["ema_block0_mlp_probe_out"])
    table = sincos_position_table(model.inner_dim, grid_size, grid_size)
    close(table, tensors["pos_embed_sincos"].reshape(table.shape), 1e-6)


def test_dropped_labels_are_the_originals(golden):
    losses = load_file(golden("train/losses.safetensors"))
    labels, after = losses["drop_y"], losses["drop_y_after"]
    uniform = torch.where(labels != after, 0.05, 0.5)
    assert torch.equal(LightningDiTClassEmbedding(10, 4, 0.1).drop_labels(labels, uniform), after)
    assert torch.equal(LightningDiTClassEmbedding(10, 4, 0.0).drop_labels(labels, torch.zeros(len(labels))), labels)


def test_stored_position_table_counts(golden):
    """In `plain` it was moved away from the formula on purpose."""
    folder = golden("dit/plain")
    model = load_transformer(folder / "ckpt_train.pt", "ema")
    stored = read_checkpoint(folder / "ckpt_train.pt")["ema"]["pos_embed"]
    assert torch.equal(model.pos_embed, stored)
    assert (stored[0] - sincos_position_table(model.inner_dim, 6, 6)).abs().max() > 0.01


@pytest.mark.parametrize(("dim", "grid"), [(1152, 3), (48, 6), (64, 4)])
def test_position_table(golden, dim, grid):
    expected = load_file(golden("structure/tables.safetensors"))[f"sincos_dim{dim}_grid{grid}"]
    close(sincos_position_table(dim, grid, grid), expected, 1e-6)


@pytest.mark.parametrize(("head_dim", "grid"), [(16, 4), (36, 5), (72, 3)])
def test_rotary_embedding(golden, head_dim, grid):
    tables = load_file(golden("structure/tables.safetensors"))
    cos, sin = LightningDiTRotaryEmbedding(head_dim)(grid, grid, torch.device("cpu"))
    name = f"headdim{head_dim}_grid{grid}"
    close(cos, tables[f"rope_cos_{name}"], 1e-5)
    close(sin, tables[f"rope_sin_{name}"], 1e-5)
    close(apply_rotary_emb(tables[f"rope_in_{name}"], (cos, sin)), tables[f"rope_out_{name}"], 1e-5)


SIZES = ["B/1", "B/2", "L/2", "XL/1", "XL/2", "1p0B/1", "1p0B/2", "1p6B/1", "1p6B/2"]
OTHERS = ["B/2 all switches off, in 4, size 32, learn_sigma", "B/1 qknorm+layernorm"]


@pytest.mark.parametrize("size", SIZES + OTHERS)
def test_structure(golden, size):
    """Every published size: all keys and shapes of the original's state dict, and the number of parameters."""
    recorded = json.loads(golden("structure/lightningdit.json").read_text())[f"LightningDiT-{size}"]
    switches = recorded["constructor"]
    config = {
        "sample_size": switches["input_size"],
        "in_channels": switches["in_channels"],
        "num_classes": switches["num_classes"],
        "patch_size": recorded["patch_size"],
        "num_layers": recorded["depth"],
        "num_attention_heads": recorded["num_heads"],
        "attention_head_dim": recorded["hidden_size"] // recorded["num_heads"],
        "activation_fn": "swiglu" if switches.get("use_swiglu") else "gelu-approximate",
        "norm_type": "rms_norm" if switches.get("use_rmsnorm") else "layer_norm",
        "use_rope": switches.get("use_rope", False),
        "use_qk_norm": switches.get("use_qknorm", False),
        "use_adaln_shift": not switches.get("wo_shift", False),
        "learn_sigma": switches.get("learn_sigma", False),
    }
    model = empty_transformer(config)
    state = model.state_dict()
    shapes = {row.original: list(row.to_original(state).shape) for row in transformer_rows(model)}
    shapes |= {key: list(table.shape) for key, table in rope_tables(model).items()}
    assert shapes == {key: shape for key, (shape, *_) in recorded["state_dict"].items()}
    # The position table is a buffer here, and a frozen parameter in the original.
    assert model.num_parameters(only_trainable=True) == recorded["n_trainable"]
    assert model.num_parameters() + model.pos_embed.numel() == recorded["n_parameters"]


@torch.no_grad()
def test_full_size(golden):
    """LightningDiT-XL/1, 675 M parameters, drawn by the rule of the recording."""
    recipe = json.loads(golden("fullsize/recipe.json").read_text())["lightningdit_xl1"]
    checksums = json.loads(golden("fullsize/lightningdit_xl1_checksums.json").read_text())
    tensors = load_file(golden("fullsize/lightningdit_xl1.safetensors"))
    model = empty_transformer({})  # the defaults are XL/1
    meta = model.state_dict()
    rows = {row.original: row for row in transformer_rows(model)}
    state = {"pos_embed": sincos_position_table(model.inner_dim, 16, 16).unsqueeze(0)}
    shapes = {key: row.to_original(meta).shape for key, row in rows.items() if key != "pos_embed"}
    for key, value in draw(shapes, recipe["seed_weights"], recipe["std"]):  # one tensor at a time: 2.7 GB are enough
        assert value.flatten()[0].item() == pytest.approx(checksums[key][1], abs=1e-6)
        state |= rows[key].to_ours(value)
    model.load_state_dict(state, assign=True)
    del state

    seen = {}
    model.eval().transformer_blocks[0].register_forward_hook(lambda m, args, output: seen.update(c=args[1], out=output))
    close(model(tensors["x"], tensors["t"], tensors["y"]).sample, tensors["out"])
    close(seen["c"], tensors["c"])
    close(seen["out"][:, :8], tensors["block0_out_first_8_tokens"])


# ---------------------------------------------------------------------------------------------------------------------
# Networks with more: expanded times, a second time, an output layer after an earlier block
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "output"), [("ckpt_ema_only", "out_ema"), ("ckpt_stage1_teacher", "out_teacher")])
@torch.no_grad()
def test_expanded_times(golden_frontier, file, output):
    """Times up to 2, neither clamped nor scaled."""
    tensors = load_file(golden_frontier("facm/io.safetensors"))
    model = load_transformer(golden_frontier(f"facm/{file}.pt"))
    assert tensors["t"].max() == 2
    close(model(tensors["x"], tensors["t"], tensors["y"]).sample, tensors[output])


@torch.no_grad()
def test_second_time(golden_frontier):
    tensors = load_file(golden_frontier("facm/r_embedder/io.safetensors"))
    student, teacher = (
        load_transformer(golden_frontier(f"facm/r_embedder/{name}.pt")) for name in ("ckpt_ema_only", "ckpt_teacher")
    )
    x, t, y, r = (tensors[name] for name in "xtyr")
    close(student.timestep_embedder(student.time_proj(t)), tensors["t_emb"])
    close(student.second_timestep_embedder(student.time_proj(r)), tensors["r_emb"])
    close(student(x, t, y, second_timestep=r).sample, tensors["out"])
    close(student(x, t, y).sample, tensors["out_r_equals_t"])
    close(teacher(x, t, y).sample, tensors["out_teacher_r_equals_t"])


@torch.no_grad()
def test_internal_velocity(golden_frontier):
    folder = golden_frontier("internal_guidance/io.safetensors").parent
    tensors = load_file(folder / "io.safetensors")
    model = load_transformer(folder / "ckpt_ema_only.pt", config=folder / "config.yaml")
    assert model.config.internal_guidance_layer == 1
    seen = []
    model.transformer_blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    output = model(*(tensors[name] for name in "xty"), return_internal=True)
    close(seen[0], tensors["tokens_after_block_k"], 5e-4)
    close(output.sample, tensors["v"])
    close(output.internal_sample, tensors["z"])


MORE = {"second_time_embedding": True, "internal_guidance_layer": 1}


@torch.no_grad()
def test_a_network_with_more_begins_as_the_one_without():
    """Whatever the second time is; the layer's own output begins at zero, as that of the last."""
    plain, more = tiny(), LightningDiTTransformer2DModel(**TINY | MORE).eval()
    added = set(more.state_dict()) - set(plain.state_dict())
    assert {name.split(".")[0] for name in added} == {
        "second_timestep_embedder", "internal_norm_out", "internal_proj_out",
    }  # fmt: skip
    assert more.second_timestep_embedder.linear_1.weight.std().item() == pytest.approx(0.02, rel=0.15)
    more.load_state_dict(plain.state_dict() | {name: more.state_dict()[name] for name in added})
    for settings in ({}, {"second_timestep": 1.0}, {"second_timestep": torch.tensor([0.2, 0.7])}):
        output = more(*inputs(), **settings, return_internal=True)
        close(output.sample, plain(*inputs()).sample, 0)
        assert output.internal_sample.abs().max() == 0


@torch.no_grad()
def test_a_network_without_more_is_what_it_was():
    assert not any("internal" in name or "second" in name for name in tiny().state_dict())
    output = tiny()(*inputs())
    assert output.internal_sample is None
    assert len(output) == len(tiny()(*inputs(), return_dict=False)) == 1


@torch.no_grad()
def test_forms_of_the_output_and_of_the_second_time():
    model = tiny(**MORE, patch_size=2, learn_sigma=True)
    x, t, y = inputs()
    output = model(x, t, y, return_internal=True)
    assert output.sample.shape == output.internal_sample.shape == x.shape
    for value, other in zip(output.to_tuple(), model(x, t, y, False, return_internal=True), strict=True):
        close(value, other, 0)
    close(model(x, t, y, second_timestep=t).sample, output.sample, 0)
    expected = model(x, t, y, second_timestep=torch.ones(2)).sample
    assert (expected - output.sample).abs().max() > 1e-3
    for second in (1, 1.0, torch.tensor(1.0), torch.ones(1)):
        close(model(x, t, y, second_timestep=second).sample, expected, 0)


@torch.no_grad()
def test_the_internal_velocity_is_that_of_the_network_cut_there():
    """With the same output layer, blocks 1 to N alone give it."""
    model = tiny(num_layers=3, internal_guidance_layer=2)
    cut = tiny(num_layers=2)
    weights = {name: value for name, value in model.state_dict().items() if name in cut.state_dict()}
    for name in ("norm_out.linear", "proj_out"):
        for kind in ("weight", "bias"):
            weights[f"{name}.{kind}"] = model.state_dict()[f"internal_{name}.{kind}"]
    weights["norm_out.norm.weight"] = model.internal_norm_out.norm.weight
    cut.load_state_dict(weights)
    close(model(*inputs(), return_internal=True).internal_sample, cut(*inputs()).sample, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Other image sizes: an independent forward pass
# ---------------------------------------------------------------------------------------------------------------------


def reference_forward(weights: dict, heads: int, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The `released` architecture written out from the equations, on original keys, for any height and width."""

    def linear(name, value):
        return F.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, value):
        return value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]

    batch_size, _, height, width = x.shape
    dim = weights["x_embedder.proj.bias"].numel()
    head_dim = dim // heads
    positions, angles = [], []
    for row in range(height):
        for column in range(width):
            w = [10000 ** (-k / (dim // 4)) for k in range(dim // 4)]
            positions.append([f(p * w_k) for p in (column, row) for f in (math.sin, math.cos) for w_k in w])
            g = [10000 ** (-2 * j / (head_dim // 2)) for j in range(head_dim // 4)]
            angles.append([p * g_j for p in (row, column) for g_j in g])
    rotation = torch.polar(torch.ones(len(angles), head_dim // 2), torch.tensor(angles))

    def rotate(value):  # [B, H, N, d], neighbours as complex numbers
        return torch.view_as_real(torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous()) * rotation).flatten(
            -2
        )

    tokens = torch.einsum("bchw,dc->bhwd", x, weights["x_embedder.proj.weight"][:, :, 0, 0]).flatten(1, 2)
    tokens = tokens + weights["x_embedder.proj.bias"] + torch.tensor(positions)
    phase = t[:, None] * torch.tensor([math.exp(-math.log(10000) * k / 128) for k in range(128)])
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([phase.cos(), phase.sin()], -1))))
    c = c + weights["y_embedder.embedding_table.weight"][y]
    num_blocks = len({key.split(".")[1] for key in weights if key.startswith("blocks.")})
    for block in (f"blocks.{i}" for i in range(num_blocks)):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{block}.adaLN_modulation.1", F.silu(c))[:, None].chunk(
            6, -1
        )
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens) * (1 + scale1) + shift1)
        q, k, v = qkv.unflatten(-1, (3, heads, head_dim)).permute(2, 0, 3, 1, 4)
        mixed = (rotate(q) @ rotate(k).transpose(-1, -2) / math.sqrt(head_dim)).softmax(-1) @ v
        tokens = tokens + gate1 * linear(f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        a, b = linear(f"{block}.mlp.w12", norm(f"{block}.norm2", tokens) * (1 + scale2) + shift2).chunk(2, -1)
        tokens = tokens + gate2 * linear(f"{block}.mlp.w3", F.silu(a) * b)
    shift, scale = linear("final_layer.adaLN_modulation.1", F.silu(c))[:, None].chunk(2, -1)
    out = linear("final_layer.linear", norm("final_layer.norm_final", tokens) * (1 + scale) + shift)
    return out.transpose(1, 2).reshape(batch_size, -1, height, width)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 7), (8, 2), (6, 6), (1, 1)])
@torch.no_grad()
def test_any_size_against_an_independent_formula(height, width):
    model = tiny()
    weights = transformer_to_original(dict(model.config), model.state_dict())
    latents, t, y = inputs(height, width)
    close(model(latents, t, y).sample, reference_forward(weights, 2, latents, t, y), 2e-5)


@torch.no_grad()
def test_the_independent_formula_is_the_original(golden):
    folder = golden("dit/released/ckpt_train.pt").parent
    tensors = load_file(folder / "io.safetensors")
    weights = read_checkpoint(folder / "ckpt_train.pt")["ema"]
    close(reference_forward(weights, 4, tensors["x"], tensors["t"], tensors["y"]), tensors["out_ema"])


@pytest.mark.parametrize("size", [2, 8, (2, 6)])
@pytest.mark.parametrize("patch_size", [1, 2])
@torch.no_grad()
def test_other_size_equals_model_built_for_it(size, patch_size, tmp_path):
    model, built = tiny(patch_size=patch_size), tiny(patch_size=patch_size, sample_size=size)
    built.save_pretrained(tmp_path)
    built = LightningDiTTransformer2DModel.from_pretrained(tmp_path).eval()
    latents, t, y = inputs(*((size, size) if isinstance(size, int) else size))
    close(model(latents, t, y).sample, built(latents, t, y).sample, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Initialisation, training, types
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_initialisation():
    model = LightningDiTTransformer2DModel(**TINY | {"num_layers": 3})
    dim = model.inner_dim
    assert model(*inputs()).sample.abs().max() == 0
    for block in model.transformer_blocks:
        assert block.adaln.weight.abs().max() == 0
        assert block.adaln.bias.abs().max() == 0
        # Xavier bounds: query, key and value are drawn as one [3 D, D] matrix
        for projection in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
            bound = math.sqrt(6 / (dim + 3 * dim))
            assert 0.9 * bound < projection.weight.abs().max() <= bound
        for layer in (block.attn.to_out[0], block.ff.net[0].proj, block.ff.net[2]):
            bound = math.sqrt(6 / sum(layer.weight.shape))
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            assert layer.bias.abs().max() == 0
    bound = math.sqrt(6 / (dim + model.config.in_channels))
    assert 0.9 * bound < model.patch_embed.weight.abs().max() <= bound
    for weight in (
        model.timestep_embedder.linear_1.weight,
        model.timestep_embedder.linear_2.weight,
        model.class_embedder.embedding_table.weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert model.norm_out.linear.weight.abs().max() == model.proj_out.weight.abs().max() == 0


def test_position_table_is_not_trained():
    model = tiny()
    assert "pos_embed" in model.state_dict()
    assert "pos_embed" not in dict(model.named_parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
@pytest.mark.parametrize(
    "changes", [{}, {"use_qk_norm": True, "norm_type": "layer_norm", "use_adaln_shift": False}, MORE]
)
@torch.no_grad()
def test_half_precision_weights(dtype, tolerance, changes):
    model = tiny(**changes)
    latents, t, y = inputs()
    settings = {"return_dict": False, "return_internal": changes == MORE}
    before = model(latents, t, y, **settings)
    model.to(dtype)
    for actual, expected in zip(model(latents.to(dtype), t, y, **settings), before, strict=True):
        assert actual.dtype == dtype
        assert (actual.float() - expected).pow(2).mean().sqrt() < tolerance * expected.pow(2).mean().sqrt()


@torch.no_grad()
def test_timestep_forms():
    model = tiny()
    latents, _, y = inputs()
    expected = model(latents, torch.tensor([0.3, 0.3]), y).sample
    for timestep in (0.3, torch.tensor(0.3), torch.tensor([0.3])):
        close(model(latents, timestep, y).sample, expected, 0)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = tiny(class_dropout_prob=0.0, **MORE).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        output = model(*inputs(), second_timestep=1.0, return_internal=True)
        (output.sample.pow(2).mean() + output.internal_sample.pow(2).mean()).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient, 0)
        assert gradient.abs().max() > 0


@torch.no_grad()
def test_label_dropping():
    labels = torch.arange(4000) % 5
    for probability in (0.0, 0.1, 1.0):
        embedder = tiny(class_dropout_prob=probability).class_embedder
        null = embedder.embedding_table.weight[5]
        assert torch.equal(embedder(labels), embedder.embedding_table.weight[labels])  # never in evaluation mode
        embedder.train()
        dropped = (embedder(labels) == null).all(-1)
        assert dropped.float().mean().item() == pytest.approx(probability, abs=0.03)
        assert torch.equal(embedder(labels[:0]), embedder.embedding_table.weight[labels[:0]])


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = tiny(use_qk_norm=True, learn_sigma=True, **MORE)
    model.save_pretrained(tmp_path)
    loaded = LightningDiTTransformer2DModel.from_pretrained(tmp_path)
    assert public(loaded.config) == public(model.config)
    settings = {"second_timestep": 1.0, "return_internal": True}
    for value, expected in zip(*(one(*inputs(), **settings).values() for one in (loaded, model)), strict=True):
        close(value, expected, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn": "relu"}, "`activation_fn` is 'relu'"),
        ({"norm_type": "batch_norm"}, "`norm_type` is 'batch_norm'"),
        ({"sample_size": 5, "patch_size": 2}, "`sample_size` is 5"),
        ({"sample_size": 0}, "`sample_size` is 0"),
        ({"attention_head_dim": 6}, "`attention_head_dim` is 6"),
        ({"attention_head_dim": 3, "use_rope": False}, "is 6; required: a multiple of 4 for the position table"),
        ({"class_dropout_prob": 1.5}, "`class_dropout_prob` is 1.5"),
        ({"internal_guidance_layer": 0}, "`internal_guidance_layer` is 0; required: None, or from 1 to `num_layers`"),
        ({"internal_guidance_layer": 3}, "`internal_guidance_layer` is 3; required: .*, 2"),
    ],
)
def test_wrong_configuration(changes, message):
    with pytest.raises(ValueError, match=message):
        LightningDiTTransformer2DModel(**TINY | changes)


def test_wrong_latents():
    model = tiny(patch_size=2)
    _, t, y = inputs()
    with pytest.raises(ValueError, match="`hidden_states` has 3 channels; required: 4"):
        model(torch.zeros(2, 3, 4, 4), t, y)
    with pytest.raises(ValueError, match="`hidden_states` is 4x5; required: multiples of `patch_size`, 2"):
        model(torch.zeros(2, 4, 4, 5), t, y)


def test_arguments_of_another_architecture():
    with pytest.raises(ValueError, match="`second_timestep` is given; required: None for a model without"):
        tiny()(*inputs(), second_timestep=1.0)
    with pytest.raises(ValueError, match="`return_internal` is True; required: False for a model without"):
        tiny()(*inputs(), return_internal=True)
    model = tiny(**MORE)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="`return_internal` is True with FirstBlockCacheConfig; required: False, or"):
        model(*inputs(), return_internal=True)
