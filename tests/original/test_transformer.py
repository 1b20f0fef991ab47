"""Architecture and names of the transformer's checkpoints."""

import pytest
import torch

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.files import read_checkpoint
from diffusers_lightningdit.original import (
    MODEL_TYPES,
    OriginalConfig,
    load_transformer,
    select_transformer_weights,
    transformer_from_original,
    transformer_to_original,
)
from diffusers_lightningdit.original.transformer import (
    check_transformer_yaml,
    empty_transformer,
    rope_tables,
    transformer_config,
    transformer_rows,
)

CASES = ["released", "qknorm_layernorm", "qknorm_rms_woshift", "learn_sigma_p2", "plain"]
TINY = {
    "sample_size": 4,
    "in_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_classes": 5,
}


def original(**changes) -> dict[str, torch.Tensor]:
    """An original state dict, all values drawn."""
    torch.manual_seed(0)
    model = LightningDiTTransformer2DModel(**TINY | changes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return transformer_to_original(dict(model.config), model.state_dict())


def identical(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


# ---------------------------------------------------------------------------------------------------------------------
# There and back
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["ema", "model"])
@pytest.mark.parametrize("case", CASES)
def test_golden_round_trip(golden, case, weights):
    checkpoint = read_checkpoint(golden(f"dit/{case}/ckpt_train.pt"))
    model = load_transformer(checkpoint, weights)
    assert identical(transformer_to_original(dict(model.config), model.state_dict()), checkpoint[weights])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch_size": 2, "learn_sigma": True},
        {"activation_fn": "gelu-approximate", "norm_type": "layer_norm", "use_rope": False, "use_qk_norm": True},
        {"use_adaln_shift": False, "norm_type": "layer_norm"},
        {"mlp_ratio": 3.0},
        {"mlp_ratio": 2.7},
        {"mlp_ratio": 2.7, "activation_fn": "gelu-approximate"},
        {"num_attention_heads": 3, "attention_head_dim": 12},
        {"in_channels": 64, "use_qk_norm": True},  # VTP; VFM-VAE has 32
        {"second_time_embedding": True, "use_qk_norm": True},
        {"internal_guidance_layer": 1, "learn_sigma": True, "norm_type": "layer_norm"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip(changes, dtype):
    before = {key: value.to(dtype) for key, value in original(**changes).items()}
    layer = changes.get("internal_guidance_layer")
    config, state_dict = transformer_from_original(before, internal_guidance_layer=layer)
    model = LightningDiTTransformer2DModel(**config)
    model.load_state_dict(state_dict)
    for name in set(TINY | changes) - {"mlp_ratio"}:  # another ratio may give the same width
        assert config[name] == (TINY | changes)[name]
    assert identical(transformer_to_original(config, state_dict), before)


def test_rearranged_values():
    """The three places where a tensor's rows change their order, by hand."""
    before = original()
    _, after = transformer_from_original(before)
    dim = 32
    ours, theirs = "transformer_blocks.1", "blocks.1"
    for i, name in enumerate("qkv"):
        part = before[f"{theirs}.attn.qkv.weight"][i * dim : (i + 1) * dim]
        assert torch.equal(after[f"{ours}.attn.to_{name}.weight"], part)
    gate, value = before[f"{theirs}.mlp.w12.bias"].chunk(2)
    assert torch.equal(after[f"{ours}.ff.net.0.proj.bias"], torch.cat([value, gate]))
    shift, scale = before["final_layer.adaLN_modulation.1.bias"].chunk(2)
    assert torch.equal(after["norm_out.linear.bias"], torch.cat([scale, shift]))


# ---------------------------------------------------------------------------------------------------------------------
# Layouts
# ---------------------------------------------------------------------------------------------------------------------


def test_layouts():
    ema, model = original(), original()
    prefixed = {f"module.{key}": value for key, value in model.items()}
    training = {"model": prefixed, "ema": ema, "opt": {"state": {}}, "config": {}}
    for checkpoint, weights, expected in (
        ({"ema": ema}, None, ema),
        (training, None, ema),
        (training, "ema", ema),
        (training, "model", model),
        ({"model": prefixed}, None, model),
        (model, None, model),
        (prefixed, None, model),
    ):
        assert identical(select_transformer_weights(checkpoint, weights), expected)


@pytest.mark.parametrize(("names", "weights"), [(["ema"], "model"), (["model"], "ema"), ([], "ema"), ([], "model")])
def test_weights_that_are_not_there(names, weights):
    checkpoint = {name: original() for name in names} or original()
    with pytest.raises(ValueError, match=f"has no `{weights}` weights; it has"):
        select_transformer_weights(checkpoint, weights)


def test_golden_layouts(golden):
    folder = golden("dit/released/ckpt_train.pt").parent
    training = read_checkpoint(folder / "ckpt_train.pt")
    for file, entry in (("ckpt_published_ema_only.pt", "ema"), ("ckpt_module_prefix.pt", "model")):
        assert identical(select_transformer_weights(read_checkpoint(folder / file)), training[entry])


# -- files of FACM and of internal guidance --


def facm_training_file(averages: dict[int, dict]) -> dict:
    """The layout of FACM's training: raw weights of several processes, and the flattened state of the averages."""
    emas = {
        f"ema_models.{number}.{key}": value
        for number, average in averages.items()
        for key, value in {
            "initted": torch.tensor(True),
            "step": torch.tensor(7),
            **{f"ema_model.{name}": weight for name, weight in average.items()},
        }.items()
    }
    raw = {f"module.{key}": value + 9 for key, value in original().items()}
    return {"model": raw, "emas": emas, "opt": {}, "epoch": 3, "step": 100, "scheduler": {}}


def test_facm_averages():
    narrow, wide = ({key: value + shift for key, value in original().items()} for shift in (1, 2))
    checkpoint = facm_training_file({0: narrow, 1: wide})
    nested = checkpoint | {"emas": {"ema_models": [narrow, wide]}}
    for content in (checkpoint, nested, checkpoint | {"ema": narrow}):
        assert identical(select_transformer_weights(content), wide)
        assert identical(select_transformer_weights(content, "ema_models.1"), wide)
        assert identical(select_transformer_weights(content, "ema_models.0"), narrow)
    assert select_transformer_weights(checkpoint, "model")["pos_embed"].equal(original()["pos_embed"] + 9)


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        ({}, "ema_models.2", "has no `ema_models.2` weights; it has `ema_models.0` and `ema_models.1` and `model`"),
        ({}, "ema", "has no `ema` weights; it has `ema_models.0`"),
        ({"emas": {"ema_models": [{}]}}, None, "has no `ema_models.1` weights; it has `ema_models.0` and `model`"),
        ({"emas": {}}, None, "has no `ema_models.1` weights; it has `model`"),
        ({"emas": None}, None, "entry `emas` has `NoneType`; required: keys `ema_models.N.ema_model.KEY`"),
        ({"emas": {"ema_models.1.shadow.x": 1}}, None, "entry `emas` has `ema_models.1.shadow.x`; required"),
        ({"emas": {"ema_models": [{}, {}]}}, None, "entry `ema_models.1` holds no weights"),
    ],
)
def test_facm_averages_that_are_not_there(change, weights, message):
    """The raw weights are never taken in their place."""
    with pytest.raises(ValueError, match=message):
        select_transformer_weights(facm_training_file({0: original(), 1: original()}) | change, weights)


