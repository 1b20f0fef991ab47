# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Mean and standard deviation per channel of raw latents: measuring them, and checking those of an autoencoder.

`normalize_latents` of the autoencoder applies them.

Letters in the shape comments: B batch, C latent channels, M measured images.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import torch


@dataclasses.dataclass
class LatentsStatistics:
    """Mean and unbiased standard deviation per channel, over images and positions, in float64.

    The statistics of parts are combined by their means and centred sums of squares (Chan, Golub, LeVeque 1983), so that
    nothing cancels where the mean is large. Rounding depends on the parts and their order, and on nothing else: where
    several processes measure, each part is measured by one of them, and all are combined in the order of the data.

    Attributes:
        count: The number of values of a channel.
        mean: The mean of each channel, [C].
        scatter: The sum of (x - mean)^2 of each channel, [C].
    """

    count: int
    mean: list[float]
    scatter: list[float]

    @classmethod
    def of(cls, latents: torch.Tensor) -> "LatentsStatistics":
        """Measure raw latents [B, C, height, width], of any floating-point type and device.

        Raises:
            ValueError: if there are none, or a value is not finite.
        """
        # numpy adds on one thread: the order of torch's sums, and so their last bits, depend on the number of threads
        values = latents.detach().double().transpose(0, 1).flatten(1).cpu().numpy()  # [C, B height width]
        if values.size == 0 or not np.isfinite(values).all():
            raise ValueError(f"latents of shape {list(latents.shape)} hold no finite numbers; required: only such.")
        mean = values.mean(1)
        return cls(values.shape[1], mean.tolist(), np.square(values - mean[:, None]).sum(1).tolist())

    @classmethod
    def combine(cls, parts: Iterable["LatentsStatistics"]) -> "LatentsStatistics":
        """The statistics of one or more parts together, in their order."""
        count, mean, scatter = 0, np.zeros(1), np.zeros(1)
        for part in parts:
            difference, total = np.array(part.mean) - mean, count + part.count
            mean = mean + difference * (part.count / total)
            scatter = scatter + part.scatter + np.square(difference) * (count * part.count / total)
            count = total
        return cls(count, mean.tolist(), scatter.tolist())

    @property
    def std(self) -> list[float]:
        """The square root of scatter / (count - 1), [C]."""
        return np.sqrt(np.array(self.scatter) / (self.count - 1)).tolist()


def check_statistics(
    latents: torch.Tensor,
    mean: list[float],
    std: list[float],
    data: str,
    name: str = "the VAE's config",
    num_images: float = math.inf,
    tolerance: float = 0.01,
) -> None:
    """Raise ValueError if statistics per channel are not those of the data that these latents are a sample of.

    Means and variances have to agree up to 6 of the standard errors that such a sample has, which is none if it is all
    there is, plus a part of the standard deviation.

    Args:
        latents: The sample, raw latents [M, C, height, width], at least one.
        mean, std: The statistics to check, [C] each.
        data: The name of the data, for the message.
        name: The name of the statistics, for the message.
        num_images: The number of images in the data, M at least.
        tolerance: The part of the standard deviation that means may differ by, twice that part of the variance.
    """
    values = latents.flatten(2).double()  # [M, C, height width]
    num_measured, num_channels, num_positions = values.shape
    for key, value in (("mean", mean), ("std", std)):
        if value is None or len(value) != num_channels:
            raise ValueError(
                f"{name} has a {key} of {0 if value is None else len(value)} channels; required: the {num_channels} of "
                f"the latents in {data}."
            )
    mean, std = torch.tensor(mean).double(), torch.tensor(std).double()
    # per image: its mean and its mean square distance from the given mean, each [M, C]
    means, squares = values.mean(2), (values - mean[:, None]).square().mean(2)
    squares = squares / (1 - 1 / max(num_images * num_positions, 2))  # `std` is the unbiased one
    unseen = 1 - num_measured / num_images
    for measured, expected, unit in ((means, mean, std), (squares, std.square(), 2 * std.square())):
        error = 6 * measured.std(0, unbiased=False) * (unseen / num_measured) ** 0.5 + tolerance * unit
        distance = (measured.mean(0) - expected).abs()
        if not (distance <= error).all():
            channel = int((distance / error).nan_to_num(torch.inf).argmax())
            raise ValueError(
                f"{name} has mean {mean[channel]:.4g}, std {std[channel]:.4g} for channel {channel}, the latents in "
                f"{data} have mean {means.mean(0)[channel]:.4g}, std {values[:, channel].std():.4g} ({num_measured} "
                "images measured); required: their own statistics."
            )
