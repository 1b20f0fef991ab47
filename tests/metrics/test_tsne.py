import importlib.util

import pytest
import torch

from diffusers_lightningdit.metrics.tsne import tsne_plane


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