@torch.no_grad()
def test_golden_facm_training_file(golden_frontier):
    from safetensors.torch import load_file

    tensors = load_file(golden_frontier("facm/io.safetensors"))
    file = golden_frontier("facm/ckpt_train_emas.pt")
    for weights, output in ((None, "out_ema"), ("ema_models.0", "out_ema0_wrong"), ("model", "out_model_wrong")):
        model = load_transformer(file, weights)
        found = model(tensors["x"], tensors["t"], tensors["y"]).sample
        torch.testing.assert_close(found, tensors[output], atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", ["facm/ckpt_ema_only.pt", "facm/r_embedder/ckpt_ema_only.pt",
                                  "internal_guidance/ckpt_ema_only.pt"])  # fmt: skip
def test_golden_frontier_round_trip(golden_frontier, file):
    checkpoint = read_checkpoint(golden_frontier(file))
    layer = 1 if "internal" in file else None
    model = load_transformer(golden_frontier(file), internal_guidance_layer=layer)
    assert model.config.second_time_embedding == ("r_embedder" in file)
    assert model.config.internal_guidance_layer == layer
    assert identical(transformer_to_original(dict(model.config), model.state_dict()), checkpoint["ema"])


def test_block_of_internal_guidance(golden_frontier):
    weights = original(internal_guidance_layer=1)
    yaml = OriginalConfig({"model": {"encoder_depth": 2}}, "my.yaml")
    assert transformer_from_original(weights, yaml=yaml)[0]["internal_guidance_layer"] == 2
    with pytest.raises(ValueError, match="internal_guidance_layer is not given, and the weights have `final_layer_xr`"):
        transformer_from_original(weights)
    with pytest.raises(ValueError, match=r"internal_guidance_layer is 3, and the weights have .* and 2 blocks"):
        transformer_from_original(weights, internal_guidance_layer=3)
    with pytest.raises(ValueError, match="internal_guidance_layer is 2; required: none, since the weights have no"):
        transformer_from_original(original(), yaml=yaml)
    published = original(num_layers=28, internal_guidance_layer=8)
    assert transformer_from_original(published)[0]["internal_guidance_layer"] == 8
    del published["final_layer_xr.linear.bias"]
    with pytest.raises(ValueError, match=r"key `final_layer_xr\.linear\.bias` is missing"):
        transformer_from_original(published)


