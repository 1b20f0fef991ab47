import pytest
import torch

from diffusers_lightningdit.metrics import alignment
from diffusers_lightningdit.metrics.alignment import distance_matrix_gap, linear_cka


@pytest.fixture(params=[1, 2, 64])
def in_batches(request, monkeypatch):
    monkeypatch.setattr(alignment, "BATCH_SIZE", request.param)


def test_cka_by_gram_matrices_of_rows(in_batches):
    """Compute HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with centred Gram matrices, which is the same number."""
    latents, features = torch.randn(3, 4, 2, 5).double(), torch.randn(3, 7, 2, 5).double()
    rows = [grid.permute(0, 2, 3, 1).reshape(30, -1) for grid in (latents, features)]
    centring = torch.eye(30, dtype=torch.float64) - 1 / 30
    first, second = (centring @ row @ row.T @ centring for row in rows)
    expected = (first * second).sum() / ((first * first).sum() * (second * second).sum()).sqrt()
    assert linear_cka(latents, features) == pytest.approx(expected.item(), rel=1e-10)


def test_cka_of_a_rotated_and_of_unrelated_features():
    latents = torch.randn(16, 6, 8, 8)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    rotated = 3 * torch.einsum("fc,bchw->bfhw", rotation, latents) + 5
    assert linear_cka(latents, rotated) == pytest.approx(1, abs=1e-6)
    assert linear_cka(latents, torch.randn(16, 6, 8, 8)) < 0.05


def test_distance_matrices_by_pairs_of_positions(in_batches):
    latents, features = torch.randn(2, 3, 1, 3), torch.randn(2, 5, 1, 3)
    gaps = [
        abs(
            torch.cosine_similarity(latents[image, :, 0, i], latents[image, :, 0, j], dim=0)
            - torch.cosine_similarity(features[image, :, 0, i], features[image, :, 0, j], dim=0)
        )
        for image in range(2)
        for i in range(3)
        for j in range(3)
    ]
    assert distance_matrix_gap(latents, features) == pytest.approx((sum(gaps) / 18).item(), rel=1e-5)


def test_positions_that_resemble_each_other_alike():
    latents = torch.randn(2, 4, 3, 3)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert distance_matrix_gap(latents, torch.einsum("fc,bchw->bfhw", 2 * rotation, latents)) < 1e-6


@pytest.mark.parametrize("measure", [linear_cka, distance_matrix_gap])
def test_grids_that_differ(measure):
    with pytest.raises(ValueError, match=r"shapes \[2, 3, 4, 4\] and \[2, 3, 2, 2\]"):
        measure(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))


def test_cka_of_a_constant():
    with pytest.raises(ValueError, match="the same at all positions"):
        linear_cka(torch.ones(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
