import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from diffusers_lightningdit.training.config import TrainingConfig
from diffusers_lightningdit.training.progress import TrainingProgress, forward_flops, peak_flops


def test_operations_are_counted_without_computing():
    with torch.device("meta"):
        model, inputs = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.empty(7, 3)
    assert forward_flops(model, inputs) == 2 * 7 * (3 * 5 + 5 * 2)


def test_the_peak_is_known_by_the_devices_name(monkeypatch):
    assert peak_flops(torch.device("cpu")) is None
    names = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA L40S": 362e12, "Other": None}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak


def test_lines_of_metrics(tmp_path, capsys):
    config = TrainingConfig(
        data="x", output_dir=str(tmp_path / "run"), global_batch_size=4, max_train_steps=5, learning_rate=1.0,
        logging_steps=2,
    )  # fmt: skip
    with TrainingProgress(config, Accelerator(cpu=True), flops_per_image=1e6) as progress:
        progress.peak = 1e9
        for step in range(1, 6):
            progress.update(step, {"loss": 1 / step})
        progress.record(5, {"validation_loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5, 5]
    assert lines[1]["loss"] == 0.25
    assert lines[1]["mfu"] == pytest.approx(lines[1]["images_per_second"] * 1e6 / 1e9)
    assert lines[3] == {"step": 5, "validation_loss": 0.5}
    assert progress.bar.n == 5
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:  # what is no record is not taken for one
        file.write(b'5\n\xff\n{"validation_loss": 1}\n' + b"[" * 5000 + b"\n")
    assert progress.has_validation(5) and not progress.has_validation(4)
    assert "step 5: validation_loss 0.5\n" in capsys.readouterr().out
