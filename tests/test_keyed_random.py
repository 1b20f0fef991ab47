import random

import numpy as np
import pytest
import torch

from diffusers_lightningdit.keyed_random import KeyedRandom, image_generator, random_key, seed_process


def test_a_sample_has_the_same_numbers_in_any_share_of_the_batch():
    whole = KeyedRandom(3, 17, range(8))
    parts = [KeyedRandom(3, 17, range(first, first + 2)) for first in range(0, 8, 2)]
    assert torch.equal(whole.normal("noise", (2, 3)), torch.cat([part.normal("noise", (2, 3)) for part in parts]))
    assert torch.equal(whole.uniform("times"), torch.cat([part.uniform("times") for part in parts]))


def test_every_part_of_the_key_counts():
    draws = [
        KeyedRandom(seed, position, range(place, place + 1)).normal(purpose, (4,))
        for seed, position, place, purpose in [
            (0, 0, 0, "noise"),
            (1, 0, 0, "noise"),
            (0, 1, 0, "noise"),
            (0, 0, 1, "noise"),
            (0, 0, 0, "posterior"),
        ]
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_distributions():
    draws = KeyedRandom(0, 5, range(4000))
    normal, uniform = draws.normal("noise", (8,)), draws.uniform("times")
    assert normal.mean().item() == pytest.approx(0, abs=4 / 32_000**0.5)
    assert normal.std().item() == pytest.approx(1, abs=0.02)
    assert 0 <= uniform.min() < uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=4 * 12**-0.5 / 4000**0.5)
    # neighbouring samples, steps and purposes are not correlated
    other = KeyedRandom(0, 6, range(4000)).uniform("times")
    for a, b in ((uniform[1:], uniform[:-1]), (uniform, other), (uniform, draws.uniform("labels"))):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / 4000**0.5


def test_keys_are_not_negative_and_stay_the_same():
    """A checkpoint is resumed by another version too: the numbers of a run must not change."""
    assert random_key(0, 1, 2, "noise") == 2028567929298862587
    assert all(0 <= random_key(number) < 2**63 for number in range(1000))


def test_a_process_has_its_own_stream_in_each_batch():
    def numbers(*key):
        seed_process(*key)
        return random.random(), np.random.random(), torch.rand(1).item()

    first = numbers(0, 5, 1)
    assert numbers(0, 5, 0) != first != numbers(0, 6, 1)
    assert numbers(0, 5, 1) == first


def test_the_noise_of_an_image_depends_on_seed_and_index():
    def noise(seed, index):
        return torch.randn(3, generator=image_generator(seed, index)).tolist()

    different = [noise(seed, index) for seed in (0, 1) for index in range(20)]
    assert len({tuple(values) for values in different}) == 40
    assert noise(1, 7) == different[27]
