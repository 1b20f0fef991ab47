"""Whole tensors in files from states that may lie in shards on several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffusers_lightningdit.training.checkpoints import DamagedCheckpoint
from diffusers_lightningdit.training.state_io import (
    TensorFile,
    check_shapes,
    copy_tensors,
    gather_model,
    gather_optimizer,
    load_optimizer,
    trained_parameters,
    trained_state,
)


def trained(optimizer_class=torch.optim.AdamW) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[0].bias.requires_grad_(False)
    optimizer = optimizer_class([parameter for parameter in model.parameters() if parameter.requires_grad])
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_frozen_weights_are_left_out_and_buffers_are_not():
    model, _ = trained()
    names = gather_model(model).keys()
    assert names == trained_state(model).keys()
    assert "0.bias" not in names and {"0.weight", "1.running_mean"} <= names


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Rprop])
def test_an_optimisers_state_survives(optimizer_class):
    model, optimizer = trained(optimizer_class)
    tensors, values = gather_optimizer(model, optimizer)
    assert all("|" in key for key in (*tensors, *values))
    other = optimizer_class([{"params": list(group["params"])} for group in optimizer.param_groups])
    load_optimizer(other, trained_parameters(model), tensors, values)
    expected, found = (each.state_dict()["state"] for each in (optimizer, other))
    assert found.keys() == expected.keys()
    for number, entries in expected.items():
        assert all(torch.equal(torch.as_tensor(found[number][key]), torch.as_tensor(v)) for key, v in entries.items())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a": [2]}, "file has no tensor `b`; required: the same architecture"),
        ({"a": [2], "b": [3], "c": [1]}, "file has an unknown tensor `c`; required: the same architecture"),
        ({"a": [2], "b": [4]}, r"file has `b` of shape \[4\]; required: \[3\], the same architecture"),
    ],
)
def test_tensors_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(shapes, {"a": torch.zeros(2), "b": torch.zeros(3)}, "file")


def test_a_file_is_read_tensor_by_tensor(tmp_path):
    save_file({"a": torch.ones(2), "b": torch.full((3,), 2.0)}, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    assert (sorted(file), len(file), file.shapes()) == (["a", "b"], 2, {"a": [2], "b": [3]})
    target = torch.zeros(3)
    copy_tensors(file, {"b": target})
    assert target.tolist() == [2, 2, 2]
    (tmp_path / "y.safetensors").write_bytes(b"{}")
    with pytest.raises(DamagedCheckpoint, match=r"y\.safetensors is missing or damaged"):
        TensorFile(tmp_path / "y.safetensors")


def test_only_the_main_process_keeps_what_is_gathered():
    """Whole and in shards (FSDP2): the second process has no copy, neither for a checkpoint nor for a grid."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    script = Path(__file__).with_name("gather_on_two_processes.py")
    finished = subprocess.run([*command, str(script)], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