# ---------------------------------------------------------------------------------------------------------------------
# Number of heads
# ---------------------------------------------------------------------------------------------------------------------

NO_HEADS = {"use_rope": False}  # neither RoPE nor qk-norm: the shapes do not tell


def test_heads_from_the_shapes():
    assert transformer_from_original(original())[0]["num_attention_heads"] == 2
    assert transformer_from_original(original(use_rope=False, use_qk_norm=True))[0]["num_attention_heads"] == 2


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_heads_from_the_published_sizes(model_type):
    depth, width, heads, patch_size = MODEL_TYPES[model_type]
    model = empty_transformer(
        {
            "num_layers": depth,
            "num_attention_heads": heads,
            "attention_head_dim": width // heads,
            "patch_size": patch_size,
            "use_rope": False,
        }
    )
    state = model.state_dict()
    config = transformer_config({row.original: row.to_original(state) for row in transformer_rows(model)})
    assert (config["num_attention_heads"], config["patch_size"]) == (heads, patch_size)


def test_heads_given():
    assert transformer_from_original(original(**NO_HEADS), 4)[0]["num_attention_heads"] == 4
    yaml = OriginalConfig({"model": {"x_test_size": {"num_heads": 8}}})
    assert transformer_from_original(original(**NO_HEADS), yaml=yaml)[0]["num_attention_heads"] == 8


def test_heads_unknown_or_contradictory():
    with pytest.raises(ValueError, match="num_attention_heads is not given, and depth 2, width 32"):
        transformer_from_original(original(**NO_HEADS))
    with pytest.raises(ValueError, match="num_attention_heads is 3; required: a divisor of the width, 32"):
        transformer_from_original(original(**NO_HEADS), 3)
    with pytest.raises(ValueError, match=r"gives 4 heads, but key `feat_rope\.freqs_cos` gives 2"):
        transformer_from_original(original(), 4)


# ---------------------------------------------------------------------------------------------------------------------
# Strictness
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(original()))
def test_every_missing_key_is_named(key):
    weights = original()
    del weights[key]
    with pytest.raises(ValueError) as error:
        transformer_from_original(weights)
    # without its w12, or all its norm1, a block is taken for one of the other kind
    related = {"blocks.0.mlp.w12.weight": "mlp", "blocks.0.norm1.weight": "norm"}
    assert related.get(key, f"`{key}` is missing") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", sorted(original().keys() - {"y_embedder.embedding_table.weight"}))  # one more class
def test_every_wrong_shape_is_named(key):
    weights = original()
    weights[key] = torch.cat([weights[key], weights[key][:1]])
    with pytest.raises(ValueError) as error:
        transformer_from_original(weights)
    # the width is read off this one, so that all others are wrong
    related = {"x_embedder.proj.weight": "required", "pos_embed": "pos_embed"}
    assert related.get(key, key) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": torch.zeros(1)}, "key `extra` is unknown"),
        ({"blocks.7.norm1.weight": torch.zeros(32)}, "key `blocks.2."),
        ({"x_embedder.proj.bias": torch.full((32,), torch.nan)}, "`x_embedder.proj.bias` has values that are NaN"),
        ({"pos_embed": torch.full((1, 16, 32), torch.inf)}, "`pos_embed` has values that are NaN or infinite"),
        ({"x_embedder.proj.bias": torch.zeros(32).half()}, "`x_embedder.proj.bias` has type torch.float16"),
        ({"pos_embed": torch.zeros(1, 15, 32)}, "`pos_embed` has 15 tokens; required: a square number"),
        ({"pos_embed": torch.zeros(16, 32)}, "`pos_embed` has shape .16, 32.; required: 3 dimensions"),
        ({"feat_rope.freqs_cos": torch.ones(16, 16)}, "`feat_rope.freqs_cos` differs from the formula of RoPE"),
        ({"decoder.conv_in.weight": torch.zeros(1)}, "is an autoencoder"),
    ],
)
def test_wrong_contents(change, message):
    with pytest.raises(ValueError, match=message):
        transformer_from_original(original() | change)


def test_integers_are_no_weights():
    with pytest.raises(ValueError, match=r"has type torch\.int64; required: a floating-point type"):
        transformer_from_original({key: value.long() for key, value in original(**NO_HEADS).items()}, 2)


def test_autoencoder_is_refused(golden):
    for file in (golden("vae/vavae/vavae.ckpt"), golden("vae/marvae/marvae.ckpt")):
        with pytest.raises(ValueError, match=f"{file.name}: is an autoencoder"):
            load_transformer(file)


