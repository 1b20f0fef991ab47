"""The conversion of Change3D from the command line."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from test_scripts import call, fails, identical, script  # noqa: F401 (a fixture)

from diffusers_lightningdit import Change3DModel, Change3DPipeline

CONVERT = script("convert_change3d_to_diffusers")


@pytest.fixture
def checkpoint_file(change3d_checkpoint, tmp_path):
    def write(name: str):
        torch.save(change3d_checkpoint(name), tmp_path / f"{name}.pth")
        return tmp_path / f"{name}.pth"

    return write


@pytest.mark.parametrize("name", ["bcd_64x64", "scd_64x64_c7", "bda_64x64_c5"])
def test_maps_there_and_back(name, checkpoint_file, change3d_checkpoint, tmp_path, capsys):
    call(CONVERT, checkpoint=checkpoint_file(name), output_dir=tmp_path / "pipeline")
    assert "that no forward pass uses" in capsys.readouterr().out
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "pipeline")) is Change3DPipeline
    call(CONVERT, checkpoint=tmp_path / "pipeline", to_original="true", output_dir=tmp_path / "original")
    back = torch.load(tmp_path / "original" / "change3d.pth", weights_only=True)
    assert identical(back, change3d_checkpoint(name))


def test_captions_there_and_back(checkpoint_file, change3d_checkpoint, golden_change3d, tmp_path, capsys):
    file = checkpoint_file("cc_64x64_v43")
    wordmap = golden_change3d("wordmap.json")
    call(CONVERT, checkpoint=file, wordmap=wordmap, output_dir=tmp_path / "pipeline")
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert {word: i for i, word in enumerate(pipe.config.vocabulary)} == json.loads(wordmap.read_text())
    call(CONVERT, checkpoint=file, output_dir=tmp_path / "model")
    assert "no WORDMAP file is given" in capsys.readouterr().out
    assert Change3DModel.from_pretrained(tmp_path / "model").config.vocab_size == 43
    call(CONVERT, checkpoint=tmp_path / "pipeline", to_original="true", output_dir=tmp_path / "original")
    back = torch.load(tmp_path / "original" / "change3d.pth", weights_only=True)
    assert identical(back, change3d_checkpoint("cc_64x64_v43"))


def test_a_model_on_x3d(change3d_checkpoint, tmp_path):
    start = "encoder.x3d."
    weights = {k.removeprefix(start): v for k, v in change3d_checkpoint("bcd_64x64").items() if k.startswith(start)}
    torch.save({"model_state": weights}, tmp_path / "X3D_L.pyth")
    call(CONVERT, checkpoint=tmp_path / "X3D_L.pyth", task="semantic", num_classes=3, sample_size=32,
         output_dir=tmp_path / "new")  # fmt: skip
    model = Change3DModel.from_pretrained(tmp_path / "new" / "model")
    assert (model.config.task, model.config.num_classes, model.config.sample_size) == ("semantic", 3, 32)
    expected = weights["blocks.3.res_blocks.0.branch2.conv_b.weight"]
    assert torch.equal(model.encoder.stages[2][0].depthwise.conv.weight, expected)


def test_bad_input(fails, checkpoint_file, tmp_path):  # noqa: F811
    file = checkpoint_file("bcd_64x64")
    torch.save({"model_state": {}}, tmp_path / "X3D_L.pyth")
    torch.save({"weights": print}, tmp_path / "code.pth")
    (tmp_path / "words.json").write_text('{"a": 1}')
    (tmp_path / "empty").mkdir()
    for options, message in (
        ({"checkpoint": tmp_path / "none.pth"}, "none.pth: no such file"),
        ({"checkpoint": tmp_path / "code.pth"}, "contains the Python object"),
        ({"checkpoint": tmp_path / "X3D_L.pyth"}, "is X3D-L; required: `task`"),
        ({"checkpoint": tmp_path / "X3D_L.pyth", "task": "binary"}, "holds no weights"),
        ({"checkpoint": tmp_path / "X3D_L.pyth", "task": "counting"}, "`task` is 'counting'"),
        ({"checkpoint": tmp_path / "X3D_L.pyth", "task": "semantic"}, "`num_classes` is None"),
        ({"checkpoint": file, "task": "binary"}, "is Change3D, with `task` 'binary' given; required: null"),
        ({"checkpoint": file, "wordmap": tmp_path / "words.json"}, "`wordmap` is given for the task 'binary'"),
        ({"checkpoint": file, "to_original": "true"}, "is no folder"),
        ({"checkpoint": tmp_path / "empty"}, "is a folder; required: a file, or `to_original=true`"),
        ({"checkpoint": tmp_path / "empty", "to_original": "true"}, "config.json is missing"),
        ({"checkpoint": file, "to_original": "true", "task": "binary"}, "`wordmap` or `task` is given"),
    ):
        assert message in fails(CONVERT, **options)
