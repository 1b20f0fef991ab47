"""The file of the best weights of a run: what is taken from it, and what is refused."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny_change3d import tiny_model
from tiny_training import fresh_accelerate_state  # noqa: F401  (a fixture)

from diffusers_lightningdit.training.change3d.validation import BEST_FILE, BestWeights


def test_best_weights_are_kept_and_read_back(tmp_path):
    model, accelerator = tiny_model("binary"), Accelerator(cpu=True)
    best = BestWeights(tmp_path, accelerator, 0, model)
    best.offer(3, float("-inf"), model.state_dict())  # of a model that computed NaN
    assert best.step is None and not (tmp_path / BEST_FILE).exists()
    best.offer(4, 0.5, model.state_dict())
    again = BestWeights(tmp_path, accelerator, 5, model)
    assert (again.step, again.score) == (4, 0.5)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in again.load().items())


def test_best_weights_that_cannot_be_gone_on_with(tmp_path):
    model, accelerator, file = tiny_model("binary"), Accelerator(cpu=True), tmp_path / BEST_FILE
    weights, found = model.state_dict(), {"step": "1", "score": "0.5"}
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    for tensors, metadata, message in (
        (weights, {}, "is damaged"),
        (weights, found | {"score": "nan"}, "has values that are NaN or infinite"),
        ({**weights, name: weights[name] * torch.nan}, found, "has values that are NaN or infinite"),
        ({**weights, name: weights[name].flatten()[:1]}, found, "has the weights of another model"),
        ({"a": torch.zeros(1)}, found, "has the weights of another model"),
    ):
        save_file(tensors, file, metadata)
        with pytest.raises(ValueError, match=f"{BEST_FILE} {message}.*; required: as it was written"):
            BestWeights(tmp_path, accelerator, 1, model)
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        BestWeights(tmp_path, accelerator, 1, model)
