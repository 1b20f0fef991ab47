"""PSNR and SSIM against scikit-image 0.26 (recorded) and against SciPy's Gaussian filter."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from diffusers_lightningdit.metrics.image_similarity import peak_signal_to_noise_ratio, structural_similarity

# structural_similarity(x, y, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
# data_range=2) and peak_signal_noise_ratio(x, y, data_range=2) of `images` below
SCIKIT_IMAGE_SSIM = 0.6289985090140208
SCIKIT_IMAGE_PSNR = 23.278041570742246


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """An image of waves, and the same with finer waves added: float64 [1, 3, 24, 40] in [-1, 1]."""
    y, x = np.mgrid[0:24, 0:40] / 8
    image = np.stack([np.sin(x * y / 2 + channel) * np.cos(y - channel) for channel in range(3)])
    other = np.clip(image + 0.2 * np.cos(7 * x + 3 * y)[None], -1, 1) * 0.9
    return torch.from_numpy(image)[None], torch.from_numpy(other)[None]


def test_recorded_values(images):
    assert structural_similarity(*images, value_range=2).item() == pytest.approx(SCIKIT_IMAGE_SSIM, rel=1e-9)
    assert peak_signal_to_noise_ratio(*images).item() == pytest.approx(SCIKIT_IMAGE_PSNR, rel=1e-9)


def ssim_with_scipy(x: np.ndarray, y: np.ndarray, value_range: float) -> float:
    """Compute the SSIM of one channel; the filter is cut at 3.5 sigma (5 pixels), and a margin of 5 pixels left out."""
    mean = lambda image: gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]  # noqa: E731
    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c_1, c_2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    similarity = (2 * mean_x * mean_y + c_1) * (2 * covariance + c_2)
    return (similarity / ((mean_x**2 + mean_y**2 + c_1) * (variances + c_2))).mean()


@pytest.mark.parametrize("size", [(11, 11), (16, 29)])
@pytest.mark.parametrize("value_range", [1.0, 2.0])
def test_ssim_of_each_image(size, value_range):
    pixels = torch.rand(3, 2, *size)
    reconstructions = (pixels + 0.2 * torch.randn(3, 2, *size)).clamp(0, 1)
    expected = [
        np.mean([ssim_with_scipy(x, y, value_range) for x, y in zip(*pair, strict=True)])
        for pair in zip(pixels.double().numpy(), reconstructions.double().numpy(), strict=True)
    ]
    ssim = structural_similarity(pixels, reconstructions, value_range)
    np.testing.assert_allclose(ssim.numpy(), expected, rtol=1e-9)


def test_psnr_of_each_image():
    pixels = torch.rand(2, 3, 4, 4).double()
    reconstructions = torch.stack([pixels[0] + 0.1, pixels[1] + 0.01])
    psnr = peak_signal_to_noise_ratio(pixels, reconstructions, value_range=1)
    torch.testing.assert_close(psnr, torch.tensor([20.0, 40]).double())
    torch.testing.assert_close(peak_signal_to_noise_ratio(2 * pixels - 1, 2 * reconstructions - 1), psnr)


def test_equal_images():
    pixels = torch.rand(2, 3, 16, 16)
    assert structural_similarity(pixels, pixels).tolist() == pytest.approx([1, 1])
    assert peak_signal_to_noise_ratio(pixels, pixels).tolist() == [float("inf")] * 2


@pytest.mark.parametrize("measure", [structural_similarity, peak_signal_to_noise_ratio])
def test_bad_input(measure):
    pixels = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"shapes \[2, 3, 16, 16\] and \[1, 3, 16, 16\]"):
        measure(pixels, pixels[:1])
    with pytest.raises(ValueError, match="`value_range` is 0; required: a positive number"):
        measure(pixels, pixels, 0)


def test_images_smaller_than_the_window():
    with pytest.raises(ValueError, match="the images are 16x10; required: at least 11x11"):
        structural_similarity(torch.zeros(1, 3, 16, 10), torch.zeros(1, 3, 16, 10))
