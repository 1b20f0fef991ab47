import json

import pytest
import torch

from diffusers_lightningdit.evaluation import provenance
from diffusers_lightningdit.evaluation.drawn_images import load_pipeline, set_scheduler
from diffusers_lightningdit.evaluation.generation_config import GenerationConfig
from diffusers_lightningdit.evaluation.provenance import (
    check_folder,
    first_difference,
    pipeline_provenance,
    samples_provenance,
)


@pytest.fixture
def pipeline(digits_pipeline):
    return load_pipeline(digits_pipeline)


def provenance_of(pipeline, **settings) -> dict:
    config = GenerationConfig(pipeline="p", output_dir="o", **settings)
    return samples_provenance(config, pipeline, torch.device("cpu"))


def change_weights(pipeline, monkeypatch):
    next(pipeline.transformer.parameters()).data.flatten()[0] += 1


def change_vae_config(pipeline, monkeypatch):
    std = list(pipeline.vae.config.latents_std)
    pipeline.vae.register_to_config(latents_std=[*std[:3], 2.0, *std[4:]])


def change_names(pipeline, monkeypatch):
    pipeline.register_to_config(id2label={**pipeline.config.id2label, "3": "tree"})


def change_recipe(pipeline, monkeypatch):
    pipeline.register_to_config(sampling_recipe={**pipeline.config.sampling_recipe, "num_inference_steps": 7})


def change_scheduler(pipeline, monkeypatch):
    set_scheduler(pipeline, "FlowMatchHeunDiscreteScheduler")


def change_version(pipeline, monkeypatch):
    real = provenance.version
    monkeypatch.setattr(provenance, "version", lambda name: "0.1" if name == "torch" else real(name))


@pytest.mark.parametrize(
    ("change", "name", "now"),
    [
        (change_weights, "weights_sha256.transformer", None),
        (change_vae_config, "configs.vae.latents_std[3]", "2.0"),
        (change_names, "pipeline.id2label.3", "tree"),
        (change_recipe, "sampling.num_inference_steps", "7"),
        (change_scheduler, "scheduler.class", "FlowMatchHeunDiscreteScheduler"),
        (change_version, "versions.torch", "0.1"),
    ],
)
def test_whatever_changes_the_images_is_named(pipeline, monkeypatch, tmp_path, change, name, now):
    (tmp_path / "samples.json").write_text(json.dumps(provenance_of(pipeline)))
    check_folder(tmp_path, provenance_of(pipeline))
    change(pipeline, monkeypatch)
    with pytest.raises(ValueError, match="whose images were drawn with") as error:
        check_folder(tmp_path, provenance_of(pipeline))
    assert f" {name} = " in str(error.value)
    assert now is None or f"; required: the same, not {now}, or another folder." in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_where_a_pipeline_lies_does_not_matter(pipeline, digits_pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "copy")
    assert provenance_of(load_pipeline(str(tmp_path / "copy"))) == provenance_of(load_pipeline(digits_pipeline))


def test_weights_that_are_hashed_already_are_not_hashed_again(pipeline, monkeypatch):
    expected = provenance_of(pipeline)
    known = pipeline_provenance(pipeline)
    monkeypatch.setattr(provenance, "weights_sha256", None)
    config = GenerationConfig(pipeline="p", output_dir="o")
    assert samples_provenance(config, pipeline, torch.device("cpu"), known) == expected


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ("a[1].b", "2", "3")),
        ({"a": [1]}, {"a": [1, 2]}, ("a", "[1]", "[1, 2]")),
        ({"a": 1, "b": 1}, {"a": 1}, ("b", "1", "None")),
        ({}, {"a": {"b": "x" * 90}}, ("a", "None", "{'b': '" + "x" * 73 + "...")),
        ({"a": 1.0}, {"a": 1}, None),
    ],
)
def test_the_first_difference(before, now, expected):
    assert first_difference(before, now) == expected
