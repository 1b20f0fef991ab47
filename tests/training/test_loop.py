import itertools

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from diffusers_lightningdit.training.config import TrainingConfig
from diffusers_lightningdit.training.loop import (
    clip_gradients,
    due,
    finish_step,
    make_accelerator,
    make_batch_sampler,
    make_lr_scheduler,
    step_optimizers,
    train_steps,
)
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import SpikeGuard


def example_config(tmp_path, **settings) -> TrainingConfig:
    settings = {"global_batch_size": 4, "max_train_steps": 5, "learning_rate": 1.0, **settings}
    return TrainingConfig(data="images", output_dir=str(tmp_path / "new"), **settings)


class Numbers(Dataset):
    def __init__(self, length=10):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return {"number": int(index)}


def batches(config, position=0):
    accelerator = Accelerator(cpu=True)
    sampler = make_batch_sampler(config, Numbers(), accelerator)
    return train_steps(config, Numbers(), sampler, position, accelerator)


def test_steps_run_over_epochs_and_can_be_found_again(tmp_path):
    config = example_config(tmp_path)
    steps = list(itertools.islice(batches(config), 5))
    assert [len(step) for step in steps] == [1] * 5
    numbers = [batch["number"].tolist() for step in steps for batch, _ in step]
    assert len({*numbers[0], *numbers[1]}) == 8  # no number twice in an epoch
    resumed = [batch["number"].tolist() for ((batch, _),) in itertools.islice(batches(config, 3), 2)]
    assert resumed == numbers[3:]


def test_parts_of_a_step_have_the_same_samples_and_random_numbers(tmp_path):
    ((batch, draws),) = next(batches(example_config(tmp_path)))
    parts = next(batches(example_config(tmp_path, gradient_accumulation_steps=2)))
    assert torch.equal(torch.cat([part["number"] for part, _ in parts]), batch["number"])
    assert torch.equal(torch.cat([part.normal("noise", (2,)) for _, part in parts]), draws.normal("noise", (2,)))


def test_the_processes_generators_depend_on_the_position_alone(tmp_path):
    numbers = [torch.rand(3) for _ in itertools.islice(batches(example_config(tmp_path)), 4)]
    assert not torch.equal(numbers[0], numbers[1])
    next(batches(example_config(tmp_path), position=3))
    assert torch.equal(torch.rand(3), numbers[3])


