"""The pretrained encoder of a new Change3D: taken whole where both models have it, or refused."""

import pytest
import torch
from tiny_change3d import TINY_MODEL, tiny_model

from diffusers_lightningdit import Change3DModel, Change3DPipeline
from diffusers_lightningdit.training.change3d.data import initialize_encoder


def is_taken(model: Change3DModel, key: str, before: dict, source: dict) -> bool:
    """Whether a weight is that of the source; one that is neither it nor that of before is a failure."""
    value = model.state_dict()[key]
    taken = key in source and torch.equal(value, source[key])
    assert taken or torch.equal(value, before[key]), key
    return taken


@pytest.mark.parametrize("of_pipeline", [False, True])
@pytest.mark.parametrize(
    ("task", "source_task"), [("captioning", "binary"), ("binary", "captioning"), ("damage", "binary")]
)
def test_the_encoder_of_another_task(tmp_path, task, source_task, of_pipeline):
    source = tiny_model(source_task)
    for parameter in source.parameters():
        parameter.data.normal_()
    vocabulary = [f"word {n}" for n in range(9)] if source_task == "captioning" else []
    words = ["<pad>", *vocabulary, "<unk>", "<start>", "<end>"] if vocabulary else None
    (Change3DPipeline(source, vocabulary=words) if of_pipeline else source).save_pretrained(tmp_path / "source")
    model = tiny_model(task)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initialize_encoder(model, str(tmp_path / "source"))

    number_of_frames = {"binary": 1, "captioning": 1, "damage": 2}
    for key in before:
        expected = key.startswith(("encoder.stem", "encoder.stages.0", "encoder.stages.1", "encoder.stages.2"))
        if key == "encoder.perception_frames":
            expected = number_of_frames[task] == number_of_frames[source_task]
        assert is_taken(model, key, before, source.state_dict()) == expected or torch.equal(
            before[key], source.state_dict().get(key, torch.empty(0))
        ), key


def test_perception_frames_of_another_size_are_left_out(tmp_path):
    tiny_model("binary").save_pretrained(tmp_path / "source")
    model = tiny_model("binary", sample_size=48)
    before = model.encoder.perception_frames.detach().clone()
    initialize_encoder(model, str(tmp_path / "source"))
    assert torch.equal(model.encoder.perception_frames, before)


def test_encoders_that_do_not_fit(tmp_path):
    tiny_model("binary").save_pretrained(tmp_path / "source")
    wider = Change3DModel("binary", **{**TINY_MODEL, "width_factor": 1.0})
    before = {key: value.clone() for key, value in wider.state_dict().items()}
    with pytest.raises(ValueError, match=r"an X3D with .*'width_factor': 0\.5.*; required: .*'width_factor': 1\.0"):
        initialize_encoder(wider, str(tmp_path / "source"))
    with pytest.raises(ValueError, match=r"`pretrained_encoder` is '.*nothing'.*the file X3D_L\.pyth, or a folder"):
        initialize_encoder(wider, str(tmp_path / "nothing"))
    assert all(torch.equal(before[key], value) for key, value in wider.state_dict().items())
