# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""PSNR and SSIM between images and their reconstructions, for each image.

Letters in the shape comments: B images, C colour channels.
"""

import torch
import torch.nn.functional as F

from .finite import check_finite

# SSIM (Wang, Bovik, Sheikh, Simoncelli 2004): an 11x11 circular Gaussian window, and two small constants.
WINDOW_SIZE = 11
WINDOW_SIGMA = 1.5
K_1, K_2 = 0.01, 0.03


def peak_signal_to_noise_ratio(
    pixels: torch.Tensor, reconstructions: torch.Tensor, value_range: float = 2.0
) -> torch.Tensor:
    """Compute the peak signal-to-noise ratio of each image, 10 log10(R^2 / mean squared difference).

    Args:
        pixels, reconstructions: Images [B, C, height, width].
        value_range: The largest possible difference R of two values: 2 for pixels in [-1, 1], 1 for pixels in [0, 1].

    Returns:
        The PSNR in decibels, float64 [B]; infinite for equal images.

    Raises:
        ValueError: If the shapes differ, the range is not positive, or a value is not finite.
    """
    _check(pixels, reconstructions, value_range)
    mean_square = (pixels.double() - reconstructions.double()).square().flatten(1).mean(1)
    return 10 * (value_range**2 / mean_square).log10()


def structural_similarity(
    pixels: torch.Tensor, reconstructions: torch.Tensor, value_range: float = 1.0
) -> torch.Tensor:
    """Compute the structural similarity of each image (Wang et al. 2004, equation 13, averaged by equation 17).

    The average is over the colour channels and the positions where the window lies within the image. Variances are
    those of the window's weights, without a correction for the sample size. SSIM compares means by their ratio, so
    black must be 0: pixels in [-1, 1] would give another number.

    Args:
        pixels, reconstructions: Images [B, C, height, width] of at least 11x11 pixels, in [0, value_range].
        value_range: The value of white.

    Returns:
        The SSIM, float64 [B], in [-1, 1]; 1 for equal images.

    Raises:
        ValueError: If the shapes differ, the images are smaller than the window, the range is not positive, or a value
            is not finite.
    """
    _check(pixels, reconstructions, value_range)
    if min(pixels.shape[-2:]) < WINDOW_SIZE:
        size = "x".join(map(str, pixels.shape[-2:]))
        raise ValueError(f"the images are {size}; required: at least {WINDOW_SIZE}x{WINDOW_SIZE}, the window of SSIM.")
    x, y = (images.double().flatten(0, 1)[:, None] for images in (pixels, reconstructions))  # [B C, 1, height, width]
    positions = torch.arange(WINDOW_SIZE, dtype=torch.float64, device=x.device) - WINDOW_SIZE // 2
    window = (-positions.square() / (2 * WINDOW_SIGMA**2)).exp()
    window = window / window.sum()

    def local_mean(images: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(images, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    c_1, c_2 = (K_1 * value_range) ** 2, (K_2 * value_range) ** 2
    luminance = (2 * mean_x * mean_y + c_1) / (mean_x.square() + mean_y.square() + c_1)
    contrast_and_structure = (2 * covariance + c_2) / (variance_x + variance_y + c_2)
    return (luminance * contrast_and_structure).view(len(pixels), -1).mean(1)


def _check(pixels: torch.Tensor, reconstructions: torch.Tensor, value_range: float) -> None:
    if pixels.ndim != 4 or pixels.shape != reconstructions.shape:
        shapes = f"{list(pixels.shape)} and {list(reconstructions.shape)}"
        raise ValueError(f"images and reconstructions have shapes {shapes}; required: [B, C, height, width] for both.")
    if not value_range > 0:
        raise ValueError(f"`value_range` is {value_range}; required: a positive number.")
    check_finite(pixels=pixels, reconstructions=reconstructions)
