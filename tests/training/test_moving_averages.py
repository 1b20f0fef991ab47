import pytest
import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lightningdit.training.moving_averages import MovingAverages, power_exponent


def test_constant_decay_from_the_first_step_on():
    weight = torch.nn.Parameter(torch.zeros(3))
    averages = MovingAverages([weight], [0.9, 0.5, 0.0])
    expected = dict.fromkeys((0.9, 0.5, 0.0), 0.0)
    for value in (1.0, 3.0, -2.0):
        weight.data.fill_(value)
        averages.step([weight])
        expected = {decay: decay * old + (1 - decay) * value for decay, old in expected.items()}
    for decay, (average,) in averages:
        assert average.tolist() == pytest.approx([expected[decay]] * 3)
    assert averages.num_steps == 3


def test_warmup():
    weight = torch.nn.Parameter(torch.zeros(1))
    averages = MovingAverages([weight], [0.3], use_warmup=True)
    expected = 0.0
    for step in range(1, 7):
        weight.data.fill_(float(step))
        averages.step([weight])
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    ((_, (average,)),) = averages
    assert average.item() == pytest.approx(expected)


@pytest.mark.parametrize(("number", "width"), [(0, 0.05), (1, 0.2)])
def test_power_profiles_are_those_recorded_from_facm(golden_frontier, number, width):
    recorded = load_file(golden_frontier("facm/ema_updates.safetensors"))
    names = ("w", "b", "pos_embed")
    weights = [torch.nn.Parameter(torch.zeros_like(recorded[f"online.{name}"][0])) for name in names]
    averages = MovingAverages(weights, [0.999999], relative_width=width)
    for step in range(8):
        for weight, name in zip(weights, names, strict=True):
            weight.data.copy_(recorded[f"online.{name}"][step])
        averages.step(weights)
        ((_, found),) = averages
        expected = [recorded[f"ema{number}.{name}"][step] for name in names]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-7)
    assert averages.models[0.999999].cur_decay_value == pytest.approx([0.12041392353699258, 0.7168561842054784][number])


@pytest.mark.parametrize("width", [0.01, 0.1, 0.28])
def test_the_width_of_a_power_profile(width):
    """Standard deviation of p(t) ~ t^gamma on [0, 1], by its moments."""
    gamma = power_exponent(width)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert (square - mean**2) ** 0.5 == pytest.approx(width)


def test_the_numbers_are_those_of_the_averages_of_diffusers():
    weights = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(7))]
    averages = MovingAverages(weights, [0.99], use_warmup=True)
    expected = EMAModel(weights, decay=0.99, min_decay=0.0, update_after_step=-1)
    for _ in range(4):
        for weight in weights:
            weight.data.normal_()
        averages.step(weights)
        expected.step(weights)
    ((_, found),) = averages
    torch.testing.assert_close(found, expected.shadow_params, rtol=1e-6, atol=1e-7)


def test_one_pass_over_the_weights():
    class Operations(TorchDispatchMode):
        names = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(4)]
    averages = MovingAverages(weights, [0.9, 0.5])
    with Operations() as operations:
        averages.step(weights)
    assert operations.names == ["_foreach_lerp_", "_foreach_lerp_"]
