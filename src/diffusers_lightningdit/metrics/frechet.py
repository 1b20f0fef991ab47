# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The Fréchet distance of two sets of features, as Gaussians (FID: Heusel et al. 2017, arXiv 1706.08500, eq. 6).

d^2 = |m_1 - m_2|^2 + tr(C_1) + tr(C_2) - 2 tr((C_1 C_2)^(1/2))

In float64, without a general matrix square root, which is unstable where covariances are singular: with
C_i = A_i A_i^T, from the eigenvalues of the symmetric C_i, the last trace is the sum of the singular values of
A_1^T A_2.

Letters in the shape comments: B samples, D features, R eigenvalues above rounding.
"""

import warnings

import torch


class FeatureStatistics:
    """Mean and unbiased covariance of features that come in batches, in float64.

    Batches are combined by their means and centred sums of squares (Chan, Golub, LeVeque 1983), so that nothing cancels
    where the mean is large. `mean` [D] and `scatter` [D, D], the sum of (x - m)(x - m)^T, may be read at any time.

    Args:
        num_features: D.
    """

    def __init__(self, num_features: int):
        self.num_features = num_features
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    @classmethod
    def of(cls, features: torch.Tensor) -> "FeatureStatistics":
        """Of features [N, D] that are there all at once."""
        statistics = cls(features.shape[-1])
        statistics.update(features)
        return statistics

    def update(self, features: torch.Tensor) -> None:
        """Take in features [B, D], of any floating-point type and device.

        Raises:
            ValueError: for another shape, or values that are not finite; nothing is taken in then.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(f"`features` has shape {list(features.shape)}; required: [B, {self.num_features}].")
        features = features.detach().double().cpu()
        if not features.isfinite().all():
            raise ValueError("`features` holds NaN or infinity; required: finite values.")
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
        """[D, D], divided by the number of samples less one; warns if there are too few samples for its full rank.

        Raises:
            ValueError: for fewer than two samples.
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
        """`frechet_distance` of the two sets; warnings and errors as `covariance`."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)


def frechet_distance(
    mean_1: torch.Tensor, covariance_1: torch.Tensor, mean_2: torch.Tensor, covariance_2: torch.Tensor
) -> float:
    """The squared Fréchet distance of two Gaussians, as FID is defined; 0 for equal ones.

    Args:
        mean_1, mean_2: [D].
        covariance_1, covariance_2: [D, D], symmetric, without negative eigenvalues; may be singular.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or a matrix that is no covariance.
    """
    mean_1, mean_2 = mean_1.double(), mean_2.double()
    if mean_1.ndim != 1 or mean_1.shape != mean_2.shape:
        raise ValueError(f"the means have shapes {list(mean_1.shape)} and {list(mean_2.shape)}; required: [D] each.")
    factor_1 = _factor("covariance_1", covariance_1, len(mean_1))
    factor_2 = _factor("covariance_2", covariance_2, len(mean_1))
    trace_of_root = torch.linalg.svdvals(factor_1.T @ factor_2).sum()
    traces = factor_1.square().sum() + factor_2.square().sum()
    distance = (mean_1 - mean_2).square().sum() + traces - 2 * trace_of_root
    return max(distance.item(), 0.0)  # below zero by rounding only


def _factor(name: str, covariance: torch.Tensor, size: int) -> torch.Tensor:
    """A with A A^T = the covariance: [D, D] -> [D, R]."""
    if covariance.shape != (size, size):
        raise ValueError(f"`{name}` has shape {list(covariance.shape)}; required: {[size, size]}, as the means.")
    covariance = covariance.double()
    if not covariance.isfinite().all():
        raise ValueError(f"`{name}` holds NaN or infinity; required: finite values.")
    largest = covariance.abs().max()
    asymmetry = (covariance - covariance.T).abs().max()
    if asymmetry > 1e-6 * largest:
        raise ValueError(f"`{name}` differs from its transpose by {asymmetry:g}; required: a symmetric matrix.")
    eigenvalues, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)  # rising
    if eigenvalues[0] < -1e-6 * largest * size:
        raise ValueError(f"`{name}` has the eigenvalue {eigenvalues[0]:g}; required: none below 0.")
    # What rounding leaves of zeros would count with its square root.
    is_real = eigenvalues > eigenvalues[-1] * size * torch.finfo(torch.float64).eps
    return vectors[:, is_real] * eigenvalues[is_real].sqrt()