def test_way_back_is_strict():
    config, state_dict = transformer_from_original(original())
    del state_dict["proj_out.bias"]
    with pytest.raises(ValueError, match=r"`proj_out\.bias` is missing"):
        transformer_to_original(config, state_dict)
    with pytest.raises(ValueError, match=r"`proj_out\.bias` has shape"):
        transformer_to_original(config, state_dict | {"proj_out.bias": torch.zeros(1)})


# ---------------------------------------------------------------------------------------------------------------------
# Contradictions with the YAML
# ---------------------------------------------------------------------------------------------------------------------

SWITCHES = ["use_swiglu", "use_rope", "use_rmsnorm", "use_qknorm", "wo_shift", "learn_sigma"]


def yaml_of(golden, case: str) -> dict:
    return OriginalConfig.read(golden(f"dit/{case}/config.yaml")).values


@pytest.mark.parametrize("case", CASES)
def test_golden_yaml_fits(golden, case):
    file = golden(f"dit/{case}/ckpt_train.pt")
    load_transformer(file, config=file.parent / "config.yaml")


@pytest.mark.parametrize(
    ("key", "value", "of_weights"),
    [
        ("model.in_chans", 5, "4"),
        ("data.num_classes", 1000, "10"),
        ("data.image_size", 256, "128"),
        ("vae.downsample_ratio", 8, "64"),
        ("model.x_test_size.depth", 3, "2"),
        ("model.x_test_size.hidden_size", 64, "48"),
        ("model.x_test_size.num_heads", 3, "gives 4"),
        ("model.model_type", "LightningDiT-B/1", "patch size 2"),
        ("model.model_type", "LightningDiT-Z/2", "one of LightningDiT-B/1"),
        ("model.x_test_size", None, "depth 2, width 48"),
        ("model.model_type", 3, "of type str"),
        ("model.in_chans", "four", "of type int"),
        ("model", "none", "section"),
    ]
    + [(f"model.{name}", None, None) for name in SWITCHES],
)
def test_contradictions(golden, key, value, of_weights):
    file = golden("dit/learn_sigma_p2/ckpt_train.pt")
    values = yaml_of(golden, "learn_sigma_p2")
    *sections, name = key.split(".")
    section = values
    for part in sections:
        section = section[part]
    if of_weights is None:  # a switch: turn it over
        value, of_weights = not section.get(name, False), str(section.get(name, False))
    section[name] = value
    with pytest.raises(ValueError) as error:
        load_transformer(file, config=OriginalConfig(values, "my.yaml"))
    message = str(error.value)
    assert str(of_weights) in message
    assert value is None or str(value) in message
    assert "\n" not in message


def test_golden_frontier_yaml_fits(golden_frontier):
    for folder in ("facm", "internal_guidance"):
        file = golden_frontier(f"{folder}/ckpt_ema_only.pt")
        load_transformer(file, config=file.parent / "config.yaml")
    values = OriginalConfig.read(golden_frontier("facm/config.yaml")).values
    for key, value in (("use_qknorm", False), ("auxiliary_time_cond", True), ("num_classes", 1000), ("depth", 28)):
        changed = OriginalConfig({"lightningdit": values["lightningdit"] | {key: value}}, "my.yaml")
        with pytest.raises(ValueError, match=f"my.yaml: `lightningdit.{key}` is {value}; required: .* as the weights"):
            load_transformer(golden_frontier("facm/ckpt_ema_only.pt"), config=changed)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("facm_xl_2_steps", {"use_qk_norm": True}),
        ("facm_xl_1_step", {"use_qk_norm": True}),
        ("internal_guidance_xl", {"internal_guidance_layer": 8}),
        ("internal_guidance_xl_alone", {"internal_guidance_layer": 8}),
        ("vfm_vae_xl", {"use_qk_norm": True}),
        ("vtp_f16d64", {"in_channels": 64}),
    ],
)
def test_recipes_of_other_projects_fit_their_networks(repository, name, changes):
    """At full size, without memory for weights: the defaults are XL/1."""
    model = empty_transformer(changes)
    state = model.state_dict()
    weights = {row.original: row.to_original(state) for row in transformer_rows(model)} | rope_tables(model)
    config = transformer_config(weights)
    check_transformer_yaml(config, OriginalConfig.read(repository / f"conversion/configs/{name}.yaml"))
    assert config["num_layers"] == 28
    for key, value in changes.items():
        assert config[key] == value


def test_embedded_yaml_is_used(golden):
    """`plain` has neither RoPE nor qk-norm: its number of heads is in the YAML alone."""
    checkpoint = read_checkpoint(golden("dit/plain/ckpt_train.pt"))
    assert load_transformer(checkpoint).config.num_attention_heads == 4
    with pytest.raises(ValueError, match="num_attention_heads is not given"):
        load_transformer({"ema": checkpoint["ema"]})
