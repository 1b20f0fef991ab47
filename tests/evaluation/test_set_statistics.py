import hashlib
import threading

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from diffusers_lightningdit.evaluation import set_statistics
from diffusers_lightningdit.evaluation.image_sets import ArchiveImages
from diffusers_lightningdit.evaluation.set_statistics import measure_images
from diffusers_lightningdit.metrics.frechet import FeatureStatistics
from diffusers_lightningdit.metrics.inception_score import InceptionScore


class SmallNetwork(nn.Module):
    """A convolution that records the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3)
        self.batch_sizes = []

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.batch_sizes.append(len(images))
        grid = self.layer(images / 255)
        features = grid.mean((2, 3))
        return {"features": features, "spatial": grid[:, :2].flatten(1), "probabilities": features.softmax(1)}


@pytest.fixture
def arrays() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 6, 6, 3), dtype=np.uint8)


@pytest.fixture
def images(arrays, tmp_path) -> ArchiveImages:
    np.savez(tmp_path / "images.npz", arrays)
    return ArchiveImages(tmp_path / "images.npz")


@pytest.mark.parametrize("rows_per_update", [1024, 10])
def test_the_same_as_all_images_at_once(images, arrays, rows_per_update, monkeypatch):
    monkeypatch.setattr(set_statistics, "ROWS_PER_UPDATE", rows_per_update)
    network = SmallNetwork()
    measured = measure_images(images, network, Accelerator(cpu=True), block_size=8, num_splits=3, keep_features=True)
    assert network.batch_sizes == [8] * 5  # the last block is filled up
    with torch.no_grad():
        outputs = network(torch.from_numpy(arrays).permute(0, 3, 1, 2))
    assert measured.num_images == 37
    assert torch.allclose(measured.features, outputs["features"], atol=1e-6)
    for name in ("features", "spatial"):
        expected = FeatureStatistics(outputs[name].shape[1])
        expected.update(outputs[name])
        assert measured.statistics[name].count == 37
        assert torch.allclose(measured.statistics[name].mean, expected.mean, atol=1e-6)
        assert torch.allclose(measured.statistics[name].scatter, expected.scatter, atol=1e-5)
    score = InceptionScore(37, 3)
    score.update(outputs["probabilities"])
    assert measured.inception_score == pytest.approx(score.compute(), rel=1e-6)
    digest = hashlib.sha256(b"".join(hashlib.sha256(array).digest() for array in arrays))
    assert measured.pixels_sha256 == digest.hexdigest()


class MadeImages:
    """A set that records when the making of each of its six blocks begins, and when the last one has ended."""

    num_images = 24

    def __init__(self):
        self.has_begun = [threading.Event() for _ in range(7)]

    def read_blocks(self, blocks):
        for number, block in enumerate(blocks):
            self.has_begun[number].set()
            yield np.zeros((len(block), 6, 6, 3), np.uint8)
        self.has_begun[6].set()


def test_the_network_works_while_the_next_block_is_made():
    """The network waits until the making of the next block begins, which would time out if it had to wait for it."""
    images = MadeImages()

    class WaitingNetwork(SmallNetwork):
        def forward(self, pixels):
            assert images.has_begun[len(self.batch_sizes) + 1].wait(timeout=10)
            return super().forward(pixels)

    network = WaitingNetwork()
    assert measure_images(images, network, Accelerator(cpu=True), block_size=4, batch_size=8).num_images == 24
    assert network.batch_sizes == [4] * 6


def test_features_are_kept_only_where_they_are_wanted(images):
    assert measure_images(images, SmallNetwork(), Accelerator(cpu=True)).features is None


def test_fewer_images_than_splits(tmp_path):
    np.savez(tmp_path / "two.npz", np.zeros((2, 6, 6, 3), np.uint8))
    measured = measure_images(ArchiveImages(tmp_path / "two.npz"), SmallNetwork(), Accelerator(cpu=True))
    assert measured.inception_score == pytest.approx((1, 0), abs=1e-9)
