# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The Fréchet distance between two sets of features, taken as Gaussians (FID: Heusel et al. 2017, arXiv 1706.08500).

d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))  (equation 6)

It is computed in float64 and without a general matrix square root, which is unstable for singular covariances: with
C_i = A_i A_i^T from the eigenvalues of the symmetric C_i, the trace of the root is the sum of the singular values of
A_1^T A_2. The order of all sums that this module writes out is fixed; the number of threads of the linear algebra
changes the distance by less than 1e-9 of the traces.

Letters in the shape comments: B samples of a batch, N samples, D features, R eigenvalues that are not rounding errors.
"""

import warnings

import torch

from .finite import check_finite


class FeatureStatistics:
    """Mean and unbiased covariance, in float64, of features that arrive in batches.

    Batches are merged by their means and centred sums of squares (Chan, Golub, LeVeque 1983), which loses no digits to
    cancellation where the mean is large.

    Args:
        num_features: The number D of features.

    Attributes:
        count: The number of samples so far.
        mean: Their mean, [D].
        scatter: The sum of (x - mean)(x - mean)^T over the samples, [D, D].
    """

    def __init__(self, num_features: int):
        self.num_features = num_features
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    @classmethod
    def of(cls, features: torch.Tensor) -> "FeatureStatistics":
        """Compute the statistics of features [N, D]."""
        statistics = cls(features.shape[-1])
        statistics.update(features)
        return statistics

    def update(self, features: torch.Tensor) -> None:
        """Add features [B, D] of any floating-point type, on any device.

        Raises:
            ValueError: For another shape, or values that are not finite; the statistics are unchanged then.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"`features` has shape {list(features.shape)}; required: [B, {self.num_features}].")
        features = features.detach().double().cpu()
        check_finite(features=features)
        if len(features) == 0:
            return
        mean = features.mean(0)
        centred, difference, total = features - mean, mean - self.mean, self.count + len(features)
        self.scatter += centred.T @ centred
        self.scatter += torch.outer(difference, difference) * (self.count * len(features) / total)
        self.mean += difference * (len(features) / total)
        self.count = total

    @property
    def covariance(self) -> torch.Tensor:
        """The unbiased covariance [D, D]; warns if there are too few samples for full rank.

        Raises:
            ValueError: For fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"the statistics are of {self.count} samples; required: at least 2.")
        if self.count <= self.num_features:
            warnings.warn(
                f"a covariance of {self.num_features} features from {self.count} samples has rank {self.count - 1} at "
                f"most; a Fréchet distance of it is biased. More than {self.num_features} samples are needed.",
                stacklevel=2,
            )
        return self.scatter / (self.count - 1)

    def distance_to(self, other: "FeatureStatistics") -> float:
        """Compute `frechet_distance` to the other set; warns and raises as `covariance` does."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)


def frechet_distance(
    mean_1: torch.Tensor, covariance_1: torch.Tensor, mean_2: torch.Tensor, covariance_2: torch.Tensor
) -> float:
    """Compute the squared Fréchet distance between two Gaussians (equation 6).

    Args:
        mean_1, mean_2: The means, [D].
        covariance_1, covariance_2: The covariances [D, D]: symmetric, without negative eigenvalues, possibly singular.

    Returns:
        The distance d^2, at least 0.

    Raises:
        ValueError: If shapes do not fit, a value is not finite, or a matrix is no covariance.
    """
    mean_1, mean_2 = mean_1.double(), mean_2.double()
    if mean_1.ndim != 1 or mean_1.shape != mean_2.shape:
        raise ValueError(f"the means have shapes {list(mean_1.shape)} and {list(mean_2.shape)}; required: [D] each.")
    check_finite(mean_1=mean_1, mean_2=mean_2)
    factor_1 = _factor("covariance_1", covariance_1, len(mean_1))
    factor_2 = _factor("covariance_2", covariance_2, len(mean_1))
    trace_of_root = torch.linalg.svdvals(factor_1.T @ factor_2).sum()
    traces = factor_1.square().sum() + factor_2.square().sum()
    distance = (mean_1 - mean_2).square().sum() + traces - 2 * trace_of_root
    return max(distance.item(), 0.0)  # it can be negative by rounding only


def _factor(name: str, covariance: torch.Tensor, size: int) -> torch.Tensor:
    """Return A such that A A^T is the covariance: [D, D] -> [D, R]."""
    if covariance.shape != (size, size):
        raise ValueError(f"`{name}` has shape {list(covariance.shape)}; required: {[size, size]}, as the means.")
    covariance = covariance.double()
    check_finite(**{name: covariance})
    largest = covariance.abs().max()
    asymmetry = (covariance - covariance.T).abs().max()
    if asymmetry > 1e-6 * largest:
        raise ValueError(f"`{name}` differs from its transpose by {asymmetry:g}; required: a symmetric matrix.")
    eigenvalues, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # ascending
    if eigenvalues[0] < -1e-6 * largest * size:
        raise ValueError(f"`{name}` has the eigenvalue {eigenvalues[0]:g}; required: none below 0.")
    # Rounding errors in place of zeros would contribute by their square roots, which are much larger.
    is_significant = eigenvalues > eigenvalues[-1] * size * torch.finfo(torch.float64).eps
    return vectors[:, is_significant] * eigenvalues[is_significant].sqrt()