def test_the_schedule_ends_at_the_last_step(tmp_path):
    config = example_config(tmp_path, lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = make_lr_scheduler(config, optimizer)
    rates = []
    for _ in range(6):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert scheduler.get_last_lr() == [0]


def test_piecewise_schedule(tmp_path):
    config = example_config(tmp_path, lr_scheduler="piecewise_constant", lr_step_rules="1:2,0.1")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_lr_scheduler(config, optimizer)
    rates = []
    for _ in range(4):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


def test_a_batch_that_is_larger_than_the_data_set(tmp_path):
    config = example_config(tmp_path)
    with pytest.raises(ValueError, match="`global_batch_size` is 4; required: at most the 3 samples"):
        make_batch_sampler(config, Numbers(3), Accelerator(cpu=True))


# ---------------------------------------------------------------------------------------------------------------------
# Two optimisers and one loss scaler (fp16), here on a CPU, where Accelerate has none
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps the mixed precision for the life of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def scaled_run(with_scaler: bool) -> tuple[Accelerator, list, list]:
    """(accelerator, models, optimisers) of two models."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    if with_scaler:
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    torch.manual_seed(0)
    models = [torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)]
    pairs = [accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1)) for model in models]
    return accelerator, [model for model, _ in pairs], [optimizer for _, optimizer in pairs]


def backward(accelerator: Accelerator, models: list, factors: tuple[float, ...]) -> float:
    for model, factor in zip(models, factors, strict=False):
        accelerator.backward(factor * model(torch.ones(1, 3)).square().sum())
    return clip_gradients(accelerator, models[0], 0.01).item()


def test_two_optimisers_with_a_loss_scaler_step_as_without():
    found = {}
    for with_scaler in (True, False):
        accelerator, models, optimizers = scaled_run(with_scaler)
        norms = []
        for number_taking_part in (1, 2, 2):  # as a discriminator, which begins later
            norms.append(backward(accelerator, models[:number_taking_part], (1.0, 1.0)))
            step_optimizers(accelerator, optimizers[:number_taking_part])
        found[with_scaler] = [*norms, *(parameter.tolist() for model in models for parameter in model.parameters())]
        assert not with_scaler or accelerator.scaler.get_scale() == 2.0**11  # grown once in three steps
    for scaled, plain in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(torch.tensor(scaled), torch.tensor(plain), atol=1e-3, rtol=1e-3)


def test_of_two_optimisers_only_the_one_whose_gradients_overflow_stays():
    accelerator, models, optimizers = scaled_run(True)
    before = [model.weight.clone() for model in models]
    backward(accelerator, models, (1.0, 1e38))
    step_optimizers(accelerator, optimizers)
    assert [torch.equal(model.weight, weight) for model, weight in zip(models, before, strict=True)] == [False, True]
    assert accelerator.scaler.get_scale() == 2.0**9


def test_steps_can_be_skipped_in_a_row():
    accelerator, models, optimizers = scaled_run(True)
    before = [model.weight.clone() for model in models]
    for _ in range(2):
        backward(accelerator, models, (1.0, 1.0))
        step_optimizers(accelerator, optimizers, skip=True)
    assert all(torch.equal(model.weight, weight) for model, weight in zip(models, before, strict=True))
    backward(accelerator, models, (1.0, 1.0))
    step_optimizers(accelerator, optimizers)
    assert not any(torch.equal(model.weight, weight) for model, weight in zip(models, before, strict=True))


@pytest.mark.parametrize(
    ("factor", "other", "moves", "said"),
    [
        (1.0, 1.0, True, []),
        (1e38, 1.0, False, []),  # the loss scaler's business
        (1.0, float("nan"), False, ["step 1 skipped: other is nan (1 skipped in all)"]),
    ],
)
def test_the_end_of_a_step(tmp_path, factor, other, moves, said):
    """Weights and their average move, or both stay; the step counts in any case."""
    accelerator, models, optimizers = scaled_run(True)
    averages, lines = MovingAverages(models[0].parameters(), (0.5,)), []
    schedule = LambdaLR(optimizers[0].optimizer, lambda step: 1.0)
    state = RunState(accelerator, str(tmp_path), {"model": models[0]}, {"model": optimizers[0]}, {"model": schedule},
                     {"model": averages}, SpikeGuard(), {}, {}, {}, report=lines.append)  # fmt: skip
    before = models[0].weight.detach().clone()
    accelerator.backward(factor * models[0](torch.ones(1, 3)).square().sum())
    scalars = {"loss": torch.tensor(2.0), "other": torch.tensor(other)}
    metrics = finish_step(state, scalars, lambda means: means["loss"], None, ["model"])
    ((_, (average, _)),) = averages
    assert torch.equal(models[0].weight, before) == torch.equal(average, before) == (not moves)
    assert averages.num_steps == moves
    assert (lines, state.step, metrics["loss"], metrics["learning_rate"]) == (said, 1, 2.0, 0.1)


def test_half_precision_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ValueError, match="`mixed_precision` is 'fp16'; required on a CPU: no or bf16"):
        make_accelerator(example_config(tmp_path, mixed_precision="fp16"))


def test_due():
    assert [step for step in range(1, 8) if due(step, 3, last=7)] == [3, 6, 7]
    assert not due(7, None, last=7)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"resolution": 0}, "`resolution` is 0; required: at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; required: a positive number"),
        ({"num_workers": -1}, "`num_workers` is -1; required: at least 0"),
        ({"streaming": True, "num_workers": 1}, "`num_workers` is 1; required: 0 with `streaming`"),
        ({"shuffle_block_size": 0}, "`shuffle_block_size` is 0; required: at least 1"),
        ({"num_open_files": 0}, "`num_open_files` is 0; required: at least 1"),
        ({"checkpointing_steps": 0}, "`checkpointing_steps` is 0; required: at least 1"),
        ({"loss_spike_factor": 1.0}, "`loss_spike_factor` is 1.0; required: above 1"),
        ({"lr_scheduler": "cosin"}, "`lr_scheduler` is 'cosin'; required: one of linear, cosine"),
        ({"lr_scheduler": "piecewise_constant"}, "`lr_step_rules` is None; required: given"),
        ({"lr_step_rules": "1:2,0.1"}, "`lr_step_rules` is '1:2,0.1'; required: given if"),
        ({"mixed_precision": "int8"}, "`mixed_precision` is 'int8'; required: one of no, fp16, bf16, fp8"),
        ({"report_to": "paper"}, "`report_to` is 'paper'; required: of the trackers that are installed"),
    ],
)
def test_values_that_cannot_be_trained_with(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        example_config(tmp_path, **setting)
