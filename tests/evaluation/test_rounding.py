import math

import pytest

from diffusers_lightningdit.evaluation.rounding import significant


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (123456.789, 123457.0),
        (0.000123456789, 0.000123457),
        (-2 / 3, -0.666667),
        (12345678, 12345678),  # a count
        (math.inf, math.inf),
        ({"a": [1 / 3, 1], "b": {"c": "text"}}, {"a": [0.333333, 1], "b": {"c": "text"}}),
    ],
)
def test_six_digits(value, rounded):
    assert significant(value) == rounded


def test_another_number_of_digits():
    assert significant(math.pi, digits=3) == 3.14
