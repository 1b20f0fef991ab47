"""Classes by name, frozen weights and the class table of a transformer that learns new ones."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.training.transformer.lora import (
    NEW_ROWS,
    Classes,
    NewClassTable,
    Relabelled,
    add_lora,
    find_classes,
    load_pipeline,
    lora_file_content,
)


@pytest.fixture
def pipe() -> LightningDiTPipeline:
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8, num_classes=3
    )
    for parameter in transformer.parameters():  # a new one is zero everywhere
        torch.nn.init.normal_(parameter, std=0.2)
    vae = AutoencoderVAVAE(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    names = {0: "cat, kitty", 1: "crane", 2: "crane"}
    return LightningDiTPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(), names)


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def test_classes_are_matched_by_name(pipe):
    classes = find_classes(pipe, {0: "ox", 1: "Kitty", 2: "bee"}, {"bee": None, "ox": "cat"})
    assert classes == Classes({0: 4, 1: 0, 2: 3}, ["bee", "ox"], [None, 0])
    assert classes.ids == [0, 3, 4]


def test_labels_without_names_are_the_pipelines_ids(pipe):
    assert find_classes(pipe, None, {}, num_labels=2) == Classes({0: 0, 1: 1}, [], [])
    with pytest.raises(ValueError, match=r"label 3, and no names of labels; required: .*, 0 to 2\."):
        find_classes(pipe, None, {}, num_labels=4)
    with pytest.raises(ValueError, match="a class of the data, which has no names"):
        find_classes(pipe, None, {"ox": None}, num_labels=2)


@pytest.mark.parametrize(
    ("name", "new_classes", "message"),
    [
        ("cats", {}, r"the data has the class 'cats', which is none of the pipeline's; .* \('cat'\), or `new_classes`"),
        ("crane", {}, "the data has the class 'crane', which is several of the pipeline's; required"),
        ("ox", {"ox": "crane"}, "`new_classes.ox`: .* of several classes; use one of the ids"),
        ("ox", {"ox": 3}, "`new_classes.ox`: .* has the id 3; required: 0 to 2"),
    ],
)
def test_classes_that_cannot_be_matched(pipe, name, new_classes, message):
    with pytest.raises(ValueError, match=message):
        find_classes(pipe, {0: name}, new_classes)


def test_relabelled():
    items = [{"class_labels": 1, "pixel_values": 7}, {"class_labels": 0, "pixel_values": 8}]
    assert [Relabelled(items, {0: 5, 1: 2})[i]["class_labels"] for i in range(2)] == [2, 5]
    unlabelled = Relabelled([{"pixel_values": 7}], {None: 3})
    assert (unlabelled[0], len(unlabelled)) == ({"class_labels": 3, "pixel_values": 7}, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Transformer
# ---------------------------------------------------------------------------------------------------------------------


def test_new_rows_stand_before_the_null_class():
    table = torch.nn.Embedding(3, 4)
    grown = NewClassTable(table, torch.ones(2, 4))
    assert torch.equal(grown(torch.arange(5)), torch.cat([table.weight[:2], torch.ones(2, 4), table.weight[2:]]))
    grown(torch.tensor([0, 3, 4])).sum().backward()
    assert table.weight.grad is None
    assert grown.new_classes.grad[:, 0].tolist() == [0, 1]


def test_a_new_lora_changes_nothing_and_begins_with_the_rows_it_is_told(pipe):
    transformer = pipe.transformer.eval()
    rows = transformer.class_embedder.embedding_table.weight.detach().clone()
    inputs = torch.randn(4, 4, 4, 4), torch.rand(4)
    with torch.no_grad():
        before = transformer(*inputs, torch.arange(4)).sample
        add_lora(transformer, 2, None, ["to_q"], Classes({}, ["bee", "ox"], [None, 0]), seed=0)
        after = transformer(*inputs, torch.tensor([0, 1, 2, 5])).sample  # the null class has moved
        new = transformer(*inputs, torch.tensor([4, 1, 2, 5])).sample
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(new, before)
    assert torch.equal(transformer.class_embedder.embedding_table.new_classes[0], rows[:3].mean(0))
    assert transformer.config.num_classes == transformer.class_embedder.num_classes == 5
    trained = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    lora = "transformer_blocks.0.attn.to_q.lora_{}.default.weight"
    assert trained == {NEW_ROWS, lora.format("A"), lora.format("B")}
    tensors, metadata = lora_file_content(transformer, transformer.state_dict(), ["bee", "ox"])
    assert len(tensors) == 3 and metadata["lora_new_classes"] == ["bee", "ox"]


def test_without_new_classes_the_table_stays(pipe):
    add_lora(pipe.transformer, 2, 4, ["attn.to_v"], Classes({0: 0}, [], []), seed=0)
    assert type(pipe.transformer.class_embedder.embedding_table) is torch.nn.Embedding
    tensors, metadata = lora_file_content(pipe.transformer, pipe.transformer.state_dict(), [])
    assert len(tensors) == 2 and "lora_new_classes" not in metadata and metadata["lora_alpha"] == 4


def test_a_target_that_is_no_linear_layer(pipe):
    with pytest.raises(ValueError, match=r"`target_modules` has 'q'; required: .* attn.to_q, .* ff.net.2, .* proj_out"):
        add_lora(pipe.transformer, 2, None, ["q"], Classes({}, [], []), seed=0)
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


def test_a_vae_without_statistics(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="whose VAE has no `latents_mean` in its config; required: folder or Hub id"):
        load_pipeline(str(tmp_path))
