import math

import pytest
import torch

from diffusers_lightningdit.metrics.interpolation_distance import (
    interpolation_distance,
    nearest_by_angle,
    spherical_interpolation,
)


def at_angles(*degrees: float, radius: float = 1.0) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_nearest_is_another_one_whatever_its_length(batch_size):
    latents = at_angles(0, 10, 25, 180, 200) * torch.tensor([[1.0], [9], [1], [5], [1]])
    assert nearest_by_angle(latents, batch_size=batch_size).tolist() == [1, 0, 1, 4, 3]


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_on_the_circle(weight):
    between = spherical_interpolation(at_angles(10, 90, radius=3), at_angles(90, 30, radius=3), weight)
    expected = at_angles(10 + 80 * weight, 90 - 60 * weight, radius=3)
    torch.testing.assert_close(between, expected)


def test_where_no_angle_is_defined_it_is_linear():
    first = torch.tensor([[1.0, 0], [1, 0], [0, 0]])
    second = torch.tensor([[3.0, 0], [-1, 0], [0, 2]])
    halves = spherical_interpolation(first, second)
    torch.testing.assert_close(halves[:2], torch.tensor([[2.0, 0], [0, 0]]))
    assert halves.isfinite().all()


def test_between_the_points_of_a_ring_is_the_ring():
    """Pairs of neighbours at regular angles, whose midpoints have the same mean and covariance as the points."""
    ring = at_angles(*(angle + offset for angle in range(0, 360, 20) for offset in (0, 2)))
    assert interpolation_distance(ring, ring, torch.nn.Identity()) == pytest.approx(0, abs=1e-9)
    moved = interpolation_distance(ring, ring, lambda latents: latents + 2)
    assert moved == pytest.approx(2**2 + 2**2, rel=1e-9)


def test_the_weight_zero_is_reconstruction():
    latents = torch.randn(40, 2, 2, 2)
    features = latents.flatten(1)
    assert interpolation_distance(latents, features, lambda part: part.flatten(1), weight=0) == pytest.approx(
        0, abs=1e-9
    )
    between = interpolation_distance(latents, features, lambda part: part.flatten(1), batch_size=7)
    assert between == pytest.approx(interpolation_distance(latents, features, lambda part: part.flatten(1)), rel=1e-9)
    assert between > 0.1


def test_bad_input():
    with pytest.raises(ValueError, match=r"`latents` has shape \[1, 2\]; required: at least 2 latents"):
        nearest_by_angle(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="`weight` is 2; required: a number from 0 to 1"):
        interpolation_distance(torch.randn(4, 2), torch.randn(4, 2), torch.nn.Identity(), weight=2)
    assert math.isfinite(interpolation_distance(torch.randn(4, 2), torch.randn(4, 2), torch.nn.Identity()))
