"""Frozen weights and the class table of a transformer that learns new ones."""

import pytest
import torch

from diffusers_lightningdit.training.transformer.lora import NEW_ROWS, NewClassTable, add_lora, lora_file_content
from diffusers_lightningdit.training.transformer.pipeline_data import Classes

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
