import random

import numpy as np
import pytest
import torch

from diffusers_lightningdit.keyed_random import (
    KeyedRandom,
    image_generator,
    is_flipped,
    keyed_permutation,
    posterior_noise,
    python_random,
    random_key,
    random_label,
    seed_process,
)


def test_a_sample_has_the_same_numbers_in_any_share_of_the_batch():
    whole = KeyedRandom(3, 17, range(8))
    parts = [KeyedRandom(3, 17, range(first, first + 2)) for first in range(0, 8, 2)]
    assert torch.equal(whole.normal("noise", (2, 3)), torch.cat([part.normal("noise", (2, 3)) for part in parts]))
    assert torch.equal(whole.uniform("times"), torch.cat([part.uniform("times") for part in parts]))


@pytest.mark.gpu
def test_numbers_for_a_gpu_that_are_drawn_on_the_cpu():
    draws = KeyedRandom(3, 17, range(100), "cuda")
    for purpose in ("times", "labels"):  # the memory of the first is pinned, and free for the second
        assert torch.equal(draws.uniform(purpose).cpu(), KeyedRandom(3, 17, range(100)).uniform(purpose))


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


def test_keys_are_not_negative():
    assert all(0 <= random_key(number) < 2**63 for number in range(1000))


def test_the_numbers_of_each_kind_of_key_stay_the_same():
    """What one version has begun is continued by another: a run, cached latents, a set of generated images."""
    assert random_key(0, 1, 2, "noise") == 2028567929298862587
    assert [index for index in range(20) if is_flipped(3, 1, index)] == [0, 2, 3, 5, 6, 7, 12, 16]
    assert keyed_permutation(8, 3, 1).tolist() == [2, 1, 4, 0, 5, 7, 6, 3]
    assert keyed_permutation(8, 3, 1, 2).tolist() == [5, 6, 3, 4, 7, 0, 2, 1]
    assert posterior_noise(3, 7, True, (1, 1, 2)).flatten().tolist() == [-0.15761591494083405, 0.776797354221344]
    assert image_generator(3, 7).initial_seed() == 8047144974679156932
    assert [random_label(3, index, 10) for index in range(8)] == [4, 9, 4, 6, 3, 7, 1, 7]


def test_a_process_has_its_own_stream_in_each_batch():
    def numbers(*key):
        seed_process(*key)
        return random.random(), np.random.random(), torch.rand(1).item()

    first = numbers(0, 5, 1)
    assert numbers(0, 5, 0) != first != numbers(0, 6, 1)
    assert numbers(0, 5, 1) == first


def test_half_of_the_samples_are_flipped_anew_in_each_epoch():
    flips = [[is_flipped(0, epoch, index) for index in range(2000)] for epoch in range(2)]
    assert sum(flips[0]) == pytest.approx(1000, abs=90)  # 4 standard deviations
    assert sum(a != b for a, b in zip(*flips, strict=True)) == pytest.approx(1000, abs=90)
    assert flips[0][:50] == [is_flipped(0, 0, index) for index in range(50)]
    assert flips[0] != [is_flipped(1, 0, index) for index in range(2000)]


def test_noise_depends_on_image_and_flip_only():
    noise = [posterior_noise(seed, index, flip, (4, 8, 8)) for seed, index, flip in [(0, 5, False), (0, 5, True)]]
    assert torch.equal(noise[0], posterior_noise(0, 5, False, (4, 8, 8)))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0], posterior_noise(1, 5, False, (4, 8, 8)))
    many = torch.stack([posterior_noise(0, index, False, (4, 8, 8)) for index in range(200)])
    assert many.mean().item() == pytest.approx(0, abs=0.02)
    assert many.std().item() == pytest.approx(1, abs=0.02)


def test_the_noise_of_an_image_depends_on_seed_and_index():
    def noise(seed, index):
        return torch.randn(3, generator=image_generator(seed, index)).tolist()

    different = [noise(seed, index) for seed in (0, 1) for index in range(20)]
    assert len({tuple(values) for values in different}) == 40
    assert noise(1, 7) == different[27]


def test_variations_of_a_sample():
    draws = {
        (seed, epoch, index): python_random(seed, epoch, index).random() for seed, epoch, index in np.ndindex(3, 4, 5)
    }
    assert len(set(draws.values())) == 60
    assert draws[0, 0, 0] == python_random(0, 0, 0).random()
    assert python_random(3, 4, 2).random() == 0.2711107537471984  # may never change
