import numpy as np
import pytest
import torch

from diffusers_lightningdit.metrics import precision_recall
from diffusers_lightningdit.metrics.precision_recall import precision_and_recall


def by_brute_force(generated: torch.Tensor, real: torch.Tensor, num_neighbors: int) -> tuple[float, float]:
    """Compute both by the definition, one pair of features after the other."""

    def distance(x, y):
        return np.sqrt(((x - y) ** 2).sum())

    def part_inside(points, centres):
        radii = [
            sorted(distance(a, b) for j, b in enumerate(centres) if j != i)[num_neighbors - 1]
            for i, a in enumerate(centres)
        ]
        inside = [any(distance(point, c) <= r for c, r in zip(centres, radii, strict=True)) for point in points]
        return sum(inside) / len(points)

    generated, real = generated.double().numpy(), real.double().numpy()
    return part_inside(generated, real), part_inside(real, generated)


@pytest.mark.parametrize("block_size", [2048, 7])
@pytest.mark.parametrize(("num_neighbors", "spread"), [(1, 1.0), (3, 0.5), (3, 1.6), (5, 1.0)])
def test_brute_force(num_neighbors, spread, block_size, monkeypatch):
    monkeypatch.setattr(precision_recall, "BLOCK_SIZE", block_size)
    generated, real = spread * torch.randn(40, 4) + 0.3, torch.randn(30, 4)
    expected = by_brute_force(generated, real, num_neighbors)
    assert 0.05 < min(expected) < 0.95
    assert precision_and_recall(generated, real, num_neighbors) == pytest.approx(expected, abs=1e-12)


def test_far_from_the_origin():
    """The squared norms are 10^8 times the squared distances."""
    generated, real = 0.8 * torch.randn(40, 4).double() + 1e4, torch.randn(30, 4).double() + 1e4
    assert precision_and_recall(generated, real) == pytest.approx(by_brute_force(generated, real, 3), abs=1e-12)


def test_copies_lie_inside_also_where_the_radius_is_0():
    real = torch.randn(5, 300).repeat_interleave(5, 0) + 100  # each four times more: k = 3 reaches no other
    assert precision_and_recall(real[:7], real, 3) == (1.0, pytest.approx(10 / 25))


def test_sets_apart():
    assert precision_and_recall(torch.randn(20, 4) + 100, torch.randn(20, 4)) == (0.0, 0.0)


def test_a_single_mode_is_precise_and_recalls_little():
    real = torch.cat([torch.randn(50, 4), torch.randn(50, 4) + 100])
    precision, recall = precision_and_recall(torch.randn(60, 4) * 0.5, real)
    assert precision > 0.9 and recall <= 0.5


@pytest.mark.parametrize(
    ("generated", "real", "num_neighbors", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), 3, "`generated` holds 3 images; required: more than the 3 neighbours"),
        (torch.zeros(9, 2), torch.zeros(1, 2), 1, "`real` holds 1 images"),
        (torch.zeros(9, 2), torch.zeros(9, 3), 3, r"shapes \[9, 2\] and \[9, 3\]; required"),
        (torch.full((9, 2), torch.nan), torch.zeros(9, 2), 3, "`generated` holds NaN"),
        (torch.zeros(9, 2), torch.zeros(9, 2), 0, "`num_neighbors` is 0; required: at least 1"),
    ],
)
def test_what_cannot_be_compared(generated, real, num_neighbors, message):
    with pytest.raises(ValueError, match=message):
        precision_and_recall(generated, real, num_neighbors)
