import numpy as np
import pytest
import torch

from diffusers_lightningdit.evaluation.reference_statistics import archive_names, read_statistics


def arrays(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(size, dtype=np.float64), np.eye(size)


def test_statistics_of_both_kinds(tmp_path):
    (mu, sigma), (mu_s, sigma_s) = arrays(4), arrays(3)
    images = np.zeros((1, 2, 2, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    assert set(archive_names(tmp_path / "a.npz")) == {"arr_0", "mu", "sigma", "mu_s", "sigma_s"}
    statistics = read_statistics(tmp_path / "a.npz")
    assert list(statistics) == ["features", "spatial"]
    assert torch.equal(statistics["features"][0], torch.arange(4.0, dtype=torch.float64))
    assert torch.equal(statistics["spatial"][1], torch.eye(3, dtype=torch.float64))
    np.savez(tmp_path / "b.npz", mu=mu.astype(np.float32), sigma=sigma)
    assert list(read_statistics(tmp_path / "b.npz")) == ["features"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": np.array([{}, {}, {}, {}])}, r"mu of .*a\.npz cannot be read \(.*allow_pickle"),
        ({"mu": np.full(4, np.nan)}, "finite floating-point numbers"),
        ({"mu": np.arange(4)}, "holds int64; required: finite floating-point"),
        (
            {"sigma": np.triu(np.ones((4, 4)))},
            r"sigma of .*a\.npz differs from its transpose by 1; required: a symmetric",
        ),
        ({"sigma": np.diag([1, 1, -0.5, 1])}, r"sigma of .*a\.npz has the eigenvalue -0\.5; required: a covariance"),
        ({"sigma": np.eye(3)}, r"mu, sigma of \[4\] and \[3, 3\]; required: \[D\], \[D, D\]"),
    ],
)
def test_refused(changed, message, tmp_path):
    mu, sigma = arrays(4)
    np.savez(tmp_path / "a.npz", **{"mu": mu, "sigma": sigma, **changed})
    with pytest.raises(ValueError, match=message):
        read_statistics(tmp_path / "a.npz")


@pytest.mark.parametrize("sigma", [np.zeros((4, 4)), np.outer(np.arange(4.0), np.arange(4.0)) - 1e-9 * np.eye(4)])
def test_singular_covariances_are_none_the_worse(sigma, tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(4), sigma=sigma)
    assert torch.equal(read_statistics(tmp_path / "a.npz")["features"][1], torch.from_numpy(sigma))


def test_files_of_another_kind(tmp_path):
    np.savez(tmp_path / "half.npz", mu=np.zeros(4))
    with pytest.raises(ValueError, match=r"half\.npz has no sigma; required: mean and covariance"):
        read_statistics(tmp_path / "half.npz")
    (tmp_path / "a.npz").write_text("nothing")
    for name in ("a.npz", "missing.npz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\); required: an \.npz file"):
            archive_names(tmp_path / name)
