import pytest
import torch
from diffusers.training_utils import EMAModel
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lightningdit.training.moving_averages import MovingAverages


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
