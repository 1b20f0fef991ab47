import accelerate
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from diffusers_lightningdit.training import accelerator
from diffusers_lightningdit.training.config import TrainingConfig


def example_config(tmp_path, **settings) -> TrainingConfig:
    settings = {"global_batch_size": 4, "max_train_steps": 5, "learning_rate": 1.0, **settings}
    return TrainingConfig(data="images", output_dir=str(tmp_path / "new"), **settings)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps the mixed precision for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="`mixed_precision` is 'fp16'; required on a CPU: no or bf16"):
        accelerator.make_accelerator(example_config(tmp_path, mixed_precision="fp16"))


def test_eight_bits_need_a_package(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(accelerator, "is_torchao_available", lambda: False)
    monkeypatch.setattr(accelerate.state, "is_fp8_available", lambda: False)
    with pytest.raises(ValueError, match="`mixed_precision` is 'fp8'; required: what this machine computes in"):
        accelerator.make_accelerator(example_config(tmp_path, mixed_precision="fp8"))


def test_eight_bits_on_a_cpu_need_a_recent_torch(tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(accelerator, "is_torch_version", lambda operation, version: True)
    with pytest.raises(ValueError, match="`mixed_precision` is 'fp8'; required on a CPU: torch"):
        accelerator.make_accelerator(example_config(tmp_path, mixed_precision="fp8"))


def test_eight_bits_need_a_recent_gpu(tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("cuda")))
    monkeypatch.setattr(accelerator, "check_cuda_fp8_capability", lambda: False)
    with pytest.raises(ValueError, match="`mixed_precision` is 'fp8'; required: a GPU of compute"):
        accelerator.make_accelerator(example_config(tmp_path, mixed_precision="fp8"))
