import math

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusers_lightningdit.metrics.frechet import FeatureStatistics, frechet_distance


def statistics_of(features: torch.Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    statistics.update(features)
    return statistics


def random_covariance(size: int) -> torch.Tensor:
    return (torch.randn(4 * size, size, dtype=torch.float64) * torch.linspace(0.5, 2, size)).T.cov().reshape(size, size)


def random_rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


# ---------------------------------------------------------------------------------------------------------------------
# The distance
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_general_matrix_square_root_where_it_is_stable(size):
    means, covariances = torch.randn(2, size), [random_covariance(size) for _ in range(2)]
    root = scipy.linalg.sqrtm(covariances[0].numpy() @ covariances[1].numpy()).real
    traces = sum(covariance.trace().item() for covariance in covariances)
    expected = (means[0] - means[1]).double().square().sum().item() + traces - 2 * np.trace(root)
    distance = frechet_distance(means[0], covariances[0], means[1], covariances[1])
    assert distance == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_features():
    """The distance of the covariances C and 4 C is tr(C) (1 - 2)^2, whatever the rank of C."""
    statistics = statistics_of(torch.randn(300, 2048))
    with pytest.warns(UserWarning, match="of 2048 features from 300 samples has rank 299 at most"):
        covariance = statistics.covariance
    distance = frechet_distance(statistics.mean, covariance, statistics.mean + 0.5, 4 * covariance)
    assert distance == pytest.approx(2048 * 0.25 + covariance.trace().item(), rel=1e-9)


def test_covariances_of_different_ranges():
    """The distance of covariances on disjoint axes is the sum of their traces."""
    first, second = (torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([3.0, 2, 0, 0], [0.0, 0, 5, 1]))
    rotation = random_rotation(4)
    first, second = (rotation @ covariance @ rotation.T for covariance in (first, second))
    assert frechet_distance(torch.zeros(4), first, torch.zeros(4), second) == pytest.approx(11, rel=1e-12)


def test_eigenvalues_over_many_orders():
    """The distance of covariances with the same axes is the sum of (sqrt(l_1) - sqrt(l_2))^2."""
    eigenvalues = 10.0 ** torch.linspace(-14, 2, 200, dtype=torch.float64)
    rotation = random_rotation(200)
    first, second = ((rotation * values) @ rotation.T for values in (eigenvalues, eigenvalues.flip(0)))
    expected = (eigenvalues.sqrt() - eigenvalues.flip(0).sqrt()).square().sum().item()
    assert frechet_distance(torch.zeros(200), first, torch.zeros(200), second) == pytest.approx(expected, rel=1e-6)


def test_equal_gaussians():
    covariance = random_covariance(30)
    assert frechet_distance(torch.ones(30), covariance, torch.ones(30), covariance) == pytest.approx(0, abs=1e-11)


def test_a_float32_covariance_is_symmetric_enough():
    covariance = torch.randn(50, 8).T.cov()
    assert frechet_distance(torch.zeros(8), covariance, torch.ones(8), covariance) == pytest.approx(8, rel=1e-6)


def test_the_number_of_threads_changes_no_digit_that_is_written():
    features = torch.randn(2, 1500, 96) @ torch.randn(96, 96)
    num_threads = torch.get_num_threads()
    distances = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            distances.append(statistics_of(features[0]).distance_to(statistics_of(features[1])))
    finally:
        torch.set_num_threads(num_threads)
    assert distances[1:] == pytest.approx(distances[:1] * 2, rel=1e-10)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (torch.eye(3), r"shape \[3, 3\]; required: \[2, 2\]"),
        (torch.tensor([[1.0, 0.5], [0.1, 1]]), "differs from its transpose by 0.4"),
        (torch.tensor([[1.0, 0], [0, -1]]), "has the eigenvalue -1; required: none below 0"),
        (torch.tensor([[1.0, 0], [0, math.nan]]), "NaN or infinity"),
    ],
)
def test_no_covariance(covariance, message):
    with pytest.raises(ValueError, match=f"`covariance_2`.*{message}"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(2), covariance)
    with pytest.raises(ValueError, match=r"the means have shapes \[2\] and \[3\]"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3))


# ---------------------------------------------------------------------------------------------------------------------
# The statistics
# ---------------------------------------------------------------------------------------------------------------------


def test_batches_add_up_where_the_mean_is_large():
    features = torch.randn(101, 5, dtype=torch.float64) + 1e6
    statistics = FeatureStatistics(5)
    for batch in (features[:1], features[1:40], features[:0], features[40:]):
        statistics.update(batch)
    assert statistics.count == 101
    np.testing.assert_allclose(statistics.mean.numpy(), features.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance.numpy(), np.cov(features.numpy().T), rtol=1e-8, atol=1e-9)


def test_enough_samples_give_no_warning(recwarn):
    assert statistics_of(torch.randn(6, 5)).covariance.shape == (5, 5)
    assert len(recwarn) == 0


def test_features_that_do_not_fit():
    statistics = FeatureStatistics(4)
    with pytest.raises(ValueError, match=r"shape \[2, 3\]; required: \[B, 4\]"):
        statistics.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        statistics.update(torch.full((2, 4), math.inf))
    with pytest.raises(ValueError, match="of 0 samples; required: at least 2"):
        statistics.covariance  # noqa: B018
