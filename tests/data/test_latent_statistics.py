"""Statistics of latents are right, and have the same bits however the work is shared."""

import dataclasses
import json
import random

import pytest
import torch

from diffusers_lightningdit.data.latent_statistics import LatentsStatistics, check_statistics


def of_parts(latents, sizes):
    return LatentsStatistics.combine(LatentsStatistics.of(part) for part in latents.split(sizes))


def test_statistics_are_those_of_all_latents_at_once():
    latents = torch.randn(10, 3, 4, 5, dtype=torch.float64) * torch.tensor([0.1, 1.0, 7.0]).view(1, 3, 1, 1)
    statistics = of_parts(latents, [1, 4, 2, 3])
    values = latents.transpose(0, 1).flatten(1)
    assert statistics.count == 200
    assert statistics.mean == pytest.approx(values.mean(1).tolist(), abs=1e-12)
    assert statistics.std == pytest.approx(values.std(1).tolist(), rel=1e-12)


def test_statistics_survive_a_mean_far_from_zero():
    latents = 1e4 + torch.randn(64, 1, 8, 8, dtype=torch.float64)
    assert of_parts(latents, 16).std == pytest.approx([latents.std().item()], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_have_the_same_bits_whoever_measured_the_parts(dtype):
    """The parts are measured in any order, on any number of threads, and kept as JSON; their order decides."""
    latents = (torch.randn(600, 3, 16, 16) * torch.tensor([1e-3, 1.0, 300.0]).view(1, 3, 1, 1)).to(dtype)
    parts = latents.split(100)
    expected = LatentsStatistics.combine(map(LatentsStatistics.of, parts))
    threads, records = torch.get_num_threads(), {}
    try:
        for number in random.sample(range(len(parts)), len(parts)):
            torch.set_num_threads(1 + number % 2)
            statistics = LatentsStatistics.of(parts[number])
            records[number] = json.loads(json.dumps(dataclasses.asdict(statistics)))
    finally:
        torch.set_num_threads(threads)
    assert LatentsStatistics.combine(LatentsStatistics(**records[number]) for number in range(len(parts))) == expected
    assert expected.std == pytest.approx(latents.double().transpose(0, 1).flatten(1).std(1).tolist(), rel=1e-12)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_statistics_refuse_what_is_no_latent(value):
    with pytest.raises(ValueError, match=r"latents of shape \[2, 1, 1, 1\] hold no finite numbers"):
        LatentsStatistics.of(torch.tensor([0.0, value]).view(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"latents of shape \[0, 1, 2, 2\] hold no finite numbers"):
        LatentsStatistics.of(torch.zeros(0, 1, 2, 2))


def test_statistics_are_the_originals(golden):
    from safetensors.torch import load_file

    folder = golden("latent_dataset/imagenet_train_64")
    expected = torch.load(folder / "latents_stats.pt", weights_only=True)
    shards = [load_file(shard)["latents"] for shard in sorted(folder.glob("*.safetensors"))]
    statistics = LatentsStatistics.combine(map(LatentsStatistics.of, shards))
    assert statistics.mean == pytest.approx(expected["mean"].flatten().tolist(), abs=1e-5)
    assert statistics.std == pytest.approx(expected["std"].flatten().tolist(), rel=1e-5)


def test_statistics_of_a_sample_of_endless_data():
    sample = torch.randn(64, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    sample = sample * torch.tensor([2.0, 0.5]).view(2, 1, 1) + torch.tensor([3.0, -1.0]).view(2, 1, 1)
    check_statistics(sample, [3.0, -1.0], [2.0, 0.5], "data", tolerance=0.05)
    for mean, std, channel in (([5.0, -1.0], [2.0, 0.5], 0), ([3.0, -1.0], [2.0, 1.0], 1)):
        with pytest.raises(ValueError, match=f"for channel {channel}, the latents in data have mean"):
            check_statistics(sample, mean, std, "data", tolerance=0.05)
