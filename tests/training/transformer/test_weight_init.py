import json

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit import LightningDiTTransformer2DModel
from diffusers_lightningdit.original import load_transformer
from diffusers_lightningdit.original.transformer import transformer_rows
from diffusers_lightningdit.training.transformer.weight_init import (
    SWITCHES,
    check_switches,
    initialize_weights,
    load_initial_transformer,
)

TINY = {"sample_size": 4, "in_channels": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}


def tiny(**changes) -> LightningDiTTransformer2DModel:
    return LightningDiTTransformer2DModel(**{**TINY, "num_classes": 3, **changes})


def test_changed_shapes_are_treated_as_the_original_does(golden):
    recorded = json.loads(golden("train/weight_init_shape_mismatch.json").read_text())
    target = recorded["target_constructor"]
    source = load_transformer(golden(recorded["source_checkpoint"]))
    torch.manual_seed(0)
    config = {**source.config, "in_channels": target["in_channels"], "num_classes": target["num_classes"]}
    model = LightningDiTTransformer2DModel.from_config(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    remarks = initialize_weights(model, source.state_dict())

    after, weights = model.state_dict(), source.state_dict()
    copied, kept = [], []
    for row in transformer_rows(model):
        if all(after[name].equal(weights[name]) for name in row.ours):
            copied.append(row.original)
        elif all(after[name].equal(before[name]) for name in row.ours):
            kept.append(row.original)
    computed_here = {"feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    assert set(copied) == set(recorded["loaded_exactly"]) - computed_here
    assert set(kept) == set(recorded["left_at_own_initialisation"])
    expected = load_file(golden("train/weight_init_shape_mismatch.safetensors"))["x_embedder.proj.weight"]
    old_channels, new_channels = after["patch_embed.weight"].split([16, 8], dim=1)
    assert torch.equal(old_channels, weights["patch_embed.weight"])
    assert not new_channels.any()
    # A checkpoint that is drawn again may differ from the recorded one in the last bit.
    torch.testing.assert_close(after["patch_embed.weight"], expected, rtol=0, atol=1e-6)
    assert len(remarks) == 4
    assert "`class_embedder.embedding_table.weight` has shape [11, 64] in `weight_init`, [13, 64] here" in remarks[1]


def test_the_same_shapes_are_copied_silently():
    source, model = tiny(), tiny()
    torch.nn.init.normal_(source.proj_out.weight)
    assert initialize_weights(model, source.state_dict()) == []
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def rows(model) -> torch.Tensor:
    return model.class_embedder.embedding_table.weight.detach()


def test_rows_of_classes_go_by_name():
    """In Unicode's form NFC, by a synonym, and the whole entry before its synonyms; the null class is the last."""
    source, model = tiny(num_classes=5), tiny(num_classes=6)
    before = rows(model).clone()
    source_names = {0: "cat", 1: "dog, hound", 2: "cat, black", 3: "caf\u00e9", 4: "crane"}
    names = {0: "hound", 1: "cafe\u0301", 2: "ox", 3: "cat, black", 4: "black", 5: "cat"}
    remarks = initialize_weights(model, source.state_dict(), names, source_names)
    for class_id, expected in {0: 1, 1: 3, 3: 2, 4: 2, 6: 5}.items():
        assert torch.equal(rows(model)[class_id], rows(source)[expected]), names.get(class_id)
    for class_id in (2, 5):  # new; and two classes are called "cat"
        assert torch.equal(rows(model)[class_id], before[class_id])
    assert remarks == [
        "`class_embedder.embedding_table.weight`: rows by the names of classes, of which 4 are in `weight_init`",
        "classes that are new or ambiguous, and keep their own initialisation: 'ox', 'cat'",
    ]


def test_names_in_the_same_order_are_no_remark_and_missing_ones_are():
    source, model = tiny(), tiny()
    names = {0: "a", 1: "b", 2: "c"}
    assert initialize_weights(model, source.state_dict(), names, dict(names)) == []
    assert torch.equal(rows(model), rows(source))
    (remark,) = initialize_weights(model, source.state_dict(), names)
    assert remark.endswith("rows by number, since `weight_init` has no names of classes")


SOURCE = {"num_attention_heads": 4, "attention_head_dim": 12}


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 3, "attention_head_dim": 16},
        {"use_rope": False},
        {"use_qk_norm": True},
        {"use_adaln_shift": False},
        {"activation_fn": "gelu-approximate"},
        {"norm_type": "layer_norm"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_switches_of_another_architecture(change):
    source, model = tiny(**SOURCE), tiny(**SOURCE | change)
    key = next(iter(change))
    message = f"`weight_init` is 'x', whose transformer has `{key}` {source.config[key]!r}; required: {change[key]!r}"
    with pytest.raises(ValueError, match=message):
        check_switches(model, source.config, "`weight_init` is 'x'", SWITCHES)
    check_switches(tiny(**SOURCE, num_classes=9, num_layers=3), source.config, "", SWITCHES)


def test_missing_and_unknown_tensors_are_said():
    remarks = initialize_weights(tiny(use_qk_norm=True, num_layers=1), tiny(num_layers=2).state_dict())
    assert "`transformer_blocks.0.attn.norm_q.weight` is not in `weight_init`: keeps its own initialisation" in remarks
    assert "`transformer_blocks.1.adaln.weight` of `weight_init` is not in the model: left out" in remarks


def test_another_architecture():
    with pytest.raises(ValueError, match="no weight of the blocks of `weight_init` fits"):
        initialize_weights(tiny(), tiny(attention_head_dim=12).state_dict())


def test_sources(tmp_path, golden):
    tiny().save_pretrained(tmp_path / "model")
    tiny().save_pretrained(tmp_path / "pipeline" / "transformer")
    for folder in ("model", "pipeline"):
        assert load_initial_transformer(str(tmp_path / folder))[0].config.num_classes == 3
    path = str(golden("dit/learn_sigma_p2/ckpt_train.pt"))
    assert load_initial_transformer(path)[0].config.learn_sigma
    (tmp_path / "model" / "config.json").write_text("[" * 5000)
    broken = tiny()
    torch.nn.init.constant_(broken.proj_out.bias, float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    for folder, reason in (("model", "recursion"), ("broken", "`proj_out.bias` has values that are NaN or infinite")):
        with pytest.raises(ValueError, match=f"^`weight_init` is '{tmp_path / folder}'.*{reason}") as error:
            load_initial_transformer(str(tmp_path / folder))
        assert "\n" not in str(error.value)
    for name in (str(tmp_path), str(tmp_path / "none"), str(tmp_path / "none.pt")):
        with pytest.raises(ValueError, match=r"no such file|required: folder or Hub id of a LightningDiT transformer"):
            load_initial_transformer(name)


@pytest.mark.parametrize("index", ["{", "[1]", "[" * 5000, '{"id2label": {"x": "ox"}}'])
def test_a_damaged_index_is_an_error_and_not_a_model_without_names(tmp_path, index):
    tiny().save_pretrained(tmp_path / "transformer")
    (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=r"^`weight_init` is '[^\n]*model_index.json[^\n]*required[^\n]*$"):
        load_initial_transformer(str(tmp_path))
