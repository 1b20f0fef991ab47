import pytest
from accelerate.state import AcceleratorState

from diffusers_lightningdit.training.accelerator import make_accelerator
from diffusers_lightningdit.training.config import TrainingConfig


def example_config(tmp_path, **settings) -> TrainingConfig:
    settings = {"global_batch_size": 4, "max_train_steps": 5, "learning_rate": 1.0, **settings}
    return TrainingConfig(data="images", output_dir=str(tmp_path / "new"), **settings)


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps the mixed precision for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_half_precision_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="`mixed_precision` is 'fp16'; required on a CPU: no or bf16"):
        make_accelerator(example_config(tmp_path, mixed_precision="fp16"))
