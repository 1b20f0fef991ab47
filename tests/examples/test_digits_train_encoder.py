import json

import pytest
import torch
import train_encoder
from safetensors.torch import load_file
from train_encoder import DigitsEncoderConfig, accuracy, make_classifier, shifted, train

from diffusers_lightningdit.networks.foundation_model import FoundationModel

TINY = {"resolution": 8, "patch_size": 2, "hidden_size": 8, "num_layers": 1, "num_attention_heads": 2}


def run(data, folder, **settings) -> dict:
    settings = {**TINY, "data": data, "output_dir": folder, "held_out_part": 0.25, "batch_size": 3, **settings}
    return train_encoder.main([f"{key}={value}" for key, value in {"num_train_steps": 4, **settings}.items()])


def test_the_result_is_a_foundation_model(data, tmp_path):
    metrics = run(data, tmp_path / "encoder")
    assert metrics == json.loads((tmp_path / "encoder" / "metrics.json").read_text())
    assert metrics["num_held_out"] == 2 and 0 <= metrics["held_out_accuracy"] <= 1
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    foundation_model = FoundationModel.from_pretrained(str(tmp_path / "encoder"))
    features = foundation_model(pixels)
    assert features.shape == (2, 8, 4, 4)
    assert metrics["num_parameters"] == sum(parameter.numel() for parameter in foundation_model.parameters())
    own = FoundationModel.from_pretrained(str(tmp_path / "encoder"), image_normalization="model")
    assert torch.equal(own(pixels), features)


def test_the_seed_decides(data, tmp_path):
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        run(data, tmp_path / name, seed=seed)
    first, second, third = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second", "third"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(torch.equal(first[key], third[key]) for key in first if key.endswith("weight") and "norm" not in key)


@pytest.fixture
def classifier(data, tmp_path):
    few_large_steps = {"num_train_steps": 60, "batch_size": 16, "max_shift": 1, "learning_rate": 1e-2}
    config = DigitsEncoderConfig(data=data, output_dir=str(tmp_path / "encoder"), **few_large_steps, **TINY)
    return config, make_classifier(config, {0: "dark", 1: "bright"})


def test_it_learns(classifier):
    """Dark from bright images."""
    config, classifier = classifier
    labels = torch.arange(2).repeat(20)
    pixels = labels.view(-1, 1, 1, 1) - 0.5 + 0.2 * torch.rand(40, 3, 8, 8)
    train(config, classifier, pixels[:20], labels[:20], torch.Generator().manual_seed(0))
    assert accuracy(classifier, pixels[20:], labels[20:]) == 1
    assert accuracy(classifier, pixels[20:], 1 - labels[20:]) == 0


def test_the_labels_reach_the_last_layer_of_every_patch(classifier):
    _, classifier = classifier
    tokens = []
    classifier.dinov2.register_forward_hook(lambda *call: tokens.append(call[-1].last_hidden_state))
    logits = classifier(torch.rand(2, 3, 8, 8)).logits
    (gradients,) = torch.autograd.grad(logits[:, 0].sum(), tokens[0])
    assert gradients.shape == (2, 17, 8)
    assert (gradients.norm(dim=2) > 0).all()


def test_shifts_fill_with_black():
    pixels = torch.ones(200, 3, 6, 8)
    moved = shifted(pixels, 2, torch.Generator().manual_seed(0))
    rows, columns = (moved[:, 0] > -1).any(2).sum(1), (moved[:, 0] > -1).any(1).sum(1)
    assert set(rows.tolist()) == {4, 5, 6} and set(columns.tolist()) == {6, 7, 8}
    assert set(moved.unique().tolist()) == {-1, 1}
    assert torch.equal(shifted(moved, 0, torch.Generator()), moved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 3}, "`resolution` is 8; required: a multiple of the patch, 3"),
        ({"hidden_size": 9}, "`hidden_size` is 9; required: a multiple of the 2 heads"),
        ({"held_out_part": 1.0}, "`held_out_part` is 1.0; required: a number between 0 and 1"),
        ({"held_out_part": 0.01}, "0 of 8 images; required: some images held out"),
        ({"data": "absent"}, "`data` is 'absent', split 'train'; required"),
        ({"num_steps": 3}, "`num_steps` is no key of DigitsEncoderConfig"),
    ],
)
def test_bad_settings(data, tmp_path, settings, message, capsys):
    with pytest.raises(SystemExit):
        run(settings.pop("data", data), tmp_path / "encoder", **settings)
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert not (tmp_path / "encoder").exists()


def test_an_existing_folder(data, tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        run(data, tmp_path)
    assert "required: a new or an empty folder" in capsys.readouterr().err
