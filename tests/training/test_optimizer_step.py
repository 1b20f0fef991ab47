import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.optimizer_step import clip_gradients, due, finish_step, step_optimizers
from diffusers_lightningdit.training.run_state import RunState
from diffusers_lightningdit.training.spike_guard import SpikeGuard

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


def run_of_two_models(tmp_path, lines: list[str]) -> RunState:
    accelerator, models, optimizers = scaled_run(False)
    names = ("generator", "critic")
    schedules = [LambdaLR(optimizer.optimizer, lambda step: 1.0) for optimizer in optimizers]
    averages = {"generator": MovingAverages(models[0].parameters(), (0.5,))}
    by_name = [dict(zip(names, values, strict=True)) for values in (models, optimizers, schedules)]
    return RunState(
        accelerator, str(tmp_path), *by_name, averages, SpikeGuard(), {}, {}, {}, report=lines.append
    )  # fmt: skip


def backward_of_both(state: RunState, factor: float = 1.0) -> None:
    for model, scale in zip(state.models.values(), (1.0, factor), strict=True):
        state.accelerator.backward(scale * model(torch.ones(1, 3)).square().sum())


def finish_both(state: RunState) -> dict[str, float]:
    return finish_step(state, {"loss": torch.tensor(2.0)}, lambda means: means["loss"], None, list(state.models))


def test_the_gradient_norm_of_every_model_has_to_be_finite(tmp_path):
    """That of the second is recorded, and judged only for NaN and infinity: a discriminator's may vanish and return."""
    lines: list[str] = []
    state = run_of_two_models(tmp_path, lines)
    before = [model.weight.detach().clone() for model in state.models.values()]
    backward_of_both(state, factor=math.inf)
    metrics = finish_both(state)
    assert not math.isfinite(metrics["critic_grad_norm"]) and math.isfinite(metrics["grad_norm"])
    assert lines[0].startswith("step 1 skipped: critic_grad_norm is ")
    assert all(torch.equal(m.weight, weight) for m, weight in zip(state.models.values(), before, strict=True))
    state.spike_guard.window = 4
    for factor in (1e-8, 1e-8, 1e-8, 1.0):
        backward_of_both(state, factor)
        assert finish_both(state)["skipped"] == 1


def test_the_host_reads_numbers_of_the_device_once_a_step(tmp_path, monkeypatch):
    class Reads(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += func is torch.ops.aten._local_scalar_dense.default  # item, float, bool
            return func(*args, **(kwargs or {}))

    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(len(self)) or tolist(self))
    state = run_of_two_models(tmp_path, [])
    backward_of_both(state)
    with Reads() as reads:
        finish_both(state)
    assert (reads.number, lists) == (0, [5])  # the loss, two norms, and a request for each of two signals


def test_due():
    assert [step for step in range(1, 8) if due(step, 3, last=7)] == [3, 6, 7]
    assert not due(7, None, last=7)


def test_gradients_are_clipped_element_by_element(tmp_path):
    """The norm is that before; plain gradient descent at 0.1 then moves no weight further than a tenth of the limit."""
    state = run_of_two_models(tmp_path, [])
    before = [model.weight.detach().clone() for model in state.models.values()]
    backward_of_both(state, factor=1e-3)
    gradients = [model.weight.grad.clone() for model in state.models.values()]
    metrics = finish_step(
        state, {"loss": torch.tensor(2.0)}, lambda means: means["loss"], None, list(state.models), 0.01
    )
    assert metrics["grad_norm"] > 0.01
    for model, weight, gradient in zip(state.models.values(), before, gradients, strict=True):
        torch.testing.assert_close(model.weight.detach(), weight - 0.1 * gradient.clamp(-0.01, 0.01))
    assert gradients[0].abs().max() > 0.01 > gradients[1].abs().max()
