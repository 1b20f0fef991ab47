import pytest
import torch

from diffusers_lightningdit.metrics.channel_statistics import channel_statistics


def test_channels():
    latents = torch.randn(5, 3, 4, 4) * torch.tensor([1.0, 2, 3]).view(3, 1, 1) + 1
    statistics = channel_statistics(latents)
    assert statistics["mean"] == pytest.approx(latents.mean((0, 2, 3)).tolist(), rel=1e-5)
    assert statistics["std"] == pytest.approx(latents.std((0, 2, 3)).tolist(), rel=1e-5)
    assert statistics["smallest"] == pytest.approx(latents.amin((0, 2, 3)).tolist())
    assert statistics["largest"] == pytest.approx(latents.amax((0, 2, 3)).tolist())


def test_effective_channels():
    values = torch.linalg.qr(torch.randn(64, 4, dtype=torch.float64)).Q
    values = torch.linalg.qr(values - values.mean(0)).Q  # centred, orthogonal, of equal variance
    independent = values.T.reshape(1, 4, 8, 8)
    assert channel_statistics(independent)["effective_channels"] == pytest.approx(4)
    copies = independent[:, :1].expand(-1, 4, -1, -1)
    assert channel_statistics(copies)["effective_channels"] == pytest.approx(1)
    assert channel_statistics(independent[:, :1])["effective_channels"] == pytest.approx(1)
    assert channel_statistics(torch.ones(1, 4, 8, 8))["effective_channels"] == 0


def test_bad_input():
    with pytest.raises(ValueError, match=r"shape \[4, 4\]; required: \[B, C, h, w\]"):
        channel_statistics(torch.zeros(4, 4))
