import pytest
import torch

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
