import importlib.util
import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.metrics.uniformity import principal_plane, tsne_plane, uniformity


@pytest.mark.parametrize("name", ["gauss", "clusters", "uniform"])
@pytest.mark.parametrize("suffix", ["", "__float64_input"])
def test_the_recorded_metrics(golden, name, suffix):
    points = load_file(golden("uniformity/points.safetensors"))[name]
    recorded = json.loads(golden("uniformity/metrics.json").read_text())[name + suffix]
    assert uniformity(points.double() if suffix else points) == pytest.approx(recorded, rel=1e-9)


def test_an_even_ring_is_as_even_as_can_be():
    angles = torch.arange(64, dtype=torch.float64) * 2 * math.pi / 64
    metrics = uniformity(torch.stack([angles.cos(), angles.sin()], 1))
    assert metrics == pytest.approx(
        {"density_std": 0, "density_cv": 0, "normalized_entropy": 1, "gini_coefficient": 0}, abs=1e-8
    )


def test_the_plane_holds_the_largest_variance():
    coordinates = torch.randn(200, 2, dtype=torch.float64)
    coordinates = (coordinates - coordinates.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(coordinates.T.cov())).T
    coordinates = coordinates * torch.tensor([5.0, 3.0])  # uncorrelated, of standard deviation 5 and 3
    axes = torch.linalg.qr(torch.randn(12, 2, dtype=torch.float64)).Q
    plane = principal_plane((coordinates @ axes.T + 4).view(200, 3, 2, 2))
    torch.testing.assert_close(plane.abs(), coordinates.abs())
    assert (plane.gather(0, plane.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(5, 3), r"shape \[5, 3\]; required: \[N, 2\]"),
        (torch.zeros(2, 2), "N at least 3"),
        (torch.arange(10.0)[:, None].expand(-1, 2), "lie on a line"),
        (torch.full((5, 2), math.nan), "NaN or infinity"),
    ],
)
def test_points_without_a_density(points, message):
    with pytest.raises(ValueError, match=message):
        uniformity(points)


@pytest.mark.parametrize("shape", [(60, 20), (20, 60), (30, 30)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_plane_is_that_of_the_singular_value_decomposition(shape, offset):
    latents = torch.randn(shape, dtype=torch.float64) * torch.linspace(1, 3, shape[1]) + offset
    left, sizes, _ = torch.linalg.svd(latents - latents.mean(0), full_matrices=False)
    expected = left[:, :2] * sizes[:2]
    expected *= expected.gather(0, expected.abs().argmax(0, keepdim=True)).sign()
    torch.testing.assert_close(principal_plane(latents), expected, rtol=0, atol=1e-12 * sizes[0].item())


def test_latents_that_do_not_vary_lie_at_one_point():
    assert principal_plane(torch.ones(5, 3)).tolist() == [[0, 0]] * 5


def test_too_few_latents_for_a_plane():
    with pytest.raises(ValueError, match=r"shape \[2, 4\]; required: 3 latents"):
        principal_plane(torch.zeros(2, 4))


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ImportError, match=r"diffusers-lightningdit\[evaluation\]"):
        uniformity(torch.rand(5, 2))


@pytest.fixture(scope="module")
def clusters() -> torch.Tensor:
    """Two clouds of 30 points that lie far apart, as latents [60, 4, 2, 2]."""
    torch.manual_seed(0)
    latents = torch.randn(60, 4, 2, 2)
    latents[30:] += 20
    return latents


def test_neighbours_stay_neighbours(clusters):
    plane = tsne_plane(clusters, perplexity=10)
    distances = torch.cdist(plane, plane).fill_diagonal_(torch.inf)
    assert torch.equal(distances.argmin(1) < 30, torch.arange(60) < 30)
    assert torch.equal(tsne_plane(clusters, perplexity=10), plane)


@pytest.mark.parametrize("perplexity", [0, 60, 100])
def test_perplexity_out_of_range(clusters, perplexity):
    with pytest.raises(ValueError, match=f"`perplexity` is {perplexity}; required: above 0 and below the 60 latents"):
        tsne_plane(clusters, perplexity)


def test_values_that_are_not_finite(clusters):
    with pytest.raises(ValueError, match="`latents` holds NaN or infinity"):
        tsne_plane(torch.where(clusters > 20, torch.nan, clusters), 10)


def test_scikit_learn_is_named_where_it_is_missing(clusters, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'needs scikit-learn: pip install "diffusers-lightningdit\[evaluation\]"'):
        tsne_plane(clusters, 10)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_no_tsne_of_latents_that_are_all_the_same(scale):
    """scikit-learn's solver crashes on them, and the process with it."""
    with pytest.raises(ValueError, match=r"`latents` have the variance .* of an autoencoder that has not collapsed"):
        tsne_plane(1 + scale * torch.rand(9, 2, dtype=torch.float64), 3.0)
