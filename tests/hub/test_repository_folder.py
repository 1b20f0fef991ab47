"""Folders of repositories and their upload, where the command does not reach: shards, errors of the Hub, patterns."""

import pytest

from diffusers_lightningdit.hub.cards import pipeline_card
from diffusers_lightningdit.hub.repository import (
    HubError,
    create_repository,
    repository_patterns,
    upload_repository,
    write_repository,
)


def test_large_weights_are_sharded_in_every_variant(tiny_pipeline, tmp_path):
    card = pipeline_card(tiny_pipeline, "user/tiny")
    write_repository(tmp_path, tiny_pipeline, card, variants=["bf16"], max_shard_size="20KB")
    names = {path.name for path in (tmp_path / "transformer").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.json" in names
    assert "diffusion_pytorch_model.safetensors.index.bf16.json" in names


def test_a_bad_card_is_refused_before_weights_are_written(tiny_pipeline, tmp_path):
    with pytest.raises(ValueError, match="its metadata lacks"):
        write_repository(tmp_path, tiny_pipeline, "# Mine\n")
    assert not list(tmp_path.iterdir())


def test_patterns_leave_out_what_a_training_leaves_behind(tiny_pipeline):
    from huggingface_hub.utils import filter_repo_objects

    result = ["README.md", "model_index.json", "pipeline.py", "vae/config.json", "transformer/model.safetensors"]
    beside = ["metrics.jsonl", "checkpoint-5/transformer/model.safetensors", "checkpoint-5/README.md", "samples/1.png"]
    found = list(filter_repo_objects([*result, *beside], allow_patterns=repository_patterns(tiny_pipeline)))
    assert found == result


def test_without_network_both_steps_are_one_line(tiny_pipeline, tmp_path):
    """tests/conftest.py forbids the network."""
    (tmp_path / "README.md").write_text("x")
    for step in (lambda: create_repository("user/tiny"), lambda: upload_repository(tmp_path, "user/tiny")):
        with pytest.raises(HubError, match=r"^user/tiny: cannot be (made|uploaded)[^\n]*$"):
            step()
